"""meta.k8s.io/v1 Table: objects as `kubectl get` prints them. [pure]

Job: `table` for a list, or for one object of a watch. Time is an argument. Invariant: a row has a cell for every
column, whatever is missing in the object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from hub.api import pod_status
from hub.api.ages import human_duration, unix
from hub.api.schema import Resource
from hub.errors import BadRequest
from security.revocation import KINDS

Object = dict[str, Any]
INCLUDE: Final = ("None", "Metadata", "Object")
_NONE: Final = "<none>"
_UNKNOWN: Final = "<unknown>"


class Column(NamedTuple):
    """priority 0 is always shown, 1 with `-o wide`."""

    name: str
    type: str
    help: str
    priority: int = 0

    def definition(self) -> Object:
        return {
            "name": self.name,
            "type": self.type,
            "format": "name" if self.name == "Name" and self.priority == 0 else "",
            "description": self.help,
            "priority": self.priority,
        }


class View(NamedTuple):
    """How one kind is printed: its columns, and the cells of an object at a time in unix seconds."""

    columns: tuple[Column, ...]
    cells: Callable[[Object, float], list[Any]]


def _since(timestamp: str, now: float) -> str:
    at = unix(timestamp)
    return _UNKNOWN if at is None else human_duration(now - at)


def _age(obj: Object, now: float) -> str:
    return _since(obj.get("metadata", {}).get("creationTimestamp", ""), now)


def _name(obj: Object) -> str:
    return str(obj.get("metadata", {}).get("name", ""))


_C_NAME: Final = Column("Name", "string", "The object's name.")
_C_AGE: Final = Column("Age", "string", "Time since the object was created.")
_C_CONTAINERS: Final = (
    Column("Containers", "string", "The containers of the template.", 1),
    Column("Images", "string", "The images of the template's containers.", 1),
    Column("Selector", "string", "The labels of the pods that belong to it.", 1),
)


def _int(name: str, text: str) -> Column:
    return Column(name, "integer", text)


def _str(name: str, text: str, priority: int = 0) -> Column:
    return Column(name, "string", text, priority)


def _template_cells(spec: Object) -> list[str]:
    containers = spec.get("template", {}).get("spec", {}).get("containers", [])
    names = ",".join(c.get("name", "") for c in containers)
    images = ",".join(c.get("image", "") for c in containers)
    return [names, images, _selector(spec.get("selector", {}))]


def _selector(selector: Object) -> str:
    terms = [f"{k}={v}" for k, v in sorted(selector.get("matchLabels", {}).items())]
    for rule in selector.get("matchExpressions", []):
        key, operator = rule.get("key", ""), rule.get("operator", "")
        values = ",".join(sorted(rule.get("values", [])))
        terms.append(
            {"Exists": key, "DoesNotExist": f"!{key}"}.get(operator, f"{key} {operator.lower()} ({values})")
        )
    return ",".join(terms) or _NONE


def _pod(obj: Object, now: float) -> list[Any]:
    summary = pod_status.summary(obj)
    spec, status = obj.get("spec", {}), obj.get("status", {})
    restarts = str(summary.restarts)
    if summary.restarts and summary.last_restart:
        restarts += f" ({_since(summary.last_restart, now)} ago)"
    ips = status.get("podIPs") or [{"ip": status.get("podIP", "")}]
    gates = [g.get("conditionType") for g in spec.get("readinessGates", [])]
    true = {c.get("type") for c in status.get("conditions", []) if c.get("status") == "True"}
    met = sum(1 for gate in gates if gate in true)
    return [
        _name(obj),
        f"{summary.ready}/{summary.total}",
        summary.status,
        restarts,
        _age(obj, now),
        ips[0].get("ip") or _NONE,
        spec.get("nodeName") or _NONE,
        status.get("nominatedNodeName") or _NONE,
        f"{met}/{len(gates)}" if gates else _NONE,
    ]


_POD: Final = View(
    (
        _C_NAME,
        _str("Ready", "Containers that are ready, of all."),
        _str("Status", "The pod's state in one word."),
        _str("Restarts", "How often containers were restarted, and when last."),
        _C_AGE,
        _str("IP", "The pod's address.", 1),
        _str("Node", "The node that it is bound to.", 1),
        _str("Nominated Node", "The node where it waits for room.", 1),
        _str("Readiness Gates", "Extra conditions that are true, of all.", 1),
    ),
    _pod,
)


def _roles(obj: Object) -> str:
    roles = set()
    for label, value in obj.get("metadata", {}).get("labels", {}).items():
        if label.startswith("node-role.kubernetes.io/"):
            roles.add(label.partition("/")[2])
        elif label == "kubernetes.io/role":
            roles.add(value)
    return ",".join(sorted(roles - {""})) or _NONE


def _node(obj: Object, now: float) -> list[Any]:
    status = obj.get("status", {})
    ready = [c.get("status") for c in status.get("conditions", []) if c.get("type") == "Ready"]
    words = ["Unknown"] if not ready else ["Ready" if ready[0] == "True" else "NotReady"]
    if obj.get("spec", {}).get("unschedulable"):
        words.append("SchedulingDisabled")
    info = status.get("nodeInfo", {})
    addresses: Object = {}
    for address in status.get("addresses", []):
        addresses.setdefault(address.get("type"), address.get("address"))
    return [
        _name(obj),
        ",".join(words),
        _roles(obj),
        _age(obj, now),
        info.get("kubeletVersion", ""),
        addresses.get("InternalIP") or _NONE,
        addresses.get("ExternalIP") or _NONE,
        info.get("osImage") or _UNKNOWN,
        info.get("kernelVersion") or _UNKNOWN,
        info.get("containerRuntimeVersion") or _UNKNOWN,
    ]


_NODE: Final = View(
    (
        _C_NAME,
        _str("Status", "Whether the node is ready and takes new pods."),
        _str("Roles", "The node's roles, from its labels."),
        _C_AGE,
        _str("Version", "The agent's version."),
        _str("Internal-IP", "The address inside its site.", 1),
        _str("External-IP", "The address outside its site.", 1),
        _str("OS-Image", "The operating system.", 1),
        _str("Kernel-Version", "The kernel's version.", 1),
        _str("Container-Runtime", "What runs the containers.", 1),
    ),
    _node,
)


def _deployment(obj: Object, now: float) -> list[Any]:
    spec, status = obj.get("spec", {}), obj.get("status", {})
    return [
        _name(obj),
        f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 0)}",
        status.get("updatedReplicas", 0),
        status.get("availableReplicas", 0),
        _age(obj, now),
        *_template_cells(spec),
    ]


_DEPLOYMENT: Final = View(
    (
        _C_NAME,
        _str("Ready", "Pods that are ready, of those wanted."),
        _int("Up-to-date", "Pods of the latest template."),
        _int("Available", "Pods that have been ready long enough."),
        _C_AGE,
        *_C_CONTAINERS,
    ),
    _deployment,
)


def _replica_set(obj: Object, now: float) -> list[Any]:
    spec, status = obj.get("spec", {}), obj.get("status", {})
    counts = [spec.get("replicas", 0), status.get("replicas", 0), status.get("readyReplicas", 0)]
    return [_name(obj), *counts, _age(obj, now), *_template_cells(spec)]


_REPLICA_SET: Final = View(
    (
        _C_NAME,
        _int("Desired", "Pods wanted."),
        _int("Current", "Pods that exist."),
        _int("Ready", "Pods that are ready."),
        _C_AGE,
        *_C_CONTAINERS,
    ),
    _replica_set,
)


def _daemon_set(obj: Object, now: float) -> list[Any]:
    spec, status = obj.get("spec", {}), obj.get("status", {})
    fields = (
        "desiredNumberScheduled",
        "currentNumberScheduled",
        "numberReady",
        "updatedNumberScheduled",
        "numberAvailable",
    )
    wanted = spec.get("template", {}).get("spec", {}).get("nodeSelector", {})
    return [
        _name(obj),
        *(status.get(field, 0) for field in fields),
        ",".join(f"{k}={v}" for k, v in sorted(wanted.items())) or _NONE,
        _age(obj, now),
        *_template_cells(spec),
    ]


_DAEMON_SET: Final = View(
    (
        _C_NAME,
        _int("Desired", "Nodes that should run a pod."),
        _int("Current", "Nodes that have a pod."),
        _int("Ready", "Nodes whose pod is ready."),
        _int("Up-to-date", "Nodes whose pod has the latest template."),
        _int("Available", "Nodes whose pod has been ready long enough."),
        _str("Node Selector", "The labels of the nodes meant."),
        _C_AGE,
        *_C_CONTAINERS,
    ),
    _daemon_set,
)


def _config_map(obj: Object, now: float) -> list[Any]:
    return [_name(obj), len(obj.get("data", {})) + len(obj.get("binaryData", {})), _age(obj, now)]


def _secret(obj: Object, now: float) -> list[Any]:
    return [_name(obj), obj.get("type", ""), len(obj.get("data", {})), _age(obj, now)]


def _namespace(obj: Object, now: float) -> list[Any]:
    return [_name(obj), obj.get("status", {}).get("phase", ""), _age(obj, now)]


def _lease(obj: Object, now: float) -> list[Any]:
    return [_name(obj), obj.get("spec", {}).get("holderIdentity", ""), _age(obj, now)]


def _role(obj: Object, now: float) -> list[Any]:
    # As in Kubernetes: the one table that shows the time itself.
    return [_name(obj), obj.get("metadata", {}).get("creationTimestamp", "")]


def _binding(obj: Object, now: float) -> list[Any]:
    ref, subjects = obj.get("roleRef", {}), obj.get("subjects", [])
    kinds = ("User", "Group", "ServiceAccount")
    named: dict[str, list[str]] = {kind: [] for kind in kinds}
    for subject in subjects:
        if subject.get("kind") in named:
            at = f"{subject.get('namespace', '')}/" if subject["kind"] == "ServiceAccount" else ""
            named[subject["kind"]].append(at + subject.get("name", ""))
    role = f"{ref.get('kind', '')}/{ref.get('name', '')}"
    return [_name(obj), role, _age(obj, now), *(", ".join(named[kind]) for kind in kinds)]


_BINDING: Final = View(
    (
        _C_NAME,
        _str("Role", "What it gives."),
        _C_AGE,
        _str("Users", "Users that it means.", 1),
        _str("Groups", "Groups that it means.", 1),
        _str("ServiceAccounts", "Service accounts that it means.", 1),
    ),
    _binding,
)
_ROLE: Final = View((_C_NAME, _str("Created At", "When it was made.")), _role)


def _service_account(obj: Object, now: float) -> list[Any]:
    return [_name(obj), len(obj.get("secrets", [])), _age(obj, now)]


def _revocation(obj: Object, now: float) -> list[Any]:
    spec = obj.get("spec", {})
    kind = next((kind for kind in KINDS if spec.get(kind)), "")
    return [_name(obj), kind, spec.get(kind, ""), spec.get("reason", ""), _age(obj, now)]


def _device(obj: Object, now: float) -> list[Any]:
    spec, status = obj.get("spec", {}), obj.get("status", {})
    accepted: Object = next((c for c in status.get("conditions", []) if c.get("type") == "Accepted"), {})
    reports = status.get("reported", {})
    latest = max((r.get("time", "") for r in reports.values()), default="")
    shown = ", ".join(f"{name}={_brief(r.get('value'))}" for name, r in sorted(reports.items())[:8])
    return [
        _name(obj),
        spec.get("nodeName", ""),
        accepted.get("status", _UNKNOWN),
        _since(latest, now) if latest else _NONE,
        _age(obj, now),
        shown or _NONE,
    ]


def _brief(value: Any) -> str:
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
    return text if len(text) <= 32 else text[:29] + "..."


def _join_token(obj: Object, now: float) -> list[Any]:
    spec, status = obj.get("spec", {}), obj.get("status", {})
    target = f"node/{spec['node']}" if spec.get("node") else f"pool/{spec.get('pool', '')}"
    end = unix(status.get("expires", ""))
    if end is None:
        left = _UNKNOWN
    else:
        left = human_duration(end - now) if end > now else "expired"
    used = f"{status.get('redeemed', 0)}/{spec.get('count', 1)}"
    return [_name(obj), target, used, left, _age(obj, now), spec.get("site") or _NONE, spec.get("tenant", "")]


def _signing_request(obj: Object, now: float) -> list[Any]:
    spec, status = obj.get("spec", {}), obj.get("status", {})
    seconds = spec.get("expirationSeconds")
    decided = {c.get("type") for c in status.get("conditions", [])}
    condition = [verdict for verdict in ("Approved", "Denied", "Failed") if verdict in decided] or ["Pending"]
    if status.get("certificate"):
        condition.append("Issued")
    return [
        _name(obj),
        _age(obj, now),
        spec.get("signerName", ""),
        spec.get("username", ""),
        _NONE if seconds is None else human_duration(seconds),
        ",".join(condition),
    ]


_SIGNING_REQUEST: Final = View(
    (
        _C_NAME,
        _C_AGE,
        _str("SignerName", "Who is to sign it."),
        _str("Requestor", "Who asks."),
        _str("RequestedDuration", "How long the certificate is to last."),
        _str("Condition", "What was decided, and whether it was issued."),
    ),
    _signing_request,
)


def _event(obj: Object, now: float) -> list[Any]:
    """Both kinds of event: core/v1 and events.k8s.io/v1 name the same facts differently."""
    series = obj.get("series", {})
    moment = obj.get("eventTime", "")
    first = obj.get("firstTimestamp") or obj.get("deprecatedFirstTimestamp") or moment
    last = obj.get("lastTimestamp") or obj.get("deprecatedLastTimestamp") or first
    last = series.get("lastObservedTime") or last
    about = obj.get("involvedObject") or obj.get("regarding") or {}
    source = obj.get("source") or obj.get("deprecatedSource") or {}
    by = source.get("component") or obj.get("reportingComponent") or obj.get("reportingController") or ""
    count = series.get("count") or obj.get("count") or obj.get("deprecatedCount") or 1
    return [
        _since(last, now),
        obj.get("type", ""),
        obj.get("reason", ""),
        f"{about.get('kind', '').lower()}/{about.get('name', '')}",
        about.get("fieldPath", ""),
        ", ".join(part for part in (by, source.get("host") or obj.get("reportingInstance", "")) if part),
        (obj.get("message") or obj.get("note") or "").strip(),
        _since(first, now),
        count,
        _name(obj),
    ]


_EVENT: Final = View(
    (
        _str("Last Seen", "Time since it happened last."),
        _str("Type", "Normal or Warning."),
        _str("Reason", "What happened, in one word."),
        _str("Object", "What it is about."),
        _str("Subobject", "The part that it is about.", 1),
        _str("Source", "Who reported it.", 1),
        _str("Message", "What happened, in words."),
        _str("First Seen", "Time since it happened first.", 1),
        Column("Count", "integer", "How often it happened.", 1),
        Column("Name", "string", "The event's name.", 1),
    ),
    _event,
)
_VIEWS: Final[dict[str, View]] = {
    "Pod": _POD,
    "Node": _NODE,
    "Deployment": _DEPLOYMENT,
    "ReplicaSet": _REPLICA_SET,
    "DaemonSet": _DAEMON_SET,
    "Event": _EVENT,
    "ConfigMap": View((_C_NAME, _int("Data", "The number of entries."), _C_AGE), _config_map),
    "Secret": View(
        (_C_NAME, _str("Type", "What it holds."), _int("Data", "The number of entries."), _C_AGE), _secret
    ),
    "Namespace": View((_C_NAME, _str("Status", "Active or Terminating."), _C_AGE), _namespace),
    "Lease": View((_C_NAME, _str("Holder", "Who holds it."), _C_AGE), _lease),
    "Role": _ROLE,
    "ClusterRole": _ROLE,
    "RoleBinding": _BINDING,
    "ClusterRoleBinding": _BINDING,
    "ServiceAccount": View(
        (_C_NAME, _int("Secrets", "The number of secrets that it names."), _C_AGE), _service_account
    ),
    "CertificateSigningRequest": _SIGNING_REQUEST,
    "JoinToken": View(
        (
            _C_NAME,
            _str("For", "The node or pool that may join."),
            _str("Redeemed", "Nodes that have joined, of those allowed."),
            _str("Expires", "Time left."),
            _C_AGE,
            _str("Site", "The site of the nodes.", 1),
            _str("Tenant", "The tenant of the nodes.", 1),
        ),
        _join_token,
    ),
    "Revocation": View(
        (
            _C_NAME,
            _str("Of", "What is refused: node, token or serial."),
            _str("Value", "Which one."),
            _str("Reason", "Why."),
            _C_AGE,
        ),
        _revocation,
    ),
    "Device": View(
        (
            _C_NAME,
            _str("Node", "The node that it belongs to."),
            _str("Accepted", "Whether the node follows the spec."),
            _str("Reported", "How long ago something was reported last."),
            _C_AGE,
            _str("Values", "The latest values.", 1),
        ),
        _device,
    ),
}
_PLAIN: Final = View((_C_NAME, _C_AGE), lambda obj, now: [_name(obj), _age(obj, now)])


def row(
    resource: Resource, obj: Object, *, now: float, include: str = "Metadata", version: str = "v1"
) -> Object:
    """One TableRow. `obj` is the object as a dict."""
    view = _VIEWS.get(resource.kind, _PLAIN)
    out: Object = {"cells": view.cells(obj, now)}
    if include == "Object":
        out["object"] = {"kind": resource.kind, "apiVersion": resource.api_version, **obj}
    elif include == "Metadata":
        out["object"] = {
            "kind": "PartialObjectMetadata",
            "apiVersion": f"meta.k8s.io/{version}",
            "metadata": obj.get("metadata", {}),
        }
    return out


def table(
    resource: Resource,
    objects: Iterable[Object],
    *,
    now: float,
    include: str = "",
    list_meta: Object | None = None,
    columns: bool = True,
    version: str = "v1",
) -> Object:
    """A Table of `objects`.

    now: unix seconds. include: the query parameter includeObject ("" is Metadata). list_meta: resourceVersion,
    continue, remainingItemCount. columns: False for the later events of a watch. version: v1 or v1beta1.
    Raises BadRequest for another value of `include`.
    """
    include = include or "Metadata"
    if include not in INCLUDE:
        raise BadRequest(
            f"includeObject: Invalid value: \"{include}\": must be 'Metadata', 'Object', 'None', or empty"
        )
    view = _VIEWS.get(resource.kind, _PLAIN)
    return {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": list_meta or {},
        "columnDefinitions": [c.definition() for c in view.columns] if columns else None,
        "rows": [row(resource, o, now=now, include=include, version=version) for o in objects],
    }
