"""Calls to etcd over several endpoints: deadlines, failover, and errors that say whether anything may have happened.

One endpoint is used at a time; an endpoint that refuses, hangs or has no leader is left for the next one. Every call
asks for a leader (`hasleader`), so that a member without quorum answers at once instead of hanging.
"""

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import grpc
import grpc.aio

from security.tls import secret_file
from shards.etcd.proto import rpc_pb2 as pb
from shards.etcd.stream import Stream, StreamEnded, open_stream
from shards.kv import HistoryLost, LeaseGone, StoreError, Unavailable, ValueTooLarge

ATTEMPT_S = 2.0
"""One attempt at one endpoint: longer than an fsync of a busy disk, shorter than an election."""
CALL_S = 5.0
"""All attempts of one call, longer than an election of three members."""
BACKOFF_S = (0.02, 0.5)
"""First and longest pause between attempts; each doubles, with jitter."""
REQUIRE_LEADER = (("hasleader", "true"),)
WATCH = "/etcdserverpb.Watch/Watch"
OPTIONS = (
    # Values are bounded by etcd; the answer to a page or a transaction of many keys is not.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Without it a frozen member is noticed after a minute. etcd allows one ping in 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Stores of one process do not share a connection, and no proxy of the environment stands between hub and etcd.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)
_NOT_SENT = ("failed to connect", "connection refused", "dns resolution failed", "name resolution")
"""What gRPC says when no byte of the request left."""
_NOT_PROPOSED = ("etcdserver: no leader", "etcdserver: too many requests", "etcdserver: server stopped")
"""What etcd answers before it proposes anything."""


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM bytes: the roots that etcd's certificates are checked with; the client's certificate chain and key, both or
    neither."""

    ca: bytes
    cert: bytes | None = None
    key: bytes | None = None

    def context(self) -> ssl.SSLContext:
        """For HTTP/2, as strict as gRPC is with the same bytes. Raises Unavailable for bytes that are no PEM."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        try:
            context.load_verify_locations(cadata=self.ca.decode())
            if self.cert is not None and self.key is not None:
                with secret_file(self.cert.rstrip() + b"\n" + self.key) as path:
                    context.load_cert_chain(path, password=b"")
        except (ssl.SSLError, ValueError) as failure:
            raise Unavailable(f"etcd: the certificate files cannot be used: {failure}") from failure
        return context


def read_tls(ca: str, cert: str = "", key: str = "") -> Tls | None:
    """From the files' paths; None without a CA. Raises OSError."""
    if not ca:
        return None

    def read(path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    return Tls(read(ca), read(cert) if cert else None, read(key) if key else None)


class Uncertain(Exception):
    """An attempt ended without an answer: the request may be carried out, now or a little later."""


class Client:
    """Unary calls, lease keepalives and watch streams. Made on the event loop that uses it. Raises Unavailable for TLS files that
    cannot be used."""

    def __init__(self, endpoints: Sequence[str], tls: Tls | None = None) -> None:
        if not endpoints:
            raise ValueError("etcd: no endpoint given; set host:port of at least one member")
        self.endpoints = tuple(endpoints)
        credentials = (
            grpc.ssl_channel_credentials(tls.ca, private_key=tls.key, certificate_chain=tls.cert)
            if tls
            else None
        )
        self._links = [_Link(endpoint, credentials) for endpoint in self.endpoints]
        self._tls = tls.context() if tls else None
        # Replicas that are given the same list do not all lean on its first member.
        self._at = random.randrange(len(self._links))  # noqa: S311
        self.head = 0
        """The highest revision that any answer or event has shown."""
        self.lost: HistoryLost | None = None
        """Set once the store answered with an older revision than it had shown: it was replaced or restored."""
        self.closed = False

    async def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        """Raises Unavailable; grpc.aio.AioRpcError for what etcd refuses. A serializable one is answered by any member,
        without leader, and may go back behind what was seen."""
        if request.serializable:
            return cast(pb.RangeResponse, await self._persist("stale read", partial(_stale, request)))
        answer: pb.RangeResponse = await self._read("range", lambda link: link.range, request)
        return answer

    async def txn_read(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """A transaction that only reads, and may thus be repeated. Raises as `range`."""
        answer: pb.TxnResponse = await self._read("read", lambda link: link.txn, request)
        return answer

    async def txn(self, request: pb.TxnRequest, timeout_s: float = ATTEMPT_S) -> pb.TxnResponse:
        """One attempt at a transaction. Raises Uncertain when it may have been carried out, NotTried when it was not,
        and the errors of `refused`."""
        link, seen = self._link(), self.head
        try:
            answer = await link.txn(request, timeout=timeout_s, metadata=REQUIRE_LEADER)
        except grpc.aio.AioRpcError as failure:
            self._raise_refused(failure)
            self._leave(link)
            if not_written(failure):
                raise NotTried(_say(link, failure)) from failure
            raise Uncertain(_say(link, failure)) from failure
        self.see(answer.header.revision, seen)
        return answer  # type: ignore[no-any-return]

    async def compact(self, revision: int) -> None:
        """Raises Unavailable; grpc.aio.AioRpcError for what etcd refuses."""
        await self._read("compact", lambda link: link.compact, pb.CompactionRequest(revision=revision))

    async def grant(self, lease: int, ttl_s: int) -> None:
        """A lease of an id that the caller drew at random: who finds it there after a lost answer made it himself.
        Raises Unavailable: the lease may stand, and ends by itself."""
        request = pb.LeaseGrantRequest(ID=lease, TTL=ttl_s)
        try:
            await self._read("grant", lambda link: link.grant, request, check=False)
        except grpc.aio.AioRpcError as failure:
            if "lease already exists" not in (failure.details() or ""):
                raise

    async def revoke(self, lease: int) -> None:
        """An ended lease is no error. Raises Unavailable: it may be revoked or not, and ends by itself."""
        with contextlib.suppress(LeaseGone):
            await self._read("revoke", lambda link: link.revoke, pb.LeaseRevokeRequest(ID=lease), check=False)

    async def keepalive(self, lease: int, timeout_s: float) -> int:
        """The seconds that the lease has, 0 when it has ended. Raises Unavailable: nothing is known."""

        async def once(link: _Link, left_s: float) -> int:
            stream = link.keepalive(timeout=left_s, metadata=REQUIRE_LEADER)
            try:
                await stream.write(pb.LeaseKeepAliveRequest(ID=lease))
                answer = await stream.read()
                if answer is grpc.aio.EOF:
                    raise Uncertain("the stream ended without an answer")
                return int(answer.TTL)
            finally:
                stream.cancel()

        return int(await self._persist("keepalive", once, timeout_s=timeout_s, attempt_s=1.0))

    async def watch_stream(self, received: Callable[[bytes], None]) -> "tuple[Stream, Callable[[], None]]":
        """A Watch call to the endpoint in use, and what to call to leave this endpoint. Raises StreamEnded, having left it."""
        link = self._link()
        try:
            stream = await open_stream(link.endpoint, WATCH, REQUIRE_LEADER, received, self._tls, ATTEMPT_S)
        except StreamEnded:
            self._leave(link)
            raise
        return stream, lambda: self._leave(link)

    def see(self, revision: int, seen_before: int = 0) -> None:
        """Notes a revision. `seen_before`: what had been seen when a linearizable request was sent. Raises
        HistoryLost when the store has gone back behind that."""
        if revision < seen_before:
            self.lost = HistoryLost(
                f"etcd answers at revision {revision} but had shown {seen_before}: it was restored from a backup or"
                " replaced; restart this hub, so that it loads what is there now"
            )
        if self.lost is not None:
            raise self.lost
        self.head = max(self.head, revision)

    async def close(self) -> None:
        self.closed = True
        for link in self._links:
            await link.close()

    async def _read(
        self, what: str, call: "Callable[[_Link], Any]", request: object, *, check: bool = True
    ) -> Any:
        async def once(link: _Link, left_s: float) -> Any:
            seen = self.head
            answer = await call(link)(request, timeout=left_s, metadata=REQUIRE_LEADER)
            if check:
                self.see(answer.header.revision, seen)
            return answer

        return await self._persist(what, once)

    async def _persist(
        self,
        what: str,
        once: "Callable[[_Link, float], Any]",
        *,
        timeout_s: float = CALL_S,
        attempt_s: float = ATTEMPT_S,
    ) -> Any:
        """Repeats what may be repeated until it is answered, over the endpoints in turn."""
        deadline = time.monotonic() + timeout_s
        pause_s = BACKOFF_S[0]
        while True:
            link = self._link()
            try:
                return await once(link, min(attempt_s, max(0.05, deadline - time.monotonic())))
            except grpc.aio.AioRpcError as failure:
                self._raise_refused(failure)
                reason = _say(link, failure)
            except Uncertain as failure:
                reason = f"{link.endpoint}: {failure}"
            self._leave(link)
            if time.monotonic() + pause_s >= deadline:
                raise Unavailable(
                    f"etcd does not answer ({what}): {reason}; check the members and their quorum"
                )
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
            pause_s = min(2 * pause_s, BACKOFF_S[1])

    def _link(self) -> "_Link":
        if self.closed:
            raise Unavailable("the store is closed")
        if self.lost is not None:
            raise self.lost
        return self._links[self._at]

    def _leave(self, link: "_Link") -> None:
        """The next endpoint, unless another call has moved on already."""
        if self._links[self._at] is link:
            self._at = (self._at + 1) % len(self._links)

    def _raise_refused(self, failure: grpc.aio.AioRpcError) -> None:
        if self.closed:
            raise Unavailable("the store is closed") from failure
        if (translated := refused(failure)) is not None:
            raise translated from failure
        if failure.code() in _ANSWERED:
            raise failure


_ANSWERED = (
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
)
"""Codes by which etcd has answered: another endpoint says the same."""


async def _stale(request: pb.RangeRequest, link: "_Link", left_s: float) -> Any:
    return await link.range(request, timeout=left_s)


class NotTried(Exception):
    """An attempt that certainly had no effect."""


def refused(failure: grpc.aio.AioRpcError) -> StoreError | None:
    """The store's error for what etcd refuses for good, having written nothing; None for anything else."""
    code, details = failure.code(), failure.details() or ""
    if "requested lease not found" in details:
        return LeaseGone("the lease has ended: nothing was written under it; grant a new one")
    if "request is too large" in details or "larger than max" in details or "too many operations" in details:
        return ValueTooLarge(f"etcd refuses the transaction: {details}; write fewer or smaller objects")
    if "database space exceeded" in details:
        return Unavailable(
            "etcd's space quota is used up: nothing was written; compact, defragment and disarm the alarm"
        )
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return Unavailable(f"etcd refuses this client: {details}; check its certificate and role")
    return None


def not_written(failure: grpc.aio.AioRpcError) -> bool:
    """Is it certain that a writing request had no effect and will have none?"""
    details = (failure.details() or "").lower()
    if failure.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
        return False
    return any(text in details for text in (*_NOT_SENT, *_NOT_PROPOSED))


def _say(link: "_Link", failure: grpc.aio.AioRpcError) -> str:
    return f"{link.endpoint}: {failure.code().name}: {failure.details()}"


class _Link:
    """One endpoint's channel and its callables."""

    def __init__(self, endpoint: str, credentials: Any) -> None:
        self.endpoint = endpoint
        self._channel = (
            grpc.aio.secure_channel(endpoint, credentials, options=OPTIONS)
            if credentials is not None
            else grpc.aio.insecure_channel(endpoint, options=OPTIONS)
        )
        self.range = self._unary("KV/Range", pb.RangeResponse)
        self.txn = self._unary("KV/Txn", pb.TxnResponse)
        self.compact = self._unary("KV/Compact", pb.CompactionResponse)
        self.grant = self._unary("Lease/LeaseGrant", pb.LeaseGrantResponse)
        self.revoke = self._unary("Lease/LeaseRevoke", pb.LeaseRevokeResponse)
        self.keepalive = self._stream("Lease/LeaseKeepAlive", pb.LeaseKeepAliveResponse)

    def _unary(self, method: str, response: Any) -> Any:
        return self._channel.unary_unary(f"/etcdserverpb.{method}", _serialize, response.FromString)

    def _stream(self, method: str, response: Any) -> Any:
        return self._channel.stream_stream(f"/etcdserverpb.{method}", _serialize, response.FromString)

    async def close(self) -> None:
        await self._channel.close(None)


def _serialize(message: Any) -> bytes:
    return bytes(message.SerializeToString())
