"""The kubelet's face of all edge nodes: HTTPS that the API server reaches for logs, exec, attach and port-forward.

One port of every replica serves the pods of all nodes: a path names the pod, its Node names the owner, and the gateway
reaches it through whichever replica serves it. What concerns a node and no pod takes the node from `?node=` or from the
first label of the Host header, and is answered by the replica that serves the node: here, or over the bus.

    GET        /containerLogs/NAMESPACE/POD/CONTAINER
    GET, POST  /exec/NAMESPACE/POD[/UID]/CONTAINER, /attach/..., /portForward/NAMESPACE/POD[/UID]
    GET        /pods, /metrics/resource, /stats/summary, /healthz

Invariants: nothing is answered before `Access` has said yes; the right is asked for on the pod's node, so that who may
not is told nothing about which pods there are. Bounds: `Limits`.
"""

import asyncio
import contextlib
import datetime
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import unquote

import msgspec
from aiohttp import hdrs, web
from multidict import MultiMapping

from hub import errors, objects
from hub.api import connects, logs
from hub.api.doorstep import Doorstep
from hub.api.negotiation import JSON
from hub.api.protocol import HttpServer
from hub.api.rendering import encode
from hub.api.requests import flag
from hub.figures import MetricsSink
from hub.kubelet import figures
from hub.kubelet.access import Access, Caller, Wanted
from hub.mirror import Mirror
from hub.mirrorpods import edge_uid
from hub.registry import Stored
from observability.logs import about

log = logging.getLogger(__name__)

DOCUMENTS: Final = {"pods": JSON, "stats/summary": JSON, "metrics/resource": figures.METRICS_TYPE}
"""What is told of a node, and its content type."""
USAGE_S: Final = 10.0
"""How long a node may take to tell what it uses."""
DOCUMENT_BYTES_MAX: Final = 32 << 20
CONNECTING: Final = {"exec": "exec", "attach": "attach", "portForward": "portforward"}
SEGMENT_CHARS_MAX: Final = 253
LOG_WRITE_S: Final = 60.0
"""A reader of a log that takes nothing for so long is cut off."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`at_once`: requests served at a time, open streams included."""

    connections: int = 2000
    at_once: int = 1000
    header_bytes: int = 16 << 10
    first_request_s: float = 15.0
    request_s: float = 30.0
    """For everything but logs and streams."""
    handshake_s: float = 10.0
    keepalive_s: float = 120.0


class Pods(Protocol):
    """Where pods are read: `hub.registry.Registry`, or what stands for it over another API server."""

    async def find(self, res: objects.Resource, namespace: str, name: str) -> Stored | None: ...


class Served(Protocol):
    """What this replica serves: `hub.share.Share`, or what stands for it over another API server."""

    pods: Mirror[objects.PodView]
    nodes: Mirror[objects.NodeView]


class KubeletServer:
    """See the module."""

    def __init__(
        self,
        pods: Pods,
        gateway: logs.Gateway,
        served: Served,
        access: Access,
        tls: ssl.SSLContext,
        address: tuple[str, int],
        limits: Limits = Limits(),
        metrics: MetricsSink | None = None,
        elsewhere: Callable[[str, str], AsyncIterator[bytes]] | None = None,
        usage: Callable[[str], Awaitable[bytes]] | None = None,
    ) -> None:
        """`elsewhere`: what another replica tells of a node of its own under a path; None: there is none. `usage`: asks a
        node of this replica what it uses."""
        self._elsewhere = elsewhere
        self._usage = usage
        self._pods = pods
        self._gateway = gateway
        self._served = served
        self._access = access
        self._tls = tls
        self._address = address
        self._limits = limits
        self._serving = 0
        self._server: HttpServer | None = None
        self._listener: asyncio.Server | None = None
        self._doorstep: Doorstep | None = None
        self._stopping = False
        self.requests = 0
        self.refused = 0
        """Requests of callers who are unknown, or may not."""
        if metrics is not None:
            metrics.figures("cloudhub.kubelet", self.stats)

    # -- lifecycle ----------------------------------------------------------------------------------------------------

    async def start(self) -> tuple[str, int]:
        """Listens; returns the address. Raises OSError when it is taken."""
        limits = self._limits
        self._server = HttpServer(
            self._answer,
            access_log=None,
            keepalive_timeout=limits.keepalive_s,
            max_line_size=limits.header_bytes,
            max_field_size=limits.header_bytes,
            auto_decompress=False,
        )
        self._doorstep = Doorstep(self._server, limits.connections, limits.first_request_s)
        host, port = self._address
        self._listener = await asyncio.get_running_loop().create_server(
            self._doorstep.accept,
            host,
            port,
            ssl=self._tls,
            ssl_handshake_timeout=limits.handshake_s,
            backlog=512,
        )
        bound = self._listener.sockets[0].getsockname()
        return str(bound[0]), int(bound[1])

    async def stop(self, grace_s: float = 3.0) -> None:
        """Accepts nothing more, ends streams and logs, closes within `grace_s`."""
        self._stopping = True
        if self._listener is not None:
            self._listener.close()
        if self._server is not None:
            self._server.pre_shutdown()
            transports = [connection.transport for connection in self._server.connections]
            await self._server.shutdown(grace_s)
            # An API server keeps idle connections, and would be waited for to end TLS in order.
            for transport in transports:
                if transport is not None:
                    transport.abort()
            self._server = None
        if self._doorstep is not None:
            self._doorstep.close()

    def stats(self) -> dict[str, float]:
        """Figures, by name."""
        return {
            "requests": self.requests,
            "refused": self.refused,
            "serving": self._serving,
        }

    # -- one request --------------------------------------------------------------------------------------------------

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._doorstep is not None
        self._doorstep.entered(request.protocol)
        self.requests += 1
        path = request.rel_url.raw_path
        try:
            if self._stopping:
                raise errors.ServiceUnavailable("this hub is shutting down")
            if self._serving >= self._limits.at_once:
                raise errors.TooManyRequests(f"this hub serves {self._limits.at_once} requests already")
            self._serving += 1
            try:
                return await self._serve(request, [unquote(s) for s in path.strip("/").split("/")])
            finally:
                self._serving -= 1
        except errors.ApiError as failure:
            if isinstance(failure, errors.Unauthorized | errors.Forbidden):
                self.refused += 1
                log.info(
                    "%s %s from %s was refused: %s", request.method, path, request.remote, failure.message
                )
            return _failed(failure, path)
        except (ConnectionResetError, ConnectionAbortedError) as gone:
            log.debug("%s %s: %s", request.method, path, gone)
            raise
        except Exception:
            log.exception("%s %s failed", request.method, path)
            return _failed(errors.InternalError("see the hub's log; this is a bug of the hub"), path)

    async def _serve(self, request: web.BaseRequest, segments: list[str]) -> web.StreamResponse:
        authorization = request.headers.get(hdrs.AUTHORIZATION, "")
        async with _within(self._limits.request_s):
            caller = await self._access.caller(request.get_extra_info("peercert"), authorization)
        connecting = segments[0] in CONNECTING
        if request.method != hdrs.METH_GET and not (connecting and request.method == hdrs.METH_POST):
            raise errors.MethodNotAllowed()
        pod: dict[str, Any] | None = None
        node = _node_of(request)
        if connecting or segments[0] == "containerLogs":
            async with _within(self._limits.request_s):
                pod = await self._pod(segments)
            node = str(pod["spec"].get("nodeName") or "") if pod is not None else ""
        # A GET that becomes a WebSocket does what a POST does.
        verb = "create" if connecting else "get"
        async with _within(self._limits.request_s):
            await self._check(caller, [Wanted(verb, node, sub) for sub in _subresources(segments)])
        if connecting:
            return await self._connect(request, segments, _found(pod, segments))
        if segments[0] == "containerLogs" and len(segments) == 4:
            return await self._log(request, segments[3], _found(pod, segments))
        return await self._document(request, "/".join(segments), node)

    async def _check(self, caller: Caller, enough: list[Wanted]) -> None:
        """Any of these rights will do. Raises Forbidden, for the last one."""
        for wanted in enough[:-1]:
            with contextlib.suppress(errors.Forbidden):
                await self._access.check(caller, wanted)
                return
        await self._access.check(caller, enough[-1])

    async def _pod(self, segments: list[str]) -> dict[str, Any] | None:
        """The pod that a path names; None: there is none."""
        if len(segments) < 3 or not all(0 < len(s) <= SEGMENT_CHARS_MAX and "/" not in s for s in segments):
            raise errors.NotFound.no_such_path()
        stored = await self._pods.find(objects.PODS, segments[1], segments[2])
        return stored.obj() if stored is not None else None

    async def _connect(
        self, request: web.BaseRequest, segments: list[str], pod: dict[str, Any]
    ) -> web.StreamResponse:
        kind = CONNECTING[segments[0]]
        names = segments[3:]
        container = "" if kind == "portforward" else names.pop() if names else ""
        if len(names) > 1 or (kind != "portforward" and not container):
            raise errors.NotFound.no_such_path()
        if names and names[0] != pod["metadata"].get("uid"):
            raise errors.NotFound("pods", segments[2])
        return await connects.serve(request, self._gateway, pod, _asked(kind, container, request.query))

    async def _log(self, request: web.BaseRequest, container: str, pod: dict[str, Any]) -> web.StreamResponse:
        query = {key: value for key, value in request.query.items() if key != "container"}
        options = logs.options(query, datetime.datetime.now(datetime.UTC))
        chosen = logs.container(pod, container)
        uid, node = pod["metadata"]["uid"], str(pod["spec"].get("nodeName") or "")
        chunks = self._gateway.open_log(node, {**options, "pod": uid, "container": chosen})
        async with contextlib.aclosing(chunks):  # type: ignore[type-var]
            first = await anext(chunks, b"")  # a refusal comes before the first byte
            response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: "text/plain; charset=utf-8"})
            await response.prepare(request)
            await _write(response, first)
            async for chunk in chunks:
                await _write(response, chunk)
            await response.write_eof()
            return response

    async def _document(self, request: web.BaseRequest, path: str, node: str) -> web.Response:
        if path == "healthz":
            return web.Response(text="ok")
        if path not in DOCUMENTS:
            raise errors.NotFound.no_such_path()
        if not node:
            raise errors.BadRequest(
                "which node? name it with ?node=, or as the first label of the Host header"
            )
        here = self._served.nodes.cache.get("", node) is not None
        if not here and self._elsewhere is None:
            raise errors.ServiceUnavailable(f'node "{node}" is not served by this hub; ask another replica')
        chunks = self.document(node, path) if here or self._elsewhere is None else self._elsewhere(node, path)
        async with _within(self._limits.request_s), contextlib.aclosing(chunks):  # type: ignore[type-var]
            parts: list[bytes] = []
            async for chunk in chunks:
                parts.append(chunk)
                if sum(map(len, parts)) > DOCUMENT_BYTES_MAX:
                    raise errors.InternalError(f"the answer has more than {DOCUMENT_BYTES_MAX} bytes")
        return web.Response(body=b"".join(parts), headers={hdrs.CONTENT_TYPE: DOCUMENTS[path]})

    async def document(self, node: str, path: str) -> AsyncIterator[bytes]:
        """The answer to a path of DOCUMENTS, of a node that this replica serves, whoever asks: rights were looked at where
        the request came in. Raises ServiceUnavailable when it serves the node no more, NotFound."""
        if path not in DOCUMENTS:
            raise errors.NotFound.no_such_path()
        if self._served.nodes.cache.get("", node) is None:
            raise errors.ServiceUnavailable(f'node "{node}" is not served by this hub; ask again')
        entries = self._served.pods.cache.find("node", node)
        if path == "pods":
            yield encode(figures.pod_list(entry.obj() for entry in entries))
            return
        usage = await self._usage_of(node)
        pods = [figures.NodePod(entry.obj(), edge_uid(entry)) for entry in entries]
        if path == "stats/summary":
            yield encode(figures.summary(node, pods, usage))
        else:
            yield figures.resource_metrics(pods, usage).encode()

    async def _usage_of(self, node: str) -> figures.Usage | None:
        """None where the node does not tell: it is away, or its agent is of an older release."""
        if self._usage is None:
            return None
        try:
            async with asyncio.timeout(USAGE_S):
                return figures.usage_of(await self._usage(node))
        except (errors.ApiError, msgspec.MsgspecError, TimeoutError) as failure:
            log.info("the usage of node %s is not known: %s", node, failure, extra=about(node=node))
            return None


def _subresources(segments: list[str]) -> list[str]:
    """Of nodes, on any of which a right is enough: a kubelet's, fine-grained ones first. [pure]"""
    first = segments[0]
    if first in ("pods", "healthz"):
        return [first, "proxy"]
    return [first if first in ("stats", "metrics") else "proxy"]


def _node_of(request: web.BaseRequest) -> str:
    asked = request.query.get("node", "")
    if not asked:
        host = request.headers.get(hdrs.HOST, "").rpartition(":")[0] or request.headers.get(hdrs.HOST, "")
        label, _, rest = host.partition(".")
        # An address names no node.
        asked = label if rest and not label.isdigit() and ":" not in host else ""
    if len(asked) > SEGMENT_CHARS_MAX:
        raise errors.BadRequest("node: a name that is too long")
    return asked


def _asked(kind: str, container: str, query: MultiMapping[str]) -> dict[str, Any]:
    """As `hub.api.connects.asked`, of a kubelet's query. Raises BadRequest. [pure]"""
    if kind == "portforward":
        return {"kind": kind}
    tty = flag(query, "tty")
    return {
        "kind": kind,
        "container": container,
        "stdin": flag(query, "input"),
        "stdout": flag(query, "output"),
        "stderr": flag(query, "error") and not tty,
        "tty": tty,
        **({"command": query.getall("command", [])} if kind == "exec" else {}),
    }


def _found(pod: dict[str, Any] | None, segments: Iterable[str]) -> dict[str, Any]:
    _, namespace, name, *_ = segments
    if pod is None or not pod["spec"].get("nodeName"):
        raise errors.NotFound(
            "pods", name, message=f"pod {errors.quote(f'{namespace}/{name}')} is on no node"
        )
    return pod


def _failed(failure: errors.ApiError, path: str) -> web.Response:
    """A Status; for logs its message alone: the API server shows that, for a 500 and not for its neighbours."""
    if path.startswith("/containerLogs"):
        response = web.Response(text=failure.message, status=min(failure.code, 500))
    else:
        response = web.Response(body=encode(failure.status()), status=failure.code, content_type=JSON)
    if failure.retry_after_s:
        response.headers[hdrs.RETRY_AFTER] = str(failure.retry_after_s)
    return response


@contextlib.asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise errors.Timeout(f"the request did not complete within {seconds:g} s") from None


async def _write(response: web.StreamResponse, data: bytes) -> None:
    if not data:
        return
    try:
        async with asyncio.timeout(LOG_WRITE_S):
            await response.write(data)
    except TimeoutError:
        raise ConnectionResetError(f"the reader took nothing for {LOG_WRITE_S:.0f} s") from None
