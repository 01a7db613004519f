"""Portions of work in one turn of the loop."""

import asyncio

from hub.turns import Turns


async def test_no_turn_of_the_loop_has_more_than_its_portion_and_all_go_in_order() -> None:
    turns = Turns(10)
    begun: list[tuple[int, int]] = []
    turn = 0

    async def work(name: int) -> None:
        await turns.turn(4)
        begun.append((turn, name))

    tasks = [asyncio.create_task(work(n)) for n in range(40)]
    while len(begun) < 40:
        await asyncio.sleep(0)
        turn += 1
        assert turn < 200
    assert [name for _, name in begun] == list(range(40))
    # Whole jobs: the one that begins below the portion is let through.
    assert max(sum(t == n for t, _ in begun) for n in range(turn + 1)) <= 3
    await asyncio.gather(*tasks)


async def test_one_that_is_larger_than_a_portion_is_paid_for_by_the_turns_after_it() -> None:
    turns = Turns(10)
    await turns.turn(35)
    later = asyncio.create_task(turns.turn(1))
    for _ in range(3):
        await asyncio.sleep(0)
        assert not later.done()
    await asyncio.wait_for(later, 5)


async def test_who_gives_up_does_not_hold_up_the_others() -> None:
    turns = Turns(1)
    await turns.turn(3)
    waiting = [asyncio.create_task(turns.turn(1)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.wait_for(asyncio.gather(*waiting[1:]), 5)
    assert waiting[0].cancelled()
    while turns._armed:  # and nothing is left running
        await asyncio.sleep(0)
    await turns.turn(1)
