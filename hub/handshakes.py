"""The way in to the edge port: accepts, has sockets wait in the lobby, and carries out TLS handshakes in small portions.

Handshakes in flight have an epoll of their own, so that a thousand that are ready take nothing from those who are
connected: in one turn of the loop at most `handshakes_per_tick` steps are made, and none is begun after TURN_S.

Who begins: sockets wait in the lobby (`hub.lobby`) while the handshakes in flight of their sort, of known or of unknown
sources, are half of `handshakes_max`, or while READY_MAX of all wait for the hub's next step: a machine that is slower than
`handshakes_s` finishes what it has begun. Only who keeps the hub waiting makes room for others: the oldest, once it is STUCK_S
old and nothing of it is there to be read.
"""

import asyncio
import contextlib
import logging
import select
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hub.lobby import AT_ONCE, Guest, Lobby, source_of

if TYPE_CHECKING:
    from hub.transport import Connection, EdgePort

log = logging.getLogger(__name__)

LISTEN_FD_PAUSE_S: Final = 1.0
ADMIT_EVERY_S: Final = 0.02
TURN_S: Final = 0.01
STUCK_S: Final = 4.0
"""A handshake takes its peer two round trips, 1.2 s over a satellite, and a small board 2 s of arithmetic."""
READY_MAX: Final = 32
REFUSE_EVERY_S: Final = 0.1
"""While the hub admits nobody, one of each sort begins so often, to be told why; the others wait, or find another hub. All
would come to be refused after a handshake, again and again, by a hub that has other things to catch up with."""


class Handshakes:
    """See the module."""

    def __init__(self, port: "EdgePort", now: Callable[[], float]) -> None:
        self._port = port
        self._limits = port.limits
        self._now = now
        self._lobby: Lobby[socket.socket] = Lobby(self._limits.lobby, now())
        self._shaking: tuple[dict[int, Connection], dict[int, Connection]] = ({}, {})
        """By descriptor, the oldest first: of unknown sources, and of known ones."""
        self._sources: dict[int, str] = {}
        self._admit_due = False
        self._refuse_at = 0.0
        self._listener: socket.socket | None = None
        self._listening = False
        self._paused_until = 0.0
        self._epoll: select.epoll | None = None

    @property
    def shaking(self) -> int:
        """Handshakes in flight."""
        return len(self._sources)

    @property
    def waiting(self) -> int:
        """Accepted sockets that wait for their handshake to begin."""
        return len(self._lobby)

    # -- life ---------------------------------------------------------------------------------------------------

    def open(self, listener: socket.socket) -> None:
        """Accepts from `listener`, which is closed with this."""
        self._listener = listener
        self._epoll = select.epoll()
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._tick)
        self._listen(True)

    def stop_accepting(self) -> None:
        """Closes the listening socket; handshakes go on."""
        if self._listener is not None:
            self._listen(False)
            self._listener.close()
            self._listener = None

    def close(self) -> None:
        """Ends the waiting and the epoll; connections are the port's to end, before or after."""
        self.stop_accepting()
        for guest in self._lobby.clear():
            guest.item.close()
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def sweep(self) -> None:
        """Accepts again after descriptors had run out; to be called every second or so."""
        if self._paused_until and self._now() >= self._paused_until:
            self._paused_until = 0.0
            self._listen(True)

    def forget(self, conn: "Connection") -> None:
        """Its handshake is over, in whatever way."""
        if self._sources.pop(conn.fd, None) is None:
            return
        for flight in self._shaking:
            flight.pop(conn.fd, None)
        if self._epoll is not None:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(conn.fd)

    def vouch(self, source: str) -> None:
        """A node has come from there."""
        self._lobby.vouch(source, self._now())

    # -- in -------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listener is not None
        now, port = self._now(), self._port
        for _ in range(self._limits.accepts_per_tick):
            try:
                raw, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError as failure:
                # Out of descriptors or memory: the backlog waits, and those who are connected are served.
                log.warning("cannot accept edge connections for %.0f s: %s", LISTEN_FD_PAUSE_S, failure)
                self._listen(False)
                self._paused_until = now + LISTEN_FD_PAUSE_S
                return
            port.counters.accepted += 1
            full = len(port) + len(self._lobby) >= self._limits.connections_max
            if full or not self._lobby.arrive(raw, source_of(address[0]), now):
                port.counters.refused += 1
                raw.close()
        self._admit()

    def _admit(self) -> None:
        """Begins the handshakes that may begin now, and comes back for the others."""
        assert self._epoll is not None
        now = self._now()
        # One of each sort begins in any case: who is ready again and again, byte by byte, shuts nobody out.
        most = max(1, READY_MAX - len(self._epoll.poll(0, READY_MAX)))
        if not self._port.admitting():
            most = int(now >= self._refuse_at)
            self._refuse_at = now + REFUSE_EVERY_S if most else self._refuse_at
        room = [min(most, self._room(known, now)) for known in (False, True)]
        begin, late = self._lobby.admit(now, (room[0], room[1]))
        for guest in late:
            self._port.counters.close("handshake-waited")
            guest.item.close()
        for guest in begin:
            self._begin(guest)
        if len(self._lobby) and not self._admit_due:
            self._admit_due = True
            asyncio.get_running_loop().call_later(ADMIT_EVERY_S, self._admit_waiting)

    def _admit_waiting(self) -> None:
        self._admit_due = False
        if self._epoll is not None:
            self._admit()

    def _room(self, known: bool, now: float) -> int:
        """How many handshakes of this sort may begin; who is stuck makes room for those that wait."""
        flight = self._shaking[known]
        room = max(1, self._limits.handshakes_max // 2) - len(flight)
        lacking = min(self._lobby.waits(known), AT_ONCE) - room
        if lacking > 0:
            for conn in self._stuck(flight, now, lacking):
                self._port.abort(conn, "handshake-crowded")
                room += 1
        return room

    def _stuck(self, flight: "dict[int, Connection]", now: float, most: int) -> "list[Connection]":
        """Up to `most` of the oldest that keep us waiting for too long."""
        began_before = now - STUCK_S
        old = [c for c, _ in zip(flight.values(), range(most), strict=False) if c.began < began_before]
        if not old:
            return []
        here = select.poll()
        for conn in old:
            here.register(conn.fd, select.POLLIN)
        readable = {fd for fd, _ in here.poll(0)}
        return [conn for conn in old if conn.fd not in readable]

    def _begin(self, guest: Guest[socket.socket]) -> None:
        assert self._epoll is not None
        raw = guest.item
        try:
            raw.setblocking(False)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock = self._port.context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
        except OSError as failure:
            log.debug("connection lost before its handshake: %s", failure)
            self._port.counters.close("handshake-failed")
            raw.close()
            return
        conn = self._port.begun(sock)
        self._shaking[guest.known][conn.fd] = conn
        self._sources[conn.fd] = guest.source
        self._epoll.register(conn.fd, select.EPOLLIN | select.EPOLLRDHUP)

    # -- handshakes -----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        assert self._epoll is not None
        until = self._now() + TURN_S
        for _ in range(self._limits.handshakes_per_tick):
            # One by one: what is reported goes to the end of epoll's line, and nobody is passed over.
            ready = self._epoll.poll(0, 1)
            if not ready:
                return
            fd = ready[0][0]
            conn = self._shaking[0].get(fd) or self._shaking[1].get(fd)
            if conn is not None:
                self._step(conn)
            if self._now() > until:
                return

    def _step(self, conn: "Connection") -> None:
        assert self._epoll is not None
        try:
            conn.sock.do_handshake()
        except ssl.SSLWantReadError:
            self._epoll.modify(conn.fd, select.EPOLLIN | select.EPOLLRDHUP)
            return
        except ssl.SSLWantWriteError:
            self._epoll.modify(conn.fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLOUT)
            return
        except ssl.SSLCertVerificationError as failure:
            self.forget(conn)
            self._port.unverified(conn, failure)
            return
        except (OSError, ValueError) as failure:
            log.debug("handshake with %s failed: %s", conn.peername(), failure)
            self._port.abort(conn, "handshake-failed")
            return
        source = self._sources[conn.fd]
        self.forget(conn)
        if self._port.shaken(conn):
            self.vouch(source)

    # -- listening --------------------------------------------------------------------------------------------------

    def _listen(self, on: bool) -> None:
        if self._listener is None or on == self._listening:
            return
        self._listening = on
        loop = asyncio.get_running_loop()
        if on:
            loop.add_reader(self._listener.fileno(), self._accept)
        else:
            loop.remove_reader(self._listener.fileno())
