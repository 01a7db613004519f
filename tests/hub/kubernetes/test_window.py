"""How many requests an API server in trouble is asked at a time."""

import pytest

from hub.kubernetes.window import PATIENCE_MAX_S, PATIENCE_S, PAUSE_MAX_S, Window


def test_what_was_under_way_together_is_one_failure() -> None:
    window = Window(16)
    begun = [window.begin() for _ in range(16)]
    for one in begun:
        window.failed(one, 100.0)
    assert window.allowed == 8 and window.patience_s == 2 * PATIENCE_S
    assert window.free(0, 100.0) == 0 and window.free(0, 101.0) == 8


def test_a_server_that_is_away_is_asked_by_one_at_a_time_and_ever_more_seldom() -> None:
    window, now, begun = Window(16), 0.0, list[float]()
    while now < 600.0:
        if window.free(0, now):
            begun.append(now)
            window.failed(window.begin(), now)
        now += 0.1
    assert window.allowed == 1 and window.patience_s == PATIENCE_MAX_S
    assert len(begun) <= 600 / PAUSE_MAX_S + 10 and 600 - begun[-1] <= PAUSE_MAX_S + 0.2


def test_every_answer_allows_one_more_up_to_the_bound() -> None:
    window = Window(4)
    for at in range(5):
        window.failed(window.begin(), float(at))
    assert window.free(0, 4.0) == 0
    window.answered(0.1)
    assert window.free(0, 4.0) == 2 and window.patience_s == PATIENCE_S
    for _ in range(5):
        window.answered(0.1)
    assert window.free(1, 4.0) == 3


def test_the_patience_follows_a_server_that_is_slow() -> None:
    window = Window(4)
    window.answered(12.0)
    assert window.patience_s == 24.0
    window.answered(40.0)
    assert window.patience_s == PATIENCE_MAX_S


def test_a_window_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Window(0)
