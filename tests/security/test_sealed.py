"""The authority at rest, sealed under the replicas' key file."""

import os
import stat
from pathlib import Path

import pytest

from security.ca import CAError, CertificateAuthority
from security.sealed import KeyFileError, create_key_file, read_key_file, seal, unseal

NOW = 1_800_000_000.0
SECRET = b"s" * 32


def authority() -> CertificateAuthority:
    return CertificateAuthority.create("example.org", NOW)


def test_an_unsealed_authority_issues_under_the_same_root() -> None:
    made = authority()
    again = unseal(seal(made, SECRET), SECRET, "example.org", NOW)
    assert again.root_sha256 == made.root_sha256
    assert again.key_record() == made.key_record()


def test_sealing_shows_nothing_of_the_key_and_differs_each_time() -> None:
    made = authority()
    one, two = seal(made, SECRET), seal(made, SECRET)
    assert one != two
    body = "".join(made.key_record().splitlines()[1:-1])
    assert body[20:60].encode() not in one
    assert b"PRIVATE" not in one


def test_another_key_file_is_refused_with_the_remedy() -> None:
    with pytest.raises(KeyFileError, match="key file of the others"):
        unseal(seal(authority(), SECRET), b"t" * 32, "example.org", NOW)


def test_a_key_under_another_certificate_is_refused() -> None:
    import msgspec

    from security.sealed import Sealed

    a = msgspec.json.decode(seal(authority(), SECRET), type=Sealed)
    b = msgspec.json.decode(seal(authority(), SECRET), type=Sealed)
    mixed = msgspec.json.encode(Sealed(a.certificate, b.salt, b.nonce, b.key))
    with pytest.raises(KeyFileError):
        unseal(mixed, SECRET, "example.org", NOW)


def test_another_trust_domain_is_refused() -> None:
    with pytest.raises(CAError, match=r"spiffe://other\.example"):
        unseal(seal(authority(), SECRET), SECRET, "other.example", NOW)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"certificate":1}', b"\xff"])
def test_what_is_no_sealed_authority_is_refused(data: bytes) -> None:
    with pytest.raises(KeyFileError):
        unseal(data, SECRET, "example.org", NOW)


def test_a_key_file_is_made_once_and_closed_to_others(tmp_path: Path) -> None:
    path = str(tmp_path / "key")
    create_key_file(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    secret = read_key_file(path)
    assert len(secret) == 64
    with pytest.raises(KeyFileError, match="exists"):
        create_key_file(path)
    assert read_key_file(path) == secret


def test_a_missing_key_file_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cloudhub key create"):
        read_key_file(str(tmp_path / "none"))


def test_a_short_key_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"short\n")
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="5 bytes"):
        read_key_file(str(path))


def test_a_key_file_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"k" * 64)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="open to everybody"):
        read_key_file(str(path))
