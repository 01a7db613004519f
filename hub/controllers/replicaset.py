"""The ReplicaSet controller: as many pods as wanted, no more and no fewer."""

import asyncio
from collections.abc import Sequence
from typing import Any

from hub import errors
from hub.api.selectors import LabelSelector, from_object
from hub.cache import Entry
from hub.controllers import replicas
from hub.controllers.adoption import Orphans, claim
from hub.controllers.controller import Context, Controller, Object, ObjectKey, Writer
from hub.controllers.events import namespace_takes_objects
from hub.controllers.meta import controller_of, is_active, pod_of, until_available
from hub.controllers.replicas import Failure
from hub.informer import Delta
from hub.objects import NAMESPACES, PODS, REPLICASETS, Meta, ObjectView, PodView, Resource

WORKERS = 4


class ReplicaSets:
    """See the module. Keys are (namespace, name) of ReplicaSets."""

    kinds = (REPLICASETS, PODS)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._orphans = Orphans()
        self._selectors: dict[ObjectKey, LabelSelector] = {}
        self._driver: Controller[ObjectKey] = Controller(
            "replicaset", context, self._sync, kinds=(REPLICASETS, PODS, NAMESPACES), workers=WORKERS
        )

    @property
    def drivers(self) -> Sequence[Controller[Any]]:
        return (self._driver,)

    def on_delta(self, res: Resource, delta: Delta[Any]) -> None:
        if res == PODS:
            self._orphans.on_delta(delta)
            self._on_pod(delta)
            return
        key = delta.entry.key
        if delta.type == "DELETED":
            self._selectors.pop(key, None)
        elif delta.old is not None and _same_but_status(delta.old.meta, delta.entry.meta):
            return  # our own writing of a status must not outrun the back-off of a key that fails
        else:
            self._selectors[key] = from_object(delta.entry.obj()["spec"].get("selector"))
        self._driver.queue.add(key)

    def _on_pod(self, delta: Delta[PodView]) -> None:
        owners = {
            ref.name
            for entry in (delta.entry, delta.old)
            if entry is not None and (ref := controller_of(entry.meta)) and ref.kind == REPLICASETS.kind
        }
        namespace = delta.entry.key[0]
        for name in owners:
            self._driver.queue.add((namespace, name))
        if controller_of(delta.entry.meta) is None and delta.type != "DELETED":
            for key, selector in self._selectors.items():
                if key[0] == namespace and selector.matches(delta.entry.meta.labels):
                    self._driver.queue.add(key)

    # -- one ReplicaSet ---------------------------------------------------------------------------------------

    async def _sync(self, key: ObjectKey, writer: Writer) -> float | None:
        entry: Entry[ObjectView] | None = self._context.informers.of(REPLICASETS).cache.get(*key)
        if entry is None:
            return None
        rs = entry.obj()
        selector = from_object(rs["spec"].get("selector"))
        owned: list[Entry[PodView]] = await claim(
            self._context, writer, REPLICASETS, rs, PODS, selector, self._orphans, is_active
        )
        active = [p for p in owned if is_active(p)]
        failure: Failure | None = None
        if rs["metadata"].get("deletionTimestamp") is None and PODS not in writer.reached:
            failure = await self._manage(entry, rs, owned, active, writer)
        if PODS in writer.reached and failure is None:
            return (
                None  # the pods' changes bring this key back, and the status is written of what is then seen
            )
        await self._write_status(entry, rs, owned, active, failure, writer)
        if failure is not None:
            raise errors.ServiceUnavailable(failure.message)
        now = self._context.clock.now()
        return until_available(active, rs["spec"].get("minReadySeconds") or 0, now)

    async def _manage(
        self,
        entry: Entry[ObjectView],
        rs: Object,
        owned: Sequence[Entry[PodView]],
        active: Sequence[Entry[PodView]],
        writer: Writer,
    ) -> Failure | None:
        todo = replicas.plan(rs["spec"].get("replicas", 1), active)
        if todo.create and namespace_takes_objects(self._context.informers, entry.key[0]):
            names = replicas.pod_names(rs, [p.meta.name for p in owned], todo.create)
            for size in replicas.batches(todo.create):
                some, names = names[:size], names[size:]
                failures = await _all([self._create(entry, rs, name, writer) for name in some])
                if failures:
                    return Failure("FailedCreate", str(failures[0]))
        if todo.delete:
            failures = await _all([self._delete(entry, pod, writer) for pod in todo.delete])
            if failures:
                return Failure("FailedDelete", str(failures[0]))
        return None

    async def _create(self, entry: Entry[ObjectView], rs: Object, name: str, writer: Writer) -> None:
        pod = pod_of(rs["spec"]["template"], REPLICASETS, rs, name)
        recorder = self._context.recorder
        try:
            self._context.admit(PODS, pod)
            await writer.create(PODS, pod)
        except errors.AlreadyExists:
            stored = await self._context.registry.find(PODS, entry.key[0], name)
            refs = stored.obj()["metadata"].get("ownerReferences") or [] if stored is not None else []
            if not any(ref["uid"] == entry.meta.uid for ref in refs):
                raise
        except errors.ApiError as refused:
            recorder.event(
                REPLICASETS, entry.meta, "Warning", "FailedCreate", f"Error creating: {refused.message}"
            )
            raise
        else:
            recorder.event(REPLICASETS, entry.meta, "Normal", "SuccessfulCreate", f"Created pod: {name}")

    async def _delete(self, entry: Entry[ObjectView], pod: Entry[PodView], writer: Writer) -> None:
        recorder = self._context.recorder
        try:
            await writer.delete(PODS, pod.key, pod.meta.uid)
        except errors.ApiError as refused:
            recorder.event(
                REPLICASETS, entry.meta, "Warning", "FailedDelete", f"Error deleting: {refused.message}"
            )
            raise
        recorder.event(REPLICASETS, entry.meta, "Normal", "SuccessfulDelete", f"Deleted pod: {pod.meta.name}")

    async def _write_status(
        self,
        entry: Entry[ObjectView],
        rs: Object,
        owned: Sequence[Entry[PodView]],
        active: Sequence[Entry[PodView]],
        failure: Failure | None,
        writer: Writer,
    ) -> None:
        terminating = sum(1 for p in owned if p.meta.deletionTimestamp is not None)
        new = replicas.status(rs, active, terminating, failure, self._context.clock.now())
        if new == rs.get("status"):
            return

        def change(obj: Object) -> Object | None:
            if obj.get("status") == new:
                return None
            obj["status"] = new
            return obj

        try:
            await writer.mutate(REPLICASETS, entry.key, change, entry.meta.uid)
        except errors.NotFound:
            return


def _same_but_status(old: Meta, new: Meta) -> bool:
    return old == new and new.generation > 0


async def _all(calls: Sequence[Any]) -> list[errors.ApiError]:
    """Does all at once; the API's errors come back, any other is raised once all are done."""
    failures: list[errors.ApiError] = []
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, errors.ApiError):
            failures.append(result)
        elif isinstance(result, BaseException):
            raise result
    return failures
