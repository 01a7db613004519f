"""What the controllers' cores share: times, conditions, owners, hashes, and what state a pod is in. [pure]"""

import datetime
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from hub.cache import Entry
from hub.documents import TRACE_ANNOTATION
from hub.objects import Condition, Meta, OwnerReference, PodView, Resource

Object = dict[str, Any]
FINISHED = ("Succeeded", "Failed")
_SAFE = "bcdfghjklmnpqrstvwxz2456789"
"""Characters of generated names: no vowels, so no words; nothing that looks like something else."""


def rfc3339(now: float) -> str:
    """Unix seconds as the API writes times."""
    return datetime.datetime.fromtimestamp(int(now), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(text: str | None) -> float | None:
    """A time of the API as unix seconds; None when absent or not a time."""
    if not text:
        return None
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def token(length: int, *parts: object) -> str:
    """`length` characters fit for a name, determined by `parts`."""
    number = int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:16], "big")
    out = []
    for _ in range(length):
        number, at = divmod(number, len(_SAFE))
        out.append(_SAFE[at])
    return "".join(out)


def generated_name(base: str, suffix: str, limit: int = 63) -> str:
    """`base-suffix`, `base` cut so that the name stays within `limit`."""
    return f"{base[: limit - len(suffix) - 1]}-{suffix}"


def template_hash(template: Object, collisions: int) -> str:
    """Ten characters that stand for a pod template: equal for equal templates."""
    return token(10, orjson.dumps(template, option=orjson.OPT_SORT_KEYS).hex(), collisions or "")


# -- conditions ---------------------------------------------------------------------------------------------------


def condition(conditions: Iterable[Object] | None, kind: str) -> Object | None:
    return next((c for c in conditions or () if c.get("type") == kind), None)


def view_condition(conditions: Iterable[Condition] | None, kind: str) -> Condition | None:
    return next((c for c in conditions or () if c.type == kind), None)


def with_condition(conditions: Iterable[Object] | None, new: Object) -> list[Object]:
    """`conditions` with `new` in its type's place; lastTransitionTime is kept unless the status changed. The old one
    stays whole when status, reason and message are the same."""
    out: list[Object] = []
    found = False
    for old in conditions or ():
        if old.get("type") != new["type"]:
            out.append(old)
            continue
        found = True
        if all(old.get(f) == new.get(f) for f in ("status", "reason", "message")):
            out.append(old)
        elif old.get("status") == new["status"] and old.get("lastTransitionTime"):
            out.append({**new, "lastTransitionTime": old["lastTransitionTime"]})
        else:
            out.append(new)
    if not found:
        out.append(new)
    return out


def without_condition(conditions: Iterable[Object] | None, kind: str) -> list[Object]:
    return [c for c in conditions or () if c.get("type") != kind]


def new_condition(kind: str, status: bool, reason: str, message: str, now: float) -> Object:
    return {
        "type": kind,
        "status": "True" if status else "False",
        "lastTransitionTime": rfc3339(now),
        "reason": reason,
        "message": message,
    }


# -- owners -------------------------------------------------------------------------------------------------------


def controller_of(meta: Meta) -> OwnerReference | None:
    """The owner that manages the object, if it has one."""
    return next((ref for ref in meta.ownerReferences or () if ref.controller), None)


def owner_reference(res: Resource, owner: Object) -> Object:
    return {
        "apiVersion": res.api_version,
        "kind": res.kind,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def adopt(obj: Object, reference: Object) -> Object | None:
    """`obj` with the controller reference; None when it is being deleted or has a controller."""
    refs = obj["metadata"].get("ownerReferences") or []
    if obj["metadata"].get("deletionTimestamp") or any(ref.get("controller") for ref in refs):
        return None
    refs = [ref for ref in refs if ref["uid"] != reference["uid"]]
    obj["metadata"]["ownerReferences"] = [*refs, reference]
    return obj


def release(obj: Object, uid: str) -> Object | None:
    """`obj` without the reference to the owner `uid`; None when it has none."""
    refs = obj["metadata"].get("ownerReferences") or []
    left = [ref for ref in refs if ref["uid"] != uid]
    if len(left) == len(refs):
        return None
    if left:
        obj["metadata"]["ownerReferences"] = left
    else:
        del obj["metadata"]["ownerReferences"]
    return obj


def bump_generation(obj: Object) -> Object:
    """For a change of the spec; the registry does not do it."""
    obj["metadata"]["generation"] = obj["metadata"].get("generation", 0) + 1
    return obj


# -- pods ---------------------------------------------------------------------------------------------------------


def is_active(pod: Entry[PodView]) -> bool:
    """Neither finished nor being deleted."""
    return pod.view.status.phase not in FINISHED and pod.meta.deletionTimestamp is None


def ready_since(pod: Entry[PodView]) -> float | None:
    """Unix seconds since which the pod is ready; None when it is not."""
    found = view_condition(pod.view.status.conditions, "Ready")
    if found is None or found.status != "True":
        return None
    return seconds(found.lastTransitionTime) or 0.0


def is_available(pod: Entry[PodView], min_ready_s: int, now: float) -> bool:
    """Ready for at least `min_ready_s`."""
    since = ready_since(pod)
    return since is not None and (min_ready_s == 0 or since + min_ready_s <= now)


def until_available(pods: Iterable[Entry[PodView]], min_ready_s: int, now: float) -> float | None:
    """Seconds until the next of the ready pods becomes available; None when none is waiting."""
    if not min_ready_s:
        return None
    waits = [since + min_ready_s - now for p in pods if (since := ready_since(p)) is not None]
    return min((w for w in waits if w > 0), default=None)


def pod_of(template: Object, res: Resource, owner: Object, name: str) -> Object:
    """A new Pod of `owner`'s template; the caller admits and stores it."""
    meta: Mapping[str, Any] = template.get("metadata") or {}
    copy: Object = orjson.loads(orjson.dumps(template["spec"]))
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "generateName": owner["metadata"]["name"][:57] + "-",
            "namespace": owner["metadata"]["namespace"],
            "ownerReferences": [owner_reference(res, owner)],
        },
        "spec": copy,
        "status": {"phase": "Pending"},
    }
    for field in ("labels", "annotations"):
        if meta.get(field):
            pod["metadata"][field] = dict(meta[field])
    if meta.get("finalizers"):
        pod["metadata"]["finalizers"] = list(meta["finalizers"])
    if trace := (owner["metadata"].get("annotations") or {}).get(TRACE_ANNOTATION):
        pod["metadata"].setdefault("annotations", {})[TRACE_ANNOTATION] = trace
    return pod
