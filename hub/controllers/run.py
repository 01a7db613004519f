"""All controllers of a hub, over one set of informers.

They start when every informer holds its first list (I9), see the caches as ADDED deltas and then every change. No
controller takes the hub down: see `hub.controllers.controller`.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from hub.api import defaults, schema
from hub.controllers.clock import Clock, WallClock
from hub.controllers.controller import Context, Controller, Object, Part
from hub.controllers.daemonset import DaemonSets
from hub.controllers.deployment import Deployments
from hub.controllers.events import Events, EventTtl
from hub.controllers.evictions import Evictions
from hub.controllers.garbage import Garbage
from hub.controllers.namespaces import Namespaces
from hub.controllers.nodes import NodeLifecycle, PodCollector
from hub.controllers.replicaset import ReplicaSets
from hub.controllers.scheduler import Scheduler
from hub.informer import Delta, Informers
from hub.objects import RESOURCES, Resource
from hub.registry import Registry

log = logging.getLogger(__name__)


def admit(res: Resource, obj: Object) -> None:
    """Completes what a controller makes as the API completes what a client sends."""
    known = schema.resource(res.group, res.version, res.resource)
    if known is not None:
        defaults.apply(known, obj)


class Controllers:
    """`informers` must hold every kind of `hub.objects.RESOURCES`; whoever owns them runs them."""

    def __init__(
        self,
        registry: Registry,
        informers: Informers,
        *,
        clock: Clock | None = None,
        admit: Callable[[Resource, Object], None] = admit,
        component: str = "cloudhub",
    ) -> None:
        self.events = Events(component)
        self.handler_bugs = 0
        self._informers = informers
        context = Context(registry, informers, self.events, admit, clock or WallClock())
        self.scheduler = Scheduler(context)
        self._garbage = Garbage(context)
        self._collector = PodCollector(context)
        self._parts: tuple[Part, ...] = (
            self.scheduler,
            Deployments(context),
            ReplicaSets(context),
            DaemonSets(context),
            self._garbage,
            Namespaces(context),
            NodeLifecycle(context),
            Evictions(context),
            self._collector,
            EventTtl(context),
        )
        own = self.events.start(context)
        self.drivers: tuple[Controller[Any], ...] = (own, *(d for p in self._parts for d in p.drivers))

    async def run(self) -> None:
        """Waits for the informers' first lists, then controls until cancelled."""
        await self._informers.synced()
        unsubscribe: list[Callable[[], None]] = []
        try:
            # No await between seeding and subscribing: no change falls between.
            for res in RESOURCES:
                unsubscribe.append(self._listen(res))
            self._garbage.seed()
            self._collector.seed()
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

    def _listen(self, res: Resource) -> Callable[[], None]:
        informer = self._informers.of(res)
        parts = [p for p in self._parts if res in p.kinds]
        for entry in informer.cache:
            self._tell(parts, res, Delta("ADDED", entry, None, entry.revision))

        def handler(deltas: Sequence[Delta[Any]], revision: int) -> None:
            for delta in deltas:
                self._tell(parts, res, delta)

        return informer.subscribe(handler)

    def _tell(self, parts: list[Part], res: Resource, delta: Delta[Any]) -> None:
        for part in parts:
            try:
                part.on_delta(res, delta)
            except Exception:
                # One strange object must not stop the informer, and with it the hub.
                self.handler_bugs += 1
                log.exception("bug: %s cannot take %s %s", type(part).__name__, res.resource, delta.entry.key)
