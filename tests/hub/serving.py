"""A hub's API over a MemoryStore, for tests: plain HTTP unless a TLS context is given, on a free port of 127.0.0.1."""

import asyncio
import contextlib
import io
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp

from hub.api.auth import Authenticator
from hub.api.server import ApiServer, Config, Limits, Timing
from hub.deletion import ensure_namespaces
from hub.objects import Keys
from hub.registry import Registry
from hub.store.memory import MemoryStore
from observability.metrics import Metrics
from security.rbac import MASTERS, User

Object = dict[str, Any]
DEADLINE_S = 10.0


def master(_cert: Mapping[str, Any] | None, _now: float) -> User:
    return User("admin", (MASTERS,))


async def identified(_cert: Mapping[str, Any] | None, _headers: Mapping[str, str], _now: float) -> User:
    """Everybody is the administrator."""
    return User("admin", (MASTERS,))


class Reply:
    """A finished answer."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes, warnings: list[str]) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.warnings = warnings

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json["message"])


class Hub:
    """The server and a client of it."""

    def __init__(self, store: MemoryStore, registry: Registry, api: ApiServer, metrics: Metrics) -> None:
        self.metrics = metrics
        self.store = store
        self.registry = registry
        self.api = api
        self.url = ""
        self.port = 0
        self.http: aiohttp.ClientSession

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        accept: str = "",
        content_type: str = "application/json",
        params: Mapping[str, str] | None = None,
    ) -> Reply:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Accept": accept} if accept else {}
        if data is not None:
            headers["Content-Type"] = content_type
        async with (
            asyncio.timeout(DEADLINE_S),
            self.http.request(
                method, self.url + path, data=data and io.BytesIO(data), headers=headers, params=params
            ) as r,
        ):
            return Reply(r.status, r.headers, await r.read(), r.headers.getall("Warning", []))

    async def get(self, path: str, **options: Any) -> Reply:
        return await self.call("GET", path, **options)

    async def post(self, path: str, body: Any, **options: Any) -> Reply:
        return await self.call("POST", path, body, **options)

    async def created(self, path: str, body: Any) -> Object:
        reply = await self.post(path, body)
        assert reply.status == 201, reply.body
        found: Object = reply.json
        return found

    @contextlib.asynccontextmanager
    async def watch(self, path: str, *, accept: str = "", **params: str) -> AsyncIterator["Watch"]:
        headers = {"Accept": accept} if accept else {}
        async with self.http.get(self.url + path, params={"watch": "1", **params}, headers=headers) as r:
            yield Watch(r)


class Watch:
    """An open watch, read event by event."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self) -> tuple[str, Object]:
        async with asyncio.timeout(DEADLINE_S):
            line = await self.response.content.readline()
        assert line, "the watch ended"
        event = json.loads(line)
        return event["type"], event["object"]

    async def names(self, count: int) -> list[tuple[str, str]]:
        return [(kind, obj["metadata"]["name"]) for kind, obj in [await self.next() for _ in range(count)]]

    async def ended(self) -> bool:
        async with asyncio.timeout(DEADLINE_S):
            return not await self.response.content.readline()


@contextlib.asynccontextmanager
async def hub(
    *,
    store: MemoryStore | None = None,
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
    timing: Timing | None = None,
    authenticator: Callable[[Mapping[str, Any] | None, float], User] | None = None,
    elsewhere: str = "",
    **options: Any,
) -> AsyncIterator[Hub]:
    """A running hub with the system namespaces."""
    store = store or MemoryStore(slots=16)
    registry = Registry(store, Keys())
    metrics = Metrics()
    asked = authenticator or (None if tls else master)

    async def identify(cert: Any, headers: Mapping[str, str], now: float) -> User:
        if asked is not None:
            return asked(cert, now)
        return await Authenticator(options.get("tokens"), trust_domain="cloudhub.local").user(
            cert, headers, now
        )

    config = Config(("127.0.0.1", 0), "test", elsewhere, limits or Limits(), timing or Timing())
    api = ApiServer(
        registry,
        tls,
        config,
        metrics,
        identify=identify,
        **options,
    )
    running = Hub(store, registry, api, metrics)
    await ensure_namespaces(registry)
    host, running.port = await api.start()
    running.url = f"{'https' if tls else 'http'}://{host}:{running.port}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as running.http:
        try:
            yield running
        finally:
            await running.http.close()
            await api.stop(2.0)


def pod(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "x:1"}], **spec},
    }


def configmap(name: str, **labels: str) -> Object:
    meta: Object = {"name": name}
    if labels:
        meta["labels"] = labels
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"a": "b"}}


def deployment(name: str, replicas: int = 1) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "x:1"}]},
            },
        },
    }


PODS = "/api/v1/namespaces/default/pods"
CONFIGMAPS = "/api/v1/namespaces/default/configmaps"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
