"""The embedded authority: what it makes, what it refuses, what it leaves on the disk."""

import os
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgelite import p256
from security import ca as ca_module
from security.ca import CAError, CertificateAuthority
from security.errors import SecurityError
from security.identity import IdentityError, NodeId
from security.requests import BadRequest, request_key_sha256

NOW = 1_800_000_000.0
NODE = NodeId("cloudhub.local", "default", "shop-7", "till-1")
PRIVATE = p256.generate(bytes(range(48)))
CSR = p256.request_pem(PRIVATE, "till-1")


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.open(str(tmp_path), now=NOW)


def leaf(chain: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(chain.encode())


def extension(certificate: x509.Certificate, kind):  # type: ignore[no-untyped-def]
    return certificate.extensions.get_extension_for_class(kind)


def csr(key, name: x509.Name | None = None, *extensions: x509.ExtensionType) -> str:  # type: ignore[no-untyped-def]
    builder = x509.CertificateSigningRequestBuilder().subject_name(name or x509.Name([]))
    for one in extensions:
        builder = builder.add_extension(one, critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


# The authority itself


def test_an_authority_is_made_once_and_found_again(tmp_path: Path) -> None:
    first = CertificateAuthority.open(str(tmp_path), now=NOW)
    again = CertificateAuthority.open(str(tmp_path), now=NOW + 86400)
    assert (first.root_pem, first.root_sha256) == (again.root_pem, again.root_sha256)
    assert sorted(os.listdir(tmp_path)) == ["ca.crt", "ca.key"]
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o600


def test_the_root_may_sign_certificates_and_no_other_authorities(ca: CertificateAuthority) -> None:
    root = leaf(ca.root_pem)
    constraints = extension(root, x509.BasicConstraints)
    usage = extension(root, x509.KeyUsage)
    assert constraints.critical and constraints.value.ca and constraints.value.path_length == 0
    assert (
        usage.critical
        and usage.value.key_cert_sign
        and usage.value.crl_sign
        and not usage.value.digital_signature
    )
    assert ca.not_after == NOW + 5 * 365 * 86400
    assert ca.root_sha256 == root.fingerprint(hashes.SHA256())


@pytest.mark.parametrize("missing", ["ca.crt", "ca.key"])
def test_half_an_authority_is_an_error_with_a_remedy(tmp_path: Path, missing: str) -> None:
    CertificateAuthority.open(str(tmp_path), now=NOW)
    (tmp_path / missing).unlink()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(CAError, match=r"restore .* from a backup"):
        CertificateAuthority.open(str(tmp_path), now=NOW)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("name", ["ca.crt", "ca.key"])
@pytest.mark.parametrize("size", [0, 50, 150])
def test_a_damaged_authority_is_an_error_with_a_remedy(tmp_path: Path, name: str, size: int) -> None:
    CertificateAuthority.open(str(tmp_path), now=NOW)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:size])
    with pytest.raises(CAError, match="restore both"):
        CertificateAuthority.open(str(tmp_path), now=NOW)


def test_key_and_certificate_of_two_authorities_do_not_mix(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        CertificateAuthority.open(str(tmp_path / name), now=NOW)
    (tmp_path / "a/ca.key").write_bytes((tmp_path / "b/ca.key").read_bytes())
    with pytest.raises(CAError, match="is not the key of"):
        CertificateAuthority.open(str(tmp_path / "a"), now=NOW)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    CertificateAuthority.open(str(tmp_path), now=NOW)
    (tmp_path / "ca.key").chmod(0o640)
    with pytest.raises(CAError, match="chmod 600"):
        CertificateAuthority.open(str(tmp_path), now=NOW)


def test_an_authority_serves_its_own_trust_domain_only(tmp_path: Path) -> None:
    ca = CertificateAuthority.open(str(tmp_path), now=NOW)
    with pytest.raises(CAError, match="configured for spiffe://other"):
        CertificateAuthority.open(str(tmp_path), "other.example", now=NOW)
    with pytest.raises(CAError):
        ca.issue_hub("hub-0", "other.example", [], [], NOW)
    with pytest.raises(CAError):
        ca.issue_node(CSR, NodeId("other.example", "default", "a", "a"), NOW)
    with pytest.raises(CAError):
        ca.issue_user("admin", [], "other.example", NOW)


def test_an_ended_authority_says_so(tmp_path: Path) -> None:
    ca = CertificateAuthority.open(str(tmp_path), now=NOW)
    with pytest.raises(CAError, match="ended on"):
        CertificateAuthority.open(str(tmp_path), now=ca.not_after)
    with pytest.raises(CAError, match="has ended"):
        ca.issue_node(CSR, NODE, ca.not_after)


def test_a_crash_while_writing_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ca_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        CertificateAuthority.open(str(tmp_path), now=NOW)
    monkeypatch.undo()
    assert not (tmp_path / "ca.key").exists() and not (tmp_path / "ca.crt").exists()
    assert CertificateAuthority.open(str(tmp_path), now=NOW).root_pem


# What it issues


def test_a_node_certificate_names_the_node_by_uri_and_serves_clients_only(ca: CertificateAuthority) -> None:
    cert = leaf(ca.issue_node(CSR, NODE, NOW))
    assert list(extension(cert, x509.SubjectAlternativeName).value) == [
        x509.UniformResourceIdentifier(NODE.uri())
    ]
    assert list(extension(cert, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert extension(cert, x509.BasicConstraints).value.ca is False
    assert extension(cert, x509.BasicConstraints).critical
    usage = extension(cert, x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature
    assert not usage.value.key_cert_sign and not usage.value.key_agreement
    assert cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME) == []
    assert cert.not_valid_before_utc.timestamp() == NOW - 300
    assert cert.not_valid_after_utc.timestamp() == NOW + 14 * 86400
    cert.verify_directly_issued_by(leaf(ca.root_pem))


def test_nothing_but_the_key_is_taken_from_a_request(ca: CertificateAuthority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hub.cloudhub.local")])
    asked = csr(
        key,
        name,
        x509.SubjectAlternativeName(
            [
                x509.DNSName("hub.cloudhub.local"),
                x509.UniformResourceIdentifier("spiffe://cloudhub.local/hub/x"),
            ]
        ),
        x509.BasicConstraints(ca=True, path_length=None),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
    )
    cert = leaf(ca.issue_node(asked, NODE, NOW))
    assert list(extension(cert, x509.SubjectAlternativeName).value) == [
        x509.UniformResourceIdentifier(NODE.uri())
    ]
    assert list(extension(cert, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert extension(cert, x509.BasicConstraints).value.ca is False
    assert "hub" not in cert.subject.rfc4514_string()
    assert cert.public_key() == key.public_key()


def test_a_hub_certificate_carries_its_names_and_both_usages(ca: CertificateAuthority) -> None:
    chain, key = ca.issue_hub(
        "hub-0", "cloudhub.local", ["hub.example.com", "*.edge.example.com"], ["10.0.0.1", "::1"], NOW
    )
    cert = leaf(chain)
    names = extension(cert, x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [
        "hub.cloudhub.local",
        "hub.example.com",
        "*.edge.example.com",
    ]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://cloudhub.local/hub/hub-0"]
    usages = list(extension(cert, x509.ExtendedKeyUsage).value)
    assert usages == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    assert cert.not_valid_after_utc.timestamp() == NOW + 86400
    loaded = serialization.load_pem_private_key(key.encode(), None)
    assert loaded.public_key() == cert.public_key()


def test_repeated_names_appear_once(ca: CertificateAuthority) -> None:
    names = ["hub.cloudhub.local", "a.example", "a.example"]
    cert = leaf(ca.issue_hub("hub-0", "cloudhub.local", names, ["127.0.0.1", "127.0.0.1"], NOW)[0])
    assert len(list(extension(cert, x509.SubjectAlternativeName).value)) == 4


def test_a_user_certificate_names_user_and_groups_as_kubernetes_reads_them(ca: CertificateAuthority) -> None:
    cert = leaf(ca.issue_user("admin", ["system:masters", "ops"], "cloudhub.local", NOW)[0])
    assert [a.value for a in cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["admin"]
    assert [a.value for a in cert.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == [
        "system:masters",
        "ops",
    ]
    assert list(extension(cert, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    names = extension(cert, x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://cloudhub.local/user/admin"]


def test_no_certificate_outlives_the_authority(ca: CertificateAuthority) -> None:
    late = ca.not_after - 3600
    chains = [
        ca.issue_node(CSR, NODE, late),
        ca.issue_hub("hub-0", "cloudhub.local", [], [], late)[0],
        ca.issue_user("admin", [], "cloudhub.local", late)[0],
    ]
    assert {leaf(chain).not_valid_after_utc.timestamp() for chain in chains} == {ca.not_after}
    assert ca.ending(NOW) is None
    assert "no certificate lasts longer" in (ca.ending(late) or "")


def test_serial_numbers_differ(ca: CertificateAuthority) -> None:
    serials = {leaf(ca.issue_node(CSR, NODE, NOW)).serial_number for _ in range(5)}
    assert len(serials) == 5


def tampered(request: str) -> str:
    der = bytearray(ssl.PEM_cert_to_DER_cert(request.replace("CERTIFICATE REQUEST", "CERTIFICATE")))
    at = der.index(b"till-1")
    der[at] ^= 1
    return ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "junk",
        CSR[:200],
        CSR.replace("CERTIFICATE REQUEST", "CERTIFICATE"),
        "x" * 8193,
        tampered(CSR),
        "-----BEGIN CERTIFICATE REQUEST-----\n\u00e9\n-----END CERTIFICATE REQUEST-----",
        None,
    ],
    ids=["empty", "junk", "cut", "label", "long", "tampered", "unicode", "none"],
)
def test_other_requests_are_refused(ca: CertificateAuthority, bad: str) -> None:
    with pytest.raises(BadRequest) as e:
        ca.issue_node(bad, NODE, NOW)
    assert isinstance(e.value, SecurityError)
    with pytest.raises(BadRequest):
        request_key_sha256(bad)


def test_a_request_is_remembered_by_its_key_alone() -> None:
    assert request_key_sha256(CSR) == request_key_sha256(p256.request_pem(PRIVATE, "another-name"))
    assert request_key_sha256(CSR) != request_key_sha256(p256.request_pem(PRIVATE + 1, "till-1"))


def test_names_that_cannot_be_are_refused(ca: CertificateAuthority) -> None:
    for dns, ip in (("a b", "::1"), ("", "::1"), ("*.*.a", "::1"), ("a", "300.1.1.1"), ("a", "")):
        with pytest.raises(CAError, match="--tls-san"):
            ca.issue_hub("hub-0", "cloudhub.local", [dns], [ip], NOW)
    with pytest.raises(CAError, match="at most 64"):
        ca.issue_hub("hub-0", "cloudhub.local", [f"n{i}.example" for i in range(70)], [], NOW)
    for replica in ("", "a/b", "Hub"):
        with pytest.raises(IdentityError):
            ca.issue_hub(replica, "cloudhub.local", [], [], NOW)
    with pytest.raises(IdentityError):
        ca.issue_user("a/b", [], "cloudhub.local", NOW)
    for name, groups in (("hub.cloudhub.local", []), ("a" * 65, []), ("a", [""]), ("a", ["g"] * 33)):
        with pytest.raises(CAError):
            ca.issue_user(name, groups, "cloudhub.local", NOW)
    with pytest.raises(CAError):
        ca.issue_node(CSR, NODE, NOW, ttl_s=0)


def test_a_short_life_is_not_half_over_when_it_begins(ca: CertificateAuthority) -> None:
    cert = leaf(ca.issue_node(CSR, NODE, NOW, ttl_s=20))
    assert cert.not_valid_before_utc.timestamp() == NOW - 1
    assert cert.not_valid_after_utc.timestamp() == NOW + 20
