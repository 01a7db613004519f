"""One simulated agent: the agent's own session core, codec, back-off and choice of hubs, on a socket of the fleet's epoll.

What it is told is acknowledged at once, for there is no disk, and a pod "runs" as soon as its document is here. States:
`idle` (not started), `waiting` (for its turn or a back-off), `connecting`, `shaking`, `greeting` (HELLO is out), `syncing`,
`synced`, `held` (the hub's word is not taken, or it holds the node), `refused` (told not to come back).
"""

import contextlib
import errno
import json
import math
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from edgelite import wire
from edgelite.actions import Apply, Bundle, Close, Delivered, Renewed, Send, Stream, Welcomed
from edgelite.backoff import Backoff
from edgelite.channel import split_address
from edgelite.desired import Desired
from edgelite.hubs import REDIRECTS_MAX, Hubs
from edgelite.session import Identity, Session
from edgelite.upstream import Upstream
from hub.simulate.repeated import LastSet, SimSession, stamp_of

if TYPE_CHECKING:
    from hub.simulate.fleet import Fleet

READ_BYTES: Final = 16384
"""One TLS record."""
SHORT_BYTES: Final = 4096
"""Most messages are shorter, and no room is made for more."""
SLOW_BYTES: Final = 512
LINGER_S: Final = 2.0
"""How long what was said last may take to leave."""
CONNECT_S: Final = 20.0
"""How long a connection may take until its HELLO is out, as for agents."""
_RESET: Final = struct.pack("ii", 1, 0)
NOT_SIMULATED: Final = b'{"error":{"code":"NotSupported","message":"simulated nodes have nothing to show"}}'

IDLE, WAITING, CONNECTING, SHAKING, GREETING, SYNCING, SYNCED, HELD, REFUSED = (
    "idle", "waiting", "connecting", "shaking", "greeting", "syncing", "synced", "held", "refused",
)  # fmt: skip
DELAYED, SILENT = 1, 2
"""Why a socket is left alone: what arrives is looked at later; nothing passes either way."""
OPENING: Final = (CONNECTING, SHAKING, GREETING)
STATES: Final = (IDLE, WAITING, *OPENING, SYNCING, SYNCED, HELD, REFUSED)


class SimNode:
    """See the module. `due`: when `Fleet` calls `tick` at the latest, and `scheduled`: when it looks. `pods`: by document key,
    what is reported of each. `context`: the TLS context that it keeps, None where it shares one."""

    __slots__ = (
        "_backoff", "_begun_at", "_closing", "_conn", "_decoder", "_desired", "_fleet", "_hubs", "_inc", "_key_pem", "_out",
        "_pinged_at", "_reported", "_served_at", "_session", "_ticket", "_told", "_upstream", "context", "due", "fd", "name", "paused",
        "pods", "scheduled", "slow", "sock", "state", "wants_write",
    )  # fmt: skip

    def __init__(self, fleet: "Fleet", name: str, inc: str, slow: bool) -> None:
        self._fleet = fleet
        self.name = name
        self.slow = slow
        self.state = IDLE
        self.due = 0.0
        self.scheduled = math.inf
        self.paused = 0
        self.wants_write = False
        self.sock: socket.socket | None = None
        self.fd = -1
        self.pods: dict[str, dict[str, Any]] = {}
        self.context: ssl.SSLContext | None = None
        self._inc = inc
        self._conn = 0
        self._hubs = Hubs(fleet.hub, fleet.random())
        self._backoff = Backoff()
        self._desired = Desired("sim")
        self._upstream = Upstream()
        self._session: SimSession | None = None
        self._decoder = wire.Decoder()
        self._out: list[bytes] = []
        self._closing: Close | None = None
        self._ticket: tuple[ssl.SSLSession, ssl.SSLContext] | None = None
        self._key_pem = ""
        self._begun_at = self._served_at = self._pinged_at = 0.0
        self._reported = self._told = False

    # -- the connection's life ----------------------------------------------------------------------------------------

    def connect(self, now: float) -> None:
        """Begins a connection where the hub is said to be."""
        self._begun_at, self._served_at, self._pinged_at = now, 0.0, 0.0
        self._closing, self._session, self._out, self._decoder = None, None, [], wire.Decoder()
        self.state, self.due = CONNECTING, now + CONNECT_S
        self._fleet.tally.counts["connects"] += 1
        try:
            self.sock = self._fleet.dial(split_address(self._hubs.next()))
        except (OSError, ValueError) as failure:
            self._end(now, f"connect: {_word(failure)}")
            return
        self.fd, self.wants_write, self.paused = self.sock.fileno(), True, 0
        self._fleet.watch(self)
        self._fleet.schedule(self)

    def cut(self, now: float) -> None:
        """The link breaks; the node comes back as agents do."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                # A reset, so that the port is free at once.
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._end(now, "cut")

    def close(self) -> None:
        """Ends the connection for good."""
        if self.sock is not None:
            self._fleet.unwatch(self)
            self.sock.close()
            self.sock = None
        # A pause that is still to end is not of the next connection.
        self.fd, self.paused = -1, 0
        self.state = IDLE

    def _end(self, now: float, why: str) -> None:
        """The connection is over: when the next one begins."""
        fleet, closing, session = self._fleet, self._closing, self._session
        fleet.tally.counts[f"ended: {closing.code if closing else why}"] += 1
        if session is not None and session.welcomed_at is not None:
            if isinstance(self.sock, ssl.SSLSocket):
                ticket = self.sock.session
                self._ticket = None if ticket is None else (ticket, self.sock.context)
            if now - session.welcomed_at >= session.heartbeat_s:
                self._backoff.reset()
        else:
            self._ticket = None
        answered = self.state not in (CONNECTING, SHAKING)
        self.close()
        self._session = None
        if closing is not None and closing.to:
            served_s = now - self._served_at if self._served_at else 0.0
            if self._hubs.redirected(closing.to, served_s):
                fleet.tally.counts["redirects"] += 1
                fleet.follow(self, now)
                return
            closing = Close("redirect", f"redirected more than {REDIRECTS_MAX} times")
        elif self._hubs.ended(answered):
            fleet.enqueue(self, now)
            return
        self._hubs.rested()
        if closing is not None and closing.retry_s is None:
            self.state = REFUSED
            fleet.note(f"{self.name} is refused ({closing.code}): {closing.message}")
            return
        least_s = closing.retry_s or 0.0 if closing is not None else 0.0
        chance = fleet.random()
        fleet.enqueue(self, now + max(self._backoff.next(chance), least_s * (1 + chance / 5)))

    # -- what epoll tells ---------------------------------------------------------------------------------------------

    def ready(self, now: float) -> None:
        """The socket can be read or written."""
        try:
            if self.state == CONNECTING:
                self._connected()
            if self.state == SHAKING:
                self._shake(now)
            else:
                self._read(now)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except (OSError, ValueError) as failure:
            step = {CONNECTING: "connect", SHAKING: "tls"}.get(self.state, "lost")
            self._end(now, f"{step}: {_word(failure)}")
        self._flush(now)

    def _connected(self) -> None:
        assert self.sock is not None
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, errno.errorcode.get(code, str(code)))
        self.sock = self._fleet.wrap(self, self.sock, self._ticket)
        self.state, self.wants_write = SHAKING, False
        self._fleet.watch(self)

    def _shake(self, now: float) -> None:
        assert isinstance(self.sock, ssl.SSLSocket)
        self.sock.do_handshake()
        fleet = self._fleet
        fleet.tally.counts["handshakes"] += 1
        fleet.tally.counts["resumed"] += bool(self.sock.session_reused)
        self._ticket = None
        self._conn += 1
        session = self._session = SimSession(
            self._desired,
            self._upstream,
            Identity(self._inc, 1, self._conn, trust=fleet.trust),
            _admit,
            _nothing,
        )
        session.redirects, session.unreached = self._hubs.redirects, self._hubs.unreached
        self.state = GREETING
        self._act(session.start(now), now)
        self.due = session.deadline()
        fleet.schedule(self)

    def _read(self, now: float) -> None:
        assert isinstance(self.sock, ssl.SSLSocket)
        # One record: OpenSSL holds none beyond it, and epoll tells of the rest.
        data = self.sock.read(SLOW_BYTES if self.slow else SHORT_BYTES)
        if len(data) == SHORT_BYTES and self.sock.pending():
            data += self.sock.read(READ_BYTES)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "closed")
        self._fleet.tally.counts["bytes received"] += len(data)
        session = self._session
        if session is None or self._closing is not None:
            return
        last = self._fleet.last_set
        if data == last.data and self._took_again(session, last, now):
            return
        try:
            messages = self._decoder.feed(data)
        except wire.WireError as broken:
            self._act(session.goodbye("frame", str(broken)), now)
            return
        for kind, stream, body in messages:
            self._take(session, kind, stream, body, now)
        if messages:
            if self._closing is None:
                self.due = session.deadline()
                self._fleet.schedule(self)
            # What would be journalled is forgotten: a simulated disk is always right.
            session.writes()
            actions = session.commit(now)
            self._act(actions, now)
            if len(messages) == 1 and messages[0][0] == wire.SET:
                self._fleet.last_set = LastSet.of(data, messages[0][2], actions) or last
            if self._told:
                # What the documents gave to report.
                self._told = False
                self._act(session.commit(now), now)
            if self.state == SYNCING and self._closing is None and any(m[0] == wire.SYNCED for m in messages):
                self._live(now)
        if self.slow:
            self._fleet.pause(self, now + len(data) / self._fleet.slow_bytes_s)

    def _took_again(self, session: SimSession, last: LastSet, now: float) -> bool:
        """Whether a SET that another node has just had could be taken as that node has taken it."""
        if (
            self.state != SYNCED
            or self.slow
            or self._decoder.held_bytes()
            or not session.take_again(last, now)
        ):
            return False
        self._fleet.tally.counts["documents"] += 1
        self._fleet.delivered(last.kind, last.at_ns, now)
        self._out.append(last.ack)
        return True

    def _take(self, session: Session, kind: int, stream: int, body: bytes, now: float) -> None:
        if kind == wire.PONG and self._pinged_at:
            self._fleet.tally.time("heartbeat", now - self._pinged_at)
            self._pinged_at = 0.0
        actions = session.receive(kind, stream, body, now)
        if kind == wire.WELCOME and session.state == "live":
            # PAIRS follow where something differs, and then SYNCED; else the digests match.
            differs = any(isinstance(a, Send) and a.data[0] == wire.PAIRS for a in actions)
            self.state = SYNCING
            if not differs:
                self._live(now)
        self._act(actions, now)

    def _live(self, now: float) -> None:
        self.state = SYNCED
        self._fleet.synced(now, now - self._begun_at)

    def tick(self, now: float) -> None:
        """Time has passed."""
        session = self._session
        if session is None:
            if self.sock is not None:
                self._end(now, "connect: timeout")
            return
        if self._closing is not None:
            self._end(now, "closed")
            return
        self.due = now + LINGER_S
        self._act(session.tick(now), now)
        if self._closing is None:
            self.due = session.deadline()
        self._fleet.schedule(self)
        self._flush(now)

    # -- what the session wants ---------------------------------------------------------------------------------------

    def _act(self, actions: list[Any], now: float) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._out.append(action.data)
                if action.data[0] == wire.PING:
                    self._pinged_at = now
            elif isinstance(action, Apply):
                self._apply(action.key, action.body, now)
            elif isinstance(action, Delivered):
                self._fleet.tally.counts["reports refused" if action.reason else "reports stored"] += 1
                if action.reason:
                    self._fleet.note(
                        f"the hub refused a report of {self.name} on {action.key}: {action.reason}"
                    )
            elif isinstance(action, Welcomed):
                self._welcomed(action, now)
            elif isinstance(action, Close):
                self._closing = self._closing or action
                self.due = now + LINGER_S
                self._fleet.schedule(self)
            elif isinstance(action, Stream) and action.kind == wire.OPEN and self._session is not None:
                self._act(self._session.stream(wire.CLOSE, action.stream, NOT_SIMULATED), now)
            elif isinstance(action, Renewed | Bundle):
                self._install(action, now)

    def _welcomed(self, action: Welcomed, now: float) -> None:
        self._served_at = now
        self._fleet.tally.time("welcomed", now - self._begun_at)
        if action.hold:
            self.state = HELD
            self._fleet.note(f"{self.name} is held: {action.hold}")
            return
        if not self._reported or action.resync:
            self._reported = True
            self._tell("node", "node", self._fleet.node_report)
        if action.resync:
            for key, status in self.pods.items():
                self._tell("pod", key, status)

    def _install(self, action: Renewed | Bundle, now: float) -> None:
        fleet, session = self._fleet, self._session
        if session is None:
            return
        if isinstance(action, Renewed):
            fleet.renewed(self, action.cert, self._key_pem, action.bundle)
            self._key_pem = ""
        else:
            fleet.trust_roots(action.roots)
        self._act(session.installed(fleet.trust, fleet.mark(self.name)), now)
        if isinstance(action, Bundle) and action.renew:
            request, self._key_pem = fleet.new_request()
            self._act(session.renew(request), now)

    def _apply(self, key: str, body: bytes | None, now: float) -> None:
        self._fleet.tally.counts["documents"] += 1
        if body is not None and self.state == SYNCED:
            self._fleet.delivered(key.partition("/")[0], stamp_of(body), now)
        if key.startswith("pod/"):
            self._pod(key, body)

    def _pod(self, key: str, body: bytes | None) -> None:
        if body is None:
            self.pods.pop(key, None)
            return
        document = json.loads(body)
        if "del" in document:
            self.pods.pop(key, None)
            self._tell("gone", key, {})
        elif key not in self.pods:
            names = tuple(str(c["name"]) for c in document["spec"]["containers"])
            # Since it was made, not since this process has it: a simulator that is started again tells nothing new, as agents
            # do whose pods have gone on.
            self.pods[key] = _shared_status(names, (stamp_of(body) or time.time_ns()) // 10**9)
            self._tell("pod", key, self.pods[key])

    def _tell(self, kind: str, key: str, body: dict[str, Any]) -> None:
        self._upstream.add(kind, key, body)
        self._told = True

    def churn_of(self, count: int) -> Callable[[float], None]:
        """What gives one of its pods another status: the `count`th change of all."""

        def churn(now: float) -> None:
            session, key = self._session, next(iter(self.pods))
            # Each in its turn, and never in place: many pods share one.
            self.pods[key] = status = {**self.pods.pop(key), "message": f"{count:08d}"}
            self._upstream.add("pod", key, status)
            if session is not None and self._closing is None:
                self._act(session.commit(now), now)
                self._flush(now)

        return churn

    # -- writing ------------------------------------------------------------------------------------------------------

    def _flush(self, now: float) -> None:
        """Writes what waits; ends the connection once all has left where it is to end."""
        if self.paused == SILENT or not isinstance(self.sock, ssl.SSLSocket) or self.state == SHAKING:
            return
        try:
            while self._out:
                data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
                self._out = [data]  # OpenSSL demands the same bytes again where it can take none
                sent = self.sock.write(data)
                self._fleet.tally.counts["bytes sent"] += sent
                self._out = [data[sent:]] if sent < len(data) else []
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except (OSError, ValueError) as failure:
            self._end(now, f"lost: {_word(failure)}")
            return
        if bool(self._out) != self.wants_write:
            self.wants_write = bool(self._out)
            self._fleet.watch(self)
        if self._closing is not None and not self._out:
            self._end(now, "closed")


def running_status(containers: Sequence[str] = ("main",), since: float | None = None) -> dict[str, Any]:
    """A PodStatus as an agent reports it for a pod that runs; `since`: unix seconds, None: now."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since))
    return {
        "phase": "Running",
        "startTime": now,
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
        "containerStatuses": [
            {
                "name": name,
                "ready": True,
                "started": True,
                "restartCount": 0,
                "image": "none",
                "imageID": "",
                "state": {"running": {"startedAt": now}},
            }
            for name in containers
        ],
    }


@lru_cache(maxsize=1024)
def _shared_status(containers: tuple[str, ...], since: int) -> dict[str, Any]:
    """One object for all pods that look alike: 2 KB each, and a simulator has a million. Not to be changed."""
    return running_status(containers, since)


def node_report() -> dict[str, Any]:
    """The `node` entry of a simulated node: room for 250 pods."""
    room = {"cpu": "64", "memory": "64Gi", "pods": "250"}
    return {
        "capacity": room,
        "allocatable": room,
        "nodeInfo": {"operatingSystem": "linux", "architecture": "amd64", "kubeletVersion": "sim"},
        "addresses": [],
        "labels": {"cloudhub.dev/board": "sim", "kubernetes.io/os": "linux"},
        "conditions": [],
    }


def _admit(key: str, document: bytes) -> None:
    """Every document is taken."""


def _nothing(key: str) -> None:
    """Nothing lies in the journal."""


def _word(failure: Exception) -> str:
    """Why, short and of few kinds: it becomes the name of a count."""
    if isinstance(failure, ssl.SSLCertVerificationError):
        return failure.verify_message or "certificate"
    if isinstance(failure, ssl.SSLError):
        return (failure.reason or type(failure).__name__).lower()
    if isinstance(failure, OSError) and failure.errno is not None:
        return errno.errorcode.get(failure.errno, str(failure.errno))
    return type(failure).__name__
