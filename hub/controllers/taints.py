"""Which taints a node has by its conditions: NoSchedule only, never NoExecute (I8). [pure]"""

from collections.abc import Iterable, Sequence
from typing import Any

from hub.controllers.meta import rfc3339, view_condition
from hub.objects import Condition, NodeView, Taint

Object = dict[str, Any]

_NOT_READY = "node.kubernetes.io/not-ready"
_UNREACHABLE = "node.kubernetes.io/unreachable"
_PRESSURES = {
    "MemoryPressure": "node.kubernetes.io/memory-pressure",
    "DiskPressure": "node.kubernetes.io/disk-pressure",
    "PIDPressure": "node.kubernetes.io/pid-pressure",
    "NetworkUnavailable": "node.kubernetes.io/network-unavailable",
}
_CORDONED = "node.kubernetes.io/unschedulable"
MANAGED = frozenset({_NOT_READY, _UNREACHABLE, _CORDONED, *_PRESSURES.values()})


def taint_keys(conditions: Iterable[Condition] | None, unschedulable: bool) -> set[str]:
    """The managed NoSchedule taints that a node in this state has."""
    held = tuple(conditions or ())
    ready = view_condition(held, "Ready")
    out: set[str] = set()
    if ready is not None and ready.status == "Unknown":
        out.add(_UNREACHABLE)
    elif ready is None or ready.status != "True":
        out.add(_NOT_READY)
    for kind, key in _PRESSURES.items():
        found = view_condition(held, kind)
        if found is not None and found.status == "True":
            out.add(key)
    if unschedulable:
        out.add(_CORDONED)
    return out


def with_taints(taints: Sequence[Object], wanted: set[str], now: float) -> list[Object]:
    """`taints` with exactly the `wanted` ones of the managed NoSchedule taints; all others stay as they are."""

    def is_managed(taint: Object) -> bool:
        return taint.get("effect") == "NoSchedule" and taint.get("key") in MANAGED

    kept = [t for t in taints if not is_managed(t) or t["key"] in wanted]
    present = {t["key"] for t in kept if is_managed(t)}
    return kept + [
        {"key": key, "effect": "NoSchedule", "timeAdded": rfc3339(now)} for key in sorted(wanted - present)
    ]


def is_in_step(taints: Iterable[Taint] | None, wanted: set[str]) -> bool:
    held = {t.key for t in taints or () if t.effect == "NoSchedule" and t.key in MANAGED}
    return held == wanted


def effective(view: NodeView) -> tuple[Taint, ...]:
    """The node's taints, with those that its conditions call for and that nobody has written yet: between a condition
    and its taint nothing is placed either."""
    held = view.spec.taints or ()
    wanted = taint_keys(view.status.conditions, view.spec.unschedulable)
    missing = wanted - {t.key for t in held if t.effect == "NoSchedule"}
    stale = {t.key for t in held if t.effect == "NoSchedule" and t.key in MANAGED} - wanted
    kept = tuple(t for t in held if t.effect != "NoSchedule" or t.key not in stale)
    return kept + tuple(Taint(key, "", "NoSchedule") for key in sorted(missing))
