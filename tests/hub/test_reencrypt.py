"""Sealing anew: what was in clear, and a key's rotation, while others write; cut off anywhere it goes on."""

import asyncio
from pathlib import Path

import pytest

from hub.access.keys import open_shared
from hub.authority import SharedAuthority
from hub.keyproviders import KeySettings
from hub.objects import SECRETS, Keys
from hub.operations import Place, reencrypt
from hub.reencrypt import reencrypt as sweep
from hub.reencrypt import reseal_shared
from hub.registry import Registry
from hub.store.memory import MemoryStore
from hub.store.sealing import SealedStore, read_keys
from hub.store.sqlite import SqliteStore
from hub.transfer import TransferError
from security.jwt import Claims, Kubernetes, Named, SigningKeys
from security.keyring import KeyFiles, KeyUnknown
from security.sealed import KeyFileError, create_key_file, read_key_file
from shards.kv import Store, TxnResult, Unavailable
from tests.hub.test_sealing import everything, secret, shows

KEYS = Keys()
NOW = 1_800_000_000.0


def keys_in(path: Path, *names: str) -> str:
    """The key file with the keys of these names, in this order."""
    for name in names:
        if not (path / name).exists():
            create_key_file(str(path / name))
    text = b"".join((path / name).read_bytes() for name in names)
    (path / "keys").write_bytes(text)
    (path / "keys").chmod(0o600)
    return str(path / "keys")


async def opened(inner: Store, path: str) -> SealedStore:
    return await SealedStore.open(inner, KEYS, [KeyFiles([path])])


async def test_what_an_earlier_version_wrote_in_clear_is_sealed(tmp_path: Path) -> None:
    inner = MemoryStore()
    before = Registry(inner, KEYS)
    for i in range(150):
        await before.create(SECRETS, secret(f"s{i}"))
    told: list[int] = []
    store = await opened(inner, keys_in(tmp_path, "one"))
    done = await sweep(store, progress=told.append)
    assert (done.values, done.of, done.given_up) == (150, 150, 0)
    assert told == sorted(told) and told[-1] == 150 and len(told) >= 3
    assert not shows(await everything(inner))
    assert (await sweep(store)).values == 0


async def test_after_a_new_first_key_nothing_needs_the_old_one(tmp_path: Path) -> None:
    inner = MemoryStore()
    path = keys_in(tmp_path, "old")
    replica = await opened(inner, path)
    for i in range(5):
        await Registry(replica, KEYS).create(SECRETS, secret(f"s{i}"))
    keys_in(tmp_path, "new", "old")
    done = await sweep(await opened(inner, path))
    assert (done.values, done.given_up) == (5, 1)
    keys_in(tmp_path, "new")
    # One that ran all the time, and one that starts now.
    for n, store in enumerate([replica, await opened(inner, path)]):
        assert len((await Registry(store, KEYS).page(SECRETS)).items) == 5 + n
        await Registry(store, KEYS).create(SECRETS, secret(f"by-{n}"))
    keys_in(tmp_path, "old")
    with pytest.raises(KeyUnknown):
        await opened(inner, path)


async def test_replicas_write_all_the_while_and_no_write_is_lost_or_left_under_the_old_key(
    tmp_path: Path,
) -> None:
    inner = MemoryStore()
    path = keys_in(tmp_path, "old")
    store = await opened(inner, path)
    registry = Registry(store, KEYS)
    for i in range(200):
        await registry.create(SECRETS, secret(f"s{i}"))
    stop = asyncio.Event()
    count = 0

    async def write() -> None:
        nonlocal count
        while not stop.is_set():
            count += 1
            new = {"type": f"t{count}"}
            await registry.mutate(SECRETS, "shop", f"s{count % 200}", lambda o, new=new: {**o, **new})
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    keys_in(tmp_path, "new", "old")
    other = await opened(inner, path)
    plain = other.inner.page

    async def slow(*args, **options):
        await asyncio.sleep(0.001)
        return await plain(*args, **options)

    other.inner.page = slow  # type: ignore[method-assign]
    await sweep(other)
    stop.set()
    await writing
    assert count > 10
    assert list(await read_keys(inner, KEYS.root)) == [other.generation]
    keys_in(tmp_path, "new")
    types = {
        s.obj().get("type") for s in (await Registry(await opened(inner, path), KEYS).page(SECRETS)).items
    }
    assert f"t{count}" in types


@pytest.mark.parametrize("cut_after", [1, 2, 3, 4, 5])
async def test_a_run_that_is_cut_off_is_finished_by_the_next(tmp_path: Path, cut_after: int) -> None:
    class Cut(MemoryStore):
        left = 1000

        async def txn(self, compares, ops) -> TxnResult:
            self.left -= 1
            if self.left < 0:
                raise Unavailable("cut off")
            return await super().txn(compares, ops)

    inner = Cut()
    path = keys_in(tmp_path, "old")
    store = await opened(inner, path)
    for i in range(200):
        await Registry(store, KEYS).create(SECRETS, secret(f"s{i}"))
    keys_in(tmp_path, "new", "old")
    inner.left = cut_after
    with pytest.raises(Unavailable):
        await sweep(await opened(inner, path))
    inner.left = 1000
    # Half done, everything is readable.
    assert len((await Registry(await opened(inner, path), KEYS).page(SECRETS)).items) == 200
    assert (await sweep(await opened(inner, path))).given_up == 1
    keys_in(tmp_path, "new")
    assert len((await Registry(await opened(inner, path), KEYS).page(SECRETS)).items) == 200


@pytest.mark.parametrize("rotating", [False, True])
async def test_the_authorities_are_sealed_under_the_first_key_too_and_a_running_hub_follows(
    tmp_path: Path, rotating: bool
) -> None:
    inner = MemoryStore()
    path = keys_in(tmp_path, "old")
    running = SharedAuthority(inner, KEYS.root, lambda: read_key_file(path), "a.example")
    made, revision = await running.read(NOW)
    if rotating:
        made = made.begin(NOW)
        assert await running.swap(made, revision, None)
    keys_in(tmp_path, "new", "old")
    assert await reseal_shared(inner, KEYS.root, read_key_file(path))
    assert not await reseal_shared(inner, KEYS.root, read_key_file(path))
    keys_in(tmp_path, "new")
    for authority in (running, SharedAuthority(inner, KEYS.root, lambda: read_key_file(path), "a.example")):
        again, _ = await authority.read(NOW)
        assert [h.ca.key_record() for h in again.held] == [h.ca.key_record() for h in made.held]
        assert again.roots == made.roots
    keys_in(tmp_path, "old")
    with pytest.raises(KeyFileError):
        await running.read(NOW)


async def test_the_keys_of_tokens_are_sealed_under_the_first_key_too(tmp_path: Path) -> None:
    inner = MemoryStore()
    path = keys_in(tmp_path, "old")

    async def keys() -> SigningKeys:
        return (await open_shared(inner, KEYS.root, lambda: read_key_file(path))).current

    token = (await keys()).sign(
        Claims("hub", "web", "api", NOW + 60, NOW, NOW, Kubernetes("shop", Named("web", "u1")))
    )
    keys_in(tmp_path, "new", "old")
    assert (await keys()).verify(token, NOW).sub == "web"
    assert await reseal_shared(inner, KEYS.root, read_key_file(path))
    assert not await reseal_shared(inner, KEYS.root, read_key_file(path))
    keys_in(tmp_path, "new")
    assert (await keys()).verify(token, NOW).sub == "web"
    keys_in(tmp_path, "old")
    with pytest.raises(KeyFileError):
        await keys()


async def test_a_hub_that_is_alone_is_asked_to_stop_first(tmp_path: Path) -> None:
    directory = str(tmp_path / "hub")
    running = await SqliteStore.open(directory)
    await Registry(running, KEYS).create(SECRETS, secret("s"))
    with pytest.raises(TransferError, match="stop the hub first"):
        await reencrypt(Place(data_dir=directory), KeySettings(directory), False, lambda n: None)
    await running.close()
    done = await reencrypt(Place(data_dir=directory), KeySettings(directory), False, lambda n: None)
    assert done.values == 1
    assert (
        await reencrypt(Place(data_dir=directory), KeySettings(directory), True, lambda n: None)
    ).given_up == 1
