"""`cloudhub backup`, `restore`, `store copy` and `reencrypt`: options, questions and what is printed; `hub.operations` does the work."""

import argparse
import asyncio
import dataclasses
import datetime
import os
import sys
import time
from collections.abc import Coroutine
from typing import Any

import orjson

from hub import operations
from hub.backup import BackupSource
from hub.config import ConfigError, split_address
from hub.keyproviders import KeySettings
from hub.operations import Done, Place
from hub.store.sqlite import SqliteReader
from hub.transfer import Progress
from security.sealed import read_key_file
from shards.etcd.client import read_tls
from shards.kv import Moved, StoreIdentity, Unavailable

PROGRESS_S = 1.0


def backup(values: argparse.Namespace) -> int:
    """Exit code 0; raises what `operations.back_up` does, and ConfigError."""
    place, secret = _place(values), _secret(values)
    work = operations.back_up(place, values.file, secret, time.time(), _progress("saved"))
    done = _run(work, "nothing is left behind; run the command again")
    if done.clear:
        _say(
            f"warning: {values.file} holds the authority's key, those of tokens and the key to Secrets in clear, so whoever reads"
            " it can join and command this fleet; keep it secret, or seal it with --key-file"
        )
    _result(values, done, f"{values.file}: {done.keys} keys of {place}", file=values.file)
    return 0


def restore(values: argparse.Namespace) -> int:
    """Exit code 0, 1 when the answer was not yes; raises what `operations.restore` does, and ConfigError."""
    place = _place(values)
    if place.etcd and not values.key_file:
        raise ConfigError(
            "--etcd needs --key-file: in etcd the authority is sealed under the replicas' key file"
        )
    _check_can_ask(values)
    secret = _secret(values)
    now = time.time()
    source = BackupSource.open(values.file)
    operations.open_authority(source.header, secret, now)
    taken = datetime.datetime.fromtimestamp(source.header.time, datetime.UTC)
    _say(f"{values.file} was taken at {taken:%Y-%m-%d %H:%M:%S} UTC and holds {source.count} keys.")
    _plan(source.identity, place, now)
    _say("Workloads that are newer than the backup are removed from the nodes, deleted ones come back.")
    if not _agreed(values):
        return 1
    work = operations.restore(source, place, secret, now, _progress("restored"))
    done = _run(work, f"{place} is half filled and is not served; run the same command again to go on")
    _result(values, done, f"restored {done.keys} keys into {place} as generation {done.generation}")
    return 0


def copy(values: argparse.Namespace) -> int:
    """Exit code 0, 1 when the answer was not yes; raises what `operations.copy` does, and ConfigError."""
    place = _place(values)
    _check_can_ask(values)
    secret = _secret(values)
    assert secret is not None
    now = time.time()
    directory = os.path.abspath(values.from_data_dir)
    # What it is, where it can be read already; that it may be moved is checked by the work.
    identity = asyncio.run(_identity(directory))
    if identity is not None:
        _plan(identity, place, now)
    _say(f"{directory} keeps its data, but no hub serves it any more.")
    if not _agreed(values):
        return 1
    work = operations.copy(directory, place, secret, now, _progress("copied"))
    done = _run(work, f"{place} is half filled and is not served; run the same command again to go on")
    _result(values, done, f"moved {done.keys} keys to {place} as generation {done.generation}")
    return 0


def reencrypt(values: argparse.Namespace) -> int:
    """Exit code 0; raises what `operations.reencrypt` does, and ConfigError."""
    place = _place(values)
    if place.etcd and not values.key_file:
        raise ConfigError("--etcd needs --key-file, the key file of the replicas")
    files = [os.path.abspath(path) if path else "" for path in (values.key_file, values.kms_socket)]
    keys = KeySettings(place.data_dir, *files)
    work = operations.reencrypt(place, keys, values.new_key, _progress("sealed anew"))
    try:
        done = asyncio.run(work)
    except KeyboardInterrupt:
        _say("cloudhub: interrupted: what is sealed anew stays so; run the command again to go on")
        raise
    if values.output == "json":
        print(orjson.dumps(dataclasses.asdict(done)).decode())
        return 0
    print(
        f"{done.values} of {done.of} values sealed anew under data key {done.generation}; {done.given_up} data keys given up"
        + ("; the authority and the keys of service accounts' tokens sealed anew" if done.shared else "")
    )
    return 0


async def _identity(directory: str) -> StoreIdentity | None:
    try:
        reader = await SqliteReader.open(directory)
    except (Moved, Unavailable):
        return None
    await reader.close()
    return reader.identity


def _place(values: argparse.Namespace) -> Place:
    if not values.etcd:
        if values.etcd is not None:
            raise ConfigError("etcd: give HOST:PORT of at least one member")
        for name in ("etcd_ca", "etcd_cert", "etcd_key"):
            if getattr(values, name):
                raise ConfigError(f"--{name.replace('_', '-')} goes with --etcd")
        return Place(data_dir=os.path.abspath(values.data_dir))
    for endpoint in values.etcd:
        split_address(endpoint, "etcd")
    if bool(values.etcd_cert) != bool(values.etcd_key):
        raise ConfigError("--etcd-cert and --etcd-key go together")
    if values.etcd_cert and not values.etcd_ca:
        raise ConfigError(
            "--etcd-cert goes with --etcd-ca, the roots that etcd's certificates are checked with"
        )
    tls = read_tls(values.etcd_ca or "", values.etcd_cert or "", values.etcd_key or "")
    return Place(etcd=tuple(values.etcd), tls=tls)


def _secret(values: argparse.Namespace) -> bytes | None:
    return read_key_file(values.key_file) if values.key_file else None


def _plan(identity: StoreIdentity, place: Place, now: float) -> None:
    generation = operations.raised(identity, now).generation
    _say(
        f"Store {identity.uuid} becomes generation {generation} (it was {identity.generation}) at {place}.\n"
        "The fleet's nodes will follow the hubs that serve this data, and no others: stop those, and do not start them again."
    )


def _check_can_ask(values: argparse.Namespace) -> None:
    if not values.yes and not sys.stdin.isatty():
        raise ConfigError("standard input is no terminal, so nobody can be asked; say --yes if this is meant")


def _agreed(values: argparse.Namespace) -> bool:
    if values.yes:
        return True
    print("Type yes to go on: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() == "yes":
        return True
    _say("nothing was done")
    return False


def _run(work: Coroutine[Any, Any, Done], interrupted: str) -> Done:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        _say(f"cloudhub: interrupted: {interrupted}")
        raise


def _progress(verb: str) -> Progress:
    last = time.monotonic()

    def tell(count: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_S:
            last = time.monotonic()
            _say(f"{count} keys {verb}")

    return tell


def _result(values: argparse.Namespace, done: Done, text: str, **more: str) -> None:
    if values.output == "json":
        print(orjson.dumps({**more, **dataclasses.asdict(done)}).decode())
    else:
        print(text)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
