"""`cloudhub store reencrypt`: seals every value anew under the newest data key, while replicas run.

It seals what an earlier version wrote in clear, and is the second half of a key's rotation: with a new first key it makes a
new data key, which every replica takes over at its next write, seals what is there, and gives the old data keys up. What is
done is done: cut off anywhere and run again, it goes on with what is left.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hub.access.keys import signing_keys_key
from hub.authority import authority_key
from hub.store.sealing import SealedStore, read_keys
from security import tokenkeys
from security.envelope import generation_of
from security.sealed import resealed
from shards.kv import Compare, Delete, KeyValue, Put, Store, Unavailable, prefix_end

BATCH = 64
BATCH_BYTES_MAX = 1 << 20
PASSES = 5
"""Sweeps until nothing is left; the second finds only what somebody wrote during the first."""

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Resealed:
    """What was done: values sealed anew of all that there are, the generation that seals now, data keys given up, and whether
    `reseal_shared` changed anything."""

    values: int
    of: int
    generation: str
    given_up: int
    shared: bool = False


async def reencrypt(
    store: SealedStore, *, new_key: bool = False, progress: Progress = lambda n: None
) -> Resealed:
    """Seals all values under the newest data key; makes a new one first where the provider's key is another than the one
    that wraps the present one, or `new_key` says so. Raises what the store raises, and SecurityError."""
    await store.follow()
    if new_key or await store.outdated((await read_keys(store.inner, store.root))[store.generation]):
        await store.new_generation()
    done = 0
    for _ in range(PASSES):
        total, stale = 0, 0
        for prefix in store.prefixes:
            at: str | None = prefix
            while at is not None:
                page = await store.inner.page(at, prefix_end(prefix))
                at = page.next_key
                total += len(page.items)
                old = [kv for kv in page.items if generation_of(kv.value) != store.generation]
                stale += len(old)
                for batch in _batches(old):
                    done += await _seal(store, batch)
                    progress(done)
        if not stale:
            return Resealed(done, total, store.generation, await _give_up(store))
    raise Unavailable(
        f"values change faster than they are sealed anew ({done} so far); run the command again"
    )


def _batches(old: list[KeyValue]) -> Iterator[list[KeyValue]]:
    """Parts that one transaction may hold."""
    batch: list[KeyValue] = []
    size = 0
    for kv in old:
        if batch and (len(batch) == BATCH or size + len(kv.value) > BATCH_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(kv)
        size += len(kv.value)
    if batch:
        yield batch


async def _seal(store: SealedStore, batch: list[KeyValue]) -> int:
    """Writes `batch` again; how many. Where one of them has changed meanwhile all are left for the next sweep."""
    puts = [Put(kv.key, (await store.unseal(kv)).value) for kv in batch]
    result = await store.txn([Compare(kv.key, kv.mod_revision) for kv in batch], puts)
    return len(batch) if result.succeeded else 0


async def _give_up(store: SealedStore) -> int:
    """Deletes the data keys that seal nothing any more; how many."""
    held = await store.inner.get(store.places.current)
    old = [g for g in await read_keys(store.inner, store.root) if g != store.generation]
    if not old or held is None:
        return 0
    result = await store.inner.txn(
        [Compare(store.places.current, held.mod_revision)], [Delete(store.places.key(g)) for g in old]
    )
    return len(old) if result.succeeded else 0


async def reseal_shared(store: Store, root: str, secret: bytes) -> bool:
    """What replicas share under their key file, the authority and the keys of service account tokens, under the first key of
    it where another of its keys seals them; whether anything was changed. Raises KeyFileError, SigningKeyError, and what
    the store raises."""
    authority = await _reseal(store, authority_key(root), lambda held: resealed(held, secret))
    return (
        await _reseal(store, signing_keys_key(root), lambda held: tokenkeys.resealed(held, secret))
        or authority
    )


async def _reseal(store: Store, key: str, anew: Callable[[bytes], bytes | None]) -> bool:
    held = await store.get(key)
    new = None if held is None else anew(held.value)
    if held is None or new is None:
        return False
    result = await store.txn([Compare(key, held.mod_revision)], [Put(key, new)])
    if not result.succeeded:
        raise Unavailable("what replicas share was changed meanwhile; run the command again")
    return True
