"""This replica's share of the fleet: Nodes, Pods and Devices of the slots that it owns, and what those refer to.

Every run of adjacent slots is one range of each kind, listed once and then watched; a slot that is dropped takes
nothing else along. What is bound to no node is not here.

Invariants: a slot is `loaded` only when all that it holds, and all that its pods refer to, is known as of the revision
that was asked for (I9). What is dropped is forgotten, never reported as deleted. While the store cannot be reached, or
answers with a past that lies before what was seen, the cache stays as it is: stale, never emptier.
"""

import asyncio
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from sys import intern
from typing import Any, Protocol

from hub.cache import Entry, Key, by_node
from hub.devicedocs import DeviceMirror
from hub.kin import Kin
from hub.mirror import Mirror
from hub.objects import (
    CONFIGMAPS,
    NODES,
    PODS,
    SECRETS,
    Keys,
    Meta,
    NodeView,
    PodSpecView,
    PodStatusView,
    PodView,
    Resource,
    partition_of_slot,
)
from hub.outage import Outage
from hub.references import References, StoreReferences
from hub.spaces import Namespaced
from shards.kv import Ambiguous, Compacted, Store, Unavailable, prefix_end

log = logging.getLogger(__name__)

LIST_PAGE = 1000
LISTS_AT_ONCE = 8
"""Runs that are listed at the same time: a replica that takes over a hundred must not be a hundred times as large."""
FILE_AT_ONCE = 100
"""Objects of a list that are filed in one turn: each may become a rendered document, and heartbeats wait."""


_NO_STATUS = PodStatusView()


def placed(view: PodView) -> PodView:
    """What a slot's owner asks of a Pod beside its bytes: which one it is, where, and whether it ends."""
    meta = view.metadata
    return PodView(
        Meta(
            # Three caches of a lone hub hold these.
            name=intern(meta.name),
            namespace=intern(meta.namespace),
            uid=intern(meta.uid),
            deletionTimestamp=meta.deletionTimestamp,
        ),
        _on(intern(view.spec.nodeName)),
        _NO_STATUS,
    )


@lru_cache(maxsize=256)
def _on(node: str) -> PodSpecView:
    """One object for all pods of a node."""
    return PodSpecView(node)


@dataclass(eq=False, slots=True)
class _Run:
    """Adjacent slots of one kind, first to last, that are followed by one watch. `ticket`: of the `load` that asked for
    them. `revision`: seen through it, 0 before the first list. `empty`: nothing of it can be in the cache before that list,
    so that nothing needs to be looked for there: a replica has a hundred runs and a million objects."""

    mirror: Mirror[Any]
    ticket: int
    first: int
    last: int
    start: str
    end: str
    revision: int = 0
    empty: bool = True
    task: asyncio.Task[None] | None = None
    partitions: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.partitions = frozenset(map(partition_of_slot, self.slots))

    @property
    def slots(self) -> range:
        return range(self.first, self.last + 1)

    def __str__(self) -> str:
        return f"{self.mirror.resource.resource} of slots {self.first} to {self.last}"


class Cached(Protocol):
    """What the gateway reads: `Share`, or `hub.kubernetes.share`, whose docstrings say what each does."""

    pods: Mirror[PodView]
    nodes: Mirror[NodeView]
    devices: DeviceMirror

    @property
    def configmaps(self) -> References: ...

    @property
    def secrets(self) -> References: ...

    @property
    def namespaced(self) -> Sequence[Namespaced]: ...

    @property
    def stale(self) -> bool: ...

    @property
    def revision(self) -> int: ...

    async def run(self) -> None: ...

    async def load(self, slots: Collection[int], revision: int) -> None: ...

    def drop(self, slots: Collection[int]) -> None: ...

    async def at_least(self, slot: int, revision: int) -> None: ...

    def reached(self, slot: int, revision: int) -> bool: ...


class Share:
    """See the module. `run` has to be running for `load` to return. `kin`: with whom it shares entries."""

    def __init__(self, store: Store, keys: Keys, kin: Mapping[Resource, Kin] | None = None) -> None:
        self.outage = Outage()
        shared = kin or {}
        self.pods: Mirror[PodView] = Mirror(PODS, {"node": by_node}, slim=placed, kin=shared.get(PODS))
        self.nodes: Mirror[NodeView] = Mirror(NODES, {}, kin=shared.get(NODES))
        for mirror in (self.pods, self.nodes):
            if mirror.kin is not None:
                mirror.kin.join(mirror.cache)
        self.devices = DeviceMirror()
        self.configmaps = StoreReferences(store, keys, CONFIGMAPS, self.outage)
        self.secrets = StoreReferences(store, keys, SECRETS, self.outage)
        self._bound: tuple[Mirror[Any], ...] = (self.nodes, self.pods, self.devices)
        """Kinds that lie in the slots."""
        self._store = store
        self._keys = keys
        self.namespaced: Sequence[Namespaced] = ()
        """The hub's own store has no kinds that belong to whole namespaces."""
        self._runs: list[_Run] = []
        self._loaded: set[int] = set()
        self._touched: set[int] = set()
        """Slots of which something may be in the caches."""
        self._tickets = 0
        self._lists = asyncio.Semaphore(LISTS_AT_ONCE)
        self._tasks: asyncio.TaskGroup | None = None
        self._running = asyncio.Event()

    @property
    def stale(self) -> bool:
        """Does any part not follow the store at present?"""
        return self.outage.present

    @property
    def revision(self) -> int:
        """The highest that any part has reached."""
        return max(m.revision for m in (*self._bound, self.configmaps, self.secrets))

    def loaded(self, slot: int) -> bool:
        """Is everything known that concerns this slot's nodes?"""
        return slot in self._loaded

    async def run(self) -> None:
        """Follows the store for ever. What is loaded is forgotten when this ends."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self.configmaps.run(), name="references to ConfigMaps")
                tasks.create_task(self.secrets.run(), name="references to Secrets")
                self._running.set()
        finally:
            self._tasks = None
            self._running.clear()
            self._runs.clear()
            self._loaded.clear()

    async def load(self, slots: Collection[int], revision: int) -> None:
        """Lists these slots at `revision` or later and follows them; returns once they are `loaded`, however long the
        store takes. Cancelled, they are dropped. What is known of them from before is forgotten first: it may be older
        than `revision`."""
        await self._running.wait()
        self._tickets += 1
        ticket = self._tickets
        self.drop(slots)
        self._touched.update(slots)
        self.configmaps.raise_floor(revision)
        self.secrets.raise_floor(revision)
        for first, last in adjacent(slots):
            self._runs += (self._new_run(mirror, ticket, first, last) for mirror in self._bound)
        try:
            # Again, where a part of a run was dropped while it was listed.
            while new := [run for run in self._runs if run.ticket == ticket and not run.revision]:
                async with asyncio.TaskGroup() as lists:
                    for run in new:
                        lists.create_task(self._load_run(run, revision), name=f"list {run}")
            await self.configmaps.read()
            await self.secrets.read()
        except BaseException:
            self.drop(self._slots_of(ticket))
            raise
        self._loaded |= self._slots_of(ticket)
        self.nodes.wake()

    def _slots_of(self, ticket: int) -> set[int]:
        return {slot for run in self._runs if run.ticket == ticket for slot in run.slots}

    def drop(self, slots: Collection[int]) -> None:
        """Forgets these slots at once; subscribers hear that they are forgotten, not that anything was deleted."""
        gone = set(slots)
        self._loaded -= gone
        kept: list[_Run] = []
        for run in self._runs:
            left = [slot for slot in run.slots if slot not in gone]
            if len(left) == len(run.slots):
                kept.append(run)
                continue
            if run.task is not None:
                run.task.cancel()
            self.outage.over(run)
            # The rest goes on from where this has come to, each run of it by itself: a watch over slots that are
            # another replica's would bring their events here for ever.
            for first, last in adjacent(left):
                rest = self._new_run(run.mirror, run.ticket, first, last)
                rest.revision, rest.empty = run.revision, False
                kept.append(rest)
                if run.revision:
                    self._start(rest)
        self._runs = kept
        held = gone & self._touched
        self._touched -= gone
        if held:
            # Of slots that were never here, as most that are loaded, there is nothing to be looked for.
            partitions = frozenset(map(partition_of_slot, held))
            for mirror in (self.pods, self.devices, self.nodes):
                mirror.forget(partitions)
        for mirror in self._bound:
            mirror.wake()

    async def at_least(self, slot: int, revision: int) -> None:
        """Returns once the slot's Nodes have progressed through `revision`, or when the slot is not here."""
        await self.nodes.until(lambda: self.reached(slot, revision))

    def reached(self, slot: int, revision: int) -> bool:
        """Have the slot's Nodes progressed through `revision`? True where the slot is not here."""
        run = next((r for r in self._runs if r.mirror is self.nodes and slot in r.slots), None)
        return run is None or run.revision >= revision

    # -- one run ----------------------------------------------------------------------------------------------------

    def _new_run(self, mirror: Mirror[Any], ticket: int, first: int, last: int) -> _Run:
        prefix = self._keys.objects(mirror.resource)
        start = f"{prefix}{partition_of_slot(first)}/"
        return _Run(mirror, ticket, first, last, start, prefix_end(f"{prefix}{partition_of_slot(last)}/"))

    def _start(self, run: _Run) -> None:
        if self._tasks is not None and run.task is None:
            run.task = self._tasks.create_task(self._follow(run), name=f"watch {run}")

    async def _load_run(self, run: _Run, revision: int) -> None:
        """The first list; the watch follows by itself."""
        async with self._lists:
            await self._relist(run, revision)
        if run in self._runs:
            self._start(run)

    async def _follow(self, run: _Run) -> None:
        while True:
            try:
                async for batch in self._store.watch([(run.start, run.end)], run.revision, patient=True):
                    self.outage.over(run)
                    deltas = run.mirror.apply(batch.events, batch.revision)
                    run.revision = batch.revision
                    run.mirror.advance(deltas, batch.revision)
            except Compacted as gone:
                log.warning("%s are listed again: %s", run, gone)
                await self._relist(run, run.revision)
            except (Unavailable, Ambiguous) as failure:
                await self.outage.failed(run, failure)

    async def _relist(self, run: _Run, least: int) -> None:
        """Puts a list of `least` or later in place of what is known; tries until it has one."""
        while True:
            try:
                found, revision = await self._list(run)
                if revision < least:
                    raise Unavailable(
                        f"the store answers with revision {revision}, it was at {least} before: is it a restored copy?"
                    )
            except Compacted:
                await asyncio.sleep(0)  # under way; begins anew
            except (Unavailable, Ambiguous) as failure:
                await self.outage.failed(run, failure)
            else:
                break
        self.outage.over(run)
        if run in self._runs:
            await self._file(run, found, revision)

    async def _file(self, run: _Run, found: dict[Key, Entry[Any]], revision: int) -> None:
        mirror = run.mirror
        gone = (
            []
            if run.empty
            else [e.key for e in mirror.cache if e.partition in run.partitions and e.key not in found]
        )
        run.empty = False
        mirror.advance([d for key in gone for d in mirror.set_state(key, None, revision)], mirror.revision)
        keys = list(found)
        for at in range(0, len(keys), FILE_AT_ONCE):
            some = keys[at : at + FILE_AT_ONCE]
            deltas = [d for key in some for d in mirror.set_state(key, found[key], revision)]
            mirror.advance(deltas, mirror.revision)
            await asyncio.sleep(0)
            if run not in self._runs:
                return  # dropped meanwhile: what was filed is forgotten already
        run.revision = revision
        mirror.advance((), revision)

    async def _list(self, run: _Run) -> tuple[dict[Key, Entry[Any]], int]:
        """All of a run at one revision, and which."""
        found: dict[Key, Entry[Any]] = {}
        revision: int | None = None
        at: str | None = run.start
        while at is not None:
            page = await self._store.page(at, run.end, revision=revision, limit=LIST_PAGE)
            revision, at = page.revision, page.next_key
            for kv in page.items:
                entry = run.mirror.entry_of(kv.key, kv.value, kv.mod_revision)
                found[entry.key] = entry
                if not len(found) % FILE_AT_ONCE:
                    await asyncio.sleep(0)  # a long list must not stall heartbeats
        assert revision is not None
        return found, revision


def adjacent(slots: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Runs of adjacent numbers, as (first, last), ascending."""
    first = last = None
    for slot in sorted(slots):
        if last is None or slot != last + 1:
            if first is not None and last is not None:
                yield first, last
            first = slot
        last = slot
    if first is not None and last is not None:
        yield first, last
