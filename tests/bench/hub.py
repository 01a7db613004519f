"""What a hub costs with simulated nodes: memory per connected node, CPU per heartbeat and per delivered document.

    python -m tests.bench.hub [nodes]

The hub is `cloudhub serve` with its SQLite store in a process of its own; this process plays the nodes over real mTLS with
the real codec. CPU is user plus system time of the hub's process once it is idle again, so writes that follow what was
measured belong to it; a figure is the median of several rounds, each of which is also played against the floor
(`tests.bench.floor`). Memory is the resident set: of a node's first connection, which stores that the Node is Ready,
and of one to a hub that was started again and knows its nodes already.
"""

import resource
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from security import tls
from security.ca import CertificateAuthority
from security.identity import NodeId
from tests.bench.floor import Floor
from tests.bench.meter import Cost, Instructions, Meter
from tests.bench.report import emit
from tests.e2e.cluster import Cluster, Hub, running_cluster, wait_for
from tests.hub.edge_pki import csr
from tests.sim.fleet import Fleet

ROUNDS = 5
HEARTBEATS = 10
BROADCASTS = 5
IDLE_MS = 5.0
"""A hub that uses less than this in 0.2 s has nothing to do."""
CONFIGMAP = "/api/v1/namespaces/default/configmaps/shared"


class Side:
    """A server process, and the simulated nodes that are connected to it."""

    def __init__(self, address: tuple[str, int], pid: int, contexts: dict[str, ssl.SSLContext]) -> None:
        self.fleet = Fleet(address)
        self.nodes = [self.fleet.node(name, context) for name, context in contexts.items()]
        self.meter = Meter(pid)

    def connect(self) -> None:
        self.fleet.connect_all(self.nodes)
        refused = [(n.name, n.goaway) for n in self.nodes if not n.welcome]
        assert not refused, f"{len(refused)} nodes were not let in: {refused[:3]}"

    def settled_cpu_s(self) -> float:
        """CPU so far, once the process is idle."""
        last = -1.0

        def idle() -> bool:
            nonlocal last
            before, last = last, self.meter.cpu_s()
            self.fleet.run_for(0.2)
            return (self.meter.cpu_s() - last) * 1000 < IDLE_MS and before >= 0

        wait_for(idle, "the server is idle", 60)
        return self.meter.cpu_s()

    def cost(self, work: Callable[[], None], times: int) -> Cost:
        """Of one unit of `work`, which does `times` units."""
        instructions = Instructions(self.meter.pid)
        before = self.settled_cpu_s()
        instructions.start()
        work()
        cpu_s = self.settled_cpu_s() - before
        counted = instructions.stop()
        return Cost(cpu_s * 1e6 / times, None if counted is None else counted / times)

    def heartbeats(self) -> None:
        for _ in range(HEARTBEATS):
            wanted = {n.name: n.pongs + 1 for n in self.nodes}
            for i, node in enumerate(self.nodes):
                node.ping()
                if i % 16 == 15:
                    self.fleet.step(0)  # spread over time, not one burst
            self.fleet.run(lambda w=wanted: all(n.pongs >= w[n.name] for n in self.nodes))  # type: ignore[misc]

    def broadcasts(self, change: Callable[[str], object]) -> None:
        for _ in range(BROADCASTS):
            wanted = self.nodes[0].acks + 1
            change(f"{wanted:04d}" * 225)
            self.fleet.run(lambda w=wanted: all(n.acks >= w for n in self.nodes))  # type: ignore[misc]

    def stop(self) -> None:
        self.fleet.stop()


def contexts_of(ca: CertificateAuthority, count: int) -> Iterator[tuple[str, ssl.SSLContext]]:
    """Names and TLS contexts of nodes. They share one key: making keys would take most of the time."""
    key = ec.generate_private_key(ec.SECP256R1())
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    request = csr(key)
    for i in range(count):
        name = f"n{i:05d}"
        cert = ca.issue_node(request, NodeId(ca.trust_domain, "default", name, name), time.time())
        yield name, tls.client_context(ca.root_pem, cert, key_pem)


def side_of(hub: Hub, contexts: dict[str, ssl.SSLContext]) -> Side:
    assert hub.process is not None
    return Side(("127.0.0.1", hub.edge_port), hub.process.pid, contexts)


def pod(name: str, node: str) -> object:
    uses = [{"configMapRef": {"name": "shared"}}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"cloudhub.dev/runtime": "process"}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "command": ["x"], "envFrom": uses}]},
    }


def emit_costs(metric: str, floor_metric: str, costs: list[Cost], floors: list[Cost], target: float) -> None:
    emit("hub", metric, statistics.median(c.cpu_us for c in costs), "us", target=target)
    emit("hub", f"{metric}_best_round", min(c.cpu_us for c in costs), "us")
    emit("hub", floor_metric, statistics.median(c.cpu_us for c in floors), "us")
    emit("hub", f"{floor_metric}_best_round", min(c.cpu_us for c in floors), "us")
    for name, rounds in ((metric, costs), (floor_metric, floors)):
        counted = [c.instructions for c in rounds if c.instructions is not None]
        if counted:
            emit("hub", f"{name}_instructions", statistics.median(counted), "")


def first_connections(hub: Hub, contexts: dict[str, ssl.SSLContext]) -> None:
    """Nodes that the hub has not seen Ready yet: it stores for each that it is."""
    side = side_of(hub, contexts)
    try:
        for name in contexts:
            hub.api("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        side.settled_cpu_s()
        before_kb = side.meter.rss_kb()
        emit("hub", "first_connect_cpu", side.cost(side.connect, len(contexts)).cpu_us, "us")
        grown_kb = side.meter.rss_kb() - before_kb
        emit("hub", f"rss_per_node_at_{len(contexts)}_first_connect", grown_kb / len(contexts), "KB")
    finally:
        side.stop()


def run(count: int) -> None:
    with tempfile.TemporaryDirectory() as directory, running_cluster(Path(directory)) as cluster:
        # No heartbeat may be due while CPU is counted: the bench sends its own.
        hub = cluster.hub(heartbeat="10m")
        emit("hub", "rss_idle", hub.rss_bytes() / 2**20, "MB")
        ca = CertificateAuthority.open(str(hub.data_dir / "ca"))
        contexts = dict(contexts_of(ca, count))
        first_connections(hub, contexts)
        hub.stop()
        hub.start()
        side = side_of(hub, contexts)
        floor = start_floor(cluster, ca)
        floor_side = Side(floor.address, floor.process.pid, contexts)
        try:
            measure(hub, side, floor, floor_side)
        finally:
            side.stop()
            floor_side.stop()
            floor.stop()


def start_floor(cluster: Cluster, ca: CertificateAuthority) -> Floor:
    directory = cluster.root / "floor"
    directory.mkdir(mode=0o700)
    return Floor(
        directory,
        *ca.issue_hub("floor", ca.trust_domain, ["localhost"], ["127.0.0.1"], time.time()),
        ca.root_pem,
    )


def measure(hub: Hub, side: Side, floor: Floor, floor_side: Side) -> None:
    count = len(side.nodes)
    side.settled_cpu_s()
    before_kb, floor_before_kb = side.meter.rss_kb(), floor_side.meter.rss_kb()
    emit("hub", f"rss_idle_with_{count}_nodes_stored", before_kb / 1024, "MB")
    emit("hub", "connect_cpu", side.cost(side.connect, count).cpu_us, "us")
    emit("hub", f"rss_per_node_at_{count}", (side.meter.rss_kb() - before_kb) / count, "KB", target=30)
    floor_side.connect()
    floor_side.settled_cpu_s()
    emit("hub", f"floor_rss_per_node_at_{count}", (floor_side.meter.rss_kb() - floor_before_kb) / count, "KB")

    beats, floor_beats = [], []
    for _ in range(ROUNDS):
        floor_beats.append(floor_side.cost(floor_side.heartbeats, HEARTBEATS * count))
        beats.append(side.cost(side.heartbeats, HEARTBEATS * count))
    emit_costs("cpu_per_heartbeat", "floor_per_heartbeat", beats, floor_beats, 20)

    shared = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}, "data": {"text": "0"}}
    hub.api("POST", CONFIGMAP.rsplit("/", 1)[0], shared)
    for node in side.nodes:
        hub.api("POST", "/api/v1/namespaces/default/pods", pod(f"p-{node.name}", node.name))
    side.fleet.run(lambda: all(n.acks >= 2 for n in side.nodes))

    def patch(text: str) -> None:
        hub.api("PATCH", CONFIGMAP, {"data": {"text": text}}, "application/merge-patch+json")

    documents, floor_documents = [], []
    for _ in range(ROUNDS):
        floor_documents.append(
            floor_side.cost(lambda: floor_side.broadcasts(floor.broadcast), BROADCASTS * count)
        )
        documents.append(side.cost(lambda: side.broadcasts(patch), BROADCASTS * count))
    emit_costs("cpu_per_1kb_document", "floor_per_document", documents, floor_documents, 30)
    emit("hub", "rss_per_node_with_pod", (side.meter.rss_kb() - before_kb) / count, "KB")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * count + 200
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, wanted), hard))
    run(count)


if __name__ == "__main__":
    main()
