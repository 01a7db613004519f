"""The share beside a real kube-apiserver with its etcd: what the fakes of the other tests only claim."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from hub.desired import Desired
from hub.fleet.states import Row, State
from hub.kubernetes.client import KubeClient
from hub.kubernetes.config import KubeConfig
from hub.kubernetes.fleet import watched
from hub.kubernetes.share import KubeShare
from shards.ring import slot_of
from tests.hub.hub_fixture import until
from tests.hub.kubernetes.test_share import Replay
from tests.servers.kubernetes import APISERVER, KubeCluster

CORE = "/api/v1"
SLOTS = 8
DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[KubeCluster]:
    """Taken down by a test: it is nobody else's."""
    with KubeCluster(parts=(APISERVER,)) as made:
        made.api("POST", f"{CORE}/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
        yield made


class World:
    """A replica's share and documents, and somebody else who writes."""

    def __init__(self, cluster: KubeCluster, client: KubeClient, prefix: str) -> None:
        self.cluster, self.prefix = cluster, prefix
        self.client = client
        self.share = KubeShare(client, SLOTS)
        self.desired = Desired(
            self.share.pods, self.share.configmaps, self.share.secrets, lambda node, key: None, lambda: None
        )
        self.pods, self.nodes = Replay(), Replay()
        self.share.pods.subscribe(self.pods, self.pods.forgotten)
        self.share.nodes.subscribe(self.nodes, self.nodes.forgotten)

    async def api(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        return await asyncio.to_thread(self.cluster.api, method, f"{CORE}{path}", body, kind)

    def node_in(self, slot: int) -> str:
        """A name in this slot."""
        names = (f"{self.prefix}-{i}" for i in range(1000))
        return next(name for name in names if slot_of(name, SLOTS) == slot)

    async def node(self, name: str, edge: bool = True) -> Any:
        labels = {"cloudhub.dev/edge": "true"} if edge else {}
        return await self.api("POST", "/nodes", {"metadata": {"name": name, "labels": labels}})

    async def pod(self, name: str, node: str, *configs: str) -> Any:
        envs = [{"configMapRef": {"name": one}} for one in configs]
        spec = {"nodeName": node, "containers": [{"name": "main", "image": "x", "envFrom": envs}]}
        meta = {"name": f"{self.prefix}-{name}"}
        return await self.api("POST", "/namespaces/default/pods", {"metadata": meta, "spec": spec})

    async def config(self, name: str, text: str) -> None:
        body = {"metadata": {"name": name}, "data": {"text": text}}
        await self.api("POST", "/namespaces/default/configmaps", body)

    async def unpod(self, name: str) -> None:
        await self.api("DELETE", f"/namespaces/default/pods/{self.prefix}-{name}?gracePeriodSeconds=0")

    def names(self) -> set[str]:
        return {entry.key[1].removeprefix(f"{self.prefix}-") for entry in self.share.pods.cache}

    def revisions(self) -> dict[tuple[str, str], int]:
        return {entry.key: entry.revision for entry in self.share.pods.cache}


@contextlib.asynccontextmanager
async def world(cluster: KubeCluster, prefix: str) -> AsyncIterator[World]:
    config = KubeConfig.from_file(cluster.kubeconfig_of("hub", "system:masters"))
    async with KubeClient(config) as client, asyncio.TaskGroup() as tasks:
        made = World(cluster, client, prefix)
        made.desired.start()
        running = tasks.create_task(made.share.run())
        yield made
        running.cancel()


async def test_the_fleet_page_lists_all_edge_nodes_and_follows_them(cluster: KubeCluster) -> None:
    async with world(cluster, "f") as w, aclosing(watched(w.client, SLOTS)) as steps:
        one, other = w.node_in(1), w.node_in(5)
        await w.node(one)
        await w.node("f-cloud", edge=False)
        there: dict[str, Row] = {}
        is_changed = is_listed = False
        async with asyncio.timeout(DEADLINE_S):
            async for step in steps:
                there.update(step.put)
                for name in step.gone:
                    there.pop(name)
                if step.is_listed and not is_listed:
                    is_listed = True
                    assert there == {one: Row(State.NEW, 1)}
                    await w.node(other)
                elif other in there and not is_changed:
                    is_changed = True
                    assert there[other] == Row(State.NEW, 5)
                    ready = {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
                    kind = "application/strategic-merge-patch+json"
                    await w.api("PATCH", f"/nodes/{one}/status", ready, kind)
                    await w.api("DELETE", f"/nodes/{other}")
                elif is_changed and other not in there and there[one].state == State.UNKNOWN:
                    break
        await w.api("DELETE", f"/nodes/{one}")


async def test_a_real_api_server_is_followed_and_what_is_anothers_is_not_kept(cluster: KubeCluster) -> None:
    before = watches_of(cluster)  # the API server's own
    async with world(cluster, "a") as w:
        ours, late, theirs = w.node_in(1), w.node_in(2), w.node_in(5)
        for name in (ours, theirs):
            await w.node(name)
        await w.node("a-cloud", edge=False)
        await w.config("a-c", "one")
        for name, node in (("mine", ours), ("theirs", theirs), ("cloud", "a-cloud")):
            await w.pod(name, node, "a-c", "a-absent")
        await w.share.load({1, 2}, 0)
        assert w.names() == {"mine"} and w.share.loaded(2)
        assert {entry.key[1] for entry in w.share.nodes.cache} == {ours}
        assert w.desired.ready(ours)
        document = w.desired.of(ours)["configmap/default/a-c"]
        assert "configmap/default/a-absent" not in w.desired.of(ours)
        raw = next(iter(w.share.pods.cache)).obj()
        assert raw["kind"] == "Pod" and "managedFields" not in raw["metadata"]

        change = {"data": {"text": "two"}}
        path = "/namespaces/default/configmaps/a-c"
        await w.api("PATCH", path, change, "application/merge-patch+json")
        await until(lambda: w.desired.of(ours)["configmap/default/a-c"] is not document, DEADLINE_S)
        await w.config("a-absent", "now")
        await until(lambda: "configmap/default/a-absent" in w.desired.of(ours), DEADLINE_S)

        # Bound before its node is known: the node comes in with its pods, not before them.
        await w.pod("early", late)
        await w.pod("mine-too", ours)
        await until(lambda: "mine-too" in w.names(), DEADLINE_S)
        stored = await w.node(late)
        await w.share.at_least(2, int(stored["metadata"]["resourceVersion"]))
        assert w.share.nodes.cache.get("", late) is not None and "early" in w.names()
        await w.unpod("mine")
        await until(lambda: w.names() == {"mine-too", "early"}, DEADLINE_S)

        w.share.drop({1})
        await w.share.load({5}, 0)
        assert w.names() == {"early", "theirs"} and len(w.pods.deleted) == 1
        watches = {kind: now - before[kind] for kind, now in watches_of(cluster).items()}
        assert watches["pods"] == watches["nodes"] == 1 and watches["configmaps"] <= 2, watches


async def test_of_a_real_api_server_little_is_read_by_who_owns_little(
    cluster: KubeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hub.kubernetes.parts.BY_NODE_MAX", 0
    )  # the server has to say how many pods there are
    monkeypatch.setattr("hub.kubernetes.parts.PODS_PER_REQUEST", 3)
    async with world(cluster, "o") as w:
        ours, theirs = w.node_in(6), w.node_in(7)
        for name in (ours, theirs):
            await w.node(name)
        for i in range(8):
            await w.pod(f"p{i}", theirs if i else ours)
        await w.share.load({6}, 0)
        assert w.names() == {"p0"}
        assert w.share.stats()["pods_own"] == 1 and w.share.stats()["pods_foreign"] == 0
        await w.pod("late", ours)
        await until(lambda: w.names() == {"p0", "late"}, DEADLINE_S)
        await w.unpod("p0")
        await until(lambda: w.names() == {"late"} and len(w.pods.deleted) == 1, DEADLINE_S)


def watches_of(cluster: KubeCluster) -> dict[str, float]:
    return {
        kind: cluster.metric("apiserver_longrunning_requests", resource=kind, verb="WATCH")
        for kind in ("pods", "nodes", "configmaps")
    }


async def test_the_share_of_an_api_server_that_was_killed_and_compacted_is_whole_again(
    cluster: KubeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("hub.outage.FIRST_S", "hub.outage.MAX_S"):
        monkeypatch.setattr(name, 0.05)
    async with world(cluster, "b") as w:
        node = w.node_in(3)
        await w.node(node)
        await w.config("b-c", "one")
        for i in range(12):
            await w.pod(f"p{i}", node, "b-c")
        await w.share.load(range(SLOTS), 0)
        await until(lambda: len(w.pods.held) >= 12, DEADLINE_S)
        before = w.revisions()
        cluster.kill(APISERVER)
        await until(lambda: w.share.stale, DEADLINE_S)
        assert w.revisions() == before
        await asyncio.to_thread(cluster.compact)
        await asyncio.to_thread(cluster.restart, APISERVER)
        await w.unpod("p0")
        await w.pod("late", node, "b-c")
        await until(lambda: not w.share.stale and "late" in w.names(), DEADLINE_S)
        await until(lambda: "p0" not in w.names(), DEADLINE_S)
        found = await w.api("GET", "/namespaces/default/pods")
        truth = {
            ("default", pod["metadata"]["name"]): int(pod["metadata"]["resourceVersion"])
            for pod in found["items"]
            if w.share.nodes.cache.get("", pod["spec"]["nodeName"])
        }
        await until(lambda: w.revisions() == truth, DEADLINE_S)
        assert w.pods.held.keys() == w.revisions().keys() and len(w.pods.deleted) == 1


async def test_lists_come_by_watch_or_in_pages_as_the_server_serves_them(cluster: KubeCluster) -> None:
    config = KubeConfig.from_file(cluster.kubeconfig_of("hub", "system:masters"))
    async with KubeClient(config) as client:
        pages = [page async for page in client.list(f"{CORE}/namespaces", page=1)]
        assert len(pages) >= 3 and len({page.metadata.resourceVersion for page in pages}) == 1
        query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        seen: list[str] = []
        async with contextlib.aclosing(
            client.watch(f"{CORE}/namespaces", {**query, "allowWatchBookmarks": "true"})
        ) as events:
            async for kind, _ in events:
                seen.append(kind)
                if kind == "BOOKMARK":
                    break
        assert seen.count("ADDED") == len(pages)
