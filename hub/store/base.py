"""The contract of every store (`memory`, `sqlite`, `etcd`): values, operations, errors.

A store is a map of keys to bytes with one revision that every successful writing transaction raises by one. A
transaction's puts and deletes all carry its revision. History is kept until `compact`, so that pages of one list
and watches from the past agree with each other.

Invariants: a transaction is durable when `txn` returns. A watch yields every revision after its start, in order,
each whole and once. What a read without revision returns is not older than any transaction that had returned.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

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


class FormatUnknown(StoreError):
    """The data was written by a newer program: use that one, or restore a backup."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """`create_revision` is that of the put that made the key, `mod_revision` that of the last one."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Compare:
    """True when `key`'s mod revision equals `mod_revision`; 0 means: the key does not exist."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    key: str


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`revision` is the transaction's when it succeeded, else the store's. On failure `current` has the present
    state of each compared key, in the order of the compares (None: absent)."""

    succeeded: bool
    revision: int
    current: tuple[KeyValue | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """Keys in ascending order at `revision`. `next_key` is where the following page starts, None at the end."""

    items: list[KeyValue]
    revision: int
    next_key: str | None


@dataclass(frozen=True, slots=True)
class Event:
    """`kv` after a put; for a delete `kv` is None. `prev` is the state before, None where the key is new or the
    history before it is compacted."""

    key: str
    kv: KeyValue | None
    prev: KeyValue | None


@dataclass(frozen=True, slots=True)
class WatchBatch:
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

    async def get(self, key: str) -> KeyValue | None: ...

    async def page(self, start: str, end: str, *, revision: int | None = None, limit: int = 500) -> Page:
        """Keys in [start, end). Raises Compacted, FutureRevision."""
        ...

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        """Carries out `ops` if all compares hold. A key may stand in one op only. A delete of an absent key is a
        no-op. Raises ValueTooLarge, Unavailable, Ambiguous."""
        ...

    def watch(self, ranges: Sequence[tuple[str, str]], after: int) -> AsyncIterator[WatchBatch]:
        """Batches of revisions > `after`, then live. Raises Compacted from the iterator, Unavailable when the store
        closes; a consumer that falls more than the store's bound behind gets Compacted as well."""
        ...

    async def compact(self, revision: int) -> None:
        """Forgets history before `revision`; present values stay."""
        ...

    async def close(self) -> None: ...


def prefix_end(prefix: str) -> str:
    """The end of the range of all keys that start with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


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
