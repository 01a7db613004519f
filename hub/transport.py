"""The edge port's sockets: non-blocking TLS connections on one epoll, registered in the event loop.

Job: accept, handshake, read, write, and end connections, within bounds; whoever speaks the protocol is the `Handler`.
Only the public `ssl` API. No task, timer or closure per connection: one sweep looks at all deadlines.

Invariants: nothing here blocks longer than one TLS handshake step (about 1 ms), and at most `handshakes_per_tick` of
those are made before the loop's other callbacks run. What is sent within one turn of the loop leaves in one write.
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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

log = logging.getLogger(__name__)

RECV_BYTES: Final = 16384
"""One TLS record: what one SSL_read returns at most."""
SHORT_BYTES: Final = 448
"""Most messages are shorter, and a bytes object of this size does not go through malloc."""
WRITE_BYTES: Final = 65536
EVENTS_PER_TICK: Final = 256
LISTEN_FD_PAUSE_S: Final = 1.0
LINGER_S: Final = 2.0
"""How long a closed connection may take to read what was sent before; closing at once could reset it away."""
LINGER_READS: Final = 16
"""What is thrown away of one closed connection before the others get their turn."""

HANDSHAKE, OPEN, LINGER, CLOSED = range(4)
_OUT: Final = select.EPOLLOUT
_READ: Final = select.EPOLLIN | select.EPOLLRDHUP
_WRITE: Final = _READ | _OUT


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Bounds of one edge port.

    connections_max: a process may open 20,000 descriptors here, and stores and clients need some.
    handshakes_max: connections whose handshake is not finished; one more, and the one that has taken longest is closed.
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
        "_port",
        "_writing",
        "backlog_bytes",
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
        self.heard = now
        self.idle_s = port.limits.hello_s
        self.deadline = now + port.limits.handshake_s
        self.out: list[bytes] | None = None
        self._chunk: bytes | None = None
        self._writing = False
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

    def set_idle(self, idle_s: float) -> None:
        """Without a byte for this long the connection counts as half-open and is closed."""
        self.idle_s = idle_s

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

    def connected(self, conn: Connection) -> None:
        """The handshake is done."""
        ...

    def received(self, conn: Connection, data: bytes) -> None: ...

    def closed(self, conn: Connection, reason: str) -> None:
        """The connection has ended, from either side; nothing can be sent any more."""
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
        self._handler = handler
        self._received = handler.received
        self._now = now
        self._turn = now()
        """When this turn of the loop began: one look at the clock for all that arrives in it."""
        self._connections: dict[int, Connection] = {}
        self._shaking: dict[int, Connection] = {}
        self._dirty: list[Connection] = []
        self._stalled: dict[Connection, float] = {}
        self._buffer = memoryview(bytearray(RECV_BYTES))
        self._listener: socket.socket | None = None
        self._listening = False
        self._paused_until = 0.0
        self._flush_due = False
        self._epoll: select.epoll | None = None

    def __len__(self) -> int:
        """Connections, those in the handshake included."""
        return len(self._connections)

    @property
    def shaking(self) -> int:
        """Connections whose handshake is not finished."""
        return len(self._shaking)

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
        self._listener = listener
        self._epoll = select.epoll()
        self._listen(True)
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._tick)
        address = listener.getsockname()
        return str(address[0]), int(address[1])

    def stop_accepting(self) -> None:
        """Closes the listening socket; connections stay."""
        if self._listener is not None:
            self._listen(False)
            self._listener.close()
            self._listener = None

    def close(self) -> None:
        """Ends everything at once."""
        self.stop_accepting()
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
            self.counters.close(reason)
            if conn.backlog_bytes == 0:
                self._half_close(conn)
            self._handler.closed(conn, reason)

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
        for conn in [
            c
            for c in self._connections.values()
            if (c.heard + c.idle_s if c.state == OPEN else c.deadline) < now
        ]:
            if conn.state == HANDSHAKE:
                self._drop(conn, "handshake-timeout")
            elif conn.state == LINGER:
                self._forget(conn)
            else:
                self._drop(conn, "idle")
        for conn in [c for c, since in self._stalled.items() if since + self.limits.stall_s < now]:
            self._drop(conn, "slow")
        if self._paused_until and now >= self._paused_until:
            self._paused_until = 0.0
            self._listen(True)

    # -- events -------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._flush_due = True  # at the end of this, not in a callback of its own
        try:
            self._serve()
        finally:
            self.flush()

    def _serve(self) -> None:
        assert self._epoll is not None
        self._turn = self._now()
        steps = self.limits.handshakes_per_tick
        listener_fd = self._listener.fileno() if self._listener is not None else -1
        connections = self._connections
        for fd, events in self._epoll.poll(0, EVENTS_PER_TICK):
            conn_or_none = connections.get(fd)
            if conn_or_none is None:
                if fd == listener_fd:
                    self._accept()
                continue
            conn = conn_or_none
            if conn.state == OPEN:
                if events & _OUT:
                    self._write(conn)
                    if events == _OUT or conn.state != OPEN:
                        continue
                self._read(conn)
            elif conn.state == HANDSHAKE:
                # Level-triggered: those beyond the budget are reported again in the next turn.
                if steps > 0:
                    steps -= 1
                    self._shake(conn)
            else:
                self._linger(conn, events)

    def _accept(self) -> None:
        assert self._listener is not None and self._epoll is not None
        for _ in range(self.limits.accepts_per_tick):
            try:
                raw, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as failure:
                # Out of descriptors or memory: the backlog waits, and those who are connected are served.
                log.warning("cannot accept edge connections for %.0f s: %s", LISTEN_FD_PAUSE_S, failure)
                self._listen(False)
                self._paused_until = self._now() + LISTEN_FD_PAUSE_S
                return
            self.counters.accepted += 1
            if len(self._connections) >= self.limits.connections_max:
                self.counters.refused += 1
                raw.close()
                continue
            self._begin(raw)

    def _begin(self, raw: socket.socket) -> None:
        assert self._epoll is not None
        if len(self._shaking) >= self.limits.handshakes_max:
            # Whoever never finishes is the oldest; whoever is honest needs two round trips.
            self._drop(next(iter(self._shaking.values())), "handshake-crowded")
        try:
            raw.setblocking(False)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock = self.context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
        except OSError as failure:
            log.debug("connection lost before its handshake: %s", failure)
            self.counters.close("handshake-failed")
            raw.close()
            return
        conn = Connection(self, sock, self._now())
        self._connections[conn.fd] = conn
        self._shaking[conn.fd] = conn
        self._epoll.register(conn.fd, _READ)

    def _shake(self, conn: Connection) -> None:
        assert self._epoll is not None
        try:
            conn.sock.do_handshake()
        except ssl.SSLWantReadError:
            self._epoll.modify(conn.fd, _READ)
            return
        except ssl.SSLWantWriteError:
            self._epoll.modify(conn.fd, _WRITE)
            return
        except ssl.SSLCertVerificationError as failure:
            # The peer has said HELLO already under TLS 1.3: a close with that unread would reset the alert away, and it
            # would not know that its certificate is the reason.
            log.debug("certificate of %s refused: %s", conn.peername(), failure)
            self.counters.close("handshake-failed")
            conn.state = LINGER
            conn.deadline = self._now() + LINGER_S
            self._epoll.modify(conn.fd, _READ)
            self._half_close(conn)
            return
        except (OSError, ValueError) as failure:
            log.debug("handshake with %s failed: %s", conn.peername(), failure)
            self._drop(conn, "handshake-failed")
            return
        self._epoll.modify(conn.fd, _READ)
        del self._shaking[conn.fd]
        self.counters.handshakes += 1
        conn.state = OPEN
        conn.heard = self._turn
        self._handler.connected(conn)
        if conn.state == OPEN:
            self._read(conn)

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
            assert self._epoll is not None
            self._epoll.modify(conn.fd, _READ)

    def _stall(self, conn: Connection, chunk: bytes) -> None:
        """The kernel takes no more: `chunk` is tried again when it does."""
        conn._chunk = chunk
        if conn not in self._stalled:
            assert self._epoll is not None
            self._epoll.modify(conn.fd, _WRITE)
            self._stalled[conn] = self._now()

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
        self._shaking.pop(conn.fd, None)
        self._stalled.pop(conn, None)
        self.backlog_bytes -= conn.backlog_bytes
        conn.backlog_bytes = 0
        conn.out = conn._chunk = None
        if self._epoll is not None:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(conn.fd)
        conn.sock.close()

    def _listen(self, on: bool) -> None:
        if self._listener is None or self._epoll is None or on == self._listening:
            return
        self._listening = on
        if on:
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        else:
            self._epoll.unregister(self._listener.fileno())


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
