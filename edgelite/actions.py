"""What a session wants done: values, no behaviour. [pure] Runs on MicroPython."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Send:
    """Bytes for the peer, whole frames."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class Apply:
    """The document is durable: run it (bytes), or stop it (None)."""

    __slots__ = ("body", "key")

    def __init__(self, key: str, body: "bytes | None") -> None:
        self.key = key
        self.body = body


class Close:
    """Flush what was sent, then close. `retry_s`: come back not earlier; None: not by yourself. `to`: go there at
    once instead. `code` is one of ARCHITECTURE.md's GOAWAY codes, or `redirect`, `silent`, `expired`
    (this node's certificate has)."""

    __slots__ = ("code", "message", "retry_s", "to")

    def __init__(self, code: str, message: str, retry_s: "float | None" = 0.0, to: str = "") -> None:
        self.code = code
        self.message = message
        self.retry_s = retry_s
        self.to = to


class Stream:
    """A message of a stream: kind is wire.OPEN, CREDIT or CLOSE with a dict, or wire.DATA with bytes."""

    __slots__ = ("body", "kind", "stream")

    def __init__(self, kind: int, stream: int, body: "Any") -> None:
        self.kind = kind
        self.stream = stream
        self.body = body


class Welcomed:
    """The hub has answered. `hold` is its (or our) reason to hold, "" when live; `resync`: report all status anew;
    `time`: the hub's clock, Unix seconds."""

    __slots__ = ("hold", "resync", "time")

    def __init__(self, hold: str, resync: bool, time: float) -> None:
        self.hold = hold
        self.resync = resync
        self.time = time


class Renewed:
    """A new certificate: PEM chain and bundle (list of PEM; empty when the hub sent none)."""

    __slots__ = ("bundle", "cert")

    def __init__(self, cert: str, bundle: "list[str]") -> None:
        self.cert = cert
        self.bundle = bundle


class Bundle:
    """The roots to trust from now on, PEM. `renew`: the hub asks for a renewal of the certificate, now."""

    __slots__ = ("renew", "roots")

    def __init__(self, roots: "list[str]", renew: bool = False) -> None:
        self.renew = renew
        self.roots = roots


class Delivered:
    """The hub has stored an entry of this type and key; `reason` when it refused it for good."""

    __slots__ = ("entry", "key", "kind", "reason")

    def __init__(self, kind: str, key: str, entry: bytes, reason: str) -> None:
        self.kind = kind
        self.key = key
        self.entry = entry
        self.reason = reason


class Note:
    """A line for the log."""

    __slots__ = ("level", "message")

    def __init__(self, level: str, message: str) -> None:
        self.level = level
        self.message = message
