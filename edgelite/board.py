"""The agent's loop on a board: one connection, one session, the journal; what runs is the firmware's. Runs on MicroPython.

Everything that takes time is bounded, since a board has no second thread: a connection CONNECT_S, a wait for the hub WAIT_S
in a turn. Between two turns the firmware has its say (`turn` returns), and that is when it feeds its watchdog.

On the board's file system, in `directory`: what `edgelite join` made where the node was enrolled, and `journal`, made here.
`node.json` as it is; `identity.pem` and `bundle.pem` where the board's TLS reads PEM, else the same as `cert.der`, `key.der` and
`root.der`. What is in the journal runs at once; the clock has to be set before the board connects, for certificates are checked
against it. `edgelite.firmware` puts this together with functions and modules as workloads.

Not here: joining and renewing on the board, and roots that change; a board is given new files before its certificate ends.
"""

import json
import os
import select
import socket
import ssl
import time

from edgelite import wire
from edgelite.actions import Apply, Close, Delivered, Note, Send, Stream, Welcomed
from edgelite.backoff import Backoff
from edgelite.desired import DOCUMENT, Desired, compact
from edgelite.files import Files
from edgelite.hubs import Hubs
from edgelite.journal import Journal, JournalError, JournalFull
from edgelite.session import Identity, Session
from edgelite.upstream import COUNTER, PREFIX, Upstream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CONNECT_S = 15.0
WAIT_S = 1.0
READ_BYTES = 1024
MESSAGE_BYTES_MAX = 4096
EAGAIN = 11
JOURNAL_BYTES_MAX = 64 << 10
DOCUMENT_BYTES_MAX = 1024
FRAME_BYTES_MAX = 2048
EVENTS_MAX = 16
"""That wait for the hub: what a week without it may take of the journal."""
CLOCK_MIN = 1735689600
"""2025-01-01, unix seconds: a clock that shows less was never set."""
EPOCH_2000 = 946684800
"""What some boards count from, unix seconds."""


class BoardError(Exception):
    """The board cannot start; the message says what is missing."""


class Board:
    """on_document(key, document bytes, or None when it is to go) is called for every document, also at the start for
    those of the journal. admit(key, document) -> (reason, message) or None decides what is taken. say(text) is told what
    happens. clock(now): why it may not connect yet, "" when it may; by default whether the clock was ever set. `state` is waiting,
    connected, held or refused; `session` of the connection, if there is one. on_delivered(type, key, entry, reason): the hub has stored an upstream entry, or refused it for a
    reason; on_resync(): it may know nothing of what it was told; on_log(uid, container, tail): the log, None where there is none. See
    `edgelite.firmware` and `edgelite.boardwork`."""

    def __init__(
        self,
        directory: str,
        on_document: "Callable[[str, bytes | None], None]",
        admit: "Callable[[str, bytes], tuple[str, str] | None]",
        say: "Callable[[str], None]",
        clock: "Callable[[float], str] | None" = None,
    ) -> None:
        """Raises BoardError, OSError."""
        self._directory = directory
        self._on_document = on_document
        self._admit = admit
        self.on_delivered: "Callable[[str, str, bytes, str], None]" = lambda kind, key, entry, reason: None
        self.on_resync: "Callable[[], None]" = lambda: None
        self.on_log: "Callable[[str, str, int | None], bytes | None]" = lambda uid, container, tail: None
        self._say = say
        self._clock = clock or _clock_fault
        self._clock_said = ""
        try:
            with open(directory + "/node.json") as file:
                facts = json.loads(file.read())
            self._hub, edge = facts["hub"], facts["edge"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BoardError("no usable %s/node.json: enrol this node first (%r)" % (directory, error))
        self.journal = Journal(Files(), directory + "/journal", JOURNAL_BYTES_MAX)
        self.desired = Desired("board")
        self.upstream = Upstream(EVENTS_MAX)
        self.upstream.load(self.journal.items(PREFIX) + self.journal.items(COUNTER))
        self._inc, self._boot = self._incarnation()
        self._hubs = Hubs(edge, chance())
        self._backoff = Backoff()
        self._next_try = now()
        self._conn = 0
        self._socket: "Any" = None
        self.session: "Session | None" = None
        self._decoder = wire.Decoder()
        self._out = bytearray()
        self._answered = False
        self._closing: "Close | None" = None
        self.state = "waiting"
        for key, body in self.desired.load(self.journal.items("doc/") + self.journal.items("meta/")):
            on_document(key, body)

    def turn(self, wait_s: float = WAIT_S) -> None:
        """One turn of the loop; returns after at most CONNECT_S, mostly within `wait_s`."""
        if self._socket is None:
            self._settle_alone()
            if self.state == "refused" or now() < self._next_try:
                left = wait_s if self.state == "refused" else self._next_try - now()
                time.sleep(max(0.0, min(wait_s, left)))
            elif self._may_connect():
                self._connect()
            else:
                time.sleep(wait_s)
            return
        assert self.session is not None
        try:
            self._flush()
            data = self._read(wait_s)
            for kind, stream, body in self._decoder.feed(data) if data else []:
                self._answered = True
                self._perform(self.session.receive(kind, stream, body, now()))
            self._perform(self.session.tick(now()))
            self._settle()
            self._flush()
        except (OSError, wire.WireError) as error:
            self._closing = self._closing or Close("lost", "the connection is lost: %r" % (error,), 0.0)
        if self._closing is not None:
            self._end(self._closing)

    def report(self, kind: str, key: str, body: "dict[str, Any]") -> None:
        """Queues an upstream entry; the next turn journals and sends it. One that the journal has no room for is kept in memory."""
        try:
            self.journal.write(self.upstream.add(kind, key, body, False))
        except JournalFull as error:
            self._say(str(error))

    def close(self) -> None:
        """Leaves the hub. Raises JournalError when the journal cannot be written."""
        if self.session is not None:
            self._perform(self.session.goodbye("shutdown", "the board stops"))
            try:
                self._flush()
            except OSError:
                pass  # it will notice
        self._drop()
        self.journal.close()

    # The session

    def _settle(self) -> None:
        """Saved before it is acknowledged, applied or sent. A file system that fails delays all of that."""
        assert self.session is not None
        try:
            writes = self.session.writes()
            if writes:
                self.journal.write(writes)
            self.journal.sync()
        except JournalError as error:
            self._say("%s; nothing is acknowledged until it works again" % error)
            self._closing = self._closing or Close("failed", str(error), 30.0)
            return
        self._perform(self.session.commit(now()))

    def _perform(self, actions: "list[Any]") -> None:
        for action in actions:
            if isinstance(action, Send):
                self._out.extend(action.data)
            elif isinstance(action, Close):
                self._closing = self._closing or action
            elif isinstance(action, Apply):
                self._on_document(action.key, action.body)
            elif isinstance(action, Delivered):
                self.on_delivered(action.kind, action.key, action.entry, action.reason)
            elif isinstance(action, Stream):
                if action.kind == wire.OPEN:
                    self._answer(action.stream, action.body)
            elif isinstance(action, Welcomed):
                self._backoff.reset()
                self.state = "held" if action.hold else "connected"
                self._say(self.state + (": " + action.hold if action.hold else ""))
                if action.resync:
                    self.on_resync()
            elif isinstance(action, Note):
                self._say(action.message)

    def _admits(self, key: str, body: bytes) -> "tuple[str, str] | None":
        """As the agent of a large machine: an eighth of the journal is for status and what runs."""
        room = self.journal.live_bytes_max * 7 // 8 - self.journal.live_bytes
        if len(body) - len(self.journal.get(DOCUMENT + key) or b"") > max(0, room):
            return "JournalFull", "%d bytes are left in this board's journal" % max(0, room)
        return self._admit(key, body)

    def _answer(self, stream: int, request: "Any") -> None:
        """The one stream that a board has: a log, as it is now."""
        assert self.session is not None
        data = None
        if request.get("kind") == "log":
            data = self.on_log(str(request.get("pod")), str(request.get("container")), request.get("tail"))
        if data is None:
            error = {"code": "Unsupported", "message": "this board has no such stream, or no such container"}
            self._perform(self.session.stream(wire.CLOSE, stream, compact({"error": error})))
            return
        limit = request.get("limit")
        room = min(int(request.get("credit") or 0), len(data) if limit is None else int(limit))
        for at in range(0, min(room, len(data)), FRAME_BYTES_MAX // 2):
            piece = data[at : min(at + FRAME_BYTES_MAX // 2, room)]
            self._perform(self.session.stream(wire.DATA, stream, piece))
        self._perform(self.session.stream(wire.CLOSE, stream, b"{}"))

    def _settle_alone(self) -> None:
        """While nobody is connected what was reported and kept becomes durable too."""
        try:
            self.journal.sync()
            self.upstream.committed()
        except JournalError as error:
            self._say("%s" % error)

    def _may_connect(self) -> bool:
        fault = self._clock(now())
        if fault and fault != self._clock_said:
            self._say(fault)
        self._clock_said = fault
        return not fault

    def _incarnation(self, anew: bool = False) -> "tuple[str, int]":
        stored = json.loads(self.journal.get("meta/incarnation") or b"{}")
        self._begun_anew = anew
        if "inc" not in stored or self.journal.salvaged or anew:
            stored = {"inc": "".join(["%02x" % b for b in entropy(16)]), "fingerprint": "", "boot": 0}
        stored["boot"] += 1
        self.journal.put("meta/incarnation", compact(stored))
        self.journal.sync()
        return stored["inc"], stored["boot"]

    # The connection

    def _connect(self) -> None:
        address = self._hubs.next()
        raw = None
        self._answered, self._closing = False, None
        try:
            host, _, port = address.rpartition(":")
            where = socket.getaddrinfo(host.strip("[]"), int(port), 0, socket.SOCK_STREAM)[0]
            raw = socket.socket(where[0], socket.SOCK_STREAM)
            raw.settimeout(CONNECT_S)
            raw.connect(where[-1])
            self._socket = context(self._directory).wrap_socket(raw, server_hostname=self._hub)
            self._socket.setblocking(False)
        except (OSError, ValueError) as error:
            if raw is not None:
                raw.close()
            self._end(Close("connect", "cannot connect to %s: %r" % (address, error), 0.0))
            return
        self._conn += 1
        identity = Identity(self._inc, self._boot, self._conn, DOCUMENT_BYTES_MAX, FRAME_BYTES_MAX)
        self.session = Session(self.desired, self.upstream, identity, self._admits, self.journal.get)
        self.session.redirects, self.session.unreached = self._hubs.redirects, self._hubs.unreached
        self._decoder = wire.Decoder(FRAME_BYTES_MAX, MESSAGE_BYTES_MAX)
        self._perform(self.session.start(now()))

    def _read(self, wait_s: float) -> bytes:
        """What has come, b"" when nothing did within `wait_s`. Raises OSError at the end of the connection."""
        data = _unless_blocked(self._socket.read, READ_BYTES)
        if data is None:  # TLS may hold bytes that the socket no longer shows
            poller = select.poll()
            poller.register(self._socket, select.POLLIN)
            assert self.session is not None
            poller.poll(int(1000 * max(0.0, min(wait_s, self.session.deadline() - now()))))
            data = _unless_blocked(self._socket.read, READ_BYTES)
        if data == b"":
            raise OSError("the hub closed the connection")
        return data or b""

    def _flush(self) -> None:
        while self._out:
            sent = _unless_blocked(self._socket.write, self._out)
            if not sent:
                return
            self._out = self._out[sent:]

    def _end(self, closed: Close) -> None:
        """The connection is over, or did not come about: when and where comes the next?"""
        session = self.session
        served = session is not None and session.welcomed_at is not None
        if closed.code == "superseded" and not served and not self._begun_anew:
            # The journal has lost its end, boot counts among it; see `Agent.outdated`.
            self._inc, self._boot = self._incarnation(anew=True)
            self.on_resync()
            closed = Close("outdated", closed.message, 0.0)
        served_s = now() - session.welcomed_at if served and session is not None else 0.0  # type: ignore[operator]
        self._drop()
        self._say("not connected: %s" % closed.message)
        if closed.to and self._hubs.redirected(closed.to, served_s):
            return
        if not closed.to and self._hubs.ended(self._answered):
            return
        self._hubs.rested()
        self.state = "refused" if closed.retry_s is None else "waiting"
        self._next_try = now() + max(closed.retry_s or 0.0, self._backoff.next(chance()))

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = self.session = None
        self._out = bytearray()
        if self.state != "refused":
            self.state = "waiting"


def context(directory: str) -> "Any":
    """What a connection proves itself with and whom it trusts. Raises OSError, ValueError."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.verify_mode = ssl.CERT_REQUIRED  # on a board the default is none
    if Files().exists(directory + "/cert.der"):
        made.load_cert_chain(directory + "/cert.der", directory + "/key.der")
        root = "/root.der"
    else:
        made.load_cert_chain(directory + "/identity.pem", directory + "/identity.pem")
        root = "/bundle.pem"
    with open(directory + root, "rb") as file:
        data = file.read()
    # CPython takes text for PEM.
    made.load_verify_locations(cadata=data.decode() if root == "/bundle.pem" else data)
    return made


def _unless_blocked(call: "Callable[[Any], Any]", argument: "Any") -> "Any":
    """What `call` returns, None where it would block."""
    try:
        return call(argument)
    except OSError as error:
        wants = (getattr(ssl, "SSLWantReadError", None), getattr(ssl, "SSLWantWriteError", None))
        if type(error) in wants or (error.args and error.args[0] == EAGAIN):
            return None
        raise


def _clock_fault(at: float) -> str:
    if unix_time() < CLOCK_MIN:
        return "the clock is not set: set it (NTP, or an RTC), for TLS needs it"
    return ""


def now() -> float:
    """Seconds on a clock that does not step."""
    if hasattr(time, "monotonic"):
        return time.monotonic()
    return time.ticks_ms() / 1000.0  # type: ignore[attr-defined,no-any-return]


def unix_time() -> float:
    """Unix seconds; MicroPython's ports count from 1970 or from 2000."""
    return time.time() + (EPOCH_2000 if time.gmtime(0)[0] == 2000 else 0)


def entropy(size: int) -> bytes:
    """Random bytes."""
    return os.urandom(size)


def chance() -> float:
    """A number in [0, 1): for jitter."""
    return int.from_bytes(entropy(2), "big") / 65536.0
