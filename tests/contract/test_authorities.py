"""The contract of `hub.authority.AuthorityStore`: sealed in every store that replicas share, and in a lone hub's directory."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from hub.authority import SET, AuthorityStore, OwnAuthority, SharedAuthority, authority_key
from hub.store.etcd import EtcdStore
from hub.store.memory import MemoryStore
from hub.store.sqlite import SqliteStore
from security.authorities import Authorities
from security.ca import CAError, CertificateAuthority
from security.rotation import ACTIVE, PREPARED, RETIRED, Activate, Remove, RotationError
from security.sealed import KeyFileError, seal, seal_set, unseal, unseal_set
from shards.claims import Fence
from shards.kv import Put, Store
from tests.servers.etcd import EtcdCluster

NOW, DOMAIN, SECRET = 1_800_000_000.0, "a.example", b"s" * 32
Open = Callable[[], AuthorityStore]


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    with EtcdCluster(1) as cluster:
        yield cluster


@pytest.fixture(params=["memory", "sqlite", "etcd"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store
    if request.param == "memory":
        made = MemoryStore()
    elif request.param == "sqlite":
        made = await SqliteStore.open(str(tmp_path))
    else:
        cluster: EtcdCluster = await asyncio.to_thread(request.getfixturevalue, "etcd")
        made = await EtcdStore.open(cluster.endpoints, root=f"/{os.urandom(4).hex()}/")
    yield made
    await made.close()


def shared(store: Store) -> SharedAuthority:
    return SharedAuthority(store, f"/{store.identity.uuid}/", lambda: SECRET, DOMAIN)


def phases(authorities: Authorities) -> list[str]:
    return [root.phase for root in authorities.roots]


async def walk(authority: AuthorityStore, again: Open) -> None:
    """A whole rotation; after each step everybody who opens the store anew reads the same."""
    first, revision = await authority.read(NOW)
    assert phases(first) == [ACTIVE]
    current = first.begin(NOW, void_tokens=True)
    new = current.held[1].ca.root_sha256.hex()
    expected = [[ACTIVE, PREPARED], [RETIRED, ACTIVE], [ACTIVE]]
    for wanted, step in zip(expected, [Activate(new), Remove(first.held[0].root.id), None], strict=True):
        assert await authority.swap(current, revision, None)
        assert not await authority.swap(first, revision, None), "it was changed since"
        read, revision = await authority.read(NOW)
        other, _ = await again().read(NOW)
        assert phases(read) == phases(other) == wanted
        assert read.roots == other.roots
        assert [(r.id, r.last) for r in read.roots] == [(r.id, r.last) for r in current.roots]
        assert [h.ca.key_record() for h in other.held] == [h.ca.key_record() for h in current.held]
        assert read.void_tokens == (len(wanted) > 1)
        if step is not None:
            current = read.after(step, NOW + 10, 100.0)
            assert current.after(step, NOW + 20, 100.0) == current


async def test_a_set_is_rotated_and_read_by_whoever_comes(store: Store) -> None:
    await walk(shared(store), lambda: shared(store))
    held = await store.get(authority_key(f"/{store.identity.uuid}/"))
    assert held is not None and b"PRIVATE KEY" not in held.value


async def test_of_two_that_begin_a_rotation_one_is_first(store: Store) -> None:
    authority = shared(store)
    start, revision = await authority.read(NOW)
    won = await asyncio.gather(*(authority.swap(start.begin(NOW), revision, None) for _ in range(4)))
    assert won.count(True) == 1
    with pytest.raises(RotationError, match="under way"):
        (await authority.read(NOW))[0].begin(NOW)


async def test_a_step_under_a_fence_that_is_passed_changes_nothing(store: Store) -> None:
    authority = shared(store)
    start, revision = await authority.read(NOW)
    key = f"/{store.identity.uuid}/role"
    mine = (await store.txn([], [Put(key, b"1")])).revision
    await store.txn([], [Put(key, b"2")])
    assert not await authority.swap(start.begin(NOW), revision, Fence(key, mine))
    assert (await authority.read(NOW))[1] == revision


async def test_a_change_is_heard_by_those_who_wait(store: Store) -> None:
    authority = shared(store)
    start, revision = await authority.read(NOW)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        heard = tasks.create_task(shared(store).changed(revision))
        await authority.swap(start.begin(NOW), revision, None)
        await heard


async def test_a_lone_hub_keeps_its_set_beside_its_store(tmp_path: Path) -> None:
    before = CertificateAuthority.open(str(tmp_path), DOMAIN, NOW)
    authority = OwnAuthority(str(tmp_path), DOMAIN)
    assert (await authority.read(NOW))[0].active.root_pem == before.root_pem
    await walk(authority, lambda: OwnAuthority(str(tmp_path), DOMAIN))
    assert stat.S_IMODE((tmp_path / SET).stat().st_mode) == 0o600
    # A release that knows one root alone does not make a second authority of it.
    with pytest.raises(CAError, match=r"ca\.key"):
        CertificateAuthority.open(str(tmp_path), DOMAIN, NOW)
    (tmp_path / SET).chmod(0o644)
    with pytest.raises(CAError, match="open to others"):
        await authority.read(NOW)


def test_one_root_is_sealed_as_every_release_reads_it_and_a_set_is_not() -> None:
    alone = Authorities.alone(CertificateAuthority.create(DOMAIN, NOW))
    assert unseal(seal_set(alone, SECRET), SECRET, DOMAIN, NOW).root_pem == alone.active.root_pem
    old = seal(alone.active, SECRET)
    assert unseal_set(old, SECRET, DOMAIN, NOW).roots == alone.roots
    several = seal_set(alone.begin(NOW), SECRET)
    assert b'"v":2' in several
    with pytest.raises(KeyFileError, match="not the one"):
        unseal_set(several, b"t" * 32, DOMAIN, NOW)
    with pytest.raises(KeyFileError, match="start a newer hub"):
        unseal_set(several.replace(b'"v":2', b'"v":3'), SECRET, DOMAIN, NOW)
