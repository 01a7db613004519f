"""The edge port's sockets: non-blocking TLS connections on one epoll, registered in the event loop.

Job: read, write, and end connections, within bounds; `hub.handshakes` is the way in, and whoever speaks the protocol is the
`Handler`. Only the public `ssl` API. No task, timer or closure per connection: one sweep looks at all deadlines.

Invariants: nothing here blocks, and the loop's other callbacks run every TURN_S at least, or after one message more. What is
sent within one turn of the loop leaves in one write.
`Handler.closed` is called exactly once for every connection that `Handler.connected` has seen.

Why not asyncio's TLS: 25 KB and 14 µs per heartbeat against 37 KB and 30 µs.
"""

import asyncio
import contextlib
import logging
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from hub.deadlines import Bucket, Deadlines
from hub.handshakes import Handshakes
from hub.lobby import LobbyLimits

log = logging.getLogger(__name__)

RECV_BYTES: Final = 16384
"""One TLS record: what one SSL_read returns at most."""
SHORT_BYTES: Final = 448
"""Most messages are shorter, and a bytes object of this size does not go through malloc."""
WRITE_BYTES: Final = 65536
EVENTS_AT_ONCE: Final = 32
"""Looked at between two looks at the clock."""
TURN_S: Final = 0.01
"""How long the loop's other callbacks wait for the messages of connections."""
ENDED_AT_ONCE: Final = 16
"""Connections that their peers have ended, in one turn of the loop: each costs up to half a millisecond, and when a network is
cut all of them end at once, while those that stay want their heartbeats answered."""
SWEPT_AT_ONCE: Final = 128
"""Ended by one sweep before the loop's other callbacks run: all peers may be gone at once."""
LINGER_S: Final = 2.0
"""How long a closed connection may take to read what was sent before; closing at once could reset it away."""
LINGER_READS: Final = 16
"""What is thrown away of one closed connection before the others get their turn."""

HANDSHAKE, OPEN, LINGER, CLOSED = range(4)
_OUT: Final = select.EPOLLOUT
_READ: Final = select.EPOLLIN | select.EPOLLRDHUP
_ENDED: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Bounds of one edge port.

    connections_max: a process may open 20,000 descriptors here, and stores and clients need some.
    handshakes_max: connections whose handshake is not finished, half of them of known and half of unknown sources; others wait
        in the lobby.
    lobby: who begins a handshake, and who waits.
    handshakes_per_tick: each step takes up to 1 ms, and heartbeats wait meanwhile.
    handshake_s, hello_s: seconds that the handshake, and then the first message, may take.
    accepts_per_tick: accepted connections in one turn of the loop.
    backlog_bytes_max: unsent bytes of one connection; a slower reader is closed.
    backlog_total_bytes_max: the same over all; then whoever adds to a backlog above 64 KiB is closed.
    stall_s: seconds that a backlog may stand still.
    """

    connections_max: int = 18_000
    handshakes_max: int = 512
    handshakes_per_tick: int = 8
    handshake_s: float = 10.0
    hello_s: float = 10.0
    accepts_per_tick: int = 64
    backlog_bytes_max: int = 8 << 20
    backlog_total_bytes_max: int = 256 << 20
    stall_s: float = 90.0
    lobby: LobbyLimits = field(default_factory=LobbyLimits)


class Counters:
    """Plain numbers for metrics. `closed` counts by reason."""

    __slots__ = ("accepted", "bytes_in", "bytes_out", "closed", "handshakes", "refused")

    def __init__(self) -> None:
        self.accepted = 0
        self.handshakes = 0
        self.refused = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.closed: dict[str, int] = {}

    def close(self, reason: str) -> None:
        self.closed[reason] = self.closed.get(reason, 0) + 1


class Connection:
    """One peer. `owner` belongs to the handler. `heard` is when its last byte came (transport clock, seconds; all that
    arrives in one turn of the loop came at its beginning). `deadline` counts unless the connection is open; then it is
    `idle_s` after `heard`."""

    __slots__ = (
        "_chunk",
        "_ended",
        "_paused",
        "_port",
        "_writing",
        "backlog_bytes",
        "began",
        "bucket",
        "deadline",
        "fd",
        "heard",
        "idle_s",
        "out",
        "owner",
        "sock",
        "state",
    )

    def __init__(self, port: "EdgePort", sock: ssl.SSLSocket, now: float) -> None:
        self._port = port
        self.sock = sock
        self.fd = sock.fileno()
        self.state = HANDSHAKE
        self.owner: Any = None
        self.began = self.heard = now
        self.idle_s = port.limits.hello_s
        self.deadline = now + port.limits.handshake_s
        self.bucket: Bucket | None = None
        self.out: list[bytes] | None = None
        self._chunk: bytes | None = None
        self._writing = False
        self._paused = False
        self._ended = False
        self.backlog_bytes = 0

    def send(self, data: bytes) -> None:
        """Queues `data`; it leaves with everything else that is sent in this turn of the loop. After `close`: nothing."""
        if self.state == OPEN:
            self._port.queue(self, data)

    def answer(self, data: bytes) -> None:
        """Sends `data`, up to one TLS record, at once where nothing waits before it, else like `send`. For what is all
        that this turn has for the peer: it spares the queue, which costs as much as the rest of a heartbeat."""
        if self.backlog_bytes or self.state != OPEN or len(data) > RECV_BYTES:
            self.send(data)
            return
        port = self._port
        try:
            port.counters.bytes_out += self.sock.write(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            port.keep(self, data)
        except (OSError, ValueError) as failure:
            port.broke(self, failure)

    def close(self, reason: str) -> None:
        """Ends the connection once what was sent has left, or LINGER_S are over. `reason` is counted."""
        self._port.end(self, reason)

    def abort(self, reason: str) -> None:
        """Ends the connection at once; what waits to be sent never leaves. `reason` is counted."""
        self._port.abort(self, reason)

    def pause(self, seconds: float) -> None:
        """Reads nothing of the peer for that long: what it sends waits at its end, and nothing is lost. Meanwhile it does not
        count as idle. At most one pause at a time; `seconds` should be shorter than `idle_s`."""
        self._port.pause(self, seconds)

    def set_idle(self, idle_s: float) -> None:
        """Without a byte for this long the connection counts as half-open and is closed."""
        self.idle_s = idle_s
        if self.state == OPEN:
            self._port.deadlines.file(self)

    @property
    def due_at(self) -> float:
        """When its deadline is, on the transport's clock."""
        return self.heard + self.idle_s if self.state == OPEN else self.deadline

    def peercert(self) -> dict[str, Any] | None:
        """What `SSLSocket.getpeercert()` says: None without a certificate."""
        return self.sock.getpeercert() or None

    def peername(self) -> str:
        """The peer's address for logs."""
        try:
            host, port = self.sock.getpeername()[:2]
        except OSError:
            return "unknown"
        return f"{host}:{port}"


class Handler(Protocol):
    """Who speaks the protocol. All are called on the loop and must not block."""

    def admitting(self) -> bool:
        """Is anybody admitted at present? If not, handshakes are only made to say so."""
        ...

    def connected(self, conn: Connection) -> bool:
        """The handshake is done. True for one of ours: others from the same source are let in before strangers."""
        ...

    def unverified(self, conn: Connection, why: str) -> None:
        """The peer's certificate does not hold, in OpenSSL's words; the connection ends."""
        ...

    def received(self, conn: Connection, data: bytes) -> None: ...

    def closed(self, conn: Connection, reason: str) -> None:
        """The connection has ended, from either side; nothing can be sent any more."""
        ...

    def may_write(self, conn: Connection) -> bool:
        """Bytes that a slow reader left waiting could leave now, perhaps long after they were queued: may they? If not,
        the connection is dropped."""
        ...


class EdgePort:
    """A listening TLS port. `context` may be replaced at any time: new connections use it (rotation)."""

    def __init__(
        self,
        context: ssl.SSLContext,
        handler: Handler,
        limits: TransportLimits | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.context = context
        self.limits = limits or TransportLimits()
        self.counters = Counters()
        self.backlog_bytes = 0
        self.deadlines: Deadlines[Connection] = Deadlines()
        self._handler = handler
        self._received = handler.received
        self._now = now
        self._turn = now()
        """When this turn of the loop began: one look at the clock for all that arrives in it."""
        self._connections: dict[int, Connection] = {}
        self._handshakes = Handshakes(self, now)
        self._dirty: list[Connection] = []
        self._stalled: dict[Connection, float] = {}
        self._buffer = memoryview(bytearray(RECV_BYTES))
        self._sweeping: list[Connection] = []
        self._ended: deque[Connection] = deque()
        self._flush_due = False
        self._epoll: select.epoll | None = None

    def __len__(self) -> int:
        """Connections, those in the handshake included."""
        return len(self._connections)

    @property
    def shaking(self) -> int:
        """Connections whose handshake is not finished."""
        return self._handshakes.shaking

    @property
    def waiting(self) -> int:
        """Accepted sockets that wait for their handshake to begin."""
        return self._handshakes.waiting

    # -- life ---------------------------------------------------------------------------------------------------

    def open(self, host: str, port: int) -> tuple[str, int]:
        """Listens; port 0 picks a free one. Returns the address. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(1024)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        self._epoll = select.epoll()
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._tick)
        self._handshakes.open(listener)
        address = listener.getsockname()
        return str(address[0]), int(address[1])

    def stop_accepting(self) -> None:
        """Closes the listening socket; connections stay."""
        self._handshakes.stop_accepting()

    def close(self) -> None:
        """Ends everything at once."""
        self._handshakes.close()
        self.flush()
        for conn in list(self._connections.values()):
            self._drop(conn, "shutdown")
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    # -- what connections call ----------------------------------------------------------------------------------

    def queue(self, conn: Connection, data: bytes) -> None:
        """See Connection.send."""
        if conn.out is None:
            conn.out = [data]
        else:
            conn.out.append(data)
        conn.backlog_bytes += len(data)
        self.backlog_bytes += len(data)
        limits = self.limits
        if conn.backlog_bytes > limits.backlog_bytes_max or (
            self.backlog_bytes > limits.backlog_total_bytes_max and conn.backlog_bytes > WRITE_BYTES
        ):
            self._drop(conn, "slow")
            return
        if not conn._writing:
            conn._writing = True
            self._dirty.append(conn)
            if not self._flush_due:
                self._flush_due = True
                asyncio.get_running_loop().call_soon(self.flush)

    def keep(self, conn: Connection, data: bytes) -> None:
        """The kernel took nothing of `data`, and nothing waits before it."""
        conn.backlog_bytes = len(data)
        self.backlog_bytes += len(data)
        self._stall(conn, data)

    def pause(self, conn: Connection, seconds: float) -> None:
        """See Connection.pause."""
        if conn.state == OPEN and not conn._paused:
            conn._paused = True
            self._watch(conn)
            asyncio.get_running_loop().call_later(seconds, self._resume, conn)

    def _resume(self, conn: Connection) -> None:
        conn._paused = False
        if conn.state == OPEN:
            conn.heard = self._now()
            self._watch(conn)

    def _watch(self, conn: Connection) -> None:
        """Asks epoll for what the connection waits for; its end is always told."""
        assert self._epoll is not None
        if conn._ended:
            return
        self._epoll.modify(conn.fd, (0 if conn._paused else _READ) | (_OUT if conn in self._stalled else 0))

    def broke(self, conn: Connection, failure: Exception) -> None:
        """A read or write found the connection ended."""
        log.debug("connection of %s broke: %s", conn.peername(), failure)
        self._drop(conn, "broken")

    def end(self, conn: Connection, reason: str) -> None:
        """See Connection.close."""
        if conn.state == HANDSHAKE:
            self._drop(conn, reason)
        elif conn.state == OPEN:
            self._write(conn)
            if conn.state != OPEN:
                return
            conn.state = LINGER
            conn.deadline = self._now() + LINGER_S
            self.deadlines.file(conn)
            self.counters.close(reason)
            if conn.backlog_bytes == 0:
                self._half_close(conn)
            self._handler.closed(conn, reason)

    def abort(self, conn: Connection, reason: str) -> None:
        """See Connection.abort."""
        if conn.state in (HANDSHAKE, OPEN):
            self._drop(conn, reason)

    def flush(self) -> None:
        """Writes what was queued in this turn."""
        self._flush_due = False
        dirty, self._dirty = self._dirty, []
        write = self._write
        for conn in dirty:
            conn._writing = False
            if conn.state == OPEN:
                write(conn)

    def sweep(self) -> None:
        """Closes what is past its deadline; to be called every second or so."""
        now = self._now()
        idle = not self._sweeping
        self._sweeping = self.deadlines.overdue(now)
        if self._sweeping and idle:
            self._end_overdue()
        for conn in [c for c, since in self._stalled.items() if since + self.limits.stall_s < now]:
            self._drop(conn, "slow")
        self._handshakes.sweep()

    def _end_overdue(self) -> None:
        """A few in a turn of the loop."""
        now = self._now()
        some, self._sweeping = self._sweeping[:SWEPT_AT_ONCE], self._sweeping[SWEPT_AT_ONCE:]
        for conn in some:
            if conn.due_at >= now:
                continue  # it has spoken meanwhile
            if conn.state == HANDSHAKE:
                self._drop(conn, "handshake-timeout")
            elif conn.state == LINGER:
                self._forget(conn)
            elif conn.state == OPEN:
                self._drop(conn, "idle")
        if self._sweeping:
            asyncio.get_running_loop().call_soon(self._end_overdue)

    def admitting(self) -> bool:
        """See `Handler`."""
        return self._handler.admitting()

    # -- what handshakes come to ----------------------------------------------------------------------------------

    def begun(self, sock: ssl.SSLSocket) -> Connection:
        """A handshake has begun."""
        conn = Connection(self, sock, self._now())
        self._connections[conn.fd] = conn
        self.deadlines.file(conn)
        return conn

    def shaken(self, conn: Connection) -> bool:
        """The handshake is done; says whether it is one of ours, as the handler does."""
        assert self._epoll is not None
        self._epoll.register(conn.fd, _READ)
        self.counters.handshakes += 1
        conn.state = OPEN
        self._turn = conn.heard = self._now()
        self.deadlines.file(conn)
        ours = self._handler.connected(conn)
        if conn.state == OPEN:
            self._read(conn)
        return ours

    def unverified(self, conn: Connection, failure: ssl.SSLCertVerificationError) -> None:
        """The peer's certificate does not hold. It has said HELLO already under TLS 1.3: a close with that unread would reset
        the alert away, and it would not know that its certificate is the reason."""
        assert self._epoll is not None
        self._handler.unverified(conn, failure.verify_message)
        self.counters.close("handshake-failed")
        conn.state = LINGER
        conn.deadline = self._now() + LINGER_S
        self.deadlines.file(conn)
        self._epoll.register(conn.fd, _READ)
        self._half_close(conn)

    # -- events -------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._flush_due = True  # at the end of this, not in a callback of its own
        try:
            self._serve()
        finally:
            self.flush()

    def _serve(self) -> None:
        assert self._epoll is not None
        self._turn = now = self._now()
        until = now + TURN_S
        while now <= until:
            events = self._epoll.poll(0, EVENTS_AT_ONCE)
            self._take(events)
            if len(events) < EVENTS_AT_ONCE:
                return
            now = self._now()

    def _take(self, ready: Sequence[tuple[int, int]]) -> None:
        connections = self._connections
        for fd, events in ready:
            conn = connections.get(fd)
            if conn is None:
                continue
            if conn.state == OPEN:
                if events & _OUT:
                    self._write(conn)
                    if events == _OUT or conn.state != OPEN:
                        continue
                if events & _ENDED:
                    self._put_off(conn)
                else:
                    self._read(conn)
            elif conn.state == LINGER:
                self._linger(conn, events)

    def _put_off(self, conn: Connection) -> None:
        """The peer has sent its last, which is read after what others say."""
        assert self._epoll is not None
        conn._ended = True
        self._epoll.unregister(conn.fd)
        if not self._ended:
            asyncio.get_running_loop().call_soon(self._read_ended)
        self._ended.append(conn)

    def _read_ended(self) -> None:
        """A record each of a few that have ended; whoever had more to say has another turn."""
        self._turn = self._now()
        for _ in range(min(ENDED_AT_ONCE, len(self._ended))):
            conn = self._ended.popleft()
            if conn.state == OPEN:
                self._read(conn)
            if conn.state == OPEN:
                self._ended.append(conn)
        if self._ended:
            asyncio.get_running_loop().call_soon(self._read_ended)

    def _read(self, conn: Connection) -> None:
        """Takes one TLS record. OpenSSL holds none beyond it (no read-ahead), so level-triggered epoll reports what is left:
        there is no second read that finds nothing, whose exception would cost as much as a heartbeat."""
        try:
            # `read` and `write` are what `recv` and `send` of an SSLSocket call.
            data = conn.sock.read(SHORT_BYTES)
            if len(data) == SHORT_BYTES and conn.sock.pending():
                data += conn.sock.read(RECV_BYTES)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except (OSError, ValueError) as failure:
            self.broke(conn, failure)
            return
        if not data:
            self._drop(conn, "eof")
            return
        self.counters.bytes_in += len(data)
        conn.heard = self._turn
        self._received(conn, data)

    # -- writing ------------------------------------------------------------------------------------------------

    def _write(self, conn: Connection) -> None:
        """Sends until nothing is left or the kernel takes no more."""
        if (
            self._stalled
            and conn in self._stalled
            and conn.state == OPEN
            and not self._handler.may_write(conn)
        ):
            self._drop(conn, "fenced")
            return
        while True:
            # OpenSSL demands the same bytes again after WANT_WRITE, so a chunk is kept until it has left.
            chunk = conn._chunk
            if chunk is None:
                chunk = _next_chunk(conn)
                if chunk is None:
                    break
            try:
                n = conn.sock.write(chunk)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                self._stall(conn, chunk)
                return
            except (OSError, ValueError) as failure:
                self.broke(conn, failure)
                return
            conn._chunk = chunk[n:] if n < len(chunk) else None
            conn.backlog_bytes -= n
            self.backlog_bytes -= n
            self.counters.bytes_out += n
            if self._stalled and conn in self._stalled:
                self._stalled[conn] = self._now()
            if conn.out is None and conn._chunk is None:
                break
        if self._stalled and self._stalled.pop(conn, None) is not None:
            self._watch(conn)

    def _stall(self, conn: Connection, chunk: bytes) -> None:
        """The kernel takes no more: `chunk` is tried again when it does."""
        conn._chunk = chunk
        if conn not in self._stalled:
            self._stalled[conn] = self._now()
            self._watch(conn)

    # -- ending -------------------------------------------------------------------------------------------------

    def _half_close(self, conn: Connection) -> None:
        """Everything has been sent: say so, and wait for the peer's end so that nothing is reset away."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._forget(conn)

    def _linger(self, conn: Connection, events: int) -> None:
        if conn.backlog_bytes:
            if events & _OUT:
                self._write(conn)
                if conn.state == LINGER and conn.backlog_bytes == 0:
                    self._half_close(conn)
            elif events & (select.EPOLLHUP | select.EPOLLERR):
                self._forget(conn)
            if conn.backlog_bytes:
                return
        try:
            # After `shutdown` the socket reads raw bytes; they are thrown away.
            for _ in range(LINGER_READS):
                if conn.state != LINGER or conn.sock.recv_into(self._buffer) == 0:
                    break
            else:
                return
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except (OSError, ValueError):
            pass
        self._forget(conn)

    def _drop(self, conn: Connection, reason: str) -> None:
        """Ends the connection now; what it has not read is lost."""
        state = conn.state
        self._forget(conn)
        if state in (HANDSHAKE, OPEN):
            self.counters.close(reason)
        if state == OPEN:
            self._handler.closed(conn, reason)

    def _forget(self, conn: Connection) -> None:
        if conn.state == CLOSED:
            return
        conn.state = CLOSED
        self._connections.pop(conn.fd, None)
        self.deadlines.forget(conn)
        self._handshakes.forget(conn)
        self._stalled.pop(conn, None)
        self.backlog_bytes -= conn.backlog_bytes
        conn.backlog_bytes = 0
        conn.out = conn._chunk = None
        if self._epoll is not None:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(conn.fd)
        conn.sock.close()


def _next_chunk(conn: Connection) -> bytes | None:
    """Up to about WRITE_BYTES of what is queued, in one piece."""
    out = conn.out
    if not out:
        return None
    if len(out) == 1:
        conn.out = None
        return out[0]
    size = count = 0
    for piece in out:
        size += len(piece)
        count += 1
        if size >= WRITE_BYTES:
            break
    chunk = b"".join(out[:count])
    conn.out = out[count:] or None
    return chunk
