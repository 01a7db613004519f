"""Watches, served from the kind's feed: what exists is listed from the store, changes are streamed from there.

One `Watches` per kind turns the feed's deltas into `Change`s, each shared by all its watchers, and so are the bytes
of each representation. A watcher's queue is bounded in events and bytes: when it is full the watch ends, and its
client comes back from the last resourceVersion that it saw, or lists again. So a slow client holds a bounded amount.

Source: the Kubernetes API concepts, "Efficient detection of changes", "Watch bookmarks", "Streaming lists".
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Final

from hub import errors
from hub.api.kinds import Kind
from hub.api.rendering import View, encode
from hub.api.selection import Selection
from hub.cache import Entry
from hub.feed import Feed
from hub.mirror import Delta
from hub.outage import Outage
from hub.registry import Listing, Registry

QUEUE_EVENTS_MAX: Final = 4096
QUEUE_BYTES_MAX: Final = 16 * 1024 * 1024
CHUNK_BYTES: Final = 64 * 1024
FRESH_WAIT_S: Final = 3.0
"""How long a watch waits for the store to reach its resourceVersion, as in Kubernetes."""
LIST_PAGE: Final = 500


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
    """One client's queue. What happened at `after` or before it is in what the client was given first."""

    __slots__ = ("_bytes", "_queue", "_wake", "after", "ended", "failure", "revision", "selection")

    def __init__(self, selection: Selection, after: int = 0) -> None:
        self.selection = selection
        self.after = after
        self.revision = after
        self.ended = ""
        self.failure: errors.ApiError | None = None
        self._queue: deque[tuple[str, Change]] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()

    def offer(self, change: Change) -> None:
        if change.delta.revision <= self.after or self.ended or self.failure is not None:
            return
        event = event_for(change.delta, self.selection)
        if event is None:
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

    def fail(self, failure: errors.ApiError) -> None:
        """Ends the watch with an error, after what is queued."""
        self.failure = self.failure or failure
        self._wake.set()

    async def wait(self, seconds: float) -> bool:
        """Returns whether there is something to take, after at most `seconds`."""
        if not self._queue and not self._over and seconds > 0:
            self._wake.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
            except TimeoutError:
                pass  # an event may have come in the same turn of the loop
        return bool(self._queue) or self._over

    @property
    def _over(self) -> bool:
        return bool(self.ended) or self.failure is not None

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


class Watches:
    """The watchers of one kind."""

    def __init__(self, kind: Kind, registry: Registry, outage: Outage) -> None:
        self.kind = kind
        self.registry = registry
        prefix = registry.keys.objects(kind.res)
        self.feed = Feed(registry.store, prefix, kind.res, outage, self._handle, self._fail)
        self._watchers: set[Watcher] = set()

    async def stop(self) -> None:
        """Ends every watch."""
        for watcher in self._watchers:
            watcher.end("the server shuts down")
        await self.feed.stop()

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

    def _fail(self, failure: errors.ApiError) -> None:
        for watcher in self._watchers:
            watcher.fail(failure)

    async def open(self, selection: Selection, options: WatchOptions) -> "Stream":
        """A stream that starts where the options say; to be closed. Raises Timeout when the store does not get that
        far, ServiceUnavailable, Expired."""
        with ExitStack() as using:
            using.enter_context(self.feed.used())
            await self.feed.ready()
            asked = options.resource_version
            if asked and asked > self.feed.revision:
                await self._reach(asked)
            first: Listing | None = None
            if options.initial_events:
                first = await self.page(selection, None, None)
                after = first.revision
            else:
                after = asked or await self.feed.head()
            await self.feed.ready()  # a bug may have ended it meanwhile
            # From here to the registration nothing awaits, so no delta falls between the two.
            stream = Stream(self, Watcher(selection, after), options, using.pop_all())
            stream.first = first
            past = self.feed.since(after)
            if past is None:
                stream.replay_through = self.feed.revision
                stream.watcher.after = max(after, self.feed.revision)
            else:
                for delta in past:
                    stream.watcher.offer(Change(delta))
            stream.watcher.progress(self.feed.revision)
            self._watchers.add(stream.watcher)
            return stream

    def close(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    async def page(self, selection: Selection, revision: int | None, start_key: str | None) -> Listing:
        """One page of what exists, of the selection's namespace. Raises Expired, ServiceUnavailable."""
        res = self.kind.res
        namespace = selection.namespace if res.namespaced and selection.namespace else None
        if selection.name and (namespace or not res.namespaced):
            head = await self.feed.head()
            stored = await self.registry.find(res, namespace or "", selection.name)
            return Listing([stored] if stored else [], max(head, stored.revision if stored else 0), None)
        return await self.registry.page(
            res, namespace, revision=revision, limit=LIST_PAGE, start_key=start_key
        )

    async def _reach(self, revision: int) -> None:
        """Returns when the store has reached `revision`; the feed need not have been told."""
        if revision <= await self.feed.head():
            return
        try:
            async with asyncio.timeout(FRESH_WAIT_S):
                await self.feed.at_least(revision)
        except TimeoutError:
            current = await self.feed.head()
            if current < revision:
                raise too_large(revision, current) from None


def too_large(asked: int, current: int) -> errors.ApiError:
    """The answer to a resourceVersion that this store has not reached, as Kubernetes gives it."""
    failure = errors.Timeout(f"Too large resource version: {asked}, current: {current}", 1)
    failure.details["causes"] = [
        {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    ]
    return failure


class Stream:
    """One watch being served: `chunks` yields the bytes of its answer. `first`: the first page of what exists;
    `replay_through`: up to where the past has to be read from the store."""

    def __init__(self, watches: Watches, watcher: Watcher, options: WatchOptions, using: ExitStack) -> None:
        self.watcher = watcher
        self.start_revision = watcher.after
        self.first: Listing | None = None
        self.replay_through = 0
        self._watches = watches
        self._options = options
        self._using = using
        self._columns_due = True

    def close(self) -> None:
        self._watches.close(self.watcher)
        self._using.close()

    async def chunks(
        self, view: View, clock: Callable[[], float], monotonic: Callable[[], float], bookmark_s: float
    ) -> AsyncGenerator[bytes]:
        """The events, joined up to about CHUNK_BYTES. Ends when the watch does; a failure is an ERROR event."""
        deadline = monotonic() + self._options.timeout_s
        try:
            async for chunk in self._initial(view, clock):
                yield chunk
            if self._options.mark_initial_end:
                yield view.bookmark(self.start_revision, initial_end=True)
            async for chunk in self._replayed(view, clock):
                yield chunk
        except errors.ApiError as failure:
            yield _error(failure)
            return
        while not self.watcher.ended and (left := deadline - monotonic()) > 0:
            if await self.watcher.wait(min(left, bookmark_s)):
                taken = self.watcher.take()
                if taken:
                    yield b"".join(self._encode(c, view, event, clock()) for event, c in taken)
                elif self.watcher.failure is not None:
                    yield _error(self.watcher.failure)
                    return
            elif self._options.bookmarks:
                yield view.bookmark(self.watcher.revision)

    async def _initial(self, view: View, clock: Callable[[], float]) -> AsyncGenerator[bytes]:
        """What exists, page by page: a slow client holds one page."""
        page, self.first = self.first, None
        while page is not None:
            out: list[bytes] = []
            size = 0
            for stored in page.items:
                entry = self._watches.feed.entry_of(stored.key, stored.raw, stored.revision)
                if not self.watcher.selection.accepts(entry):
                    continue
                out.append(view.event("ADDED", stored.raw, stored.revision, clock(), columns=self._columns()))
                size += len(out[-1])
                if size >= CHUNK_BYTES:
                    yield b"".join(out)
                    out, size = [], 0
            if out:
                yield b"".join(out)
            if page.next_key is None:
                return
            page = await self._watches.page(self.watcher.selection, self.start_revision, page.next_key)

    async def _replayed(self, view: View, clock: Callable[[], float]) -> AsyncGenerator[bytes]:
        async with aclosing(self._watches.feed.replay(self.start_revision, self.replay_through)) as deltas:
            async for delta in deltas:
                event = event_for(delta, self.watcher.selection)
                if event is not None:
                    yield self._encode(Change(delta), view, event, clock())

    def _encode(self, change: Change, view: View, event: str, now: float) -> bytes:
        return change.encode(view, event, now, columns=self._columns())

    def _columns(self) -> bool:
        due, self._columns_due = self._columns_due, False
        return due


def _error(failure: errors.ApiError) -> bytes:
    return encode({"type": "ERROR", "object": failure.status()}) + b"\n"
