"""The hub's end of the edge-cloud channel: binds connections to nodes, sessions to documents, reports to the store.

Job: who is this (certificate), is it the newest connection of its node, may this hub speak to it (I9), and then carry
out what its session decides. Runs on the event loop; what has to wait for the store runs under one task group.

Invariants: at most one connection of a node is served, the newest (`ordering`). A heartbeat is answered from memory and
written nowhere (I4). An answer to a report leaves only when the store has it (I3). What a node says counts only for
what is bound to it (I5). Whatever only the owner of a node's slot may do is preceded by the inline check
(`Slots.may_act`) in the same turn of the loop, for the process may have been frozen since the last one.
"""

import asyncio
import contextlib
import dataclasses
import logging
import random
import ssl
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import orjson

from edgelite import wire
from hub import errors, reports
from hub.answers import Answers
from hub.bundles import Bundles
from hub.cache import Entry
from hub.deliveries import Deliveries
from hub.desired import Desired
from hub.edgewrites import EdgeWrites
from hub.fanout import Fanout
from hub.federation import Federation
from hub.figures import MetricsSink, publish
from hub.framing import Framing
from hub.greeters import PER_NODE_MAX, Greeters
from hub.greeting import Greeting
from hub.history import History, StoreHistory
from hub.intake import Intake
from hub.joining import Joining, Refused
from hub.messages import (
    Action,
    Close,
    Confirmed,
    Foreign,
    Greeted,
    Left,
    Refusals,
    Renew,
    Report,
    Roots,
    Send,
    StreamClosed,
    StreamCredit,
    StreamData,
    Trusts,
)
from hub.mirrorpods import MirrorPods
from hub.nodestreams import NodeStreams
from hub.nodewatch import NodeWatch
from hub.objects import NODES, NodeView, PodView
from hub.peers import AUDIT_S, GatewayConfig, Newest, Peer, Shown, about, kind_of_peer, name_of, shown_in
from hub.pieces import Pieces
from hub.policies.watching import Policies
from hub.refusals import CONNECT, RefusalLog
from hub.registry import Object, Objects, now_rfc3339
from hub.relations import Relations
from hub.reports import enrolment_of
from hub.returns import Returns
from hub.revocations import is_replaced, refusal, replaced_text
from hub.routing import Routing
from hub.session import BEATING, LastSet, Session, Shared
from hub.sessionlog import SessionLog
from hub.share import Cached
from hub.slots import Loader, Slots
from hub.strangers import Strangers
from hub.throttle import BYTES, FRAMES, Throttle
from hub.tokens import Tokens
from hub.transport import Connection, EdgePort
from hub.trust import EdgeTrust, Trust
from hub.upstream import Update, Upstream
from security.authorities import Authorities
from security.ca import CertificateAuthority
from security.identity import IdentityError, NodeId, from_peercert
from security.policy import ABSENT, NODE, UNVERIFIED, Subject, judge, kind_of
from security.revocation import Revoked
from shards.kv import HistoryLost
from shards.ownership import Ownership
from shards.ring import slot_of

log = logging.getLogger(__name__)

FAREWELL_S: Final = 2.0
SWEEP_S: Final = 1.0
FROZEN_S: Final = 2.0
"""A sweep that is later than this tells that the process, not its nodes, was silent."""
ADVERTISED_MAX: Final = 16
REFUSING: Final = frozenset(("denied", "revoked", "frame", "protocol", "clone", "overload"))
"""Codes with which a connection ends because of what the peer is or has sent."""
EXPIRED: Final = (
    "the certificate has expired; come back without it and prove that you have its key, or join anew"
)
FAILED: Final = "the hub failed on a message; its log says why"
PING: Final = wire.frame(wire.PING)
PONG: Final = wire.frame(wire.PONG)


class Gateway:
    """See the module. `start` returns when the edge port serves, `wait` when the gateway has failed or was stopped."""

    def __init__(
        self,
        registry: Objects,
        share: Cached,
        ownership: Ownership,
        ca: EdgeTrust | CertificateAuthority,
        tls: ssl.SSLContext,
        config: GatewayConfig | None = None,
        metrics: MetricsSink | None = None,
        *,
        loader: Loader | None = None,
        history: History | None = None,
        policies: Policies | None = None,
        federation: Federation | None = None,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.config = config or GatewayConfig()
        self.registry = registry
        registry.live = lambda: ownership.live
        self.history = history or StoreHistory(registry.store.identity)
        self.share = share
        self.ownership = ownership
        trust = Trust(Authorities.alone(ca)) if isinstance(ca, CertificateAuthority) else ca
        self.federation = federation or Federation(trust.trust_domain)
        self.now, self.wall, self._chance = now, wall, chance
        self.refusals = RefusalLog(now)
        self.relations = Relations(self)
        self.throttle = Throttle(self, now)
        self.port = EdgePort(tls, self, self.config.transport, now)
        self._last_set = LastSet()
        self.fanout = Fanout(self, self._last_set, now)
        self.desired = Desired(
            share.pods,
            share.configmaps,
            share.secrets,
            self.fanout.changed,
            self.fanout.advanced,
            namespaced=share.namespaced,
            devices=share.devices,
            nodes=share.nodes,
        )
        self.nodes = share.nodes
        self._shared = Shared(
            self.desired, self.config.window, streams_max=self.config.streams_max, last_set=self._last_set
        )
        self.joining = Joining(
            registry,
            trust,
            self._advertised,
            self._reached,
            wall,
            lambda: self.jitter(2, 10),
            self.config.node_ttl_s,
            approval=self.config.join_approval,
            rates=self.config.join_rates,
            clock=now,
        )
        self.revoked = Revoked()
        """Whom `hub.revocations` has found revoked."""
        self.fresh: Callable[[], bool] = lambda: True
        """Is that recent enough to admit somebody by it?"""
        self.joining.accepts = self.federation.check
        self.slots = Slots(self, loader or share)
        """What `shards.member` tells about slots goes here."""
        self._serving, self._fence = self.slots.serving, ownership.fence
        self.routing = Routing(self)
        self.answers = Answers(self)
        self.returns = Returns(self, self.joining.roots, trust.trust_domain, self.config.return_s)
        self.strangers = Strangers(self, self.joining)
        self.bundles = Bundles(self, trust, self.config.renewals_per_s)
        self.watch = NodeWatch(self)
        self.greeting = Greeting(self)
        self.upstream = Upstream(registry, self.slots.fence, self.slots.held, self.fence_lost, self.spawn)
        self.tokens = Tokens(self)
        self.pieces = Pieces(self)
        writes = EdgeWrites(policies)
        self.mirrors = MirrorPods(self, writes)
        self.intake = Intake(self, writes)
        self.streams = NodeStreams(self)
        self.open_log, self.open_stream = self.streams.open_log, self.streams.open_stream
        self.peers = Newest()
        """The newest connection of each node of the slots that are served here."""
        self.sessions = SessionLog()
        self._everyone: dict[Connection, Peer] = {}
        self._greeters = Greeters()
        self._framing = Framing(self.config.partial_bytes_max, now)
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        if metrics is not None:
            publish(self, metrics)

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> tuple[str, int]:
        """Serves the slots that are owned already, once what is known of them is not older than their claims (I9), then
        listens; others are gained and lost while it runs (`slots`). Returns the address. Raises OSError when it is
        taken."""
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

    def advertise(self, replica_edge: str) -> None:
        """Where nodes reach this very replica, as its member record says; "": nowhere."""
        self.config = dataclasses.replace(self.config, replica_edge=replica_edge)

    def trace(self, traces: Deliveries) -> None:
        """Traced changes are followed to the nodes. Before `start`."""
        self.desired.traces = traces
        self._shared = dataclasses.replace(self._shared, traces=traces)

    def replace_tls(self, context: ssl.SSLContext) -> None:
        """New connections use this context (rotation)."""
        self.port.context = context

    async def _run(self, ready: "asyncio.Future[tuple[str, int]]") -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            self.spawn(self.bundles.run(), "bundles")
            self.desired.start()
            self.watch.start()
            self.mirrors.start()
            try:
                owned = map(self.ownership.of, range(self.ownership.slots))
                await self.slots.gained([o for o in owned if o is not None])
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
                self.mirrors.stop()
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

    def serve(self, peer: Peer, job: Coroutine[Any, Any, None], name: str) -> None:
        """Runs what one peer's message began. A bug that it finds ends that connection, not the hub."""

        async def guarded() -> None:
            try:
                await job
            except HistoryLost:
                raise
            except Exception:
                log.exception("%s, for %s, failed", name, name_of(peer), extra=about(peer))
                self.close_peer(peer, "failed", FAILED, 60.0)

        self.spawn(guarded(), name)

    async def _sweep_until_stopped(self) -> None:
        every = min(SWEEP_S, self.config.heartbeat_s / 4)
        loop = asyncio.get_running_loop()
        swept_at = loop.time()
        audit_at = self.now() + AUDIT_S
        while not self._stopping.is_set():
            stood_s = loop.time() - swept_at - every
            swept_at += stood_s + every
            if stood_s > FROZEN_S:
                # Whoever seems silent may have spoken meanwhile: it is not read yet.
                log.warning("this process stood still for %.1f s", stood_s)
                self.watch.restart()
            else:
                self.port.sweep()
                self._end_slow()
                self.watch.find_silent()
            self.slots.resume_stragglers()
            self.answers.send()
            self.routing.sweep()
            if self.now() >= audit_at:
                audit_at = self.now() + AUDIT_S
                self._audit()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await self._stopping.wait()

    def _end_slow(self) -> None:
        """Ends whoever takes too long over what it says."""
        self.strangers.sweep()
        for conn in self._framing.overdue(self.config.message_s):
            text = f"a message that is not whole after {self.config.message_s:.0f} s"
            self.close_peer(conn.owner, "slow", text, 30.0)

    async def _farewell(self) -> None:
        self.port.stop_accepting()
        # Agents have other replicas to go to, where there are any.
        low, high = (0.0, 1.0) if len(self.ownership.members) > 1 else (1.0, 5.0)
        for peer in list(self._everyone.values()):
            self.close_peer(peer, "shutdown", "the hub stops", self.jitter(low, high))
        deadline = self.now() + FAREWELL_S
        while len(self.port) and self.now() < deadline:
            await asyncio.sleep(0.02)
            self.port.sweep()

    def jitter(self, low: float, high: float) -> float:
        return round(low + (high - low) * self._chance(), 2)

    # -- connections: what the port calls ------------------------------------------------------------------------

    def admitting(self) -> bool:
        """Not while this hub cannot know who is revoked."""
        return self.fresh()

    def connected(self, conn: Connection) -> bool:
        """A TLS peer: a node by its certificate (True), or somebody who wants to join."""
        if not self.admitting():
            text = "this hub has lost touch with its store and cannot tell who is revoked"
            self._goodbye(conn, "overload", text, self.jitter(0.5, 3))
            return False
        cert = conn.peercert()
        if cert is None:
            if self.strangers.count >= self.config.joining_max:
                self._goodbye(conn, "overload", "many machines join at this moment", self.jitter(2, 10))
                return False
            stranger = Peer(conn, None, None, -1)
            self.strangers.came(stranger)
            self._admit(stranger)
            return False
        try:
            identity = from_peercert(cert)
            if not isinstance(identity, NodeId):
                raise IdentityError(f"{identity.uri()} is no node; the edge port is for nodes")
            self.federation.check(identity)
        except IdentityError as wrong:
            self._refuse(conn, kind_of(_uri_of(cert)), "identity", str(wrong))
            return False
        shown = shown_in(cert)
        if shown.ends <= self.wall():
            self._refuse(conn, NODE, "expired", EXPIRED, self.jitter(1, 5), "CertificateExpired")
            return False
        self.accept(conn, identity, shown)
        return conn.owner is not None

    def unverified(self, conn: Connection, why: str) -> None:
        """A certificate that OpenSSL did not accept."""
        text = f"its certificate does not hold: {why}"
        self.refusals.note(UNVERIFIED, CONNECT, why, conn.peername(), text)

    def accept(self, conn: Connection, identity: NodeId, shown: Shown) -> None:
        """A node by an identity that is proved already, by the certificate `shown`."""
        slot = slot_of(identity.affinity, self.ownership.slots)
        peer = Peer(conn, identity, Session(self._shared, identity.node), slot, shown)
        self._admit(peer)
        if self.refuses(peer):
            return
        oldest = self._greeters.came(identity.node, peer)
        if oldest is not None:
            text = f"{PER_NODE_MAX} younger connections of this node have not said HELLO either"
            self.close_peer(oldest, "superseded", text, 30.0)

    def refuses(self, peer: Peer) -> bool:
        """Closes the connection of a node that is revoked, or whose name is another machine's by now. Asked for every
        connection, also one whose TLS session was resumed, where nobody looks at the certificate; for every HELLO, and for
        every renewal."""
        entry = refusal(self, peer)
        if entry is not None:
            self.close_peer(peer, "revoked", entry.message(), None, "Revoked")
            return True
        if peer.identity is not None and is_replaced(self, peer):
            self.close_peer(peer, "denied", replaced_text(peer.identity), None, "Replaced")
            return True
        return False

    @property
    def everyone(self) -> list[Peer]:
        """All connections at this moment."""
        return list(self._everyone.values())

    def received(self, conn: Connection, data: bytes) -> None:
        """Bytes of a peer. A bug that one peer's message finds ends that connection, not the hub."""
        peer: Peer = conn.owner
        session = peer.session
        peer.bytes += len(data)
        if peer.messages >= FRAMES or peer.bytes >= BYTES:
            self.throttle.charge(peer)
        try:
            if session is not None and peer.decoder is None:
                # Nearly all that nodes send, most of the time: done without decoding, with the same outcome.
                if data == PING and session.state in BEATING:
                    peer.messages += 1
                    conn.answer(PONG)
                    return
                if data == self._last_set.ack:
                    peer.messages += 1
                    self.check(peer)
                    actions = session.took_last()
                    if actions:
                        self.answer(peer, actions)
                    return
            if peer.relayed is not None:
                peer.messages += 1
                peer.relayed.received(data)
                return
            messages = self._framing.decode(peer, data)
            if len(messages) == 1 and session is not None:
                peer.messages += 1
                self.check(peer)
                actions = session.receive(*messages[0])
                if actions:
                    self.answer(peer, actions)
                return
            for kind, stream, body in messages:
                peer.messages += 1
                if peer.identity is None:
                    self.strangers.received(peer, kind, body)
                elif peer.session is None:
                    text = f"{wire.NAMES.get(kind, kind)} before WELCOME"
                    self.close_peer(peer, "protocol", text, 30.0, sent=kind, why="state")
                else:
                    self.check(peer)
                    self.perform(peer, peer.session.receive(kind, stream, body))
                if conn.owner is None:
                    return
        except wire.WireError as broken:
            self.close_peer(peer, "frame", str(broken), 30.0, sent="bytes", why="framing")
        except Exception:
            log.exception("a message of %s could not be handled", name_of(peer), extra=about(peer))
            self.close_peer(peer, "failed", FAILED, 60.0)

    def closed(self, conn: Connection, reason: str) -> None:
        """The connection has ended."""
        peer: Peer | None = self._everyone.pop(conn, None)
        if peer is None:
            return
        conn.owner = None
        self._framing.forget(peer)
        if peer.identity is None:
            self.strangers.went(peer)
            return
        name = peer.identity.node
        self._greeters.went(name, peer)
        self.streams.end_all(peer)
        self.routing.forget(peer)
        if peer.relayed is not None:
            peer.relayed.closed(reason)
        if peer.session is not None:
            peer.session.state = "closed"
        if self.peers.get(name) is peer:
            del self.peers[name]
            self.sessions.ended(name, reason, self.wall())
            self.bundles.forget(name)
            if self.nodes.cache.get("", name) is not None:
                self.watch.liveness.lost(name, conn.heard, self.config.patience_s)
        log.debug("connection of node %s ended: %s", name, reason, extra=about(peer))

    def may_write(self, conn: Connection) -> bool:
        """May what was queued for it earlier, and waits for a slow reader, still leave?"""
        peer: Peer | None = conn.owner
        if peer is None or peer.session is None or peer.session.state != "live":
            return True
        return self.slots.may_act(peer.slot)

    def check(self, peer: Peer) -> None:
        """The inline check: pauses a session that this hub may not speak for at this moment."""
        session, slot = peer.session, peer.slot
        # `Slots.may_act`, without the call: this runs for every message and every document.
        if (
            session is not None
            and session.state == "live"
            and (slot not in self._serving or self._fence(slot) is None)
        ):
            self.slots.pause(peer)

    def _admit(self, peer: Peer) -> None:
        peer.conn.owner = peer
        self._everyone[peer.conn] = peer

    def _refuse(
        self,
        conn: Connection,
        kind: str,
        why: str,
        message: str,
        retry_s: float | None = None,
        reason: str = "",
    ) -> None:
        """Ends a connection whose certificate does not admit it. `why`: for counting."""
        self.refusals.note(kind, CONNECT, why, conn.peername(), message)
        self._goodbye(conn, "denied", message, retry_s, reason)

    def _goodbye(
        self, conn: Connection, code: str, message: str, retry_s: float | None, reason: str = ""
    ) -> None:
        body: dict[str, Any] = {"code": code, "message": message[:1024], "retry_s": retry_s}
        if reason:
            body["reason"] = reason
        conn.send(wire.frame(wire.GOAWAY, orjson.dumps(body)))
        conn.close(code)

    def close_peer(
        self,
        peer: Peer,
        code: str,
        message: str,
        retry_s: float | None,
        reason: str = "",
        *,
        sent: Subject = CONNECT,
        why: str = "",
    ) -> None:
        """Says GOAWAY and ends the connection; nothing when it has ended already. `sent`, `why`: what is refused, for
        counting; `why` "" is the code."""
        if peer.conn.owner is None:
            return
        if code in REFUSING:
            self.refusals.note(kind_of_peer(peer), sent, why or code, name_of(peer), message, about(peer))
        self._goodbye(peer.conn, code, message, retry_s, reason)

    # -- what sessions decide ---------------------------------------------------------------------------------------

    def perform(self, peer: Peer, actions: Sequence[Action]) -> None:
        """Carries out what a session has decided."""
        for action in actions:
            if type(action) is Send:
                peer.conn.send(action.data)
            else:
                self._perform_rare(peer, action)

    def answer(self, peer: Peer, actions: Sequence[Action]) -> None:
        """As `perform`, when this is all that the turn has for the peer: a single message leaves at once."""
        if len(actions) == 1 and type(actions[0]) is Send:
            peer.conn.answer(actions[0].data)
        else:
            self.perform(peer, actions)

    def _perform_rare(self, peer: Peer, action: Action) -> None:
        match action:
            case Report(entries):
                self.intake.take(peer, entries)
            case Greeted(hello, body):
                assert peer.identity is not None
                self._greeters.went(peer.identity.node, peer)
                self.greeting.hello(peer, hello, body)
            case StreamData() | StreamCredit() | StreamClosed():
                self.streams.heard(peer, action)
            case Refusals(key, reason, message):
                self.intake.refusals(peer, key, reason, message)
            case Confirmed():
                self.write_node(peer, reports.reunited)
            case Renew(csr):
                self._renew(peer, csr)
            case Roots():
                self.strangers.send_roots(peer)
            case Trusts():
                self.bundles.heard(peer, action)
            case Close(code, message, retry_s, sent, why):
                self.close_peer(peer, code, message, retry_s, sent=sent, why=why)
            case Foreign(sent, keys):
                self._note_foreign(peer, sent, keys)
            case Left(code, message):
                log.info("%s left: %s %s", name_of(peer), code, message, extra=about(peer))
                peer.conn.close("left")

    def _note_foreign(self, peer: Peer, sent: int, keys: Sequence[str]) -> None:
        """Counts what a node said about documents that are not its own; its session has passed over it."""
        assert peer.identity is not None
        for key in keys or ("",):
            relation = self.relations.of_key(peer.identity, key) if keys else ABSENT
            refusal = judge(NODE, sent, relation)
            if refusal is not None:
                text = f"{refusal.message}: {key!r}"
                self.refusals.note(NODE, sent, refusal.reason, name_of(peer), text, about(peer))

    def _renew(self, peer: Peer, csr: str) -> None:
        assert peer.identity is not None
        if self.refuses(peer):
            return
        if peer.identity.trust_domain != self.federation.own:
            # Unanswered, so that the node stays connected and asks again, later and later.
            log.info("%s renews at its own trust domain, not here", peer.identity.uri())
            return
        try:
            node = self.node_entry(peer.identity.node)
            enrolled = enrolment_of(node.meta.annotations if node is not None else None)
            cert, body = self.joining.renew(peer.identity, csr, enrolled.not_before)
        except Refused as no:
            self.close_peer(peer, no.code, no.message, no.retry_s, no.reason)
            return
        log.info("certificate of node %s renewed", peer.identity.node, extra=about(peer))
        peer.renewed = True
        self.bundles.renewed(peer, cert)
        peer.conn.send(wire.message(wire.RENEWED, body))

    def _audit(self) -> None:
        """Ends connections whose certificate has expired meanwhile."""
        wall = self.wall()
        for peer in list(self._everyone.values()):
            if peer.expires <= wall and peer.renewed:
                text = "the certificate of this connection has expired; connect with the renewed one"
                self.close_peer(peer, "resync", text, 0.0)
            elif peer.expires <= wall:
                self.close_peer(peer, "denied", EXPIRED, self.jitter(1, 5), "CertificateExpired")

    # -- the store ---------------------------------------------------------------------------------------------------

    def write_node(self, peer: Peer, change: Callable[[Object, str], Object | None]) -> None:
        """Queues a change of the peer's Node. Not written when too much waits: the next connection tries again."""
        assert peer.identity is not None
        name = peer.identity.node

        def done(result: "int | errors.ApiError") -> None:
            if not isinstance(result, int):
                log.info("node %s: its status was not stored: %s", name, result, extra=about(peer))

        def apply(node: Object) -> Object | None:
            return change(node, now_rfc3339())

        if not self.upstream.submit(peer.slot, Update(NODES, "", name, None, apply, done)):
            log.warning("node %s: its status cannot be stored now", name, extra=about(peer))

    def node_entry(self, name: str) -> Entry[NodeView] | None:
        return self.nodes.cache.get("", name)

    def pod_entry(self, namespace: str, name: str) -> Entry[PodView] | None:
        return self.share.pods.cache.get(namespace, name)

    def fence_lost(self, slot: int) -> None:
        """The store has shown that somebody else owns the slot now."""
        self.slots.lost([slot])
        self.ownership.fence_lost(slot)

    def _advertised(self) -> str | None:
        """The addresses that joining agents are told to use; None: the one that they joined through."""
        if self.config.advertise:
            return self.config.advertise
        others = sorted({m.edge for m in self.ownership.members.values() if m.edge})
        return ",".join(others[:ADVERTISED_MAX]) if len(others) > 1 else None

    async def _reached(self, slot: int, revision: int) -> None:
        """Returns once this replica knows a new Node; at once where another one serves its slot, which reads it when the
        node says HELLO."""
        if slot in self.slots.serving:
            await self.share.at_least(slot, revision)


def _uri_of(cert: Mapping[str, Any]) -> str:
    """The first URI of a peer's certificate, "" without one."""
    return next((value for kind, value in cert.get("subjectAltName", ()) if kind == "URI"), "")
