import random

import orjson
import pytest

from hub.simulate.figures import Histogram, Tally


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
def test_quantiles_are_those_of_the_sorted_values_to_four_percent(share: float) -> None:
    rng = random.Random(7)
    values = sorted(rng.lognormvariate(-5, 2) for _ in range(2000))
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = values[max(0, min(len(values) - 1, round(share * len(values)) - 1))]
    assert histogram.quantile(share) == pytest.approx(exact, rel=0.05)


def test_what_processes_counted_adds_up_after_a_way_through_json() -> None:
    rng = random.Random(1)
    whole, parts = Tally(), [Tally(), Tally()]
    for n in range(500):
        value = rng.random()
        whole.time("x", value)
        parts[n % 2].time("x", value)
        whole.counts["n"] += 1
        parts[n % 2].counts["n"] += 1
    added = Tally()
    for part in parts:
        added.merge(Tally.of_json(orjson.loads(orjson.dumps(part.as_json()))))
    assert added.counts == whole.counts
    mean = {"mean": pytest.approx(whole.times["x"].summary()["mean"])}
    assert added.times["x"].summary() == {**whole.times["x"].summary(), **mean}


def test_nothing_counted_is_zero_and_a_value_of_zero_has_a_place() -> None:
    empty = Histogram()
    assert empty.quantile(0.99) == 0.0
    assert empty.summary()["mean"] == 0.0
    empty.add(0.0)
    assert (empty.count, empty.quantile(0.5)) == (1, 0.0)
