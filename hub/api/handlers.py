"""The verbs: from a parsed request to an answer. Everything raised is an ApiError, which `server` writes."""

import asyncio
import datetime
import random
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import hdrs, web

from hub import errors
from hub.api import decode, logs, reviews, schema, selection
from hub.api.auth import User
from hub.api.kinds import Kind
from hub.api.lists import Lister, ListOptions, Page, parse_options, revision_of
from hub.api.negotiation import JSON, OBJECT, YAML, Representation, representation
from hub.api.rendering import LIST_TAIL, View, encode, to_yaml, view
from hub.api.requests import Target, dry_run, flag, number, parse_body, read_body
from hub.api.subresources import Subresources
from hub.api.watch import WatchCache, WatchOptions, too_large
from hub.api.writing import Writer, Written, check_patch_type, delete_options
from hub.deletion import DeleteOptions
from hub.objects import Resource, split_object_key
from hub.registry import Registry, Stored

DELETE_COLLECTION_AT_ONCE: Final = 8
_WARNINGS_MAX: Final = 32
_WARNING_CHARS_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. A watch without timeoutSeconds ends after `watch_min_s` to twice that, spread so that clients do not all
    come back at once; `write_s`: a client that takes no bytes for so long is cut off."""

    request_s: float = 60.0
    watch_min_s: float = 1800.0
    bookmark_s: float = 60.0
    write_s: float = 30.0


def verb_of(request: web.BaseRequest, target: Target) -> str:
    """The verb as authorization and metrics name it. Raises MethodNotAllowed."""
    method, res = request.method, target.kind.res
    if target.subresource in ("log",) and method != hdrs.METH_GET:
        raise errors.MethodNotAllowed(res.resource, method.lower(), group=res.group)
    if method in (hdrs.METH_GET, hdrs.METH_HEAD):
        if target.subresource or target.name:
            return "watch" if _watches(request.query) and not target.subresource else "get"
        return "watch" if _watches(request.query) else "list"
    if method == hdrs.METH_POST and (not target.name or target.subresource in ("binding", "eviction")):
        if not target.name and res.namespaced and not target.namespace:
            raise errors.MethodNotAllowed(res.resource, "create", group=res.group)
        return "create"
    if method == hdrs.METH_DELETE and not target.subresource:
        if not target.name and res.namespaced and not target.namespace:
            raise errors.MethodNotAllowed(res.resource, "deletecollection", group=res.group)
        return "delete" if target.name else "deletecollection"
    if target.name and target.subresource not in ("binding", "eviction", "log"):
        if method == hdrs.METH_PUT:
            return "update"
        if method == hdrs.METH_PATCH and target.subresource != "finalize":
            return "patch"
    raise errors.MethodNotAllowed(res.resource, method.lower(), group=res.group)


def _watches(query: Mapping[str, str]) -> bool:
    return "watch" in query and (query["watch"] == "" or flag(query, "watch"))


def json_response(body: bytes, *, status: int = 200, content_type: str = JSON) -> web.Response:
    return web.Response(body=body, status=status, content_type=content_type)


def add_warnings(response: web.StreamResponse, warnings: Iterable[str]) -> None:
    """RFC 7234 Warning headers, code 299."""
    for text in list(warnings)[:_WARNINGS_MAX]:
        clean = "".join(c if c.isprintable() else "?" for c in text)[:_WARNING_CHARS_MAX]
        quoted = clean.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{quoted}"')


class Handlers:
    """Serves every verb of every kind."""

    def __init__(
        self,
        registry: Registry,
        watches: Mapping[Resource, WatchCache],
        writer: Writer,
        gateway: logs.Gateway | None,
        timing: Timing,
    ) -> None:
        self._registry = registry
        self._watches = watches
        self._writer = writer
        self._subresources = Subresources(registry, writer)
        self._gateway = gateway
        self._timing = timing

    async def serve(self, request: web.BaseRequest, target: Target, verb: str) -> web.StreamResponse:
        """The answer to everything but a watch and a log, which `server` runs without a time limit."""
        if verb == "get":
            return await self._get(request, target)
        if verb == "list":
            return await self._list(request, target)
        if verb == "create":
            return await self._create(request, target)
        if verb == "update":
            return await self._update(request, target)
        if verb == "patch":
            return await self._patch(request, target)
        if verb == "delete":
            return await self._delete(request, target)
        return await self._delete_collection(request, target)

    # -- reads --------------------------------------------------------------------------------------------------

    async def _get(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        kind = target.kind
        if target.subresource == "scale":
            return self._document(
                request, await self._subresources.get_scale(kind, target.namespace, target.name)
            )
        if target.subresource not in ("", "status"):
            raise errors.MethodNotAllowed(kind.res.resource, "get", group=kind.res.group)
        shown = self._view(request, kind, is_list=False)
        stored = await self._registry.get(kind.res, target.namespace, target.name)
        asked = revision_of(request.query.get("resourceVersion", ""))
        if asked and asked > stored.revision:
            current = await self._registry.store.revision()
            if asked > current:
                raise too_large(asked, current)
        body = shown.one(stored.raw, stored.revision, time.time())
        return json_response(body, content_type=shown.content_type)

    async def _list(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        shown = self._view(request, target.kind, is_list=True)
        options = parse_options(request.query)
        chosen = selection.parse(target.kind, target.namespace, "", request.query)
        lister = Lister(self._registry, target.kind, chosen)
        now = time.time()
        first = await lister.page(options)
        if shown.form.media == YAML:
            return await self._yaml_list(shown, lister, options, first)
        token = first.token if options.limit else ""
        head = shown.list_head(first.revision, token, now)
        items = shown.list_items(((s.raw, s.revision) for s in first.items), now)
        if options.limit or not first.token:
            return json_response(head + items + LIST_TAIL)
        return await self._stream_list(request, shown, lister, first, head + items)

    async def _stream_list(
        self, request: web.BaseRequest, shown: View, lister: Lister, first: Page, begun: bytes
    ) -> web.StreamResponse:
        """A long list, page by page. Once it has begun a failure can only cut it off."""
        response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: JSON})
        await response.prepare(request)
        await self._send(response, begun)
        is_empty = not first.items
        async for page in lister.pages(lister.after(first)):
            items = shown.list_items(((s.raw, s.revision) for s in page.items), time.time())
            if items:
                await self._send(response, items if is_empty else b"," + items)
                is_empty = False
        await self._send(response, LIST_TAIL)
        await response.write_eof()
        return response

    async def _yaml_list(
        self, shown: View, lister: Lister, options: ListOptions, first: Page
    ) -> web.StreamResponse:
        """For people: the whole list at once, so at most one page of it."""
        if first.token and not options.limit:
            raise errors.NotAcceptable([JSON])
        now = time.time()
        body = shown.list_head(first.revision, first.token, now)
        body += shown.list_items(((s.raw, s.revision) for s in first.items), now) + LIST_TAIL
        value = decode.parse_json(body)
        return json_response(await asyncio.to_thread(to_yaml, value), content_type=YAML)

    async def watch(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        """A watch, until it ends or the client goes."""
        shown = self._view(request, target.kind, is_list=False)
        if shown.form.media == YAML:
            raise errors.NotAcceptable([JSON])
        chosen = selection.parse(target.kind, target.namespace, target.name, request.query)
        stream = await self._watches[target.kind.res].open(chosen, self.watch_options(request.query))
        try:
            response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: JSON})
            await response.prepare(request)
            chunks = stream.chunks(shown, time.time, time.monotonic, self._timing.bookmark_s)
            async for chunk in chunks:
                await self._send(response, chunk)
            await response.write_eof()
            return response
        finally:
            stream.close()

    def watch_options(self, query: Mapping[str, str]) -> WatchOptions:
        """Raises BadRequest, Invalid."""
        asked = revision_of(query.get("resourceVersion", ""))
        match = query.get("resourceVersionMatch", "")
        send = query.get("sendInitialEvents")
        wants_initial = send is not None and flag(query, "sendInitialEvents")
        bookmarks = flag(query, "allowWatchBookmarks")
        causes = []
        if send is not None and match != "NotOlderThan":
            causes.append(
                errors.forbidden(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                )
            )
        elif send is None and match:
            causes.append(
                errors.forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                )
            )
        elif wants_initial and not bookmarks:
            causes.append(
                errors.forbidden("allowWatchBookmarks", "sendInitialEvents requires allowWatchBookmarks")
            )
        if causes:
            raise errors.Invalid("ListOptions", "", causes, group="meta.k8s.io")
        seconds = number(query, "timeoutSeconds")
        spread_s = self._timing.watch_min_s * (1 + random.random())  # noqa: S311  (not a secret)
        return WatchOptions(
            resource_version=asked,
            initial_events=wants_initial if send is not None else not asked,
            mark_initial_end=wants_initial,
            bookmarks=bookmarks,
            timeout_s=float(seconds) if seconds else spread_s,
        )

    async def log(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        """A container's log; with `follow` until it ends or the client goes."""
        now = datetime.datetime.now(datetime.UTC)
        chunks = await logs.open_log(
            self._registry, self._gateway, target.namespace, target.name, request.query, now
        )
        try:
            first = await anext(chunks, None)  # a refusal comes before the first byte: it is a status then
            response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: "text/plain; charset=utf-8"})
            await response.prepare(request)
            if first is not None:
                await self._send(response, first)
                async for chunk in chunks:
                    await self._send(response, chunk)
            await response.write_eof()
            return response
        finally:
            await _close(chunks)

    # -- writes -------------------------------------------------------------------------------------------------

    async def _create(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        kind, query = target.kind, request.query
        is_dry = dry_run(query)
        value = await self._value(request)
        if target.subresource == "binding":
            await self._subresources.bind(target.namespace, target.name, value, dry_run=is_dry)
            return self._success(request, 201)
        if target.subresource == "eviction":
            await self._subresources.evict(kind, target.namespace, target.name, value, dry_run=is_dry)
            return self._success(request, 201)
        shown = self._view(request, kind, is_list=False)
        written = await self._writer.create(
            kind,
            target.namespace,
            "",
            value,
            field_validation=query.get("fieldValidation", ""),
            dry_run=is_dry,
        )
        return self._written(shown, written)

    async def _update(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        kind, query = target.kind, request.query
        is_dry = dry_run(query)
        value = await self._value(request)
        validation = query.get("fieldValidation", "")
        if target.subresource == "scale":
            scale, warnings = await self._subresources.put_scale(
                kind, target.namespace, target.name, value, field_validation=validation, dry_run=is_dry
            )
            return self._document(request, scale, warnings)
        shown = self._view(request, kind, is_list=False)
        written = await self._writer.update(
            kind,
            target.namespace,
            target.name,
            target.subresource,
            value,
            field_validation=validation,
            dry_run=is_dry,
        )
        return self._written(shown, written)

    async def _patch(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        kind, query = target.kind, request.query
        content_type = request.headers.get(hdrs.CONTENT_TYPE, "")
        check_patch_type(content_type)
        is_dry, validation = dry_run(query), query.get("fieldValidation", "")
        body = await read_body(request)
        if target.subresource == "scale":
            scale, warnings = await self._subresources.patch_scale(
                kind,
                target.namespace,
                target.name,
                content_type,
                body,
                field_validation=validation,
                dry_run=is_dry,
            )
            return self._document(request, scale, warnings)
        shown = self._view(request, kind, is_list=False)
        written = await self._writer.patch(
            kind,
            target.namespace,
            target.name,
            target.subresource,
            content_type,
            body,
            field_validation=validation,
            dry_run=is_dry,
        )
        return self._written(shown, written)

    async def _delete(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        kind = target.kind
        options = await self._delete_options(request)
        shown = self._view(request, kind, is_list=False)
        stored, is_gone = await self._writer.delete(kind, target.namespace, target.name, options)
        if is_gone and kind.res.resource != "pods":
            meta = stored.obj()["metadata"]
            details = {"name": target.name, "kind": kind.res.resource, "uid": meta["uid"]}
            if kind.res.group:
                details["group"] = kind.res.group
            return self._success(request, 200, details)
        return json_response(
            shown.one(stored.raw, stored.revision, time.time()), content_type=shown.content_type
        )

    async def _delete_collection(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        """Deletes what the selectors choose, and answers with a list of it."""
        kind = target.kind
        options = await self._delete_options(request)
        shown = self._view(request, kind, is_list=True)
        chosen = selection.parse(kind, target.namespace, "", request.query)
        listing = parse_options(request.query)
        lister = Lister(self._registry, kind, chosen)
        deleted: list[Stored] = []
        page = await lister.page(listing)
        first = page
        while True:
            deleted += await self._delete_page(kind, page.items, options)
            if listing.limit or not page.token:
                break
            page = await lister.page(lister.after(page))
        now = time.time()
        token = first.token if listing.limit else ""
        body = shown.list_head(first.revision, token, now)
        body += shown.list_items(((s.raw, s.revision) for s in deleted), now) + LIST_TAIL
        return json_response(body)

    async def _delete_page(self, kind: Kind, items: list[Stored], options: DeleteOptions) -> list[Stored]:
        at_once = asyncio.Semaphore(DELETE_COLLECTION_AT_ONCE)

        async def delete_one(stored: Stored) -> Stored | None:
            _, namespace, name = split_object_key(stored.key)
            async with at_once:
                try:
                    return (await self._writer.delete(kind, namespace, name, options))[0]
                except errors.NotFound:
                    return None  # somebody else was faster

        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(delete_one(stored)) for stored in items]
        except* errors.ApiError as failures:
            raise failures.exceptions[0] from None
        return [stored for task in running if (stored := task.result()) is not None]

    async def review(
        self, request: web.BaseRequest, review: schema.Resource, user: User
    ) -> web.StreamResponse:
        """A question of the user about itself. Raises MethodNotAllowed."""
        if request.method != hdrs.METH_POST:
            raise errors.MethodNotAllowed(review.plural, request.method.lower(), group=review.group)
        value = await self._value(request)
        found, warnings = reviews.answer(review, value, user, request.query.get("fieldValidation", ""))
        response = self._document(request, found, warnings)
        response.set_status(201)
        return response

    # -- parts --------------------------------------------------------------------------------------------------

    def _view(self, request: web.BaseRequest, kind: Kind, *, is_list: bool) -> View:
        form = representation(request.headers.get(hdrs.ACCEPT, ""), is_list=is_list)
        return view(kind, form, request.query.get("includeObject", ""))

    async def _value(self, request: web.BaseRequest) -> Any:
        content_type = request.headers.get(hdrs.CONTENT_TYPE, JSON)
        return await parse_body(content_type, await read_body(request))

    async def _delete_options(self, request: web.BaseRequest) -> DeleteOptions:
        body = await read_body(request)
        value = None
        if body.strip():
            parsed = await parse_body(request.headers.get(hdrs.CONTENT_TYPE, JSON), body)
            value = decode.decode_as(schema.DELETE_OPTIONS, parsed, what="DeleteOptions").object
        return delete_options(request.query, value)

    def _written(self, shown: View, written: Written) -> web.Response:
        now = time.time()
        if written.obj is not None:
            body = shown.created(written.obj, now)
        else:
            assert written.stored is not None
            body = shown.one(written.stored.raw, written.stored.revision, now)
        response = json_response(
            body, status=201 if written.created else 200, content_type=shown.content_type
        )
        add_warnings(response, written.warnings)
        return response

    def _document(
        self, request: web.BaseRequest, value: dict[str, Any], warnings: Iterable[str] = ()
    ) -> web.Response:
        """A document that has no table form."""
        form = _plain(request)
        body = to_yaml(value) if form.media == YAML else encode(value)
        response = json_response(body, content_type=form.media)
        add_warnings(response, warnings)
        return response

    def _success(
        self, request: web.BaseRequest, status: int, details: dict[str, Any] | None = None
    ) -> web.Response:
        value: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        if details:
            value["details"] = details
        if status != 200:
            value["code"] = status
        response = self._document(request, value)
        response.set_status(status)
        return response

    async def _send(self, response: web.StreamResponse, data: bytes) -> None:
        """Writes, waiting for a slow client at most `write_s`."""
        try:
            async with asyncio.timeout(self._timing.write_s):
                await response.write(data)
        except TimeoutError:
            raise ConnectionResetError(f"the client took no bytes for {self._timing.write_s:g} s") from None


def _plain(request: web.BaseRequest) -> Representation:
    try:
        form = representation(request.headers.get(hdrs.ACCEPT, ""), is_list=False)
    except errors.NotAcceptable:
        return OBJECT
    return Representation("Object", form.media)


async def _close(chunks: AsyncIterator[bytes]) -> None:
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()
