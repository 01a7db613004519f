"""How clients reach a stream: a connection that has left HTTP, or a WebSocket, chosen by the request's headers.

kubectl since 1.30 asks for a WebSocket; older ones, and the API server towards a kubelet, for SPDY/3.1.
"""

from collections.abc import Sequence
from typing import Final, Protocol, cast

from aiohttp import WSMsgType, hdrs, web

from hub import errors
from hub.api.protocol import Connection

SPDY: Final = "SPDY/3.1"
STREAM_PROTOCOL: Final = "X-Stream-Protocol-Version"
MESSAGE_BYTES_MAX: Final = 1 << 20
"""Of a WebSocket's message."""
PING_S: Final = 30.0
"""A WebSocket whose client does not answer a ping for so long is closed."""


class Tunnel(Protocol):
    """Bytes in both directions: `hub.api.protocol.Tunnel`, or a WebSocket that carries them."""

    async def receive(self) -> bytes: ...

    async def send(self, data: bytes) -> None: ...

    async def close(self) -> None: ...


def negotiate(request: web.BaseRequest, websocket: Sequence[str], spdy: Sequence[str]) -> tuple[bool, str]:
    """(is it a WebSocket, the protocol above it), of those that are spoken here. Raises BadRequest, and Forbidden for a page
    of another origin: browsers show the user's certificate to whichever page asks, and no rule of theirs keeps pages from
    WebSockets of others."""
    upgrade = request.headers.get(hdrs.UPGRADE, "").lower()
    tokens = [t.strip() for t in ",".join(request.headers.getall(hdrs.CONNECTION, ())).lower().split(",")]
    if "upgrade" not in tokens or upgrade not in ("websocket", SPDY.lower()):
        raise errors.BadRequest("Upgrade request required: a WebSocket, or SPDY/3.1")
    is_websocket = upgrade == "websocket"
    origin = request.headers.get(hdrs.ORIGIN, "")
    if origin and origin.lower().partition("://")[2] != request.headers.get(hdrs.HOST, "").lower():
        raise errors.Forbidden("", "", "no stream is opened for pages of another origin")
    header, spoken = (hdrs.SEC_WEBSOCKET_PROTOCOL, websocket) if is_websocket else (STREAM_PROTOCOL, spdy)
    listed = ",".join(request.headers.getall(header, ())).split(",")
    asked = [text.strip() for text in listed if text.strip()]
    chosen = next((text for text in asked if text in spoken), None)
    if chosen is None:
        shown = ", ".join(text[:64] for text in asked[:8]) or "none"
        raise errors.BadRequest(
            f"unable to negotiate protocol: client supports {shown}, server {', '.join(spoken)}"
        )
    return is_websocket, chosen


async def open_websocket(request: web.BaseRequest, protocol: str) -> web.WebSocketResponse:
    """Upgrades, to what `negotiate` gave."""
    response = web.WebSocketResponse(
        protocols=(protocol,), max_msg_size=MESSAGE_BYTES_MAX, heartbeat=PING_S, compress=False
    )
    await response.prepare(request)
    return response


async def open_spdy(request: web.BaseRequest, protocol: str) -> tuple[web.StreamResponse, Tunnel]:
    """Upgrades, to what `negotiate` gave: the response and the tunnel."""
    connection = cast(Connection, request.protocol)
    return await connection.leave_http(request, {hdrs.UPGRADE: SPDY, STREAM_PROTOCOL: protocol})


class WebSocketTunnel:
    """A stream of bytes in a WebSocket's binary messages."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket

    async def receive(self) -> bytes:
        while True:
            message = await self._socket.receive()
            if message.type is not WSMsgType.BINARY:
                return b""
            if message.data:
                return bytes(message.data)

    async def send(self, data: bytes) -> None:
        await self._socket.send_bytes(data)

    async def close(self) -> None:
        await self._socket.close()
