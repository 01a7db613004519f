"""What each kind of peer may send on the edge channel. Default deny, one dict lookup per frame. [pure]

The gateway calls `admit` for every message before it is decoded, and `may_report` for every upstream entry. Whether
the identity is known and not revoked, and rate limits, are the gateway's: they need state. What is refused is
counted, logged with its message, and closes the connection, since a peer that sends it is broken or hostile.
"""

from collections.abc import Container
from typing import NamedTuple

from edgelite import wire

JOINING = "joining"
"""A TLS peer without a certificate."""
NODE = "node"
"""A peer whose certificate names a node."""

JOIN_BYTES_MAX = 16 * 1024
JOINING_MESSAGE_BYTES_MAX = JOIN_BYTES_MAX
EMPTY_BYTES_MAX = 64  # PING and the like have no body; a little room for fields of later versions
SMALL_BYTES_MAX = 16 * 1024

_ALLOWED: dict[tuple[str, int], int] = {
    (JOINING, wire.BUNDLE): EMPTY_BYTES_MAX,
    (JOINING, wire.JOIN): JOIN_BYTES_MAX,
    (JOINING, wire.GOAWAY): SMALL_BYTES_MAX,
    (NODE, wire.HELLO): SMALL_BYTES_MAX,
    (NODE, wire.GOAWAY): SMALL_BYTES_MAX,
    (NODE, wire.PING): EMPTY_BYTES_MAX,
    (NODE, wire.PAIRS): wire.MESSAGE_BYTES_MAX,
    (NODE, wire.ACK): wire.FRAME_BYTES_MAX,
    (NODE, wire.NACK): SMALL_BYTES_MAX,
    (NODE, wire.REPORT): wire.MESSAGE_BYTES_MAX,
    (NODE, wire.DATA): wire.FRAME_BYTES_MAX,
    (NODE, wire.CREDIT): EMPTY_BYTES_MAX,
    (NODE, wire.CLOSE): SMALL_BYTES_MAX,
    (NODE, wire.RENEW): JOIN_BYTES_MAX,
    (NODE, wire.BUNDLE): EMPTY_BYTES_MAX,
}


class Refusal(NamedTuple):
    """Why something is not admitted. `code` is a GOAWAY code: `denied` (never allowed) or `frame` (too long)."""

    code: str
    message: str


def admit(kind: str, frame_type: int, size: int) -> Refusal | None:
    """None when a peer of this kind may send such a message of `size` bytes (all its frames together)."""
    limit = _ALLOWED.get((kind, frame_type))
    if limit is None:
        name = wire.NAMES.get(frame_type, f"of unknown type {frame_type}")
        return Refusal("denied", f"a {kind} peer may not send a message {name}")
    if size > limit:
        name = wire.NAMES[frame_type]
        return Refusal("frame", f"{name} of {size} bytes from a {kind} peer, at most {limit} are allowed")
    return None


def limits_of(kind: str) -> dict[int, int]:
    """What `admit` lets pass for this kind of peer: message type -> longest body. For callers who look at every message;
    whatever is not in it is refused by `admit`, which says why."""
    return {frame_type: limit for (k, frame_type), limit in _ALLOWED.items() if k == kind}


def message_bytes_max(kind: str) -> int:
    """The longest message that a peer of this kind may send: the bound for its `wire.Decoder`, so that nothing
    beyond it is ever buffered. 0 for a kind that may send nothing."""
    return max((limit for (k, _), limit in _ALLOWED.items() if k == kind), default=0)


def may_report(entry_type: str, key: str, bound: Container[str]) -> Refusal | None:
    """Whether a node may send an upstream entry (ARCHITECTURE.md, "Upstream entries") about this document key.

    `bound` holds the document keys that are bound to the node; the gateway passes what its session has. I5: the
    relation of object and node is decided here from what the hub knows, never from the entry's body.
    """
    if entry_type == "node" or (entry_type == "event" and key == "node"):
        if key == "node":
            return None
    elif entry_type in ("pod", "gone"):
        if key.startswith("pod/") and key in bound:
            return None
    elif entry_type == "event":
        if key in bound:
            return None
    else:
        return Refusal("denied", f"unknown kind of upstream entry {entry_type[:40]!r}")
    return Refusal(
        "denied", f"{key[:300]!r} is not bound to this node; a {entry_type} entry about it is refused"
    )
