"""Node lifecycle under I8: taints follow conditions, pods of deleted nodes are collected.

The gateway writes a Node's Ready condition when its link comes or goes. This controller keeps the NoSchedule taints in
step, so that nothing new is placed on a node that cannot be reached. It never sets a NoExecute taint: a dead link is no
reason to evict what goes on running at the edge.

Pods bound to a node that does not exist: a Node object leaves the store only by an API call, so its absence, asked of
the store, means that somebody deleted it; unless it never was there, as when a pod was created with a nodeName before
the node has joined. So a pod is removed when its node is absent, was absent for ABSENT_S under the eyes of this process,
and the pod shows that the node once was there: it was bound by the scheduler, or the node has reported on it (I9).
One that somebody has deleted needs no such sign: it goes DELETING_S after its grace, or nobody would ever take it away.
"""

import math
from collections.abc import Sequence
from typing import Any

from hub import errors
from hub.cache import Entry
from hub.controllers.controller import Context, Controller, Object, ObjectKey, Writer
from hub.controllers.meta import FINISHED, seconds
from hub.controllers.taints import is_in_step, taint_keys, with_taints
from hub.deletion import FORCE
from hub.informer import Delta
from hub.objects import NODES, PODS, Condition, NodeView, PodView, Resource

ABSENT_S = 300.0
DELETING_S = 40.0
"""As long as Kubernetes' own collector gives a Node that is absent."""
FINISHED_KEPT = 1000
COLLECT_BATCH = 100


class NodeLifecycle:
    """Taints. Keys are node names."""

    kinds = (NODES,)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._driver: Controller[str] = Controller("node-lifecycle", context, self._sync, kinds=(NODES,))

    @property
    def drivers(self) -> Sequence[Controller[Any]]:
        return (self._driver,)

    def on_delta(self, res: Resource, delta: Delta[NodeView]) -> None:
        view = delta.entry.view
        wanted = taint_keys(view.status.conditions, view.spec.unschedulable)
        if delta.type != "DELETED" and not is_in_step(view.spec.taints, wanted):
            self._driver.queue.add(view.metadata.name)

    async def _sync(self, name: str, writer: Writer) -> float | None:
        entry: Entry[NodeView] | None = self._context.informers.of(NODES).cache.get("", name)
        if entry is None:
            return None
        now = self._context.clock.now()

        def change(node: Object) -> Object | None:
            spec = node.setdefault("spec", {})
            conditions = [
                Condition(c.get("type", ""), c.get("status", ""))
                for c in (node.get("status") or {}).get("conditions") or ()
            ]
            wanted = taint_keys(conditions, bool(spec.get("unschedulable")))
            held = spec.get("taints") or []
            new = with_taints(held, wanted, now)
            if new == held:
                return None
            if new:
                spec["taints"] = new
            else:
                del spec["taints"]
            return node

        try:
            await writer.mutate(NODES, ("", name), change, entry.meta.uid)
        except errors.NotFound:
            return None
        return None


def _due(pod: Entry[PodView], absent_since: float) -> float:
    """When a pod of an absent node is removed, unix seconds; infinity where it is not known that its node ever was, and
    where only finalizers still hold it."""
    deleted = seconds(pod.meta.deletionTimestamp)
    if deleted is not None and pod.meta.deletionGracePeriodSeconds == 0:
        return math.inf
    if deleted is not None:
        return max(deleted, absent_since) + DELETING_S
    return absent_since + ABSENT_S if pod.note.was_there else math.inf


class PodCollector:
    """Pods of deleted nodes, and finished pods above FINISHED_KEPT, the oldest first. Keys are node names, and "" for the
    finished pods."""

    kinds = (NODES, PODS)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._absent: dict[str, float] = {}
        self._finished: dict[ObjectKey, float] = {}
        self._driver: Controller[str] = Controller("pod-collector", context, self._sync, kinds=(NODES, PODS))

    @property
    def drivers(self) -> Sequence[Controller[Any]]:
        return (self._driver,)

    def on_delta(self, res: Resource, delta: Delta[Any]) -> None:
        if res == NODES:
            if delta.type == "DELETED":
                self._watch(delta.entry.meta.name)
            else:
                self._absent.pop(delta.entry.meta.name, None)
            return
        pod: Entry[PodView] = delta.entry
        if delta.type == "DELETED":
            self._finished.pop(pod.key, None)
            if pod.view.spec.nodeName in self._absent:
                self._driver.queue.add(pod.view.spec.nodeName)  # forgets it with its last pod
            return
        if (pod.view.spec.nodeName and delta.old is None) or _moved(delta):
            self._watch(pod.view.spec.nodeName)
        if pod.meta.deletionTimestamp and pod.view.spec.nodeName in self._absent:
            self._driver.queue.add(pod.view.spec.nodeName)
        if pod.view.status.phase in FINISHED:
            self._finished[pod.key] = seconds(pod.meta.creationTimestamp) or 0.0
            if len(self._finished) > FINISHED_KEPT:
                self._driver.queue.add("")

    def seed(self) -> None:
        """Once all informers are synced: the nodes that pods name and that are not there."""
        for name in self._context.informers.of(PODS).cache.values("node"):
            self._watch(name)

    def _watch(self, node: str) -> None:
        if self._context.informers.of(NODES).cache.get("", node) is not None or node in self._absent:
            return
        self._absent[node] = self._context.clock.now()
        self._driver.queue.add_after(node, ABSENT_S)

    async def _sync(self, node: str, writer: Writer) -> float | None:
        if not node:
            return await self._collect_finished(writer)
        since = self._absent.get(node)
        pods = self._context.informers.of(PODS).cache.find("node", node)
        if since is None or not pods:
            self._absent.pop(node, None)
            return None
        now = self._context.clock.now()
        dues = {pod.key: _due(pod, since) for pod in pods}
        gone = [pod for pod in pods if dues[pod.key] <= now]
        if gone and await self._context.registry.find(NODES, "", node) is not None:
            self._absent.pop(node, None)
            return None
        for pod in gone[:COLLECT_BATCH]:
            await writer.delete(PODS, pod.key, pod.meta.uid, FORCE)
        if len(gone) > COLLECT_BATCH:
            return 0.0
        return min((due - now for due in dues.values() if now < due < math.inf), default=None)

    async def _collect_finished(self, writer: Writer) -> float | None:
        surplus = len(self._finished) - FINISHED_KEPT
        oldest = sorted(self._finished, key=lambda k: (self._finished[k], k))[: max(0, surplus)]
        cache = self._context.informers.of(PODS).cache
        for key in oldest[:COLLECT_BATCH]:
            pod = cache.get(*key)
            if pod is not None and pod.view.status.phase in FINISHED:
                await writer.delete(PODS, key, pod.meta.uid, FORCE)
        return 0.0 if surplus > COLLECT_BATCH else None


def _moved(delta: Delta[PodView]) -> bool:
    return delta.old is not None and delta.old.view.spec.nodeName != delta.entry.view.spec.nodeName
