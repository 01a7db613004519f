"""The hub's end of the edge-cloud channel: binds connections to nodes, sessions to documents, reports to the store.

Job: who is this (certificate), is it the newest connection of its node, may this hub speak to it (I9), and then carry
out what its session decides. Runs on the event loop; what has to wait for the store runs under one task group.

Invariants: at most one connection of a node is served, the newest (`ordering`). A heartbeat is answered from memory and
written nowhere (I4). An answer to a report leaves only when the store has it (I3). What a node says counts only for
what is bound to it (I5). A slot whose fence is lost is suspended: heartbeats go on, nothing else passes.
"""

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import orjson

from edgelite import wire
from hub import errors, reports
from hub.cache import Entry
from hub.desired import Desired
from hub.figures import MetricsSink, publish
from hub.framing import Framing
from hub.greeting import Greeting
from hub.informer import Informers
from hub.intake import Intake
from hub.joining import Joining, Refused
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
from hub.nodewatch import NodeWatch
from hub.objects import CONFIGMAPS, NODES, PODS, SECRETS, NodeView, PodView
from hub.ownership import Ownership
from hub.peers import AUDIT_S, GatewayConfig, Peer, name_of
from hub.registry import Object, Registry, now_rfc3339
from hub.session import BEATING, Session, Shared
from hub.transport import Connection, EdgePort
from hub.upstream import Update, Upstream
from security.ca import CertificateAuthority
from security.identity import IdentityError, NodeId, from_peercert
from security.policy import JOINING, admit
from security.tls import expires_at
from shards.claims import Fence
from shards.ring import slot_of

log = logging.getLogger(__name__)

SETTLE_S: Final = 0.1
"""How long a pod's document may wait for the informers of what it refers to."""
FAREWELL_S: Final = 2.0
SWEEP_S: Final = 1.0
PING: Final = wire.frame(wire.PING)
PONG: Final = wire.frame(wire.PONG)


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
        self.registry = registry
        self._informers = informers
        self.ownership = ownership
        self._trust_domain = ca.trust_domain
        self.now, self.wall, self._chance = now, wall, chance
        self.port = EdgePort(tls, self, self.config.transport, now)
        self.desired = Desired(
            informers.of(PODS),
            informers.of(CONFIGMAPS),
            informers.of(SECRETS),
            self._document_changed,
            self._documents_advanced,
        )
        self.nodes = informers.of(NODES)
        self._shared = Shared(self.desired, self.config.window, streams_max=self.config.streams_max)
        self._last_set = self._shared.last_set
        self.joining = Joining(
            registry,
            ca,
            lambda: self.config.advertise,
            self.nodes.at_least,
            wall,
            lambda: self.jitter(2, 10),
            self.config.node_ttl_s,
        )
        self.watch = NodeWatch(self)
        self.greeting = Greeting(self)
        self.upstream = Upstream(registry, self.fence, self.fence_lost, self.spawn)
        self.intake = Intake(self)
        self.peers: dict[str, Peer] = {}
        """The newest connection of each node that is here."""
        self._everyone: dict[Connection, Peer] = {}
        self.suspended: set[int] = set()
        """Slots whose fence was lost."""
        self._strangers = 0
        self._dirty: set[Peer] = set()
        self._pump_due = False
        self._answering: list[Peer] = []
        self.stored_revision = 0
        """The highest that STORED has named: informers may be behind it when its node comes back."""
        self._framing = Framing(self.config.partial_bytes_max)
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self.refused_messages = 0
        if metrics is not None:
            publish(self, metrics)

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> tuple[str, int]:
        """Waits until what this hub knows is not older than its claims (I9), then listens. Returns the address. Raises
        OSError when it is taken."""
        claimed = max((f.mod_revision for f in map(self.fence, range(self.ownership.slots)) if f), default=0)
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
            self.watch.start()
            try:
                try:
                    address = self.port.open(self.config.host, self.config.port)
                except OSError as failure:
                    ready.set_exception(failure)
                    return
                ready.set_result(address)
                await self._sweep_until_stopped()
                await self._farewell()
            finally:
                self.desired.stop()
                self.watch.stop()
                self.port.close()
            self.upstream.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_S):
                    await self.upstream.settled()
            for task in self._tasks:
                task.cancel()

    def spawn(self, job: Coroutine[Any, Any, None], name: str) -> None:
        assert self._group is not None
        task = self._group.create_task(job, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sweep_until_stopped(self) -> None:
        every = min(SWEEP_S, self.config.heartbeat_s / 4)
        audit_at = self.now() + AUDIT_S
        while not self._stopping.is_set():
            self.port.sweep()
            self.watch.find_silent()
            if self.now() >= audit_at:
                audit_at = self.now() + AUDIT_S
                self._audit()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await self._stopping.wait()

    async def _farewell(self) -> None:
        self.port.stop_accepting()
        for peer in list(self._everyone.values()):
            self.close_peer(peer, "shutdown", "the hub stops", self.jitter(1, 5))
        deadline = self.now() + FAREWELL_S
        while len(self.port) and self.now() < deadline:
            await asyncio.sleep(0.02)
            self.port.sweep()

    def jitter(self, low: float, high: float) -> float:
        return round(low + (high - low) * self._chance(), 2)

    # -- connections: what the port calls ------------------------------------------------------------------------

    def connected(self, conn: Connection) -> None:
        """A TLS peer: a node by its certificate, or somebody who wants to join."""
        cert = conn.peercert()
        if cert is None:
            if self._strangers >= self.config.joining_max:
                self._goodbye(conn, "overload", "many machines join at this moment", self.jitter(2, 10))
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
        if expires <= self.wall():
            self._goodbye(conn, "denied", "the certificate has expired; join anew with a token", None)
            return
        slot = slot_of(identity.affinity, self.ownership.slots)
        self._admit(Peer(conn, identity, Session(self._shared, identity.node), slot, expires))

    def received(self, conn: Connection, data: bytes) -> None:
        """Bytes of a peer. A bug that one peer's message finds ends that connection, not the hub."""
        peer: Peer = conn.owner
        session = peer.session
        try:
            if session is not None and peer.decoder is None:
                # Nearly all that nodes send, most of the time: done without decoding, with the same outcome.
                if data == PING and session.state in BEATING:
                    peer.messages += 1
                    conn.answer(PONG)
                    return
                if data == self._last_set.ack:
                    peer.messages += 1
                    actions = session.took_last()
                    if actions:
                        self._answer(peer, actions)
                    return
            messages = self._framing.decode(peer, data)
            if len(messages) == 1 and session is not None:
                peer.messages += 1
                actions = session.receive(*messages[0])
                if actions:
                    self._answer(peer, actions)
                return
            for kind, stream, body in messages:
                peer.messages += 1
                if peer.session is None:
                    self._from_stranger(peer, kind, body)
                else:
                    self.perform(peer, peer.session.receive(kind, stream, body))
                if conn.owner is None:
                    return
        except wire.WireError as broken:
            self.close_peer(peer, "frame", str(broken), 30.0)
        except Exception:
            log.exception("a message of %s could not be handled", name_of(peer))
            self.close_peer(peer, "failed", "the hub failed on a message; its log says why", 60.0)

    def closed(self, conn: Connection, reason: str) -> None:
        """The connection has ended."""
        peer: Peer | None = self._everyone.pop(conn, None)
        if peer is None:
            return
        conn.owner = None
        self._framing.forget(conn)
        if peer.identity is None:
            self._strangers -= 1
            return
        name = peer.identity.node
        for stream in (peer.streams or {}).values():
            stream.lost(name)
        if peer.session is not None:
            peer.session.state = "closed"
        if self.peers.get(name) is peer:
            del self.peers[name]
            if self.nodes.cache.get("", name) is not None:
                self.watch.liveness.lost(name, conn.heard, self.config.patience_s)
        log.debug("connection of node %s ended: %s", name, reason)

    def _admit(self, peer: Peer) -> None:
        peer.conn.owner = peer
        self._everyone[peer.conn] = peer

    def _goodbye(
        self, conn: Connection, code: str, message: str, retry_s: float | None, reason: str = ""
    ) -> None:
        body: dict[str, Any] = {"code": code, "message": message[:1024], "retry_s": retry_s}
        if reason:
            body["reason"] = reason
        conn.send(wire.frame(wire.GOAWAY, orjson.dumps(body)))
        conn.close(code)

    def close_peer(
        self, peer: Peer, code: str, message: str, retry_s: float | None, reason: str = ""
    ) -> None:
        """Says GOAWAY and ends the connection; nothing when it has ended already."""
        if peer.conn.owner is None:
            return
        if code in ("denied", "frame", "protocol", "clone", "overload"):
            self.refused_messages += 1
            log.warning("connection of %s closed: %s: %s", name_of(peer), code, message)
        self._goodbye(peer.conn, code, message, retry_s, reason)

    # -- strangers ---------------------------------------------------------------------------------------------------

    def _from_stranger(self, peer: Peer, kind: int, body: bytes) -> None:
        refusal = admit(JOINING, kind, len(body))
        if refusal is not None:
            self.close_peer(peer, refusal.code, refusal.message, None)
        elif kind == wire.BUNDLE:
            self._send_roots(peer)
        elif kind == wire.JOIN:
            if peer.messages > 4:
                self.close_peer(peer, "overload", "one JOIN to a connection", 30.0)
                return
            self.spawn(self._join(peer, body), "join")
        else:
            peer.conn.close("peer")

    async def _join(self, peer: Peer, body: bytes) -> None:
        peer.conn.set_idle(60.0)
        try:
            joined = await self.joining.join(body)
        except Refused as no:
            self.close_peer(peer, no.code, no.message, no.retry_s, no.reason)
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

    def _answer(self, peer: Peer, actions: Sequence[Action]) -> None:
        """As `perform`, when this is all that the turn has for the peer: a single message leaves at once."""
        if len(actions) == 1 and type(actions[0]) is Send:
            peer.conn.answer(actions[0].data)
        else:
            self.perform(peer, actions)

    def _perform_rare(self, peer: Peer, action: Action) -> None:
        match action:
            case Report(entries):
                self.intake.take(peer, entries)
            case Greeted(hello):
                self.greeting.hello(peer, hello)
            case StreamData(stream, data):
                if peer.streams and stream in peer.streams:
                    peer.streams[stream].data(data)
            case StreamClosed(stream, error):
                ended = (peer.streams or {}).pop(stream, None)
                if ended is not None:
                    ended.end(error)
            case Refusals(key, reason, message):
                self.intake.refusals(peer, key, reason, message)
            case Confirmed():
                self.write_node(peer, reports.reunited)
            case Renew(csr):
                self._renew(peer, csr)
            case Roots():
                self._send_roots(peer)
            case Close(code, message, retry_s):
                self.close_peer(peer, code, message, retry_s)
            case Left(code, message):
                log.info("%s left: %s %s", name_of(peer), code, message)
                peer.conn.close("left")

    def _renew(self, peer: Peer, csr: str) -> None:
        assert peer.identity is not None
        try:
            body = self.joining.renew(peer.identity, csr)
        except Refused as no:
            self.close_peer(peer, no.code, no.message, no.retry_s, no.reason)
            return
        log.info("certificate of node %s renewed", peer.identity.node)
        peer.renewed = True
        peer.conn.send(wire.message(wire.RENEWED, body))

    # -- changes from the store -----------------------------------------------------------------------------------

    def _document_changed(self, node: str, key: str) -> None:
        peer = self.peers.get(node)
        if peer is not None and peer.session is not None:
            peer.session.changed(key)
            self._dirty.add(peer)

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
        last = self._last_set
        for peer in dirty:
            if peer.session is not None:
                actions = peer.session.pump()
                if actions is last.alone:
                    peer.conn.answer(actions[0].data)
                elif actions:
                    self._answer(peer, actions)

    def _audit(self) -> None:
        """Ends connections whose certificate has expired meanwhile, and those that send too much."""
        wall = self.wall()
        for peer in list(self._everyone.values()):
            if peer.expires <= wall and peer.renewed:
                text = "the certificate of this connection has expired; connect with the renewed one"
                self.close_peer(peer, "resync", text, 0.0)
            elif peer.expires <= wall:
                self.close_peer(peer, "denied", "the certificate has expired; join anew with a token", 600.0)
            elif peer.messages > self.config.messages_max:
                text = f"{peer.messages} messages in {AUDIT_S:.0f} s, at most {self.config.messages_max} are allowed"
                self.close_peer(peer, "overload", text, 60.0)
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
            if answers is None or peer.session is None or peer.slot in self.suspended:
                continue
            stored, refused, revision = answers
            revision = revision or self.desired.revision
            self.stored_revision = max(self.stored_revision, revision)
            self._answer(peer, peer.session.stored(stored, revision, refused))

    def node_entry(self, name: str) -> Entry[NodeView] | None:
        return self.nodes.cache.get("", name)

    def pod_entry(self, namespace: str, name: str) -> Entry[PodView] | None:
        return self._informers.of(PODS).cache.get(namespace, name)

    def fence(self, slot: int) -> Fence | None:
        return None if slot in self.suspended else self.ownership.fence(slot)

    def fence_lost(self, slot: int) -> None:
        """Somebody else owns the slot now: keep the connections, answer heartbeats, do nothing else."""
        self.suspended.add(slot)
        for peer in self.peers.values():
            if peer.slot == slot and peer.session is not None:
                peer.session.hold()

    # -- streams -----------------------------------------------------------------------------------------------------

    async def open_log(self, node: str, options: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """A container's log from its node, chunk by chunk. `options`: pod (UID), container, follow, previous, tail,
        since_s, timestamps, limit (ARCHITECTURE.md, OPEN). Close the iterator to end the stream. Raises BadRequest,
        ServiceUnavailable (the node is not connected), TooManyRequests, and what the node answers."""
        body = open_body(options)
        peer = self.peers.get(node)
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
            "nodes": len(self.peers),
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
            "suspended_slots": len(self.suspended),
        }
