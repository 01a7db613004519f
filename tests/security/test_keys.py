"""Keys of every algorithm: what is made, kept, loaded and accepted, and what is refused with its reason."""

import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa

from security import keys
from security.ca import CAError, CertificateAuthority
from security.identity import NodeId
from security.keys import ALGORITHMS, ED25519, P256, P384, RSA2048, KeyRefused, KeySource
from security.requests import BadRequest, request_key, request_key_sha256
from security.sealed import seal, unseal

TD = "cloudhub.local"
NODE = NodeId(TD, "default", "shop-7", "till-1")


def request(private, hashed: hashes.HashAlgorithm | None) -> str:  # type: ignore[no-untyped-def]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(private, hashed).public_bytes(serialization.Encoding.PEM).decode()


def loaded(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_authority_of_each_algorithm_issues_and_comes_back_from_its_record(algorithm: str) -> None:
    now = time.time()
    ca = CertificateAuthority.create(TD, now, KeySource(algorithm))
    assert ca.key_algorithm == algorithm
    again = unseal(seal(ca, b"s" * 32), b"s" * 32, TD, now)
    key = keys.generate(algorithm)
    asked = request(key.private, key.hash)
    cert = loaded(again.issue_node(asked, NODE, now))
    cert.verify_directly_issued_by(loaded(ca.root_pem))
    assert cert.public_key() == key.public == request_key(asked)
    chain, pem = ca.issue_hub("hub-0", TD, [], [], now, algorithm)
    assert keys.from_pem(pem).algorithm == algorithm
    assert loaded(chain).public_key() == keys.from_pem(pem).public


def test_signatures_of_certificates_are_as_strong_as_the_key() -> None:
    used = {
        a: loaded(CertificateAuthority.create(TD, 1e9, KeySource(a)).root_pem) for a in (P256, P384, ED25519)
    }
    names = {
        a: c.signature_hash_algorithm.name if c.signature_hash_algorithm else None for a, c in used.items()
    }
    assert names == {P256: "sha256", P384: "sha384", ED25519: None}


@pytest.mark.parametrize(
    ("private", "hashed", "says"),
    [
        (lambda: rsa.generate_private_key(65537, 1024), hashes.SHA256(), "an RSA key of 1024 bits; 2048 and 3072"),
        (lambda: rsa.generate_private_key(3, 2048), hashes.SHA256(), "the exponent 3"),
        (lambda: ec.generate_private_key(ec.SECP521R1()), hashes.SHA256(), "on the curve secp521r1; P-256 and P-384"),
        (lambda: ec.generate_private_key(ec.SECP256K1()), hashes.SHA256(), "on the curve secp256k1"),
        (lambda: ed448.Ed448PrivateKey.generate(), None, "of the kind .*Ed448"),
        (lambda: dsa.generate_private_key(2048), hashes.SHA256(), "of the kind .*DSA"),
        (lambda: ec.generate_private_key(ec.SECP256R1()), hashes.SHA224(), "not signed with SHA-256, SHA-384"),
    ],
    ids=["rsa-1024", "exponent", "p521", "secp256k1", "ed448", "dsa", "sha224"],
)  # fmt: skip
def test_requests_for_other_keys_and_strengths_are_refused_with_the_reason(
    private, hashed, says: str
) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadRequest, match=says):
        request_key_sha256(request(private(), hashed))


@pytest.mark.parametrize("algorithm", [P256, P384, ED25519, RSA2048])
def test_a_request_proves_that_its_sender_has_the_key(algorithm: str) -> None:
    """The request of another's public key, signed with a key of one's own, is refused: for each algorithm."""
    mine, theirs = keys.generate(algorithm), keys.generate(algorithm)
    der = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    asked = x509.load_pem_x509_csr(request(mine.private, mine.hash).encode())
    raw = asked.public_bytes(serialization.Encoding.DER)
    stolen = raw.replace(mine.public.public_bytes(*der), theirs.public.public_bytes(*der))
    assert stolen != raw and len(stolen) == len(raw)
    forged = x509.load_der_x509_csr(stolen)
    assert forged.public_key() == theirs.public
    with pytest.raises(BadRequest, match="signature is wrong"):
        request_key(forged.public_bytes(serialization.Encoding.PEM).decode())


def test_what_is_no_key_is_refused_without_being_quoted() -> None:
    secret = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"
    with pytest.raises(KeyRefused) as damaged:
        keys.from_pem(secret)
    assert "c2VjcmV0" not in str(damaged.value)
    with pytest.raises(KeyRefused, match="there are ecdsa-p256"):
        keys.generate("rsa-1024")
    weak = ed448.Ed448PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(KeyRefused, match="are supported"):
        keys.from_pem(weak.decode())


def test_a_replica_that_is_told_of_no_token_says_what_it_lacks_and_one_that_only_moves_needs_none() -> None:
    now = time.time()
    ca = CertificateAuthority.create(TD, now)
    record = b"pkcs11:token=fleet;object=ca"
    with pytest.raises(CAError, match="--ca-key with the token's module"):
        CertificateAuthority.load(ca.root_pem.encode(), record, TD, now)
    moved = CertificateAuthority.load(ca.root_pem.encode(), record, TD, now, source=keys.CLOSED)
    assert moved.key_record() == record.decode()
    with pytest.raises(KeyRefused, match="was not opened here"):
        moved.issue_hub("hub-0", TD, [], [], now)
    # A fleet whose key is here may be told of a token: the next root's key comes from it.
    told = KeySource(uri="pkcs11:token=fleet;object=ca?module-path=/x&pin-source=/y")
    held = CertificateAuthority.load(ca.root_pem.encode(), ca.key_record().encode(), TD, now, source=told)
    assert held.key_reference == ""


def test_no_key_is_shown_by_repr() -> None:
    assert repr(keys.generate(P256)) == "SigningKey(ecdsa-p256, in memory)"
    assert isinstance(keys.generate(ED25519).private, ed25519.Ed25519PrivateKey)
