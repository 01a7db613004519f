"""Edge nodes as Nodes of a Kubernetes cluster: what they carry beyond what their agents report. [pure]

The label EDGE marks the Nodes that are ours: informers, webhook and policies select by it. Addresses that the API
server would dial (for logs and exec it asks the node itself) are the hub's where any are configured, for an edge node
cannot be dialled; its own address is then shown as ExternalIP.

The node lifecycle controller sets the pressure conditions of a silent node to Unknown, and an agent reports them only
when they change: REPORTED keeps what is not as usual, so that a node that is back shows what it showed before.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hub.objects import PREFIX, Taint
from hub.reports import ENROLLED, READY

Object = dict[str, Any]

EDGE: Final = f"{PREFIX}/edge"
REPORTED: Final = f"{PREFIX}/reported-conditions"
REACHED_AT: Final = f"{PREFIX}/kubelet-addresses"
"""Annotation: the IP addresses of the hub's that the Node shows as its own."""
ROLE: Final = "node-role.kubernetes.io/edge"
USUAL: Final[Mapping[str, tuple[str, str]]] = {
    "MemoryPressure": ("EdgeliteHasSufficientMemory", "edgelite has sufficient memory available"),
    "DiskPressure": ("EdgeliteHasNoDiskPressure", "edgelite can write its journal"),
    "PIDPressure": ("EdgeliteHasSufficientPID", "edgelite has sufficient PID available"),
}
"""Pressure conditions that the lifecycle controller touches, and how agents say that there is none."""
BY_LIFECYCLE: Final = frozenset({"NodeStatusUnknown", "NodeStatusNeverUpdated"})
EFFECTS: Final = frozenset({"NoSchedule", "PreferNoSchedule", "NoExecute"})
ADDRESS_TYPES: Final = frozenset({"Hostname", "InternalIP", "InternalDNS", "ExternalIP", "ExternalDNS"})
REACHED_FIRST: Final = frozenset({"Hostname", "InternalIP", "InternalDNS"})
"""Address types that an API server prefers by default."""


@dataclass(frozen=True, slots=True)
class NodeForm:
    """How the user wants edge nodes to look.

    taints: set when a Node is made, as Kubernetes' --register-with-taints; later they are the user's to change.
    labels: added to every Node, and kept.
    addresses: (type, address) under which the API server reaches the hub on behalf of the node; `{node}` in an
        address stands for its name. Empty: the agent's own are shown, and logs and exec need a route to them.
    kubelet_port: the port of the hub's kubelet face; 0: there is none.
    """

    taints: tuple[Taint, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[tuple[str, str], ...] = ()
    kubelet_port: int = 0

    def __post_init__(self) -> None:
        for taint in self.taints:
            if not taint.key or taint.effect not in EFFECTS:
                raise ValueError(f"taint {taint.key!r}: the effect has to be one of {sorted(EFFECTS)}")
        for kind, _ in self.addresses:
            if kind not in ADDRESS_TYPES:
                raise ValueError(f"address type {kind!r} is none of {sorted(ADDRESS_TYPES)}")
        if not 0 <= self.kubelet_port <= 65535:
            raise ValueError(f"kubelet_port {self.kubelet_port} is no port")


def is_ours(node: Object) -> bool:
    """Is it an edge node, though somebody may have taken its label away? Not one of another kind that has its name."""
    meta = node["metadata"]
    return (meta.get("labels") or {}).get(EDGE) == "true" or ENROLLED in (meta.get("annotations") or {})


def register(node: Object, form: NodeForm) -> None:
    """Completes a Node that is about to be made."""
    if form.taints:
        spec = node.setdefault("spec", {})
        spec["taints"] = [
            {"key": t.key, "effect": t.effect, **({"value": t.value} if t.value else {})} for t in form.taints
        ]
    furnish(node, form)


def furnish(node: Object, form: NodeForm) -> None:
    """What a Node of ours carries at all times; idempotent. Called on every Node before it is written."""
    meta = node["metadata"]
    labels = meta.get("labels") or {}
    meta["labels"] = {
        **labels,
        "kubernetes.io/hostname": labels.get("kubernetes.io/hostname", meta["name"]),
        ROLE: labels.get(ROLE, ""),
        **form.labels,
        EDGE: "true",
    }
    status = node.setdefault("status", {})
    if form.kubelet_port:
        status["daemonEndpoints"] = {"kubeletEndpoint": {"Port": form.kubelet_port}}
    if form.addresses:
        annotations = meta.get("annotations") or {}
        former = frozenset(annotations.get(REACHED_AT, "").split(","))
        status["addresses"] = _addresses(meta["name"], status.get("addresses") or [], form, former)
        at = ",".join(text for kind, text in form.addresses if kind.endswith("IP"))
        if at != annotations.get(REACHED_AT, ""):
            meta["annotations"] = {**annotations, REACHED_AT: at}
    _keep_conditions(node)


def _addresses(name: str, held: list[Object], form: NodeForm, former: frozenset[str]) -> list[Object]:
    """`former`: where the replica before this one was reached; that says nothing about the node."""
    ours = [{"type": kind, "address": text.replace("{node}", name)} for kind, text in form.addresses]
    known = {(a["type"], a["address"]) for a in ours}
    own: list[Object] = []
    for address in held:
        kind, text = address.get("type", ""), address.get("address", "")
        if (kind, text) in known or text in former:
            continue
        if kind in REACHED_FIRST:
            if not kind.endswith("IP"):
                continue  # the node's name says nothing new
            kind = "ExternalIP"
        shown = {"type": kind, "address": text}
        if shown not in own and (kind, text) not in known:
            own.append(shown)
    return ours + own


def _keep_conditions(node: Object) -> None:
    """Notes pressure that the agent has reported, and gives it back to a node that the lifecycle controller called
    Unknown and that is here again."""
    conditions: list[Object] = node["status"].get("conditions") or []
    noted = _noted(node)
    present = any(c["type"] == READY and c["status"] == "True" for c in conditions)
    for condition in conditions:
        kind = condition["type"]
        if kind not in USUAL:
            continue
        if condition["status"] == "Unknown" and condition.get("reason") in BY_LIFECYCLE:
            if present:
                status, (reason, message) = "False", USUAL[kind]
                if kind in noted:
                    status, reason, message = noted[kind]
                condition.update(status=status, reason=reason, message=message)
        elif condition["status"] == "False":
            noted.pop(kind, None)
        else:
            noted[kind] = (condition["status"], condition.get("reason") or "", condition.get("message") or "")
    annotations = node["metadata"].get("annotations") or {}
    text = json.dumps(noted, sort_keys=True, separators=(",", ":")) if noted else None
    if text != annotations.get(REPORTED):
        kept = {k: v for k, v in annotations.items() if k != REPORTED}
        node["metadata"]["annotations"] = {**kept, REPORTED: text} if text else kept


def _noted(node: Object) -> dict[str, tuple[str, str, str]]:
    text = (node["metadata"].get("annotations") or {}).get(REPORTED)
    if not text:
        return {}
    try:
        held = json.loads(text)
        return {k: (str(v[0]), str(v[1]), str(v[2])) for k, v in held.items() if k in USUAL}
    except (ValueError, AttributeError, IndexError, TypeError, KeyError):
        return {}  # somebody has edited it; the next report writes it anew
