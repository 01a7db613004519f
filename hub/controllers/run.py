"""The controllers of a role, over one set of informers.

They run on the role's owner alone (`hub.roles`). They start when every informer holds its first list (I9), see the caches as ADDED deltas, in portions, and then every change. No
controller takes the hub down: see `hub.controllers.controller`. FenceLost ends them all.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hub.access.roles import keep_role
from hub.api import defaults, schema
from hub.cache import Keep, keep_view
from hub.controllers.aggregation import Aggregation
from hub.controllers.clock import Clock, WallClock
from hub.controllers.controller import Acting, Context, Controller, Object, Part
from hub.controllers.daemonset import DaemonSets
from hub.controllers.deployment import Deployments
from hub.controllers.deviceplacement import DevicePlacement
from hub.controllers.enrolments import Enrolments, keep_token
from hub.controllers.events import Events, EventTtl, keep_event
from hub.controllers.evictions import Evictions
from hub.controllers.garbage import Garbage
from hub.controllers.namespaces import Namespaces
from hub.controllers.nodes import NodeLifecycle, PodCollector
from hub.controllers.placement import Placement
from hub.controllers.podnote import keep_pod, keep_scheduled
from hub.controllers.replicaset import ReplicaSets
from hub.controllers.scheduler import Scheduler
from hub.controllers.serviceaccounts import ServiceAccounts
from hub.informer import Delta, Informers
from hub.objects import (
    CLUSTERROLES,
    DAEMONSETS,
    DEPLOYMENTS,
    EVENTS,
    JOINTOKENS,
    NAMESPACES,
    NODES,
    PODS,
    REPLICASETS,
    RESOURCES,
    Resource,
)
from hub.registry import Registry
from shards.ownership import CONTROLLERS, SCHEDULER

log = logging.getLogger(__name__)

SEEDED_A_TURN = 1000
"""Cached objects that the parts of a role are told of in one turn of the loop, at some microseconds each."""


def admit(res: Resource, obj: Object) -> None:
    """Completes what a controller makes as the API completes what a client sends."""
    known = schema.resource(res.group, res.version, res.resource)
    if known is not None:
        defaults.apply(known, obj)


@dataclass(frozen=True)
class Crew:
    """The controllers of one role: what makes them, and the kinds that they follow: `whole` with the objects' bytes,
    `thin` without, since a role's owner must not hold the bytes of the fleet."""

    parts: tuple[Callable[[Context], Part], ...]
    whole: tuple[Resource, ...]
    thin: Mapping[Resource, Keep]
    owners: bool
    """Does anybody of it look for what an object owns?"""

    @property
    def kinds(self) -> tuple[Resource, ...]:
        return tuple(r for r in RESOURCES if r in self.whole or r in self.thin)


_WORKLOADS = (DEPLOYMENTS, REPLICASETS, DAEMONSETS)
CREWS: dict[str, Crew] = {
    SCHEDULER: Crew(
        (Scheduler, Placement), (), {PODS: keep_scheduled, NODES: keep_view, NAMESPACES: keep_view}, False
    ),
    CONTROLLERS: Crew(
        (
            Deployments,
            ReplicaSets,
            DaemonSets,
            Garbage,
            Namespaces,
            NodeLifecycle,
            Evictions,
            PodCollector,
            EventTtl,
            ServiceAccounts,
            Aggregation,
            Enrolments,
            DevicePlacement,
        ),
        _WORKLOADS,
        {r: keep_view for r in RESOURCES if r not in _WORKLOADS}
        | {PODS: keep_pod, EVENTS: keep_event, CLUSTERROLES: keep_role, JOINTOKENS: keep_token},
        True,
    ),
}


class Controllers:
    """The crew of `role`. `informers` are of the crew's kinds; whoever owns them runs them."""

    def __init__(
        self,
        role: str,
        registry: Registry,
        informers: Informers,
        acting: Acting,
        *,
        clock: Clock | None = None,
        admit: Callable[[Resource, Object], None] = admit,
        component: str = "cloudhub",
    ) -> None:
        self.events = Events(component)
        self.handler_bugs = 0
        self.informers = informers
        self._kinds = CREWS[role].kinds
        context = Context(registry, informers, self.events, admit, acting, clock or WallClock())
        self.parts: tuple[Part, ...] = tuple(make(context) for make in CREWS[role].parts)
        own = self.events.start(context, f"{role}-events")
        self.drivers: tuple[Controller[Any], ...] = (own, *(d for p in self.parts for d in p.drivers))

    async def run(self) -> None:
        """Waits for the informers' first lists, then controls until cancelled. Raises FenceLost (in a group)."""
        await self.informers.synced()
        unsubscribe: list[Callable[[], None]] = []
        try:
            for res in self._kinds:
                await self._listen(res, unsubscribe)
            for part in self.parts:
                if isinstance(part, Garbage | PodCollector):
                    part.seed()
            async with asyncio.TaskGroup() as tasks:
                for driver in self.drivers:
                    tasks.create_task(driver.run(), name=driver.name)
        finally:
            for remove in unsubscribe:
                remove()

    @property
    def idle(self) -> bool:
        """No key waits for a worker or is worked on; delayed ones may exist."""
        return all(d.queue.idle for d in self.drivers)

    def figures(self) -> dict[str, dict[str, int]]:
        """Plain counters by controller: for metrics."""
        return {
            d.name: {
                "depth": len(d.queue),
                "delayed": d.queue.delayed,
                "adds": d.queue.adds,
                "retries": d.queue.retries,
                "syncs": d.syncs,
                "failures": d.failures,
                "bugs": d.bugs,
            }
            for d in self.drivers
        }

    async def _listen(self, res: Resource, unsubscribe: list[Callable[[], None]]) -> None:
        """Tells the parts all that is cached, SEEDED_A_TURN in a turn of the loop, and then what changes, in order."""
        informer = self.informers.of(res)
        parts = [p for p in self.parts if res in p.kinds]
        meanwhile: list[Delta[Any]] = []
        """What changes while the parts are told: they hear of it when they know the state before it."""
        told = False

        def handler(deltas: Sequence[Delta[Any]], revision: int) -> None:
            if not told:
                meanwhile.extend(deltas)
                return
            for delta in deltas:
                self._tell(parts, res, delta)

        # No await between the list and subscribing: no change falls between.
        cached = list(informer.cache)
        unsubscribe.append(informer.subscribe(handler))
        for n, entry in enumerate(cached if parts else (), 1):
            self._tell(parts, res, Delta("ADDED", entry, None, entry.revision))
            if n % SEEDED_A_TURN == 0:
                await asyncio.sleep(0)
        for delta in meanwhile:
            self._tell(parts, res, delta)
        meanwhile.clear()
        told = True

    def _tell(self, parts: list[Part], res: Resource, delta: Delta[Any]) -> None:
        for part in parts:
            try:
                part.on_delta(res, delta)
            except Exception:
                # One strange object must not stop the informer, and with it the hub.
                self.handler_bugs += 1
                log.exception("bug: %s cannot take %s %s", type(part).__name__, res.resource, delta.entry.key)
