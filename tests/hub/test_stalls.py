"""How long the loop stands still is seen."""

import asyncio
import time

from hub.stalls import BOUNDS_S, STALL_S, Stalls


def test_lateness_is_counted_by_bound_and_the_longest_is_told_once() -> None:
    stalls = Stalls()
    for late in (0.0, 0.003, 0.03, STALL_S, 0.2, 9.0):
        stalls.note(late, 0.15)
    counts = dict(zip((*BOUNDS_S, "beyond"), stalls.distribution()[()].counts, strict=True))
    assert {k: v for k, v in counts.items() if v} == {0.005: 2, 0.05: 1, 0.1: 1, 0.25: 1, "beyond": 1}
    told, again = stalls.figures(), stalls.figures()
    assert (told["longest_s"], told["longest_busy_s"]) == (9.0, 0.15)
    assert (again["longest_s"], again["longest_busy_s"]) == (0.0, 0.0)
    assert (again["stalls"], again["busy_stalls"]) == (2, 2)


async def test_a_loop_that_is_blocked_is_noticed_and_whether_it_worked_meanwhile() -> None:
    def waits() -> None:
        time.sleep(0.3)

    def works() -> None:
        until = time.thread_time() + 0.3
        while time.thread_time() < until:
            pass

    for fault, busy in ((waits, 0), (works, 1)):
        stalls = Stalls()
        running = asyncio.create_task(stalls.run())
        await asyncio.sleep(0)
        fault()
        async with asyncio.timeout(10):
            while not stalls.stalls:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert stalls.longest_s > STALL_S and stalls.busy_stalls == busy, stalls.figures()
        assert (stalls.longest_busy_s > STALL_S) == bool(busy)
