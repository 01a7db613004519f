"""Who may begin a handshake: at most so many a second, those who were here before not behind those who were not."""

from hypothesis import given
from hypothesis import strategies as st

from hub import lobby
from hub.lobby import KNOWN_S, Lobby, LobbyLimits, source_of


def names(guests: object) -> list[str]:
    return [g.item for g in guests]  # type: ignore[attr-defined]


def test_no_more_begin_in_a_second_than_the_rate_and_nobody_is_lost() -> None:
    held: Lobby[int] = Lobby(LobbyLimits(handshakes_s=10), 0.0)
    for i in range(35):
        assert held.arrive(i, "a", 0.0)
    begun = [len(held.admit(t)[0]) for t in (0.0, 0.0, 1.0, 1.5, 2.5)]
    assert begun == [10, 0, 10, 5, 10] and len(held) == 0


def test_known_sources_get_half_while_a_flood_of_others_waits() -> None:
    held: Lobby[str] = Lobby(LobbyLimits(handshakes_s=10), 0.0)
    held.vouch("site", 0.0)
    for i in range(400):
        held.arrive(f"x{i}", f"flood-{i}", 0.0)
    for i in range(20):
        held.arrive(f"n{i}", "site", 0.0)
    for now in (0.0, 1.0):
        begun = names(held.admit(now)[0])
        assert len([b for b in begun if b.startswith("n")]) == 5
    assert len(held) == 400


def test_a_line_without_room_waits_and_the_other_one_goes_on() -> None:
    held: Lobby[str] = Lobby(LobbyLimits(handshakes_s=100), 0.0)
    held.vouch("site", 0.0)
    for i in range(10):
        held.arrive(f"x{i}", f"other-{i}", 0.0)
        held.arrive(f"n{i}", "site", 0.0)
    assert names(held.admit(0.0, (0, 3))[0]) == ["n0", "n1", "n2"]
    assert names(held.admit(0.0, (2, 0))[0]) == ["x0", "x1"]
    assert held.admit(0.0, (-1, 0)) == ([], [])
    begun = held.admit(0.0, (1, 3))[0]
    assert sorted(names(begun)) == ["n3", "n4", "n5", "x2"]
    assert [g.known for g in begun] == [g.item.startswith("n") for g in begun]
    assert (held.waits(False), held.waits(True)) == (7, 4)


def test_one_call_begins_and_closes_no_more_than_its_bounds() -> None:
    held: Lobby[int] = Lobby(LobbyLimits(handshakes_s=1000, waiting_s=5, per_source_max=1000), 0.0)
    for i in range(lobby.AT_ONCE + 1):
        held.arrive(i, "a", 0.0)
    assert len(held.admit(0.0, (1000, 1000))[0]) == lobby.AT_ONCE
    for i in range(lobby.LATE_AT_ONCE):
        held.arrive(i, "a", 0.0)
    assert [len(held.admit(6.0)[1]) for _ in range(2)] == [lobby.LATE_AT_ONCE, 0]


def test_a_line_alone_has_all_of_the_rate() -> None:
    for known in (True, False):
        held: Lobby[int] = Lobby(LobbyLimits(handshakes_s=10), 0.0)
        if known:
            held.vouch("a", 0.0)
        for i in range(10):
            held.arrive(i, "a", 0.0)
        assert names(held.admit(0.0)[0]) == list(range(10))


def test_a_full_line_turns_away_and_one_stranger_cannot_fill_it() -> None:
    limits = LobbyLimits(handshakes_s=1, waiting_max=10, per_source_max=4)
    held: Lobby[int] = Lobby(limits, 0.0)
    assert [held.arrive(i, "loud", 0.0) for i in range(6)] == [True] * 4 + [False] * 2
    assert [held.arrive(i, f"s{i}", 0.0) for i in range(8)] == [True] * 6 + [False] * 2
    held.vouch("site", 0.0)
    assert [held.arrive(i, "site", 0.0) for i in range(12)] == [True] * 10 + [False] * 2


def test_who_has_waited_too_long_is_closed_and_not_begun() -> None:
    held: Lobby[int] = Lobby(LobbyLimits(handshakes_s=1, waiting_s=5), 0.0)
    for i in range(3):
        held.arrive(i, "a", 0.0)
    assert names(held.admit(0.0)[0]) == [0]
    held.arrive(3, "a", 4.0)
    begun, late = held.admit(6.0)
    assert (names(begun), names(late)) == ([3], [1, 2])


def test_a_source_is_known_for_a_day_and_the_map_is_bounded(monkeypatch: object) -> None:
    held: Lobby[int] = Lobby(LobbyLimits(), 0.0)
    held.vouch("a", 0.0)
    assert held.is_known("a", KNOWN_S - 1) and not held.is_known("a", KNOWN_S) and not held.is_known("b", 0.0)
    for i in range(lobby.SOURCES_MAX + 10):
        held.vouch(str(i), 1.0)
    assert not held.is_known("a", 1.0) and not held.is_known("5", 1.0) and held.is_known("20", 1.0)


def test_a_source_is_an_address_or_a_network_of_ipv6() -> None:
    assert source_of("192.0.2.1") == "192.0.2.1" == source_of("::ffff:192.0.2.1")
    assert source_of("2001:db8:1:2::1") == source_of("2001:db8:1:2:ffff::9") != source_of("2001:db8:1:3::1")
    assert source_of("fe80::1%eth0") == source_of("fe80::2%eth1") and source_of("") == ""


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.floats(0, 0.5)), max_size=60))
def test_whoever_arrives_begins_or_is_closed_once(events: list[tuple[int, bool, float]]) -> None:
    held: Lobby[int] = Lobby(LobbyLimits(handshakes_s=3, waiting_max=5, waiting_s=2, per_source_max=2), 0.0)
    now, taken, out = 0.0, [], []
    for i, (source, vouch, pause) in enumerate(events):
        now += pause
        if held.arrive(i, str(source), now):
            taken.append(i)
        if vouch:
            held.vouch(str(source), now)
        begun, late = held.admit(now)
        out += names(begun) + names(late)
    out += names(held.clear())
    assert sorted(out) == taken and len(held) == 0
