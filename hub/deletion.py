"""Deletion as Kubernetes does it: grace for bound pods, finalizers, propagation, preconditions.

An object leaves the store at once, or it is marked (deletionTimestamp) and leaves when the last that holds it lets go:
the node that runs a pod (it reports the pod gone, and the gateway deletes with grace 0), the garbage collector (the
finalizers `orphan` and `foregroundDeletion`), whoever set another finalizer, and for a namespace the controller that
empties it (spec.finalizers).

Invariants: a mark is never taken back; a repeated delete may shorten the grace, never lengthen it. Every step is one
transaction on the state that was read; a conflict reads again.

Source: the Kubernetes API reference, DeleteOptions; "Finalizers" and "Termination of Pods" in the concepts.
"""

import calendar
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hub import errors, tracecontext
from hub.objects import NAMESPACES, PODS, Resource, split_object_key
from hub.registry import MUTATE_ATTEMPTS, Object, Registry, Stored
from shards.claims import Fence

ORPHAN: Final = "orphan"
FOREGROUND: Final = "foregroundDeletion"
POLICIES: Final = ("Background", "Foreground", "Orphan")
GRACE_DEFAULT_S: Final = 30
MARK: Final = b'"deletionTimestamp"'
"""Stands in the stored JSON of whatever is being deleted, and in hardly anything else."""


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """`grace_s`: None takes the pod's own; 0 removes a pod without waiting for its node. `propagation`: one of
    POLICIES, or None for what the object's finalizers already say, else Background."""

    grace_s: int | None = None
    propagation: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    dry_run: bool = False

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> "DeleteOptions":
        """From a decoded metav1.DeleteOptions. Raises Invalid."""
        policy = body.get("propagationPolicy")
        causes = []
        if policy is not None and policy not in POLICIES:
            causes.append(errors.not_supported("propagationPolicy", policy, [*POLICIES, "nil"]))
        orphan = body.get("orphanDependents")
        if policy is not None and orphan is not None:
            causes.append(
                errors.invalid(
                    "propagationPolicy",
                    policy,
                    "orphanDependents and deletionPropagation cannot be both set",
                )
            )
        dry_run = body.get("dryRun") or []
        if any(value != "All" for value in dry_run):
            causes.append(errors.not_supported("dryRun", dry_run, ["All"]))
        if causes:
            raise errors.Invalid("DeleteOptions", "", causes, group="meta.k8s.io")
        if orphan is not None:
            policy = "Orphan" if orphan else "Background"
        grace = body.get("gracePeriodSeconds")
        conditions = body.get("preconditions") or {}
        return cls(
            # Kubernetes reads a negative grace as one second.
            grace_s=1 if grace is not None and grace < 0 else grace,
            propagation=policy,
            uid=conditions.get("uid"),
            resource_version=conditions.get("resourceVersion"),
            dry_run=bool(dry_run),
        )


FORCE: Final = DeleteOptions(grace_s=0)
"""What the gateway uses when the node reported the pod gone."""


async def delete(
    registry: Registry,
    res: Resource,
    stored: Stored,
    options: DeleteOptions,
    *,
    fence: Fence | None = None,
    now: float | None = None,
) -> Stored | None:
    """Deletes the object that was read as `stored`, or marks it. Returns what is left of it, None when it is gone.

    `now`: unix seconds. Raises Conflict when a precondition does not hold, NotFound when the object (of this UID) is
    gone already.
    """
    at = time.time() if now is None else now
    for _ in range(MUTATE_ATTEMPTS):
        marked = plan(res, stored, options, at)
        try:
            if marked is None:
                if not options.dry_run:
                    await registry.remove(res, stored, fence=fence)
                return None
            if options.dry_run:
                return stored
            tracecontext.stamp(marked)
            return await registry.replace(res, stored, marked, fence=fence)
        except errors.Conflict:
            stored = await _again(registry, res, stored)
    _, _, name = split_object_key(stored.key)
    raise errors.Conflict(res.resource, name, group=res.group)


async def release(
    registry: Registry, res: Resource, stored: Stored, *, fence: Fence | None = None
) -> Stored | None:
    """Removes a marked object that nothing holds any more; to be called after a write that may have removed the last
    finalizer. Returns what is left of it."""
    for _ in range(MUTATE_ATTEMPTS):
        # Nearly nothing that is written is being deleted, and to parse it for that costs ten times as much.
        if MARK not in stored.raw or not is_released(res, stored.obj()):
            return stored
        try:
            await registry.remove(res, stored, fence=fence)
            return None
        except errors.NotFound:
            return None
        except errors.Conflict:
            try:
                stored = await _again(registry, res, stored)
            except errors.NotFound:
                return None
    return stored


def is_released(res: Resource, obj: Object) -> bool:
    """Is it marked, and held by nothing?"""
    meta = obj["metadata"]
    if not meta.get("deletionTimestamp") or held(res, obj):
        return False
    return not (res == PODS and meta.get("deletionGracePeriodSeconds"))


def held(res: Resource, obj: Object) -> bool:
    """Do finalizers hold it?"""
    if obj["metadata"].get("finalizers"):
        return True
    return res == NAMESPACES and bool(obj.get("spec", {}).get("finalizers"))


def plan(res: Resource, stored: Stored, options: DeleteOptions, now: float) -> Object | None:
    """The marked object that has to be stored, or None when it has to be removed. Raises Conflict. [pure]"""
    obj = stored.obj()
    _check_preconditions(res, obj, options)
    meta = obj["metadata"]
    _set_finalizers(meta, options.propagation)
    grace = _grace_s(res, obj, options)
    if grace == 0 and not held(res, obj):
        return None
    present = meta.get("deletionGracePeriodSeconds") if meta.get("deletionTimestamp") else None
    if present is None or grace < present:
        since = now if present is None else _parse_time(meta["deletionTimestamp"]) - present
        meta["deletionTimestamp"] = _format_time(since + grace)
        meta["deletionGracePeriodSeconds"] = grace
        if "generation" in meta:
            meta["generation"] += 1
    if res == NAMESPACES:
        obj.setdefault("status", {})["phase"] = "Terminating"
    return obj


def _grace_s(res: Resource, obj: Object, options: DeleteOptions) -> int:
    """Seconds that the object's holder gets. Only a pod that runs on a node has one."""
    spec = obj.get("spec", {})
    phase = obj.get("status", {}).get("phase")
    if res != PODS or not spec.get("nodeName") or phase in ("Succeeded", "Failed"):
        return 0
    meta = obj["metadata"]
    present = meta.get("deletionGracePeriodSeconds") if meta.get("deletionTimestamp") else None
    if options.grace_s is not None:
        grace = options.grace_s
    elif present is not None:
        return int(present)
    else:
        grace = spec.get("terminationGracePeriodSeconds", GRACE_DEFAULT_S)
    return 1 if grace < 0 else int(grace)


def _set_finalizers(meta: Object, propagation: str | None) -> None:
    if propagation is None:
        return
    kept = [f for f in meta.get("finalizers") or [] if f not in (ORPHAN, FOREGROUND)]
    if propagation == "Orphan":
        kept.append(ORPHAN)
    elif propagation == "Foreground":
        kept.append(FOREGROUND)
    if kept:
        meta["finalizers"] = kept
    else:
        meta.pop("finalizers", None)


def _check_preconditions(res: Resource, obj: Object, options: DeleteOptions) -> None:
    meta = obj["metadata"]
    for field, wanted, found in (
        ("UID", options.uid, meta["uid"]),
        ("ResourceVersion", options.resource_version, meta["resourceVersion"]),
    ):
        if wanted is not None and wanted != found:
            raise errors.Conflict(
                res.resource,
                meta["name"],
                f"Precondition failed: {field} in precondition: {wanted}, {field} in object meta: {found}",
                group=res.group,
            )


async def _again(registry: Registry, res: Resource, stored: Stored) -> Stored:
    """The same object as it is now. Raises NotFound, also when another one has its name."""
    _, namespace, name = split_object_key(stored.key)
    fresh = await registry.get(res, namespace, name)
    if fresh.obj()["metadata"]["uid"] != stored.obj()["metadata"]["uid"]:
        raise errors.NotFound(res.resource, name, group=res.group)
    return fresh


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _parse_time(text: str) -> int:
    return calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S"))


SYSTEM_NAMESPACES: Final = ("default", "kube-system", "kube-public", "kube-node-lease")
PROTECTED_NAMESPACES: Final = frozenset(("default", "kube-system", "kube-public"))
"""As in Kubernetes these cannot be deleted."""


async def ensure_namespaces(registry: Registry) -> None:
    """Makes the namespaces that every cluster has, where they are missing."""
    for name in SYSTEM_NAMESPACES:
        if await registry.find(NAMESPACES, "", name) is not None:
            continue
        try:
            await registry.create(
                NAMESPACES,
                {
                    "apiVersion": "v1",
                    "kind": "Namespace",
                    "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
                    "spec": {"finalizers": ["kubernetes"]},
                    "status": {"phase": "Active"},
                },
            )
        except errors.AlreadyExists:
            continue  # another replica was first
