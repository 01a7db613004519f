"""The API server: TLS, routing, authentication, bounds, lifecycle.

Invariants: every answer that is no success is a metav1.Status; every request is counted and bounded in size, time and
number; `stop` ends watches first, then lets what runs finish.
"""

import asyncio
import logging
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestHandler

from hub import errors
from hub.api import openapi
from hub.api.auth import Attributes, User, authenticate, authorize, refuse_impersonation
from hub.api.discovery import Discovery, version_info
from hub.api.handlers import Handlers, Timing, json_response, verb_of
from hub.api.kinds import kinds
from hub.api.logs import Gateway
from hub.api.negotiation import JSON, discovery_version
from hub.api.protocol import HttpServer
from hub.api.rendering import encode
from hub.api.requests import Target, flag, parse_target
from hub.api.reviews import review_at
from hub.api.watch import WatchCache
from hub.api.writing import Mint, Writer
from hub.informer import Informers
from hub.registry import Registry
from observability.metrics import CONTENT_TYPE as METRICS_TYPE
from observability.metrics import Metrics

log = logging.getLogger(__name__)

CLIENT_GONE: Final = 499
"""Counted for requests whose client went away; never sent."""

Check = Callable[[], str | None]
"""A readiness check: None, or why not."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds. What is over them gets 429, or is not accepted."""

    connections: int = 2000
    in_flight: int = 400
    """Requests at once that are no watch and no followed log."""
    watches_per_user: int = 500
    watches: int = 5000
    header_bytes: int = 16 * 1024
    headers: int = 100
    first_request_s: float = 15.0
    """A connection that has sent no request by then is closed."""
    keepalive_s: float = 120.0
    handshake_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Config:
    """`address`: port 0 picks a free one. `build`: the version of this program."""

    address: tuple[str, int] = ("127.0.0.1", 8443)
    build: str = "0.1.0"
    limits: Limits = field(default_factory=Limits)
    timing: Timing = field(default_factory=Timing)


class ApiServer:
    """Serves the API of one replica. The informers that it is given must be running."""

    def __init__(
        self,
        registry: Registry,
        informers: Informers,
        tls: ssl.SSLContext | None,
        config: Config,
        metrics: Metrics,
        *,
        gateway: Gateway | None = None,
        mint: Mint | None = None,
        ready: Mapping[str, Check] | None = None,
        authenticator: Callable[[Mapping[str, Any] | None, float], User] = authenticate,
    ) -> None:
        """`tls`: None serves plain HTTP, where nobody can be authenticated: for tests, with an `authenticator`."""
        self._config = config
        self._tls = tls
        self._ready = dict(ready or {})
        self._authenticate = authenticator
        self._watches = {
            kind.res: WatchCache(
                kind, informers.of(kind.res), registry.store, registry.keys.objects(kind.res)
            )
            for kind in kinds().values()
        }
        self._handlers = Handlers(registry, self._watches, Writer(registry, mint), gateway, config.timing)
        self._discovery = Discovery()
        self._version = encode(version_info(config.build))
        self._metrics = metrics
        self._requests = metrics.counter(
            "cloudhub_api_requests", "Requests answered.", ("verb", "resource", "code")
        )
        self._seconds = metrics.counter(
            "cloudhub_api_request_seconds", "Seconds spent on requests, watches and logs left out.", ("verb",)
        )
        metrics.gauge_of("cloudhub_api_in_flight", "Requests being served.", lambda: {(): self._in_flight})
        metrics.gauge_of("cloudhub_api_watches", "Watches and followed logs.", lambda: {(): self._long})
        self._in_flight = 0
        self._long = 0
        self._long_by_user: Counter[str] = Counter()
        self._server: HttpServer | None = None
        self._unused: dict[RequestHandler, asyncio.TimerHandle] = {}
        self._listener: asyncio.Server | None = None
        self._stopping = False

    # -- lifecycle ----------------------------------------------------------------------------------------------

    async def start(self) -> tuple[str, int]:
        """Listens; returns the address. Raises OSError when it is taken."""
        limits = self._config.limits
        self._server = HttpServer(
            self._answer,
            access_log=None,
            keepalive_timeout=limits.keepalive_s,
            max_line_size=limits.header_bytes,
            max_field_size=limits.header_bytes,
            max_headers=limits.headers,
            auto_decompress=False,
        )
        for cache in self._watches.values():
            cache.start()
        loop = asyncio.get_running_loop()
        host, port = self._config.address
        self._listener = await loop.create_server(
            self._connection,
            host,
            port,
            ssl=self._tls,
            ssl_handshake_timeout=limits.handshake_s if self._tls else None,
            backlog=512,
        )
        bound = self._listener.sockets[0].getsockname()
        return str(bound[0]), int(bound[1])

    async def stop(self, grace_s: float = 5.0) -> None:
        """Accepts nothing more, ends watches, lets other requests finish for at most `grace_s`, closes."""
        self._stopping = True
        if self._listener is not None:
            self._listener.close()
        for cache in self._watches.values():
            cache.stop()
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(grace_s)
            self._server = None
        for timer in self._unused.values():
            timer.cancel()
        self._unused.clear()

    def _connection(self) -> asyncio.Protocol:
        """One accepted connection, before its handshake."""
        assert self._server is not None
        limits = self._config.limits
        if len(self._server.connections) >= limits.connections or len(self._unused) >= limits.connections:
            return _Refused()
        protocol = self._server()
        loop = asyncio.get_running_loop()
        self._unused[protocol] = loop.call_later(limits.first_request_s, self._close_unused, protocol)
        return protocol

    def _close_unused(self, protocol: RequestHandler) -> None:
        """Closes a connection that has sent no whole request head since it was accepted."""
        self._unused.pop(protocol, None)
        protocol.force_close()

    # -- one request --------------------------------------------------------------------------------------------

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if (timer := self._unused.pop(request.protocol, None)) is not None:
            timer.cancel()
        began = time.monotonic()
        verb, resource = request.method.lower(), ""
        code = CLIENT_GONE
        try:
            user = self._authenticate(request.get_extra_info("peercert"), time.time())
            refuse_impersonation(request.headers, user)
            path = request.rel_url.raw_path
            if (review := review_at(path)) is not None:
                verb, resource = "create", review.qualified
                response = await self._bounded(self._handlers.review(request, review, user))
                code = response.status
                return response
            target = parse_target(path) if path.startswith(("/api", "/apis")) else None
            if target is None:
                authorize(user, Attributes(verb, path))
                response = await self._bounded(self._document(request, path.rstrip("/") or "/"))
            else:
                resource = target.kind.res.group_resource
                verb = verb_of(request, target)
                authorize(user, _attributes(target, verb, path))
                response = await self._serve(request, target, verb, user)
            code = response.status
            return response
        except errors.ApiError as failure:
            code = failure.code
            return self._failed(failure)
        except (ConnectionResetError, ConnectionAbortedError) as gone:
            log.debug("%s %s: %s", request.method, request.rel_url.raw_path, gone)
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.rel_url.raw_path)
            code = 500
            return self._failed(errors.InternalError("see the hub's log; this is a bug of the hub"))
        finally:
            self._requests.add(verb, resource, str(code))
            if verb != "watch":
                self._seconds.add(verb, amount=time.monotonic() - began)

    async def _serve(
        self, request: web.BaseRequest, target: Target, verb: str, user: User
    ) -> web.StreamResponse:
        if verb == "watch":
            return await self._unbounded(self._handlers.watch(request, target), user)
        if target.subresource == "log":
            if flag(request.query, "follow"):
                return await self._unbounded(self._handlers.log(request, target), user)
            return await self._bounded(self._handlers.log(request, target))
        return await self._bounded(self._handlers.serve(request, target, verb))

    async def _bounded(self, serving: Awaitable[web.StreamResponse]) -> web.StreamResponse:
        """Within the limits on number and time."""
        if self._in_flight >= self._config.limits.in_flight or self._stopping:
            _discard(serving)
            if self._stopping:
                raise errors.ServiceUnavailable("the server is shutting down")
            raise errors.TooManyRequests()
        self._in_flight += 1
        seconds = self._config.timing.request_s
        try:
            async with asyncio.timeout(seconds):
                return await serving
        except TimeoutError:
            raise errors.Timeout(f"request did not complete within requested timeout {seconds:g}s") from None
        finally:
            self._in_flight -= 1

    async def _unbounded(self, serving: Awaitable[web.StreamResponse], user: User) -> web.StreamResponse:
        """Watches and followed logs: limited in number, not in time."""
        limits = self._config.limits
        if self._stopping:
            _discard(serving)
            raise errors.ServiceUnavailable("the server is shutting down")
        if self._long >= limits.watches or self._long_by_user[user.name] >= limits.watches_per_user:
            _discard(serving)
            raise errors.TooManyRequests(
                f"too many watches: at most {limits.watches_per_user} for a user and {limits.watches} in all",
                retry_after_s=5,
            )
        self._long += 1
        self._long_by_user[user.name] += 1
        try:
            return await serving
        finally:
            self._long -= 1
            self._long_by_user[user.name] -= 1
            if not self._long_by_user[user.name]:
                del self._long_by_user[user.name]

    def _failed(self, failure: errors.ApiError) -> web.Response:
        response = json_response(encode(failure.status()), status=failure.code)
        if failure.retry_after_s:
            response.headers[hdrs.RETRY_AFTER] = str(failure.retry_after_s)
        return response

    # -- paths that are no resource -----------------------------------------------------------------------------

    async def _document(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        if request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
            raise errors.MethodNotAllowed()
        accept = request.headers.get(hdrs.ACCEPT, "")
        if path in ("/livez", "/healthz") or path.startswith(("/readyz", "/livez/", "/healthz/")):
            return self._health(request, path)
        if path == "/version":
            return json_response(self._version)
        if path == "/metrics":
            body = await asyncio.to_thread(self._metrics.prometheus)
            return web.Response(body=body, headers={hdrs.CONTENT_TYPE: METRICS_TYPE})
        if path.startswith("/openapi/"):
            return await self._openapi(request, path, accept)
        if path.startswith("/api"):
            version = discovery_version(accept)
            found = self._discovery.document(path, version)
            if found is not None:
                response = json_response(found)
                if version and path in ("/api", "/apis"):
                    response.headers[hdrs.CONTENT_TYPE] = (
                        f"{JSON};g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
                    )
                response.headers[hdrs.VARY] = "Accept"
                return response
        if path == "/":
            paths = [
                *self._discovery.paths,
                "/livez",
                "/metrics",
                "/openapi/v2",
                "/openapi/v3",
                "/readyz",
                "/version",
            ]
            return json_response(encode({"paths": paths}))
        raise errors.NotFound.no_such_path()

    async def _openapi(self, request: web.BaseRequest, path: str, accept: str) -> web.StreamResponse:
        if path == "/openapi/v2":
            body, media = await asyncio.to_thread(openapi.v2, accept)
            return web.Response(body=body, headers={hdrs.CONTENT_TYPE: media})
        if path == "/openapi/v3":
            return json_response(await asyncio.to_thread(openapi.v3_index))
        document = path.removeprefix("/openapi/v3/")
        body = await asyncio.to_thread(openapi.v3_document, document)
        response = json_response(body)
        if request.query.get("hash"):
            response.headers[hdrs.CACHE_CONTROL] = "public, immutable"
        return response

    def _health(self, request: web.BaseRequest, path: str) -> web.Response:
        """Alive while it answers; ready while every check passes."""
        failed: list[str] = []
        lines: list[str] = []
        checks: dict[str, Check] = {"ping": lambda: None}
        if path.startswith("/readyz"):
            checks |= self._ready
            checks["shutdown"] = lambda: "shutting down" if self._stopping else None
        only = path.split("/")[2] if path.count("/") > 1 else ""
        if only and only not in checks:
            raise errors.NotFound.no_such_path()
        for name, check in checks.items():
            if only and name != only:
                continue
            why = check()
            lines.append(f"[-]{name} failed: {why}" if why else f"[+]{name} ok")
            if why:
                failed.append(name)
        title = path.split("/")[1]
        if failed:
            text = "\n".join([*lines, f"{title} check failed", ""])
            return web.Response(text=text, status=503)
        if "verbose" in request.query:
            return web.Response(text="\n".join([*lines, f"{title} check passed", ""]))
        return web.Response(text="ok")


def _attributes(target: Target, verb: str, path: str) -> Attributes:
    res = target.kind.res
    return Attributes(verb, path, res.group, res.resource, target.subresource, target.namespace, target.name)


def _discard(serving: Awaitable[web.StreamResponse]) -> None:
    """A coroutine that is not going to run."""
    close = getattr(serving, "close", None)
    if close is not None:
        close()


class _Refused(asyncio.Protocol):
    """A connection over the limit."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
