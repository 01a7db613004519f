"""The one authority of a shared store."""

import asyncio

import pytest

from hub.authority import authority_key
from hub.store.memory import MemoryStore
from security.sealed import KeyFileError
from shards.kv import Ambiguous, TxnResult
from tests.hub.authorities import open_authority

NOW = 1_800_000_000.0
SECRET = b"s" * 32


async def test_replicas_that_start_together_have_one_authority() -> None:
    store = MemoryStore()
    opened = await asyncio.gather(*(open_authority(store, "/r/", SECRET, "a.example", NOW) for _ in range(8)))
    assert len({ca.root_sha256 for ca in opened}) == 1


async def test_a_replica_with_another_key_file_changes_nothing() -> None:
    store = MemoryStore()
    await open_authority(store, "/r/", SECRET, "a.example", NOW)
    before = await store.get(authority_key("/r/"))
    with pytest.raises(KeyFileError):
        await open_authority(store, "/r/", b"t" * 32, "a.example", NOW)
    assert await store.get(authority_key("/r/")) == before


async def test_a_lost_answer_is_read_again() -> None:
    class Losing(MemoryStore):
        async def txn(self, compares, ops) -> TxnResult:
            await super().txn(compares, ops)
            raise Ambiguous("lost")

    store = Losing()
    ca = await open_authority(store, "/r/", SECRET, "a.example", NOW)
    assert (await open_authority(store, "/r/", SECRET, "a.example", NOW)).root_sha256 == ca.root_sha256
