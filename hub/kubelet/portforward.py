"""port-forward: every connection of a client is a pair of SPDY streams, and one duplex stream of the node.

The client's SPDY runs in a WebSocket (`SPDY/3.1+portforward.k8s.io`, kubectl since 1.31) or on a connection that has left
HTTP. Bounds: PAIRS_MAX connections of one client at a time, and what the node allows.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import orjson
from aiohttp import web

from hub import errors
from hub.duplex import ERROR, HALF_CLOSE, STDIN, STDOUT, DuplexStream
from hub.kubelet.spdysession import SpdySession, SpdyStream
from hub.kubelet.tunnels import Tunnel, WebSocketTunnel, negotiate, open_spdy, open_websocket

log = logging.getLogger(__name__)

PROTOCOL: Final = "portforward.k8s.io"
TUNNELLED: Final = "SPDY/3.1+portforward.k8s.io"
PAIRS_MAX: Final = 64
PAIR_S: Final = 30.0
"""How long a client may take for the second stream of a pair."""
REQUEST_ID_CHARS_MAX: Final = 64

Open = Callable[[int], Awaitable[DuplexStream]]
"""Opens a stream to a port of the pod. Raises ApiError."""


async def serve(request: web.BaseRequest, open_port: Open) -> web.StreamResponse:
    """Upgrades the request and serves it until the client goes. Raises BadRequest and Forbidden before the
    upgrade."""
    tunnel: Tunnel
    is_websocket, protocol = negotiate(request, (TUNNELLED,), (PROTOCOL,))
    if is_websocket:
        socket = await open_websocket(request, protocol)
        response: web.StreamResponse = socket
        tunnel = WebSocketTunnel(socket)
    else:
        response, tunnel = await open_spdy(request, protocol)
    await _Forwarding(tunnel, open_port).run()
    return response


class _Pair:
    """One connection of the client."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.data: SpdyStream | None = None
        self.error: SpdyStream | None = None
        self.complete = asyncio.Event()


class _Forwarding:
    """All connections of one client."""

    def __init__(self, tunnel: Tunnel, open_port: Open) -> None:
        self._tunnel = tunnel
        self._open_port = open_port
        self._session = SpdySession(tunnel, self._on_stream)
        self._pairs: dict[str, _Pair] = {}
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            reading = group.create_task(self._session.run(), name="SPDY")
            try:
                await asyncio.wait([reading])
            finally:
                for task in list(self._tasks):
                    task.cancel()
                reading.cancel()
                await self._tunnel.close()

    def _on_stream(self, stream: SpdyStream) -> str | None:
        headers = stream.headers
        kind, text = headers.get("streamtype", ""), headers.get("port", "")
        if kind not in ("data", "error"):
            return f"a stream of type {kind[:32]!r}"
        if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
            return f"port {text[:32]!r} is none"
        # Clients that number no requests make the two streams of a pair one after the other.
        name = headers.get("requestid") or str(stream.number - (2 if kind == "data" else 0))
        if len(name) > REQUEST_ID_CHARS_MAX:
            return "a request id that is too long"
        pair = self._pairs.get(name)
        if pair is None:
            if len(self._pairs) >= PAIRS_MAX:
                return f"more than {PAIRS_MAX} connections at a time"
            pair = self._pairs[name] = _Pair(int(text))
            self._spawn(name, pair)
        if getattr(pair, kind) is not None or pair.port != int(text):
            return f"a second stream of type {kind!r} of one request"
        setattr(pair, kind, stream)
        if pair.data is not None and pair.error is not None:
            pair.complete.set()
        return None

    def _spawn(self, name: str, pair: _Pair) -> None:
        assert self._group is not None
        task = self._group.create_task(self._serve(name, pair), name=f"forwarding of port {pair.port}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, name: str, pair: _Pair) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAIR_S):
                    await pair.complete.wait()
            if pair.data is None or pair.error is None:
                log.info("a client of port %d did not make its second stream", pair.port)
                return
            why = await self._forward(pair.port, pair.data)
            if why:
                await pair.error.write(why.encode())
        except ConnectionError as gone:
            log.debug("a client of port %d is gone: %s", pair.port, gone)
        finally:
            del self._pairs[name]
            with contextlib.suppress(ConnectionError):
                for stream in (pair.data, pair.error):
                    if stream is not None:
                        await stream.end()
                if pair.data is not None:
                    # What the client still sends has nowhere to go.
                    await pair.data.reset()

    async def _forward(self, port: int, client: SpdyStream) -> str:
        """Until one end has ended; why it failed, or ""."""
        try:
            stream = await self._open_port(port)
        except errors.ApiError as failure:
            return f"error forwarding port {port}: {failure.message}"
        try:
            await stream.started()
            async with asyncio.TaskGroup() as group:
                upwards = group.create_task(_pass_up(stream, client), name="to the pod")
                try:
                    return await _pass_down(stream, client)
                except ConnectionError as gone:
                    log.debug("a client of port %d is gone: %s", port, gone)
                    return ""
                finally:
                    upwards.cancel()
        except errors.ApiError as failure:
            return f"error forwarding port {port}: {failure.message}"
        finally:
            stream.close()


async def _pass_down(stream: DuplexStream, client: SpdyStream) -> str:
    """From the pod; why the connection failed, or ""."""
    failed = ""
    try:
        async with contextlib.aclosing(stream.read()) as chunks:
            async for channel, data in chunks:
                if channel == STDOUT and data:
                    await client.write(data)
                elif channel == HALF_CLOSE and data[:1] == bytes((STDOUT,)):
                    await client.end()
                elif channel == ERROR:
                    failed = _failure(data)
    except errors.ApiError as failure:
        return failure.message
    return failed


async def _pass_up(stream: DuplexStream, client: SpdyStream) -> None:
    """To the pod: after the client has said all, what the pod still answers is carried."""
    while data := await client.read():
        if not await stream.send(STDIN, data):
            return
    if client.over:
        stream.close()
    else:
        await stream.finish(STDIN)


def _failure(status: bytes) -> str:
    """The message of a Status that is no success. [pure]"""
    try:
        fields = orjson.loads(status)
        return "" if fields.get("status") == "Success" else str(fields.get("message") or "it failed")[:1024]
    except (orjson.JSONDecodeError, AttributeError):
        return "the node ended the connection in an unknown way"
