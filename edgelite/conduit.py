"""A stream that goes both ways: exec, attach, port-forward (ARCHITECTURE.md, "Channel streams").

The first byte of every DATA body is a channel: 0 to 2 the standard streams, 3 how it ended, 4 the terminal's size, 255 a
half-close whose second byte names the channel. Credit counts whole bodies, in both directions.

What runs at the other end is an `Ends` of the runtime. Its outputs are tasks that send, the input is a task that takes what
the hub has sent; this stream's own task waits for the end and says how it was. Whichever way the stream ends, nothing that
was started for it is left behind: a closed stream kills.

Bounds: WINDOW_BYTES of input that wait, one chunk per output, a close that waits LINGER_S for the other side at most.
"""

import json

from edgelite import wire
from edgelite.desired import compact
from edgelite.loop import Cancelled, Wait
from edgelite.runtimes.base import RuntimeFailure
from edgelite.streams import ReaderGone, Sink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from edgelite.runtimes.base import Ends
    from edgelite.streams import Streams

    Steps = Generator[Wait, bool, None]

STDIN, STDOUT, STDERR, ERROR, RESIZE, HALF_CLOSE = 0, 1, 2, 3, 4, 255
WINDOW_BYTES = 64 << 10
LINGER_S = 30.0
SIDE_MAX = 65535  # columns or rows of a terminal


class Conduit(Sink):
    """See the module."""

    def __init__(self, streams: "Streams", stream: int, credit: int) -> None:
        Sink.__init__(self, streams, stream, credit)
        self._granted = 0  # bytes that the hub may send
        self._consumed = 0  # bytes that it sent and that are not granted again yet
        self._input: "list[bytes]" = []
        self._input_ended = False
        self._size: "tuple[int, int] | None" = None
        self._running = 0  # outputs that have not ended
        self._feeding = False
        self._code: "int | None" = None
        self._failure: "Exception | None" = None

    # What the hub sends

    def received(self, body: bytes) -> "str | None":
        if len(body) > self._granted:
            return "%d bytes on stream %d, %d are granted" % (len(body), self.stream, self._granted)
        if not body:
            return "DATA without a channel on stream %d" % self.stream
        self._granted -= len(body)
        channel = body[0]
        if channel == STDIN and not self._input_ended:
            self._input.append(body)
        else:
            self._consume(len(body))
            if channel == RESIZE:
                self._resize(body[1:])
            elif channel == HALF_CLOSE and body[1:2] == b"\0":
                self._input_ended = True
        self.wake()
        return None

    def _resize(self, body: bytes) -> None:
        """Only the last size matters; one that makes no sense is not worth the stream."""
        try:
            wanted = json.loads(body)
            width, height = int(wanted["Width"]), int(wanted["Height"])
        except (ValueError, KeyError, TypeError):
            return
        if 0 < width <= SIDE_MAX and 0 < height <= SIDE_MAX:
            self._size = (width, height)

    def _consume(self, size: int) -> None:
        """Grants again what was used, half a window at a time."""
        self._consumed += size
        if self._consumed >= WINDOW_BYTES // 2:
            size, self._consumed = self._consumed, 0
            self._grant(size)

    def _grant(self, size: int) -> None:
        self._granted += size
        self.streams.emit(wire.CREDIT, self.stream, compact({"c": size}))

    # What goes to the hub

    def send(self, channel: int, data: bytes) -> "Steps":
        """Generator. Sends all of `data` on a channel, waiting for credit as often as needed. Raises ReaderGone."""
        at = 0
        while True:
            # A message that means something only when it is whole is not cut.
            whole = len(data) + 1 if channel in (ERROR, HALF_CLOSE) else 2
            size = yield from self.allowance(whole)
            chunk = data[at : at + size - 1]
            at += len(chunk)
            self.emit(bytes((channel,)) + chunk)
            if at >= len(data):
                return

    # Its life

    def run(
        self, inside: "Callable[[dict[str, Any]], Generator[Wait, bool, Ends]]", request: "dict[str, Any]"
    ) -> "Steps":
        """Generator. The stream's own task. Raises RuntimeFailure, ReaderGone, OSError."""
        ends = yield from inside(request)
        try:
            self._grant(WINDOW_BYTES)
            for channel, copy in ends.outputs(self.send):
                self._running += 1
                self._spawn(self._output(ends, channel, copy), "output")
            self._feeding = True
            self._spawn(self._feed(ends), "input")
            self._spawn(self._end(ends), "end")
            code = yield from self._over(ends)
            yield from self.send(ERROR, _status(code))
        finally:
            for task in self.tasks[1:]:
                self.streams.loop.cancel(task)
            del self.tasks[1:]
            rest = ends.abandon()
            if rest is not None:
                self.streams.loop.spawn(rest, "rest of stream %d" % self.stream)

    def _spawn(self, steps: "Steps", what: str) -> None:
        task = self.streams.loop.spawn(self._guarded(steps), "%s of stream %d" % (what, self.stream))
        self.tasks.append(task)

    def _guarded(self, steps: "Steps") -> "Steps":
        """What fails here ends this stream, never the agent."""
        try:
            yield from steps
        except Cancelled:
            raise
        except (RuntimeFailure, ReaderGone, OSError) as error:
            self._failure = self._failure or error
        finally:
            self.wake()  # whoever waits looks again

    def _output(self, ends: "Ends", channel: int, copy: "Steps") -> "Steps":
        try:
            yield from copy
            if ends.half_closes:
                yield from self.send(HALF_CLOSE, bytes((channel,)))
        finally:
            self._running -= 1

    def _end(self, ends: "Ends") -> "Steps":
        self._code = yield from ends.result(self._quiet)

    def _quiet(self) -> bool:
        """Whether all outputs have ended."""
        return not self._running

    def _over(self, ends: "Ends") -> "Generator[Wait, bool, int]":
        """Waits until it has ended and all its output is sent. Where one side can end before the other, the hub gets a while
        to end its own."""
        until: "float | None" = None
        while True:
            if self._failure is not None:
                raise self._failure
            if self._code is not None and not self._running:
                now = self.streams.loop.now()
                until = until or now + LINGER_S
                if not ends.half_closes or not self._feeding or now >= until:
                    return self._code
            yield Wait(-1, 0, until)

    def _feed(self, ends: "Ends") -> "Steps":
        """Hands over what the hub sends."""
        told = False
        try:
            while True:
                if self._size is not None:
                    size, self._size = self._size, None
                    yield from ends.resize(size[0], size[1])
                elif self._input:
                    body = self._input.pop(0)
                    yield from ends.write(body[1:])
                    self._consume(len(body))
                elif self._input_ended and not told:
                    told = True
                    yield from ends.end_input()
                    if ends.half_closes:
                        return
                else:
                    yield Wait(-1, 0, None)
        finally:
            self._feeding = False


def _status(code: int) -> bytes:
    """A metav1.Status, as a kubelet ends its streams."""
    if not code:
        return compact({"metadata": {}, "status": "Success"})
    text = "command terminated with non-zero exit code: exit status %d" % code
    causes = [{"reason": "ExitCode", "message": str(code)}]
    return compact(
        {
            "metadata": {},
            "status": "Failure",
            "message": text,
            "reason": "NonZeroExitCode",
            "details": {"causes": causes},
        }
    )
