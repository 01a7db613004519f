"""Who owns what: finds the objects of an owner, adopts those without one, releases those that no longer match.

Job: `Orphans` keeps the few objects without a controller apart, so that looking for something to adopt does not scan a
namespace. `claim` does for one owner what Kubernetes' controller reference manager does.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from hub import errors
from hub.api.selectors import LabelSelector
from hub.cache import Entry, HasMeta
from hub.controllers.controller import Context, Object, ObjectKey, Writer
from hub.controllers.meta import adopt, controller_of, owner_reference, release
from hub.informer import Delta
from hub.objects import Resource

V = TypeVar("V", bound=HasMeta)


class Orphans:
    """Keys of the objects of one kind that have no controller, by namespace. Fed with the kind's deltas."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def on_delta(self, delta: Delta[Any]) -> None:
        namespace, name = delta.entry.key
        if delta.type != "DELETED" and controller_of(delta.entry.meta) is None:
            self._names.setdefault(namespace, set()).add(name)
            return
        names = self._names.get(namespace)
        if names is not None:
            names.discard(name)
            if not names:
                del self._names[namespace]

    def of(self, namespace: str) -> list[ObjectKey]:
        return [(namespace, name) for name in sorted(self._names.get(namespace, ()))]


async def claim(
    context: Context,
    writer: Writer,
    owner_res: Resource,
    owner: Object,
    res: Resource,
    selector: LabelSelector,
    orphans: Orphans,
    eligible: Callable[[Entry[Any]], bool] = lambda entry: True,
) -> list[Entry[Any]]:
    """The cached objects of `res` that `owner` controls. Orphans that match (and are `eligible`) are adopted, after the
    live owner was found to be there still and not being deleted; owned ones that no longer match are released.
    What was adopted just now is not in the result: it is, when its new state reaches the cache."""
    cache = context.informers.of(res).cache
    uid, namespace = owner["metadata"]["uid"], owner["metadata"]["namespace"]
    held: list[Entry[Any]] = []
    for entry in cache.find("owner", uid):
        reference = controller_of(entry.meta)
        if reference is None or reference.uid != uid:
            continue
        if selector.matches(entry.meta.labels):
            held.append(entry)
        elif owner["metadata"].get("deletionTimestamp") is None:
            await _change(writer, res, entry, lambda obj: release(obj, uid))
    if owner["metadata"].get("deletionTimestamp") is not None:
        return held
    wanted = [
        orphan
        for orphan in (cache.get(*key) for key in orphans.of(namespace))
        if orphan is not None
        and selector.matches(orphan.meta.labels)
        and orphan.meta.deletionTimestamp is None
        and eligible(orphan)
    ]
    if wanted and await _may_adopt(context, owner_res, owner):
        reference_to = owner_reference(owner_res, owner)
        for orphan in wanted:
            await _change(writer, res, orphan, lambda obj: adopt(obj, reference_to))
    return held


async def _may_adopt(context: Context, res: Resource, owner: Object) -> bool:
    meta = owner["metadata"]
    stored = await context.registry.find(res, meta["namespace"], meta["name"])
    if stored is None:
        return False
    live = stored.obj()["metadata"]
    return live["uid"] == meta["uid"] and not live.get("deletionTimestamp")


async def _change(
    writer: Writer, res: Resource, entry: Entry[Any], change: Callable[[Object], Object | None]
) -> None:
    try:
        await writer.mutate(res, entry.key, change, entry.meta.uid)
    except errors.NotFound:
        return
