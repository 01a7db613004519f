"""Secrets and join tokens are sealed in every store, and plain above it."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path

import msgspec
import pytest

from hub import errors
from hub.objects import CONFIGMAPS, JOINTOKENS, SECRETS, Keys
from hub.references import StoreReferences
from hub.registry import Registry
from hub.store.etcd import EtcdStore
from hub.store.memory import MemoryStore
from hub.store.sealing import SealedStore, SealKeys
from hub.store.sqlite import SqliteStore
from security.keyring import KeyFiles, KeyUnknown
from security.sealed import create_key_file
from shards.kv import Compacted, Delete, Put, Store, Unreadable, prefix_end
from tests.servers.etcd import EtcdCluster

PLANTED = b"planted-2f71c0d9-value"
KEYS = Keys()


@pytest.fixture(scope="module")
def member() -> Iterator[EtcdCluster]:
    with EtcdCluster(1) as cluster:
        yield cluster


@pytest.fixture(params=["memory", "sqlite", "etcd"])
async def inner(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store
    if request.param == "memory":
        made = MemoryStore()
    elif request.param == "sqlite":
        made = await SqliteStore.open(str(tmp_path / "store"))
    else:
        cluster = await asyncio.to_thread(request.getfixturevalue, "member")
        made = await EtcdStore.open(cluster.endpoints)
        everything = await made.page(KEYS.root, prefix_end(KEYS.root))
        await made.txn([], [Delete(kv.key) for kv in everything.items if kv.key != KEYS.root + "meta"])
    yield made
    await made.close()


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "key"
    create_key_file(str(path))
    return str(path)


def opened(inner: Store, *paths: str) -> Awaitable[SealedStore]:
    return SealedStore.open(inner, KEYS, [KeyFiles(paths)])


def secret(name: str, value: bytes = PLANTED) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": "shop"},
        "data": {"key": base64.b64encode(value).decode()},
    }


def token(name: str) -> dict[str, object]:
    return {"kind": "JoinToken", "metadata": {"name": name}, "spec": {"note": PLANTED.decode()}}


async def everything(store: Store) -> bytes:
    page = await store.page(KEYS.root, prefix_end(KEYS.root))
    return b"\n".join(kv.key.encode() + b" " + kv.value for kv in page.items)


def shows(text: bytes) -> bool:
    return PLANTED in text or base64.b64encode(PLANTED) in text


async def test_secrets_and_join_tokens_are_sealed_below_and_plain_above(inner: Store, key_file: str) -> None:
    store = await opened(inner, key_file)
    registry = Registry(store, KEYS)
    stored = await registry.create(SECRETS, secret("s"))
    await registry.create(JOINTOKENS, token("t"))
    await registry.create(CONFIGMAPS, {"kind": "ConfigMap", "metadata": {"name": "c", "namespace": "shop"}})
    assert not shows(await everything(inner))
    assert shows((await registry.get(SECRETS, "shop", "s")).raw)
    assert [s.obj()["spec"]["note"] for s in (await registry.page(JOINTOKENS)).items] == [PLANTED.decode()]
    assert b'"ConfigMap"' in await everything(inner)
    # What did not change is not written, although no two sealed values are alike.
    assert await registry.replace(SECRETS, await registry.get(SECRETS, "shop", "s"), stored.obj()) == stored
    assert await store.revision() == (await registry.get(CONFIGMAPS, "shop", "c")).revision


async def test_a_watch_shows_plain_values_live_and_from_the_past(inner: Store, key_file: str) -> None:
    store = await opened(inner, key_file)
    registry = Registry(store, KEYS)
    start = await store.revision()
    stored = await registry.create(SECRETS, secret("s", b"one"))
    await registry.replace(SECRETS, stored, secret("s", b"two"))
    seen = []
    prefix = KEYS.objects(SECRETS)
    async with contextlib.aclosing(store.watch([(prefix, prefix_end(prefix))], start)) as watch:  # type: ignore[type-var]
        async for batch in watch:
            for event in batch.events:
                pair = [None if kv is None else kv.value for kv in (event.prev, event.kv)]
                seen.append([None if v is None else msgspec.json.decode(v).get("data") for v in pair])
            if batch.events and len(seen) == 2:
                await registry.remove(SECRETS, await registry.get(SECRETS, "shop", "s"))
            if len(seen) == 3:
                break
    one, two = ({"key": base64.b64encode(v).decode()} for v in (b"one", b"two"))
    assert seen == [[None, one], [one, two], [two, None]]


async def test_values_that_are_swapped_in_the_store_do_not_open(inner: Store, key_file: str) -> None:
    store = await opened(inner, key_file)
    registry = Registry(store, KEYS)
    a, b = [await registry.create(SECRETS, secret(name)) for name in "ab"]
    held = await inner.get(a.key)
    assert held is not None
    await inner.txn([], [Put(b.key, held.value)])
    with pytest.raises(errors.InternalError, match="secrets/-/shop/b does not open"):
        await registry.get(SECRETS, "shop", "b")
    with pytest.raises(errors.InternalError):
        await registry.page(SECRETS)
    assert shows((await registry.get(SECRETS, "shop", "a")).raw), "the other one is none the worse"
    with pytest.raises(Compacted):  # whoever follows lists again, and is told there
        await anext(_events(store, b.revision))


async def test_a_value_that_does_not_open_stops_nobody_who_follows_others(
    inner: Store, key_file: str
) -> None:
    store = await opened(inner, key_file)
    registry = Registry(store, KEYS)
    bad = await registry.create(SECRETS, secret("bad"))
    held = await inner.get(bad.key)
    assert held is not None
    await inner.txn([], [Put(bad.key, held.value[:-1])])
    good = await registry.create(SECRETS, secret("good"))
    references = StoreReferences(store, KEYS, SECRETS)
    following = asyncio.create_task(references.run())
    try:
        for name in ("bad", "good"):
            references.use(("shop", name))
        async with asyncio.timeout(30):
            await references.until(lambda: references.known(("shop", "good")))
            for n in range(3):  # what ends it takes some turns to do so
                good = await registry.replace(SECRETS, good, {**good.obj(), "type": f"changed-{n}"})
                seen = asyncio.create_task(
                    references.until(lambda at=good.revision: references.revision >= at)
                )  # type: ignore[misc]
                await asyncio.wait([seen, following], return_when=asyncio.FIRST_COMPLETED)
                assert not following.done()
        entry = references.cache.get("shop", "good")
        assert entry is not None and entry.revision == good.revision
        assert not references.known(("shop", "bad"))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_values_in_clear_of_earlier_versions_are_read_and_sealed_when_they_are_written(
    inner: Store, key_file: str
) -> None:
    before = Registry(inner, KEYS)
    await before.create(SECRETS, secret("old"))
    registry = Registry(await opened(inner, key_file), KEYS)
    stored = await registry.get(SECRETS, "shop", "old")
    assert shows(stored.raw)
    assert shows(await everything(inner))
    await registry.replace(SECRETS, stored, {**stored.obj(), "immutable": True})
    assert not shows(await everything(inner))


async def test_without_its_key_a_store_is_not_served_and_the_key_is_named(
    inner: Store, key_file: str, tmp_path: Path
) -> None:
    store = await opened(inner, key_file)
    await Registry(store, KEYS).create(SECRETS, secret("s"))
    wanted = await KeyFiles([key_file]).current()
    other = str(tmp_path / "other")
    create_key_file(other)
    with pytest.raises(KeyUnknown, match=f"under key {wanted} of provider file.*other has"):
        await opened(inner, other)
    absent = str(tmp_path / "none")
    with pytest.raises(KeyUnknown, match=f"under key {wanted} of provider file, and {absent} does not exist"):
        await SealedStore.open(inner, KEYS, [KeyFiles([absent], make=True)])
    assert not (tmp_path / "none").exists(), "a lost key is not made again"
    both = await opened(inner, other, key_file)
    assert shows((await Registry(both, KEYS).get(SECRETS, "shop", "s")).raw)


async def test_replicas_that_start_together_have_one_data_key(inner: Store, key_file: str) -> None:
    stores = await asyncio.gather(*(opened(inner, key_file) for _ in range(6)))
    assert len({store.generation for store in stores}) == 1
    await Registry(stores[0], KEYS).create(SECRETS, secret("s"))
    for store in stores:
        assert shows((await Registry(store, KEYS).get(SECRETS, "shop", "s")).raw)


async def test_a_replica_takes_a_new_data_key_over_and_writes_nothing_under_the_old_one(
    inner: Store, key_file: str
) -> None:
    ours, theirs = await opened(inner, key_file), await opened(inner, key_file)
    await theirs.new_generation()
    assert ours.generation != theirs.generation
    stored = await Registry(ours, KEYS).create(SECRETS, secret("s"))
    raw = await inner.get(stored.key)
    assert raw is not None and theirs.generation.encode() in raw.value
    assert ours.generation == theirs.generation


async def test_a_value_under_a_data_key_that_is_gone_is_an_error_and_in_the_past_means_list_again(
    inner: Store, key_file: str
) -> None:
    store = await opened(inner, key_file)
    before = await store.revision()
    stored = await Registry(store, KEYS).create(SECRETS, secret("s"))
    old = store.generation
    await store.new_generation()
    await inner.txn([], [Delete(SealKeys(KEYS.root).key(old))])
    later = await opened(inner, key_file)
    with pytest.raises(Unreadable, match=f"data key {old}, which is not in the store"):
        await later.get(stored.key)
    with pytest.raises(Compacted):
        await anext(_events(later, before))


async def _events(store: Store, after: int) -> AsyncIterator[object]:
    prefix = KEYS.objects(SECRETS)
    async for batch in store.watch([(prefix, prefix_end(prefix))], after):
        if batch.events:
            yield batch


def test_no_other_kind_is_touched() -> None:
    store = SealedStore(MemoryStore(), KEYS, [])
    assert store.seals(KEYS.object(SECRETS, "-", "shop", "s"))
    assert not store.seals(KEYS.object(CONFIGMAPS, "-", "shop", "s"))
    assert not store.seals(KEYS.name(SECRETS, "shop", "s"))
