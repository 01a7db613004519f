"""Counts what really ran: workloads append a line to a shared folder whenever they start.

A workload's script begins with `Starts.line(...)`; the folder is writable for the unprivileged user that workloads
run as, and lies outside of every data directory.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil


class Starts:
    """One file per name; one line, the process id, per start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def line(self, name: str) -> str:
        """Shell that notes a start of `name` and keeps the process id when followed by `exec`. In a Pod's command "$$"
        stands for "$"."""
        return f"echo $$$$ >> {self.folder}/{name}"

    def path(self, name: str) -> Path:
        return self.folder / name

    def pids(self, name: str) -> list[int]:
        """The process id of every start so far."""
        with contextlib.suppress(FileNotFoundError):
            return [int(line) for line in self.path(name).read_text().split()]
        return []

    def count(self, name: str) -> int:
        return len(self.pids(name))

    def running(self, name: str) -> tuple[int, float]:
        """(process id, start time) of the newest start, which has to be alive."""
        pid = self.pids(name)[-1]
        process = psutil.Process(pid)
        assert process.is_running() and process.status() != psutil.STATUS_ZOMBIE, (
            f"{name}: process {pid} has ended"
        )
        return pid, process.create_time()

    def alive(self, name: str) -> list[int]:
        """Which of all processes that ever started under this name run now."""
        found = []
        for pid in self.pids(name):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(pid)
        return found


@contextlib.contextmanager
def counting() -> Iterator[Starts]:
    folder = Path(tempfile.mkdtemp(prefix="cloudhub-starts-"))
    os.chmod(folder, 0o1777)
    try:
        yield Starts(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
