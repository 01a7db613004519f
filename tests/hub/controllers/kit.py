"""A hub's middle without its ends: a real store, registry, informers and controllers, a fake clock, a fake kubelet."""

import asyncio
import heapq
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from hub import deletion, errors
from hub.controllers.controller import Controller
from hub.controllers.events import Events
from hub.controllers.meta import rfc3339
from hub.controllers.run import Controllers, admit
from hub.controllers.scheduler import Scheduler
from hub.deletion import FORCE, DeleteOptions
from hub.informer import Delta, Informers
from hub.objects import (
    DAEMONSETS,
    DEPLOYMENTS,
    EVENTS,
    NAMESPACES,
    NODES,
    PODS,
    REPLICASETS,
    RESOURCES,
    Keys,
    Resource,
)
from hub.registry import Registry, Stored
from hub.roles import Roles
from hub.store.memory import MemoryStore
from shards.kv import WatchBatch
from shards.ownership import CONTROLLERS, ROLES, SCHEDULER, Unit
from tests.hub.fake_ownership import Cell

Object = dict[str, Any]
DEADLINE_S = 20.0


class FakeTimer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """Starts on a whole second in 2026; moves only by `advance`."""

    def __init__(self) -> None:
        self._now = 1_767_225_600.0
        self._timers: list[tuple[float, int, FakeTimer, Callable[[], None]]] = []
        self._count = 0

    def now(self) -> float:
        return self._now

    def call_later(self, delay_s: float, call: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer()
        self._count += 1
        heapq.heappush(self._timers, (self._now + delay_s, self._count, timer, call))
        return timer

    def advance(self, seconds: float) -> None:
        until = self._now + seconds
        while self._timers and self._timers[0][0] <= until:
            due, _, timer, call = heapq.heappop(self._timers)
            self._now = max(self._now, due)
            if not timer.cancelled:
                call()
        self._now = until


class Kubelet:
    """All nodes' agents at once: bound pods become ready, those being deleted go. `ready(pod)` may say no."""

    def __init__(self, hub: "Hub") -> None:
        self._hub = hub
        self._queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.busy = 0
        self.cut_off: set[str] = set()
        self.ready: Callable[[Object], bool] = lambda pod: True
        hub.informers.of(PODS).subscribe(self._on_deltas)

    def _on_deltas(self, deltas: Any, revision: int) -> None:
        for delta in deltas:
            self._consider(delta)

    def _consider(self, delta: Delta[Any]) -> None:
        if delta.type != "DELETED" and delta.entry.view.spec.nodeName:
            self.busy += 1
            self._queue.put_nowait(delta.entry.key)

    def poke(self) -> None:
        """Looks at every pod again, after `ready` or `cut_off` changed."""
        for entry in self._hub.informers.of(PODS).cache:
            if entry.view.spec.nodeName:
                self.busy += 1
                self._queue.put_nowait(entry.key)

    async def run(self) -> None:
        while True:
            key = await self._queue.get()
            try:
                await self._look(key)
            finally:
                self.busy -= 1
            await asyncio.sleep(0)

    async def _look(self, key: tuple[str, str]) -> None:
        stored = await self._hub.registry.find(PODS, *key)
        if stored is None:
            return
        pod = stored.obj()
        if pod["spec"]["nodeName"] in self.cut_off or pod["status"].get("phase") in ("Succeeded", "Failed"):
            return
        try:
            if pod["metadata"].get("deletionTimestamp"):
                await deletion.delete(self._hub.registry, PODS, stored, FORCE)
                return
            await self._hub.registry.mutate(PODS, *key, self._report, uid=pod["metadata"]["uid"])
        except errors.NotFound:
            return

    def _report(self, pod: Object) -> Object | None:
        wanted = "True" if self.ready(pod) else "False"
        held = [c for c in pod["status"].get("conditions") or () if c["type"] == "Ready"]
        if held and held[0]["status"] == wanted:
            return None
        now = rfc3339(self._hub.clock.now())
        others = [c for c in pod["status"].get("conditions") or () if c["type"] != "Ready"]
        pod["status"]["conditions"] = [
            *others,
            {"type": "Ready", "status": wanted, "lastTransitionTime": now},
        ]
        pod["status"].update(phase="Running", startTime=pod["status"].get("startTime", now))
        return pod


class LaggingStore(MemoryStore):
    """Its watches of pods are `lag` turns of the event loop late, batch by batch."""

    def __init__(self, lag: int) -> None:
        super().__init__()
        self.lag = lag

    async def watch(
        self, ranges: Sequence[tuple[str, str]], after: int, *, patient: bool = False
    ) -> AsyncIterator[WatchBatch]:
        late = self.lag if "/pods/" in ranges[0][0] else 0
        async for batch in super().watch(ranges, after):
            for _ in range(late):
                await asyncio.sleep(0)
            yield batch


class Sets:
    """The sets of controllers of both roles, as one."""

    def __init__(self, roles: Roles) -> None:
        self._roles = roles

    def of(self, role: str) -> Controllers:
        found = self._roles.controllers(role)
        assert found is not None, f"{role} does not run"
        return found

    @property
    def all(self) -> list[Controllers]:
        return [c for role in ROLES if (c := self._roles.controllers(role)) is not None]

    @property
    def events(self) -> Events:
        return self.of(CONTROLLERS).events

    @property
    def drivers(self) -> list[Controller[Any]]:
        return [d for c in self.all for d in c.drivers]

    @property
    def scheduler(self) -> Scheduler:
        return next(p for p in self.of(SCHEDULER).parts if isinstance(p, Scheduler))

    @property
    def handler_bugs(self) -> int:
        return sum(c.handler_bugs for c in self.all)

    @property
    def idle(self) -> bool:
        return all(c.idle for c in self.all)

    def figures(self) -> dict[str, dict[str, int]]:
        return self._roles.figures()

    async def at_least(self, revision: int) -> None:
        for controllers in self.all:
            await controllers.informers.at_least(revision)


class Told:
    """The member's listener of a hub without a gateway."""

    def __init__(self, roles: Roles) -> None:
        self.gained, self.drain, self.lost, self.resumed = (
            roles.gained,
            roles.drain,
            roles.lost,
            roles.resumed,
        )

    def routes_changed(self, units: list[Unit]) -> None:
        pass


class Hub:
    """One replica; `beside`: another one of the same store."""

    def __init__(self, lag: int = 0, beside: "Hub | None" = None) -> None:
        self.clock = beside.clock if beside else FakeClock()
        self.store = beside.store if beside else LaggingStore(lag)
        self.cell = beside.cell if beside else Cell(self.store)
        self.ownership = self.cell.member(f"m{len(self.cell.all)}")
        keys = Keys()
        self.registry = Registry(self.store, keys)
        self.informers = Informers(self.store, keys, RESOURCES)
        self.kubelet = Kubelet(self)
        self.roles = Roles(self.registry, self.ownership, clock=self.clock)
        self.ownership.listener = Told(self.roles)
        self.controllers = Sets(self.roles)

    # -- objects ----------------------------------------------------------------------------------------------

    async def create(self, res: Resource, obj: Object) -> Object:
        admit(res, obj)
        obj["metadata"].setdefault("creationTimestamp", rfc3339(self.clock.now()))
        if res not in (PODS, NODES):
            obj["metadata"].setdefault("generation", 1)
        return (await self.registry.create(res, obj)).obj()

    async def namespace(self, name: str = "shop") -> Object:
        meta = {"name": name}
        return await self.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": meta})

    async def node(self, name: str, **changes: Any) -> Object:
        return await self.create(NODES, node(name, **changes))

    async def get(self, res: Resource, name: str, namespace: str = "shop") -> Object:
        return (await self.registry.get(res, namespace if res.namespaced else "", name)).obj()

    async def all(self, res: Resource, namespace: str = "shop") -> list[Object]:
        return [s.obj() for s in (await self.registry.page(res, namespace, limit=10_000)).items]

    async def edit(
        self, res: Resource, name: str, change: Callable[[Object], Any], *, spec: bool = True
    ) -> Object:
        def apply(obj: Object) -> Object:
            change(obj)
            if spec:
                obj["metadata"]["generation"] = obj["metadata"].get("generation", 0) + 1
            return obj

        namespace = "shop" if res.namespaced else ""
        return (await self.registry.mutate(res, namespace, name, apply)).obj()

    async def delete(self, res: Resource, name: str, **options: Any) -> Stored | None:
        stored = await self.registry.get(res, "shop" if res.namespaced else "", name)
        return await deletion.delete(
            self.registry, res, stored, DeleteOptions(**options), now=self.clock.now()
        )

    async def events(self, reason: str) -> list[str]:
        return [e["message"] for e in await self.all(EVENTS) if e["reason"] == reason]

    # -- time -------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Returns when nobody has anything to do any more before the clock moves."""
        deadline = time.monotonic() + DEADLINE_S
        calm = 0
        while calm < 3:
            if time.monotonic() > deadline:
                raise AssertionError(f"not settled in {DEADLINE_S} s: {self.controllers.figures()}")
            revision = await self.store.revision()
            for res in RESOURCES:
                await asyncio.wait_for(self.informers.of(res).at_least(revision), DEADLINE_S)
            await asyncio.wait_for(self.controllers.at_least(revision), DEADLINE_S)
            await asyncio.sleep(0)
            still = (
                self.controllers.idle and not self.kubelet.busy and revision == await self.store.revision()
            )
            calm = calm + 1 if still else 0

    async def pass_time(self, seconds: float, step: float = 1.0) -> None:
        while seconds > 0:
            self.clock.advance(min(step, seconds))
            seconds -= step
            await self.settle()

    def check_no_bugs(self) -> None:
        figures = self.controllers.figures()
        assert {name: f["bugs"] for name, f in figures.items() if f["bugs"]} == {}
        assert self.controllers.handler_bugs == 0


@asynccontextmanager
async def running(given: Hub | None = None, *, owns: bool = True) -> AsyncIterator[Hub]:
    """A hub that runs and owns the roles, with the namespace shop; over the store of `given` where there is one."""
    hub = given or Hub()
    async with asyncio.TaskGroup() as tasks:
        running_tasks = [
            tasks.create_task(hub.informers.run()),
            tasks.create_task(hub.kubelet.run()),
            tasks.create_task(hub.roles.run()),
        ]
        try:
            if await hub.registry.find(NAMESPACES, "", "shop") is None:
                await hub.namespace()
            await asyncio.wait_for(hub.informers.synced(), DEADLINE_S)
            if owns:
                await asyncio.wait_for(hub.ownership.take(ROLES), DEADLINE_S)
            await hub.settle()
            yield hub
            hub.check_no_bugs()
        finally:
            for task in running_tasks:
                task.cancel()


def node(name: str, *, labels: Object | None = None, ready: str = "True", **allocatable: str) -> Object:
    amounts = {"cpu": "4", "memory": "8Gi", "pods": "110", **allocatable}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "spec": {},
        "status": {
            "allocatable": amounts,
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        },
    }


def pod_spec(image: str = "till:1", **fields: Any) -> Object:
    requests = fields.pop("requests", None)
    container: Object = {"name": "main", "image": image}
    if requests:
        container["resources"] = {"requests": requests}
    return {"containers": [container], **fields}


def pod(name: str, **fields: Any) -> Object:
    labels = fields.pop("labels", {"app": name})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": labels},
        "spec": pod_spec(**fields),
    }


def _workload(kind: str, name: str, spec: Object, template: Object) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": template},
            **spec,
        },
    }


def deployment(name: str = "till", *, image: str = "till:1", **spec: Any) -> Object:
    return _workload("Deployment", name, spec, pod_spec(image))


def replica_set(name: str = "till", *, image: str = "till:1", **spec: Any) -> Object:
    return _workload("ReplicaSet", name, spec, pod_spec(image))


def daemon_set(name: str = "till", *, image: str = "till:1", **spec: Any) -> Object:
    fields = spec.pop("fields", {})
    return _workload("DaemonSet", name, spec, pod_spec(image, **fields))


__all__ = [
    "DAEMONSETS",
    "DEPLOYMENTS",
    "NODES",
    "PODS",
    "REPLICASETS",
    "FakeClock",
    "Hub",
    "daemon_set",
    "deployment",
    "node",
    "pod",
    "replica_set",
    "running",
]
