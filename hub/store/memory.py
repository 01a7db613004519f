"""The reference store: everything in this process, lost with it. Simple on purpose; the others are held against it."""

import bisect
import uuid
from collections.abc import AsyncIterator, Sequence

from hub.store.watchers import Watchers
from shards.kv import (
    FORMAT_VERSION,
    Compacted,
    Compare,
    Delete,
    Event,
    FutureRevision,
    KeyValue,
    LeaseGone,
    Page,
    Put,
    StoreIdentity,
    TxnResult,
    Unavailable,
    WatchBatch,
    check_txn,
)


class MemoryStore:
    """See `shards.kv.Store`. Keeps the whole history until it is compacted."""

    def __init__(self, *, slots: int = 1024) -> None:
        self._identity = StoreIdentity(str(uuid.uuid4()), 1, FORMAT_VERSION, slots)
        self._keys: list[str] = []
        self._versions: dict[str, list[tuple[int, KeyValue | None]]] = {}
        self._log: list[WatchBatch] = []
        self._revision = 1
        self._oldest = 1
        self._watchers = Watchers()
        self._closed = False
        self._leases: dict[int, float] = {}
        self._leases_made = 0

    @property
    def identity(self) -> StoreIdentity:
        return self._identity

    async def revision(self) -> int:
        return self._revision

    async def get(self, key: str, *, stale: bool = False) -> KeyValue | None:
        self._check_open()
        return self._at(key, self._revision)

    async def get_many(self, keys: Sequence[str]) -> list[KeyValue | None]:
        return [await self.get(key) for key in keys]

    async def page(
        self, start: str, end: str, *, revision: int | None = None, limit: int = 500, stale: bool = False
    ) -> Page:
        self._check_open()
        at = self._revision if revision is None else revision
        if at > self._revision:
            raise FutureRevision(f"revision {at} is not reached yet, the store is at {self._revision}")
        if at < self._oldest:
            raise Compacted(at, self._oldest)
        items: list[KeyValue] = []
        for key in self._keys[bisect.bisect_left(self._keys, start) : bisect.bisect_left(self._keys, end)]:
            kv = self._at(key, at)
            if kv is None:
                continue
            if len(items) == limit:
                return Page(items, at, key)
            items.append(kv)
        return Page(items, at, None)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        self._check_open()
        check_txn(compares, ops)
        current = tuple(self._at(c.key, self._revision) for c in compares)
        held = all(
            (kv.mod_revision if kv else 0) == c.mod_revision for kv, c in zip(current, compares, strict=True)
        )
        if not held:
            return TxnResult(False, self._revision, current)
        effective = [op for op in ops if isinstance(op, Put) or self._at(op.key, self._revision) is not None]
        if gone := [op for op in ops if isinstance(op, Put) and op.lease and op.lease not in self._leases]:
            raise LeaseGone(f"{gone[0].key}: its lease has ended: nothing was written; grant a new one")
        self._write(effective)
        return TxnResult(True, self._revision)

    async def grant(self, ttl_s: float) -> int:
        """Leases end with `revoke` and `expire` only: this store has no clock."""
        self._check_open()
        self._leases_made += 1
        self._leases[self._leases_made] = ttl_s
        return self._leases_made

    async def keepalive(self, lease: int) -> float:
        self._check_open()
        return self._leases.get(lease, 0.0)

    async def revoke(self, lease: int) -> None:
        self._check_open()
        self.expire(lease)

    def expire(self, lease: int) -> None:
        """What the end of a lease does, at once: its keys go in one revision."""
        self._leases.pop(lease, None)
        present = (self._at(key, self._revision) for key in self._keys)
        self._write([Delete(kv.key) for kv in present if kv is not None and lease and kv.lease == lease])

    def watch(
        self, ranges: Sequence[tuple[str, str]], after: int, *, patient: bool = False
    ) -> AsyncIterator[WatchBatch]:
        return self._watchers.stream(ranges, after, self._replay)

    async def compact(self, revision: int) -> None:
        if revision > self._revision:
            raise FutureRevision(f"revision {revision} is not reached yet, the store is at {self._revision}")
        if revision <= self._oldest:
            return
        self._oldest = revision
        self._log = [b for b in self._log if b.revision > revision]
        for key in list(self._versions):
            versions = self._versions[key]
            keep = max((i for i, (r, _) in enumerate(versions) if r <= revision), default=0)
            versions = versions[keep:]
            if len(versions) == 1 and versions[0][1] is None and versions[0][0] <= revision:
                del self._versions[key]
                del self._keys[bisect.bisect_left(self._keys, key)]
            else:
                self._versions[key] = versions

    async def close(self) -> None:
        self._closed = True
        self._watchers.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the store is closed")

    def _at(self, key: str, revision: int) -> KeyValue | None:
        for written, kv in reversed(self._versions.get(key, ())):
            if written <= revision:
                return kv
        return None

    def _write(self, ops: Sequence[Put | Delete]) -> None:
        """Carries out what has an effect, as one revision."""
        if not ops:
            return
        self._revision += 1
        batch = WatchBatch(self._revision, tuple(self._apply(op) for op in ops))
        self._log.append(batch)
        self._watchers.publish((batch,))

    def _apply(self, op: Put | Delete) -> Event:
        prev = self._at(op.key, self._revision - 1)
        kv: KeyValue | None = None
        if isinstance(op, Put):
            created = prev.create_revision if prev else self._revision
            kv = KeyValue(op.key, op.value, created, self._revision, op.lease)
        if op.key not in self._versions:
            bisect.insort(self._keys, op.key)
        self._versions.setdefault(op.key, []).append((self._revision, kv))
        return Event(op.key, kv, prev)

    async def _replay(self, after: int) -> tuple[list[WatchBatch], int]:
        self._check_open()
        # Deletions made at the oldest revision itself are forgotten.
        if after < self._oldest:
            raise Compacted(after, self._oldest)
        return [b for b in self._log if b.revision > after], self._revision
