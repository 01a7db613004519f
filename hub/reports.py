"""What an edge's reports and the channel's own findings make of Node, Pod and Event objects. [pure]

Every function takes a fresh dict and returns the new one, or None to leave the object alone, as `Registry.mutate` wants
it. Invariant I5: what is not bound to the reporting node raises NotFound, which the gateway answers as `obsolete`.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
import orjson

from hub import errors
from hub.cache import Entry
from hub.objects import NODES, PODS, PREFIX, NodeView
from security.frames import EventReport, NodeReport
from security.identity import DEFAULT_TENANT, NodeId

Object = dict[str, Any]

PARTED: Final = f"{PREFIX}/parted"
CONFIRMED: Final = f"{PREFIX}/confirmed"
REFUSED: Final = f"{PREFIX}/refused"
ENROLLED: Final = f"{PREFIX}/enrolled"
"""The enrolment record of a Node that was made by a join."""
CERTIFICATE: Final = f"{PREFIX}/certificate"
"""The newest certificate that a node has shown: `certificate_text`."""
SITE: Final = f"{PREFIX}/site"
POOL: Final = f"{PREFIX}/pool"
TENANT: Final = f"{PREFIX}/tenant"

READY, UNCONFIRMED, HISTORY_PARTED, CLONED, DOCUMENTS_REFUSED = (
    "Ready",
    "Unconfirmed",
    "HistoryParted",
    "CloneDetected",
    "DocumentsRefused",
)
HUB_CONDITIONS: Final = frozenset({READY, UNCONFIRMED, HISTORY_PARTED, CLONED, DOCUMENTS_REFUSED})
"""Node conditions that a node's own report cannot touch."""
HUB_POD_CONDITIONS: Final = frozenset({"PodScheduled"})
AGENT_POD_CONDITIONS: Final = frozenset(
    {"PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"}
)
"""Pod conditions that are the agent's, as a kubelet's are; what others have set stays."""

AGENT_LABELS: Final = frozenset(
    {
        "kubernetes.io/arch",
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        f"{PREFIX}/runtime",
        f"{PREFIX}/board",
        f"{PREFIX}/agent-version",
    }
)
AGENT_LABEL_PREFIXES: Final = ("node.kubernetes.io/",)
"""A node names its own hardware; where it belongs (site, pool, tenant, roles, topology) others decide."""
RESERVED_LABEL: Final = re.compile(r"(^|\.)(kubernetes\.io|k8s\.io|cloudhub\.dev)/")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", re.ASCII)
_LABEL_PREFIX = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)

# Nodes


class NodeCertificate(msgspec.Struct, frozen=True, gc=False, rename={"begins": "from", "ends": "until"}):
    """CERTIFICATE, decoded."""

    root: str
    serial: str
    begins: int
    ends: int


ENROLLED_MARGIN_S: Final = 3600.0
"""Of enrolments that are not exact: certificates were dated back a little, and clocks of replicas differ."""


class Enrolment(msgspec.Struct, frozen=True, gc=False):
    """ENROLLED, as far as it is read here."""

    token: str = ""
    enrolled: float = 0.0
    """When its key joined, unix seconds; a repeated join leaves it."""
    exact: bool = False
    """Does no certificate of it begin before that? Earlier releases dated them back."""

    void_before: float = 0.0
    """It took the place of another key, by a revocation of that moment."""

    @property
    def not_before(self) -> float | None:
        """When its certificates begin at the earliest, unix seconds; None: at any time."""
        return float(int(self.enrolled)) if self.exact else None

    def is_foreign(self, begins: float) -> bool:
        """Is a certificate that begins then of somebody who had the name before, and whom no revocation refuses? False where it is
        not known (0)."""
        if self.void_before:
            return False
        margin = 0.0 if self.exact else ENROLLED_MARGIN_S
        return 0 < begins < int(self.enrolled) - margin


decode_enrolment = msgspec.json.Decoder(Enrolment).decode
decode_certificate = msgspec.json.Decoder(NodeCertificate).decode
Change = Callable[[Object, str], Object | None]
"""Alters a Node at a time (RFC 3339); None: there is nothing to alter."""


def new_node(identity: NodeId, *, pool: str = "", labels: Mapping[str, str] | None = None) -> Object:
    """The Node of an identity. Its site label decides its slot, as the certificate's affinity does."""
    own = {k: v for k, v in (labels or {}).items() if is_label(k, v) and not RESERVED_LABEL.search(k)}
    own["kubernetes.io/hostname"] = identity.node
    if identity.affinity != identity.node:
        own[SITE] = identity.affinity
    if pool:
        own[POOL] = pool
    if identity.tenant != DEFAULT_TENANT:
        own[TENANT] = identity.tenant
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": identity.node, "labels": own},
        "spec": {},
        "status": {},
    }


def merge_node(node: Object, report: NodeReport) -> Object:
    """The Node with what its agent says about it."""
    status = node.setdefault("status", {})
    for field in ("capacity", "allocatable", "nodeInfo", "addresses"):
        value = getattr(report, field)
        if value is not None:
            status[field] = value
    labels = node["metadata"].setdefault("labels", {})
    for key, value in (report.labels or {}).items():
        if (key in AGENT_LABELS or key.startswith(AGENT_LABEL_PREFIXES)) and is_label(key, value):
            labels[key] = value
    if report.conditions is not None:
        stated = [{k: v for k, v in c.items() if v is not None} for c in report.conditions]
        reported = {c["type"]: c for c in stated if c.get("type")}
        kept = [
            c
            for c in status.get("conditions") or []
            if c.get("type") not in reported or c.get("type") in HUB_CONDITIONS
        ]
        status["conditions"] = kept + [c for t, c in reported.items() if t not in HUB_CONDITIONS]
    return node


def set_condition(node: Object, kind: str, status: str, reason: str, message: str, now: str) -> bool:
    """Sets a Node's condition; the transition time only moves with the status. False when nothing changed."""
    conditions: list[Object] = node.setdefault("status", {}).setdefault("conditions", [])
    for held in conditions:
        if held.get("type") == kind:
            if (held.get("status"), held.get("reason"), held.get("message")) == (status, reason, message):
                return False
            if held.get("status") != status:
                held["lastTransitionTime"] = now
            held.update(status=status, reason=reason, message=message, lastHeartbeatTime=now)
            return True
    conditions.append(
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
    )
    return True


def drop_conditions(node: Object, kinds: Iterable[str]) -> None:
    status, gone = node.setdefault("status", {}), frozenset(kinds)
    status["conditions"] = [c for c in status.get("conditions") or [] if c.get("type") not in gone]


def certificate_text(root: str, serial: str, begins: float, ends: float) -> str:
    """The value of CERTIFICATE. `root`: the first 16 hex digits of the id of the root that it comes from; times are unix
    seconds."""
    return orjson.dumps({"root": root, "serial": serial, "from": int(begins), "until": int(ends)}).decode()


def certified(node: Object, text: str) -> Object | None:
    """The node has shown this certificate (`certificate_text`), or said to have installed it. An older one counts too: a
    node that shows it has lost the newer one."""
    annotations = node["metadata"].get("annotations") or {}
    if annotations.get(CERTIFICATE) == text:
        return None
    node["metadata"]["annotations"] = {**annotations, CERTIFICATE: text}
    return node


def certificate_of(annotations: Mapping[str, str] | None) -> NodeCertificate | None:
    """What a Node's CERTIFICATE says; None where there is none, or one that somebody has damaged."""
    try:
        return decode_certificate((annotations or {}).get(CERTIFICATE, ""))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def enrolment_of(annotations: Mapping[str, str] | None) -> Enrolment:
    """By whom a Node was enrolled; empty where that is not known."""
    try:
        return decode_enrolment((annotations or {}).get(ENROLLED, ""))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return Enrolment()


def connected(node: Object, now: str) -> Object | None:
    """The node's agent is here and live."""
    return node if set_condition(node, READY, "True", "EdgeliteReady", "edgelite is connected", now) else None


def silent(node: Object, now: str) -> Object | None:
    """The node has not been heard of for three heartbeats. Kubernetes' words, since tools look for them."""
    held = {c.get("type"): c for c in (node.get("status") or {}).get("conditions") or []}.get(READY)
    if held is None:
        reason, message = "NodeStatusNeverUpdated", "The agent has never connected."
    else:
        reason, message = "NodeStatusUnknown", "The agent stopped sending heartbeats."
    return node if set_condition(node, READY, "Unknown", reason, message, now) else None


def on_hold(node: Object, condition: str, reason: str, held: str, now: str) -> Object | None:
    """Nothing passes between hub and node before somebody confirms `held`, the claim that the node came with."""
    changed = set_condition(node, condition, "True", condition, reason, now)
    changed |= set_condition(node, READY, "False", condition, reason, now)
    annotations = node["metadata"].get("annotations") or {}
    if annotations.get(PARTED) != held:
        node["metadata"]["annotations"] = {**annotations, PARTED: held}
        changed = True
    return node if changed else None


def reunited(node: Object, now: str) -> Object | None:
    """The node follows this store: takes the conditions and annotations of a parting away."""
    before = len(node.get("status", {}).get("conditions") or [])
    drop_conditions(node, (HISTORY_PARTED, UNCONFIRMED))
    annotations = node["metadata"].get("annotations") or {}
    left = {k: v for k, v in annotations.items() if k not in (PARTED, CONFIRMED)}
    changed = len(left) != len(annotations) or before != len(node["status"]["conditions"])
    if left or annotations:
        node["metadata"]["annotations"] = left
    return connected(node, now) or (node if changed else None)


def cloned(node: Object, present: bool, now: str) -> Object | None:
    """Two machines connect with this identity, or no longer."""
    if not present:
        before = len(node.get("status", {}).get("conditions") or [])
        drop_conditions(node, (CLONED,))
        return node if before != len(node["status"]["conditions"]) else None
    message = (
        "two agents connect with this node's identity (a copied data directory or disk image); both are refused. Stop"
        " one of them, remove its data directory and let it join anew under a name of its own"
    )
    return node if set_condition(node, CLONED, "True", "SameIdentityTwice", message, now) else None


def documents_refused(node: Object, refused: Mapping[str, tuple[str, str]], now: str) -> Object | None:
    """The node does not take these documents: (reason, message) by key. Empty takes the condition away."""
    if not refused:
        before = len(node.get("status", {}).get("conditions") or [])
        drop_conditions(node, (DOCUMENTS_REFUSED,))
        return node if before != len(node["status"]["conditions"]) else None
    shown = [f"{key}: {reason}: {message}" for key, (reason, message) in sorted(refused.items())[:8]]
    more = f" and {len(refused) - len(shown)} more" if len(refused) > len(shown) else ""
    reason = sorted({reason for reason, _ in refused.values()})[0] or "Refused"
    text = "; ".join(shown)[:4096] + more
    return node if set_condition(node, DOCUMENTS_REFUSED, "True", reason, text, now) else None


def is_label(key: str, value: str) -> bool:
    """Whether this is a label that Kubernetes takes."""
    prefix, slash, name = key.rpartition("/")
    if slash and (_LABEL_PREFIX.fullmatch(prefix) is None or len(prefix) > 253):
        return False
    return _LABEL_NAME.fullmatch(name) is not None and (
        value == "" or (isinstance(value, str) and _LABEL_NAME.fullmatch(value) is not None)
    )


def ready_of(entry: Entry[NodeView]) -> str:
    """The status of a cached Node's Ready condition, "" without one."""
    return next((c.status for c in entry.view.status.conditions or () if c.type == READY), "")


def has_condition(entry: Entry[NodeView], kind: str) -> bool:
    """Whether a cached Node's condition is True."""
    return any(c.type == kind and c.status == "True" for c in entry.view.status.conditions or ())


# Pods


def merge_pod(node: str, status: Object) -> Callable[[Object], Object | None]:
    """Puts `status` in place of a Pod's, except for conditions that neither the agent reports nor is the owner of."""

    def apply(pod: Object) -> Object | None:
        _check_bound(pod, node)
        held = pod.get("status") or {}
        reported = [c for c in status.get("conditions") or [] if c.get("type") not in HUB_POD_CONDITIONS]
        theirs = AGENT_POD_CONDITIONS.union(c.get("type") for c in reported)
        kept = [c for c in held.get("conditions") or [] if c.get("type") not in theirs]
        pod["status"] = {**status, "conditions": kept + reported}
        return pod

    return apply


def refuse_pod(node: str, reason: str, message: str) -> Callable[[Object], Object | None]:
    """The node does not take the pod's document: says so where `kubectl get` shows it."""

    def apply(pod: Object) -> Object | None:
        _check_bound(pod, node)
        status = pod.setdefault("status", {})
        if status.get("phase", "Pending") != "Pending":
            return None  # an earlier version runs on; the Node's condition tells of the refused one
        status.update(phase="Pending", reason=reason or "Refused", message=message)
        return pod

    return apply


def release_pod(pod: Object, node: str) -> bool:
    """A pod that its node reports gone: True when it can be removed now; else it is marked so that whoever takes the
    last finalizer away removes it. Raises NotFound when it was not being deleted."""
    _check_bound(pod, node)
    meta = pod["metadata"]
    if not meta.get("deletionTimestamp"):
        raise errors.NotFound(PODS.resource, meta["name"])
    if meta.get("finalizers"):
        meta["deletionGracePeriodSeconds"] = 0
        return False
    return True


def _check_bound(pod: Object, node: str) -> None:
    if pod["spec"].get("nodeName") != node:
        raise errors.NotFound(PODS.resource, pod["metadata"]["name"])


# Events


def new_event(
    report: EventReport,
    *,
    node: str,
    pod: tuple[str, str, str] | None,
    node_uid: str,
    inc: str,
    n: int,
    now: str,
    rfc3339: Callable[[float], str],
) -> Object:
    """A core/v1 Event about a pod (namespace, name, UID) or the node itself, under its deterministic name."""
    if pod is not None:
        namespace, name, uid = pod
        about: Object = {
            "kind": PODS.kind,
            "namespace": namespace,
            "name": name,
            "uid": uid,
            "apiVersion": "v1",
        }
    else:
        namespace, name, uid = "default", node, node_uid
        about = {"kind": NODES.kind, "name": name, "uid": uid, "apiVersion": "v1"}
    if report.field:
        about["fieldPath"] = report.field
    mark = hashlib.sha256(f"{uid}\0{inc}\0{n}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{name[: 253 - 17]}.{mark}", "namespace": namespace},
        "involvedObject": about,
        "reason": report.reason,
        "message": report.message[:1024],
        "source": {"component": "edgelite", "host": node},
        "reportingComponent": "edgelite",
        "reportingInstance": node,
        "firstTimestamp": rfc3339(report.first) if report.first > 0 else now,
        "lastTimestamp": rfc3339(report.last) if report.last > 0 else now,
        "count": report.count,
        "type": report.type,
        "eventTime": None,
    }
