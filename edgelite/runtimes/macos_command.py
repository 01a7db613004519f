"""Commands inside a container on macOS: children of the agent in sessions of their own, on pipes or on a terminal."""

import errno
import os
import signal
import struct

from edgelite.runtimes.base import RuntimeFailure
from edgelite.runtimes.supervised_command import CHUNK_BYTES, Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from edgelite.runtimes.base import Steps


class MacCommand(Command):
    """A command that runs. Takes over its descriptors: stdin (write end, -1 for none), report, and the outputs' read ends."""

    def __init__(self, pid: int, stdin: int, report: int, readers: "dict[int, int]") -> None:
        super().__init__(sorted(readers))
        self._pid = pid
        self._stdin = stdin
        self._report = report
        self._readers = readers
        for fd in self._descriptors():
            os.set_blocking(fd, False)

    def _descriptors(self) -> "set[int]":
        return {fd for fd in (self._stdin, self._report, *self._readers.values()) if fd >= 0}

    def read(self, channel: int) -> "bytes | None":
        try:
            return os.read(self._readers[channel], CHUNK_BYTES) or None
        except BlockingIOError:
            return b""
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return None  # a terminal that nobody has open any more

    def take(self, data: bytes) -> "int | None":
        if self._stdin < 0:
            return None
        try:
            return os.write(self._stdin, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            self.close_input()
            return None

    def close_input(self) -> None:
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    def poll(self) -> "int | None":
        if not self._pid:
            return None
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if not pid:
            return None
        _end_group(self._pid)
        self._pid = 0
        try:
            reason, _, message = os.read(self._report, 65536).decode("utf-8", "replace").partition("\0")
        except BlockingIOError:
            reason = message = ""  # something of it is alive, and has not become anything
        if reason:
            raise RuntimeFailure(reason, message)
        return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def close(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)  # by itself, for it may not have made its session yet
            _end_group(self._pid)
            os.waitpid(self._pid, 0)
            self._pid = 0
        for fd in self._descriptors():
            os.close(fd)
        self._stdin = self._report = -1
        self._readers = {}


class MacTerminal(MacCommand):
    """One whose streams are a terminal; its master side is input and output at once."""

    def __init__(self, pid: int, report: int, master: int, typed: bool) -> None:
        self._master = master
        super().__init__(pid, master if typed else -1, report, {1: master})

    def close_input(self) -> None:
        self._stdin = -1  # the output goes on

    def end_input(self) -> "Steps":
        import termios

        if self._stdin >= 0:
            # A terminal has no end: it is typed. Where a program reads key by key it would be a key like any other.
            attributes = termios.tcgetattr(self._master)
            if attributes[3] & termios.ICANON:
                yield from self.write(bytes(attributes[6][termios.VEOF]))
        self.close_input()

    def resize(self, width: int, height: int) -> "Steps":
        import fcntl
        import termios

        if self._readers:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        return
        yield


def _end_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # nothing is left of it
