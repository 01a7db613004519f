"""The timer wheel: who is past a deadline is found in time, and who is not is hardly looked at."""

from hypothesis import given
from hypothesis import strategies as st

from hub.deadlines import WIDTH_S, Bucket, Deadlines


class One:
    """Counts how often it is asked for its deadline."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.asked = 0
        self.bucket: Bucket | None = None

    @property
    def due_at(self) -> float:
        self.asked += 1
        return self.at


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["new", "later", "nearer", "forget", "sweep"]),
        st.integers(0, 30),
        st.floats(0.01, 30.0),
    ),
    max_size=120,
)


@given(STEPS)
def test_a_sweep_finds_what_looking_at_everybody_would_find(steps: list[tuple[str, int, float]]) -> None:
    wheel: Deadlines[One] = Deadlines()
    those: list[One] = []
    now = 1000.0
    for what, which, seconds in steps:
        one = those[which % len(those)] if those else None
        if what == "new":
            those.append(One(now + seconds))
            wheel.file(those[-1])
        elif what == "later" and one is not None:
            one.at += seconds  # as by a heartbeat: the wheel is told nothing
        elif what == "nearer" and one is not None:
            one.at = min(one.at, now + seconds)
            wheel.file(one)
        elif what == "forget" and one is not None:
            those.remove(one)
            wheel.forget(one)
        else:
            now += seconds
            found = wheel.overdue(now)
            assert len(found) == len(set(map(id, found)))
            assert set(map(id, found)) == {id(one) for one in those if one.at < now}


def test_a_deadline_that_has_come_nearer_is_found_in_time() -> None:
    wheel: Deadlines[One] = Deadlines()
    one = One(90.0)
    wheel.file(one)
    one.at = 2.0
    wheel.file(one)
    assert wheel.overdue(3.0) == [one]
    one.at = 95.0  # it has spoken: whoever lies in a bucket of before is not overdue
    assert wheel.overdue(91.0) == [] and wheel.overdue(96.0) == [one]


def test_who_is_overdue_is_told_again_until_it_is_forgotten() -> None:
    wheel: Deadlines[One] = Deadlines()
    one = One(10.0)
    wheel.file(one)
    assert wheel.overdue(10.0) == [] and wheel.overdue(11.0) == [one] and wheel.overdue(12.0) == [one]
    wheel.forget(one)
    assert wheel.overdue(13.0) == [] and one.bucket is None


def test_who_speaks_every_30_s_is_looked_at_about_once_a_minute() -> None:
    wheel: Deadlines[One] = Deadlines()
    those = [One(90.0 + n / 100) for n in range(100)]
    for one in those:
        wheel.file(one)
    for second in range(1, 3601):
        for n, one in enumerate(those):
            if (second + n) % 30 == 0:
                one.at = second + 90.0
        assert wheel.overdue(float(second)) == []
    looks = sum(one.asked for one in those) / len(those)
    assert looks < 3 * 3600 / 60, f"{looks:.0f} in an hour"  # looked at, and filed again


def test_buckets_whose_time_is_over_are_gone() -> None:
    wheel: Deadlines[One] = Deadlines()
    for second in range(1000):
        one = One(second + 10.0)
        wheel.file(one)
        wheel.forget(one)
        wheel.overdue(float(second))
    assert len(wheel._buckets) <= 10 / WIDTH_S + 1
