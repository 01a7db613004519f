"""Which documents a node has, against a dumb twin that works it out from the whole store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hub.desired import Bodies, Desired
from hub.documents import pod_key, references, render_config, render_pod
from hub.errors import ApiError
from hub.objects import CONFIGMAPS, NODES, PODS, Keys
from hub.registry import Object, Registry
from hub.share import Share
from hub.store.memory import MemoryStore
from tests.hub.channel_fakes import version
from tests.hub.hub_fixture import configmap, pod

NAMES = ["n1", "n2"]


class World:
    def __init__(self, bodies_bytes_max: int = 1 << 20) -> None:
        self.store = MemoryStore(slots=4)
        self.registry = Registry(self.store, Keys())
        self.share = Share(self.store, Keys())
        self.told: list[tuple[str, str]] = []
        self.desired = Desired(
            self.share.pods,
            self.share.configmaps,
            self.share.secrets,
            lambda node, key: self.told.append((node, key)),
            lambda: None,
            bodies_bytes_max,
        )

    @contextlib.asynccontextmanager
    async def running(self, started_late: bool = False) -> AsyncIterator[None]:
        """With two Nodes, and every slot loaded."""
        for name in NAMES:
            await self.registry.create(NODES, {"metadata": {"name": name}})
        running = asyncio.create_task(self.share.run())
        if not started_late:
            self.desired.start()
        await self.share.load(range(4), await self.store.revision())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def reach(self) -> None:
        revision = await self.store.revision()
        await self.share.pods.at_least(revision)
        for objects in (self.share.configmaps, self.share.secrets):
            await objects.at_least(revision)
            await objects.read()

    async def twin(self, node: str) -> dict[str, str]:
        """What the node should hold, from the store alone."""
        out: dict[str, str] = {}
        for stored in (await self.registry.page(PODS)).items:
            obj = stored.obj()
            if obj["spec"].get("nodeName") != node:
                continue
            meta = obj["metadata"]
            out[pod_key(meta["namespace"], meta["name"], meta["uid"])] = version(render_pod(obj))
            for key in references(meta["namespace"], obj["spec"]):
                config = await self.registry.find(CONFIGMAPS, *key.split("/")[1:])
                if config is not None:
                    out[key] = version(render_config(CONFIGMAPS, config.obj()))
        return out

    async def check(self) -> None:
        await self.reach()
        for node in NAMES:
            held = self.desired.of(node)
            assert {k: d.version for k, d in held.items()} == await self.twin(node)
            for document in held.values():
                body = self.desired.body(document)
                assert body is not None and version(body) == document.version


def using(name: str, node: str, config: str) -> Object:
    envs = [{"configMapRef": {"name": config}}]
    return pod(name, node, containers=[{"name": "main", "image": "x", "envFrom": envs}])


OPS = st.tuples(
    st.sampled_from(["pod", "unpod", "config", "unconfig", "status", "mark"]),
    st.integers(0, 1),
    st.integers(0, 1),
    st.sampled_from(NAMES),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(OPS, max_size=25), st.booleans())
def test_documents_are_those_of_a_dumb_twin_whatever_the_order(ops: list[Any], started_late: bool) -> None:
    async def run() -> None:
        world = World(bodies_bytes_max=300)
        async with world.running(started_late):
            for op, a, b, node in ops:
                with contextlib.suppress(ApiError):  # it exists already, or does not
                    await act(world, op, a, b, node)
            await world.reach()
            if started_late:
                world.desired.start()
            await world.check()

    asyncio.run(run())


async def act(world: World, op: str, a: int, b: int, node: str) -> None:
    registry = world.registry
    if op == "pod":
        await registry.create(PODS, using(f"p{a}", node, f"c{b}"))
    elif op == "unpod":
        await registry.remove(PODS, await registry.get(PODS, "default", f"p{a}"))
    elif op == "config":
        stored = await registry.find(CONFIGMAPS, "default", f"c{a}")
        obj = configmap(f"c{a}", value=str(b))
        if stored is None:
            await registry.create(CONFIGMAPS, obj)
        else:
            await registry.replace(CONFIGMAPS, stored, {**stored.obj(), "data": obj["data"]})
    elif op == "unconfig":
        await registry.remove(CONFIGMAPS, await registry.get(CONFIGMAPS, "default", f"c{a}"))
    elif op == "status":
        await registry.mutate(PODS, "default", f"p{a}", lambda o: {**o, "status": {"phase": str(b)}})
    else:
        grace = {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": b}
        await registry.mutate(
            PODS, "default", f"p{a}", lambda o: {**o, "metadata": {**o["metadata"], **grace}}
        )


async def test_a_status_write_tells_nobody() -> None:
    world = World()
    async with world.running():
        await world.registry.create(CONFIGMAPS, configmap("c", a="1"))
        await world.registry.create(PODS, using("p", "n1", "c"))
        await world.reach()
        assert sorted(key.split("/")[0] for _, key in world.told) == ["configmap", "pod"]
        world.told.clear()
        await world.registry.mutate(PODS, "default", "p", lambda o: {**o, "status": {"phase": "Running"}})
        await world.reach()
        assert world.told == []


async def test_a_config_goes_with_the_last_pod_that_uses_it_however_often_those_changed() -> None:
    world = World()
    async with world.running():
        for op, a, b in (("config", 0, 1), ("pod", 0, 0), ("pod", 1, 0), ("mark", 0, 5), ("mark", 0, 3)):
            await act(world, op, a, b, "n1")
        await act(world, "unpod", 0, 0, "n1")
        await world.check()
        assert "configmap/default/c0" in world.desired.of("n1")
        await act(world, "unpod", 1, 0, "n1")
        await world.check()
        assert not world.desired.of("n1")


def test_rendered_bodies_are_bounded_and_the_longest_unused_go_first() -> None:
    bodies = Bodies(30)
    for name in ("a", "b", "c"):
        bodies.put(name, b"x" * 10)
    bodies.get("a")
    bodies.put("d", b"x" * 10)
    assert bodies.get("b") is None and bodies.get("a") is not None and bodies.bytes == 30
    bodies.put("huge", b"x" * 100)
    assert bodies.get("huge") is not None and bodies.bytes == 100
