"""Watches, over HTTP and at the queue."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hub import objects
from hub.api import watch as watch_module
from hub.api.handlers import Timing
from hub.api.selection import Selection
from hub.api.server import Limits
from hub.api.watch import Change, Watcher
from hub.cache import Cache
from hub.mirror import Delta
from tests.hub import serving
from tests.hub.serving import CONFIGMAPS, DEADLINE_S, Hub, configmap, pod

MERGE = "application/merge-patch+json"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    async with serving.hub() as running:
        yield running


async def label(hub: Hub, name: str, value: str) -> Any:
    body = {"metadata": {"labels": {"l": value}}}
    reply = await hub.call("PATCH", f"{CONFIGMAPS}/{name}", body, content_type=MERGE)
    return reply.json


async def delete(hub: Hub, name: str) -> None:
    assert (await hub.call("DELETE", f"{CONFIGMAPS}/{name}")).status == 200


async def revision_of(hub: Hub) -> str:
    return str((await hub.get(CONFIGMAPS)).json["metadata"]["resourceVersion"])


async def test_a_watch_without_a_version_begins_with_the_present_state(hub: Hub) -> None:
    await hub.created(CONFIGMAPS, configmap("a"))
    async with hub.watch(CONFIGMAPS) as watch:
        assert await watch.names(1) == [("ADDED", "a")]
        await hub.created(CONFIGMAPS, configmap("b"))
        await label(hub, "b", "x")
        await delete(hub, "b")
        assert await watch.names(3) == [("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "b")]


async def test_a_watch_from_a_list_misses_nothing_and_repeats_nothing(hub: Hub) -> None:
    await hub.created(CONFIGMAPS, configmap("a"))
    since = await revision_of(hub)
    await hub.created(CONFIGMAPS, configmap("b"))
    await delete(hub, "a")
    async with hub.watch(CONFIGMAPS, resourceVersion=since) as watch:
        first = await watch.next()
        assert (first[0], first[1]["metadata"]["name"]) == ("ADDED", "b")
        gone = await watch.next()
        assert (gone[0], gone[1]["metadata"]["name"]) == ("DELETED", "a")
        assert int(gone[1]["metadata"]["resourceVersion"]) > int(first[1]["metadata"]["resourceVersion"])
        await hub.created(CONFIGMAPS, configmap("c"))
        assert await watch.names(1) == [("ADDED", "c")]


async def test_what_the_feed_does_not_keep_is_replayed_from_the_store(hub: Hub) -> None:
    await hub.created(CONFIGMAPS, configmap("a"))
    since = await revision_of(hub)
    await hub.created(CONFIGMAPS, configmap("b"))
    await label(hub, "a", "x")
    await delete(hub, "a")
    async with hub.watch(CONFIGMAPS, resourceVersion=since) as watch:
        assert await watch.names(3) == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "a")]
        await hub.created(CONFIGMAPS, configmap("c"))
        assert await watch.names(1) == [("ADDED", "c")]


async def test_a_version_that_is_compacted_away_is_a_410_event(hub: Hub) -> None:
    await hub.created(CONFIGMAPS, configmap("a"))
    since = await revision_of(hub)
    for name in ("b", "c"):
        await hub.created(CONFIGMAPS, configmap(name))
    await hub.store.compact(await hub.store.revision())
    async with hub.watch(CONFIGMAPS, resourceVersion=since) as watch:
        kind, status = await watch.next()
        assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")
        assert await watch.ended()


async def test_a_version_of_the_future_is_refused_after_a_wait(hub: Hub, monkeypatch: Any) -> None:
    monkeypatch.setattr(watch_module, "FRESH_WAIT_S", 0.05)
    reply = await hub.get(CONFIGMAPS, params={"watch": "1", "resourceVersion": "999999"})
    assert reply.status == 504
    assert "Too large resource version" in reply.message


async def test_entering_a_selection_is_added_and_leaving_it_deleted(hub: Hub) -> None:
    async with hub.watch(CONFIGMAPS, labelSelector="l=x") as watch:
        await hub.created(CONFIGMAPS, configmap("a", l="y"))
        entered = await label(hub, "a", "x")
        left = await label(hub, "a", "y")
        await delete(hub, "a")
        await hub.created(CONFIGMAPS, configmap("b", l="x"))
        kind, obj = await watch.next()
        assert (kind, obj) == ("ADDED", entered)
        kind, obj = await watch.next()
        assert kind == "DELETED"
        assert obj["metadata"]["labels"] == {"l": "x"}
        assert obj["metadata"]["resourceVersion"] == left["metadata"]["resourceVersion"]
        assert await watch.names(1) == [("ADDED", "b")]


async def test_a_watch_by_field_sees_a_pod_when_it_is_bound(hub: Hub) -> None:
    async with hub.watch(serving.PODS, fieldSelector="spec.nodeName=n") as watch:
        await hub.created(serving.PODS, pod("a"))
        binding = {"target": {"name": "n"}}
        assert (await hub.post(f"{serving.PODS}/a/binding", binding)).status == 201
        assert await watch.names(1) == [("ADDED", "a")]


async def test_a_watch_of_one_name_or_namespace_sees_no_other(hub: Hub) -> None:
    async with (
        hub.watch(CONFIGMAPS, fieldSelector="metadata.name=a") as by_field,
        hub.watch(f"{CONFIGMAPS}/a") as by_path,
        hub.watch("/api/v1/namespaces/kube-system/configmaps") as elsewhere,
    ):
        for name in ("b", "a"):
            await hub.created(CONFIGMAPS, configmap(name))
        await hub.created("/api/v1/namespaces/kube-system/configmaps", configmap("z"))
        assert await by_field.names(1) == await by_path.names(1) == [("ADDED", "a")]
        assert await elsewhere.names(1) == [("ADDED", "z")]


async def test_what_changes_while_the_present_state_is_read_page_by_page_comes_once(monkeypatch: Any) -> None:
    monkeypatch.setattr(watch_module, "LIST_PAGE", 1)
    async with serving.hub() as hub:
        for name in ("a", "b", "c"):
            await hub.created(CONFIGMAPS, configmap(name))
        watches = hub.api._watches[objects.CONFIGMAPS]
        whole, pages = watches.page, 0

        async def page(*args: Any) -> Any:
            nonlocal pages
            pages += 1
            found = await whole(*args)
            if pages == 1:
                await label(hub, "c", "x")
                await hub.created(CONFIGMAPS, configmap("d"))
                await delete(hub, "b")
            return found

        monkeypatch.setattr(watches, "page", page)
        async with hub.watch(CONFIGMAPS) as watch:
            assert await watch.names(3) == [("ADDED", "a"), ("ADDED", "b"), ("ADDED", "c")]
            assert await watch.names(3) == [("MODIFIED", "c"), ("ADDED", "d"), ("DELETED", "b")]
            assert pages == 3


async def test_no_watch_leaves_anything_running_but_the_feed_for_a_while(hub: Hub) -> None:
    watches = hub.api._watches[objects.CONFIGMAPS]
    assert not watches.feed.running
    async with hub.watch(CONFIGMAPS):
        await until(lambda: len(watches) == 1)
        assert watches.feed.running
    await until(lambda: watches.feed._ending is not None)
    await watches.stop()
    assert not watches.feed.running
    async with hub.watch(CONFIGMAPS) as watch:
        await hub.created(CONFIGMAPS, configmap("a"))
        assert await watch.names(1) == [("ADDED", "a")]


async def test_a_streaming_list_ends_with_a_marked_bookmark(hub: Hub) -> None:
    for name in ("a", "b"):
        await hub.created(CONFIGMAPS, configmap(name))
    async with hub.watch(
        CONFIGMAPS,
        sendInitialEvents="true",
        resourceVersionMatch="NotOlderThan",
        allowWatchBookmarks="true",
    ) as watch:
        assert sorted(await watch.names(2)) == [("ADDED", "a"), ("ADDED", "b")]
        kind, obj = await watch.next()
        assert kind == "BOOKMARK"
        assert obj["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        assert obj["metadata"]["resourceVersion"] == await revision_of(hub)


@pytest.mark.parametrize(
    "params",
    [
        {"sendInitialEvents": "true", "allowWatchBookmarks": "true"},
        {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"},
        {"resourceVersionMatch": "NotOlderThan"},
    ],
)
async def test_contradicting_watch_options_are_invalid(hub: Hub, params: dict[str, str]) -> None:
    assert (await hub.get(CONFIGMAPS, params={"watch": "1", **params})).status == 422


async def test_bookmarks_tell_progress_made_by_other_kinds() -> None:
    async with serving.hub(timing=Timing(bookmark_s=0.02)) as hub:
        async with hub.watch(CONFIGMAPS, allowWatchBookmarks="true", resourceVersion="0") as watch:
            await hub.created(serving.PODS, pod("a"))
            wanted = await hub.store.revision()
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    kind, obj = await watch.next()
                    assert kind == "BOOKMARK"
                    if int(obj["metadata"]["resourceVersion"]) >= wanted:
                        break


async def test_a_watch_ends_at_its_timeout(hub: Hub) -> None:
    async with hub.watch(CONFIGMAPS, timeoutSeconds="1") as watch:
        assert await watch.ended()


async def test_table_events_carry_columns_once(hub: Hub) -> None:
    await hub.created(CONFIGMAPS, configmap("a"))
    async with hub.watch(CONFIGMAPS, accept=TABLE) as watch:
        _, first = await watch.next()
        assert first["columnDefinitions"]
        assert first["rows"][0]["cells"][0] == "a"
        await hub.created(CONFIGMAPS, configmap("b"))
        _, second = await watch.next()
        assert second["columnDefinitions"] is None
        assert second["rows"][0]["cells"][0] == "b"


async def test_one_user_cannot_open_more_watches_than_allowed() -> None:
    async with serving.hub(limits=Limits(watches_per_user=2)) as hub:
        async with hub.watch(CONFIGMAPS), hub.watch(CONFIGMAPS):
            reply = await hub.get(CONFIGMAPS, params={"watch": "1"})
            assert reply.status == 429
            assert reply.headers["Retry-After"] == "5"
            assert (await hub.get(CONFIGMAPS)).status == 200
        await until(lambda: hub.api._long == 0)
        async with hub.watch(CONFIGMAPS) as watch:
            await hub.created(CONFIGMAPS, configmap("a"))
            assert await watch.names(1) == [("ADDED", "a")]


async def test_a_client_that_goes_away_is_forgotten_at_once(hub: Hub) -> None:
    cache = hub.api._watches[objects.CONFIGMAPS]
    async with hub.watch(CONFIGMAPS):
        await until(lambda: len(cache) == 1)
    await until(lambda: len(cache) == 0)


async def test_a_client_that_does_not_read_is_cut_off_and_the_others_are_not(monkeypatch: Any) -> None:
    monkeypatch.setattr(watch_module, "QUEUE_EVENTS_MAX", 8)
    async with serving.hub(timing=Timing(write_s=DEADLINE_S)) as hub:
        cache = hub.api._watches[objects.CONFIGMAPS]
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port, limit=1024)
        writer.write(f"GET {CONFIGMAPS}?watch=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await until(lambda: len(cache) == 1)
        stuck = next(iter(cache._watchers))
        seen: list[str] = []

        async def read_all() -> None:
            async with hub.watch(CONFIGMAPS) as watch:
                while len(seen) < 200 and not stuck.ended:
                    seen.extend(name for _, name in await watch.names(1))

        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            tasks.create_task(read_all())
            await until(lambda: len(cache) == 2)
            written = 0
            while not stuck.ended:
                big = configmap(f"c{written}")
                big["data"]["x"] = "y" * 400_000
                await hub.created(CONFIGMAPS, big)
                written += 1
                await until(lambda: len(seen) >= written or bool(stuck.ended))  # noqa: B023
        assert "slowly" in stuck.ended
        assert seen
        writer.close()
        del reader


async def test_stopping_ends_watches_cleanly() -> None:
    async with serving.hub() as hub:
        async with hub.watch(CONFIGMAPS) as watch:
            await until(lambda: hub.api._long == 1)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(hub.api.stop(2.0))
                assert await watch.ended()


async def until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


# -- the queue, without a server ------------------------------------------------------------------------------------


def change(name: str, revision: int) -> Change:
    cache: Cache[Any] = Cache(objects.CONFIGMAPS, {})
    raw = json.dumps({"metadata": {"name": name, "namespace": "d", "uid": name}}).encode()
    return Change(Delta("ADDED", cache.entry(("d", name), "-", revision, raw), None, revision))


async def test_a_full_queue_ends_the_watch_and_holds_nothing(monkeypatch: Any) -> None:
    monkeypatch.setattr(watch_module, "QUEUE_EVENTS_MAX", 3)
    watcher = Watcher(Selection())
    for i in range(3):
        watcher.offer(change(f"c{i}", i + 1))
    assert not watcher.ended
    watcher.offer(change("c3", 4))
    assert watcher.ended
    assert watcher.take() == []


async def test_a_queue_is_bounded_in_bytes_too(monkeypatch: Any) -> None:
    monkeypatch.setattr(watch_module, "QUEUE_BYTES_MAX", 100)
    watcher = Watcher(Selection())
    watcher.offer(change("a", 1))
    assert not watcher.ended
    watcher.offer(change("b", 2))
    assert watcher.ended


async def test_the_bytes_of_an_event_are_made_once_for_all_watchers(hub: Hub) -> None:
    async with hub.watch(CONFIGMAPS) as first, hub.watch(CONFIGMAPS) as second:
        cache = hub.api._watches[objects.CONFIGMAPS]
        await until(lambda: len(cache) == 2)
        made: list[Change] = []
        whole = cache.feed._handler

        def handle(deltas: Any, revision: int) -> None:
            whole(deltas, revision)
            for watcher in cache._watchers:
                made.extend(c for _, c in watcher._queue)

        cache.feed._handler = handle
        await hub.created(CONFIGMAPS, configmap("a"))
        assert await first.names(1) == await second.names(1) == [("ADDED", "a")]
        assert len(made) == 2
        assert made[0] is made[1]
        assert len(made[0]._bytes) == 1
