"""What a member does about the wanted assignment: what to claim, what to drain, and who counts. [pure]

A unit moves in two steps that need no agreement: its owner drains and releases it once another counted member should
own it, and that one claims it once it is unowned. So a unit has no owner only between these, and batches keep that
short. A member that has just joined does not count yet, so one that comes and goes at once moves nothing; one that
leaves stops counting at once, because what it owned needs owners.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from shards.ownership import MemberRecord, Unit
from shards.ring import Ring

CLAIM_MAX = 60
"""Units of one claiming transaction: etcd allows 128 compares and 128 operations, a claim needs two of each."""
DRAIN_MAX = 24
"""Units being handed over at a time, from their drain to their claim by another: enough that a third of 1024 slots goes
in seconds on a busy machine, few enough that a joining member takes what several others release with two claims."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Units to claim and to drain now, roles first. Both empty: nothing to do until something changes."""

    claim: tuple[Unit, ...] = ()
    drain: tuple[Unit, ...] = ()


def plan(
    ring: Ring,
    owners: Mapping[Unit, str],
    held: Collection[Unit],
    *,
    own: str,
    claiming: Collection[Unit] = (),
    draining: Collection[Unit] = (),
    handed: int = 0,
    stopping: bool = False,
    claim_max: int = CLAIM_MAX,
    drain_max: int = DRAIN_MAX,
) -> Plan:
    """The next batches of the member `own`.

    `owners`: ids of present owners as last seen in the store, unowned units absent. `held`: units that this member
    owns. `claiming`, `draining`: what is under way; it counts against the batches and is not planned again. `handed`:
    how many are released and wait for their claim; they count against the drains. A stopping member claims nothing and
    drains everything, whether or not anybody else is there."""
    room = drain_max - len(draining) - handed
    if 2 * room < drain_max:
        # Filling every gap at once would make batches smaller and smaller, each with transactions of its own.
        room = 0
    leaving = (
        u for u in _ordered(held) if u not in draining and (stopping or ring.owner(u) not in (own, None))
    )
    drain = tuple(unit for unit, _ in zip(leaving, range(room), strict=False))
    if stopping:
        return Plan((), drain)
    room = max(0, claim_max - len(claiming))
    free = (
        u
        for u in _wanted(ring, own)
        if u not in owners and u not in held and u not in claiming and u not in draining
    )
    return Plan(tuple(unit for unit, _ in zip(free, range(room), strict=False)), drain)


def _wanted(ring: Ring, own: str) -> list[Unit]:
    roles: list[Unit] = sorted(role for role, owner in ring.roles.items() if owner == own)
    return roles + [slot for slot, owner in enumerate(ring.slots) if owner == own]


def _ordered(units: Collection[Unit]) -> list[Unit]:
    return sorted(units, key=lambda u: (isinstance(u, int), u if isinstance(u, int) else 0, str(u)))


class Attendance:
    """Which of the registered members count for the ring. Times are seconds on any clock that does not go back."""

    def __init__(self, own: str, holdoff_s: float) -> None:
        self._own = own
        self._holdoff_s = holdoff_s
        self._counts_at: dict[tuple[str, str], float] = {}
        self._members: dict[str, MemberRecord] = {}
        self._begun = False

    def update(self, members: Mapping[str, MemberRecord], now: float, *, unowned: bool = False) -> None:
        """All members that are registered now. `unowned`: nothing in the store has an owner.

        The others that the first call names were there before this one, and count at once. This one does so only when
        it is alone and nothing is owned: a fleet's first start should not wait."""
        counts_at: dict[tuple[str, str], float] = {}
        for id, record in members.items():
            key = (id, record.incarnation)
            at = self._counts_at.get(key)
            if at is None:
                at = now + self._holdoff_s
                if not self._begun and (id != self._own or (unowned and len(members) == 1)):
                    at = now
            counts_at[key] = at
        # A joiner registers before or after its first sight of the others: until it is there itself, all are older.
        self._begun = self._begun or self._own in members
        self._counts_at = counts_at
        self._members = dict(members)

    def counted(self, now: float) -> list[MemberRecord]:
        """The members that count at `now`, by id."""
        return [
            record
            for id, record in sorted(self._members.items())
            if self._counts_at[(id, record.incarnation)] <= now
        ]

    def deadline(self, now: float) -> float | None:
        """When the next member will count; None when all do."""
        return min((at for at in self._counts_at.values() if at > now), default=None)
