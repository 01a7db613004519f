"""Moves a fleet's data from one store, or a backup, into another: page by page, resumable, verified.

What is moved: every key of the cell that outlives its writer, sealed values as they are. What belongs to running replicas
(member records, owner keys) and this module's own progress stays behind; the authority, the keys of service account tokens
and the data keys are sealed differently at each place, and moved by others.

A store that is being filled is marked so from its first key on, and no hub serves it before `fill` has compared every
key and taken the mark away (I9: not a hub half loaded). A fill that was cut off goes on where it stopped when the
source is the same; else it is refused.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from hub.access.keys import signing_keys_key
from hub.authority import authority_key
from hub.store.sealing import SealKeys
from shards.kv import TXN_OPS_MAX, Compare, Delete, Page, Put, Store, StoreError, StoreIdentity, prefix_end
from shards.ownership import UnitKeys

BATCH_BYTES_MAX = 1 << 20
PAGE = 500

Item = tuple[str, bytes]
"""A key below the cell's root, and its value."""
Progress = Callable[[int], None]
"""Told how many keys are done."""


class TransferError(StoreError):
    """The transfer cannot begin, go on, or its result differs. The message says why and what to do."""


class Source(Protocol):
    """Where a fleet comes from. `label` names this very state: the same label is the same content."""

    @property
    def identity(self) -> StoreIdentity: ...

    @property
    def label(self) -> str: ...

    def items(self, after: str = "") -> AsyncIterator[Item]:
        """All items with a key above `after`, in ascending order of keys."""
        ...


class Pages(Protocol):
    """What of a store a source needs."""

    @property
    def identity(self) -> StoreIdentity: ...

    async def revision(self) -> int: ...

    async def page(self, start: str, end: str, *, revision: int | None = None, limit: int = 500) -> Page: ...


class _Progress(msgspec.Struct, frozen=True):
    """The value of the progress key: which state is copied, as what, and through which key."""

    source: str
    generation: int
    at: str = ""
    count: int = 0


def progress_key(root: str) -> str:
    return root + "transfer"


def moved(root: str, key: str) -> bool:
    """Does `key` belong to the fleet's data, rather than to running replicas or to one place?"""
    units = UnitKeys(root)
    if key in (authority_key(root), signing_keys_key(root), progress_key(root), root + "meta"):
        return False
    if key.startswith((units.members, SealKeys(root).prefix)):
        return False
    return not (key.startswith((units.slots, units.roles)) and key.endswith("/owner"))


@dataclass(frozen=True, slots=True)
class StoreSource:
    """A store's cell at one revision."""

    store: Pages
    root: str
    revision: int

    @classmethod
    async def of(cls, store: Pages, root: str) -> "StoreSource":
        """The store as it is now. Its history must last as long as the transfer (Compacted is raised else)."""
        return cls(store, root, await store.revision())

    @property
    def identity(self) -> StoreIdentity:
        return self.store.identity

    @property
    def label(self) -> str:
        identity = self.identity
        return f"store {identity.uuid} generation {identity.generation} revision {self.revision}"

    async def items(self, after: str = "") -> AsyncIterator[Item]:
        at: str | None = self.root + after + ("\0" if after else "")
        while at is not None:
            page = await self.store.page(at, prefix_end(self.root), revision=self.revision, limit=PAGE)
            for kv in page.items:
                if kv.lease == 0 and moved(self.root, kv.key):
                    yield kv.key.removeprefix(self.root), kv.value
            at = page.next_key
            await asyncio.sleep(0)


async def fill(
    target: Store, root: str, source: Source, generation: int, progress: Progress = lambda n: None
) -> int:
    """Copies `source` into `target`, which is open for filling under the source's uuid and `generation`, and compares
    them; returns the number of keys. Raises TransferError and what the stores raise; called again it goes on, and
    where everything is there already it compares only."""
    begun = await _begin(target, root, source, generation)
    if begun is None:
        return await _verify(target, root, source)
    state, revision = begun
    batch: list[Item] = []
    size = 0
    async for item in source.items(state.at):
        if batch and (len(batch) >= TXN_OPS_MAX - 1 or size + len(item[1]) > BATCH_BYTES_MAX):
            state, revision = await _write(target, root, batch, state, revision)
            progress(state.count)
            batch, size = [], 0
        batch.append(item)
        size += len(item[1])
    if batch:
        state, revision = await _write(target, root, batch, state, revision)
        progress(state.count)
    await _verify(target, root, source)
    result = await target.txn([Compare(progress_key(root), revision)], [Delete(progress_key(root))])
    if not result.succeeded:
        raise TransferError(_SOMEBODY)
    return state.count


_SOMEBODY = "somebody else writes to the target at the same time; stop that, then run the command again"


async def _begin(target: Store, root: str, source: Source, generation: int) -> tuple[_Progress, int] | None:
    held = await target.get(progress_key(root))
    if held is not None:
        state = msgspec.json.decode(held.value, type=_Progress)
        if state.source != source.label or state.generation != generation:
            raise TransferError(
                f"the target holds half of another transfer (of {state.source}); finish that one, or empty the target"
            )
        return state, held.mod_revision
    start = root
    while True:
        page = await target.page(start, prefix_end(root), limit=2)
        others = [kv.key for kv in page.items if moved(root, kv.key)]
        if others:
            return None  # filled and compared, and then cut off before its mark was taken away; or something else
        if page.next_key is None:
            break
        start = page.next_key
    state = _Progress(source.label, generation)
    result = await target.txn([Compare(progress_key(root), 0)], [Put(progress_key(root), _dump(state))])
    if not result.succeeded:
        raise TransferError(_SOMEBODY)
    return state, result.revision


async def _write(
    target: Store, root: str, batch: list[Item], state: _Progress, revision: int
) -> tuple[_Progress, int]:
    after = _Progress(state.source, state.generation, batch[-1][0], state.count + len(batch))
    ops = [Put(root + key, value) for key, value in batch]
    result = await target.txn(
        [Compare(progress_key(root), revision)], [*ops, Put(progress_key(root), _dump(after))]
    )
    if not result.succeeded:
        raise TransferError(_SOMEBODY)
    return after, result.revision


async def _verify(target: Store, root: str, source: Source) -> int:
    there = StoreSource(target, root, await target.revision())
    wanted, found = await digest(source), await digest(there)
    if wanted != found:
        raise TransferError(
            f"the target differs from the source ({found[0]} keys, {wanted[0]} wanted): empty the target and run the"
            " command again"
        )
    return wanted[0]


async def digest(source: Source) -> tuple[int, str]:
    """(number of items, SHA-256 over them)."""
    state = Digest()
    async for key, value in source.items():
        state.add(key, value)
    return state.count, state.hexdigest()


class Digest:
    """SHA-256 over items, each with its lengths, so that no two lists of items run together."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self.count = 0
        self._hash = hashlib.sha256()
        for key, value in items:
            self.add(key, value)

    def add(self, key: str, value: bytes) -> None:
        self.count += 1
        encoded = key.encode()
        self._hash.update(b"%d %d\n" % (len(encoded), len(value)))
        self._hash.update(encoded)
        self._hash.update(value)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _dump(state: _Progress) -> bytes:
    return msgspec.json.encode(state)
