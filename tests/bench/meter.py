"""What another process costs: CPU time from the scheduler, resident memory, and instructions where `perf` can count them.

On a shared machine CPU time rises with whatever else runs (cold caches, a hypervisor that steals); instructions do
not. So a figure in µs is read beside the floor of the same run, and two versions of the code by their instructions.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

ATTACH_S = 10.0


@dataclass(frozen=True)
class Cost:
    """Of one unit of work. `instructions`, user and kernel, is None where they cannot be counted."""

    cpu_us: float
    instructions: float | None


class Meter:
    """One process, all its threads."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._process = psutil.Process(pid)

    def rss_kb(self) -> float:
        return float(self._process.memory_info().rss) / 1024

    def cpu_s(self) -> float:
        """User and system time; to the nanosecond where the kernel tells (/proc/PID/stat counts in steps of 10 ms)."""
        total_ns = 0
        try:
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                with contextlib.suppress(FileNotFoundError):  # a thread that ended meanwhile
                    total_ns += int((task / "schedstat").read_text().split()[0])
        except (OSError, ValueError):
            total_ns = 0
        if total_ns:
            return total_ns / 1e9
        times = self._process.cpu_times()
        return float(times.user + times.system)


class Instructions:
    """Counts the instructions of a process, user and kernel, from when `start` returns until `stop`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._perf = shutil.which("perf")
        self._running: subprocess.Popen[str] | None = None

    def start(self) -> None:
        if self._perf is None:
            return
        # perf takes some 20 ms to attach itself, which is as long as what is counted: it begins disabled and says when it
        # counts.
        commands, command = os.pipe()
        answer, answers = os.pipe()
        disabled = ["-x", ";", "-D", "-1", "--control", f"fd:{commands},{answers}"]
        events = ["-e", "instructions:u", "-e", "instructions:k", "-p", str(self._pid)]
        try:
            self._running = subprocess.Popen(
                [self._perf, "stat", *disabled, *events],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=(commands, answers),
            )
            os.write(command, b"enable\n")
            select.select([answer], [], [], ATTACH_S)
        finally:
            for fd in (commands, command, answer, answers):
                os.close(fd)

    def stop(self) -> float | None:
        """Both together; None: nobody counts here."""
        counted = self.split()
        return None if counted is None else sum(counted)

    def split(self) -> tuple[float, float] | None:
        """As `stop`, of user and of kernel."""
        running, self._running = self._running, None
        if running is None:
            return None
        running.send_signal(signal.SIGINT)
        _, report = running.communicate(timeout=30)
        fields = [line.split(";") for line in report.splitlines()]
        counted = {f[2]: float(f[0]) for f in fields if len(f) > 2 and f[0].isdigit()}
        if not {"instructions:u", "instructions:k"} <= counted.keys():
            return None
        return counted["instructions:u"], counted["instructions:k"]
