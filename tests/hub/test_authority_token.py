"""Replicas whose fleet's authority has its key in a PKCS #11 token (SoftHSM): what the store says, and what each replica needs."""

import time
from pathlib import Path

import pytest
from cryptography import x509

from hub.authority import OwnAuthority, SharedAuthority
from hub.store.memory import MemoryStore
from security import pkcs11
from security.ca import CAError
from security.keys import ED25519, P256, KeySource
from security.rotation import Activate, Remove, RotationError
from tests.security.softhsm import Token

TD = "cloudhub.local"
SECRET = b"s" * 32


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Token:
    return Token(tmp_path_factory.mktemp("token"))


def issues(ca: object, root_pem: str) -> None:
    chain = ca.issue_hub("hub-0", TD, [], [], time.time())[0]  # type: ignore[attr-defined]
    root = x509.load_pem_x509_certificate(root_pem.encode())
    x509.load_pem_x509_certificate(chain.encode()).verify_directly_issued_by(root)


async def test_replicas_share_a_root_whose_key_each_of_them_reaches_in_its_token(token: Token) -> None:
    store, now = MemoryStore(slots=16), time.time()
    uri = token.uri("shared")
    pkcs11.create_key(uri, P256)
    first = SharedAuthority(store, "/c/", lambda: SECRET, TD, KeySource(uri=uri))
    second = SharedAuthority(store, "/c/", lambda: SECRET, TD, KeySource(uri=uri))
    made, _ = await first.read(now)
    taken, _ = await second.read(now)
    assert taken.active.root_pem == made.active.root_pem
    issues(taken.active, made.active.root_pem)
    held = await store.get("/c/ca")
    assert held is not None and b"pkcs11" not in held.value and token.label.encode() not in held.value
    with pytest.raises(CAError, match="give this replica --ca-key with the token's module"):
        await SharedAuthority(store, "/c/", lambda: SECRET, TD).read(now)


async def test_a_fleet_moves_from_a_key_in_memory_to_a_token_and_on_to_another(
    token: Token, tmp_path: Path
) -> None:
    now = time.time()
    await OwnAuthority(str(tmp_path), TD).read(now)
    for name, algorithm in (("move-1", P256), ("move-2", ED25519)):
        uri = token.uri(name)
        pkcs11.create_key(uri, algorithm)
        authority = OwnAuthority(str(tmp_path), TD, KeySource(uri=uri))
        start, revision = await authority.read(now)
        begun = start.begin(now, source=authority.source)
        assert await authority.swap(begun, revision, None)
        both, revision = await authority.read(now)
        new = both.held[-1]
        assert new.ca.key_algorithm == algorithm and name in new.ca.key_reference
        issues(new.ca, new.ca.root_pem)
        active = both.after(Activate(new.root.id), now, 60.0)
        left = active.after(Remove(both.held[0].root.id), now, 60.0)
        assert await authority.swap(left, revision, None)
        after, _ = await authority.read(now)
        assert after.active.key_reference == new.ca.key_reference
        with pytest.raises(RotationError, match="make another with `cloudhub key create`"):
            after.begin(now, source=authority.source)
    assert "PRIVATE KEY" not in (tmp_path / "authorities.json").read_text()
