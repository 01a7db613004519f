"""The gateway's settings, and what it keeps of each connection."""

from dataclasses import dataclass, field
from typing import Final

from edgelite import wire
from edgelite.session import SILENT_HEARTBEATS
from hub.logstreams import LogStream
from hub.session import Session
from hub.transport import Connection, TransportLimits
from security.ca import NODE_TTL_S
from security.identity import NodeId

AUDIT_S: Final = 10.0
"""How often every connection's certificate and message rate are looked at."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Settings of the edge port.

    host, port: where to listen; port 0 picks a free one.
    advertise: the address that joining agents are told to use, None: the one that they used.
    heartbeat_s: interval of every node's heartbeats; three without a byte end a connection.
    node_ttl_s: how long the certificates last that nodes get.
    window: unacknowledged documents per node. streams_max: open log streams per node.
    clone_retry_s: back-off of a cloned node; clone_quiet_s: without further signs for this long it counts as single.
    deleted_retry_s: how long a node whose Node was deleted is told to stay away.
    joining_max: connections without a certificate at a time.
    messages_max: messages of one node in AUDIT_S.
    partial_bytes_max: unfinished messages of all nodes together.
    """

    host: str = "0.0.0.0"  # noqa: S104 - the edge port is for the world; every peer is authenticated
    port: int = 8444
    advertise: str | None = None
    heartbeat_s: float = 30.0
    node_ttl_s: float = NODE_TTL_S
    window: int = 64
    streams_max: int = 16
    clone_retry_s: float = 60.0
    clone_quiet_s: float = 300.0
    deleted_retry_s: float = 60.0
    joining_max: int = 512
    messages_max: int = 20_000
    partial_bytes_max: int = 128 << 20
    transport: TransportLimits = field(default_factory=TransportLimits)

    def __post_init__(self) -> None:
        if not 0.1 <= self.heartbeat_s <= 600.0:
            raise ValueError(f"heartbeat_s is {self.heartbeat_s}; 0.1 to 600 seconds are supported")
        if not 1 <= self.window <= 1024:
            raise ValueError(f"window is {self.window}; 1 to 1024 documents are supported")
        if self.clone_quiet_s < 2 * self.clone_retry_s:
            raise ValueError("clone_quiet_s must be at least twice clone_retry_s, else clones take turns")

    @property
    def patience_s(self) -> float:
        return SILENT_HEARTBEATS * self.heartbeat_s


class Peer:
    """A connection and whose it is. `identity` None: it has no certificate, `session` is None then as well."""

    __slots__ = (
        "answers",
        "conn",
        "decoder",
        "expires",
        "identity",
        "inc",
        "messages",
        "renewed",
        "session",
        "slot",
        "streams",
    )

    def __init__(
        self, conn: Connection, identity: NodeId | None, session: Session | None, slot: int, expires: float
    ) -> None:
        self.conn = conn
        self.identity = identity
        self.session = session
        self.slot = slot
        self.expires = expires
        self.inc = ""
        self.messages = 0
        self.renewed = False
        """Got a new certificate on this connection; the old one ends it all the same."""
        self.decoder: wire.Decoder | None = None
        self.streams: dict[int, LogStream] | None = None
        self.answers: tuple[list[int], list[tuple[int, str]], int] | None = None


def name_of(peer: Peer) -> str:
    """How logs call it."""
    return f"node {peer.identity.node}" if peer.identity is not None else f"a peer at {peer.conn.peername()}"
