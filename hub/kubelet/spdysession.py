"""One SPDY connection over a tunnel of bytes, as a server: streams that the client makes, read and written by tasks.

Bounds: STREAMS_MAX streams at a time; UNREAD_BYTES_MAX of one stream, beyond which nothing more is read from the tunnel
until somebody reads the stream. A peer that breaks the protocol ends the connection.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from hub.kubelet import spdy
from hub.kubelet.tunnels import Tunnel

log = logging.getLogger(__name__)

STREAMS_MAX: Final = 256
UNREAD_BYTES_MAX: Final = 128 << 10
LINGER_S: Final = 60.0
"""How long a client may take to go when all is said. It is not cut off before: when a connection ends, client-go loses
what it has read and not passed on, as to a slow pipe."""


class SpdyStream:
    """A stream that the client has made."""

    def __init__(self, session: "SpdySession", frame: spdy.SynStream) -> None:
        self.number = frame.stream
        self.headers = frame.headers
        self._session = session
        self._chunks: deque[bytes] = deque()
        self._unread = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._in_ended = frame.fin
        self._out_ended = frame.unidirectional

    @property
    def over(self) -> bool:
        return self._in_ended and self._out_ended

    async def read(self) -> bytes:
        """What has come; b"" when the client has said all, or is gone."""
        while not self._chunks and not self._in_ended:
            self._news.clear()
            await self._news.wait()
        if not self._chunks:
            return b""
        chunk = self._chunks.popleft()
        self._unread -= len(chunk)
        self._room.set()
        return chunk

    async def write(self, data: bytes, fin: bool = False) -> None:
        """Raises ConnectionResetError when the stream or the connection has ended."""
        if self._out_ended:
            raise ConnectionResetError("the stream has ended")
        if fin:
            self._out_ended = True
        await self._session.send(spdy.Data(self.number, data, fin))
        self._session.tidy(self)

    async def end(self) -> None:
        """Says that nothing more comes; nothing when that was said, or the client is gone."""
        if not self._out_ended and not self._session.gone:
            with contextlib.suppress(ConnectionError):
                await self.write(b"", fin=True)

    async def reset(self, code: int = spdy.CANCEL) -> None:
        """Ends both directions at once."""
        if not self.over and not self._session.gone:
            self.cut()
            await self._session.send(spdy.Reset(self.number, code))
            self._session.tidy(self)

    # -- from the session ---------------------------------------------------------------------------------------------

    async def received(self, data: bytes, fin: bool) -> None:
        """Returns when there is room for more."""
        if data and not self._in_ended:
            self._chunks.append(data)
            self._unread += len(data)
        self._in_ended = self._in_ended or fin
        self._news.set()
        while self._unread > UNREAD_BYTES_MAX and not self._out_ended:
            self._room.clear()
            await self._room.wait()

    def cut(self) -> None:
        """Nothing comes or goes any more."""
        self._in_ended = self._out_ended = True
        self._news.set()
        self._room.set()


class SpdySession:
    """See the module. `on_stream` is told of a new stream: None accepts it, else the text says why it is refused."""

    def __init__(self, tunnel: Tunnel, on_stream: Callable[[SpdyStream], str | None]) -> None:
        self._tunnel = tunnel
        self._on_stream = on_stream
        self._codec = spdy.Codec()
        self._streams: dict[int, SpdyStream] = {}
        self._last = 0
        self._writing = asyncio.Lock()
        self.gone = False
        """The client has ended the connection, or said that it will."""

    async def run(self) -> None:
        """Reads until the client has gone, or broke the protocol."""
        try:
            while not self.gone and (data := await self._tunnel.receive()):
                for frame in self._codec.feed(data):
                    await self._handle(frame)
        except spdy.SpdyError as failure:
            log.info("a SPDY connection was ended: %s", failure)
        except ConnectionError as failure:
            log.debug("a SPDY connection was lost: %s", failure)
        finally:
            self.gone = True
            for stream in self._streams.values():
                stream.cut()
            self._streams.clear()

    async def part(self, reading: "asyncio.Task[None]") -> None:
        """All is said: says so, and waits for the client to go, at most LINGER_S. `reading`: the task of `run`."""
        if not self.gone:
            with contextlib.suppress(ConnectionError):
                await self.send(spdy.Goaway(self._last))
                await asyncio.wait([reading], timeout=LINGER_S)

    async def send(self, frame: spdy.Frame) -> None:
        """Raises ConnectionResetError."""
        # The order of the frames is that of the compressed headers.
        async with self._writing:
            await self._tunnel.send(self._codec.encode(frame))

    def tidy(self, stream: SpdyStream) -> None:
        if stream.over:
            self._streams.pop(stream.number, None)

    async def _handle(self, frame: spdy.Frame) -> None:
        match frame:
            case spdy.Data(number, data, fin):
                stream = self._streams.get(number)
                if stream is not None:
                    await stream.received(data, fin)
                    self.tidy(stream)
            case spdy.SynStream():
                await self._new(frame)
            case spdy.Reset(number, _):
                stream = self._streams.pop(number, None)
                if stream is not None:
                    stream.cut()
            case spdy.Ping(number) if number % 2:
                await self.send(frame)
            case spdy.Goaway():
                # Its streams may still have something to hear; the connection's end follows.
                if not self._streams:
                    self.gone = True
            case _:
                pass  # what was said on streams that are none, and windows that nobody keeps

    async def _new(self, frame: spdy.SynStream) -> None:
        number = frame.stream
        if number % 2 == 0 or number <= self._last:
            raise spdy.SpdyError(f"stream {number} after {self._last}")
        self._last = number
        stream = SpdyStream(self, frame)
        refusal = f"more than {STREAMS_MAX} streams" if len(self._streams) >= STREAMS_MAX else None
        refusal = refusal or self._on_stream(stream)
        if refusal is not None:
            log.info("a stream of a SPDY connection was refused: %s", refusal)
            stream.cut()
            await self.send(spdy.Reset(number, spdy.REFUSED_STREAM))
            return
        self._streams[number] = stream
        # client-go waits for it before it uses the stream.
        await self.send(spdy.SynReply(number, {}))
