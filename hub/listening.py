"""A port that a part of the hub listens at, and the words for one that cannot be had."""

import os
from collections.abc import Awaitable


class CannotListen(OSError):
    """An address that is taken, or that this machine does not have."""


async def listen(starting: Awaitable[tuple[str, int]], setting: str, address: str) -> tuple[str, int]:
    """The address that a part listens at; `setting` is what gave it. Raises CannotListen."""
    try:
        return await starting
    except OSError as failure:
        number = failure.errno or 0
        why = os.strerror(number) if number > 0 else failure.strerror or str(failure)
        raise CannotListen(
            f"cannot listen at {address}: {why}; stop what listens there, or set {setting} to another address "
            "(port 0 picks a free one)"
        ) from failure
