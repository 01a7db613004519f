"""What only the SQLite store promises: durability, its lock, its format, a full disk."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hub.store.base import Compare, FormatUnknown, Put, Unavailable
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


async def test_many_waiting_transactions_share_commits(tmp_path: Path) -> None:
    store = await SqliteStore.open(str(tmp_path))
    results = await asyncio.gather(*(store.txn([], [Put(f"/{i}", b"v")]) for i in range(1000)))
    assert sorted(r.revision for r in results) == list(range(results[0].revision, results[0].revision + 1000))
    assert store.commits < 200
    await store.close()
