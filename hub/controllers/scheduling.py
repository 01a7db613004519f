"""Where a pod fits, and where it fits best. [pure]

Job: the filters and scores of kube-scheduler that matter at the edge, with its words for what does not fit.
Honoured: nodeSelector, required and preferred node affinity, taints and tolerations, unschedulable, host ports, requests
against allocatable, the number of pods; and that the node has the runtime that the pod is for, since a node refuses
others for good and a controller would then make one after the other. What would have to be honoured and is not (UNSUPPORTED) keeps the pod pending
and is named in its condition, never ignored. Equal scores go to the node with fewer pods, then by name: the same
table and pod always give the same node.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from hub.api.validation.pods import RUNTIME_LABEL
from hub.controllers.capacity import PODS_MAX_DEFAULT, Amounts, Capacity, Load, Room, load_of
from hub.objects import Taint

Object = Mapping[str, Any]
Expression = tuple[str, str, tuple[str, ...]]
"""(key, operator, values)"""

UNSCHEDULABLE = Taint("node.kubernetes.io/unschedulable", "", "NoSchedule")
PROCESS, CONTAINER = "process", "container"
"""Runtimes, as nodes name theirs in RUNTIME_LABEL and pods theirs; a pod without the label is for a container runtime."""
WEIGHT_TAINTS, WEIGHT_AFFINITY, WEIGHT_FIT = 3, 2, 1
SCORE_MAX = 100


@dataclass(frozen=True, slots=True)
class Term:
    """One node selector term: all expressions and all names hold; an empty one matches nothing."""

    labels: tuple[Expression, ...] = ()
    names: tuple[Expression, ...] = ()

    def matches(self, room: Room) -> bool:
        if not self.labels and not self.names:
            return False
        return all(_holds(e, room.labels) for e in self.labels) and all(
            _holds(e, {"metadata.name": room.name}) for e in self.names
        )


def _holds(expression: Expression, labels: Mapping[str, str]) -> bool:
    key, operator, values = expression
    held = labels.get(key)
    if operator == "In":
        return held is not None and held in values
    if operator == "NotIn":
        return held is None or held not in values
    if operator == "Exists":
        return held is not None
    if operator == "DoesNotExist":
        return held is None
    if operator in ("Gt", "Lt") and held is not None:
        try:
            left, right = int(held), int(values[0])
        except (ValueError, IndexError):
            return False
        return left > right if operator == "Gt" else left < right
    return False


def _term(term: Object) -> Term:
    def expressions(field: str) -> tuple[Expression, ...]:
        return tuple(
            (e.get("key", ""), e.get("operator", ""), tuple(e.get("values") or ()))
            for e in term.get(field) or ()
        )

    return Term(expressions("matchExpressions"), expressions("matchFields"))


def tolerates(toleration: Object, taint: Taint) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.effect:
        return False
    key = toleration.get("key") or ""
    if key and key != taint.key:
        return False
    if (toleration.get("operator") or "Equal") == "Exists":
        return True
    return bool(key) and (toleration.get("value") or "") == taint.value


def untolerated(
    taints: Iterable[Taint], tolerations: Sequence[Object], effects: Iterable[str]
) -> Taint | None:
    """The first taint of these effects that nothing tolerates."""
    for taint in taints:
        if taint.effect in effects and not any(tolerates(t, taint) for t in tolerations):
            return taint
    return None


@dataclass(frozen=True, slots=True)
class Demand:
    """What a pod asks of its node. `required` is None when any node will do."""

    load: Load
    selector: tuple[tuple[str, str], ...] = ()
    required: tuple[Term, ...] | None = None
    preferred: tuple[tuple[int, Term], ...] = ()
    tolerations: tuple[Object, ...] = ()
    unsupported: tuple[str, ...] = ()
    runtime: str = CONTAINER

    def suits(self, room: Room) -> bool:
        """The node's runtime is the pod's; a node that does not say which it has may have any."""
        return room.labels.get(RUNTIME_LABEL, self.runtime) == self.runtime

    def matches(self, room: Room) -> bool:
        """nodeSelector and required node affinity."""
        if any(room.labels.get(k) != v for k, v in self.selector):
            return False
        return self.required is None or any(term.matches(room) for term in self.required)

    def pinned(self) -> str | None:
        """The one node that required affinity names, as a DaemonSet's pods do."""
        names = set()
        for term in self.required or ():
            pins = [v for _, op, values in term.names if op == "In" and len(values) == 1 for v in values]
            if not pins:
                return None
            names.add(pins[0])
        return names.pop() if len(names) == 1 else None


def demand_of(raw: bytes) -> Demand:
    """From a Pod's JSON."""
    pod = orjson.loads(raw)
    spec = pod["spec"]
    labels = (pod.get("metadata") or {}).get("labels") or {}
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    return Demand(
        load_of(raw),
        tuple(sorted((spec.get("nodeSelector") or {}).items())),
        None if required is None else tuple(_term(t) for t in required.get("nodeSelectorTerms") or ()),
        tuple(
            (p["weight"], _term(p.get("preference") or {}))
            for p in affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
        ),
        tuple(spec.get("tolerations") or ()),
        tuple(_unsupported(spec)),
        PROCESS if labels.get(RUNTIME_LABEL) == PROCESS else CONTAINER,
    )


def _unsupported(spec: Object) -> Iterable[str]:
    affinity = spec.get("affinity") or {}
    for kind in ("podAffinity", "podAntiAffinity"):
        if (affinity.get(kind) or {}).get("requiredDuringSchedulingIgnoredDuringExecution"):
            yield f"required {kind} is not supported by this scheduler"
    if any(
        c.get("whenUnsatisfiable") == "DoNotSchedule" for c in spec.get("topologySpreadConstraints") or ()
    ):
        yield "topologySpreadConstraints with DoNotSchedule are not supported by this scheduler"
    for volume in spec.get("volumes") or ():
        claim = volume.get("persistentVolumeClaim")
        if claim:
            yield f'persistentvolumeclaim "{claim.get("claimName", "")}" not found'
    if spec.get("resourceClaims"):
        yield "resourceClaims are not supported by this scheduler"


# -- filters ------------------------------------------------------------------------------------------------------


def refusals(demand: Demand, room: Room) -> tuple[str, ...]:
    """Why the pod does not fit on the node: the reasons of the first filter that refuses; empty when it fits."""
    if room.unschedulable and not any(tolerates(t, UNSCHEDULABLE) for t in demand.tolerations):
        return ("node(s) were unschedulable",)
    taint = untolerated(room.taints, demand.tolerations, ("NoSchedule", "NoExecute"))
    if taint is not None:
        return (f"node(s) had untolerated taint {{{taint.key}: {taint.value}}}",)
    if not demand.matches(room):
        return ("node(s) didn't match Pod's node affinity/selector",)
    if not demand.suits(room):
        return (f"node(s) had no {demand.runtime} runtime",)
    if demand.load.ports and room.port_conflict(demand.load.ports):
        return ("node(s) didn't have free ports for the requested pod ports",)
    return tuple(_insufficient(demand.load.requests, room))


def _insufficient(requests: Amounts, room: Room) -> Iterable[str]:
    if room.pods + 1 > room.allocatable.get("pods", PODS_MAX_DEFAULT):
        yield "Too many pods"
    for name, wanted in requests.items():
        if wanted > room.allocatable.get(name, 0) - room.requested.get(name, 0):
            yield f"Insufficient {name}"


# -- scores -------------------------------------------------------------------------------------------------------


def _least_allocated(demand: Demand, room: Room) -> int:
    total = 0
    for name, taken, wanted in (
        ("cpu", room.scored_cpu, demand.load.scored[0]),
        ("memory", room.scored_memory, demand.load.scored[1]),
    ):
        offered = room.allocatable.get(name, 0)
        if offered > 0:
            total += max(0, offered - taken - wanted) * SCORE_MAX // offered
    return total // 2


def _avoided(demand: Demand, room: Room) -> int:
    return sum(
        1
        for taint in room.taints
        if taint.effect == "PreferNoSchedule" and not any(tolerates(t, taint) for t in demand.tolerations)
    )


def scores(demand: Demand, rooms: Sequence[Room]) -> list[int]:
    """One figure per node, higher is better; comparable within one call only."""
    avoided = [_avoided(demand, room) for room in rooms]
    liked = [sum(w for w, term in demand.preferred if term.matches(room)) for room in rooms]
    worst, best = max(avoided, default=0), max(liked, default=0)
    out = []
    for room, shunned, wanted in zip(rooms, avoided, liked, strict=True):
        score = WEIGHT_FIT * _least_allocated(demand, room)
        score += WEIGHT_TAINTS * (SCORE_MAX - shunned * SCORE_MAX // worst if worst else SCORE_MAX)
        score += WEIGHT_AFFINITY * (wanted * SCORE_MAX // best if best else 0)
        out.append(score)
    return out


# -- the decision -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unfit:
    """No node takes the pod; `message` says why, in Kubernetes' words."""

    message: str


def decide(demand: Demand, capacity: Capacity) -> str | Unfit:
    """The node for the pod, or why there is none."""
    count = capacity.nodes_count
    if demand.unsupported:
        return Unfit(f"0/{count} nodes are available: {', '.join(demand.unsupported)}.")
    if not count:
        return Unfit("no nodes available to schedule pods")
    reasons: Counter[str] = Counter()
    fitting: list[Room] = []
    pinned = demand.pinned()
    candidates: Iterable[Room] = capacity.nodes()
    if pinned is not None:
        room = capacity.known(pinned)
        candidates = [room] if room is not None else []
        others = count - len(candidates)
        if others:
            reasons["node(s) didn't match Pod's node affinity/selector"] = others
    for room in candidates:
        refused = refusals(demand, room)
        if refused:
            reasons.update(refused)
        else:
            fitting.append(room)
    if not fitting:
        listed = ", ".join(sorted(f"{n} {reason}" for reason, n in reasons.items()))
        return Unfit(f"0/{count} nodes are available: {listed}.")
    points = scores(demand, fitting)
    return min(zip(points, fitting, strict=True), key=lambda c: (-c[0], c[1].pods, c[1].name))[1].name
