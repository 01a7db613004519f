"""The one work queue of the controllers: keys to look at, each at most once, and later again after a failure.

Invariants: a key is worked on by one worker at a time; a key added while it is worked on is looked at again
afterwards; the queue never holds a key twice, so its size is bounded by the number of objects.
Nothing polls: one timer stands for the earliest delayed key.

After client-go's rate limiting work queue.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from hub.controllers.clock import Clock, Timer

K = TypeVar("K", bound=Hashable)

BACKOFF_MIN_S = 0.005
BACKOFF_MAX_S = 1000.0
_DOUBLINGS_MAX = 32
_STALE_SLACK = 64


class WorkQueue(Generic[K]):
    """Keys of one controller. Counters are plain ints: `adds`, `retries`, and `len()` for the depth."""

    def __init__(
        self, clock: Clock, *, backoff_min_s: float = BACKOFF_MIN_S, backoff_max_s: float = BACKOFF_MAX_S
    ) -> None:
        self.adds = 0
        self.retries = 0
        self._clock = clock
        self._backoff_min_s = backoff_min_s
        self._backoff_max_s = backoff_max_s
        self._ready: deque[K] = deque()
        self._dirty: set[K] = set()
        self._working: set[K] = set()
        self._failures: dict[K, int] = {}
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = 0
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """Keys that wait for a worker; delayed ones are not counted."""
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """No key waits for a worker or is worked on; delayed keys may exist."""
        return not self._ready and not self._working

    @property
    def delayed(self) -> int:
        return len(self._due)

    def add(self, key: K) -> None:
        if key in self._dirty:
            return
        self.adds += 1
        self._dirty.add(key)
        if key not in self._working:
            self._ready.append(key)
            self._wake.set()

    def add_after(self, key: K, delay_s: float) -> None:
        """Adds `key` in `delay_s` seconds; of several delays the earliest counts."""
        if delay_s <= 0:
            self.add(key)
            return
        due = self._clock.now() + delay_s
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        self._sequence += 1
        heapq.heappush(self._heap, (due, self._sequence, key))
        if len(self._heap) > 2 * len(self._due) + _STALE_SLACK:
            self._heap = [item for item in self._heap if self._due.get(item[2]) == item[0]]
            heapq.heapify(self._heap)
        self._arm()

    def retry(self, key: K) -> float:
        """Adds `key` after its back-off, which doubles with each failure in a row; returns the delay in seconds."""
        failed = self._failures.get(key, 0)
        self._failures[key] = failed + 1
        self.retries += 1
        delay = min(self._backoff_max_s, self._backoff_min_s * (1 << min(failed, _DOUBLINGS_MAX)))
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """`key` went well: its next failure starts at the smallest back-off again."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """The next key. Whoever takes it must call `done`."""
        while not self._ready:
            self._wake.clear()
            await self._wake.wait()
        key = self._ready.popleft()
        self._dirty.discard(key)
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        self._working.discard(key)
        if key in self._dirty:
            self._ready.append(key)
            self._wake.set()

    def close(self) -> None:
        """Cancels the timer; delayed keys do not come any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if not self._heap:
            return
        due = self._heap[0][0]
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._clock.call_later(max(0.0, due - self._clock.now()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._clock.now()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
        self._arm()
