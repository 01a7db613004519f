"""The hub's end of one node's connection, without sockets, clocks or tasks. [pure]

Messages go in, actions come out. The desired documents are read from `Shared.docs` when there is room to send them, so
a session remembers only keys that wait and what is in flight; a document that changes five times while it waits is
sent once.

A session that is live may be paused and resumed: then nothing leaves that only an owner may send, and what the node
says is kept. One whose slot goes to another owner is leaving (only what is stored already is still answered), then
parked: heartbeats are answered until the node knows where to go.

Invariants: before WELCOME, and on hold, no document is sent and no report taken (I9). At most one version of a key is
in flight, at most `window` keys and `window_bytes` bytes. ConfigMaps and Secrets go before the pods that use them, and
are deleted after them. Whatever a peer sends, `receive` raises nothing: the worst is a `Close` action.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Final, Protocol

import msgspec
import orjson

from edgelite import wire
from edgelite.desired import compact, digest_of, valid_key, version_of
from hub.documents import SERVICES_FEATURE, SPACE_PREFIXES, Document, understood
from hub.hello import Answer, protocol_of
from hub.messages import (
    PONG,
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
from security.frames import (
    decode_acks,
    decode_bundle,
    decode_close,
    decode_credit,
    decode_csr,
    decode_goaway,
    decode_hello,
    decode_nack,
    decode_pairs,
    decode_report,
)
from security.policy import NODE, OWN, judge, limits_of

REFUSALS_MAX: Final = 64
"""Refused documents remembered for the node's condition."""
PAIRS_MAX: Final = 8
BEATING: Final = ("live", "hold", "paused", "leaving", "parked")
"""States in which the answer to an empty PING is a PONG, and nothing else."""
LISTENING: Final = ("live", "paused")
"""States in which what the node says about documents and pods counts."""
FOREIGN_MAX: Final = 64
"""Keys of one message that are looked at because they are not the node's."""
_LIMITS: Final = limits_of(NODE)
_NO_STREAM: Final = {sent: (Foreign(sent),) for sent in (wire.DATA, wire.CREDIT, wire.CLOSE)}
RENEWALS_MAX: Final = 16
_FEATURES: Final = frozenset(("exec", "portforward", "usage", SERVICES_FEATURE))
# Every session refers to one of these; a set of its own would cost each of them 200 bytes.
_SPOKEN: Final = {s: s for n in range(len(_FEATURES) + 1) for s in map(frozenset, combinations(_FEATURES, n))}
STREAM_IDS_END: Final = 65536
MESSAGE_CHARS_MAX: Final = 1024
UNANSWERED_MAX: Final = 4096
"""Upstream entries taken and not yet answered: many times the window that WELCOME grants."""


class Docs(Protocol):
    """Where the desired documents are (`hub.desired.Desired`)."""

    @property
    def revision(self) -> int: ...

    def of(self, node: str) -> Mapping[str, Document]: ...

    def body(self, document: Document) -> bytes | None: ...

    def withhold(self, node: str, key: str) -> bool:
        """Must a DEL of `key` wait, since it is not known yet whether the node should have it? `Session.changed` is
        called when it is known."""
        ...


class Traces(Protocol):
    """Who follows documents of traced changes to their nodes (`hub.deliveries`)."""

    def context(self, document: Document) -> str: ...

    def sent(self, node: str, document: Document) -> None: ...

    def landed(
        self, node: str, key: str, version: str, echoes: Collection[str], refused: str = ""
    ) -> None: ...


class LastSet:
    """The SET that was made last: what many nodes get is put together once, and its bytes are shared by all queues.

    alone: the actions of a session that sends just this. ack: the frame in which an agent acknowledges just this,
    byte for byte as `edgelite` writes it; another spelling is decoded like any other message. trace: the context that it
    carries, "" for none.
    """

    __slots__ = ("ack", "alone", "body", "document", "revision", "trace")

    def __init__(self) -> None:
        self.document: Document | None = None
        self.revision = 0
        self.body = self.ack = b""
        self.trace = ""
        self.alone: tuple[Send] = (Send(b""),)

    def of(
        self,
        document: Document,
        revision: int,
        docs: Docs,
        frame_bytes_max: int,
        traces: "Traces | None" = None,
    ) -> Send | None:
        """The message, in frames that the peer takes; None when the document has changed meanwhile."""
        if self.document is not document or self.revision != revision:
            content = docs.body(document)
            if content is None:
                return None
            self.trace = traces.context(document) if traces is not None else ""
            header = b'{"k":"%b","v":"%b","r":%d%b}' % (
                document.key.encode(),
                document.version.encode(),
                revision,
                b',"t":"%b"' % self.trace.encode() if self.trace else b"",
            )
            self.body = wire.set_body(header, content)
            self.alone = (Send(wire.message(wire.SET, self.body)),)
            echo = {"t": [self.trace]} if self.trace else {}
            self.ack = wire.frame(wire.ACK, compact({"a": [[document.key, document.version]], **echo}))
            self.document, self.revision = document, revision
        if len(self.body) <= frame_bytes_max:
            return self.alone[0]
        return Send(wire.message(wire.SET, self.body, 0, frame_bytes_max))


@dataclass(frozen=True, slots=True)
class Shared:
    """What all sessions have in common. window: unacknowledged documents; window_bytes: their bytes (one larger
    document may go alone); streams_max: open streams of one node; traces: None where nothing is traced."""

    docs: Docs
    window: int = 64
    window_bytes: int = 2 << 20
    streams_max: int = 16
    traces: Traces | None = None
    last_set: LastSet = field(default_factory=LastSet)


class _Broken(Exception):
    """The peer broke the protocol: becomes Close."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


CONFIGS, PODS, OLD_CONFIGS = range(3)


class Session:
    """See the module. `state`: hello, live, paused, leaving, parked, hold, closed. `held`: the claim id that the node came with."""

    __slots__ = (
        "_confirming",
        "_document_max",
        "_expect_pairs",
        "_frame_max",
        "_in_flight",
        "_in_flight_bytes",
        "_kept",
        "_next_stream",
        "_pairs",
        "_renewals",
        "_shared",
        "_streams",
        "_syncing",
        "_unanswered",
        "_waiting",
        "held",
        "node",
        "refused",
        "speaks",
        "state",
    )

    def __init__(self, shared: Shared, node: str) -> None:
        self._shared = shared
        self.node = node
        self.state = "hello"
        self.held = ""
        self.speaks: frozenset[str] = frozenset()
        """Kinds of streams, beside logs, that the agent serves, and documents, beside pods and their references, that it knows."""
        self.refused: dict[str, tuple[str, str]] | None = None
        self._document_max = wire.DOCUMENT_BYTES_MAX
        self._frame_max = wire.FRAME_BYTES_MAX
        self._waiting: tuple[dict[str, None], dict[str, None], dict[str, None]] | str | None = None
        """Keys by urgency, or the only one: most often a change touches one document of a node."""
        self._in_flight: dict[str, Document | None] | None = None
        self._in_flight_bytes = 0
        self._kept: dict[str, str] | None = None
        self._syncing = False
        self._expect_pairs = False
        self._pairs = 0
        self._confirming = False
        self._renewals = 0
        self._unanswered = 0
        self._streams: dict[int, int] | None = None
        self._next_stream = 1

    # -- from the peer ------------------------------------------------------------------------------------------------

    def receive(self, kind: int, stream: int, body: bytes) -> Sequence[Action]:
        """A message has arrived."""
        limit = _LIMITS.get(kind)
        if limit is None or len(body) > limit:
            refusal = judge(NODE, kind, OWN, len(body))
            assert refusal is not None
            return self._end(refusal.code, refusal.message, kind, refusal.reason)
        state = self.state
        if kind == wire.PING and state in BEATING:
            return PONG
        if state == "closed" or (state in ("leaving", "parked") and kind != wire.GOAWAY):
            return ()
        if state == "hello" and kind not in (wire.HELLO, wire.GOAWAY, wire.BUNDLE):
            return self._end("protocol", f"{wire.NAMES[kind]} before HELLO", kind, "state")
        try:
            return _HANDLERS[kind](self, stream, body)
        except _Broken as broken:
            return self._end(broken.code, str(broken), kind, broken.code)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as malformed:
            return self._end("protocol", f"{wire.NAMES[kind]} is malformed: {malformed}", kind, "malformed")

    def _hello(self, stream: int, body: bytes) -> Sequence[Action]:
        if self.state != "hello":
            raise _Broken("protocol", "a second HELLO")
        hello = decode_hello(body)
        if protocol_of(hello) is None:
            raise _Broken(
                "protocol",
                f"the agent speaks protocol {hello.proto[0]} to {hello.proto[1]}, this hub {wire.PROTOCOL_MIN} to"
                f" {wire.PROTOCOL_MAX}; update the older of the two",
            )
        self.held = hello.held
        self.speaks = _SPOKEN[_FEATURES.intersection(hello.features)]
        self._document_max = min(hello.limits.document, wire.DOCUMENT_BYTES_MAX)
        self._frame_max = min(hello.limits.frame, wire.FRAME_BYTES_MAX)
        return (Greeted(hello, body),)

    def _pairs_of_edge(self, stream: int, body: bytes) -> Sequence[Action]:
        if self.state not in LISTENING:
            return ()
        self._pairs += 1
        if self._pairs > PAIRS_MAX:
            raise _Broken("resync", f"the digests still differ after {PAIRS_MAX} repairs")
        held = dict(decode_pairs(body).pairs)
        if not all(map(valid_key, held)):
            raise _Broken("protocol", "PAIRS with a key that no document has")
        self._expect_pairs = False
        self._syncing = True
        wanted = self._wanted()
        in_flight = self._in_flight or {}
        self._kept = None
        for key, document in wanted.items():
            if document.size > self._document_max:
                if key in held:
                    self._kept = {**(self._kept or {}), key: held[key]}
            elif held.get(key) != document.version and in_flight.get(key) is not document:
                self._wait(key)
        foreign: list[str] = []
        for key in held:
            if key in wanted or (key in in_flight and in_flight[key] is None):
                continue
            if len(foreign) < FOREIGN_MAX:
                foreign.append(key)
            if not self._shared.docs.withhold(self.node, key):
                self._wait(key)
        actions = self.pump()
        return [Foreign(wire.PAIRS, tuple(foreign)), *actions] if foreign else actions

    def _ack(self, stream: int, body: bytes) -> Sequence[Action]:
        if self.state not in LISTENING:
            return ()
        actions: list[Action] = []
        if self._confirming:
            self._confirming = False
            actions.append(Confirmed())
        foreign: list[str] = []
        acks = decode_acks(body)
        for key, version in acks.a:
            if self._landed(key, version, acks.t):
                if self.refused and self.refused.pop(key, None):
                    actions.append(Refusals("", "", ""))
            elif len(foreign) < FOREIGN_MAX and self._is_foreign(key):
                foreign.append(key)
        if foreign:
            actions.append(Foreign(wire.ACK, tuple(foreign)))
        if self._waiting is not None or self._syncing:
            actions.extend(self.pump())
        return actions

    def took_last(self) -> Sequence[Action]:
        """`Shared.last_set.ack` has arrived: what `receive` would do with it, for an ACK that changes nothing else."""
        document, in_flight = self._shared.last_set.document, self._in_flight
        if (
            document is None
            or in_flight is None
            or in_flight.get(document.key) is not document
            or self.refused is not None
            or self._confirming
            or self.state != "live"
        ):
            return self.receive(wire.ACK, 0, self._shared.last_set.ack[wire.HEADER_BYTES :])
        if (traces := self._shared.traces) is not None and (trace := self._shared.last_set.trace):
            traces.landed(self.node, document.key, document.version, (trace,))
        if len(in_flight) == 1:
            self._in_flight = None
            self._in_flight_bytes = 0
        else:
            del in_flight[document.key]
            self._in_flight_bytes -= document.size
        if self._waiting is not None or self._syncing:
            return self.pump()
        return ()

    def _nack(self, stream: int, body: bytes) -> Sequence[Action]:
        if self.state not in LISTENING:
            return ()
        nack = decode_nack(body)
        if not self._landed(nack.k, nack.v, (), nack.reason or "refused"):
            return (Foreign(wire.NACK, (nack.k,)),) if self._is_foreign(nack.k) else ()
        message = nack.message[:MESSAGE_CHARS_MAX]
        return [self._refuse(nack.k, nack.reason, message), *self.pump()]

    def _report_of_edge(self, stream: int, body: bytes) -> Sequence[Action]:
        if self.state not in LISTENING:
            return ()
        entries = decode_report(body).e
        self._unanswered += len(entries)
        if self._unanswered > UNANSWERED_MAX:
            raise _Broken("overload", f"more than {UNANSWERED_MAX} reports before an answer")
        if self._confirming:
            self._confirming = False
            return (Confirmed(), Report(entries))
        return (Report(entries),)

    def _renew(self, stream: int, body: bytes) -> Sequence[Action]:
        self._renewals += 1
        if self._renewals > RENEWALS_MAX:
            raise _Broken("denied", f"more than {RENEWALS_MAX} renewals on one connection")
        return (Renew(decode_csr(body).csr),)

    def _bundle(self, stream: int, body: bytes) -> Sequence[Action]:
        said = decode_bundle(body) if body else None
        return (Trusts(said.have, said.cert),) if said is not None and said.have else (Roots(),)

    def _left(self, stream: int, body: bytes) -> Sequence[Action]:
        said = decode_goaway(body)
        self.state = "closed"
        return (Left(said.code[:64], said.message[:MESSAGE_CHARS_MAX]),)

    def _data(self, stream: int, body: bytes) -> Sequence[Action]:
        credit = (self._streams or {}).get(stream)
        if credit is None:
            return _NO_STREAM[wire.DATA]  # most often closed from here while it was under way
        if len(body) > credit:
            raise _Broken("protocol", f"{len(body)} bytes on stream {stream}, which had {credit} left")
        assert self._streams is not None
        self._streams[stream] = credit - len(body)
        return (StreamData(stream, body),)

    def _credit(self, stream: int, body: bytes) -> Sequence[Action]:
        count = decode_credit(body).c
        if stream not in (self._streams or {}):
            return _NO_STREAM[wire.CREDIT]
        return (StreamCredit(stream, count),)

    def _closed(self, stream: int, body: bytes) -> Sequence[Action]:
        error = decode_close(body).error
        if self._streams is None or self._streams.pop(stream, None) is None:
            return _NO_STREAM[wire.CLOSE]
        return (StreamClosed(stream, error),)

    # -- from the hub ---------------------------------------------------------------------------------------------------

    def digest(self) -> str:
        """Of the documents that the node should hold. Of one that is too large for it now it keeps the version that it
        said to have (PAIRS), or none."""
        documents, limit = self._wanted(), self._document_max
        versions = {key: d.version for key, d in documents.items() if d.size <= limit}
        if self._kept is not None:
            versions.update(self._kept)
        return digest_of(versions)

    def welcomed(self, answer: Answer) -> Sequence[Action]:
        """WELCOME has been sent with this answer."""
        if answer.sync == "hold":
            self.state = "hold"
            return ()
        self.state = "live"
        self._confirming = answer.taken_over
        self._expect_pairs = answer.sync == "diff"
        actions: list[Action] = []
        for key, document in self._wanted().items():
            if document.size > self._document_max:
                actions.append(self._refuse(key, *self._too_large(document)))
        return actions

    def pause(self) -> None:
        """The hub may not act for the slot at present."""
        if self.state == "live":
            self.state = "paused"

    def resume(self) -> Sequence[Action]:
        """It may again: sends what has changed meanwhile."""
        if self.state != "paused":
            return ()
        self.state = "live"
        return self.pump()

    def leave(self) -> None:
        """Another hub is about to own the slot: nothing new from here on, either way."""
        if self.state in LISTENING:
            self.state = "leaving"

    def park(self) -> None:
        """This hub does not act for the slot; what the connection was for is over, or has not begun."""
        if self.state != "closed":
            self.state = "parked"
            self._waiting = self._in_flight = self._streams = None
            self._in_flight_bytes = self._unanswered = 0

    def changed(self, key: str) -> None:
        """The desired version of `key` is another one; `pump` sends it."""
        if self.state in LISTENING and not self._expect_pairs:
            if SERVICES_FEATURE not in self.speaks and key.startswith(SPACE_PREFIXES):
                return
            if self._waiting is None:
                self._waiting = key
            else:
                self._wait(key)

    def pump(self) -> Sequence[Action]:
        """Sends what waits, as far as the window has room."""
        if self.state != "live" or self._expect_pairs:
            return ()
        waiting = self._waiting
        if type(waiting) is str and not self._in_flight and not self._syncing:
            return self._send_only(waiting)
        actions: list[Action] = []
        if waiting is not None:
            waiting = self._by_urgency()
            for keys in waiting:
                if keys and not self._send_waiting(keys, actions):
                    break
            if not any(waiting):
                self._waiting = None
        if self._syncing and self._waiting is None:
            self._syncing = False
            body = orjson.dumps({"digest": self.digest(), "r": self._shared.docs.revision})
            actions.append(Send(wire.frame(wire.SYNCED, body)))
        return actions

    def stored(
        self, numbers: Sequence[int], revision: int, refused: Sequence[tuple[int, str]]
    ) -> Sequence[Action]:
        """These entries are durable at `revision`, or refused for good."""
        self._unanswered -= len(numbers) + len(refused)
        if self.state not in ("live", "leaving"):
            return ()
        body = orjson.dumps({"n": numbers, "r": revision, "refused": refused})
        return (Send(wire.message(wire.STORED, body, 0, self._frame_max)),)

    def open_stream(self, options: Mapping[str, Any], credit: int) -> tuple[int, Sequence[Action]] | None:
        """Opens a stream: (its id, actions). None when the node has `streams_max` already, or is not live."""
        streams = self._streams
        if self.state != "live" or (streams is not None and len(streams) >= self._shared.streams_max):
            return None
        if streams is None:
            streams = self._streams = {}
        stream = self._next_stream
        while stream in streams:
            stream = (stream + 2) % STREAM_IDS_END
        self._next_stream = (stream + 2) % STREAM_IDS_END
        streams[stream] = credit
        body = orjson.dumps({**options, "credit": credit})
        return stream, (Send(wire.frame(wire.OPEN, body, stream)),)

    def grant(self, stream: int, credit: int) -> Sequence[Action]:
        """Allows that many bytes more on a stream."""
        if self._streams is None or stream not in self._streams or self.state not in LISTENING:
            return ()
        self._streams[stream] += credit
        return (Send(wire.frame(wire.CREDIT, b'{"c":%d}' % credit, stream)),)

    def put(self, stream: int, data: bytes) -> Sequence[Action]:
        """Bytes down a stream; at most `chunk_bytes`, and what the peer has granted."""
        if self._streams is None or stream not in self._streams or self.state != "live":
            return ()
        return (Send(wire.frame(wire.DATA, data, stream)),)

    @property
    def chunk_bytes(self) -> int:
        """The longest DATA that the peer takes."""
        return self._frame_max

    def close_stream(self, stream: int) -> Sequence[Action]:
        """Nobody reads it any more."""
        if self._streams is None or self._streams.pop(stream, None) is None or self.state == "closed":
            return ()
        return (Send(wire.frame(wire.CLOSE, b"{}", stream)),)

    # -- common -------------------------------------------------------------------------------------------------------

    def standing(self, key: str) -> tuple[str, str]:
        """How far a document that the node should hold has come, and why where that is not far: refused, sending, waiting,
        unknown (nothing is sent now, or it is not yet compared what the node has), held (acknowledged)."""
        if self.refused and key in self.refused:
            reason, message = self.refused[key]
            return "refused", f"{reason}: {message}"
        if self._in_flight is not None and key in self._in_flight:
            return "sending", ""
        waiting = self._waiting
        waits = waiting == key if isinstance(waiting, str) else any(key in keys for keys in waiting or ())
        if waits:
            return "waiting", ""
        if self.state != "live" or self._expect_pairs:
            return "unknown", f"the session is {self.state}" if self.state != "live" else ""
        return "held", ""

    def _wanted(self) -> Mapping[str, Document]:
        """What the node should hold, as far as its agent knows such documents."""
        return understood(self._shared.docs.of(self.node), self.speaks)

    def _end(self, code: str, message: str, sent: int, why: str) -> Sequence[Action]:
        self.state = "closed"
        self._waiting = self._in_flight = None
        return (Close(code, message[:MESSAGE_CHARS_MAX], sent=sent, why=why),)

    def _wait(self, key: str) -> None:
        urgency = PODS
        if not key.startswith("pod/"):
            urgency = CONFIGS if key in self._wanted() else OLD_CONFIGS
        waiting = self._by_urgency()
        if urgency != PODS:
            waiting[CONFIGS if urgency == OLD_CONFIGS else OLD_CONFIGS].pop(key, None)
        waiting[urgency][key] = None

    def _by_urgency(self) -> tuple[dict[str, None], dict[str, None], dict[str, None]]:
        waiting = self._waiting
        if not isinstance(waiting, tuple):
            self._waiting = ({}, {}, {})
            if waiting is not None:
                self._wait(waiting)
            return self._waiting
        return waiting

    def _send_only(self, key: str) -> Sequence[Action]:
        """`key` alone waits, and nothing is in flight: how a change reaches most of the nodes that it concerns."""
        shared = self._shared
        # `changed` lets no key wait that the agent does not know.
        document = shared.docs.of(self.node).get(key)
        last = shared.last_set
        self._waiting = None
        if (
            document is not None
            and document is last.document
            and last.revision == shared.docs.revision
            and document.size <= self._document_max
            and len(last.body) <= self._frame_max
        ):
            self._in_flight = {key: document}
            self._in_flight_bytes = document.size
            if shared.traces is not None and last.trace:
                shared.traces.sent(self.node, document)
            return last.alone
        actions: list[Action] = []
        self._in_flight = {}
        self._send_document(key, document, actions)
        return actions

    def _send_waiting(self, keys: dict[str, None], actions: list[Action]) -> bool:
        """False when the window is full."""
        shared = self._shared
        if self._in_flight is None:
            self._in_flight = {}
        wanted = self._wanted()
        for key in list(keys):
            if len(self._in_flight) >= shared.window:
                return False
            if key in self._in_flight:
                continue  # its acknowledgement calls `pump` again
            document = wanted.get(key)
            size = document.size if document is not None else 0
            if self._in_flight and self._in_flight_bytes + size > shared.window_bytes:
                return False
            del keys[key]
            self._send_document(key, document, actions)
        return True

    def _send_document(self, key: str, document: Document | None, actions: list[Action]) -> None:
        assert self._in_flight is not None
        revision = self._shared.docs.revision
        if document is not None and document.size > self._document_max:
            # The node keeps what it has of it: a version too large for it is no reason to take away the last good one.
            actions.append(self._refuse(key, *self._too_large(document)))
            return
        if document is None:
            if self._shared.docs.withhold(self.node, key):
                return
            body = orjson.dumps({"k": key, "r": revision})
            actions.append(Send(wire.frame(wire.DEL, body)))
        else:
            shared = self._shared
            send = shared.last_set.of(document, revision, shared.docs, self._frame_max, shared.traces)
            if send is None:
                return  # it has changed again, and `changed` will say so
            if shared.traces is not None and shared.last_set.trace:
                shared.traces.sent(self.node, document)
            actions.append(send)
            self._in_flight_bytes += document.size
        self._in_flight[key] = document

    def token(self, key: str, body: bytes) -> Sequence[Action]:
        """Sends a token (hub.tokens): no document of the desired state, so no window waits for it and nobody acknowledges it.
        Nothing while nothing may be sent: the node asks again."""
        if self.state != "live" or len(body) > self._document_max:
            return ()
        header = orjson.dumps({"k": key, "v": version_of(body), "r": self._shared.docs.revision})
        return (Send(wire.message(wire.SET, wire.set_body(header, body), 0, self._frame_max)),)

    def _landed(self, key: str, version: str, echoes: Collection[str], refused: str = "") -> bool:
        """An ACK or NACK has come; False when it is for nothing that is in flight."""
        if self._in_flight is None or key not in self._in_flight:
            return False
        document = self._in_flight[key]
        if version != (document.version if document is not None else ""):
            return False
        del self._in_flight[key]
        if document is not None:
            self._in_flight_bytes -= document.size
        if not self._in_flight:
            self._in_flight = None
        if self._shared.traces is not None:
            self._shared.traces.landed(self.node, key, version, echoes, refused)
        return True

    def _is_foreign(self, key: str) -> bool:
        return key not in (self._in_flight or ()) and key not in self._shared.docs.of(self.node)

    def _too_large(self, document: Document) -> tuple[str, str]:
        return (
            "DocumentTooLarge",
            f"the document has {document.size} bytes, this node takes at most {self._document_max}; make it smaller"
            " or use another node",
        )

    def _refuse(self, key: str, reason: str, message: str) -> Action:
        if self.refused is None:
            self.refused = {}
        if key in self.refused or len(self.refused) < REFUSALS_MAX:
            self.refused[key] = (reason, message)
        return Refusals(key, reason, message)


_HANDLERS: Final = {
    wire.HELLO: Session._hello,
    wire.PAIRS: Session._pairs_of_edge,
    wire.ACK: Session._ack,
    wire.NACK: Session._nack,
    wire.PING: lambda session, stream, body: (),
    wire.REPORT: Session._report_of_edge,
    wire.RENEW: Session._renew,
    wire.BUNDLE: Session._bundle,
    wire.GOAWAY: Session._left,
    wire.DATA: Session._data,
    wire.CREDIT: Session._credit,
    wire.CLOSE: Session._closed,
}
