"""The slots that this replica owns, and under which claims.

Standalone is a ring of one member: at start it claims every slot, in the same records and with the same fences that
several replicas use. A claim is made once per process, so a restart is a new epoch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from hub.objects import Keys
from hub.store.base import TXN_OPS_MAX, Compare, Delete, KeyValue, Put, Store, StoreError, prefix_end
from shards import claims
from shards.claims import Claim, Fence, SlotRecord

_SLOTS_PER_TXN = TXN_OPS_MAX // 4


@dataclass(frozen=True, slots=True)
class Owned:
    """A slot that is ours: its claim, its fence, and all claims of the slot that are still kept."""

    slot: int
    claim: Claim
    fence: Fence
    record: SlotRecord


class ClaimLost(StoreError):
    """Another process claims the same slots at this moment: two hubs on one store."""


class Ownership:
    """All slots of the fleet, claimed by `claim_all`."""

    def __init__(self, owned: dict[int, Owned], slots: int) -> None:
        self._owned = owned
        self.slots = slots

    def of(self, slot: int) -> Owned | None:
        """None where the slot is another replica's."""
        return self._owned.get(slot)

    def fence(self, slot: int) -> Fence | None:
        owned = self._owned.get(slot)
        return owned.fence if owned else None

    @classmethod
    async def claim_all(
        cls, store: Store, keys: Keys, member: str, *, now: float, random_id: Callable[[], str]
    ) -> "Ownership":
        """Claims every slot for `member`. `now` is unix seconds; `random_id` gives 16 hex digits. Raises ClaimLost."""
        slots = store.identity.slots
        held: dict[str, KeyValue] = {}
        at: str | None = keys.root + "slot/"
        end = prefix_end(keys.root + "slot/")
        while at is not None:
            page = await store.page(at, end)
            held.update((kv.key, kv) for kv in page.items)
            at = page.next_key
        # Read once, before the first claim: what an edge has seen beyond it is not from this store's history, and our
        # own claims, one revision per transaction, must not count as if it were (I9).
        revision = await store.revision()
        owned: dict[int, Owned] = {}
        for first in range(0, slots, _SLOTS_PER_TXN):
            some = range(first, min(first + _SLOTS_PER_TXN, slots))
            owned |= await _claim_some(store, keys, member, some, held, revision, now, random_id)
        return cls(owned, slots)


async def _claim_some(
    store: Store,
    keys: Keys,
    member: str,
    slots: range,
    held: dict[str, KeyValue],
    revision: int,
    now: float,
    random_id: Callable[[], str],
) -> dict[int, Owned]:
    compares: list[Compare] = []
    ops: list[Put | Delete] = []
    made: dict[int, tuple[Claim, SlotRecord]] = {}
    owner = msgspec.json.encode({"member": member})
    for slot in slots:
        epoch = held.get(keys.slot_epoch(slot))
        record, claim = claims.claim(claims.parse(epoch.value if epoch else None), random_id(), revision, now)
        made[slot] = (claim, record)
        compares.append(Compare(keys.slot_epoch(slot), epoch.mod_revision if epoch else 0))
        ops.append(Put(keys.slot_epoch(slot), claims.dump(record)))
        ops.append(Put(keys.slot_owner(slot), owner))
    result = await store.txn(compares, ops)
    if not result.succeeded:
        raise ClaimLost("another hub claims slots of this store right now; stop it, then start again")
    return {
        slot: Owned(slot, claim, Fence(keys.slot_epoch(slot), result.revision), record)
        for slot, (claim, record) in made.items()
    }
