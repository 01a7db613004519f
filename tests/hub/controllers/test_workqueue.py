"""The work queue: each key once, one worker per key, back-off without polling."""

import asyncio

from hub.controllers.workqueue import WorkQueue
from tests.hub.controllers.kit import FakeClock


async def take(queue: WorkQueue[str]) -> str:
    return await asyncio.wait_for(queue.get(), 5)


async def test_a_key_that_is_added_twice_is_worked_on_once() -> None:
    queue: WorkQueue[str] = WorkQueue(FakeClock())
    for key in "aab":
        queue.add(key)
    assert [await take(queue), await take(queue)] == ["a", "b"]
    assert len(queue) == 0


async def test_a_key_that_is_added_while_worked_on_comes_again_after_done() -> None:
    queue: WorkQueue[str] = WorkQueue(FakeClock())
    queue.add("a")
    assert await take(queue) == "a"
    queue.add("a")
    assert len(queue) == 0, "no second worker gets it meanwhile"
    assert not queue.idle
    queue.done("a")
    assert await take(queue) == "a"
    queue.done("a")
    assert queue.idle


async def test_failures_back_off_from_5_ms_to_1000_s_and_forget_starts_over() -> None:
    clock = FakeClock()
    queue: WorkQueue[str] = WorkQueue(clock)
    delays = []
    for _ in range(25):
        delays.append(queue.retry("a"))
        clock.advance(1000)
        assert await take(queue) == "a"
        queue.done("a")
    assert delays[:3] == [0.005, 0.01, 0.02]
    assert delays[-1] == 1000
    queue.forget("a")
    assert queue.retry("a") == 0.005


async def test_of_several_delays_the_earliest_counts_and_only_once() -> None:
    clock = FakeClock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add_after("a", 10)
    queue.add_after("a", 2)
    queue.add_after("a", 5)
    queue.add_after("b", 1)
    clock.advance(1.5)
    assert await take(queue) == "b"
    clock.advance(1)
    assert await take(queue) == "a"
    clock.advance(100)
    queue.done("a")
    queue.done("b")
    assert queue.idle
    assert queue.delayed == 0


async def test_delaying_a_key_again_and_again_does_not_grow_the_queue() -> None:
    clock = FakeClock()
    queue: WorkQueue[str] = WorkQueue(clock)
    for n in range(10_000):
        queue.add_after("a", 10_000 - n)
    assert queue.delayed == 1
    assert len(queue._heap) < 200
