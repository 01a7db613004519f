"""One replica's membership: its lease, its record, the units that it claims, drains, loses. [pure]

The driver (`shards.member`) and the simulation give it what happened, with the time at which they do, and carry out the
actions that come back, in their order. Times are seconds of CLOCK_BOOTTIME, so that a machine that slept knows.

Invariants: `fences` holds only units that a transaction of ours, under our lease, has claimed, and may be used only
before `acting_until`: the sending time of the last answered keepalive, plus the TTL, less a margin for clocks of
different rates. Past it this replica is suspended. It resumes after a keepalive that was answered in time and a
linearizable read, sent after that answer, in which the owner keys are unchanged. It does not guarantee that no write
of an ended owner reaches the store: each write carries its fence for that.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import msgspec

from shards import actions as do
from shards import claims
from shards.actions import Action, Failure
from shards.claims import Claim, Fence, SlotRecord
from shards.kv import Compare, Delete, Event, Put, TxnResult
from shards.ownership import ROLES, MemberRecord, Owned, OwnerRecord, Unit, UnitKeys
from shards.rebalance import CLAIM_MAX, DRAIN_MAX, Attendance, plan
from shards.ring import Ring, RingError, assign
from shards.view import Change, Snapshot, View

CLAIM_BYTES = 512 * 1024
"""Epoch records of one claiming transaction: etcd refuses requests of 1.5 MiB."""

HANDED_S = 1.0
"""How long a unit that was released counts against the next batch while nobody has claimed it."""


@dataclass(frozen=True, slots=True)
class Timing:
    """`ttl_s` of the lease. `margin`: the part of it by which clocks may differ in rate. `holdoff_s`: before a member
    that joins counts. `retry_s`: before what the store refused is tried again."""

    ttl_s: float = 5.0
    margin: float = 0.1
    holdoff_s: float = 1.0
    retry_s: float = 0.5


@dataclass(slots=True)
class Counters:
    """Units since the start; `gap_s` is the longest time of the last claim that one of its units had no owner."""

    claims: int = 0
    releases: int = 0
    lost: int = 0
    suspensions: int = 0
    gap_s: float = 0.0


@dataclass(slots=True)
class _Flying:
    """A transaction whose result is not known yet."""

    purpose: str
    lease: int
    units: dict[Unit, tuple[Claim, SlotRecord] | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Held:
    owned: Owned
    create_revision: int


class Membership:
    """See the module. `random_id` gives 16 hex digits, `wall` unix seconds for the record of claims."""

    def __init__(
        self,
        keys: UnitKeys,
        record: MemberRecord,
        slots: int,
        timing: Timing,
        *,
        random_id: Callable[[], str],
        wall: Callable[[], float],
        roles: tuple[str, ...] = ROLES,
    ) -> None:
        self.keys = keys
        self.record = record
        self.slots = slots
        self.counters = Counters()
        self.fences: dict[Unit, Fence] = {}
        self.acting_until = -math.inf
        self.lease = 0
        self.registered = False
        self.taken_by: MemberRecord | None = None
        """Another process is registered under our id, as last seen."""
        self.problem = ""
        """Why units stay without an owner; for the status."""
        self.stopped = False
        self._timing = timing
        self._random_id = random_id
        self._wall = wall
        self._roles = roles
        self._number = 0
        self._held: dict[Unit, _Held] = {}
        self._untold: set[Unit] = set()
        self._ring_of: tuple[list[MemberRecord], Ring] | None = None
        """The members that counted at the last plan, and their ring."""
        self._draining: set[Unit] = set()
        self._drained: set[Unit] = set()
        self._suspended = False
        self._stopping = False
        self._reading = 0
        self._read_proves = False
        self._forget()

    # -- what the driver asks ------------------------------------------------------------------------------------

    def of(self, unit: Unit) -> Owned | None:
        held = self._held.get(unit)
        return held.owned if held is not None else None

    @property
    def held(self) -> Collection[Unit]:
        return self._held.keys()

    def owner(self, unit: Unit) -> OwnerRecord | None:
        """Who owns the unit, as last seen; a key without a lease is of a hub that has gone."""
        held = self._held.get(unit)
        if held is not None:
            return self._owner_record(held.owned.claim.epoch)
        key = self.view.owners.get(unit)
        return key.record if key is not None and key.lease else None

    @property
    def suspended(self) -> bool:
        return self._suspended

    @property
    def settled(self) -> bool:
        """Is nothing under way: all that counts for us is ours, nothing is about to be handed over?"""
        return (
            self.registered
            and self._settled
            and not self._suspended
            and not self._flying
            and not self._draining
            and not self._drained
        )

    def next_tick(self, now: float) -> float:
        """When `tick` is wanted at the latest, if nothing else comes before."""
        at = [self._attendance.deadline(now) or math.inf]
        if self._retry_at > now:
            at.append(self._retry_at)
        if self._handed:
            at.append(min(self._handed.values()))
        if self.lease:
            at.append(math.inf if self._keeping else self._keep_at)
            at.append(math.inf if self._suspended else self._deadline)
        return max(now, min(at))

    # -- what happened -------------------------------------------------------------------------------------------

    def snapshot(self, now: float, snapshot: Snapshot) -> list[Action]:
        """The first state, or a new one where the watch could not go on."""
        out = self._begin(now)
        self._see_snapshot(now, snapshot, out)
        return self._advance(now, out)

    def watched(self, now: float, revision: int, events: Iterable[Event]) -> list[Action]:
        """One batch of the watch that follows the snapshot."""
        out = self._begin(now)
        change = self.view.apply(revision, events)
        # Every write of the fleet brings progress, and a plan of all units costs milliseconds.
        if change.owners or change.epochs or change.members:
            self._changed(now, change, out)
        return self._advance(now, out)

    def history_lost(self, now: float) -> list[Action]:
        """The store has gone back to an older state: nothing that was known of it holds. A `snapshot` follows."""
        out = self._begin(now)
        self._end_lease(out)
        self._forget()
        return self._advance(now, out)

    def granted(self, now: float, sent_at: float, lease: int, ttl_s: float) -> list[Action]:
        out = self._begin(now)
        self._granting = False
        if self._stopping or self.lease:
            return self._advance(now, [*out, do.Revoke(lease)])
        self.lease = lease
        self._deadline = -math.inf
        self._keeping = False
        self._prolong(sent_at, ttl_s)
        self._suspended = now >= self._deadline
        self.acting_until = -math.inf if self._suspended else self._deadline
        return self._advance(now, out)

    def grant_failed(self, now: float) -> list[Action]:
        out = self._begin(now)
        self._granting = False
        self._retry_at = now + self._timing.retry_s
        return self._advance(now, out)

    def kept(self, now: float, lease: int, sent_at: float, ttl_s: float) -> list[Action]:
        """A keepalive was answered; `ttl_s` 0: the lease has ended."""
        out = self._begin(now)
        if lease == self.lease:
            self._keeping = False
            if ttl_s <= 0:
                self._end_lease(out)
            else:
                self._prolong(sent_at, ttl_s)
                if not self._suspended:
                    self.acting_until = self._deadline
                elif now < self._deadline:
                    self._read_wanted = True
        return self._advance(now, out)

    def keepalive_failed(self, now: float, lease: int) -> list[Action]:
        out = self._begin(now)
        if lease == self.lease:
            self._keeping = False
            self._keep_at = now + self._timing.retry_s
        return self._advance(now, out)

    def read_done(self, now: float, number: int, snapshot: Snapshot | None) -> list[Action]:
        """`snapshot` None: the store could not be read."""
        out = self._begin(now)
        if number == self._reading:
            self._reading = 0
            if snapshot is None:
                self._read_wanted = True
                self._retry_at = now + self._timing.retry_s
            else:
                # Not older than the view was when the read began, unless the store went back; the watch may have
                # overtaken it since, and then tells more.
                if not self._reading_from <= snapshot.revision < self.view.revision:
                    self._see_snapshot(now, snapshot, out)
                for unit in self._read_settles:
                    if self._blind_until.get(unit) == math.inf:
                        del self._blind_until[unit]
                # The watch may have shown a claim of ours while its answer was awaited, so nothing has changed since.
                self._adopt(self.view.owners.keys() - self._busy(), out)
                if self._read_proves:
                    self._resume(now, self.view.revision, out)
        return self._advance(now, out)

    def txn_done(self, now: float, number: int, result: TxnResult | Failure) -> list[Action]:
        out = self._begin(now)
        flying = self._flying.pop(number, None)
        self._settled = False
        if flying is None or flying.lease != self.lease:
            return self._advance(now, out)  # of a lease that has ended: its keys are gone with it
        if isinstance(result, Failure):
            self._retry_at = now + self._timing.retry_s
            if result is Failure.LEASE_GONE:
                self._end_lease(out)
            elif result is Failure.AMBIGUOUS and flying.purpose in ("claim", "release"):
                self._read_wanted = True
                self._retry_at = now
            elif flying.units:
                # Meanwhile the watch may have shown an earlier claim of ours, carried out late, or the end of what is
                # held: both were left to this result, which tells nothing.
                self._changed(now, Change(), out, flying.units)
        elif flying.purpose == "claim":
            self._claimed(now, flying, result, out)
        elif flying.purpose == "release":
            self._released(now, flying, result, out)
        elif flying.purpose == "register":
            self._registered(now, result)
        elif flying.purpose == "mark":
            self._marked = result.succeeded
        return self._advance(now, out)

    def drained(self, now: float, units: Iterable[Unit]) -> list[Action]:
        """Nobody acts for these any more: they are released."""
        out = self._begin(now)
        for unit in units:
            if unit in self._draining:
                self._draining.discard(unit)
                self._drained.add(unit)
                self.fences.pop(unit, None)
        return self._advance(now, out)

    def fence_lost(self, now: float, unit: Unit) -> list[Action]:
        """The store refused a write by the unit's fence, or by that of an earlier claim of ours, whose answer came late:
        a read sent from now on tells which, and where it shows our claim we take it up again."""
        out = self._begin(now)
        if unit in self._held:
            self._lose([unit], out)
            self._blind_until[unit] = math.inf
            self._read_wanted = True
        return self._advance(now, out)

    def tick(self, now: float) -> list[Action]:
        return self._advance(now, self._begin(now))

    def stop(self, now: float) -> list[Action]:
        """Hands everything over; `Stopped` is the last action. Where that takes too long: `give_up`."""
        out = self._begin(now)
        self._stopping = True
        self._settled = False
        return self._advance(now, out)

    def give_up(self, now: float) -> list[Action]:
        """Ends at once, with whatever is held."""
        out = self._begin(now)
        self._stopping = True
        if self.lease:
            out.append(do.Revoke(self.lease))
            self._end_lease(out)
        return self._advance(now, out)

    # -- the lease -----------------------------------------------------------------------------------------------

    def _begin(self, now: float) -> list[Action]:
        """Whatever has happened: first of all, has the deadline passed?"""
        if not self.lease or self._suspended or now < self._deadline:
            return []
        self._suspended = True
        self.acting_until = -math.inf
        self.counters.suspensions += 1
        return [do.Suspended()]

    def _prolong(self, sent_at: float, ttl_s: float) -> None:
        self._deadline = max(self._deadline, sent_at + ttl_s * (1.0 - self._timing.margin))
        self._keep_at = sent_at + self._timing.ttl_s / 3

    def _end_lease(self, out: list[Action]) -> None:
        self.lease = 0
        self.acting_until = -math.inf
        self._suspended = False
        self.registered = self._marked = False
        self._keeping = False
        self._flying.clear()
        self._lose(list(self._held), out)

    def _resume(self, now: float, revision: int, out: list[Action]) -> None:
        """A read that was sent after a fresh keepalive has shown what is still ours."""
        if not self._suspended or not self.lease or now >= self._deadline:
            return
        if any(h.owned.fence.mod_revision > revision for h in self._held.values()):
            self._read_wanted = True  # claimed at the last moment, so this read could not show it
            return
        self._suspended = False
        self.acting_until = self._deadline
        out.append(do.Resumed(tuple(u for u in self._held if u not in self._untold)))
        if self._untold:
            out.append(do.Gained(tuple(self._held[u].owned for u in self._untold)))
            self._untold.clear()

    def _forget(self) -> None:
        """Before the first snapshot."""
        self.view = View(self.keys, self.slots)
        self._attendance = Attendance(self.record.id, self._timing.holdoff_s)
        self._flying: dict[int, _Flying] = {}
        self._gone_at: dict[Unit, float] = {}
        self._handed: dict[Unit, float] = {}
        self._reading = 0
        self._reading_from = 0
        self._blind_until: dict[Unit, float] = {}
        """The revision from which on the view may show a claim of ours again: before it, it may show one that we have
        released. Infinite where a write was refused, until a read sent after that is answered."""
        self._read_settles: set[Unit] = set()
        """Units whose refused writes the read under way decides about."""
        self._read_wanted = False
        self._read_proves = False
        self._granting = False
        self._keeping = False
        self._keep_at = self._deadline = self._retry_at = -math.inf
        self._marked = False
        self._registered_at = 0
        self._settled = False

    # -- what the store shows --------------------------------------------------------------------------------------

    def _see_snapshot(self, now: float, snapshot: Snapshot, out: list[Action]) -> None:
        if snapshot.revision < self.view.revision:
            self._end_lease(out)
            self._forget()
        change = self.view.replace(snapshot)
        # What was seen while a transaction was under way was left to its result: look at all of it again.
        self._changed(now, change, out, self._held.keys() | self.view.owners.keys())

    def _changed(self, now: float, change: Change, out: list[Action], again: Iterable[Unit] = ()) -> None:
        """`again`: units to look at though nothing of them has changed."""
        busy = self._busy()
        lost: list[Unit] = []
        routes: list[Unit] = []
        suspects = change.owners | change.epochs | set(again)
        for unit in suspects:
            held = self._held.get(unit)
            if unit not in self.view.owners:
                self._gone_at.setdefault(unit, now)
            else:
                self._gone_at.pop(unit, None)
                self._handed.pop(unit, None)
            if held is None:
                routes += [unit] if unit in change.owners else []
            elif unit not in busy and not self._is_ours(unit, held):
                lost.append(unit)
        self._lose(lost, out)
        self._adopt(suspects - busy, out)
        if change.members:
            if self.record.id in change.members:
                self._see_own_record()
            routes += (u for u, k in self.view.owners.items() if k.record.member in change.members)
        routes = [u for u in dict.fromkeys((*lost, *routes)) if u not in self._held]
        if routes:
            out.append(do.RoutesChanged(tuple(routes)))
        if change.members or change.owners:
            unowned = not any(k.lease for k in self.view.owners.values())
            self._attendance.update(self.view.members, now, unowned=unowned)
        self._settled = False

    def _is_ours(self, unit: Unit, held: _Held) -> bool:
        """Does the view still show our claim? True as well where the view is older than the claim."""
        fence = held.owned.fence
        if fence.mod_revision > self.view.revision:
            return True
        key, epoch = self.view.owners.get(unit), self.view.epochs.get(unit)
        return (
            key is not None
            and (key.create_revision, key.lease) == (held.create_revision, self.lease)
            and epoch is not None
            and epoch.mod_revision == fence.mod_revision
        )

    def _adopt(self, units: Iterable[Unit], out: list[Action]) -> None:
        """Claims of ours whose result was lost."""
        found: list[Unit] = []
        for unit in units:
            key, epoch = self.view.owners.get(unit), self.view.epochs.get(unit)
            if (
                unit in self._held
                or key is None
                or epoch is None
                or not self.lease
                or key.lease != self.lease
                # The watch may show a claim only after we have released it.
                or self.view.revision < self._blind_until.get(unit, 0)
            ):
                continue
            record = _parse(epoch.value)
            if (
                record is not None
                and key.record == self._owner_record(record.epoch)
                and epoch.mod_revision == key.mod_revision
            ):
                fence = Fence(epoch.key, epoch.mod_revision)
                self._held[unit] = _Held(Owned(unit, record.claims[-1], fence, record), key.create_revision)
                found.append(unit)
        self._gain(found, out)

    def _see_own_record(self) -> None:
        mine = self.view.members.get(self.record.id)
        if mine is None or mine.incarnation == self.record.incarnation:
            self.taken_by = None
        if mine is None and self.registered and self.view.revision > self._registered_at:
            self.registered = False  # somebody has deleted it

    # -- results -----------------------------------------------------------------------------------------------------

    def _registered(self, now: float, result: TxnResult) -> None:
        current = None if result.succeeded else result.current[0]
        if current is not None:
            try:
                found = msgspec.json.decode(current.value, type=MemberRecord)
            except msgspec.MsgspecError:
                found = MemberRecord(self.record.id, "unknown")
            if (found.incarnation, current.lease) != (self.record.incarnation, self.lease):
                self.taken_by = found if found.incarnation != self.record.incarnation else None
                self._retry_at = now + self._timing.retry_s
                return
        elif not result.succeeded:
            return
        self.registered, self.taken_by = True, None
        self._registered_at = result.revision
        self.view.members[self.record.id] = self.record
        self._attendance.update(
            self.view.members, now, unowned=not any(k.lease for k in self.view.owners.values())
        )
        self._settled = False

    def _claimed(self, now: float, flying: _Flying, result: TxnResult, out: list[Action]) -> None:
        if not result.succeeded:
            self._read_wanted = True
            return
        self.counters.gap_s = max((now - self._gone_at.pop(u, now) for u in flying.units), default=0.0)
        for unit, made in flying.units.items():
            assert made is not None
            claim, record = made
            old = self.view.owners.get(unit)
            created = old.create_revision if old is not None and not old.lease else result.revision
            fence = Fence(self.keys.epoch(unit), result.revision)
            self._held[unit] = _Held(Owned(unit, claim, fence, record), created)
        self._gain(flying.units, out)
        # The watch may have been faster, and have shown their end as well.
        self._lose([u for u in flying.units if not self._is_ours(u, self._held[u])], out)

    def _gain(self, units: Collection[Unit], out: list[Action]) -> None:
        if not units:
            return
        self.counters.claims += len(units)
        self.fences.update((u, self._held[u].owned.fence) for u in units)
        self._settled = False
        if self._suspended:
            self._untold.update(units)
        else:
            out.append(do.Gained(tuple(self._held[u].owned for u in units)))

    def _released(self, now: float, flying: _Flying, result: TxnResult, out: list[Action]) -> None:
        if not result.succeeded:
            self._read_wanted = True
            return
        for unit in flying.units:
            key = self.view.owners.get(unit)
            # The watch may have been faster, and have shown the next claim already.
            if key is None or key.record.member == self.record.id:
                self._handed[unit] = now + HANDED_S
        self._lose(list(flying.units), out)
        self._blind_until.update((unit, result.revision) for unit in flying.units)

    def _lose(self, units: Collection[Unit], out: list[Action]) -> None:
        told = []
        for unit in units:
            held = self._held.pop(unit, None)
            if held is None:
                continue
            if unit in self._drained:
                self.counters.releases += 1
            else:
                self.counters.lost += 1
            if unit in self._untold:
                self._untold.discard(unit)
            else:
                told.append(unit)
            self.fences.pop(unit, None)
            self._draining.discard(unit)
            self._drained.discard(unit)
        self._settled = False
        if told:
            out.append(do.Lost(tuple(told)))

    # -- what to do next -----------------------------------------------------------------------------------------------

    def _advance(self, now: float, out: list[Action]) -> list[Action]:
        for unit in [u for u, until in self._handed.items() if until <= now]:
            del self._handed[unit]
        if self.stopped:
            return out
        if self._stopping and self._leave(out):
            return out
        if not self.view.revision:
            return out
        if not self.lease:
            if not self._granting and now >= self._retry_at:
                self._granting = True
                out.append(do.Grant(self._timing.ttl_s))
            return out
        if not self._keeping and now >= self._keep_at:
            self._keeping = True
            out.append(do.KeepAlive(self.lease))
        if now < self._retry_at:
            return out
        if self._read_wanted and not self._reading:
            self._read_wanted = False
            self._read_proves = self._suspended and now < self._deadline
            self._reading = self._next_number()
            self._reading_from = self.view.revision
            self._read_settles = {u for u, until in self._blind_until.items() if until == math.inf}
            out.append(do.Read(self._reading))
        if not self._suspended:
            self._act(now, out)
        return out

    def _act(self, now: float, out: list[Action]) -> None:
        """Writes of a member whose deadline is ahead."""
        if not self.registered:
            if not self._stopping and not self._in_flight("register"):
                key = self.keys.member(self.record.id)
                self._fly("register", {}, [Compare(key, 0)], [self._own_put(self.record)], out)
            return
        if self._stopping and not self._marked and not self._in_flight("mark"):
            leaving = msgspec.structs.replace(self.record, draining=True)
            self._fly("mark", {}, [], [self._own_put(leaving)], out)
        self._release(out)
        # Once settled, nothing is to be moved until something has changed.
        if not self._settled and not self._reading and not self._read_wanted:
            self._rebalance(now, out)

    def _rebalance(self, now: float, out: list[Action]) -> None:
        counted = self._attendance.counted(now)
        claiming = {u for f in self._flying.values() if f.purpose == "claim" for u in f.units}
        releasing = {u for f in self._flying.values() if f.purpose == "release" for u in f.units}
        alone = self._stopping and not any(m.id != self.record.id and not m.draining for m in counted)
        wanted = plan(
            self._ring(counted),
            {u: k.record.member for u, k in self.view.owners.items() if k.lease},
            self._held,
            own=self.record.id,
            claiming=claiming,
            draining=self._draining | self._drained | releasing,
            stopping=self._stopping,
            claim_max=CLAIM_MAX,
            # No faster than the others claim, so that few are nobody's at a time; but where nobody waits for them, one
            # flush for all instead of one for each batch.
            handed=0 if alone else len(self._handed),
            drain_max=len(self._held) if alone else DRAIN_MAX,
        )
        if wanted.drain:
            self._draining.update(wanted.drain)
            out.append(do.Drain(wanted.drain))
        if wanted.claim:
            self._claim(wanted.claim, out)
        planned = wanted.claim or wanted.drain or self._handed
        self._settled = self._attendance.deadline(now) is None and not planned

    def _ring(self, counted: list[MemberRecord]) -> Ring:
        self.problem = ""
        if self._ring_of is not None and self._ring_of[0] == counted:
            return self._ring_of[1]
        try:
            ring = assign(counted, self.slots, self._roles)
        except (RingError, ValueError) as problem:
            self.problem = str(problem)  # everybody keeps what it has
            self._ring_of = None
            return Ring((), {})
        self._ring_of = (counted, ring)
        return ring

    def _claim(self, units: Iterable[Unit], out: list[Action]) -> None:
        made: dict[Unit, tuple[Claim, SlotRecord] | None] = {}
        compares: list[Compare] = []
        ops: list[Put | Delete] = []
        total = 0
        for unit in units:
            key, epoch = self.view.owners.get(unit), self.view.epochs.get(unit)
            known = _parse(epoch.value if epoch else None)
            if known is None:
                self.problem = (
                    f"{self.keys.epoch(unit)} cannot be read, so {unit} has no owner: restore a backup"
                )
                continue
            record, claim = claims.claim(known, self._random_id(), self.view.absent_at(unit), self._wall())
            value = claims.dump(record)
            total += len(value)
            if made and total > CLAIM_BYTES:
                break
            made[unit] = (claim, record)
            owner = msgspec.json.encode(self._owner_record(claim.epoch))
            compares.append(Compare(self.keys.owner(unit), key.mod_revision if key else 0))
            compares.append(Compare(self.keys.epoch(unit), epoch.mod_revision if epoch else 0))
            ops.append(Put(self.keys.owner(unit), owner, self.lease))
            ops.append(Put(self.keys.epoch(unit), value))
        if made:
            self._fly("claim", made, compares, ops, out)

    def _release(self, out: list[Action]) -> None:
        if not self._drained or self._read_wanted or self._reading:
            return
        flying = {u for f in self._flying.values() if f.purpose == "release" for u in f.units}
        units = [u for u in self._drained if u not in flying]
        for first in range(0, len(units), CLAIM_MAX):
            some = units[first : first + CLAIM_MAX]
            compares: list[Compare] = []
            for unit in some:
                fence = self._held[unit].owned.fence
                # The owner key was put in the transaction that put the epoch.
                compares.append(Compare(self.keys.owner(unit), fence.mod_revision))
                compares.append(Compare(fence.key, fence.mod_revision))
            ops = [Delete(self.keys.owner(unit)) for unit in some]
            self._fly("release", dict.fromkeys(some), compares, ops, out)

    def _leave(self, out: list[Action]) -> bool:
        """Is it over? The record and whatever is left go with the lease."""
        if self.lease and (self._held or self._flying):
            return False
        if self.lease:
            out.append(do.Revoke(self.lease))
            self._end_lease(out)
        self.stopped = True
        out.append(do.Stopped())
        return True

    def _fly(
        self,
        purpose: str,
        units: dict[Unit, tuple[Claim, SlotRecord] | None],
        compares: Iterable[Compare],
        ops: Iterable[Put | Delete],
        out: list[Action],
    ) -> None:
        number = self._next_number()
        self._flying[number] = _Flying(purpose, self.lease, units)
        out.append(do.Txn(number, tuple(compares), tuple(ops)))

    def _busy(self) -> set[Unit]:
        """Units of transactions whose result will tell more than the view does."""
        return {u for f in self._flying.values() for u in f.units}

    def _in_flight(self, purpose: str) -> bool:
        return any(f.purpose == purpose for f in self._flying.values())

    def _own_put(self, record: MemberRecord) -> Put:
        return Put(self.keys.member(record.id), msgspec.json.encode(record), self.lease)

    def _owner_record(self, epoch: int) -> OwnerRecord:
        return OwnerRecord(self.record.id, self.record.incarnation, epoch)

    def _next_number(self) -> int:
        self._number += 1
        return self._number


def _parse(value: bytes | None) -> SlotRecord | None:
    """None where it cannot be read."""
    try:
        return claims.parse(value)
    except msgspec.MsgspecError:
        return None
