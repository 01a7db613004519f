"""Connections of an HTTP server that were accepted and have not asked for anything yet: not too many, and not for long."""

import asyncio

from aiohttp.web_protocol import RequestHandler

from hub.api.protocol import HttpServer


class Doorstep:
    """`accept` is what the listening socket makes its protocols with. At most `connections_max` are open, those in their TLS handshake
    included, and others are closed at once; who has sent no whole request head `first_request_s` after it was accepted is closed."""

    def __init__(self, server: HttpServer, connections_max: int, first_request_s: float) -> None:
        self._server = server
        self._connections_max = connections_max
        self._first_request_s = first_request_s
        self._waiting: dict[RequestHandler, asyncio.TimerHandle] = {}

    def accept(self) -> asyncio.Protocol:
        # aiohttp knows a connection once its handshake is over.
        if max(len(self._server.connections), len(self._waiting)) >= self._connections_max:
            return _Refused()
        protocol = self._server()
        loop = asyncio.get_running_loop()
        self._waiting[protocol] = loop.call_later(self._first_request_s, self._close, protocol)
        return protocol

    def entered(self, protocol: RequestHandler) -> None:
        """It has sent a request."""
        if (timer := self._waiting.pop(protocol, None)) is not None:
            timer.cancel()

    def close(self) -> None:
        """Closes those who have not asked: there is nothing to finish for them."""
        for protocol, timer in list(self._waiting.items()):
            timer.cancel()
            self._close(protocol)

    def _close(self, protocol: RequestHandler) -> None:
        self._waiting.pop(protocol, None)
        protocol.force_close()


class _Refused(asyncio.Protocol):
    """A connection over the limit."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
