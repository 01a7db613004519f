"""One bidirectional gRPC call on an HTTP/2 connection of its own: etcd's Watch.

All messages that a turn of the event loop finds on the socket are taken in that turn. grpc.aio takes one message a turn: a
hub whose turns last 10 ms under load would read a hundred events a second, however many there are, and fall behind what
its fleet writes. HTTP/2 itself is h2's work; this module knows gRPC's framing.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from typing import cast
from urllib.parse import unquote, urlsplit

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

WINDOW = 16 << 20
"""Bytes that a member may send ahead of what was read."""
MESSAGE_MAX = 64 << 20
"""A message of more bytes is taken for damage. etcd sends fragments of about its --max-request-bytes, 1.5 MiB."""
_PREFIX = 5
"""Bytes before a message: whether it is compressed, and its length."""
_UNAVAILABLE = "14"

Header = tuple[str, str]


class StreamEnded(Exception):
    """The call is over, or could not be made; the text says why."""


class Stream(asyncio.Protocol):
    """See the module. Made by `open_stream`. `received` is called with every message, in order; what it raises ends the call."""

    def __init__(self, headers: Iterable[Header], received: Callable[[bytes], None]) -> None:
        self._headers = list(headers)
        self._received = received
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(config)
        self._h2.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 1 << 16,
            },
        )
        self._stream_id = 0
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._unsent: deque[memoryview] = deque()
        self._flush_due = False
        self._buffer = bytearray()
        self._status = ""
        self.ended: asyncio.Future[str] = self._loop.create_future()
        """Why the call is over, once it is. Raises what `received` has raised."""

    def send(self, message: bytes) -> None:
        """Queues a message. What is queued when the call ends is not sent."""
        if self.ended.done():
            return
        self._unsent.append(memoryview(b"\0" + len(message).to_bytes(4, "big") + message))
        self._flush_soon()

    def close(self) -> None:
        """Ends the call and its connection at once. Idempotent."""
        self._end("closed here")

    # -- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(WINDOW)
        self._stream_id = self._h2.get_next_available_stream_id()
        self._h2.send_headers(self._stream_id, self._headers)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self.ended.done():
            return
        try:
            taken = 0
            for event in self._h2.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    taken += event.flow_controlled_length or 0
                    self._buffer += event.data or b""
                else:
                    self._happened(event)
            self._take()
            if taken and not self.ended.done():
                self._h2.acknowledge_received_data(taken, self._stream_id)
        except h2.exceptions.ProtocolError as failure:
            self._end(_protocol_text(failure))
        self._flush()

    def eof_received(self) -> None:
        self._end("the member closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection is lost: {exc}" if exc else "the member closed the connection")

    # -- what comes -----------------------------------------------------------------------------------------------------

    def _happened(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            headers = {str(k): str(v) for k, v in event.headers or ()}
            status = headers.get(":status", "200")
            if status != "200":
                self._end(f"the member answers with HTTP status {status}; is it etcd?")
            elif "grpc-status" in headers:
                self._end(_status_text(headers["grpc-status"], headers.get("grpc-message", "")))
        elif isinstance(event, h2.events.StreamEnded):
            self._end("the member ended the stream")
        elif isinstance(event, h2.events.StreamReset):
            self._end(f"the member reset the stream: {_code_text(event.error_code)}")
        elif isinstance(event, h2.events.ConnectionTerminated):
            self._end(f"the member ends the connection: {_code_text(event.error_code)}")

    def _take(self) -> None:
        """Hands over every message that has come whole."""
        buffer, at = self._buffer, 0
        while len(buffer) - at >= _PREFIX and not self.ended.done():
            size = int.from_bytes(buffer[at + 1 : at + _PREFIX], "big")
            if buffer[at] or size > MESSAGE_MAX:
                self._end(
                    f"the member sent a message of {size} bytes, or a compressed one, which was not asked for"
                )
                return
            if len(buffer) < at + _PREFIX + size:
                break
            message = bytes(buffer[at + _PREFIX : at + _PREFIX + size])
            at += _PREFIX + size
            try:
                self._received(message)
            except Exception as failure:
                self._end(failure)
        del buffer[:at]

    # -- what goes ------------------------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        """A thousand watches are asked for in one turn, and go in one write."""
        if not self._flush_due and self._transport is not None:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self.ended.done() or self._transport is None:
            return
        while self._unsent:
            room = min(self._h2.local_flow_control_window(self._stream_id), self._h2.max_outbound_frame_size)
            if room <= 0:
                break  # goes on when the member has given more
            frame = bytearray()
            while self._unsent and len(frame) < room:
                part = self._unsent.popleft()
                left = room - len(frame)
                frame += part[:left]
                if len(part) > left:
                    self._unsent.appendleft(part[left:])
            try:
                self._h2.send_data(self._stream_id, bytes(frame))
            except h2.exceptions.ProtocolError as failure:
                self._end(_protocol_text(failure))
                return
        if data := self._h2.data_to_send():
            self._transport.write(data)

    def _end(self, why: str | Exception) -> None:
        if not self.ended.done():
            if isinstance(why, str):
                self.ended.set_result(why)
            else:
                self.ended.set_exception(why)
            self._unsent.clear()
            if self._transport is not None:
                self._transport.abort()


async def open_stream(
    endpoint: str,
    path: str,
    metadata: Iterable[Header],
    received: Callable[[bytes], None],
    tls: ssl.SSLContext | None,
    timeout_s: float,
) -> Stream:
    """Calls `path` of the member at `endpoint`, host:port. Raises StreamEnded where there is no connection."""
    try:
        address = urlsplit(f"//{endpoint}")
        host, port = address.hostname, address.port
    except ValueError:
        host = port = None
    if host is None or port is None:
        raise StreamEnded(f"{endpoint}: write host:port")
    headers = [
        (":method", "POST"),
        (":scheme", "https" if tls else "http"),
        (":authority", endpoint),
        (":path", path),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *metadata,
    ]
    try:
        async with asyncio.timeout(timeout_s):
            _, stream = await asyncio.get_running_loop().create_connection(
                lambda: Stream(headers, received), host, port, ssl=tls
            )
    except TimeoutError:
        raise StreamEnded(f"{endpoint}: no connection within {timeout_s:g} s") from None
    except (OSError, ValueError) as failure:  # with ssl.SSLError
        raise StreamEnded(f"{endpoint}: {failure}") from failure
    return stream


def _status_text(status: str, message: str) -> str:
    if status == "0":
        return "the member ended the stream"
    return unquote(message) or ("UNAVAILABLE" if status == _UNAVAILABLE else f"gRPC status {status}")


def _protocol_text(failure: h2.exceptions.ProtocolError) -> str:
    return f"the member does not speak HTTP/2 as it should: {failure or type(failure).__name__}"


def _code_text(code: object) -> str:
    return code.name if isinstance(code, h2.errors.ErrorCodes) else str(code)
