"""edgelite's keys, requests and DER reader against `cryptography` and OpenSSL."""

import datetime
import hashlib
import random
import ssl
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from edgelite import der, p256
from security import identity
from security.ca import CertificateAuthority
from security.requests import request_key_sha256

SEED = 20261121


def test_keys_and_signatures_are_those_that_cryptography_makes_and_accepts() -> None:
    entropy = random.Random(SEED)
    for _ in range(20):
        private = p256.generate(entropy.randbytes(48))
        message = entropy.randbytes(entropy.randrange(200))
        theirs = ec.derive_private_key(private, ec.SECP256R1())
        point = theirs.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        assert p256.public_point(private) == point
        signature = p256.signature_der(private, message)
        theirs.public_key().verify(signature, message, ec.ECDSA(hashes.SHA256()))
        deterministic = theirs.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        assert utils.decode_dss_signature(deterministic) == p256.sign(private, message)


def test_the_private_pem_and_key_info_are_read_by_cryptography() -> None:
    private = p256.generate(random.Random(SEED).randbytes(48))
    key = serialization.load_pem_private_key(p256.private_pem(private).encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.private_numbers().private_value == private
    assert p256.public_key_info(private) == key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.mark.parametrize(
    ("asked", "got"),
    [("till-1", "till-1"), ("x" * 300, "x" * 64), ("k\u00e4se\n", "kse"), ("\u00e4", "node"), ("", "node")],
)
def test_a_request_is_well_formed_and_signed_whatever_the_name(asked: str, got: str) -> None:
    private = p256.generate(bytes(range(48)))
    csr = x509.load_pem_x509_csr(p256.request_pem(private, asked).encode())
    assert csr.is_signature_valid
    assert csr.subject.rfc4514_string() == f"CN={got}"


def test_signing_takes_well_under_a_tenth_of_a_second() -> None:
    private = p256.generate(bytes(range(48)))
    best = min(_cpu_s(lambda: p256.sign(private, b"x")) for _ in range(5))
    assert best < 0.1


def _cpu_s(call) -> float:  # type: ignore[no-untyped-def]
    start = time.process_time()
    call()
    return time.process_time() - start


def test_certificate_facts_are_those_that_cryptography_and_openssl_read(tmp_path) -> None:  # type: ignore[no-untyped-def]
    authority = CertificateAuthority.open(str(tmp_path))
    node = identity.NodeId(authority.trust_domain, "default", "shop-7", "till-1")
    private = p256.generate(bytes(range(48)))
    chain = authority.issue_node(p256.request_pem(private, "till-1"), node, time.time())
    facts = der.certificates(chain)[0]
    theirs = x509.load_pem_x509_certificate(chain.encode())
    assert facts.not_before == theirs.not_valid_before_utc.timestamp()
    assert facts.not_after == theirs.not_valid_after_utc.timestamp()
    assert facts.uris == [node.uri()]
    assert facts.point == p256.public_point(private)
    assert der.unpem("CERTIFICATE", chain) == [ssl.PEM_cert_to_DER_cert(chain)]


@pytest.mark.parametrize(
    "moment",
    [
        "1950-01-01",
        "1970-01-01",
        "2000-02-29",
        "2024-12-31",
        "2028-02-29",
        "2049-12-31",
        "2050-01-01",
        "2100-03-01",
    ],
)
def test_validity_is_read_right_on_both_sides_of_leap_days_and_2050(moment: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    start = datetime.datetime.fromisoformat(moment + "T12:34:56+00:00")
    end = start + datetime.timedelta(days=400, seconds=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    facts = der.Certificate(certificate.public_bytes(serialization.Encoding.DER))
    assert (facts.not_before, facts.not_after) == (start.timestamp(), end.timestamp())
    assert facts.uris == []


def test_every_cut_and_many_flips_of_a_certificate_give_a_clear_error_or_facts(tmp_path) -> None:  # type: ignore[no-untyped-def]
    authority = CertificateAuthority.open(str(tmp_path))
    whole = ssl.PEM_cert_to_DER_cert(authority.root_pem)
    for size in range(len(whole)):
        with pytest.raises(der.DerError):
            der.Certificate(whole[:size])
    entropy = random.Random(SEED)
    for _ in range(2000):
        bad = bytearray(whole)
        bad[entropy.randrange(len(bad))] ^= 1 << entropy.randrange(8)
        try:
            der.Certificate(bytes(bad))
        except der.DerError:
            pass


def test_hub_and_agent_hash_a_key_alike() -> None:
    private = p256.generate(bytes(range(48)))
    ours = hashlib.sha256(p256.public_key_info(private)).hexdigest()
    assert request_key_sha256(p256.request_pem(private, "x")) == ours
