"""Keys in a PKCS #11 token: a real one (SoftHSM)."""

import time
from pathlib import Path

import pytest
from cryptography import x509

from security import keys, pkcs11
from security.ca import CertificateAuthority
from security.keys import ALGORITHMS, ED25519, P256, P384, RSA2048, KeyRefused, KeySource
from security.sealed import certificate_of, seal, unseal
from tests.security.softhsm import LIBRARY, PIN, Token

TD = "cloudhub.local"


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Token:
    return Token(tmp_path_factory.mktemp("token"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_authority_signs_with_a_key_that_never_leaves_its_token(token: Token, algorithm: str) -> None:
    now = time.time()
    uri = token.uri(f"ca-{algorithm}")
    made = pkcs11.create_key(uri, algorithm)
    assert made.algorithm == algorithm
    ca = CertificateAuthority.create(TD, now, KeySource(uri=uri))
    root = x509.load_pem_x509_certificate(ca.root_pem.encode())
    x509.load_pem_x509_certificate(
        ca.issue_hub("hub-0", TD, [], [], now)[0].encode()
    ).verify_directly_issued_by(root)
    # What lies in the store says that the key is in a token, and nothing of how a replica reaches it.
    assert ca.key_record() == f"pkcs11:token={token.label};object=ca-{algorithm}"
    sealed = seal(ca, b"s" * 32)
    assert certificate_of(sealed) == ca.root_pem
    again = unseal(sealed, b"s" * 32, TD, now, KeySource(uri=uri))
    assert again.key_algorithm == algorithm
    with pytest.raises(KeyRefused, match="does not leave"):
        made.pem()
    with pytest.raises(KeyRefused, match="does not leave it"):
        made.signer.private_bytes(None, None, None)  # type: ignore[arg-type]


def test_a_session_that_the_token_ended_is_opened_again(token: Token) -> None:
    uri = token.uri("again")
    key = pkcs11.create_key(uri, P256)
    ca = CertificateAuthority.create(TD, time.time(), KeySource(uri=uri))
    import pkcs11 as library

    library.lib(LIBRARY).reinitialize()  # every session and login of this process is gone
    root = x509.load_pem_x509_certificate(ca.root_pem.encode())
    cert = x509.load_pem_x509_certificate(ca.issue_hub("h", TD, [], [], time.time())[0].encode())
    cert.verify_directly_issued_by(root)
    assert key.algorithm == P256


def test_two_keys_in_one_token_are_told_apart_and_used_side_by_side(token: Token) -> None:
    uris = {P384: token.uri("old"), ED25519: token.uri("new")}
    held = {a: pkcs11.create_key(uri, a) for a, uri in uris.items()}
    both = {a: CertificateAuthority.create(TD, time.time(), KeySource(uri=uri)) for a, uri in uris.items()}
    for algorithm, ca in [*both.items()] * 2:
        assert ca.key_algorithm == algorithm
        root = x509.load_pem_x509_certificate(ca.root_pem.encode())
        cert = x509.load_pem_x509_certificate(ca.issue_hub("h", TD, [], [], time.time())[0].encode())
        cert.verify_directly_issued_by(root)
    # A record names its own key, whichever one this replica's URI names.
    source = KeySource(uri=uris[ED25519])
    assert source.load(held[P384].record()).algorithm == P384
    with pytest.raises(KeyRefused, match="exists and is left alone"):
        pkcs11.create_key(uris[P384], P384)


def test_what_is_not_there_is_said(token: Token, tmp_path: Path) -> None:
    with pytest.raises(KeyRefused, match=r"no public keys .* Make it with: cloudhub key create"):
        pkcs11.open_key(token.uri("absent"))
    pkcs11.create_key(token.uri("there"), RSA2048)
    good = token.uri("there")
    with pytest.raises(KeyRefused, match="NoSuchToken"):
        pkcs11.open_key(good.replace(token.label, "nobody"))
    with pytest.raises(KeyRefused, match=r"library /nowhere\.so cannot be loaded"):
        pkcs11.open_key(good.replace(LIBRARY, "/nowhere.so"))
    pin = tmp_path / "pin"
    other = good.replace(str(token.pin), str(pin))
    with pytest.raises(KeyRefused, match="cannot read the PIN file"):
        pkcs11.open_key(other)
    pin.write_text(PIN)
    pin.chmod(0o644)
    with pytest.raises(KeyRefused, match=r"open to everybody .*chmod 600"):
        pkcs11.open_key(other)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("pkcs11:token=a;object=b?pin-value=1234", "write the PIN into a file"),
        ("pkcs11:token=a;pin-value=1234", "write the PIN into a file"),
        ("pkcs11:token=a;token=b", "token is twice"),
        ("pkcs11:token=a;object=b?module-name=softhsm", "'module-name' in a key's URI"),
        ("pkcs11:slot-id=3;object=b", "name the token by token or serial"),
        ("pkcs11:token=a;object=b;type=cert", "only private keys sign"),
        ("pkcs11:token=a;object=b?pin-source=|cat", "a file is supported"),
        ("pkcs11:token=a;object=b?pin-source=https://x", "a file is supported"),
        ("pkcs11:token=%ff", "no UTF-8"),
        ("file:/etc/key", "begins with pkcs11:"),
        ("pkcs11:" + "a" * 2048, "at most 2048"),
    ],
)
def test_a_uri_that_is_not_supported_is_refused_by_name(uri: str, says: str) -> None:
    with pytest.raises(KeyRefused, match=says) as refused:
        pkcs11.parse(uri)
    assert "1234" not in str(refused.value)


def test_a_uri_of_rfc_7512_is_read() -> None:
    uri = pkcs11.parse(
        "pkcs11:token=My%20token;id=%01%ab;object=ca%3Bx;type=private?pin-source=file:///etc/p&module-path=/l"
    )
    assert (uri.token, uri.id, uri.object) == ("My token", b"\x01\xab", "ca;x")
    assert (uri.module, uri.pin_source) == ("/l", "/etc/p")
    assert pkcs11.parse(uri.reference).object == "ca;x"
    assert uri.reference == "pkcs11:token=My%20token;object=ca%3Bx;id=%01%AB"


def test_without_the_library_the_remedy_is_named(token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(KeyRefused, match=r"pip install 'cloudhub\[pkcs11\]'"):
        keys.KeySource(uri=token.uri("any")).create()
