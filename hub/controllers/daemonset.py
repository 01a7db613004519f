"""The DaemonSet controller: a pod on every node that the template fits."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from hub import errors
from hub.api.selectors import LabelSelector, from_object
from hub.cache import Entry
from hub.controllers import daemons
from hub.controllers.adoption import Orphans, claim
from hub.controllers.controller import Context, Controller, Object, ObjectKey, Writer
from hub.controllers.daemons import GENERATION_ANNOTATION, GENERATION_LABEL, HASH_LABEL, Pod, Template, World
from hub.controllers.events import namespace_takes_objects
from hub.controllers.meta import controller_of, pod_of, until_available
from hub.informer import Delta
from hub.objects import DAEMONSETS, NAMESPACES, NODES, PODS, NodeView, ObjectView, Resource

WORKERS = 2
FAILED_BACKOFF_S = 1.0
FAILED_BACKOFF_MAX_S = 900.0
FAILED_TRACKED_MAX = 10_000


class _Backoff:
    """How long a failed pod stays before it is replaced: doubles per (DaemonSet, node), starts over after a long calm."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def wait_s(self, key: tuple[str, str], now: float) -> float:
        """Seconds left; at 0 the caller replaces the pod, and the next wait is longer."""
        pause, since = self._held.get(key, (0.0, now))
        if now - since > 2 * FAILED_BACKOFF_MAX_S:
            pause, since = 0.0, now
        left = since + pause - now
        if left > 0:
            return left
        self._held[key] = (min(FAILED_BACKOFF_MAX_S, max(FAILED_BACKOFF_S, 2 * pause)), now)
        self._held.move_to_end(key)
        if len(self._held) > FAILED_TRACKED_MAX:
            self._held.popitem(last=False)
        return 0.0


class DaemonSets:
    """See the module. Keys are (namespace, name) of DaemonSets."""

    kinds = (DAEMONSETS, PODS, NODES)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._orphans = Orphans()
        self._selectors: dict[ObjectKey, LabelSelector] = {}
        self._templates: dict[ObjectKey, tuple[int, str, Template]] = {}
        self._failed = _Backoff()
        self._driver: Controller[ObjectKey] = Controller(
            "daemonset", context, self._sync, kinds=(DAEMONSETS, PODS, NODES, NAMESPACES), workers=WORKERS
        )

    @property
    def drivers(self) -> Sequence[Controller[Any]]:
        return (self._driver,)

    def on_delta(self, res: Resource, delta: Delta[Any]) -> None:
        key = delta.entry.key
        if res == NODES:
            if delta.type != "MODIFIED" or _placing(delta.entry) != _placing(delta.old):
                for known in self._selectors:
                    self._driver.queue.add(known)
        elif res == PODS:
            self._orphans.on_delta(delta)
            self._on_pod(delta)
        else:
            if delta.type == "DELETED":
                self._selectors.pop(key, None)
                self._templates.pop(key, None)
            else:
                self._selectors[key] = from_object(delta.entry.obj()["spec"].get("selector"))
            self._driver.queue.add(key)

    def _on_pod(self, delta: Delta[Any]) -> None:
        namespace = delta.entry.key[0]
        for entry in (delta.entry, delta.old):
            owner = controller_of(entry.meta) if entry is not None else None
            if owner is not None and owner.kind == DAEMONSETS.kind:
                self._driver.queue.add((namespace, owner.name))
        if controller_of(delta.entry.meta) is None and delta.type != "DELETED":
            for key, selector in self._selectors.items():
                if key[0] == namespace and selector.matches(delta.entry.meta.labels):
                    self._driver.queue.add(key)

    # -- one DaemonSet ----------------------------------------------------------------------------------------

    async def _sync(self, key: ObjectKey, writer: Writer) -> float | None:
        entry: Entry[ObjectView] | None = self._context.informers.of(DAEMONSETS).cache.get(*key)
        if entry is None:
            return None
        ds = entry.obj()
        selector = from_object(ds["spec"].get("selector"))
        if selector.everything:
            text = "This daemon set is selecting all pods. A non-empty selector is required."
            self._context.recorder.event(DAEMONSETS, entry.meta, "Warning", "SelectingAll", text)
            return None
        pods = await claim(self._context, writer, DAEMONSETS, ds, PODS, selector, self._orphans)
        if PODS in writer.reached:
            return None
        world = self._world(entry, ds, pods)
        again: float | None = None
        if ds["metadata"].get("deletionTimestamp") is None:
            plan = daemons.manage(world)
            if not plan:
                plan = daemons.roll(world)
            again = await self._carry_out(entry, ds, world, plan, writer)
        if PODS not in writer.reached:
            await self._write_status(entry, ds, world, writer)
        waits = (again, until_available(pods, world.min_ready_s, world.now))
        return min((w for w in waits if w is not None), default=None)

    def _world(self, entry: Entry[ObjectView], ds: Object, pods: Sequence[Pod]) -> World:
        held = self._templates.get(entry.key)
        if held is None or held[:2] != (entry.meta.generation, entry.meta.uid):
            held = (entry.meta.generation, entry.meta.uid, daemons.template_of(ds))
            self._templates[entry.key] = held
        template = held[2]
        fates = {
            node.meta.name: daemons.fate(template, node.view)
            for node in self._context.informers.of(NODES).cache
        }
        return daemons.world_of(ds, fates, pods, template, self._context.clock.now())

    async def _carry_out(
        self, entry: Entry[ObjectView], ds: Object, world: World, plan: daemons.Plan, writer: Writer
    ) -> float | None:
        recorder = self._context.recorder
        again: float | None = None
        for pod in plan.failed:
            left = self._failed.wait_s((entry.meta.uid, daemons.target(pod)), world.now)
            if left > 0:
                again = left if again is None else min(again, left)
                continue
            text = f"Found failed daemon pod {pod.key[0]}/{pod.key[1]} on node {daemons.target(pod)}, will try to kill it"
            recorder.event(DAEMONSETS, entry.meta, "Warning", "FailedDaemonPod", text)
            plan.delete.append(pod)
        for pod in plan.delete[: daemons.BURST]:
            if await writer.delete(PODS, pod.key, pod.meta.uid):
                text = f"Deleted pod: {pod.meta.name}"
                recorder.event(DAEMONSETS, entry.meta, "Normal", "SuccessfulDelete", text)
        if namespace_takes_objects(self._context.informers, entry.key[0]):
            for node in plan.create[: daemons.BURST]:
                await self._create(entry, ds, world, node, writer)
        return again

    async def _create(
        self, entry: Entry[ObjectView], ds: Object, world: World, node: str, writer: Writer
    ) -> None:
        digest = world.template.digest
        name = daemons.pod_name(ds, node, digest, world.pods.get(node, ()))
        pod = pod_of(ds["spec"]["template"], DAEMONSETS, ds, name)
        daemons.pod_spec_on(pod["spec"], node)
        labels = pod["metadata"].setdefault("labels", {})
        labels[HASH_LABEL] = digest
        generation = (entry.meta.annotations or {}).get(GENERATION_ANNOTATION)
        if generation:
            labels[GENERATION_LABEL] = generation
        recorder = self._context.recorder
        try:
            self._context.admit(PODS, pod)
            await writer.create(PODS, pod)
        except errors.ApiError as refused:
            text = f"Error creating: {refused.message}"
            recorder.event(DAEMONSETS, entry.meta, "Warning", "FailedCreate", text)
            raise
        recorder.event(DAEMONSETS, entry.meta, "Normal", "SuccessfulCreate", f"Created pod: {name}")

    async def _write_status(self, entry: Entry[ObjectView], ds: Object, world: World, writer: Writer) -> None:
        new = daemons.status(ds, world)
        if new == ds.get("status"):
            return

        def change(obj: Object) -> Object | None:
            obj["status"] = new
            return obj

        try:
            await writer.mutate(DAEMONSETS, entry.key, change, entry.meta.uid)
        except errors.NotFound:
            return


def _placing(node: Entry[NodeView] | None) -> tuple[Any, ...]:
    """What of a node decides whether a daemon runs there."""
    return () if node is None else (node.meta.labels, node.view.spec.taints)
