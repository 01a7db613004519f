"""How a Deployment's ReplicaSets are scaled: rolling update, recreate, and scaling in the middle of either. [pure]

Invariants of a rolling update, as far as scaling can hold them: the ReplicaSets never want more than replicas +
maxSurge pods together, and none is scaled down so that fewer than replicas - maxUnavailable pods stay available.

Semantics of Kubernetes' deployment controller.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hub.controllers.meta import seconds

Object = dict[str, Any]

REVISION = "deployment.kubernetes.io/revision"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
HASH_LABEL = "pod-template-hash"
_NOT_COPIED = {
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAXIMUM,
    "deprecated.deployment.rollback.to",
}


@dataclass(frozen=True)
class Replicas:
    """A ReplicaSet as the rollout sees it: `wanted` is spec.replicas, the others are of its status."""

    obj: Object = field(repr=False, compare=False)
    name: str
    uid: str
    created: float
    wanted: int
    actual: int = 0
    ready: int = 0
    available: int = 0

    @property
    def annotations(self) -> Object:
        return self.obj["metadata"].get("annotations") or {}

    @property
    def revision(self) -> int:
        try:
            return int(self.annotations.get(REVISION, "0"))
        except ValueError:
            return 0


def replicas_of(rs: Object) -> Replicas:
    meta, status = rs["metadata"], rs.get("status") or {}
    return Replicas(
        rs,
        meta["name"],
        meta["uid"],
        seconds(meta.get("creationTimestamp")) or 0.0,
        rs["spec"].get("replicas", 1),
        status.get("replicas", 0),
        status.get("readyReplicas", 0),
        status.get("availableReplicas", 0),
    )


def oldest_first(sets: Sequence[Replicas]) -> list[Replicas]:
    return sorted(sets, key=lambda r: (r.created, r.name))


@dataclass(frozen=True, slots=True)
class Limits:
    """A Deployment's numbers, percentages resolved. Both bounds are 0 with the Recreate strategy."""

    replicas: int
    surge: int
    unavailable: int

    @property
    def total_max(self) -> int:
        return self.replicas + self.surge

    @property
    def available_min(self) -> int:
        return self.replicas - self.unavailable


def resolve(value: int | str | None, of: int, *, up: bool) -> int:
    """An int-or-percent of `of`; percentages are rounded up or down."""
    if isinstance(value, str) and value.endswith("%"):
        product = int(value[:-1]) * of
        return -(-product // 100) if up else product // 100
    return int(value or 0)


def limits_of(deployment: Object) -> Limits:
    """Surge is rounded up, unavailable down; where both come to 0, one pod may be unavailable, or nothing could move."""
    spec = deployment["spec"]
    replicas = spec.get("replicas", 1)
    if is_recreate(deployment):
        return Limits(replicas, 0, 0)
    rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    surge = resolve(rolling.get("maxSurge", "25%"), replicas, up=True)
    unavailable = resolve(rolling.get("maxUnavailable", "25%"), replicas, up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return Limits(replicas, surge, min(unavailable, replicas))


def is_recreate(deployment: Object) -> bool:
    return (deployment["spec"].get("strategy") or {}).get("type") == "Recreate"


# -- templates ----------------------------------------------------------------------------------------------------


def bare_template(template: Object) -> Object:
    """Without the hash label, and without the nulls that some clients leave: for comparing."""
    meta = {k: v for k, v in (template.get("metadata") or {}).items() if v is not None}
    meta.pop("creationTimestamp", None)
    labels = {k: v for k, v in (meta.get("labels") or {}).items() if k != HASH_LABEL}
    return {"metadata": {**meta, "labels": labels}, "spec": template["spec"]}


def find_new(deployment: Object, sets: Sequence[Replicas]) -> Replicas | None:
    """The ReplicaSet of the present template; of several the oldest."""
    wanted = bare_template(deployment["spec"]["template"])
    for rs in oldest_first(sets):
        if bare_template(rs.obj["spec"]["template"]) == wanted:
            return rs
    return None


def copied_annotations(deployment: Object) -> dict[str, str]:
    held = deployment["metadata"].get("annotations") or {}
    return {k: v for k, v in held.items() if k not in _NOT_COPIED}


def replica_annotations(limits: Limits) -> dict[str, str]:
    return {DESIRED: str(limits.replicas), MAXIMUM: str(limits.total_max)}


# -- scaling ------------------------------------------------------------------------------------------------------

Scaling = dict[str, int]
"""Name of a ReplicaSet to its new spec.replicas."""


def new_set_size(limits: Limits, sets: Sequence[Replicas], size: int, *, recreate: bool) -> int:
    """How large the new ReplicaSet, now `size`, may be; `sets` are all, itself included where it exists."""
    if recreate:
        return limits.replicas
    room = limits.total_max - sum(r.wanted for r in sets)
    if room <= 0:
        return size
    return size + max(0, min(room, limits.replicas - size))


def roll(limits: Limits, new: Replicas, old: Sequence[Replicas]) -> Scaling:
    """The next step of a rolling update: the new one up, or else old ones down."""
    everything = [new, *old]
    if new.wanted != limits.replicas:
        size = (
            limits.replicas
            if new.wanted > limits.replicas
            else new_set_size(limits, everything, new.wanted, recreate=False)
        )
        if size != new.wanted:
            return {new.name: size}
    return _shrink_old(limits, new, old)


def _shrink_old(limits: Limits, new: Replicas, old: Sequence[Replicas]) -> Scaling:
    if not any(r.wanted for r in old):
        return {}
    total = new.wanted + sum(r.wanted for r in old)
    new_unavailable = max(0, new.wanted - new.available)
    spare = total - limits.available_min - new_unavailable
    if spare <= 0:
        return {}
    sizes = {r.name: r.wanted for r in old}
    # What is not available can go first: nobody misses it.
    for rs in oldest_first(old):
        broken = max(0, sizes[rs.name] - rs.available)
        gone = min(spare, broken)
        sizes[rs.name] -= gone
        spare -= gone
    # With all of that gone, what is spare counts available pods only.
    for rs in oldest_first(old):
        if spare <= 0:
            break
        gone = min(spare, sizes[rs.name])
        sizes[rs.name] -= gone
        spare -= gone
    return {r.name: sizes[r.name] for r in old if sizes[r.name] != r.wanted}


def is_scaling(limits: Limits, sets: Sequence[Replicas]) -> bool:
    """The Deployment's size changed since its active ReplicaSets were last written."""
    return any(
        r.wanted > 0 and r.annotations.get(DESIRED, str(limits.replicas)) != str(limits.replicas)
        for r in sets
    )


def scale(limits: Limits, new: Replicas | None, old: Sequence[Replicas], *, recreate: bool) -> Scaling:
    """After a change of size, or while paused: proportionally, without rolling on."""
    everything = [*old, *([new] if new else [])]
    active = [r for r in everything if r.wanted > 0]
    if len(active) <= 1:
        only = active[0] if active else (new or max(old, key=lambda r: (r.revision, r.created), default=None))
        return {only.name: limits.replicas} if only and only.wanted != limits.replicas else {}
    if new is not None and new.wanted == limits.replicas == new.available:
        return {r.name: 0 for r in old if r.wanted}
    return {} if recreate else _proportional(limits, active)


def _proportional(limits: Limits, active: Sequence[Replicas]) -> Scaling:
    allowed = limits.total_max if limits.replicas > 0 else 0
    total = sum(r.wanted for r in active)
    change = allowed - total
    if change == 0:
        return {}
    newest = 1 if change < 0 else -1
    ordered = sorted(active, key=lambda r: (-r.wanted, newest * r.created, r.name))
    sizes: Scaling = {}
    added = 0
    for rs in ordered:
        part = _part(rs, limits, total, change - added)
        sizes[rs.name] = max(0, rs.wanted + part)
        added += sizes[rs.name] - rs.wanted
    left = change - added
    for rs in ordered:  # the first takes all that is left to add, but can give no more than it has
        part = max(left, -sizes[rs.name])
        sizes[rs.name] += part
        left -= part
    return {r.name: sizes[r.name] for r in active if sizes[r.name] != r.wanted}


def _part(rs: Replicas, limits: Limits, total: int, left: int) -> int:
    """The share of the change that falls on `rs`, by its share of the size at which it was last scaled."""
    if left == 0 or rs.wanted == 0:
        return 0
    try:
        maximum = int(rs.annotations.get(MAXIMUM, "0")) or total
    except ValueError:
        maximum = total
    if limits.replicas == 0:
        return -rs.wanted
    share = int(rs.wanted * limits.total_max / maximum + 0.5) - rs.wanted
    return min(share, left) if left > 0 else max(share, left)


# -- history ------------------------------------------------------------------------------------------------------


def surplus_history(deployment: Object, old: Sequence[Replicas]) -> list[Replicas]:
    """Old ReplicaSets above the revision history limit, empty ones only, oldest revision first."""
    limit = deployment["spec"].get("revisionHistoryLimit", 10)
    kept = [r for r in old if not r.obj["metadata"].get("deletionTimestamp")]
    surplus = sorted(kept, key=lambda r: (r.revision, r.created))[: max(0, len(kept) - limit)]
    return [
        r
        for r in surplus
        if r.actual == 0
        and r.wanted == 0
        and (r.obj.get("status") or {}).get("observedGeneration", 0) >= r.obj["metadata"].get("generation", 0)
    ]
