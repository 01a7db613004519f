"""The server's end of one HTTP connection: requests that are no HTTP, and connections that leave HTTP.

What is no HTTP is answered as everything else is, with a metav1.Status, and without a traceback in the log: aiohttp would
log every one of them as an error, with what the client sent; anybody who can connect could fill the log, and a header may
hold a secret.

A request with `Upgrade` to a protocol that aiohttp does not speak takes its connection over as a `Tunnel` of bytes.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestHandler

from hub import errors
from hub.api.negotiation import JSON
from hub.api.rendering import encode

log = logging.getLogger(__name__)

TUNNEL_BYTES_MAX: Final = 256 << 10
"""Unread bytes of a tunnel after which nothing more is read from its connection."""

KEEPALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))
"""A tunnel may be silent for hours, and only the kernel finds out that its client is gone."""


class Tunnel:
    """A connection that has left HTTP: bytes in both directions."""

    def __init__(self, connection: "Connection", transport: asyncio.Transport) -> None:
        self._connection = connection
        self._transport = transport
        self._chunks: deque[bytes] = deque()
        self._unread = 0
        self._paused = False
        self._ended = False
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()

    async def receive(self) -> bytes:
        """What has come; b"" at the end."""
        while not self._chunks and not self._ended:
            self._readable.clear()
            await self._readable.wait()
        if not self._chunks:
            return b""
        chunk = self._chunks.popleft()
        self._unread -= len(chunk)
        if self._paused and self._unread < TUNNEL_BYTES_MAX // 2:
            self._paused = False
            self._transport.resume_reading()
        return chunk

    async def send(self, data: bytes) -> None:
        """Returns when there is room for more. Raises ConnectionResetError when the connection is gone."""
        if self._ended or self._transport.is_closing():
            raise ConnectionResetError("the connection has ended")
        self._transport.write(data)
        while self._connection.writing_paused and not self._ended:
            self._writable.clear()
            await self._writable.wait()

    async def close(self) -> None:
        """Ends the connection, once what was sent has left."""
        self._transport.close()

    # -- from the connection ------------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._unread += len(data)
        self._readable.set()
        if self._unread > TUNNEL_BYTES_MAX and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resumed(self) -> None:
        self._writable.set()

    def ended(self) -> None:
        self._ended = True
        self._readable.set()
        self._writable.set()


class Connection(RequestHandler):
    """One connection of a client."""

    __slots__ = ("_tunnel",)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tunnel: Tunnel | None = None

    async def leave_http(
        self, request: web.BaseRequest, headers: dict[str, str]
    ) -> tuple[web.StreamResponse, Tunnel]:
        """Answers 101 with these headers. The response is what the request's handler returns in the end."""
        response = web.StreamResponse(status=101, headers=headers)
        response.headers[hdrs.CONNECTION] = "Upgrade"
        response.force_close()
        assert self.transport is not None
        tunnel = self._tunnel = Tunnel(self, self.transport)
        raw = self.transport.get_extra_info("socket")
        for name, value in KEEPALIVE:
            if raw is not None and hasattr(socket, name):
                raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        await response.prepare(request)
        return response, tunnel

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.received(data)
        else:
            super().data_received(data)

    def eof_received(self) -> None:
        if self._tunnel is not None:
            self._tunnel.ended()
        super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._tunnel is not None:
            self._tunnel.ended()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._tunnel is not None:
            self._tunnel.resumed()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The last answer on a connection whose request could not be read."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        log.debug("a request from %s is no HTTP: %s", request.remote, type(exc).__name__)
        text = (message or "").partition("\n")[0].partition(": b")[0].rstrip(":")
        if isinstance(exc, LineTooLong):
            text = "a line of its head is too long; the bound is 16 KiB"
        failure = errors.BadRequest(f"the request is not acceptable: {text}")
        response = web.Response(body=encode(failure.status()), status=failure.code, content_type=JSON)
        response.force_close()
        return response


class HttpServer(web.Server):
    """Makes a `Connection` for everybody who connects. `options`: those of aiohttp's RequestHandler."""

    def __init__(
        self, answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], **options: Any
    ) -> None:
        # A client that went away ends its watch at once.
        super().__init__(answer, handler_cancellation=True)
        self._options = options

    def __call__(self) -> Connection:
        return Connection(self, loop=asyncio.get_running_loop(), **self._options)
