"""Streams over the hub's connection: credit-based, so that one peer can neither stall heartbeats nor fill memory.

Here: which streams there are, what may be sent, and logs. What goes both ways (exec, attach, port-forward) is in
`edgelite.conduit`, which is loaded when the first such stream is opened.

A stream may send as many bytes as the hub has granted, and pauses while the connection's own queue is long.
Bounds: STREAMS_MAX streams, CREDIT_MAX bytes of credit each, CHUNK_BYTES per frame.
"""

from edgelite import wire
from edgelite.desired import compact
from edgelite.loop import Cancelled, Wait
from edgelite.runtimes.base import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from edgelite.loop import Loop, Task
    from edgelite.runtimes.base import Ends

STREAMS_MAX = 16
CREDIT_MAX = 16 << 20
CHUNK_BYTES = 32 << 10
PAUSE_S = 1.0
TWO_WAY = ("exec", "attach", "portforward")


class ReaderGone(Exception):
    """The hub closed the stream or the connection; there is nobody to write for."""


class Sink:
    """Where a stream's bytes go: see `LogSink` in edgelite.runtimes.base. `tasks` are those that may wait for credit."""

    def __init__(self, streams: "Streams", stream: int, credit: int) -> None:
        self.streams = streams
        self.stream = stream
        self.credit = min(credit, CREDIT_MAX)
        self.open = True
        self.tasks: "list[Task]" = []

    def write(self, data: bytes) -> "Generator[Wait, bool, None]":
        """Generator. Sends all of `data`, waiting for credit as often as needed. Raises ReaderGone."""
        at = 0
        while at < len(data):
            size = yield from self.allowance(1)
            chunk = data[at : at + size]
            at += len(chunk)
            self.emit(chunk)

    def allowance(self, least: int) -> "Generator[Wait, bool, int]":
        """Generator. Waits until at least `least` bytes may be sent; how many may be. Raises ReaderGone."""
        while True:
            if not self.open:
                raise ReaderGone()
            if self.credit < least:
                yield Wait(-1, 0, None)  # `Streams` wakes us when there is more
            elif not self.streams.has_room():
                yield Wait(-1, 0, self.streams.loop.now() + PAUSE_S)
            else:
                return min(self.credit, CHUNK_BYTES)

    def emit(self, body: bytes) -> None:
        """Sends what `allowance` allowed."""
        self.credit -= len(body)
        self.streams.emit(wire.DATA, self.stream, body)

    def received(self, body: bytes) -> "str | None":
        """DATA of the hub; an error text when it broke the protocol. A log takes none."""
        return "DATA on a stream that takes none"

    def wake(self) -> None:
        for task in self.tasks:
            self.streams.loop.wake(task)


class Streams:
    """The streams of one connection.

    logs, inside, usage: see `Workloads`, of the last None where an agent does not tell it; emit(kind, stream, body bytes) sends; has_room() tells
    whether the connection's queue is short."""

    def __init__(
        self,
        loop: "Loop",
        logs: "Callable[[str, str, dict[str, Any], Sink], Generator[Wait, bool, None]]",
        inside: "Callable[[dict[str, Any]], Generator[Wait, bool, Ends]]",
        emit: "Callable[[int, int, bytes], None]",
        has_room: "Callable[[], bool]",
        usage: "Callable[[Sink], Generator[Wait, bool, None]] | None" = None,
    ) -> None:
        self.loop = loop
        self._logs = logs
        self._inside = inside
        self._usage = usage
        self._open: "dict[int, Sink]" = {}
        self.emit = emit
        self.has_room = has_room

    def __len__(self) -> int:
        return len(self._open)

    def message(self, kind: int, stream: int, body: "Any") -> "str | None":
        """A stream message of the hub: OPEN (dict), CREDIT (int), CLOSE (dict), DATA (bytes). Returns an error text
        when the hub broke the protocol, else None."""
        if kind == wire.OPEN:
            return self._start(stream, body)
        sink = self._open.get(stream)
        if sink is None:
            return None  # it ended at this end while the message was on its way
        if kind == wire.CREDIT:
            if body < 0:
                return "negative credit"
            sink.credit = min(sink.credit + body, CREDIT_MAX)
            sink.wake()
        elif kind == wire.DATA:
            return sink.received(body)
        elif kind == wire.CLOSE:
            self._drop(stream)
        return None

    def wake(self) -> None:
        """The connection's queue has room again."""
        for sink in self._open.values():
            sink.wake()

    def close_all(self) -> None:
        """The connection is gone."""
        for stream in list(self._open):
            self._drop(stream)

    def _start(self, stream: int, request: "Any") -> "str | None":
        if stream in self._open:
            return "OPEN of stream %d, which is open" % stream
        if not isinstance(request, dict):
            return "OPEN without a request"
        kind = request.get("kind")
        if kind not in ("log",) + TWO_WAY and not (kind == "usage" and self._usage is not None):
            self._end(stream, "Unsupported", "this agent has no streams of kind %r" % (kind,))
            return None
        if len(self._open) >= STREAMS_MAX:
            self._end(stream, "TooManyStreams", "%d streams are open on this node" % STREAMS_MAX)
            return None
        credit = int(request.get("credit") or 0)
        if kind == "log":
            sink = Sink(self, stream, credit)
            steps = self._logs(str(request.get("pod")), str(request.get("container")), request, sink)
        elif kind == "usage" and self._usage is not None:
            sink = Sink(self, stream, credit)
            steps = self._usage(sink)
        else:
            from edgelite.conduit import Conduit

            sink = conduit = Conduit(self, stream, credit)
            steps = conduit.run(self._inside, request)
        self._open[stream] = sink
        sink.tasks.append(self.loop.spawn(self._run(sink, steps), "%s stream %d" % (kind, stream)))
        return None

    def _run(self, sink: Sink, steps: "Generator[Wait, bool, None]") -> "Generator[Wait, bool, None]":
        code = message = ""
        try:
            yield from steps
        except ReaderGone:
            return
        except Cancelled:
            raise
        except RuntimeFailure as error:
            code, message = error.reason, error.message
        except OSError as error:
            code, message = "Failed", "the stream broke off on this node: %s" % error
        if self._open.get(sink.stream) is sink:
            del self._open[sink.stream]
            self._end(sink.stream, code, message)

    def _end(self, stream: int, code: str, message: str) -> None:
        body: "dict[str, Any]" = {"error": {"code": code, "message": message}} if code else {}
        self.emit(wire.CLOSE, stream, compact(body))

    def _drop(self, stream: int) -> None:
        sink = self._open.pop(stream)
        sink.open = False
        for task in list(sink.tasks):
            if task is not self.loop.current:
                self.loop.cancel(task)
