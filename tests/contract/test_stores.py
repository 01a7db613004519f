"""The contract of `hub.store.base.Store`, over every store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from hub.store.base import (
    TXN_OPS_MAX,
    VALUE_BYTES_MAX,
    Compacted,
    Compare,
    Delete,
    FutureRevision,
    Put,
    Store,
    Unavailable,
    ValueTooLarge,
    WatchBatch,
    prefix_end,
)
from hub.store.memory import MemoryStore
from hub.store.sqlite import SqliteStore

ALL = [("/", prefix_end("/"))]


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path) -> AsyncIterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else await SqliteStore.open(str(tmp_path))
    yield made
    await made.close()


async def put(store: Store, key: str, value: bytes = b"v") -> int:
    result = await store.txn([], [Put(key, value)])
    assert result.succeeded
    return result.revision


async def collect(store: Store, after: int, until: int, ranges=ALL) -> list[WatchBatch]:
    """The batches with events up to revision `until`."""
    seen: list[WatchBatch] = []
    async with asyncio.timeout(5), contextlib.aclosing(store.watch(ranges, after)) as watch:
        async for batch in watch:
            if batch.events:
                seen.append(batch)
            if batch.revision >= until:
                return seen
    raise AssertionError("the watch ended")


async def test_a_put_is_read_back_with_its_revisions(store: Store) -> None:
    first = await put(store, "/a", b"1")
    second = await put(store, "/a", b"2")
    kv = await store.get("/a")
    assert kv is not None
    assert (kv.value, kv.create_revision, kv.mod_revision) == (b"2", first, second)
    assert second == first + 1 == await store.revision()


async def test_an_absent_key_is_none(store: Store) -> None:
    assert await store.get("/nothing") is None


async def test_a_compare_that_fails_writes_nothing_and_tells_the_present_state(store: Store) -> None:
    at = await put(store, "/a", b"1")
    result = await store.txn([Compare("/a", at - 1), Compare("/b", 0)], [Put("/a", b"2"), Put("/b", b"3")])
    assert not result.succeeded
    assert [kv and kv.value for kv in result.current] == [b"1", None]
    assert result.revision == at == await store.revision()
    assert await store.get("/b") is None


async def test_create_if_absent_succeeds_once(store: Store) -> None:
    results = await asyncio.gather(
        *(store.txn([Compare("/one", 0)], [Put("/one", b"%d" % i)]) for i in range(20))
    )
    assert sum(r.succeeded for r in results) == 1


async def test_all_operations_of_a_transaction_share_one_revision(store: Store) -> None:
    await put(store, "/old")
    result = await store.txn([], [Put("/x", b"1"), Put("/y", b"2"), Delete("/old")])
    x, y = await store.get("/x"), await store.get("/y")
    assert x and y and x.mod_revision == y.mod_revision == result.revision
    assert await store.get("/old") is None


async def test_deleting_what_is_absent_raises_no_revision(store: Store) -> None:
    before = await store.revision()
    result = await store.txn([], [Delete("/nothing")])
    assert result.succeeded and result.revision == before


async def test_a_key_made_again_has_a_new_create_revision(store: Store) -> None:
    await put(store, "/a")
    await store.txn([], [Delete("/a")])
    again = await put(store, "/a")
    kv = await store.get("/a")
    assert kv and kv.create_revision == again


async def test_pages_of_one_list_agree_on_their_revision(store: Store) -> None:
    for i in range(7):
        await put(store, f"/k/{i}")
    page = await store.page("/k/", prefix_end("/k/"), limit=3)
    assert [kv.key for kv in page.items] == ["/k/0", "/k/1", "/k/2"]
    await store.txn([], [Delete("/k/4"), Put("/k/5", b"changed"), Put("/k/9", b"new")])
    rest: list[tuple[str, bytes]] = []
    at = page.next_key
    while at is not None:
        more = await store.page(at, prefix_end("/k/"), revision=page.revision, limit=3)
        rest += [(kv.key, kv.value) for kv in more.items]
        at = more.next_key
    assert rest == [(f"/k/{i}", b"v") for i in range(3, 7)]


async def test_keys_are_ordered_by_their_bytes(store: Store) -> None:
    for key in ("/k/é", "/k/z", "/k/a", "/k/Z", "/k/a/b", "/k/a-b", "/k/\U0001f600"):
        await put(store, key)
    page = await store.page("/k/", prefix_end("/k/"))
    keys = [kv.key for kv in page.items]
    assert keys == sorted(keys, key=str.encode)


async def test_a_range_ends_before_its_end(store: Store) -> None:
    for key in ("/a", "/b", "/c"):
        await put(store, key)
    assert [kv.key for kv in (await store.page("/a", "/c")).items] == ["/a", "/b"]


async def test_a_future_revision_is_refused(store: Store) -> None:
    with pytest.raises(FutureRevision):
        await store.page("/", "0", revision=await store.revision() + 1)


async def test_a_watch_replays_the_past_and_goes_on_live(store: Store) -> None:
    start = await store.revision()
    await put(store, "/a", b"1")
    task = asyncio.create_task(collect(store, start, start + 3))
    await asyncio.sleep(0)
    await put(store, "/a", b"2")
    await store.txn([], [Delete("/a")])
    batches = await task
    assert [b.revision for b in batches] == [start + 1, start + 2, start + 3]
    events = [b.events[0] for b in batches]
    assert [e.kv and e.kv.value for e in events] == [b"1", b"2", None]
    assert [e.prev and e.prev.value for e in events] == [None, b"1", b"2"]


async def test_a_watch_gives_a_transaction_whole(store: Store) -> None:
    start = await store.revision()
    await put(store, "/p/a")
    await store.txn([], [Delete("/p/a"), Put("/q/a", b"v"), Put("/elsewhere", b"v")])
    batches = await collect(store, start, start + 2, [("/p/", "/p0"), ("/q/", "/q0")])
    assert [sorted(e.key for e in b.events) for b in batches] == [["/p/a"], ["/p/a", "/q/a"]]


async def test_a_watch_reports_progress_without_events(store: Store) -> None:
    start = await store.revision()
    await put(store, "/other")
    assert await collect(store, start, start + 1, [("/p/", "/p0")]) == []


async def test_concurrent_writers_are_seen_in_order_each_once(store: Store) -> None:
    start = await store.revision()
    task = asyncio.create_task(collect(store, start, start + 200))
    await asyncio.gather(*(put(store, f"/k/{i % 10}", b"%d" % i) for i in range(200)))
    revisions = [b.revision for b in await task]
    assert revisions == list(range(start + 1, start + 201))


async def test_history_before_a_compaction_is_too_old_and_the_present_stays(store: Store) -> None:
    start = await store.revision()
    await put(store, "/a", b"1")
    await put(store, "/a", b"2")
    await put(store, "/gone")
    await store.txn([], [Delete("/gone")])
    head = await store.revision()
    await store.compact(head)
    with pytest.raises(Compacted):
        await store.page("/", "0", revision=head - 1)
    with pytest.raises(Compacted):
        await collect(store, start, head)
    assert [(kv.key, kv.value) for kv in (await store.page("/", "0")).items] == [("/a", b"2")]
    await put(store, "/b")
    assert [b.revision for b in await collect(store, head, head + 1)] == [head + 1]


async def test_bounds_are_enforced_before_anything_is_written(store: Store) -> None:
    before = await store.revision()
    with pytest.raises(ValueTooLarge):
        await store.txn([], [Put("/big", b"x" * (VALUE_BYTES_MAX + 1))])
    with pytest.raises(ValueTooLarge):
        await store.txn([], [Put(f"/{i}", b"") for i in range(TXN_OPS_MAX + 1)])
    with pytest.raises(ValueError, match="more than one operation"):
        await store.txn([], [Put("/a", b"1"), Put("/a", b"2")])
    assert await store.revision() == before
    assert (await store.txn([], [Put("/big", b"x" * VALUE_BYTES_MAX)])).succeeded


async def test_a_closed_store_says_so(store: Store) -> None:
    watching = asyncio.create_task(collect(store, await store.revision(), 10**9))
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(Unavailable):
        await watching
    calls: list[Callable[[], Awaitable[object]]] = [lambda: store.get("/a"), lambda: store.txn([], [])]
    for call in calls:
        with pytest.raises(Unavailable):
            await call()


async def test_identity_is_complete(store: Store) -> None:
    identity = store.identity
    assert (
        len(identity.uuid) == 36
        and identity.generation == 1
        and identity.format == 1
        and identity.slots == 1024
    )
