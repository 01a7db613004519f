"""What sealing costs: Secrets written, read, loaded and sealed anew in a hub's SQLite, plain and sealed; and at the edge.

    python -m tests.bench secrets

The same objects go through `Registry` into two stores in this process, one of them sealed. A Secret has 1 KB of data, as one
with a key and a certificate has. CPU is this process's, its writer thread and fsyncs' system time included.
"""

import asyncio
import base64
import os
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from edgelite import vault
from hub.objects import SECRETS, Keys
from hub.reencrypt import reencrypt
from hub.registry import Registry
from hub.store.sealing import SealedStore
from hub.store.sqlite import SqliteStore
from security import envelope
from security.keyring import KeyFiles
from security.sealed import create_key_file
from shards.kv import Store
from tests.bench.report import emit

BENCH = "secrets"
COUNT = 5000
BYTES = 1024
AT_ONCE = 100
ROUNDS = 5


def main() -> None:
    _floor()
    uvloop.run(_stores())
    _edge()


def _floor() -> None:
    """The cipher alone."""
    key, plain = secrets.token_bytes(32), secrets.token_bytes(BYTES * 4 // 3)
    sealed = envelope.seal(key, "1-abcdef01", "obj/core/secrets/-/shop/s", plain, os.urandom)
    name = "obj/core/secrets/-/shop/s"
    emit(
        BENCH,
        "seal one value",
        _each(lambda: envelope.seal(key, "1-abcdef01", name, plain, os.urandom)),
        "us",
    )
    emit(BENCH, "open one value", _each(lambda: envelope.unseal(key, name, sealed)), "us")


def _each(call: Callable[[], object], times: int = 5000) -> float:
    """The best of some rounds, in µs of CPU a call."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(times):
            call()
        best = min(best, (time.process_time() - began) / times * 1e6)
    return best


async def _stores() -> None:
    with tempfile.TemporaryDirectory() as directory:
        create_key_file(f"{directory}/keys")
        keys = Keys()
        plain = await SqliteStore.open(f"{directory}/plain")
        inner = await SqliteStore.open(f"{directory}/sealed")
        sealed = await SealedStore.open(inner, keys, [KeyFiles([f"{directory}/keys"])])
        stores: dict[str, Store] = {"plain": plain, "sealed": sealed}
        for kind, store in stores.items():
            await _measure(kind, Registry(store, keys))
        done = await _timed("seal anew", "sealed", lambda: reencrypt(sealed, new_key=True))
        assert done.values == COUNT
        for store in stores.values():
            await store.close()


async def _measure(kind: str, registry: Registry) -> None:
    objects = [_secret(f"s{i}") for i in range(COUNT)]

    async def write() -> None:
        for at in range(0, COUNT, AT_ONCE):
            await asyncio.gather(*(registry.create(SECRETS, o) for o in objects[at : at + AT_ONCE]))

    async def read() -> None:
        for i in range(COUNT):
            await registry.get(SECRETS, "shop", f"s{i}")

    async def load() -> None:
        start: str | None = None
        found = 0
        while True:
            page = await registry.page(SECRETS, start_key=start)
            found += len(page.items)
            start = page.next_key
            if start is None:
                break
        assert found == COUNT

    await _timed("write", kind, write)
    await _timed("read", kind, read, ROUNDS)
    await _timed("load", kind, load, ROUNDS)


async def _timed(what: str, kind: str, work: Callable[[], Awaitable[Any]], rounds: int = 1) -> Any:
    """The best of some rounds."""
    wall = used = float("inf")
    for _ in range(rounds):
        began, cpu = time.monotonic(), time.process_time()
        result = await work()
        wall, used = min(wall, time.monotonic() - began), min(used, time.process_time() - cpu)
    emit(BENCH, f"{what} {COUNT} Secrets, {kind}, wall", wall, "s")
    emit(BENCH, f"{what} a Secret, {kind}, CPU", used / COUNT * 1e6, "us")
    return result


def _secret(name: str) -> dict[str, Any]:
    data = {"key": base64.b64encode(secrets.token_bytes(BYTES)).decode()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": "shop"},
        "data": data,
    }


def _edge() -> None:
    """The standard library has no cipher: HMAC in counter mode, in Python."""
    made = vault.Vault(None, [os.urandom(32)], os.urandom)
    text = os.urandom(BYTES * 4 // 3)
    sealed = made.seal("doc/secret/shop/s", text)
    emit(BENCH, "edge: seal a Secret", _each(lambda: made.seal("doc/secret/shop/s", text), 200), "us")
    emit(BENCH, "edge: open a Secret", _each(lambda: made.unseal("doc/secret/shop/s", sealed), 200), "us")
    large = os.urandom(1 << 20)
    emit(BENCH, "edge: seal 1 MiB", _each(lambda: made.seal("doc/secret/shop/s", large), 1) / 1e6, "s")
