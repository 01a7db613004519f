import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

from hub import informer as informer_module
from hub.informer import Delta, Informer
from hub.objects import CONFIGMAPS, PODS, Keys
from hub.registry import Object, Registry
from hub.store.base import Page, prefix_end
from hub.store.memory import MemoryStore

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


async def test_since_gives_the_past_as_far_as_it_is_kept() -> None:
    store = MemoryStore()
    registry, informer = Registry(store, Keys()), Informer[Any](store, Keys(), CONFIGMAPS)
    first = await registry.create(CONFIGMAPS, configmap("a"))
    async with running(informer):
        second = await registry.create(CONFIGMAPS, configmap("b"))
        await reached(informer, store)
        past = informer.since(first.revision)
        assert past is not None and [d.entry.key[1] for d in past] == ["b"]
        assert informer.since(second.revision) == []
        assert informer.since(first.revision - 1) is None


async def test_the_past_is_bounded_and_says_so(monkeypatch: Any) -> None:
    monkeypatch.setattr(informer_module, "HISTORY_MAX", 3)
    store = MemoryStore()
    registry, informer = Registry(store, Keys()), Informer[Any](store, Keys(), CONFIGMAPS)
    async with running(informer):
        made = [await registry.create(CONFIGMAPS, configmap(f"c{i}")) for i in range(5)]
        await reached(informer, store)
        assert informer.since(made[0].revision) is None
        past = informer.since(made[1].revision)
        assert past is not None and [d.entry.key[1] for d in past] == ["c2", "c3", "c4"]


async def test_the_past_is_bounded_in_bytes_too(monkeypatch: Any) -> None:
    monkeypatch.setattr(informer_module, "HISTORY_BYTES_MAX", 200_000)
    store = MemoryStore()
    registry, informer = Registry(store, Keys()), Informer[Any](store, Keys(), CONFIGMAPS)
    async with running(informer):
        for i in range(20):
            big = configmap(f"c{i:02d}")
            big["data"] = {"blob": os.urandom(25_000).hex()}  # about half of it is left when compressed
            last = await registry.create(CONFIGMAPS, big)
        await reached(informer, store)
        assert informer._history_bytes <= 200_000
        assert 3 <= len(informer._history) <= 8
        assert informer.since(last.revision - 3) is not None
        assert informer.since(last.revision - 10) is None


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


async def test_a_list_that_is_compacted_under_way_begins_again() -> None:
    class Busy(MemoryStore):
        """Forgets the revision of a list after its first page, once."""

        asked = 0

        async def page(self, start: str, end: str, *, revision: int | None = None, limit: int = 500) -> Page:
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


async def test_the_stores_past_reads_as_the_same_deltas() -> None:
    store = MemoryStore()
    registry, informer, seen = Registry(store, Keys()), Informer[Any](store, Keys(), PODS), Seen()
    async with running(informer):
        informer.subscribe(seen)
        after = await store.revision()
        pod = await registry.create(PODS, {"metadata": {"name": "p", "namespace": "d"}, "spec": {}})
        bound = await registry.bind("d", "p", pod.obj()["metadata"]["uid"], "n")
        await registry.remove(PODS, bound)
        await reached(informer, store)
    prefix = Keys().objects(PODS)
    replayed: list[Delta[Any]] = []
    async for batch in store.watch([(prefix, prefix_end(prefix))], after):
        replayed += informer.deltas_of(batch)
        if batch.revision >= await store.revision():
            break
    assert [(d.type, d.revision) for d in replayed] == [(d.type, d.revision) for d in seen.deltas]


async def test_one_that_unsubscribed_hears_no_more() -> None:
    store = MemoryStore()
    registry, informer, seen = Registry(store, Keys()), Informer[Any](store, Keys(), CONFIGMAPS), Seen()
    async with running(informer):
        stop = informer.subscribe(seen)
        stop()
        await registry.create(CONFIGMAPS, configmap("a"))
        await reached(informer, store)
    assert seen.deltas == []
