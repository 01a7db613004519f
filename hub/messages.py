"""What passes between a node and its session: upstream bodies as typed structs, and the actions that come out. [pure]

Bodies are bounded while they are decoded; unknown fields are ignored. Formats: ARCHITECTURE.md, "messages".
"""

from typing import Annotated, Any, Final, NamedTuple

import msgspec

from edgelite import wire
from hub.hello import Hello


class Entry(msgspec.Struct, frozen=True):
    """An upstream entry (ARCHITECTURE.md). `b` is decoded by whoever stores it."""

    n: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
    k: Annotated[str, msgspec.Meta(max_length=512)]
    t: Annotated[str, msgspec.Meta(max_length=32)]
    b: msgspec.Raw = msgspec.Raw(b"{}")


class ReportBody(msgspec.Struct):
    e: Annotated[list[Entry], msgspec.Meta(max_length=1024)]


class AckBody(msgspec.Struct):
    a: list[tuple[str, str]]


class NackBody(msgspec.Struct):
    k: str
    v: str
    reason: Annotated[str, msgspec.Meta(max_length=256)] = ""
    message: Annotated[str, msgspec.Meta(max_length=8192)] = ""


class PairsBody(msgspec.Struct):
    pairs: list[tuple[str, str]]


class RenewBody(msgspec.Struct):
    csr: Annotated[str, msgspec.Meta(max_length=8192)]


class GoawayBody(msgspec.Struct):
    code: str = ""
    message: str = ""


class CloseBody(msgspec.Struct):
    error: dict[str, Any] | None = None


decode_acks = msgspec.json.Decoder(AckBody).decode
decode_nack = msgspec.json.Decoder(NackBody).decode
decode_pairs = msgspec.json.Decoder(PairsBody).decode
decode_report = msgspec.json.Decoder(ReportBody).decode
decode_csr = msgspec.json.Decoder(RenewBody).decode
decode_goaway = msgspec.json.Decoder(GoawayBody).decode
decode_close = msgspec.json.Decoder(CloseBody).decode


class Send(NamedTuple):
    """Bytes for the peer."""

    data: bytes


class Close(NamedTuple):
    """End the connection, after a GOAWAY with these fields."""

    code: str
    message: str
    retry_s: float | None = 30.0


class Left(NamedTuple):
    """The peer said GOAWAY."""

    code: str
    message: str


class Greeted(NamedTuple):
    """The peer said HELLO: answer with `welcome`, or close."""

    hello: Hello


class Report(NamedTuple):
    """Upstream entries; answer each with `stored`."""

    entries: list[Entry]


class Confirmed(NamedTuple):
    """After a confirmed takeover the node has proved that it holds our claim."""


class Refusals(NamedTuple):
    """`Session.refused` has changed. `key`: the one that was refused now, or "" when one was taken back."""

    key: str
    reason: str
    message: str


class Renew(NamedTuple):
    """A new certificate is asked for."""

    csr: str


class Roots(NamedTuple):
    """The trust bundle is asked for."""


class StreamData(NamedTuple):
    stream: int
    data: bytes


class StreamClosed(NamedTuple):
    """`error` is the peer's {"code", "message"}, None at a regular end."""

    stream: int
    error: dict[str, Any] | None


Action = (
    Send | Close | Left | Greeted | Report | Confirmed | Refusals | Renew | Roots | StreamData | StreamClosed
)
PONG: Final[tuple[Action, ...]] = (Send(wire.frame(wire.PONG)),)
