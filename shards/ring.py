"""Which slot a node belongs to, and which member should own every slot and role. [pure]

The assignment follows from the members' ids and weights alone, so that all replicas agree without talking. It is
weighted rendezvous hashing with a bound on load: each slot goes to the member that draws the lowest cost for it; a
member beyond its bound keeps its cheapest slots, the others go to their next choice. Costs are integers made by SHAKE
and a fixed-point logarithm: the same on every machine and in every version of Python.

What is computed here is part of the protocol between replicas. A change that moves any slot is a new ring version.
"""

import heapq
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import shake_128
from typing import Protocol

SLOTS_DEFAULT = 1024
VERSION_MIN = 1
VERSION_MAX = 1
"""The ring versions that this program computes."""
MEMBERS_MAX = 256
"""More members than this are not one hub; the costs that are kept per member stay bounded by it."""

_WEIGHT_UNIT = 1000
_WEIGHT_MAX = 1000.0
_SLACK_PERCENT = 8
_FRACTION_BITS = 32


def slot_of(affinity: str, slots: int = SLOTS_DEFAULT) -> int:
    """The slot of everything with this affinity (the node's site where it has one, else its name)."""
    return zlib.crc32(affinity.encode()) % slots


class RingError(Exception):
    """The members cannot agree on an assignment."""


class Candidate(Protocol):
    """What of a member record the ring reads."""

    @property
    def id(self) -> str: ...

    @property
    def weight(self) -> float: ...

    @property
    def ring(self) -> tuple[int, int]: ...

    @property
    def draining(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Ring:
    """The wanted owners: of slot n `slots[n]`, of each role `roles[role]`. Both are empty without members."""

    slots: tuple[str, ...]
    roles: dict[str, str]

    def owner(self, unit: int | str) -> str | None:
        """The wanted owner of a slot or role, None where there is nobody."""
        if isinstance(unit, int):
            return self.slots[unit] if self.slots else None
        return self.roles.get(unit)


def ring_version(members: Iterable[Candidate]) -> int:
    """The highest version that all members compute. Raises RingError when there is none."""
    low, high = VERSION_MIN, VERSION_MAX
    for member in members:
        low, high = max(low, member.ring[0]), min(high, member.ring[1])
        if low > high:
            raise RingError(
                f"member {member.id} computes ring versions {member.ring[0]} to {member.ring[1]}, the others"
                f" {VERSION_MIN} to {high if high >= VERSION_MIN else VERSION_MAX}: upgrade by neighbouring versions"
            )
    return high


def assign(members: Iterable[Candidate], slots: int, roles: Sequence[str] = ()) -> Ring:
    """The wanted owner of every unit. Draining members own something only while nobody else is there.

    Raises RingError when there is no common ring version, ValueError for more than MEMBERS_MAX members."""
    present = sorted(members, key=lambda m: m.id)
    ring_version(present)
    chosen = [m for m in present if not m.draining] or present
    if len(chosen) > MEMBERS_MAX:
        raise ValueError(f"{len(chosen)} members; at most {MEMBERS_MAX} share a fleet")
    return _assign(tuple((m.id, _weight(m.weight)) for m in chosen), slots, tuple(roles))


@lru_cache(maxsize=64)
def _assign(members: tuple[tuple[str, int], ...], slots: int, roles: tuple[str, ...]) -> Ring:
    if not members:
        return Ring((), {})
    ids = [id for id, _ in members]
    owners = _bounded([_costs(id, weight, slots) for id, weight in members], capacities(members, slots))
    return Ring(tuple(ids[i] for i in owners), {role: ids[i] for role, i in _roles(members, roles).items()})


def capacities(members: Sequence[tuple[str, int]], slots: int) -> list[int]:
    """The most slots that each member may own: its share by weight and 8%, at least the share rounded up."""
    total = sum(weight for _, weight in members)
    return [
        max(-(-slots * weight // total), slots * weight * (100 + _SLACK_PERCENT) // (total * 100))
        for _, weight in members
    ]


def _weight(weight: float) -> int:
    """In thousandths. What is not a positive number counts least: a wrong record must not stop the others."""
    if not weight > 0:
        return 1
    return max(1, round(min(weight, _WEIGHT_MAX) * _WEIGHT_UNIT))


def _bounded(costs: list[list[int]], bounds: list[int]) -> list[int]:
    """Index of the member for every slot: no slot and member would both rather have each other (stable matching)."""
    kept: list[list[tuple[int, int]]] = [[] for _ in costs]
    choices: dict[int, list[int]] = {}
    for first, column in enumerate(zip(*costs, strict=True)):
        slot: int = first
        member = column.index(min(column))
        while True:
            heapq.heappush(kept[member], (-costs[member][slot], slot))
            if len(kept[member]) <= bounds[member]:
                break
            slot = heapq.heappop(kept[member])[1]
            # The choices of a slot that was turned away, best last: the one that refused is gone for good.
            if slot not in choices:
                choices[slot] = sorted(range(len(costs)), key=lambda m: (-costs[m][slot], -m))
            while choices[slot].pop() != member:
                pass
            member = choices[slot][-1]
    owners = [0] * len(costs[0])
    for member, pairs in enumerate(kept):
        for _, slot in pairs:
            owners[slot] = member
    return owners


def _roles(members: Sequence[tuple[str, int]], roles: tuple[str, ...]) -> dict[str, int]:
    """Roles are few and heavy: each goes to its best member among those with the fewest."""
    taken = [0] * len(members)
    chosen: dict[str, int] = {}
    for role in sorted(roles):
        best = min(
            range(len(members)),
            key=lambda m: (taken[m], _cost(_draw(f"{role}\0{members[m][0]}", 1)[0], members[m][1])),
        )
        taken[best] += 1
        chosen[role] = best
    return chosen


@lru_cache(maxsize=2 * MEMBERS_MAX)
def _costs(id: str, weight: int, slots: int) -> list[int]:
    return [_cost(value, weight) for value in _draw(id, slots)]


def _draw(name: str, count: int) -> list[int]:
    """`count` uniform 64-bit numbers; the first ones are the same whatever the count."""
    data = shake_128(name.encode()).digest(8 * count)
    return [int.from_bytes(data[i : i + 8], "big") for i in range(0, len(data), 8)]


def _cost(value: int, weight: int) -> int:
    """-log2 of the number as a fraction of 2**64, divided by the weight: exponentially distributed, so that the lowest
    cost falls to each member in proportion to its weight."""
    return (((64 << _FRACTION_BITS) - _log2(value | 1)) << 20) // weight


def _log2(value: int) -> int:
    """Logarithm in 32 fractional bits, interpolated between 256 exact ones: monotone, and off by less than 3e-6."""
    bits = value.bit_length() - 1
    fraction = ((value << (63 - bits)) & ((1 << 63) - 1)) >> 23
    at, rest = fraction >> 32, fraction & 0xFFFFFFFF
    low = _LOG2[at]
    return (bits << _FRACTION_BITS) + low + ((_LOG2[at + 1] - low) * rest >> 32)


def _log2_table() -> list[int]:
    """log2(1 + i/256) by repeated squaring in integers."""
    table = []
    for i in range(256):
        x, result = (256 + i) << 54, 0
        for _ in range(_FRACTION_BITS):
            x = x * x >> 62
            result <<= 1
            if x >> 63:
                x >>= 1
                result |= 1
        table.append(result)
    return [*table, 1 << _FRACTION_BITS]


_LOG2 = _log2_table()
