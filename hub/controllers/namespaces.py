"""Namespaces that are being deleted: emptied, then removed.

What is in them is listed from the store, never from a cache, so that the namespace goes last in truth. Pods get their
grace; as long as a node has not reported one gone (its link may be down) the namespace stays Terminating and says so
in its conditions.
"""

from collections.abc import Sequence
from typing import Any

from hub import errors
from hub.controllers.controller import Context, Controller, Object, Writer
from hub.controllers.meta import new_condition, with_condition
from hub.informer import Delta
from hub.objects import EVENTS, NAMESPACES, PODS, RESOURCES, Resource, split_object_key

KUBERNETES = "kubernetes"
PAGE = 500
CONTENT = tuple(sorted((r for r in RESOURCES if r.namespaced), key=lambda r: (r == PODS, r == EVENTS)))
"""Owners first, then pods, then the events that all of that makes."""


class Namespaces:
    """See the module. Keys are names."""

    kinds = RESOURCES

    def __init__(self, context: Context) -> None:
        self._context = context
        self._driver: Controller[str] = Controller(
            "namespace", context, self._sync, kinds=RESOURCES, workers=2
        )

    @property
    def drivers(self) -> Sequence[Controller[Any]]:
        return (self._driver,)

    def on_delta(self, res: Resource, delta: Delta[Any]) -> None:
        if res == NAMESPACES:
            if delta.type != "DELETED" and delta.entry.meta.deletionTimestamp is not None:
                self._driver.queue.add(delta.entry.meta.name)
        elif res.namespaced and self._is_going(delta.entry.key[0]):
            self._driver.queue.add(delta.entry.key[0])

    def _is_going(self, namespace: str) -> bool:
        entry = self._context.informers.of(NAMESPACES).cache.get("", namespace)
        return entry is not None and entry.meta.deletionTimestamp is not None

    async def _sync(self, name: str, writer: Writer) -> float | None:
        registry = self._context.registry
        stored = await registry.find(NAMESPACES, "", name)
        if stored is None:
            return None
        obj = stored.obj()
        if not obj["metadata"].get("deletionTimestamp"):
            return None
        left = {res: await self._empty(res, name, writer) for res in CONTENT}
        left = {res: some for res, some in left.items() if some}
        if left:
            await self._tell(name, obj["metadata"]["uid"], left, writer)
            return None
        held = (obj.get("spec") or {}).get("finalizers") or []
        if KUBERNETES in held:
            obj["spec"]["finalizers"] = [f for f in held if f != KUBERNETES]
            stored = await writer.replace(NAMESPACES, stored, obj)
        await writer.release(NAMESPACES, stored)
        return None

    async def _empty(self, res: Resource, namespace: str, writer: Writer) -> list[Object]:
        """Deletes what is there; returns what stays for now."""
        left: list[Object] = []
        revision: int | None = None
        at: str | None = None
        while True:
            page = await self._context.registry.page(
                res, namespace, revision=revision, limit=PAGE, start_key=at
            )
            for stored in page.items:
                obj = stored.obj()
                if not obj["metadata"].get("deletionTimestamp"):
                    key = split_object_key(stored.key)[1:]
                    await writer.delete(res, (key[0], key[1]), obj["metadata"]["uid"])
                    now = await self._context.registry.find(res, key[0], key[1])
                    if now is None:
                        continue
                    obj = now.obj()
                left.append({"metadata": obj["metadata"]})
            revision, at = page.revision, page.next_key
            if at is None:
                return left

    async def _tell(self, name: str, uid: str, left: dict[Resource, list[Object]], writer: Writer) -> None:
        now = self._context.clock.now()
        counts = ", ".join(
            f"{r.group_resource} has {len(some)} resource instances" for r, some in left.items()
        )
        finalizers = sorted(
            {f for some in left.values() for o in some for f in o["metadata"].get("finalizers") or ()}
        )
        made = [
            new_condition(
                "NamespaceContentRemaining",
                True,
                "SomeResourcesRemain",
                f"Some resources are remaining: {counts}",
                now,
            ),
            new_condition(
                "NamespaceFinalizersRemaining",
                bool(finalizers),
                "SomeFinalizersRemain" if finalizers else "ContentHasNoFinalizers",
                f"Some content in the namespace has finalizers remaining: {', '.join(finalizers)}"
                if finalizers
                else "All content-preserving finalizers finished",
                now,
            ),
        ]

        def change(obj: Object) -> Object | None:
            status = obj.setdefault("status", {})
            conditions = status.get("conditions")
            for condition in made:
                conditions = with_condition(conditions, condition)
            if conditions == status.get("conditions"):
                return None
            status["conditions"] = conditions
            return obj

        try:
            await writer.mutate(NAMESPACES, ("", name), change, uid)
        except errors.NotFound:
            return
