"""What follows the store, when the store cannot be reached: tries again with growing pauses, and says so once."""

import asyncio
import logging
import random

log = logging.getLogger(__name__)

FIRST_S = 0.1
MAX_S = 2.0


class Outage:
    """Shared by all that follow one store: many hundred watches that fail together are one line in the log. `what`:
    the store, as the log names it."""

    def __init__(self, what: str = "the store") -> None:
        self._what = what
        self._failures: dict[object, int] = {}

    @property
    def present(self) -> bool:
        """Does something that is cached not follow the store at present?"""
        return bool(self._failures)

    async def failed(self, who: object, failure: Exception) -> None:
        """`who` could not reach the store: waits until it should try again."""
        if not self._failures:
            log.warning("%s cannot be followed, what is cached is kept: %s", self._what, failure)
        count = self._failures[who] = self._failures.get(who, 0) + 1
        pause_s = min(MAX_S, FIRST_S * 2 ** min(count - 1, 10))
        # Half of it is chance, so that they do not all come back in one moment.
        await asyncio.sleep(pause_s * (0.5 + random.random() / 2))  # noqa: S311 - spreads load, no secret

    def over(self, who: object) -> None:
        """`who` has reached the store, or does not follow it any more."""
        if self._failures.pop(who, 0) and not self._failures:
            log.info("%s is followed again", self._what)
