"""What a replica knows of one kind: a cache, the deltas that changed it, and who hears of them.

A mirror does no I/O: whoever lists and watches (`hub.informer` whole kinds, `hub.share` the slots of this replica,
`hub.references` what those refer to) puts in what came.

Invariant: an object's deltas reach every subscriber in revision order, each once; one that moves between partitions in
one transaction is one MODIFIED.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any, Generic, Literal, TypeVar

import msgspec

from hub.cache import Cache, Entry, HasMeta, Indexer, Keep, Key, Slim
from hub.kin import Kin
from hub.objects import Resource, split_object_key
from shards.kv import Event

V = TypeVar("V", bound=HasMeta)
DeltaType = Literal["ADDED", "MODIFIED", "DELETED"]


class Delta(msgspec.Struct, Generic[V], frozen=True, gc=False):
    """`entry` is the new state (for DELETED the last one), `old` the state before (None for ADDED). `raw`: the new state's JSON
    where it is at hand, so that nobody has to unpack it from the entry that it was just packed into."""

    type: DeltaType
    entry: Entry[V]
    old: Entry[V] | None
    revision: int
    raw: bytes | None = None


Handler = Callable[[Sequence[Delta[Any]], int], None]
"""Called on the event loop with the deltas of one revision, and the revision that is now reached (also when there
are no deltas: progress). Must not block; what it raises stops the hub."""
Forgotten = Callable[[Sequence[Entry[Any]]], None]
"""Called with what this replica does not follow any more: it was not deleted, it is another replica's business now."""


class Mirror(Generic[V]):
    """See the module. `revision` is the highest that any part has reached. With `kin`, which whoever fills the mirror joins,
    its entries are those of other mirrors in this process."""

    def __init__(
        self,
        res: Resource,
        indexers: dict[str, Indexer],
        keep: Keep | None = None,
        slim: Slim | None = None,
        kin: Kin | None = None,
    ) -> None:
        self.resource = res
        self.cache: Cache[V] = Cache(res, indexers, keep, slim)
        self.kin = kin
        self.revision = 0
        self._handlers: list[Handler] = []
        self._forgotten: list[Forgotten] = []
        self._waiting: list[asyncio.Future[None]] = []

    def subscribe(self, handler: Handler, forgotten: Forgotten | None = None) -> Callable[[], None]:
        """Adds a handler for all deltas from now on, and one for what is no longer followed; returns what removes
        them."""
        self._handlers.append(handler)
        if forgotten is not None:
            self._forgotten.append(forgotten)

        def unsubscribe() -> None:
            self._handlers.remove(handler)
            if forgotten is not None:
                self._forgotten.remove(forgotten)

        return unsubscribe

    async def at_least(self, revision: int) -> None:
        """Returns once the mirror has progressed through `revision`."""
        await self.until(lambda: self.revision >= revision)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns once `condition` holds; looked at again whenever something advances."""
        while not condition():
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting

    def entry_of(self, key: str, value: bytes, revision: int) -> Entry[V]:
        """What a key of the store holds, not filed."""
        partition, namespace, name = split_object_key(key)
        if self.kin is not None:
            return self.kin.entry(self.cache, (namespace, name), partition, revision, value)
        return self.cache.entry((namespace, name), partition, revision, value)

    def apply(self, events: Sequence[Event], revision: int) -> list[Delta[V]]:
        """Files the events of `revision`. One that is older than what is known of its object, as when it comes from
        the partition that the object has left, changes nothing."""
        deltas: list[Delta[V]] = []
        for event in events:
            if event.kv is None:
                continue
            entry = self.entry_of(event.key, event.kv.value, revision)
            old = self.cache.get(*entry.key)
            if old is not None and old.revision >= revision:
                continue
            if old is not None and old.meta.uid != entry.meta.uid:
                deltas.append(Delta("DELETED", old, old, revision))
                self.cache.drop(entry.key)
            deltas.append(self._file(entry, event.kv.value))
        for event in events:
            if event.kv is not None:
                continue
            partition, namespace, name = split_object_key(event.key)
            held = self.cache.get(namespace, name)
            # In another partition, or younger: it has moved.
            if held is not None and held.partition == partition and held.revision < revision:
                self.cache.drop(held.key)
                deltas.append(Delta("DELETED", held, held, revision))
        return deltas

    def set_state(self, key: Key, entry: Entry[V] | None, revision: int) -> list[Delta[V]]:
        """Files what one object was at `revision` (None: it did not exist), unless something younger is known."""
        old = self.cache.get(*key)
        if old is not None and old.revision > revision:
            return []
        if entry is None:
            self.cache.drop(key)
            return [] if old is None else [Delta("DELETED", old, old, revision)]
        if old is None:
            return [self._file(entry)]
        if old.revision >= entry.revision:
            return []
        if old.meta.uid == entry.meta.uid:
            return [self._file(entry)]
        self.cache.drop(key)
        return [Delta("DELETED", old, old, entry.revision), self._file(entry)]

    def forget(self, partitions: Collection[str]) -> None:
        """Drops what lies in `partitions`. No deltas: nothing was deleted."""
        self.forget_entries([entry for entry in self.cache if entry.partition in partitions])

    def forget_entries(self, gone: Sequence[Entry[V]]) -> None:
        """Drops these. No deltas, as above."""
        for entry in gone:
            self.cache.drop(entry.key)
        if self.kin is not None:
            self.kin.forgotten(gone)
        if gone:
            for forgotten in list(self._forgotten):
                forgotten(gone)

    def advance(self, deltas: Sequence[Delta[V]], revision: int) -> None:
        """Tells the subscribers, and who waits."""
        self.revision = max(self.revision, revision)
        for handler in list(self._handlers):
            handler(deltas, revision)
        self.wake()

    def wake(self) -> None:
        """Lets who waits look at its condition again."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    def _file(self, entry: Entry[V], raw: bytes | None = None) -> Delta[V]:
        if self.kin is not None:
            entry = self.kin.unite(entry)
        old = self.cache.put(entry)
        return Delta("ADDED" if old is None else "MODIFIED", entry, old, entry.revision, raw)
