"""Duplex streams: exec, attach and port-forward between a node and one client, as DATA whose first byte is a channel.

Channels: 0 stdin (or the connection, to the pod), 1 stdout (or from the pod), 2 stderr, 3 the end as a metav1.Status,
4 the terminal's size, 255 "this channel ends", whose second byte says which. As in `v5.channel.k8s.io`.

Invariants: at most CREDIT_BYTES come unread from the node, and nothing goes to it beyond what it has granted. Credit
counts whole DATA bodies, the channel's byte included. Whoever leaves closes the stream.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, Protocol

from hub import errors

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
HALF_CLOSE: Final = 255
CREDIT_BYTES: Final = 256 << 10
GRANT_BYTES: Final = 64 << 10
"""Read bytes after which more are granted: a CREDIT for every chunk would be as many frames again."""
CHUNK_BYTES: Final = 32 << 10
"""The longest DATA that goes to a node, for heartbeats go on between two of them."""
GRANTED_MAX: Final = 16 << 20
"""A node that grants more than this at a time does not count."""
START_S: Final = 30.0
"""How long a node may take to say that it has begun, or why not."""
COMMANDS_MAX: Final = 1024
NAME_CHARS_MAX: Final = 253
BODY_BYTES_MAX: Final = 12 << 10
"""Of OPEN: it has to fit the first message of a relayed stream, too."""

FEATURES: Final[Mapping[str, str]] = {"exec": "exec", "attach": "exec", "portforward": "portforward"}
"""What an agent says in HELLO that can serve a stream of the kind."""
_FLAGS: Final = ("stdin", "stdout", "stderr", "tty")
_ERRORS: Final[Mapping[str, type[errors.ApiError]]] = {
    "NotFound": errors.BadRequest,
    "ContainerNotFound": errors.BadRequest,
    "BadRequest": errors.BadRequest,
    "Unsupported": errors.BadRequest,
    "TooManyStreams": errors.TooManyRequests,
    "Gone": errors.Gone,
}


def check_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of OPEN, without credit, of a stream that is asked for. Raises BadRequest. [pure]"""
    kind, pod = body.get("kind"), body.get("pod")
    if kind not in FEATURES:
        raise errors.BadRequest(f"there are no streams of kind {errors.quote(kind)}")
    if not isinstance(pod, str) or not 0 < len(pod) <= NAME_CHARS_MAX:
        raise errors.BadRequest(f"{kind}: pod has to be a UID")
    if kind == "portforward":
        port = body.get("port")
        if type(port) is not int or not 1 <= port <= 65535:
            raise errors.BadRequest(f"portforward: port has to be a number from 1 to 65535, not {port!r}")
        return {"kind": kind, "pod": pod, "port": port}
    container = body.get("container")
    if not isinstance(container, str) or not 0 < len(container) <= NAME_CHARS_MAX:
        raise errors.BadRequest(f"{kind}: container has to be a name")
    flags = {name: bool(body.get(name)) for name in _FLAGS}
    if not (flags["stdin"] or flags["stdout"] or flags["stderr"]):
        raise errors.BadRequest("you must specify at least 1 of stdin, stdout, stderr")
    if flags["tty"] and flags["stderr"]:
        raise errors.BadRequest("tty and stderr cannot both be true: a terminal has one output")
    checked: dict[str, Any] = {"kind": kind, "pod": pod, "container": container, **flags}
    if kind == "exec":
        command = body.get("command")
        if not isinstance(command, list) or not 0 < len(command) <= COMMANDS_MAX:
            raise errors.BadRequest(f"exec: command has to be a list of 1 to {COMMANDS_MAX} words")
        if not all(isinstance(word, str) and "\0" not in word for word in command):
            raise errors.BadRequest("exec: command has to be words without NUL")
        if sum(len(word.encode("utf-8", "replace")) + 8 for word in command) > BODY_BYTES_MAX:
            raise errors.BadRequest(
                f"exec: the command is longer than {BODY_BYTES_MAX} bytes; pass what is long through stdin"
            )
        checked["command"] = command
    return checked


class Sink(Protocol):
    """Where what a node says on a stream goes. `lost`: its connection is gone, nothing more comes."""

    def data(self, chunk: bytes) -> None: ...

    def granted(self, count: int) -> None: ...

    def end(self, error: Mapping[str, Any] | None) -> None: ...

    def lost(self, node: str) -> None: ...


class Line(Protocol):
    """The way to the node. What is called after the end does nothing."""

    @property
    def chunk_bytes(self) -> int:
        """The longest body of one DATA."""
        ...

    @property
    def held(self) -> bool:
        """May nothing be put at this moment? `DuplexStream.woken` is called when it may again."""
        ...

    def put(self, data: bytes) -> None: ...

    def grant(self, count: int) -> None: ...

    def close(self) -> None: ...


class DuplexStream:
    """A client's end of a stream, and the `Sink` of its line."""

    def __init__(self, node: str) -> None:
        self.node = node
        self._line: Line | None = None
        self._credit = 0
        self._chunks: deque[bytes] = deque()
        self._read = asyncio.Event()
        self._room = asyncio.Event()
        self._started = False
        self._ended = False
        self._failure: errors.ApiError | None = None
        self.left = False
        """The client has closed it before the node did."""

    def attach(self, line: Line) -> None:
        """To be called once, before anything else."""
        self._line = line

    # -- from the line ------------------------------------------------------------------------------------------------

    def data(self, chunk: bytes) -> None:
        self._started = True
        self._chunks.append(chunk)
        self._read.set()

    def granted(self, count: int) -> None:
        self._started = True
        self._credit = min(self._credit + count, GRANTED_MAX)
        self._read.set()
        self._room.set()

    def end(self, error: Mapping[str, Any] | None) -> None:
        """The node closed the stream."""
        failure: errors.ApiError | None = None
        if error is not None:
            code, message = str(error.get("code", ""))[:64], str(error.get("message", ""))[:1024]
            kind = _ERRORS.get(code)
            failure = kind(message) if kind else errors.InternalError(f"the node: {code}: {message}")
        self._end(failure)

    def lost(self, node: str) -> None:
        self.fail(errors.ServiceUnavailable(f'the connection to node "{node}" was lost'))

    def fail(self, failure: errors.ApiError) -> None:
        """The stream ends with an error, after what has come already."""
        self._end(failure)

    def woken(self) -> None:
        """`Line.held` has changed."""
        self._room.set()

    def _end(self, failure: errors.ApiError | None) -> None:
        if not self._ended:
            self._ended = True
            self._failure = failure
        self._read.set()
        self._room.set()

    # -- for the client -----------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return self._ended

    async def started(self) -> None:
        """Returns once the node has begun. Raises the ApiError by which it has refused, or Timeout."""
        try:
            async with asyncio.timeout(START_S):
                while not self._started and not self._ended:
                    self._read.clear()
                    await self._read.wait()
        except TimeoutError:
            self.close()
            raise errors.Timeout(f'node "{self.node}" did not answer for {START_S:.0f} s') from None
        if self._failure is not None and not self._started:
            raise self._failure

    async def send(self, channel: int, data: bytes) -> bool:
        """Returns when all has left, as far as the node's credit goes; False when the stream has ended before."""
        assert self._line is not None
        at = 0
        while True:
            while not self._ended and (self._credit < 2 or self._line.held):
                self._room.clear()
                await self._room.wait()
            if self._ended:
                return False
            piece = data[at : at + min(self._credit, self._line.chunk_bytes) - 1]
            if piece:
                at += len(piece)
                self._credit -= 1 + len(piece)
                self._line.put(bytes((channel,)) + piece)
            if at >= len(data):
                return True

    async def finish(self, channel: int) -> bool:
        """Nothing more comes on this channel."""
        return await self.send(HALF_CLOSE, bytes((channel,)))

    async def read(self) -> AsyncGenerator[tuple[int, bytes]]:
        """(channel, bytes) as they came; empty DATA is left out. Raises the ApiError that ended the stream."""
        assert self._line is not None
        unread = 0
        try:
            while True:
                while self._chunks:
                    chunk = self._chunks.popleft()
                    unread += len(chunk)
                    if chunk:
                        yield chunk[0], chunk[1:]
                    if unread >= GRANT_BYTES and not self._ended:
                        self._line.grant(unread)
                        unread = 0
                if self._ended:
                    if self._failure is not None:
                        raise self._failure
                    return
                self._read.clear()
                await self._read.wait()
        finally:
            self.close()

    def close(self) -> None:
        """The client has gone, or has all that it wanted. Idempotent."""
        if not self._ended:
            self.left = True
            self._end(None)
            if self._line is not None:
                self._line.close()
