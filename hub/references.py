"""ConfigMaps and Secrets by reference: the bodies of those that something of this replica uses, and of no others.

`StoreReferences` follows the hub's own store by one watch of the kind's keys; what nobody here uses is dropped at once,
decoded no further than its key. Whatever is used for the first time is read from the store. `hub.kubernetes.references`
follows an API server.

An object that is used is unknown (not read yet), absent, or present. Unknown is never taken for absent (I9): who asks
`known` first deletes nothing that it merely has not read. A store that cannot be reached changes nothing that is known.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from itertools import islice

from hub.cache import Entry, Key
from hub.mirror import Delta, Mirror
from hub.objects import SHARED, Keys, ObjectView, Resource, split_object_key
from hub.outage import Outage
from shards.kv import Ambiguous, Compacted, Event, Store, StoreError, Unavailable, prefix_end

log = logging.getLogger(__name__)

READS_AT_ONCE = 32
UNKNOWN = -1


class References(Mirror[ObjectView], ABC):
    """One kind. `run` follows the source; `use` and `release` say what is used."""

    reads_at_once = READS_AT_ONCE

    def __init__(self, res: Resource, outage: Outage | None = None) -> None:
        super().__init__(res, {})
        self._outage = outage or Outage()
        self._read_at: dict[Key, int] = {}
        """What is used -> the revision of the store that its state is from, or UNKNOWN."""
        self._due: dict[Key, int] = {}
        """What has to be read, oldest first, and by which ticket: a read that began before the key was released, or
        before the watch had a gap, does not count. All of it is used."""
        self._tickets = 0
        self._wake = asyncio.Event()
        self.watched = 0
        """The revision that the watch has reached without a gap; 0 before it has begun."""
        self._floor = 0
        self._absent: list[Callable[[Key], None]] = []

    # -- what is used --------------------------------------------------------------------------------------------

    def use(self, key: Key) -> None:
        """From now on this one is kept; a subscriber hears of it once it is known (absent: no delta)."""
        if key not in self._read_at:
            self._read_at[key] = UNKNOWN
            self._must_read(key)
        elif key not in self._due and max(self._read_at[key], self.watched) < self._floor:
            self._must_read(key)

    def release(self, key: Key) -> None:
        """Nothing uses it any more."""
        del self._read_at[key]
        self.cache.drop(key)
        if self._due.pop(key, None) is not None:
            self.wake()

    def known(self, key: Key) -> bool:
        """Has it been read? False for what nobody uses."""
        return self._read_at.get(key, UNKNOWN) != UNKNOWN

    def on_absent(self, handler: Callable[[Key], None]) -> Callable[[], None]:
        """Adds a handler of what turns out not to exist, where nothing was known before; returns what removes it."""
        self._absent.append(handler)
        return lambda: self._absent.remove(handler)

    def __len__(self) -> int:
        """Objects that are used, whether they exist or not."""
        return len(self._read_at)

    def raise_floor(self, revision: int) -> None:
        """What is used from now on has to be known as of `revision` or later."""
        self._floor = max(self._floor, revision)

    @property
    def settled(self) -> bool:
        """Is nothing waiting to be read?"""
        return not self._due

    async def read(self) -> None:
        """Returns when all has been read that waits for it now."""
        waiting = set(self._due)
        await self.until(lambda: waiting.isdisjoint(self._due))

    # -- following the source ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name=f"references to {self.resource.resource}: watch")
            tasks.create_task(self._read_due(), name=f"references to {self.resource.resource}: reads")

    @abstractmethod
    async def _follow(self) -> None:
        """For ever: tells what changes of what is used, and with `_must_read` what has to be read."""

    @abstractmethod
    async def _fetch(self, key: Key) -> tuple[Entry[ObjectView] | None, int]:
        """One object, None when it does not exist, and the revision of the source at which that was so. Raises
        StoreError."""

    def _may_read(self, key: Key) -> bool:
        """Does somebody follow it already? What changed between a read and the watch's start would be lost."""
        return self.watched > 0

    async def _read_due(self) -> None:
        while True:
            while not (some := self._next_due()):
                self._wake.clear()
                await self._wake.wait()
            failure = await self._read_some(some)
            if failure is None:
                self._outage.over(self._wake)
            else:
                await self._outage.failed(self._wake, failure)

    def _next_due(self) -> list[tuple[Key, int]]:
        """The oldest that are due and may be read, with their tickets."""
        return list(islice(((k, t) for k, t in self._due.items() if self._may_read(k)), self.reads_at_once))

    async def _read_some(self, some: list[tuple[Key, int]]) -> StoreError | None:
        """Reads these; what made one of the reads fail."""
        failures = await asyncio.gather(*(self._read_one(key, ticket) for key, ticket in some))
        return next(filter(None, failures), None)

    async def _read_one(self, key: Key, ticket: int) -> StoreError | None:
        """Reads one object and files it, unless the watch has told something younger. Returns why it could not."""
        try:
            entry, revision = await self._fetch(key)
            if revision < self._floor:
                raise Unavailable(f"the store is at revision {revision}, it was at {self._floor} before")
        except (Unavailable, Ambiguous, Compacted) as failure:
            if self._due.get(key) == ticket:
                # Last, so that those that can be read do not wait behind those that cannot.
                self._due[key] = self._due.pop(key)
            return failure
        if self._due.get(key) != ticket:
            return None
        del self._due[key]
        deltas: list[Delta[ObjectView]] = []
        if revision > self._read_at[key]:
            unknown, self._read_at[key] = self._read_at[key] == UNKNOWN, revision
            deltas = self.set_state(key, entry, revision)
            if unknown and entry is None:
                self._tell_absent(key)
        # Also without a delta: that it is absent is news to who waits.
        self.advance(deltas, max(self.revision, revision))
        return None

    def _tell_absent(self, key: Key) -> None:
        for handler in list(self._absent):
            handler(key)

    def _must_read(self, key: Key) -> None:
        self._tickets += 1
        self._due[key] = self._tickets
        self._wake.set()


class StoreReferences(References):
    """Those in the hub's own store: one watch of the kind's keys."""

    def __init__(self, store: Store, keys: Keys, res: Resource, outage: Outage | None = None) -> None:
        super().__init__(res, outage)
        self._store = store
        self._keys = keys
        self._prefix = keys.objects(res)

    async def _follow(self) -> None:
        span = (self._prefix, prefix_end(self._prefix))
        while True:
            try:
                if not self.watched:
                    self._begin(await self._store.revision())
                async for batch in self._store.watch([span], self.watched):
                    self._outage.over(self)
                    deltas = self._take(batch.events, batch.revision)
                    self.watched = batch.revision
                    self.advance(deltas, batch.revision)
            except Compacted as gone:
                log.warning("%s in use are read again: %s", self.resource.resource, gone)
                self.watched = 0
            except (Unavailable, Ambiguous) as failure:
                await self._outage.failed(self, failure)

    def _begin(self, revision: int) -> None:
        """The watch starts after `revision`: what changed before it shows in reads alone."""
        self.watched = revision
        for key in self._read_at:
            self._must_read(key)
        self.advance((), revision)

    def _take(self, events: Iterable[Event], revision: int) -> list[Delta[ObjectView]]:
        used: list[Event] = []
        for event in events:
            key = split_object_key(event.key)[1:]
            read_at = self._read_at.get(key)
            if read_at is None or read_at >= revision:
                continue
            self._read_at[key] = revision
            used.append(event)
            if read_at == UNKNOWN and event.kv is None:
                self._tell_absent(key)
        return self.apply(used, revision)

    async def _fetch(self, key: Key) -> tuple[Entry[ObjectView] | None, int]:
        at = self._keys.object(self.resource, SHARED, *key)
        page = await self._store.page(at, at + "\0", limit=1)
        entry = next((self.entry_of(kv.key, kv.value, kv.mod_revision) for kv in page.items), None)
        return entry, page.revision
