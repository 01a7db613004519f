"""What the commands of `hub.cli` do. Imports the hub's packages, so `hub.cli` imports it only to run one."""

import argparse
import asyncio
import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from hub import kubeconfig, loopfaults
from hub.cli import USAGE
from hub.client import ApiClient, ClientError
from hub.collector import Collector
from hub.config import OPTIONS, ConfigError, load
from hub.usage import UsageError
from observability import logs
from security.errors import SecurityError
from shards.kv import StoreError

if TYPE_CHECKING:
    from hub.app import Hub

log = logging.getLogger(__name__)

FAILED = 1
SWITCH_S = 0.0005
"""How long a thread waits for the interpreter's lock before it asks for it; Python's own default is ten times that."""
Command = Callable[[argparse.Namespace], int]
Work = Callable[[Any, argparse.Namespace], Awaitable[int]]
"""What is asked of an API, by a client of it (`ApiClient`, or `KubeClient` for a cluster's); the exit code."""


def run(name: str, values: argparse.Namespace) -> int:
    """Runs a command by the name that the parser gave it; the exit code."""
    try:
        return COMMANDS[name](values)
    except (ConfigError, UsageError) as wrong:
        return _fail(str(wrong), USAGE)
    except (StoreError, SecurityError, ClientError, kubeconfig.KubeconfigError) as failure:
        return _fail(str(failure), FAILED)
    except OSError as failure:
        return _fail(str(failure), FAILED)
    except KeyboardInterrupt:
        return 130


def serve(values: argparse.Namespace) -> int:
    options = {name: getattr(values, name) for name in OPTIONS}
    config = load(values.config, options, os.environ.get("SPIFFE_ENDPOINT_SOCKET", ""))
    # The whole hub takes most of a second to import; the other commands and wrong settings need none of it.
    import uvloop

    from hub.app import Hub

    # Modules stay: the collector, which stops everybody, need not look at them again.
    gc.collect()
    gc.freeze()
    # The store's thread takes up a commit, and hands it back, as soon as it gets the interpreter's lock from a busy loop.
    sys.setswitchinterval(SWITCH_S)
    logs.configure(config.log_level, config.log_format, replica=config.replica)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(Hub(config)))


async def _serve(hub: "Hub") -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(loopfaults.handle)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with Collector() as collector:
        looking = loop.create_task(collector.run(), name="collector")
        try:
            await hub.serve(stop)
        finally:
            looking.cancel()
    log.info("stopped")
    return 0


def key_create(values: argparse.Namespace) -> int:
    if values.file.startswith("pkcs11:"):
        from security.keys import P256
        from security.pkcs11 import create_key

        key = create_key(values.file, values.algorithm or P256)
        print(f"made {key.reference} ({key.algorithm}); start every replica with --ca-key")
        return 0
    if values.algorithm is not None:
        raise UsageError("--algorithm goes with the URI of a key in a token; a key file has none")
    from security.sealed import create_key_file

    create_key_file(values.file)
    print(f"made {values.file}; give it to every replica, and keep a copy")
    return 0


def _of(module: str, name: str) -> Command:
    """A command of a module that is imported only to run it."""

    def run(values: argparse.Namespace) -> int:
        return int(getattr(importlib.import_module(f"hub.{module}"), name)(values))

    return run


def _at_hub(module: str, name: str) -> Command:
    """One that asks the hub's API: `name(api, values)`."""

    def run(values: argparse.Namespace) -> int:
        work = getattr(importlib.import_module(f"hub.{module}"), name)
        return asyncio.run(_with_hub(work, values))

    return run


def _anywhere(module: str, name: str) -> Command:
    """The same, at a hub or in the cluster that keeps its objects."""

    def run(values: argparse.Namespace) -> int:
        work = getattr(importlib.import_module(f"hub.{module}"), name)
        return asyncio.run(_with_cluster(work, values) if values.kubeconfig else _with_hub(work, values))

    return run


async def _with_hub(work: Work, values: argparse.Namespace) -> int:
    async with ApiClient(kubeconfig.read(kubeconfig.path_of(values))) as api:
        return int(await work(api, values))


async def _with_cluster(work: Work, values: argparse.Namespace) -> int:
    """By a kubeconfig that is not the hub's own: whatever credentials it has. Raises ClientError."""
    from hub import errors
    from hub.kubernetes.client import KubeClient
    from hub.kubernetes.config import KubeConfig

    try:
        async with KubeClient(KubeConfig.from_file(values.kubeconfig)) as api:
            return int(await work(api, values))
    except errors.ApiError as failure:
        raise ClientError(failure.message) from failure


def _fail(message: str, code: int) -> int:
    print(f"cloudhub: {message}", file=sys.stderr)
    return code


COMMANDS: dict[str, Command] = {
    "serve": serve,
    "token_create": _of("tokencommands", "token_create"),
    "token_list": _of("tokencommands", "token_list"),
    "token_revoke": _of("tokencommands", "token_revoke"),
    "node_allow_rejoin": _of("tokencommands", "node_allow_rejoin"),
    "confirm": _anywhere("confirming", "confirm"),
    "key_create": key_create,
    "user_create": _of("usercommands", "create"),
    "user_list": _of("usercommands", "show"),
    "serviceaccount_keys": _at_hub("keycommands", "show"),
    "serviceaccount_rotate_keys": _at_hub("keycommands", "rotate"),
    "status": _at_hub("statustable", "show"),
    "ca_status": _at_hub("certcommands", "ca_status"),
    "ca_rotate": _at_hub("certcommands", "ca_rotate"),
    "cert_list": _at_hub("certcommands", "cert_list"),
    "revoke": _at_hub("certcommands", "revoke"),
    "revoke_list": _at_hub("certcommands", "revoke_list"),
    "release_keygen": _of("releasecommands", "keygen"),
    "release_publish": _anywhere("releasecommands", "publish"),
    "release_roll": _anywhere("releasecommands", "roll"),
    "backup": _of("datacommands", "backup"),
    "restore": _of("datacommands", "restore"),
    "store_copy": _of("datacommands", "copy"),
    "store_reencrypt": _of("datacommands", "reencrypt"),
    "simulate": _of("simulate.command", "simulate"),
}
