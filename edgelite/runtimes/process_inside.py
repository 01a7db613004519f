"""Commands inside a container of the process runtime whose standard streams somebody holds: exec, and attach. [Linux]

A command is a child of the agent, in a session of its own, which entered the container's surroundings and cgroups as the
launcher does (process_launcher). It ends with its stream: what of its session still runs then is killed. What it put into a
session of its own, or leaves behind when it ends by itself, belongs to the container and ends with that, as in Kubernetes.
"""

import errno
import fcntl
import os
import signal
import struct

from edgelite.loop import POLLIN, POLLOUT, Wait
from edgelite.loop import now as clock
from edgelite.runtimes import process_pipes, process_proc, process_spawn
from edgelite.runtimes.base import Ends, RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from edgelite.runtimes.base import Send, Steps
    from edgelite.runtimes.process_config import Host
    from edgelite.runtimes.process_container import Container

    # stdin: write end, -1 for none; outputs: (channel, read end); terminal: the master side, which is input and output at
    # once, -1 for none.
    OurEnds = tuple[int, list[tuple[int, int]], int]
    Streams = tuple[int, int, int]

STDOUT, STDERR = 1, 2
START_S = 30.0
DRAIN_S = 1.0  # for output that something else of the container may still hold open after the command's end
CHUNK_BYTES = 32 << 10
RETRY_S = 0.03


class Command(Ends):
    """A command that runs. ends: our ends of its standard streams, which are taken over. reap(pid): waits for what was killed,
    some time later."""

    def __init__(self, pid: int, ends: "OurEnds", host: "Host", reap: "Callable[[int], None]") -> None:
        self._pid = pid
        self._stdin, self._outputs, self._terminal = ends
        self._host = host
        self._reap = reap
        self._drain_by: "float | None" = (
            None  # it has ended; after this, output that is still open is left alone
        )
        self._pidfd = os.pidfd_open(pid) if host.pidfd and hasattr(os, "pidfd_open") else -1
        for fd in self._descriptors():
            os.set_blocking(fd, False)

    def _descriptors(self) -> "set[int]":
        found = {fd for _, fd in self._outputs}
        found.update((self._stdin, self._terminal, self._pidfd))
        found.discard(-1)
        return found

    def outputs(self, send: "Send") -> "list[tuple[int, Steps]]":
        return [(channel, self._copy(channel, fd, send)) for channel, fd in self._outputs]

    def _copy(self, channel: int, fd: int, send: "Send") -> "Steps":
        while True:
            try:
                data = os.read(fd, CHUNK_BYTES)
            except BlockingIOError:
                if self._drain_by is not None and clock() >= self._drain_by:
                    return
                yield Wait(fd, POLLIN, self._drain_by)
                continue
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                return  # a terminal that nobody has open any more
            if not data:
                return
            yield from send(channel, data)

    def write(self, data: bytes) -> "Steps":
        while data and self._stdin >= 0:
            try:
                data = data[os.write(self._stdin, data) :]
            except BlockingIOError:
                yield Wait(self._stdin, POLLOUT, None)
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO):
                    raise
                self._close_input()

    def end_input(self) -> "Steps":
        if self._stdin >= 0 and self._stdin == self._terminal:
            import termios

            # A terminal has no end: it is typed. Where a program reads key by key it would be a key like any other.
            attributes = termios.tcgetattr(self._terminal)
            if attributes[3] & termios.ICANON:
                yield from self.write(bytes(attributes[6][termios.VEOF]))
        self._close_input()

    def _close_input(self) -> None:
        if self._stdin >= 0 and self._stdin != self._terminal:
            os.close(self._stdin)
        self._stdin = -1

    def resize(self, width: int, height: int) -> "Steps":
        if self._terminal >= 0:
            set_size(self._terminal, width, height)
        return
        yield

    def result(self, quiet: "Callable[[], bool]") -> "Generator[Wait, bool, int]":
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._pid = 0
                self._drain_by = clock() + DRAIN_S
                return process_pipes.exit_code(status)
            yield Wait(self._pidfd, POLLIN, None if self._pidfd >= 0 else clock() + RETRY_S)

    def abandon(self) -> "Steps | None":
        for fd in self._descriptors():
            os.close(fd)
        self._stdin = self._terminal = self._pidfd = -1
        self._outputs = []
        if self._pid:
            end_session(self._pid, self._host.proc)
            self._reap(self._pid)
            self._pid = 0
        return None


def end_session(pid: int, proc: str) -> None:
    """Kills a session that this process has begun, with all its process groups; its leader is not reaped yet."""
    leader = process_proc.read(pid, proc)
    for process in [leader, *process_proc.session(pid, proc)]:
        if process is not None:
            process_proc.send(process, signal.SIGKILL, proc)


def set_size(terminal: int, width: int, height: int) -> None:
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


def start(
    programs: process_spawn.Programs,
    host: "Host",
    reap: "Callable[[int], None]",
    c: "Container",
    argv: "list[str]",
    stdin: bool,
    outputs: "tuple[bool, bool]",
    tty: bool,
) -> "Generator[Wait, bool, Ends]":
    """`Runtime.open_exec` for a container that runs. Raises RuntimeFailure."""
    given: "list[int]" = []  # the command's
    kept: "list[int]" = []  # ours
    command: "Command | None" = None
    try:
        spec = process_spawn.read_spec(c.shim[0], host.proc)
        if tty:
            command_streams, ours = _terminal(stdin, given, kept, spec)
        else:
            command_streams, ours = _pipes(stdin, outputs, given, kept)
        child = process_spawn.fork_inside(programs, c.launch, c.work[0], argv, spec, command_streams, tty)
        command = Command(child.pid, ours, host, reap)
        kept.clear()
    except (OSError, ValueError) as error:
        raise RuntimeFailure("ExecFailed", "cannot enter container %s: %s" % (c.name, error)) from error
    finally:
        for fd in given + kept:
            os.close(fd)
    try:
        report = yield from process_pipes.read_report(child.report, clock() + START_S)
        failure = process_pipes.failure(report)
        if failure is not None:
            raise failure
        started, command = command, None
        return started
    finally:
        child.close()
        if command is not None:
            command.abandon()


def _terminal(
    stdin: bool, given: "list[int]", kept: "list[int]", spec: "dict[str, Any]"
) -> "tuple[Streams, OurEnds]":
    master, slave = os.openpty()
    given.append(slave)
    kept.append(master)
    if not any(name == "TERM" for name, _ in spec["env"]):
        spec["env"].append(("TERM", "xterm"))
    return (slave, slave, slave), (master if stdin else -1, [(STDOUT, master)], master)


def _pipes(
    stdin: bool, outputs: "tuple[bool, bool]", given: "list[int]", kept: "list[int]"
) -> "tuple[Streams, OurEnds]":
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    given.append(null)
    theirs = [null, null, null]
    own = -1
    if stdin:
        theirs[0], own = os.pipe()
        given.append(theirs[0])
        kept.append(own)
    readers = []
    for channel, wanted in ((STDOUT, outputs[0]), (STDERR, outputs[1])):
        if wanted:
            reader, theirs[channel] = os.pipe()
            given.append(theirs[channel])
            kept.append(reader)
            readers.append((channel, reader))
    return (theirs[0], theirs[1], theirs[2]), (own, readers, -1)
