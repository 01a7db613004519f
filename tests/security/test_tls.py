"""The TLS contexts, two ends of one in-memory connection: who is let in, who is believed."""

import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

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
