"""The unified informer: one list and watch of a whole kind, for those who need all of it: the controllers of a role.

Invariant: deltas reach every subscriber in revision order, each once; an object that moves between partitions in one
transaction is one MODIFIED. After a relist the subscribers get the difference as ordinary deltas.
Does not guarantee: that the cache is current. `at_least(revision)` waits for that.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from hub.cache import Entry, HasMeta, Indexer, Keep, by_node, by_owner
from hub.kin import Kin
from hub.mirror import Delta as Delta
from hub.mirror import Handler as Handler
from hub.mirror import Mirror
from hub.objects import DEVICES, NODES, PODS, Keys, Resource, partition_of_slot
from hub.outage import Outage
from shards.kv import Compacted, Store, Unavailable, prefix_end

log = logging.getLogger(__name__)

T = TypeVar("T")
V = TypeVar("V", bound=HasMeta)
LIST_PAGE = 1000
IN_SLOTS = (NODES, PODS, DEVICES)
ENTRIES_A_TURN = 100
"""Decoded and compressed in one turn of the loop, at 0.1 ms each."""


class Informer(Mirror[V]):
    """One kind, over its whole key range. With `keep` its cache is thin; with `owners` it finds
    objects by those. A store that is out of reach is waited for."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        res: Resource,
        *,
        outage: Outage | None = None,
        keep: Keep | None = None,
        kin: Kin | None = None,
        owners: bool = True,
    ) -> None:
        indexers: dict[str, Indexer] = {"owner": by_owner} if owners else {}
        if res == PODS:
            indexers["node"] = by_node
        super().__init__(res, indexers, keep, kin=kin)
        self._outage = outage or Outage()
        self._store = store
        self._prefix = keys.objects(res)
        self._synced = asyncio.Event()

    async def run(self) -> None:
        """Lists, then watches for ever; lists again whenever the past is compacted away."""
        after: int | None = None
        if self.kin is not None:
            self.kin.join(self.cache)
        try:
            while True:
                try:
                    if after is None:
                        after = await self._relist()
                        self._synced.set()
                    span = (self._prefix, prefix_end(self._prefix))
                    # There are thirty of these beside a lone hub's share, and each commit concerns two.
                    async for batch in self._store.watch([span], after, patient=True):
                        self._outage.over(self)
                        self.advance(self.apply(batch.events, batch.revision), batch.revision)
                        after = batch.revision
                except Compacted as gone:
                    log.warning("informer of %s lists again: %s", self.resource.resource, gone)
                    after = None
                except Unavailable as failure:
                    await self._outage.failed(self, failure)
        finally:
            self._outage.over(self)
            if self.kin is not None:
                self.kin.leave(self.cache)

    async def synced(self) -> None:
        """Returns once the first list is in the cache."""
        await self._synced.wait()

    async def _relist(self) -> int:
        """Files a list in portions: a million pods in one turn would stop the loop for seconds, and with it the lease."""
        found, revision = await self._list()
        gone = [entry.key for entry in self.cache if entry.key not in found]
        for some in _portions(gone):
            self.advance([d for key in some for d in self.set_state(key, None, revision)], self.revision)
            await asyncio.sleep(0)
        new = list(found.values())
        if self._handlers:
            # What differs comes in the order in which it was written; of a first list mostly nobody hears.
            new = [e for e in new if (held := self.cache.get(*e.key)) is None or held.revision < e.revision]
            new.sort(key=lambda entry: entry.revision)
        for few in _portions(new):
            self.advance([d for e in few for d in self.set_state(e.key, e, revision)], self.revision)
            await asyncio.sleep(0)
        self.advance((), revision)
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
        slots = self._store.identity.slots if self.resource in IN_SLOTS else 0
        for start, end in _stretches(self._prefix, slots):
            at: str | None = start
            while at is not None:
                page = await self._store.page(at, end, revision=revision, limit=LIST_PAGE)
                revision, at = page.revision, page.next_key
                for kv in page.items:
                    entry = self.entry_of(kv.key, kv.value, kv.mod_revision)
                    found[entry.key] = entry
                    if not len(found) % ENTRIES_A_TURN:
                        await asyncio.sleep(0)  # a long list must not stall heartbeats
        assert revision is not None
        return found, revision


def _stretches(prefix: str, slots: int) -> list[tuple[str, str]]:
    """A whole resource, ten slots at a time where it lies in slots. etcd looks at all keys of a range for the first page of
    it, and lets nobody write meanwhile: seconds, where these are a million pods."""
    inner = {prefix + partition_of_slot(slot)[:-1] for slot in range(10, slots, 10)}
    return list(pairwise([prefix, *sorted(inner), prefix_end(prefix)]))


def _portions(items: list[T]) -> Iterator[list[T]]:
    """ENTRIES_A_TURN at a time."""
    return (items[at : at + ENTRIES_A_TURN] for at in range(0, len(items), ENTRIES_A_TURN))


class Informers:
    """Informers of several kinds; those in `keeps` are thin, those in `kin` share their entries."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        resources: Sequence[Resource],
        keeps: Mapping[Resource, Keep] | None = None,
        kin: Mapping[Resource, Kin] | None = None,
        owners: bool = True,
    ) -> None:
        outage, thin, shared = Outage(), keeps or {}, kin or {}
        self._by_resource: dict[Resource, Informer[Any]] = {
            r: Informer(store, keys, r, outage=outage, keep=thin.get(r), kin=shared.get(r), owners=owners)
            for r in resources
        }

    def __contains__(self, res: Resource) -> bool:
        return res in self._by_resource

    async def at_least(self, revision: int) -> None:
        """Returns once all have progressed through `revision`."""
        for informer in self._by_resource.values():
            await informer.at_least(revision)

    def of(self, res: Resource) -> Informer[Any]:
        return self._by_resource[res]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for res, informer in self._by_resource.items():
                tasks.create_task(informer.run(), name=f"informer {res.resource}")

    async def synced(self) -> None:
        for informer in self._by_resource.values():
            await informer.synced()
