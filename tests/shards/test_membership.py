"""The rules of membership, one by one: time is a number, the store a list of answers."""

import itertools
from typing import Any

import msgspec
import pytest

from shards import actions as do
from shards import membership
from shards.actions import Action, Failure
from shards.kv import Delete, Event, KeyValue, Put, TxnResult
from shards.membership import HANDED_S, Membership, Timing
from shards.ownership import MemberRecord, OwnerRecord, UnitKeys
from shards.rebalance import DRAIN_MAX, Plan
from shards.view import Snapshot

KEYS = UnitKeys("/c/")
SLOTS = 8
TTL_S = 10.0


class World:
    """A store that answers at once, and one member in it."""

    def __init__(self, revision: int = 100, slots: int = SLOTS) -> None:
        ids = itertools.count()
        self.core = Membership(
            KEYS,
            MemberRecord("a", "a1"),
            slots,
            Timing(TTL_S),
            random_id=lambda: f"id{next(ids)}",
            wall=lambda: 1000.0,
        )
        self.now = 0.0
        self.revision = revision
        self.data: dict[str, KeyValue] = {}
        self.told: list[Action] = []
        self.held_back: list[Action] = []
        self.drains = True
        self.hold = False

    def snapshot(self) -> Snapshot:
        return Snapshot(self.revision, tuple(self.data.values()))

    def write(self, *ops: Put | Delete) -> tuple[Event, ...]:
        self.revision += 1
        events = []
        for op in ops:
            old = self.data.get(op.key)
            if isinstance(op, Put):
                created = old.create_revision if old else self.revision
                self.data[op.key] = KeyValue(op.key, op.value, created, self.revision, op.lease)
            else:
                self.data.pop(op.key, None)
            events.append(Event(op.key, self.data.get(op.key), old))
        return tuple(events)

    def txn(self, action: do.Txn) -> TxnResult:
        current = tuple(self.data.get(c.key) for c in action.compares)
        if any(
            (kv.mod_revision if kv else 0) != c.mod_revision
            for kv, c in zip(current, action.compares, strict=True)
        ):
            return TxnResult(False, self.revision, current)
        self.seen = self.write(*action.ops)
        return TxnResult(True, self.revision)

    def perform(self, actions: list[Action]) -> None:
        queue = list(actions)
        while queue:
            action = queue.pop(0)
            match action:
                case do.Grant() | do.KeepAlive() | do.Txn() | do.Read() if self.hold:
                    self.held_back.append(action)
                case do.Grant():
                    queue += self.core.granted(self.now, self.now, 7, TTL_S)
                case do.KeepAlive():
                    queue += self.core.kept(self.now, action.lease, self.now, TTL_S)
                case do.Read():
                    queue += self.core.read_done(self.now, action.number, self.snapshot())
                case do.Txn():
                    result = self.txn(action)
                    queue += self.core.txn_done(self.now, action.number, result)
                    if result.succeeded:
                        queue += self.core.watched(self.now, self.revision, self.seen)
                case do.Drain() if self.drains:
                    self.told.append(action)
                    queue += self.core.drained(self.now, action.units)
                case _:
                    self.told.append(action)

    def start(self) -> "World":
        self.perform(self.core.snapshot(self.now, self.snapshot()))
        return self

    def event(self, *ops: Put | Delete) -> None:
        events = self.write(*ops)
        self.perform(self.core.watched(self.now, self.revision, events))

    def tell(self, kind: type) -> list[Action]:
        return [a for a in self.told if isinstance(a, kind)]

    def take(self, kind: type) -> Action:
        found = next(a for a in self.held_back if isinstance(a, kind))
        self.held_back.remove(found)
        return found


def other(id: str = "b", **fields: object) -> Put:
    record = MemberRecord(id, id + "1", **fields)  # type: ignore[arg-type]
    return Put(KEYS.member(id), msgspec.json.encode(record), 8)


def test_progress_of_the_store_alone_is_no_reason_to_plan_all_units_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    w = World().start()
    while not w.core.settled:
        w.now += 1.0
        w.perform(w.core.tick(w.now))
    plans = 0
    real = membership.plan

    def counted(*given: Any, **options: Any) -> Plan:
        nonlocal plans
        plans += 1
        return real(*given, **options)

    monkeypatch.setattr(membership, "plan", counted)
    for _ in range(50):
        w.revision += 1
        w.perform(w.core.watched(w.now, w.revision, ()))
        w.perform(w.core.tick(w.now))
    assert plans == 0
    events = w.write(other())
    w.perform(w.core.watched(w.now, w.revision, events))
    assert plans > 0


def test_the_first_member_claims_everything_at_once_and_acts() -> None:
    w = World().start()
    assert set(w.core.held) == {*range(SLOTS), "scheduler", "controllers"} == set(w.core.fences)
    assert w.core.acting_until == TTL_S * 0.9
    owned = w.core.of(0)
    assert owned is not None and owned.claim.first_revision == 100 and owned.claim.epoch == 1
    assert w.data[KEYS.owner(0)].lease == 7


def test_the_deadline_counts_from_the_sending_of_the_last_answered_keepalive() -> None:
    w = World().start()
    w.now, w.hold = 4.0, True
    w.perform(w.core.tick(w.now))
    w.take(do.KeepAlive)
    w.perform(w.core.kept(8.0, 7, 4.0, TTL_S))
    assert w.core.acting_until == 4.0 + 9.0
    w.perform(w.core.kept(8.5, 7, 1.0, TTL_S))
    assert w.core.acting_until == 13.0, "an answer that comes late takes nothing back"


def test_past_the_deadline_it_is_suspended_and_an_old_answer_does_not_resume_it() -> None:
    w = World().start()
    w.hold = True
    w.perform(w.core.tick(9.0))
    assert w.tell(do.Suspended) and w.core.acting_until < 0 and w.core.suspended
    w.perform(w.core.kept(20.0, 7, 5.0, TTL_S))
    assert w.core.suspended and not [a for a in w.held_back if isinstance(a, do.Read)]


def test_it_resumes_by_a_fresh_keepalive_and_a_read_and_loses_what_has_changed() -> None:
    w = World().start()
    w.hold = True
    w.perform(w.core.tick(9.0))
    w.perform(w.core.kept(20.0, 7, 19.5, TTL_S))
    read = w.take(do.Read)
    assert isinstance(read, do.Read) and w.core.suspended and w.core.acting_until < 0
    theirs = msgspec.json.encode(OwnerRecord("b", "b1", 2))
    w.write(Delete(KEYS.owner(3)))
    w.write(Put(KEYS.owner(3), theirs, 8))
    w.perform(w.core.read_done(20.5, read.number, w.snapshot()))
    assert w.core.acting_until == 19.5 + 9.0 and w.core.of(3) is None
    (resumed,) = w.tell(do.Resumed)
    assert isinstance(resumed, do.Resumed) and 3 not in resumed.units and 4 in resumed.units
    assert w.tell(do.Lost) == [do.Lost((3,))]
    assert w.core.owner(3) == OwnerRecord("b", "b1", 2)


def test_a_read_sent_before_the_keepalive_was_answered_resumes_nothing() -> None:
    w = World().start()
    w.hold = True
    w.perform(w.core.fence_lost(1.0, 0))
    read = w.take(do.Read)
    assert isinstance(read, do.Read)
    w.perform(w.core.tick(9.5))
    w.perform(w.core.kept(10.0, 7, 9.8, TTL_S))
    w.perform(w.core.read_done(10.1, read.number, w.snapshot()))
    assert w.core.suspended and w.take(do.Read)


def test_an_ended_lease_loses_everything_and_begins_anew() -> None:
    w = World().start()
    w.hold = True
    w.perform(w.core.kept(3.0, 7, 2.9, 0.0))
    assert not w.core.held and not w.core.fences and w.core.acting_until < 0
    assert w.take(do.Grant)
    (lost,) = w.tell(do.Lost)
    assert isinstance(lost, do.Lost) and len(lost.units) == SLOTS + 2


@pytest.mark.parametrize("carried_out", [True, False])
def test_an_ambiguous_claim_is_ours_when_a_read_shows_it(carried_out: bool) -> None:
    w = World()
    w.hold = True
    w.start()
    w.take(do.Grant)
    w.perform(w.core.granted(0.0, 0.0, 7, TTL_S))
    register = w.take(do.Txn)
    assert isinstance(register, do.Txn)
    w.perform(w.core.txn_done(0.0, register.number, w.txn(register)))
    claim = w.take(do.Txn)
    assert isinstance(claim, do.Txn)
    if carried_out:
        w.txn(claim)
    w.hold, w.now = False, 0.1
    w.perform(w.core.txn_done(0.1, claim.number, Failure.AMBIGUOUS))
    owned = w.core.of(0)
    assert owned is not None and owned.claim.epoch == 1
    assert owned.fence.mod_revision == w.data[KEYS.epoch(0)].mod_revision
    assert len(w.core.held) == SLOTS + 2


def test_a_claim_carried_out_late_is_ours_though_the_next_one_never_left() -> None:
    w = World()
    w.hold = True
    w.start()
    w.take(do.Grant)
    w.perform(w.core.granted(0.0, 0.0, 7, TTL_S))
    register = w.take(do.Txn)
    assert isinstance(register, do.Txn)
    w.perform(w.core.txn_done(0.0, register.number, w.txn(register)))
    late = w.take(do.Txn)
    assert isinstance(late, do.Txn)
    w.perform(w.core.txn_done(0.1, late.number, Failure.AMBIGUOUS))
    read = w.take(do.Read)
    assert isinstance(read, do.Read)
    w.perform(w.core.read_done(0.2, read.number, w.snapshot()))
    again = w.take(do.Txn)
    assert isinstance(again, do.Txn) and again.ops != late.ops
    assert w.txn(late).succeeded
    w.perform(w.core.watched(0.3, w.revision, w.seen))
    assert not w.core.held, "its own result is awaited"
    w.perform(w.core.txn_done(0.4, again.number, Failure.UNAVAILABLE))
    assert len(w.core.held) == SLOTS + 2
    owned = w.core.of(0)
    assert owned is not None and owned.fence.mod_revision == w.data[KEYS.epoch(0)].mod_revision


def test_a_joining_member_counts_after_the_holdoff_and_is_given_its_share() -> None:
    w = World().start()
    w.event(other())
    assert not w.tell(do.Drain)
    assert w.core.next_tick(0.0) == 1.0
    w.now = 1.0
    w.perform(w.core.tick(w.now))
    assert 0 < len(w.core.held) < SLOTS + 2
    given = released(w)
    assert given and all(KEYS.owner(u) not in w.data for u in given)
    assert w.core.counters.releases == len(given) and w.core.counters.lost == 0


def released(w: World) -> list[int]:
    return [u for a in w.tell(do.Lost) for u in a.units]  # type: ignore[attr-defined]


def test_no_more_units_are_released_than_the_others_claim_and_no_small_batches() -> None:
    w = World(slots=200).start()
    w.event(other())
    w.now = 1.0
    w.perform(w.core.tick(w.now))
    first = released(w)
    assert len(first) == DRAIN_MAX and not w.core.settled
    theirs = msgspec.json.encode(OwnerRecord("b", "b1", 2))
    half = DRAIN_MAX // 2
    w.event(*(Put(KEYS.owner(u), theirs, 8) for u in first[: half - 1]))
    assert len(released(w)) == DRAIN_MAX
    w.event(Put(KEYS.owner(first[half - 1]), theirs, 8))
    assert len(released(w)) == DRAIN_MAX + half


def test_units_that_nobody_claims_hold_the_rest_up_for_a_moment_only() -> None:
    w = World(slots=200).start()
    w.event(other())
    w.now = 1.0
    w.perform(w.core.tick(w.now))
    assert w.core.next_tick(w.now) == w.now + HANDED_S
    w.now += HANDED_S
    w.perform(w.core.tick(w.now))
    assert len(released(w)) == 2 * DRAIN_MAX


def test_a_draining_member_is_not_counted() -> None:
    w = World().start()
    w.event(other(draining=True))
    w.perform(w.core.tick(2.0))
    assert len(w.core.held) == SLOTS + 2


def test_a_claim_ends_the_earlier_one_below_the_revision_at_which_its_key_went() -> None:
    w = World()
    w.write(Put(KEYS.owner(2), msgspec.json.encode(OwnerRecord("b", "b1", 1)), 8), other())
    w.start()
    assert w.core.of(2) is None
    w.now = 2.0
    w.perform(w.core.tick(w.now))
    w.event(Delete(KEYS.owner(2)), Delete(KEYS.member("b")))
    owned, gone = w.core.of(2), w.revision
    assert owned is not None and owned.claim.first_revision < owned.fence.mod_revision
    assert 101 <= owned.claim.first_revision < gone


def test_a_store_that_has_gone_back_loses_everything() -> None:
    w = World().start()
    w.hold = True
    w.perform(w.core.snapshot(1.0, Snapshot(50, ())))
    assert not w.core.held and w.core.view.revision == 50 and w.take(do.Grant)


def test_another_process_of_the_same_id_is_noticed() -> None:
    w = World()
    w.write(Put(KEYS.member("a"), msgspec.json.encode(MemberRecord("a", "a0")), 3))
    w.start()
    assert not w.core.registered and w.core.taken_by is not None and w.core.taken_by.incarnation == "a0"
    w.event(Delete(KEYS.member("a")))
    w.now = 1.0
    w.perform(w.core.tick(w.now))
    assert w.core.registered and w.core.taken_by is None


def test_a_clean_stop_marks_drains_releases_and_revokes() -> None:
    w = World().start()
    w.perform(w.core.stop(1.0))
    ends = [type(a) for a in w.told if isinstance(a, do.Drain | do.Revoke | do.Stopped)]
    assert ends == [do.Drain, do.Revoke, do.Stopped]
    assert not w.core.held and KEYS.owner(0) not in w.data
    assert msgspec.json.decode(w.data[KEYS.member("a")].value)["draining"] is True
    assert w.core.counters.releases == SLOTS + 2


def test_an_epoch_that_another_has_raised_is_lost() -> None:
    w = World().start()
    w.hold = True
    w.event(Put(KEYS.epoch(1), w.data[KEYS.epoch(1)].value))
    assert w.core.of(1) is None and w.tell(do.Lost) == [do.Lost((1,))]


def test_an_epoch_record_that_cannot_be_read_is_not_claimed_over() -> None:
    w = World()
    w.write(Put(KEYS.epoch(1), b"not json"))
    w.start()
    assert w.core.of(1) is None and len(w.core.held) == SLOTS + 1 and "cannot be read" in w.core.problem


def test_an_owner_key_without_a_lease_is_of_a_hub_that_knew_none() -> None:
    w = World()
    w.write(Put(KEYS.owner(1), b'{"member":"old"}'))
    w.start()
    assert len(w.core.held) == SLOTS + 2 and w.core.owner(1) == OwnerRecord("a", "a1", 1)


def test_a_late_refusal_of_an_earlier_claim_does_not_end_the_one_that_followed() -> None:
    w = World().start()
    w.hold = True
    w.perform(w.core.fence_lost(1.0, 0))
    assert w.core.of(0) is None and 0 not in w.core.fences and w.tell(do.Lost) == [do.Lost((0,))]
    read = w.take(do.Read)
    assert isinstance(read, do.Read) and w.data[KEYS.owner(0)].lease == 7
    w.perform(w.core.read_done(1.0, read.number, w.snapshot()))
    claim = w.core.of(0)
    assert claim is not None and claim.claim.epoch == 1 and claim.fence == w.core.fences[0]
    assert w.core.settled


def test_a_refusal_during_a_read_is_judged_by_the_next_one() -> None:
    w = World().start()
    w.hold = True
    w.perform(w.core.fence_lost(1.0, 0))
    early = w.take(do.Read)
    assert isinstance(early, do.Read)
    before = w.snapshot()
    w.perform(w.core.fence_lost(1.0, 1))
    w.perform(w.core.read_done(1.0, early.number, before))
    assert w.core.of(0) is not None and w.core.of(1) is None
    late = w.take(do.Read)
    assert isinstance(late, do.Read)
    w.perform(w.core.read_done(1.0, late.number, w.snapshot()))
    assert w.core.of(1) is not None


def test_a_refusal_by_the_claim_of_another_gives_the_unit_up() -> None:
    w = World().start()
    w.hold = True
    w.perform(w.core.fence_lost(1.0, 0))
    read = w.take(do.Read)
    assert isinstance(read, do.Read)
    w.write(Put(KEYS.owner(0), msgspec.json.encode(OwnerRecord("b", "b1", 2)), 8))
    w.write(Put(KEYS.epoch(0), w.data[KEYS.epoch(0)].value))
    w.perform(w.core.read_done(1.0, read.number, w.snapshot()))
    assert w.core.of(0) is None and 0 not in w.core.fences
