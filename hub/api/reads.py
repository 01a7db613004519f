"""Reads while the store has no quorum: answered from what one of its members holds, and marked as stale.

Source: RFC 7234, Warning 299; design section 4.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from hub import errors
from hub.registry import Registry

T = TypeVar("T")

STALE_S: Final = 2.0
"""After a read that could not be answered, others go to what may be stale at once: each would else wait as long."""
STALE: Final = (
    "stale: the store cannot be reached for a current answer; this is what one of its members held last",
)


class Reads:
    """Reads of one API server. Writes never come this way."""

    def __init__(self, registry: Registry, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._stale = Registry(registry.store, registry.keys, stale=True)
        self._stale_until = 0.0
        self._monotonic = monotonic

    async def read(self, read: Callable[[Registry], Awaitable[T]]) -> tuple[T, Sequence[str]]:
        """What `read` gives, and the warnings that go with it. Raises ServiceUnavailable when no member answers."""
        if self._monotonic() >= self._stale_until:
            try:
                return await read(self._registry), ()
            except errors.ServiceUnavailable:
                found = await read(self._stale)
                self._stale_until = self._monotonic() + STALE_S
                return found, STALE
        return await read(self._stale), STALE
