"""Requests to a Kubernetes API server: bounded in number, rate, size and time; errors as hub.errors.

A refusal is the ApiError that the server's Status tells. Where no answer came: ServiceUnavailable, and Timeout for a
write that may have taken effect. An answer that says when to come back (429, 503) is waited for, a bounded number of
times. Credentials are read again every minute, and at once when they are refused.
"""

import asyncio
import contextlib
import logging
import random
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import aiohttp
import msgspec
import orjson

from hub import errors
from hub.kubeconfig import KubeconfigError
from hub.kubernetes.answers import Counts, Page, WatchEvent, error_of, event_of, page_of, resource_of
from hub.kubernetes.config import Access, KubeConfig
from security import tls

log = logging.getLogger(__name__)

JSON: Final = "application/json"
ACCESS_AGE_S: Final = 60.0
"""How old credentials may be: tokens of service accounts are replaced when a fifth of their hour is left."""
RETRIES: Final = 5
PAUSE_MAX_S: Final = 30.0
PAUSES_MAX_S: Final = 60.0
"""Of one request, together."""
SILENCE_S: Final = 150.0
"""A watch that says nothing for so long has been forgotten: servers send bookmarks every minute."""
ERROR_BYTES_MAX: Final = 256 << 10
CONNECT_S: Final = 10.0
KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", 20),
            ("TCP_KEEPINTVL", 10),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", 50_000),
        )
        if hasattr(socket, name)
    ),
)
"""A watch is silent for minutes: only the kernel finds out that its other end is gone."""
CLOSING_TURNS: Final = 4
"""Of the loop, for a TLS connection that is aborted to be gone."""
BULK: Final = frozenset(("list", "watch"))
"""Verbs whose answers are large. They have connections of their own: what one of these has carried leaves behind buffers
of half a megabyte for as long as the connection lives, and the pool takes all connections in turn, so that after a burst
of small requests every one of them would come to carry a list, and none would be idle for long enough to be closed."""
VERBS: Final = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "GET": "get"}

Query = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one client."""

    requests_at_once: int = 32
    """Watches not counted."""
    watches_max: int = 512
    per_second: float = 200.0
    """Requests begun, watches too; a burst may be a second's worth."""
    answer_bytes_max: int = 64 << 20
    event_bytes_max: int = 8 << 20
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if min(self.requests_at_once, self.watches_max, self.per_second, self.timeout_s) <= 0:
            raise ValueError("the limits of a Kubernetes client have to be above 0")


class KubeClient:
    """`async with KubeClient(config) as api: await api.request("GET", "/version")`. `counts`: what was asked."""

    def __init__(self, config: KubeConfig, limits: Limits = Limits()) -> None:
        self._config = config
        self._limits = limits
        self.counts = Counts()
        self.watches = 0
        """Open now."""
        self._access: Access = config.access()
        self._tls = _context(self._access)
        self._read_at = 0.0
        self._at_once = asyncio.Semaphore(limits.requests_at_once)
        self._next_at = 0.0
        self._session: aiohttp.ClientSession | None = None
        self._bulk: aiohttp.ClientSession | None = None

    @property
    def server(self) -> str:
        return self._access.server

    async def __aenter__(self) -> "KubeClient":
        self._read_at = asyncio.get_running_loop().time()
        self._session, self._bulk = _session(), _session()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None and self._bulk is not None
        await self._session.close()
        await self._bulk.close()
        # A TLS connection is closed in the turns of the loop that follow.
        for _ in range(CLOSING_TURNS):
            await asyncio.sleep(0)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        content_type: str = JSON,
        timeout_s: float | None = None,
        before: Callable[[], None] | None = None,
        apart: bool = False,
    ) -> tuple[int, bytes]:
        """The answer's code (below 400) and body. `body`: bytes, or what becomes JSON. `before` is called right before the
        request is sent, also before each further try; what it raises is raised, and nothing is sent. `apart`: it does not
        wait for its turn among `requests_at_once`, nor counts there; the caller bounds how many of these there are. Raises
        ApiError."""
        verb = VERBS.get(method, method.lower())
        return await self._whole(verb, method, path, query, body, content_type, timeout_s, before, apart)

    async def get(self, path: str, query: Query | None = None) -> dict[str, Any]:
        """One object. Raises ApiError."""
        obj: dict[str, Any] = orjson.loads((await self.request("GET", path, query=query))[1])
        return obj

    async def post(self, path: str, body: Any) -> dict[str, Any]:
        """Makes an object; what became of it. Raises ApiError."""
        obj: dict[str, Any] = orjson.loads((await self.request("POST", path, body=body))[1])
        return obj

    async def patch(self, path: str, body: Any) -> dict[str, Any]:
        """A merge patch; the object afterwards. Raises ApiError."""
        _, raw = await self.request("PATCH", path, body=body, content_type="application/merge-patch+json")
        obj: dict[str, Any] = orjson.loads(raw)
        return obj

    async def list(
        self, path: str, query: Query | None = None, page: int = 500
    ) -> AsyncGenerator[Page, None]:
        """A collection in pages of at most `page` objects, 0: in one. Raises ApiError; Expired (410) when the server has forgotten
        the list's revision under way: begin anew."""
        parameters: dict[str, str | int] = {**(query or {}), **({"limit": page} if page else {})}
        while True:
            _, raw = await self._whole("list", "GET", path, parameters, None, JSON, None)
            try:
                part = page_of(raw)
            except msgspec.DecodeError as wrong:
                raise errors.ServiceUnavailable(f"{self.server}{path} is no list: {wrong}") from wrong
            following = part.metadata.next
            yield part
            if not following:
                return
            # The continue token names the revision; beside it resourceVersion is an error.
            parameters.pop("resourceVersion", None)
            parameters.pop("resourceVersionMatch", None)
            parameters["continue"] = following
            del raw, part

    async def watch(
        self, path: str, query: Query | None = None, silence_s: float = SILENCE_S
    ) -> AsyncGenerator[tuple[str, bytes], None]:
        """(type, object's bytes) of every event, until the server ends the watch. Raises ApiError, also the one that an
        ERROR event tells: Expired (410) when the revision is too old; ServiceUnavailable when nothing came for
        `silence_s`."""
        async with aclosing(self.watch_batches(path, query, silence_s)) as batches:
            async for events in batches:
                for event in events:
                    yield event.type, bytes(event.object)

    async def watch_batches(
        self, path: str, query: Query | None = None, silence_s: float = SILENCE_S
    ) -> AsyncGenerator[Sequence[WatchEvent], None]:
        """As `watch`, with all events of one read at once, whose objects are views of what was read. First of all none:
        the server has accepted the watch, and may have nothing to tell for a minute."""
        parameters: dict[str, str | int] = {**(query or {}), "watch": "true"}
        if self.watches >= self._limits.watches_max:
            raise errors.TooManyRequests(f"this hub has {self.watches} watches already")
        self.watches += 1
        rest = bytearray()
        silence = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence_s)
        try:
            async with self._opened("watch", "GET", path, parameters, None, JSON, silence) as response:
                yield ()
                async for data in response.content.iter_any():
                    lines = data.split(b"\n")
                    rest += lines[0]
                    if len(rest) > self._limits.event_bytes_max:
                        raise errors.ServiceUnavailable(
                            f"{path}: an event is over {self._limits.event_bytes_max} bytes"
                        )
                    if len(lines) == 1:
                        continue
                    whole = [bytes(rest), *lines[1:-1]]
                    rest = bytearray(lines[-1])
                    yield [self._event(path, line) for line in whole if line]
        except (aiohttp.ClientError, TimeoutError, OSError) as failure:
            self.counts.failed += 1
            raise errors.ServiceUnavailable(
                f"the watch of {path} was cut off: {_reason(failure)}"
            ) from failure
        finally:
            self.watches -= 1

    def _event(self, path: str, line: bytes) -> WatchEvent:
        try:
            event = event_of(line)
        except msgspec.DecodeError as wrong:
            raise errors.ServiceUnavailable(f"the watch of {path} sent no event: {wrong}") from wrong
        if event.type == "ERROR":
            raise error_of(500, bytes(event.object))
        return event

    # -- one exchange --------------------------------------------------------------------------------------------

    async def _whole(
        self,
        verb: str,
        method: str,
        path: str,
        query: Query | None,
        body: Any,
        content_type: str,
        timeout_s: float | None,
        before: Callable[[], None] | None = None,
        apart: bool = False,
    ) -> tuple[int, bytes]:
        limit_s = timeout_s or self._limits.timeout_s
        limit = aiohttp.ClientTimeout(total=limit_s, sock_connect=CONNECT_S)
        async with contextlib.nullcontext() if apart else self._at_once:
            try:
                async with self._opened(
                    verb, method, path, query, body, content_type, limit, before
                ) as response:
                    raw = await _read(response, self._limits.answer_bytes_max)
                    return response.status, raw
            except (aiohttp.ClientError, TimeoutError, OSError) as failure:
                self.counts.failed += 1
                raise self._unanswered(method, path, failure, limit_s) from failure

    def _unanswered(self, method: str, path: str, failure: Exception, limit_s: float) -> errors.ApiError:
        text = f"{method} {path} at {self.server}: {_reason(failure, limit_s)}"
        sent = not isinstance(failure, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        if method != "GET" and sent:
            return errors.Timeout(f"{text}; whether it took effect is not known")
        return errors.ServiceUnavailable(f"cannot reach the API server: {text}")

    @asynccontextmanager
    async def _opened(
        self,
        verb: str,
        method: str,
        path: str,
        query: Query | None,
        body: Any,
        content_type: str,
        limit: aiohttp.ClientTimeout,
        before: Callable[[], None] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer below 400, not read yet; after as many tries as the server asked for and this may make."""
        session = self._bulk if verb in BULK else self._session
        assert session is not None, "use it as a context manager"
        data = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        resource = resource_of(path)
        fresh, waited_s = False, 0.0
        for tried in range(RETRIES + 1):
            await self._paced()
            self._refresh()
            if before is not None:
                before()
            self.counts.add(verb, resource)
            async with session.request(
                method,
                self._access.server + path,
                params=query,
                data=data,
                headers=self._headers(content_type if data is not None else None),
                ssl=self._tls,
                server_hostname=self._access.server_name,
                timeout=limit,
                allow_redirects=False,
            ) as response:
                if response.status < 300:
                    yield response
                    return
                refusal = error_of(response.status, await _read(response, ERROR_BYTES_MAX))
                after_s = _retry_after(response)
            if refusal.code == 401 and not fresh:
                fresh = True
                self._refresh(now=True)
                continue
            if after_s is None:
                break
            self.counts.throttled += 1
            # Chance, so that all who were told the same second do not come in one moment.
            pause_s = min(PAUSE_MAX_S, max(after_s, 0.1 * 2**tried)) * (1 + random.random() / 4)  # noqa: S311
            waited_s += pause_s
            if tried == RETRIES or waited_s > PAUSES_MAX_S:
                break
            await asyncio.sleep(pause_s)
        self.counts.refused += 1
        raise refusal

    def _headers(self, content_type: str | None) -> dict[str, str]:
        headers = {"Content-Type": content_type} if content_type else {}
        if self._access.token:
            headers["Authorization"] = f"Bearer {self._access.token}"
        return headers

    async def _paced(self) -> None:
        """Waits for this request's turn: `per_second` on average, a second's worth at once."""
        now, step = asyncio.get_running_loop().time(), 1 / self._limits.per_second
        self._next_at = max(self._next_at, now - 1.0) + step
        if self._next_at > now:
            await asyncio.sleep(self._next_at - now)

    def _refresh(self, now: bool = False) -> None:
        """Reads the credentials again where they are old. What cannot be read leaves the old ones in use."""
        at = asyncio.get_running_loop().time()
        if not now and at - self._read_at < ACCESS_AGE_S:
            return
        self._read_at = at
        try:
            access = self._config.access()
            if access != self._access:
                self._tls, self._access = _context(access), access
        except (KubeconfigError, tls.TLSError) as wrong:
            log.warning("the credentials for the Kubernetes API server stay as they were: %s", wrong)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, socket_factory=_socket),
        # Gzip would cost more CPU on both sides than it saves within a cluster.
        headers={"User-Agent": "cloudhub", "Accept": JSON, "Accept-Encoding": "identity"},
        trust_env=False,
    )


def _context(access: Access) -> ssl.SSLContext:
    return tls.foreign_client_context(access.root_pem, access.cert_pem, access.key_pem)


def _socket(address: Any) -> socket.socket:
    family, kind, protocol = address[:3]
    made = socket.socket(family, kind, protocol)
    for level, option, value in KEEPALIVE:
        made.setsockopt(level, option, value)
    return made


async def _read(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """The body. Raises ServiceUnavailable when it is larger than `bytes_max`."""
    parts: list[bytes] = []
    size = 0
    async for data in response.content.iter_any():
        size += len(data)
        if size > bytes_max:
            raise errors.ServiceUnavailable(f"{response.url.path}: the answer is over {bytes_max} bytes")
        parts.append(data)
    return b"".join(parts)


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds after which the server wants to be asked again; None: not at all."""
    if response.status != 429 and response.status < 500:
        return None
    text = response.headers.get("Retry-After", "")
    if text.isascii() and text.isdigit():
        return float(text)
    return 1.0 if response.status == 429 else None


def _reason(failure: Exception, limit_s: float | None = None) -> str:
    if isinstance(failure, TimeoutError):
        return f"no answer within {limit_s:g} s" if limit_s else "no answer in time"
    return str(failure) or type(failure).__name__
