"""The hub's end of the edge-cloud channel: binds connections to nodes, sessions to documents, reports to the store.

Job: who is this (certificate), is it the newest connection of its node, may this hub speak to it (I9), and then carry
out what its session decides. Runs on the event loop; what has to wait for the store runs under one task group.

Invariants: at most one connection of a node is served, the newest (`ordering`). A heartbeat is answered from memory and
written nowhere (I4). An answer to a report leaves only when the store has it (I3). What a node says counts only for
what is bound to it (I5). A slot whose fence is lost is suspended: heartbeats go on, nothing else passes.
"""

import asyncio
import contextlib
import functools
import logging
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson

from edgelite import wire
from edgelite.session import SILENT_HEARTBEATS
from hub import errors, reports
from hub.cache import Entry
from hub.desired import Desired
from hub.hello import NO_CLAIM, Answer, Hello, Standing, answer, welcome
from hub.informer import Delta, Informers
from hub.intake import Intake
from hub.joining import Joining, Refused
from hub.liveness import Liveness
from hub.logstreams import CREDIT_BYTES, LogStream, open_body
from hub.messages import (
    Action,
    Close,
    Confirmed,
    Greeted,
    Left,
    Refusals,
    Renew,
    Report,
    Roots,
    Send,
    StreamClosed,
    StreamData,
)
from hub.objects import CONFIGMAPS, NODES, PODS, SECRETS, NodeView, PodView
from hub.ordering import Ordering, Verdict
from hub.ownership import Ownership
from hub.registry import FenceLost, Object, Registry, now_rfc3339
from hub.session import Session, Shared
from hub.transport import Connection, EdgePort, TransportLimits
from hub.upstream import Update, Upstream
from security.ca import CertificateAuthority
from security.identity import IdentityError, NodeId, from_peercert
from security.policy import JOINING, NODE, admit, message_bytes_max
from security.tls import expires_at
from shards.claims import Fence, SlotRecord
from shards.ring import slot_of

log = logging.getLogger(__name__)

SETTLE_S: Final = 0.1
"""How long a pod's document may wait for the informers of what it refers to."""
ADOPTIONS_AT_ONCE: Final = 32
FAREWELL_S: Final = 2.0
SWEEP_S: Final = 1.0
AUDIT_S: Final = 10.0
"""How often every connection's certificate and message rate are looked at."""
PING: Final = wire.frame(wire.PING)
"""Nearly all that nodes send, most of the time: worth a comparison before the decoder."""
EMPTY_RECORD: Final = SlotRecord()


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Settings of the edge port.

    host, port: where to listen; port 0 picks a free one.
    advertise: the address that joining agents are told to use, None: the one that they used.
    heartbeat_s: interval of every node's heartbeats; three without a byte end a connection.
    window: unacknowledged documents per node. streams_max: open log streams per node.
    clone_retry_s: back-off of a cloned node; clone_quiet_s: without further signs for this long it counts as single.
    deleted_retry_s: how long a node whose Node was deleted is told to stay away.
    joining_max: connections without a certificate at a time.
    messages_max: messages of one node in AUDIT_S.
    partial_bytes_max: unfinished messages of all nodes together.
    """

    host: str = "0.0.0.0"  # noqa: S104 - the edge port is for the world; every peer is authenticated
    port: int = 8444
    advertise: str | None = None
    heartbeat_s: float = 30.0
    window: int = 64
    streams_max: int = 16
    clone_retry_s: float = 60.0
    clone_quiet_s: float = 300.0
    deleted_retry_s: float = 60.0
    joining_max: int = 512
    messages_max: int = 20_000
    partial_bytes_max: int = 128 << 20
    transport: TransportLimits = field(default_factory=TransportLimits)

    def __post_init__(self) -> None:
        if not 0.1 <= self.heartbeat_s <= 600.0:
            raise ValueError(f"heartbeat_s is {self.heartbeat_s}; 0.1 to 600 seconds are supported")
        if not 1 <= self.window <= 1024:
            raise ValueError(f"window is {self.window}; 1 to 1024 documents are supported")
        if self.clone_quiet_s < 2 * self.clone_retry_s:
            raise ValueError("clone_quiet_s must be at least twice clone_retry_s, else clones take turns")

    @property
    def patience_s(self) -> float:
        return SILENT_HEARTBEATS * self.heartbeat_s


class MetricsSink(Protocol):
    """As much of `observability.metrics.Metrics` as is used here."""

    def gauge_of(
        self,
        name: str,
        help: str,
        read: Callable[[], Mapping[tuple[str, ...], float]],
        labels: Sequence[str] = (),
        unit: str = "",
    ) -> None: ...


class Peer:
    """A connection and whose it is. `identity` None: it has no certificate, `session` is None then as well."""

    __slots__ = (
        "answers",
        "conn",
        "decoder",
        "expires",
        "identity",
        "inc",
        "messages",
        "session",
        "slot",
        "streams",
    )

    def __init__(
        self, conn: Connection, identity: NodeId | None, session: Session | None, slot: int, expires: float
    ) -> None:
        self.conn = conn
        self.identity = identity
        self.session = session
        self.slot = slot
        self.expires = expires
        self.inc = ""
        self.messages = 0
        self.decoder: wire.Decoder | None = None
        self.streams: dict[int, LogStream] | None = None
        self.answers: tuple[list[int], list[tuple[int, str]], int] | None = None


class Gateway:
    """See the module. `start` returns when the edge port serves, `wait` when the gateway has failed or was stopped."""

    def __init__(
        self,
        registry: Registry,
        informers: Informers,
        ownership: Ownership,
        ca: CertificateAuthority,
        tls: ssl.SSLContext,
        config: GatewayConfig | None = None,
        metrics: MetricsSink | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.config = config or GatewayConfig()
        self._registry = registry
        self._informers = informers
        self._ownership = ownership
        self._trust_domain = ca.trust_domain
        self._now, self._wall, self._chance = now, wall, chance
        self.port = EdgePort(tls, self, self.config.transport, now)
        self.desired = Desired(
            informers.of(PODS),
            informers.of(CONFIGMAPS),
            informers.of(SECRETS),
            self._document_changed,
            self._documents_advanced,
        )
        self._nodes = informers.of(NODES)
        self._shared = Shared(self.desired, self.config.window, streams_max=self.config.streams_max)
        self.joining = Joining(
            registry,
            ca,
            lambda: self.config.advertise,
            self._nodes.at_least,
            wall,
            lambda: self._jitter(2, 10),
        )
        self.liveness = Liveness()
        self.upstream = Upstream(registry, self._fence, self._fence_lost, self._spawn)
        self._intake = Intake(self)
        self._peers: dict[str, Peer] = {}
        """The newest connection of each node that is here."""
        self._everyone: dict[Connection, Peer] = {}
        self._order: dict[str, Ordering] = {}
        self._suspended: set[int] = set()
        self._adopting: set[str] = set()
        self._strangers = 0
        self._dirty: set[str] = set()
        self._pump_due = False
        self._answering: list[Peer] = []
        self._stored_revision = 0
        """The highest that STORED has named: informers may be behind it when its node comes back."""
        self._scratch = {kind: self._new_decoder(kind) for kind in (NODE, JOINING)}
        self._partial: dict[Connection, int] = {}
        self._partial_bytes = 0
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._unsubscribe: Callable[[], None] | None = None
        self.refused_messages = 0
        if metrics is not None:
            self._publish(metrics)

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> tuple[str, int]:
        """Waits until what this hub knows is not older than its claims (I9), then listens. Returns the address."""
        claimed = max(
            (f.mod_revision for f in map(self._fence, range(self._ownership.slots)) if f), default=0
        )
        for res in (PODS, CONFIGMAPS, SECRETS, NODES):
            informer = self._informers.of(res)
            await informer.synced()
            await informer.at_least(claimed)
        ready: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        self._main = asyncio.create_task(self._run(ready), name="gateway")
        futures: list[asyncio.Future[Any]] = [self._main, ready]
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await self._main
            raise RuntimeError("the gateway ended before it served")
        return ready.result()

    async def wait(self) -> None:
        """Returns when the gateway has stopped; raises what made it fail."""
        if self._main is not None:
            await asyncio.shield(self._main)

    async def stop(self) -> None:
        """Says good-bye to all, with a jittered time to come back, and stops within 5 s."""
        self._stopping.set()
        if self._main is not None:
            await asyncio.wait([self._main], timeout=5.0)
            if not self._main.done():
                self._main.cancel()
                await asyncio.wait([self._main])
            if not self._main.cancelled() and self._main.exception() is not None:
                raise self._main.exception()  # type: ignore[misc]

    def replace_tls(self, context: ssl.SSLContext) -> None:
        """New connections use this context (rotation)."""
        self.port.context = context

    async def _run(self, ready: "asyncio.Future[tuple[str, int]]") -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            self.desired.start()
            self._unsubscribe = self._nodes.subscribe(self._on_nodes)
            now = self._now()
            for entry in self._nodes.cache:
                self.liveness.watch(entry.key[1], now, self.config.patience_s)
            try:
                ready.set_result(self.port.open(self.config.host, self.config.port))
                await self._sweep_until_stopped()
                await self._farewell()
            finally:
                self.desired.stop()
                self._unsubscribe()
                self.port.close()
            self.upstream.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_S):
                    await self.upstream.settled()
            for task in self._tasks:
                task.cancel()

    def _spawn(self, job: Coroutine[Any, Any, None], name: str) -> None:
        assert self._group is not None
        task = self._group.create_task(job, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sweep_until_stopped(self) -> None:
        every = min(SWEEP_S, self.config.heartbeat_s / 4)
        audit_at = self._now() + AUDIT_S
        while not self._stopping.is_set():
            self.port.sweep()
            self._find_silent()
            if self._now() >= audit_at:
                audit_at = self._now() + AUDIT_S
                self._audit()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await self._stopping.wait()

    async def _farewell(self) -> None:
        self.port.stop_accepting()
        for peer in list(self._everyone.values()):
            self._close(peer, "shutdown", "the hub stops", self._jitter(1, 5))
        deadline = self._now() + FAREWELL_S
        while len(self.port) and self._now() < deadline:
            await asyncio.sleep(0.02)
            self.port.sweep()

    def _jitter(self, low: float, high: float) -> float:
        return round(low + (high - low) * self._chance(), 2)

    # -- connections: what the port calls ------------------------------------------------------------------------

    def connected(self, conn: Connection) -> None:
        """A TLS peer: a node by its certificate, or somebody who wants to join."""
        cert = conn.peercert()
        if cert is None:
            if self._strangers >= self.config.joining_max:
                self._goodbye(conn, "overload", "many machines join at this moment", self._jitter(2, 10))
                return
            self._strangers += 1
            self._admit(Peer(conn, None, None, -1, float("inf")))
            return
        try:
            identity = from_peercert(cert, self._trust_domain)
            if not isinstance(identity, NodeId):
                raise IdentityError(f"{identity.uri()} is no node; the edge port is for nodes")
        except IdentityError as wrong:
            log.warning("a certificate from %s was refused: %s", conn.peername(), wrong)
            self._goodbye(conn, "denied", str(wrong), None)
            return
        expires = expires_at(cert)
        if expires <= self._wall():
            self._goodbye(conn, "denied", "the certificate has expired; join anew with a token", None)
            return
        slot = slot_of(identity.affinity, self._ownership.slots)
        self._admit(Peer(conn, identity, Session(self._shared, identity.node), slot, expires))

    def received(self, conn: Connection, data: bytes) -> None:
        """Bytes of a peer. A bug that one peer's message finds ends that connection, not the hub."""
        peer: Peer = conn.owner
        if data == PING and peer.decoder is None and peer.session is not None:
            peer.messages += 1
            self.perform(peer, peer.session.receive(wire.PING, 0, b""))
            return
        try:
            for kind, stream, body in self._decode(peer, data):
                peer.messages += 1
                if peer.session is None:
                    self._from_stranger(peer, kind, body)
                else:
                    self.perform(peer, peer.session.receive(kind, stream, body))
                if conn.owner is None:
                    return
        except wire.WireError as broken:
            self._close(peer, "frame", str(broken), 30.0)
        except Exception:
            log.exception("a message of %s could not be handled", _name(peer))
            self._close(peer, "failed", "the hub failed on a message; its log says why", 60.0)

    def closed(self, conn: Connection, reason: str) -> None:
        """The connection has ended."""
        peer: Peer | None = self._everyone.pop(conn, None)
        if peer is None:
            return
        conn.owner = None
        self._partial_bytes -= self._partial.pop(conn, 0)
        if peer.identity is None:
            self._strangers -= 1
            return
        name = peer.identity.node
        for stream in (peer.streams or {}).values():
            stream.lost(name)
        if peer.session is not None:
            peer.session.state = "closed"
        if self._peers.get(name) is peer:
            del self._peers[name]
            if self._nodes.cache.get("", name) is not None:
                self.liveness.lost(name, conn.heard, self.config.patience_s)
        log.debug("connection of node %s ended: %s", name, reason)

    def _admit(self, peer: Peer) -> None:
        peer.conn.owner = peer
        self._everyone[peer.conn] = peer

    def _new_decoder(self, kind: str) -> wire.Decoder:
        longest = message_bytes_max(kind)
        return wire.Decoder(min(wire.FRAME_BYTES_MAX, longest), longest)

    def _decode(self, peer: Peer, data: bytes) -> list[tuple[int, int, bytes]]:
        """Most reads hold whole frames, so all peers share one decoder; who leaves a part in it keeps it."""
        decoder = peer.decoder
        if decoder is not None:
            messages = decoder.feed(data)
            self._note_partial(peer, decoder)
            return messages
        kind = JOINING if peer.session is None else NODE
        decoder = self._scratch[kind]
        try:
            messages = decoder.feed(data)
        except wire.WireError:
            self._scratch[kind] = self._new_decoder(kind)
            raise
        if decoder.held_bytes():
            peer.decoder = decoder
            self._scratch[kind] = self._new_decoder(kind)
            self._note_partial(peer, decoder)
        return messages

    def _note_partial(self, peer: Peer, decoder: wire.Decoder) -> None:
        held = decoder.held_bytes()
        self._partial_bytes += held - self._partial.pop(peer.conn, 0)
        if held:
            self._partial[peer.conn] = held
            if self._partial_bytes > self.config.partial_bytes_max:
                raise wire.WireError("too many unfinished messages at this hub; try again later")
        else:
            peer.decoder = None

    def _goodbye(
        self, conn: Connection, code: str, message: str, retry_s: float | None, reason: str = ""
    ) -> None:
        body: dict[str, Any] = {"code": code, "message": message[:1024], "retry_s": retry_s}
        if reason:
            body["reason"] = reason
        conn.send(wire.frame(wire.GOAWAY, orjson.dumps(body)))
        conn.close(code)

    def _close(self, peer: Peer, code: str, message: str, retry_s: float | None, reason: str = "") -> None:
        if peer.conn.owner is None:
            return
        if code in ("denied", "frame", "protocol", "clone", "overload"):
            self.refused_messages += 1
            log.warning("connection of %s closed: %s: %s", _name(peer), code, message)
        self._goodbye(peer.conn, code, message, retry_s, reason)

    # -- strangers ---------------------------------------------------------------------------------------------------

    def _from_stranger(self, peer: Peer, kind: int, body: bytes) -> None:
        refusal = admit(JOINING, kind, len(body))
        if refusal is not None:
            self._close(peer, refusal.code, refusal.message, None)
        elif kind == wire.BUNDLE:
            self._send_roots(peer)
        elif kind == wire.JOIN:
            if peer.messages > 4:
                self._close(peer, "overload", "one JOIN to a connection", 30.0)
                return
            self._spawn(self._join(peer, body), "join")
        else:
            peer.conn.close("peer")

    async def _join(self, peer: Peer, body: bytes) -> None:
        peer.conn.set_idle(60.0)
        try:
            joined = await self.joining.join(body)
        except Refused as no:
            self._close(peer, no.code, no.message, no.retry_s, no.reason)
            return
        peer.conn.send(wire.message(wire.JOINED, joined))

    def _send_roots(self, peer: Peer) -> None:
        body = orjson.dumps({"roots": self.joining.roots()})
        peer.conn.send(wire.message(wire.BUNDLE, body))

    # -- what sessions decide ---------------------------------------------------------------------------------------

    def perform(self, peer: Peer, actions: Sequence[Action]) -> None:
        """Carries out what a session has decided."""
        for action in actions:
            if type(action) is Send:
                peer.conn.send(action.data)
            else:
                self._perform_rare(peer, action)

    def _perform_rare(self, peer: Peer, action: Action) -> None:
        match action:
            case Report(entries):
                self._intake.take(peer, entries)
            case Greeted(hello):
                self._greet(peer, hello)
            case StreamData(stream, data):
                if peer.streams and stream in peer.streams:
                    peer.streams[stream].data(data)
            case StreamClosed(stream, error):
                ended = (peer.streams or {}).pop(stream, None)
                if ended is not None:
                    ended.end(error)
            case Refusals(key, reason, message):
                self._intake.refusals(peer, key, reason, message)
            case Confirmed():
                self.write_node(peer, reports.reunited)
            case Renew(csr):
                self._renew(peer, csr)
            case Roots():
                self._send_roots(peer)
            case Close(code, message, retry_s):
                self._close(peer, code, message, retry_s)
            case Left(code, message):
                log.info("%s left: %s %s", _name(peer), code, message)
                peer.conn.close("left")

    def _renew(self, peer: Peer, csr: str) -> None:
        assert peer.identity is not None
        try:
            body = self.joining.renew(peer.identity, csr)
        except Refused as no:
            self._close(peer, no.code, no.message, no.retry_s, no.reason)
            return
        log.info("certificate of node %s renewed", peer.identity.node)
        peer.conn.send(wire.message(wire.RENEWED, body))

    # -- HELLO -----------------------------------------------------------------------------------------------------

    def _greet(self, peer: Peer, hello: Hello) -> None:
        assert peer.identity is not None
        name = peer.identity.node
        order = self._order.setdefault(name, Ordering())
        was_cloned = order.cloned
        verdict = order.hello(hello.inc, hello.boot, hello.conn, self._now(), self.config.clone_quiet_s)
        if verdict is Verdict.LATE:
            self._close(peer, "superseded", "a newer connection of this node is here", self._jitter(4, 8))
            return
        if order.cloned != was_cloned:
            change = functools.partial(reports.cloned, present=order.cloned)
            self.write_node(peer, lambda node, now: change(node, now=now))
        older = self._peers.get(name)
        if verdict is Verdict.CLONE:
            for one in (peer, older):
                if one is not None:
                    message = "two agents use this node's identity; both are refused until one is silent"
                    self._close(one, "clone", message, self._clone_retry_s())
            return
        if older is not None and older is not peer:
            self._close(older, "superseded", "a newer connection of this node is here", self._jitter(4, 8))
        peer.inc = hello.inc
        self._peers[name] = peer
        entry = self._nodes.cache.get("", name)
        if entry is not None:
            self._welcome(peer, hello, entry)
        elif name in self._adopting or len(self._adopting) >= ADOPTIONS_AT_ONCE:
            self._close(peer, "overload", "the hub is making this node's Node; come back", self._jitter(1, 5))
        elif peer.slot in self._suspended or self._fence(peer.slot) is None:
            self._close(
                peer, "overload", "this hub does not own the node's slot at present", self._jitter(5, 15)
            )
        else:
            self._adopting.add(name)
            self._spawn(self._adopt(peer, hello), f"adopt {name}")

    def _clone_retry_s(self) -> float:
        return self._jitter(0.8 * self.config.clone_retry_s, 1.2 * self.config.clone_retry_s)

    async def _adopt(self, peer: Peer, hello: Hello) -> None:
        """A valid certificate without a Node: makes one that says so; nothing is sent before somebody confirms."""
        assert peer.identity is not None
        name = peer.identity.node
        node = reports.new_node(peer.identity)
        reports.on_hold(
            node,
            reports.UNCONFIRMED,
            "a valid certificate, but no Node was enrolled here",
            hello.held,
            now_rfc3339(),
        )
        try:
            try:
                stored = await self._registry.create(NODES, node, fence=self._fence(peer.slot))
            except errors.AlreadyExists:
                stored = await self._registry.get(NODES, "", name)
            await self._nodes.at_least(stored.revision)
        except errors.ApiError as failure:
            self._close(
                peer, "overload", f"the Node cannot be made now: {failure.message}", self._jitter(5, 15)
            )
            return
        except FenceLost:
            self._fence_lost(peer.slot)
            return
        finally:
            self._adopting.discard(name)
        entry = self._nodes.cache.get("", name)
        if entry is not None and self._peers.get(name) is peer and peer.conn.owner is peer:
            self._welcome(peer, hello, entry)

    def _welcome(self, peer: Peer, hello: Hello, entry: Entry[NodeView]) -> None:
        assert peer.identity is not None and peer.session is not None
        affinity = (entry.meta.labels or {}).get(reports.SITE) or entry.key[1]
        if affinity != peer.identity.affinity:
            self._close(
                peer,
                "denied",
                f"the certificate is for affinity {peer.identity.affinity!r}, the Node is at {affinity!r}; join anew",
                300.0,
            )
            return
        standing = self._standing(peer, hello, entry)
        if standing is None:
            self._close(
                peer, "overload", "this hub does not own the node's slot at present", self._jitter(5, 15)
            )
            return
        decided = answer(hello, standing, peer.session.digest())
        peer.session.refused = self._intake.refused_of(entry)
        peer.conn.set_idle(self.config.patience_s)
        body = welcome(
            hello,
            standing,
            decided,
            heartbeat_s=self.config.heartbeat_s,
            window=self.config.window,
            now_unix=self._wall(),
        )
        peer.conn.send(wire.frame(wire.WELCOME, body))
        self.liveness.connected(entry.key[1])
        self._note_standing(peer, hello, decided, entry)
        self.perform(peer, peer.session.welcomed(decided))

    def _standing(self, peer: Peer, hello: Hello, entry: Entry[NodeView]) -> Standing | None:
        owned = self._ownership.of(peer.slot)
        if owned is None:
            return None
        edge = owned if hello.claim is None else self._ownership.of(hello.claim.slot)
        identity = self._registry.store.identity
        annotations = entry.meta.annotations or {}
        return Standing(
            store=identity.uuid,
            generation=identity.generation,
            slot=peer.slot,
            claim=owned.claim,
            edge_record=edge.record if edge is not None else EMPTY_RECORD,
            head=max(self.desired.revision, self._stored_revision, owned.fence.mod_revision),
            unconfirmed=has_condition(entry, reports.UNCONFIRMED),
            parted=annotations.get(reports.PARTED),
            confirmed=annotations.get(reports.CONFIRMED),
            suspended="this hub has lost the node's slot" if peer.slot in self._suspended else "",
        )

    def _note_standing(self, peer: Peer, hello: Hello, decided: Answer, entry: Entry[NodeView]) -> None:
        """Stores what has changed about the node, and only that."""
        if decided.sync == "hold":
            if decided.condition:
                log.warning("node %s is on hold: %s", entry.key[1], decided.reason)
                hold = functools.partial(
                    reports.on_hold, condition=decided.condition, reason=decided.reason, held=hello.held
                )
                self.write_node(peer, lambda node, now: hold(node, now=now))
            return
        annotations = entry.meta.annotations or {}
        parted = reports.PARTED in annotations or has_condition(entry, reports.HISTORY_PARTED)
        if parted and not decided.taken_over and hello.held != NO_CLAIM:
            self.write_node(peer, reports.reunited)
        elif not has_condition(entry, reports.READY):
            self.write_node(peer, reports.connected)

    # -- changes from the store -----------------------------------------------------------------------------------

    def _document_changed(self, node: str, key: str) -> None:
        peer = self._peers.get(node)
        if peer is not None and peer.session is not None:
            peer.session.changed(key)
            self._dirty.add(node)

    def _documents_advanced(self) -> None:
        if not self._dirty:
            return
        if self.desired.settled:
            self._pump()
        elif not self._pump_due:
            # ConfigMaps and Secrets of the same revision may still be on their way.
            self._pump_due = True
            asyncio.get_running_loop().call_later(SETTLE_S, self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        dirty, self._dirty = self._dirty, set()
        for node in dirty:
            peer = self._peers.get(node)
            if peer is not None and peer.session is not None:
                self.perform(peer, peer.session.pump())

    def _on_nodes(self, deltas: Sequence[Delta[NodeView]], revision: int) -> None:
        for delta in deltas:
            name = delta.entry.key[1]
            peer = self._peers.get(name)
            if delta.type == "DELETED":
                self.liveness.forget(name)
                self._order.pop(name, None)
                if peer is not None:
                    message = "the Node was deleted; join anew, or confirm this node when it comes back"
                    self._close(peer, "denied", message, self.config.deleted_retry_s)
            elif peer is None:
                if delta.type == "ADDED":
                    self.liveness.watch(name, self._now(), self.config.patience_s)
            elif peer.session is not None and peer.session.state == "hold":
                confirmed = (delta.entry.meta.annotations or {}).get(reports.CONFIRMED)
                if confirmed is not None and confirmed == peer.session.held:
                    self._close(peer, "resync", "an operator has confirmed this node", 0.0)

    # -- liveness ---------------------------------------------------------------------------------------------------

    def _find_silent(self) -> None:
        now = self._now()
        refused: list[str] = []
        for name in self.liveness.due(now):
            entry = self._nodes.cache.get("", name)
            if entry is None or name in self._peers or ready_of(entry) == "Unknown":
                continue
            if not self._write_silent(entry):
                refused.append(name)
        self.liveness.put_back(refused, now + self.config.heartbeat_s)

    def _write_silent(self, entry: Entry[NodeView]) -> bool:
        name = entry.key[1]

        def apply(node: Object) -> Object | None:
            return None if name in self._peers else reports.silent(node, now_rfc3339())

        def done(result: "int | errors.ApiError") -> None:
            if not isinstance(result, int):
                log.info("node %s: silence not stored: %s", name, result)

        slot = int(entry.partition)
        if slot in self._suspended:
            return False
        return self.upstream.submit(slot, Update(NODES, "", name, entry.meta.uid, apply, done))

    def _audit(self) -> None:
        """Ends connections whose certificate has expired meanwhile, and those that send too much."""
        wall = self._wall()
        for peer in list(self._everyone.values()):
            if peer.expires <= wall:
                self._close(peer, "denied", "the certificate has expired; join anew with a token", 600.0)
            elif peer.messages > self.config.messages_max:
                text = f"{peer.messages} messages in {AUDIT_S:.0f} s, at most {self.config.messages_max} are allowed"
                self._close(peer, "overload", text, 60.0)
            peer.messages = 0

    # -- the store ---------------------------------------------------------------------------------------------------

    def write_node(self, peer: Peer, change: Callable[[Object, str], Object | None]) -> None:
        """Queues a change of the peer's Node. Not written when too much waits: the next connection tries again."""
        assert peer.identity is not None
        name = peer.identity.node

        def done(result: "int | errors.ApiError") -> None:
            if not isinstance(result, int):
                log.info("node %s: its status was not stored: %s", name, result)

        def apply(node: Object) -> Object | None:
            return change(node, now_rfc3339())

        if not self.upstream.submit(peer.slot, Update(NODES, "", name, None, apply, done)):
            log.warning("node %s: its status cannot be stored now", name)

    def answered(self, peer: Peer, n: int, revision: int, refused: str = "") -> None:
        """Entry `n` is durable, or refused for good; answers of one turn leave together."""
        if peer.answers is None:
            peer.answers = ([], [], 0)
            if not self._answering:
                asyncio.get_running_loop().call_soon(self._send_answers)
            self._answering.append(peer)
        stored, no, reached = peer.answers
        if refused:
            no.append((n, refused))
        else:
            stored.append(n)
        peer.answers = (stored, no, max(reached, revision))

    def _send_answers(self) -> None:
        answering, self._answering = self._answering, []
        for peer in answering:
            answers, peer.answers = peer.answers, None
            if answers is None or peer.session is None or peer.slot in self._suspended:
                continue
            stored, refused, revision = answers
            revision = revision or self.desired.revision
            self._stored_revision = max(self._stored_revision, revision)
            self.perform(peer, peer.session.stored(stored, revision, refused))

    def close_peer(self, peer: Peer, code: str, message: str, retry_s: float | None) -> None:
        """Ends a node's connection."""
        self._close(peer, code, message, retry_s)

    def node_entry(self, name: str) -> Entry[NodeView] | None:
        return self._nodes.cache.get("", name)

    def pod_entry(self, namespace: str, name: str) -> Entry[PodView] | None:
        return self._informers.of(PODS).cache.get(namespace, name)

    def _fence(self, slot: int) -> Fence | None:
        return None if slot in self._suspended else self._ownership.fence(slot)

    def _fence_lost(self, slot: int) -> None:
        """Somebody else owns the slot now: keep the connections, answer heartbeats, do nothing else."""
        self._suspended.add(slot)
        for peer in self._peers.values():
            if peer.slot == slot and peer.session is not None:
                peer.session.hold()

    # -- streams -----------------------------------------------------------------------------------------------------

    async def open_log(self, node: str, options: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """A container's log from its node, chunk by chunk. `options`: pod (UID), container, follow, previous, tail,
        since_s, timestamps, limit (ARCHITECTURE.md, OPEN). Close the iterator to end the stream. Raises BadRequest,
        ServiceUnavailable (the node is not connected), TooManyRequests, and what the node answers."""
        body = open_body(options)
        peer = self._peers.get(node)
        if peer is None or peer.session is None:
            raise errors.ServiceUnavailable(
                f'node "{node}" is not connected; its logs can be read when it is back'
            )
        if peer.session.state != "live":
            raise errors.ServiceUnavailable(f'node "{node}" is on hold; see the conditions of its Node')
        opened = peer.session.open_stream(body, CREDIT_BYTES)
        if opened is None:
            raise errors.TooManyRequests(
                f'node "{node}" serves {self.config.streams_max} streams already; close one first'
            )
        stream, actions = opened
        log_stream = LogStream(
            lambda credit: self._on_stream(peer, stream, credit),
            lambda: self._on_stream(peer, stream, None),
            bool(body["follow"]),
        )
        if peer.streams is None:
            peer.streams = {}
        peer.streams[stream] = log_stream
        self.perform(peer, actions)
        async with contextlib.aclosing(log_stream.read()) as chunks:
            async for chunk in chunks:
                yield chunk

    def _on_stream(self, peer: Peer, stream: int, credit: int | None) -> None:
        """Grants credit, or (None) closes."""
        if peer.session is None or peer.conn.owner is None:
            return
        if credit is not None:
            self.perform(peer, peer.session.grant(stream, credit))
            return
        if peer.streams is not None:
            peer.streams.pop(stream, None)
        self.perform(peer, peer.session.close_stream(stream))

    # -- metrics -----------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, float]:
        """The gateway's figures, by name."""
        counters = self.port.counters
        return {
            "connections": len(self.port),
            "handshaking": self.port.shaking,
            "nodes": len(self._peers),
            "backlog_bytes": self.port.backlog_bytes,
            "accepted": counters.accepted,
            "handshakes": counters.handshakes,
            "bytes_in": counters.bytes_in,
            "bytes_out": counters.bytes_out,
            "refused": self.refused_messages + counters.refused,
            "joined": self.joining.granted,
            "joins_refused": self.joining.refused,
            "upstream_jobs": self.upstream.jobs,
            "upstream_transactions": self.upstream.transactions,
            "upstream_retries": self.upstream.retries,
            "suspended_slots": len(self._suspended),
        }

    def _publish(self, metrics: MetricsSink) -> None:
        metrics.gauge_of(
            "cloudhub_edge",
            "Figures of the edge port, by name.",
            lambda: {(name,): value for name, value in self.stats().items()},
            ("figure",),
        )
        metrics.gauge_of(
            "cloudhub_edge_closed",
            "Edge connections closed, by reason.",
            lambda: {(reason,): n for reason, n in self.port.counters.closed.items()},
            ("reason",),
        )


def _name(peer: Peer) -> str:
    return f"node {peer.identity.node}" if peer.identity is not None else f"a peer at {peer.conn.peername()}"


def ready_of(entry: Entry[NodeView]) -> str:
    return next((c.status for c in entry.view.status.conditions or () if c.type == reports.READY), "")


def has_condition(entry: Entry[NodeView], kind: str) -> bool:
    return any(c.type == kind and c.status == "True" for c in entry.view.status.conditions or ())
