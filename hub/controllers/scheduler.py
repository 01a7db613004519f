"""The scheduler: binds pending pods to nodes, one decision at a time, many bindings in flight.

A decision reads the capacity table and counts the pod at once ("assumes" it), with no await in between; the binding
then goes to the store. A pod that fits nowhere gets the usual condition and event, and is looked at again when a node
or pod changes in a way that may help, not before.
Honours spec.schedulerName `default-scheduler` only. Does not preempt; priorities do not order the queue.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hub import errors
from hub.cache import Entry
from hub.controllers.capacity import Capacity
from hub.controllers.controller import Context, Controller, Object, ObjectKey, Writer
from hub.controllers.meta import FINISHED, condition, new_condition, with_condition
from hub.controllers.podnote import PodNote
from hub.controllers.scheduling import Demand, Unfit, decide
from hub.informer import Delta
from hub.objects import NODES, PODS, PodView, Resource

SCHEDULER_NAME = "default-scheduler"
WORKERS = 16
BACKOFF_S = 1.0
BACKOFF_MAX_S = 10.0
EAGER_ATTEMPTS = 2
"""Attempts of an unschedulable pod that follow a change at once; later ones keep a distance that doubles."""


@dataclass(slots=True)
class _Waiting:
    """A pod that fitted nowhere."""

    key: ObjectKey
    demand: Demand
    attempts: int
    at: float


class Scheduler:
    """See the module. Its informer of Pods keeps `podnote.keep_scheduled`. `capacity` is public for figures and tests."""

    kinds = (NODES, PODS)

    def __init__(self, context: Context) -> None:
        self.capacity = Capacity()
        self._context = context
        self._waiting: dict[str, _Waiting] = {}
        self._driver: Controller[ObjectKey] = Controller(
            "scheduler", context, self._sync, kinds=(PODS,), workers=WORKERS
        )

    @property
    def drivers(self) -> Sequence[Controller[Any]]:
        return (self._driver,)

    @property
    def waiting(self) -> int:
        """Pods that fit nowhere at present."""
        return len(self._waiting)

    # -- what the caches tell ---------------------------------------------------------------------------------

    def on_delta(self, res: Resource, delta: Delta[Any]) -> None:
        if res == PODS:
            self._on_pod(delta)
        elif delta.type == "DELETED":
            self.capacity.drop_node(delta.entry.meta.name)
        elif self.capacity.set_node(delta.entry.view):
            self._wake()

    def _on_pod(self, delta: Delta[PodView]) -> None:
        pod = delta.entry
        uid = pod.meta.uid
        if delta.type == "DELETED" or pod.view.status.phase in FINISHED:
            self._waiting.pop(uid, None)
            if self.capacity.drop_pod(uid):
                self._wake()
        elif pod.view.spec.nodeName:
            self._waiting.pop(uid, None)
            if self.capacity.node_of(uid) != pod.view.spec.nodeName:
                self.capacity.add_pod(uid, pod.view.spec.nodeName, pod.note.load)
        elif self._is_ours(pod):
            waiting = self._waiting.get(uid)
            if waiting is None or waiting.demand != pod.note.demand:
                self._driver.queue.add(pod.key)

    def _is_ours(self, pod: Entry[PodView]) -> bool:
        return (
            pod.view.spec.schedulerName == SCHEDULER_NAME
            and pod.meta.deletionTimestamp is None
            and self.capacity.node_of(pod.meta.uid) is None
        )

    def _wake(self) -> None:
        """Something became free, or new: the waiting pods may fit now."""
        now = self._context.clock.now()
        for waiting in self._waiting.values():
            late = waiting.attempts - EAGER_ATTEMPTS
            pause = min(BACKOFF_MAX_S, BACKOFF_S * (1 << min(late, 8))) if late >= 0 else 0.0
            self._driver.queue.add_after(waiting.key, waiting.at + pause - now)

    # -- one pod ----------------------------------------------------------------------------------------------

    async def _sync(self, key: ObjectKey, writer: Writer) -> float | None:
        pod = self._context.informers.of(PODS).cache.get(*key)
        if pod is None or pod.view.spec.nodeName or pod.view.status.phase in FINISHED:
            return None
        if not self._is_ours(pod):
            return None
        note: PodNote = pod.note
        demand = note.demand
        assert demand is not None, "a pod that is not bound was noted without what it wants"
        if note.gated:
            text = "Scheduling is blocked due to non-empty scheduling gates"
            await self._tell(pod, writer, "SchedulingGated", text)
            return None
        where = decide(demand, self.capacity)
        if isinstance(where, Unfit):
            await self._unfit(pod, demand, where, writer)
            return None
        self.capacity.add_pod(pod.meta.uid, where, demand.load)
        self._waiting.pop(pod.meta.uid, None)
        await self._bind(pod, where, writer)
        return None

    async def _bind(self, pod: Entry[PodView], node: str, writer: Writer) -> None:
        try:
            await writer.bind(pod.key, pod.meta.uid, node)
        except BaseException as failure:
            shown = self._context.informers.of(PODS).cache.get(*pod.key)
            if shown is None or shown.meta.uid != pod.meta.uid or not shown.view.spec.nodeName:
                self.capacity.drop_pod(pod.meta.uid)
            if isinstance(failure, errors.NotFound):
                return
            raise
        name = f"{pod.meta.namespace}/{pod.meta.name}"
        message = f"Successfully assigned {name} to {node}"
        self._context.recorder.event(PODS, pod.meta, "Normal", "Scheduled", message)

    async def _unfit(self, pod: Entry[PodView], demand: Demand, why: Unfit, writer: Writer) -> None:
        uid = pod.meta.uid
        held = self._waiting.get(uid)
        attempts = held.attempts + 1 if held is not None else 0
        self._waiting[uid] = _Waiting(pod.key, demand, attempts, self._context.clock.now())
        self._context.recorder.event(PODS, pod.meta, "Warning", "FailedScheduling", why.message)
        await self._tell(pod, writer, "Unschedulable", why.message)

    async def _tell(self, pod: Entry[PodView], writer: Writer, reason: str, message: str) -> None:
        now = self._context.clock.now()
        new = {
            **new_condition("PodScheduled", False, reason, message, now),
            "lastProbeTime": None,
        }

        def change(obj: Object) -> Object | None:
            status = obj.setdefault("status", {})
            held = condition(status.get("conditions"), "PodScheduled")
            if obj["spec"].get("nodeName") or (
                held and (held.get("reason"), held.get("message")) == (reason, message)
            ):
                return None
            status["conditions"] = with_condition(status.get("conditions"), new)
            return obj

        try:
            await writer.mutate(PODS, pod.key, change, pod.meta.uid)
        except errors.NotFound:
            return
