"""`Bench` over the macOS runtime, on Linux: sessions, signals, links and shared memory are POSIX and alike; what is asked of
libproc there is asked of /proc here. What only a Mac can show: `macos_proc` itself, launchd, and how macOS schedules all this.
"""

import os

from edgelite.config import Config
from edgelite.runtimes import macos, process_proc, process_usage
from edgelite.runtimes.macos_proc import Process, Processes
from edgelite.runtimes.supervised import SupervisedRuntime
from tests.edgelite.runtimes.harness import Bench


class LinuxProcesses(Processes):
    def __init__(self) -> None:
        """Nothing of macOS is loaded."""

    def pids(self) -> list[int]:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]

    def read(self, pid: int) -> Process | None:
        found = process_proc.read(pid, "/proc")
        return None if found is None or found.state in "ZX" else Process(pid, found.parent, found.start)

    def marked(self, pid: int, mark: bytes) -> bool:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                return b"\0" + mark + b"\0" in b"\0" + file.read()
        except OSError:
            return False

    def usage(self, pid: int) -> tuple[int, int]:
        found = process_proc.read(pid, "/proc")
        return (0, 0) if found is None else process_usage.measure([], [found], "/proc")


class MacBench(Bench):
    runtime: SupervisedRuntime  # type: ignore[assignment]

    def _runtime(self) -> SupervisedRuntime:  # type: ignore[override]
        # As whom the agent is: root's workloads would be another user's, below directories that are closed to him.
        config = Config(allow_privileged=True, default_user=os.geteuid())
        return macos.create(self.state, self.data_dir, self.boot, config, LinuxProcesses())
