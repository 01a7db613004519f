"""How long the event loop stood still: whatever waits for it, heartbeats first, waits as long.

A timer that is due every EVERY_S measures how late it comes. Reads are metrics: a histogram of all lateness, the longest
since it was read last, and how often it was beyond STALL_S. On a busy machine a loop that is ready waits for a core; so
beside the lateness stands how much of it the loop's thread can have worked itself, at most: its CPU time since the timer
was set. What is neither that nor waiting for a core was waiting for a lock or a disk.
"""

import asyncio
import bisect
import logging
import time
from collections.abc import Callable
from typing import Final

from observability.catalogue import LOOP_BOUNDS_S as BOUNDS_S
from observability.prometheus import Distribution

log = logging.getLogger(__name__)

EVERY_S: Final = 0.05
STALL_S: Final = 0.1
"""What is promised: the loop does not stand still for longer."""


class Stalls:
    """See the module. `counts`: by the bounds of BOUNDS_S, the last one is what is beyond them. `cpu`: seconds of CPU that
    this thread has had."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, cpu: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock, self._cpu = clock, cpu
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.longest_s = self.longest_busy_s = 0.0
        self.stalls = self.busy_stalls = 0
        self.total_s = 0.0

    async def run(self) -> None:
        """Measures, for ever."""
        while True:
            due, had_s = self._clock() + EVERY_S, self._cpu()
            await asyncio.sleep(EVERY_S)
            self.note(max(0.0, self._clock() - due), self._cpu() - had_s)

    def note(self, late_s: float, worked_s: float) -> None:
        """The loop came back that late, and has worked that long since the timer was set."""
        busy_s = min(late_s, worked_s)
        self.counts[bisect.bisect_left(BOUNDS_S, late_s)] += 1
        self.total_s += late_s
        self.longest_s = max(self.longest_s, late_s)
        self.longest_busy_s = max(self.longest_busy_s, busy_s)
        if late_s > STALL_S:
            self.stalls += 1
            self.busy_stalls += busy_s > STALL_S
            text = "the event loop stood still for %.0f ms, and worked for %.0f ms of them at most"
            log.debug(text, late_s * 1000, busy_s * 1000)

    def figures(self) -> dict[str, float]:
        """The longest since it was read last, how often it was beyond STALL_S, both also as far as the loop's thread worked,
        and all together."""
        longest, busy = self.longest_s, self.longest_busy_s
        self.longest_s = self.longest_busy_s = 0.0
        return {
            "longest_s": longest,
            "longest_busy_s": busy,
            "stalls": self.stalls,
            "busy_stalls": self.busy_stalls,
            "late_s": self.total_s,
        }

    def distribution(self) -> dict[tuple[str, ...], Distribution]:
        """The histogram, for metrics."""
        return {(): Distribution(self.counts, self.total_s)}
