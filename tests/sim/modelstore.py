"""A store as `shards.kv` promises it, in memory and without time of its own: what the simulation judges writes by."""

from collections.abc import Callable, Sequence

import msgspec

from shards import claims
from shards.kv import Compare, Delete, Event, KeyValue, Put, TxnResult
from shards.ownership import OwnerRecord

DATA = "data/"
"""Keys that owners write: `data/<slot>`, the value is `<epoch> <incarnation>`."""


class Violation(AssertionError):
    """An invariant does not hold."""


class LeaseEnded(Exception):
    pass


class ModelStore:
    """`fenced` False leaves out the epoch's compare of owners' writes, to see that the simulation notices."""

    def __init__(self, root: str, now: Callable[[], float], fenced: bool = True) -> None:
        self.root = root
        self.now = now
        self.fenced = fenced
        self.keys: dict[str, KeyValue] = {}
        self.revision = 1
        self.leases: dict[int, tuple[float, float]] = {}
        """TTL and true end of each lease."""
        self.branch = 0
        """Raised by each restore: (branch, revision) names a state of the data for ever."""
        self.forks: list[tuple[int, int]] = []
        """Of each branch after the first: the branch that it left, and the revision at which it did."""
        self.committed: Callable[[int, list[Event]], None] = lambda revision, events: None
        self._next_lease = 100
        self._writers: dict[tuple[int, str, int], str] = {}
        self._highest: dict[str, int] = {}

    # -- leases

    def grant(self, ttl_s: float) -> int:
        self._next_lease += 1
        self.leases[self._next_lease] = (ttl_s, self.now() + ttl_s)
        return self._next_lease

    def keepalive(self, lease: int) -> float:
        self.expire()
        if lease not in self.leases:
            return 0.0
        ttl_s, _ = self.leases[lease]
        self.leases[lease] = (ttl_s, self.now() + ttl_s)
        return ttl_s

    def revoke(self, lease: int) -> None:
        if self.leases.pop(lease, None) is None:
            return
        gone = [key for key, kv in self.keys.items() if kv.lease == lease]
        if gone:
            self._commit([Delete(key) for key in gone])

    def expire(self) -> None:
        for lease, (_, end) in list(self.leases.items()):
            if end <= self.now():
                self.revoke(lease)

    # -- keys

    def items(self) -> tuple[KeyValue, ...]:
        return tuple(kv for key, kv in self.keys.items() if key.startswith(self.root))

    def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        self.expire()
        owners_write = any(op.key.startswith(DATA) for op in ops)
        if self.fenced or not owners_write:
            for compare in compares:
                kv = self.keys.get(compare.key)
                if (kv.mod_revision if kv else 0) != compare.mod_revision:
                    return TxnResult(False, self.revision, tuple(self.keys.get(c.key) for c in compares))
        for op in ops:
            if isinstance(op, Put) and op.lease and op.lease not in self.leases:
                raise LeaseEnded
        self._commit(ops)
        return TxnResult(True, self.revision)

    def _commit(self, ops: Sequence[Put | Delete]) -> None:
        revision = self.revision + 1
        events = []
        for op in ops:
            before = self.keys.get(op.key)
            if isinstance(op, Delete):
                if before is not None:
                    del self.keys[op.key]
                    events.append(Event(op.key, None, before))
                continue
            created = before.create_revision if before else revision
            kv = self.keys[op.key] = KeyValue(op.key, op.value, created, revision, op.lease)
            events.append(Event(op.key, kv, before))
        if not events:
            return
        self.revision = revision
        for event in events:
            self._check(event)
        self.committed(revision, events)

    def restore(self, revision: int, keys: dict[str, KeyValue]) -> None:
        """An older state; its leases begin anew, as those of an etcd that starts."""
        self.forks.append((self.branch, revision))
        self.branch += 1
        self.revision, self.keys = revision, dict(keys)
        self.leases = {kv.lease: (3.0, self.now() + 3.0) for kv in keys.values() if kv.lease}
        self._highest.clear()

    def contains(self, earlier: tuple[int, int], later: tuple[int, int]) -> bool:
        """Does whoever knows all of `later` know all of `earlier`?"""
        branch, revision = later
        while branch > earlier[0]:
            branch, fork = self.forks[branch - 1]
            revision = min(revision, fork)
        return branch == earlier[0] and earlier[1] <= revision

    # -- invariants

    def epoch(self, unit_key: str) -> int:
        kv = self.keys.get(unit_key + "/epoch")
        return claims.parse(kv.value if kv else None).epoch

    def _check(self, event: Event) -> None:
        key, kv = event.key, event.kv
        if kv is None:
            return
        if key.endswith("/owner"):
            if event.prev is not None:
                raise Violation(f"{key} was claimed while it had an owner")
            owner = msgspec.json.decode(kv.value, type=OwnerRecord)
            epoch = self.epoch(key.removesuffix("/owner"))
            if (
                owner.epoch != epoch
                or self.keys[key[: -len("owner")] + "epoch"].mod_revision != self.revision
            ):
                raise Violation(f"{key} was claimed in epoch {owner.epoch}, its epoch key says {epoch}")
        elif key.endswith("/epoch"):
            before = claims.parse(event.prev.value if event.prev else None).epoch
            if claims.parse(kv.value).epoch != before + 1:
                raise Violation(f"{key} went from epoch {before} to {claims.parse(kv.value).epoch}")
        elif key.startswith(DATA):
            self._check_write(key, kv.value.decode())

    def _check_write(self, key: str, value: str) -> None:
        number, writer = value.split()
        epoch, slot = int(number), key[len(DATA) :]
        present = self.epoch(f"{self.root}slot/{slot}")
        if epoch != present:
            raise Violation(f"slot {slot}: a write of epoch {epoch} was accepted in epoch {present}")
        if epoch < self._highest.get(slot, 0):
            raise Violation(f"slot {slot}: epoch {epoch} wrote after epoch {self._highest[slot]}")
        self._highest[slot] = epoch
        if self._writers.setdefault((self.branch, slot, epoch), writer) != writer:
            raise Violation(f"slot {slot}: two writers in epoch {epoch}")
