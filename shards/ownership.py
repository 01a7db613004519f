"""What the other parts see of sharding: units, owners, routes. `shards.member` provides it, hubs and tests consume it.

A unit is what has one owner at a time: a slot (its number) or a role (its name). An owner acts for a unit only while
`fence(unit)` gives a fence: that is the inline check of design section 4, and belongs before every side effect; each
write carries the fence, so that the store refuses what slips through.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from shards.claims import Claim, Fence, SlotRecord

Unit = int | str
"""A slot's number, or a role's name."""

SCHEDULER = "scheduler"
CONTROLLERS = "controllers"
ROLES = (SCHEDULER, CONTROLLERS)


class MemberRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A replica as it registers itself, under its lease. `id`: its name, stable over restarts; `incarnation`: of this
    process. `edge`, `api`: addresses (host:port) that edges and clients can reach, "" where there are none. `ring`:
    lowest and highest ring version that it computes. `bus`: can it be reached over NATS. A draining member owns nothing
    new. `started`: unix seconds."""

    id: str
    incarnation: str
    weight: float = 1.0
    ring: tuple[int, int] = (1, 1)
    edge: str = ""
    api: str = ""
    bus: bool = False
    draining: bool = False
    version: str = ""
    started: float = 0.0


class OwnerRecord(msgspec.Struct, frozen=True):
    """The value of a unit's owner key."""

    member: str
    incarnation: str = ""
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Owned:
    """A unit that is ours: its claim, its fence, and all claims of the unit that are still kept."""

    unit: Unit
    claim: Claim
    fence: Fence
    record: SlotRecord


@dataclass(frozen=True, slots=True)
class Route:
    """Who owns a unit. `member` is its record, None when it is not known (yet, or any more)."""

    owner: OwnerRecord
    member: MemberRecord | None


class UnitKeys:
    """Store keys of members and units, below a cell's root (which ends in `/`)."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.members = root + "member/"
        self.slots = root + "slot/"
        self.roles = root + "role/"

    def member(self, id: str) -> str:
        return self.members + id

    def owner(self, unit: Unit) -> str:
        return self._unit(unit) + "/owner"

    def epoch(self, unit: Unit) -> str:
        return self._unit(unit) + "/epoch"

    def _unit(self, unit: Unit) -> str:
        return f"{self.slots}{unit:04d}" if isinstance(unit, int) else self.roles + unit


class Ownership(Protocol):
    """What this replica owns, and who owns the rest."""

    @property
    def slots(self) -> int:
        """Slots of the fleet."""
        ...

    def of(self, unit: Unit) -> Owned | None:
        """Our claim of the unit, also while suspended; None where it is not ours."""
        ...

    def fence(self, unit: Unit) -> Fence | None:
        """Our fence, while we may act: None where the unit is not ours, is draining to another owner and drained, or
        the deadline of our lease has passed (checked here, against the clock, at every call)."""
        ...

    @property
    def live(self) -> bool:
        """Is the deadline of our lease still ahead (checked against the clock at every call)?"""
        ...

    def route(self, unit: Unit) -> Route | None:
        """Who owns the unit, as last seen in the store; None: nobody."""
        ...

    @property
    def members(self) -> Mapping[str, MemberRecord]:
        """All registered members, by id."""
        ...

    def fence_lost(self, unit: Unit) -> None:
        """The store has refused a write of ours: another owner has claimed the unit. `fence` gives None from here on,
        and the listener is told `lost`."""
        ...


class Listener(Protocol):
    """Who acts for units: told by the member. All on the event loop. What `gained` or `drain` raises ends the hub."""

    async def gained(self, units: "list[Owned]") -> None:
        """These are ours from now on: load at a revision not older than the claim, then serve. Cancelled when they are
        lost meanwhile."""
        ...

    async def drain(self, units: list[Unit]) -> None:
        """These go to another owner: stop acting, flush; they are released when this returns. Bounded by the caller."""
        ...

    def lost(self, units: list[Unit]) -> None:
        """These are not ours any more (lease ended, fence lost, or drained and released)."""
        ...

    def suspended(self) -> None:
        """The deadline has passed: `fence` gives None for all until `resumed`, or `lost`."""
        ...

    def resumed(self, units: list[Unit]) -> None:
        """These are proved to be ours still; the rest was told to `lost`."""
        ...

    def routes_changed(self, units: list[Unit]) -> None:
        """Other members own these now, or nobody does."""
        ...
