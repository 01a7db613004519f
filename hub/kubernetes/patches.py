"""What a change of an object takes to write: its address, and merge patches that hold the difference alone. [pure]

A patch names the UID and the resourceVersion of the state that it was derived from, so that the API server refuses it
(409) once the object has changed or is another one. What the API server owns is never in a patch.

Sources: RFC 7396 (JSON merge patch), the Kubernetes API conventions (status subresource, metadata).
"""

from dataclasses import dataclass
from typing import Any, Final

from hub.objects import NODES, Resource

Object = dict[str, Any]

MERGE_PATCH: Final = "application/merge-patch+json"
SYSTEM_META: Final = (
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "managedFields",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
)
SERVER_STATUS: Final = (
    "qosClass",
    "resize",
    "nominatedNodeName",
    "resourceClaimStatuses",
    "extendedResourceClaimStatus",
)
"""Of a Pod's status: a report is without these, which takes nothing away."""
SPELT_OUT: Final = frozenset({"lastState", "resources"})
"""Fields of list items that the API server shows as {} where nobody has set them."""


def path_of(res: Resource, namespace: str, name: str = "", subresource: str = "") -> str:
    """The path of an object, or (without `name`) of the collection that it is created in."""
    base = f"/apis/{res.group}/{res.version}" if res.group else f"/api/{res.version}"
    parts = [base]
    if res.namespaced:
        parts += ["namespaces", namespace]
    parts += [part for part in (res.resource, name, subresource) if part]
    return "/".join(parts)


def difference(old: Any, new: Any) -> Object:
    """The merge patch from the dict `old` to the dict `new`; empty when they are equal. Lists are replaced whole, where
    they say something else: the API server spells out nulls and empty fields of their items. A null of `new` cannot be told
    from an absent field: such a field is removed, which is what the API makes of a null."""
    patch: Object = {}
    for key, value in new.items():
        held = old.get(key)
        if value is None:
            if held is not None:
                patch[key] = None
        elif isinstance(value, dict) and isinstance(held, dict):
            inner = difference(held, value)
            if inner:
                patch[key] = inner
        elif isinstance(value, dict):
            patch[key] = _without_nulls(value)
        elif value != held and not (isinstance(value, list) and _said(value) == _said(held)):
            patch[key] = value
    for key, held in old.items():
        if key not in new and held is not None:
            patch[key] = None
    return patch


def _without_nulls(value: Object) -> Object:
    return {k: _without_nulls(v) if isinstance(v, dict) else v for k, v in value.items() if v is not None}


def _said(value: Any) -> Any:
    """Without what the API server spells out and a report leaves away."""
    if isinstance(value, list):
        return [_said(item) for item in value]
    if isinstance(value, dict):
        return {k: _said(v) for k, v in value.items() if v is not None and not (k in SPELT_OUT and v == {})}
    return value


@dataclass(frozen=True, slots=True)
class Patch:
    """One request: `subresource` is "" or "status"; `body` is still without UID and resourceVersion."""

    subresource: str
    body: Object

    def guarded(self, uid: str, revision: int) -> Object:
        """What is sent: refused unless the object still is what it was derived from."""
        meta = {**self.body.get("metadata", {}), "uid": uid, "resourceVersion": str(revision)}
        return {**self.body, "metadata": meta}


def patches(res: Resource, old: Object, new: Object) -> list[Patch]:
    """The requests that make `new` of `old`, none when nothing differs. Of a Node labels and annotations go along with
    its status, as a kubelet's do: one request in place of two."""
    main = difference(_writable(old), _writable(new))
    if not res.status:
        return [Patch("", main)] if main else []
    held, wanted = old.get("status") or {}, new.get("status") or {}
    kept = {field: held[field] for field in SERVER_STATUS if field in held}
    status = difference(held, {**kept, **wanted})
    made: list[Patch] = []
    if status and res == NODES and "metadata" in main:
        made.append(Patch("status", {"metadata": main.pop("metadata"), "status": status}))
    elif status:
        made.append(Patch("status", {"status": status}))
    if main:
        made.insert(0, Patch("", main))
    return made


def _writable(obj: Object) -> Object:
    meta = {k: v for k, v in obj["metadata"].items() if k not in SYSTEM_META}
    left = {k: v for k, v in obj.items() if k not in ("metadata", "status", "apiVersion", "kind")}
    return {**left, "metadata": meta}
