"""What only the SQLite store promises: durability, its lock, its format, a full disk."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from hub.store import sqlite
from hub.store.base import Ambiguous, Compare, FormatUnknown, Put, Unavailable
from hub.store.sqlite import DirectoryLocked, SqliteStore


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
    from hub.store.base import Delete

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
    from hub.store.base import Put
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

    def second_fails(path: str) -> Any:  # the first is the reader, the second the writer
        made.append(connect(path))
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


async def test_many_waiting_transactions_share_commits(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path))
    results = await asyncio.gather(*(store.txn([], [Put(f"/{i}", b"v")]) for i in range(1000)))
    assert sorted(r.revision for r in results) == list(range(results[0].revision, results[0].revision + 1000))
    assert store.commits < 200
    await store.close()
