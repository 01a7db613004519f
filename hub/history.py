"""Whose history the hub tells its nodes: the store's own, or that of a source elsewhere (I9).

A node holds a claim (store, generation, slot, epoch, id) and the highest revision it has seen. Both have to be of one
history: `uuid` and `generation` go into the claim, revisions are those of the objects that documents are made from.
"""

from typing import Protocol

from shards.claims import SlotRecord
from shards.kv import StoreIdentity
from shards.ownership import Owned


class History(Protocol):
    """See the module."""

    @property
    def uuid(self) -> str: ...

    @property
    def generation(self) -> int: ...

    def reached(self, owned: Owned) -> int:
        """A revision that this hub had certainly reached when it served the slot; 0 where claims have other revisions."""
        ...

    def record(self, record: SlotRecord, head: int) -> SlotRecord:
        """The claims of a slot with `first_revision` in the revisions of objects. `head`: what this hub has reached."""
        ...


class StoreHistory:
    """Objects lie in the store that claims lie in: its revisions are theirs."""

    def __init__(self, identity: StoreIdentity) -> None:
        self.uuid = identity.uuid
        self.generation = identity.generation

    def reached(self, owned: Owned) -> int:
        return owned.fence.mod_revision

    def record(self, record: SlotRecord, head: int) -> SlotRecord:
        return record
