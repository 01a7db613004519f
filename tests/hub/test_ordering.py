"""The order of a node's connections, and clones, as scripts of HELLOs."""

from hypothesis import given
from hypothesis import strategies as st

from hub.ordering import STRIKES_MAX, Ordering, Verdict

QUIET_S = 300.0


def say(order: Ordering, inc: str, boot: int, conn: int, now: float = 0.0) -> Verdict:
    return order.hello(inc, boot, conn, now, QUIET_S)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), unique=True))
def test_one_machine_is_never_taken_for_two(counts: list[tuple[int, int]]) -> None:
    order = Ordering()
    for i, (boot, conn) in enumerate(sorted(counts)):
        assert say(order, "a", boot, conn, float(i)) is Verdict.NEWEST


def test_a_machine_set_up_anew_replaces_its_old_self() -> None:
    order = Ordering()
    assert say(order, "a", 5, 9) is Verdict.NEWEST
    assert say(order, "b", 1, 1) is Verdict.NEWEST
    assert say(order, "b", 1, 2) is Verdict.NEWEST


def test_an_incarnation_that_comes_back_is_a_clone() -> None:
    order = Ordering()
    say(order, "a", 1, 1)
    say(order, "b", 1, 1)
    assert say(order, "a", 1, 2) is Verdict.CLONE
    assert say(order, "b", 1, 2) is Verdict.CLONE and order.cloned


def test_a_connection_that_was_slow_to_open_is_late_and_no_clone() -> None:
    order = Ordering()
    say(order, "a", 1, 5)
    assert say(order, "a", 1, 4) is Verdict.LATE
    assert say(order, "a", 1, 6) is Verdict.NEWEST and not order.cloned


def test_the_same_count_twice_is_a_clone() -> None:
    order = Ordering()
    say(order, "a", 1, 5)
    assert say(order, "a", 1, 5) is Verdict.CLONE


def test_counts_that_keep_coming_from_below_are_a_clone() -> None:
    order = Ordering()
    say(order, "a", 1, 100)
    verdicts = [say(order, "a", 1, n) for n in range(1, STRIKES_MAX + 2)]
    assert verdicts == [Verdict.LATE] * STRIKES_MAX + [Verdict.CLONE]


def test_clones_are_refused_until_one_has_been_silent_for_long_enough() -> None:
    order = Ordering()
    say(order, "a", 1, 1)
    say(order, "b", 1, 1)
    now = 0.0
    for n in range(2, 20):
        now += 60.0
        assert say(order, "a", 1, n, now) is Verdict.CLONE
        assert say(order, "b", 1, n, now + 5) is Verdict.CLONE
    assert say(order, "b", 1, 20, now + 65) is Verdict.CLONE
    assert say(order, "b", 1, 21, now + 5 + QUIET_S) is Verdict.NEWEST
    assert not order.cloned
    assert say(order, "b", 1, 22, now + 6 + QUIET_S) is Verdict.NEWEST


def test_a_clone_that_comes_back_later_is_known_at_once() -> None:
    order = Ordering()
    say(order, "a", 1, 1)
    say(order, "b", 1, 1)
    assert say(order, "a", 1, 2) is Verdict.CLONE
    assert say(order, "a", 1, 3, QUIET_S) is Verdict.NEWEST
    assert say(order, "b", 1, 2, 10 * QUIET_S) is Verdict.CLONE
