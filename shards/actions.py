"""What a `shards.membership.Membership` wants done: towards the store, and towards who acts for units. [pure]"""

from dataclasses import dataclass
from enum import Enum

from shards.kv import Compare, Delete, Put
from shards.ownership import Owned, Unit


class Failure(Enum):
    """How a transaction ended without a result: nothing was written, nobody knows, its lease is over."""

    UNAVAILABLE = "unavailable"
    AMBIGUOUS = "ambiguous"
    LEASE_GONE = "lease gone"


@dataclass(frozen=True, slots=True)
class Grant:
    """Answer with `granted` or `grant_failed`."""

    ttl_s: float


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Answer with `kept` or `keepalive_failed`."""

    lease: int


@dataclass(frozen=True, slots=True)
class Txn:
    """Answer with `txn_done`."""

    number: int
    compares: tuple[Compare, ...]
    ops: tuple[Put | Delete, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """A snapshot of all that the view covers, linearizable and begun after this action: answer with `read_done`."""

    number: int


@dataclass(frozen=True, slots=True)
class Revoke:
    """The lease is given up; nothing is answered."""

    lease: int


@dataclass(frozen=True, slots=True)
class Gained:
    units: tuple[Owned, ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """Answer with `drained`."""

    units: tuple[Unit, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    units: tuple[Unit, ...]


@dataclass(frozen=True, slots=True)
class Suspended:
    pass


@dataclass(frozen=True, slots=True)
class Resumed:
    units: tuple[Unit, ...]


@dataclass(frozen=True, slots=True)
class RoutesChanged:
    units: tuple[Unit, ...]


@dataclass(frozen=True, slots=True)
class Stopped:
    """Everything is handed over or given up: nothing more will come."""


Action = (
    Grant
    | KeepAlive
    | Txn
    | Read
    | Revoke
    | Gained
    | Drain
    | Lost
    | Suspended
    | Resumed
    | RoutesChanged
    | Stopped
)
