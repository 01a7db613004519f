"""This replica's share of the fleet: held against a slow twin, and through outages, compactions and hand-overs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.cache import Entry
from hub.desired import Desired
from hub.documents import pod_key, references, render_config, render_pod
from hub.mirror import Delta
from hub.objects import CONFIGMAPS, DEVICES, NODES, PODS, Keys, partition_of_slot
from hub.registry import Object, Registry, Stored
from hub.share import Share, adjacent
from hub.store.memory import MemoryStore
from shards.kv import Delete, Event, KeyValue, Page, Unavailable, WatchBatch
from shards.ring import slot_of
from tests.hub.channel_fakes import version
from tests.hub.hub_fixture import configmap, pod, until

DEADLINE_S = 30.0
SLOTS = 8
NAMES: list[str] = [f"n{slot}" for slot in range(SLOTS)]


class Flaky(MemoryStore):
    """A store that can be out of reach, and that takes a turn of the loop for every answer. `asked`: ranges listed;
    `watched`: ranges that are watched now."""

    def __init__(self) -> None:
        super().__init__(slots=SLOTS)
        self.down = False
        self.asked: list[tuple[str, str]] = []
        self.watched: list[tuple[str, str]] = []

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise Unavailable("no quorum")

    def fail(self) -> None:
        """Out of reach from now on; watches end."""
        self.down = True
        self._watchers.close()

    async def revision(self) -> int:
        await self._answer()
        return await super().revision()

    async def page(
        self, start: str, end: str, *, revision: int | None = None, limit: int = 500, stale: bool = False
    ) -> Page:
        await self._answer()
        self.asked.append((start, end))
        page = await super().page(start, end, revision=revision, limit=limit)
        await self._answer()
        return page

    async def watch(
        self, ranges: Sequence[tuple[str, str]], after: int, *, patient: bool = False
    ) -> AsyncIterator[WatchBatch]:
        await self._answer()
        self.watched += ranges
        try:
            async for batch in super().watch(ranges, after):
                yield batch
                await asyncio.sleep(0)
        finally:
            for span in ranges:
                self.watched.remove(span)


class Replay:
    """A subscriber that keeps its own copy from deltas alone, and finds what is lost, doubled or out of order."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], Entry[Any]] = {}
        self.deleted: list[str] = []

    def __call__(self, deltas: Sequence[Delta[Any]], revision: int) -> None:
        for delta in deltas:
            key, held = delta.entry.key, self.held.get(delta.entry.key)
            assert delta.old is held
            if delta.type == "DELETED":
                assert held is not None
                del self.held[key]
                self.deleted.append(held.meta.uid)
            else:
                assert (held is None) == (delta.type == "ADDED")
                assert held is None or held.revision < delta.entry.revision
                self.held[key] = delta.entry

    def forgotten(self, entries: Sequence[Entry[Any]]) -> None:
        for entry in entries:
            assert self.held.pop(entry.key) is entry


class World:
    """A store with a Node per slot, a replica's share of it, and the documents that follow from that."""

    def __init__(self) -> None:
        self.store = Flaky()
        self.truth = Registry(self.store, Keys())
        self.share = Share(self.store, Keys())
        self.told: list[tuple[str, str]] = []
        self.desired = Desired(
            self.share.pods, self.share.configmaps, self.share.secrets, self.changed, lambda: None
        )
        self.pods, self.nodes = Replay(), Replay()
        self.share.pods.subscribe(self.pods, self.pods.forgotten)
        self.share.nodes.subscribe(self.nodes, self.nodes.forgotten)
        self.deleted: set[str] = set()

    def changed(self, node: str, key: str) -> None:
        self.told.append((node, key))
        self.check_nothing_is_taken_away(
            [node]
        )  # others that use it are told in the same turn, after this one

    def check_nothing_is_taken_away(self, names: Collection[str] = NAMES) -> None:
        """The ConfigMap `c0` is never deleted: no loaded node that uses it may be told otherwise."""
        key = "configmap/default/c0"
        for slot, name in enumerate(NAMES):
            if name not in names or not self.share.loaded(slot):
                continue
            users = [p for p in self.share.pods.cache.find("node", name) if b'"c0"' in p.raw()]
            if users and key not in self.desired.of(name):
                # Before the deltas of this moment have reached `desired`, it knows nothing of the pod.
                known = [p for p in users if pod_key(*p.key, p.meta.uid) in self.desired.of(name)]
                assert not known or (self.desired.withhold(name, key) and not self.desired.ready(name))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        for slot, name in enumerate(NAMES):
            await self.put_node(name, slot)
        await self.truth.create(CONFIGMAPS, configmap("c0"))
        self.desired.start()
        running = asyncio.create_task(self.share.run())
        try:
            yield
        finally:
            running.cancel()
            outcome = (await asyncio.gather(running, return_exceptions=True))[0]
            assert isinstance(outcome, asyncio.CancelledError), repr(outcome)
            await until(lambda: not self.store.watched)

    async def put_node(self, name: str, slot: int) -> Stored:
        """A Node in this slot; its site is chosen to lie there."""
        site = next(s for s in (f"{name}-{i}" for i in range(1000)) if slot_of(s, SLOTS) == slot)
        meta = {"name": name, "labels": {"cloudhub.dev/site": site}}
        return await self.truth.create(NODES, {"metadata": meta})

    async def up(self, job: Any) -> Any:
        """A write of somebody else, who reaches the store."""
        down, self.store.down = self.store.down, False
        try:
            return await job
        finally:
            self.store.down = down

    async def expected(self, loaded: set[int]) -> Any:
        """From the store alone: what is cached, and the documents of every node."""
        partitions = {partition_of_slot(slot) for slot in loaded}
        objects: dict[str, int] = {}
        documents: dict[str, dict[str, str]] = {name: {} for name in NAMES}
        for res in (NODES, PODS):
            for stored in (await self.truth.page(res)).items:
                if stored.partition not in partitions:
                    continue
                objects[stored.key] = stored.revision
                if res == PODS:
                    await self._add_documents(stored.obj(), documents)
        return objects, documents

    async def _add_documents(self, obj: Object, documents: dict[str, dict[str, str]]) -> None:
        meta, node = obj["metadata"], obj["spec"]["nodeName"]
        documents[node][pod_key(meta["namespace"], meta["name"], meta["uid"])] = version(render_pod(obj))
        for key in references(meta["namespace"], obj["spec"]):
            config = await self.truth.find(CONFIGMAPS, *key.split("/")[1:])
            if config is not None:
                documents[node][key] = version(render_config(CONFIGMAPS, config.obj()))

    def actual(self) -> Any:
        keys = Keys()
        objects = {
            keys.object(mirror.resource, entry.partition, *entry.key): entry.revision
            for mirror in (self.share.nodes, self.share.pods)
            for entry in mirror.cache
        }
        documents = {n: {k: d.version for k, d in self.desired.of(n).items()} for n in NAMES}
        return objects, documents

    async def check(self, loaded: set[int]) -> None:
        expected = await self.expected(loaded)
        await until(lambda: self.actual() == expected, DEADLINE_S, "what the store holds")
        assert {slot for slot in range(SLOTS) if self.share.loaded(slot)} == loaded
        for replay, mirror in ((self.pods, self.share.pods), (self.nodes, self.share.nodes)):
            assert {k: e.revision for k, e in replay.held.items()} == {
                e.key: e.revision for e in mirror.cache
            }
            assert set(replay.deleted) <= self.deleted, "only what was deleted is said to be"
        used = {key for name in NAMES for p in self.share.pods.cache.find("node", name) for key in refs(p)}
        assert len(self.share.configmaps) == len(used)
        assert len(self.share.configmaps.cache) <= len(used)
        await until(lambda: all(self.desired.ready(NAMES[slot]) for slot in loaded), DEADLINE_S)


def refs(entry: Entry[Any]) -> frozenset[str]:
    return references(entry.key[0], entry.obj()["spec"])


def using(name: str, node: str, *configs: str) -> Object:
    envs = [{"configMapRef": {"name": config}} for config in configs]
    return pod(name, node, containers=[{"name": "main", "image": "x", "envFrom": envs}])


OPS = st.tuples(
    st.sampled_from(
        ["pod", "pod", "unpod", "config", "unconfig", "node", "load", "load", "drop", "compact", "down", "up"]
    ),
    st.integers(0, 5),
    st.sets(st.integers(0, SLOTS - 1), max_size=SLOTS),
    st.integers(0, 6),
)


async def act(world: World, op: str, a: int, slots: set[int]) -> None:
    """A write of somebody else."""
    truth = world.truth
    if op == "pod":
        found = await truth.find(PODS, "default", f"p{a}")
        if found is None:
            configs = ["c0", "c1"][: a % 3]
            await truth.create(PODS, using(f"p{a}", NAMES[len(slots) % SLOTS], *configs))
        else:
            changed = {**found.obj(), "status": {"phase": str(found.revision)}}
            await truth.replace(PODS, found, changed)
    elif op == "unpod":
        found = await truth.find(PODS, "default", f"p{a}")
        if found is not None:
            world.deleted.add(found.obj()["metadata"]["uid"])
            await truth.remove(PODS, found)
    elif op == "config":
        found = await truth.find(CONFIGMAPS, "default", f"c{a % 2}")
        if found is None:
            await truth.create(CONFIGMAPS, configmap(f"c{a % 2}"))
        else:
            await truth.replace(CONFIGMAPS, found, {**found.obj(), "data": {"at": str(found.revision)}})
    elif op == "unconfig":
        found = await truth.find(CONFIGMAPS, "default", "c1")
        if found is not None:
            await truth.remove(CONFIGMAPS, found)
    elif op == "node":  # deleted, and made anew in another slot; its pods stay where they lie
        found = await truth.get(NODES, "", NAMES[a])
        world.deleted.add(found.obj()["metadata"]["uid"])
        await truth.remove(NODES, found)
        await world.put_node(NAMES[a], (a + len(slots)) % SLOTS)
    else:
        await world.store.compact(await world.store.revision())


@settings(max_examples=100, deadline=None)
@given(st.lists(OPS, max_size=30))
def test_a_share_is_what_a_slow_twin_reads_from_the_store_whatever_happens(ops: list[Any]) -> None:
    async def run() -> None:
        world = World()
        wanted: set[int] = set()
        loads: list[asyncio.Task[None]] = []
        async with world.running():
            for op, a, slots, turns in ops:
                if op == "load":
                    wanted |= slots
                    at = await MemoryStore.revision(world.store)
                    loads.append(asyncio.create_task(world.share.load(slots, at)))
                elif op == "drop":
                    await asyncio.sleep(0)  # loads that were asked for before have begun
                    wanted -= slots
                    world.share.drop(slots)
                elif op == "down":
                    world.store.fail()
                elif op == "up":
                    world.store.down = False
                else:
                    await world.up(act(world, op, a, slots))
                for _ in range(turns):
                    await asyncio.sleep(0)
                    world.check_nothing_is_taken_away()
            world.store.down = False
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(*loads)
            await world.check(wanted)

    fast = pytest.MonkeyPatch()
    fast.setattr("hub.outage.FIRST_S", 0.001)
    fast.setattr("hub.outage.MAX_S", 0.005)
    fast.setattr("hub.share.FILE_AT_ONCE", 2)
    fast.setattr("hub.share.LIST_PAGE", 2)
    with contextlib.closing(_Undo(fast)):
        asyncio.run(asyncio.wait_for(run(), 2 * DEADLINE_S))


class _Undo:
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.close = patch.undo


def spans(res: Any, *runs: tuple[int, int]) -> list[tuple[str, str]]:
    prefix = Keys().objects(res)
    return [(f"{prefix}{first:04d}/", f"{prefix}{last:04d}0") for first, last in runs]


async def test_all_slots_are_one_range_of_each_kind_and_a_dropped_one_is_no_longer_watched() -> None:
    world = World()
    async with world.running():
        await world.share.load(range(SLOTS), await world.store.revision())
        expected = spans(NODES, (0, 7)) + spans(PODS, (0, 7)) + spans(DEVICES, (0, 7))
        await until(lambda: set(expected) <= set(world.store.watched), DEADLINE_S)
        listed = len(world.store.asked)
        world.share.drop([2, 5, 6])
        rest = [(0, 1), (3, 4), (7, 7)]
        shared = [s for s in world.store.watched if "/configmaps/" in s[0] or "/secrets/" in s[0]]
        bound = [span for res in (NODES, PODS, DEVICES) for span in spans(res, *rest)]
        wanted = sorted(bound + shared)
        await until(lambda: sorted(world.store.watched) == wanted, DEADLINE_S)
        await world.truth.create(PODS, using("p1", "n1", "c0"))
        await world.truth.create(PODS, using("p2", "n2", "c0"))
        await world.check({0, 1, 3, 4, 7})
        again = [
            start
            for start, _ in world.store.asked[listed:]
            if any(f"/{kind}/0" in start for kind in ("nodes", "pods", "devices"))
        ]
        assert again == [], "each part goes on from where it was"


async def test_a_slot_is_loaded_only_when_what_its_pods_refer_to_is_known() -> None:
    class NoConfigs(Flaky):
        reads = asyncio.Event()

        async def page(
            self, start: str, end: str, *, revision: int | None = None, limit: int = 500, stale: bool = False
        ) -> Page:
            if "/configmaps/" in start:
                await self.reads.wait()
            return await super().page(start, end, revision=revision, limit=limit)

    world = World()
    world.store.__class__ = NoConfigs
    async with world.running():
        await world.truth.create(PODS, using("p", "n3", "c0", "c1"))
        loading = asyncio.create_task(world.share.load([3], await world.store.revision()))
        await until(lambda: world.share.pods.cache.get("default", "p") is not None, DEADLINE_S)
        assert not world.share.loaded(3) and not loading.done() and not world.desired.ready("n3")
        assert world.desired.withhold("n3", "configmap/default/c0")
        assert world.desired.withhold("n3", "configmap/default/c1")
        assert not world.desired.withhold("n3", "configmap/default/other")
        world.told.clear()
        NoConfigs.reads.set()
        await asyncio.wait_for(loading, DEADLINE_S)
        assert world.share.loaded(3) and world.desired.ready("n3")
        assert "configmap/default/c0" in world.desired.of("n3")
        assert ("n3", "configmap/default/c1") in world.told, "it is absent: now it may be taken away"
        assert not world.desired.withhold("n3", "configmap/default/c1")


async def test_a_store_out_of_reach_leaves_the_cache_as_it_was_and_says_so() -> None:
    world = World()
    async with world.running():
        await world.truth.create(PODS, using("p", "n1", "c0"))
        await world.share.load(range(SLOTS), await world.store.revision())
        before = world.actual()
        world.told.clear()
        world.store.fail()
        await until(lambda: world.share.stale, DEADLINE_S)
        await world.up(act(world, "unpod", 0, set()))
        await world.up(world.truth.create(PODS, using("late", "n2", "c0")))
        assert world.actual() == before and world.told == [] and world.share.loaded(1)
        world.store.down = False
        await world.check(set(range(SLOTS)))
        await until(lambda: not world.share.stale, DEADLINE_S)


async def test_a_store_that_lies_before_what_was_asked_for_is_not_believed() -> None:
    world = World()
    async with world.running():
        loading = asyncio.create_task(world.share.load([1], await world.store.revision() + 1))
        await until(lambda: world.share.stale, DEADLINE_S)
        assert not world.share.loaded(1) and len(world.share.nodes.cache) == 0
        await world.truth.create(PODS, using("p", "n1", "c0"))
        await asyncio.wait_for(loading, DEADLINE_S)
        assert world.share.loaded(1) and world.share.pods.cache.get("default", "p") is not None


async def test_a_quarter_of_the_slots_is_a_quarter_of_the_objects_and_only_what_they_refer_to() -> None:
    world = World()
    async with world.running():
        for i in range(64):
            await world.truth.create(CONFIGMAPS, configmap(f"of-{i % SLOTS}-{i}"))
            await world.truth.create(PODS, using(f"p{i}", NAMES[i % SLOTS], f"of-{i % SLOTS}-{i}"))
        await world.share.load([0, 1], await world.store.revision())
        assert (len(world.share.pods.cache), len(world.share.nodes.cache)) == (16, 2)
        assert len(world.share.configmaps.cache) == 16
        world.share.drop([1])
        assert (len(world.share.pods.cache), len(world.share.configmaps.cache)) == (8, 8)
        assert world.pods.deleted == [] and not world.desired.of("n1")
        assert all(node != "n1" or key.startswith(("pod/", "configmap/")) for node, key in world.told)


async def test_what_is_deleted_while_a_run_is_split_under_its_first_list_does_not_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hub.share.FILE_AT_ONCE", 1)
    world = World()
    async with world.running():
        for slot in range(3):
            await world.truth.create(PODS, using(f"p{slot}", NAMES[slot], "c"))
        gone: list[str] = []

        def first_filed(deltas: Sequence[Delta[Any]], revision: int) -> None:
            if deltas and not gone:
                gone.append(deltas[0].entry.key[1])
                world.share.drop([1])
                world.store._write([Delete(Keys().object(PODS, partition_of_slot(0), "default", "p0"))])

        world.share.pods.subscribe(first_filed)
        await asyncio.wait_for(world.share.load([0, 1, 2], await world.store.revision()), DEADLINE_S)
        assert gone == ["p0"]
        assert [entry.key[1] for entry in world.share.pods.cache] == ["p2"]


async def test_a_share_that_has_ended_leaves_nothing_to_the_next_load() -> None:
    world = World()
    async with world.running():
        await world.truth.create(PODS, using("p1", "n1", "c"))
        await world.share.load([1], await world.store.revision())
    await world.truth.remove(PODS, await world.truth.get(PODS, "default", "p1"))
    async with asyncio.TaskGroup() as tasks:
        again = tasks.create_task(world.share.run())
        await asyncio.wait_for(world.share.load([1], await world.store.revision()), DEADLINE_S)
        assert len(world.share.pods.cache) == 0
        again.cancel()


async def test_a_cancelled_load_leaves_nothing_behind() -> None:
    world = World()
    async with world.running():
        world.store.fail()
        loading = asyncio.create_task(world.share.load([0, 3], 1))
        await until(lambda: world.share.stale, DEADLINE_S)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        world.store.down = False
        await world.check(set())
        assert [s for s in world.store.watched if "/pods/" in s[0]] == []


async def test_an_object_that_left_a_partition_is_not_taken_away_by_the_past_of_that_partition() -> None:
    world = World()
    async with world.running():
        await world.share.load(range(SLOTS), await world.store.revision())
        mirror, prefix = world.share.nodes, Keys().objects(NODES)
        old = mirror.cache.get("", "n1")
        assert old is not None
        raw = b'{"metadata":{"name":"n1","uid":"new"}}'
        moved = KeyValue(f"{prefix}0002/-/n1", raw, 900, 900)
        deltas = mirror.apply([Event(moved.key, moved, None)], 900)
        assert [d.type for d in deltas] == ["DELETED", "ADDED"]
        assert mirror.apply([Event(f"{prefix}0001/-/n1", None, None)], 899) == []
        assert mirror.apply([Event(f"{prefix}0001/-/n1", None, None)], 901) == []
        held = mirror.cache.get("", "n1")
        assert held is not None and held.partition == "0002"


def test_adjacent_slots_are_one_run() -> None:
    assert list(adjacent([5, 1, 2, 0, 7])) == [(0, 2), (5, 5), (7, 7)]
    assert list(adjacent([])) == []


async def test_a_read_that_began_before_its_object_was_let_go_does_not_count_for_who_uses_it_anew() -> None:
    class Held(Flaky):
        """Keeps the first read of a ConfigMap back."""

        reads = 0
        answer = asyncio.Event()

        async def page(
            self, start: str, end: str, *, revision: int | None = None, limit: int = 500, stale: bool = False
        ) -> Page:
            page = await super().page(start, end, revision=revision, limit=limit)
            if start.endswith("/c0"):
                self.reads += 1
                if self.reads == 1:
                    await self.answer.wait()
            return page

    world = World()
    world.store.__class__ = Held
    async with world.running():
        used = world.share.configmaps
        used.use(("default", "c0"))
        await until(lambda: getattr(world.store, "reads", 0) == 1, DEADLINE_S)
        used.release(("default", "c0"))
        changed = await world.truth.mutate(CONFIGMAPS, "default", "c0", lambda o: {**o, "data": {"a": "new"}})
        await until(lambda: used.watched >= changed.revision, DEADLINE_S)
        used.use(("default", "c0"))
        Held.answer.set()
        await until(lambda: used.known(("default", "c0")), DEADLINE_S)
        entry = used.cache.get("default", "c0")
        assert entry is not None and entry.revision == changed.revision
