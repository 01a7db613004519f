"""The TLS connection to the hub on `edgelite.loop`: never blocks, bounded both ways, only the public ssl API.

One task owns a channel: it connects, waits, receives and flushes; others only `send`. Names are resolved on a helper
thread, since getaddrinfo blocks for as long as DNS likes.

Bounds: OUT_BYTES_MAX waiting to be sent (then the link is too slow and is given up), RECEIVE_BYTES_MAX read per turn,
ADDRESSES_MAX addresses tried within the caller's deadline.
"""

import os
import socket
import ssl
from collections import deque

from edgelite.loop import POLLIN, POLLOUT, Wait, wakeup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from edgelite.loop import Loop

OUT_BYTES_MAX = 8 << 20
RECEIVE_BYTES_MAX = 256 << 10
CHUNK_BYTES = 64 << 10
ADDRESSES_MAX = 4
RESOLVERS_MAX = 4

_resolving = [0]


class ChannelError(Exception):
    """The connection could not be made, or is lost. `code`: resolve, connect, certificate, expired (this
    node's certificate has, as the hub says), tls, timeout, lost, slow."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Channel:
    """One connection. `server_name` is the DNS name the hub's certificate must carry; `ticket` resumes an earlier
    connection of the same context, which halves the hub's cost of the handshake."""

    def __init__(
        self,
        loop: "Loop",
        context: "ssl.SSLContext",
        server_name: str,
        ticket: "ssl.SSLSession | None" = None,
    ) -> None:
        self._ticket = ticket
        self._loop = loop
        self._context = context
        self._server_name = server_name
        self._socket: "ssl.SSLSocket | None" = None
        self._out: "deque[bytes]" = deque()
        self._read_wants_write = False
        self._write_wants_read = False
        self.out_bytes = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self.local_address = ""

    def connect(self, host: str, port: int, deadline: float) -> "Generator[Wait, bool, None]":
        """Generator. Resolves, connects and finishes the TLS handshake. Raises ChannelError."""
        addresses = yield from resolve(self._loop, host, port, deadline)
        last = ChannelError("resolve", "%s has no address" % host)
        for index, (family, address) in enumerate(addresses):
            left = max(0.0, deadline - self._loop.now())
            share = self._loop.now() + left / (len(addresses) - index)
            try:
                yield from self._attempt(family, address, share)
                return
            except ChannelError as error:
                self.close()
                last = error
                if error.code in ("certificate", "expired", "tls"):
                    break  # it answered: trying another address of the same name would not help
        raise last

    def _attempt(self, family: int, address: "Any", deadline: float) -> "Generator[Wait, bool, None]":
        where = "%s:%d" % (address[0], address[1])
        raw = socket.socket(family, socket.SOCK_STREAM)
        try:
            raw.setblocking(False)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                raw.connect(address)
            except BlockingIOError:
                if not (yield Wait(raw.fileno(), POLLOUT, deadline)):
                    raise ChannelError("timeout", "%s does not answer" % where) from None
                number = raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    raise OSError(number, os.strerror(number)) from None
            self._socket = self._context.wrap_socket(
                raw,
                server_hostname=self._server_name,
                do_handshake_on_connect=False,
                session=self._ticket,
            )
        except OSError as error:
            raw.close()
            raise ChannelError("connect", "cannot connect to %s: %s" % (where, error)) from error
        except BaseException:
            raw.close()
            raise
        yield from self._handshake(where, deadline)
        self.local_address = str(self._socket.getsockname()[0])

    def _handshake(self, where: str, deadline: float) -> "Generator[Wait, bool, None]":
        assert self._socket is not None
        while True:
            try:
                self._socket.do_handshake()
                return
            except ssl.SSLWantReadError:
                events = POLLIN
            except ssl.SSLWantWriteError:
                events = POLLOUT
            except ssl.SSLCertVerificationError as error:
                raise ChannelError(
                    "certificate",
                    "%s is not this node's hub (%s): %s; check the address and this machine's clock"
                    % (where, self._server_name, error.verify_message),
                ) from error
            except ssl.SSLError as error:
                code = "expired" if "certificate expired" in _reason(error) else "tls"
                raise ChannelError(code, "TLS with %s failed: %s" % (where, _reason(error))) from error
            except OSError as error:
                raise ChannelError(
                    "lost", "%s closed the connection in the handshake: %s" % (where, error)
                ) from error
            if not (yield Wait(self._socket.fileno(), events, deadline)):
                raise ChannelError("timeout", "%s did not finish the TLS handshake" % where)

    @property
    def resumed(self) -> bool:
        return self._socket is not None and bool(self._socket.session_reused)

    def ticket(self) -> "ssl.SSLSession | None":
        """What resumes this connection later; TLS 1.3 has it only once something was received."""
        return self._socket.session if self._socket is not None else None

    def wait(self, deadline: "float | None") -> "Generator[Wait, bool, bool]":
        """Generator. Waits until there is something to read, room to write what waits, a wake-up, or `deadline`."""
        if self._socket is None:
            raise ChannelError("lost", "the connection is closed")
        if self._socket.pending():
            return True
        events = POLLIN
        if self._read_wants_write or (self._out and not self._write_wants_read):
            events |= POLLOUT
        ready = yield Wait(self._socket.fileno(), events, deadline)
        return ready

    def receive(self) -> bytes:
        """What has arrived, at most RECEIVE_BYTES_MAX; b"" when nothing has. Raises ChannelError at the end."""
        if self._socket is None:
            raise ChannelError("lost", "the connection is closed")
        parts: "list[bytes]" = []
        size = 0
        self._read_wants_write = False
        while size < RECEIVE_BYTES_MAX:
            try:
                data = self._socket.recv(CHUNK_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLWantWriteError:
                self._read_wants_write = True
                break
            except OSError as error:
                if parts:
                    break  # deliver what came before; the next call raises again
                raise _lost(error) from error
            if not data:
                if parts:
                    break
                raise ChannelError("lost", "the hub closed the connection")
            parts.append(data)
            size += len(data)
        self.received_bytes += size
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def send(self, data: bytes) -> None:
        """Queues bytes. Raises ChannelError("slow") above OUT_BYTES_MAX."""
        if self.out_bytes + len(data) > OUT_BYTES_MAX:
            raise ChannelError("slow", "the hub takes no more: %d bytes wait to be sent" % self.out_bytes)
        self._out.append(data)
        self.out_bytes += len(data)

    def flush(self) -> bool:
        """Writes as much as the socket takes; True when nothing waits any more. Raises ChannelError."""
        if self._socket is None:
            raise ChannelError("lost", "the connection is closed")
        self._write_wants_read = False
        while self._out:
            if len(self._out) > 1 and len(self._out[0]) < 1024:
                self._gather()
            data = self._out[0]
            try:
                sent = self._socket.send(data)
            except ssl.SSLWantWriteError:
                return False
            except ssl.SSLWantReadError:
                self._write_wants_read = True
                return False
            except OSError as error:
                raise _lost(error) from error
            self.out_bytes -= sent
            self.sent_bytes += sent
            self._out.popleft()
            if sent < len(data):
                self._out.appendleft(data[sent:])
        return True

    def _gather(self) -> None:
        """Joins small messages, so that they share a TLS record."""
        parts: "list[bytes]" = []
        size = 0
        while self._out and size + len(self._out[0]) <= 16384:
            size += len(self._out[0])
            parts.append(self._out.popleft())
        self._out.appendleft(b"".join(parts))

    def close(self) -> None:
        """Closes at once, without waiting for anything. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._out.clear()
        self.out_bytes = 0


def split_address(text: str) -> "tuple[str, int]":
    """("host", port) of "host:port" or "[v6]:port". Raises ValueError with a remedy."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("%r is no address; write HOST:PORT, an IPv6 address as [ADDRESS]:PORT" % text)
    return host, int(port)


def resolve(
    loop: "Loop", host: str, port: int, deadline: float
) -> "Generator[Wait, bool, list[tuple[int, Any]]]":
    """Generator. [(family, address)], at most ADDRESSES_MAX. Raises ChannelError."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
            return [(family, (host, port))]
        except OSError:
            continue
    if _resolving[0] >= RESOLVERS_MAX:
        raise ChannelError("resolve", "the name server has not answered %d earlier questions" % RESOLVERS_MAX)
    import _thread

    answer: "list[Any]" = []
    done = _Shared()
    _resolving[0] += 1
    _thread.start_new_thread(_look_up, (host, port, answer, done))
    try:
        ready = yield Wait(done.wakeup.fileno(), POLLIN, deadline)
        while ready and not answer:
            ready = yield Wait(done.wakeup.fileno(), POLLIN, deadline)
    finally:
        done.release()
    if not answer:
        raise ChannelError("resolve", "the name server does not answer for %s" % host)
    if isinstance(answer[0], Exception):
        raise ChannelError("resolve", "cannot resolve %s: %s" % (host, answer[0]))
    found: "list[tuple[int, Any]]" = [(a[0], a[4]) for a in answer[0]]
    return found[:ADDRESSES_MAX]


class _Shared:
    """A wake-up between a task and a thread, either of which may be done with it first; the second closes it."""

    def __init__(self) -> None:
        import _thread

        self.wakeup = wakeup()
        self._lock = _thread.allocate_lock()
        self._owners = 2

    def release(self) -> None:
        with self._lock:
            self._owners -= 1
            last = not self._owners
        if last:
            self.wakeup.close()


def _look_up(host: str, port: int, answer: "list[Any]", done: _Shared) -> None:
    try:
        answer.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as error:
        answer.append(error)
    finally:
        _resolving[0] -= 1
        done.wakeup.ring()
        done.release()


def _reason(error: "ssl.SSLError") -> str:
    return (error.reason or str(error)).lower().replace("_", " ")


def _lost(error: OSError) -> ChannelError:
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return ChannelError("lost", "the hub closed the connection")
    if isinstance(error, ssl.SSLError):
        reason = _reason(error)
        if "certificate" in reason or "unknown ca" in reason:
            text = (
                "the hub does not accept this node's certificate (%s): check this machine's clock and the hub's address, "
                "or join anew with a token made with --replace"
            )
            return ChannelError(
                "expired" if "certificate expired" in reason else "certificate", text % reason
            )
        return ChannelError("tls", "the hub ended the connection: %s" % reason)
    return ChannelError("lost", "the connection broke: %s" % error)
