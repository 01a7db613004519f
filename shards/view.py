"""Members, owners and epochs as a replica last saw them in the store: a snapshot, and the events after it. [pure]

What cannot be read is never taken for absent: an owner key with an unknown value has an owner, and an epoch key that
cannot be read keeps its slot from being claimed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from shards.kv import Event, KeyValue, prefix_end
from shards.ownership import MemberRecord, OwnerRecord, Unit, UnitKeys


@dataclass(frozen=True, slots=True)
class OwnerKey:
    """An owner key in the store. `lease` 0: written by a hub that knew no leases, and nobody's by now."""

    record: OwnerRecord
    create_revision: int
    mod_revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All keys of `ranges` at one revision."""

    revision: int
    items: tuple[KeyValue, ...]


@dataclass(slots=True)
class Change:
    """What differs after a snapshot or a batch of events."""

    owners: set[Unit] = field(default_factory=set)
    epochs: set[Unit] = field(default_factory=set)
    members: set[str] = field(default_factory=set)


def ranges(keys: UnitKeys) -> tuple[tuple[str, str], ...]:
    """What a snapshot and the watch after it cover."""
    return tuple((p, prefix_end(p)) for p in (keys.members, keys.slots, keys.roles))


class View:
    """See the module. `absent`: a revision of each unowned unit that no earlier owner can have reached or passed as an
    owner: the last one before its owner key went, or the first one at which it was not there."""

    def __init__(self, keys: UnitKeys, slots: int) -> None:
        self._keys = keys
        self._slots = slots
        self.revision = 0
        self.members: dict[str, MemberRecord] = {}
        self.leases: dict[str, int] = {}
        self.owners: dict[Unit, OwnerKey] = {}
        self.epochs: dict[Unit, KeyValue] = {}
        self.absent: dict[Unit, int] = {}
        self.absent_default = 0

    def replace(self, snapshot: Snapshot) -> Change:
        """All of it anew. What was absent before and still is keeps the revision that it was absent at."""
        before = View(self._keys, self._slots)
        before.owners, before.members, before.epochs = self.owners, self.members, self.epochs
        first = self.revision == 0
        self.revision = snapshot.revision
        self.members, self.leases, self.owners, self.epochs = {}, {}, {}, {}
        for kv in snapshot.items:
            self._put(kv)
        if first:
            self.absent_default = snapshot.revision
        change = Change(
            _changed(before.owners, self.owners),
            _changed(before.epochs, self.epochs),
            _changed(before.members, self.members),
        )
        for unit in (change.owners | change.epochs) - self.owners.keys():
            self.absent[unit] = snapshot.revision  # an owner that came and went in between left its epoch
        return change

    def apply(self, revision: int, events: Iterable[Event]) -> Change:
        """Events of one revision; those that a snapshot has overtaken change nothing."""
        change = Change()
        if revision <= self.revision:
            return change
        self.revision = revision
        for event in events:
            if event.kv is not None:
                found = self._put(event.kv)
            else:
                found = self._delete(event.key, revision)
            if found is not None:
                getattr(change, found[0]).add(found[1])
        return change

    def absent_at(self, unit: Unit) -> int:
        return self.absent.get(unit, self.absent_default)

    def _put(self, kv: KeyValue) -> tuple[str, Unit] | None:
        where = self._where(kv.key)
        if where is None:
            return None
        kind, unit = where
        if kind == "members":
            try:
                record = msgspec.json.decode(kv.value, type=MemberRecord)
            except msgspec.MsgspecError:
                return None
            self.members[str(unit)] = record
            self.leases[str(unit)] = kv.lease
        elif kind == "epochs":
            self.epochs[unit] = kv
        else:
            try:
                owner = msgspec.json.decode(kv.value, type=OwnerRecord)
            except msgspec.MsgspecError:
                owner = OwnerRecord("")
            self.owners[unit] = OwnerKey(owner, kv.create_revision, kv.mod_revision, kv.lease)
            self.absent.pop(unit, None)
        return where

    def _delete(self, key: str, revision: int) -> tuple[str, Unit] | None:
        where = self._where(key)
        if where is None:
            return None
        kind, unit = where
        if kind == "members":
            self.leases.pop(str(unit), None)
            self.members.pop(str(unit), None)
        elif kind == "epochs":
            self.epochs.pop(unit, None)
        else:
            self.owners.pop(unit, None)
            # The owner could not know its own end: what it sent was of an earlier revision.
            self.absent[unit] = revision - 1
        return where

    def _where(self, key: str) -> tuple[str, Unit] | None:
        keys = self._keys
        if key.startswith(keys.members):
            return "members", key[len(keys.members) :]
        name, _, kind = key.rpartition("/")
        if kind not in ("owner", "epoch"):
            return None
        if key.startswith(keys.roles):
            return kind + "s", name[len(keys.roles) :]
        number = name[len(keys.slots) :]
        if not key.startswith(keys.slots) or not number.isdigit() or int(number) >= self._slots:
            return None
        return kind + "s", int(number)


def _changed(before: Mapping, after: Mapping) -> set:  # type: ignore[type-arg]
    return {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
