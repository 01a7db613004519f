"""Watches, served from the shared informer.

One `WatchCache` per kind turns informer deltas into `Change`s, each shared by all its watchers, and so are the bytes
of each representation. A watcher's queue is bounded in events and bytes: when it is full the watch ends, and its
client comes back from the last resourceVersion that it saw, or lists again. So a slow client holds a bounded amount.

Source: the Kubernetes API concepts, "Efficient detection of changes", "Watch bookmarks", "Streaming lists".
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hub import errors
from hub.api.kinds import Kind
from hub.api.rendering import View, encode
from hub.api.selection import Selection
from hub.cache import Entry
from hub.informer import Delta, Informer
from hub.store.base import Compacted, FutureRevision, Store, Unavailable, prefix_end

log = logging.getLogger(__name__)

QUEUE_EVENTS_MAX: Final = 4096
QUEUE_BYTES_MAX: Final = 16 * 1024 * 1024
CHUNK_BYTES: Final = 64 * 1024
FRESH_WAIT_S: Final = 3.0
"""How long a watch waits for the cache to reach its resourceVersion, as in Kubernetes."""


class Change:
    """One delta, with the bytes that watchers get of it. Made once per delta."""

    __slots__ = ("_bytes", "delta", "size")

    def __init__(self, delta: Delta[Any]) -> None:
        self.delta = delta
        self.size = delta.entry.size
        self._bytes: dict[tuple[View, str, bool], bytes] = {}

    def encode(self, view: View, event: str, now: float, *, columns: bool) -> bytes:
        key = (view, event, columns)
        found = self._bytes.get(key)
        if found is None:
            delta = self.delta
            entry: Entry[Any] = delta.entry
            if event == "DELETED" and delta.old is not None:
                entry = delta.old  # it left the selection: what it was, at the revision of the change
            found = view.event(event, entry.raw(), delta.revision, now, columns=columns)
            self._bytes[key] = found
        return found


def event_for(delta: Delta[Any], selection: Selection) -> str | None:
    """What a watcher with `selection` sees of a delta; None: nothing. An object that enters the selection is ADDED to
    it, one that leaves is DELETED."""
    if not selection.covers(delta.entry.key):
        return None
    if selection.everything:
        return delta.type
    is_in = delta.type != "DELETED" and selection.matches(delta.entry)
    was_in = delta.old is not None and selection.matches(delta.old)
    if is_in:
        return "MODIFIED" if was_in else "ADDED"
    return "DELETED" if was_in else None


class Watcher:
    """One client's queue."""

    __slots__ = ("_bytes", "_queue", "_wake", "ended", "revision", "selection")

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.revision = 0
        self.ended = ""
        self._queue: deque[tuple[str, Change]] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()

    def offer(self, change: Change) -> None:
        event = event_for(change.delta, self.selection)
        if event is None or self.ended:
            return
        if len(self._queue) >= QUEUE_EVENTS_MAX or self._bytes + change.size > QUEUE_BYTES_MAX:
            self.end("the client reads too slowly")
            return
        self._queue.append((event, change))
        self._bytes += change.size
        self._wake.set()

    def progress(self, revision: int) -> None:
        self.revision = max(self.revision, revision)

    def end(self, why: str) -> None:
        """Ends the watch; what is queued is forgotten."""
        self.ended = why
        self._queue.clear()
        self._bytes = 0
        self._wake.set()

    async def wait(self, seconds: float) -> bool:
        """Returns whether there is something to take, after at most `seconds`."""
        if not self._queue and not self.ended and seconds > 0:
            self._wake.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
            except TimeoutError:
                pass  # an event may have come in the same turn of the loop
        return bool(self._queue) or bool(self.ended)

    def take(self, bytes_max: int = CHUNK_BYTES) -> list[tuple[str, Change]]:
        """Some queued events, in order, about `bytes_max` of them."""
        taken: list[tuple[str, Change]] = []
        size = 0
        while self._queue and size < bytes_max:
            item = self._queue.popleft()
            taken.append(item)
            size += item[1].size
        self._bytes -= size
        return taken


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """`resource_version`: None for "start with the present state, which is the newest". `timeout_s` ends the watch."""

    resource_version: int | None
    initial_events: bool
    mark_initial_end: bool
    bookmarks: bool
    timeout_s: float


class WatchCache:
    """The watchers of one kind."""

    def __init__(self, kind: Kind, informer: Informer[Any], store: Store, prefix: str) -> None:
        self._kind = kind
        self._informer = informer
        self._store = store
        self._prefix = prefix
        self._watchers: set[Watcher] = set()
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        self._unsubscribe = self._informer.subscribe(self._handle)

    def stop(self) -> None:
        """Ends every watch."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        for watcher in self._watchers:
            watcher.end("the server shuts down")

    def __len__(self) -> int:
        return len(self._watchers)

    def _handle(self, deltas: Sequence[Delta[Any]], revision: int) -> None:
        if not self._watchers:
            return
        changes = [Change(delta) for delta in deltas]
        for watcher in self._watchers:
            for change in changes:
                watcher.offer(change)
            watcher.progress(revision)

    async def open(self, selection: Selection, options: WatchOptions) -> "Stream":
        """A stream that starts where the options say. Raises Timeout when the cache does not get that far, Expired
        when the past is not kept that long."""
        asked = options.resource_version
        after = asked
        if asked is None:
            after = await self._store.revision()
        if after:
            await self._reach(after)
        stream = Stream(self, Watcher(selection), options)
        # From here to the registration nothing awaits, so no delta falls between the two.
        if options.initial_events:
            stream.snapshot = [e for e in self._candidates(selection) if selection.accepts(e)]
        elif asked:
            past = self._informer.since(asked)
            if past is None:
                stream.replay_after = asked
            else:
                stream.past = [
                    (event, Change(d)) for d in past if (event := event_for(d, selection)) is not None
                ]
        stream.start_revision = stream.watcher.revision = self._informer.revision
        self._watchers.add(stream.watcher)
        return stream

    def close(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    def _candidates(self, selection: Selection) -> Sequence[Entry[Any]]:
        if selection.namespace and selection.name:
            found = self._informer.cache.get(selection.namespace, selection.name)
            return [] if found is None else [found]
        if selection.namespace:
            return self._informer.cache.find("namespace", selection.namespace)
        return list(self._informer.cache)

    async def _reach(self, revision: int) -> None:
        try:
            async with asyncio.timeout(FRESH_WAIT_S):
                await self._informer.at_least(revision)
        except TimeoutError:
            current = self._informer.revision
            raise too_large(revision, current) from None

    async def replay(
        self, after: int, through: int, selection: Selection
    ) -> AsyncIterator[tuple[str, Change]]:
        """What the informer no longer keeps, from the store: deltas of (after, through]. Raises Expired."""
        if after >= through:
            return
        try:
            async for batch in self._store.watch([(self._prefix, prefix_end(self._prefix))], after):
                if batch.revision > through:
                    return
                for delta in self._informer.deltas_of(batch):
                    event = event_for(delta, selection)
                    if event is not None:
                        yield event, Change(delta)
                if batch.revision >= through:
                    return
        except Compacted as gone:
            raise errors.Expired.watch(gone.wanted, gone.oldest) from gone
        except FutureRevision as ahead:
            raise errors.Expired(str(ahead)) from ahead
        except Unavailable as failure:
            raise errors.ServiceUnavailable(str(failure)) from failure


def too_large(asked: int, current: int) -> errors.ApiError:
    """The answer to a resourceVersion that this store has not reached, as Kubernetes gives it."""
    failure = errors.Timeout(f"Too large resource version: {asked}, current: {current}", 1)
    failure.details["causes"] = [
        {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    ]
    return failure


class Stream:
    """One watch being served: `chunks` yields the bytes of its answer."""

    def __init__(self, cache: WatchCache, watcher: Watcher, options: WatchOptions) -> None:
        self.watcher = watcher
        self.start_revision = 0
        self.snapshot: list[Entry[Any]] = []
        self.past: list[tuple[str, Change]] = []
        self.replay_after: int | None = None
        self._cache = cache
        self._options = options
        self._first = True

    def close(self) -> None:
        self._cache.close(self.watcher)

    async def chunks(
        self, view: View, clock: Callable[[], float], monotonic: Callable[[], float], bookmark_s: float
    ) -> AsyncIterator[bytes]:
        """The events, joined up to about CHUNK_BYTES. Ends when the watch does; a failure is an ERROR event."""
        deadline = monotonic() + self._options.timeout_s
        try:
            async for chunk in self._backlog(view, clock):
                yield chunk
        except errors.ApiError as failure:
            yield encode({"type": "ERROR", "object": failure.status()}) + b"\n"
            return
        if self._options.mark_initial_end:
            yield view.bookmark(self.start_revision, initial_end=True)
        while not self.watcher.ended and (left := deadline - monotonic()) > 0:
            if await self.watcher.wait(min(left, bookmark_s)):
                taken = self.watcher.take()
                if taken:
                    yield b"".join(self._encode(c, view, event, clock()) for event, c in taken)
            elif self._options.bookmarks:
                yield view.bookmark(self.watcher.revision)

    async def _backlog(self, view: View, clock: Callable[[], float]) -> AsyncIterator[bytes]:
        """What was before the watch began: state, or the past."""
        out: list[bytes] = []
        size = 0
        entries, self.snapshot = self.snapshot, []
        past, self.past = self.past, []
        for entry in entries:
            out.append(view.event("ADDED", entry.raw(), entry.revision, clock(), columns=self._columns()))
            size += len(out[-1])
            if size >= CHUNK_BYTES:
                yield b"".join(out)
                out, size = [], 0
        for event, change in past:
            out.append(self._encode(change, view, event, clock()))
            size += len(out[-1])
            if size >= CHUNK_BYTES:
                yield b"".join(out)
                out, size = [], 0
        if out:
            yield b"".join(out)
        if self.replay_after is not None:
            replay = self._cache.replay(self.replay_after, self.start_revision, self.watcher.selection)
            async for event, change in replay:
                yield self._encode(change, view, event, clock())

    def _encode(self, change: Change, view: View, event: str, now: float) -> bytes:
        return change.encode(view, event, now, columns=self._columns())

    def _columns(self) -> bool:
        first, self._first = self._first, False
        return first
