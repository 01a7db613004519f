"""The contract of `shards.kv.Store`, over every store."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

import pytest

from hub.objects import Keys, Resource
from hub.store import etcd
from hub.store.etcd import EtcdStore
from hub.store.memory import MemoryStore
from hub.store.sealing import SealedStore
from hub.store.sqlite import SqliteStore
from security.envelope import OVERHEAD_BYTES_MAX
from security.keyring import KeyFiles
from security.sealed import create_key_file
from shards.etcd.client import Client
from shards.etcd.proto import rpc_pb2 as pb
from shards.kv import (
    TXN_OPS_MAX,
    VALUE_BYTES_MAX,
    Compacted,
    Compare,
    Delete,
    FutureRevision,
    LeaseGone,
    Put,
    Store,
    Unavailable,
    ValueTooLarge,
    WatchBatch,
    key_changed,
    prefix_end,
)
from tests.servers.etcd import EtcdCluster, debian_etcd, wheel_etcd

ALL = [("/", prefix_end("/"))]


ETCD = {"etcd-3.4": debian_etcd, "etcd-3.5": wheel_etcd}


@pytest.fixture(scope="module")
def clusters() -> Iterator[Callable[[str], EtcdCluster]]:
    """One etcd of each kind for all tests of this module; each test has a root of its own."""
    with contextlib.ExitStack() as started:
        kept: dict[str, EtcdCluster] = {}

        def cluster(kind: str) -> EtcdCluster:
            if kind not in kept:
                kept[kind] = started.enter_context(EtcdCluster(1, ETCD[kind]()))
            return kept[kind]

        yield cluster


class SealsAll(Keys):
    """All keys of these tests are sealed; the data keys lie outside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.root = "~/"

    def objects(self, res: Resource) -> str:
        return "/"


@pytest.fixture(params=["memory", "sqlite", "sealed memory", "sealed sqlite", *ETCD])
async def store(request: pytest.FixtureRequest, tmp_path) -> AsyncIterator[Store]:
    made: Store
    if request.param.endswith("memory"):
        made = MemoryStore()
    elif request.param.endswith("sqlite"):
        made = await SqliteStore.open(str(tmp_path))
    else:
        cluster = await asyncio.to_thread(request.getfixturevalue("clusters"), request.param)
        await wipe(cluster)
        made = await EtcdStore.open(cluster.endpoints, root="~/")  # outside of the keys of these tests
    if request.param.startswith("sealed"):
        create_key_file(str(tmp_path / "key"))
        made = await SealedStore.open(made, SealsAll(), [KeyFiles([str(tmp_path / "key")])])
    yield made
    await made.close()


async def wipe(cluster: EtcdCluster) -> None:
    """Every test finds its etcd without keys; revisions go on."""
    client = Client(cluster.endpoints)
    everything = pb.DeleteRangeRequest(key=b"\0", range_end=b"\0")
    await client.txn(pb.TxnRequest(success=[pb.RequestOp(request_delete_range=everything)]))
    await client.close()


async def put(store: Store, key: str, value: bytes = b"v") -> int:
    result = await store.txn([], [Put(key, value)])
    assert result.succeeded
    return result.revision


async def collect(store: Store, after: int, until: int, ranges=ALL) -> list[WatchBatch]:
    """The batches with events up to revision `until`."""
    seen: list[WatchBatch] = []
    async with asyncio.timeout(30), contextlib.aclosing(store.watch(ranges, after)) as watch:
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


async def test_many_keys_are_read_in_their_order_and_one_state(store: Store) -> None:
    result = await store.txn([], [Put(f"/k{n}", b"%d" % n) for n in range(60)])
    keys = [f"/k{n}" for n in range(99, -1, -1)]
    found = await store.get_many(keys)
    assert [kv and kv.key for kv in found] == [key if int(key[2:]) < 60 else None for key in keys]
    assert [kv.value for kv in found if kv] == [b"%d" % n for n in range(59, -1, -1)]
    assert {kv.mod_revision for kv in found if kv} == {result.revision}
    assert await store.get_many([]) == []


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


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
async def test_a_listing_in_pages_has_every_key_once(
    store: Store, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as few keys as a test has, as if they were very many (`hub.store.stretches`)."""
    monkeypatch.setattr(etcd, "WIDE", 2)
    rng = random.Random(limit)
    names = {"".join(rng.choices("ab/é", k=rng.randint(1, 6))) for _ in range(60)}
    for at in range(0, 60, 20):
        await store.txn([], [Put(f"/k/{name}", b"v") for name in sorted(names)[at : at + 20]])
    found: list[str] = []
    start: str | None = "/k/"
    while start is not None:
        page = await store.page(start, prefix_end("/k/"), limit=limit)
        assert len(page.items) == limit or page.next_key is None
        found += [kv.key for kv in page.items]
        start = page.next_key
    assert found == sorted(f"/k/{name}" for name in names)


async def test_etcd_looks_at_a_few_keys_for_a_page_of_a_long_listing(
    clusters: Callable[[str], EtcdCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd, "WIDE", 100)
    store = await EtcdStore.open((await asyncio.to_thread(clusters, "etcd-3.4")).endpoints, root="/long/")
    looked: list[int] = []
    asked = store._client.range

    async def range_(request: pb.RangeRequest) -> pb.RangeResponse:
        answer = await asked(request)
        looked.append(answer.count)
        return answer

    monkeypatch.setattr(store._client, "range", range_)
    try:
        for part in range(30):
            await store.txn([], [Put(f"/long/{part:04d}/ns/pod-{n}", b"v") for n in range(100)])
        at: str | None = "/long/0"
        keys = 0
        while at is not None:
            page = await store.page(at, "/long/1", limit=20)
            keys, at = keys + len(page.items), page.next_key
    finally:
        await store.close()
    assert keys == 3_000
    # As a whole for each page they would be 3,000 + 2,980 + 2,960 ...: 226,500.
    assert sum(looked) < 40_000, (sum(looked), len(looked))


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


async def test_whoever_waits_for_a_change_of_a_key_waits_from_the_present_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what was read last is long ago, and compacted."""
    first = await put(store, "/a")
    for i in range(5):
        await put(store, f"/b/{i}")
    await store.compact(await store.revision())
    watched: list[int] = []
    watch = store.watch

    def noted(ranges: Sequence[tuple[str, str]], after: int, **options: bool) -> AsyncIterator[WatchBatch]:
        watched.append(after)
        return watch(ranges, after, **options)

    monkeypatch.setattr(store, "watch", noted)
    waiting = asyncio.create_task(key_changed(store, "/a", first))
    async with asyncio.timeout(10):
        while not watched:
            await asyncio.sleep(0.01)
    await put(store, "/b/0", b"another")
    assert not waiting.done() and min(watched) > first + 4
    second = await put(store, "/a", b"2")
    await asyncio.wait_for(waiting, 10)
    await asyncio.wait_for(key_changed(store, "/a", first), 10)  # it was so before
    await asyncio.wait_for(key_changed(store, "/nothing", second), 10)


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


async def test_a_deletion_at_the_compacted_revision_itself_is_seen_or_said_to_be_lost(store: Store) -> None:
    await put(store, "/gone")
    await store.txn([], [Delete("/gone")])
    head = await store.revision()
    await store.compact(head)
    try:
        batches = await collect(store, head - 1, head)
    except Compacted:
        return
    assert [e.key for b in batches for e in b.events] == ["/gone"]


async def test_bounds_are_enforced_before_anything_is_written(store: Store) -> None:
    before = await store.revision()
    with pytest.raises(ValueTooLarge):
        await store.txn([], [Put("/big", b"x" * (VALUE_BYTES_MAX + 1))])
    with pytest.raises(ValueTooLarge):
        await store.txn([], [Put(f"/{i}", b"") for i in range(TXN_OPS_MAX + 1)])
    with pytest.raises(ValueError, match="more than one operation"):
        await store.txn([], [Put("/a", b"1"), Put("/a", b"2")])
    assert await store.revision() == before
    room = VALUE_BYTES_MAX - (OVERHEAD_BYTES_MAX if isinstance(store, SealedStore) else 0)
    assert (await store.txn([], [Put("/big", b"x" * room)])).succeeded


async def test_keys_go_with_their_lease_in_one_revision(store: Store) -> None:
    lease, other = await store.grant(30), await store.grant(30)
    assert lease and other and lease != other
    await store.txn([], [Put("/a", b"1", lease), Put("/b", b"2", lease), Put("/kept", b"3", other)])
    await store.txn([], [Put("/loose", b"4", lease)])
    before = (await store.txn([], [Put("/loose", b"5")])).revision
    kv = await store.get("/a")
    assert kv and kv.lease == lease
    assert await store.keepalive(lease) >= 30
    await store.revoke(lease)
    (batch,) = await collect(store, before, before + 1)
    assert sorted((e.key, e.kv, e.prev and e.prev.lease) for e in batch.events) == [
        ("/a", None, lease),
        ("/b", None, lease),
    ]
    assert [kv.key for kv in (await store.page("/", prefix_end("/"))).items] == [
        "/kept",
        "/loose",
    ]
    assert await store.keepalive(lease) == 0.0
    await store.revoke(lease)


async def test_nothing_is_written_under_a_lease_that_has_ended(store: Store) -> None:
    lease = await store.grant(30)
    await store.revoke(lease)
    before = await store.revision()
    with pytest.raises(LeaseGone):
        await store.txn([], [Put("/free", b"1"), Put("/a", b"1", lease)])
    assert await store.revision() == before
    assert await store.get("/free") is None


async def test_many_ranges_are_merged_by_revision(store: Store) -> None:
    start = await store.revision()
    ranges = [(f"/r{i:02d}/", f"/r{i:02d}0") for i in range(40)]
    task = asyncio.create_task(collect(store, start, start + 120, ranges))
    await asyncio.sleep(0)
    for i in range(60):
        await store.txn([], [Put(f"/r{i % 40:02d}/a", b"%d" % i), Put(f"/r{(i + 7) % 40:02d}/b", b"%d" % i)])
        await put(store, "/between")
    batches = await task
    assert [b.revision for b in batches] == [start + 1 + 2 * i for i in range(60)]
    for i, batch in enumerate(batches):
        assert sorted(e.key for e in batch.events) == sorted((f"/r{i % 40:02d}/a", f"/r{(i + 7) % 40:02d}/b"))


async def test_a_watch_follows_the_revision_that_a_reader_saw(store: Store) -> None:
    start = await store.revision()
    reached = asyncio.Condition()
    at = start - 1

    async def follow() -> None:
        nonlocal at
        async with contextlib.aclosing(store.watch([("/p/", "/p0"), ("/q/", "/q0")], start)) as watch:
            async for batch in watch:
                async with reached:
                    at = batch.revision
                    reached.notify_all()

    task = asyncio.create_task(follow())
    try:
        async with asyncio.timeout(30):
            for i in range(20):
                await put(store, f"/elsewhere/{i}")
                wanted = await store.revision()
                async with reached:
                    await reached.wait_for(lambda wanted=wanted: at >= wanted)
    finally:
        task.cancel()


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
