"""All slots and roles, claimed once and held for ever: for tests of what a lone owner does.

Standalone is a ring of one member: at start it claims every slot, in the same records and with the same fences that
several replicas use. A claim is made once per process, so a restart is a new epoch.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from hub.objects import Keys
from shards import claims
from shards.claims import Claim, Fence, SlotRecord
from shards.kv import TXN_OPS_MAX, Compare, Delete, KeyValue, Put, Store, StoreError, prefix_end
from shards.ownership import ROLES, MemberRecord, Owned, OwnerRecord, Route, Unit, UnitKeys

_UNITS_PER_TXN = TXN_OPS_MAX // 4


class ClaimLost(StoreError):
    """Another process claims the same slots at this moment: two hubs on one store."""


class Ownership:
    """All slots of the fleet, claimed by `claim_all`; what `shards.ownership.Ownership` is for a hub that is alone."""

    def __init__(self, owned: dict[Unit, Owned], slots: int, member: str) -> None:
        self._owned = owned
        self._slots = slots
        self._member = member

    @property
    def slots(self) -> int:
        return self._slots

    def of(self, unit: Unit) -> Owned | None:
        return self._owned.get(unit)

    def fence(self, unit: Unit) -> Fence | None:
        owned = self._owned.get(unit)
        return owned.fence if owned else None

    @property
    def live(self) -> bool:
        """There is no lease that could end: two hubs cannot open one store of their own."""
        return True

    def route(self, unit: Unit) -> Route | None:
        owned = self._owned.get(unit)
        return Route(OwnerRecord(self._member, epoch=owned.claim.epoch), None) if owned else None

    @property
    def members(self) -> Mapping[str, MemberRecord]:
        return {}

    def fence_lost(self, unit: Unit) -> None:
        self._owned.pop(unit, None)

    @classmethod
    async def claim_all(
        cls, store: Store, keys: Keys, member: str, *, now: float, random_id: Callable[[], str]
    ) -> "Ownership":
        """Claims every slot and role for `member`. `now` is unix seconds; `random_id` gives 16 hex digits. Raises ClaimLost."""
        slots = store.identity.slots
        held: dict[str, KeyValue] = {}
        units = UnitKeys(keys.root)
        for prefix in (units.slots, units.roles):
            at: str | None = prefix
            while at is not None:
                page = await store.page(at, prefix_end(prefix))
                held.update((kv.key, kv) for kv in page.items)
                at = page.next_key
        # Read once, before the first claim: what an edge has seen beyond it is not from this store's history, and our
        # own claims, one revision per transaction, must not count as if it were (I9).
        revision = await store.revision()
        owned: dict[Unit, Owned] = {}
        wanted: list[Unit] = [*range(slots), *ROLES]
        for first in range(0, len(wanted), _UNITS_PER_TXN):
            some = wanted[first : first + _UNITS_PER_TXN]
            owned |= await _claim_some(store, units, member, some, held, revision, now, random_id)
        return cls(owned, slots, member)


async def _claim_some(
    store: Store,
    keys: UnitKeys,
    member: str,
    units: Sequence[Unit],
    held: dict[str, KeyValue],
    revision: int,
    now: float,
    random_id: Callable[[], str],
) -> dict[Unit, Owned]:
    compares: list[Compare] = []
    ops: list[Put | Delete] = []
    made: dict[Unit, tuple[Claim, SlotRecord]] = {}
    owner = msgspec.json.encode({"member": member})
    for unit in units:
        epoch = held.get(keys.epoch(unit))
        record, claim = claims.claim(claims.parse(epoch.value if epoch else None), random_id(), revision, now)
        made[unit] = (claim, record)
        compares.append(Compare(keys.epoch(unit), epoch.mod_revision if epoch else 0))
        ops.append(Put(keys.epoch(unit), claims.dump(record)))
        ops.append(Put(keys.owner(unit), owner))
    result = await store.txn(compares, ops)
    if not result.succeeded:
        raise ClaimLost("another hub claims slots of this store right now; stop it, then start again")
    return {
        unit: Owned(unit, claim, Fence(keys.epoch(unit), result.revision), record)
        for unit, (claim, record) in made.items()
    }
