"""The relay protocol: one node's connection, one log or one duplex stream, carried between two replicas over a bus. [pure]

The replica that has the connection is the near end, the owner of the node's slot the far end. Messages go up on the
slot's subject (it names the epoch, so that a former owner hears nothing) and down on the near end's own:

    <store uuid>.slot.<slot>.<epoch>.up
    <store uuid>.gateway.<incarnation>.<connection>

A message is a header (version u8, kind u8, length of the incarnation u8, connection u32, number u32, big-endian), the
near end's incarnation (ASCII; empty on the way down, where the subject names it) and a body:

    OPEN    JSON, OpenNode, OpenLog or OpenStream; the first message of a connection, and only up
    DATA    bytes, at most CHUNK_BYTES
    CREDIT  u32: bytes that the sender of CREDIT has passed on, and that may be sent anew
    CLOSE   JSON, Closing; the last message
    BEAT    connection 0. Up: the connections of one slot, each with the number that its next message will have and
            whether its node was heard since the last BEAT. Down: the same of the far end, as the answer.

Both ends number what they send per connection from 0. A gap, a repetition, more bytes than credit, or a message that
means nothing ends the connection; the node reconnects and its digest repairs what was lost. BEAT finds a last message
that was lost, an end that has forgotten the connection, and a silent peer.

Invariant: at most WINDOW_BYTES of a direction are under way, and at most `backlog_bytes_max` wait for credit here.
Guarantees no delivery: what reaches the other end is a prefix of what was sent, in order and without holes.
"""

import struct
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from edgelite import wire

VERSION: Final = 1
CHUNK_BYTES: Final = 256 << 10
WINDOW_BYTES: Final = 1 << 20
LOG_WINDOW_BYTES: Final = 256 << 10
GRANT_BYTES: Final = 128 << 10
"""Passed-on bytes after which credit is sent: for every chunk it would be as many messages again."""
MESSAGE_BYTES_MAX: Final = CHUNK_BYTES + 128
OPEN_BYTES_MAX: Final = 16 << 10
INCARNATION_CHARS_MAX: Final = 64
CONNECTION_MAX: Final = 0xFFFFFFFF
BEATS_MAX: Final = 20_000
"""Connections in one BEAT; more go into several."""

OPEN, DATA, CREDIT, CLOSE, BEAT = range(1, 6)

_HEADER: Final = struct.Struct(">BBBII")
_CREDIT: Final = struct.Struct(">I")
_BEAT: Final = struct.Struct(">IIB")
_FRAME: Final = struct.Struct(wire.HEADER)


class RelayError(Exception):
    """The other end, or the bus between, broke the protocol: the connection ends. The message says how."""


class OpenNode(msgspec.Struct, frozen=True, tag="node", tag_field="kind"):
    """A node's connection. `uri`: its SPIFFE ID, as its certificate says, which begins and ends at `begins` and `expires`
    (unix seconds) and has this issuer (common name) and serial number (hex); empty where a release that does not tell
    relays it. `peer`: its address for logs."""

    uri: str
    expires: float
    slot: int
    peer: str = ""
    begins: float = 0.0
    issuer: str = ""
    serial: str = ""


class OpenLog(msgspec.Struct, frozen=True, tag="log", tag_field="kind"):
    """A log stream of `node`; `options` as `Gateway.open_log` takes them, `credit` in bytes."""

    node: str
    slot: int
    options: dict[str, Any]
    credit: int = LOG_WINDOW_BYTES


class OpenDocument(msgspec.Struct, frozen=True, tag="document", tag_field="kind"):
    """What the owner itself tells of `node`, under the `path` of a kubelet (`pods`, `metrics/resource`): bytes, as a log's."""

    node: str
    slot: int
    path: str
    credit: int = LOG_WINDOW_BYTES


class OpenStream(msgspec.Struct, frozen=True, tag="stream", tag_field="kind"):
    """A duplex stream of `node`; `body` as `Gateway.open_stream` takes it, `credit`: what the node may send, in bytes.
    What is carried in both directions are frames of the edge channel's codec without a stream number: OPEN (the far
    end's first: {"chunk": the longest DATA that the node takes}), DATA, CREDIT, and CLOSE with the node's error."""

    node: str
    slot: int
    body: dict[str, Any]
    credit: int


Opening = OpenNode | OpenLog | OpenDocument | OpenStream


class Closing(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a connection ends. `reason` is a word for counters; `code`, `status` and `message` are an API error's."""

    reason: str
    code: int = 0
    status: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, without the sender's incarnation."""

    kind: int
    connection: int
    number: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Beat:
    """One line of a BEAT: `number` is what the sender's next message of the connection will have."""

    connection: int
    number: int
    heard: bool


def up_subject(store: str, slot: int, epoch: int) -> str:
    return f"{store}.slot.{slot}.{epoch}.up"


def down_subject(store: str, incarnation: str, connection: int | str) -> str:
    """`connection` "*": all of that replica."""
    return f"{store}.gateway.{incarnation}.{connection}"


def encode(message: Message, incarnation: bytes = b"") -> bytes:
    return (
        _HEADER.pack(VERSION, message.kind, len(incarnation), message.connection, message.number)
        + incarnation
        + message.body
    )


def decode(data: bytes) -> tuple[Message, str]:
    """The message and its sender's incarnation. Raises RelayError."""
    if not _HEADER.size <= len(data) <= MESSAGE_BYTES_MAX + INCARNATION_CHARS_MAX:
        raise RelayError(f"a message of {len(data)} bytes")
    version, kind, length, connection, number = _HEADER.unpack_from(data)
    if version != VERSION:
        raise RelayError(f"version {version} of the relay protocol; this replica speaks {VERSION}")
    if not OPEN <= kind <= BEAT:
        raise RelayError(f"a message of kind {kind}")
    at = _HEADER.size + length
    incarnation = data[_HEADER.size : at]
    if length > INCARNATION_CHARS_MAX or len(incarnation) != length:
        raise RelayError(f"an incarnation of {length} characters")
    # It becomes part of a subject: no dot, no wildcard, no space.
    if incarnation and not incarnation.replace(b"-", b"").replace(b"_", b"").isalnum():
        raise RelayError("an incarnation that is no name")
    if (connection == 0) != (kind == BEAT):
        raise RelayError(f"kind {kind} on connection {connection}")
    return Message(kind, connection, number, data[at:]), incarnation.decode("ascii")


def decode_open(body: bytes) -> Opening:
    """Raises RelayError."""
    if len(body) > OPEN_BYTES_MAX:
        raise RelayError(f"OPEN of {len(body)} bytes")
    try:
        opened: Opening = msgspec.json.decode(body, type=Opening)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as failure:
        raise RelayError(f"OPEN: {failure}") from failure
    if not isinstance(opened, OpenNode) and not 1 <= opened.credit <= WINDOW_BYTES:
        raise RelayError(f"OPEN: a credit of {opened.credit} bytes")
    return opened


def encode_beats(beats: list[Beat]) -> list[bytes]:
    """The bodies of as many BEATs as they need; at least one."""
    return [
        b"".join(_BEAT.pack(b.connection, b.number, b.heard) for b in beats[at : at + BEATS_MAX])
        for at in range(0, max(len(beats), 1), BEATS_MAX)
    ]


def decode_beats(body: bytes) -> list[Beat]:
    """Raises RelayError."""
    if len(body) % _BEAT.size or len(body) > BEATS_MAX * _BEAT.size:
        raise RelayError(f"BEAT of {len(body)} bytes")
    return [Beat(c, n, bool(heard)) for c, n, heard in _BEAT.iter_unpack(body)]


class Link:
    """One end of one connection. What its methods return has to be published in that order, or the link closed."""

    __slots__ = (
        "_backlog",
        "_backlog_max",
        "_closed",
        "_expected",
        "_far_credit",
        "_near_credit",
        "_next",
        "_passed",
        "_window",
        "backlog_bytes",
        "connection",
        "heard_from",
    )

    def __init__(
        self, connection: int, *, window: int = WINDOW_BYTES, backlog_bytes_max: int = 8 << 20, far: bool
    ) -> None:
        self.connection = connection
        self._window = window
        self._backlog_max = backlog_bytes_max
        self._backlog: deque[bytes] = deque()
        self.backlog_bytes = 0
        """Bytes that wait for credit."""
        self._far_credit = window
        self._near_credit = window
        self._passed = 0
        self._next = 0
        self._expected = 1 if far else 0
        """The far end is made when it has read OPEN, which is number 0."""
        self._closed = False
        self.heard_from = far
        """Has the other end sent anything?"""

    @property
    def number(self) -> int:
        """Of the next message."""
        return self._next

    def open(self, body: Opening) -> Message:
        """The first message. Raises RelayError when it is too long."""
        assert self._next == 0
        raw = msgspec.json.encode(body)
        if len(raw) > OPEN_BYTES_MAX:
            raise RelayError(f"OPEN of {len(raw)} bytes, at most {OPEN_BYTES_MAX} are allowed")
        return self._message(OPEN, raw)

    def send(self, data: bytes) -> list[Message]:
        """Passes bytes to the other end, as far as its credit goes; the rest follows when it grants more. Raises
        RelayError when too much waits."""
        if self.backlog_bytes + len(data) > self._backlog_max + self._far_credit:
            raise RelayError(f"the other end takes no more, and {self.backlog_bytes} bytes wait")
        if not self._backlog and len(data) <= self._far_credit and len(data) <= CHUNK_BYTES:
            self._far_credit -= len(data)
            return [self._message(DATA, data)] if data else []
        if data:
            self._backlog.append(data)
            self.backlog_bytes += len(data)
        return self._pump()

    def passed_on(self, count: int) -> list[Message]:
        """`count` received bytes have left this end: grants them anew, in steps."""
        self._passed += count
        if self._passed < min(GRANT_BYTES, self._window // 2):
            return []
        passed, self._passed = self._passed, 0
        self._near_credit += passed
        return [self._message(CREDIT, _CREDIT.pack(passed))]

    def greet(self) -> Message:
        """The far end's first message, so that the near end knows that somebody is there."""
        return self._message(CREDIT, _CREDIT.pack(0))

    def close(self, closing: Closing) -> list[Message]:
        """The last message; what waits for credit is dropped. Empty when it was sent or received already."""
        if self._closed:
            return []
        self._closed = True
        self._backlog.clear()
        self.backlog_bytes = 0
        return [self._message(CLOSE, msgspec.json.encode(closing))]

    def receive(self, message: Message) -> "bytes | list[Message] | Closing":
        """Bytes for whoever is served here; messages that its credit has released; or the end. Raises RelayError."""
        if message.number != self._expected:
            raise RelayError(f"message {message.number} came where {self._expected} was due")
        self._expected += 1
        if self._expected > CONNECTION_MAX or self._next >= CONNECTION_MAX:
            raise RelayError("the numbers of this connection are used up")
        self.heard_from = True
        body = message.body
        if message.kind == DATA:
            if not body or len(body) > CHUNK_BYTES or len(body) > self._near_credit:
                raise RelayError(f"{len(body)} bytes on a credit of {self._near_credit}")
            self._near_credit -= len(body)
            return body
        if message.kind == CREDIT and len(body) == _CREDIT.size:
            self._far_credit += _CREDIT.unpack(body)[0]
            if self._far_credit > self._window:
                raise RelayError("credit for more than was sent")
            return self._pump()
        if message.kind == CLOSE:
            self._closed = True
            try:
                return msgspec.json.decode(body, type=Closing)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as failure:
                raise RelayError(f"CLOSE: {failure}") from failure
        raise RelayError(f"kind {message.kind} with {len(body)} bytes inside a connection")

    def beat(self, number: int) -> None:
        """The other end says what its next number is; all before it must have come. Raises RelayError."""
        if number != self._expected:
            raise RelayError(f"message {self._expected} was lost; the other end is at {number}")

    def _pump(self) -> list[Message]:
        out: list[Message] = []
        while self._backlog and self._far_credit:
            head = self._backlog.popleft()
            take = min(len(head), self._far_credit, CHUNK_BYTES)
            if take < len(head):
                self._backlog.appendleft(head[take:])
                head = head[:take]
            self._far_credit -= take
            self.backlog_bytes -= take
            out.append(self._message(DATA, head))
        return out

    def _message(self, kind: int, body: bytes) -> Message:
        made = Message(kind, self.connection, self._next, body)
        self._next += 1
        return made


class Boundaries:
    """Where frames of the edge channel begin and end in bytes that are passed on unread: a heartbeat may be answered on
    the way, and a farewell be put in, only between two frames."""

    __slots__ = ("_header", "_left")

    def __init__(self) -> None:
        self._header = b""
        self._left = 0

    @property
    def between(self) -> bool:
        """Is no frame unfinished?"""
        return not self._left and not self._header

    def feed(self, data: bytes) -> None:
        """Raises RelayError for a frame longer than any may be."""
        at, end = 0, len(data)
        while at < end:
            if self._left:
                step = min(self._left, end - at)
                self._left -= step
                at += step
                continue
            missing = wire.HEADER_BYTES - len(self._header)
            self._header += data[at : at + missing]
            at += missing
            if len(self._header) == wire.HEADER_BYTES:
                self._left = _FRAME.unpack(self._header)[3]
                self._header = b""
                if self._left > wire.FRAME_BYTES_MAX:
                    raise RelayError(f"a frame of {self._left} bytes")
