"""What comes out of a session: the actions that the gateway carries out. [pure]"""

from typing import Any, Final, NamedTuple

from edgelite import wire
from security.frames import Entry, Hello


class Send(NamedTuple):
    """Bytes for the peer."""

    data: bytes


class Close(NamedTuple):
    """End the connection, after a GOAWAY with these fields. `sent`: the type of the message that was refused, and `why`, for
    counting."""

    code: str
    message: str
    retry_s: float | None = 30.0
    sent: int = 0
    why: str = "protocol"


class Foreign(NamedTuple):
    """The peer spoke of documents, by key, that are neither the node's nor on their way; without keys: of a stream that is not
    open. Nothing follows from it."""

    sent: int
    keys: tuple[str, ...] = ()


class Left(NamedTuple):
    """The peer said GOAWAY."""

    code: str
    message: str


class Greeted(NamedTuple):
    """The peer said HELLO: answer with `welcome`, or close. `body`: as it came, for whoever has to answer it."""

    hello: Hello
    body: bytes


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


class Trusts(NamedTuple):
    """What it had been sent is installed: see BundleBody."""

    have: str
    cert: str


class Roots(NamedTuple):
    """The trust bundle is asked for."""


class StreamData(NamedTuple):
    stream: int
    data: bytes


class StreamCredit(NamedTuple):
    """The peer takes that many bytes more."""

    stream: int
    credit: int


class StreamClosed(NamedTuple):
    """`error` is the peer's {"code", "message"}, None at a regular end."""

    stream: int
    error: dict[str, Any] | None


Action = (
    Send
    | Close
    | Foreign
    | Left
    | Greeted
    | Report
    | Confirmed
    | Refusals
    | Renew
    | Roots
    | Trusts
    | StreamData
    | StreamCredit
    | StreamClosed
)
PONG: Final[tuple[Action, ...]] = (Send(wire.frame(wire.PONG)),)
