from hypothesis import given, settings
from hypothesis import strategies as st

from shards.ownership import ROLES, MemberRecord, Unit
from shards.rebalance import Attendance, Plan, plan
from shards.ring import Ring, assign

NAMES = ("a", "b", "c")
UNITS: list[Unit] = [*sorted(ROLES), *range(12)]


def member(id: str, incarnation: str = "1", draining: bool = False) -> MemberRecord:
    return MemberRecord(id, incarnation, draining=draining)


owner_maps = st.dictionaries(st.sampled_from(UNITS), st.sampled_from(NAMES))
subsets = st.sets(st.sampled_from(UNITS))


@settings(max_examples=200)
@given(
    st.sets(st.sampled_from(NAMES)),
    owner_maps,
    subsets,
    subsets,
    st.booleans(),
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_the_plan_is_that_of_the_slow_twin(
    present, owners, claiming, draining, stopping, claim_max, drain_max, handed
):
    ring = assign([member(name) for name in present], 12, ROLES)
    held = {unit for unit, owner in owners.items() if owner == "a"}
    claim, drain = [], []
    for unit in UNITS:
        wanted = None
        if present:
            wanted = ring.slots[unit] if isinstance(unit, int) else ring.roles[unit]
        if unit in claiming or unit in draining:
            if unit in held and unit not in draining and (stopping or wanted in {"b", "c"}):
                drain.append(unit)
        elif unit in held:
            if stopping or wanted in {"b", "c"}:
                drain.append(unit)
        elif unit not in owners and wanted == "a" and not stopping:
            claim.append(unit)
    made = plan(
        ring, owners, held, own="a", claiming=claiming, draining=draining,
        stopping=stopping, claim_max=claim_max, drain_max=drain_max, handed=handed,
    )  # fmt: skip
    assert list(made.claim) == claim[: max(0, claim_max - len(claiming))]
    room = drain_max - len(draining) - handed
    assert list(made.drain) == (drain[:room] if room >= drain_max / 2 else [])


@settings(max_examples=50)
@given(owner_maps, st.sets(st.sampled_from(NAMES), min_size=1))
def test_members_that_follow_their_plans_reach_the_wanted_assignment(owners, present):
    owners = {unit: owner for unit, owner in owners.items() if owner in present}
    ring = assign([member(name) for name in present], 12, ROLES)
    moved = 0
    for _ in range(2 * len(UNITS)):
        for name in sorted(present):
            made = plan(
                ring, owners, {u for u, o in owners.items() if o == name}, own=name, claim_max=3, drain_max=2
            )
            moved += len(made.drain)
            for unit in made.drain:
                del owners[unit]
            for unit in made.claim:
                owners[unit] = name
    assert owners == {unit: ring.owner(unit) for unit in UNITS}
    assert moved <= len(UNITS)


def test_nothing_is_drained_while_nobody_counts():
    assert plan(Ring((), {}), {1: "a"}, {1}, own="a") == Plan()


def test_a_stopping_member_releases_everything_even_alone():
    ring = assign([member("a")], 12, ROLES)
    assert plan(ring, dict.fromkeys(UNITS, "a"), UNITS, own="a", stopping=True).drain == tuple(UNITS)


def test_a_member_that_comes_and_goes_within_the_hold_off_never_counts():
    seen = Attendance("a", holdoff_s=1.0)
    seen.update({"a": member("a")}, 10.0, unowned=True)
    assert [m.id for m in seen.counted(10.0)] == ["a"]
    for start in (20.0, 21.0, 22.0):
        seen.update({"a": member("a"), "b": member("b", str(start))}, start)
        assert [m.id for m in seen.counted(start + 0.9)] == ["a"]
        assert seen.deadline(start) == start + 1.0
        seen.update({"a": member("a")}, start + 0.9)
    seen.update({"a": member("a"), "b": member("b", "9")}, 30.0)
    assert [m.id for m in seen.counted(31.0)] == ["a", "b"]
    assert seen.deadline(31.0) is None


def test_a_restarted_member_waits_again_though_its_absence_was_not_seen():
    seen = Attendance("a", holdoff_s=1.0)
    seen.update({"a": member("a"), "b": member("b", "1")}, 0.0)
    seen.update({"a": member("a"), "b": member("b", "2")}, 5.0)
    assert [m.id for m in seen.counted(5.5)] == ["a"]
    assert [m.id for m in seen.counted(6.0)] == ["a", "b"]


def test_who_was_there_before_counts_at_once_and_oneself_after_the_hold_off():
    seen = Attendance("c", holdoff_s=1.0)
    seen.update({"a": member("a"), "b": member("b")}, 0.0)
    seen.update({"a": member("a"), "b": member("b"), "c": member("c")}, 0.1)
    assert [m.id for m in seen.counted(0.2)] == ["a", "b"]
    assert [m.id for m in seen.counted(1.1)] == ["a", "b", "c"]


def test_the_first_member_waits_where_something_is_owned_still():
    seen = Attendance("a", holdoff_s=1.0)
    seen.update({"a": member("a")}, 0.0, unowned=False)
    assert seen.counted(0.5) == []
    assert [m.id for m in seen.counted(1.0)] == ["a"]


def test_a_record_that_changes_within_its_incarnation_goes_on_counting():
    seen = Attendance("a", holdoff_s=1.0)
    seen.update({"a": member("a"), "b": member("b")}, 0.0)
    seen.update({"a": member("a"), "b": member("b", draining=True)}, 5.0)
    assert [m.draining for m in seen.counted(5.0)] == [False, True]
