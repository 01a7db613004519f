"""A server just big enough for kubectl: discovery, OpenAPI, and objects in a dict, over the functions under test."""

from __future__ import annotations

import itertools
import time
import uuid
from typing import Any

from aiohttp import web

from hub.api import decode, defaults, openapi, patch, schema, selectors, tables, validation
from hub.api.operations import root
from hub.api.schema import RESOURCES, Resource
from hub.errors import AlreadyExists, ApiError, NotFound

VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


class SmallServer:
    """`url` after `start()`. One dict of objects; no watch, no finalizers, deletes at once."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.versions = itertools.count(1)
        self.openapi_requests: list[str] = []
        self.url = ""
        app = web.Application(middlewares=[_errors])
        app.router.add_get("/version", self.version)
        app.router.add_get("/api", self.api)
        app.router.add_get("/apis", self.apis)
        app.router.add_get("/openapi/v2", self.openapi_v2)
        app.router.add_get("/openapi/v3", self.openapi_v3)
        app.router.add_get("/openapi/v3/{path:.*}", self.openapi_v3)
        for base in sorted({root(r) for r in RESOURCES}):
            app.router.add_get(base, self.resources)
        for r in RESOURCES:
            self._routes(app, r)
        self._runner = web.AppRunner(app)

    async def start(self) -> None:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    def _routes(self, app: web.Application, r: Resource) -> None:
        def bound(handler: Any) -> Any:
            async def handle(request: web.Request) -> web.Response:
                return await handler(r, request)

            return handle

        bases = [f"{root(r)}/{r.plural}"]
        if r.namespaced:
            bases.append(f"{root(r)}/namespaces/{{namespace}}/{r.plural}")
        for base in bases:
            app.router.add_get(base, bound(self.list))
            app.router.add_post(base, bound(self.create))
            app.router.add_get(base + "/{name}", bound(self.get))
            app.router.add_patch(base + "/{name}", bound(self.patch))
            app.router.add_put(base + "/{name}", bound(self.put))
            app.router.add_delete(base + "/{name}", bound(self.delete))

    async def version(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"major": "1", "minor": "34", "gitVersion": schema.KUBERNETES_VERSION, "platform": "linux/amd64"}
        )

    async def api(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
        )

    async def apis(self, _: web.Request) -> web.Response:
        groups = {}
        for r in RESOURCES:
            if r.group:
                version = {"groupVersion": r.api_version, "version": r.version}
                groups[r.group] = {"name": r.group, "versions": [version], "preferredVersion": version}
        return web.json_response(
            {"kind": "APIGroupList", "apiVersion": "v1", "groups": list(groups.values())}
        )

    async def resources(self, request: web.Request) -> web.Response:
        found = [r for r in RESOURCES if root(r) == request.path]
        listed = [
            {
                "name": r.plural,
                "singularName": r.singular,
                "namespaced": r.namespaced,
                "kind": r.kind,
                "verbs": VERBS,
                "shortNames": list(r.short_names),
                "categories": list(r.categories),
            }
            for r in found
        ]
        return web.json_response(
            {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": found[0].api_version,
                "resources": listed,
            }
        )

    async def openapi_v2(self, request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        self.openapi_requests.append(f"v2 {accept}")
        body, media = openapi.v2(accept)
        return web.Response(body=body, headers={"Content-Type": media})

    async def openapi_v3(self, request: web.Request) -> web.Response:
        path = request.match_info.get("path", "")
        self.openapi_requests.append(f"v3 {path} {request.headers.get('Accept', '')}")
        body = openapi.v3_document(path) if path else openapi.v3_index()
        return web.Response(body=body, content_type="application/json")

    def _key(self, r: Resource, request: web.Request) -> tuple[str, str, str]:
        info = request.match_info
        return r.qualified, info.get("namespace", ""), info.get("name", "")

    def _find(self, r: Resource, request: web.Request) -> dict[str, Any]:
        key = self._key(r, request)
        if key not in self.objects:
            raise NotFound(r.plural, key[2], group=r.group)
        return self.objects[key]

    def _answer(
        self,
        r: Resource,
        request: web.Request,
        obj: dict[str, Any],
        warnings: tuple[str, ...] | list[str] = (),
    ) -> web.Response:
        accept = request.headers.get("Accept", "")
        body = tables.table(r, [obj], now=time.time()) if "as=Table" in accept else obj
        response = web.json_response(body)
        for text in warnings:
            response.headers.add("Warning", f'299 - "{text.replace(chr(34), chr(92) + chr(34))}"')
        return response

    async def list(self, r: Resource, request: web.Request) -> web.Response:
        labels = selectors.parse_labels(request.query.get("labelSelector", ""))
        fields = selectors.parse_fields(r, request.query.get("fieldSelector", ""))
        namespace = request.match_info.get("namespace", "")
        items = [
            obj
            for (plural, held, _), obj in self.objects.items()
            if plural == r.qualified
            and namespace in ("", held)
            and labels.matches(obj["metadata"].get("labels"))
            and fields.matches(obj)
        ]
        meta = {"resourceVersion": "1"}
        if "as=Table" in request.headers.get("Accept", ""):
            include = request.query.get("includeObject", "")
            table = tables.table(r, items, now=time.time(), list_meta=meta, include=include)
            return web.json_response(table)
        body = {"kind": r.list_kind, "apiVersion": r.api_version, "metadata": meta, "items": items}
        return web.json_response(body)

    async def get(self, r: Resource, request: web.Request) -> web.Response:
        return self._answer(r, request, self._find(r, request))

    async def create(self, r: Resource, request: web.Request) -> web.Response:
        value = decode.parse_body(request.headers.get("Content-Type", ""), await request.read())
        decoded = decode.decode(r, value)
        warnings = decode.field_warnings(r, decoded, request.query.get("fieldValidation", ""))
        obj = decoded.object
        namespace = request.match_info.get("namespace", "")
        if r.namespaced:
            obj["metadata"]["namespace"] = namespace
        obj["metadata"]["uid"] = str(uuid.uuid4())
        obj["metadata"]["creationTimestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        defaults.apply(r, obj)
        validation.check_create(r, obj)
        key = (r.qualified, namespace, obj["metadata"]["name"])
        if key in self.objects:
            raise AlreadyExists(r.plural, key[2], group=r.group)
        if not request.query.get("dryRun"):
            self._store(key, obj)
        return self._answer(r, request, obj, warnings)

    def _store(self, key: tuple[str, str, str], obj: dict[str, Any]) -> None:
        obj["metadata"]["resourceVersion"] = str(next(self.versions))
        self.objects[key] = obj

    async def _update(self, r: Resource, request: web.Request, value: Any) -> web.Response:
        old = self._find(r, request)
        decoded = decode.decode(r, value)
        warnings = decode.field_warnings(r, decoded, request.query.get("fieldValidation", ""))
        defaults.apply(r, decoded.object)
        validation.check_update(r, decoded.object, old)
        if not request.query.get("dryRun"):
            self._store(self._key(r, request), decoded.object)
        return self._answer(r, request, decoded.object, warnings)

    async def patch(self, r: Resource, request: web.Request) -> web.Response:
        current = self._find(r, request)
        value = patch.apply_patch(request.content_type, r, current, await request.read())
        return await self._update(r, request, value)

    async def put(self, r: Resource, request: web.Request) -> web.Response:
        value = decode.parse_body(request.headers.get("Content-Type", ""), await request.read())
        return await self._update(r, request, value)

    async def delete(self, r: Resource, request: web.Request) -> web.Response:
        obj = self._find(r, request)
        body = await request.read()
        if body:
            decode.decode_as(
                schema.DELETE_OPTIONS, decode.parse_body(request.headers.get("Content-Type", ""), body)
            )
        del self.objects[self._key(r, request)]
        return web.json_response(obj)


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as e:
        return web.json_response(e.status(), status=e.code)
    except web.HTTPNotFound:
        e404 = NotFound.no_such_path()
        return web.json_response(e404.status(), status=404)
