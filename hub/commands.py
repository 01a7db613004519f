"""What the commands of `hub.cli` do. Imports the hub's packages, so `hub.cli` imports it only to run one."""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from hub import kubeconfig
from hub.cli import USAGE, kubeconfig_path
from hub.client import ApiClient, ClientError
from hub.config import OPTIONS, ConfigError, default_data_dir, duration_s, load
from hub.objects import PREFIX
from hub.store.base import StoreError
from observability import logs
from security.errors import SecurityError

if TYPE_CHECKING:
    from hub.app import Hub

log = logging.getLogger(__name__)

FAILED = 1
TOKENS = f"/apis/{PREFIX}/v1alpha1/jointokens"
PARTED = f"{PREFIX}/parted"
CONFIRMED = f"{PREFIX}/confirmed"


class UsageError(Exception):
    """Options that do not go together."""


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
    config = load(values.config, {name: getattr(values, name) for name in OPTIONS})
    # The whole hub takes most of a second to import; the other commands and wrong settings need none of it.
    import uvloop

    from hub.app import Hub

    logs.configure(config.log_level, config.log_format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(Hub(config)))


async def _serve(hub: "Hub") -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await hub.serve(stop)
    log.info("stopped")
    return 0


def token_create(values: argparse.Namespace) -> int:
    if values.pool is not None and values.count is None:
        raise UsageError("--pool needs --count: how many nodes may join with the token")
    if values.node is not None and values.count not in (None, 1):
        raise UsageError("--count goes with --pool; a node token is for one node")
    spec: dict[str, Any] = {"node": values.node, "pool": values.pool, "count": values.count}
    spec |= {"site": values.site, "tenant": values.tenant}
    if values.ttl is not None:
        spec["ttlSeconds"] = int(duration_s(values.ttl, "--ttl"))
    body = {
        "apiVersion": f"{PREFIX}/v1alpha1",
        "kind": "JoinToken",
        "spec": {k: v for k, v in spec.items() if v is not None},
    }

    async def create(api: ApiClient) -> int:
        print((await api.post(TOKENS, body))["status"]["token"])
        return 0

    return _with_api(values, create)


def confirm(values: argparse.Namespace) -> int:
    async def confirm_nodes(api: ApiClient) -> int:
        if values.node is not None:
            nodes = [await api.get(f"/api/v1/nodes/{values.node}")]
        else:
            nodes = (await api.get("/api/v1/nodes"))["items"]
        waiting = [n for n in nodes if PARTED in (n["metadata"].get("annotations") or {})]
        if not waiting:
            print(f"{values.node or 'no node'}: nothing to confirm", file=sys.stderr)
        for node in waiting:
            name, claim = node["metadata"]["name"], node["metadata"]["annotations"][PARTED]
            await api.patch(f"/api/v1/nodes/{name}", {"metadata": {"annotations": {CONFIRMED: claim}}})
            print(f"{name} confirmed")
        return 0

    return _with_api(values, confirm_nodes)


def _with_api(values: argparse.Namespace, work: Callable[[ApiClient], Awaitable[int]]) -> int:
    credentials = kubeconfig.read(kubeconfig_path(values, default_data_dir()))

    async def call() -> int:
        async with ApiClient(credentials) as api:
            return await work(api)

    return asyncio.run(call())


def _fail(message: str, code: int) -> int:
    print(f"cloudhub: {message}", file=sys.stderr)
    return code


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "serve": serve,
    "token_create": token_create,
    "confirm": confirm,
}
