"""`edgelite service`: what systemd, launchd and Windows are told, and that it is carried out. The real service managers: systemd's
own checker of units here, Windows' under wine in `make agent-check`; launchd runs on macOS alone."""

import ctypes
import os
import plistlib
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgelite import cli, launchd, service, systemd, winapi, winservice
from edgelite.exits import NOT_JOINED
from edgelite.service import ServiceError

ROOT = Path(__file__).parents[2]
PROGRAM = ["/opt/edgelite/bin/edgelite"]


def settings(text):
    """[(name, value)] of a unit, in order."""
    return re.findall(r"^([A-Za-z]+)=(.*)$", text, re.MULTILINE)


def test_the_example_unit_is_what_the_command_installs():
    example = (ROOT / "examples/systemd/edgelite.service").read_text()
    assert example[example.index("[Unit]") :] == systemd.unit(PROGRAM, systemd.STATE_DIR, "edgelite")


@pytest.mark.parametrize("user", ["edgelite", "root"])
@pytest.mark.parametrize("directory", [systemd.STATE_DIR, "/srv/edge"])
def test_systemd_knows_every_setting_of_every_form_of_the_unit(tmp_path, user, directory):
    text = systemd.unit(["/bin/true", "/opt/edgelite/edgelite.pyz"], directory, user)
    path = tmp_path / "edgelite.service"
    path.write_text(text)
    program = shutil.which("systemd-analyze")
    assert program, "systemd-analyze is missing: run `make deps-ci`"
    done = subprocess.run(
        [program, "--no-pager", "verify", "--man=no", "--recursive-errors=no", str(path)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    found = dict(settings(text))
    assert found["ExecStart"] == f"/bin/true /opt/edgelite/edgelite.pyz run --data-dir {directory}"
    assert (found["Restart"], found["KillMode"], found["RestartPreventExitStatus"]) == (
        "always",
        "process",
        "4",
    )
    assert found["WantedBy"] == "multi-user.target" and found["UMask"] == "0077"
    assert (directory in text and "StateDirectory" not in found) == (directory != systemd.STATE_DIR)


class Tools:
    """In place of systemctl and launchctl: what they were told, and what they answer."""

    def __init__(self, monkeypatch, module):
        self.told, self.answers = [], {}
        monkeypatch.setattr(module, "tool", self)
        monkeypatch.setattr(module, "need_root", lambda: None)

    def __call__(self, *command):
        self.told.append(" ".join(command))
        answer = self.answers.get(command[1], "")
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_systemd_is_told_to_start_it_now_and_at_every_boot_and_to_forget_it(monkeypatch, tmp_path):
    tools = Tools(monkeypatch, systemd)
    monkeypatch.setattr(systemd, "UNITS", str(tmp_path))
    data = tmp_path / "data"
    data.mkdir()
    me = pwd.getpwuid(os.geteuid()).pw_name
    path = tmp_path / "edgelite.service"
    assert systemd.status() == (False, f"not installed: there is no {path}")
    if me != "root":
        assert "runs as user" in systemd.install(PROGRAM, str(data), me)
    assert "runs as user root" in systemd.install(PROGRAM, str(data), "root") or me != "root"
    assert tools.told[-3:] == [
        "systemctl daemon-reload",
        "systemctl enable edgelite",
        "systemctl restart edgelite",
    ]
    assert (
        path.read_text() == systemd.unit(PROGRAM, str(data), "root") and path.stat().st_mode & 0o777 == 0o644
    )
    tools.answers["show"] = (
        "ActiveState=failed\nSubState=failed\nUnitFileState=enabled\nNRestarts=3\nExecMainStatus=4\n"
    )
    assert systemd.status() == (False, "failed (failed), at boot: enabled, restarts: 3, last exit code: 4")
    tools.answers["show"] = tools.answers["show"].replace("failed", "active")
    assert systemd.status()[0] is True
    del tools.told[:]
    assert "stay" in systemd.remove() and not path.exists()
    assert tools.told == ["systemctl disable --now edgelite", "systemctl daemon-reload"]
    assert systemd.remove() == f"there is no {path}"


def test_what_a_service_could_not_reach_or_hold_is_refused_before_anything_is_written(monkeypatch, tmp_path):
    tools = Tools(monkeypatch, systemd)
    monkeypatch.setattr(systemd, "UNITS", str(tmp_path))
    for program in (["/home/me/edgelite"], ["/usr/bin/python3", "/root/edgelite.pyz"], ["/tmp/edgelite"]):
        with pytest.raises(ServiceError, match="put the program under /opt"):
            systemd.install(program, "/var/lib/edgelite", None)
    for odd in ("/opt/a b", "/opt/a\nUser=root", "/opt/%i", "/opt/$x", "/opt/a;b", '/opt/"', ""):
        with pytest.raises(ServiceError, match=r"cannot hold|no blanks"):
            systemd.unit([odd], "/var/lib/edgelite", "edgelite")
        with pytest.raises(ServiceError, match=r"cannot hold|no blanks"):
            systemd.unit(PROGRAM, "/var/lib/edgelite", odd)
    pods = tmp_path / "data/pods/u1"
    pods.mkdir(parents=True)
    if os.geteuid() == 0:
        with pytest.raises(ServiceError, match="stop --workloads"):
            systemd.install(PROGRAM, str(tmp_path / "data"), "nobody")
    assert tools.told == [] and sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_launchd_keeps_the_agent_running_and_its_log_where_console_looks(monkeypatch, tmp_path):
    tools = Tools(monkeypatch, launchd)
    monkeypatch.setattr(launchd, "DAEMONS", str(tmp_path))
    monkeypatch.setattr(launchd, "LOGS", str(tmp_path / "Logs"))
    path = tmp_path / "dev.cloudhub.edgelite.plist"
    assert launchd.status()[0] is False
    assert "starts at every boot" in launchd.install(
        ["/usr/bin/python3", "/x/edgelite.pyz"], "/var/lib/edgelite", None
    )
    assert tools.told == [f"launchctl bootstrap system {path}"] and path.stat().st_mode & 0o777 == 0o644
    daemon = plistlib.loads(path.read_bytes())
    assert daemon["ProgramArguments"] == [
        "/usr/bin/python3", "/x/edgelite.pyz", "run", "--data-dir", "/var/lib/edgelite", "--log-dir", str(tmp_path / "Logs"),
    ]  # fmt: skip
    assert (
        daemon["RunAtLoad"]
        and daemon["KeepAlive"] == {"SuccessfulExit": False}
        and daemon["AbandonProcessGroup"]
    )
    assert daemon["Umask"] == 0o077 and daemon["UserName"] == "root"
    run = next(command for command in cli.COMMANDS if command.name == "run")
    run.parse(daemon["ProgramArguments"][3:])
    tools.answers["print"] = (
        "system/x = {\n\tstate = running\n\tpid = 7\n\tlast exit code = 0\n\tother = 1\n}\n"
    )
    assert launchd.status() == (True, "state = running, pid = 7, last exit code = 0")
    tools.answers["bootout"] = ServiceError("`launchctl` failed (3): Boot-out failed: 3: No such process")
    launchd.install(["/x/edgelite"], "/var/lib/edgelite", None)  # again: the old one is unloaded first
    assert tools.told[-2:] == [
        "launchctl bootout system/dev.cloudhub.edgelite",
        f"launchctl bootstrap system {path}",
    ]
    tools.answers["bootout"] = ServiceError("`launchctl` failed (1): Operation not permitted")
    with pytest.raises(ServiceError, match="not permitted"):
        launchd.remove()
    assert path.exists()
    tools.answers["bootout"] = ""
    launchd.remove()
    assert not path.exists()


def test_windows_is_told_a_command_line_that_it_splits_again_as_it_was():
    line = winservice.command_line(
        [r"C:\Program Files\edgelite\python.exe", r"C:\x\edgelite.pyz"], r"C:\ProgramData\edge lite"
    )
    assert (
        line
        == r'"C:\Program Files\edgelite\python.exe" C:\x\edgelite.pyz --service "C:\ProgramData\edge lite"'
    )


def test_the_structures_for_windows_are_as_large_as_its_headers_say():
    pointer = ctypes.sizeof(ctypes.c_void_p)
    assert ctypes.sizeof(winapi.ServiceStatus) == 28 and ctypes.sizeof(winapi.Action) == 8
    assert ctypes.sizeof(winapi.FailureActions) == 5 * pointer
    assert ctypes.sizeof(winapi.TableEntry) == 2 * pointer


def test_a_tool_that_is_missing_or_fails_is_named_with_what_it_said():
    with pytest.raises(ServiceError, match="nonexistent-tool is not there"):
        service.tool("nonexistent-tool", "x")
    with pytest.raises(ServiceError, match=r"`false` failed \(1\)"):
        service.tool("false")
    assert service.tool("echo", "a; b") == "a; b\n"


def test_a_directory_that_has_not_joined_gets_no_service(tmp_path, capsys):
    assert cli.main(["service", "install", "--data-dir", str(tmp_path)]) == NOT_JOINED
    assert "edgelite join --no-run" in capsys.readouterr().err
    for words, said in (
        (["service"], "no command 'service'"),
        (["service", "start"], "no command 'service start'"),
        (["service", "remove", "--data-dir", "x"], "takes no options"),
    ):
        assert cli.main(words) == 2
        assert said in capsys.readouterr().err
    assert service.program() == [os.path.abspath(sys.executable), str(ROOT / "edgelite/__main__.py")]
