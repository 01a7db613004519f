"""The writing half of the SQLite store: group commit, its statements on the loop and its fsync in a thread.

All transactions that wait when a turn of the loop begins are carried out in one SQLite transaction on the loop's own thread, at
some 10 us a statement, and only the COMMIT, which waits for the disk, is handed to a thread. A thread that ran the statements
would give the interpreter's lock away and wait for it again at every one of them: milliseconds each beside a busy loop. What
comes meanwhile is the next group.

Invariants: one group is under way at a time, and the connection is used by the loop or by the thread, never by both; nobody is
answered before the fsync; what a failed group had written is rolled back.

Bounds: GROUP_MAX transactions, or about GROUP_OPS_MAX statements and GROUP_BYTES_MAX bytes, of one group, which is how long the
loop is held up; QUEUE_MAX transactions that wait.
"""

import asyncio
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Final

from hub.store.heads import Heads
from shards.kv import (
    Ambiguous,
    Compare,
    Delete,
    Event,
    KeyValue,
    LeaseGone,
    Put,
    StoreError,
    TxnResult,
    Unavailable,
    WatchBatch,
)

log = logging.getLogger(__name__)

GROUP_MAX: Final = 256
"""Transactions of one group commit."""
GROUP_OPS_MAX: Final = 1024
"""Compares, puts and deletes after which no further transaction joins a group: 10 ms of the loop."""
GROUP_BYTES_MAX: Final = 2 << 20
"""Bytes of values after which no further transaction joins a group."""
QUEUE_MAX: Final = 20_000
"""Transactions that may wait; more are answered Unavailable."""
BUSY_MS: Final = 30_000
"""How long the thread waits for another program that writes the file, whatever it is doing there."""

LEASED: Final = """
SELECT key FROM kv AS v WHERE lease != 0 AND (lease = ?1 OR ?1 = 0) AND value IS NOT NULL
  AND revision = (SELECT max(revision) FROM kv WHERE key = v.key)
"""
"""Keys that stand under a lease; 0: under any."""
_LATEST: Final = "SELECT value, created, revision, lease FROM kv WHERE key = ? AND revision <= ? ORDER BY revision DESC LIMIT 1"


@dataclass(slots=True)
class Waiting:
    """A transaction on its way to the disk."""

    compares: Sequence[Compare]
    ops: Sequence[Put | Delete]
    answer: "asyncio.Future[TxnResult]"
    revoked: int = 0
    """A lease whose keys are to be deleted, in place of `ops`."""
    result: TxnResult | None = None
    batch: WatchBatch | None = None
    failure: StoreError | None = None


Committed = Callable[[Sequence[Waiting], int, StoreError | None], None]
"""Told on the loop of a group, the revision that the store has now, and why nothing (or nobody knows what) was written."""


class Groups:
    """See the module. To be made on the loop. `connection` belongs to it from here on; `leases`: those that live."""

    def __init__(
        self,
        path: str,
        connection: sqlite3.Connection,
        revision: int,
        leases: Container[int],
        heads: Heads,
        committed: Committed,
    ) -> None:
        self._path = path
        self._connection = connection
        self._revision = revision
        self._leases = leases
        self._heads = heads
        self._committed = committed
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Waiting | int] = deque()
        """Transactions, and revisions to compact at."""
        self._busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._pages_max = 0
        self._failing = False
        self.commits = 0
        """Groups so far."""
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sqlite commits", daemon=True)
        self._thread.start()

    def submit(self, waiting: Waiting) -> None:
        """`waiting.answer` gets its result after the fsync. Raises Unavailable where QUEUE_MAX wait."""
        if len(self._waiting) >= QUEUE_MAX:
            raise Unavailable(f"more than {QUEUE_MAX} transactions wait for the disk; retry later")
        self._waiting.append(waiting)
        self._wake()

    def compact(self, revision: int) -> None:
        """Drops superseded versions up to `revision`, behind what waits already."""
        self._waiting.append(revision)
        self._wake()

    def limit_pages(self, pages: int) -> None:
        """See `SqliteStore`."""
        self._pages_max = pages

    async def close(self) -> None:
        """Returns when all that waited is on the disk, and answered."""
        await self._idle.wait()
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        self._connection.close()

    # -- on the loop ------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._busy:
            self._busy = True
            self._idle.clear()
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        """Begins whatever is first."""
        if not self._waiting:
            self._busy = False
            self._idle.set()
        elif isinstance(first := self._waiting[0], int):
            self._waiting.popleft()
            self._jobs.put(partial(self._compact, first))
        else:
            self._begin(self._gather())

    def _gather(self) -> list[Waiting]:
        group: list[Waiting] = []
        ops = size = 0
        while self._waiting and len(group) < GROUP_MAX and ops < GROUP_OPS_MAX and size < GROUP_BYTES_MAX:
            item = self._waiting[0]
            if isinstance(item, int):
                break
            self._waiting.popleft()
            group.append(item)
            ops += len(item.compares) + len(item.ops)
            size += sum([len(op.value) for op in item.ops if isinstance(op, Put)])
        return group

    def _begin(self, group: list[Waiting]) -> None:
        try:
            reached = self._carry_out(group)
        except Exception as broken:
            # The low byte is the error, the rest tells its sort.
            if getattr(broken, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                # Some other program writes the file. It is waited for in the thread.
                self._jobs.put(partial(self._carry_out_there, group))
            else:
                self._done(group, self._revision, self._failed(broken, committing=False))
            return
        self._jobs.put(partial(self._commit, group, reached))

    def _done(self, group: list[Waiting], revision: int, failure: StoreError | None) -> None:
        self._revision = revision
        if failure is None:
            self.commits += 1
            if self._failing:
                self._failing = False
                log.info("writes succeed again")
        elif not self._failing:
            self._failing = True
            log.error("writes fail: %s", failure)
        # Whoever was answered may ask for its next transaction before the next group begins.
        self._committed(group, revision, failure)
        self._loop.call_soon(self._next)

    # -- where the connection is, on the loop or in the thread ------------------------------------------------------

    def _carry_out(self, group: list[Waiting]) -> int:
        """The statements of a group, up to the COMMIT; the revision that they reach. Raises sqlite3.Error."""
        if self._pages_max:
            self._connection.execute(f"PRAGMA max_page_count={int(self._pages_max)}")
        self._connection.execute("BEGIN IMMEDIATE")
        reached = self._revision
        state = State(self._connection, self._heads)
        for waiting in group:
            reached = _carry_out(state, waiting, reached, self._leases)
        return reached

    def _failed(self, failure: Exception, committing: bool) -> StoreError:
        """Rolls back; what is known now."""
        if not isinstance(failure, sqlite3.Error):
            # A value that SQLite does not take, for instance: a bug, which must not hold up all others for ever.
            log.error("a group of transactions was given up", exc_info=failure)
        # In WAL mode the mark of a commit is written last: where there was no room, there is none.
        full = getattr(failure, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        if _roll_back(self._connection) or full or not committing:
            return Unavailable(f"nothing was written: {failure} ({self._path}); free some space and retry")
        return Ambiguous(
            f"the commit's outcome is unknown: {failure} ({self._path}); read before trying again"
        )

    # -- in the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _back(self, step: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(step)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    def _commit(self, group: list[Waiting], reached: int) -> None:
        failure: StoreError | None = None
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as broken:
            failure, reached = self._failed(broken, committing=True), self._revision
        self._back(partial(self._done, group, reached, failure))

    def _carry_out_there(self, group: list[Waiting]) -> None:
        """All of a group, waiting for the file."""
        try:
            self._connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
            try:
                reached = self._carry_out(group)
            finally:
                self._connection.execute("PRAGMA busy_timeout=0")
        except Exception as broken:
            failure = self._failed(broken, committing=False)
            self._back(partial(self._done, group, self._revision, failure))
            return
        self._commit(group, reached)

    def _compact(self, revision: int) -> None:
        """A failure leaves history longer than needed until the next one."""
        connection = self._connection
        try:
            connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
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
            connection.execute("PRAGMA busy_timeout=0")
        except sqlite3.Error as failure:
            _roll_back(connection)
            log.warning("old history stays in %s for now: %s", self._path, failure)
        self._back(self._next)


def latest(connection: sqlite3.Connection, key: str, revision: int) -> KeyValue | None:
    """What a key held at a revision."""
    row = connection.execute(_LATEST, (key, revision)).fetchone()
    if row is None or row[0] is None:
        return None
    return KeyValue(key, *row)


class State:
    """What the keys hold inside an open transaction: what it has written, what was committed of late, what the database says."""

    def __init__(self, connection: sqlite3.Connection, heads: Heads | None = None) -> None:
        self.connection = connection
        self._heads = heads
        self._written: dict[str, KeyValue | None] = {}

    def get(self, key: str, revision: int) -> KeyValue | None:
        """As of `revision`, the newest."""
        if key in self._written:
            return self._written[key]
        known = self._heads.get(key) if self._heads is not None else None
        return known if known is not None else latest(self.connection, key, revision)

    def put(self, event: Event, revision: int) -> None:
        """Writes one event."""
        kv, prev = event.kv, event.prev
        self._written[event.key] = kv
        row: tuple[str, int, int, bytes | None, int]
        if kv is not None:
            row = (event.key, revision, kv.create_revision, kv.value, kv.lease)
        else:
            assert prev is not None  # what is not there is not deleted
            row = (event.key, revision, prev.create_revision, None, 0)
        self.connection.execute(
            "INSERT INTO kv (key, revision, created, value, lease) VALUES (?, ?, ?, ?, ?)", row
        )


def _carry_out(state: State, waiting: Waiting, revision: int, leases: Container[int]) -> int:
    """One transaction of the group, inside the open SQLite transaction; returns the revision that it reached."""
    waiting.batch = waiting.failure = None
    current = tuple([state.get(c.key, revision) for c in waiting.compares])
    pairs = zip(current, waiting.compares, strict=True)
    if not all((kv.mod_revision if kv else 0) == c.mod_revision for kv, c in pairs):
        waiting.result = TxnResult(False, revision, current)
        return revision
    ops = waiting.ops
    if waiting.revoked:
        ops = [Delete(key) for (key,) in state.connection.execute(LEASED, (waiting.revoked,)).fetchall()]
    for op in ops:
        if isinstance(op, Put) and op.lease and op.lease not in leases:
            waiting.failure = LeaseGone(
                f"{op.key}: its lease has ended: nothing was written; grant a new one"
            )
            return revision
    known = {c.key: kv for c, kv in zip(waiting.compares, current, strict=True)}
    events = write(state, ops, revision, known)
    if events:
        revision += 1
        waiting.batch = WatchBatch(revision, tuple(events))
    waiting.result = TxnResult(True, revision)
    return revision


def write(
    state: State,
    ops: Sequence[Put | Delete],
    revision: int,
    known: Mapping[str, KeyValue | None],
) -> list[Event]:
    """Writes `ops` as the revision after `revision`; the events of those that have an effect. `known`: what was read of some
    keys in the same transaction."""
    events: list[Event] = []
    for op in ops:
        prev = known[op.key] if op.key in known else state.get(op.key, revision)
        kv: KeyValue | None = None
        if isinstance(op, Put):
            created = prev.create_revision if prev else revision + 1
            kv = KeyValue(op.key, op.value, created, revision + 1, op.lease)
        elif prev is None:
            continue
        event = Event(op.key, kv, prev)
        state.put(event, revision + 1)
        events.append(event)
    return events


def _roll_back(connection: sqlite3.Connection) -> bool:
    """True when it is certain that nothing of the transaction remains."""
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
            return True
        return False
    except sqlite3.Error:
        return False
