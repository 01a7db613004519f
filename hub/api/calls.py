"""One request of the API as metrics and the audit log see it: who, what, and what became of it."""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from aiohttp import web

from hub import errors
from hub.access.authorizer import NOBODY, Refused
from hub.api.auth import Unknown
from hub.api.requests import Target
from observability.catalogue import HTTP_METHODS, HTTP_VERBS
from observability.metric import OTHER
from security.rbac import Request, User

if TYPE_CHECKING:
    from hub.api.auditing import Record

VERBS: Final = frozenset(HTTP_VERBS)
METHODS: Final = frozenset(HTTP_METHODS)
CLIENT_GONE: Final = 499
"""Counted for requests whose client went away; never sent."""


class Call:
    """Filled in while the request is served. `user`: who asks; `acting`: in whose name."""

    def __init__(self, request: web.BaseRequest, method: str) -> None:
        self.request = request
        self.began = time.monotonic()
        self.received = datetime.now(UTC)
        self.user: User = NOBODY
        self.acting: User = NOBODY
        self.asked = Request(method, path=request.rel_url.raw_path)
        self.verb = method
        self.resource = ""
        self.target: Target | None = None
        self.reason = ""
        self.code = CLIENT_GONE
        self.failure: errors.ApiError | None = None
        self.record: Record | None = None
        self.notes: dict[str, str] = {}
        """Audit annotations of policies."""

    def wanted(self, asked: Request, path: str, verb: str = "", target: Target | None = None) -> None:
        """What is asked for. `verb`: as metrics name it, where that is not the right's."""
        self.asked = asked
        self.target = target
        self.verb = verb or asked.verb
        if asked.resource:
            self.resource = f"{asked.resource}.{asked.group}" if asked.group else asked.resource


def verb_label(verb: str) -> str:
    """`verb` for metrics: a client may send any word as its method."""
    return verb if verb in VERBS else OTHER


def method_label(method: str) -> str:
    """The method for metrics; what is none of HTTP's is `_OTHER`, as OpenTelemetry has it."""
    return method if method in METHODS else "_OTHER"


def refusal(failure: errors.ApiError) -> str:
    """Why a request was refused, in a word."""
    if isinstance(failure, Unknown):
        return failure.why
    if isinstance(failure, errors.Unauthorized):
        return "anonymous"
    if isinstance(failure, Refused):
        return "impersonation" if failure.asked.verb == "impersonate" else "no_right"
    if isinstance(failure, errors.TooManyRequests):
        return "too_many"
    return "forbidden"
