"""The launcher in processes of its own, with releases that are a few lines of Python."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgelite import __version__, updateplan
from edgelite.exits import RESTART
from tests.e2e.cluster import ROOT

SAYS = "import os, sys; print('{} runs', os.environ['EDGELITE_SLOT'], *sys.argv[1:], flush=True)\n"
WAITS = SAYS + "import time; time.sleep(600)\n"
KEEPS = SAYS + (
    "import json; path = os.path.dirname(sys.argv[0]) + '/state.json'; r = json.load(open(path)); t = r['trial']\n"
    "r.update(good={{'slot': t['slot'], 'sha256': t['sha256'], 'version': t['version']}}, base=t['base'], trial=None)\n"
    "json.dump(r, open(path, 'w')); sys.exit({code})\n"
)
LAUNCH = (
    "import sys; from edgelite import launcher; launcher.ALARM_EXTRA_S = int(sys.argv[2])\n"
    "code = launcher.launch(sys.argv[1], ['run']); print('base runs' if code is None else f'ends with {code}')\n"
)


class Launched:
    """A data directory with a slot or two, and the launcher on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "update").mkdir()
        self.record = dict(updateplan.NO_FIELDS)
        self.process: subprocess.Popen[str] | None = None
        self.alarm_extra_s = 600

    def slot(self, name: str, program: str) -> dict[str, Any]:
        (self.folder / "update" / name).write_text(program)
        sha256 = hashlib.sha256(program.encode()).hexdigest()
        return {"slot": name, "sha256": sha256, "version": "9.0"}

    def good(self, program: str) -> None:
        self.record["good"] = self.slot("a", program)
        self.record["base"] = __version__

    def trial(self, program: str, deadline: int = 60) -> None:
        more = {"id": "0" * 16, "deadline": deadline, "hold": 0, "starts": 0, "base": ""}
        self.record["trial"] = {**self.slot("b", program), **more}

    def start(self) -> subprocess.Popen[str]:
        (self.folder / "update/state.json").write_bytes(updateplan.dump(self.record))
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(self.folder), str(self.alarm_extra_s)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self.process

    def run(self) -> list[str]:
        return self.start().communicate(timeout=60)[0].splitlines()

    def state(self) -> dict[str, Any]:
        return updateplan.load((self.folder / "update/state.json").read_bytes())

    def waiting(self) -> psutil.Process:
        """The trial, once it has spoken."""
        assert self.process is not None and self.process.stdout is not None
        assert "runs trial" in self.process.stdout.readline()
        return psutil.Process(self.process.pid).children()[0]


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Launched]:
    made = Launched(tmp_path)
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.communicate()


def test_what_is_kept_takes_the_launchers_place(launched: Launched) -> None:
    launched.good(SAYS.format("a"))
    assert launched.run() == ["a runs good run"]
    assert launched.process is not None
    assert launched.process.returncode == 0


def test_a_trial_that_was_kept_is_started_anew_in_the_launchers_place(launched: Launched) -> None:
    launched.good(SAYS.format("a"))
    launched.trial(KEEPS.format("b", code=RESTART))
    # The second time there is no trial in the record, so that the same program fails at its end.
    assert launched.run()[:2] == ["b runs trial run", "b runs good run"]


def test_a_trial_that_is_late_is_killed_and_what_was_good_runs(launched: Launched) -> None:
    launched.good(SAYS.format("a"))
    launched.trial(WAITS.format("b"), deadline=1)
    assert launched.run() == ["b runs trial run", "a runs good run"]
    assert launched.state()["last"]["reason"] == "NotConfirmed"


def test_the_base_runs_where_nothing_else_works(launched: Launched) -> None:
    launched.trial(SAYS.format("b") + "sys.exit(1)\n")
    assert launched.run() == ["b runs trial run"] * updateplan.STARTS_MAX + ["base runs"]
    assert launched.state()["last"]["reason"] == "Crashed"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_trial_is_stopped_with_the_launcher_and_that_does_not_count(
    launched: Launched, number: int
) -> None:
    launched.trial(WAITS.format("b"))
    process = launched.start()
    child = launched.waiting()
    process.send_signal(number)
    assert process.communicate(timeout=60)[0] == "ends with 0\n"
    assert not child.is_running()
    assert launched.state()["trial"]["starts"] == 0


def test_a_trial_that_hangs_ends_also_when_nobody_waits_for_it(launched: Launched) -> None:
    launched.alarm_extra_s = 0
    launched.trial(WAITS.format("b"), deadline=1)
    process = launched.start()
    child = launched.waiting()
    process.kill()
    assert not psutil.wait_procs([child], 60)[1]


def test_another_agent_on_the_directory_is_left_alone(launched: Launched) -> None:
    from edgelite.config import PidFile

    launched.trial(SAYS.format("b"))
    lock = PidFile(str(launched.folder))
    lock.acquire()
    try:
        assert launched.run() == ["base runs"], "who then says that the directory is in use"
    finally:
        lock.release()
    assert launched.state()["trial"]["starts"] == 0


def test_nothing_of_the_launcher_is_left_in_the_environment_of_workloads(launched: Launched) -> None:
    code = (
        "import os; from edgelite import resident\n"
        "resident.run_agent = lambda *a: print([n for n in os.environ if 'EDGELITE' in n]) or 0\n"
        "resident.resident('x', 'run', 'info')\n"
    )
    given = {**os.environ, "EDGELITE_BASE": "/base", "EDGELITE_SLOT": "trial"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=given, capture_output=True, text=True)
    assert json.loads(done.stdout) == []
