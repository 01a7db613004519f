"""What a DaemonSet needs: which nodes get a pod, which pods go, the steps of a rolling update, its status. [pure]

A DaemonSet's pods are pinned to their node by required node affinity on metadata.name and bound by the scheduler, as in
Kubernetes, so that requests, host ports and taints are checked in one place.
They tolerate nodes that are not ready or unreachable: at the edge that is a link that is down, and the pod is to run as
soon as the node is back. ControllerRevisions are not stored: a pod is current when its `controller-revision-hash` label
stands for the present template; `kubectl rollout undo` of a DaemonSet therefore has no history to go back to.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from hub.cache import Entry
from hub.controllers.capacity import Room
from hub.controllers.meta import FINISHED, is_available, ready_since, seconds, template_hash, token
from hub.controllers.rollout import bare_template, resolve
from hub.controllers.scheduling import Demand, demand_of, untolerated
from hub.objects import NodeView, PodView

Object = dict[str, Any]
Pod = Entry[PodView]

BURST = 250
HASH_LABEL = "controller-revision-hash"
GENERATION_LABEL = "pod-template-generation"
GENERATION_ANNOTATION = "deprecated.daemonset.template.generation"
_TOLERATED = (
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/not-ready", "NoSchedule"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoSchedule"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
)
_TOLERATED_ON_HOST_NETWORK = ("node.kubernetes.io/network-unavailable", "NoSchedule")


def tolerations(spec: Object) -> list[Object]:
    """The template's own, and those that every daemon pod has."""
    wanted = [*_TOLERATED, *([_TOLERATED_ON_HOST_NETWORK] if spec.get("hostNetwork") else [])]
    own = list(spec.get("tolerations") or ())
    return own + [
        made
        for key, effect in wanted
        if (made := {"key": key, "operator": "Exists", "effect": effect}) not in own
    ]


@dataclass(frozen=True, slots=True)
class Template:
    """A DaemonSet's template, as far as it decides about nodes. Kept while the generation stands."""

    demand: Demand
    node_name: str
    digest: str


def template_of(ds: Object) -> Template:
    template = ds["spec"]["template"]
    spec = {**template["spec"], "tolerations": tolerations(template["spec"])}
    collisions = (ds.get("status") or {}).get("collisionCount", 0)
    return Template(
        demand_of(orjson.dumps({"metadata": template.get("metadata") or {}, "spec": spec})),
        spec.get("nodeName") or "",
        template_hash(bare_template(template), collisions),
    )


@dataclass(frozen=True, slots=True)
class Fate:
    """Should a pod run on the node; may one that is there stay."""

    run: bool
    keep: bool


def fate(template: Template, node: NodeView) -> Fate:
    name = node.metadata.name
    taints = node.spec.taints or ()
    room = Room(name, True, node.metadata.labels or {}, taints)
    if template.node_name and template.node_name != name:
        return Fate(False, False)
    if not template.demand.matches(room) or not template.demand.suits(room):
        return Fate(False, False)
    held = template.demand.tolerations
    return Fate(
        untolerated(taints, held, ("NoSchedule", "NoExecute")) is None,
        untolerated(taints, held, ("NoExecute",)) is None,
    )


def target(pod: Pod) -> str:
    """The node that the pod is bound or pinned to; "" for none."""
    return pod.view.spec.nodeName or str(pod.note.pinned)


def by_node(pods: Iterable[Pod]) -> dict[str, list[Pod]]:
    """Pods by target, on each node the oldest first."""
    out: dict[str, list[Pod]] = {}
    for pod in pods:
        out.setdefault(target(pod), []).append(pod)
    for held in out.values():
        held.sort(key=lambda p: (seconds(p.meta.creationTimestamp) or 0.0, p.meta.name))
    return out


def pod_spec_on(spec: Object, node: str) -> Object:
    """`spec` (changed in place) pinned to `node`, with the daemon's tolerations."""
    spec["tolerations"] = tolerations(spec)
    pin = [{"key": "metadata.name", "operator": "In", "values": [node]}]
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    required = affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
    terms = required.get("nodeSelectorTerms") or [{}]
    required["nodeSelectorTerms"] = [{**term, "matchFields": pin} for term in terms]
    return spec


def pod_name(ds: Object, node: str, digest: str, seen: Sequence[Pod]) -> str:
    """The same for the same view of the world; another one for the next pod on that node."""
    meta = ds["metadata"]
    uids = sorted(p.meta.uid for p in seen)
    return (
        f"{meta['name'][:57]}-{token(5, meta['uid'], node, digest, meta.get('resourceVersion', ''), *uids)}"
    )


@dataclass
class Plan:
    """`create`: nodes; `failed` are those of `delete` that had failed, which wait for their back-off."""

    create: list[str] = field(default_factory=list)
    delete: list[Pod] = field(default_factory=list)
    failed: list[Pod] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.create or self.delete or self.failed)


@dataclass(frozen=True)
class World:
    """A DaemonSet's nodes and pods: `fates` of all nodes, `pods` by target."""

    fates: Mapping[str, Fate]
    pods: Mapping[str, Sequence[Pod]]
    template: Template
    min_ready_s: int
    surge: int
    unavailable: int
    now: float

    @property
    def desired(self) -> int:
        return sum(1 for f in self.fates.values() if f.run)

    def is_current(self, pod: Pod) -> bool:
        return (pod.meta.labels or {}).get(HASH_LABEL) == self.template.digest

    def available(self, pod: Pod) -> bool:
        return is_available(pod, self.min_ready_s, self.now)


def world_of(
    ds: Object, fates: Mapping[str, Fate], pods: Iterable[Pod], template: Template, now: float
) -> World:
    strategy = ds["spec"].get("updateStrategy") or {}
    rolling = strategy.get("rollingUpdate") or {}
    desired = sum(1 for f in fates.values() if f.run)
    surge = resolve(rolling.get("maxSurge", 0), desired, up=True)
    unavailable = resolve(rolling.get("maxUnavailable", 1), desired, up=True)
    if not surge and not unavailable:
        unavailable = 1
    if strategy.get("type") == "OnDelete":
        surge = unavailable = 0
    min_ready = ds["spec"].get("minReadySeconds") or 0
    return World(fates, by_node(pods), template, min_ready, surge, unavailable, now)


def manage(world: World) -> Plan:
    """One pod on every node that should have one, none elsewhere."""
    plan = Plan()
    for node, verdict in world.fates.items():
        pods = world.pods.get(node, ())
        if verdict.run and not pods:
            plan.create.append(node)
        elif not verdict.keep:
            plan.delete += [p for p in pods if p.meta.deletionTimestamp is None]
        else:
            _tidy(world, pods, plan)
    for node, pods in world.pods.items():
        if node not in world.fates:
            # Bound ones are the pod collector's, which waits and checks that the node is really gone.
            plan.delete += [p for p in pods if not p.view.spec.nodeName and p.meta.deletionTimestamp is None]
    return plan


def _tidy(world: World, pods: Sequence[Pod], plan: Plan) -> None:
    running: list[Pod] = []
    for pod in pods:
        if pod.meta.deletionTimestamp is not None:
            continue
        if pod.view.status.phase == "Failed":
            plan.failed.append(pod)
        elif pod.view.status.phase in FINISHED:
            plan.delete.append(pod)
        else:
            running.append(pod)
    running.sort(key=lambda p: not p.view.spec.nodeName)
    if not world.surge:
        plan.delete += running[1:]
        return
    for kind in (True, False):
        plan.delete += [p for p in running if world.is_current(p) is kind][1:]


def roll(world: World) -> Plan:
    """The next step of a rolling update, when `manage` finds nothing to do."""
    return _roll_surging(world) if world.surge else _roll_replacing(world)


def _on_nodes(world: World) -> Iterable[tuple[str, Pod | None, Pod | None]]:
    """(node, current pod, old pod) of every node that should run one; pods that are going are left out."""
    for node, verdict in world.fates.items():
        if not verdict.run:
            continue
        alive = [p for p in world.pods.get(node, ()) if p.meta.deletionTimestamp is None]
        current = next((p for p in alive if world.is_current(p)), None)
        yield node, current, next((p for p in alive if not world.is_current(p)), None)


def _roll_replacing(world: World) -> Plan:
    down = 0
    free: list[Pod] = []
    candidates: list[Pod] = []
    for _, current, old in _on_nodes(world):
        if current is None and old is not None:
            if world.available(old):
                candidates.append(old)
            else:
                down += 1
                free.append(old)
        elif current is None or old is not None or not world.available(current):
            down += 1
    room = max(0, world.unavailable - down)
    return Plan(delete=[*free, *candidates[:room]] if world.unavailable else [])


def _roll_surging(world: World) -> Plan:
    surging = 0
    free: list[str] = []
    candidates: list[str] = []
    done: list[Pod] = []
    for node, current, old in _on_nodes(world):
        if old is None:
            continue
        if current is None:
            (candidates if world.available(old) else free).append(node)
        elif world.available(current):
            done.append(old)
        else:
            surging += 1
    room = max(0, world.surge - surging)
    return Plan(create=[*free, *candidates[:room]], delete=done)


def status(ds: Object, world: World) -> Object:
    """The whole new status."""
    desired = current = ready = available = updated = misscheduled = 0
    for node, verdict in world.fates.items():
        pods = world.pods.get(node, ())
        if not verdict.run:
            misscheduled += bool(pods)
            continue
        desired += 1
        if pods:
            current += 1
            pod = pods[0]
            ready += ready_since(pod) is not None
            available += world.available(pod)
            updated += world.is_current(pod)
    old = ds.get("status") or {}
    out: Object = {
        **old,
        "currentNumberScheduled": current,
        "numberMisscheduled": misscheduled,
        "desiredNumberScheduled": desired,
        "numberReady": ready,
        "observedGeneration": ds["metadata"].get("generation", 0),
    }
    optional = {
        "updatedNumberScheduled": updated,
        "numberAvailable": available,
        "numberUnavailable": desired - available,
    }
    for name, value in optional.items():
        if value:
            out[name] = value
        else:
            out.pop(name, None)
    return out
