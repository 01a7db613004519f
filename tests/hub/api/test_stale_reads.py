"""The API while its store has no quorum: reads are marked stale, writes are refused, watches go on."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from hub.api import reads
from hub.store.memory import MemoryStore
from shards.kv import Compare, Delete, KeyValue, Page, Put, TxnResult, Unavailable, WatchBatch
from tests.hub import serving
from tests.hub.serving import CONFIGMAPS, Hub, configmap

WARNING = '299 - "stale: '


class Quorum(MemoryStore):
    """Without quorum it answers stale reads alone. `cut`: its watches break off."""

    def __init__(self) -> None:
        super().__init__(slots=16)
        self.lost = False
        self.dead = False
        self.cut = False

    def _need(self, stale: bool = False) -> None:
        if self.dead or (self.lost and not stale):
            raise Unavailable("etcd does not answer; check the members and their quorum")

    async def revision(self) -> int:
        self._need()
        return await super().revision()

    async def get(self, key: str, *, stale: bool = False) -> KeyValue | None:
        self._need(stale)
        return await super().get(key, stale=stale)

    async def page(
        self, start: str, end: str, *, revision: int | None = None, limit: int = 500, stale: bool = False
    ) -> Page:
        self._need(stale)
        return await super().page(start, end, revision=revision, limit=limit, stale=stale)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        self._need()
        return await super().txn(compares, ops)

    async def watch(
        self, ranges: Sequence[tuple[str, str]], after: int, *, patient: bool = False
    ) -> AsyncIterator[WatchBatch]:
        self._need()
        async for batch in super().watch(ranges, after):
            if self.cut:
                raise Unavailable("the member was cut off")
            yield batch


@pytest.fixture
async def hub(monkeypatch: Any) -> AsyncIterator[Hub]:
    monkeypatch.setattr(reads, "STALE_S", 0.0)
    async with serving.hub(store=Quorum()) as running:
        yield running


def store_of(hub: Hub) -> Quorum:
    assert isinstance(hub.store, Quorum)
    return hub.store


async def test_reads_without_quorum_are_answered_and_marked_stale_and_current_again_afterwards(
    hub: Hub,
) -> None:
    await hub.created(CONFIGMAPS, configmap("a"))
    one, many, by_name = f"{CONFIGMAPS}/a", CONFIGMAPS, f"{CONFIGMAPS}?fieldSelector=metadata.name%3Da"
    pods = "/api/v1/pods"
    for path in (one, many, by_name, pods):
        assert (await hub.get(path)).warnings == []
    store_of(hub).lost = True
    for path in (one, many, by_name, pods):
        reply = await hub.get(path)
        assert reply.status == 200, reply.body
        assert len(reply.warnings) == 1 and reply.warnings[0].startswith(WARNING), path
    assert (await hub.get(one)).json["data"] == {"a": "b"}
    assert [i["metadata"]["name"] for i in (await hub.get(many)).json["items"]] == ["a"]
    assert (await hub.get(f"{CONFIGMAPS}/none")).status == 404
    store_of(hub).lost = False
    for path in (one, many, by_name, pods):
        assert (await hub.get(path)).warnings == []


async def test_a_long_list_that_begins_stale_is_marked_and_whole(hub: Hub, monkeypatch: Any) -> None:
    monkeypatch.setattr("hub.api.lists.PAGE", 2)
    for i in range(5):
        await hub.created(CONFIGMAPS, configmap(f"c{i}"))
    store_of(hub).lost = True
    reply = await hub.get(CONFIGMAPS)
    assert len(reply.json["items"]) == 5 and reply.warnings[0].startswith(WARNING)


async def test_writes_without_quorum_are_refused_with_a_reason_and_a_time_to_come_back(hub: Hub) -> None:
    await hub.created(CONFIGMAPS, configmap("a"))
    store_of(hub).lost = True
    path = f"{CONFIGMAPS}/a"
    replies = [
        await hub.post(CONFIGMAPS, configmap("b")),
        await hub.call("PUT", path, configmap("a")),
        await hub.call("PATCH", path, {"data": {"x": "1"}}, content_type="application/merge-patch+json"),
        await hub.call("DELETE", path),
        await hub.call("DELETE", CONFIGMAPS),
    ]
    for reply in replies:
        assert reply.status == 503 and "quorum" in reply.message, reply.body
        assert reply.headers["Retry-After"] == "1"
    store_of(hub).lost = False
    assert [i["metadata"]["name"] for i in (await hub.get(CONFIGMAPS)).json["items"]] == ["a"]


async def test_a_store_that_is_gone_altogether_is_a_503(hub: Hub) -> None:
    store_of(hub).dead = True
    reply = await hub.get(CONFIGMAPS)
    assert reply.status == 503 and reply.headers["Retry-After"] == "1"


async def test_after_one_failed_read_the_next_ones_do_not_wait_for_a_quorum(monkeypatch: Any) -> None:
    asked = 0

    class Counting(Quorum):
        def _need(self, stale: bool = False) -> None:
            nonlocal asked
            asked += not stale
            super()._need(stale)

    monkeypatch.setattr(reads, "STALE_S", 3600.0)
    async with serving.hub(store=Counting()) as hub:
        await hub.created(CONFIGMAPS, configmap("a"))
        store_of(hub).lost = True
        assert (await hub.get(CONFIGMAPS)).warnings
        asked = 0
        for _ in range(5):
            assert (await hub.get(f"{CONFIGMAPS}/a")).warnings
        assert asked == 0


async def test_a_watch_outlives_an_outage_and_misses_nothing(hub: Hub) -> None:
    store = store_of(hub)
    async with hub.watch(CONFIGMAPS) as watch:
        await hub.created(CONFIGMAPS, configmap("a"))
        assert await watch.names(1) == [("ADDED", "a")]
        store.cut = True
        for name in ("b", "c"):  # through a member that still has the others
            await hub.created(CONFIGMAPS, configmap(name))
        store.cut = False
        await hub.created(CONFIGMAPS, configmap("d"))
        assert await watch.names(3) == [("ADDED", "b"), ("ADDED", "c"), ("ADDED", "d")]
