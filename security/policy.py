"""What each kind of peer may send about whose objects. One table, default deny. [pure]

A cell is (kind of peer, what it sends, how the object that this is about relates to the peer). What is no cell of the
table is refused. Two sorts of things are sent: messages of the edge-cloud channel, by their wire type, and what these
carry or what comes over the bus between hubs, by a word: upstream entries ("pod", "event", ..) and relayed
connections ("relay:node", ..). `FORMS` says how long each may be and which struct its body is.

Every message on every path is judged once, at the replica that serves the node, before its body is decoded: by its
type and size (`limits_of`, one dict lookup). Once it is decoded, what names an object is judged by the relation of
that object to the peer, which is decided from what the hub knows, never from the body (invariant I5). Whether the
identity is known and not revoked, and how much it may send, need state: they are the gateway's.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from edgelite import wire
from edgelite.devices import KEPT_BYTES_MAX
from security import frames

STRANGER: Final = "stranger"
"""A TLS peer without a certificate; it may join."""
NODE: Final = "node"
HUB: Final = "hub"
"""Another replica, on the bus. On the edge port a hub's certificate is nobody's."""
RELAY: Final = "relay"
"""A site relay: reserved."""
USER: Final = "user"
UNVERIFIED: Final = "unverified"
"""Who showed a certificate that does not hold; counted, and never judged."""
KINDS: Final = (STRANGER, NODE, HUB, RELAY, USER)

OWN: Final = "own"
"""The peer itself, its session, or what is bound to it."""
SIBLING: Final = "sibling"
"""Another node of the same pool or site."""
OTHER_POOL: Final = "other-pool"
OTHER_TENANT: Final = "other-tenant"
CLUSTER: Final = "cluster"
"""What is bound to no node."""
ABSENT: Final = "absent"
"""Nothing that this hub knows: most often it was deleted while the message was under way."""
RELATIONS: Final = (OWN, SIBLING, OTHER_POOL, OTHER_TENANT, CLUSTER, ABSENT)

Subject = int | str
Cell = tuple[str, Subject, str]

JOIN_BYTES_MAX: Final = 16 * 1024
EMPTY_BYTES_MAX: Final = 64  # PING and the like have no body; a little room for fields of later versions
SMALL_BYTES_MAX: Final = 16 * 1024
TWIN_BYTES_MAX: Final = KEPT_BYTES_MAX + SMALL_BYTES_MAX
"""What may wait of one device at its node, and the names of its properties."""

RELAYED_NODE, RELAYED_LOG, RELAYED_STREAM = "relay:node", "relay:log", "relay:stream"
RELAYED_DOCUMENT: Final = "relay:document"


class Form(NamedTuple):
    """How long something may be, all its frames together, and what its body is: None for one that is empty, raw bytes, or
    decoded by the one module that serves it."""

    bytes_max: int
    body: type[Any] | None = None


FORMS: Final[Mapping[Subject, Form]] = {
    wire.HELLO: Form(SMALL_BYTES_MAX, frames.Hello),
    wire.GOAWAY: Form(SMALL_BYTES_MAX, frames.GoawayBody),
    wire.PING: Form(EMPTY_BYTES_MAX),
    wire.PAIRS: Form(wire.MESSAGE_BYTES_MAX, frames.PairsBody),
    wire.ACK: Form(wire.FRAME_BYTES_MAX, frames.AckBody),
    wire.NACK: Form(SMALL_BYTES_MAX, frames.NackBody),
    wire.REPORT: Form(wire.MESSAGE_BYTES_MAX, frames.ReportBody),
    wire.DATA: Form(wire.FRAME_BYTES_MAX),
    wire.CREDIT: Form(EMPTY_BYTES_MAX, frames.CreditBody),
    wire.CLOSE: Form(SMALL_BYTES_MAX, frames.CloseBody),
    wire.RENEW: Form(JOIN_BYTES_MAX, frames.RenewBody),
    wire.BUNDLE: Form(EMPTY_BYTES_MAX),
    wire.JOIN: Form(JOIN_BYTES_MAX),
    "node": Form(wire.MESSAGE_BYTES_MAX, frames.NodeReport),
    "pod": Form(wire.MESSAGE_BYTES_MAX),
    "gone": Form(SMALL_BYTES_MAX),
    "event": Form(SMALL_BYTES_MAX, frames.EventReport),
    "token": Form(SMALL_BYTES_MAX),
    "static": Form(wire.MESSAGE_BYTES_MAX),
    "piece": Form(SMALL_BYTES_MAX),
    "twin": Form(TWIN_BYTES_MAX, frames.TwinReport),
    RELAYED_NODE: Form(SMALL_BYTES_MAX),
    RELAYED_LOG: Form(SMALL_BYTES_MAX),
    RELAYED_STREAM: Form(SMALL_BYTES_MAX),
    RELAYED_DOCUMENT: Form(SMALL_BYTES_MAX),
}
"""The others (WELCOME, SET, ..: what hubs say) have no cell, and are refused from everybody."""
SUBJECTS: Final = frozenset((*wire.NAMES, *FORMS))
_EMPTY: Final = Form(EMPTY_BYTES_MAX)


class Refusal(NamedTuple):
    """Why something is not admitted. `code` is a GOAWAY code: `denied` (never allowed) or `frame` (too long). `reason` is for
    counting: `type`, `unknown`, `size`, or the relation that is not allowed."""

    code: str
    reason: str
    message: str


class Table:
    """The cells that are allowed; see the module."""

    def __init__(self, allowed: Collection[Cell]) -> None:
        self.allowed: Final = frozenset(allowed)
        self._sends: Final = frozenset((kind, subject) for kind, subject, _ in self.allowed)

    def judge(self, kind: str, subject: Subject, relation: str = OWN, size: int = 0) -> Refusal | None:
        """None when a peer of this kind may send this, `size` bytes of it, about an object that it has this relation to."""
        if (kind, subject) not in self._sends:
            if subject not in SUBJECTS:
                return Refusal("denied", "unknown", f"{_name(subject)} is of unknown type")
            return Refusal("denied", "type", f"a {kind} may not send {_name(subject)}")
        form = FORMS.get(subject, _EMPTY)
        if size > form.bytes_max:
            what = f"{_name(subject)} of {size} bytes from a {kind}, at most {form.bytes_max} are allowed"
            return Refusal("frame", "size", what)
        if (kind, subject, relation) not in self.allowed:
            return Refusal(
                "denied", relation, f"a {kind} may not send {_name(subject)} about what is {relation}"
            )
        return None


TABLE: Final = Table(
    {
        (STRANGER, wire.BUNDLE, OWN),
        (STRANGER, wire.JOIN, OWN),
        (STRANGER, wire.GOAWAY, OWN),
        (NODE, wire.HELLO, OWN),
        (NODE, wire.GOAWAY, OWN),
        (NODE, wire.PING, OWN),
        (NODE, wire.PAIRS, OWN),
        # Named by mistake or left over, such a key is answered with a DEL: that is all that a node learns of it.
        (NODE, wire.PAIRS, ABSENT),
        (NODE, wire.PAIRS, CLUSTER),
        (NODE, wire.ACK, OWN),
        (NODE, wire.NACK, OWN),
        (NODE, wire.REPORT, OWN),
        (NODE, wire.DATA, OWN),
        (NODE, wire.CREDIT, OWN),
        (NODE, wire.CLOSE, OWN),
        (NODE, wire.RENEW, OWN),
        (NODE, wire.BUNDLE, OWN),
        (NODE, "node", OWN),
        (NODE, "pod", OWN),
        (NODE, "gone", OWN),
        (NODE, "event", OWN),
        (NODE, "token", OWN),
        (NODE, "static", OWN),
        (NODE, "twin", OWN),
        (NODE, "piece", OWN),
        (HUB, RELAYED_NODE, OWN),
        (HUB, RELAYED_LOG, OWN),
        (HUB, RELAYED_STREAM, OWN),
        (HUB, RELAYED_DOCUMENT, OWN),
    }
)
"""The one that is in force. For what comes over the bus the object is a slot, OWN one that the receiver owns."""


def judge(kind: str, subject: Subject, relation: str = OWN, size: int = 0) -> Refusal | None:
    """`TABLE.judge`."""
    return TABLE.judge(kind, subject, relation, size)


def limits_of(kind: str, table: Table = TABLE) -> dict[int, int]:
    """The messages that this kind of peer may send at all: type -> longest body. For callers who look at every message;
    whatever is not in it is refused by `judge`, which says why."""
    return {
        subject: FORMS.get(subject, _EMPTY).bytes_max
        for k, subject, _ in table.allowed
        if k == kind and isinstance(subject, int)
    }


def message_bytes_max(kind: str) -> int:
    """The longest message that a peer of this kind may send: the bound for its `wire.Decoder`, so that nothing
    beyond it is ever buffered. 0 for a kind that may send nothing."""
    return max(limits_of(kind).values(), default=0)


class Place(NamedTuple):
    """Where a node belongs: by its certificate, or its Node. pool, site: "" for none."""

    tenant: str
    pool: str
    site: str


def relation_between(own: Place, other: Place) -> str:
    """How another node relates to the peer."""
    if own.tenant != other.tenant:
        return OTHER_TENANT
    if (own.pool and own.pool == other.pool) or (own.site and own.site == other.site):
        return SIBLING
    return OTHER_POOL


def kind_of(uri: str) -> str:
    """The kind of peer that a SPIFFE ID, valid or not, claims to name: for counting what is refused."""
    path = uri.split("/", 4)
    return path[3] if len(path) > 3 and path[3] in (NODE, HUB, RELAY, USER) else UNVERIFIED


def _name(subject: Subject) -> str:
    if isinstance(subject, int):
        return f"a message {wire.NAMES.get(subject, f'of unknown type {subject}')}"
    return f"an entry {subject[:40]!r}"
