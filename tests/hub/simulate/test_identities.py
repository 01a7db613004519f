import stat
import time
from pathlib import Path

import pytest

from edgelite.credentials import verifying_context
from hub.simulate.command import open_authority
from hub.simulate.enrolling import issue_all
from hub.simulate.identities import ENDING_S, IdentityCache, IdentityFileError
from hub.usage import UsageError
from security.ca import NODE_TTL_S, CertificateAuthority

NAMES = ["n-0", "n-1", "n-2"]


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    (tmp_path / "ca").mkdir(mode=0o700)
    return CertificateAuthority.open(str(tmp_path / "ca"))


@pytest.fixture
def cache(tmp_path: Path, authority: CertificateAuthority) -> IdentityCache:
    made = IdentityCache(str(tmp_path / "cache"), authority.trust_domain, authority.root_sha256)
    made.open()
    return made


def test_identities_of_an_authority_are_kept_for_the_next_run_and_readable_to_nobody_else(
    cache: IdentityCache, authority: CertificateAuthority
) -> None:
    told: list[int] = []
    assert cache.missing(NAMES) == NAMES
    issue_all(cache, authority, NAMES, told.append)
    assert told == [1, 2, 3]
    assert cache.missing([*NAMES, "n-3"]) == ["n-3"]
    assert stat.S_IMODE(Path(cache.directory).stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in Path(cache.directory).iterdir()} == {0o600}
    context = verifying_context([cache.roots()])
    for name in NAMES:
        context.load_cert_chain(cache.path(name))
        assert "PRIVATE KEY" not in cache.chain(name)


def test_a_certificate_that_is_about_to_end_counts_as_missing(
    cache: IdentityCache, authority: CertificateAuthority
) -> None:
    issue_all(cache, authority, NAMES, lambda _: None)
    ends = time.time() + NODE_TTL_S
    assert cache.missing(NAMES, ends - ENDING_S - 600) == []
    assert cache.missing(NAMES, ends - ENDING_S + 600) == NAMES


def test_each_fleet_has_a_folder_of_its_own(
    tmp_path: Path, cache: IdentityCache, authority: CertificateAuthority
) -> None:
    issue_all(cache, authority, NAMES, lambda _: None)
    other = CertificateAuthority.create(authority.trust_domain, time.time())
    others = IdentityCache(str(tmp_path / "cache"), other.trust_domain, other.root_sha256)
    others.open()
    assert others.missing(NAMES) == NAMES
    others.discard()
    assert cache.missing(NAMES) == []


def test_a_folder_that_others_may_read_is_refused_and_a_damaged_file_named(
    cache: IdentityCache, authority: CertificateAuthority
) -> None:
    issue_all(cache, authority, NAMES, lambda _: None)
    Path(cache.path("n-1")).write_text("-----BEGIN")
    with pytest.raises(IdentityFileError, match=r"n-1\.pem is damaged"):
        cache.missing(NAMES)
    Path(cache.directory).chmod(0o750)
    with pytest.raises(IdentityFileError, match="chmod 700"):
        cache.open()


def test_an_authority_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no ca\.crt"):
        open_authority(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
