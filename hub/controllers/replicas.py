"""What a ReplicaSet needs: how many pods to make, which to delete, what its status says. [pure]"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hub.cache import Entry
from hub.controllers.meta import (
    condition,
    is_available,
    new_condition,
    ready_since,
    seconds,
    token,
    with_condition,
    without_condition,
)
from hub.controllers.podnote import DELETION_COST
from hub.objects import PodView

Object = dict[str, Any]
Pod = Entry[PodView]

BURST = 500
"""Pods made or deleted in one sync."""
_PHASE_RANK = {"Pending": 0, "Unknown": 1, "Running": 2}


@dataclass(frozen=True, slots=True)
class Plan:
    """At most one of the two is not empty."""

    create: int = 0
    delete: tuple[Pod, ...] = ()


def plan(replicas: int, active: Sequence[Pod]) -> Plan:
    """`active`: the pods that are owned, neither finished nor being deleted."""
    missing = replicas - len(active)
    if missing > 0:
        return Plan(create=min(missing, BURST))
    if missing < 0:
        return Plan(delete=tuple(deletion_order(active)[: min(-missing, BURST)]))
    return Plan()


def deletion_order(pods: Sequence[Pod]) -> list[Pod]:
    """Those to delete first, first: unbound, pending, not ready, of low deletion cost, crowded on one node, ready for a
    shorter time, younger; then by name. As Kubernetes, but for restart counts."""
    crowd = Counter(p.view.spec.nodeName for p in pods if p.view.spec.nodeName)

    def rank(pod: Pod) -> tuple[Any, ...]:
        since = ready_since(pod)
        node = pod.view.spec.nodeName
        return (
            bool(node),
            _PHASE_RANK.get(pod.view.status.phase, 0),
            since is not None,
            _deletion_cost(pod),
            -crowd[node],
            -(since or 0.0),
            -(seconds(pod.meta.creationTimestamp) or 0.0),
            pod.meta.name,
        )

    return sorted(pods, key=rank)


def _deletion_cost(pod: Pod) -> int:
    try:
        return int((pod.meta.annotations or {}).get(DELETION_COST, "0"))
    except ValueError:
        return 0


def pod_names(rs: Object, taken: Sequence[str], count: int) -> list[str]:
    """Names for `count` new pods, determined by the ReplicaSet and the pods that are seen: the same view of the world
    makes the same names, so that doing it twice meets AlreadyExists instead of making more."""
    meta = rs["metadata"]
    seen = token(8, *sorted(taken), meta.get("resourceVersion", ""))
    base = meta["name"][:57]
    names: dict[str, None] = {}
    nonce = 0
    while len(names) < count:
        names.setdefault(f"{base}-{token(5, meta['uid'], seen, nonce)}")
        nonce += 1
    return list(names)


def batches(count: int) -> list[int]:
    """Slow start: 1, 2, 4, … so that what cannot work fails once and not `count` times."""
    out: list[int] = []
    size = 1
    while count > 0:
        out.append(min(size, count))
        count -= out[-1]
        size *= 2
    return out


@dataclass(frozen=True, slots=True)
class Failure:
    """Why pods could not be made or deleted: `reason` FailedCreate or FailedDelete."""

    reason: str
    message: str


def status(
    rs: Object, active: Sequence[Pod], terminating: int, failure: Failure | None, now: float
) -> Object:
    """The whole new status."""
    spec = rs["spec"]
    labels = (spec["template"].get("metadata") or {}).get("labels") or {}
    min_ready = spec.get("minReadySeconds") or 0
    old = rs.get("status") or {}
    new: Object = {
        **old,
        "replicas": len(active),
        "fullyLabeledReplicas": sum(1 for p in active if labels.items() <= (p.meta.labels or {}).items()),
        "readyReplicas": sum(1 for p in active if ready_since(p) is not None),
        "availableReplicas": sum(1 for p in active if is_available(p, min_ready, now)),
        "terminatingReplicas": terminating,
        "observedGeneration": rs["metadata"].get("generation", 0),
    }
    conditions = old.get("conditions")
    if failure is not None:
        held = condition(conditions, "ReplicaFailure")
        if held is None or held.get("reason") != failure.reason:
            # The message alone is no news: it names another pod with each try.
            broken = new_condition("ReplicaFailure", True, failure.reason, failure.message, now)
            conditions = with_condition(conditions, broken)
    else:
        conditions = without_condition(conditions, "ReplicaFailure")
    new.pop("conditions", None)
    if conditions:
        new["conditions"] = conditions
    for field in ("fullyLabeledReplicas", "readyReplicas", "availableReplicas", "terminatingReplicas"):
        if not new[field]:
            del new[field]
    return new
