"""What a hub costs with simulated nodes: memory per connected node, CPU per heartbeat and per delivered document.

    python -m tests.bench.hub [nodes]

The hub is `cloudhub serve` with its SQLite store in a process of its own; this process plays the nodes over real mTLS with
the real codec. CPU is user plus system time of the hub's process, memory its resident set. Connections come from
nodes that the hub knows already, with certificates of its own CA.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from security import tls
from security.ca import CertificateAuthority
from security.identity import NodeId
from tests.bench.report import emit
from tests.e2e.cluster import Cluster, running_cluster, wait_for
from tests.hub.edge_pki import csr
from tests.sim.fleet import Fleet, SimNode

HEARTBEATS = 20
BROADCASTS = 10
CONFIGMAP = "/api/v1/namespaces/default/configmaps/shared"


class Bench:
    """A hub with Node objects for `count` nodes, and the fleet that plays them."""

    def __init__(self, cluster: Cluster, count: int) -> None:
        # No heartbeat may be due while CPU is counted: the bench sends its own.
        self.hub = cluster.hub(heartbeat="10m")
        assert self.hub.process is not None
        self.process = psutil.Process(self.hub.process.pid)
        self.count = count
        self.fleet = Fleet(("127.0.0.1", self.hub.edge_port))
        self.nodes = [
            self.fleet.node(f"n{i:05d}", context) for i, context in enumerate(self._contexts(cluster))
        ]
        for node in self.nodes:
            body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name}}
            self.hub.api("POST", "/api/v1/nodes", body)

    def _contexts(self, cluster: Cluster):  # type: ignore[no-untyped-def]
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        ca = CertificateAuthority.open(str(self.hub.data_dir / "ca"))
        key = ec.generate_private_key(ec.SECP256R1())
        key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        request = csr(key)
        for i in range(self.count):
            name = f"n{i:05d}"
            cert = ca.issue_node(request, NodeId(ca.trust_domain, "default", name, name), time.time())
            yield tls.client_context(ca.root_pem, cert, key_pem)

    def rss_kb(self) -> float:
        return float(self.process.memory_info().rss) / 1024

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def settled_cpu_s(self) -> float:
        """CPU once the hub is idle: writes that follow what was measured belong to it."""
        last = -1.0

        def idle() -> bool:
            nonlocal last
            before, last = last, self.cpu_s()
            self.fleet.step(0.2)
            return last - before < 0.01

        wait_for(idle, "the hub is idle", 60)
        return self.cpu_s()

    def cost_us(self, work: Callable[[], None], times: int) -> float:
        """µs of hub CPU per unit of `work`, which does `times` units."""
        before = self.settled_cpu_s()
        work()
        return (self.settled_cpu_s() - before) * 1e6 / times


def heartbeats(bench: Bench) -> None:
    for _ in range(HEARTBEATS):
        wanted = {n.name: n.pongs + 1 for n in bench.nodes}
        for i, node in enumerate(bench.nodes):
            node.ping()
            if i % 16 == 15:
                bench.fleet.step(0)  # spread over time, not one burst
        bench.fleet.run(lambda w=wanted: all(n.pongs >= w[n.name] for n in bench.nodes))  # type: ignore[misc]


def broadcast(bench: Bench) -> None:
    for i in range(BROADCASTS):
        wanted = bench.nodes[0].acks + 1
        text = f"{i + 1:04d}" * 225
        bench.hub.api("PATCH", CONFIGMAP, {"data": {"text": text}}, "application/merge-patch+json")
        bench.fleet.run(lambda w=wanted: all(n.acks >= w for n in bench.nodes))  # type: ignore[misc]


def pod(name: str, node: str) -> object:
    uses = [{"configMapRef": {"name": "shared"}}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"cloudhub.dev/runtime": "process"}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "command": ["x"], "envFrom": uses}]},
    }


def connect(bench: Bench, nodes: list[SimNode]) -> None:
    bench.fleet.connect_all(nodes)
    refused = [(n.name, n.goaway) for n in nodes if not n.welcome]
    assert not refused, f"{len(refused)} nodes were not let in: {refused[:3]}"


def run(count: int) -> None:
    with tempfile.TemporaryDirectory() as directory, running_cluster(Path(directory)) as cluster:
        bench = Bench(cluster, count)
        try:
            bench.settled_cpu_s()
            idle_kb = bench.rss_kb()
            emit("hub", "rss_idle", idle_kb / 1024, "MB")
            emit("hub", "connect_cpu", bench.cost_us(lambda: connect(bench, bench.nodes), count), "us")
            emit("hub", f"rss_per_node_at_{count}", (bench.rss_kb() - idle_kb) / count, "KB", target=30)
            emit(
                "hub",
                "cpu_per_heartbeat",
                bench.cost_us(lambda: heartbeats(bench), HEARTBEATS * count),
                "us",
                target=20,
            )
            bench.hub.api(
                "POST", CONFIGMAP.rsplit("/", 1)[0],
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}, "data": {"text": "0" * 900}},
            )  # fmt: skip
            for node in bench.nodes:
                bench.hub.api("POST", "/api/v1/namespaces/default/pods", pod(f"p-{node.name}", node.name))
            bench.fleet.run(lambda: all(n.acks >= 2 for n in bench.nodes))
            cost = bench.cost_us(lambda: broadcast(bench), BROADCASTS * count)
            emit("hub", "cpu_per_1kb_document", cost, "us", target=30)
            emit("hub", "rss_per_node_with_pod", (bench.rss_kb() - idle_kb) / count, "KB")
        finally:
            bench.fleet.stop()
            for node in bench.nodes:
                node.drop()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 200), hard))
    run(count)


if __name__ == "__main__":
    main()
