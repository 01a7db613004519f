"""Commands inside a container on Windows: in a job of their own below the container's, on pipes that are looked at."""

import ctypes

from edgelite import kernel32
from edgelite.runtimes import windows_names, windows_shim
from edgelite.runtimes.supervised_command import CHUNK_BYTES, STDERR, STDOUT, Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PIPE_BYTES = 64 << 10


class WindowsCommand(Command):
    """A command in a job of its own inside the container's."""

    def __init__(self, process: int, job: int, stdin: int, readers: "dict[int, int]") -> None:
        super().__init__(sorted(readers))
        self._process = process
        self._job = job
        self._stdin = stdin
        self._readers = readers

    def read(self, channel: int) -> "bytes | None":
        return kernel32.read_ready(self._readers[channel], CHUNK_BYTES)

    def take(self, data: bytes) -> "int | None":
        if not self._stdin:
            return None
        try:
            return kernel32.write(self._stdin, data)
        except OSError as error:
            if kernel32.number(error) not in (kernel32.BROKEN_PIPE, kernel32.NO_DATA):
                raise
            self.close_input()
            return None

    def close_input(self) -> None:
        kernel32.close(self._stdin)
        self._stdin = 0

    def poll(self) -> "int | None":
        if kernel32.runs(self._process):
            return None
        return windows_names.exit_status(kernel32.exit_code(self._process))[0]

    def close(self) -> None:
        if self._process:
            if kernel32.runs(self._process):
                kernel32.call("TerminateJobObject", self._job, windows_shim.KILLED)
            kernel32.close(self._process, self._job, *self._readers.values())
            self.close_input()
            self._process = 0


def start(
    spec: "dict[str, Any]",
    job: int,
    argv: "list[str]",
    stdin: bool,
    outputs: "tuple[bool, bool]",
    joined: bool,
) -> WindowsCommand:
    """Starts it. spec, job: the container's; joined: both outputs are one. Raises windows_shim.Failure, OSError."""
    given: "list[int]" = []
    kept: "list[int]" = []
    try:
        nothing = kernel32.open_file("NUL", kernel32.GENERIC_READ | kernel32.GENERIC_WRITE, False)
        given.append(nothing)
        streams = [nothing, nothing, nothing]
        readers: "dict[int, int]" = {}
        own = 0
        if stdin:
            streams[0], own = kernel32.pipe(PIPE_BYTES)
            given.append(streams[0])
            kept.append(own)
            mode = ctypes.c_uint32(kernel32.PIPE_NOWAIT)
            kernel32.call(
                "SetNamedPipeHandleState", own, ctypes.byref(mode), None, None
            )  # a full one takes nothing
        for channel, wanted in ((STDOUT, outputs[0]), (STDERR, outputs[1])):
            if wanted and joined and readers:
                streams[channel] = streams[STDOUT]
            elif wanted:
                readers[channel], streams[channel] = kernel32.pipe(PIPE_BYTES)
                given.append(streams[channel])
                kept.append(readers[channel])
        command = _enter(spec, job, argv, (streams[0], streams[1], streams[2]), own, readers)
        kept = []
        return command
    finally:
        kernel32.close(*given, *kept)


def _enter(
    spec: "dict[str, Any]",
    job: int,
    argv: "list[str]",
    streams: "tuple[int, int, int]",
    stdin: int,
    readers: "dict[int, int]",
) -> WindowsCommand:
    """Starts it in the container's job, and in one of its own below that. Raises Failure, OSError."""
    flags = kernel32.NEW_GROUP | kernel32.NO_WINDOW
    process, thread, _ = windows_shim.suspended(spec, argv, streams, flags)
    own = 0
    try:
        kernel32.call("AssignProcessToJobObject", job, process)
        own = int(kernel32.call("CreateJobObjectW", None, None))
        kernel32.call("AssignProcessToJobObject", own, process)
        kernel32.call("ResumeThread", thread)
    except OSError:
        kernel32.call("TerminateProcess", process, windows_shim.KILLED)
        kernel32.close(process, own)
        raise
    finally:
        kernel32.close(thread)
    return WindowsCommand(process, own, stdin, readers)
