"""The API server: TLS, routing, authentication, bounds, lifecycle.

Invariants: every answer that is no success is a metav1.Status; every request is counted and bounded in size, time and
number; `stop` ends watches first, then lets what runs finish.
"""

import asyncio
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from aiohttp import hdrs, web

from hub import errors
from hub.access.authorizer import Authorizer, default_policy
from hub.access.tokens import Tokens
from hub.api.answering import json_response, verb_of
from hub.api.auditing import Auditor
from hub.api.auth import Authenticator, impersonate
from hub.api.calls import Call, method_label, refusal, verb_label
from hub.api.documents import Check, Document, Documents
from hub.api.doorstep import Doorstep
from hub.api.following import followed
from hub.api.handlers import Handlers, Timing
from hub.api.handshakes import count_refused
from hub.api.kinds import kinds
from hub.api.logs import Gateway
from hub.api.protocol import HttpServer
from hub.api.rendering import encode
from hub.api.requests import KEEP_BODY, Target, flag, parse_target
from hub.api.reviews import review_at
from hub.api.selection import exact_name
from hub.api.users import PATH as USERS_PATH
from hub.api.users import Issue, Users
from hub.api.watch import Watches
from hub.api.writing import Mint, Writer
from hub.certpaths import REVOCATIONS_PATH
from hub.objects import NAMESPACES
from hub.outage import Outage
from hub.policies.asking import ASKER, NOTES, Asker
from hub.policies.watching import Policies
from hub.registry import Registry
from observability.metrics import Metrics
from observability.tracing import Tracer
from security.rbac import Request as Access
from security.rbac import User

if TYPE_CHECKING:
    from hub.fleet.pages import Pages

log = logging.getLogger(__name__)

UNSENT_BYTES: Final = 128 << 10
"""What the kernel may hold of one connection's answers that it has not sent yet, where it can be told (Linux, macOS)."""

Identify = Callable[[Mapping[str, Any] | None, Mapping[str, str], float], Awaitable[User]]
"""From a connection's certificate, a request's headers and the time in unix seconds to who asks. Raises ApiError."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds. What is over them gets 429, or is not accepted."""

    connections: int = 2000
    in_flight: int = 400
    """Requests at once that are no watch and no followed log."""
    in_flight_per_user: int = 200
    """Of these, what one user may have, so that no one user shuts out the others."""
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
    elsewhere: str = ""
    """URL of the API server that the objects live in; then this one serves health, metrics, status and revocations alone."""
    limits: Limits = field(default_factory=Limits)
    timing: Timing = field(default_factory=Timing)


class ApiServer:
    """Serves the API of one replica: reads and watches straight from the store, so any replica serves all of it."""

    def __init__(
        self,
        registry: Registry,
        tls: ssl.SSLContext | None,
        config: Config,
        metrics: Metrics,
        *,
        gateway: Gateway | None = None,
        mint: Mint | None = None,
        ready: Mapping[str, Check] | None = None,
        status: Callable[[], Awaitable[Mapping[str, Any]]] | None = None,
        policies: Policies | None = None,
        documents: Mapping[tuple[str, str], Document] | None = None,
        authorizer: Authorizer | None = None,
        tokens: Tokens | None = None,
        identify: Identify | None = None,
        auditor: Auditor | None = None,
        issue_user: Issue | None = None,
        tracer: Tracer | None = None,
        fleet: "Pages | None" = None,
    ) -> None:
        """`documents`: by method and path. `fleet`: the fleet page. `tls`: None serves plain HTTP, where nobody has a certificate: for tests, with an
        `identify`. `authorizer`: None knows the default roles alone."""
        self._config = config
        self._tls = tls
        self._identify: Identify = identify or Authenticator(tokens).user
        self._auditor = auditor
        self._tracer = tracer
        self._fleet = fleet
        self._authorizer = authorizer or Authorizer(default_policy())
        outage = Outage()
        self._watches = {kind.res: Watches(kind, registry, outage) for kind in kinds().values()}
        self._handlers = Handlers(
            registry,
            self._watches,
            Writer(registry, mint, policies),
            gateway,
            config.timing,
            authorizer=self._authorizer,
            tokens=tokens,
        )
        self._users = Users(self._authorizer, issue_user) if issue_user is not None else None
        self._documents = Documents(metrics, config.build, config.elsewhere, ready, status, documents)
        self._requests = metrics.counter("cloudhub.api.requests")
        self._seconds = metrics.histogram("http.server.request.duration")
        self._refused = metrics.counter("cloudhub.api.refused")
        metrics.figures("cloudhub.api", lambda: {"in_flight": self._in_flight, "watches": self._long})
        if tls is not None:
            count_refused(tls, self._refused)
        self._in_flight = 0
        self._long = 0
        self._in_flight_by_user: Counter[str] = Counter()
        self._long_by_user: Counter[str] = Counter()
        self._server: HttpServer | None = None
        self._doorstep: Doorstep | None = None
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
        self._doorstep = Doorstep(self._server, limits.connections, limits.first_request_s)
        host, port = self._config.address
        self._listener = await asyncio.get_running_loop().create_server(
            self._doorstep.accept,
            host,
            port,
            ssl=self._tls,
            ssl_handshake_timeout=limits.handshake_s if self._tls else None,
            backlog=512,
        )
        # Accepted connections inherit it. Without it a reader that does not read keeps megabytes in the kernel.
        if (option := getattr(socket, "TCP_NOTSENT_LOWAT", None)) is not None:
            self._listener.sockets[0].setsockopt(socket.IPPROTO_TCP, option, UNSENT_BYTES)
        bound = self._listener.sockets[0].getsockname()
        return str(bound[0]), int(bound[1])

    def drain(self) -> None:
        """Goes on serving, while `/readyz` sends balancers elsewhere and each answer is the last on its connection: none
        is idle, about to be used again, when `stop` closes it."""
        self._documents.draining = True

    async def stop(self, grace_s: float = 5.0) -> None:
        """Accepts nothing more, ends watches, lets other requests finish for at most `grace_s`, closes."""
        self._documents.draining = self._stopping = True
        if self._listener is not None:
            self._listener.close()
        for watches in self._watches.values():
            await watches.stop()
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(grace_s)
            self._server = None
        if self._doorstep is not None:
            self._doorstep.close()

    # -- one request --------------------------------------------------------------------------------------------

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._doorstep is not None
        self._doorstep.entered(request.protocol)
        call = Call(request, request.method.lower())
        response: web.StreamResponse | None = None
        try:
            if self._tracer is None:
                response = await self._answered(request, call)
            else:
                async with followed(self._tracer, request, call):
                    response = await self._answered(request, call)
        finally:
            if self._auditor is not None:
                self._auditor.end(call, call.record, response)
            self._requests.add(verb_label(call.verb), call.resource, str(call.code))
            if call.verb not in ("watch", "connect"):
                took_s = time.monotonic() - call.began
                self._seconds.observe(took_s, method_label(request.method), str(call.code))
        if self._documents.draining and not response.prepared:
            response.force_close()
        return response

    async def _answered(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        try:
            response = await self._admitted(request, call)
            call.code = response.status
            return response
        except errors.ApiError as failure:
            call.code, call.failure = failure.code, failure
            if failure.code in (401, 403, 429):
                self._refused.add(refusal(failure))
            return self._failed(failure)
        except (ConnectionResetError, ConnectionAbortedError) as gone:
            log.debug("%s %s: %s", request.method, request.rel_url.raw_path, gone)
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.rel_url.raw_path)
            call.code = 500
            return self._failed(errors.InternalError("see the hub's log; this is a bug of the hub"))

    async def _admitted(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        """Who asks, what for, whether he may; then the answer."""
        peer = request.get_extra_info("peercert")
        call.user = await self._identify(peer, request.headers, time.time())
        user = call.acting = impersonate(request.headers, call.user, self._authorizer)
        ASKER.set(Asker(user.name, user.groups))
        NOTES.set(call.notes)
        path = request.rel_url.raw_path
        if (asked := review_at(path)) is not None:
            call.wanted(asked.request, path)
            self._allow(call, user)
            return await self._bounded(self._handlers.review(request, asked, user), user)
        if path == USERS_PATH and self._users is not None:
            # The right is that of impersonation: `Users` asks for it, since the body says whose.
            call.wanted(Access(call.verb, path=path), path)
            self._record(call)
            return await self._bounded(self._users.answer(request, user), user)
        if self._fleet is not None and (page := self._fleet.page(request, path)) is not None:
            call.wanted(page.wanted, path)
            self._allow(call, user)
            serving = self._fleet.answer(request, page, user)
            return await (self._unbounded(serving, call) if page.lasting else self._bounded(serving, user))
        if (
            self._config.elsewhere
            and path.startswith(("/api", "/apis", "/openapi"))
            and not path.startswith(REVOCATIONS_PATH)
        ):
            raise errors.NotFound(
                "",
                "",
                message=f"the objects of this fleet live in the API server at {self._config.elsewhere}",
            )
        target = parse_target(path) if path.startswith(("/api", "/apis")) else None
        if target is None:
            call.wanted(Access(call.verb, path=path), path)
            self._allow(call, user)
            return await self._bounded(self._documents.answer(request, path.rstrip("/") or "/"), user)
        verb = verb_of(request, target)
        # A GET that becomes a WebSocket does what a POST does.
        wanted = _wanted(request, target, "create" if verb == "connect" else verb)
        call.wanted(wanted, path, verb, target)
        self._allow(call, user)
        return await self._serve(request, target, verb, call)

    def _record(self, call: Call) -> None:
        """Begins the audit log's record, where the policy wants one."""
        if self._auditor is None:
            return
        call.record = self._auditor.begin(call)
        if call.record is not None and call.record.keep_body:
            call.request[KEEP_BODY] = call.record.body

    def _allow(self, call: Call, user: User) -> None:
        """Raises Refused, Unauthorized."""
        self._record(call)
        call.reason = self._authorizer.authorize(user, call.asked)

    async def _serve(
        self, request: web.BaseRequest, target: Target, verb: str, call: Call
    ) -> web.StreamResponse:
        user = call.acting
        if verb == "watch":
            return await self._unbounded(self._handlers.watch(request, target), call)
        if verb == "connect":
            return await self._unbounded(self._handlers.connect(request, target), call)
        if target.subresource == "log":
            if flag(request.query, "follow"):
                return await self._unbounded(self._handlers.log(request, target), call)
            return await self._bounded(self._handlers.log(request, target), user)
        return await self._bounded(self._handlers.serve(request, target, verb, user), user)

    async def _bounded(self, serving: Awaitable[web.StreamResponse], user: User) -> web.StreamResponse:
        """Within the limits on number and time."""
        limits, by_user = self._config.limits, self._in_flight_by_user
        if self._stopping:
            _discard(serving)
            raise errors.ServiceUnavailable("the server is shutting down")
        if self._in_flight >= limits.in_flight or by_user[user.name] >= limits.in_flight_per_user:
            _discard(serving)
            raise errors.TooManyRequests()
        self._in_flight += 1
        by_user[user.name] += 1
        seconds = self._config.timing.request_s
        try:
            async with asyncio.timeout(seconds):
                return await serving
        except TimeoutError:
            raise errors.Timeout(f"request did not complete within requested timeout {seconds:g}s") from None
        finally:
            self._in_flight -= 1
            _one_less(by_user, user.name)

    async def _unbounded(self, serving: Awaitable[web.StreamResponse], call: Call) -> web.StreamResponse:
        """Watches, followed logs, exec, attach, port-forward: limited in number, not in time."""
        limits, user = self._config.limits, call.acting
        if self._stopping:
            _discard(serving)
            raise errors.ServiceUnavailable("the server is shutting down")
        if self._long >= limits.watches or self._long_by_user[user.name] >= limits.watches_per_user:
            _discard(serving)
            raise errors.TooManyRequests(
                f"too many watches: at most {limits.watches_per_user} for a user and {limits.watches} in all",
                retry_after_s=5,
            )
        if self._auditor is not None and call.record is not None:
            self._auditor.started(call.record)
        self._long += 1
        self._long_by_user[user.name] += 1
        try:
            return await serving
        finally:
            self._long -= 1
            _one_less(self._long_by_user, user.name)

    def _failed(self, failure: errors.ApiError) -> web.Response:
        response = json_response(encode(failure.status()), status=failure.code)
        if failure.retry_after_s:
            response.headers[hdrs.RETRY_AFTER] = str(failure.retry_after_s)
        return response


def _wanted(request: web.BaseRequest, target: Target, verb: str) -> Access:
    res, name, namespace = target.kind.res, target.name, target.namespace
    if res == NAMESPACES:
        namespace = name  # as in Kubernetes, so that a binding in a namespace may give rights to it
    if not name and verb in ("list", "watch", "deletecollection"):
        name = exact_name(target.kind, request.query)
    return Access(verb, res.group, res.resource, target.subresource, namespace, name)


def _one_less(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]


def _discard(serving: Awaitable[web.StreamResponse]) -> None:
    """A coroutine that is not going to run."""
    close = getattr(serving, "close", None)
    if close is not None:
        close()
