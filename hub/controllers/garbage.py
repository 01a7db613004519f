"""Owner references: what depends on an owner goes with it, or is let go, as the deletion asked.

Under I9 nothing is deleted on the word of a cache: whether an owner is gone is asked of the store, by UID, after the
dependent itself was read from it; and nothing is asked before all informers hold their first list. An owner of a kind
that the hub does not serve counts as present. A namespaced owner is looked for in the dependent's namespace.

- Background: the owner is gone; dependents without any owner left are deleted.
- Foreground: the owner waits (finalizer foregroundDeletion) until no dependent that blocks it is left.
- Orphan: the references to the owner (finalizer orphan) are removed, then the finalizer.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hub import errors
from hub.cache import Entry
from hub.controllers.controller import Context, Controller, Object, Writer
from hub.controllers.meta import release
from hub.deletion import FOREGROUND, ORPHAN, DeleteOptions
from hub.informer import Delta
from hub.objects import RESOURCES, OwnerReference, Resource
from hub.registry import Stored

log = logging.getLogger(__name__)

WORKERS = 4
Key = tuple[Resource, str, str]
"""(kind, namespace or "", name)"""


@dataclass(frozen=True, slots=True)
class Owners:
    """The references of a dependent, sorted by what became of the owners. [pure]"""

    present: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


def verdict(owners: Owners, finalizers: Sequence[str]) -> str:
    """What to do with a dependent: "keep", "detach" (from the owners that are gone or going), or the propagation policy
    with which to delete it. [pure]"""
    if owners.present:
        return "detach" if owners.gone or owners.waiting else "keep"
    if not owners.gone and not owners.waiting:
        return "keep"
    if owners.waiting:
        return "Foreground"
    if ORPHAN in finalizers:
        return "Orphan"
    return "Foreground" if FOREGROUND in finalizers else "Background"


class Garbage:
    """See the module. Keys are (kind, namespace, name) of anything."""

    kinds = RESOURCES

    def __init__(self, context: Context) -> None:
        self._context = context
        self._by_kind = {(r.api_version, r.kind): r for r in RESOURCES}
        self._strange: set[tuple[str, str]] = set()
        self._driver: Controller[Key] = Controller(
            "garbage", context, self._sync, kinds=RESOURCES, workers=WORKERS
        )

    @property
    def drivers(self) -> Sequence[Controller[Any]]:
        return (self._driver,)

    def on_delta(self, res: Resource, delta: Delta[Any]) -> None:
        meta = delta.entry.meta
        if delta.type == "DELETED":
            self._add_dependents(meta.uid)
            for ref in meta.ownerReferences or ():
                self._add_owner(meta.namespace, ref)
            return
        finalizers = meta.finalizers or ()
        if meta.deletionTimestamp and (FOREGROUND in finalizers or ORPHAN in finalizers):
            self._driver.queue.add((res, *delta.entry.key))
            self._add_dependents(meta.uid)
        if meta.ownerReferences and (
            delta.old is None or delta.old.meta.ownerReferences != meta.ownerReferences
        ):
            if any(not self._is_cached(meta.namespace, ref) for ref in meta.ownerReferences):
                self._driver.queue.add((res, *delta.entry.key))
            if delta.old is not None:
                for ref in delta.old.meta.ownerReferences or ():
                    self._add_owner(meta.namespace, ref)

    def seed(self) -> None:
        """Once all informers are synced: looks at everything whose owner the caches do not show."""
        for res in RESOURCES:
            for entry in self._context.informers.of(res).cache:
                refs = entry.meta.ownerReferences or ()
                if any(not self._is_cached(entry.meta.namespace, ref) for ref in refs):
                    self._driver.queue.add((res, *entry.key))

    def _kinds_named(self, kind: str) -> list[Resource]:
        return [r for r in RESOURCES if r.kind == kind]

    def _cached(self, namespace: str, ref: OwnerReference) -> tuple[Resource, Entry[Any]] | None:
        for res in self._kinds_named(ref.kind):
            entry = self._context.informers.of(res).cache.get(namespace if res.namespaced else "", ref.name)
            if entry is not None and entry.meta.uid == ref.uid:
                return res, entry
        return None

    def _is_cached(self, namespace: str, ref: OwnerReference) -> bool:
        found = self._cached(namespace, ref)
        return found is not None and found[1].meta.deletionTimestamp is None

    def _add_owner(self, namespace: str, ref: OwnerReference) -> None:
        """A dependent went: an owner that waits for it may go on."""
        found = self._cached(namespace, ref)
        if found is not None and found[1].meta.deletionTimestamp is not None:
            self._driver.queue.add((found[0], *found[1].key))

    def _dependents(self, uid: str) -> list[tuple[Resource, Entry[Any]]]:
        informers = self._context.informers
        return [(res, e) for res in RESOURCES for e in informers.of(res).cache.find("owner", uid)]

    def _add_dependents(self, uid: str) -> None:
        for res, entry in self._dependents(uid):
            self._driver.queue.add((res, *entry.key))

    # -- one object -------------------------------------------------------------------------------------------

    async def _sync(self, key: Key, writer: Writer) -> float | None:
        res, namespace, name = key
        stored = await self._context.registry.find(res, namespace, name)
        if stored is None:
            return None
        obj = stored.obj()
        finalizers = obj["metadata"].get("finalizers") or []
        if obj["metadata"].get("deletionTimestamp"):
            if ORPHAN in finalizers:
                await self._let_go(res, stored, obj, writer)
                return None
            if FOREGROUND in finalizers:
                await self._wait_for_dependents(res, stored, obj, writer)
                return None
        refs = obj["metadata"].get("ownerReferences") or []
        if refs:
            await self._weigh(key, obj, await self._owners(res, obj, refs), finalizers, writer)
        return None

    async def _weigh(
        self, key: Key, obj: Object, owners: Owners, finalizers: Sequence[str], writer: Writer
    ) -> None:
        res, namespace, name = key
        uid = obj["metadata"]["uid"]
        what = verdict(owners, finalizers)
        if what == "keep" or (what != "detach" and obj["metadata"].get("deletionTimestamp")):
            return
        if what == "detach":
            for owner in (*owners.gone, *owners.waiting):
                await writer.mutate(res, (namespace, name), _releaser(owner), uid)
            return
        if what == "Foreground" and not self._dependents(uid):
            what = "Background"
        log.info("garbage: %s %s/%s has no owner left, deleted", res.resource, namespace, name)
        # What is still read as owned is deleted in this very state: whoever adopts it meanwhile keeps it.
        options = DeleteOptions(propagation=what, resource_version=obj["metadata"]["resourceVersion"])
        await writer.delete(res, (namespace, name), uid, options)

    async def _owners(self, res: Resource, obj: Object, refs: Sequence[Object]) -> Owners:
        present: list[str] = []
        waiting: list[str] = []
        gone: list[str] = []
        for ref in refs:
            owner = await self._owner(res, obj, ref)
            if owner is None:
                gone.append(ref["uid"])
            elif ref.get("blockOwnerDeletion") and _is_waiting(owner):
                waiting.append(ref["uid"])
            else:
                present.append(ref["uid"])
        return Owners(tuple(present), tuple(waiting), tuple(gone))

    async def _owner(self, res: Resource, obj: Object, ref: Object) -> Object | None:
        """The live owner; None when the store has none of that name and UID; {} where that cannot be told."""
        kind = (ref.get("apiVersion", ""), ref.get("kind", ""))
        owner_res = self._by_kind.get(kind)
        if owner_res is None or (owner_res.namespaced and not res.namespaced):
            if kind not in self._strange and len(self._strange) < 1000:
                self._strange.add(kind)
                log.warning(
                    "garbage: %s %s has an owner of kind %s %s, which cannot be looked up; it is left alone",
                    res.resource,
                    obj["metadata"]["name"],
                    *kind,
                )
            return {}
        namespace = obj["metadata"].get("namespace", "") if owner_res.namespaced else ""
        stored = await self._context.registry.find(owner_res, namespace, ref["name"])
        if stored is None:
            return None
        owner = stored.obj()
        return owner if owner["metadata"]["uid"] == ref["uid"] else None

    async def _let_go(self, res: Resource, stored: Stored, obj: Object, writer: Writer) -> None:
        uid = obj["metadata"]["uid"]
        await self._catch_up()
        for kind, entry in self._dependents(uid):
            try:
                await writer.mutate(kind, entry.key, _releaser(uid), entry.meta.uid)
            except errors.NotFound:
                continue
        await writer.finalize(res, _key(obj), uid, ORPHAN)

    async def _wait_for_dependents(self, res: Resource, stored: Stored, obj: Object, writer: Writer) -> None:
        uid = obj["metadata"]["uid"]
        await self._catch_up()
        blocked = False
        for kind, entry in self._dependents(uid):
            self._driver.queue.add((kind, *entry.key))
            blocked = blocked or any(
                ref.uid == uid and ref.blockOwnerDeletion for ref in entry.meta.ownerReferences or ()
            )
        if not blocked:
            await writer.finalize(res, _key(obj), uid, FOREGROUND)

    async def _catch_up(self) -> None:
        """The caches show all that the store holds now: whoever depends on the owner is found in them."""
        revision = await self._context.registry.store.revision()
        for res in RESOURCES:
            await self._context.informers.of(res).at_least(revision)


def _key(obj: Object) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _releaser(uid: str) -> Any:
    return lambda obj: release(obj, uid)


def _is_waiting(owner: Object) -> bool:
    meta = owner.get("metadata") or {}
    return bool(meta.get("deletionTimestamp")) and FOREGROUND in (meta.get("finalizers") or ())
