"""Encrypts the values of chosen kinds on their way into any store, and opens them on their way out.

A `SealedStore` is a `shards.kv.Store` around another one. Values under its prefixes are sealed under a data key
(`security.envelope`), bound to their key in the store; the data keys lie in the store too, wrapped by a key provider
(`security.keyring`). Everybody above it reads and compares plain values; everything below it, and whoever copies the inner
store, has sealed ones. Values in clear, of earlier versions, are read as they are.

Data keys have generations, each under `seal/key/<generation>`; `seal/current` names the one that seals. Every transaction
that writes a sealed value compares `seal/current`, so that once there is a new generation nothing is written under an old
one: `hub.reencrypt` may sweep once and be sure. A generation that is not known is looked up when a value names it.

A sealed value has OVERHEAD_BYTES_MAX bytes less room than a plain one, a transaction that writes it one compare less.

Guarantees: what does not open is raised (`Unreadable`), never left out and never given out as empty. In history (watches, pages
of an older revision) it counts as compacted.
"""

import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import cast

import msgspec

from hub.objects import JOINTOKENS, SECRETS, Keys
from security import envelope
from security.errors import SecurityError
from security.keyring import KeyProvider, KeyUnknown, Wrapped, unwrap_by
from shards.kv import (
    Ambiguous,
    Compacted,
    Compare,
    Delete,
    Event,
    KeyValue,
    Page,
    Put,
    Store,
    StoreIdentity,
    TxnResult,
    Unavailable,
    Unreadable,
    WatchBatch,
    prefix_end,
)

log = logging.getLogger(__name__)

SEALED = (SECRETS, JOINTOKENS)
"""Kinds whose values are sealed, whole."""
ATTEMPTS = 5
"""Of a write that meets a new generation each time; there is one in months."""
GENERATIONS_MAX = 100
"""Data keys at one time: one, and two while values are sealed anew."""


class Current(msgspec.Struct, frozen=True):
    """The value of `seal/current`: the generation that seals, which is the fleet's `number`-th."""

    generation: str
    number: int


class SealKeys:
    """Where data keys lie, below a cell's root (which ends in `/`)."""

    def __init__(self, root: str) -> None:
        self.prefix = root + "seal/"
        self.current = self.prefix + "current"
        self.keys = self.prefix + "key/"

    def key(self, generation: str) -> str:
        return self.keys + generation


def context_of(generation: str) -> str:
    """What a wrapped data key is bound to."""
    return f"data key {generation}"


class SealedStore:
    """See the module. Make one with `open`. It closes the inner store with itself, the providers not."""

    def __init__(self, inner: Store, keys: Keys, providers: Sequence[KeyProvider]) -> None:
        self.inner = inner
        self.providers = tuple(providers)
        self.places = SealKeys(keys.root)
        self.prefixes = tuple(keys.objects(res) for res in SEALED)
        self.root = keys.root
        self._data_keys: dict[str, bytes] = {}
        self._current = ""
        self._pointer = Compare(self.places.current, 0)

    @classmethod
    async def open(cls, inner: Store, keys: Keys, providers: Sequence[KeyProvider]) -> "SealedStore":
        """Makes the first data key where there is none; opens all that there are. Raises SecurityError (a key that is
        missing), and what the store raises."""
        store = cls(inner, keys, providers)
        if await inner.get(store.places.current) is None:
            await store.new_generation()
        held = await read_keys(inner, keys.root)
        for generation, each in held.items():
            if generation in store._data_keys:
                continue  # just made
            store._data_keys[generation] = await unwrap_by(store.providers, each, context_of(generation))
        await store.follow()
        wrapped = held.get(store.generation)
        if wrapped is not None and await store.outdated(wrapped):
            log.warning(
                "there is a newer key than the one that Secrets are sealed with: cloudhub store reencrypt uses it"
            )
        return store

    async def outdated(self, wrapped: Wrapped) -> bool:
        """Would the first provider wrap under another key by now? Raises SecurityError."""
        first = self.providers[0]
        return (wrapped.provider, wrapped.id) != (first.name, await first.current())

    # -- generations -------------------------------------------------------------------------------------------

    @property
    def generation(self) -> str:
        """The generation that seals, as far as is known here."""
        return self._current

    async def new_generation(self) -> None:
        """Makes a data key, wrapped by the first provider, and has it seal from now on. Of several replicas that do this
        at once one wins, and the others take what it made. Raises SecurityError, and what the store raises."""
        held = await self.inner.get(self.places.current)
        before = 0 if held is None else held.mod_revision
        number = 1 if held is None else _current(held).number + 1
        # The random part: a store that was restored, or given up and begun anew, never means another key by the same name.
        generation = f"{number}-{secrets.token_hex(4)}"
        data_key = secrets.token_bytes(envelope.DATA_KEY_BYTES)
        wrapped = await self.providers[0].wrap(data_key, context_of(generation))
        try:
            result = await self.inner.txn(
                [Compare(self.places.current, before)],
                [
                    Put(self.places.current, msgspec.json.encode(Current(generation, number))),
                    Put(self.places.key(generation), msgspec.json.encode(wrapped)),
                ],
            )
            if result.succeeded:
                log.info("made data key %s under key %s of %s", generation, wrapped.id, wrapped.provider)
        except Ambiguous:
            log.warning("whether data key %s was stored is not known; reading it again", generation)
        await self.follow()

    async def follow(self) -> None:
        """Takes the current generation over from the store. Raises Unreadable, and what the store raises."""
        held = await self.inner.get(self.places.current)
        if held is None:
            raise Unreadable(
                f"{self.places.current} is gone: the store was changed by hand; restore a backup"
            )
        current = _current(held).generation
        if not await self._known(current):
            raise Unreadable(f"data key {current} is gone from the store; restore a backup")
        self._current = current
        self._pointer = Compare(self.places.current, held.mod_revision)

    async def _known(self, generation: str) -> bool:
        """Is there such a data key, here or in the store?"""
        if generation in self._data_keys:
            return True
        held = await self.inner.get(self.places.key(generation))
        if held is None:
            return False
        try:
            wrapped = msgspec.json.decode(held.value, type=Wrapped)
            self._data_keys[generation] = await unwrap_by(self.providers, wrapped, context_of(generation))
        except (KeyUnknown, msgspec.MsgspecError) as wrong:
            raise Unreadable(str(wrong)) from wrong
        except SecurityError as failure:
            raise Unavailable(str(failure)) from failure
        return True

    # -- values ------------------------------------------------------------------------------------------------

    def seals(self, key: str) -> bool:
        """Are values of this key sealed?"""
        return key.startswith(self.prefixes)

    def _name(self, key: str) -> str:
        return key.removeprefix(self.root)

    def seal(self, key: str, plain: bytes) -> bytes:
        """`plain` as it lies in the inner store, under the current generation."""
        data_key = self._data_keys[self._current]
        return envelope.seal(data_key, self._current, self._name(key), plain, secrets.token_bytes)

    async def unseal(self, kv: KeyValue, *, past: bool = False) -> KeyValue:
        """`kv` in clear. `past`: it comes from history, and may be older than the last change of data keys: what does not open
        then makes its reader list again, and the list says what is wrong with what is there still. Raises Unreadable,
        Compacted."""
        if not self.seals(kv.key):
            return kv
        try:
            generation = envelope.generation_of(kv.value)
            if generation is None:
                return kv
            if generation not in self._data_keys and not await self._known(generation):
                if past:
                    raise Compacted(kv.mod_revision, kv.mod_revision + 1)
                raise Unreadable(
                    f"{kv.key} is sealed under data key {generation}, which is not in the store; restore a backup"
                )
            plain = envelope.unseal(self._data_keys[generation], self._name(kv.key), kv.value)
        except envelope.EnvelopeError as wrong:
            if past:
                log.error("a value of the store's history cannot be read: %s", wrong)
                raise Compacted(kv.mod_revision, kv.mod_revision + 1) from wrong
            raise Unreadable(str(wrong)) from wrong
        return KeyValue(kv.key, plain, kv.create_revision, kv.mod_revision, kv.lease)

    # -- the store ---------------------------------------------------------------------------------------------

    @property
    def identity(self) -> StoreIdentity:
        return self.inner.identity

    async def revision(self) -> int:
        return await self.inner.revision()

    async def get(self, key: str, *, stale: bool = False) -> KeyValue | None:
        held = await self.inner.get(key, stale=stale)
        return held if held is None or not self.seals(key) else await self.unseal(held)

    async def get_many(self, keys: Sequence[str]) -> list[KeyValue | None]:
        held = await self.inner.get_many(keys)
        return [kv if kv is None or not self.seals(kv.key) else await self.unseal(kv) for kv in held]

    async def page(
        self, start: str, end: str, *, revision: int | None = None, limit: int = 500, stale: bool = False
    ) -> Page:
        page = await self.inner.page(start, end, revision=revision, limit=limit, stale=stale)
        if not self._meets(start, end):
            return page
        past = revision is not None
        return Page([await self.unseal(kv, past=past) for kv in page.items], page.revision, page.next_key)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        if not any(isinstance(op, Put) and self.seals(op.key) for op in ops):
            return await self._opened(await self.inner.txn(compares, ops))
        for _ in range(ATTEMPTS):
            pointer = self._pointer
            sealed = [
                msgspec.structs.replace(op, value=self.seal(op.key, op.value))
                if isinstance(op, Put) and self.seals(op.key)
                else op
                for op in ops
            ]
            result = await self.inner.txn([*compares, pointer], sealed)
            if result.succeeded:
                return result
            *current, held = result.current
            if held is not None and held.mod_revision == pointer.mod_revision:
                return await self._opened(TxnResult(False, result.revision, tuple(current)))
            await self.follow()
        raise Unavailable(f"nothing was written: {self.places.current} changed {ATTEMPTS} times; retry later")

    async def _opened(self, result: TxnResult) -> TxnResult:
        if not any(kv is not None and self.seals(kv.key) for kv in result.current):
            return result
        current = [None if kv is None else await self.unseal(kv) for kv in result.current]
        return msgspec.structs.replace(result, current=tuple(current))

    def watch(
        self, ranges: Sequence[tuple[str, str]], after: int, *, patient: bool = False
    ) -> AsyncIterator[WatchBatch]:
        inner = self.inner.watch(ranges, after, patient=patient)
        if not any(self._meets(start, end) for start, end in ranges):
            return inner
        return self._watch(cast("AsyncGenerator[WatchBatch]", inner))

    async def _watch(self, inner: AsyncGenerator[WatchBatch]) -> AsyncGenerator[WatchBatch]:
        async with aclosing(inner) as batches:
            async for batch in batches:
                if any(self.seals(event.key) for event in batch.events):
                    events = [await self._unsealed(event) for event in batch.events]
                    yield WatchBatch(batch.revision, tuple(events))
                else:
                    yield batch

    async def _unsealed(self, event: Event) -> Event:
        if not self.seals(event.key):
            return event
        kv = None if event.kv is None else await self.unseal(event.kv, past=True)
        return Event(event.key, kv, None if event.prev is None else await self.unseal(event.prev, past=True))

    def _meets(self, start: str, end: str) -> bool:
        return any(start < prefix_end(prefix) and prefix < end for prefix in self.prefixes)

    async def grant(self, ttl_s: float) -> int:
        return await self.inner.grant(ttl_s)

    async def keepalive(self, lease: int) -> float:
        return await self.inner.keepalive(lease)

    async def revoke(self, lease: int) -> None:
        await self.inner.revoke(lease)

    async def compact(self, revision: int) -> None:
        await self.inner.compact(revision)

    async def close(self) -> None:
        await self.inner.close()


async def read_keys(store: Store, root: str) -> dict[str, Wrapped]:
    """The wrapped data keys of a store, by generation. Raises Unreadable for damaged ones, and what the store raises."""
    places = SealKeys(root)
    page = await store.page(places.keys, prefix_end(places.keys), limit=GENERATIONS_MAX)
    try:
        return {
            kv.key.removeprefix(places.keys): msgspec.json.decode(kv.value, type=Wrapped) for kv in page.items
        }
    except msgspec.MsgspecError as wrong:
        raise Unreadable(f"a data key in the store is damaged ({wrong}); restore a backup") from wrong


def _current(held: KeyValue) -> Current:
    try:
        return msgspec.json.decode(held.value, type=Current)
    except msgspec.MsgspecError as wrong:
        raise Unreadable(f"{held.key} is damaged ({wrong}); restore a backup") from wrong
