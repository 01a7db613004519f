"""Token buckets: what passes in time is the rate, whatever the pattern, and waiting pays every debt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security import buckets
from security.buckets import Bucket, Buckets, Rate, Rates


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 50)), max_size=40))
def test_who_waits_as_told_never_sends_more_than_the_rate_and_the_burst(
    sent: list[tuple[float, int]],
) -> None:
    bucket, now, total = Bucket(10.0, 30.0, 0.0), 0.0, 0
    for pause, amount in sent:
        now += pause
        total += amount
        now += bucket.take(amount, now)
        assert total <= 30.0 + 10.0 * now + 1e-6
    assert bucket.take(0, now) == pytest.approx(0, abs=1e-6)


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 5)), max_size=40))
def test_who_takes_only_what_is_there_is_never_in_debt(sent: list[tuple[float, int]]) -> None:
    bucket, now = Bucket(3.0, 6.0, 0.0), 0.0
    for pause, amount in sent:
        now += pause
        bucket.try_take(amount, now)
        assert bucket.take(0, now) == 0.0


def test_a_loud_node_waits_and_its_neighbour_does_not() -> None:
    rate = Rate(10, 1000, 2)
    held = Buckets(Rates(node=rate), 0.0)
    assert held.charge("loud", "", 20, 0, 0.0) == 0.0
    assert held.charge("loud", "", 20, 0, 0.0) == 2.0
    assert held.charge("loud", "", 0, 4000, 0.0) == 2.0 and held.charge("quiet", "", 1, 10, 0.0) == 0.0


def test_nodes_of_one_pool_and_of_one_replica_share_what_they_may_send() -> None:
    small, large = Rate(10, 1e6, 1), Rate(1000, 1e6, 1)
    pool = Buckets(Rates(node=large, pool=small), 0.0)
    assert pool.charge("a", "p", 10, 0, 0.0) == 0.0
    assert pool.charge("b", "p", 10, 0, 0.0) == 1.0
    assert pool.charge("c", "q", 10, 0, 0.0) == 0.0 and pool.charge("d", "", 10, 0, 0.0) == 0.0
    replica = Buckets(Rates(node=large, pool=large, replica=small), 0.0)
    assert replica.charge("a", "p", 10, 0, 0.0) == 0.0
    assert replica.charge("b", "q", 10, 0, 0.0) == 1.0


def test_a_full_journal_at_once_is_within_a_nodes_burst() -> None:
    held = Buckets(Rates(), 0.0)
    assert held.charge("n", "p", 8_000, 64 << 20, 0.0) == 0.0


def test_the_maps_are_bounded_and_forget_who_was_silent_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "NODES_MAX", 8)
    monkeypatch.setattr(buckets, "POOLS_MAX", 4)
    held = Buckets(Rates(), 0.0)
    for i in range(100):
        held.charge(f"n{i}", f"p{i}", 1, 1, float(i))
    assert len(held) == 12


@pytest.mark.parametrize("values", [(0, 1, 1), (1, 0, 1), (1, 1, 0.5)])
def test_rates_that_make_no_sense_are_refused(values: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError):
        Rate(*values)
