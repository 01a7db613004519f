"""Looks at a machine while it carries a fleet: memory and CPU of each group of processes, and what is left of the machine.

Memory of processes is resident, shared pages counted in each: a replica's own modules are some 60 MB of it.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, Final

import psutil

from tests.bench.meter import Meter

EVERY_S: Final = 1.0
FLOOR_BYTES: Final = 512 << 20
"""Less free memory than this is the end of a run, before the kernel ends one of its processes."""
BUSY: Final = 0.9
"""A machine that has less than a tenth of its time left has no core to give."""


class Ended(Exception):
    """The machine cannot carry it. The message says which resource ended it."""


class Watch:
    """`groups`: pids by group, asked for every time. Used as a context manager."""

    def __init__(self, groups: Callable[[], Mapping[str, Iterable[int]]]) -> None:
        self._groups = groups
        self._stop = Event()
        self._thread = Thread(target=self._run, name="watch", daemon=True)
        self.peak_bytes: dict[str, int] = {}
        self.least_free_bytes = int(psutil.virtual_memory().available)
        self.phases: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Raises Ended when there is no memory left."""
        if self.least_free_bytes < FLOOR_BYTES:
            raise Ended(
                f"memory: {self.least_free_bytes >> 20} MiB of the machine were left; {self.memory()}"
            )

    def memory(self) -> dict[str, float]:
        """MiB of each group at this moment."""
        return {name: round(sum(map(_rss, pids)) / 2**20, 1) for name, pids in self._groups().items()}

    def cpu(self) -> dict[str, float]:
        """Seconds of each group so far."""
        return {name: sum(map(_cpu, pids)) for name, pids in self._groups().items()}

    @contextmanager
    def phase(self, name: str) -> Iterator[dict[str, Any]]:
        """What passes meanwhile: seconds, CPU seconds of each group, how much of the machine was busy with anything, memory at
        its end. The caller may add to it."""
        found = self.phases[name] = {}
        cpu, began, busy = self.cpu(), time.monotonic(), _busy()
        try:
            yield found
        finally:
            after = _busy()
            found["seconds"] = round(time.monotonic() - began, 3)
            found["cpu seconds"] = {
                group: round(seconds - cpu.get(group, 0.0), 3) for group, seconds in self.cpu().items()
            }
            whole = after[1] - busy[1]
            found["machine busy"] = round((after[0] - busy[0]) / whole, 3) if whole else 0.0
            found["memory MiB"] = self.memory()

    def short_of(self, phase: str) -> str:
        """The resource that a phase that took too long ran short of."""
        told = self.phases.get(phase, {})
        if told.get("machine busy", 0.0) >= BUSY:
            return f"CPU: the machine was {told['machine busy']:.0%} busy, its own processes used {told['cpu seconds']}"
        return f"time, though the machine was {told.get('machine busy', 0.0):.0%} busy only"

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.least_free_bytes = min(self.least_free_bytes, int(psutil.virtual_memory().available))
            for name, pids in self._groups().items():
                now = sum(map(_rss, pids))
                self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), now)


def _rss(pid: int) -> int:
    with contextlib.suppress(psutil.Error):  # it has ended meanwhile
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def _cpu(pid: int) -> float:
    with contextlib.suppress(psutil.Error):
        return Meter(pid).cpu_s()
    return 0.0


def _busy() -> tuple[float, float]:
    """(seconds of all cores that were used, all seconds of all cores) since the machine was started."""
    times = psutil.cpu_times()
    idle = float(times.idle) + float(getattr(times, "iowait", 0.0))
    # guest times are within user's already
    whole = float(sum(times)) - float(getattr(times, "guest", 0.0)) - float(getattr(times, "guest_nice", 0.0))
    return whole - idle, whole
