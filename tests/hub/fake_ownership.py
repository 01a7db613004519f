"""Ownership that a test moves about: real claims in a real store, while leases, deadlines and routes are set by hand."""

import secrets
import time
from collections.abc import Collection, Mapping
from typing import Any

from hub.objects import Keys
from hub.store.memory import MemoryStore
from shards import claims
from shards.claims import Fence
from shards.kv import Compare, Put
from shards.ownership import MemberRecord, Owned, OwnerRecord, Route, Unit, UnitKeys


class Cell:
    """What the members of one store see of each other."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.members: dict[str, MemberRecord] = {}
        self.owners: dict[Unit, OwnerRecord] = {}
        self.all: list[FakeOwnership] = []

    def member(self, id: str, edge: str = "") -> "FakeOwnership":
        made = FakeOwnership(self, id)
        self.members[id] = MemberRecord(id, incarnation=id, edge=edge)
        self.all.append(made)
        return made


class FakeOwnership:
    """`shards.ownership.Ownership` of one member. `live` False: its deadline has passed. `checked` False: the inline
    check is switched off. `slots_of`: the listener, for `move`."""

    def __init__(self, cell: Cell, id: str) -> None:
        self.cell = cell
        self.id = id
        self.alive = True
        self.checked = True
        self.listener: Any = None
        self.refused: list[Unit] = []
        self._owned: dict[Unit, Owned] = {}

    @property
    def slots(self) -> int:
        return self.cell.store.identity.slots

    def of(self, unit: Unit) -> Owned | None:
        return self._owned.get(unit)

    def fence(self, unit: Unit) -> Fence | None:
        owned = self._owned.get(unit)
        return owned.fence if owned is not None and (self.alive or not self.checked) else None

    @property
    def live(self) -> bool:
        return self.alive or not self.checked

    def route(self, unit: Unit) -> Route | None:
        owner = self.cell.owners.get(unit)
        return Route(owner, self.cell.members.get(owner.member)) if owner is not None else None

    @property
    def members(self) -> Mapping[str, MemberRecord]:
        return self.cell.members

    def fence_lost(self, unit: Unit) -> None:
        self.refused.append(unit)
        self._owned.pop(unit, None)

    # -- by hand -------------------------------------------------------------------------------------------------

    async def claim(self, slots: Collection[Unit]) -> list[Owned]:
        """Claims without asking who owned them, and tells the other members' listeners."""
        keys, store, made = UnitKeys(Keys().root), self.cell.store, []
        revision = await store.revision()
        for slot in slots:
            held = await store.get(keys.epoch(slot))
            record, claim = claims.claim(
                claims.parse(held.value if held else None), secrets.token_hex(8), revision, time.time()
            )
            result = await store.txn(
                [Compare(keys.epoch(slot), held.mod_revision if held else 0)],
                [Put(keys.epoch(slot), claims.dump(record))],
            )
            assert result.succeeded
            owned = Owned(slot, claim, Fence(keys.epoch(slot), result.revision), record)
            self._owned[slot] = owned
            self.cell.owners[slot] = OwnerRecord(self.id, self.id, claim.epoch)
            made.append(owned)
        self.told(slots)
        return made

    def told(self, slots: Collection[Unit]) -> None:
        for other in self.cell.all:
            if other is not self and other.listener is not None:
                other.listener.routes_changed(list(slots))

    async def take(self, slots: Collection[Unit]) -> None:
        await self.listener.gained(await self.claim(slots))

    async def give(self, slots: Collection[Unit]) -> None:
        """Drains and releases."""
        await self.listener.drain(list(slots))
        for slot in slots:
            self._owned.pop(slot, None)
            self.cell.owners.pop(slot, None)
        self.listener.lost(list(slots))
        self.told(slots)

    def lose(self, slots: Collection[Unit]) -> None:
        """The lease has ended."""
        for slot in slots:
            self._owned.pop(slot, None)
            self.cell.owners.pop(slot, None)
        self.listener.lost(list(slots))

    def suspend(self) -> None:
        self.alive = False

    def resume(self) -> None:
        self.alive = True
        self.listener.resumed(list(self._owned))
