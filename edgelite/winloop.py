"""What the poll loop needs on Windows, which has neither poll nor pipes that could be waited for: sockets and select.

Windows' select takes sockets alone, at most 512 of them; what it cannot take is reported as broken, not waited for.
"""

import select
import socket

POLLIN, POLLOUT, POLLERR, POLLNVAL = 1, 4, 8, 32
"""As Linux numbers them."""


class Wakeup:
    """See `loop.Wakeup`: a pair of connected sockets. `ring` may be called on any thread."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    def signals(self) -> int:
        """The descriptor for signal.set_wakeup_fd: select does not return by itself when a signal comes."""
        return self._writer.fileno()

    def ring(self) -> None:
        try:
            self._writer.send(b".")
        except OSError:
            pass  # it is full, and wakes anyway; or closed, and nobody waits

    def drain(self) -> None:
        try:
            self._reader.recv(4096)
        except OSError:
            pass  # nothing was in it

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


class Poll:
    """The part of select.poll that the loop uses."""

    def __init__(self) -> None:
        self._wanted: "dict[int, int]" = {}

    def register(self, fd: int, events: int) -> None:
        self._wanted[fd] = events

    def poll(self, timeout_ms: "int | None") -> "list[tuple[int, int]]":
        """[(descriptor, events)] of what is ready. A connection that failed counts as writable, as with poll."""
        try:
            return _select(self._wanted, None if timeout_ms is None else timeout_ms / 1000.0)
        except (OSError, ValueError):
            found = []
            for fd, events in self._wanted.items():
                try:
                    found += _select({fd: events}, 0.0)
                except (OSError, ValueError):
                    found.append((fd, POLLNVAL))
            return found


def _select(wanted: "dict[int, int]", timeout_s: "float | None") -> "list[tuple[int, int]]":
    readers = [fd for fd, events in wanted.items() if events & POLLIN]
    writers = [fd for fd, events in wanted.items() if events & POLLOUT]
    ready = select.select(readers, writers, writers, timeout_s)
    found: "dict[int, int]" = {}
    for n, event in enumerate((POLLIN, POLLOUT, POLLERR)):
        for fd in ready[n]:
            found[fd] = found.get(fd, 0) | event
    return list(found.items())
