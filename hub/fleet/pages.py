"""The fleet page over HTTP: its files, and what they ask for. Read-only; every path says which right it takes.

    /fleet, /fleet/FILE              the page itself: nothing of the fleet, for everybody (role system:public-info-viewer)
    /cloudhub/fleet/nodes            all nodes as columns                                   list nodes
    /cloudhub/fleet/changes          what changes after ?revision=, line by line            watch nodes
    /cloudhub/fleet/node?name=       one node                                               get nodes NAME

Slots and owners are in `changes` for who may get /cloudhub/status. The page's own policy (`SECURITY`) lets a browser run no
script but its files, talk to nobody but this server, and make no markup from text.
"""

import asyncio
import gzip
import mimetypes
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final

from aiohttp import hdrs, web

from hub import errors
from hub.access.authorizer import Authorizer
from hub.api.answering import json_response
from hub.api.documents import STATUS_PATH
from hub.api.rendering import encode
from hub.fleet import roster
from hub.fleet.detail import Details
from hub.fleet.follower import Fleet
from hub.fleet.roster import Roster, Snapshot
from hub.objects import NODES
from security.rbac import Request, User

SHELL: Final = "/fleet"
DATA: Final = "/cloudhub/fleet/"
_PREFIXES: Final = (SHELL, DATA)
SNAPSHOT_S: Final = 10.0
"""Viewers who come within this time get the same snapshot; what has changed since follows at once."""
GZIP_LEVEL: Final = 1
"""100,000 nodes in 20 ms of a thread; the highest level saves a fifth of the bytes and takes ten times as long."""
ALIVE_S: Final = 10.0
"""A stream that has nothing to say for so long says so, that a broken connection is found out."""
WRITE_S: Final = 30.0
"""A browser that takes no bytes for so long is cut off."""
LAST_S: Final = 3600.0
"""After this long a stream ends and the page opens another one, for which rights are looked at anew."""

SECURITY: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    hdrs.CACHE_CONTROL: "no-cache",
}
PRIVATE: Final = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    hdrs.CACHE_CONTROL: "no-store",
}
"""Of data."""
RESET: Final = b'{"type":"reset"}\n'
"""The viewer has to ask for all nodes again."""
ALIVE: Final = b'{"type":"alive"}\n'


@dataclass(frozen=True, slots=True)
class Page:
    """One path. `wanted`: the right that it takes. `lasting`: a stream, limited in number and not in time."""

    path: str
    wanted: Request
    lasting: bool = False


class Pages:
    """See the module."""

    def __init__(self, fleet: Fleet, details: Details, authorizer: Authorizer) -> None:
        self._fleet = fleet
        self._details = details
        self._authorizer = authorizer
        self._files = _files()
        self._making = asyncio.Lock()

    def page(self, request: web.BaseRequest, path: str) -> Page | None:
        """What a request for `path` asks of the fleet page; None: nothing, and others answer it."""
        if not path.startswith(_PREFIXES) or request.method != hdrs.METH_GET:
            return None
        if path == SHELL or path.startswith(SHELL + "/"):
            return Page(path, Request("get", path=path))
        if path == DATA + "nodes":
            return Page(path, Request("list", "", NODES.resource))
        if path == DATA + "changes":
            return Page(path, Request("watch", "", NODES.resource), lasting=True)
        if path == DATA + "node":
            return Page(path, Request("get", "", NODES.resource, name=request.query.get("name", "")))
        return None

    async def answer(self, request: web.BaseRequest, page: Page, user: User) -> web.StreamResponse:
        """Raises ApiError."""
        if page.path.startswith(SHELL):
            return self._file(page.path)
        if page.path == DATA + "changes":
            return await self._changes(request, user)
        if page.path == DATA + "nodes":
            return await self._nodes(request)
        found = encode(await self._details.of(page.wanted.name, user))
        response = json_response(found)
        response.headers.update(PRIVATE)
        return response

    def _file(self, path: str) -> web.Response:
        name = path.removeprefix(SHELL).removeprefix("/") or "index.html"
        found = self._files.get(name)
        if found is None:
            raise errors.NotFound.no_such_path()
        body, kind = found
        return web.Response(body=body, headers={**SECURITY, hdrs.CONTENT_TYPE: kind})

    async def _nodes(self, request: web.BaseRequest) -> web.Response:
        async with self._fleet.used() as nodes:
            body = await self._compressed(nodes)
        response = web.Response(headers={**PRIVATE, hdrs.CONTENT_TYPE: "application/json"})
        response.headers[hdrs.VARY] = hdrs.ACCEPT_ENCODING
        if "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
            response.headers[hdrs.CONTENT_ENCODING] = "gzip"
        else:
            body = await asyncio.to_thread(gzip.decompress, body)
        response.body = body
        return response

    async def _compressed(self, nodes: Roster) -> bytes:
        """The snapshot, made once for all who come at about the same time; made off the loop."""
        async with self._making:
            held, now = nodes.snapshot, time.monotonic()
            if held is None or now - held.made > SNAPSHOT_S or nodes.after(held.revision) is None:
                picture = nodes.picture()
                body = await asyncio.to_thread(_encoded, picture, self._fleet.slots)
                held = nodes.snapshot = Snapshot(now, picture.revision, body)
            return held.body

    # -- what changes ---------------------------------------------------------------------------------------------

    async def _changes(self, request: web.BaseRequest, user: User) -> web.StreamResponse:
        revision = _revision(request.query)
        sees_slots = bool(self._authorizer.reason(user, Request("get", path=STATUS_PATH)))
        async with self._fleet.used() as nodes:
            serial = nodes.after(revision)
            response = web.StreamResponse(headers={**PRIVATE, hdrs.CONTENT_TYPE: "application/x-ndjson"})
            response.headers["X-Accel-Buffering"] = "no"
            await response.prepare(request)
            hello = {"type": "hello", "user": user.name, "slots": sees_slots}
            await _write(response, encode(hello) + b"\n")
            if serial is None:
                await _write(response, RESET)
            else:
                await self._follow(response, nodes, serial, sees_slots)
            await response.write_eof()
            return response

    async def _follow(
        self, response: web.StreamResponse, nodes: Roster, serial: int, sees_slots: bool
    ) -> None:
        """Until the viewer goes, has to begin anew, or LAST_S are over."""
        fleet, owners = self._fleet, b""
        ends = time.monotonic() + LAST_S
        while time.monotonic() < ends:
            changes = nodes.since(serial) if fleet.roster is nodes else None
            if changes is None:
                await _write(response, RESET)
                return
            if sees_slots and fleet.owners != owners:
                owners = fleet.owners
                await _write(response, owners)
            for change in changes:
                await _write(response, change.line)
                serial = change.serial
            if nodes.serial > serial or (sees_slots and fleet.owners != owners):
                continue  # more has come while this was sent
            try:
                async with asyncio.timeout(ALIVE_S):
                    await fleet.news()
            except TimeoutError:
                await _write(response, ALIVE)


def _encoded(picture: roster.Picture, slots: int) -> bytes:
    return gzip.compress(roster.encode(picture, slots), GZIP_LEVEL, mtime=0)


def _revision(query: Mapping[str, str]) -> int:
    text = query.get("revision", "")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise errors.BadRequest("revision: the number that came with /cloudhub/fleet/nodes is missing")
    return int(text)


def _files() -> dict[str, tuple[bytes, str]]:
    """The page's files by name, with their media types: what comes with the package."""
    found: dict[str, tuple[bytes, str]] = {}
    for file in resources.files("hub.fleet").joinpath("static").iterdir():
        kind = {".js": "text/javascript", ".svg": "image/svg+xml"}.get(file.name[file.name.rfind(".") :])
        kind = kind or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        found[file.name] = file.read_bytes(), f"{kind}; charset=utf-8"
    return found


async def _write(response: web.StreamResponse, line: bytes) -> None:
    if not line:
        return
    try:
        async with asyncio.timeout(WRITE_S):
            await response.write(line)
    except TimeoutError:
        raise ConnectionResetError(f"the browser took no bytes for {WRITE_S:g} s") from None
