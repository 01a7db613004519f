"""Nodes and Pods of this replica's slots: where each lies, and in which order they become known.

A Node lies in the slot of its affinity, a Pod in that of its node. Of other replicas' Nodes only the slot is kept. A
Node that appears in a slot whose Pods are known already is held back until a list of its own Pods has been filed: what
was bound to it before this replica had heard of it was dropped, and nobody may tell an edge what it should run from
half of its pods (I9).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final

import msgspec

from hub.cache import Entry
from hub.kubernetes.answers import Page, WatchEvent, revision_of
from hub.kubernetes.client import KubeClient
from hub.kubernetes.following import Cover, Listed, Pages, Part
from hub.kubernetes.heads import EDGE_SELECTOR, HeadMeta, NodeHead, node_head_of, pod_head_of
from hub.mirror import Delta, Mirror
from hub.objects import NodeView, PodView, partition_of_slot, slot_of_partition
from hub.outage import Outage
from observability.logs import about

log = logging.getLogger(__name__)

BY_NODE_MAX: Final = 50
"""Up to so many nodes their pods are asked for by name, where the server does not say how many pods there are."""
PODS_PER_REQUEST: Final = 40
"""Of others' pods so many cost as much, to be read and dropped, as a request for one node's."""
REQUESTS_AT_ONCE: Final = 4
HELD_AT_ONCE: Final = 8


class Pods(Part[PodView]):
    """`slot_of`: of every edge node, by name; the Nodes' to change."""

    def __init__(
        self,
        client: KubeClient,
        mirror: Mirror[PodView],
        wanted: Collection[int],
        outage: Outage,
        slot_of: dict[str, int],
    ) -> None:
        super().__init__(client, mirror, wanted, outage, whole=self._is_whole)
        self._slot_of = slot_of
        self._from_now = False

    def _is_whole(self, total: int | None) -> bool:
        self._from_now = _by_name_is_cheaper(len(self._nodes_of(self._wanted)), total)
        return not self._from_now

    async def listed(self, revision: int) -> None:
        if self._from_now:
            self.from_now(revision)
        else:
            await super().listed(revision)

    def _place(self, raw: msgspec.Raw) -> tuple[HeadMeta, str | None]:
        head = pod_head_of(raw)
        slot = self._slot_of.get(head.spec.nodeName)
        if slot is not None:
            return head.metadata, partition_of_slot(slot) if slot in self._wanted else None
        if head.spec.nodeName:
            # Its Node is gone: what is known of the pod is followed to its end.
            held = self.mirror.cache.get(*head.metadata.key)
            if held is not None and held.meta.uid == head.metadata.uid:
                return head.metadata, held.partition
        return head.metadata, None

    def _is_ours(self, entry: Entry[PodView]) -> bool:
        slot = slot_of_partition(entry.partition)
        return slot in self._wanted and self._slot_of.get(entry.view.spec.nodeName, slot) == slot

    async def _collect(self, slots: frozenset[int]) -> Pages:
        """By the names of the slots' nodes, or all of the cluster's: what costs less."""
        names = self._nodes_of(slots)
        head = await self._head()
        if _by_name_is_cheaper(len(names), head.total):
            pages = self._by_name(names, revision_of(head.metadata.resourceVersion))
        else:
            pages = super()._collect(slots)
        async with aclosing(pages):
            async for page in pages:
                yield page

    def _nodes_of(self, slots: Collection[int]) -> list[str]:
        """Nodes of these slots, and those that are gone and whose pods are followed to their end."""
        names = [name for name, slot in self._slot_of.items() if slot in slots]
        gone = [name for name in self.mirror.cache.values("node") if name not in self._slot_of]
        return names + gone

    async def _head(self) -> Page:
        """A list's first object, by which it is known how many there are, as of now."""
        async with aclosing(self._client.list(self._path, self._query, 1)) as pages:
            return await anext(pages)

    async def of_node(self, name: str) -> None:
        """Returns once the pods of this node are known as of now or later. Not as of where the watch is: a list of more
        that is under way may be younger than that, and has passed over pods of a node that was unknown."""
        await self._known.wait()
        await self._list_beside(lambda: self._of_one(name))

    async def _of_one(self, name: str) -> Pages:
        least = revision_of((await self._head()).metadata.resourceVersion)
        async with aclosing(self._by_name([name], least)) as pages:
            async for page in pages:
                yield page

    async def _by_name(self, names: Sequence[str], least: int) -> Pages:
        """As of `least` or later, from the server's cache: its own index finds them."""
        for at in range(0, len(names), REQUESTS_AT_ONCE):
            some = names[at : at + REQUESTS_AT_ONCE]
            pages = await asyncio.gather(*(self._of_node(name, least) for name in some))
            for name, page in zip(some, pages, strict=True):
                self.listed_at = max(self.listed_at, revision_of(page.metadata.resourceVersion))
                yield page, Cover(partial(_is_on, name), ("node", name))

    async def _of_node(self, name: str, least: int) -> Page:
        query: dict[str, str | int] = {
            "fieldSelector": f"spec.nodeName={name}",
            "resourceVersion": least,
            "resourceVersionMatch": "NotOlderThan",
        }
        # In one page: with a limit servers would go past their cache.
        async with aclosing(self._client.list(self._path, query, 0)) as pages:
            return await anext(pages)

    def node_lies(self, name: str, slot: int) -> None:
        """What is known of its pods in another slot is forgotten; nobody hears that they were deleted."""
        partition = partition_of_slot(slot)
        self.mirror.forget_entries(
            [e for e in self.mirror.cache.find("node", name) if e.partition != partition]
        )


def _is_on(name: str, entry: Entry[PodView]) -> bool:
    return entry.view.spec.nodeName == name


def _by_name_is_cheaper(nodes: int, total: int | None) -> bool:
    """Than a list of all `total` pods, to know those of so many nodes."""
    return nodes <= BY_NODE_MAX if total is None else nodes * PODS_PER_REQUEST < total


class _Held:
    """A Node that nobody is told of yet."""

    __slots__ = ("entry",)

    def __init__(self, entry: Entry[NodeView]) -> None:
        self.entry = entry


class Nodes(Part[NodeView]):
    """`slot_of` is every edge node's slot. `complete`: slots of whose Pods a list has begun, so that further Nodes are
    held back; its owner's to change."""

    def __init__(
        self,
        client: KubeClient,
        mirror: Mirror[NodeView],
        wanted: Collection[int],
        outage: Outage,
        slots: int,
        complete: Collection[int],
        hold: Callable[[str], None],
        lies: Callable[[str, int], None],
    ) -> None:
        super().__init__(client, mirror, wanted, outage, {"labelSelector": EDGE_SELECTOR})
        self.slot_of: dict[str, int] = {}
        self._slots = slots
        self._complete = complete
        self._hold = hold
        self._pods_lie = lies
        self._held: dict[str, _Held] = {}
        self._told: dict[str, int] = {}
        """At which revision a node's slot was what `slot_of` says: lists beside the watch may be ahead of it."""
        self._seen: set[str] = set()
        self._at_once = asyncio.Semaphore(HELD_AT_ONCE)

    def holds(self, slots: Collection[int], revision: int | None = None) -> bool:
        """Is a Node of these slots held back (one that was written at `revision` or before)?"""
        return any(
            slot_of_partition(held.entry.partition) in slots
            and (revision is None or held.entry.revision <= revision)
            for held in self._held.values()
        )

    def drop(self, slots: Collection[int]) -> None:
        """What is held back of these is forgotten."""
        self._held = {
            name: held
            for name, held in self._held.items()
            if slot_of_partition(held.entry.partition) not in slots
        }

    async def release(self, name: str, known: Callable[[str], Awaitable[None]]) -> None:
        """Tells of a Node that is held back when all is `known` of what lies with it."""
        held = self._held.get(name)
        if held is None:
            return
        async with self._at_once:
            if self._held.get(name) is held:
                await known(name)
        if self._held.get(name) is held:
            del self._held[name]
            entry = held.entry
            self.mirror.advance(self.mirror.set_state(entry.key, entry, entry.revision), entry.revision)

    # -- as a part ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        super().begin()
        self._seen = set()

    def items(self, items: Sequence[msgspec.Raw]) -> None:
        self._seen.update(node_head_of(raw).metadata.name for raw in items)
        super().items(items)

    async def listed(self, revision: int) -> None:
        for name in [name for name in self.slot_of if name not in self._seen]:
            if self._told[name] <= revision:
                self._is_gone(name)
        self._seen = set()
        await super().listed(revision)

    def _take(self, items: Sequence[msgspec.Raw], listed: Listed[NodeView]) -> None:
        for raw in items:
            head = node_head_of(raw)
            if self._dead.get(head.metadata.key, 0) < head.metadata.revision:
                self._lies(head, [])
        super()._take(items, listed)

    def _event(self, event: WatchEvent, deltas: list[Delta[NodeView]]) -> int:
        head = node_head_of(event.object)
        name, revision = head.metadata.name, head.metadata.revision
        if revision < self._told.get(name, 0):
            return revision  # a list has told what came of it
        if event.type == "DELETED":
            self._is_gone(name)
        else:
            self._lies(head, deltas)
        return super()._event(event, deltas)

    def _is_gone(self, name: str) -> None:
        self.slot_of.pop(name, None)
        self._told.pop(name, None)
        self._held.pop(name, None)

    def _lies(self, head: NodeHead, untold: list[Delta[NodeView]]) -> None:
        """Notes a node's slot. What is `untold` yet is told before anything is forgotten."""
        name, slot = head.metadata.name, head.slot(self._slots)
        if head.metadata.revision < self._told.get(name, 0):
            return
        self._told[name] = head.metadata.revision
        before = self.slot_of.get(name)
        self.slot_of[name] = slot
        if before == slot:
            return
        self._pods_lie(name, slot)
        if before is None:
            return
        text = "node %s moved from slot %d to %d: its site label was changed"
        log.warning(text, name, before, slot, extra=about(node=name, slot=slot))
        self._held.pop(name, None)
        held = self.mirror.cache.get("", name)
        if held is not None:
            self.mirror.advance(untold, self.mirror.revision)
            untold.clear()
            self.mirror.forget_entries([held])

    def _place(self, raw: msgspec.Raw) -> tuple[HeadMeta, str | None]:
        head = node_head_of(raw)
        slot = head.slot(self._slots)
        return head.metadata, partition_of_slot(slot) if slot in self._wanted else None

    def _is_ours(self, entry: Entry[NodeView]) -> bool:
        slot = slot_of_partition(entry.partition)
        return slot in self._wanted and self.slot_of.get(entry.key[1], slot) == slot

    def _put(self, entry: Entry[NodeView], revision: int) -> list[Delta[NodeView]]:
        name = entry.key[1]
        held = self._held.get(name)
        if held is not None:
            if entry.revision > held.entry.revision:
                held.entry = entry
            return []
        known = self.mirror.cache.get("", name)
        if (known is None or known.meta.uid != entry.meta.uid) and slot_of_partition(
            entry.partition
        ) in self._complete:
            self._held[name] = _Held(entry)
            self._hold(name)
            return [] if known is None else self.mirror.set_state(entry.key, None, revision)
        return super()._put(entry, revision)
