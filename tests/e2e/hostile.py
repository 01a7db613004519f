"""Tools of those who mean harm, or do not know better: raw requests, other people's certificates, odd connections."""

import contextlib
import http.client
import itertools
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgelite import credentials, enroll, wire
from edgelite.desired import compact
from hub import kubeconfig
from security import tls
from security.ca import CertificateAuthority
from security.identity import NodeId
from tests.e2e.cluster import Agent, Hub, wait_for
from tests.hub.edge_pki import csr
from tests.observability import scraped

TRUST_DOMAIN = "cloudhub.local"
HUB_NAME = f"hub.{TRUST_DOMAIN}"
KINDS = (
    "/api/v1/pods", "/api/v1/configmaps", "/api/v1/secrets", "/api/v1/nodes", "/api/v1/namespaces",
    "/apis/apps/v1/deployments", "/apis/apps/v1/daemonsets", "/apis/apps/v1/replicasets",
    "/apis/cloudhub.dev/v1alpha1/jointokens",
)  # fmt: skip
_connections = itertools.count(1)


def hello(**fields: Any) -> dict[str, Any]:
    """HELLO of a node that connects once more, with some fields as given."""
    conn = next(_connections)
    return {"proto": [1, 1], "inc": "0" * 32, "boot": 1, "conn": conn, "digest": "0" * 64, **fields}


# -- what is there -------------------------------------------------------------------------------------------------------


def objects(hub: Hub) -> dict[str, str]:
    """Every object's resourceVersion by its path, of a Node its UID, for the silence of one is noted by and by; events left
    out."""
    found: dict[str, str] = {}
    for kind in KINDS:
        for item in hub.api("GET", kind)["items"]:
            meta = item["metadata"]
            state = meta["uid"] if kind.endswith("/nodes") else meta["resourceVersion"]
            found[f"{kind} {meta.get('namespace', '-')}/{meta['name']}"] = state
    return found


def revision(hub: Hub) -> int:
    """The store's revision: it moves with every write, whatever is written."""
    return int(hub.api("GET", "/api/v1/configmaps")["metadata"]["resourceVersion"])


def nodes(hub: Hub) -> set[str]:
    return {node["metadata"]["name"] for node in hub.api("GET", "/api/v1/nodes")["items"]}


def figures(hub: Hub) -> dict[str, float]:
    """The edge port's figures, and as closed.REASON the connections that it closed."""
    text = hub.api("GET", "/metrics")
    found = scraped.figures(text, "cloudhub.edge")
    for name, labels, value in scraped.samples(text):
        if name == "cloudhub_edge_closed_total":
            found["closed." + labels["reason"]] = value
    return found


def wait_heartbeats(hub: Hub, count: int = 4, agents: int = 1) -> None:
    """Waits until `agents` nodes have sent `count` heartbeats each from now on, and whoever else sent nothing."""
    before = figures(hub)["bytes_in"]
    wait_for(
        lambda: figures(hub)["bytes_in"] - before >= count * agents * wire.HEADER_BYTES,
        f"{count} heartbeats of {agents} agents",
    )


# -- the API -------------------------------------------------------------------------------------------------------------


def request(
    hub: Hub,
    method: str,
    path: str,
    body: bytes | None = None,
    content_type: str | None = "application/json",
    *,
    context: ssl.SSLContext | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any]:
    """(status code, decoded answer) of one request on a connection of its own; the administrator's unless `context`."""
    connection = http.client.HTTPSConnection(
        "127.0.0.1", hub.api_port, context=context or admin_context(hub), timeout=60
    )
    try:
        sent = {"Content-Type": content_type} if body is not None and content_type else {}
        connection.request(method, path, body, {**sent, **(headers or {})})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def admin_context(hub: Hub) -> ssl.SSLContext:
    found = kubeconfig.read(hub.kubeconfig)
    return tls.client_context(found.root_pem, found.cert_pem, found.key_pem)


# -- identities ----------------------------------------------------------------------------------------------------------


class Identity:
    """A certificate with its key, PEM, and the root that it trusts."""

    def __init__(self, root: str, cert: str, key: str) -> None:
        self.root, self.cert, self.key = root, cert, key

    def client(self) -> ssl.SSLContext:
        return tls.client_context(self.root, self.cert, self.key)

    def trusting(self, root: str) -> "Identity":
        return Identity(root, self.cert, self.key)


def authority(hub: Hub) -> CertificateAuthority:
    """The hub's own CA, to make certificates that no hub would hand out."""
    return CertificateAuthority.open(str(hub.data_dir / "ca"))


def forge(ca: CertificateAuthority, node: str, now: float | None = None, ttl_s: float = 3600.0) -> Identity:
    """A node's certificate with any times."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    identity = NodeId(TRUST_DOMAIN, "default", node, node)
    chain = ca.issue_node(csr(key), identity, time.time() if now is None else now, ttl_s)
    return Identity(ca.root_pem, chain, pem)


def identity_of(agent: Agent) -> Identity:
    """What lies in an agent's data directory."""
    return read_identity(agent.data_dir)


def read_identity(data_dir: Path) -> Identity:
    text = (data_dir / credentials.IDENTITY).read_text()
    at = (
        text.index("-----BEGIN EC PRIVATE")
        if "-----BEGIN EC PRIVATE" in text
        else text.index("-----BEGIN PRIV")
    )
    return Identity((data_dir / credentials.BUNDLE).read_text(), text[:at], text[at:])


def enrolled(hub: Hub, name: str, data_dir: Path) -> Identity:
    """Joins as a node that runs no agent; its identity."""
    enroll.join(hub.edge, hub.token("--node", name), None, {}, str(data_dir))
    return read_identity(data_dir)


# -- the edge port -------------------------------------------------------------------------------------------------------


class Peer:
    """A blocking connection to the edge port."""

    def __init__(self, hub: Hub, context: ssl.SSLContext) -> None:
        raw = socket.create_connection(("127.0.0.1", hub.edge_port), timeout=30)
        try:
            self.sock = context.wrap_socket(raw, server_hostname=HUB_NAME)
        except BaseException:
            raw.close()
            raise
        self.decoder = wire.Decoder()
        self.arrived: list[tuple[int, Any]] = []
        self.ended = False

    def send(self, kind: int, body: Any = None) -> None:
        self.raw(wire.message(kind, b"" if body is None else compact(body)))

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self, kind: int) -> Any:
        """The body of the next message of that kind; other messages are kept. Fails when the connection ends first."""
        while True:
            for n, (got, body) in enumerate(self.arrived):
                if got == kind:
                    del self.arrived[n]
                    return body
            assert not self.ended, f"the hub closed the connection; before that: {self.arrived}"
            self._more()

    def _more(self) -> None:
        try:
            data = self.sock.recv(65536)
        except (ConnectionError, ssl.SSLEOFError):
            data = b""
        self.ended = not data
        for kind, _, raw in self.decoder.feed(data):
            self.arrived.append((kind, raw if kind in (wire.SET, wire.DATA) else json.loads(raw or b"null")))

    def wait_closed(self) -> None:
        while not self.ended:
            self._more()

    def refusal(self) -> dict[str, Any]:
        """GOAWAY's body, after which the hub has closed the connection."""
        body: dict[str, Any] = self.receive(wire.GOAWAY)
        self.wait_closed()
        return body

    def close(self) -> None:
        self.sock.close()


@contextlib.contextmanager
def peer(hub: Hub, context: ssl.SSLContext) -> Iterator[Peer]:
    made = Peer(hub, context)
    try:
        yield made
    finally:
        made.close()


def stranger(hub: Hub) -> ssl.SSLContext:
    """Without a certificate, as who wants to join."""
    return tls.client_context(authority(hub).root_pem)


class Impostor:
    """A TLS server with a certificate that is none of this hub. It keeps what it is told, and gives `answer`."""

    def __init__(self, root: str, cert: str, key: str, answer: bytes = b"") -> None:
        self._context = tls.edge_server_context(cert, key, root)
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard = b""
        self.visits = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            self.visits += 1
            raw.settimeout(10)
            with contextlib.suppress(OSError), self._context.wrap_socket(raw, server_side=True) as sock:
                self.heard += sock.recv(65536)
                sock.sendall(self._answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(15)


def client_hello() -> bytes:
    """The first flight of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client = context.wrap_bio(incoming, outgoing, server_hostname=HUB_NAME)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()
