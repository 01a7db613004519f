"""Live watches of a store in this process: what a commit fans out to, shared by `memory` and `sqlite`."""

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from shards.kv import Compacted, Event, Unavailable, WatchBatch

BACKLOG_MAX = 20_000
"""Batches that a slow consumer may be behind before its watch ends with Compacted, and it lists again."""
EVENTS_A_TURN = 32
"""What a consumer gets before the loop's other callbacks run: each costs it 0.1 ms, and one commit brings thousands."""
PROGRESS_S = 0.02
"""How long a patient watch may wait to be told of progress without events."""


class Watcher:
    """One consumer: ranges, and the batches that it has not taken yet."""

    __slots__ = ("_batches", "_failure", "_ranges", "_waiter", "is_patient")

    def __init__(self, ranges: Sequence[tuple[str, str]], is_patient: bool) -> None:
        self._ranges = tuple(ranges)
        self.is_patient = is_patient
        self._batches: list[WatchBatch] = []
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None

    def offer(self, batches: Sequence[WatchBatch], keys: Sequence[str], progress: WatchBatch) -> None:
        """Keeps what of `batches`, whose keys are `keys` in order, lies in the ranges; then `progress`, which is of the last
        one's revision."""
        if self._failure is not None:
            return
        kept = self._batches
        if kept and not kept[-1].events:
            kept.pop()  # what comes now tells of progress beyond it
        for batch in batches if self._is_concerned(keys) else ():
            events = select(batch.events, self._ranges)
            if not events:
                continue
            if len(kept) >= BACKLOG_MAX:
                self.fail(Compacted(kept[0].revision, batch.revision))
                return
            whole = len(events) == len(batch.events)
            kept.append(batch if whole else WatchBatch(batch.revision, events))
        concerned = bool(kept)
        if not kept or kept[-1].revision != progress.revision:
            kept.append(progress)
        if concerned or not self.is_patient:
            self.wake()

    def _is_concerned(self, keys: Sequence[str]) -> bool:
        for low, high in self._ranges:
            at = bisect_left(keys, low)
            if at < len(keys) and keys[at] < high:
                return True
        return False

    def fail(self, failure: Exception) -> None:
        """Ends the watch: the consumer gets `failure` at its next step."""
        self._failure = failure
        self._batches.clear()
        self.wake()

    async def take(self) -> list[WatchBatch]:
        """All batches that are there, waiting for at least one."""
        while not self._batches:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        taken, self._batches = self._batches, []
        return taken

    def wake(self) -> None:
        """Lets the consumer take what there is."""
        waiter = self._waiter
        if waiter is not None and not waiter.done() and (self._batches or self._failure is not None):
            waiter.set_result(None)


def select(events: Sequence[Event], ranges: Sequence[tuple[str, str]]) -> tuple[Event, ...]:
    """The events whose key lies in one of `ranges`."""
    if len(ranges) == 1:
        ((low, high),) = ranges
        return tuple([e for e in events if low <= e.key < high])
    return tuple([e for e in events if any(low <= e.key < high for low, high in ranges)])


class Watchers:
    """All live watches. `publish` is called in revision order on the event loop, with all that one commit has brought: what
    concerns a watch not at all costs it one step for a commit, not one for each transaction."""

    def __init__(self) -> None:
        self._live: set[Watcher] = set()
        self._patient: set[Watcher] = set()
        self._due: asyncio.TimerHandle | None = None

    def publish(self, batches: Sequence[WatchBatch]) -> None:
        """`batches`: at least one."""
        progress = WatchBatch(batches[-1].revision, ())
        keys = sorted([event.key for batch in batches for event in batch.events])
        for watcher in self._live:
            watcher.offer(batches, keys, progress)
        if self._due is None and self._patient:
            self._due = asyncio.get_running_loop().call_later(PROGRESS_S, self._tell_patient)

    def _tell_patient(self) -> None:
        self._due = None
        for watcher in self._patient:
            watcher.wake()

    def close(self) -> None:
        if self._due is not None:
            self._due.cancel()
        for watcher in self._live:
            watcher.fail(Unavailable("the store is closed"))

    async def stream(
        self,
        ranges: Sequence[tuple[str, str]],
        after: int,
        replay: Callable[[int], Awaitable[tuple[list[WatchBatch], int]]],
        *,
        is_patient: bool = False,
    ) -> AsyncIterator[WatchBatch]:
        """`replay(after)` gives the batches of the past and the revision that they reach; live ones follow.

        The watcher is registered first, so that nothing falls between; what comes twice is dropped by revision."""
        watcher = Watcher(ranges, is_patient)
        self._live.add(watcher)
        if is_patient:
            self._patient.add(watcher)
        try:
            past, reached = await replay(after)
            for batch in past:
                events = select(batch.events, ranges)
                if events:
                    yield WatchBatch(batch.revision, events)
            reached = max(reached, after)
            yield WatchBatch(reached, ())
            given = 0
            while True:
                for batch in await watcher.take():
                    if batch.revision > reached:
                        yield batch
                        given += max(1, len(batch.events))
                        if given >= EVENTS_A_TURN:
                            given = 0
                            await asyncio.sleep(0)
        finally:
            self._live.discard(watcher)
            self._patient.discard(watcher)
