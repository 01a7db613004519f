"""What only the SQLite store promises: durability, its lock, its format, a full disk."""

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from hub.store import sqlite, watchers
from hub.store.directory import DirectoryLocked
from hub.store.heads import Heads
from hub.store.sqlite import SqliteStore
from shards.kv import (
    Ambiguous,
    Compacted,
    Compare,
    Delete,
    FormatUnknown,
    KeyValue,
    Put,
    Unavailable,
    WatchBatch,
)


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path), slots=16)
    identity = store.identity
    for i in range(5):
        await store.txn([], [Put("/a", b"%d" % i)])
    head = await store.revision()
    await store.compact(head)
    await store.close()
    again = await SqliteStore.open(str(tmp_path), slots=32)
    kv = await again.get("/a")
    assert again.identity == identity
    assert await again.revision() == head
    assert kv is not None and kv.value == b"4"
    await again.close()


async def test_revisions_never_repeat_after_the_newest_key_was_deleted_and_compacted(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path))
    await store.txn([], [Put("/a", b"1")])
    await store.txn([], [Delete("/a")])
    head = await store.revision()
    await store.compact(head)
    await store.close()
    again = await SqliteStore.open(str(tmp_path))
    assert await again.revision() == head
    await again.close()


async def test_a_second_hub_on_the_directory_is_refused_by_name(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path))
    with pytest.raises(DirectoryLocked, match=str(os.getpid())):
        await SqliteStore.open(str(tmp_path))
    await store.close()
    await (await SqliteStore.open(str(tmp_path))).close()


async def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    await (await SqliteStore.open(str(tmp_path))).close()
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("UPDATE meta SET value = '2' WHERE name = 'format'")
    connection.commit()
    connection.close()
    # Of the tables that a newer hub has, it makes none anew.
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("DROP TABLE kv")
    connection.commit()
    with pytest.raises(FormatUnknown, match="format 2"):
        await SqliteStore.open(str(tmp_path))
    assert connection.execute("SELECT name FROM sqlite_master WHERE name = 'kv'").fetchall() == []
    connection.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(Unavailable, match=r"store\.db"):
        await SqliteStore.open(str(tmp_path))


WRITER = textwrap.dedent("""
    import asyncio, sys
    from shards.kv import Put
    from hub.store.sqlite import SqliteStore

    async def main():
        store = await SqliteStore.open(sys.argv[1])
        async def one(lane):
            n = 0
            while True:
                await store.txn([], [Put(f"/k/{lane}/{n}", b"x" * 100)])
                print(f"/k/{lane}/{n}", flush=True)
                n += 1
        await asyncio.gather(*(one(lane) for lane in range(16)))

    asyncio.run(main())
""")


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    acknowledged = [writer.stdout.readline().strip() for _ in range(500)]
    writer.send_signal(signal.SIGKILL)
    acknowledged += writer.stdout.read().split("\n")[:-1]
    writer.stdout.close()
    writer.wait()
    store = await SqliteStore.open(str(tmp_path))
    missing = [key for key in acknowledged if key and await store.get(key) is None]
    await store.close()
    assert missing == []


async def test_a_full_disk_acknowledges_nothing_and_recovers(tmp_path: Path) -> None:
    """SQLite's own page limit gives SQLITE_FULL, as a disk without space does."""
    store = await SqliteStore.open(str(tmp_path))
    await store.txn([], [Put("/a", b"1")])
    limit = sqlite3.connect(tmp_path / "store.db")
    pages = limit.execute("PRAGMA page_count").fetchone()[0]
    limit.close()
    store.limit_pages(pages + 20)
    acknowledged: list[str] = []
    with pytest.raises(Unavailable, match="nothing was written"):
        for i in range(100):
            await store.txn([], [Put(f"/big/{i}", b"x" * 20_000)])
            acknowledged.append(f"/big/{i}")
    head = await store.revision()
    assert all([await store.get(key) for key in acknowledged])
    assert await store.get(f"/big/{len(acknowledged)}") is None
    store.limit_pages(1 << 30)
    result = await store.txn([Compare("/after", 0)], [Put("/after", b"1")])
    assert result.succeeded and result.revision == head + 1
    await store.close()


class _FailingCommit:
    """A connection whose next COMMIT fails as SQLite does it: rolled back by itself, with an error code."""

    def __init__(self, connection: sqlite3.Connection, code: int) -> None:
        self._connection = connection
        self.code = code

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        if sql != "COMMIT" or not self.code:
            return self._connection.execute(sql, *arguments)
        self._connection.execute("ROLLBACK")
        failure = sqlite3.OperationalError("a failure")
        failure.sqlite_errorcode, self.code = self.code, 0
        raise failure

    def close(self) -> None:
        self._connection.close()


@pytest.mark.parametrize(
    ("code", "expected", "message"),
    [
        (sqlite3.SQLITE_FULL, Unavailable, "nothing was written"),
        (sqlite3.SQLITE_IOERR_FSYNC, Ambiguous, "outcome is unknown"),
    ],
)
async def test_a_commit_without_room_wrote_nothing_and_one_that_was_not_synced_may_have(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
    expected: type[Exception],
    message: str,
) -> None:
    made: list[sqlite3.Connection] = []
    connect = sqlite._connect

    def second_fails(path: str, **options: float) -> Any:  # the first is the reader, the second the writer
        made.append(connect(path, **options))
        return made[-1] if len(made) == 1 else _FailingCommit(made[-1], code)

    monkeypatch.setattr(sqlite, "_connect", second_fails)
    caplog.set_level("INFO")
    store = await SqliteStore.open(str(tmp_path))
    with pytest.raises(expected, match=message):
        await store.txn([], [Put("/a", b"1")])
    assert await store.get("/a") is None
    assert (await store.txn([Compare("/a", 0)], [Put("/a", b"2")])).succeeded
    assert [r.message.partition(":")[0] for r in caplog.records] == ["writes fail", "writes succeed again"]
    await store.close()


async def test_a_watch_from_before_a_compacted_deletion_is_told_that_it_is_too_late(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path))
    await store.txn([], [Put("/a", b"1")])
    head = (await store.txn([], [Delete("/a")])).revision
    await store.compact(head)
    with pytest.raises(Compacted):
        await anext(aiter(store.watch([("/", "0")], head - 1)))
    await store.close()


async def test_many_waiting_transactions_share_commits(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path))
    results = await asyncio.gather(*(store.txn([], [Put(f"/{i}", b"v")]) for i in range(1000)))
    assert sorted(r.revision for r in results) == list(range(results[0].revision, results[0].revision + 1000))
    assert store.commits < 200
    await store.close()


async def test_keys_under_a_lease_of_an_earlier_process_go_when_the_store_opens(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path))
    lease = await store.grant(10)
    await store.txn([], [Put("/owner", b"1", lease), Put("/other", b"1", lease), Put("/stays", b"1")])
    head = await store.revision()
    await store.close()
    again = await SqliteStore.open(str(tmp_path))
    assert [kv.key for kv in (await again.page("/", "0")).items] == ["/stays"]
    assert await again.revision() == head + 1
    async for batch in again.watch([("/", "0")], head):
        assert sorted((e.key, e.kv) for e in batch.events) == [("/other", None), ("/owner", None)]
        break
    assert await again.keepalive(lease) == 0.0
    await again.close()


async def test_data_of_before_leases_opens_and_stays_readable_for_an_older_hub(tmp_path: Path) -> None:
    await (await SqliteStore.open(str(tmp_path))).close()
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.executescript("""
        DROP TABLE kv;
        CREATE TABLE kv (
          key TEXT NOT NULL, revision INTEGER NOT NULL, created INTEGER NOT NULL, value BLOB,
          PRIMARY KEY (key, revision)
        ) WITHOUT ROWID;
        CREATE INDEX kv_revision ON kv (revision);
        INSERT INTO kv (key, revision, created, value) VALUES ('/a', 2, 2, 'old');
    """)
    connection.close()
    store = await SqliteStore.open(str(tmp_path))
    kv = await store.get("/a")
    assert kv is not None and (kv.mod_revision, kv.lease) == (2, 0)
    lease = await store.grant(10)
    await store.txn([], [Put("/b", b"1", lease)])
    await store.close()
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("INSERT INTO kv (key, revision, created, value) VALUES ('/c', 4, 4, 'older hub')")
    connection.commit()
    connection.close()
    again = await SqliteStore.open(str(tmp_path))
    assert [kv.key for kv in (await again.page("/", "0")).items] == ["/a", "/c"]
    await again.close()


async def test_a_file_that_another_program_writes_is_waited_for_without_the_loop(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path))
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = [asyncio.ensure_future(store.txn([], [Put(f"/{i}", b"v")])) for i in range(3)]
    turns = 0
    while not store._groups._busy or store._groups._waiting:
        await asyncio.sleep(0)
    while turns < 100:  # the loop goes on; were the file waited for on it, this would take 30 s
        turns += 1
        await asyncio.sleep(0.001)
    assert not any(one.done() for one in writing)
    assert await store.get("/0") is None
    other.execute("ROLLBACK")
    other.close()
    assert [(await one).succeeded for one in writing] == [True] * 3
    assert (await store.txn([Compare("/3", 0)], [Put("/3", b"v")])).succeeded
    await store.close()


async def test_a_value_that_sqlite_does_not_take_holds_nobody_else_up(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path))
    head = await store.revision()
    with pytest.raises(Unavailable, match="nothing was written"):
        await store.txn([], [Put("/half a pair \ud800", b"v")])
    assert (await store.txn([], [Put("/a", b"v")])).revision == head + 1
    await store.close()


async def test_what_waits_when_the_store_closes_is_written_and_answered(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path))
    writing = [asyncio.ensure_future(store.txn([], [Put(f"/{i}", b"v")])) for i in range(1000)]
    await asyncio.sleep(0)
    await store.close()
    assert all(one.done() for one in writing)
    again = await SqliteStore.open(str(tmp_path))
    assert len((await again.page("/", "0", limit=2000)).items) == 1000
    await again.close()


async def test_one_commit_costs_a_watch_that_it_does_not_concern_one_step(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path))
    idle = aiter(store.watch([("/other/", "/other0")], await store.revision()))
    await anext(idle)
    results = await asyncio.gather(*(store.txn([], [Put(f"/{i}", b"v")]) for i in range(200)))
    steps: list[WatchBatch] = []
    while not steps or steps[-1].revision < results[-1].revision:
        steps.append(await anext(idle))
    assert not any(step.events for step in steps)
    assert len(steps) <= store.commits < 10
    await store.close()


async def test_a_patient_watch_hears_of_its_events_at_once_and_of_progress_in_the_end(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path))
    patient = aiter(store.watch([("/mine/", "/mine0")], await store.revision(), patient=True))
    await anext(patient)
    waiting = asyncio.ensure_future(anext(patient))
    head = 0
    for n in range(20):
        head = (await store.txn([], [Put(f"/other/{n}", b"v")])).revision
    reached = (await waiting).revision
    while reached < head:
        batch = await anext(patient)
        assert batch.events == () and batch.revision > reached
        reached = batch.revision
    waiting = asyncio.ensure_future(anext(patient))
    mine = await store.txn([], [Put("/mine/a", b"v")])
    assert [e.key for e in (await waiting).events] == ["/mine/a"]
    assert (await waiting).revision == mine.revision
    await store.close()


async def test_a_commit_does_not_wake_a_patient_watch_that_it_does_not_concern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers, "PROGRESS_S", 3600.0)
    store = await SqliteStore.open(str(tmp_path))
    patient = aiter(store.watch([("/mine/", "/mine0")], await store.revision(), patient=True))
    await anext(patient)
    waiting = asyncio.ensure_future(anext(patient))
    await asyncio.sleep(0)
    for n in range(10):
        await store.txn([], [Put(f"/other/{n}", b"v")])
    mine = await store.txn([], [Put("/mine/a", b"v")])
    assert (await waiting).revision == mine.revision
    await store.close()


async def test_the_newest_version_is_read_whatever_was_read_or_written_before(tmp_path: Path) -> None:
    """Beside a plain dict: reads between writes, deletions, transactions that fail, and more than is kept at hand."""
    store = await SqliteStore.open(str(tmp_path))
    store._heads = store._groups._heads = Heads(bytes_max=2000)
    rng, twin = random.Random(7), dict[str, tuple[bytes, int]]()
    for n in range(600):
        key = f"/{rng.randrange(12)}"
        wanted = twin[key][1] if key in twin else 0
        held = [Compare(key, wanted if rng.random() < 0.8 else wanted + 1)]
        value = b"%d" % n * rng.randrange(1, 40)
        some: list[Put | Delete] = [Delete(key) if rng.random() < 0.2 else Put(key, value)]
        result = await store.txn(held, some)
        assert result.succeeded == (held[0].mod_revision == wanted)
        if result.succeeded and isinstance(some[0], Put):
            twin[key] = (value, result.revision)
        elif result.succeeded:
            twin.pop(key, None)
        else:
            assert [kv and (kv.value, kv.mod_revision) for kv in result.current] == [twin.get(key)]
        asked = f"/{rng.randrange(12)}"
        kv = await store.get(asked)
        assert (kv and (kv.value, kv.mod_revision)) == twin.get(asked)
    await store.close()


def test_no_more_versions_are_kept_at_hand_than_their_bound() -> None:
    heads = Heads(bytes_max=10_000)
    for n in range(100):
        heads.put(KeyValue(f"/{n}", b"x" * 744, 1, n))
    kept = [n for n in range(100) if heads.get(f"/{n}") is not None]
    assert kept == list(range(100 - len(kept), 100)) and 5 < len(kept) <= 10
    heads.put(KeyValue("/large", b"x" * 20_000, 1, 1))
    assert heads.get("/large") is None and heads.get("/99") is None
