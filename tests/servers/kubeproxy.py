"""Stands between one client and the API server: counts what it asks for, and spoils it.

    with KubeProxy(cluster) as proxy:
        config = proxy.kubeconfig(account)        # through the proxy, with a token
        proxy.watch_life_s = 1.0                  # every watch is closed each second
        proxy.refused_share = 0.5                 # half of the requests get 429
        proxy.watches                             # paths of the watches that are open now

Clients bring a service account's token, for a certificate would end here. Its loop runs on a thread of its own.
"""

import asyncio
import contextlib
import json
import random
import ssl
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import parse_qs

import aiohttp
from aiohttp import web
from yarl import URL

from tests.servers.kubernetes import KubeCluster

T = TypeVar("T")
HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "content-length"}
)
WAIT_S = 30.0


class KubeProxy:
    """See the module. The faults are plain attributes, to be set at any time."""

    def __init__(self, cluster: KubeCluster, *, seed: int = 1) -> None:
        self._cluster = cluster
        self._random = random.Random(seed)
        self.watch_life_s: float | None = None
        """Every watch is closed this long after its start."""
        self.refused_share = 0.0
        """Of requests, watches among them, that are answered 429 with a Retry-After of a second."""
        self.down = False
        """Connections are cut as soon as they ask for something."""
        self.requests: Counter[tuple[str, str]] = Counter()
        """By verb (get, list, watch, or the method in small letters) and the path without names, e.g. ("list", "pods")."""
        self.written: dict[int, str] = {}
        """By the resourceVersion that it was answered with: the path of every write that was carried out. A patch that
        changes nothing is answered with the version that it names, which another's write has made, and is not one."""
        self.vain: Counter[str] = Counter()
        """Patches that changed nothing, by path."""
        self.refused = 0
        self.watches_max = 0
        self._watches: Counter[str] = Counter()
        self._handlers: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kubeproxy", daemon=True)
        self._thread.start()
        try:
            self.url = self._call(self._serve())
        except BaseException:
            self._end()
            raise

    @property
    def watches(self) -> Counter[str]:
        """The paths, with their selectors, of watches that are open, and how many there are of each."""
        return Counter({path: count for path, count in self._watches.copy().items() if count})

    def kubeconfig(self, account: str, token: str) -> str:
        """The path of a kubeconfig that leads here."""
        file = self._cluster.root / f"{account}.token"
        file.touch(mode=0o600)
        file.write_text(token)
        return self._cluster.pki.kubeconfig(self.url, account, token_file=str(file))

    def cut(self) -> None:
        """Cuts everything that is under way, watches too, without a word."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._handlers])

    @contextlib.contextmanager
    def storm(self, share: float) -> Iterator[None]:
        """429 for this share of the requests while the block runs."""
        self.refused_share = share
        try:
            yield
        finally:
            self.refused_share = 0.0

    def close(self) -> None:
        self._call(self._stop())
        self._end()

    def __enter__(self) -> "KubeProxy":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    async def _serve(self) -> str:
        pki = self._cluster.pki
        self._upstream = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context(cafile=pki.root)),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pki.issue("proxy", addresses=("127.0.0.1",)))
        server = web.Server(self._handle, access_log=None, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        port = self._runner.addresses[0][1]
        return f"https://127.0.0.1:{port}"

    async def _stop(self) -> None:
        for task in self._handlers:
            task.cancel()
        await self._runner.cleanup()
        await self._upstream.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        verb, resource = _kind(request)
        self.requests[verb, resource] += 1
        task = asyncio.current_task()
        assert task is not None
        if self.down:
            return self._cut_off(request)
        if self._random.random() < self.refused_share:
            self.refused += 1
            return web.json_response(
                {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 429,
                 "reason": "TooManyRequests", "message": "a storm of the tests"},
                status=429, headers={"Retry-After": "1"},
            )  # fmt: skip
        self._handlers.add(task)
        try:
            return await self._forward(request, verb == "watch")
        except (asyncio.CancelledError, aiohttp.ClientError, ConnectionError):
            return self._cut_off(request)
        finally:
            self._handlers.discard(task)

    def _cut_off(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=503)

    @contextlib.contextmanager
    def _counted(self, path: str) -> Iterator[None]:
        selectors = {k: v for k, v in parse_qs(path.partition("?")[2]).items() if k.endswith("Selector")}
        key = path.partition("?")[0] + "".join(f" {k}={v[0]}" for k, v in sorted(selectors.items()))
        self._watches[key] += 1
        self.watches_max = max(self.watches_max, self._watches.total())
        try:
            yield
        finally:
            self._watches[key] -= 1

    def _note(self, path: str, sent: bytes, status: int, body: bytes) -> None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if status >= 300:
                return
            version = json.loads(body)["metadata"]["resourceVersion"]
            if version == _version_named(sent):
                self.vain[path] += 1
            else:
                self.written[int(version)] = path

    async def _forward(self, request: web.BaseRequest, is_watch: bool) -> web.StreamResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        body = await request.read()
        # Not parsed: what is quoted stays as the client quoted it.
        url = URL(self._cluster.server + request.raw_path, encoded=True)
        async with self._upstream.request(
            request.method, url, headers=headers, data=body or None, allow_redirects=False
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            if request.method != "GET":
                whole = await answer.read()
                await response.write(whole)
                self._note(request.path, body, answer.status, whole)
            # A watch is open once it is answered: Go asks again by itself for what was cut before.
            with self._counted(request.path_qs) if is_watch else contextlib.nullcontext():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.watch_life_s if is_watch else None):
                        async for chunk in answer.content.iter_any():
                            await response.write(chunk)
            await response.write_eof()
            return response


def _version_named(sent: bytes) -> str:
    """The resourceVersion under which a patch stands; "" of anything else."""
    body = json.loads(sent or b"{}")
    return str(body.get("metadata", {}).get("resourceVersion", ""))


def _kind(request: web.BaseRequest) -> tuple[str, str]:
    """The verb and the resource, with its subresource."""
    parts = request.path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:] if parts[0] == "apis" else parts
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        parts = parts[2:]
    resource = "/".join(parts[:1] + parts[2:3])
    if request.method != "GET":
        return request.method.lower(), resource
    if request.query.get("watch") in ("1", "true"):
        return "watch", resource
    return "get" if len(parts) > 1 else "list", resource
