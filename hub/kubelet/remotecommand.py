"""exec and attach: from a client's WebSocket or SPDY connection to a node's duplex stream, and back.

WebSocket: `v5.channel.k8s.io` (channels and half-close as on the duplex stream) and `v4.channel.k8s.io` (no half-close).
SPDY: `v4.channel.k8s.io`, one stream for each of error, stdin, stdout, stderr and resize.

Invariant: the client hears how it ended exactly once, as a metav1.Status on the error channel, before its connection ends,
and after all that the command has written. A client that leaves closes the node's stream.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any, Final, Protocol

import orjson
from aiohttp import WSMsgType, web

from hub import errors
from hub.duplex import ERROR, HALF_CLOSE, RESIZE, STDERR, STDIN, STDOUT, DuplexStream
from hub.kubelet.spdysession import SpdySession, SpdyStream
from hub.kubelet.tunnels import Tunnel, negotiate, open_spdy, open_websocket

log = logging.getLogger(__name__)

V4: Final = "v4.channel.k8s.io"
V5: Final = "v5.channel.k8s.io"
STREAMS_S: Final = 30.0
"""How long a SPDY client may take to make its streams."""
STATUS_BYTES_MAX: Final = 16 << 10
RESIZE_BYTES_MAX: Final = 256
CHANNELS: Final[Mapping[str, int]] = {
    "stdin": STDIN,
    "stdout": STDOUT,
    "stderr": STDERR,
    "error": ERROR,
    "resize": RESIZE,
}


class Client(Protocol):
    """The client's end of one command."""

    async def receive(self) -> tuple[int, bytes] | None:
        """(channel, bytes), (HALF_CLOSE, channel) as on the duplex stream; None: the client is gone."""
        ...

    async def send(self, channel: int, data: bytes) -> None:
        """Raises ConnectionError."""
        ...

    async def finish(self, status: bytes) -> None:
        """Says how it ended, and ends."""
        ...


def failure_status(failure: errors.ApiError) -> bytes:
    """What a client hears that is connected already. [pure]"""
    return orjson.dumps(failure.status())


def check(request: web.BaseRequest) -> tuple[bool, str]:
    """Whether it is a WebSocket, and the protocol above it; before anything is begun at the node. Raises BadRequest,
    Forbidden."""
    return negotiate(request, (V5, V4), (V4,))


async def serve(
    request: web.BaseRequest, stream: DuplexStream, body: Mapping[str, Any]
) -> web.StreamResponse:
    """Upgrades the request and serves it with a node's stream that has `started`; `body`: that of its OPEN. Returns when
    it has ended. Raises as `check` does, before the upgrade."""
    try:
        is_websocket, protocol = check(request)
        if is_websocket:
            socket = await open_websocket(request, protocol)
            client = _WebSocketClient(socket, body)
            await client.greet()
            await _carry(stream, client)
            return socket
        response, tunnel = await open_spdy(request, protocol)
        await _serve_spdy(tunnel, stream, body)
        return response
    finally:
        stream.close()


async def _serve_spdy(tunnel: Tunnel, stream: DuplexStream, body: Mapping[str, Any]) -> None:
    client = _SpdyClient(tunnel, body)
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(client.session.run(), name="SPDY")
        try:
            if await client.complete(group, reading):
                await _carry(stream, client)
            await client.session.part(reading)
        finally:
            reading.cancel()
            client.leave()
            await tunnel.close()


async def _carry(stream: DuplexStream, client: Client) -> None:
    """Until the command has ended, or the client is gone."""
    async with asyncio.TaskGroup() as group:
        upwards = group.create_task(_pass_up(stream, client), name="input of a command")
        try:
            status = await _pass_down(stream, client)
            if status is not None:
                await client.finish(status)
        except ConnectionError as gone:
            log.debug("the client of a command is gone: %s", gone)
        finally:
            stream.close()
            upwards.cancel()


async def _pass_down(stream: DuplexStream, client: Client) -> bytes | None:
    """What the command writes; its status at the end, None when the client has left."""
    status = b""
    try:
        async with contextlib.aclosing(stream.read()) as chunks:
            async for channel, data in chunks:
                if channel in (STDOUT, STDERR):
                    await client.send(channel, data)
                elif channel == ERROR:
                    status = (status + data)[:STATUS_BYTES_MAX]
    except errors.ApiError as failure:
        return failure_status(failure)
    if stream.left:
        return None
    return status or failure_status(
        errors.InternalError(f'node "{stream.node}" ended the stream without a word about the command')
    )


async def _pass_up(stream: DuplexStream, client: Client) -> None:
    """What the client types. When it is gone the stream is closed."""
    while (got := await client.receive()) is not None:
        channel, data = got
        if not await stream.send(channel, data):
            return
    stream.close()


class _WebSocketClient:
    """Both versions: v4 has no half-close, and its clients send none."""

    def __init__(self, socket: web.WebSocketResponse, body: Mapping[str, Any]) -> None:
        self._socket = socket
        self._body = body

    async def greet(self) -> None:
        """An empty message on the first channel: clients wait for it to know that all is open."""
        first = STDOUT if self._body["stdout"] else STDERR if self._body["stderr"] else ERROR
        with contextlib.suppress(ConnectionError):
            await self.send(first, b"")

    async def receive(self) -> tuple[int, bytes] | None:
        while True:
            message = await self._socket.receive()
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                return None
            data = message.data.encode() if message.type is WSMsgType.TEXT else bytes(message.data)
            allowed = _allowed(self._body, data[0], data[1:]) if data else None
            if allowed is not None:
                return allowed

    async def send(self, channel: int, data: bytes) -> None:
        await self._socket.send_bytes(bytes((channel,)) + data)

    async def finish(self, status: bytes) -> None:
        await self.send(ERROR, status)
        await self._socket.close()


def _allowed(body: Mapping[str, Any], channel: int, data: bytes) -> tuple[int, bytes] | None:
    """What a client may say on a stream that was opened with `body`; None is passed over. [pure]"""
    if channel == STDIN:
        return (STDIN, data) if body["stdin"] and data else None
    if channel == RESIZE:
        return (RESIZE, data) if body["tty"] and 0 < len(data) <= RESIZE_BYTES_MAX else None
    if channel == HALF_CLOSE and data[:1] == bytes((STDIN,)) and body["stdin"]:
        return HALF_CLOSE, data[:1]
    return None


class _SpdyClient:
    """Streams by what they are for, as their `streamtype` says."""

    def __init__(self, tunnel: Tunnel, body: Mapping[str, Any]) -> None:
        self._body = body
        self._wanted = {ERROR} | {CHANNELS[name] for name in ("stdin", "stdout", "stderr") if body[name]}
        if body["tty"]:
            self._wanted.add(RESIZE)
        self._streams: dict[int, SpdyStream] = {}
        self._all_there = asyncio.Event()
        self._input: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(maxsize=1)
        self._readers: list[asyncio.Task[None]] = []
        self.session = SpdySession(tunnel, self._on_stream)

    def _on_stream(self, stream: SpdyStream) -> str | None:
        kind = stream.headers.get("streamtype", "")[:32]
        channel = CHANNELS.get(kind)
        if channel not in self._wanted or channel in self._streams:
            return f"a stream of type {kind!r} was not asked for"
        self._streams[channel] = stream
        if len(self._streams) == len(self._wanted):
            self._all_there.set()
        return None

    async def complete(self, group: asyncio.TaskGroup, reading: "asyncio.Task[None]") -> bool:
        """True once the client has made all its streams, which `group` reads then; False when it has not, in time."""
        reading.add_done_callback(lambda _: self._all_there.set())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STREAMS_S):
                await self._all_there.wait()
        if missing := sorted(self._wanted - set(self._streams)):
            log.info("a client of a command did not make its streams (missing: channels %s)", missing)
            return False
        for channel in (STDIN, RESIZE):
            if channel in self._streams:
                job = self._read(channel, self._streams[channel])
                self._readers.append(group.create_task(job, name="a stream of a command"))
        self._readers.append(group.create_task(self._watch(reading), name="the client of a command"))
        return True

    async def _read(self, channel: int, stream: SpdyStream) -> None:
        while data := await stream.read():
            if (allowed := _allowed(self._body, channel, data)) is not None:
                await self._input.put(allowed)
        if channel == STDIN and not self.session.gone:
            await self._input.put((HALF_CLOSE, bytes((STDIN,))))

    async def _watch(self, reading: "asyncio.Task[None]") -> None:
        await asyncio.wait([reading])
        await self._input.put(None)

    async def receive(self) -> tuple[int, bytes] | None:
        return await self._input.get()

    async def send(self, channel: int, data: bytes) -> None:
        stream = self._streams.get(channel)
        if stream is None:
            raise ConnectionResetError("the client has no such stream")
        await stream.write(data)

    async def finish(self, status: bytes) -> None:
        for channel in (STDOUT, STDERR):
            if channel in self._streams:
                await self._streams[channel].end()
        await self._streams[ERROR].write(status, fin=True)

    def leave(self) -> None:
        for task in self._readers:
            task.cancel()
