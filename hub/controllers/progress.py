"""A Deployment's status: counts and the conditions Available, Progressing and ReplicaFailure. [pure]

What `kubectl rollout status` waits for: observedGeneration, updatedReplicas, replicas, availableReplicas, and the
Progressing condition with reason ProgressDeadlineExceeded. Semantics of Kubernetes' deployment controller.
"""

from collections.abc import Sequence
from typing import Any

from hub.controllers.meta import condition, new_condition, rfc3339, seconds, without_condition
from hub.controllers.rollout import Limits, Replicas, limits_of

Object = dict[str, Any]
COMPLETE = "NewReplicaSetAvailable"
TIMED_OUT = "ProgressDeadlineExceeded"
PAUSED, RESUMED = "DeploymentPaused", "DeploymentResumed"


def _with(conditions: Sequence[Object], new: Object) -> list[Object]:
    """`new` in its type's place, unless status and reason say nothing new."""
    held = condition(conditions, new["type"])
    if held and held.get("status") == new["status"] and held.get("reason") == new["reason"]:
        return list(conditions)
    if held and held.get("status") == new["status"] and held.get("lastTransitionTime"):
        new = {**new, "lastTransitionTime": held["lastTransitionTime"]}
    return [*without_condition(conditions, new["type"]), new]


def _condition(kind: str, status: bool, reason: str, message: str, now: float) -> Object:
    return {**new_condition(kind, status, reason, message, now), "lastUpdateTime": rfc3339(now)}


def counts(deployment: Object, new: Replicas | None, old: Sequence[Replicas]) -> Object:
    """The numbers of a new status."""
    everything = [*old, *([new] if new else [])]
    available = sum(r.available for r in everything)
    out: Object = {
        "observedGeneration": deployment["metadata"].get("generation", 0),
        "replicas": sum(r.actual for r in everything),
        "updatedReplicas": new.actual if new else 0,
        "readyReplicas": sum(r.ready for r in everything),
        "availableReplicas": available,
        "unavailableReplicas": max(0, sum(r.wanted for r in everything) - available),
    }
    collisions = (deployment.get("status") or {}).get("collisionCount")
    if collisions:
        out["collisionCount"] = collisions
    return {k: v for k, v in out.items() if v or k == "observedGeneration"}


def is_complete(deployment: Object, status: Object) -> bool:
    wanted = deployment["spec"].get("replicas", 1)
    generation = deployment["metadata"].get("generation", 0)
    pods = ("updatedReplicas", "replicas", "availableReplicas")
    return all(status.get(f, 0) == wanted for f in pods) and bool(
        status.get("observedGeneration", 0) >= generation
    )


def _is_progressing(old: Object, new: Object) -> bool:
    def replaced(status: Object) -> int:
        return int(status.get("replicas", 0)) - int(status.get("updatedReplicas", 0))

    return (
        new.get("updatedReplicas", 0) > old.get("updatedReplicas", 0)
        or replaced(new) < replaced(old)
        or new.get("readyReplicas", 0) > old.get("readyReplicas", 0)
        or new.get("availableReplicas", 0) > old.get("availableReplicas", 0)
    )


def status(
    deployment: Object, new: Replicas | None, old: Sequence[Replicas], now: float, *, found: str = ""
) -> Object:
    """The whole new status. `found`: what became of the new ReplicaSet in this sync, NewReplicaSetCreated or
    FoundNewReplicaSet, or "" when it was known already."""
    before = deployment.get("status") or {}
    out = counts(deployment, new, old)
    conditions = [dict(c) for c in before.get("conditions") or ()]
    if deployment["spec"].get("paused"):
        conditions = (
            _with(conditions, _condition("Progressing", False, PAUSED, "Deployment is paused", now))
            if _has_deadline(deployment)
            else conditions
        )
    else:
        conditions = _resume(deployment, conditions, now)
        conditions = _progress(deployment, new, before, out, conditions, found, now)
    conditions = _available(limits_of(deployment), out, conditions, now)
    conditions = _replica_failure(new, old, conditions)
    if conditions:
        out["conditions"] = conditions
    return out


def _has_deadline(deployment: Object) -> bool:
    return bool(_deadline_s(deployment) != 2**31 - 1)


def _deadline_s(deployment: Object) -> int:
    return int(deployment["spec"].get("progressDeadlineSeconds", 600))


def _resume(deployment: Object, conditions: list[Object], now: float) -> list[Object]:
    held = condition(conditions, "Progressing")
    if held is None or held.get("reason") != PAUSED:
        return conditions
    resumed = {**_condition("Progressing", True, RESUMED, "Deployment is resumed", now), "status": "Unknown"}
    return _with(conditions, resumed)


def _progress(
    deployment: Object,
    new: Replicas | None,
    before: Object,
    after: Object,
    conditions: list[Object],
    found: str,
    now: float,
) -> list[Object]:
    if not _has_deadline(deployment):
        return without_condition(conditions, "Progressing")
    if found and new is not None:
        verb = "Created" if found == "NewReplicaSetCreated" else "Found"
        words = f'{verb} new replica set "{new.name}"'
        return _with(conditions, _condition("Progressing", True, found, words, now))
    held = condition(conditions, "Progressing")
    if (
        held is not None
        and held.get("reason") == COMPLETE
        and after.get("replicas", 0) == after.get("updatedReplicas", 0)
    ):
        return conditions  # complete once is complete: pods that fail later are not a rollout
    about = f'ReplicaSet "{new.name}"' if new else f'Deployment "{deployment["metadata"]["name"]}"'
    if is_complete(deployment, after):
        words = f"{about} has successfully progressed."
        return _with(conditions, _condition("Progressing", True, COMPLETE, words, now))
    if _is_progressing(before, after):
        made = _condition("Progressing", True, "ReplicaSetUpdated", f"{about} is progressing.", now)
        if held and held.get("status") == "True" and held.get("lastTransitionTime"):
            made["lastTransitionTime"] = held["lastTransitionTime"]
        return [*without_condition(conditions, "Progressing"), made]
    if seconds_to_deadline(deployment, conditions, now) == 0.0:
        words = f"{about} has timed out progressing."
        return _with(conditions, _condition("Progressing", False, TIMED_OUT, words, now))
    return conditions


def seconds_to_deadline(deployment: Object, conditions: Sequence[Object], now: float) -> float | None:
    """Until a rollout that does not progress counts as failed; 0 when it does, None when no deadline runs."""
    held = condition(conditions, "Progressing")
    if held is None or not _has_deadline(deployment) or deployment["spec"].get("paused"):
        return None
    if held.get("reason") in (COMPLETE, TIMED_OUT):
        return None
    since = seconds(held.get("lastUpdateTime")) or seconds(held.get("lastTransitionTime")) or now
    return max(0.0, since + _deadline_s(deployment) - now)


def _available(limits: Limits, after: Object, conditions: list[Object], now: float) -> list[Object]:
    if after.get("availableReplicas", 0) >= limits.available_min:
        made = _condition(
            "Available", True, "MinimumReplicasAvailable", "Deployment has minimum availability.", now
        )
    else:
        words = "Deployment does not have minimum availability."
        made = _condition("Available", False, "MinimumReplicasUnavailable", words, now)
    return _with(conditions, made)


def _replica_failure(new: Replicas | None, old: Sequence[Replicas], conditions: list[Object]) -> list[Object]:
    for rs in [*([new] if new else []), *old]:
        failed = condition((rs.obj.get("status") or {}).get("conditions"), "ReplicaFailure")
        if failed is not None:
            moved = {**failed, "lastUpdateTime": failed.get("lastTransitionTime")}
            return _with(conditions, moved)
    return without_condition(conditions, "ReplicaFailure")
