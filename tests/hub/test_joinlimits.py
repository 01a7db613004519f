"""Rates of joins, with a clock of the test's own."""

from hypothesis import given
from hypothesis import strategies as st

from hub.joinlimits import ENTRIES_MAX, INVALID_COST, Buckets, JoinLimits, JoinRates, network_of


def test_a_source_may_burst_and_then_goes_at_its_rate() -> None:
    limits = JoinLimits(JoinRates(source_per_s=2.0, source_burst=3.0))
    assert [limits.source("10.0.0.1:5", 0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert limits.source("10.0.0.2:5", 0.0) == 0.0, "another source is not held back"
    assert limits.source("10.0.0.1:6", 0.5) == 0.0, "after what it was told it is let in, whatever its port"
    assert limits.source("10.0.0.1:7", 0.5) == 0.5


def test_who_shows_invalid_tokens_pays_more() -> None:
    limits = JoinLimits(JoinRates(source_per_s=1.0, source_burst=2.0))
    assert limits.source("10.0.0.1:5", 0.0) == 0.0
    limits.invalid("10.0.0.1:5", 0.0)
    wait_s = limits.source("10.0.0.1:5", 0.0)
    assert 2.0 < wait_s <= INVALID_COST
    assert limits.source("10.0.0.1:5", wait_s) == 0.0


def test_a_tokens_rate_is_its_own() -> None:
    limits = JoinLimits(JoinRates(token_per_s=1.0, token_burst=1.0))
    assert (limits.token("a", 0.0), limits.token("a", 0.0), limits.token("b", 0.0)) == (0.0, 1.0, 0.0)


def test_the_map_is_bounded_and_forgets_who_was_unseen_longest() -> None:
    buckets = Buckets(0.001, 1.0, size=3)
    for key in ("a", "b", "c", "a", "d"):
        buckets.take(key, 0.0)
    assert len(buckets) == 3
    assert buckets.take("a", 0.0) > 0 and buckets.take("b", 0.0) == 0.0
    many = JoinLimits()
    for i in range(ENTRIES_MAX + 500):
        many.source(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}:1", 0.0)
    assert len(many._sources) == ENTRIES_MAX


def test_an_ipv6_host_is_one_source_with_all_its_addresses() -> None:
    assert (
        network_of("2001:db8::1:443")
        == network_of("2001:db8::ffff:5:443")
        != network_of("2001:db8:0:1::1:443")
    )
    assert network_of("::ffff:10.0.0.1:443") == network_of("10.0.0.1:9") == "10.0.0.1"
    assert network_of("fe80::1%eth0:443") == "fe80::/64"
    assert network_of("unknown") == "unknown" and network_of("") == ""


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 40)), max_size=60))
def test_no_history_grants_more_than_the_rate_and_one_burst(steps: list[tuple[float, float]]) -> None:
    buckets = Buckets(2.0, 5.0)
    now, granted = 0.0, 0
    for pause_s, cost in steps:
        now += pause_s
        granted += buckets.take("a", now, max(1.0, cost)) == 0.0
    assert granted <= 5.0 + 2.0 * now + 1e-6
