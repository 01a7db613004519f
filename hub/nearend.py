"""The near end of relays: this replica has the node's connection, or the client of a stream; another one owns the slot.

Bytes are passed on as they come, in both directions. Only heartbeats are answered here, between two frames, and reach
the owner as one BEAT per slot and interval. A connection whose relay breaks is told to come back at once.

Invariant: bytes of a node that the owner has not taken are at most BACKLOG_BYTES_MAX; what the node has not taken is at
most the window that the owner was granted.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

from edgelite import wire
from hub import errors
from hub.duplex import DuplexStream
from hub.logstreams import LogStream
from hub.nearstreams import NearStream
from hub.peers import Peer
from shards.bus import Bus
from shards.ownership import Route
from shards.relay import (
    BEAT,
    CONNECTION_MAX,
    LOG_WINDOW_BYTES,
    Boundaries,
    Closing,
    Link,
    Message,
    OpenDocument,
    OpenLog,
    OpenNode,
    OpenStream,
    RelayError,
    decode_beats,
    encode,
    encode_beats,
    up_subject,
)
from shards.relay import Beat as Line

if TYPE_CHECKING:
    from hub.gateway import Gateway

log = logging.getLogger(__name__)

PING: Final = wire.frame(wire.PING)
PONG: Final = wire.frame(wire.PONG)
BACKLOG_BYTES_MAX: Final = 2 << 20
ENDS_MAX: Final = 20_000
OPEN_S: Final = 5.0
"""How long the owner may take for its first word."""
SILENT_S: Final = 8.0
"""How long it may leave BEATs unanswered."""
PINGS_MAX: Final = 1000
"""Heartbeats of one node between two beats."""
SLOW_S: Final = 0.05
"""How often a slow reader's progress is looked at."""


class NearNode:
    """A node's connection (`hub.peers.Relayed`)."""

    __slots__ = (
        "_near",
        "answered",
        "down",
        "heard",
        "link",
        "peer",
        "pings",
        "route",
        "subject",
        "unread",
        "up",
    )

    def __init__(
        self, near: "NearEnd", peer: Peer, route: Route, subject: str, link: Link, now: float
    ) -> None:
        self._near = near
        self.peer = peer
        self.route = route
        self.subject = subject
        self.link = link
        self.answered = now
        self.up, self.down = Boundaries(), Boundaries()
        self.unread = 0
        """Bytes of the owner that the node may not have taken yet."""
        self.heard = False
        self.pings = 0

    @property
    def slot(self) -> int:
        return self.peer.slot

    def received(self, data: bytes) -> None:
        self._near.from_node(self, data)

    def closed(self, reason: str) -> None:
        self._near.end(self, Closing(reason))

    def taken(self, data: bytes) -> None:
        self.down.feed(data)
        self.unread += len(data)
        self.peer.conn.send(data)
        self._near.grant_soon(self)


class NearLog:
    """A log that is read here."""

    __slots__ = ("answered", "heard", "link", "node", "route", "slot", "stream", "subject")

    def __init__(self, node: str, slot: int, route: Route, subject: str, link: Link, now: float) -> None:
        self.node = node
        self.slot = slot
        self.route = route
        self.subject = subject
        self.link = link
        self.answered = now
        self.heard = False
        self.stream: LogStream

    def taken(self, data: bytes) -> None:
        self.stream.data(data)


End = NearNode | NearLog | NearStream


class NearEnd:
    """See the module."""

    def __init__(
        self, gateway: "Gateway", bus: Bus, store: str, incarnation: str, now: Callable[[], float]
    ) -> None:
        self._gateway = gateway
        self._bus = bus
        self._store = store
        self._incarnation = incarnation.encode("ascii")
        self._now = now
        self._ends: dict[int, End] = {}
        self._last = 0
        self._slow: set[NearNode] = set()
        self._granting = False
        self.nodes = 0
        self.broken = 0
        """Relays that ended by a fault on the way."""

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def full(self) -> bool:
        return len(self._ends) >= ENDS_MAX

    # -- beginnings ---------------------------------------------------------------------------------------------

    def take(self, peer: Peer, first: bytes, route: Route) -> None:
        """See hub.routing.Relays."""
        assert peer.identity is not None
        link = Link(self._number(), backlog_bytes_max=BACKLOG_BYTES_MAX, far=False)
        end = NearNode(self, peer, route, self._subject(peer.slot, route), link, self._now())
        peer.relayed = end
        peer.conn.set_idle(self._gateway.config.patience_s)
        self._ends[link.connection] = end
        self.nodes += 1
        shown = peer.shown
        opening = OpenNode(
            peer.identity.uri(),
            peer.expires,
            peer.slot,
            peer.conn.peername(),
            shown.begins,
            shown.issuer,
            shown.serial,
        )
        try:
            end.up.feed(first)
            messages = [link.open(opening), *link.send(first)]
        except RelayError as failure:
            self.fail(end, str(failure))
            return
        self.publish(end, messages)

    def open_log(
        self, node: str, slot: int, route: Route, opening: OpenLog | OpenDocument, follow: bool
    ) -> LogStream:
        """Raises ServiceUnavailable, BadRequest."""
        link = Link(self._number(), window=LOG_WINDOW_BYTES, far=False)
        end = NearLog(node, slot, route, self._subject(slot, route), link, self._now())

        def grant(count: int) -> None:
            if self._ends.get(link.connection) is end:
                self.publish(end, link.passed_on(count))

        end.stream = LogStream(grant, lambda: self.end(end, Closing("reader")), follow)
        try:
            first = link.open(opening)
        except RelayError as failure:
            raise errors.BadRequest(f"log options: {failure}") from failure
        self._ends[link.connection] = end
        self.publish(end, [first])
        return end.stream

    def open_stream(self, node: str, slot: int, route: Route, opening: OpenStream) -> DuplexStream:
        """Raises BadRequest for a body that is too long."""
        link = Link(self._number(), far=False)
        end = NearStream(self, node, slot, route, self._subject(slot, route), link, self._now())
        try:
            first = link.open(opening)
        except RelayError as failure:
            raise errors.BadRequest(f"{opening.body.get('kind')}: {failure}") from failure
        self._ends[link.connection] = end
        self.publish(end, [first])
        return end.stream

    def knows(self, end: End) -> bool:
        return self._ends.get(end.link.connection) is end

    def _number(self) -> int:
        while True:
            self._last = self._last % CONNECTION_MAX + 1
            if self._last not in self._ends:
                return self._last

    def _subject(self, slot: int, route: Route) -> str:
        return up_subject(self._store, slot, route.owner.epoch)

    # -- bytes ----------------------------------------------------------------------------------------------------

    def from_node(self, end: NearNode, data: bytes) -> None:
        end.heard = True
        if data == PING and end.up.between and end.down.between and end.link.heard_from:
            end.pings += 1
            if end.pings > PINGS_MAX:
                self.fail(end, f"more than {PINGS_MAX} heartbeats in a few seconds", "overload", 60.0)
            else:
                end.peer.conn.answer(PONG)
            return
        try:
            end.up.feed(data)
            messages = end.link.send(data)
        except RelayError as failure:
            self.fail(end, str(failure))
            return
        self.publish(end, messages)

    def received(self, message: Message) -> None:
        """From an owner."""
        if message.kind == BEAT:
            self._beat_answered(message.body)
            return
        end = self._ends.get(message.connection)
        if end is None:
            return
        end.answered = self._now()
        try:
            got = end.link.receive(message)
            if isinstance(got, bytes):
                end.taken(got)
            elif isinstance(got, Closing):
                self._ended(end, got)
            else:
                self.publish(end, got)
        except RelayError as failure:
            self.fail(end, str(failure))

    def grant_soon(self, end: NearNode) -> None:
        self._slow.add(end)
        if not self._granting:
            self._granting = True
            # After the port has written what this turn has sent.
            asyncio.get_running_loop().call_soon(self._grant)

    def _grant(self) -> None:
        ends, self._slow = self._slow, set()
        self._granting = False
        for end in ends:
            if self._ends.get(end.link.connection) is not end:
                continue
            passed = max(0, end.unread - end.peer.conn.backlog_bytes)
            end.unread -= passed
            self.publish(end, end.link.passed_on(passed))
            if end.unread:
                self._slow.add(end)
        if self._slow and not self._granting:
            self._granting = True
            asyncio.get_running_loop().call_later(SLOW_S, self._grant)

    # -- beats ------------------------------------------------------------------------------------------------------

    def beat(self, late: bool) -> None:
        """To be called once per interval; `late`: this process stood still, so nobody else is to blame for silence."""
        now = self._now()
        slots: dict[str, list[Line]] = {}
        for end in list(self._ends.values()):
            if late:
                end.answered = now
            if now - end.answered > (SILENT_S if end.link.heard_from else OPEN_S):
                self.fail(end, "the owner of the node's slot does not answer")
                continue
            heard = end.heard
            end.heard = False
            if isinstance(end, NearNode):
                end.pings = 0
            slots.setdefault(end.subject, []).append(Line(end.link.connection, end.link.number, heard))
        for subject, lines in slots.items():
            for body in encode_beats(lines):
                self._bus.publish(subject, encode(Message(BEAT, 0, 0, body), self._incarnation))

    def _beat_answered(self, body: bytes) -> None:
        try:
            lines = decode_beats(body)
        except RelayError as failure:
            log.warning("an answer of an owner was refused: %s", failure)
            return
        now = self._now()
        for line in lines:
            end = self._ends.get(line.connection)
            if end is None:
                continue
            end.answered = now
            try:
                if not line.heard:
                    raise RelayError("the owner of the node's slot does not know the connection")
                end.link.beat(line.number)
            except RelayError as failure:
                self.fail(end, str(failure))

    # -- ends -------------------------------------------------------------------------------------------------------

    def end(self, end: End, closing: Closing) -> None:
        """It has ended here: tells the owner."""
        if self._forget(end):
            for message in end.link.close(closing):
                self._bus.publish(end.subject, encode(message, self._incarnation))

    def moved(self, slots: Collection[int], gone: Callable[[End], bool]) -> None:
        """Ends those of these slots that `gone` says yes to."""
        for end in [e for e in self._ends.values() if e.slot in slots and gone(e)]:
            self.fail(end, "the node's slot has another owner now")

    def fail_all(self, why: str) -> None:
        for end in list(self._ends.values()):
            self.fail(end, why)

    def _ended(self, end: End, closing: Closing) -> None:
        """The owner has ended it."""
        self._forget(end)
        if closing.reason.startswith("relay"):
            self._tell(end, closing.message or closing.reason, "resync", self._gateway.jitter(0, 1))
        elif not isinstance(end, NearNode):
            if closing.code:
                end.stream.fail(_api_error(closing))
            else:
                end.stream.end(None)
        elif end.down.between:
            end.peer.conn.close(closing.reason)
        else:
            end.peer.conn.abort(closing.reason)

    def fail(self, end: End, why: str, code: str = "resync", retry_s: float | None = None) -> None:
        """Ends it by a fault on the way."""
        if self._ends.get(end.link.connection) is not end:
            return
        self.broken += 1
        self.end(end, Closing("relay-failed", message=why))
        self._tell(end, why, code, self._gateway.jitter(0, 1) if retry_s is None else retry_s)

    def _tell(self, end: End, why: str, code: str, retry_s: float) -> None:
        if not isinstance(end, NearNode):
            end.stream.fail(errors.ServiceUnavailable(f'the stream of node "{end.node}" ended: {why}'))
        elif end.down.between:
            self._gateway.close_peer(end.peer, code, why, retry_s)
        else:
            end.peer.conn.abort(code)

    def _forget(self, end: End) -> bool:
        if self._ends.get(end.link.connection) is not end:
            return False
        del self._ends[end.link.connection]
        if isinstance(end, NearNode):
            self.nodes -= 1
            self._slow.discard(end)
        return True

    def publish(self, end: End, messages: list[Message]) -> None:
        """Sends them, or ends it."""
        for message in messages:
            if not self._bus.publish(end.subject, encode(message, self._incarnation)):
                self.fail(end, "the bus between the hubs is lost or overloaded")
                return


_ERRORS: Final = {
    kind.reason: kind
    for kind in (errors.BadRequest, errors.Gone, errors.ServiceUnavailable, errors.TooManyRequests)
}


def _api_error(closing: Closing) -> errors.ApiError:
    """The error that the owner has met, as it would have been here."""
    kind = _ERRORS.get(closing.status)
    if kind is not None:
        return kind(closing.message)
    made = errors.ApiError(closing.message)
    made.code = closing.code if 400 <= closing.code <= 599 else 500
    made.reason = closing.status or made.reason
    return made
