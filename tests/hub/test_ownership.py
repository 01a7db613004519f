"""Claims of all slots, made anew at every start."""

import secrets

from hub.objects import Keys
from hub.ownership import Ownership
from hub.store.base import Put
from hub.store.memory import MemoryStore
from shards.claims import EdgeClaim, judge

SLOTS = 1024


async def claimed(store: MemoryStore) -> Ownership:
    return await Ownership.claim_all(store, Keys(), "m", now=0.0, random_id=lambda: secrets.token_hex(8))


async def test_a_later_claim_ends_the_earlier_one_where_the_store_stood_before_it() -> None:
    """In every slot: the claiming transactions themselves raise the revision, which once hid a node's own history."""
    store = MemoryStore(slots=SLOTS)
    first = await claimed(store)
    await store.txn([], [Put("/other", b"1")])
    end = await store.revision()
    later = await claimed(store)
    assert await store.revision() > end + 1
    for slot in range(SLOTS):
        old, new = first.of(slot), later.of(slot)
        assert old is not None and new is not None
        edge = EdgeClaim(store.identity.uuid, store.identity.generation, slot, old.claim.epoch, old.claim.id)
        knows = {
            "store": store.identity.uuid,
            "generation": store.identity.generation,
            "record": new.record,
            "head": await store.revision(),
        }
        assert judge(edge, end, **knows) is None
        assert judge(edge, end + 1, **knows) is not None, slot
