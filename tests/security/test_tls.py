"""The TLS contexts, two ends of one in-memory connection: who is let in, who is believed."""

import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelite import p256
from security import tls
from security.ca import CertificateAuthority
from security.identity import HubId, NodeId, UserId, from_peercert

TD = "cloudhub.local"
NODE = NodeId(TD, "default", "shop-7", "till-1")


class Peers:
    """An authority with a certificate of each kind: (chain PEM, key PEM)."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        now = time.time()
        self.ca = CertificateAuthority.open(str(directory), now=now)
        private = p256.generate(os.urandom(48))
        self.hub = self.ca.issue_hub("hub-0", TD, [], [], now)
        self.node = self.ca.issue_node(p256.request_pem(private, "x"), NODE, now), p256.private_pem(private)
        self.user = self.ca.issue_user("admin", ["system:masters"], TD, now)
        self.ended = (
            self.ca.issue_node(p256.request_pem(private, "x"), NODE, now - 299, 200),
            p256.private_pem(private),
        )


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Peers:
    return Peers(tmp_path_factory.mktemp("ours") / "ca")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Peers:
    return Peers(tmp_path_factory.mktemp("others") / "ca")


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends after the handshake and one byte each way. Raises the ssl.SSLError of the end that refuses."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    at_server = server.wrap_bio(up, down, server_side=True)
    at_client = client.wrap_bio(down, up, server_hostname="hub." + TD, session=session)
    steps: list[Callable[[], object]] = [at_client.do_handshake, at_server.do_handshake]
    while steps:
        left = []
        for step in steps:
            try:
                step()
            except ssl.SSLWantReadError:
                left.append(step)
        steps = left
    for writer, reader in ((at_client, at_server), (at_server, at_client)):
        writer.write(b"x")
        assert reader.read(10) == b"x"
    return at_server, at_client


def edge(peers: Peers) -> ssl.SSLContext:
    return tls.edge_server_context(*peers.hub, peers.ca.root_pem)


def only_tls12(context: ssl.SSLContext) -> ssl.SSLContext:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_hub_and_node_know_each_other(peers: Peers, version: ssl.TLSVersion) -> None:
    client = tls.client_context(peers.ca.root_pem, *peers.node)
    client.maximum_version = client.minimum_version = version
    at_server, at_client = handshake(edge(peers), client)
    assert from_peercert(at_server.getpeercert(), TD) == NODE
    assert from_peercert(at_client.getpeercert(), TD) == HubId(TD, "hub-0")
    assert at_server.version() == version.name.replace("_", ".")
    cipher = at_server.cipher()
    assert cipher is not None and ("GCM" in cipher[0] or "CHACHA" in cipher[0])


def test_a_joining_agent_needs_no_certificate(peers: Peers) -> None:
    at_server, _ = handshake(edge(peers), tls.client_context(peers.ca.root_pem))
    assert at_server.getpeercert() is None


def test_the_api_may_demand_a_certificate(peers: Peers) -> None:
    strict = only_tls12(tls.api_server_context(*peers.hub, peers.ca.root_pem, client_cert_required=True))
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(strict, tls.client_context(peers.ca.root_pem))
    at_server, _ = handshake(strict, tls.client_context(peers.ca.root_pem, *peers.user))
    assert from_peercert(at_server.getpeercert(), TD) == UserId(TD, "admin")
    open_ = tls.api_server_context(*peers.hub, peers.ca.root_pem)
    assert handshake(open_, tls.client_context(peers.ca.root_pem))[0].getpeercert() is None


def test_a_node_cannot_pose_as_a_hub(peers: Peers) -> None:
    impostor = tls.edge_server_context(*peers.node, peers.ca.root_pem)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"purpose|Hostname mismatch"):
        handshake(impostor, tls.client_context(peers.ca.root_pem))


@pytest.mark.parametrize("kind", ["node", "user"])
def test_neither_name_nor_usage_alone_would_let_a_client_pose_as_a_hub(peers: Peers, kind: str) -> None:
    impostor = tls.edge_server_context(*getattr(peers, kind), peers.ca.root_pem)
    only_usage = tls.client_context(peers.ca.root_pem)
    only_usage.check_hostname = False
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(impostor, only_usage)


def test_a_certificate_of_another_authority_is_refused_at_both_ends(peers: Peers, others: Peers) -> None:
    with pytest.raises(ssl.SSLError, match=r"self.signed|unable to get|UNKNOWN_CA|CERTIFICATE_VERIFY_FAILED"):
        handshake(edge(peers), tls.client_context(peers.ca.root_pem, *others.node))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(edge(others), tls.client_context(peers.ca.root_pem))


def test_an_ended_certificate_is_refused(peers: Peers) -> None:
    with pytest.raises(ssl.SSLError, match=r"expired|EXPIRED"):
        handshake(edge(peers), tls.client_context(peers.ca.root_pem, *peers.ended))


def test_a_resumed_session_still_shows_who_and_until_when(peers: Peers) -> None:
    server, client = edge(peers), tls.client_context(peers.ca.root_pem, *peers.node)
    first = handshake(server, client)[1]
    at_server, at_client = handshake(server, client, session=first.session)
    assert at_client.session_reused
    cert = at_server.getpeercert()
    assert from_peercert(cert, TD) == NODE
    assert cert is not None and 13 * 86400 < tls.expires_at(cert) - time.time() < 14 * 86400 + 1


def shown_by(server: ssl.SSLContext, client: ssl.SSLContext) -> list[str]:
    """The certificates that a server sends, PEM. TLS 1.2 sends them in the clear."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    at_server = server.wrap_bio(up, down, server_side=True)
    at_client = only_tls12(client).wrap_bio(down, up, server_hostname="hub." + TD)
    for end in (at_client, at_server):
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    flight, found = down.read(), []
    records = b""
    while flight:
        length = int.from_bytes(flight[3:5], "big")
        records, flight = records + flight[5 : 5 + length], flight[5 + length :]
    while records:
        kind, length = records[0], int.from_bytes(records[1:4], "big")
        body, records = records[4 : 4 + length], records[4 + length :]
        certificates = body[3:] if kind == 11 else b""
        while certificates:
            length = int.from_bytes(certificates[:3], "big")
            found.append(ssl.DER_cert_to_PEM_cert(certificates[3 : 3 + length]).strip())
            certificates = certificates[3 + length :]
    return found


def test_a_certificate_that_is_alone_is_shown_with_the_root_that_issued_it(
    peers: Peers, others: Peers
) -> None:
    """As OpenSSL itself does, once for each handshake and with a signature checked each time."""
    wanted = [peers.hub[0].strip(), peers.ca.root_pem.strip()]
    roots = others.ca.root_pem + peers.ca.root_pem
    assert shown_by(tls.edge_server_context(*peers.hub, roots), tls.client_context(roots)) == wanted
    # One whose root is not there stays alone, and a chain stays as it is.
    foreign = tls.edge_server_context(*peers.hub, others.ca.root_pem)
    assert shown_by(foreign, tls.client_context(roots)) == wanted[:1]
    longer = peers.hub[0] + others.ca.root_pem, peers.hub[1]
    shown = shown_by(tls.edge_server_context(*longer, roots), tls.client_context(roots))
    assert shown == [wanted[0], others.ca.root_pem.strip()]


def test_openssl_is_given_the_chain_so_that_it_looks_for_none(
    peers: Peers, others: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_to: list[str] = []
    load = tls._load_identity

    def noted(context: ssl.SSLContext, cert_pem: str, key_pem: str) -> None:
        given_to.append(cert_pem)
        load(context, cert_pem, key_pem)

    monkeypatch.setattr(tls, "_load_identity", noted)
    for made in (tls.edge_server_context, tls.api_server_context):
        made(*peers.hub, others.ca.root_pem + peers.ca.root_pem)
    assert given_to == [peers.hub[0].rstrip() + "\n" + peers.ca.root_pem] * 2


@given(st.integers(0, 2**33))
def test_times_of_certificates_are_read_as_the_standard_library_reads_them(unix: int) -> None:
    text = time.strftime("%b %d %H:%M:%S %Y GMT", time.gmtime(unix))
    for spelling in (text, text.replace(" 0", "  ", 1) if text[4] == "0" else text):
        assert tls.certificate_time(spelling) == ssl.cert_time_to_seconds(spelling) == unix


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Nov 21 18:02:15 2026",
        "Nov 21 18:02 2026 GMT",
        "Now 21 18:02:15 2026 GMT",
        "Nov 31 1:2:3 2026 UTC",
    ],
)
def test_what_is_no_time_of_a_certificate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no time of a certificate"):
        tls.certificate_time(text)


def test_one_session_ticket_is_issued(peers: Peers) -> None:
    assert edge(peers).num_tickets == 1


def test_older_tls_is_not_spoken(peers: Peers) -> None:
    for context in (edge(peers), tls.client_context(peers.ca.root_pem)):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("case", ["key of another", "no certificate", "no roots", "empty roots", "no key"])
def test_parts_that_do_not_fit_are_named(peers: Peers, others: Peers, case: str) -> None:
    cert, key, root = *peers.hub, peers.ca.root_pem
    cert, key, root = {
        "key of another": (cert, others.hub[1], root),
        "no certificate": ("junk", key, root),
        "no roots": (cert, key, "junk"),
        "empty roots": (cert, key, ""),
        "no key": (cert, "", root),
    }[case]
    with pytest.raises(tls.TLSError):
        tls.edge_server_context(cert, key, root)


def test_a_client_certificate_comes_with_its_key(peers: Peers) -> None:
    with pytest.raises(tls.TLSError):
        tls.client_context(peers.ca.root_pem, peers.node[0])


@pytest.mark.parametrize("memfd", [True, False])
def test_no_key_stays_on_the_disk_or_in_a_descriptor(
    peers: Peers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memfd: bool
) -> None:
    if not memfd:
        monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    edge(peers)
    with pytest.raises(tls.TLSError):
        tls.edge_server_context("junk", "junk", peers.ca.root_pem)
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before
