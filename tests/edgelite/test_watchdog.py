"""The watchdog and the clock of a board. Runs on CPython and in the MicroPython VM."""

from edgelite.boardclock import AGAIN_MAX_S, EPOCH_2000_S, SLACK_S, ClockGate, unix_offset
from edgelite.watchdog import FEEDS, Watchdog

BUILT = 1_760_000_000.0


def test_the_watchdog_is_fed_in_time_and_not_in_every_turn():
    fed = []
    dog = Watchdog(lambda: fed.append(now), 8.0)
    now = 0.0
    for tick in range(100):
        now = tick / 10
        dog.poll(now)
        assert dog.deadline() - now <= 8.0 / FEEDS
    assert fed == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_a_loop_that_does_not_come_round_feeds_nothing():
    fed = []
    dog = Watchdog(lambda: fed.append(1), 8.0)
    dog.poll(0.0)
    assert len(fed) == 1, "nothing but poll feeds"
    dog.alive("loop", 100.0)
    assert len(fed) == 1


def test_a_part_that_is_stuck_stops_the_feeding_although_the_loop_turns_and_for_good():
    fed = []
    dog = Watchdog(lambda: fed.append(now), 8.0)
    dog.watch("link", 60.0, 0.0)
    dog.watch("journal", 30.0, 0.0)
    now = 0.0
    while now < 200.0:
        now += 1.0
        if now < 100.0:
            dog.alive("link", now)
        dog.alive("journal", now)
        dog.poll(now)
    assert max(fed) < 162.0 and dog.stuck == ["link"]
    dog.alive("link", 201.0)
    now = 201.0
    dog.poll(201.0)
    assert max(fed) < 162.0, "whoever was stuck for so long is not to be trusted again"


def test_a_part_that_is_no_longer_watched_may_be_silent():
    fed = []
    dog = Watchdog(lambda: fed.append(1), 8.0)
    dog.watch("link", 60.0, 0.0)
    dog.unwatch("link")
    dog.poll(500.0)
    assert fed == [1] and dog.stuck == []


def test_a_timeout_that_makes_no_sense_is_refused():
    for timeout in (0, -1):
        try:
            Watchdog(lambda: None, timeout)
        except ValueError:
            continue
        raise AssertionError(timeout)


class Clock:
    def __init__(self, wall, sources=(), settable=True):
        self.wall = wall
        self.gate = ClockGate(
            lambda: self.wall,
            self.set if settable else None,
            list(sources),
            [("this firmware was built", BUILT)],
        )

    def set(self, wall):
        self.wall = wall


def test_a_clock_that_is_right_is_left_alone_and_no_source_is_asked():
    def never():
        raise AssertionError("asked")

    clock = Clock(BUILT + 5, [("ntp", never)])
    assert clock.gate.ready(0.0) and clock.gate.reason == "" and clock.wall == BUILT + 5
    assert Clock(BUILT - SLACK_S / 2).gate.ready(0.0)


def test_a_clock_that_is_not_set_is_set_from_the_first_source_that_makes_sense():
    def fails():
        raise OSError(110)

    sources = [("rtc", lambda: None), ("broken", fails), ("old", lambda: 5.0), ("ntp", lambda: BUILT + 100)]
    clock = Clock(3.0, sources)
    assert clock.gate.ready(0.0) and clock.wall == BUILT + 100


def test_without_a_time_the_handshake_is_refused_with_what_to_do():
    def fails():
        raise OSError(110)

    clock = Clock(3.0, [("rtc", lambda: None), ("ntp", fails)])
    assert not clock.gate.ready(0.0)
    for part in ("this firmware was built", "rtc: does not know", "ntp: OSError", "set the clock"):
        assert part in clock.gate.reason, clock.gate.reason
    stuck = Clock(3.0, [("ntp", lambda: BUILT + 1)], settable=False)
    assert not stuck.gate.ready(0.0) and "set the clock" in stuck.gate.reason
    far = Clock(5e9)
    assert not far.gate.ready(0.0) and "2100" in far.gate.reason


def test_sources_are_asked_again_after_pauses_that_double_to_a_bound():
    asked = []
    clock = Clock(3.0, [("ntp", lambda: asked.append(now))])
    now = 0.0
    while now < 600.0:
        assert not clock.gate.ready(now)
        now += 1.0
    pauses = [b - a for a, b in zip(asked, asked[1:])]  # noqa: B905, RUF007 - boards have no itertools
    assert pauses[:5] == [2.0, 4.0, 8.0, 16.0, 32.0] and max(pauses) == AGAIN_MAX_S
    clock.wall = BUILT
    assert clock.gate.ready(now), "somebody has set it meanwhile"


def test_what_the_hub_said_counts_as_passed():
    clock = Clock(BUILT + 10)
    assert clock.gate.ready(0.0)
    clock.gate.learned("the hub said so", BUILT + 90 * 86400)
    assert not clock.gate.ready(1.0) and "the hub said so" in clock.gate.reason


def test_boards_count_from_1970_or_from_2000():
    assert unix_offset(1970) == 0 and unix_offset(2000) == EPOCH_2000_S
    try:
        unix_offset(1980)
    except ValueError as error:
        assert "1980" in str(error)
        return
    raise AssertionError("1980")
