"""The unified informer: one list and watch per kind and replica, shared by API watches, sessions and controllers.

Invariant: deltas reach every subscriber in revision order, each once; an object that moves between partitions in one
transaction is one MODIFIED. After a relist the subscribers get the difference as ordinary deltas.
Does not guarantee: that the cache is current. `at_least(revision)` waits for that.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from hub.cache import Cache, Entry, HasMeta, Indexer, by_namespace, by_node, by_owner
from hub.objects import PODS, Keys, Resource, split_object_key
from hub.store.base import Compacted, Event, Store, WatchBatch, prefix_end

log = logging.getLogger(__name__)

V = TypeVar("V", bound=HasMeta)
DeltaType = Literal["ADDED", "MODIFIED", "DELETED"]
HISTORY_MAX = 10_000
"""Deltas kept for API watches that resume from the past; older ones are replayed from the store."""
HISTORY_BYTES_MAX = 8 << 20
"""The same in bytes, since an object may have any size up to the store's bound."""
VIEW_BYTES = 1000
"""What a delta keeps beside the objects' bytes, about."""
LIST_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Delta(Generic[V]):
    """`entry` is the new state (for DELETED the last one), `old` the state before (None for ADDED)."""

    type: DeltaType
    entry: Entry[V]
    old: Entry[V] | None
    revision: int


Handler = Callable[[Sequence[Delta[Any]], int], None]
"""Called on the event loop with the deltas of one revision, and the revision that is now reached (also when there
are no deltas: progress). Must not block; what it raises stops the hub."""


class Informer(Generic[V]):
    """One kind, over the whole key range of the kind (standalone), or over the ranges given."""

    def __init__(self, store: Store, keys: Keys, res: Resource) -> None:
        indexers: dict[str, Indexer] = {"namespace": by_namespace, "owner": by_owner}
        if res == PODS:
            indexers["node"] = by_node
        self.resource = res
        self.cache: Cache[V] = Cache(res, indexers)
        self.revision = 0
        self._store = store
        self._prefix = keys.objects(res)
        self._handlers: list[Handler] = []
        self._history: deque[Delta[V]] = deque()
        self._history_bytes = 0
        self._history_after = 0
        self._reached = asyncio.Condition()
        self._synced = asyncio.Event()

    async def run(self) -> None:
        """Lists, then watches for ever; lists again whenever the past is compacted away."""
        after = await self._relist()
        self._synced.set()
        while True:
            try:
                async for batch in self._store.watch([(self._prefix, prefix_end(self._prefix))], after):
                    await self._advance(self._apply(batch.events, batch.revision), batch.revision)
                    after = batch.revision
            except Compacted as gone:
                log.warning("informer of %s lists again: %s", self.resource.resource, gone)
                after = await self._relist()

    async def synced(self) -> None:
        """Returns once the first list is in the cache."""
        await self._synced.wait()

    async def at_least(self, revision: int) -> None:
        """Returns once the cache has progressed through `revision`."""
        async with self._reached:
            await self._reached.wait_for(lambda: self.revision >= revision)

    def subscribe(self, handler: Handler) -> Callable[[], None]:
        """Adds a handler for all deltas from now on; returns what removes it."""
        self._handlers.append(handler)
        return lambda: self._handlers.remove(handler)

    def since(self, revision: int) -> list[Delta[V]] | None:
        """The deltas after `revision`, None when they are no longer all kept."""
        if revision < self._history_after:
            return None
        return [d for d in self._history if d.revision > revision]

    def deltas_of(self, batch: WatchBatch) -> list[Delta[V]]:
        """A batch of the store's past as deltas, without touching the cache. Where the state before is compacted away
        a change looks like ADDED."""
        before: dict[tuple[str, str], Entry[V]] = {}
        after: dict[tuple[str, str], Entry[V]] = {}
        for event in batch.events:
            if event.prev is not None:
                entry = self._entry(event.key, event.prev.value, event.prev.mod_revision)
                before[entry.key] = entry
            if event.kv is not None:
                entry = self._entry(event.key, event.kv.value, batch.revision)
                after[entry.key] = entry
        deltas: list[Delta[V]] = []
        for key, old in before.items():
            new = after.get(key)
            if new is None or new.meta.uid != old.meta.uid:
                deltas.append(Delta("DELETED", old, old, batch.revision))
                if new is not None:
                    deltas.append(Delta("ADDED", new, None, batch.revision))
            else:
                deltas.append(Delta("MODIFIED", new, old, batch.revision))
        deltas.extend(
            Delta("ADDED", new, None, batch.revision) for key, new in after.items() if key not in before
        )
        return deltas

    async def _relist(self) -> int:
        found, revision = await self._list()
        deltas: list[Delta[V]] = []
        for old in self.cache:
            entry = found.get(old.key)
            if entry is None or entry.meta.uid != old.meta.uid:
                self.cache.drop(old.key)
                gone_at = revision if entry is None else entry.revision
                deltas.append(Delta("DELETED", old, old, gone_at))
        for key, entry in found.items():
            held = self.cache.get(*key)
            if held is None or held.revision != entry.revision:
                deltas.append(self._file(entry, entry.revision))
        deltas.sort(key=lambda d: d.revision)
        self._history.clear()
        self._history_bytes = 0
        self._history_after = revision
        await self._advance(deltas, revision)
        return revision

    async def _list(self) -> tuple[dict[tuple[str, str], Entry[V]], int]:
        """Everything at one revision, and which; begins again when that is compacted away meanwhile."""
        while True:
            try:
                return await self._list_once()
            except Compacted as gone:
                log.warning("informer of %s lists again: %s", self.resource.resource, gone)
                await asyncio.sleep(0)

    async def _list_once(self) -> tuple[dict[tuple[str, str], Entry[V]], int]:
        found: dict[tuple[str, str], Entry[V]] = {}
        revision: int | None = None
        at: str | None = self._prefix
        while at is not None:
            page = await self._store.page(at, prefix_end(self._prefix), revision=revision, limit=LIST_PAGE)
            revision, at = page.revision, page.next_key
            for kv in page.items:
                entry = self._entry(kv.key, kv.value, kv.mod_revision)
                found[entry.key] = entry
            await asyncio.sleep(0)  # a long list must not stall heartbeats
        assert revision is not None
        return found, revision

    def _entry(self, key: str, value: bytes, revision: int) -> Entry[V]:
        partition, namespace, name = split_object_key(key)
        return self.cache.entry((namespace, name), partition, revision, value)

    def _file(self, entry: Entry[V], revision: int) -> Delta[V]:
        old = self.cache.put(entry)
        if old is None:
            return Delta("ADDED", entry, None, revision)
        return Delta("MODIFIED", entry, old, revision)

    def _apply(self, events: Sequence[Event], revision: int) -> list[Delta[V]]:
        deltas: list[Delta[V]] = []
        put: set[tuple[str, str]] = set()
        for event in events:
            if event.kv is not None:
                entry = self._entry(event.key, event.kv.value, revision)
                put.add(entry.key)
                old = self.cache.get(*entry.key)
                if old is not None and old.meta.uid != entry.meta.uid:
                    deltas.append(Delta("DELETED", old, old, revision))
                    self.cache.drop(entry.key)
                deltas.append(self._file(entry, revision))
        for event in events:
            if event.kv is None:
                _, namespace, name = split_object_key(event.key)
                if (namespace, name) in put:
                    continue  # it moved to another partition
                old = self.cache.drop((namespace, name))
                if old is not None:
                    deltas.append(Delta("DELETED", old, old, revision))
        self._remember(deltas)
        return deltas

    def _remember(self, deltas: Sequence[Delta[V]]) -> None:
        """Keeps `deltas` for watches that resume, and forgets the oldest beyond the bounds."""
        self._history.extend(deltas)
        self._history_bytes += sum(map(_kept_bytes, deltas))
        while len(self._history) > HISTORY_MAX or self._history_bytes > HISTORY_BYTES_MAX:
            gone = self._history.popleft()
            self._history_bytes -= _kept_bytes(gone)
            self._history_after = max(self._history_after, gone.revision)

    async def _advance(self, deltas: Sequence[Delta[V]], revision: int) -> None:
        self.revision = revision
        for handler in list(self._handlers):
            handler(deltas, revision)
        async with self._reached:
            self._reached.notify_all()


def _kept_bytes(delta: Delta[Any]) -> int:
    """What the history keeps alive for one delta, at most: often the cache holds the newest state as well."""
    old = delta.old
    return VIEW_BYTES + delta.entry.size + (old.size if old is not None and old is not delta.entry else 0)


class Informers:
    """The informers of all kinds of one replica."""

    def __init__(self, store: Store, keys: Keys, resources: Sequence[Resource]) -> None:
        self._by_resource: dict[Resource, Informer[Any]] = {r: Informer(store, keys, r) for r in resources}

    def of(self, res: Resource) -> Informer[Any]:
        return self._by_resource[res]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for res, informer in self._by_resource.items():
                tasks.create_task(informer.run(), name=f"informer {res.resource}")

    async def synced(self) -> None:
        for informer in self._by_resource.values():
            await informer.synced()
