"""`make bench ARGS=cluster`: whole replicas on a real Kubernetes API server.

Load: what 1,000 connected, idle nodes ask of the API server, at the interval of a kubelet's leases and at the longest one
(which needs a node-monitor-grace-period to go with it); and what a kubelet each would ask by its documented intervals.
Edges are simulated (`tests.sim.ha_fleet`), over real TLS; requests are counted by a proxy before each replica.

Memory: 50,000 pods on 2,000 nodes, and Services with as many endpoints, which are put into the API server's etcd as JSON.
A replica of a small weight owns about a tenth of them, in all namespaces; its whole process is measured, with no node
connected.
"""

import base64
import os
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import orjson
import psutil

from shards.ring import slot_of
from tests.bench.kubernetes import (
    NAMESPACES,
    PODS,
    PODS_PER_NODE,
    SERVICES,
    endpoint_slice,
    node,
    pod,
    service,
)
from tests.bench.report import emit
from tests.e2e.cluster import wait_for
from tests.e2e.ha import Replica, ready_of
from tests.e2e.history import call
from tests.e2e.kube_ha import READABLE, KubeHa
from tests.e2e.owners import owners
from tests.observability import scraped
from tests.ports import free_port
from tests.servers.kubernetes import APISERVER, CONTROLLERS, KubeCluster

NODES = int(os.environ.get("BENCH_NODES", "1000"))
REPLICAS = 3
SLOTS = 1024
WAIT_S = 900.0
OPS_MAX = 100
SETTLE_S = 60
KUBELET_LEASE_S, KUBELET_STATUS_S = 10.0, 300.0
"""renewIntervalFraction 0.25 of nodeLeaseDurationSeconds 40, and nodeStatusReportFrequency 5m."""


def main() -> None:
    memory()
    for lease_s, grace, window_s, target in ((10, "40s", 60, 120.0), (600, "40m", 120, 5.0)):
        idle(lease_s, grace, window_s, target)


def idle(lease_s: int, grace: str, window_s: int, target: float) -> None:
    """Requests per second at `NODES` idle nodes."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as made,
        KubeCluster(
            parts=(APISERVER, CONTROLLERS), controllers={"node-monitor-grace-period": grace}
        ) as cluster,
        KubeHa(
            Path(made), cluster, replicas=REPLICAS, etcd=1, nats=1, slots=SLOTS, lease_ttl="30s",
            heartbeat="30s", node_lease=f"{lease_s}s",
        ) as ha,
    ):  # fmt: skip
        ha.sims(NODES, statuses_per_s=0)
        wait_for(lambda: ready(cluster) >= NODES, "every node is Ready", WAIT_S, ha.logs)
        usual = {"patch leases", "list nodes"}
        if lease_s <= window_s:
            wait_for(lambda: leased(cluster) >= NODES, "every node has a lease", WAIT_S, ha.logs)
        else:  # a first lease is made when one would be renewed: one request in the place of another
            usual |= {"post leases", "get leases"}
        before = Counter[str]()
        while set(found := requests(ha) - before) - usual:
            # What came with the nodes' first reports is not over.
            before = requests(ha)
            time.sleep(10)
        before, began = requests(ha), time.monotonic()
        time.sleep(window_s)
        found, seconds = requests(ha) - before, time.monotonic() - began
        for what, count in sorted(found.items()):
            emit("cluster", f"{NODES} idle nodes, leases of {lease_s} s: {what}", count / seconds, "1/s")
        rate = found.total() / seconds
        emit("cluster", f"{NODES} idle nodes, leases of {lease_s} s: all", rate, "1/s", target * NODES / 1000)
        watches = sum(proxy.watches.total() for proxy in ha.proxies)
        emit("cluster", f"watches of {REPLICAS} replicas", watches, "")
    if lease_s == KUBELET_LEASE_S:
        # A lease is written each time, and the status every five minutes after a read of the Node.
        kubelets = NODES * (1 / KUBELET_LEASE_S + 2 / KUBELET_STATUS_S)
        emit("cluster", f"{NODES} kubelets by their documented intervals", kubelets, "1/s")


def ready(cluster: KubeCluster) -> int:
    nodes = cluster.api("GET", "/api/v1/nodes")["items"]
    return sum(ready_of(node) == "True" for node in nodes)


def leased(cluster: KubeCluster) -> int:
    found = cluster.api("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases")
    return len(found["items"])


def requests(ha: KubeHa) -> Counter[str]:
    made: Counter[str] = Counter()
    for proxy in ha.proxies:
        made += Counter({f"{verb} {what}": n for (verb, what), n in proxy.requests.copy().items()})
    return made


def memory() -> None:
    """Resident memory and CPU of a whole replica that owns a tenth."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as made,
        KubeCluster(parts=(APISERVER,), apiserver=READABLE) as cluster,
        KubeHa(
            Path(made), cluster, replicas=1, etcd=1, nats=1, slots=SLOTS, lease_ttl="60s", weight=0.09,
            heartbeat="10m", node_lease="10m",
        ) as ha,
    ):  # fmt: skip
        small = ha.replicas[0]
        emit("cluster", "memory of a replica of an empty cluster", rss_mb(small), "MB")
        emit("cluster", "CPU of its start", cpu_s(small), "s")
        small.kill9()
        objects = stored()
        while puts := [
            {"requestPut": {"key": b64(key), "value": b64(value)}} for key, value in islice(objects, OPS_MAX)
        ]:
            call(cluster.etcd_endpoint, "/v3/kv/txn", {"success": puts})
        cluster.restart(APISERVER)
        large = ha.add(weight=0.91, wait=False)
        large.wait_serves(WAIT_S)
        small.settings["metrics_address"] = f"127.0.0.1:{free_port()}"
        small.spawn()
        small.wait_serves(WAIT_S)

        def share() -> int:
            """Pods of nodes of the small replica's slots, once every slot has an owner and it has a tenth of them."""
            owned = owners(ha.etcd.endpoints[0])
            mine = {int(unit) for unit, owner in owned.items() if owner == small.name and unit.isdigit()}
            if sum(unit.isdigit() for unit in owned) < SLOTS or len(mine) < SLOTS * 0.08:
                return 0
            return PODS_PER_NODE * sum(
                slot_of(f"edge-{n:05d}", SLOTS) in mine for n in range(PODS // PODS_PER_NODE)
            )

        def synced() -> bool:
            time.sleep(1.0)  # to tell its figures costs the replica some milliseconds
            spaced = min(held(small, "services"), held(small, "endpointslices"))
            return held(small) == share() > 0 and spaced >= NAMESPACES * SERVICES

        wait_for(
            synced, "a tenth of the pods is there", WAIT_S,
            lambda: (held(small), share(), small.log()[-3000:]),
        )  # fmt: skip
        emit("cluster", "pods in the cluster", PODS, "")
        emit("cluster", "pods of the replica", share(), "")
        emit(
            "cluster",
            "Services and EndpointSlices of the replica",
            held(small, "services") + held(small, "endpointslices"),
            "",
        )
        emit("cluster", "memory of the replica, synced", rss_mb(small), "MB", 120.0)
        emit("cluster", "CPU of its start, synced", cpu_s(small), "s", 5.0)
        time.sleep(SETTLE_S)
        emit("cluster", f"memory of the replica, {SETTLE_S} s later", rss_mb(small), "MB", 120.0)
        emit("cluster", "CPU by then", cpu_s(small), "s")
        emit("cluster", "memory of the replica that has the rest", rss_mb(large), "MB")


def held(replica: Replica, figure: str = "pods") -> int:
    """How many of them it holds, by its own metrics."""
    address = replica.settings["metrics_address"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        return int(scraped.figures(answer.read().decode(), "cloudhub.kubernetes").get(figure, -1))


def stored() -> Iterator[tuple[str, bytes]]:
    """What lies in the API server's etcd: without a resourceVersion, which is the revision of the key."""
    for n in range(PODS // PODS_PER_NODE):
        yield f"/registry/minions/edge-{n:05d}", stripped(node(n))
    for n in range(NAMESPACES):
        namespace = {
            "kind": "Namespace",
            "apiVersion": "v1",
            "metadata": {"name": f"shop-{n}", "uid": f"ns-{n}"},
        }
        yield f"/registry/namespaces/shop-{n}", orjson.dumps(namespace)
        for i in range(SERVICES):
            endpoints = PODS // NAMESPACES // SERVICES
            name = f"shop-{n}/service-{i}"
            # Without an address, or the API server would look where it is from.
            headless = service(f"shop-{n}", i, "None")
            yield f"/registry/services/specs/{name}", versioned("v1", "Service", headless)
            found = endpoint_slice(f"shop-{n}", i, endpoints)
            yield (
                f"/registry/endpointslices/{name}-x2k4q",
                versioned("discovery.k8s.io/v1", "EndpointSlice", found),
            )
    for n in range(PODS):
        body = pod(n, 0)
        meta = orjson.loads(body)["metadata"]
        yield f"/registry/pods/{meta['namespace']}/{meta['name']}", stripped(body)


def versioned(version: str, kind: str, body: bytes) -> bytes:
    return stripped(orjson.dumps({"apiVersion": version, "kind": kind, **orjson.loads(body)}))


def stripped(body: bytes) -> bytes:
    obj = orjson.loads(body)
    del obj["metadata"]["resourceVersion"]
    return orjson.dumps(obj)


def b64(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def rss_mb(replica: Replica) -> float:
    assert replica.process is not None
    return float(psutil.Process(replica.process.pid).memory_info().rss) / 2**20


def cpu_s(replica: Replica) -> float:
    assert replica.process is not None
    times = psutil.Process(replica.process.pid).cpu_times()
    return float(times.user + times.system)
