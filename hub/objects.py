"""The kinds that the hub stores: their names, their store keys, and the few fields of each that it reads.

The views are msgspec Structs over the object's JSON: decoding one costs 2 µs and keeps some hundred bytes, where a
tree of dicts costs 37 µs and 15 KB (design section 5). A view has what indexes, sessions and controllers need all
the time; whoever needs more decodes the object when it needs it.

Views are made from JSON, so no cycle can lead through one: Python's collector, which stops the loop for as long as it looks
at all that it follows, need not follow them (`gc=False`).
"""

from dataclasses import dataclass
from sys import intern

import msgspec

from edgelite.devices import INTERVAL_DEFAULT_S

PREFIX = "cloudhub.dev"
"""API group and label prefix of the project."""


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """One kind as the API names it, equal to itself alone: it is asked for, and compared, at every step of every request. `group` is "" for core; `node_bound`: its partition is the node's slot."""

    group: str
    version: str
    resource: str
    kind: str
    namespaced: bool
    singular: str
    short_names: tuple[str, ...] = ()
    node_bound: bool = False
    status: bool = False
    scale: bool = False
    categories: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def group_resource(self) -> str:
        """As Kubernetes' messages name it: `pods`, `deployments.apps`."""
        return f"{self.resource}.{self.group}" if self.group else self.resource


NAMESPACES = Resource("", "v1", "namespaces", "Namespace", False, "namespace", ("ns",), status=True)
NODES = Resource("", "v1", "nodes", "Node", False, "node", ("no",), node_bound=True, status=True)
PODS = Resource(
    "", "v1", "pods", "Pod", True, "pod", ("po",), node_bound=True, status=True, categories=("all",)
)
CONFIGMAPS = Resource("", "v1", "configmaps", "ConfigMap", True, "configmap", ("cm",))
SECRETS = Resource("", "v1", "secrets", "Secret", True, "secret")
EVENTS = Resource("", "v1", "events", "Event", True, "event", ("ev",))
SERVICEACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount", True, "serviceaccount", ("sa",))
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease", True, "lease")
DEPLOYMENTS = Resource(
    "apps",
    "v1",
    "deployments",
    "Deployment",
    True,
    "deployment",
    ("deploy",),
    status=True,
    scale=True,
    categories=("all",),
)
REPLICASETS = Resource(
    "apps",
    "v1",
    "replicasets",
    "ReplicaSet",
    True,
    "replicaset",
    ("rs",),
    status=True,
    scale=True,
    categories=("all",),
)
DAEMONSETS = Resource(
    "apps", "v1", "daemonsets", "DaemonSet", True, "daemonset", ("ds",), status=True, categories=("all",)
)
POLICIES = Resource(
    "admissionregistration.k8s.io",
    "v1",
    "validatingadmissionpolicies",
    "ValidatingAdmissionPolicy",
    False,
    "validatingadmissionpolicy",
    status=True,
)
POLICY_BINDINGS = Resource(
    "admissionregistration.k8s.io",
    "v1",
    "validatingadmissionpolicybindings",
    "ValidatingAdmissionPolicyBinding",
    False,
    "validatingadmissionpolicybinding",
)
RBAC = "rbac.authorization.k8s.io"
ROLES = Resource(RBAC, "v1", "roles", "Role", True, "role")
ROLEBINDINGS = Resource(RBAC, "v1", "rolebindings", "RoleBinding", True, "rolebinding")
CLUSTERROLES = Resource(RBAC, "v1", "clusterroles", "ClusterRole", False, "clusterrole")
CLUSTERROLEBINDINGS = Resource(
    RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", False, "clusterrolebinding"
)
CERTIFICATESIGNINGREQUESTS = Resource(
    "certificates.k8s.io",
    "v1",
    "certificatesigningrequests",
    "CertificateSigningRequest",
    False,
    "certificatesigningrequest",
    ("csr",),
    status=True,
)
JOINTOKENS = Resource(PREFIX, "v1alpha1", "jointokens", "JoinToken", False, "jointoken", status=True)
REVOKED_AT = f"{PREFIX}/revoked-at"
"""Annotation of a Revocation, set by the hub: when it was made, to the microsecond; creationTimestamp has seconds."""
REVOCATIONS = Resource(PREFIX, "v1alpha1", "revocations", "Revocation", False, "revocation")
DEVICES = Resource(
    PREFIX, "v1alpha1", "devices", "Device", True, "device", ("dev",), node_bound=True, status=True
)

SERVICES = Resource("", "v1", "services", "Service", True, "service")
"""This kind and the next are read from a Kubernetes cluster, and not served."""
ENDPOINTSLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", True, "endpointslice")

RESOURCES: tuple[Resource, ...] = (
    NAMESPACES,
    NODES,
    PODS,
    CONFIGMAPS,
    SECRETS,
    EVENTS,
    SERVICEACCOUNTS,
    LEASES,
    DEPLOYMENTS,
    REPLICASETS,
    DAEMONSETS,
    POLICIES,
    POLICY_BINDINGS,
    ROLES,
    ROLEBINDINGS,
    CLUSTERROLES,
    CLUSTERROLEBINDINGS,
    CERTIFICATESIGNINGREQUESTS,
    JOINTOKENS,
    REVOCATIONS,
    DEVICES,
)

SHARED = "-"
"""The partition of what is bound to no node, and the namespace part of what has none."""


class Keys:
    """Store keys of one cell. Formats: ARCHITECTURE.md, "Store keys"."""

    def __init__(self, cell: str = "default") -> None:
        self.root = f"/cloudhub/{cell}/"

    @classmethod
    def at(cls, root: str) -> "Keys":
        """Of a cell by its root, which ends in `/`."""
        keys = cls()
        keys.root = root
        return keys

    def objects(self, res: Resource) -> str:
        """Prefix of all objects of a kind, over all partitions."""
        return f"{self.root}obj/{res.group or 'core'}/{res.resource}/"

    def object(self, res: Resource, partition: str, namespace: str, name: str) -> str:
        return f"{self.objects(res)}{partition}/{namespace or SHARED}/{name}"

    def names(self, res: Resource, namespace: str | None = None) -> str:
        """Prefix of the name index of a kind, or of one namespace of it."""
        base = f"{self.root}idx/{res.group or 'core'}/{res.resource}/"
        return base if namespace is None else f"{base}{namespace or SHARED}/"

    def name(self, res: Resource, namespace: str, name: str) -> str:
        return self.names(res, namespace or SHARED) + name

    def slot_owner(self, slot: int) -> str:
        return f"{self.root}slot/{slot:04d}/owner"

    def slot_epoch(self, slot: int) -> str:
        return f"{self.root}slot/{slot:04d}/epoch"


def partition_of_slot(slot: int) -> str:
    return f"{slot:04d}"


def slot_of_partition(partition: str) -> int | None:
    """None: of what is bound to no slot."""
    return int(partition) if partition.isascii() and partition.isdigit() else None


def split_object_key(key: str) -> tuple[str, str, str]:
    """(partition, namespace or "", name) of an object key."""
    partition, namespace, name = key.rsplit("/", 3)[1:]
    # Every cached object keeps these, and there are few different ones.
    return intern(partition), "" if namespace == SHARED else intern(namespace), name


class OwnerReference(msgspec.Struct, frozen=True, gc=False):
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False
    blockOwnerDeletion: bool = False


class Meta(msgspec.Struct, frozen=True, gc=False):
    """ObjectMeta, as far as the hub itself reads it."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    ownerReferences: tuple[OwnerReference, ...] | None = None
    finalizers: tuple[str, ...] | None = None
    creationTimestamp: str = ""
    deletionTimestamp: str | None = None
    deletionGracePeriodSeconds: int | None = None


class Condition(msgspec.Struct, frozen=True, gc=False):
    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""
    lastTransitionTime: str | None = None


class PodSpecView(msgspec.Struct, frozen=True, gc=False):
    nodeName: str = ""
    schedulerName: str = ""


class PodStatusView(msgspec.Struct, frozen=True, gc=False):
    phase: str = ""
    conditions: tuple[Condition, ...] | None = None


class PodView(msgspec.Struct, frozen=True, gc=False):
    metadata: Meta
    spec: PodSpecView = PodSpecView()
    status: PodStatusView = PodStatusView()


class Taint(msgspec.Struct, frozen=True, gc=False):
    key: str = ""
    value: str = ""
    effect: str = ""


class NodeSpecView(msgspec.Struct, frozen=True, gc=False):
    unschedulable: bool = False
    taints: tuple[Taint, ...] | None = None


class NodeStatusView(msgspec.Struct, frozen=True, gc=False):
    allocatable: dict[str, str] | None = None
    conditions: tuple[Condition, ...] | None = None


class NodeView(msgspec.Struct, frozen=True, gc=False):
    metadata: Meta
    spec: NodeSpecView = NodeSpecView()
    status: NodeStatusView = NodeStatusView()


class RevocationSpecView(msgspec.Struct, frozen=True, gc=False):
    node: str = ""
    token: str = ""
    serial: str = ""
    reason: str = ""


class RevocationView(msgspec.Struct, frozen=True, gc=False):
    metadata: Meta
    spec: RevocationSpecView = RevocationSpecView()


class DevicePropertyView(msgspec.Struct, frozen=True, gc=False):
    minIntervalSeconds: int = INTERVAL_DEFAULT_S


class DeviceSpecView(msgspec.Struct, frozen=True, gc=False):
    nodeName: str = ""
    properties: tuple[DevicePropertyView, ...] = ()


class DeviceView(msgspec.Struct, frozen=True, gc=False):
    metadata: Meta
    spec: DeviceSpecView = DeviceSpecView()


class ObjectView(msgspec.Struct, frozen=True, gc=False):
    """Any kind of which only the metadata is read all the time."""

    metadata: Meta


View = PodView | NodeView | RevocationView | DeviceView | ObjectView
VIEWS: dict[Resource, type[PodView] | type[NodeView] | type[RevocationView] | type[DeviceView]] = {
    PODS: PodView,
    NODES: NodeView,
    REVOCATIONS: RevocationView,
    DEVICES: DeviceView,
}


def view_type(
    res: Resource,
) -> type[PodView] | type[NodeView] | type[RevocationView] | type[DeviceView] | type[ObjectView]:
    return VIEWS.get(res, ObjectView)
