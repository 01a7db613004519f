"""A replica's share over a real etcd."""

import asyncio

from hub.errors import NotFound, ServiceUnavailable
from hub.objects import CONFIGMAPS, NODES, PODS, Keys
from hub.registry import Registry
from hub.share import Share
from hub.store.etcd import EtcdStore
from shards.ring import slot_of
from tests.hub.hub_fixture import configmap, until
from tests.hub.test_share import Replay, using
from tests.servers.etcd import EtcdCluster, debian_etcd

DEADLINE_S = 60.0
SLOTS = 16


async def test_a_share_follows_an_etcd_that_restarts_and_compacts_without_losing_or_doubling() -> None:
    with EtcdCluster(binary=debian_etcd()) as cluster:
        store = await EtcdStore.open(cluster.endpoints, slots=SLOTS)
        registry, share, pods = Registry(store, Keys()), Share(store, Keys()), Replay()
        share.pods.subscribe(pods, pods.forgotten)
        share.configmaps.use(("default", "c"))
        running = asyncio.create_task(share.run())
        try:
            names = [f"n{i}" for i in range(40)]
            mine = {n for n in names if slot_of(n, SLOTS) < 4}
            for name in names:
                await registry.create(NODES, {"metadata": {"name": name}})
                await registry.create(PODS, using(f"on-{name}", name))
            async with asyncio.timeout(DEADLINE_S):
                await share.load(range(4), await store.revision())
            assert (
                {e.key[1] for e in share.nodes.cache}
                == mine
                == {e.view.spec.nodeName for e in share.pods.cache}
            )
            await registry.create(CONFIGMAPS, configmap("c", a="1"))
            await until(lambda: share.configmaps.cache.get("default", "c") is not None, DEADLINE_S)
            cluster.kill(0)
            assert len(share.pods.cache) == len(mine)
            await asyncio.to_thread(cluster.restart, 0)
            gone = sorted(mine)[0]
            await until_written(registry, gone)
            await store.compact(await store.revision())
            await registry.create(PODS, using("last", sorted(mine)[1]))
            await until(lambda: share.pods.cache.get("default", "last") is not None, DEADLINE_S)
            await until(lambda: share.pods.cache.get("default", f"on-{gone}") is None, DEADLINE_S)
            assert set(pods.held) == {e.key for e in share.pods.cache} and len(pods.deleted) == 1
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await store.close()


async def until_written(registry: Registry, node: str) -> None:
    """Deletes the node's pod, once the store can be written again."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await registry.remove(PODS, await registry.get(PODS, "default", f"on-{node}"))
            except ServiceUnavailable:
                await asyncio.sleep(0.05)
            except NotFound:
                return
            else:
                return
