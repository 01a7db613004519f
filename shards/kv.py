"""The contract of every store (`memory`, `sqlite`, `etcd`): values, operations, errors.

A store is a map of keys to bytes with one revision that every successful writing transaction raises by one. A
transaction's puts and deletes all carry its revision. History is kept until `compact`, so that pages of one list
and watches from the past agree with each other.

Invariants: a transaction is durable when `txn` returns. A watch yields every revision after its start, in order,
each whole and once. What a read without revision returns is not older than any transaction that had returned,
unless it is `stale`.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

TXN_OPS_MAX = 128
"""Compares, and puts plus deletes, of one transaction: etcd's own default limit."""
VALUE_BYTES_MAX = 1_450_000
"""One value; etcd refuses requests of 1.5 MiB."""
FORMAT_VERSION = 1


class StoreError(Exception):
    """Base of all that a store raises."""


class Compacted(StoreError):
    """The revision asked for is older than the history that is kept: list again."""

    def __init__(self, wanted: int, oldest: int) -> None:
        super().__init__(f"revision {wanted} is too old: history starts at {oldest}; list again")
        self.wanted = wanted
        self.oldest = oldest


class FutureRevision(StoreError):
    """A revision that this store has not reached was asked for."""


class ValueTooLarge(StoreError):
    """A value above VALUE_BYTES_MAX, or more than TXN_OPS_MAX operations: nothing was written."""


class Unavailable(StoreError):
    """Nothing was written, and a later try may succeed: no quorum, a full disk, a closed store."""


class Ambiguous(StoreError):
    """The transaction may or may not have been carried out: read again before anything else."""


class LeaseGone(StoreError):
    """The lease has ended: nothing was written under it."""


class HistoryLost(StoreError):
    """The store answers at an older revision than it had shown: another history. Whoever cached it starts anew."""


class FormatUnknown(StoreError):
    """The data was written by a newer program: use that one, or restore a backup."""


class Unfinished(StoreError):
    """The store is half filled by a restore or a copy, which has to be finished before a hub serves it."""


class Unreadable(Unavailable):
    """A value is sealed under a key that was not given, or was changed. Nothing in its place is ever given out; whoever
    follows many values tries this one again, as after an outage, and goes on with the others."""


class Moved(StoreError):
    """The fleet has moved to another store: this one is not served any more."""


class Occupied(StoreError):
    """The store that is to be filled holds something else."""


class Absent(StoreError):
    """There is no fleet where one is to be read."""


class KeyValue(msgspec.Struct, frozen=True, gc=False):
    """`create_revision` is that of the put that made the key, `mod_revision` that of the last one. `lease`: the lease
    that the key goes away with, 0 without one."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


class Compare(msgspec.Struct, frozen=True, gc=False):
    """True when `key`'s mod revision equals `mod_revision`; 0 means: the key does not exist."""

    key: str
    mod_revision: int


class Put(msgspec.Struct, frozen=True, gc=False):
    """`lease`: of `Store.grant`; the key goes away when it ends. 0: the key stays."""

    key: str
    value: bytes
    lease: int = 0


class Delete(msgspec.Struct, frozen=True, gc=False):
    key: str


class TxnResult(msgspec.Struct, frozen=True, gc=False):
    """`revision` is the transaction's when it succeeded, else the store's. On failure `current` has the present
    state of each compared key, in the order of the compares (None: absent)."""

    succeeded: bool
    revision: int
    current: tuple[KeyValue | None, ...] = ()


class Page(msgspec.Struct, frozen=True, gc=False):
    """Keys in ascending order at `revision`. `next_key` is where the following page starts, None at the end."""

    items: list[KeyValue]
    revision: int
    next_key: str | None


class Event(msgspec.Struct, frozen=True, gc=False):
    """`kv` after a put; for a delete `kv` is None. `prev` is the state before, None where the key is new or the
    history before it is compacted."""

    key: str
    kv: KeyValue | None
    prev: KeyValue | None


class WatchBatch(msgspec.Struct, frozen=True, gc=False):
    """All events of `revision` that lie in the watched ranges; empty when it only tells progress through it."""

    revision: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """uuid: of this data, made once; generation: raised by a restore; slots: of the fleet, fixed at first start."""

    uuid: str
    generation: int
    format: int
    slots: int


class Store(Protocol):
    """See the module's docstring for what all implementations promise."""

    @property
    def identity(self) -> StoreIdentity: ...

    async def revision(self) -> int:
        """The store's present revision, linearizable."""
        ...

    async def get(self, key: str, *, stale: bool = False) -> KeyValue | None:
        """`stale`: what one member of the store holds, which may be older than what was written: for when there is no
        quorum. A store of one process ignores it."""
        ...

    async def get_many(self, keys: Sequence[str]) -> list[KeyValue | None]:
        """All as they are in one state of the store, in the order of `keys`, of which there are 100 at most."""
        ...

    async def page(
        self, start: str, end: str, *, revision: int | None = None, limit: int = 500, stale: bool = False
    ) -> Page:
        """Keys in [start, end). `stale`: as for `get`. Raises Compacted, FutureRevision."""
        ...

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        """Carries out `ops` if all compares hold. A key may stand in one op only. A delete of an absent key is a
        no-op. Raises ValueTooLarge, Unavailable, Ambiguous."""
        ...

    def watch(
        self, ranges: Sequence[tuple[str, str]], after: int, *, patient: bool = False
    ) -> AsyncIterator[WatchBatch]:
        """Batches of revisions > `after`, then live. Raises Compacted from the iterator, Unavailable when the store
        closes; a consumer that falls more than the store's bound behind gets Compacted as well. `patient`: progress without
        events may be told some tenths of a second late, so that a commit need not wake whom it does not concern."""
        ...

    async def grant(self, ttl_s: float) -> int:
        """A new lease that ends `ttl_s` after its last keepalive; its id, never 0. Raises Unavailable, Ambiguous."""
        ...

    async def keepalive(self, lease: int) -> float:
        """Prolongs a lease; the seconds that it has now, 0.0 when it has ended. Raises Unavailable: nothing is known."""
        ...

    async def revoke(self, lease: int) -> None:
        """Ends a lease, and with it its keys, in one revision. An ended one is no error."""
        ...

    async def compact(self, revision: int) -> None:
        """Forgets history before `revision`; present values stay."""
        ...

    async def close(self) -> None: ...


def prefix_end(prefix: str) -> str:
    """The end of the range of all keys that start with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


async def key_changed(store: Store, key: str, revision: int) -> None:
    """Returns once `key` is not what it was at its mod revision `revision` (0: it did not exist). Raises what the store does.

    Watches from the present on: from a revision of long ago etcd goes through all that was written since, for seconds in a
    large fleet, in which nobody is answered; and one that is compacted would be no answer."""
    span = (key, key + "\0")
    while True:
        page = await store.page(*span, limit=1)
        if (page.items[0].mod_revision if page.items else 0) != revision:
            return
        try:
            async for batch in store.watch([span], page.revision):
                if batch.events:
                    return
        except Compacted:
            continue  # slower than the history lasts: looked at anew


def check_txn(compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> None:
    """The bounds that hold in every store. Raises ValueTooLarge."""
    if len(compares) > TXN_OPS_MAX or len(ops) > TXN_OPS_MAX:
        raise ValueTooLarge(
            f"{len(compares)} compares and {len(ops)} operations; at most {TXN_OPS_MAX} of each"
        )
    seen: set[str] = set()
    for op in ops:
        if op.key in seen:
            raise ValueError(f"key {op.key!r} stands in more than one operation")
        seen.add(op.key)
        if isinstance(op, Put) and len(op.value) > VALUE_BYTES_MAX:
            raise ValueTooLarge(f"{op.key}: {len(op.value)} bytes; at most {VALUE_BYTES_MAX} are stored")
