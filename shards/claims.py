"""Claims: who may speak for a slot, and whether an edge's memory belongs to this store's history. [pure]

Each owner's claim of a slot raises the slot's epoch and is kept for 120 days as (epoch, random id, first revision,
time). An edge repeats the claim that it last synchronised under and the highest revision it journalled; from these
alone `judge` tells whether the hub knows at least as much as the edge (invariant I9).
"""

from dataclasses import dataclass

import msgspec

KEEP_S = 120 * 86400.0
CLAIMS_MAX = 512
"""Claims kept of one slot however young: a hub that restarts all day must not grow its keys without bound."""


@dataclass(frozen=True, slots=True)
class Fence:
    """What every write made as an owner compares: the slot's epoch key, unchanged since the claim."""

    key: str
    mod_revision: int


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """One claim of a slot. `first_revision`: the store's revision when it was made; `at`: unix seconds."""

    epoch: int
    id: str
    first_revision: int
    at: float


class SlotRecord(msgspec.Struct, frozen=True):
    """The value of a slot's epoch key: the highest epoch and the claims still kept, oldest first."""

    epoch: int = 0
    claims: tuple[Claim, ...] = ()


class EdgeClaim(msgspec.Struct, frozen=True):
    """The claim that an edge says it holds (HELLO)."""

    store: str
    gen: int
    slot: int
    epoch: int
    id: str


def parse(value: bytes | None) -> SlotRecord:
    """The record of an epoch key; an absent key is a slot that nobody has claimed yet."""
    return SlotRecord() if value is None else msgspec.json.decode(value, type=SlotRecord)


def dump(record: SlotRecord) -> bytes:
    return msgspec.json.encode(record)


def claim(record: SlotRecord, claim_id: str, revision: int, now: float) -> tuple[SlotRecord, Claim]:
    """The record after a new claim at `revision` (the store's before the claiming transaction)."""
    made = Claim(record.epoch + 1, claim_id, revision, now)
    kept = tuple(c for c in record.claims if now - c.at < KEEP_S)[-(CLAIMS_MAX - 1) :]
    return SlotRecord(made.epoch, (*kept, made)), made


@dataclass(frozen=True, slots=True)
class Parted:
    """The edge's history is not this store's. `reason` is for the operator."""

    reason: str


def judge(
    edge: EdgeClaim | None, edge_revision: int, *, store: str, generation: int, record: SlotRecord, head: int
) -> Parted | None:
    """None when this store knows at least what the edge knows; else why histories have parted.

    `record` is that of the slot named in the edge's claim; `head` the store's revision. An edge without a claim has
    never synchronised and holds nothing. Under the same uuid a higher generation is a confirmed restore."""
    if edge is None:
        return None
    if edge.store != store:
        return Parted(f"the node last followed store {edge.store}, this is store {store}")
    if edge.gen < generation:
        return None
    if edge.gen > generation:
        return Parted(
            f"the node has seen generation {edge.gen} of this store, which is at generation {generation}"
        )
    at = next((i for i, c in enumerate(record.claims) if c.id == edge.id and c.epoch == edge.epoch), None)
    if at is None:
        return Parted(
            f"the node last followed a hub (epoch {edge.epoch} of slot {edge.slot}) that this store never knew"
        )
    # The least of all later claims, not the next one's: revisions that go down again tell of a store that went back.
    end = min((head, *(c.first_revision for c in record.claims[at + 1 :])))
    if edge_revision > end:
        return Parted(
            f"the node has seen revision {edge_revision}, under its claim this store only reached {end}"
        )
    return None
