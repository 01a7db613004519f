"""What a long full collection has seen is not looked at by the next, and garbage among it is found all the same."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from hub.collector import LONG_S, Collector


class Slow:
    """A clock on which each collection takes `took_s`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.took_s = 0.0

    def __call__(self) -> float:
        self.now += self.took_s
        return self.now


class Ring:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def clock() -> Iterator[Slow]:
    made = Slow()
    with Collector(made):
        yield made
    gc.unfreeze()


def test_what_has_outlived_a_long_full_collection_is_not_looked_at_by_the_next(clock: Slow) -> None:
    before, kept = gc.get_freeze_count(), [[n] for n in range(1000)]
    clock.took_s = LONG_S / 2
    gc.collect()
    clock.took_s = LONG_S * 2
    gc.collect(1)
    assert gc.get_freeze_count() == before, "short ones and those of the young are not the matter"
    gc.collect()
    assert gc.get_freeze_count() >= before + len(kept)
    assert not any(one is kept for one in gc.get_objects())


def test_garbage_among_what_was_frozen_is_found_by_a_look_at_everything() -> None:
    ring = Ring()
    gone = weakref.ref(ring)
    gc.freeze()
    del ring
    gc.collect()
    assert gone() is not None
    try:
        assert Collector().look() >= 1
        assert gone() is None
    finally:
        gc.unfreeze()


def test_nothing_stays_behind_when_the_process_goes_on_without_it() -> None:
    before = list(gc.callbacks)
    with Collector():
        assert len(gc.callbacks) == len(before) + 1
    assert gc.callbacks == before
