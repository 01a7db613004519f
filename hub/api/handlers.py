"""The verbs: from a parsed request to an answer. Everything raised is an ApiError, which `server` writes."""

import asyncio
import datetime
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import hdrs, web

from hub import errors
from hub.access.authorizer import Authorizer
from hub.access.tokens import Tokens, rfc3339
from hub.api import connects, decode, logs, schema, selection
from hub.api.answering import (
    add_warnings,
    delete_options_of,
    document,
    json_response,
    success,
    value_of,
    view_of,
    written_response,
)
from hub.api.kinds import Kind
from hub.api.lists import Lister, ListOptions, Page, parse_options, revision_of
from hub.api.negotiation import JSON, YAML
from hub.api.reads import Reads
from hub.api.rendering import LIST_TAIL, View, to_yaml
from hub.api.requests import Target, dry_run, flag, number, read_body
from hub.api.reviews import Asked, Reviews
from hub.api.subresources import Subresources
from hub.api.watch import Watches, WatchOptions, too_large
from hub.api.writing import Guard, Writer, check_patch_type
from hub.deletion import DeleteOptions
from hub.objects import Resource, split_object_key
from hub.registry import Registry, Stored
from security.rbac import Request as Access
from security.rbac import User

DELETE_COLLECTION_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. A watch without timeoutSeconds ends after `watch_min_s` to twice that, spread so that clients do not all
    come back at once; `write_s`: a client that takes no bytes for so long is cut off."""

    request_s: float = 60.0
    watch_min_s: float = 1800.0
    bookmark_s: float = 60.0
    write_s: float = 30.0


class Handlers:
    """Serves every verb of every kind."""

    def __init__(
        self,
        registry: Registry,
        watches: Mapping[Resource, Watches],
        writer: Writer,
        gateway: logs.Gateway | None,
        timing: Timing,
        *,
        authorizer: Authorizer,
        tokens: Tokens | None = None,
    ) -> None:
        self._registry = registry
        self._reads = Reads(registry)
        self._watches = watches
        self._writer = writer
        self._subresources = Subresources(registry, writer)
        self._gateway = gateway
        self._timing = timing
        self._authorizer = authorizer
        self._tokens = tokens
        self._reviews = Reviews(authorizer, tokens)

    async def serve(
        self, request: web.BaseRequest, target: Target, verb: str, user: User
    ) -> web.StreamResponse:
        """The answer to everything but a watch and a log, which `server` runs without a time limit."""
        if verb == "get":
            return await self._get(request, target)
        if verb == "list":
            return await self._list(request, target)
        if verb == "create":
            return await self._create(request, target, user)
        if verb == "update":
            return await self._update(request, target, user)
        if verb == "patch":
            return await self._patch(request, target, user)
        if verb == "delete":
            return await self._delete(request, target)
        return await self._delete_collection(request, target)

    # -- reads --------------------------------------------------------------------------------------------------

    async def _get(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        kind = target.kind
        if target.subresource == "scale":
            return document(request, await self._subresources.get_scale(kind, target.namespace, target.name))
        if target.subresource not in ("", "status", "approval"):
            raise errors.MethodNotAllowed(kind.res.resource, "get", group=kind.res.group)
        shown = view_of(request, kind, is_list=False)
        asked = revision_of(request.query.get("resourceVersion", "")) or 0

        async def read(registry: Registry) -> Stored:
            stored = await registry.get(kind.res, target.namespace, target.name)
            if asked > stored.revision and asked > (current := await registry.revision()):
                raise too_large(asked, current)
            return stored

        stored, warnings = await self._reads.read(read)
        response = json_response(
            shown.one(stored.raw, stored.revision, time.time()), content_type=shown.content_type
        )
        add_warnings(response, warnings)
        return response

    async def _list(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        shown = view_of(request, target.kind, is_list=True)
        options = parse_options(request.query)
        chosen = selection.parse(target.kind, target.namespace, "", request.query)

        async def read(registry: Registry) -> tuple[Lister, Page]:
            lister = Lister(registry, target.kind, chosen)
            return lister, await lister.page(options)

        (lister, first), warnings = await self._reads.read(read)
        return await self._listed(request, shown, options, lister, first, warnings)

    async def _listed(
        self,
        request: web.BaseRequest,
        shown: View,
        options: ListOptions,
        lister: Lister,
        first: Page,
        warnings: Sequence[str],
    ) -> web.StreamResponse:
        now = time.time()
        if shown.form.media == YAML:
            return await self._yaml_list(shown, lister, options, first, warnings)
        token = first.token if options.limit else ""
        head = shown.list_head(first.revision, token, now)
        items = shown.list_items(((s.raw, s.revision) for s in first.items), now)
        if options.limit or not first.token:
            response = json_response(head + items + LIST_TAIL)
            add_warnings(response, warnings)
            return response
        return await self._stream_list(request, shown, lister, first, head + items, warnings)

    async def _stream_list(
        self,
        request: web.BaseRequest,
        shown: View,
        lister: Lister,
        first: Page,
        begun: bytes,
        warnings: Sequence[str],
    ) -> web.StreamResponse:
        """A long list, page by page. Once it has begun a failure can only cut it off."""
        response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: JSON})
        add_warnings(response, warnings)
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
        self, shown: View, lister: Lister, options: ListOptions, first: Page, warnings: Sequence[str]
    ) -> web.StreamResponse:
        """For people: the whole list at once, so at most one page of it."""
        if first.token and not options.limit:
            raise errors.NotAcceptable([JSON])
        now = time.time()
        body = shown.list_head(first.revision, first.token, now)
        body += shown.list_items(((s.raw, s.revision) for s in first.items), now) + LIST_TAIL
        value = decode.parse_json(body)
        response = json_response(await asyncio.to_thread(to_yaml, value), content_type=YAML)
        add_warnings(response, warnings)
        return response

    async def watch(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        """A watch, until it ends or the client goes."""
        shown = view_of(request, target.kind, is_list=False)
        if shown.form.media == YAML:
            raise errors.NotAcceptable([JSON])
        chosen = selection.parse(target.kind, target.namespace, target.name, request.query)
        stream = await self._watches[target.kind.res].open(chosen, self.watch_options(request.query))
        try:
            response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: JSON})
            await response.prepare(request)
            bookmark_s = self._timing.bookmark_s
            async with aclosing(stream.chunks(shown, time.time, time.monotonic, bookmark_s)) as chunks:
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

    async def connect(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        """exec, attach or port-forward, until it ends or the client goes."""
        pod = await connects.bound_pod(self._registry, target.namespace, target.name)
        if self._gateway is None:
            raise errors.ServiceUnavailable("this hub has no gateway to its nodes")
        return await connects.serve(
            request, self._gateway, pod, connects.asked(target.subresource, request.query)
        )

    # -- writes -------------------------------------------------------------------------------------------------

    async def _create(self, request: web.BaseRequest, target: Target, user: User) -> web.StreamResponse:
        kind, query = target.kind, request.query
        is_dry = dry_run(query)
        value = await value_of(request)
        if target.subresource == "token":
            return await self._token(request, target, value)
        if target.subresource == "binding":
            await self._subresources.bind(target.namespace, target.name, value, dry_run=is_dry)
            return success(request, 201)
        if target.subresource == "eviction":
            await self._subresources.evict(kind, target.namespace, target.name, value, dry_run=is_dry)
            return success(request, 201)
        shown = view_of(request, kind, is_list=False)
        written = await self._writer.create(
            kind,
            target.namespace,
            "",
            value,
            field_validation=query.get("fieldValidation", ""),
            dry_run=is_dry,
            guard=self._guard(user),
        )
        return written_response(shown, written)

    async def _update(self, request: web.BaseRequest, target: Target, user: User) -> web.StreamResponse:
        kind, query = target.kind, request.query
        is_dry = dry_run(query)
        value = await value_of(request)
        validation = query.get("fieldValidation", "")
        if target.subresource == "scale":
            scale, warnings = await self._subresources.put_scale(
                kind, target.namespace, target.name, value, field_validation=validation, dry_run=is_dry
            )
            return document(request, scale, warnings)
        shown = view_of(request, kind, is_list=False)
        written = await self._writer.update(
            kind,
            target.namespace,
            target.name,
            target.subresource,
            value,
            field_validation=validation,
            dry_run=is_dry,
            guard=self._guard(user, created_by=target),
        )
        return written_response(shown, written)

    async def _patch(self, request: web.BaseRequest, target: Target, user: User) -> web.StreamResponse:
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
            return document(request, scale, warnings)
        shown = view_of(request, kind, is_list=False)
        written = await self._writer.patch(
            kind,
            target.namespace,
            target.name,
            target.subresource,
            content_type,
            body,
            field_validation=validation,
            dry_run=is_dry,
            guard=self._guard(user),
        )
        return written_response(shown, written)

    async def _delete(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        kind = target.kind
        options = await delete_options_of(request)
        shown = view_of(request, kind, is_list=False)
        stored, is_gone = await self._writer.delete(kind, target.namespace, target.name, options)
        if is_gone and kind.res.resource != "pods":
            meta = stored.obj()["metadata"]
            details = {"name": target.name, "kind": kind.res.resource, "uid": meta["uid"]}
            if kind.res.group:
                details["group"] = kind.res.group
            return success(request, 200, details)
        return json_response(
            shown.one(stored.raw, stored.revision, time.time()), content_type=shown.content_type
        )

    async def _delete_collection(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        """Deletes what the selectors choose, and answers with a list of it."""
        kind = target.kind
        options = await delete_options_of(request)
        shown = view_of(request, kind, is_list=True)
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

    def _guard(self, user: User, created_by: Target | None = None) -> Guard:
        """What is asked right before an object of this user is stored. `created_by`: of a PUT, which needs the right to create
        as well where it does."""

        async def check(kind: Kind, obj: dict[str, Any], old: dict[str, Any] | None) -> None:
            if old is None and created_by is not None:
                res = kind.res
                wanted = Access(
                    "create", res.group, res.resource, namespace=created_by.namespace, name=created_by.name
                )
                self._authorizer.authorize(user, wanted)
            await self._authorizer.check_grant(user, kind.res, obj, old)

        return check

    async def _token(self, request: web.BaseRequest, target: Target, value: Any) -> web.StreamResponse:
        """serviceaccounts/token. Raises ServiceUnavailable where none are issued."""
        if self._tokens is None:
            raise errors.ServiceUnavailable("this hub issues no tokens: it has no key for them")
        decoded = decode.decode(schema.TOKEN_REQUEST, value)
        warnings = decode.field_warnings(
            schema.TOKEN_REQUEST, decoded, request.query.get("fieldValidation", "")
        )
        spec = decoded.object.get("spec", {})
        token, granted = await self._tokens.issue(target.namespace, target.name, spec, time.time())
        expires = rfc3339(granted.pop("expires"))
        answer = {
            **decoded.object,
            "metadata": {"name": target.name, "namespace": target.namespace},
            "spec": {**spec, **granted},
            "status": {"token": token, "expirationTimestamp": expires},
        }
        response = document(request, answer, warnings)
        response.set_status(201)
        return response

    async def review(self, request: web.BaseRequest, asked: Asked, user: User) -> web.StreamResponse:
        """A question about rights or identities. Raises MethodNotAllowed."""
        review = asked.review
        if request.method != hdrs.METH_POST:
            raise errors.MethodNotAllowed(review.plural, request.method.lower(), group=review.group)
        value = await value_of(request)
        validation = request.query.get("fieldValidation", "")
        found, warnings = await self._reviews.answer(asked, value, user, validation, time.time())
        response = document(request, found, warnings)
        response.set_status(201)
        return response

    async def _send(self, response: web.StreamResponse, data: bytes) -> None:
        """Writes, waiting for a slow client at most `write_s`."""
        try:
            async with asyncio.timeout(self._timing.write_s):
                await response.write(data)
        except TimeoutError:
            raise ConnectionResetError(f"the client took no bytes for {self._timing.write_s:g} s") from None


async def _close(chunks: AsyncIterator[bytes]) -> None:
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()
