"""What the verbs read of a request, and what they answer with: views, documents, Status, warnings."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from aiohttp import hdrs, web

from hub import errors
from hub.api import connects, decode, schema
from hub.api.kinds import Kind
from hub.api.negotiation import JSON, OBJECT, YAML, Representation, representation
from hub.api.rendering import View, encode, to_yaml, view
from hub.api.requests import Target, flag, parse_body, read_body
from hub.api.writing import Written, delete_options
from hub.deletion import DeleteOptions

_WARNINGS_MAX: Final = 32
_WARNING_CHARS_MAX: Final = 512


def verb_of(request: web.BaseRequest, target: Target) -> str:
    """The verb as authorization and metrics name it. Raises MethodNotAllowed."""
    method, res = request.method, target.kind.res
    if target.subresource in connects.SUBRESOURCES:
        if method not in (hdrs.METH_GET, hdrs.METH_POST):
            raise errors.MethodNotAllowed(res.resource, method.lower(), group=res.group)
        return "connect"
    if target.subresource in ("log",) and method != hdrs.METH_GET:
        raise errors.MethodNotAllowed(res.resource, method.lower(), group=res.group)
    if method in (hdrs.METH_GET, hdrs.METH_HEAD):
        if target.subresource or target.name:
            return "watch" if _watches(request.query) and not target.subresource else "get"
        return "watch" if _watches(request.query) else "list"
    if method == hdrs.METH_POST and not target.name and target.kind.is_made_by_the_hub:
        raise errors.MethodNotAllowed(res.resource, "create", group=res.group)
    if method == hdrs.METH_POST and (
        not target.name or target.subresource in ("binding", "eviction", "token")
    ):
        if not target.name and res.namespaced and not target.namespace:
            raise errors.MethodNotAllowed(res.resource, "create", group=res.group)
        return "create"
    if method == hdrs.METH_DELETE and not target.subresource:
        if not target.name and res.namespaced and not target.namespace:
            raise errors.MethodNotAllowed(res.resource, "deletecollection", group=res.group)
        return "delete" if target.name else "deletecollection"
    if target.name and target.subresource not in ("binding", "eviction", "log", "token"):
        if method == hdrs.METH_PUT:
            return "update"
        if method == hdrs.METH_PATCH and target.subresource != "finalize":
            return "patch"
    raise errors.MethodNotAllowed(res.resource, method.lower(), group=res.group)


def _watches(query: Mapping[str, str]) -> bool:
    return "watch" in query and (query["watch"] == "" or flag(query, "watch"))


def view_of(request: web.BaseRequest, kind: Kind, *, is_list: bool) -> View:
    form = representation(request.headers.get(hdrs.ACCEPT, ""), is_list=is_list)
    return view(kind, form, request.query.get("includeObject", ""))


async def value_of(request: web.BaseRequest) -> Any:
    content_type = request.headers.get(hdrs.CONTENT_TYPE, JSON)
    return await parse_body(content_type, await read_body(request))


async def delete_options_of(request: web.BaseRequest) -> DeleteOptions:
    body = await read_body(request)
    value = None
    if body.strip():
        parsed = await parse_body(request.headers.get(hdrs.CONTENT_TYPE, JSON), body)
        value = decode.decode_as(schema.DELETE_OPTIONS, parsed, what="DeleteOptions").object
    return delete_options(request.query, value)


def json_response(body: bytes, *, status: int = 200, content_type: str = JSON) -> web.Response:
    return web.Response(body=body, status=status, content_type=content_type)


def add_warnings(response: web.StreamResponse, warnings: Iterable[str]) -> None:
    """RFC 7234 Warning headers, code 299."""
    for text in list(warnings)[:_WARNINGS_MAX]:
        clean = "".join(c if c.isprintable() else "?" for c in text)[:_WARNING_CHARS_MAX]
        quoted = clean.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{quoted}"')


def document(request: web.BaseRequest, value: dict[str, Any], warnings: Iterable[str] = ()) -> web.Response:
    """A document that has no table form."""
    form = _plain(request)
    body = to_yaml(value) if form.media == YAML else encode(value)
    response = json_response(body, content_type=form.media)
    add_warnings(response, warnings)
    return response


def written_response(shown: View, written: Written) -> web.Response:
    now = time.time()
    if written.obj is not None:
        body = shown.created(written.obj, now)
    else:
        assert written.stored is not None
        body = shown.one(written.stored.raw, written.stored.revision, now)
    response = json_response(body, status=201 if written.created else 200, content_type=shown.content_type)
    add_warnings(response, written.warnings)
    return response


def success(request: web.BaseRequest, status: int, details: dict[str, Any] | None = None) -> web.Response:
    value: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    if details:
        value["details"] = details
    if status != 200:
        value["code"] = status
    response = document(request, value)
    response.set_status(status)
    return response


def _plain(request: web.BaseRequest) -> Representation:
    try:
        form = representation(request.headers.get(hdrs.ACCEPT, ""), is_list=False)
    except errors.NotAcceptable:
        return OBJECT
    return Representation("Object", form.media)
