"""Live watches of a store in this process: what a commit fans out to, shared by `memory` and `sqlite`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from hub.store.base import Compacted, Event, Unavailable, WatchBatch

BACKLOG_MAX = 20_000
"""Batches that a slow consumer may be behind before its watch ends with Compacted, and it lists again."""


class Watcher:
    """One consumer: ranges, and the batches that it has not taken yet."""

    __slots__ = ("_batches", "_failure", "_ranges", "_wake")

    def __init__(self, ranges: Sequence[tuple[str, str]]) -> None:
        self._ranges = tuple(ranges)
        self._batches: list[WatchBatch] = []
        self._wake = asyncio.Event()
        self._failure: Exception | None = None

    def offer(self, batch: WatchBatch) -> None:
        """Keeps what of `batch` lies in the ranges."""
        if self._failure is not None:
            return
        events = select(batch.events, self._ranges)
        if not events:
            # Progress without events is worth one entry, not one for each revision.
            if self._batches and not self._batches[-1].events:
                self._batches[-1] = WatchBatch(batch.revision, ())
                return
        elif len(self._batches) >= BACKLOG_MAX:
            self.fail(Compacted(self._batches[0].revision, batch.revision))
            return
        self._batches.append(WatchBatch(batch.revision, events))
        self._wake.set()

    def fail(self, failure: Exception) -> None:
        """Ends the watch: the consumer gets `failure` at its next step."""
        self._failure = failure
        self._batches.clear()
        self._wake.set()

    async def take(self) -> list[WatchBatch]:
        """All batches that are there, waiting for at least one."""
        while not self._batches:
            if self._failure is not None:
                raise self._failure
            self._wake.clear()
            await self._wake.wait()
        taken, self._batches = self._batches, []
        return taken


def select(events: Sequence[Event], ranges: Sequence[tuple[str, str]]) -> tuple[Event, ...]:
    """The events whose key lies in one of `ranges`."""
    return tuple(e for e in events if any(lo <= e.key < hi for lo, hi in ranges))


class Watchers:
    """All live watches. `publish` is called in revision order on the event loop."""

    def __init__(self) -> None:
        self._live: set[Watcher] = set()

    def publish(self, batch: WatchBatch) -> None:
        for watcher in self._live:
            watcher.offer(batch)

    def close(self) -> None:
        for watcher in self._live:
            watcher.fail(Unavailable("the store is closed"))

    async def stream(
        self,
        ranges: Sequence[tuple[str, str]],
        after: int,
        replay: Callable[[int], Awaitable[tuple[list[WatchBatch], int]]],
    ) -> AsyncIterator[WatchBatch]:
        """`replay(after)` gives the batches of the past and the revision that they reach; live ones follow.

        The watcher is registered first, so that nothing falls between; what comes twice is dropped by revision."""
        watcher = Watcher(ranges)
        self._live.add(watcher)
        try:
            past, reached = await replay(after)
            for batch in past:
                events = select(batch.events, ranges)
                if events:
                    yield WatchBatch(batch.revision, events)
            reached = max(reached, after)
            yield WatchBatch(reached, ())
            while True:
                for batch in await watcher.take():
                    if batch.revision > reached:
                        yield batch
        finally:
            self._live.discard(watcher)
