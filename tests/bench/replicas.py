"""Several replicas: memory per replica, latency of a write to the edge by way of delivery, drain, and failover.

Real etcd (Debian's), NATS and hubs; connected edges are simulated (`tests.sim.ha_fleet`), over real TLS.

Memory is of one fleet, on 1, 2 and 4 replicas that were started anew at the same time: STORED Nodes in the store
(`tests.bench.stored_fleet`) and CONNECTED ones. The owners of the two roles have the roles' views of the whole fleet too.

Latency is from the API request's first byte to the acknowledgement that the edge sends, both by this machine's clock.
`local`: the API request went to the node's owner; `redirected`: to another replica than the owner, at which the node is
connected because it was redirected there; `relayed`: the owner cannot be reached by edges.
"""

import random
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.report import emit, percentile
from tests.bench.stored_fleet import store_fleet
from tests.e2e.cluster import wait_for
from tests.e2e.ha import HaCluster
from tests.e2e.ha_load import PODS
from tests.e2e.history import call
from tests.e2e.owners import OwnerWatch, owners, shares
from tests.sim.ha_client import SimFleet

STORED = 4000
STORED_PODS_EACH = 5
CONNECTED = 200
NODES = 300
PODS_EACH = 3
WRITES = 200
TTL_S = 5.0
WAIT_S = 300.0


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as made:
        # No heartbeat, no node that falls silent and no lease that ends while memory is looked at.
        with HaCluster(Path(made), replicas=1, etcd=1, nats=1, heartbeat="10m", lease_ttl="60s") as ha:
            memory(ha)
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as made:
        with HaCluster(Path(made), relayed=(2,), lease_ttl=f"{TTL_S:g}s") as ha:
            fleet = filled(ha)
            latency(ha, fleet)
            drain(ha)
            failover(ha, fleet)


def filled(ha: HaCluster) -> SimFleet:
    """A fleet with its pods, running."""
    fleet = ha.sims(NODES, statuses_per_s=0)
    client = ha.client(random.Random(1))
    for n in range(NODES * PODS_EACH):
        spec = {
            "nodeName": fleet.names[n % NODES],
            "containers": [{"name": "main", "command": ["sleep", "1"]}],
        }
        metadata = {"name": f"pod-{n}", "labels": {"cloudhub.dev/runtime": "process"}}
        answer = client.send(
            "POST", PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        )
        assert answer.code in (201, 409), answer
    client.close()
    wait_for(
        lambda: all(p["status"].get("phase") == "Running" for p in ha.get(PODS)["items"]), "pods run", WAIT_S
    )
    return fleet


def memory(ha: HaCluster) -> None:
    """Resident memory of each replica, started anew for a fleet that is there."""
    emit("replicas", "memory of a replica of no fleet", ha.rss_bytes()["hub-1"] / 2**20, "MiB")
    fleet = ha.sims(CONNECTED, statuses_per_s=0)
    store_fleet(ha, STORED, STORED_PODS_EACH)
    of = f"{STORED} stored Nodes, {STORED * STORED_PODS_EACH} Pods, {CONNECTED} connected"
    for count in (1, 2, 4):
        for replica in ha.replicas:
            replica.kill9()
        while len(ha.replicas) < count:
            ha.add(wait=False).kill9()
        end_leases(ha)
        for replica in ha.replicas:
            replica.spawn()
        for replica in ha.replicas:
            replica.wait_serves(WAIT_S)
        balanced(ha)
        ha.wait_connected(fleet, WAIT_S)
        roles = {m["name"]: m["roles"] for m in at_rest(ha)}
        each = {name: rss / 2**20 for name, rss in ha.rss_bytes().items()}
        emit("replicas", f"memory of a replica, mean, {of}, on {count}", sum(each.values()) / count, "MiB")
        for name, mib in sorted(each.items()):
            what = f"memory of {name} of {count}, {' and '.join(roles[name]) or 'no role'}"
            emit("replicas", what, mib, "MiB")


def end_leases(ha: HaCluster) -> None:
    """What killed replicas owned is nobody's at once."""
    endpoint = ha.etcd.endpoints[0]
    for lease in call(endpoint, "/v3/lease/leases", {}).get("leases", ()):
        call(endpoint, "/v3/lease/revoke", {"ID": lease["ID"]})


def at_rest(ha: HaCluster) -> list[Any]:
    """Waits until every Node is somebody's and memory grows no more; what the replicas say of themselves."""
    last: dict[str, int] = {}

    def rests() -> list[Any] | None:
        nonlocal last
        before, last = last, ha.rss_bytes()
        members: list[Any] = ha.get("/cloudhub/status")["members"]
        whole = sum(m["nodes"] for m in members) == STORED + CONNECTED
        still = all(abs(last[name] - before.get(name, 0)) < 1 << 20 for name in last)
        if not (whole and still):
            time.sleep(3)
        return members if whole and still else None

    found: list[Any] = wait_for(rests, "every replica holds its share", WAIT_S)
    return found


def balanced(ha: HaCluster) -> None:
    """Waits until every replica owns about its share of the slots."""
    fair = 1024 / len(ha.replicas)
    wait_for(
        lambda: all(shares(ha.etcd.endpoints[0])[r.name] > 0.8 * fair for r in ha.replicas), "slots are shared", WAIT_S
    )  # fmt: skip


def latency(ha: HaCluster, fleet: SimFleet) -> None:
    """A label of a pod changes: how long until its edge has acknowledged the new document."""
    balanced(ha)
    ha.wait_connected(fleet)
    owner = owners(ha.etcd.endpoints[0])
    brief = fleet.brief()
    where = {name: owner[f"{brief[name]['slot']:04d}"] for name in fleet.names}
    sent: dict[str, tuple[float, str]] = {}
    rng = random.Random(2)
    for n in range(WRITES * 3):
        pod = rng.randrange(NODES * PODS_EACH)
        path, name = f"{PODS}/pod-{pod}", fleet.names[pod % NODES]
        if path in sent:
            continue
        replica = ha.replicas[n % 2]
        way = (
            "relayed" if where[name] == "hub-3" else "local" if where[name] == replica.name else "redirected"
        )
        sent[path] = (time.time(), way)
        patch = {"metadata": {"labels": {"bench": str(n)}}}
        replica.api("PATCH", path, patch, "application/merge-patch+json")
    arrived: dict[str, float] = {}

    def all_arrived() -> bool:
        for node in fleet.dump()["nodes"].values():
            for at, what, key, *_ in node["changes"]:
                path = f"{PODS}/{key.split('/')[2]}" if key.startswith("pod/") else ""
                if what == "SET" and path in sent and at > sent[path][0]:
                    arrived.setdefault(path, at)
        return arrived.keys() == sent.keys()

    wait_for(all_arrived, "every write has arrived", WAIT_S)
    for way in ("local", "redirected", "relayed"):
        took = [1000 * (arrived[p] - at) for p, (at, w) in sent.items() if w == way]
        emit("replicas", f"write to edge acknowledgement, {way}, p50", percentile(took, 0.5), "ms")
        emit("replicas", f"write to edge acknowledgement, {way}, p99", percentile(took, 0.99), "ms")


def drain(ha: HaCluster) -> None:
    """SIGTERM of one of three until it has ended, and the longest time that one of its slots was nobody's."""
    replica = ha.replicas[1]
    with OwnerWatch(ha) as watch:
        theirs = len(watch.of(replica.name))
        started = time.monotonic()
        replica.stop()
        emit(
            "replicas",
            f"drain of {theirs} units until the process has ended",
            time.monotonic() - started,
            "s",
        )
        wait_for(lambda: not watch.nobodys(), "every unit has an owner", WAIT_S)
        emit(
            "replicas", "longest time that a drained unit was nobody's", max(watch.gaps().values()), "s", 1.0
        )
    replica.spawn()
    replica.wait_serves()
    balanced(ha)


def failover(ha: HaCluster, fleet: SimFleet) -> None:
    """kill -9 of one of three: until its units are owned, and until its nodes are served."""
    replica = ha.replicas[1]
    ha.wait_connected(fleet)
    with OwnerWatch(ha) as watch:
        lost = watch.of(replica.name)
        before: dict[str, Any] = fleet.brief()
        theirs = {n: s["epoch"] for n, s in before.items() if f"{s['slot']:04d}" in lost}
        replica.kill9()
        started = time.monotonic()
        wait_for(
            lambda: not watch.of(replica.name) and not watch.nobodys(), "every unit has an owner", WAIT_S
        )
        emit(
            "replicas",
            f"{len(lost)} units owned again after kill -9",
            time.monotonic() - started,
            "s",
            TTL_S + 2,
        )

        def served() -> bool:
            now = fleet.brief()
            return all(now[n]["state"] == "connected" and now[n]["epoch"] > e for n, e in theirs.items())

        wait_for(served, "their nodes are served", WAIT_S)
        emit(
            "replicas",
            f"{len(theirs)} nodes served again after kill -9",
            time.monotonic() - started,
            "s",
            10.0,
        )


if __name__ == "__main__":
    main()
