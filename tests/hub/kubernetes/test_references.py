"""ConfigMaps and Secrets by reference: few watches, whatever is used; and unknown is never absent."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.kubernetes import references as module
from hub.kubernetes.references import KubeReferences
from hub.kubernetes.watchplan import COMMON_MIN, plan, watches_of
from hub.objects import CONFIGMAPS
from hub.outage import Outage
from tests.hub.hub_fixture import until
from tests.hub.kubernetes.direct import DirectClient
from tests.hub.kubernetes.fake_api import FakeApi

DEADLINE_S = 20.0
KEYS = st.sets(st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvwxyz")))


@given(KEYS, KEYS, st.integers(0, 10))
def test_a_plan_covers_all_that_is_used_by_watches_within_the_bound(
    used: set[tuple[str, str]], before: set[tuple[str, str]], watches_max: int
) -> None:
    held = watches_of(plan(before, (), watches_max).values())
    covered = plan(used, held, watches_max)
    watches = watches_of(covered.values())
    assert covered.keys() == used and len(watches) <= watches_max
    for (namespace, name), watch in covered.items():
        assert watch is None or (watch[0] in ("", namespace) and watch[1] in ("", name))
    assert None not in covered.values() or len(watches) == watches_max
    assert plan(used, watches, watches_max) == covered, "a plan that is carried out stays"
    assert None not in plan(used, (), 1000).values()


def test_one_name_is_watched_alone_several_with_their_namespace_and_a_common_one_everywhere() -> None:
    common = [(f"ns{i}", "kube-root-ca.crt") for i in range(COMMON_MIN)]
    covered = plan([*common, ("a", "x"), ("b", "x"), ("b", "y")], (), 100)
    assert {covered[key] for key in common} == {("", "kube-root-ca.crt")}
    assert covered[("a", "x")] == ("a", "x")
    assert covered[("b", "x")] == covered[("b", "y")] == ("b", "")


class World:
    def __init__(self, watches_max: int = 10) -> None:
        self.api = FakeApi()
        self.api.cut = asyncio.Event()
        self.client = DirectClient(self.api, 1)
        self.absent: list[tuple[str, str]] = []
        self.used = KubeReferences(self.client, CONFIGMAPS, Outage(), watches_max)  # type: ignore[arg-type]
        self.used.on_absent(self.absent.append)

    def put(self, namespace: str, name: str, text: str = "") -> None:
        self.api.put(
            "configmaps", {"metadata": {"name": name, "namespace": namespace}, "data": {"text": text}}
        )

    def text(self, namespace: str, name: str) -> str | None:
        entry = self.used.cache.get(namespace, name)
        return None if entry is None else str(entry.obj()["data"]["text"])

    def watched(self) -> list[tuple[str, str]]:
        return sorted((path, query.get("fieldSelector", "")) for path, query in self.client.open)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.used.run())
            yield
            running.cancel()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "hub.outage.FIRST_S": 0.001,
        "hub.outage.MAX_S": 0.005,
        "hub.kubernetes.references.PLAN_S": 0.001,
        "hub.kubernetes.references.TIDY_S": 0.01,
    }.items():
        monkeypatch.setattr(name, value)


async def known(world: World, *keys: tuple[str, str]) -> None:
    await until(lambda: all(map(world.used.known, keys)), DEADLINE_S, f"{keys} known")


async def test_what_is_used_is_read_and_followed_and_what_is_not_is_neither() -> None:
    world = World()
    for name in ("x", "y", "z"):
        world.put("a", name, "one")
    async with world.running():
        world.used.use(("a", "x"))
        world.used.use(("a", "none"))
        await known(world, ("a", "x"), ("a", "none"))
        assert world.absent == [("a", "none")] and len(world.used.cache) == 1
        assert world.watched() == [("/api/v1/namespaces/a/configmaps", "")]
        world.put("a", "x", "two")
        world.put("a", "z", "two")
        world.put("a", "none", "now")
        await until(lambda: (world.text("a", "x"), world.text("a", "none")) == ("two", "now"), DEADLINE_S)
        assert world.text("a", "z") is None
        # Under the watch that is there: nothing new but a read.
        world.used.use(("a", "z"))
        await known(world, ("a", "z"))
        assert world.text("a", "z") == "two" and world.used.watches_begun == 1
        for name in ("x", "z", "none"):
            world.used.release(("a", name))
        await until(lambda: not world.watched(), DEADLINE_S, "the watch's end")
        assert len(world.used) == len(world.used.cache) == 0


async def test_what_comes_under_another_watch_misses_nothing_in_between() -> None:
    world = World()
    world.put("a", "x", "0")
    world.put("a", "y", "0")
    async with world.running():
        world.used.use(("a", "x"))
        await known(world, ("a", "x"))
        await until(lambda: world.watched(), DEADLINE_S)
        assert world.watched() == [("/api/v1/namespaces/a/configmaps", "metadata.name=x")]
        world.used.use(("a", "y"))
        for i in range(1, 200):  # one change in every turn, over the change of watches
            world.put("a", "x", str(i))
            await asyncio.sleep(0)
        await until(lambda: world.text("a", "x") == "199", DEADLINE_S)
        await until(lambda: world.watched() == [("/api/v1/namespaces/a/configmaps", "")], DEADLINE_S)
        assert world.used.known(("a", "x"))


async def test_what_no_watch_covers_is_read_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.0)
    world = World(watches_max=1)
    keys = [("a", "x"), ("a", "y"), ("b", "z")]
    for key in keys:
        world.put(*key, "one")
    async with world.running():
        for key in keys:
            world.used.use(key)
        await known(world, *keys)
        assert world.used.watches == 1 and world.used.polled == 1
        for key in keys:
            world.put(*key, "two")
        await until(lambda: {world.text(*key) for key in keys} == {"two"}, DEADLINE_S)
        world.api.remove("configmaps", "b", "z")
        await until(lambda: world.text("b", "z") is None, DEADLINE_S)
        assert world.absent == [], "it was known: subscribers have heard DELETED"


async def test_what_cannot_be_read_stays_unknown_and_keeps_nothing_else_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hub.references.READS_AT_ONCE", 2)
    world = World()
    world.put("a", "x", "one")
    fetch = world.used._fetch
    refused = [("a", f"secret{i}") for i in range(5)]

    async def forbidden(key: tuple[str, str]) -> object:
        if key in refused:
            raise module.Unavailable("forbidden")
        return await fetch(key)

    monkeypatch.setattr(world.used, "_fetch", forbidden)
    async with world.running():
        for key in [*refused, ("a", "x")]:
            world.used.use(key)
        await known(world, ("a", "x"))
        assert not any(map(world.used.known, refused)) and world.absent == []
        assert not world.used.settled


async def test_an_api_server_that_is_away_changes_nothing_that_is_known() -> None:
    world = World()
    world.put("a", "x", "one")
    async with world.running():
        world.used.use(("a", "x"))
        await known(world, ("a", "x"))
        world.api.down = True
        world.api.cut_watches()
        world.put("a", "x", "two")
        world.api.compact()
        world.used.use(("a", "y"))
        for _ in range(50):
            await asyncio.sleep(0.001)
            assert world.text("a", "x") == "one" and not world.used.known(("a", "y"))
        world.api.down = False
        await until(lambda: world.text("a", "x") == "two", DEADLINE_S)
        await known(world, ("a", "y"))
        assert world.absent == [("a", "y")]
