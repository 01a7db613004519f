"""The far end of relays: this replica owns the slot; the node's connection, or a stream's client, is at another one.

A relayed node is served by the gateway as a local one: `RelayedConnection` is what `hub.transport.Connection` is for
it, certificate included (the replica that has the connection has verified it; only hubs may publish on the bus).

Invariant: bytes for a node that wait for its credit are bounded as those of a local connection are; `closed` is called
exactly once for every connection that `connected` has seen.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from hub import errors
from hub.farstreams import FarStream
from hub.objects import partition_of_slot
from hub.transport import Connection
from security.identity import IdentityError, NodeId, parse
from security.policy import (
    ABSENT,
    CLUSTER,
    HUB,
    OTHER_POOL,
    OWN,
    RELAYED_DOCUMENT,
    RELAYED_LOG,
    RELAYED_NODE,
    RELAYED_STREAM,
    judge,
)
from shards.bus import Bus
from shards.relay import (
    BEAT,
    CLOSE,
    LOG_WINDOW_BYTES,
    OPEN,
    Beat,
    Closing,
    Link,
    Message,
    OpenDocument,
    Opening,
    OpenLog,
    OpenNode,
    OpenStream,
    RelayError,
    decode_beats,
    decode_open,
    down_subject,
    encode,
    encode_beats,
)
from shards.ring import slot_of

if TYPE_CHECKING:
    from hub.gateway import Gateway
from observability.logs import about

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 50_000
LOGS_MAX: Final = 256
"""Logs and duplex streams."""
SILENT_S: Final = 10.0
"""How long a replica that relays to us may send nothing."""
LINGER_S: Final = 2.0
Documents = Callable[[str, str], AsyncIterator[bytes]]
"""From a node and a kubelet's path to the bytes of the answer. Raises ApiError."""
CERT_TIME: Final = "%b %d %H:%M:%S %Y GMT"
"""As in what `SSLSocket.getpeercert()` gives."""
OpenLogCall = Callable[[str, Mapping[str, Any]], AsyncIterator[bytes]]


class RelayedConnection:
    """A node's connection at another replica; see hub.transport.Connection, whose place it takes."""

    __slots__ = (
        "_cert",
        "_dirty",
        "_far",
        "_out",
        "_peer",
        "closing",
        "heard",
        "idle_s",
        "key",
        "link",
        "owed_bytes",
        "owner",
        "paused",
    )

    def __init__(
        self, far: "FarEnd", key: tuple[str, int], opening: OpenNode, link: Link, now: float
    ) -> None:
        self._far = far
        self.key = key
        self.link = link
        self.owner: Any = None
        self.heard = now
        self.idle_s = 10.0  # until HELLO, as on the edge port
        self.closing = 0.0
        """When a closed connection is given up, whose last bytes wait for credit; 0: open."""
        self.paused = False
        self.owed_bytes = 0
        """What was passed on during a pause, for which no credit was granted yet."""
        self._out: list[bytes] = []
        self._dirty = False
        self._peer = opening.peer
        self._cert: dict[str, Any] = {
            "subjectAltName": (("URI", opening.uri),),
            "notAfter": time.strftime(CERT_TIME, time.gmtime(opening.expires)),
            "notBefore": time.strftime(CERT_TIME, time.gmtime(opening.begins)),
            "issuer": ((("commonName", opening.issuer),),),
            "serialNumber": opening.serial,
        }

    @property
    def backlog_bytes(self) -> int:
        return self.link.backlog_bytes + sum(map(len, self._out))

    def send(self, data: bytes) -> None:
        if self.closing or not self._far.knows(self):
            return
        self._out.append(data)
        if not self._dirty:
            self._dirty = True
            self._far.flush_soon(self)

    def answer(self, data: bytes) -> None:
        self.send(data)
        self.flush()

    def flush(self) -> None:
        """Passes on what was sent in this turn, as one message."""
        self._dirty = False
        out, self._out = self._out, []
        if out and self._far.knows(self):
            self._far.send(self, out[0] if len(out) == 1 else b"".join(out))

    def close(self, reason: str) -> None:
        if not self.closing and self._far.knows(self):
            self.flush()
            self._far.finish(self, reason)

    def abort(self, reason: str) -> None:
        self._out.clear()
        self._far.drop(self, reason, Closing("relay-aborted", message=reason))

    def pause(self, seconds: float) -> None:
        """Grants no credit for that long; see hub.transport.Connection."""
        if not self.paused:
            self.paused = True
            asyncio.get_running_loop().call_later(seconds, self._far.resume, self)

    def set_idle(self, idle_s: float) -> None:
        self.idle_s = idle_s

    def peercert(self) -> dict[str, Any]:
        return self._cert

    def peername(self) -> str:
        return f"{self._peer} (relayed)"


class FarLog:
    """A log that is read at another replica, or a document about a node that is asked for there."""

    __slots__ = ("key", "link", "opening", "room", "task")

    def __init__(self, key: tuple[str, int], opening: OpenLog | OpenDocument, link: Link) -> None:
        self.key = key
        self.opening = opening
        self.link = link
        self.room = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


_SUBJECTS: Final = {
    OpenNode: RELAYED_NODE,
    OpenLog: RELAYED_LOG,
    OpenStream: RELAYED_STREAM,
    OpenDocument: RELAYED_DOCUMENT,
}

End = RelayedConnection | FarLog | FarStream


class FarEnd:
    """See the module. `spawn` starts a task under the relay's own group."""

    def __init__(
        self,
        gateway: "Gateway",
        bus: Bus,
        store: str,
        now: Callable[[], float],
        open_log: OpenLogCall,
        spawn: Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"],
    ) -> None:
        self._gateway = gateway
        self._bus = bus
        self._store = store
        self._now = now
        self._open_log = open_log
        self.documents: Documents | None = None
        """Who answers for documents about nodes of this replica (`hub.kubelet`)."""
        self._spawn = spawn
        self._ends: dict[tuple[str, int], End] = {}
        self._slots: dict[tuple[str, int], int] = {}
        self._seen: dict[str, float] = {}
        """When each replica that relays to us was heard last."""
        self._dirty: list[RelayedConnection] = []
        self.logs = 0

    @property
    def nodes(self) -> int:
        return len(self._ends) - self.logs

    def knows(self, end: End) -> bool:
        return self._ends.get(end.key) is end

    # -- from the bus -------------------------------------------------------------------------------------------------

    def received(self, slot: int, message: Message, incarnation: str) -> None:
        """A message for one of our slots."""
        self._seen[incarnation] = self._now()
        if message.kind == BEAT:
            self._beat(message.body, incarnation)
            return
        key = (incarnation, message.connection)
        end = self._ends.get(key)
        try:
            if message.kind == OPEN:
                if end is not None:
                    raise RelayError("a second OPEN of one connection")
                self._open(slot, key, decode_open(message.body))
            elif end is not None:
                self._continue(end, message)
            elif message.kind != CLOSE:
                self._refuse(key, "the owner does not know the connection")
        except RelayError as failure:
            log.info("relay of %s: %s", incarnation, failure)
            if end is not None:
                self.drop(end, "relay-broken", Closing("relay-broken", message=str(failure)))
            else:
                self._refuse(key, str(failure))

    def _continue(self, end: End, message: Message) -> None:
        waiting = end.link.backlog_bytes
        if (
            waiting
            and isinstance(end, RelayedConnection)
            and not self._gateway.may_write(cast(Connection, end))
        ):
            # What was decided while we owned the slot must not leave after that.
            self.drop(
                end, "fenced", Closing("relay-fenced", message="the node's slot may have another owner")
            )
            return
        got = end.link.receive(message)
        if isinstance(got, Closing):
            self.drop(end, got.reason, None)
        elif isinstance(got, bytes):
            if isinstance(end, FarLog):
                raise RelayError("bytes from a log's reader")
            if isinstance(end, FarStream):
                end.received(got)
                return
            end.heard = self._now()
            if not end.closing:
                self._gateway.received(cast(Connection, end), got)
            if end.paused:
                end.owed_bytes += len(got)
            elif self.knows(end):
                self.publish(end, end.link.passed_on(len(got)))
        else:
            self.publish(end, got)
            if isinstance(end, FarLog):
                end.room.set()
            elif isinstance(end, FarStream):
                pass
            elif end.closing and not end.link.backlog_bytes:
                self._forget(end, Closing("closed"))

    def _open(self, slot: int, key: tuple[str, int], opening: Opening) -> None:
        if self._gateway.ownership.of(slot) is None or opening.slot != slot:
            raise RelayError("this hub does not own the slot")
        subject = _SUBJECTS[type(opening)]
        refusal = judge(HUB, subject, self._relation(slot, opening))
        if refusal is not None:
            named = opening.uri if isinstance(opening, OpenNode) else opening.node
            text = f"{named[:300]!r} is no node of slot {slot}"
            self._gateway.refusals.note(HUB, subject, refusal.reason, f"replica {key[0]}", text)
            raise RelayError(text)
        if not isinstance(opening, OpenNode) and self.logs >= LOGS_MAX:
            raise RelayError(f"this hub serves {LOGS_MAX} streams for others already")
        if isinstance(opening, OpenStream):
            stream = FarStream(self, key, Link(key[1], far=True))
            self._ends[key], self._slots[key] = stream, slot
            self.logs += 1
            self.publish(stream, [stream.link.greet()])
            if self.knows(stream):
                stream.open(self._gateway.streams, opening)
            return
        if isinstance(opening, OpenLog | OpenDocument):
            # The other end grants what its reader has read: that window is ours to fill.
            served = FarLog(key, opening, Link(key[1], window=opening.credit, far=True))
            self._ends[key], self._slots[key] = served, slot
            self.logs += 1
            self.publish(served, [served.link.greet()])
            if self.knows(served):
                served.task = self._spawn(self._serve_log(served), f"log of {opening.node} for {key[0]}")
            return
        if self.nodes >= CONNECTIONS_MAX:
            raise RelayError("this hub serves no more relayed nodes")
        bytes_max = self._gateway.config.transport.backlog_bytes_max
        link = Link(key[1], backlog_bytes_max=bytes_max, far=True)
        conn = RelayedConnection(self, key, opening, link, self._now())
        self._ends[key], self._slots[key] = conn, slot
        self.publish(conn, [link.greet()])
        if self.knows(conn):
            self._gateway.connected(cast(Connection, conn))

    def _relation(self, slot: int, opening: Opening) -> str:
        """How the node that another hub speaks for relates to the slot that it was sent to."""
        if not isinstance(opening, OpenNode):
            entry = self._gateway.node_entry(opening.node)
            # Of one that is unknown here `NodeStreams` says so, or waits for it.
            return OWN if entry is None or entry.partition == partition_of_slot(slot) else OTHER_POOL
        try:
            identity = parse(opening.uri)
            if not isinstance(identity, NodeId):
                return CLUSTER
            self._gateway.federation.check(identity)
        except IdentityError:
            return ABSENT
        own = slot_of(identity.affinity, self._gateway.ownership.slots) == slot
        return OWN if own else OTHER_POOL

    def _beat(self, body: bytes, incarnation: str) -> None:
        answer: list[Beat] = []
        now = self._now()
        for line in decode_beats(body):
            end = self._ends.get((incarnation, line.connection))
            if end is not None:
                try:
                    end.link.beat(line.number)
                except RelayError as failure:
                    self.drop(end, "relay-broken", Closing("relay-broken", message=str(failure)))
                    end = None
                else:
                    if line.heard and isinstance(end, RelayedConnection):
                        end.heard = now
            number = end.link.number if end is not None else 0
            answer.append(Beat(line.connection, number, end is not None))
        for part in encode_beats(answer):
            self._bus.publish(down_subject(self._store, incarnation, 0), encode(Message(BEAT, 0, 0, part)))

    # -- from the gateway -----------------------------------------------------------------------------------------

    def flush_soon(self, conn: RelayedConnection) -> None:
        if not self._dirty:
            asyncio.get_running_loop().call_soon(self._flush)
        self._dirty.append(conn)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for conn in dirty:
            conn.flush()

    def send(self, conn: RelayedConnection, data: bytes) -> None:
        try:
            messages = conn.link.send(data)
        except RelayError as failure:
            self.drop(conn, "slow", Closing("relay-slow", message=str(failure)))
            return
        self.publish(conn, messages)

    def resume(self, conn: RelayedConnection) -> None:
        """A pause is over."""
        conn.paused = False
        owed, conn.owed_bytes = conn.owed_bytes, 0
        if self.knows(conn) and owed:
            conn.heard = self._now()
            self.publish(conn, conn.link.passed_on(owed))

    def finish(self, conn: RelayedConnection, reason: str) -> None:
        """Ends it once its last bytes have left."""
        if not self.knows(conn):
            return
        if conn.link.backlog_bytes:
            conn.closing = self._now() + LINGER_S
        else:
            self._forget(conn, Closing(reason))
        self._gateway.closed(cast(Connection, conn), reason)

    def drop(self, end: End, reason: str, closing: Closing | None) -> None:
        """Ends it now; `closing` is told to the other end, None: it knows."""
        if not self.knows(end):
            return
        self._forget(end, closing)
        if isinstance(end, FarLog):
            if end.task is not None:
                end.task.cancel()
        elif isinstance(end, FarStream):
            end.close()
        elif not end.closing:
            self._gateway.closed(cast(Connection, end), reason)

    # -- life ---------------------------------------------------------------------------------------------------------

    def sweep(self, late: bool) -> None:
        """To be called once per interval; `late`: this process stood still, so silence is nobody's fault."""
        now = self._now()
        if late:
            self._seen = dict.fromkeys(self._seen, now)
            return
        silent = {i for i, seen in self._seen.items() if now - seen > SILENT_S}
        for end in list(self._ends.values()):
            if end.key[0] in silent:
                self.drop(end, "relay-silent", Closing("relay-silent", message="the relaying hub was silent"))
            elif isinstance(end, RelayedConnection):
                if end.closing and end.closing < now:
                    self._forget(end, Closing("closed"))
                elif not end.closing and end.heard + end.idle_s < now:
                    self.drop(end, "idle", Closing("idle"))
        for incarnation in silent:
            del self._seen[incarnation]

    def lost(self, slots: Collection[int]) -> None:
        """These slots are not ours any more."""
        for key in [k for k, slot in self._slots.items() if slot in slots]:
            end = self._ends.get(key)
            if end is not None:
                self.drop(
                    end, "moved", Closing("relay-moved", message="the node's slot has another owner now")
                )

    def drop_all(self, reason: str) -> None:
        for end in list(self._ends.values()):
            self.drop(end, reason, None)

    def _forget(self, end: End, closing: Closing | None) -> None:
        del self._ends[end.key], self._slots[end.key]
        if not isinstance(end, RelayedConnection):
            self.logs -= 1
        if closing is not None:
            for message in end.link.close(closing):
                self._bus.publish(down_subject(self._store, *end.key), encode(message))

    def ended(self, end: End, closing: Closing) -> None:
        """The node has ended it: tells the other end."""
        if self.knows(end):
            self._forget(end, closing)

    def _refuse(self, key: tuple[str, int], why: str) -> None:
        closing = Link(key[1], far=True).close(Closing("relay-refused", message=why[:512]))
        for message in closing:
            self._bus.publish(down_subject(self._store, *key), encode(message))

    def publish(self, end: End, messages: list[Message]) -> None:
        """Sends them, or ends it."""
        subject = down_subject(self._store, *end.key)
        for message in messages:
            if not self._bus.publish(subject, encode(message)):
                self.drop(end, "bus", None)  # the beat tells the other end
                return

    # -- logs -----------------------------------------------------------------------------------------------------------

    async def _serve_log(self, served: FarLog) -> None:
        closing = Closing("ended")
        try:
            chunks = self._chunks_of(served.opening)
            async with contextlib.aclosing(cast(Any, chunks)):
                async for chunk in chunks:
                    for at in range(0, len(chunk), LOG_WINDOW_BYTES):
                        await self._send_log(served, chunk[at : at + LOG_WINDOW_BYTES])
        except errors.ApiError as failure:
            closing = Closing("failed", failure.code, failure.reason, failure.message[:2048])
        except RelayError:
            closing = Closing("relay-broken")
        except Exception:
            node = served.opening.node
            log.exception(
                "the log of node %s could not be read for another hub", node, extra=about(node=node)
            )
            closing = Closing("failed", 500, "InternalError", "the hub failed on a log; its own log says why")
        if self.knows(served):
            self._forget(served, closing)

    def _chunks_of(self, opening: OpenLog | OpenDocument) -> AsyncIterator[bytes]:
        if isinstance(opening, OpenLog):
            return self._open_log(opening.node, opening.options)
        if self.documents is None:
            raise errors.ServiceUnavailable("this hub is no kubelet; it has no document about the node")
        return self.documents(opening.node, opening.path)

    async def _send_log(self, served: FarLog, chunk: bytes) -> None:
        """Returns once the reader's credit has covered the chunk, so that no more of the node's log is asked for."""
        self.publish(served, served.link.send(chunk))
        while served.link.backlog_bytes:
            served.room.clear()
            await served.room.wait()
