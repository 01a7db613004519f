"""Backup, restore and the move to etcd, on real stores; what is cut off is not served and goes on."""

import asyncio
import os
import random
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import zstandard

import hub.operations
from hub.access.keys import open_alone, open_shared, read_file, signing_keys_key
from hub.backup import BackupSource
from hub.operations import Place, back_up, copy, restore
from hub.store.etcd import ROOT, EtcdStore
from hub.store.sqlite import SqliteReader, SqliteStore
from hub.transfer import StoreSource, TransferError, digest
from security.ca import CAError, CertificateAuthority
from security.sealed import KeyFileError
from shards.kv import Absent, Delete, Moved, Occupied, Put, Store, StoreIdentity, Unavailable, Unfinished
from tests.hub.authorities import open_authority
from tests.servers.etcd import EtcdCluster

NOW = 1_800_000_000.0
SECRET, OTHER = b"s" * 32, b"o" * 32
DOMAIN = "fleet.example"


@pytest.fixture(scope="module")
def member() -> Iterator[EtcdCluster]:
    with EtcdCluster(1) as cluster:
        yield cluster


@pytest.fixture
def shared(member: EtcdCluster, request: pytest.FixtureRequest) -> Place:
    """An empty cell of its own in a real etcd."""
    return Place(etcd=tuple(member.endpoints), root=f"/cloudhub/{request.node.name}/")


async def fleet(directory: Path, keys: int = 700) -> Place:
    """A data directory with a fleet, at rest."""
    store = await SqliteStore.open(str(directory), slots=64)
    await fill_with(store, ROOT, keys)
    await store.close()
    (directory / "ca").mkdir(mode=0o700)
    CertificateAuthority.create(DOMAIN, NOW).save(str(directory / "ca"))
    return Place(data_dir=str(directory))


async def fill_with(store: Store, root: str, keys: int) -> None:
    rng = random.Random(3)
    for i in range(keys):
        await store.txn([], [Put(f"{root}obj/core/pods/{i % 64:04d}/default/p{i}", rng.randbytes(300))])
    lease = await store.grant(60)
    await store.txn([], [Put(f"{root}member/hub-1", b"{}", lease), Put(f"{root}slot/1/owner", b"{}", lease)])


async def content(place: Place) -> tuple[StoreIdentity, tuple[int, str]]:
    if place.etcd:
        store: EtcdStore | SqliteReader = await EtcdStore.open(place.etcd, root=place.root)
    else:
        store = await SqliteReader.open(place.data_dir)
    try:
        return store.identity, await digest(await StoreSource.of(store, place.root))
    finally:
        await store.close()


def root_of(place: Place) -> bytes:
    with open(os.path.join(place.data_dir, "ca/ca.crt"), "rb") as file:
        return file.read()


def silent(count: int) -> None:
    pass


async def saved(place: Place, path: Path, secret: bytes | None = None) -> BackupSource:
    await back_up(place, str(path), secret, NOW, silent)
    return BackupSource.open(str(path))


async def test_a_restored_fleet_is_the_same_one_in_a_higher_generation(tmp_path: Path) -> None:
    old = await fleet(tmp_path / "old")
    source = await saved(old, tmp_path / "b")
    new = Place(data_dir=str(tmp_path / "new"))
    done = await restore(source, new, None, NOW, silent)
    before, after = await content(old), await content(new)
    assert after[1] == before[1]
    assert after[0] == StoreIdentity(before[0].uuid, int(NOW), before[0].format, 64)
    assert (done.uuid, done.generation, done.keys) == (before[0].uuid, int(NOW), 700)
    assert root_of(new) == root_of(old)
    assert stat.S_IMODE(os.stat(tmp_path / "new/ca/ca.key").st_mode) == 0o600
    served = await SqliteStore.open(new.data_dir)
    await served.close()


async def test_two_restores_of_one_backup_never_have_the_same_generation(tmp_path: Path) -> None:
    source = await saved(await fleet(tmp_path / "old", 3), tmp_path / "b")
    made = [
        (await restore(source, Place(data_dir=str(tmp_path / f"new{i}")), None, NOW + i, silent)).generation
        for i in range(2)
    ]
    assert made[0] < made[1]
    # A clock that has gone back does not make it lower than what the nodes have seen.
    again = await saved(Place(data_dir=str(tmp_path / "new1")), tmp_path / "b2")
    done = await restore(again, Place(data_dir=str(tmp_path / "new2")), None, NOW - 1e6, silent)
    assert done.generation == made[1] + 1


async def test_a_backup_holds_one_moment_while_the_hub_goes_on_writing_and_compacts(tmp_path: Path) -> None:
    place = await fleet(tmp_path / "old")
    wanted = (await content(place))[1]
    store = await SqliteStore.open(place.data_dir)
    reader = await SqliteReader.open(place.data_dir)
    try:
        source = await StoreSource.of(reader, ROOT)
        items = source.items()
        first = await anext(items)
        for i in range(700):
            await store.txn([], [Delete(f"{ROOT}obj/core/pods/{i % 64:04d}/default/p{i}")])
        await store.txn([], [Put(f"{ROOT}obj/core/pods/0001/default/new", b"1")])
        await store.compact(await store.revision())
        await store.txn([], [Put(f"{ROOT}obj/core/pods/0001/default/new", b"2")])
        rest = [item async for item in items]
        assert len([first, *rest]) == wanted[0]
        assert await digest(source) == wanted
    finally:
        await reader.close()
        await store.close()
    assert (await content(place))[1][0] == 1


async def test_a_backup_is_taken_beside_the_hub_that_has_the_directory_locked(tmp_path: Path) -> None:
    place = await fleet(tmp_path / "old", 20)
    store = await SqliteStore.open(place.data_dir)
    try:
        assert (await saved(place, tmp_path / "b")).count == 20
        await store.txn([], [Put(f"{ROOT}obj/x", b"1")])
    finally:
        await store.close()


async def test_a_backup_with_a_key_file_holds_no_key_in_clear_and_needs_that_file(tmp_path: Path) -> None:
    old = await fleet(tmp_path / "old", 5)
    clear, sealed = await saved(old, tmp_path / "b"), await saved(old, tmp_path / "c", SECRET)
    assert "PRIVATE KEY" in clear.header.authority.key
    assert (sealed.header.authority.key, sealed.header.authority.certificate) == ("", "")
    assert "PRIVATE KEY" not in sealed.header.authority.sealed
    new = Place(data_dir=str(tmp_path / "new"))
    for secret in (None, OTHER):
        with pytest.raises(KeyFileError, match="key file"):
            await restore(sealed, new, secret, NOW, silent)
    assert not os.path.exists(new.data_dir), "something was written with the wrong key file"
    await restore(sealed, new, SECRET, NOW, silent)
    assert root_of(new) == root_of(old)


async def test_nothing_is_restored_over_a_fleet(tmp_path: Path, shared: Place) -> None:
    old = await fleet(tmp_path / "old", 5)
    source = await saved(old, tmp_path / "b")
    before = await content(old)
    with pytest.raises(Occupied, match="holds a fleet already"):
        await restore(source, old, None, NOW, silent)
    assert await content(old) == before
    await (await EtcdStore.open(shared.etcd, root=shared.root)).close()
    with pytest.raises(Occupied, match="holds a fleet already"):
        await restore(source, shared, SECRET, NOW, silent)


async def test_a_directory_with_another_authority_is_refused(tmp_path: Path) -> None:
    source = await saved(await fleet(tmp_path / "old", 5), tmp_path / "b")
    (tmp_path / "new/ca").mkdir(parents=True, mode=0o700)
    CertificateAuthority.create(DOMAIN, NOW).save(str(tmp_path / "new/ca"))
    with pytest.raises(CAError, match="another authority"):
        await restore(source, Place(data_dir=str(tmp_path / "new")), None, NOW, silent)
    with pytest.raises(Unfinished):
        await SqliteStore.open(str(tmp_path / "new"))


async def test_a_backup_of_nothing_says_so_and_makes_nothing(tmp_path: Path, shared: Place) -> None:
    with pytest.raises((Absent, CAError)):
        await back_up(Place(data_dir=str(tmp_path / "none")), str(tmp_path / "b"), None, NOW, silent)
    with pytest.raises(Absent, match="no fleet"):
        await back_up(shared, str(tmp_path / "b"), None, NOW, silent)
    assert os.listdir(tmp_path) == []


class CutOff(Exception):
    pass


Restoring = Callable[[Callable[[int], None]], Awaitable[object]]


async def served_at(place: Place) -> None:
    """Opens the store as a hub does."""
    if place.etcd:
        await (await EtcdStore.open(place.etcd, root=place.root)).close()
    else:
        await (await SqliteStore.open(place.data_dir)).close()


async def cut_off_everywhere(run: Restoring, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts a filling off in its middle, after the authority, and just before its end; each time nothing is served."""

    def break_at(count: int) -> None:
        if count > 300:
            raise CutOff

    with pytest.raises(CutOff):
        await run(break_at)
    with pytest.raises(Unfinished, match="run the same command again"):
        await served_at(place)

    async def dies(self: object) -> None:
        raise CutOff

    with monkeypatch.context() as patched:
        patched.setattr(EtcdStore, "finish_filling", dies)
        patched.setattr(SqliteStore, "finish_filling", dies)
        seen: list[int] = []
        with pytest.raises(CutOff):
            await run(seen.append)
        assert seen[0] > 300, "it began anew"
    with pytest.raises(Unfinished):
        await served_at(place)
    await run(silent)


@pytest.mark.parametrize("kind", ["data-dir", "etcd"])
async def test_a_restore_that_was_cut_off_is_not_served_and_goes_on(
    tmp_path: Path, member: EtcdCluster, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    old = await fleet(tmp_path / "old")
    source = await saved(old, tmp_path / "b")
    new = Place(data_dir=str(tmp_path / "new"))
    if kind == "etcd":
        new = Place(etcd=tuple(member.endpoints), root="/cloudhub/cut-off/")
    times = iter(range(10))

    async def run(progress: Callable[[int], None]) -> None:
        # Later each time: what was begun keeps its generation.
        await restore(source, new, SECRET, NOW + next(times), progress)

    await cut_off_everywhere(run, new, monkeypatch)
    await served_at(new)
    identity, found = await content(new)
    assert (identity.generation, found) == (int(NOW), (await content(old))[1])


async def test_a_half_restore_is_not_continued_with_another_backup(tmp_path: Path) -> None:
    old = await fleet(tmp_path / "old")
    first = await saved(old, tmp_path / "b")
    store = await SqliteStore.open(old.data_dir)
    await store.txn([], [Put(f"{ROOT}obj/new", b"1")])
    await store.close()
    second = await saved(old, tmp_path / "c")
    other = await saved(await fleet(tmp_path / "other"), tmp_path / "d")
    new = Place(data_dir=str(tmp_path / "new"))

    def break_at(count: int) -> None:
        raise CutOff

    with pytest.raises(CutOff):
        await restore(first, new, None, NOW, break_at)
    with pytest.raises(TransferError, match="another transfer"):
        await restore(second, new, None, NOW, silent)
    with pytest.raises(Occupied, match="another fleet"):
        await restore(other, new, None, NOW, silent)
    await restore(first, new, None, NOW, silent)


async def test_a_fleet_moves_to_etcd_and_is_not_served_from_its_directory_any_more(
    tmp_path: Path, shared: Place
) -> None:
    old = await fleet(tmp_path / "old")
    before = await content(old)
    done = await copy(old.data_dir, shared, SECRET, NOW, silent)
    assert done.keys == 700
    identity, found = await content(shared)
    assert (identity.uuid, identity.generation, found) == (before[0].uuid, int(NOW), before[1])
    store = await EtcdStore.open(shared.etcd, root=shared.root)
    try:
        ca = await open_authority(store, shared.root, SECRET, DOMAIN, NOW)
        assert ca.root_pem.encode() == root_of(old)
        with pytest.raises(KeyFileError):
            await open_authority(store, shared.root, OTHER, DOMAIN, NOW)
    finally:
        await store.close()
    with pytest.raises(Moved, match="moved to etcd at 127"):
        await SqliteStore.open(old.data_dir)
    with pytest.raises(Moved):
        await back_up(old, str(tmp_path / "b"), None, NOW, silent)
    # The way back that the message names.
    back = Place(data_dir=str(tmp_path / "back"))
    await restore(await saved(shared, tmp_path / "c"), back, SECRET, NOW, silent)
    identity, found = await content(back)
    assert (identity.generation, found) == (int(NOW) + 1, before[1])
    assert root_of(back) == root_of(old)


async def test_a_move_that_was_cut_off_is_served_nowhere_and_goes_on_to_the_same_place_only(
    tmp_path: Path, shared: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await fleet(tmp_path / "old")

    async def run(progress: Callable[[int], None]) -> None:
        if "moved" in ended:
            with pytest.raises(Moved):
                await served_at(old)
            with pytest.raises(Moved):
                elsewhere = Place(etcd=(*shared.etcd, "127.0.0.1:1"), root=shared.root)
                await copy(old.data_dir, elsewhere, SECRET, NOW, silent)
        await copy(old.data_dir, shared, SECRET, NOW, progress)

    ended: list[str] = []
    mark = SqliteStore.mark_moved

    async def noted(self: SqliteStore, where: str) -> None:
        await mark(self, where)
        ended.append("moved")

    monkeypatch.setattr(SqliteStore, "mark_moved", noted)
    await cut_off_everywhere(run, shared, monkeypatch)
    assert ended == ["moved", "moved"]
    await served_at(shared)


async def test_a_running_hub_is_not_moved(tmp_path: Path, shared: Place) -> None:
    old = await fleet(tmp_path / "old", 3)
    store = await SqliteStore.open(old.data_dir)
    try:
        with pytest.raises(TransferError, match="stop the hub first"):
            await copy(old.data_dir, shared, SECRET, NOW, silent)
    finally:
        await store.close()
    await served_at(old)
    with pytest.raises(Absent):
        await back_up(shared, str(tmp_path / "b"), None, NOW, silent)


async def test_a_backup_of_etcd_keeps_the_authority_sealed_and_leaves_running_replicas_behind(
    tmp_path: Path, shared: Place
) -> None:
    store = await EtcdStore.open(shared.etcd, root=shared.root)
    try:
        with pytest.raises(TransferError, match="no authority"):
            await back_up(shared, str(tmp_path / "b"), None, NOW, silent)
        ca = await open_authority(store, shared.root, SECRET, DOMAIN, NOW)
        await fill_with(store, shared.root, 20)
        with pytest.raises(KeyFileError):
            await saved(shared, tmp_path / "b", OTHER)
        source = await saved(shared, tmp_path / "b")
        assert (source.count, source.header.trust_domain) == (20, DOMAIN)
    finally:
        await store.close()
    elsewhere = Place(etcd=shared.etcd, root=shared.root.replace("/cloudhub/", "/cloudhub/again-"))
    await restore(source, elsewhere, SECRET, NOW, silent)
    again = await EtcdStore.open(elsewhere.etcd, root=elsewhere.root)
    try:
        assert (await open_authority(again, elsewhere.root, SECRET, DOMAIN, NOW)).root_pem == ca.root_pem
    finally:
        await again.close()


async def test_a_backup_that_history_overtakes_says_what_to_do(
    tmp_path: Path, shared: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await EtcdStore.open(shared.etcd, root=shared.root)
    try:
        await open_authority(store, shared.root, SECRET, DOMAIN, NOW)
        await fill_with(store, shared.root, 3)
        writing = hub.operations.backup.write

        async def late(*arguments: object) -> int:
            await store.txn([], [Put(shared.root + "obj/later", b"1")])
            await store.compact(await store.revision())
            return await writing(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(hub.operations.backup, "write", late)
        with pytest.raises(TransferError, match="raise the hub's setting"):
            await back_up(shared, str(tmp_path / "b"), None, NOW, silent)
    finally:
        await store.close()
    assert os.listdir(tmp_path) == []


async def test_a_store_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    source = await saved(await fleet(tmp_path / "old", 3), tmp_path / "b")
    nobody = Place(etcd=("127.0.0.1:1",))
    with pytest.raises(Unavailable) as raised:
        await asyncio.wait_for(restore(source, nobody, SECRET, NOW, silent), 60)
    assert "\n" not in str(raised.value)


async def test_the_keys_of_tokens_go_along_sealed_for_each_place(tmp_path: Path, shared: Place) -> None:
    """From a data directory through backups in clear and sealed, into another, into etcd, and back."""
    old = await fleet(tmp_path / "old", 3)
    keys = await open_alone(str(tmp_path / "old/ca"))
    await keys.rotate(NOW, void=False)
    wanted = [(key.kid, key.begins, key.ends) for key in keys.current.keys]
    pems = [key.pem().splitlines()[1] for key in keys.current.keys]

    def of(directory: Path) -> list[tuple[str, float, float | None]]:
        return [(k.kid, k.begins, k.ends) for k in read_file(str(directory / "ca/token.keys")).keys]

    for name, secret in (("clear", None), ("sealed", SECRET)):
        source = await saved(old, tmp_path / name, secret)
        raw = zstandard.ZstdDecompressor().stream_reader((tmp_path / name).read_bytes()).read()
        assert all((pem in raw) == (secret is None) for pem in pems)
        await restore(source, Place(data_dir=str(tmp_path / f"from-{name}")), secret, NOW, silent)
        assert of(tmp_path / f"from-{name}") == wanted
    await copy(old.data_dir, shared, SECRET, NOW, silent)
    store = await EtcdStore.open(shared.etcd, root=shared.root)
    try:
        held = await store.get(signing_keys_key(shared.root))
        assert held is not None and not any(pem in held.value for pem in pems)
        served = await open_shared(store, shared.root, lambda: SECRET)
        assert [key.kid for key in served.current.keys] == [kid for kid, _, _ in wanted]
    finally:
        await store.close()
    source = await saved(shared, tmp_path / "of-etcd", SECRET)
    await restore(source, Place(data_dir=str(tmp_path / "back")), SECRET, NOW, silent)
    assert of(tmp_path / "back") == wanted
    assert stat.S_IMODE(os.stat(tmp_path / "back/ca/token.keys").st_mode) == 0o600


async def test_a_restore_leaves_other_keys_of_tokens_alone(tmp_path: Path) -> None:
    old, there = await fleet(tmp_path / "old", 3), tmp_path / "there"
    await open_alone(str(tmp_path / "old/ca"))
    source = await saved(old, tmp_path / "b")
    (there / "ca").mkdir(parents=True, mode=0o700)
    await open_alone(str(there / "ca"))
    with pytest.raises(TransferError, match="other keys"):
        await restore(source, Place(data_dir=str(there)), None, NOW, silent)
    os.unlink(there / "ca/token.keys")
    await restore(source, Place(data_dir=str(there)), None, NOW, silent)
