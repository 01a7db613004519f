"""A link that is down, with the real node lifecycle controller: it sees the lease end and says so of the node and its pods,
evicts none of ours, and all is as before once the node is back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import orjson
import pytest

from hub import reports
from hub.cache import by_node
from hub.kubernetes.client import KubeClient
from hub.kubernetes.config import KubeConfig
from hub.kubernetes.leases import Alive, LeaseOptions, Leases
from hub.kubernetes.registry import KubeRegistry
from hub.kubernetes.repair import Repair
from hub.kubernetes.tolerations import TAINTS
from hub.mirror import Mirror
from hub.objects import NODES, PODS, Keys, NodeView, PodView
from hub.registry import now_rfc3339
from hub.store.memory import MemoryStore
from hub.upstream import Update, Upstream
from security.identity import NodeId
from shards.claims import Fence
from shards.kv import Put
from tests.servers.kubernetes import APISERVER, CONTROLLERS, ApiError, KubeCluster

SLOT = 3
DEADLINE_S = 90.0
PODS_PATH = "/api/v1/namespaces/default/pods"
Object = dict[str, Any]


@pytest.fixture(scope="module")
def impatient() -> Iterator[KubeCluster]:
    """A cluster in which pods tolerate an unreachable node for a second unless they say otherwise."""
    flags = {f"default-{taint.rsplit('/', 1)[1]}-toleration-seconds": "1" for taint in TAINTS}
    with KubeCluster(parts=(APISERVER, CONTROLLERS), apiserver=flags) as cluster:
        yield cluster


class Owner:
    """The owner of a slot with one node: what the hub has of this side, and a share that lists every moment."""

    def __init__(self, cluster: KubeCluster, api: KubeClient, fence: Fence, store: MemoryStore) -> None:
        self.cluster = cluster
        self.api = api
        self.fence = fence
        self.registry = KubeRegistry(api, store, Keys())
        self.pods: Mirror[PodView] = Mirror(PODS, {"node": by_node})
        self.nodes: Mirror[NodeView] = Mirror(NODES, {})
        self.registry.mirrors = {PODS: self.pods, NODES: self.nodes}
        self.connected: set[str] = set()
        self.tasks = asyncio.TaskGroup()
        self.upstream = Upstream(
            self.registry,
            lambda slot: fence,
            lambda slot: True,
            lambda slot: pytest.fail("the fence is ours"),
            lambda work, name: self.tasks.create_task(work),
        )
        self.repair = Repair(
            self.pods, self.nodes, self.connected.__contains__, self.upstream.submit, default_s=1
        )
        self.registry.wrote = self.repair.wrote
        self.repair.start()
        self.leases = Leases(
            api,
            self.registry,
            lambda: {name: Alive(SLOT, self.node(name).meta.uid) for name in self.connected},
            lambda slot: fence,
            lambda slot: pytest.fail("the fence is ours"),
            LeaseOptions(period_s=1.0),
        )

    def node(self, name: str) -> Any:
        found = self.nodes.cache.get("", name)
        assert found is not None
        return found

    async def follow(self) -> None:
        while True:
            for mirror, path in ((self.nodes, "/api/v1/nodes"), (self.pods, PODS_PATH)):
                found = await self.api.get(path)
                revision = int(found["metadata"]["resourceVersion"])
                entries = {}
                for item in found["items"]:
                    if item["metadata"].get("labels", {}).get("ours") == "no":
                        continue
                    meta = item["metadata"]
                    key = (meta.get("namespace", ""), meta["name"])
                    entries[key] = mirror.cache.entry(
                        key, f"{SLOT:04d}", int(meta["resourceVersion"]), orjson.dumps(item)
                    )
                gone = [entry.key for entry in mirror.cache if entry.key not in entries]
                deltas = [d for key in gone for d in mirror.set_state(key, None, revision)]
                deltas += [d for key, e in entries.items() for d in mirror.set_state(key, e, revision)]
                mirror.advance(deltas, revision)
            await asyncio.sleep(0.2)

    async def connect(self, name: str) -> None:
        """The node is here: what the gateway says of it then."""
        self.connected.add(name)
        apply = lambda node: reports.connected(node, now_rfc3339())  # noqa: E731
        self.upstream.submit(SLOT, Update(NODES, "", name, None, apply, lambda result: None))

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.1)
        assert condition(), what

    def condition(self, mirror: Mirror[Any], namespace: str, name: str, kind: str) -> str:
        entry = mirror.cache.get(namespace, name)
        conditions = entry.view.status.conditions or () if entry is not None else ()
        return next((c.status for c in conditions if c.type == kind), "")


@pytest.fixture
async def owner(impatient: KubeCluster) -> AsyncIterator[Owner]:
    store, key = MemoryStore(), Keys().slot_epoch(SLOT)
    fence = Fence(key, (await store.txn([], [Put(key, b"{}")])).revision)
    config = KubeConfig.from_file(impatient.kubeconfig_of("hub", "system:masters"))
    async with KubeClient(config) as api:
        made = Owner(impatient, api, fence, store)
        async with made.tasks:
            running = [made.tasks.create_task(made.leases.run()), made.tasks.create_task(made.follow())]
            yield made
            for task in running:
                task.cancel()


def status(ready: str) -> Object:
    now = now_rfc3339()
    return {
        "phase": "Running",
        "conditions": [
            {"type": kind, "status": ready, "lastTransitionTime": now}
            for kind in ("Ready", "ContainersReady")
        ],
    }


async def pod(cluster: KubeCluster, name: str, node: str, **labels: str) -> None:
    made = {
        "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
    }
    await asyncio.to_thread(cluster.api, "POST", PODS_PATH, made)


async def test_a_silent_node_is_unknown_and_keeps_its_pods_and_all_is_well_when_it_is_back(
    impatient: KubeCluster, owner: Owner
) -> None:
    names = ("edge-1", "edge-2", "edge-3")  # of one alone the controller thinks that it is its own link
    for name in names:
        await owner.registry.create(NODES, reports.new_node(NodeId("td", "default", name, name)))
    await owner.until(lambda: all(owner.nodes.cache.get("", n) for n in names), "the nodes are followed")
    for name in names:
        await owner.connect(name)
    await pod(impatient, "till", "edge-1")
    await pod(impatient, "elsewhere", "edge-1", ours="no")  # as if nobody looked after it
    await owner.until(lambda: owner.pods.cache.get("default", "till") is not None, "the pod is followed")
    report = Update(
        PODS,
        "default",
        "till",
        None,
        reports.merge_pod("edge-1", status("True")),
        lambda result: None,
        whole=True,
    )
    owner.upstream.submit(SLOT, report)
    await owner.until(lambda: owner.repair.tolerations_set == 1, "it tolerates without an end")
    await owner.until(
        lambda: owner.condition(owner.pods, "default", "till", "Ready") == "True", "it is ready"
    )
    uid = (await owner.registry.get(PODS, "default", "till")).obj()["metadata"]["uid"]

    owner.connected.discard("edge-1")  # no more renewals
    await owner.until(
        lambda: owner.condition(owner.nodes, "", "edge-1", "Ready") == "Unknown", "it is Unknown"
    )
    await owner.until(
        lambda: owner.condition(owner.pods, "default", "till", "Ready") == "False", "its pod is not ready"
    )

    def evicted() -> bool:
        try:
            found = impatient.api("GET", f"{PODS_PATH}/elsewhere")
        except ApiError as failure:
            return failure.code == 404
        return bool(found["metadata"].get("deletionTimestamp"))

    async with asyncio.timeout(DEADLINE_S):
        while not await asyncio.to_thread(evicted):
            await asyncio.sleep(0.2)
    taints = [t["key"] for t in owner.node("edge-1").obj()["spec"]["taints"]]
    assert "node.kubernetes.io/unreachable" in taints
    held = (await owner.registry.get(PODS, "default", "till")).obj()
    assert held["metadata"]["uid"] == uid and "deletionTimestamp" not in held["metadata"]

    await owner.connect("edge-1")
    await owner.until(lambda: owner.condition(owner.nodes, "", "edge-1", "Ready") == "True", "it is back")
    await owner.until(
        lambda: owner.condition(owner.pods, "default", "till", "Ready") == "True", "its pod too"
    )
    for kind in ("MemoryPressure", "DiskPressure", "PIDPressure"):
        await owner.until(lambda kind=kind: owner.condition(owner.nodes, "", "edge-1", kind) == "False", kind)  # type: ignore[misc]
    await owner.until(
        lambda: (
            not any(
                t.key.startswith("node.kubernetes.io/") for t in owner.node("edge-1").view.spec.taints or ()
            )
        ),
        "its taints are gone",
    )
    assert owner.repair.repairs == 1 and owner.leases.failed == 0
