"""How what a node speaks of relates to that node: from what this hub knows, never from what the node says (I5)."""

from typing import TYPE_CHECKING, Final

from hub.devices import PREFIX as DEVICE
from hub.devices import split_device_key
from hub.documents import split_pod_key
from hub.reports import POOL, SITE, TENANT
from security.identity import DEFAULT_TENANT, NodeId
from security.policy import ABSENT, CLUSTER, OWN, Place, relation_between

if TYPE_CHECKING:
    from hub.gateway import Gateway

ABOUT_PODS: Final = ("pod", "gone", "token")
"""Upstream entries that concern a pod and nothing else."""


class Relations:
    """See the module. Nodes and Pods of slots that others own are unknown here, which is a relation like others."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway

    def of_entry(self, node: NodeId, entry_type: str, key: str) -> str:
        """Of what an upstream entry names (ARCHITECTURE.md, "Upstream entries")."""
        if entry_type == "static":
            kind, _, path = key.partition("/")
            if kind != "static":
                return CLUSTER
            namespace, _, name = path.partition("/")
            known = self._of_pod(node, namespace, name)
            return OWN if known == ABSENT and name.endswith(f"-{node.node}") else known
        if key == "node":
            return OWN if entry_type in ("node", "event") else CLUSTER
        wanted = "pod/" if entry_type in ABOUT_PODS else DEVICE if entry_type == "twin" else ""
        if entry_type == "node" or not key.startswith(wanted):
            return self.of_key(node, key) if key.startswith(("node/", "pod/", DEVICE)) else CLUSTER
        return OWN if key in self._gateway.desired.of(node.node) else self.of_key(node, key)

    def of_key(self, node: NodeId, key: str) -> str:
        """Of a document's key that is not among the node's own."""
        if key.startswith("node/"):
            return self._of_node(node, key[5:])
        if key.startswith(DEVICE):
            return self._of_device(node, key)
        pod = split_pod_key(key) if key.startswith("pod/") else None
        if pod is None:
            return ABSENT if key.startswith("pod/") else CLUSTER
        return self._of_pod(node, pod[0], pod[1], pod[2])

    def _of_pod(self, node: NodeId, namespace: str, name: str, uid: str = "") -> str:
        held = self._gateway.pod_entry(namespace, name)
        if held is None or (uid and held.meta.uid != uid):
            return ABSENT
        bound_to = held.view.spec.nodeName
        if not bound_to:
            return CLUSTER
        # Bound to it, and not among its documents: on its way here or from here.
        return ABSENT if bound_to == node.node else self._of_node(node, bound_to)

    def _of_device(self, node: NodeId, key: str) -> str:
        parts = split_device_key(key)
        held = self._gateway.share.devices.cache.get(parts[0], parts[1]) if parts is not None else None
        if parts is None or held is None or held.meta.uid != parts[2]:
            return ABSENT
        belongs_to = held.view.spec.nodeName
        return ABSENT if belongs_to == node.node else self._of_node(node, belongs_to)

    def _of_node(self, node: NodeId, name: str) -> str:
        other = self._place(name)
        if other is None:
            return ABSENT
        own = self._place(node.node)
        site = node.affinity if node.affinity != node.node else ""
        return relation_between(Place(node.tenant, own.pool if own else "", site), other)

    def _place(self, name: str) -> Place | None:
        """None for a node that this hub does not know."""
        entry = self._gateway.node_entry(name)
        if entry is None:
            return None
        labels = entry.meta.labels or {}
        return Place(labels.get(TENANT, DEFAULT_TENANT), labels.get(POOL, ""), labels.get(SITE, ""))
