"""This replica's share of a Kubernetes cluster: Nodes and Pods of its slots, and what those refer to.

In place of `hub.share.Share`, for `cloudhub serve --source kubernetes`. One watch of Pods and one of edge Nodes
(label cloudhub.dev/edge=true) per replica, however many slots it has; ConfigMaps and Secrets as
`hub.kubernetes.references` says, Services and EndpointSlices as `hub.kubernetes.namespaced` does. Revisions are the API server's resourceVersions.

Invariants: a slot is `loaded` only when all that it holds, and all that its pods refer to, is known from reads that
began after `load` was called (I9). What is dropped is forgotten, never reported as deleted. While the API server cannot be
reached the cache stays as it is: stale, never emptier.
"""

import asyncio
import logging
from collections.abc import Collection
from typing import Final

from hub.cache import by_node
from hub.devicedocs import DeviceMirror
from hub.kubernetes.client import KubeClient
from hub.kubernetes.devices import Devices
from hub.kubernetes.namespaced import KubeNamespaced
from hub.kubernetes.parts import Nodes, Pods
from hub.kubernetes.references import WATCHES_MAX, KubeReferences
from hub.mirror import Mirror
from hub.objects import (
    CONFIGMAPS,
    ENDPOINTSLICES,
    NODES,
    PODS,
    SECRETS,
    SERVICES,
    NodeView,
    PodStatusView,
    PodView,
    partition_of_slot,
)
from hub.outage import Outage
from hub.share import placed

log = logging.getLogger(__name__)

ASKED_CONDITIONS: Final = frozenset({"Ready", "ContainersReady"})
"""Kept of a pod that is not ready; one that has both is known to be so."""


def followed(view: PodView) -> PodView:
    """`hub.share.placed`, and of the status what `hub.kubernetes.repair` asks for."""
    slim = placed(view)
    asked = tuple(c for c in view.status.conditions or () if c.type in ASKED_CONDITIONS)
    if all(c.status == "True" for c in asked):
        return slim
    return PodView(slim.metadata, slim.spec, PodStatusView("", asked))


class KubeShare:
    """See the module. `run` has to be running for `load` to return. `slots`: how many there are in all."""

    def __init__(self, client: KubeClient, slots: int, watches_max: int = WATCHES_MAX) -> None:
        """`watches_max`: of ConfigMaps and Secrets together; what is beyond them is read again and again."""
        self.outage = Outage("the Kubernetes API server")
        self.pods: Mirror[PodView] = Mirror(PODS, {"node": by_node}, slim=followed)
        self.nodes: Mirror[NodeView] = Mirror(NODES, {})
        self.devices = DeviceMirror()
        self.configmaps = KubeReferences(client, CONFIGMAPS, self.outage, watches_max // 2)
        self.secrets = KubeReferences(client, SECRETS, self.outage, watches_max // 2)
        self.namespaced = tuple(
            KubeNamespaced(client, res, self.outage) for res in (SERVICES, ENDPOINTSLICES)
        )
        self._wanted: dict[int, int] = {}
        """Slots that were asked for, and by which `load`."""
        self._complete: set[int] = set()
        self._loaded: set[int] = set()
        self._tickets = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._running = asyncio.Event()
        self._node_part = Nodes(
            client,
            self.nodes,
            self._wanted.keys(),
            self.outage,
            slots,
            self._complete,
            self._hold,
            self._lies,
        )
        self._pod_part = Pods(client, self.pods, self._wanted.keys(), self.outage, self._node_part.slot_of)
        self._device_part = Devices(
            client, self.devices, self._wanted.keys(), self.outage, self._node_part.slot_of
        )

    @property
    def stale(self) -> bool:
        """Does any part not follow the API server at present?"""
        return self.outage.present

    @property
    def revision(self) -> int:
        """The highest that any part has reached or been listed at: at least what the API server was at when a slot was
        loaded. Watches alone would tell too little, for writes of other kinds (Events, Leases) count as well."""
        mirrors = max(
            m.revision for m in (self.pods, self.nodes, self.devices, self.configmaps, self.secrets)
        )
        namespaced = max(kind.revision for kind in self.namespaced)
        parts = (self._node_part, self._pod_part, self._device_part)
        return max(mirrors, namespaced, *(part.listed_at for part in parts))

    def loaded(self, slot: int) -> bool:
        """Is everything known that concerns this slot's nodes?"""
        return slot in self._loaded

    def is_edge(self, node: str) -> bool:
        """Is this the name of an edge node, whoever serves it?"""
        return node in self._node_part.slot_of

    async def run(self) -> None:
        """Follows the API server for ever. What is loaded is forgotten when this ends."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self.configmaps.run(), name="references to ConfigMaps")
                tasks.create_task(self.secrets.run(), name="references to Secrets")
                for kind in self.namespaced:
                    tasks.create_task(kind.run(), name=kind.resource.resource)
                tasks.create_task(self._node_part.run(), name="nodes")
                tasks.create_task(self._pod_part.run(), name="pods")
                tasks.create_task(self._device_part.run(), name="devices")
                self._running.set()
        finally:
            self._tasks = None
            self._running.clear()
            self._wanted.clear()
            self._complete.clear()
            self._loaded.clear()

    async def load(self, slots: Collection[int], revision: int) -> None:
        """Reads these slots and follows them; returns once they are `loaded`, however long the API server takes.
        Cancelled, they are dropped. What is known of them from before is forgotten first. `revision` is of the hub's own
        store, where the claim was made, and says nothing about the API server: that the reads began after this call is
        what makes them younger than what the owner before has told."""
        await self._running.wait()
        self._tickets += 1
        ticket = self._tickets
        self.drop(slots)
        self._wanted.update((slot, ticket) for slot in slots)
        try:
            await self._node_part.catch_up(slots)
            # No Node may come in before its pods any more: the list of these begins now.
            self._complete |= self._slots_of(ticket)
            await self._pod_part.catch_up(slots)
            await self._device_part.catch_up(slots)
            await self.nodes.until(lambda: not self._node_part.holds(self._slots_of(ticket)))
            await self.configmaps.read()
            await self.secrets.read()
            for kind in self.namespaced:
                await kind.read()
        except BaseException:
            self.drop(self._slots_of(ticket))
            raise
        self._loaded |= self._slots_of(ticket)
        self.nodes.wake()

    def _slots_of(self, ticket: int) -> set[int]:
        return {slot for slot, asked in self._wanted.items() if asked == ticket}

    def drop(self, slots: Collection[int]) -> None:
        """Forgets these slots at once; subscribers hear that they are forgotten, not that anything was deleted."""
        gone = set(slots)
        self._loaded -= gone
        self._complete -= gone
        for slot in gone:
            self._wanted.pop(slot, None)
        self._node_part.drop(gone)
        partitions = frozenset(map(partition_of_slot, gone))
        for mirror in (self.pods, self.devices, self.nodes):
            mirror.forget(partitions)
        for mirror in (self.pods, self.devices, self.nodes):
            mirror.wake()

    async def at_least(self, slot: int, revision: int) -> None:
        """Returns once the slot's Nodes have progressed through `revision`, or when the slot is not here."""
        await self.nodes.until(lambda: self.reached(slot, revision))

    def reached(self, slot: int, revision: int) -> bool:
        """Have the slot's Nodes progressed through `revision`? True where the slot is not here."""
        if slot not in self._wanted:
            return True
        return self._node_part.reached >= revision and not self._node_part.holds((slot,), revision)

    def _lies(self, name: str, slot: int) -> None:
        self._pod_part.node_lies(name, slot)
        self._device_part.node_lies(name, slot)

    def _hold(self, name: str) -> None:
        """A Node has appeared: its pods and devices first."""
        if self._tasks is not None:
            self._tasks.create_task(self._release(name), name=f"pods of {name}")

    async def _release(self, name: str) -> None:
        await self._node_part.release(name, self._of_node)

    async def _of_node(self, name: str) -> None:
        await self._pod_part.of_node(name)
        await self._device_part.of_node(name)

    @property
    def watches_begun(self) -> int:
        """By all parts together, since the start."""
        parts = sum(part.reflector.watches for part in (self._node_part, self._pod_part, self._device_part))
        references = self.configmaps.watches_begun + self.secrets.watches_begun
        return parts + references + sum(kind.reflector.watches for kind in self.namespaced)

    def stats(self) -> dict[str, float]:
        """Figures, by name."""
        return {
            "pods": len(self.pods.cache),
            "pods_own": self._pod_part.own,
            "pods_foreign": self._pod_part.foreign,
            "devices": len(self.devices.cache),
            "nodes": len(self.nodes.cache),
            "nodes_foreign": len(self._node_part.slot_of) - len(self.nodes.cache),
            **{kind.resource.resource: len(kind) for kind in self.namespaced},
            "namespaced_foreign": sum(kind.foreign for kind in self.namespaced),
            "watches_begun": self.watches_begun,
            "reference_watches": self.configmaps.watches + self.secrets.watches,
            "references": len(self.configmaps) + len(self.secrets),
            "references_polled": self.configmaps.polled + self.secrets.polled,
        }
