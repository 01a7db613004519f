"""The Node as the agent sees it: capacity, system facts, addresses, labels, conditions.

`body()` is stable: as long as nothing about the node changes its bytes do not, so that it is reported only then.
"""

from edgelite import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edgelite.port import Host

MEMORY_RESERVED_BYTES = 100 << 20  # as kubelet's default eviction threshold
CONDITIONS = {
    "MemoryPressure": ("EdgeliteHasSufficientMemory", "edgelite has sufficient memory available"),
    "DiskPressure": ("EdgeliteHasNoDiskPressure", "edgelite can write its journal"),
    "PIDPressure": ("EdgeliteHasSufficientPID", "edgelite has sufficient PID available"),
}


def rfc3339(wall: float) -> str:
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall))


class NodeReport:
    """Builds the body of `node` entries. `conditions` maps type -> {"status", "reason", "message", "since"}."""

    def __init__(
        self, host: "Host", name: str, data_dir: str, pods_max: int, labels: "dict[str, str]", runtime: str
    ) -> None:
        self._host = host
        self._name = name
        self._data_dir = data_dir
        self._pods_max = pods_max
        self._labels = labels
        self._runtime = runtime
        self.runtime_version = ""
        self.address = ""
        self.conditions: "dict[str, dict[str, Any]]" = {}

    def load_conditions(self, stored: "dict[str, dict[str, Any]]", now_wall: float) -> None:
        """Takes what was journalled, so that transition times survive a restart."""
        self.conditions = stored
        for kind in CONDITIONS:
            self.set_condition(kind, "False", CONDITIONS[kind][0], CONDITIONS[kind][1], now_wall)

    def set_condition(self, kind: str, status: str, reason: str, message: str, now_wall: float) -> bool:
        """True when it changed."""
        old = self.conditions.get(kind)
        if old is not None and (old["status"], old["reason"], old["message"]) == (status, reason, message):
            return False
        since = old["since"] if old is not None and old["status"] == status else now_wall
        self.conditions[kind] = {"status": status, "reason": reason, "message": message, "since": since}
        return True

    def addresses(self) -> "list[dict[str, str]]":
        found = [{"type": "InternalIP", "address": self.address}] if self.address else []
        return found + [{"type": "Hostname", "address": self._name}]

    def capacity(self) -> "dict[str, str]":
        return {
            "cpu": str(self._host.cpus()),
            "memory": "%dKi" % (self._host.memory_bytes() >> 10),
            "pods": str(self._pods_max),
            "ephemeral-storage": "%dKi" % (self._host.disk_bytes(self._data_dir) >> 10),
        }

    def allocatable(self) -> "dict[str, str]":
        """Capacity without what the system needs, as kubelet's defaults have it: 100 MiB and 10% of the disk."""
        free = self.capacity()
        free["memory"] = "%dKi" % (max(0, self._host.memory_bytes() - MEMORY_RESERVED_BYTES) >> 10)
        free["ephemeral-storage"] = "%dKi" % (self._host.disk_bytes(self._data_dir) * 9 // 10 >> 10)
        return free

    def labels(self) -> "dict[str, str]":
        """The host's labels and the configured ones; the host's win."""
        labels = dict(self._labels)
        labels["kubernetes.io/hostname"] = self._name
        labels["kubernetes.io/os"] = self._host.system
        labels["kubernetes.io/arch"] = self._host.architecture()
        labels["cloudhub.dev/runtime"] = self._runtime
        return labels

    def body(self) -> "dict[str, Any]":
        info = self._host.node_info()
        info["kubeletVersion"] = "v%s-edgelite" % __version__
        info["kubeProxyVersion"] = ""
        info["containerRuntimeVersion"] = self.runtime_version
        labels = self.labels()
        conditions = []
        for kind in sorted(self.conditions):
            c = self.conditions[kind]
            conditions.append(
                {
                    "type": kind,
                    "status": c["status"],
                    "reason": c["reason"],
                    "message": c["message"],
                    "lastTransitionTime": rfc3339(c["since"]),
                }
            )
        return {
            "capacity": self.capacity(),
            "allocatable": self.allocatable(),
            "nodeInfo": info,
            "addresses": self.addresses(),
            "labels": dict([(k, labels[k]) for k in sorted(labels)]),
            "conditions": conditions,
        }
