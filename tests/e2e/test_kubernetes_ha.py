"""Three replicas on one real API server, and what they go through: kill -9, SIGSTOP, an API server that is away, forgets,
refuses and closes every watch. Nothing is lost or doubled, and the load on the API server stays small."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from hub.kubernetes.heads import collection
from hub.objects import ENDPOINTSLICES, SERVICES, Resource
from shards.ring import slot_of
from tests.e2e.cluster import wait_for
from tests.e2e.convergence import unlike, unsettled, wanted
from tests.e2e.ha import NODES, ready_of
from tests.e2e.ha_load import CONFIGMAPS, PODS, HaLoad, Record, unkept
from tests.e2e.history import judge_stored
from tests.e2e.kube_edge import pod
from tests.e2e.kube_ha import READABLE, KubeHa, judge_cluster
from tests.e2e.owners import owners
from tests.servers.kubernetes import APISERVER, CONTROLLERS, KubeCluster
from tests.sim.ha_client import SimFleet

FLEET = 60
PATIENCE_S = 120.0
LEASE_S = 5.0
WINDOWS_MAX = 12
AWAY_S = float(os.environ.get("CLOUDHUB_TEST_AWAY_S", "0"))
"""How long the API server stays away at least: 10 minutes in `make soak`."""
SKEW_S = 120
"""How far the clocks of two replicas are from the third's: one is ahead, one is behind."""
GROWTH_BYTES = 20 << 20
WATCHES_EACH = 6
"""Pods, Nodes, Devices, Services, EndpointSlices, and ConfigMaps of the one namespace in which some are used."""


IDLE = {"patch leases", "list nodes"}
"""Leases, and each replica's question every 10 s where the cluster's history has come to."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[KubeCluster]:
    """Without a scheduler: every pod names its node. Whose leases are late stays Ready for long, for the machine of the
    tests is busy."""
    with KubeCluster(
        parts=(APISERVER, CONTROLLERS), apiserver=READABLE, controllers={"node-monitor-grace-period": "40s"}
    ) as made:
        yield made


@pytest.fixture(scope="module")
def ha(cluster: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeHa]:
    root = tmp_path_factory.mktemp("kube-ha")
    with KubeHa(root, cluster, etcd=1, nats=1, slots=64, lease_ttl="4s", node_lease=f"{LEASE_S:g}s") as made:
        yield made


@pytest.fixture(scope="module")
def fleet(ha: KubeHa) -> SimFleet:
    return ha.sims(FLEET, statuses_per_s=10)


def pods(ha: KubeHa) -> list[Any]:
    found: list[Any] = ha.get(PODS)["items"]
    return found


def spaced(ha: KubeHa) -> list[tuple[Resource, Any]]:
    """Services and EndpointSlices of every namespace."""
    kinds = (SERVICES, ENDPOINTSLICES)
    return [(res, obj) for res in kinds for obj in ha.get(collection(res))["items"]]


def settle(ha: KubeHa, fleet: SimFleet, record: Record, *, history: bool = True) -> None:
    """Waits until nothing is on its way any more, and judges documents and acknowledgements, and what etcd remembers."""
    fleet.statuses(0)

    def rest() -> list[str]:
        return unsettled(fleet.brief(), pods(ha), ha.get(CONFIGMAPS)["items"], spaced=spaced(ha))

    # What has gathered while the API server was away leaves at a bounded rate.
    wait_for(
        lambda: not rest(), "everything has settled", PATIENCE_S + AWAY_S, lambda: (rest()[:5], ha.logs())
    )
    there, configs, dump = pods(ha), ha.get(CONFIGMAPS)["items"], fleet.dump()
    want = wanted(there, configs, spaced=spaced(ha))
    assert [t for n, node in dump["nodes"].items() for t in unlike(node["docs"], want.get(n, {}), n)] == []
    assert [t for node in dump["nodes"].values() for t in node["anomalies"]] == []
    assert unkept(record, there, configs) == []
    if history:
        verdict = judge_cluster(ha, record.wanted_gone)
        assert verdict.violations == []
        assert judge_stored(verdict, dump["nodes"]) == []
        print(f"\n{verdict.summary()}, load: {dict(record.acknowledged)}")
    for path in (PODS, CONFIGMAPS):  # the next load uses these names
        ha.send("DELETE", path)
    wait_for(lambda: not pods(ha), "the load's pods are gone", PATIENCE_S, ha.logs)


def skewed(seconds: int) -> dict[str, str]:
    """The environment of a process whose clock is ahead by so many seconds; how fast it goes is as ever."""
    library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
    assert os.path.exists(library), "libfaketime is missing: `make deps-ci` installs it"
    return {"LD_PRELOAD": library, "FAKETIME": f"{seconds:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def goes_on(running: HaLoad, writes: int = 30) -> None:
    before = running.writes
    wait_for(lambda: running.writes > before + writes or running.failure, "the load goes on", PATIENCE_S)


def test_idle_nodes_cost_the_api_server_one_lease_each_in_an_interval(ha: KubeHa, fleet: SimFleet) -> None:
    fleet.statuses(0)
    wait_for(lambda: leases(ha) >= FLEET, "every node has a lease", PATIENCE_S, ha.logs)
    made: Counter[str] = Counter()
    for _ in range(WINDOWS_MAX):
        before, began = requests(ha), time.monotonic()
        time.sleep(2 * LEASE_S)
        made, seconds = requests(ha) - before, time.monotonic() - began
        if set(made) <= IDLE:
            break  # what came with the nodes' first reports is over
    rate = made.total() / seconds
    print(
        f"\n{FLEET} idle nodes, leases of {LEASE_S:g} s, 3 replicas: {rate:.2f} requests/s, {dict(made)};"
        f" 1,000 at 10 s would make {rate * LEASE_S / FLEET * 100:.0f}, a kubelet each 200 (lease and read of its Node each"
        " 10 s) and 4 watches and more each"
    )
    assert set(made) <= IDLE and made["list nodes"] <= 2 * len(ha.replicas), made
    assert rate <= FLEET / LEASE_S * 1.2
    for replica, proxy in zip(ha.replicas, ha.proxies, strict=True):
        assert proxy.watches.total() <= WATCHES_EACH, (replica.name, proxy.watches)


def leases(ha: KubeHa) -> int:
    return len(ha.get("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases")["items"])


def requests(ha: KubeHa) -> Counter[str]:
    """So far, by verb and resource, of all replicas."""
    made: Counter[str] = Counter()
    for proxy in ha.proxies:
        made += Counter({f"{verb} {resource}": n for (verb, resource), n in proxy.requests.copy().items()})
    return made


def test_replicas_that_are_killed_and_frozen_under_churn_lose_and_double_nothing(
    ha: KubeHa, fleet: SimFleet
) -> None:
    running = HaLoad(ha.client, fleet.names, seed=3, threads=2, pods_max=25).start()
    goes_on(running)
    killed, frozen = ha.replicas[0], ha.replicas[1]
    killed.kill9()
    goes_on(running)
    killed.spawn()
    killed.wait_serves()
    frozen.freeze()
    wait_for(
        lambda: frozen.name not in owners(ha.etcd.endpoints[0]).values(), "its slots are others'", PATIENCE_S
    )
    goes_on(running)
    frozen.thaw()
    wait_for(lambda: frozen.name in owners(ha.etcd.endpoints[0]).values(), "it owns slots again", PATIENCE_S)
    goes_on(running)
    record = running.stop()
    settle(ha, fleet, record)
    for replica, proxy in zip(ha.replicas, ha.proxies, strict=True):
        assert proxy.watches.total() <= WATCHES_EACH, (replica.name, proxy.watches)
        assert replica.errors() == []
    # What the next owner hears from a node again is there already.
    assert [path for proxy in ha.proxies for path in proxy.vain if path.endswith("/status")] == []
    watched = {replica.name: proxy.watches for replica, proxy in zip(ha.replicas, ha.proxies, strict=True)}
    print(f"\nwatches of {FLEET} nodes: {watched}")


def test_in_a_quiet_cluster_the_next_owner_serves_a_node_without_anybodys_confirmation(
    ha: KubeHa, cluster: KubeCluster
) -> None:
    """What the node has seen last may be an Event's revision, which no watch of the next owner tells."""
    ha.agent("real")
    script = "echo up; exec sleep 1000"
    ha.send("POST", PODS, pod("before", script, nodeName="real"))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/before", "--timeout=60s")
    assert cluster.kubectl("exec", "before", "--", "echo", "at the edge") == "at the edge\n"
    unit = f"{slot_of('real', ha.slots):04d}"
    owner = owners(ha.etcd.endpoints[0])[unit]
    served = next(replica for replica in ha.replicas if replica.name == owner)
    served.kill9()
    wait_for(
        lambda: owners(ha.etcd.endpoints[0]).get(unit, owner) != owner, "another replica has it", PATIENCE_S
    )
    ha.send("POST", PODS, pod("after", script, nodeName="real"))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/after", "--timeout=90s")
    # The API server asks the replica that the Node names.
    wait_for(
        lambda: cluster.kubectl("exec", "after", "--", "echo", "here", code=None) == "here\n",
        "a command runs through the next owner", PATIENCE_S, ha.logs,
    )  # fmt: skip
    served.spawn()
    served.wait_serves()
    cluster.kubectl("delete", "pod", "before", "after", "--timeout=60s")


def test_an_api_server_that_is_away_forgets_refuses_and_closes_every_watch_costs_time_alone(
    ha: KubeHa, fleet: SimFleet, cluster: KubeCluster
) -> None:
    for replica, seconds in zip(ha.replicas[1:], (SKEW_S, -SKEW_S), strict=True):
        replica.environment = skewed(seconds)
        assert replica.stop() == 0
        replica.spawn()
        replica.wait_serves()
        said = datetime.fromisoformat(json.loads(replica.log().splitlines()[-1])["ts"])
        assert abs((said - datetime.now(UTC)).total_seconds() - seconds) < SKEW_S / 2
    fleet.connect_now()
    fleet.statuses(10)
    running = HaLoad(ha.client, fleet.names, seed=4, threads=2, pods_max=25).start()
    goes_on(running)
    before = ha.rss_bytes()
    for proxy in ha.proxies:
        proxy.watch_life_s, proxy.refused_share = 1.0, 0.3
    goes_on(running, 100)
    ha.revoke()
    goes_on(running)
    cluster.kill(APISERVER)
    for proxy in ha.proxies:
        proxy.down = True
    cluster.restart(APISERVER)
    goes_on(running, 100)  # behind the replicas' backs
    back_at = time.monotonic() + AWAY_S
    wait_for(lambda: time.monotonic() >= back_at, "the API server has been away for long", AWAY_S + 60)
    cluster.kill(APISERVER)
    cluster.compact()
    cluster.restart(APISERVER)
    for proxy in ha.proxies:
        proxy.down = False
    goes_on(running, 100)
    for proxy in ha.proxies:
        proxy.watch_life_s, proxy.refused_share = None, 0.0
    record = running.stop()
    settle(ha, fleet, record, history=False)
    after = ha.rss_bytes()
    print(f"\nRSS {before} -> {after}; refused {[proxy.refused for proxy in ha.proxies]}")
    assert all(after[name] <= before[name] + GROWTH_BYTES for name in before), (before, after)
    assert fleet.connected() == FLEET
    assert all(replica.errors() == [] for replica in ha.replicas)
    ready = [n["metadata"]["name"] for n in ha.get(NODES)["items"] if ready_of(n) != "True"]
    assert ready == []
