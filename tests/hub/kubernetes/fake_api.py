"""A small API server for tests: lists in pages, watches with bookmarks and initial events, compaction, and faults.

It behaves as kube-apiserver does where the hub's client can tell: HTTPS, bearer tokens, metav1.Status, opaque continue
tokens that keep a snapshot, ERROR events in a watch of a revision that is too old, selectors that turn changes into
ADDED and DELETED. `tests/servers/kubernetes.py` starts the real one.
"""

import asyncio
import contextlib
import copy
import ssl
from collections.abc import AsyncIterator
from typing import Any

import orjson
import yaml
from aiohttp import web

from hub.kubernetes.answers import resource_of
from hub.kubernetes.config import KubeConfig
from security import tls
from tests.hub.edge_pki import Pki

Object = dict[str, Any]
TOKEN = "the-token"
INITIAL_END = "k8s.io/initial-events-end"


class FakeApi:
    """Objects by resource; whatever is put or removed has a revision of its own. `asked`: (verb, resource) of every
    request that came."""

    def __init__(self) -> None:
        self.revision = 100
        self.oldest = 100
        self.objects: dict[str, dict[tuple[str, str], Object]] = {}
        self.history: list[tuple[int, str, Object | None, Object | None]] = []
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.tokens = {TOKEN}
        self.watching: dict[str, int] = {}
        self.changed = asyncio.Event()
        self.down = False
        self.throttle = 0
        """So many requests are answered 429."""
        self.retry_after = "0"
        self.forbidden: set[str] = set()
        """Resources that nobody may read."""
        self.absent: set[str] = set()
        """Kinds that are not defined."""
        self.watch_list = True
        self.watch_s: float | None = None
        """Watches are closed after so long."""
        self.bookmark_s = 0.05
        self.before_page: Any = None
        """Called before every page of a list after the first."""
        self.snapshots: dict[str, tuple[int, list[Object]]] = {}
        self.url = ""

    # -- what is in it ---------------------------------------------------------------------------------------------

    def put(self, resource: str, obj: Object) -> Object:
        """Creates or replaces; returns it as stored."""
        obj = copy.deepcopy(obj)
        meta = obj["metadata"]
        self.revision += 1
        meta["resourceVersion"] = str(self.revision)
        key = (meta.get("namespace", ""), meta["name"])
        old = self.objects.setdefault(resource, {}).get(key)
        meta.setdefault("uid", old["metadata"]["uid"] if old else f"uid-{self.revision}")
        self.objects[resource][key] = obj
        self._tell(resource, obj, old)
        return obj

    def remove(self, resource: str, namespace: str, name: str) -> Object:
        self.revision += 1
        old = self.objects[resource].pop((namespace, name))
        self._tell(resource, None, old)
        return old

    def compact(self) -> None:
        """What lies before now is forgotten: no watch begins there, no list goes on."""
        self.oldest = self.revision
        self.snapshots.clear()

    def state_at(self, resource: str, revision: int) -> dict[tuple[str, str], Object]:
        """All objects as they were."""
        state: dict[tuple[str, str], Object] = {}
        for at, kind, obj, old in self.history:
            if at > revision or kind != resource:
                continue
            meta = (obj or old or {})["metadata"]
            key = (meta.get("namespace", ""), meta["name"])
            if obj is None:
                del state[key]
            else:
                state[key] = obj
        return state

    def _tell(self, resource: str, obj: Object | None, old: Object | None) -> None:
        self.history.append((self.revision, resource, obj, old))
        self.changed.set()
        self.changed = asyncio.Event()

    def cut_watches(self) -> None:
        """Ends all that are open."""
        self.cut.set()
        self.cut = asyncio.Event()

    # -- serving -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def serving(self, context: ssl.SSLContext | None = None) -> AsyncIterator["FakeApi"]:
        self.cut = asyncio.Event()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        port = runner.addresses[0][1]
        self.url = f"https://127.0.0.1:{port}"
        try:
            yield self
        finally:
            self.down = True
            self.cut_watches()
            await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        query, resource = dict(request.query), resource_of(request.path)
        verb = "watch" if "watch" in query else request.method
        self.asked.append((verb, resource, query))
        if self.down:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=503)
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
            return refusal(401, "Unauthorized", "Unauthorized")
        if resource in self.forbidden:
            return refusal(403, "Forbidden", f"you may not list {resource}")
        if resource in self.absent:
            return refusal(404, "NotFound", "the server could not find the requested resource")
        if self.throttle:
            self.throttle -= 1
            return refusal(429, "TooManyRequests", "too many", {"Retry-After": self.retry_after})
        namespace, named = names_of(request.path)
        if verb == "watch":
            return await self._watch(request, resource, namespace, query)
        if named:
            obj = self.objects.get(resource, {}).get((namespace, named[0]))
            if obj is None:
                return refusal(404, "NotFound", f'{resource} "{named[0]}" not found')
            return answer(obj)
        return await self._list(resource, namespace, query)

    async def _list(self, resource: str, namespace: str, query: dict[str, str]) -> web.Response:
        token = query.get("continue", "")
        if token:
            if self.before_page is not None:
                self.before_page()
            if token not in self.snapshots:
                return refusal(410, "Expired", "The provided continue parameter is too old")
            revision, items = self.snapshots.pop(token)
        else:
            revision = self.revision
            items = [o for o in self.objects.get(resource, {}).values() if selected(o, namespace, query)]
        limit = int(query.get("limit", 0)) or len(items) or 1
        part, rest = items[:limit], items[limit:]
        meta: Object = {"resourceVersion": str(revision)}
        if rest:
            meta["continue"] = f"{revision}:{len(self.asked)}:{len(rest)}"
            self.snapshots[meta["continue"]] = (revision, rest)
            if not {"labelSelector", "fieldSelector"} & query.keys():
                meta["remainingItemCount"] = len(rest)
        return answer({"kind": "List", "apiVersion": "v1", "metadata": meta, "items": part})

    async def _watch(
        self, request: web.Request, resource: str, namespace: str, query: dict[str, str]
    ) -> web.StreamResponse:
        initial = query.get("sendInitialEvents") == "true"
        if initial and not self.watch_list:
            return refusal(
                422, "Invalid", "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch"
            )
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        cut = self.cut
        self.watching[resource] = self.watching.get(resource, 0) + 1
        try:
            ends = asyncio.timeout(self.watch_s or float(query.get("timeoutSeconds", 3600)))
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with ends:
                    await self._stream(response, resource, namespace, query, initial, cut)
        finally:
            self.watching[resource] -= 1
        return response

    async def _stream(
        self,
        response: web.StreamResponse,
        resource: str,
        namespace: str,
        query: dict[str, str],
        initial: bool,
        cut: asyncio.Event,
    ) -> None:
        at = int(query.get("resourceVersion") or 0)
        if initial or not at:
            at = self.revision
            for obj in list(self.objects.get(resource, {}).values()):
                if selected(obj, namespace, query):
                    await send(response, "ADDED", obj)
            if initial:
                await send(response, "BOOKMARK", bookmark(at, {INITIAL_END: "true"}))
        seen = 0
        while not cut.is_set():
            changed = self.changed
            if at < self.oldest and not initial:
                gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": f"too old: {at}"}
                await send(response, "ERROR", gone)
                return
            for revision, kind, obj, old in list(self.history):
                if revision <= at or kind != resource:
                    continue
                event = event_of(revision, obj, old, namespace, query)
                if event is not None:
                    await send(response, *event)
            at = max(at, self.revision)
            waiting = [asyncio.ensure_future(e.wait()) for e in (changed, cut)]
            done, rest = await asyncio.wait(
                waiting, timeout=self.bookmark_s, return_when=asyncio.FIRST_COMPLETED
            )
            for one in rest:
                one.cancel()
            if not done and seen != at and query.get("allowWatchBookmarks") == "true":
                seen = at
                await send(response, "BOOKMARK", bookmark(at, {}))


def names_of(path: str) -> tuple[str, list[str]]:
    """(the namespace or "", what follows the resource) of an object's or a collection's path."""
    rest = path.strip("/").split("/")[2 if path.startswith("/api/") else 3 :]
    if rest[0] == "namespaces" and len(rest) > 2:
        return rest[1], rest[3:]
    return "", rest[1:]


def event_of(
    revision: int, obj: Object | None, old: Object | None, namespace: str, query: dict[str, str]
) -> tuple[str, Object] | None:
    now = obj is not None and selected(obj, namespace, query)
    before = old is not None and selected(old, namespace, query)
    if now:
        assert obj is not None
        return ("MODIFIED" if before else "ADDED"), obj
    if before:
        assert old is not None
        return "DELETED", {**old, "metadata": {**old["metadata"], "resourceVersion": str(revision)}}
    return None


def selected(obj: Object, namespace: str, query: dict[str, str]) -> bool:
    meta = obj["metadata"]
    if namespace and meta.get("namespace") != namespace:
        return False
    for term in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = term.partition("=")
        if (meta.get("labels") or {}).get(key) != value:
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        key, _, value = term.partition("=")
        found = meta["name"] if key == "metadata.name" else (obj.get("spec") or {})["nodeName"]
        assert key in ("metadata.name", "spec.nodeName"), key
        if found != value:
            return False
    return True


def bookmark(revision: int, annotations: dict[str, str]) -> Object:
    return {"metadata": {"resourceVersion": str(revision), "annotations": annotations}}


async def send(response: web.StreamResponse, kind: str, obj: Object) -> None:
    await response.write(orjson.dumps({"type": kind, "object": obj}) + b"\n")


def answer(obj: Object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(obj), status=status, content_type="application/json")


def refusal(code: int, reason: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    status = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
    return web.Response(
        body=orjson.dumps(status), status=code, headers=headers, content_type="application/json"
    )


def kubeconfig(path: str, url: str, root_pem: str, token: str = TOKEN, **user: str) -> KubeConfig:
    """Writes a kubeconfig file and reads it."""
    root = path + ".ca"
    with open(root, "w") as file:
        file.write(root_pem)
    data = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url, "certificate-authority": root}}],
        "users": [{"name": "u", "user": user or {"token": token}}],
    }
    with open(path, "w") as file:
        yaml.safe_dump(data, file)
    return KubeConfig.from_file(path)


def server_context(pki: Pki) -> ssl.SSLContext:
    return tls.api_server_context(pki.hub_cert, pki.hub_key, pki.ca.root_pem)
