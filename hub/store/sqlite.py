"""The store of one machine: SQLite in WAL mode, one writer thread, group commit.

All transactions that wait are carried out in one SQLite transaction and answered together after its fsync
(synchronous=FULL), so that durability costs one fsync for many. Reads run on a connection of their own and see what
has been committed. History is a row for each version of a key.

Invariants: `txn` returns after the fsync; watchers hear of a revision only after it; a failed commit (full disk)
answers every waiter with Unavailable and changes nothing in memory.
"""

import asyncio
import fcntl
import logging
import os
import queue
import sqlite3
import threading
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from hub.store.base import (
    FORMAT_VERSION,
    Ambiguous,
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
from hub.store.watchers import Watchers, select

log = logging.getLogger(__name__)

GROUP_MAX = 256
"""Transactions of one group commit."""
QUEUE_MAX = 20_000
"""Transactions that may wait; more are answered Unavailable."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kv (
  key TEXT NOT NULL, revision INTEGER NOT NULL, created INTEGER NOT NULL, value BLOB,
  PRIMARY KEY (key, revision)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS kv_revision ON kv (revision);
"""
_LATEST = (
    "SELECT value, created, revision FROM kv WHERE key = ? AND revision <= ? ORDER BY revision DESC LIMIT 1"
)
_PAGE = """
SELECT key, value, created, revision FROM kv AS v
WHERE key >= ? AND key < ? AND revision <= ? AND value IS NOT NULL
  AND revision = (SELECT max(revision) FROM kv WHERE key = v.key AND revision <= ?)
ORDER BY key LIMIT ?
"""


class DirectoryLocked(StoreError):
    """Another hub runs on this data directory."""


class DirectoryUnusable(StoreError):
    """The data directory cannot be made or written."""


@dataclass(slots=True)
class _Waiting:
    """A transaction on its way through the writer thread."""

    compares: Sequence[Compare]
    ops: Sequence[Put | Delete]
    answer: "asyncio.Future[TxnResult]"
    result: TxnResult | None = None
    batch: WatchBatch | None = None


def lock_directory(directory: str) -> int:
    """Takes the data directory for this process; returns the descriptor that holds the lock until it is closed.
    Raises DirectoryLocked, DirectoryUnusable."""
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        fd = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as failure:
        why = "it is a file" if isinstance(failure, FileExistsError) else failure.strerror
        raise DirectoryUnusable(
            f"cannot use the data directory {directory}: {why}; correct that, or set data_dir to another"
        ) from failure
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as held:
        pid = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise DirectoryLocked(
            f"{directory} is in use by another hub (pid {pid}); stop it, or give this one its own --data-dir"
        ) from held
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


class SqliteStore:
    """See `hub.store.base.Store`. Make one with `open`, on the event loop that will use it."""

    def __init__(self, path: str, lock_fd: int, reader: sqlite3.Connection, identity: StoreIdentity) -> None:
        self._path = path
        self._lock_fd = lock_fd
        self._reader = reader
        self._identity = identity
        self._loop = asyncio.get_running_loop()
        self._watchers = Watchers()
        self._queue: queue.Queue[_Waiting | int | None] = queue.Queue(QUEUE_MAX)
        self._revision, self._oldest = _read_bounds(reader)
        self._closed = False
        self._pages_max = 0
        self._failing = False
        self.commits = 0
        """Group commits so far."""
        self._thread = threading.Thread(target=self._write_loop, name="sqlite writer", daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, directory: str, *, slots: int = 1024) -> "SqliteStore":
        """Opens or makes the store in `directory` (0700, locked). `slots` counts at the first start only. Raises
        DirectoryLocked, DirectoryUnusable, FormatUnknown, Unavailable."""
        lock_fd = lock_directory(directory)
        path = os.path.join(directory, "store.db")
        try:
            connection = _connect(path)
            os.chmod(path, 0o600)
            return cls(path, lock_fd, connection, _open_identity(connection, slots))
        except sqlite3.Error as failure:
            os.close(lock_fd)
            raise Unavailable(f"{path}: {failure}") from failure
        except StoreError:
            os.close(lock_fd)
            raise

    @property
    def identity(self) -> StoreIdentity:
        return self._identity

    async def revision(self) -> int:
        return self._revision

    async def get(self, key: str) -> KeyValue | None:
        self._check_open()
        return _latest(self._reader, key, self._revision)

    async def page(self, start: str, end: str, *, revision: int | None = None, limit: int = 500) -> Page:
        self._check_open()
        at = self._revision if revision is None else revision
        if at > self._revision:
            raise FutureRevision(f"revision {at} is not reached yet, the store is at {self._revision}")
        if at < self._oldest:
            raise Compacted(at, self._oldest)
        rows = self._reader.execute(_PAGE, (start, end, at, at, limit + 1)).fetchall()
        items = [KeyValue(key, value, created, rev) for key, value, created, rev in rows[:limit]]
        return Page(items, at, rows[limit][0] if len(rows) > limit else None)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        self._check_open()
        check_txn(compares, ops)
        waiting = _Waiting(compares, ops, self._loop.create_future())
        try:
            self._queue.put_nowait(waiting)
        except queue.Full:
            raise Unavailable(f"more than {QUEUE_MAX} transactions wait for the disk; retry later") from None
        return await waiting.answer

    def watch(self, ranges: Sequence[tuple[str, str]], after: int) -> AsyncIterator[WatchBatch]:
        async def replay(start: int) -> tuple[list[WatchBatch], int]:
            return self._history(ranges, start)

        return self._watchers.stream(ranges, after, replay)

    async def compact(self, revision: int) -> None:
        self._check_open()
        if revision > self._revision:
            raise FutureRevision(f"revision {revision} is not reached yet, the store is at {self._revision}")
        if revision > self._oldest:
            self._oldest = revision
            self._queue.put_nowait(revision)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._watchers.close()
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._reader.close()
        os.close(self._lock_fd)

    def limit_pages(self, pages: int) -> None:
        """Lets the database file grow to `pages` pages at most, from the next commit on: a disk quota."""
        self._pages_max = pages

    # -- reading ----------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the store is closed")

    def _history(self, ranges: Sequence[tuple[str, str]], after: int) -> tuple[list[WatchBatch], int]:
        """Batches of the revisions in (after, now]. Raises Compacted."""
        self._check_open()
        if after < self._oldest - 1:
            raise Compacted(after, self._oldest)
        reached = self._revision
        rows = self._reader.execute(
            "SELECT key, value, created, revision FROM kv WHERE revision > ? AND revision <= ? ORDER BY revision",
            (after, reached),
        )
        batches: list[WatchBatch] = []
        for key, value, created, rev in rows:
            kv = None if value is None else KeyValue(key, value, created, rev)
            event = Event(key, kv, _latest(self._reader, key, rev - 1))
            if not select((event,), ranges):
                continue
            if batches and batches[-1].revision == rev:
                batches[-1] = WatchBatch(rev, (*batches[-1].events, event))
            else:
                batches.append(WatchBatch(rev, (event,)))
        return batches, reached

    # -- the writer thread ------------------------------------------------------------------------------------

    def _write_loop(self) -> None:
        connection = _connect(self._path)
        revision = self._revision
        try:
            while True:
                first = self._queue.get()
                if first is None:
                    return
                if isinstance(first, int):
                    self._compact_now(connection, first)
                    continue
                group, rest = self._gather(first)
                revision = self._commit(connection, group, revision)
                if rest is None:
                    return
                if isinstance(rest, int):
                    self._compact_now(connection, rest)
        finally:
            connection.close()

    def _gather(self, first: _Waiting) -> "tuple[list[_Waiting], _Waiting | int | None]":
        """What waits, up to GROUP_MAX; and what ended the group (`first` again where nothing did)."""
        group = [first]
        while len(group) < GROUP_MAX:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return group, first
            if not isinstance(item, _Waiting):
                return group, item
            group.append(item)
        return group, first

    def _commit(self, connection: sqlite3.Connection, group: list[_Waiting], revision: int) -> int:
        """Carries out the group in one SQLite transaction; returns the new revision (the old one when it failed)."""
        reached = revision
        committing = False
        try:
            if self._pages_max:
                connection.execute(f"PRAGMA max_page_count={int(self._pages_max)}")
            connection.execute("BEGIN IMMEDIATE")
            for waiting in group:
                reached = _carry_out(connection, waiting, reached)
            committing = True
            connection.execute("COMMIT")
        except sqlite3.Error as failure:
            # In WAL mode the mark of a commit is written last: where there was no room, there is none.
            full = getattr(failure, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            certain = _roll_back(connection) or full
            answer: StoreError
            if certain or not committing:
                answer = Unavailable(
                    f"nothing was written: {failure} ({self._path}); free some space and retry"
                )
            else:
                answer = Ambiguous(
                    f"the commit's outcome is unknown: {failure} ({self._path}); read before trying again"
                )
            if not self._failing:
                self._failing = True
                log.error("writes fail: %s", answer)
            self._answer(group, revision, answer)
            return revision
        if self._failing:
            self._failing = False
            log.info("writes succeed again")
        self.commits += 1
        self._answer(group, reached, None)
        return reached

    def _answer(self, group: list[_Waiting], revision: int, failure: StoreError | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, group, revision, failure)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    def _deliver(self, group: list[_Waiting], revision: int, failure: StoreError | None) -> None:
        self._revision = revision
        for waiting in group:
            if failure is None and waiting.batch is not None:
                self._watchers.publish(waiting.batch)
            if waiting.answer.cancelled():
                continue
            if failure is not None:
                waiting.answer.set_exception(failure)
            else:
                assert waiting.result is not None
                waiting.answer.set_result(waiting.result)

    def _compact_now(self, connection: sqlite3.Connection, revision: int) -> None:
        """Drops superseded versions up to `revision`. A failure leaves history longer than needed until the next one."""
        try:
            connection.execute("BEGIN IMMEDIATE")
            # Else a deletion of the newest tombstone would let a restart count revisions again.
            head = connection.execute("SELECT max(revision) FROM kv").fetchone()[0] or 1
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('head', ?)", (str(max(head, revision)),))
            connection.execute(
                "DELETE FROM kv WHERE revision <= ?1 AND (value IS NULL OR EXISTS (SELECT 1 FROM kv AS later"
                " WHERE later.key = kv.key AND later.revision > kv.revision AND later.revision <= ?1))",
                (revision,),
            )
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('oldest', ?)", (str(revision),))
            connection.execute("COMMIT")
        except sqlite3.Error as failure:
            _roll_back(connection)
            log.warning("old history stays in %s for now: %s", self._path, failure)


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA cache_size=-4096")
    return connection


def _open_identity(connection: sqlite3.Connection, slots: int) -> StoreIdentity:
    _check_format(connection)
    connection.executescript(_SCHEMA)
    connection.execute("BEGIN IMMEDIATE")
    meta = dict(connection.execute("SELECT name, value FROM meta"))
    if not meta:
        meta = {
            "uuid": str(uuid.uuid4()),
            "generation": "1",
            "format": str(FORMAT_VERSION),
            "slots": str(slots),
        }
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    connection.execute("COMMIT")
    return StoreIdentity(meta["uuid"], int(meta["generation"]), int(meta["format"]), int(meta["slots"]))


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


def _latest(connection: sqlite3.Connection, key: str, revision: int) -> KeyValue | None:
    row = connection.execute(_LATEST, (key, revision)).fetchone()
    if row is None or row[0] is None:
        return None
    return KeyValue(key, row[0], row[1], row[2])


def _carry_out(connection: sqlite3.Connection, waiting: _Waiting, revision: int) -> int:
    """One transaction of the group, inside the open SQLite transaction; returns the revision that it reached."""
    waiting.batch = None
    current = tuple(_latest(connection, c.key, revision) for c in waiting.compares)
    pairs = zip(current, waiting.compares, strict=True)
    if not all((kv.mod_revision if kv else 0) == c.mod_revision for kv, c in pairs):
        waiting.result = TxnResult(False, revision, current)
        return revision
    events: list[Event] = []
    for op in waiting.ops:
        prev = _latest(connection, op.key, revision)
        if isinstance(op, Put):
            created = prev.create_revision if prev else revision + 1
            kv: KeyValue | None = KeyValue(op.key, op.value, created, revision + 1)
            row: tuple[str, int, int, bytes | None] = (op.key, revision + 1, created, op.value)
        elif prev is None:
            continue
        else:
            kv, row = None, (op.key, revision + 1, prev.create_revision, None)
        connection.execute("INSERT INTO kv (key, revision, created, value) VALUES (?, ?, ?, ?)", row)
        events.append(Event(op.key, kv, prev))
    if events:
        revision += 1
        waiting.batch = WatchBatch(revision, tuple(events))
    waiting.result = TxnResult(True, revision)
    return revision


def _roll_back(connection: sqlite3.Connection) -> bool:
    """True when it is certain that nothing of the transaction remains."""
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
            return True
        return False
    except sqlite3.Error:
        return False
