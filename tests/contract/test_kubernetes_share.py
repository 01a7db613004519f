"""What a replica knows of a real API server: lists, watches and their repair, through faults of the real kind."""

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest

from hub.cache import Entry
from hub.kubernetes.client import KubeClient
from hub.kubernetes.config import KubeConfig
from hub.kubernetes.share import KubeShare
from hub.mirror import Delta
from shards.ring import slot_of
from tests.hub.hub_fixture import eventually, until
from tests.servers.kubeproxy import KubeProxy
from tests.servers.kubernetes import APISERVER, KubeCluster

SLOTS = 8
WAIT_S = 90.0
MERGE = "application/merge-patch+json"


class Replay:
    """A subscriber that keeps its own copy from deltas alone, and finds what is lost, doubled or out of order."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], Entry[Any]] = {}
        self.deleted: set[str] = set()

    def __call__(self, deltas: Sequence[Delta[Any]], revision: int) -> None:
        for delta in deltas:
            key, held = delta.entry.key, self.held.get(delta.entry.key)
            if delta.type == "DELETED":
                assert held is not None, f"{key} is deleted twice"
                assert held.meta.uid not in self.deleted
                self.deleted.add(held.meta.uid)
                del self.held[key]
            else:
                assert (held is None) == (delta.type == "ADDED"), (key, delta.type)
                assert held is None or held.revision < delta.entry.revision, f"{key} goes back"
                self.held[key] = delta.entry

    def forgotten(self, entries: Sequence[Entry[Any]]) -> None:
        for entry in entries:
            del self.held[entry.key]


class World:
    """A cluster with edge nodes of this test alone, a replica's share of it through a proxy, and its subscribers."""

    def __init__(self, cluster: KubeCluster, share: KubeShare, proxy: KubeProxy) -> None:
        self.cluster, self.share, self.proxy = cluster, share, proxy
        mark = secrets.token_hex(4)
        self.namespace = f"share-{mark}"
        self.nodes = [f"n{i}-{mark}" for i in range(12)]
        self.slots = {name: slot_of(name, SLOTS) for name in self.nodes}
        self.ours = frozenset(range(0, SLOTS, 2))
        self.pods, self.known = Replay(), Replay()
        share.pods.subscribe(self.pods, self.pods.forgotten)
        share.nodes.subscribe(self.known, self.known.forgotten)
        self.count = 0

    def make(self) -> None:
        self.cluster.api("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        for name in self.nodes:
            self.make_node(name)
        self.cluster.api(
            "POST", f"/api/v1/namespaces/{self.namespace}/configmaps", {"metadata": {"name": "c"}}
        )
        # Nothing runs here: a pod needs its account, which no controller makes.
        accounts = f"/api/v1/namespaces/{self.namespace}/serviceaccounts"
        with contextlib.suppress(Exception):
            self.cluster.api("POST", accounts, {"metadata": {"name": "default"}})

    def make_node(self, name: str) -> None:
        labels = {"cloudhub.dev/edge": "true"}
        self.cluster.api("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})

    def remove(self) -> None:
        for name in self.nodes:
            with contextlib.suppress(Exception):
                self.cluster.api("DELETE", f"/api/v1/nodes/{name}")
        self.cluster.api("DELETE", f"/api/v1/namespaces/{self.namespace}")

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods"

    def make_pod(self, node: str) -> str:
        self.count += 1
        name = f"p{self.count}"
        spec = {
            "nodeName": node,
            "automountServiceAccountToken": False,
            "containers": [{"name": "main", "image": "none"}],
            "volumes": [{"name": "v", "configMap": {"name": "c"}}],
        }
        self.cluster.api("POST", self.path, {"metadata": {"name": name}, "spec": spec})
        return name

    def churn(self, rng: random.Random, steps: int) -> None:
        """Pods come, change and go."""
        for _ in range(steps):
            names = [p["metadata"]["name"] for p in self.cluster.api("GET", self.path)["items"]]
            chance = rng.random()
            if len(names) < 5 or chance < 0.5:
                self.make_pod(rng.choice(self.nodes))
            elif chance < 0.75:
                body = {"metadata": {"labels": {"step": str(rng.random())}}}
                self.cluster.api("PATCH", f"{self.path}/{rng.choice(names)}", body, MERGE)
            else:
                options = {"gracePeriodSeconds": 0}
                self.cluster.api("DELETE", f"{self.path}/{rng.choice(names)}", options)

    def expected(self, slots: frozenset[int]) -> dict[str, int]:
        """By name the revision of every pod of these slots, as the API server says."""
        pods = self.cluster.api("GET", self.path)["items"]
        return {
            p["metadata"]["name"]: int(p["metadata"]["resourceVersion"])
            for p in pods
            if self.slots[p["spec"]["nodeName"]] in slots
        }

    def actual(self) -> dict[str, int]:
        mine = [e for e in self.share.pods.cache if e.key[0] == self.namespace]
        assert {e.key: e.revision for e in mine} == {
            k: e.revision for k, e in self.pods.held.items() if k[0] == self.namespace
        }, "subscribers were told something else than what is cached"
        return {e.key[1]: e.revision for e in mine}

    async def converges(self, slots: frozenset[int]) -> None:
        async def same() -> bool:
            return self.actual() == await asyncio.to_thread(self.expected, slots)

        await eventually(same, WAIT_S)


@contextlib.asynccontextmanager
async def world_of(cluster: KubeCluster) -> AsyncIterator[World]:
    """A running share, and all that it needs."""
    account = f"share-{secrets.token_hex(4)}"
    with contextlib.ExitStack() as stack:
        token = await asyncio.to_thread(stack.enter_context, cluster.account(account))
        proxy = stack.enter_context(KubeProxy(cluster))
        config = KubeConfig.from_file(proxy.kubeconfig(account, token))
        async with KubeClient(config) as client:
            share = KubeShare(client, SLOTS)
            world = World(cluster, share, proxy)
            await asyncio.to_thread(world.make)
            running = asyncio.create_task(share.run())
            try:
                yield world
            finally:
                running.cancel()
                outcome = (await asyncio.gather(running, return_exceptions=True))[0]
                assert isinstance(outcome, asyncio.CancelledError), repr(outcome)
                await asyncio.to_thread(world.remove)


async def test_a_share_holds_the_pods_of_its_slots_and_no_others(kubernetes: KubeCluster) -> None:
    async with world_of(kubernetes) as world:
        for node in world.nodes:
            await asyncio.to_thread(world.make_pod, node)
        await world.share.load(world.ours, 1)
        assert all(world.share.loaded(slot) for slot in world.ours)
        assert world.actual() == await asyncio.to_thread(world.expected, world.ours)
        cached = {e.key[1] for e in world.share.nodes.cache if e.key[1] in world.slots}
        assert cached == {name for name, slot in world.slots.items() if slot in world.ours}
        await asyncio.to_thread(world.churn, random.Random(1), 20)
        await world.converges(world.ours)
        # A slot that is gained brings what was dropped before; one that is lost is forgotten, not deleted.
        more = frozenset({1, 3})
        deleted = set(world.pods.deleted)
        await world.share.load(more, 2)
        assert world.actual().items() >= (await asyncio.to_thread(world.expected, more)).items()
        world.share.drop(more)
        await world.converges(world.ours)
        assert world.pods.deleted == deleted


async def test_the_number_of_watches_does_not_grow_with_nodes_and_pods(kubernetes: KubeCluster) -> None:
    async with world_of(kubernetes) as world:
        await world.share.load(world.ours, 1)
        for node in world.nodes:
            await asyncio.to_thread(world.make_pod, node)
        world.share.configmaps.use((world.namespace, "c"))
        await until(lambda: world.share.configmaps.known((world.namespace, "c")), WAIT_S)
        assert world.share.configmaps.cache.get(world.namespace, "c") is not None
        for kind in world.share.namespaced:
            kind.use(world.namespace)
            kind.use("default")
        await until(lambda: all(kind.known("default") for kind in world.share.namespaced), WAIT_S)
        await world.converges(world.ours)
        # Of Pods, Nodes, Devices, Services and EndpointSlices one each, and one of the ConfigMap.
        assert world.proxy.watches.total() <= 6, world.proxy.watches


async def test_services_and_what_is_ready_behind_them_are_followed_through_closed_watches(
    kubernetes: KubeCluster,
) -> None:
    async with world_of(kubernetes) as world:
        services, slices = world.share.namespaced
        for kind in (services, slices):
            kind.use("default")
            kind.use(world.namespace)
        await until(lambda: services.known("default") and slices.known(world.namespace), WAIT_S)
        master = services.cache.get("default", "kubernetes")
        assert master is not None and master.obj()["spec"]["clusterIP"].count(".") == 3

        base = f"namespaces/{world.namespace}"
        spec = {"ports": [{"port": 80}]}
        world.proxy.watch_life_s, world.proxy.refused_share = 0.5, 0.3
        await asyncio.to_thread(
            world.cluster.api, "POST", f"/api/v1/{base}/services", {"metadata": {"name": "web"}, "spec": spec}
        )
        made = {
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": [f"10.9.0.{i}"], "conditions": {"ready": i < 3}} for i in range(1, 6)
            ],
        }
        path = f"/apis/discovery.k8s.io/v1/{base}/endpointslices"
        await asyncio.to_thread(world.cluster.api, "POST", path, made)

        def ready() -> list[str]:
            entry = slices.cache.get(world.namespace, "web-1")
            return [e["addresses"][0] for e in entry.obj()["endpoints"]] if entry is not None else []

        await until(lambda: ready() == ["10.9.0.1", "10.9.0.2"], WAIT_S)
        for endpoint in made["endpoints"]:
            endpoint["conditions"]["ready"] = True  # type: ignore[index]
        await asyncio.to_thread(world.cluster.api, "PUT", f"{path}/web-1", made)
        await until(lambda: len(ready()) == 5, WAIT_S)
        assert services.cache.get(world.namespace, "web") is not None
        await asyncio.to_thread(world.cluster.api, "DELETE", f"/api/v1/{base}/services/web")
        await until(lambda: services.cache.get(world.namespace, "web") is None, WAIT_S)
        assert {e.key[0] for e in services.cache} <= {"default", world.namespace}


async def test_a_node_that_appears_brings_the_pods_that_were_bound_to_it_before(
    kubernetes: KubeCluster,
) -> None:
    async with world_of(kubernetes) as world:
        name = next(n for i in range(100) if slot_of(n := f"late-{i}-{world.namespace}", SLOTS) in world.ours)
        world.nodes.append(name)
        world.slots[name] = slot_of(name, SLOTS)
        await world.share.load(world.ours, 1)
        made = await asyncio.to_thread(world.make_pod, name)
        seen: list[bool] = []
        world.share.nodes.subscribe(
            lambda deltas, _: seen.extend(
                world.share.pods.cache.get(world.namespace, made) is not None
                for d in deltas if d.entry.key[1] == name and d.type == "ADDED"
            )
        )  # fmt: skip
        await asyncio.to_thread(world.make_node, name)
        await until(lambda: seen, WAIT_S, "the node is told of")
        assert seen == [True], "the node was told of before its pods"


async def test_nothing_is_lost_or_doubled_while_watches_are_closed_and_requests_refused(
    kubernetes: KubeCluster,
) -> None:
    async with world_of(kubernetes) as world:
        world.proxy.watch_life_s = 0.5
        world.proxy.refused_share = 0.3
        await world.share.load(world.ours, 1)
        await asyncio.to_thread(world.churn, random.Random(2), 120)
        world.proxy.cut()
        await asyncio.to_thread(world.churn, random.Random(3), 30)
        world.proxy.refused_share = 0.0
        await world.converges(world.ours)
        await until(lambda: world.proxy.requests["watch", "pods"] > 3, WAIT_S, "watches of pods are closed")
        begun = world.proxy.requests["watch", "pods"]
        print(f"\n{begun} watches of pods begun, {world.proxy.refused} requests refused")


@pytest.fixture(scope="module")
def fragile() -> Iterator[KubeCluster]:
    """An API server that may be taken down."""
    with KubeCluster(parts=(APISERVER,)) as made:
        yield made


async def test_the_cache_stays_through_an_outage_and_follows_once_etcd_was_compacted(
    fragile: KubeCluster,
) -> None:
    async with world_of(fragile) as world:
        for node in world.nodes:
            await asyncio.to_thread(world.make_pod, node)
        await world.share.load(world.ours, 1)
        before = world.actual()
        await asyncio.to_thread(fragile.kill, APISERVER)
        await until(lambda: world.share.stale, WAIT_S, "the outage is noticed")
        assert world.actual() == before, "the cache was emptied"
        world.proxy.down = True  # what follows happens behind the hub's back
        await asyncio.to_thread(fragile.restart, APISERVER)
        await asyncio.to_thread(world.churn, random.Random(4), 40)
        fragile.kill(APISERVER)
        await asyncio.to_thread(fragile.compact)
        await asyncio.to_thread(fragile.restart, APISERVER)
        assert world.actual() == before
        world.proxy.down = False
        await world.converges(world.ours)
        await until(lambda: not world.share.stale, WAIT_S, "the outage is over")
        assert world.actual() != before
