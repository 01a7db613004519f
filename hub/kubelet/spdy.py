"""SPDY/3.1 frames, as Kubernetes uses them for exec, attach and port-forward. [pure]

Bytes go in, frames come out; a DATA frame comes in the pieces it arrived in, so that its length bounds nothing here. Both
directions keep the state of their header compression: every frame that `encode` returns has to be sent, in that order.

Bounds: CONTROL_BYTES_MAX of a control frame, HEADER_BYTES_MAX of its headers, HEADERS_MAX of them, SETTINGS_MAX.
WINDOW_UPDATE is decoded and may be ignored: no Kubernetes implementation keeps windows, TCP alone holds a sender back.

Source: the SPDY protocol, draft 3.1 (chromium.org), whose header dictionary is DICTIONARY.
"""

import struct
import zlib
from collections.abc import Mapping
from typing import Final, NamedTuple

CONTROL_BYTES_MAX: Final = 64 << 10
HEADER_BYTES_MAX: Final = 64 << 10
HEADERS_MAX: Final = 64
SETTINGS_MAX: Final = 64
DATA_BYTES_MAX: Final = (1 << 24) - 1
VERSION: Final = 3
FIN: Final = 1
UNIDIRECTIONAL: Final = 2

SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, _NOOP, PING, GOAWAY, HEADERS, WINDOW_UPDATE = range(1, 10)

PROTOCOL_ERROR, INVALID_STREAM, REFUSED_STREAM, UNSUPPORTED_VERSION, CANCEL, INTERNAL_ERROR = range(1, 7)
"""Codes of RST_STREAM."""

_WORDS: Final = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow"
    " authorization cache-control connection content-base content-encoding content-language content-length"
    " content-location content-md5 content-range content-type date etag expect expires from host if-match"
    " if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma"
    " proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade"
    " user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie"
    " keep-alive origin"
)
_REST: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _dictionary() -> bytes:
    words = [word.replace("_", " ").encode() for word in _WORDS.split(" ")]
    made = b"".join(struct.pack(">I", len(word)) + word for word in words) + _REST.encode()
    assert zlib.adler32(made) == 0xE3C6A7C2, "not the dictionary of SPDY/3"
    return made


DICTIONARY: Final = _dictionary()
_ID_MASK: Final = 0x7FFFFFFF
_CONTROL: Final = 0x80000000
_U32: Final = struct.Struct(">I")
_TWO: Final = struct.Struct(">II")


class SpdyError(Exception):
    """The peer broke the protocol: its header compression cannot be followed any further, so the connection ends."""


Headers = Mapping[str, str]


class SynStream(NamedTuple):
    """A stream begins. Header names are lower case."""

    stream: int
    headers: Headers
    fin: bool = False
    unidirectional: bool = False
    associated: int = 0
    priority: int = 0


class SynReply(NamedTuple):
    stream: int
    headers: Headers
    fin: bool = False


class MoreHeaders(NamedTuple):
    """HEADERS."""

    stream: int
    headers: Headers
    fin: bool = False


class Data(NamedTuple):
    """A DATA frame, or a piece of one; `fin` comes with the last piece."""

    stream: int
    data: bytes
    fin: bool = False


class Reset(NamedTuple):
    """RST_STREAM."""

    stream: int
    code: int


class Settings(NamedTuple):
    """(flags, id, value) each."""

    entries: tuple[tuple[int, int, int], ...]
    clear: bool = False


class Ping(NamedTuple):
    number: int


class Goaway(NamedTuple):
    last_stream: int
    code: int = 0


class WindowUpdate(NamedTuple):
    stream: int
    delta: int


Frame = SynStream | SynReply | MoreHeaders | Data | Reset | Settings | Ping | Goaway | WindowUpdate


class Codec:
    """Both directions of one connection."""

    def __init__(self) -> None:
        self._buffer = b""
        self._data: tuple[int, int, bool] | None = None
        """Of the DATA frame that is coming in: stream, bytes left, fin."""
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        # A small window: the dictionary fits it, and a connection costs 16 KB where the default takes 256.
        self._deflate = zlib.compressobj(wbits=11, memLevel=2, zdict=DICTIONARY)

    # -- in -----------------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, and pieces of DATA. Raises SpdyError."""
        buffer = self._buffer + data if self._buffer else data
        frames: list[Frame] = []
        at, end = 0, len(buffer)
        while True:
            if self._data is not None:
                stream, left, fin = self._data
                step = min(left, end - at)
                if step < left:
                    if step:
                        frames.append(Data(stream, buffer[at:end]))
                        self._data = (stream, left - step, fin)
                    at = end
                    break
                frames.append(Data(stream, buffer[at : at + step], fin))
                at += step
                self._data = None
            if end - at < 8:
                break
            head, rest = _TWO.unpack_from(buffer, at)
            flags, length = rest >> 24, rest & 0xFFFFFF
            if not head & _CONTROL:
                if head == 0:
                    raise SpdyError("DATA of stream 0")
                self._data = (head, length, bool(flags & FIN))
                at += 8
                continue
            if (head >> 16) & 0x7FFF != VERSION:
                raise SpdyError(f"version {(head >> 16) & 0x7FFF} of SPDY; 3 is spoken here")
            if length > CONTROL_BYTES_MAX:
                raise SpdyError(f"a control frame of {length} bytes, at most {CONTROL_BYTES_MAX} are allowed")
            if end - at - 8 < length:
                break
            frame = self._control(head & 0xFFFF, flags, buffer[at + 8 : at + 8 + length])
            if frame is not None:
                frames.append(frame)
            at += 8 + length
        self._buffer = buffer[at:]
        return frames

    def _control(self, kind: int, flags: int, body: bytes) -> Frame | None:
        try:
            return self._decoded(kind, flags, body)
        except struct.error as failure:
            raise SpdyError(f"a frame of type {kind} with {len(body)} bytes") from failure

    def _decoded(self, kind: int, flags: int, body: bytes) -> Frame | None:
        fin = bool(flags & FIN)
        if kind == SYN_STREAM:
            stream, associated, priority = struct.unpack_from(">IIB", body)
            headers = self._headers(body[10:])
            return SynStream(
                _id(stream), headers, fin, bool(flags & UNIDIRECTIONAL), associated & _ID_MASK, priority >> 5
            )
        if kind in (SYN_REPLY, HEADERS):
            stream = _id(_U32.unpack_from(body)[0])
            made = SynReply if kind == SYN_REPLY else MoreHeaders
            return made(stream, self._headers(body[4:]), fin)
        if kind == SETTINGS:
            count = _U32.unpack_from(body)[0]
            if count > SETTINGS_MAX or len(body) != 4 + 8 * count:
                raise SpdyError(f"SETTINGS with {count} entries in {len(body)} bytes")
            pairs = _TWO.iter_unpack(body[4:])
            return Settings(tuple((i >> 24, i & 0xFFFFFF, value) for i, value in pairs), fin)
        if kind == PING:
            return Ping(*_U32.unpack(body))
        if kind in (RST_STREAM, GOAWAY, WINDOW_UPDATE):
            first, second = _TWO.unpack(body)
            first &= _ID_MASK
            if kind == RST_STREAM:
                return Reset(_id(first), second)
            return Goaway(first, second) if kind == GOAWAY else WindowUpdate(first, second & _ID_MASK)
        return None  # types that came later are to be ignored

    def _headers(self, block: bytes) -> dict[str, str]:
        try:
            raw = self._inflate.decompress(block, HEADER_BYTES_MAX + 1)
        except zlib.error as failure:
            raise SpdyError(f"headers: {failure}") from failure
        if len(raw) > HEADER_BYTES_MAX or self._inflate.unconsumed_tail:
            raise SpdyError(f"headers of more than {HEADER_BYTES_MAX} bytes")
        count = _U32.unpack_from(raw)[0]
        if count > HEADERS_MAX:
            raise SpdyError(f"{count} headers, at most {HEADERS_MAX} are allowed")
        headers: dict[str, str] = {}
        at = 4
        for _ in range(count):
            name, at = _text(raw, at)
            value, at = _text(raw, at)
            if not name or name in headers:
                raise SpdyError("a header without a name, or twice")
            headers[name.lower()] = value
        if at != len(raw):
            raise SpdyError("bytes after the headers")
        return headers

    # -- out ----------------------------------------------------------------------------------------------------------

    def encode(self, frame: Frame) -> bytes:
        """The frame's bytes. ValueError for DATA of 16 MiB and more."""
        match frame:
            case Data(stream, data, fin):
                if len(data) > DATA_BYTES_MAX:
                    raise ValueError(f"DATA of {len(data)} bytes")
                return _TWO.pack(stream, (FIN if fin else 0) << 24 | len(data)) + data
            case SynStream(stream, headers, fin, unidirectional, associated, priority):
                flags = (FIN if fin else 0) | (UNIDIRECTIONAL if unidirectional else 0)
                head = struct.pack(">IIBB", stream, associated, priority << 5, 0)
                return _frame(SYN_STREAM, head + self._block(headers), flags)
            case SynReply(stream, headers, fin):
                return _frame(SYN_REPLY, _U32.pack(stream) + self._block(headers), FIN if fin else 0)
            case MoreHeaders(stream, headers, fin):
                return _frame(HEADERS, _U32.pack(stream) + self._block(headers), FIN if fin else 0)
            case Reset(stream, code):
                return _frame(RST_STREAM, _TWO.pack(stream, code))
            case Settings(entries, clear):
                body = b"".join(_TWO.pack(flags << 24 | i, value) for flags, i, value in entries)
                return _frame(SETTINGS, _U32.pack(len(entries)) + body, FIN if clear else 0)
            case Ping(number):
                return _frame(PING, _U32.pack(number))
            case Goaway(last, code):
                return _frame(GOAWAY, _TWO.pack(last, code))
            case WindowUpdate(stream, delta):
                return _frame(WINDOW_UPDATE, _TWO.pack(stream, delta))

    def _block(self, headers: Headers) -> bytes:
        raw = bytearray(_U32.pack(len(headers)))
        for name, value in headers.items():
            for text in (name.encode(), value.encode()):
                raw += _U32.pack(len(text)) + text
        return self._deflate.compress(bytes(raw)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


def _frame(kind: int, body: bytes, flags: int = 0) -> bytes:
    return _TWO.pack(_CONTROL | VERSION << 16 | kind, flags << 24 | len(body)) + body


def _id(stream: int) -> int:
    stream &= _ID_MASK
    if not stream:
        raise SpdyError("a frame of stream 0")
    return stream


def _text(raw: bytes, at: int) -> tuple[str, int]:
    length = _U32.unpack_from(raw, at)[0]
    end = at + 4 + length
    if end > len(raw):
        raise SpdyError("headers that are cut short")
    try:
        return raw[at + 4 : end].decode(), end
    except UnicodeDecodeError as failure:
        raise SpdyError("a header that is no UTF-8") from failure
