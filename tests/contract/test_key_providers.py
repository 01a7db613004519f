"""The contract of `security.keyring.KeyProvider`: key files, and a key management service over its real socket."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from hub.objects import SECRETS, Keys
from hub.reencrypt import reencrypt
from hub.registry import Registry
from hub.store.memory import MemoryStore
from hub.store.sealing import SealedStore
from security.keyring import KeyFiles, KeyProvider, KeyUnknown, ProviderFailed, Wrapped
from security.kms.provider import CIPHERTEXT_BYTES_MAX, KmsProvider
from security.sealed import create_key_file
from tests.hub.test_sealing import everything, secret, shows
from tests.servers.kmsplugin import KmsPlugin

DATA_KEY = bytes(range(32))


@dataclass
class Case:
    """A provider, and how its keys change."""

    provider: KeyProvider
    rotate: Callable[[], object]
    """A new key wraps; the former opens still."""
    forget: Callable[[], object]
    """Of all keys only the newest is left."""


@pytest.fixture(params=["file", "kms"])
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    if request.param == "file":
        path = tmp_path / "keys"
        create_key_file(str(path))

        def rotate() -> None:
            create_key_file(str(tmp_path / "new"))
            path.write_bytes((tmp_path / "new").read_bytes() + path.read_bytes())

        yield Case(KeyFiles([str(path)]), rotate, lambda: path.write_bytes(path.read_bytes().splitlines()[0]))
        return
    with tempfile.TemporaryDirectory() as directory:  # a socket's path has 107 bytes at most
        async with KmsPlugin(f"{directory}/kms.sock") as plugin:
            provider = KmsProvider(plugin.socket)

            def forget() -> None:
                plugin.keys = {plugin.current: plugin.keys[plugin.current]}

            yield Case(provider, plugin.rotate, forget)
            await provider.close()


async def test_a_data_key_comes_back_under_its_name_and_is_not_in_the_record(case: Case) -> None:
    wrapped = await case.provider.wrap(DATA_KEY, "data key 1")
    stored = msgspec.json.encode(wrapped)
    assert DATA_KEY not in stored and DATA_KEY not in wrapped.key
    again = msgspec.json.decode(stored, type=Wrapped)
    assert again == wrapped
    assert (again.provider, again.id) == (case.provider.name, await case.provider.current())
    assert await case.provider.unwrap(again, "data key 1") == DATA_KEY


async def test_under_another_name_it_does_not_open(case: Case) -> None:
    wrapped = await case.provider.wrap(DATA_KEY, "data key 1")
    with pytest.raises(KeyUnknown, match="data key 2"):
        await case.provider.unwrap(wrapped, "data key 2")


async def test_a_changed_one_does_not_open(case: Case) -> None:
    wrapped = await case.provider.wrap(DATA_KEY, "data key 1")
    changed = msgspec.structs.replace(wrapped, key=wrapped.key[:-1] + bytes([wrapped.key[-1] ^ 1]))
    with pytest.raises(KeyUnknown, match="data key 1"):
        await case.provider.unwrap(changed, "data key 1")


async def test_a_new_key_wraps_and_the_former_opens_until_it_is_gone_and_is_named_then(case: Case) -> None:
    old = await case.provider.wrap(DATA_KEY, "data key 1")
    case.rotate()
    assert await case.provider.current() != old.id
    new = await case.provider.wrap(DATA_KEY, "data key 2")
    assert new.id == await case.provider.current()
    assert await case.provider.unwrap(old, "data key 1") == DATA_KEY
    case.forget()
    assert await case.provider.unwrap(new, "data key 2") == DATA_KEY
    with pytest.raises(KeyUnknown, match=f"under key {old.id} of provider {old.provider}"):
        await case.provider.unwrap(old, "data key 1")


async def test_a_store_is_sealed_by_it_and_sealed_anew_when_its_key_has_changed(case: Case) -> None:
    inner, keys = MemoryStore(), Keys()
    store = await SealedStore.open(inner, keys, [case.provider])
    await Registry(store, keys).create(SECRETS, secret("s"))
    case.rotate()
    done = await reencrypt(await SealedStore.open(inner, keys, [case.provider]))
    assert (done.values, done.given_up) == (1, 1)
    case.forget()
    later = await SealedStore.open(inner, keys, [case.provider])
    assert shows((await Registry(later, keys).get(SECRETS, "shop", "s")).raw)
    assert not shows(await everything(inner))


@pytest.fixture
async def plugin() -> AsyncIterator[KmsPlugin]:
    with tempfile.TemporaryDirectory() as directory:
        async with KmsPlugin(f"{directory}/kms.sock") as made:
            yield made


async def test_a_fleet_moves_from_its_key_file_to_a_service(plugin: KmsPlugin, tmp_path: Path) -> None:
    inner, keys = MemoryStore(), Keys()
    create_key_file(str(tmp_path / "keys"))
    files, kms = KeyFiles([str(tmp_path / "keys")]), KmsProvider(plugin.socket)
    await Registry(await SealedStore.open(inner, keys, [files]), keys).create(SECRETS, secret("s"))
    done = await reencrypt(await SealedStore.open(inner, keys, [kms, files]))
    assert (done.values, done.given_up) == (1, 1)
    assert shows(
        (await Registry(await SealedStore.open(inner, keys, [kms]), keys).get(SECRETS, "shop", "s")).raw
    )
    with pytest.raises(KeyUnknown, match="only the provider file is configured"):
        await SealedStore.open(inner, keys, [files])
    await kms.close()


async def test_the_service_is_asked_for_data_keys_and_not_for_secrets(plugin: KmsPlugin) -> None:
    keys, kms = Keys(), KmsProvider(plugin.socket)
    store = await SealedStore.open(MemoryStore(), keys, [kms])
    asked = len(plugin.calls)
    await asyncio.gather(*(Registry(store, keys).create(SECRETS, secret(f"s{i}")) for i in range(50)))
    await Registry(store, keys).page(SECRETS)
    assert len(plugin.calls) == asked <= 2
    await plugin.stop()
    assert len((await Registry(store, keys).page(SECRETS)).items) == 50, "it is not needed any more"
    await kms.close()


async def test_a_service_that_is_gone_or_unwell_or_talks_nonsense_is_named(plugin: KmsPlugin) -> None:
    kms = KmsProvider(plugin.socket)
    plugin.healthz = "the vault is sealed"
    with pytest.raises(ProviderFailed, match="is not well: 'the vault is sealed'"):
        await kms.current()
    plugin.healthz, plugin.version = "ok", "v9"
    with pytest.raises(ProviderFailed, match="speaks version 'v9'"):
        await kms.current()
    for ciphertext in (b"", b"x" * (CIPHERTEXT_BYTES_MAX + 1)):
        plugin.ciphertext = ciphertext
        with pytest.raises(ProviderFailed, match=f"with {len(ciphertext)} bytes for a data key"):
            await kms.wrap(DATA_KEY, "data key 1")
    await plugin.stop()
    with pytest.raises(ProviderFailed, match=r"kms\.sock does not answer"):
        await kms.current()
    await kms.close()
