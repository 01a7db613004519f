"""Tasks of a loop that wait for each other: what a condition variable is to threads."""

import os

from edgelite.loop import POLLIN, Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator


class Bell:
    """`ring` wakes every task that waits. A task checks its condition and then waits, without yielding in between, so no ring is
    lost; after it has woken, or been woken for nothing, it checks again."""

    def __init__(self) -> None:
        self._writers: "list[int]" = []

    def ring(self) -> None:
        for fd in self._writers:
            try:
                os.write(fd, b".")
            except BlockingIOError:
                pass  # full: it wakes anyway

    def wait(self, deadline: "float | None") -> "Generator[Wait, bool, bool]":
        """Generator. True when it rang, False when the deadline passed."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        self._writers.append(writer)
        try:
            rang = yield Wait(reader, POLLIN, deadline)
            return rang
        finally:
            self._writers.remove(writer)
            os.close(reader)
            os.close(writer)


class Gate:
    """At most `width` tasks at a time: `yield from gate.enter()`, then `leave` in a finally."""

    def __init__(self, width: int) -> None:
        self._free = width
        self._bell = Bell()

    def enter(self) -> "Generator[Wait, bool, None]":
        while not self._free:
            yield from self._bell.wait(None)
        self._free -= 1

    def leave(self) -> None:
        self._free += 1
        self._bell.ring()
