import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson

from hub.informer import ENTRIES_A_TURN, Delta, Informer
from hub.objects import CONFIGMAPS, PODS, Keys
from hub.registry import Object, Registry
from hub.store.memory import MemoryStore
from shards.kv import Page, Put

DEADLINE_S = 5.0


class Seen:
    """What a subscriber got."""

    def __init__(self) -> None:
        self.deltas: list[Delta[Any]] = []
        self.revisions: list[int] = []

    def __call__(self, deltas: Sequence[Delta[Any]], revision: int) -> None:
        self.deltas += deltas
        self.revisions.append(revision)

    @property
    def names(self) -> list[tuple[str, str]]:
        return [(d.type, d.entry.key[1]) for d in self.deltas]


@contextlib.asynccontextmanager
async def running(informer: Informer[Any]) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(informer.run())
        async with asyncio.timeout(DEADLINE_S):
            await informer.synced()
        try:
            yield
        finally:
            task.cancel()


async def reached(informer: Informer[Any], store: MemoryStore) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await informer.at_least(await store.revision())


def configmap(name: str, **data: str) -> Object:
    return {"metadata": {"name": name, "namespace": "d"}, "data": data}


async def test_subscribers_see_what_was_there_and_then_every_change_in_order() -> None:
    store = MemoryStore()
    registry, informer, seen = Registry(store, Keys()), Informer[Any](store, Keys(), CONFIGMAPS), Seen()
    first = await registry.create(CONFIGMAPS, configmap("a"))
    informer.subscribe(seen)
    async with running(informer):
        changed = await registry.replace(CONFIGMAPS, first, {**first.obj(), "data": {"x": "1"}})
        await registry.create(CONFIGMAPS, configmap("b"))
        await registry.remove(CONFIGMAPS, changed)
        await reached(informer, store)
    assert seen.names == [("ADDED", "a"), ("MODIFIED", "a"), ("ADDED", "b"), ("DELETED", "a")]
    assert seen.revisions == sorted(seen.revisions)
    assert seen.deltas[1].old is not None and seen.deltas[1].old.revision == first.revision
    assert [e.key[1] for e in informer.cache] == ["b"]


async def test_a_pod_that_is_bound_is_one_modification() -> None:
    store = MemoryStore()
    registry, informer, seen = Registry(store, Keys()), Informer[Any](store, Keys(), PODS), Seen()
    async with running(informer):
        informer.subscribe(seen)
        pod = await registry.create(PODS, {"metadata": {"name": "p", "namespace": "d"}, "spec": {}})
        await registry.bind("d", "p", pod.obj()["metadata"]["uid"], "n")
        await reached(informer, store)
    assert seen.names == [("ADDED", "p"), ("MODIFIED", "p")]
    assert [e.key for e in informer.cache.find("node", "n")] == [("d", "p")]


async def test_an_object_made_anew_in_one_transaction_is_a_deletion_and_an_addition() -> None:
    store = MemoryStore()
    registry, informer, seen = Registry(store, Keys()), Informer[Any](store, Keys(), CONFIGMAPS), Seen()
    async with running(informer):
        informer.subscribe(seen)
        made = await registry.create(CONFIGMAPS, configmap("a"))
        other = made.obj()
        other["metadata"]["uid"] = "another"
        await registry.replace(CONFIGMAPS, made, other)
        await reached(informer, store)
    assert seen.names == [("ADDED", "a"), ("DELETED", "a"), ("ADDED", "a")]


async def test_a_compacted_past_is_bridged_by_a_list_whose_difference_arrives_as_deltas() -> None:
    store = MemoryStore()
    registry, informer, seen = Registry(store, Keys()), Informer[Any](store, Keys(), CONFIGMAPS), Seen()
    kept = await registry.create(CONFIGMAPS, configmap("kept"))
    gone = await registry.create(CONFIGMAPS, configmap("gone"))
    anew = await registry.create(CONFIGMAPS, configmap("anew"))
    informer.subscribe(seen)
    await informer._relist()
    await registry.replace(CONFIGMAPS, kept, {**kept.obj(), "data": {"x": "1"}})
    await registry.remove(CONFIGMAPS, gone)
    await registry.remove(CONFIGMAPS, anew)
    await registry.create(CONFIGMAPS, configmap("anew"))
    await registry.create(CONFIGMAPS, configmap("new"))
    seen.deltas.clear()
    await informer._relist()
    assert sorted(seen.names) == [
        ("ADDED", "anew"),
        ("ADDED", "new"),
        ("DELETED", "anew"),
        ("DELETED", "gone"),
        ("MODIFIED", "kept"),
    ]
    assert seen.names.index(("DELETED", "anew")) < seen.names.index(("ADDED", "anew"))


async def test_a_long_list_is_filed_in_portions_between_which_others_have_their_turn() -> None:
    store = MemoryStore()
    registry, informer = Registry(store, Keys()), Informer[Any](store, Keys(), CONFIGMAPS)
    count = 2 * ENTRIES_A_TURN + 10
    for n in range(count):
        await registry.create(CONFIGMAPS, configmap(f"c{n:04d}"))
    batches: list[list[str]] = []
    others: list[int] = []
    informer.subscribe(lambda deltas, revision: batches.append([d.type for d in deltas]))

    async def somebody_else() -> None:
        while True:
            others.append(len(batches))
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        other = tasks.create_task(somebody_else())
        await informer._relist()
        for n in range(count):
            found = await registry.get(CONFIGMAPS, "d", f"c{n:04d}")
            await registry.remove(CONFIGMAPS, found)
        await informer._relist()
        other.cancel()
    assert [one for batch in batches for one in batch] == ["ADDED"] * count + ["DELETED"] * count
    assert max(map(len, batches)) <= ENTRIES_A_TURN and len(set(others)) > 4


async def test_a_list_that_is_compacted_under_way_begins_again() -> None:
    class Busy(MemoryStore):
        """Forgets the revision of a list after its first page, once."""

        asked = 0

        async def page(
            self, start: str, end: str, *, revision: int | None = None, limit: int = 500, stale: bool = False
        ) -> Page:
            self.asked += 1
            if self.asked == 2:
                made = await Registry(self, Keys()).create(CONFIGMAPS, configmap("z"))
                await self.compact(made.revision)
            return await super().page(start, end, revision=revision, limit=1)

    store = Busy()
    for name in ("a", "b"):
        await Registry(store, Keys()).create(CONFIGMAPS, configmap(name))
    informer = Informer[Any](store, Keys(), CONFIGMAPS)
    async with running(informer):
        assert sorted(e.key[1] for e in informer.cache) == ["a", "b", "z"]


async def test_one_that_unsubscribed_hears_no_more() -> None:
    store = MemoryStore()
    registry, informer, seen = Registry(store, Keys()), Informer[Any](store, Keys(), CONFIGMAPS), Seen()
    async with running(informer):
        stop = informer.subscribe(seen)
        stop()
        await registry.create(CONFIGMAPS, configmap("a"))
        await reached(informer, store)
    assert seen.deltas == []


async def test_what_lies_in_slots_is_listed_a_few_slots_at_a_time_and_is_whole() -> None:
    """etcd stands still while it looks at a range of a million keys."""
    store, keys = MemoryStore(slots=1024), Keys()
    parts = ["-", *(f"{slot:04d}" for slot in (0, 9, 10, 11, 99, 100, 999, 1000, 1019, 1020, 1023))]
    for part in parts:
        obj = {"kind": "Pod", "metadata": {"name": f"pod{part}", "namespace": "d", "uid": part}, "spec": {}}
        await store.txn([], [Put(keys.object(PODS, part, "d", f"pod{part}"), orjson.dumps(obj))])
    asked: list[tuple[str, str]] = []
    page = store.page

    async def counted(start: str, end: str, **options: Any) -> Page:
        asked.append((start, end))
        return await page(start, end, **options)

    store.page = counted  # type: ignore[method-assign]
    informer = Informer[Any](store, keys, PODS)
    async with running(informer):
        assert sorted(entry.key[1] for entry in informer.cache) == sorted(f"pod{part}" for part in parts)
    inside = [
        sum(a <= keys.object(PODS, f"{slot:04d}", "d", "p") < b for slot in range(1024)) for a, b in asked
    ]
    assert max(inside) == 10 and sum(inside) == 1024
