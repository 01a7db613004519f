"""The gateway's settings, and what it keeps of each connection."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from edgelite import wire
from edgelite.session import SILENT_HEARTBEATS
from hub.duplex import Sink
from hub.joinlimits import JoinRates
from hub.session import Session
from hub.transport import Connection, TransportLimits
from observability import logs
from security.buckets import Rates
from security.ca import NODE_TTL_S
from security.identity import NodeId
from security.policy import NODE, STRANGER
from security.serials import serial_text
from security.tls import certificate_time, expires_at

AUDIT_S: Final = 10.0
"""How often every connection's certificate is looked at."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Settings of the edge port.

    host, port: where to listen; port 0 picks a free one.
    advertise: the address that joining agents are told to use, or several with commas between; None: the one that they
        used, and those of the other replicas.
    replica_edge: host:port at which agents reach this very replica, as its member record says; "": nowhere.
    heartbeat_s: interval of every node's heartbeats; three without a byte end a connection.
    node_ttl_s: how long the certificates last that nodes get. return_s: for how long after its end a node is taken back by
        one; 0: never. renewals_per_s: so many nodes are asked to renew when another root signs.
    window: unacknowledged documents per node. streams_max: open streams per node.
    clone_retry_s: back-off of a cloned node; clone_quiet_s: without further signs for this long it counts as single.
    deleted_retry_s: how long a node whose Node was deleted is told to stay away.
    join_approval: does every node wait for an operator, whatever its token says? join_rates: of joins.
    joining_max: connections without a certificate at a time.
    rates: how much nodes may send; whoever sends more is read more slowly.
    partial_bytes_max: unfinished messages of all nodes together.
    message_s: how long one message may take from its first byte to its last; 1.4 MB over 12 KB/s.
    stranger_s: how long a connection without a certificate may last: a join waits for at most 60 s.
    """

    host: str = "0.0.0.0"  # noqa: S104 - the edge port is for the world; every peer is authenticated
    port: int = 8444
    advertise: str | None = None
    replica_edge: str = ""
    heartbeat_s: float = 30.0
    node_ttl_s: float = NODE_TTL_S
    return_s: float = 30 * 86400.0
    renewals_per_s: float = 100.0
    window: int = 64
    streams_max: int = 16
    clone_retry_s: float = 60.0
    clone_quiet_s: float = 300.0
    deleted_retry_s: float = 60.0
    join_approval: bool = False
    join_rates: JoinRates = field(default_factory=JoinRates)
    joining_max: int = 512
    rates: Rates = field(default_factory=Rates)
    partial_bytes_max: int = 128 << 20
    message_s: float = 120.0
    stranger_s: float = 90.0
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


class Shown(NamedTuple):
    """What is kept of a node's certificate. `issuer`: the root's common name, or the serial number in its issuer's name, which
    authorities below one of SPIRE's have of their root; `serial`: lower-case hex without leading
    zeros; `begins`, `ends`: its validity, unix seconds; `mark`: the first 16 hex digits of the SHA-256 of its DER, where it
    was issued here. Fields are empty where a replica of an older release relays the node."""

    issuer: str = ""
    serial: str = ""
    begins: float = 0.0
    ends: float = 0.0
    mark: str = ""


NOTHING_SHOWN: Final = Shown(ends=float("inf"))


def shown_in(peercert: Mapping[str, Any]) -> Shown:
    """Of a verified certificate, as `SSLSocket.getpeercert()` gives it."""
    named = {k: v for rdn in peercert.get("issuer", ()) for k, v in rdn}
    issuer = named.get("commonName") or named.get("serialNumber", "")
    begins = peercert.get("notBefore")
    return Shown(
        sys.intern(issuer),
        serial_text(peercert.get("serialNumber", "")),
        certificate_time(begins) if begins else 0.0,
        expires_at(peercert),
    )


def shown_by(certificate: x509.Certificate) -> Shown:
    """Of one that was issued here."""
    issuer = certificate.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    issuer = issuer or certificate.issuer.get_attributes_for_oid(x509.NameOID.SERIAL_NUMBER)
    return Shown(
        sys.intern(str(issuer[0].value)) if issuer else "",
        f"{certificate.serial_number:x}",
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
        certificate.fingerprint(hashes.SHA256()).hex()[:16],
    )


class Relayed(Protocol):
    """The gateway's end of a connection that another replica serves (`hub.relaying`)."""

    def received(self, data: bytes) -> None: ...

    def closed(self, reason: str) -> None: ...


class Peer:
    """A connection and whose it is. `identity` None: it has no certificate, `session` is None then as well."""

    __slots__ = (
        "answers",
        "bytes",
        "conn",
        "decoder",
        "expires",
        "identity",
        "inc",
        "installed",
        "issued",
        "messages",
        "nonce",
        "relayed",
        "renewed",
        "session",
        "shown",
        "slot",
        "streams",
        "trusts",
    )

    def __init__(
        self,
        conn: Connection,
        identity: NodeId | None,
        session: Session | None,
        slot: int,
        shown: Shown = NOTHING_SHOWN,
    ) -> None:
        self.conn = conn
        self.identity = identity
        self.session = session
        self.slot = slot
        self.expires = shown.ends
        self.shown = shown
        """The certificate that this connection was made with."""
        self.issued: Shown | None = None
        """The certificate that it was sent last, and has not said to have installed."""
        self.installed: Shown | None = None
        """The one that it will show next."""
        self.trusts: str | None = None
        """The short name of the trust bundle that it holds; None: it does not say."""
        self.inc = ""
        self.messages = self.bytes = 0
        """What it has sent and was not charged for yet (`Throttle`)."""
        self.renewed = False
        """Got a new certificate on this connection; the old one ends it all the same."""
        self.nonce = ""
        """What a node whose certificate has ended has to sign, where one has asked for it."""
        self.relayed: Relayed | None = None
        """Who carries its bytes elsewhere; `session` is None then."""
        self.decoder: wire.Decoder | None = None
        self.streams: dict[int, Sink] | None = None
        self.answers: tuple[list[int], list[tuple[int, str]], int] | None = None


class Newest(dict[str, Peer]):
    """By node, the connection that counts. `changes`: how often one was put or taken."""

    __slots__ = ("changes",)

    def __init__(self) -> None:
        super().__init__()
        self.changes = 0

    def __setitem__(self, node: str, peer: Peer) -> None:
        self.changes += 1
        super().__setitem__(node, peer)

    def __delitem__(self, node: str) -> None:
        self.changes += 1
        super().__delitem__(node)


def name_of(peer: Peer) -> str:
    """How logs call it."""
    return f"node {peer.identity.node}" if peer.identity is not None else f"a peer at {peer.conn.peername()}"


def about(peer: Peer) -> dict[str, Any]:
    """For `extra=` of a log line."""
    return logs.about(node=peer.identity.node, slot=peer.slot) if peer.identity is not None else logs.about()


def kind_of_peer(peer: Peer) -> str:
    """As the table of admission names it."""
    return STRANGER if peer.identity is None else NODE
