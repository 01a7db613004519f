"""HTTP/1.1 as an engine's client speaks it: one request per connection, the answer parsed as its bytes come. [pure]

RFC 9112, as far as Docker and Podman use it: Content-Length, chunked, and bodies that last until the connection ends
(hijacked streams). Bounds: HEAD_BYTES_MAX for the answer's head, LINE_BYTES_MAX for a chunk's size line; the body is handed out
as it comes, so its bound is the caller's.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEAD_BYTES_MAX = 65536
LINE_BYTES_MAX = 1024
_SAFE = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/"

_HEAD, _SIZED, _CHUNK_SIZE, _CHUNK, _CHUNK_END, _TRAILER, _UNTIL_CLOSE, _DONE = range(8)


class BadAnswer(Exception):
    """What came is no HTTP/1.1 answer, or exceeds a bound."""


def quote(text: str) -> str:
    """Percent-encodes everything that a path segment or a query value cannot hold; "/" stays."""
    return "".join(chr(b) if b in _SAFE else "%%%02X" % b for b in text.encode())


def request(
    method: str, path: str, query: "list[tuple[str, str]]", headers: "list[tuple[str, str]]", body: bytes
) -> bytes:
    """The bytes of a request. path is encoded already. Raises ValueError for a header that would break the request."""
    target = path
    if query:
        target += "?" + "&".join("%s=%s" % (quote(k), quote(v).replace("/", "%2F")) for k, v in query)
    lines = ["%s %s HTTP/1.1" % (method, target), "Host: engine", "Connection: close"]
    for name, value in headers:
        if "\r" in value or "\n" in value:
            raise ValueError("the header %s holds a line break" % name)
        lines.append("%s: %s" % (name, value))
    if body or method == "POST":
        lines.append("Content-Length: %d" % len(body))
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class Answer:
    """Parses one answer. `status` is 0 until the head has come; `feed` returns the body's bytes that are in `data`;
    `done` is True when the body is whole."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: "dict[str, str]" = {}
        self._state = _HEAD
        self._buffer = b""
        self._left = 0

    @property
    def done(self) -> bool:
        return self._state == _DONE

    def feed(self, data: bytes) -> bytes:
        """Raises BadAnswer."""
        self._buffer += data
        found = b""
        while True:
            before = (self._state, len(self._buffer))
            found += self._advance()
            if (self._state, len(self._buffer)) == before or self._state == _DONE:
                return found

    def end(self) -> None:
        """The connection ended. Raises BadAnswer when the answer is not whole."""
        if self._state == _UNTIL_CLOSE:
            self._state = _DONE
        elif self._state != _DONE:
            raise BadAnswer("the answer broke off")

    def _advance(self) -> bytes:
        if self._state == _HEAD:
            self._head()
        elif self._state in (_SIZED, _CHUNK):
            return self._take()
        elif self._state == _CHUNK_SIZE:
            line = self._line()
            if line is not None:
                self._left = _hex(line.split(b";")[0].strip())
                self._state = _CHUNK if self._left else _TRAILER
        elif self._state == _CHUNK_END:
            line = self._line()
            if line is not None:
                if line:
                    raise BadAnswer("a chunk is longer than its size")
                self._state = _CHUNK_SIZE
        elif self._state == _TRAILER:
            if self._line() == b"":
                self._state = _DONE
        elif self._state == _UNTIL_CLOSE:
            found, self._buffer = self._buffer, b""
            return found
        return b""

    def _take(self) -> bytes:
        found = self._buffer[: self._left]
        self._buffer = self._buffer[len(found) :]
        self._left -= len(found)
        if not self._left:
            self._state = _DONE if self._state == _SIZED else _CHUNK_END
        return found

    def _line(self) -> "bytes | None":
        at = self._buffer.find(b"\r\n")
        if at < 0:
            if len(self._buffer) > LINE_BYTES_MAX:
                raise BadAnswer("a line of more than %d bytes" % LINE_BYTES_MAX)
            return None
        line, self._buffer = self._buffer[:at], self._buffer[at + 2 :]
        return line

    def _head(self) -> None:
        at = self._buffer.find(b"\r\n\r\n")
        if at < 0:
            if len(self._buffer) > HEAD_BYTES_MAX:
                raise BadAnswer("a head of more than %d bytes" % HEAD_BYTES_MAX)
            return
        lines = self._buffer[:at].decode("latin-1").split("\r\n")
        self._buffer = self._buffer[at + 4 :]
        words = lines[0].split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
            raise BadAnswer("the answer begins with %r" % lines[0][:60])
        status = int(words[1])
        if 100 <= status < 200 and status != 101:
            return  # interim: the real head follows
        self.status = status
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                raise BadAnswer("a header without a colon: %r" % line[:60])
            self.headers[name.strip().lower()] = value.strip()
        self._begin_body()

    def _begin_body(self) -> None:
        length = self.headers.get("content-length")
        if self.status in (204, 304):
            self._state = _DONE
        elif self.status == 101:
            self._state = _UNTIL_CLOSE
        elif "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._state = _CHUNK_SIZE
        elif length is not None:
            if not length.isdigit() or len(length) > 18:
                raise BadAnswer("Content-Length is %r" % length[:60])
            self._left = int(length)
            self._state = _SIZED if self._left else _DONE
        else:
            self._state = _UNTIL_CLOSE


def _hex(text: bytes) -> int:
    if not text or len(text) > 12:
        raise BadAnswer("a chunk's size is %r" % text[:60])
    try:
        size = int(text, 16)
    except ValueError:
        raise BadAnswer("a chunk's size is %r" % text[:60])
    if size < 0:
        raise BadAnswer("a chunk's size is %r" % text[:60])
    return size


class Frames:
    """Takes an engine's multiplexed stream apart: frames of (stream, 0, 0, 0, length as big-endian u32) and payload. Payloads are
    handed out as they come, so the length needs no bound. raw: the container has a terminal, and there are no frames."""

    def __init__(self, raw: bool = False) -> None:
        self._raw = raw
        self._head = b""
        self._left = 0
        self._stream = 1

    def feed(self, data: bytes) -> bytes:
        """The payload bytes of standard output and standard error, in the order that they came. Raises BadAnswer."""
        return b"".join([part for _, part in self.split(data)])

    def split(self, data: bytes) -> "list[tuple[int, bytes]]":
        """As `feed`, each part with its stream: 1 for standard output, 2 for standard error. Raises BadAnswer."""
        if self._raw:
            return [(1, data)]
        found = []
        at = 0
        while at < len(data):
            if self._left:
                part = data[at : at + self._left]
                self._left -= len(part)
                found.append((self._stream, part))
                at += len(part)
                continue
            part = data[at : at + 8 - len(self._head)]
            self._head += part
            at += len(part)
            if len(self._head) == 8:
                if self._head[0] > 3 or self._head[1:4] != b"\0\0\0":
                    raise BadAnswer("the stream is not multiplexed: %r" % self._head)
                self._stream = 2 if self._head[0] == 2 else 1
                self._left = int.from_bytes(self._head[4:], "big")
                self._head = b""
        return found


def lines_of(buffer: bytearray, data: bytes, line_bytes_max: int) -> "list[bytes]":
    """The whole lines of a stream of lines; what is left of the last one stays in `buffer`. Raises BadAnswer for a line that
    is too long."""
    buffer += data
    *whole, rest = bytes(buffer).split(b"\n")
    if len(rest) > line_bytes_max:
        raise BadAnswer("a line of more than %d bytes" % line_bytes_max)
    buffer[:] = rest
    return [line for line in whole if line.strip()]


def filters(**values: "Any") -> str:
    """The `filters` query of the Engine API: {name: [values]} as JSON."""
    import json

    return json.dumps(values, separators=(",", ":"))
