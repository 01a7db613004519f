"""`make agent-check`: all packages as they are released, built twice, and run where they can be run here: the archive on every
CPython there is, the one-file executable as an agent with a pod, the Windows folder under wine. Minutes, so not in `make test`."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pytest

from edgelite import wire
from edgelite.release import __main__ as release
from edgelite.release import executable, windows
from edgelite.release.sources import ROOT, epoch
from tests.edgelite.scripted_hub import Hub, until
from tests.edgelite.test_cli import Reports, pod

PYTHONS = [f"python3.{minor}" for minor in range(9, 15)]
CALL_S = 180
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """The directory of a release."""
    out = tmp_path_factory.mktemp("release")
    for name, content in release.build([], epoch()).items():
        (out / name).write_bytes(content)
        (out / name).chmod(0o755)
    return out


@pytest.fixture
def node(tmp_path):
    """A hub, and the directory of a node that has joined it."""
    hub = Hub(tmp_path / "ca")
    data = tmp_path / "node"
    hub.enrol(str(data))
    (data / "config.json").write_text('{"runtime": "process"}')
    yield hub, data
    hub.close()


def test_a_second_build_gives_the_same_bytes(built, tmp_path):
    command = [sys.executable, "-m", "edgelite.release", "--out", str(tmp_path)]
    subprocess.run(
        command, check=True, cwd=ROOT, timeout=900, env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch())}
    )
    names = sorted(path.name for path in built.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir()) and len(names) == 7
    assert [name for name in names if (built / name).read_bytes() != (tmp_path / name).read_bytes()] == []
    for name in names:
        print(f"{(built / name).stat().st_size:10d}  {name}")


def agent(hub, data, *command: str) -> None:
    """Runs a pod by this edgelite, and stops both."""
    hub.listener.settimeout(CALL_S)  # the first start unpacks and compiles
    process = subprocess.Popen([*command, "run", "--data-dir", str(data)], stderr=subprocess.PIPE, text=True)
    try:
        connection = hub.accept()
        connection.expect(wire.HELLO)
        connection.welcome()
        reports = Reports(connection)
        key, document = pod("till", ["/bin/sh", "-c", "echo hello; exec sleep 1000"])
        connection.set(key, document)
        reports.running(key)
        assert call(command, "logs", "--data-dir", str(data), "--pod", "till") == "hello\n"
        assert (
            json.loads(call(command, "status", "-o", "json", "--data-dir", str(data)))["state"] == "connected"
        )
        call(command, "stop", "--data-dir", str(data), "--workloads")
        assert process.wait(60) == 0
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def call(command: tuple[str, ...], *words: str) -> str:
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=CALL_S)
    assert done.returncode == 0, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def found(name: str) -> str:
    """The interpreter of this name that answers: of this system, or one that pyenv or uv has installed; "" for none."""
    home = Path.home()
    folders = [home / ".pyenv/versions", home / ".local/share/uv/python"]
    others = [str(path) for folder in folders for path in sorted(folder.glob(f"*/bin/{name}"))]
    for python in [shutil.which(name) or "", *others]:
        if python and not subprocess.run([python, "-c", "import ssl, bz2"], capture_output=True).returncode:
            return python
    return ""


def test_the_archive_runs_a_pod_on_every_cpython_that_is_here(built, tmp_path):
    ran = []
    for name in PYTHONS:
        python = found(name)
        if not python:
            continue  # counted below
        hub = Hub(tmp_path / name / "ca")
        hub.enrol(str(tmp_path / name / "node"))
        (tmp_path / name / "node/config.json").write_text('{"runtime": "process"}')
        try:
            agent(hub, tmp_path / name / "node", python, str(built / "edgelite.pyz"))
        finally:
            hub.close()
        ran.append(name)
    print(f"{len(ran)} of {len(PYTHONS)}: {', '.join(ran)}; not here: {', '.join(set(PYTHONS) - set(ran))}")
    assert "python3.11" in ran, "CPython 3.11 is what the project is built with"


def test_the_one_file_executable_runs_a_pod_without_any_python(built, node):
    hub, data = node
    agent(hub, data, str(built / executable.name()))
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(data) in (p.info["cmdline"] or [])]


SERVICE = """
import bz2, json, os, sys, threading, zipfile
here = os.path.dirname(os.path.abspath(__file__))
archive = os.path.join(here, "edgelite.pyz")
names = {"__name__": "bootstrap", "__file__": archive}
with zipfile.ZipFile(archive) as z:
    exec(z.read("__main__.py"), names)
    files = json.loads(bz2.decompress(z.read("edgelite.json.bz2")))
sys.meta_path.insert(0, names["Archive"](archive, files))
from edgelite import winservice

class Agent:
    def __init__(self):
        self.ended = threading.Event()
    def stop(self):
        self.ended.set()

def note(text):
    with open(os.path.join(here, "notes.txt"), "a") as file:
        file.write(text + "\\n")

def run(stream, control):
    note("started")
    stream.write(json.dumps({"time": "", "level": "warning", "message": "hello"}))
    agent = Agent()
    control(agent)
    note("stopped" if agent.ended.wait(300) else "forgotten")
    return 0

if sys.argv[1] == "install":
    print(winservice.install([sys.executable, os.path.abspath(__file__)], here, None))
else:
    sys.exit(winservice.Service(run).serve())
"""
"""Plays the agent in the service that edgelite installs; the agent itself: test_windows_node.py."""


def test_the_windows_folder_starts_diagnoses_and_installs_its_service_under_wine(built, tmp_path):
    wine = shutil.which("wine")
    assert wine, "wine is missing: run `make deps-ci`"
    with zipfile.ZipFile(io.BytesIO((built / windows.NAME).read_bytes())) as folder:
        folder.extractall(tmp_path)
    home = tmp_path / "edgelite"
    (home / "service.py").write_text(SERVICE)
    env = {**os.environ, "WINEPREFIX": str(tmp_path / "prefix"), "WINEDEBUG": "-all", "DISPLAY": ""}

    def python(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [wine, "python.exe", *words], cwd=home, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=CALL_S,
        )  # fmt: skip
        return done.returncode, done.stdout

    notes = home / "notes.txt"
    try:
        code, said = python("edgelite.pyz", "--version")
        assert code == 0 and "edgelite 0." in said, said
        code, said = python("edgelite.pyz", "diagnose", "--hub", "127.0.0.1:1", "--data-dir", "node")
        assert (
            code == 1
            and "nobody listens there" in said
            and "process, in job objects with limits of memory, pids" in said
        )
        assert python("edgelite.pyz", "service", "status") == (
            6,
            "not installed: there is no service edgelite\n",
        )
        code, said = python("service.py", "install")
        assert code == 0 and "starts at every boot" in said, said
        until(notes.exists)
        # wine's services end with the last program, and begin again with the next: a reboot each time.
        code, said = python("edgelite.pyz", "service", "status")
        assert (code, said) == (0, "running\n")
        assert notes.read_text().split().count("started") >= 2
        code, said = python("edgelite.pyz", "service", "remove")
        assert code == 0 and "is removed" in said, said
        assert notes.read_text().split()[-1] == "stopped"
        assert python("edgelite.pyz", "service", "status")[0] == 6
    finally:
        subprocess.run(["wineserver", "-k"], env=env, timeout=60, check=False)
