"""Work in portions: as much of it in one turn of the loop as others can wait for.

Tasks that are all ready run one after the other in one turn of the loop, each perhaps for milliseconds; heartbeats and leases
wait for the last. Who asks for a turn first goes on when less than `most` units have been begun in this one, and in order.
"""

import asyncio
from collections import deque


class Turns:
    """See the module. A unit is whatever costs about the same each time."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._armed = False

    async def turn(self, units: int) -> None:
        """Returns when `units` may begin: at once, or in a later turn of the loop. More than `most` are let through alone, and
        the turns after that are shorter."""
        if self._left <= 0 or self._waiting:
            mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((units, mine))
            self._arm()
            await mine
            return
        self._left -= units
        self._arm()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._armed = False
        self._left = min(self._most, self._left + self._most)
        while self._waiting and self._left > 0:
            units, waiting = self._waiting.popleft()
            if not waiting.done():  # else its task was cancelled
                self._left -= units
                waiting.set_result(None)
        if self._waiting or self._left < self._most:
            self._arm()
