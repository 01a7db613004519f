"""Feeds: one watch of the store for all users of a kind, a bounded past, outages."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from hub import errors
from hub import feed as feed_module
from hub.feed import Feed
from hub.mirror import Delta
from hub.objects import CONFIGMAPS, NODES, PODS, Keys, Resource
from hub.outage import Outage
from hub.registry import Object, Registry
from hub.store.memory import MemoryStore
from shards.kv import Compacted, Unavailable, WatchBatch

DEADLINE_S = 30.0


class Shaky(MemoryStore):
    """Counts its watches; may be out of reach."""

    def __init__(self) -> None:
        super().__init__()
        self.watches = 0
        self.down = asyncio.Event()
        self.break_at: int | None = None

    async def revision(self) -> int:
        if self.down.is_set():
            raise Unavailable("no quorum")
        return await super().revision()

    async def watch(
        self, ranges: Sequence[tuple[str, str]], after: int, *, patient: bool = False
    ) -> AsyncIterator[WatchBatch]:
        if self.down.is_set():
            raise Unavailable("no quorum")
        self.watches += 1
        try:
            async for batch in super().watch(ranges, after):
                if self.down.is_set():
                    raise Unavailable("no quorum")
                yield batch
                if self.break_at is not None and batch.revision >= self.break_at:
                    self.break_at = None
                    raise Unavailable("the member was killed")
        finally:
            self.watches -= 1


class World:
    """A store, a feed of it, and what the feed has said."""

    def __init__(self, res: Resource = CONFIGMAPS, **options: Any) -> None:
        self.store = Shaky()
        self.registry = Registry(self.store, Keys())
        self.deltas: list[Delta[Any]] = []
        self.failures: list[errors.ApiError] = []
        self.feed = Feed(
            self.store,
            Keys().objects(res),
            res,
            Outage(),
            lambda deltas, _: self.deltas.extend(deltas),
            self.failures.append,
            **options,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        try:
            with self.feed.used():
                await self.feed.ready()
                yield
        finally:
            await self.feed.stop()

    async def make(self, *names: str) -> int:
        for name in names:
            stored = await self.registry.create(CONFIGMAPS, configmap(name))
        return stored.revision

    async def reached(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.feed.at_least(await MemoryStore.revision(self.store))

    @property
    def names(self) -> list[tuple[str, str]]:
        return [(d.type, d.entry.key[1]) for d in self.deltas]


def configmap(name: str, **data: str) -> Object:
    return {"metadata": {"name": name, "namespace": "d"}, "data": data}


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


@contextlib.contextmanager
def times(world: World, count: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(world.feed.used())
        yield


async def test_all_users_share_one_watch_of_the_store_and_it_ends_a_while_after_the_last() -> None:
    world = World(linger_s=0.01)
    with times(world, 5):
        for _ in range(5):
            await world.feed.ready()
        await world.make("a")
        await world.reached()
        assert world.store.watches == 1
    assert world.feed.running
    await until(lambda: not world.feed.running and world.store.watches == 0)
    with world.feed.used():
        await world.feed.ready()
        await world.make("b")
        await world.reached()
    await world.feed.stop()
    assert world.names == [("ADDED", "a"), ("ADDED", "b")]


async def test_one_who_comes_back_within_the_linger_finds_the_past_kept() -> None:
    world = World(linger_s=DEADLINE_S)
    with world.feed.used():
        await world.feed.ready()
        before = world.feed.revision
    made = await world.make("a")
    await world.reached()
    with world.feed.used():
        await world.feed.ready()
        past = world.feed.since(made - 1)
        assert past is not None and [d.entry.key[1] for d in past] == ["a"]
        assert world.feed.since(before - 1) is None
    await world.feed.stop()


async def test_a_pod_that_is_bound_moves_to_another_partition_as_one_modification() -> None:
    world = World(PODS)
    await world.registry.create(NODES, {"metadata": {"name": "n"}})
    async with world.running():
        pod = await world.registry.create(PODS, {"metadata": {"name": "p", "namespace": "d"}, "spec": {}})
        await world.registry.bind("d", "p", pod.obj()["metadata"]["uid"], "n")
        await world.reached()
    assert world.names == [("ADDED", "p"), ("MODIFIED", "p")]
    bound = world.deltas[1]
    assert bound.old is not None and bound.old.partition == "-" and bound.entry.partition != "-"


async def test_an_object_made_anew_in_one_transaction_is_a_deletion_and_an_addition() -> None:
    world = World()
    async with world.running():
        made = await world.registry.create(CONFIGMAPS, configmap("a"))
        other = made.obj()
        other["metadata"]["uid"] = "another"
        await world.registry.replace(CONFIGMAPS, made, other)
        await world.reached()
    assert world.names == [("ADDED", "a"), ("DELETED", "a"), ("ADDED", "a")]


async def test_a_watch_that_breaks_goes_on_without_losing_or_doubling_anything() -> None:
    world = World()
    async with world.running():
        world.store.break_at = await world.make("a") + 1
        await world.make("b", "c")
        await world.reached()
        world.store.break_at = await world.make("d")
        await world.make("e")
        await world.reached()
    assert world.names == [("ADDED", name) for name in "abcde"]
    assert not world.failures


async def test_an_outage_is_told_after_its_bound_and_the_feed_goes_on_afterwards() -> None:
    world = World(pulse_s=0.01, outage_max_s=0.05)
    async with world.running():
        await world.make("a")
        await world.reached()
        world.store.down.set()
        await world.make("b")
        await until(lambda: world.failures)
        assert isinstance(world.failures[0], errors.ServiceUnavailable)
        assert world.names == [("ADDED", "a")]
        world.store.down.clear()
        await world.reached()
    assert world.names == [("ADDED", "a"), ("ADDED", "b")]


async def test_a_past_that_is_compacted_away_meanwhile_expires_the_users_and_the_feed_begins_anew() -> None:
    class Behind(Shaky):
        too_slow = False

        async def watch(
            self, ranges: Sequence[tuple[str, str]], after: int, *, patient: bool = False
        ) -> AsyncIterator[WatchBatch]:
            async for batch in super().watch(ranges, after):
                if self.too_slow:
                    self.too_slow = False
                    raise Compacted(batch.revision, batch.revision + 5)
                yield batch

    world = World()
    world.store.__class__ = Behind
    async with world.running():
        await world.make("a")
        await world.reached()
        world.store.too_slow = True  # type: ignore[attr-defined]
        second = await world.make("b")
        await until(lambda: world.failures)
        assert isinstance(world.failures[0], errors.Expired)
        assert world.feed.since(second - 1) is None
        await world.make("c")
        await world.reached()
    assert world.names == [("ADDED", "a"), ("ADDED", "c")]


async def test_the_past_is_bounded_in_number_and_in_bytes_and_says_so(monkeypatch: Any) -> None:
    monkeypatch.setattr(feed_module, "HISTORY_MAX", 3)
    world = World()
    async with world.running():
        made = [await world.make(f"c{i}") for i in range(5)]
        await world.reached()
        assert world.feed.since(made[0]) is None
        past = world.feed.since(made[1])
        assert past is not None and [d.entry.key[1] for d in past] == ["c2", "c3", "c4"]
    monkeypatch.setattr(feed_module, "HISTORY_MAX", 100)
    monkeypatch.setattr(feed_module, "HISTORY_BYTES_MAX", 200_000)
    world = World()
    async with world.running():
        for i in range(20):
            big = configmap(f"c{i:02d}", blob=os.urandom(25_000).hex())  # half of it is left when compressed
            last = await world.registry.create(CONFIGMAPS, big)
        await world.reached()
        assert world.feed._history_bytes <= 200_000
        assert 3 <= len(world.feed._history) <= 8
        assert world.feed.since(last.revision - 3) is not None
        assert world.feed.since(last.revision - 10) is None


async def test_the_stores_past_reads_as_the_same_deltas() -> None:
    world = World(PODS)
    await world.registry.create(NODES, {"metadata": {"name": "n"}})
    async with world.running():
        after = world.feed.revision
        pod = await world.registry.create(PODS, {"metadata": {"name": "p", "namespace": "d"}, "spec": {}})
        bound = await world.registry.bind("d", "p", pod.obj()["metadata"]["uid"], "n")
        await world.registry.remove(PODS, bound)
        await world.reached()
        replayed = [d async for d in world.feed.replay(after, world.feed.revision)]
    assert [(d.type, d.revision) for d in replayed] == [(d.type, d.revision) for d in world.deltas]
    assert [d.type for d in replayed] == ["ADDED", "MODIFIED", "DELETED"]


async def test_a_bug_ends_the_watches_instead_of_leaving_them_silent(caplog: Any) -> None:
    world = World()

    def broken(deltas: Sequence[Delta[Any]], revision: int) -> None:
        if deltas:
            raise RuntimeError("a bug")

    world.feed._handler = broken
    async with world.running():
        await world.make("a")
        await until(lambda: world.failures)
        assert isinstance(world.failures[0], errors.InternalError)
        assert not world.feed.running
