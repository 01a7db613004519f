"""Time as the controllers see it: one of the few seams, so that tests run hours in milliseconds."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is still to come."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """`now` is unix seconds; `call_later` runs `call` on the event loop after `delay_s` seconds."""

    def now(self) -> float: ...

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Timer: ...


class WallClock:
    """The clock of production."""

    def now(self) -> float:
        return time.time()

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(delay_s, call)
