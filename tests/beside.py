"""What goes on beside all tests of a run, since it only waits: started when the tests are known, read by the last one.

A plugin for both pytest alone and pytest-xdist: with workers it is the controller that starts and ends the process, once, and a
worker knows the report by the run's id.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
MINUTES = os.environ.get("CLOUDHUB_TEST_IDLE_MINUTES", "10")
PATIENCE_S = 300.0
"""Beyond MINUTES: for its start, on a machine that all tests keep busy."""


class Beside:
    """`marked`: the end of the id of the one test that reads it."""

    def __init__(self, marked: str, command: list[str]) -> None:
        self._marked = marked
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._run = ""

    def start(self, run: str, ids: Iterable[str]) -> None:
        """Starts it where the test is among those of this run."""
        if self._process is None and any(id.endswith(self._marked) for id in ids):
            self._run = run
            with self.log(run).open("wb") as log:
                command = ["nice", "-n", "5", sys.executable, *self._command]
                self._process = subprocess.Popen(
                    [*command, "--minutes", MINUTES, "--report", str(self.report(run))],
                    cwd=ROOT,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

    def stop(self) -> None:
        """Ends it, and what it has written is gone."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        for path in (self.report(self._run), self.log(self._run)):
            path.unlink(missing_ok=True)

    @staticmethod
    def report(run: str) -> Path:
        """Where the figures will be."""
        return Path(tempfile.gettempdir()) / f"cloudhub-idle-{run}.json"

    @staticmethod
    def log(run: str) -> Path:
        """What it says."""
        return Path(tempfile.gettempdir()) / f"cloudhub-idle-{run}.log"

    def wait(self, run: str) -> str:
        """What it has found. Fails with its log where it found nothing in time."""
        deadline = time.monotonic() + float(MINUTES) * 60 + PATIENCE_S
        report = self.report(run)
        while not report.exists():
            log = self.log(run)
            said = log.read_text(errors="replace") if log.exists() else ""
            assert "Traceback" not in said and time.monotonic() < deadline, (
                said[-8000:] or "it was not started"
            )
            time.sleep(0.5)
        return report.read_text()

    # -- hooks ------------------------------------------------------------------------------------------------------

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """It is read last."""
        items.sort(key=lambda item: item.nodeid.endswith(self._marked))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Without workers."""
        if not _is_worker(session.config) and not session.config.getoption("numprocesses", None):
            self.start(run_of(session.config), [item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """The controller is told what a worker has found."""
        self.start(node.workerinput["testrunuid"], ids)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self) -> Iterator[None]:
        self.stop()
        return (yield)


def run_of(config: pytest.Config) -> str:
    """The id of this run, the same in all its processes."""
    worker: dict[str, str] = getattr(config, "workerinput", {})
    return worker.get("testrunuid", f"alone-{os.getpid()}")


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")
