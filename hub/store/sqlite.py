"""The store of one machine: SQLite in WAL mode, group commit.

All transactions that wait are carried out in one SQLite transaction and answered together after its fsync
(synchronous=FULL), so that durability costs one fsync for many: `hub.store.groups`. Reads run on a connection of their own and
see what has been committed. History is a row for each version of a key.

Invariants: `txn` returns after the fsync; watchers hear of a revision only after it; a failed commit (full disk)
answers every waiter with Unavailable and changes nothing in memory.

Leases live as long as the process that holds the directory: keys under those of an earlier one go when it opens.
"""

import asyncio
import os
import secrets
import sqlite3
import uuid
from collections.abc import AsyncIterator, Sequence

from hub.store import marks
from hub.store.directory import lock_directory
from hub.store.groups import LEASED, Groups, State, Waiting, latest, write
from hub.store.heads import Heads
from hub.store.watchers import Watchers, select
from shards.kv import (
    FORMAT_VERSION,
    Absent,
    Compacted,
    Compare,
    Delete,
    Event,
    FormatUnknown,
    FutureRevision,
    KeyValue,
    Page,
    Put,
    StoreError,
    StoreIdentity,
    TxnResult,
    Unavailable,
    WatchBatch,
    check_txn,
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kv (
  key TEXT NOT NULL, revision INTEGER NOT NULL, created INTEGER NOT NULL, value BLOB,
  PRIMARY KEY (key, revision)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS kv_revision ON kv (revision);
"""
_LEASES = "CREATE INDEX IF NOT EXISTS kv_lease ON kv (lease) WHERE lease != 0"
_PAGE = """
SELECT key, value, created, revision, lease FROM kv AS v
WHERE key >= ? AND key < ? AND revision <= ? AND value IS NOT NULL
  AND revision = (SELECT max(revision) FROM kv WHERE key = v.key AND revision <= ?)
ORDER BY key LIMIT ?
"""


class SqliteStore:
    """See `shards.kv.Store`. Make one with `open`, on the event loop that will use it."""

    def __init__(self, path: str, lock_fd: int, reader: sqlite3.Connection, identity: StoreIdentity) -> None:
        self._path = path
        self._lock_fd = lock_fd
        self._reader = reader
        self._identity = identity
        self._loop = asyncio.get_running_loop()
        self._watchers = Watchers()
        self._revision, self._oldest = _read_bounds(reader)
        self._closed = False
        self._leases: dict[int, float] = {}
        """Seconds that each was granted for."""
        self._heads = Heads()
        self._groups = Groups(
            path, _connect(path, busy_s=0.0), self._revision, self._leases, self._heads, self._deliver
        )

    @classmethod
    async def open(
        cls, directory: str, *, slots: int = 1024, opening: marks.Opening = marks.SERVE
    ) -> "SqliteStore":
        """Opens or makes the store in `directory` (0700, locked). `slots` counts at the first start only. Raises
        DirectoryLocked, DirectoryUnusable, FormatUnknown, Unavailable, and what `marks.check` does."""
        path = os.path.join(directory, "store.db")
        if opening.source:
            _check_exists(path)
        lock_fd = lock_directory(directory)
        connection: sqlite3.Connection | None = None
        try:
            connection = _connect(path)
            os.chmod(path, 0o600)
            return cls(path, lock_fd, connection, _open_identity(connection, directory, slots, opening))
        except (sqlite3.Error, StoreError) as failure:
            if connection is not None:
                connection.close()
            os.close(lock_fd)
            if isinstance(failure, StoreError):
                raise
            raise Unavailable(f"{path}: {failure}") from failure

    @property
    def identity(self) -> StoreIdentity:
        return self._identity

    @property
    def commits(self) -> int:
        """Group commits so far."""
        return self._groups.commits

    async def revision(self) -> int:
        return self._revision

    async def get(self, key: str, *, stale: bool = False) -> KeyValue | None:
        self._check_open()
        if (known := self._heads.get(key)) is not None:
            return known
        found = latest(self._reader, key, self._revision)
        if found is not None:
            self._heads.put(found)
        return found

    async def get_many(self, keys: Sequence[str]) -> list[KeyValue | None]:
        return [await self.get(key) for key in keys]

    async def page(
        self, start: str, end: str, *, revision: int | None = None, limit: int = 500, stale: bool = False
    ) -> Page:
        self._check_open()
        at = self._revision if revision is None else revision
        if at > self._revision:
            raise FutureRevision(f"revision {at} is not reached yet, the store is at {self._revision}")
        if at < self._oldest:
            raise Compacted(at, self._oldest)
        rows = self._reader.execute(_PAGE, (start, end, at, at, limit + 1)).fetchall()
        items = [KeyValue(*row) for row in rows[:limit]]
        return Page(items, at, rows[limit][0] if len(rows) > limit else None)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        self._check_open()
        check_txn(compares, ops)
        return await self._queued(Waiting(compares, ops, self._loop.create_future()))

    async def grant(self, ttl_s: float) -> int:
        """A lease ends with `revoke` or with the process, which holds the directory alone: no other can miss it."""
        self._check_open()
        lease = secrets.randbelow(2**63 - 1) + 1
        self._leases[lease] = ttl_s
        return lease

    async def keepalive(self, lease: int) -> float:
        self._check_open()
        return self._leases.get(lease, 0.0)

    async def revoke(self, lease: int) -> None:
        self._check_open()
        if lease and self._leases.pop(lease, None) is not None:
            await self._queued(Waiting((), (), self._loop.create_future(), revoked=lease))

    async def _queued(self, waiting: Waiting) -> TxnResult:
        self._groups.submit(waiting)
        return await waiting.answer

    def watch(
        self, ranges: Sequence[tuple[str, str]], after: int, *, patient: bool = False
    ) -> AsyncIterator[WatchBatch]:
        async def replay(start: int) -> tuple[list[WatchBatch], int]:
            return self._history(ranges, start)

        return self._watchers.stream(ranges, after, replay, is_patient=patient)

    async def compact(self, revision: int) -> None:
        self._check_open()
        if revision > self._revision:
            raise FutureRevision(f"revision {revision} is not reached yet, the store is at {self._revision}")
        if revision > self._oldest:
            self._oldest = revision
            self._groups.compact(revision)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._watchers.close()
        await self._groups.close()
        self._reader.close()
        os.close(self._lock_fd)

    async def finish_filling(self) -> None:
        """Takes the mark away that keeps a store which is being filled from being served. Durable when it returns."""
        self._mark("DELETE FROM meta WHERE name = ?", marks.FILLING)

    async def mark_moved(self, where: str) -> None:
        """From now on nobody serves this store; `where` its fleet is."""
        self._mark("INSERT OR REPLACE INTO meta VALUES (?, ?)", marks.MOVED, where)

    def _mark(self, statement: str, *values: str) -> None:
        try:
            self._reader.execute(statement, values)
        except sqlite3.Error as failure:
            raise Unavailable(f"{self._path}: {failure}") from failure

    def limit_pages(self, pages: int) -> None:
        """Lets the database file grow to `pages` pages at most, from the next commit on: a disk quota."""
        self._groups.limit_pages(pages)

    # -- reading ----------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the store is closed")

    def _history(self, ranges: Sequence[tuple[str, str]], after: int) -> tuple[list[WatchBatch], int]:
        """Batches of the revisions in (after, now]. Raises Compacted."""
        self._check_open()
        # Deletions made at the oldest revision itself are forgotten.
        if after < self._oldest:
            raise Compacted(after, self._oldest)
        reached = self._revision
        rows = self._reader.execute(
            "SELECT key, value, created, revision, lease FROM kv WHERE revision > ? AND revision <= ? ORDER BY revision",
            (after, reached),
        )
        batches: list[WatchBatch] = []
        for key, value, created, rev, lease in rows:
            kv = None if value is None else KeyValue(key, value, created, rev, lease)
            event = Event(key, kv, latest(self._reader, key, rev - 1))
            if not select((event,), ranges):
                continue
            if batches and batches[-1].revision == rev:
                batches[-1] = WatchBatch(rev, (*batches[-1].events, event))
            else:
                batches.append(WatchBatch(rev, (event,)))
        return batches, reached

    # -- what was committed --------------------------------------------------------------------------------------

    def _deliver(self, group: Sequence[Waiting], revision: int, failure: StoreError | None) -> None:
        self._revision = revision
        if failure is None and (batches := [w.batch for w in group if w.batch is not None]):
            for batch in batches:
                self._heads.committed(batch.events)
            self._watchers.publish(batches)
        for waiting in group:
            if waiting.answer.cancelled():
                continue
            if failure is not None:
                waiting.answer.set_exception(failure)
            elif waiting.failure is not None:
                waiting.answer.set_exception(waiting.failure)
            else:
                assert waiting.result is not None
                waiting.answer.set_result(waiting.result)


def _connect(path: str, busy_s: float = 30.0) -> sqlite3.Connection:
    """`busy_s`: how long a statement waits for another program that writes."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=busy_s)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA cache_size=-4096")
    return connection


class SqliteReader:
    """The store of a data directory as it is when opened, read beside the hub that has it locked: `hub.transfer.Pages`.
    One SQLite snapshot, so that the hub's compaction takes nothing away from it."""

    def __init__(self, connection: sqlite3.Connection, identity: StoreIdentity) -> None:
        self._connection = connection
        self.identity = identity
        self._revision = _read_bounds(connection)[0]

    @classmethod
    async def open(cls, directory: str) -> "SqliteReader":
        """Raises Absent, FormatUnknown, Unavailable, and what `marks.check` does."""
        path = os.path.join(directory, "store.db")
        _check_exists(path)
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite3.connect(path, isolation_level=None, timeout=30)
            connection.execute("PRAGMA query_only=ON")
            connection.execute("BEGIN")
            _check_format(connection)
            meta = dict(connection.execute("SELECT name, value FROM meta"))
            if not meta:
                raise Absent(f"{path} holds no fleet yet")
            marks.check(meta, directory, marks.SERVE)
            if "lease" not in _columns(connection):
                raise Unavailable(f"{path} is of an older hub: start this one on it once, then try again")
            return cls(connection, _identity_of(meta))
        except (sqlite3.Error, StoreError) as failure:
            if connection is not None:
                connection.close()
            if isinstance(failure, StoreError):
                raise
            raise Unavailable(f"{path}: {failure}") from failure

    async def revision(self) -> int:
        return self._revision

    async def page(
        self, start: str, end: str, *, revision: int | None = None, limit: int = 500, stale: bool = False
    ) -> Page:
        """Of the snapshot's revision, whichever is asked for."""
        at = self._revision
        try:
            rows = self._connection.execute(_PAGE, (start, end, at, at, limit + 1)).fetchall()
        except sqlite3.Error as failure:
            raise Unavailable(f"the store cannot be read: {failure}") from failure
        return Page(
            [KeyValue(*row) for row in rows[:limit]], at, rows[limit][0] if len(rows) > limit else None
        )

    async def close(self) -> None:
        self._connection.close()


def _check_exists(path: str) -> None:
    if not os.path.exists(path):
        raise Absent(f"{path} does not exist: no hub has kept a fleet in this data directory")


def _columns(connection: sqlite3.Connection) -> set[str]:
    return {row[1] for row in connection.execute("PRAGMA table_info(kv)")}


def _identity_of(meta: dict[str, str]) -> StoreIdentity:
    return StoreIdentity(meta["uuid"], int(meta["generation"]), int(meta["format"]), int(meta["slots"]))


def _open_identity(
    connection: sqlite3.Connection, directory: str, slots: int, opening: marks.Opening
) -> StoreIdentity:
    _check_format(connection)
    connection.executescript(_SCHEMA)
    connection.execute("BEGIN IMMEDIATE")
    meta = dict(connection.execute("SELECT name, value FROM meta"))
    if not meta:
        made = opening.fill or StoreIdentity(str(uuid.uuid4()), 1, FORMAT_VERSION, slots)
        meta = {
            "uuid": made.uuid,
            "generation": str(made.generation),
            "format": str(made.format),
            "slots": str(made.slots),
            **({marks.FILLING: "true"} if opening.fill else {}),
        }
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    marks.check(meta, directory, opening)
    # Data of before leases gets the column; an older hub goes on reading and writing it.
    if "lease" not in _columns(connection):
        connection.execute("ALTER TABLE kv ADD COLUMN lease INTEGER NOT NULL DEFAULT 0")
    connection.execute(_LEASES)
    ended = [Delete(key) for (key,) in connection.execute(LEASED, (0,)).fetchall()]
    write(State(connection), ended, _read_bounds(connection)[0], {})
    connection.execute("COMMIT")
    return _identity_of(meta)


def _check_format(connection: sqlite3.Connection) -> None:
    """Raises FormatUnknown, before anything of ours is written into what a newer hub has made."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone() is None:
        return
    row = connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
    if row is not None and int(row[0]) > FORMAT_VERSION:
        raise FormatUnknown(
            f"the data has format {row[0]}, this hub knows up to {FORMAT_VERSION}: start a newer hub on it"
        )


def _read_bounds(connection: sqlite3.Connection) -> tuple[int, int]:
    newest = connection.execute("SELECT max(revision) FROM kv").fetchone()[0] or 1
    oldest = connection.execute("SELECT value FROM meta WHERE name = 'oldest'").fetchone()
    head = connection.execute("SELECT value FROM meta WHERE name = 'head'").fetchone()
    return max(newest, int(head[0]) if head else 1), int(oldest[0]) if oldest else 1
