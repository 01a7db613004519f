"""Joining a hub over real TLS, and the identity on disk after it."""

import contextlib
import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgelite import credentials, der, enroll, p256, wire
from edgelite.enroll import EnrollError
from security import tls
from security.ca import CertificateAuthority
from security.identity import HubId, NodeId, from_peercert
from tests.edgelite.fake_hub import TD, FakeHub

SECRETS = ("identity.pem", "identity.new", "identity.next", "bundle.pem", "node.json")


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority.open(str(tmp_path_factory.mktemp("ca")))


@pytest.fixture(scope="module")
def other_ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority.open(str(tmp_path_factory.mktemp("other")))


@pytest.fixture
def hub(ca: CertificateAuthority) -> Iterator[FakeHub]:
    with FakeHub(ca) as hub:
        yield hub


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def join(
    hub: str,
    token: str,
    data: str,
    name: str | None = None,
    labels: dict[str, str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    return enroll.join(hub, token, name, labels or {}, data, **options)


def refused(hub: str, token: str, data: str, **options: Any) -> EnrollError:
    """The error of a join, which leaves no identity behind."""
    with pytest.raises(EnrollError) as e:
        join(hub, token, data, **options)
    assert not os.path.exists(os.path.join(data, "identity.pem"))
    assert len(e.value.message) > 20
    return e.value


def connect(hub: FakeHub, data: str) -> ssl.SSLSocket:
    host, port = enroll.parse_address(hub.address)
    raw = socket.create_connection((host, port), timeout=5)
    return enroll.client_context(data).wrap_socket(raw, server_hostname=enroll.hub_name(data))


# Joining


def test_a_machine_joins_and_is_known_by_its_certificate(hub: FakeHub, data: str) -> None:
    facts = join(hub.address, hub.token(node="till-1", site="shop-7"), data, labels={"floor": "2"})
    assert facts == {"node": "till-1", "trust_domain": TD, "hub": "hub." + TD, "edge": hub.address}
    assert enroll.load_facts(data) == facts
    assert sorted(os.listdir(data)) == ["bundle.pem", "identity.pem", "node.json"]
    for name in os.listdir(data):
        assert stat.S_IMODE(os.stat(os.path.join(data, name)).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(data).st_mode) == 0o700
    assert hub.joins[0]["labels"] == {"floor": "2"} and hub.joins[0]["info"]["os"] == sys.platform
    with connect(hub, data) as channel:
        assert from_peercert(channel.getpeercert()) == HubId(TD, "hub-0")
    assert credentials.certificate(data).uris == [NodeId(TD, "default", "shop-7", "till-1").uri()]


def test_the_hub_recognises_the_node_that_has_joined(ca: CertificateAuthority, data: str) -> None:
    with FakeHub(ca) as hub:
        join(hub.address, hub.token(), data)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = hub.context.wrap_bio(up, down, server_side=True)
    client = enroll.client_context(data).wrap_bio(down, up, server_hostname="hub." + TD)
    for end in (client, server, client, server):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            pass
    assert from_peercert(server.getpeercert(), TD) == NodeId(TD, "default", "till-1", "till-1")


def test_pool_tokens_give_names_or_take_wishes(hub: FakeHub, tmp_path: Path) -> None:
    token = hub.token(pool="tills", count=2)
    assert join(hub.address, token, str(tmp_path / "a"))["node"].startswith("tills-")
    assert join(hub.address, token, str(tmp_path / "b"), "front")["node"] == "front"
    assert refused(hub.address, token, str(tmp_path / "c")).code == "PoolExhausted"


def test_the_advertised_edge_address_is_kept(hub: FakeHub, data: str) -> None:
    hub.spoil = lambda answer: {**answer, "edge": "edge.example.com:443"}
    assert join(hub.address, hub.token(), data)["edge"] == "edge.example.com:443"


def test_a_lost_answer_is_asked_for_again_with_the_same_key(hub: FakeHub, data: str) -> None:
    token = hub.token()
    hub.spoil = lambda answer: None
    error = refused(hub.address, token, data)
    assert (error.code, error.retryable) == ("Unreachable", True)
    assert os.listdir(data) == ["identity.new"]
    assert stat.S_IMODE(os.stat(os.path.join(data, "identity.new")).st_mode) == 0o600
    hub.spoil = lambda answer: answer
    assert join(hub.address, token, data)["node"] == "till-1"
    assert hub.joins[0]["csr"] == hub.joins[1]["csr"]


def test_a_power_cut_at_any_write_is_repaired_by_joining_again(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    for last in ("identity.new", "bundle.pem", "node.json", "identity.pem"):
        name = last.replace(".", "-")
        data, token = str(tmp_path / name), hub.token(node=name)

        def failing(source: str, target: str, last: str = last) -> None:
            if target.endswith(last):
                raise OSError(28, "No space left on device")
            replace(source, target)

        monkeypatch.setattr(os, "replace", failing)
        error = refused(hub.address, token, data)
        assert error.code == "Disk" and error.retryable and last in error.message
        monkeypatch.undo()
        assert join(hub.address, token, data)["node"] == name


def test_a_machine_joins_once(hub: FakeHub, data: str) -> None:
    join(hub.address, hub.token(), data)
    before = Path(data, "identity.pem").read_bytes()
    with pytest.raises(EnrollError, match="edgelite run") as e:
        join(hub.address, hub.token(node="till-2"), data)
    assert e.value.code == "AlreadyJoined"
    assert Path(data, "identity.pem").read_bytes() == before


# Refusals


def test_a_used_token_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    token = hub.token()
    join(hub.address, token, str(tmp_path / "a"))
    error = refused(hub.address, token, str(tmp_path / "b"))
    assert (error.code, error.retryable) == ("TokenUsed", False)


def test_an_expired_token_is_refused(hub: FakeHub, data: str) -> None:
    assert refused(hub.address, hub.token(node="till-1", now=time.time() - 3601), data).code == "TokenExpired"


def test_a_wrong_secret_is_refused(hub: FakeHub, data: str) -> None:
    parts = hub.token().split(".", 3)
    parts[2] = ("A" if parts[2][0] != "A" else "B") + parts[2][1:]
    assert refused(hub.address, ".".join(parts), data).code == "TokenInvalid"


def test_an_unknown_token_is_refused(hub: FakeHub, data: str) -> None:
    token = hub.token()
    hub.records.clear()
    assert refused(hub.address, token, data).code == "TokenInvalid"


def test_another_nodes_token_is_refused(hub: FakeHub, data: str) -> None:
    assert refused(hub.address, hub.token(node="till-2"), data, name="till-1").code == "NameNotAllowed"


def test_a_damaged_token_never_leaves_the_machine(hub: FakeHub, data: str) -> None:
    for token in ("", "junk", hub.token()[:-15], hub.token().replace("chub1", "chub9")):
        assert refused(hub.address, token, data).code == "TokenInvalid"
    assert hub.joins == [] and not os.path.exists(data)


@pytest.mark.parametrize(
    "address",
    [
        "",
        ":8444",
        "host:",
        "host:0",
        "host:99999",
        "host:x",
        "[::1",
        "a b:c",
        "[::1]x",
        "a" * 70 + ".x:1",
        "..:1",
    ],
)
def test_an_address_that_cannot_be_is_named(hub: FakeHub, data: str, address: str) -> None:
    assert refused(address, hub.token(), data).code == "AddressInvalid"


def test_addresses_have_a_default_port_and_brackets() -> None:
    assert enroll.parse_address("hub.example.com") == ("hub.example.com", 8444)
    assert enroll.parse_address("10.0.0.1:443") == ("10.0.0.1", 443)
    assert enroll.parse_address("[::1]:443") == ("::1", 443)
    assert enroll.parse_address("[::1]") == ("::1", 8444)


def test_a_name_that_cannot_be_is_refused_at_once(hub: FakeHub, data: str) -> None:
    for name in ("Till", "a/b", "", "a" * 254):
        assert refused(hub.address, hub.token(pool="tills"), data, name=name).code == "NameInvalid"


def test_a_hub_of_another_authority_gets_no_token(
    ca: CertificateAuthority, other_ca: CertificateAuthority, data: str
) -> None:
    with FakeHub(other_ca) as stranger, FakeHub(ca) as ours:
        assert refused(stranger.address, ours.token(), data).code == "OtherAuthority"
        stranger.bundle = [ca.root_pem]  # knows our root, as everybody may, but has no certificate of it
        assert refused(stranger.address, ours.token(), data).code == "OtherAuthority"
        assert stranger.joins == []


@pytest.mark.parametrize("kind", ["node", "user"])
def test_a_node_or_user_posing_as_a_hub_gets_no_token(ca: CertificateAuthority, data: str, kind: str) -> None:
    private = p256.generate(os.urandom(48))
    csr = p256.request_pem(private, "hub." + TD)
    node = ca.issue_node(csr, NodeId(TD, "default", "x", "hub." + TD), time.time()), p256.private_pem(private)
    identity = node if kind == "node" else ca.issue_user("admin", [], TD, time.time())
    with FakeHub(ca, identity) as impostor:
        assert refused(impostor.address, impostor.token(), data).code == "NotAHub"
        assert impostor.joins == []


def test_other_roots_in_the_first_answer_are_not_trusted(
    ca: CertificateAuthority, other_ca: CertificateAuthority, data: str
) -> None:
    with FakeHub(ca, other_ca.issue_hub("hub-0", TD, [], [], time.time())) as hub:
        hub.bundle = [other_ca.root_pem, other_ca.root_pem + ca.root_pem]
        assert refused(hub.address, hub.token(), data).code == "OtherAuthority"
        assert hub.joins == []


@pytest.mark.parametrize("days", [-10, 10])
def test_a_wrong_clock_is_named_as_the_cause(tmp_path: Path, data: str, days: int) -> None:
    hub_now = time.time() + days * 86400
    ca = CertificateAuthority.open(str(tmp_path), now=hub_now)
    with FakeHub(ca, ca.issue_hub("hub-0", TD, [], [], hub_now)) as hub:
        error = refused(hub.address, hub.token(), data)
    assert (error.code, error.retryable) == ("Clock", True)
    assert "set the clock" in error.message


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: {**a, "cert": "junk"},
        lambda a: {**a, "cert": None},
        lambda a: {**a, "node": "../../etc"},
        lambda a: {**a, "node": "till-2"},
        lambda a: {**a, "hub": "hub.evil.example"},
        lambda a: {**a, "trust_domain": "evil.example"},
        lambda a: {**a, "bundle": []},
        lambda a: {**a, "bundle": ["junk"]},
        lambda a: {**a, "bundle": a["bundle"] * 17},
        lambda a: {**a, "edge": "not an address:x"},
        lambda a: {**a, "edge": 7},
        lambda a: {},
    ],
)
def test_a_wrong_answer_installs_nothing(
    hub: FakeHub, data: str, spoil: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    hub.spoil = spoil
    assert refused(hub.address, hub.token(), data).code in (
        "Protocol",
        "KeyMismatch",
        "Damaged",
        "AddressInvalid",
    )
    assert os.listdir(data) == ["identity.new"]


def test_a_certificate_for_another_key_is_not_installed(hub: FakeHub, data: str) -> None:
    other = p256.request_pem(p256.generate(os.urandom(48)), "x")
    cert = hub.ca.issue_node(other, NodeId(TD, "default", "till-1", "till-1"), time.time())
    hub.spoil = lambda answer: {**answer, "cert": cert}
    assert refused(hub.address, hub.token(), data).code == "KeyMismatch"


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        wire.message(wire.BUNDLE, b"junk"),
        wire.message(wire.BUNDLE, b"[]"),
        wire.message(wire.BUNDLE, b'{"roots": "x"}'),
        wire.message(wire.BUNDLE, b'{"roots": [1]}'),
        wire.message(wire.BUNDLE, json.dumps({"roots": ["-----BEGIN CERTIFICATE-----\nAAA"]}).encode()),
        wire.message(wire.WELCOME, b"{}"),
        wire.message(99, b"{}"),
        wire.frame(wire.BUNDLE, b"")[:4] + b"\x7f\xff\xff\xff",
        wire.message(wire.BUNDLE, b" " * 200000),
    ],
)
def test_a_peer_that_answers_junk_is_a_protocol_error(hub: FakeHub, data: str, raw: bytes) -> None:
    hub.raw = raw
    assert refused(hub.address, hub.token(), data).code == "Protocol"


def test_nobody_listening_is_unreachable(data: str, hub: FakeHub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    error = refused(address, hub.token(), data)
    assert (error.code, error.retryable) == ("Unreachable", True) and address in error.message


def test_a_name_that_does_not_resolve_is_unreachable(data: str, hub: FakeHub) -> None:
    assert refused("no-such-host.invalid:8444", hub.token(), data).code == "Unreachable"


def test_a_silent_peer_is_given_up_at_the_deadline(data: str, hub: FakeHub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts in its backlog and says nothing
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        error = refused(address, hub.token(), data, timeout_s=0.2)
    assert (error.code, error.retryable) == ("Timeout", True)


def test_a_peer_that_does_not_speak_tls_is_named(data: str, hub: FakeHub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def talk() -> None:
            connection, _ = plain.accept()
            with connection, contextlib.suppress(ConnectionError):
                connection.sendall(b"220 mail.example.com ESMTP\r\n" * 10)
                connection.settimeout(5)
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=talk)
        thread.start()
        error = refused(f"127.0.0.1:{plain.getsockname()[1]}", hub.token(), data)
        thread.join(5)
    assert error.code == "Protocol" and "edge port" in error.message


def test_a_damaged_pending_key_is_named_with_a_remedy(hub: FakeHub, data: str) -> None:
    os.makedirs(data)
    Path(data, "identity.new").write_text("junk")
    error = refused(hub.address, hub.token(), data)
    assert error.code == "Damaged" and "new token" in error.message


# The identity on disk


@pytest.fixture
def joined(hub: FakeHub, data: str) -> str:
    join(hub.address, hub.token(), data)
    return data


def test_a_machine_that_has_not_joined_is_told_how(data: str) -> None:
    for call in (enroll.load_facts, enroll.client_context, enroll.hub_name):
        with pytest.raises(EnrollError, match="edgelite join") as e:
            call(data)
        assert e.value.code == "NotJoined"


@pytest.mark.parametrize("kind", ["node", "user"])
def test_the_agent_believes_no_node_that_poses_as_a_hub(
    ca: CertificateAuthority, joined: str, kind: str
) -> None:
    private = p256.generate(os.urandom(48))
    node = NodeId(TD, "default", "x", "hub." + TD)
    chain = ca.issue_node(p256.request_pem(private, "hub." + TD), node, time.time())
    identity = (
        (chain, p256.private_pem(private)) if kind == "node" else ca.issue_user("admin", [], TD, time.time())
    )
    with FakeHub(ca, identity) as impostor:
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(impostor, joined)
        nameless = enroll.client_context(joined)
        nameless.check_hostname = False  # usage alone must do, too
        raw = socket.create_connection(enroll.parse_address(impostor.address), timeout=5)
        with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
            nameless.wrap_socket(raw)


def test_the_agents_context_demands_certificate_name_and_tls_12(joined: str) -> None:
    context = enroll.client_context(joined)
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
    assert not context.hostname_checks_common_name
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("name", ["identity.pem", "bundle.pem", "node.json"])
@pytest.mark.parametrize("content", [b"", b"junk", b"\xff\xfe", b"{}", b"x" * 300000])
def test_damaged_files_are_named(joined: str, name: str, content: bytes) -> None:
    Path(joined, name).write_bytes(content)
    with pytest.raises(EnrollError) as e:
        enroll.client_context(joined)
        enroll.load_facts(joined)
    assert e.value.code == "Damaged" and name.split(".")[0] in e.value.message


def test_renewal_is_due_around_half_life_spread_by_jitter(joined: str) -> None:
    leaf = credentials.certificate(joined)
    life_s = leaf.not_after - leaf.not_before
    half = leaf.not_before + life_s / 2
    assert enroll.renewal_time(joined, 0.0) == pytest.approx(half - 0.05 * life_s)
    assert enroll.renewal_time(joined, 1.0) == pytest.approx(half + 0.05 * life_s)
    assert not enroll.renewal_due(joined, half - 1, 0.5)
    assert enroll.renewal_due(joined, half + 1, 0.5)
    assert enroll.renewal_due(joined, leaf.not_after + 1, 0.99)


def test_a_renewal_without_an_answer_is_tried_again_sooner_the_less_time_is_left(joined: str) -> None:
    ends = credentials.certificate(joined).not_after
    waits = [credentials.renewal_retry_s(joined, ends - left) for left in (7 * 86400, 600, 5, -100)]
    assert waits == [3600.0, 60.0, 1.0, 1.0]


def renewed(hub: FakeHub, csr: str, node: str = "till-1") -> str:
    return hub.ca.issue_node(csr, NodeId(TD, "default", node, node), time.time())


def test_a_renewal_brings_a_new_key_in_one_step(hub: FakeHub, joined: str) -> None:
    old = credentials.certificate(joined).point
    csr = enroll.begin_renewal(joined)
    assert enroll.begin_renewal(joined) == csr  # however often the answer is lost
    assert credentials.certificate(joined).point == old
    enroll.install_renewed(joined, renewed(hub, csr), [hub.ca.root_pem])
    assert credentials.certificate(joined).point != old
    assert sorted(os.listdir(joined)) == ["bundle.pem", "identity.pem", "node.json"]
    with connect(hub, joined) as channel:
        assert channel.getpeercert()
    assert enroll.begin_renewal(joined) != csr


def test_a_power_cut_during_a_renewal_leaves_a_working_identity(
    hub: FakeHub, joined: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    csr = enroll.begin_renewal(joined)
    monkeypatch.setattr(os, "unlink", _cut)
    with pytest.raises(KeyboardInterrupt):
        enroll.install_renewed(joined, renewed(hub, csr), [hub.ca.root_pem])
    monkeypatch.undo()
    enroll.client_context(joined)
    again = enroll.begin_renewal(joined)
    assert again != csr  # the key in use is not taken for the next one
    monkeypatch.setattr(os, "replace", _cut)
    with pytest.raises(KeyboardInterrupt):
        enroll.install_renewed(joined, renewed(hub, again), [hub.ca.root_pem])
    monkeypatch.undo()
    enroll.client_context(joined)
    assert enroll.begin_renewal(joined) == again


def _cut(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("case", ["another key", "another node", "junk", "no bundle", "junk bundle"])
def test_a_wrong_renewal_changes_nothing(hub: FakeHub, joined: str, case: str) -> None:
    csr = enroll.begin_renewal(joined)
    before = {name: Path(joined, name).read_bytes() for name in os.listdir(joined)}
    cert, bundle = renewed(hub, csr), [hub.ca.root_pem]
    if case == "another key":
        cert = renewed(hub, p256.request_pem(5, "x"))
    elif case == "another node":
        cert = renewed(hub, csr, "till-2")
    elif case == "junk":
        cert = "junk"
    else:
        bundle = [] if case == "no bundle" else ["junk"]
    with pytest.raises(EnrollError):
        enroll.install_renewed(joined, cert, bundle)
    assert {name: Path(joined, name).read_bytes() for name in os.listdir(joined)} == before


def test_an_answer_without_a_renewal_under_way_is_refused(hub: FakeHub, joined: str) -> None:
    with pytest.raises(EnrollError) as e:
        enroll.install_renewed(joined, "junk", [hub.ca.root_pem])
    assert e.value.code == "Damaged"


def test_a_pushed_bundle_replaces_the_roots(
    hub: FakeHub, joined: str, ca: CertificateAuthority, other_ca: CertificateAuthority
) -> None:
    enroll.install_bundle(joined, [ca.root_pem, other_ca.root_pem])
    with FakeHub(other_ca) as rotated, connect(rotated, joined) as channel:
        assert channel.getpeercert()
    with pytest.raises(EnrollError):
        enroll.install_bundle(joined, ["junk"])
    assert len(der.unpem("CERTIFICATE", Path(joined, "bundle.pem").read_text())) == 2


def test_the_agents_side_loads_nothing_heavy() -> None:
    code = (
        "import sys, edgelite.enroll; print([m for m in ('asyncio', 'http.client', 'argparse', 'subprocess', 'ctypes',"
        " 'typing', 'cryptography') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_old_tls_12_peers_join_too(hub: FakeHub, data: str) -> None:
    hub.context.maximum_version = ssl.TLSVersion.TLSv1_2
    join(hub.address, hub.token(), data)
    with connect(hub, data) as channel:
        assert channel.version() == "TLSv1.2"


def test_the_two_ends_offer_the_same_ciphers() -> None:
    assert credentials.CIPHERS_TLS12 == tls.CIPHERS_TLS12
