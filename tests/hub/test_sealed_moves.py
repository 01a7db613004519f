"""Backups, restores and moves of a fleet with sealed values: sealed all the way, readable where they come to."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from hub.backup import BackupSource
from hub.keyproviders import ensure_own_key_file, own_key_file
from hub.objects import SECRETS, Keys
from hub.operations import Place, back_up, copy, restore
from hub.registry import Registry
from hub.store.etcd import EtcdStore
from hub.store.sealing import SealedStore
from hub.store.sqlite import SqliteStore
from security.ca import CertificateAuthority
from security.keyring import KeyFiles, KeyUnknown
from security.sealed import create_key_file, read_key_file
from tests.hub.test_sealing import PLANTED, secret, shows
from tests.servers.etcd import EtcdCluster

NOW = 1_800_000_000.0
KEYS = Keys()


@pytest.fixture(scope="module")
def member() -> Iterator[EtcdCluster]:
    with EtcdCluster(1) as cluster:
        yield cluster


@pytest.fixture
async def old(tmp_path: Path) -> Place:
    """The data directory of a hub that was alone, with a Secret."""
    directory = tmp_path / "old"
    inner = await SqliteStore.open(str(directory))
    store = await SealedStore.open(inner, KEYS, [KeyFiles([ensure_own_key_file(str(directory))])])
    await Registry(store, KEYS).create(SECRETS, secret("s"))
    await store.close()
    (directory / "ca").mkdir(mode=0o700)
    CertificateAuthority.create("fleet.example", NOW).save(str(directory / "ca"))
    return Place(data_dir=str(directory))


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    create_key_file(str(tmp_path / "key"))
    return str(tmp_path / "key")


async def found(inner: SqliteStore | EtcdStore, key_file: str) -> bytes:
    store = await SealedStore.open(inner, KEYS, [KeyFiles([key_file])])
    try:
        return (await Registry(store, KEYS).get(SECRETS, "shop", "s")).raw
    finally:
        await store.close()


def silent(count: int) -> None:
    pass


def content(path: Path) -> bytes:
    return zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()


async def test_a_backup_that_is_sealed_opens_with_its_key_file_alone(
    old: Place, key_file: str, tmp_path: Path
) -> None:
    path, text = tmp_path / "backup", read_key_file(key_file)
    assert not (await back_up(old, str(path), text, NOW, silent)).clear
    assert not shows(content(path))
    source = BackupSource.open(str(path))
    assert {w.provider for w in source.header.data_keys.keys.values()} == {"file"}
    new = tmp_path / "new"
    await restore(source, Place(data_dir=str(new)), text, NOW, silent)
    assert shows(await found(await SqliteStore.open(str(new)), own_key_file(str(new))))
    assert read_key_file(own_key_file(str(new))) != read_key_file(own_key_file(old.data_dir))


async def test_a_backup_in_clear_brings_the_keys_and_keeps_the_values_sealed(
    old: Place, tmp_path: Path
) -> None:
    path, new = tmp_path / "backup", tmp_path / "new"
    assert (await back_up(old, str(path), None, NOW, silent)).clear
    assert not shows(content(path))
    await restore(BackupSource.open(str(path)), Place(data_dir=str(new)), None, NOW, silent)
    assert shows(await found(await SqliteStore.open(str(new)), own_key_file(str(new))))


async def test_a_copy_to_etcd_is_wrapped_under_the_replicas_key_file(
    old: Place, key_file: str, member: EtcdCluster, tmp_path: Path
) -> None:
    place = Place(etcd=tuple(member.endpoints))
    await copy(old.data_dir, place, read_key_file(key_file), NOW, silent)
    assert shows(await found(await EtcdStore.open(member.endpoints), key_file))
    # And out of there again, into a data directory.
    path, new = tmp_path / "backup", tmp_path / "new"
    await back_up(place, str(path), None, NOW, silent)
    assert PLANTED not in content(path)
    await restore(
        BackupSource.open(str(path)), Place(data_dir=str(new)), read_key_file(key_file), NOW, silent
    )
    assert shows(await found(await SqliteStore.open(str(new)), own_key_file(str(new))))


async def test_without_the_key_of_its_data_directory_no_backup_is_taken(old: Place, tmp_path: Path) -> None:
    Path(own_key_file(old.data_dir)).rename(tmp_path / "kept")
    with pytest.raises(KeyUnknown, match="of provider file, and"):
        await back_up(old, str(tmp_path / "backup"), None, NOW, silent)
    assert not (tmp_path / "backup").exists()
