"""What only the etcd store promises: members that die, freeze and lose their quorum; lost answers; another history."""

import asyncio
import contextlib
import datetime
import ipaddress
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import hub.store.etcd
from hub.store.etcd import EtcdStore
from shards.etcd.client import Tls, Uncertain, read_tls
from shards.etcd.proto import kv_pb2
from shards.etcd.proto import rpc_pb2 as pb
from shards.etcd.watching import (
    CATCH_UP_MAX_S,
    QUIET_S,
    SETTLE_MAX_S,
    SETTLE_S,
    WARY_S,
    Subscription,
    WatchStream,
    union,
)
from shards.kv import (
    Ambiguous,
    Compacted,
    Compare,
    Delete,
    FormatUnknown,
    FutureRevision,
    HistoryLost,
    Put,
    Unavailable,
    WatchBatch,
)
from tests.servers import etcd
from tests.servers.etcd import EtcdCluster

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def one() -> Iterator[EtcdCluster]:
    with EtcdCluster(1) as cluster:
        yield cluster


@pytest.fixture
async def store(one: EtcdCluster, request: pytest.FixtureRequest) -> AsyncIterator[EtcdStore]:
    made = await EtcdStore.open(one.endpoints, root=f"/{request.node.name}/")
    yield made
    await made.close()


@pytest.fixture
def three() -> Iterator[EtcdCluster]:
    with EtcdCluster(3) as cluster:
        yield cluster


class Follower:
    """A consumer that keeps all batches with events."""

    def __init__(self, store: EtcdStore, ranges: Sequence[tuple[str, str]], after: int) -> None:
        self.batches: list[WatchBatch] = []
        self.reached = after
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(self._run(store, ranges, after))

    async def _run(self, store: EtcdStore, ranges: Sequence[tuple[str, str]], after: int) -> None:
        async with contextlib.aclosing(store.watch(ranges, after)) as watch:
            async for batch in watch:
                assert batch.revision >= self.reached
                self.reached = batch.revision
                if batch.events:
                    self.batches.append(batch)
                self._changed.set()

    async def through(self, revision: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while self.reached < revision and not self.task.done():
                self._changed.clear()
                waiting = asyncio.create_task(self._changed.wait())
                await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
        if self.task.done():
            self.task.result()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def until(attempt: Callable[[], Awaitable[Any]]) -> Any:
    """Repeats what fails while members are away."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await attempt()
            except (Unavailable, Ambiguous):
                continue


async def test_a_killed_leader_loses_no_acknowledged_write_and_doubles_no_event(three: EtcdCluster) -> None:
    store = await EtcdStore.open(three.endpoints)
    start = await store.revision()
    follower = Follower(store, [("/a/", "/a0"), ("/b/", "/b0")], start)
    acknowledged: dict[int, list[str]] = {}
    stop = asyncio.Event()

    async def write(name: str) -> None:
        mod, number = 0, 0
        while not stop.is_set():
            number += 1
            value = f"{name}:{number}"
            try:
                result = await store.txn(
                    [Compare(f"/a/{name}", mod)],
                    [Put(f"/a/{name}", value.encode()), Put(f"/b/{name}", value.encode())],
                )
            except (Unavailable, Ambiguous):
                kv = await until(lambda: store.get(f"/a/{name}"))
                mod = kv.mod_revision if kv else 0
                continue
            assert result.succeeded, f"{value}: nobody else writes {name}"
            mod = result.revision
            acknowledged[mod] = sorted([value, value])

    writers = [asyncio.create_task(write(f"w{i}")) for i in range(8)]

    async def acknowledged_more(count: int) -> None:
        until_ = len(acknowledged) + count
        async with asyncio.timeout(DEADLINE_S):
            while len(acknowledged) < until_:
                for writer in writers:
                    if writer.done():
                        writer.result()
                await asyncio.sleep(0.01)

    await acknowledged_more(100)
    leader = await asyncio.to_thread(three.leader)
    three.kill(leader)
    await acknowledged_more(100)
    await asyncio.to_thread(three.restart, leader)
    await acknowledged_more(100)
    stop.set()
    await asyncio.gather(*writers)
    await follower.through(await store.revision())
    await follower.stop()
    await store.close()
    revisions = [b.revision for b in follower.batches]
    assert revisions == sorted(set(revisions))
    seen = {b.revision: sorted(e.kv.value.decode() for e in b.events if e.kv) for b in follower.batches}
    assert {r: seen.get(r) for r in acknowledged} == acknowledged


async def test_without_quorum_calls_end_in_bounded_time_and_watches_resume(three: EtcdCluster) -> None:
    store = await EtcdStore.open(three.endpoints)
    start = await store.revision()
    follower = Follower(store, [("/a/", "/a0")], start)
    await store.txn([], [Put("/a/1", b"1")])
    lease = await store.grant(60)
    three.kill(0)
    three.kill(1)
    async with asyncio.timeout(30):
        with pytest.raises((Unavailable, Ambiguous), match=r"quorum|may or may not"):
            await store.txn([Compare("/a/2", 0)], [Put("/a/2", b"2")])
        with pytest.raises(Unavailable, match="quorum"):
            await store.get("/a/1")
        held = await store.get("/a/1", stale=True)
        assert held is not None and held.value == b"1"
        page = await store.page("/a/", "/a0", stale=True)
        assert [kv.key for kv in page.items] == ["/a/1"]
        with pytest.raises(Unavailable):
            await store.keepalive(lease)
    assert not follower.task.done()
    await asyncio.to_thread(three.restart, 0, wait=False)
    await asyncio.to_thread(three.restart, 1)
    made = await until(lambda: store.txn([], [Put("/a/3", b"3")]))
    await follower.through(made.revision)
    await follower.stop()
    keys = [e.key for b in follower.batches for e in b.events]
    # The write without quorum may have been carried out, late, but once.
    assert [k for k in keys if k != "/a/2"] == ["/a/1", "/a/3"] and keys.count("/a/2") <= 1
    assert await until(lambda: store.keepalive(lease)) > 0
    await store.close()


async def test_a_frozen_member_is_left_for_another(three: EtcdCluster) -> None:
    leader = await asyncio.to_thread(three.leader)
    frozen = (leader + 1) % 3
    order = [three.endpoints[frozen], three.endpoints[leader]]
    store = await EtcdStore.open(order)
    store._client._at = 0
    follower = Follower(store, [("/a/", "/a0"), ("/b/", "/b0")], await store.revision())
    made = await store.txn([], [Put("/a/1", b"1"), Put("/b/1", b"1")])
    await follower.through(made.revision)
    store._client._at = 0
    three.freeze(frozen)
    async with asyncio.timeout(30):
        made = await store.txn([Compare("/a/2", 0)], [Put("/a/2", b"2")])
        assert made.succeeded
        await follower.through(await store.revision())
    assert [e.key for e in follower.batches[-1].events] == ["/a/2"]
    three.thaw(frozen)
    await follower.stop()
    await store.close()


async def test_a_watch_that_was_cut_off_during_a_compaction_lists_again(three: EtcdCluster) -> None:
    cut = await EtcdStore.open(three.endpoints[:1])
    other = await EtcdStore.open(three.endpoints[1:])
    follower = Follower(cut, [("/a/", "/a0")], await cut.revision())
    await follower.through((await cut.txn([], [Put("/a/1", b"1")])).revision)
    three.kill(0)

    async def write() -> int:
        return (await other.txn([], [Put("/a/2", b"2")])).revision

    await until(write)
    head = await until(write)
    await until(lambda: other.compact(head))
    await asyncio.to_thread(three.restart, 0)
    with pytest.raises(Compacted):
        await follower.through(head)
    page = await until(lambda: cut.page("/a/", "/a0"))
    assert [kv.key for kv in page.items] == ["/a/1", "/a/2"]
    await cut.close()
    await other.close()


async def test_another_history_is_noticed_by_watches_and_calls(tmp_path: Path) -> None:
    cluster = await asyncio.to_thread(EtcdCluster)
    try:
        store = await EtcdStore.open(cluster.endpoints)
        cluster.kill(0)
        shutil.copytree(cluster.data_directory(0), tmp_path / "older")
        await asyncio.to_thread(cluster.restart, 0)
        for i in range(20):
            await until(lambda i=i: store.txn([], [Put("/a", b"%d" % i)]))
        follower = Follower(store, [("/", "0")], await store.revision())
        cluster.kill(0)
        shutil.rmtree(cluster.data_directory(0))
        shutil.copytree(tmp_path / "older", cluster.data_directory(0))
        await asyncio.to_thread(cluster.restart, 0)
        with pytest.raises(HistoryLost, match="restored"):
            await follower.through(10**9)
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.get("/a"),
            lambda: store.txn([], [Put("/a", b"")]),
        ]
        for call in calls:
            with pytest.raises(HistoryLost):
                await call()
        await store.close()
    finally:
        await asyncio.to_thread(cluster.close)


async def test_a_watch_beyond_the_head_is_refused(store: EtcdStore) -> None:
    with pytest.raises(FutureRevision):
        await anext(store.watch([("/", "0")], await store.revision() + 5))


# -- answers that are lost ------------------------------------------------------------------------------------


class Lossy:
    """Stands for a client's `txn`: loses the first answers, of requests that arrived or not."""

    def __init__(
        self, store: EtcdStore, arrives: Sequence[bool], then: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        self._txn, self._arrives, self._then = store._client.txn, list(arrives), then
        self.calls = 0
        store._client.txn = self  # type: ignore[method-assign,assignment]

    async def __call__(self, request: Any, timeout_s: float = 1.0) -> Any:
        self.calls += 1
        if not self._arrives:
            return await self._txn(request, timeout_s)
        if self._arrives.pop(0):
            await self._txn(request, timeout_s)
        if self._then is not None:
            await self._then()
        raise Uncertain("the answer was lost")


async def put(store: EtcdStore, key: str, value: bytes) -> int:
    return (await store.txn([], [Put(key, value)])).revision


@pytest.mark.parametrize("arrives", [[True], [False], [False, False, True], [True, True]])
async def test_a_compare_and_swap_whose_answer_was_lost_is_carried_out_once(
    store: EtcdStore, arrives: list[bool]
) -> None:
    root = store._meta.decode()
    at = await put(store, root + "a", b"0")
    Lossy(store, arrives)
    result = await store.txn([Compare(root + "a", at)], [Put(root + "a", b"1"), Put(root + "b", b"1")])
    a, b = await store.get(root + "a"), await store.get(root + "b")
    assert result.succeeded and a and b
    assert result.revision == a.mod_revision == b.mod_revision == at + 1 == await store.revision()


@pytest.mark.parametrize("arrives", [True, False])
async def test_what_another_wrote_over_it_meanwhile_does_not_hide_it(store: EtcdStore, arrives: bool) -> None:
    root, other = store._meta.decode(), await EtcdStore.open(store._client.endpoints)
    at = await put(store, root + "a", b"0")

    async def overwrite() -> None:
        for i in range(3):
            await put(other, root + "a", b"other %d" % i)

    Lossy(store, [arrives], overwrite)
    result = await store.txn([Compare(root + "a", at)], [Put(root + "a", b"1")])
    assert result.succeeded == arrives
    if arrives:
        assert result.revision == at + 1
    else:
        assert result.current[0] is not None and result.current[0].value == b"other 2"
    await other.close()


@pytest.mark.parametrize("arrives", [True, False])
async def test_who_created_a_key_is_told_from_the_key(store: EtcdStore, arrives: bool) -> None:
    root, other = store._meta.decode(), await EtcdStore.open(store._client.endpoints)

    async def create() -> None:
        await other.txn([Compare(root + "a", 0)], [Put(root + "a", b"other")])
        await put(other, root + "a", b"later")

    Lossy(store, [arrives], create)
    result = await store.txn([Compare(root + "a", 0)], [Put(root + "a", b"mine")])
    assert result.succeeded == arrives
    await other.close()


async def test_what_cannot_be_told_stays_ambiguous(store: EtcdStore) -> None:
    root, other = store._meta.decode(), await EtcdStore.open(store._client.endpoints)
    at = await put(store, root + "a", b"0")

    async def remove() -> None:
        await other.txn([], [Delete(root + "a")])

    cases: list[tuple[list[Compare], list[Put | Delete]]] = [
        ([Compare(root + "a", at)], [Put(root + "a", b"1")]),  # then removed: perhaps after us
        ([], [Put(root + "b", b"1")]),  # compares nothing: it may still come
        ([Compare(root + "meta", 0)], [Delete(root + "a")]),
    ]
    for compares, ops in cases:
        Lossy(store, [False], remove)
        with pytest.raises(Ambiguous, match="read"):
            await store.txn(compares, ops)
    await other.close()


# -- watches --------------------------------------------------------------------------------------------------


async def test_two_thousand_watches_live_on_one_stream(store: EtcdStore) -> None:
    start = await store.revision()
    ranges = [(f"/w/{i:04d}/", f"/w/{i:04d}0") for i in range(2000)]
    followers = [Follower(store, ranges[i : i + 100], start) for i in range(0, 2000, 100)]
    for i in range(0, 2000, 50):
        await put(store, f"/w/{i:04d}/x", b"")
    head = await store.revision()
    for follower in followers:
        await follower.through(head)
        await follower.stop()
    keys = [e.key for f in followers for b in f.batches for e in b.events]
    assert sorted(keys) == [f"/w/{i:04d}/x" for i in range(0, 2000, 50)]
    assert store._watches.connects == 1


async def test_a_turn_of_a_busy_loop_reads_all_that_has_come(one: EtcdCluster, store: EtcdStore) -> None:
    """One message a turn, and a replica under load would fall behind what others write."""
    count, ranges = 600, [(f"/t/{i:02d}/", f"/t/{i:02d}0") for i in range(30)]
    start = await store.revision()
    followers = [Follower(store, [span], start) for span in ranges]

    async def write() -> int:
        writer = await EtcdStore.open(one.endpoints, root="/elsewhere/")
        await asyncio.gather(*(put(writer, f"/t/{i % 30:02d}/x", b"%d" % i) for i in range(count)))
        head = await writer.revision()
        await writer.close()
        return head

    loop, turns, busy = asyncio.get_running_loop(), 0, True

    def turn() -> None:
        nonlocal turns
        turns += 1
        time.sleep(0.01)
        if busy:
            loop.call_soon(turn)

    writing = asyncio.create_task(asyncio.to_thread(asyncio.run, write()))
    turn()
    head = await writing
    for follower in followers:
        await follower.through(head)
        await follower.stop()
    busy = False
    assert sum(len(b.events) for f in followers for b in f.batches) == count
    assert turns < count / 2


async def test_a_replay_larger_than_a_message_comes_in_fragments(store: EtcdStore) -> None:
    start = await store.revision()
    for i in range(8):
        await store.txn([], [Put(f"/f/{j}", b"%d" % i + os.urandom(120_000)) for j in range(10)])
    follower = Follower(store, [("/f/", "/f0")], start)
    await follower.through(await store.revision())
    await follower.stop()
    assert [(b.revision, len(b.events)) for b in follower.batches] == [(start + 1 + i, 10) for i in range(8)]
    assert all(e.prev is not None for b in follower.batches[1:] for e in b.events)


async def test_a_consumer_that_is_too_slow_lists_again(
    one: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.store.etcd, "BACKLOG_MAX", 10)
    store = await EtcdStore.open(one.endpoints)
    watch = store.watch([("/slow/", "/slow0")], await store.revision())
    await anext(watch)
    for i in range(20):
        await put(store, f"/slow/{i}", b"")
    fast = Follower(store, [("/slow/", "/slow0")], await store.revision())
    await fast.through(await store.revision())
    with pytest.raises(Compacted):
        async for _ in watch:
            pass
    await fast.stop()
    await store.close()


class _Seen:
    lost, head = None, 0

    def see(self, revision: int, seen_before: int = 0) -> None:
        self.head = max(self.head, revision)


async def test_an_event_that_comes_after_progress_beyond_it_ends_the_watch() -> None:
    watches = WatchStream(_Seen(), "/meta", backlog_max=100)  # type: ignore[arg-type]
    subscription = watches.subscribe([("/a", "/b")], 10)
    header = pb.ResponseHeader(revision=10)
    watches._received(pb.WatchResponse(header=header, watch_id=1, created=True), 0.0)
    watches._credit(20, 1.0)
    assert [b.revision for b in await subscription.take()] == [20]
    late = kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"/a1", mod_revision=15, create_revision=15))
    assert watches._is_quiet(2.0)
    watches._received(pb.WatchResponse(header=header, watch_id=1, events=[late]), 2.0)
    with pytest.raises(Compacted):
        await subscription.take()
    # It may happen again: what proves that the queue has come has to prove more for a while.
    assert not watches._is_quiet(2.0 + QUIET_S / 2) and watches._is_quiet(2.0 + 2 * QUIET_S)
    watches._heard_event = 2.0 + WARY_S
    assert watches._is_quiet(2.0 + WARY_S)


async def test_a_quiet_watch_is_told_of_progress_while_others_never_rest(
    one: EtcdCluster, store: EtcdStore
) -> None:
    """After a burst all watches prove anew that they are live, while events go on and on."""
    writer = await EtcdStore.open(one.endpoints, root="/writer/")
    start = await store.revision()
    busy = [Follower(store, [(f"/busy/{i}/", f"/busy/{i}0")], start) for i in range(10)]
    quiet = Follower(store, [("/quiet/", "/quiet0")], start)
    resting = False

    async def write(i: int) -> None:
        while not resting:
            await put(writer, f"/busy/{i}/x", b"")

    writers = [asyncio.create_task(write(i)) for i in range(10)]
    stream = store._watches
    await busy[0].through(await store.revision())
    stream._settle_anew(asyncio.get_running_loop().time())
    messages = stream._messages
    await quiet.through(await store.revision())
    assert stream._messages > messages, "nobody wrote meanwhile"
    assert not any(task.done() for task in writers)
    resting = True
    await asyncio.gather(*writers)
    for follower in (*busy, quiet):
        await follower.stop()
    await writer.close()


@pytest.mark.parametrize("most_s", [SETTLE_MAX_S, CATCH_UP_MAX_S])
async def test_bursts_put_a_watch_off_for_a_while_and_not_for_ever(most_s: float) -> None:
    watches = WatchStream(_Seen(), "/meta", backlog_max=100)  # type: ignore[arg-type]
    subscription = watches.subscribe([("/a", "/b")], 10)
    subscription.settles_at = 0.0
    for tenths in range(200):
        watches._settle_anew(tenths / 10, most_s)
        assert tenths / 10 + SETTLE_S <= subscription.settles_at or subscription.settles_at == most_s
    watches._credit(20, most_s)
    assert [b.revision for b in await subscription.take()] == [20]
    watches._settle_anew(30.0)
    assert subscription.settles_at == 30.0 + SETTLE_S


async def test_patient_watches_are_told_of_progress_less_often_and_of_events_at_once() -> None:
    watches = WatchStream(_Seen(), "/meta", backlog_max=100)  # type: ignore[arg-type]
    prompt, patient = (
        watches.subscribe([("/a", "/b")], 10),
        watches.subscribe([("/c", "/d")], 10, is_patient=True),
    )
    for subscription in (prompt, patient):
        subscription.settles_at = 0.0
    told: dict[Subscription, list[int]] = {prompt: [], patient: []}
    for tenths in range(11):
        watches._credit(20 + tenths, 1.0 + tenths / 10)
        for subscription in told:
            if subscription._batches:
                told[subscription] += [b.revision for b in await subscription.take()]
    assert told == {prompt: list(range(20, 31)), patient: [20, 23, 26, 29]}
    event = kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"/c1", mod_revision=31, create_revision=31))
    watches._received(pb.WatchResponse(watch_id=2, events=[event]), 2.0)
    assert [b.revision for b in await patient.take()] == [31]


def test_ranges_are_joined_where_they_touch_or_overlap() -> None:
    assert union([("c", "d"), ("a", "b"), ("b", "bb"), ("ba", "bc"), ("x", "x")]) == [("a", "bc"), ("c", "d")]


# -- opening --------------------------------------------------------------------------------------------------


async def test_replicas_that_start_at_once_agree_on_one_identity(one: EtcdCluster) -> None:
    stores = await asyncio.gather(
        *(EtcdStore.open(one.endpoints, slots=16 + i, root="/together/") for i in range(8))
    )
    assert len({s.identity for s in stores}) == 1
    for store in stores:
        await store.close()


@pytest.mark.parametrize("value", [b'{"uuid":"u","generation":1,"format":99,"slots":16}', b"nonsense", b"[]"])
async def test_data_of_an_unknown_format_is_refused(one: EtcdCluster, store: EtcdStore, value: bytes) -> None:
    await put(store, "/unknown/meta", value)
    with pytest.raises(FormatUnknown, match="/unknown/meta"):
        await EtcdStore.open(one.endpoints, root="/unknown/")


async def test_nobody_listening_is_unavailable_and_says_where() -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1\b"):
        await EtcdStore.open(["127.0.0.1:1"])


def _pem(path: Path, *parts: bytes) -> str:
    path.write_bytes(b"".join(parts))
    return str(path)


def _certificates(directory: Path) -> tuple[str, str, str]:
    """Paths of a CA, a certificate for 127.0.0.1 (server and client), and its key."""
    now = datetime.datetime.now(datetime.UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def build(subject: str, key: Any, issuer: str) -> Any:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = build("ca", ca_key, "ca").add_extension(x509.BasicConstraints(True, None), True)
    leaf = (
        build("etcd", key, "ca")
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False
        )
    )
    pem = serialization.Encoding.PEM
    directory.mkdir()
    return (
        _pem(directory / "ca", ca.sign(ca_key, hashes.SHA256()).public_bytes(pem)),
        _pem(directory / "cert", leaf.sign(ca_key, hashes.SHA256()).public_bytes(pem)),
        _pem(
            directory / "key",
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        ),
    )


async def test_tls_checks_both_sides(tmp_path: Path) -> None:
    ca, cert, key = _certificates(tmp_path / "right")
    wrong, _, _ = _certificates(tmp_path / "wrong")
    cluster = await asyncio.to_thread(lambda: EtcdCluster(tls=etcd.Tls(ca, cert, key)))
    try:
        store = await EtcdStore.open(cluster.endpoints, tls=read_tls(ca, cert, key))
        await put(store, "/a", b"1")
        follower = Follower(store, [("/", "0")], 0)
        await follower.through(await store.revision())
        await follower.stop()
        await store.close()
        refused: list[Tls | None] = [read_tls(ca), read_tls(wrong, cert, key), None]
        outcomes = await asyncio.gather(
            *(EtcdStore.open(cluster.endpoints, tls=tls) for tls in refused), return_exceptions=True
        )
        assert [type(o) for o in outcomes] == [Unavailable] * 3
    finally:
        await asyncio.to_thread(cluster.close)
