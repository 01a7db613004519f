"""`GET pods/<name>/log`: which container, which lines; the bytes come from the node through the gateway.

Source: the Kubernetes API reference, "read log of the specified Pod".
"""

import asyncio
import contextlib
import datetime
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Final, Protocol, cast

from hub import errors, objects
from hub.api.kinds import Object
from hub.api.requests import flag, number, timestamp
from hub.duplex import DuplexStream
from hub.registry import Registry

QUERY: Final = frozenset(
    (
        "container",
        "follow",
        "previous",
        "tailLines",
        "sinceSeconds",
        "sinceTime",
        "timestamps",
        "limitBytes",
        "insecureSkipTLSVerifyBackend",
        "pretty",
        "stream",
    )
)

MOVING_S: Final = 10.0
"""How long a log waits for a node that is Ready and served by nobody at this moment, as its slot is being handed over: as
long as the node's HELLO waits for an owner."""
RETRY_S: Final = 0.2


class Gateway(Protocol):
    """Where logs and streams come from: `hub.gateway`, or `hub.relaying` for any node of the fleet. `options` and
    `body` are those of the OPEN message, without its credit."""

    def open_log(self, node: str, options: dict[str, Any]) -> AsyncIterator[bytes]:
        """The log's bytes. Raises ApiError from the iterator; closing it ends the stream at the node."""
        ...

    async def open_stream(self, node: str, body: Mapping[str, Any]) -> DuplexStream:
        """exec, attach or portforward. Raises ApiError."""
        ...


def options(query: Mapping[str, str], now: datetime.datetime) -> dict[str, Any]:
    """What the OPEN message says beside pod and container. Raises BadRequest, Invalid. [pure]"""
    since_s = number(query, "sinceSeconds", low=1)
    since = timestamp(query, "sinceTime")
    if query.get("stream", "All") != "All":
        raise errors.BadRequest(
            'stream: only "All" is served: an edge node keeps stdout and stderr in one log'
        )
    if since is not None and since_s is not None:
        cause = errors.forbidden(
            "sinceSeconds", "at most one of `sinceTime` or `sinceSeconds` may be specified"
        )
        raise errors.Invalid("PodLogOptions", "", [cause])
    if since is not None:
        since_s = max(0, int((now - since).total_seconds()))
    return {
        "follow": flag(query, "follow"),
        "previous": flag(query, "previous"),
        "tail": number(query, "tailLines"),
        "since_s": since_s,
        "timestamps": flag(query, "timestamps"),
        "limit": number(query, "limitBytes", low=1, high=2**53),
    }


def container(pod: Object, asked: str) -> str:
    """The container whose log is meant. Raises BadRequest. [pure]"""
    spec, name = pod["spec"], pod["metadata"]["name"]
    main = [c["name"] for c in spec.get("containers", [])]
    init = [c["name"] for c in spec.get("initContainers", [])]
    if asked:
        if asked in main or asked in init:
            return asked
        raise errors.BadRequest(f"container {asked} is not valid for pod {name}")
    default = (pod["metadata"].get("annotations") or {}).get("kubectl.kubernetes.io/default-container")
    if default in main:
        return str(default)
    if len(main) == 1:
        return str(main[0])
    message = f"a container name must be specified for pod {name}, choose one of: [{' '.join(main)}]"
    if init:
        message += f" or one of the init containers: [{' '.join(init)}]"
    raise errors.BadRequest(message)


async def open_log(
    registry: Registry,
    gateway: Gateway | None,
    namespace: str,
    name: str,
    query: Mapping[str, str],
    now: datetime.datetime,
) -> AsyncIterator[bytes]:
    """The log asked for; an empty one for a pod that has no node yet. Raises ApiError."""
    wanted = options(query, now)
    pod = (await registry.get(objects.PODS, namespace, name)).obj()
    chosen = container(pod, query.get("container", ""))
    node = pod["spec"].get("nodeName")
    if not node:
        return _nothing()
    if gateway is None:
        raise errors.ServiceUnavailable("this hub has no gateway to its nodes")
    said = {**wanted, "pod": pod["metadata"]["uid"], "container": chosen}
    return _read(registry, gateway, node, said)


async def _read(
    registry: Registry, gateway: Gateway, node: str, said: dict[str, Any]
) -> AsyncIterator[bytes]:
    """The log; begun again for at most MOVING_S while its node is on its way from one replica to another."""
    loop = asyncio.get_running_loop()
    deadline, begun = loop.time() + MOVING_S, False
    while True:
        try:
            # Every implementation is a generator.
            opened = cast(AsyncGenerator[bytes, None], gateway.open_log(node, said))
            async with contextlib.aclosing(opened) as chunks:
                async for chunk in chunks:
                    begun = True
                    yield chunk
                return
        except errors.ServiceUnavailable:
            if begun or loop.time() >= deadline or not await _is_ready(registry, node):
                raise
        await asyncio.sleep(RETRY_S)


async def _is_ready(registry: Registry, node: str) -> bool:
    stored = await registry.find(objects.NODES, "", node)
    conditions = (stored.obj().get("status") or {}).get("conditions") or () if stored is not None else ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
