"""The systemd units under examples/: known to systemd, hardened, and with commands that there are."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgelite import cli as edgelite_cli
from edgelite import exits
from hub.cli import build_parser

UNITS = Path(__file__).parents[2] / "examples" / "systemd"
EXPOSURE_MAX = {"cloudhub": 1.3, "edgelite": 3.0}
"""On systemd's scale from 0 (best) to 10; most services have 9.6."""


def setting(unit: str, name: str) -> list[str]:
    """The values of a setting, in order."""
    return re.findall(rf"^{name}=(.*)$", (UNITS / f"{unit}.service").read_text(), re.MULTILINE)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    assert program, "systemd-analyze is missing: run `make deps-ci`"
    return subprocess.run([program, "--no-pager", *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("unit", EXPOSURE_MAX)
def test_systemd_knows_every_setting_of_the_unit(unit: str, tmp_path: Path) -> None:
    text = (UNITS / f"{unit}.service").read_text()
    copy = tmp_path / f"{unit}.service"
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    done = analyze("verify", "--man=no", "--recursive-errors=no", str(copy))
    # The users of examples do not exist here, which is no fault of the unit.
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("unit", EXPOSURE_MAX)
def test_the_unit_is_hardened(unit: str) -> None:
    done = analyze("security", "--offline=true", str(UNITS / f"{unit}.service"))
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE_MAX[unit], done.stdout
    assert setting(unit, "CapabilityBoundingSet") == setting(unit, "AmbientCapabilities") == [""]
    assert setting(unit, "NoNewPrivileges") == ["yes"]
    assert setting(unit, "UMask") == ["0077"] and setting(unit, "StateDirectoryMode") == ["0700"]
    assert setting(unit, "User") == ([] if setting(unit, "DynamicUser") == ["yes"] else ["edgelite"])


def test_pods_go_on_when_the_agents_unit_is_stopped_and_an_agent_that_has_not_joined_is_left_alone() -> None:
    assert setting("edgelite", "KillMode") == ["process"]
    assert setting("edgelite", "PrivateTmp") == []
    assert setting("edgelite", "RestartPreventExitStatus") == [str(exits.NOT_JOINED)]
    assert setting("cloudhub", "KillMode") == []


def test_the_units_start_commands_that_there_are() -> None:
    for unit in EXPOSURE_MAX:
        (line,) = setting(unit, "ExecStart")
        program, *arguments = line.split()
        (state,) = setting(unit, "StateDirectory")
        assert arguments[arguments.index("--data-dir") + 1] == f"/var/lib/{state}"
        assert Path(program).name == unit
        if unit == "cloudhub":
            assert build_parser().parse_args(arguments).run == "serve"
        else:
            assert arguments[0] in {command.name for command in edgelite_cli.COMMANDS}
