"""Log streams over the hub's connection: credit-based, so that one reader can neither stall heartbeats nor fill memory.

A stream's task may send as many bytes as the hub has granted, and pauses while the connection's own queue is long.
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

STREAMS_MAX = 16
CREDIT_MAX = 16 << 20
CHUNK_BYTES = 32 << 10
PAUSE_S = 1.0


class ReaderGone(Exception):
    """The hub closed the stream or the connection; there is nobody to write for."""


class Sink:
    """Where a stream's bytes go: see `LogSink` in edgelite.runtimes.base."""

    def __init__(self, streams: "Streams", stream: int, credit: int) -> None:
        self._streams = streams
        self._stream = stream
        self.credit = min(credit, CREDIT_MAX)
        self.open = True
        self.task: "Task | None" = None

    def write(self, data: bytes) -> "Generator[Wait, bool, None]":
        """Generator. Sends all of `data`, waiting for credit as often as needed. Raises ReaderGone."""
        at = 0
        while at < len(data):
            if not self.open:
                raise ReaderGone()
            if self.credit <= 0:
                yield Wait(-1, 0, None)  # `Streams.credit` wakes us
                continue
            if not self._streams.has_room():
                yield Wait(-1, 0, self._streams.now() + PAUSE_S)
                continue
            chunk = data[at : at + min(self.credit, CHUNK_BYTES)]
            self.credit -= len(chunk)
            at += len(chunk)
            self._streams.emit(wire.DATA, self._stream, chunk)


class Streams:
    """The streams of one connection.

    logs: `Workloads.logs`; emit(kind, stream, body bytes) sends; has_room() tells whether the connection's queue is
    short."""

    def __init__(
        self,
        loop: "Loop",
        logs: "Callable[[str, str, dict[str, Any], Sink], Generator[Wait, bool, None]]",
        emit: "Callable[[int, int, bytes], None]",
        has_room: "Callable[[], bool]",
    ) -> None:
        self._loop = loop
        self._logs = logs
        self._open: "dict[int, Sink]" = {}
        self.emit = emit
        self.has_room = has_room

    def __len__(self) -> int:
        return len(self._open)

    def now(self) -> float:
        return self._loop.now()

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
            self._loop.wake(sink.task)
        elif kind == wire.CLOSE:
            self._drop(stream)
        return None

    def wake(self) -> None:
        """The connection's queue has room again."""
        for sink in self._open.values():
            self._loop.wake(sink.task)

    def close_all(self) -> None:
        """The connection is gone."""
        for stream in list(self._open):
            self._drop(stream)

    def _start(self, stream: int, request: "Any") -> "str | None":
        if stream in self._open:
            return "OPEN of stream %d, which is open" % stream
        if not isinstance(request, dict):
            return "OPEN without a request"
        if request.get("kind") != "log":
            self._end(stream, "Unsupported", "this agent has no streams of kind %r" % (request.get("kind"),))
            return None
        if len(self._open) >= STREAMS_MAX:
            self._end(stream, "TooManyStreams", "%d streams are open on this node" % STREAMS_MAX)
            return None
        sink = Sink(self, stream, int(request.get("credit") or 0))
        self._open[stream] = sink
        sink.task = self._loop.spawn(self._run(stream, sink, request), "log stream %d" % stream)
        return None

    def _run(self, stream: int, sink: Sink, request: "dict[str, Any]") -> "Generator[Wait, bool, None]":
        code = message = ""
        try:
            pod, container = str(request.get("pod")), str(request.get("container"))
            yield from self._logs(pod, container, request, sink)
        except ReaderGone:
            return
        except Cancelled:
            raise
        except RuntimeFailure as error:
            code, message = error.reason, error.message
        except OSError as error:
            code, message = "ReadFailed", "cannot read the log: %s" % error
        if self._open.get(stream) is sink:
            del self._open[stream]
            self._end(stream, code, message)

    def _end(self, stream: int, code: str, message: str) -> None:
        body: "dict[str, Any]" = {"error": {"code": code, "message": message}} if code else {}
        self.emit(wire.CLOSE, stream, compact(body))

    def _drop(self, stream: int) -> None:
        sink = self._open.pop(stream)
        sink.open = False
        if sink.task is not self._loop.current:
            self._loop.cancel(sink.task)
