"""The span of one request of the API, by OpenTelemetry's conventions for HTTP servers.

Followed are changes: by the tracer's ratio, or since the client's traceparent says so. Of reads only the latter are, and
watches and connections, which last for hours, never.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from aiohttp import hdrs, web

from hub.api.requests import Target
from observability.tracing import CURRENT, Tracer

if TYPE_CHECKING:
    from hub.api.calls import Call

TRACEPARENT: Final = "traceparent"
READS: Final = (hdrs.METH_GET, hdrs.METH_HEAD)
AGENT_CHARS_MAX: Final = 256
PATH_CHARS_MAX: Final = 512


@contextlib.asynccontextmanager
async def followed(tracer: Tracer, request: web.BaseRequest, call: "Call") -> AsyncIterator[None]:
    """Makes the request's span the current one, if it is followed, and ends it."""
    method, given = request.method, request.headers.get(TRACEPARENT, "")
    if method in READS and (not given or "watch" in request.query or "follow" in request.query):
        yield
        return
    span = tracer.begin(method, given, {})
    if span is None:
        yield
        return
    before = CURRENT.set(span)
    try:
        yield
    finally:
        CURRENT.reset(before)
        span.name = f"{method} {route_of(call.target)}" if call.target is not None else method
        span.attributes |= _attributes(request, call)
        tracer.end(span, call.failure.reason if call.failure is not None and call.code >= 500 else "")


def route_of(target: Target) -> str:
    """The path with its names left out, as `http.route` has it."""
    res = target.kind.res
    parts = ["/apis", res.group, res.version] if res.group else ["/api", res.version]
    if target.namespace:
        parts += ["namespaces", "{namespace}"]
    parts.append(res.resource)
    if target.name:
        parts.append("{name}")
    if target.subresource:
        parts.append(target.subresource)
    return "/".join(parts)


def _attributes(request: web.BaseRequest, call: "Call") -> dict[str, Any]:
    found: dict[str, Any] = {
        "http.request.method": request.method,
        "http.response.status_code": call.code,
        "url.scheme": request.scheme,
        "url.path": request.rel_url.raw_path[:PATH_CHARS_MAX],
        "user_agent.original": request.headers.get(hdrs.USER_AGENT, "")[:AGENT_CHARS_MAX],
    }
    if call.target is not None:
        found["http.route"] = route_of(call.target)
        found["k8s.namespace.name"] = call.target.namespace
        found["cloudhub.object.resource"] = call.resource
        found["cloudhub.object.name"] = call.target.name
    return found
