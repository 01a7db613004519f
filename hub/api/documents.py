"""Paths that are no resource: health, version, discovery, OpenAPI, metrics, status."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import hdrs, web

from hub import errors
from hub.api import openapi
from hub.api.answering import json_response
from hub.api.discovery import Discovery, version_info
from hub.api.negotiation import JSON, discovery_version
from hub.api.rendering import encode
from observability.metrics import Metrics
from observability.prometheus import CONTENT_TYPE as METRICS_TYPE
from observability.prometheus import exposition

Check = Callable[[], str | None]
"""A readiness check: None, or why not."""
Document = Callable[[Mapping[str, str]], Awaitable[Mapping[str, Any]]]
"""Answers a request for a path that is no resource, given its query."""
STATUS_PATH: Final = "/cloudhub/status"
"""What `cloudhub status` reads: members, slots, owners."""


class Documents:
    """`elsewhere`: as the server's. `draining` set: `/readyz` sends balancers elsewhere."""

    def __init__(
        self,
        metrics: Metrics,
        build: str,
        elsewhere: str,
        ready: Mapping[str, Check] | None,
        status: Callable[[], Awaitable[Mapping[str, Any]]] | None,
        own: Mapping[tuple[str, str], Document] | None = None,
    ) -> None:
        """`own`: further documents, by method and path."""
        self.draining = False
        self._metrics = metrics
        self._elsewhere = elsewhere
        self._ready = dict(ready or {})
        self._own = dict(own or {})
        if status is not None:
            self._own["GET", STATUS_PATH] = lambda query: status()
        self._discovery = Discovery()
        self._version = encode(version_info(build))

    async def answer(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        own = self._own.get((request.method, path))
        if own is not None:
            return json_response(encode(await own(request.query)))
        if request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
            raise errors.MethodNotAllowed()
        accept = request.headers.get(hdrs.ACCEPT, "")
        if path in ("/livez", "/healthz") or path.startswith(("/readyz", "/livez/", "/healthz/")):
            return self._health(request, path)
        if path == "/version":
            return json_response(self._version)
        if path == "/metrics":
            body = await asyncio.to_thread(exposition, self._metrics.snapshot())
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
            resources = () if self._elsewhere else (*self._discovery.paths, "/openapi/v2", "/openapi/v3")
            paths = sorted((*resources, "/livez", "/metrics", "/readyz", "/version"))
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
            checks["shutdown"] = lambda: "shutting down" if self.draining else None
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
