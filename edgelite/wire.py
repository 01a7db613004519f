"""The one codec of the edge-cloud channel. [pure]

A frame is an 8-byte header and a body: type u8, flags u8, stream u16, length u32, big-endian. The body is JSON
or raw bytes, as the type says. A message longer than one frame travels as several frames of the same type and
stream, all but the last flagged MORE; it counts as received when the last one has arrived.

Runs unmodified on CPython 3.9+ and MicroPython, so: no dataclasses, enum, typing or struct.Struct.
Guarantees: never buffers more than `frame_bytes_max` + header, nor a message above `message_bytes_max`.
"""

import struct

HEADER = ">BBHI"
HEADER_BYTES = 8
FRAME_BYTES_MAX = 1 << 20
DOCUMENT_BYTES_MAX = 1450000
MESSAGE_BYTES_MAX = DOCUMENT_BYTES_MAX + 4096
PROTOCOL_MIN = 1
PROTOCOL_MAX = 1

MORE = 0x01

HELLO = 1
WELCOME = 2
GOAWAY = 3
PING = 4
PONG = 5
PAIRS = 6
SET = 7
DEL = 8
SYNCED = 9
ACK = 10
NACK = 11
REPORT = 12
STORED = 13
OPEN = 14
DATA = 15
CREDIT = 16
CLOSE = 17
JOIN = 18
JOINED = 19
RENEW = 20
RENEWED = 21
BUNDLE = 22
REDIRECT = 23
WRAP = 31

NAMES = {
    HELLO: "HELLO",
    WELCOME: "WELCOME",
    GOAWAY: "GOAWAY",
    PING: "PING",
    PONG: "PONG",
    PAIRS: "PAIRS",
    SET: "SET",
    DEL: "DEL",
    SYNCED: "SYNCED",
    ACK: "ACK",
    NACK: "NACK",
    REPORT: "REPORT",
    STORED: "STORED",
    OPEN: "OPEN",
    DATA: "DATA",
    CREDIT: "CREDIT",
    CLOSE: "CLOSE",
    JOIN: "JOIN",
    JOINED: "JOINED",
    RENEW: "RENEW",
    RENEWED: "RENEWED",
    BUNDLE: "BUNDLE",
    REDIRECT: "REDIRECT",
    WRAP: "WRAP",
}


class WireError(Exception):
    """The peer broke the framing; the connection cannot be trusted any further and must be closed."""


def frame(kind: int, body: bytes = b"", stream: int = 0, flags: int = 0) -> bytes:
    """One frame. `body` must fit one frame; use `message` where it may not."""
    return struct.pack(HEADER, kind, flags, stream, len(body)) + body


def message(kind: int, body: bytes, stream: int = 0, frame_bytes_max: int = FRAME_BYTES_MAX) -> bytes:
    """`body` as one frame, or as several flagged MORE when it is longer than `frame_bytes_max`."""
    if len(body) <= frame_bytes_max:
        return frame(kind, body, stream)
    out = bytearray()
    view = memoryview(body)
    at = 0
    while len(body) - at > frame_bytes_max:
        out.extend(struct.pack(HEADER, kind, MORE, stream, frame_bytes_max))
        out.extend(view[at : at + frame_bytes_max])
        at += frame_bytes_max
    out.extend(struct.pack(HEADER, kind, 0, stream, len(body) - at))
    out.extend(view[at:])
    return bytes(out)


def set_body(header: bytes, document: bytes) -> bytes:
    """The body of a SET: u16 length of the JSON header, the header {"k","v","r"}, the document's bytes."""
    return struct.pack(">H", len(header)) + header + document


def split_set_body(body: bytes) -> "tuple[bytes, bytes]":
    """(JSON header, document bytes) of a SET. Raises WireError when it is cut short."""
    if len(body) < 2:
        raise WireError("SET without a header")
    n = struct.unpack(">H", body[:2])[0]
    if len(body) < 2 + n:
        raise WireError("SET header cut short")
    return body[2 : 2 + n], body[2 + n :]


class Decoder:
    """Turns received bytes into messages (kind, stream, body)."""

    def __init__(
        self, frame_bytes_max: int = FRAME_BYTES_MAX, message_bytes_max: int = MESSAGE_BYTES_MAX
    ) -> None:
        self.frame_bytes_max = frame_bytes_max
        self.message_bytes_max = message_bytes_max
        self._buffer = bytearray()
        self._needed = HEADER_BYTES  # bytes in the buffer before there is anything to do
        self._parts: "dict[int, tuple[int, bytearray]]" = {}

    def held_bytes(self) -> int:
        """Bytes of unfinished messages; 0 when the decoder is as new."""
        held = len(self._buffer)
        if not self._parts:
            return held
        for _, parts in self._parts.values():
            held += HEADER_BYTES + len(parts)
        return held

    def feed(self, data: bytes) -> "list[tuple[int, int, bytes]]":
        """The messages that `data` completes, in order. Raises WireError on a broken or too long frame; a
        length above the bound is refused from the header alone, before any of its body is kept."""
        size = len(data)
        if size >= HEADER_BYTES and not self._buffer and not self._parts:
            # Most often one whole frame, and nothing is left to keep.
            kind, flags, stream, length = struct.unpack_from(HEADER, data)
            if length == size - HEADER_BYTES and length <= self.frame_bytes_max and not flags & MORE:
                return [(kind, stream, data[HEADER_BYTES:])]
        buffer = data
        if self._buffer:
            self._buffer.extend(data)
            if len(self._buffer) < self._needed:
                return []  # so that a frame that comes byte by byte is not copied for each of them
            buffer = bytes(self._buffer)
        out: "list[tuple[int, int, bytes]]" = []
        at = 0
        size = len(buffer)
        self._needed = HEADER_BYTES
        while size - at >= HEADER_BYTES:
            kind, flags, stream, length = struct.unpack_from(HEADER, buffer, at)
            if length > self.frame_bytes_max:
                raise WireError(
                    "frame of %d bytes announced, at most %d allowed" % (length, self.frame_bytes_max)
                )
            if size - at - HEADER_BYTES < length:
                self._needed = HEADER_BYTES + length
                break
            body = buffer[at + HEADER_BYTES : at + HEADER_BYTES + length]
            at += HEADER_BYTES + length
            if flags & MORE or stream in self._parts:
                whole = self._join(kind, flags, stream, body)
                if whole is not None:
                    out.append((kind, stream, whole))
            else:
                out.append((kind, stream, body))
        self._buffer = bytearray(buffer[at:])
        return out

    def _join(self, kind: int, flags: int, stream: int, body: bytes) -> "bytes | None":
        if stream not in self._parts:
            if len(self._parts) >= 4:
                raise WireError("more than 4 unfinished messages")
            self._parts[stream] = (kind, bytearray())
        first, parts = self._parts[stream]
        if first != kind:
            raise WireError("a message of type %d interrupted by one of type %d" % (first, kind))
        parts.extend(body)
        if len(parts) > self.message_bytes_max:
            raise WireError("message longer than %d bytes" % self.message_bytes_max)
        if flags & MORE:
            return None
        del self._parts[stream]
        return bytes(parts)
