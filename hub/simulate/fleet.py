"""All simulated nodes of one process, on one epoll and one heap of deadlines; no thread, no task.

A node's moment comes when epoll tells of its socket, when its deadline is due, or when its turn to connect has come: at
most `at_once` are between connecting and WELCOME. A `pause` takes a socket out of the epoll for a while, which is how
latency, slow readers and silent links are made. Where the machine is too slow for all, `lag` says so: the time between
a deadline and its being looked at.
"""

import errno
import heapq
import math
import os
import random
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from edgelite.credentials import EnrollError, bundle_id, mark_of, verifying_context
from hub.simulate.figures import Tally
from hub.simulate.identities import IdentityCache, new_request
from hub.simulate.node import (
    DELAYED,
    IDLE,
    OPENING,
    SILENT,
    STATES,
    SYNCED,
    WAITING,
    SimNode,
    node_report,
)
from hub.simulate.repeated import LastSet
from hub.simulate.settings import Settings

EVENTS_MAX: Final = 256
NOTES_MAX: Final = 20
NOTE_CHARS_MAX: Final = 300
STEP_S: Final = 0.5
CHURN_S: Final = 0.05
OWED_MAX: Final = 10_000.0
BIND_NO_PORT: Final = 24
"""IP_BIND_ADDRESS_NO_PORT of Linux: the port is chosen when the peer is known, so that each peer has all ports."""
_READ: Final = select.EPOLLIN | select.EPOLLRDHUP


class Fleet:
    """See the module. Counts and rates in `settings` are this process's own. `cache` has an identity of each of `names`.
    Raises OSError, ssl.SSLError, EnrollError where it has not."""

    def __init__(
        self, settings: Settings, names: Sequence[str], cache: IdentityCache, server_name: str
    ) -> None:
        self.settings = settings
        self.hub = settings.hub
        self.slow_bytes_s = settings.faults.slow_bytes_s
        self.tally = Tally()
        self.notes: list[str] = []
        self.node_report = node_report()
        self.stopping = False
        self.first_begun_at = self.last_synced_at = self.last_delivered_at = 0.0
        self._cache = cache
        self._server_name = server_name
        self._rng = random.Random(settings.seed)  # noqa: S311 - no secret
        self.random = self._rng.random
        self._epoll = select.epoll()
        self._by_fd: dict[int, SimNode] = {}
        self._readers: dict[int, Callable[[], None]] = {}
        self._deadlines: list[tuple[float, int, SimNode]] = []
        self._pauses: list[tuple[float, int, SimNode, int]] = []
        self._queue: deque[SimNode] = deque()
        self._sequence = 0
        self._opening = 0
        self._dialled = 0
        self._begin_at = 0.0
        self._looked_at = time.monotonic()
        self._churned = 0
        self._changes_owed = self._losses_owed = 0.0
        self._addresses: dict[tuple[str, int], tuple[socket.AddressFamily, Any]] = {}
        self.last_set = LastSet()
        self._trust_roots(cache.roots())
        slow = math.ceil(settings.faults.slow_share * len(names))
        self.nodes = [SimNode(self, name, os.urandom(16).hex(), n < slow) for n, name in enumerate(names)]
        # What is dear is made before anybody connects: to read a key takes 1 ms, a context 25 KB.
        for node in self.nodes:
            node.context = self._context_of(node.name)

    def start(self) -> None:
        """All nodes begin to connect."""
        now = time.monotonic()
        self.first_begun_at = self.first_begun_at or now
        for node in self.nodes:
            if node.state == IDLE:
                self.enqueue(node, now)

    def cut_all(self) -> None:
        """Every link breaks at this moment; nodes come back as agents do."""
        self.first_begun_at, self.last_synced_at = time.monotonic(), 0.0
        for node in self.nodes:
            self._let(node, node.cut)

    def reset(self) -> None:
        """Counts and times begin anew."""
        self.tally = Tally()
        self.last_delivered_at = 0.0

    def close(self) -> None:
        """Ends all connections at once."""
        for node in self.nodes:
            node.close()
        self._epoll.close()

    def states(self) -> dict[str, int]:
        """How many nodes are in each state; those of none are left out."""
        found = dict.fromkeys(STATES, 0)
        for node in self.nodes:
            found[node.state] += 1
        return {state: count for state, count in found.items() if count}

    # -- the loop -----------------------------------------------------------------------------------------------------

    def reader(self, fd: int, callback: Callable[[], None]) -> None:
        """`callback` is called when `fd` can be read."""
        self._readers[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def run(self) -> None:
        """Until `stopping` is set."""
        while not self.stopping:
            self.step()

    def step(self) -> None:
        """Waits for something to happen, STEP_S at most, and lets the nodes act on it."""
        for fd, _ in self._epoll.poll(self._patience_s(), EVENTS_MAX):
            node = self._by_fd.get(fd)
            if node is not None and node.state is SYNCED and not self.settings.faults.latency_s:
                node.ready(time.monotonic())  # nothing that `_let` counts, and most of what happens
            elif node is not None:
                self._ready(node)
            elif fd in self._readers:
                self._readers[fd]()
        now = time.monotonic()
        passed_s, self._looked_at = now - self._looked_at, now
        self._resume(now)
        self._deadlines_due(now)
        self._churn(passed_s)
        self._lose(passed_s, now)
        self._begin(now)

    def _patience_s(self) -> float:
        now = time.monotonic()
        until = now + STEP_S
        if self._deadlines:
            until = min(until, self._deadlines[0][0])
        if self._pauses:
            until = min(until, self._pauses[0][0])
        if self._queue and self._opening < self.settings.at_once:
            until = min(until, self._begin_at)
        if self.settings.churn_per_s:
            until = min(until, now + CHURN_S)
        return max(0.0, until - now)

    def _let(self, node: SimNode, act: Callable[[float], None]) -> None:
        """The node acts; those on their way to WELCOME are counted."""
        was = node.state in OPENING
        act(time.monotonic())
        self._opening += (node.state in OPENING) - was

    def _ready(self, node: SimNode) -> None:
        latency_s = self.settings.faults.latency_s
        if latency_s and not node.paused:
            # Looked at one round trip later, with whatever has come until then.
            self.pause(node, time.monotonic() + latency_s)
        else:
            self._let(node, node.ready)

    def _resume(self, now: float) -> None:
        while self._pauses and self._pauses[0][0] <= now:
            _, _, node, fd = heapq.heappop(self._pauses)
            if node.fd != fd or not node.paused:
                continue  # of a connection before
            silent, node.paused = node.paused == SILENT, 0
            self.watch(node)
            if silent:
                self._let(node, node.tick)
            if node.sock is not None:
                self._let(node, node.ready)

    def _deadlines_due(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            at, _, node = heapq.heappop(self._deadlines)
            if at != node.scheduled:
                continue  # there was an earlier one
            node.scheduled = math.inf
            if node.due > now:
                self.schedule(node)
                continue
            self.tally.time("lag", now - at)
            if node.state == WAITING:
                self._queue.append(node)
            elif node.paused == SILENT:
                node.due = now + STEP_S
                self.schedule(node)
            elif node.sock is not None:
                self._let(node, node.tick)

    def _begin(self, now: float) -> None:
        rate = self.settings.connect_per_s
        while self._queue and self._opening < self.settings.at_once and self._begin_at <= now:
            node = self._queue.popleft()
            if node.state != WAITING:
                continue
            if rate:
                self._begin_at = max(self._begin_at, now - 1.0) + 1 / rate
            self._let(node, node.connect)

    def _churn(self, passed_s: float) -> None:
        self._changes_owed = min(self._changes_owed + self.settings.churn_per_s * passed_s, OWED_MAX)
        while self._changes_owed >= 1:
            self._changes_owed -= 1
            node = self._rng.choice(self.nodes)
            if node.pods and node.state == SYNCED:
                self._churned += 1
                self._let(node, node.churn_of(self._churned))

    def _lose(self, passed_s: float, now: float) -> None:
        faults = self.settings.faults
        self._losses_owed += faults.loss_per_min / 60 * len(self.nodes) * passed_s
        while self._losses_owed >= 1:
            self._losses_owed -= 1
            node = self._rng.choice(self.nodes)
            if node.state == SYNCED and not node.paused:
                self.tally.counts["links lost"] += 1
                self.pause(node, now + faults.outage_s, SILENT)

    # -- what nodes call ----------------------------------------------------------------------------------------------

    def enqueue(self, node: SimNode, at: float) -> None:
        """The node connects at `at`, or when its turn has come."""
        node.state, node.due = WAITING, at
        self.schedule(node)

    def follow(self, node: SimNode, now: float) -> None:
        """The node was redirected: its next connection comes before those of nodes that have not begun."""
        node.state, node.due = WAITING, now
        self._queue.appendleft(node)

    def schedule(self, node: SimNode) -> None:
        """Its `due` may have come nearer. One that has moved away is found out when the old one is looked at."""
        if node.due < node.scheduled:
            node.scheduled = node.due
            self._sequence += 1
            heapq.heappush(self._deadlines, (node.due, self._sequence, node))

    def pause(self, node: SimNode, until: float, how: int = DELAYED) -> None:
        """Its socket is left alone until then; SILENT: nothing is sent either."""
        if node.sock is not None and not node.paused:
            node.paused = how
            self.watch(node)
            self._sequence += 1
            heapq.heappush(self._pauses, (until, self._sequence, node, node.fd))

    def watch(self, node: SimNode) -> None:
        """What epoll tells of its socket, from now on. Of a silent one nothing at all: epoll would tell of its end."""
        if node.paused == SILENT:
            self.unwatch(node)
            return
        mask = 0 if node.paused else _READ | (select.EPOLLOUT if node.wants_write else 0)
        if node.fd in self._by_fd:
            self._epoll.modify(node.fd, mask)
        else:
            self._by_fd[node.fd] = node
            self._epoll.register(node.fd, mask)

    def unwatch(self, node: SimNode) -> None:
        """Before its socket is closed."""
        if self._by_fd.pop(node.fd, None) is not None:
            self._epoll.unregister(node.fd)

    def dial(self, address: tuple[str, int]) -> socket.socket:
        """A socket that is being connected. Raises OSError."""
        if address not in self._addresses:
            found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
            self._addresses[address] = found[0], found[4]
        family, where = self._addresses[address]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sources = self.settings.sources
            if sources:
                self._dialled += 1
                sock.setsockopt(socket.IPPROTO_IP, BIND_NO_PORT, 1)
                sock.bind((sources[self._dialled % len(sources)], 0))
            code = sock.connect_ex(where)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except BaseException:
            sock.close()
            raise
        return sock

    def wrap(
        self, node: SimNode, sock: socket.socket, ticket: tuple[ssl.SSLSession, ssl.SSLContext] | None
    ) -> ssl.SSLSocket:
        """The TLS connection of a node, its handshake not begun. `ticket`: of the connection before, and its context, for it
        is worth nothing in another. Raises OSError."""
        context = node.context
        if context is None:
            context = self._shared
            context.load_cert_chain(self._cache.path(node.name))
        session = ticket[0] if ticket is not None and ticket[1] is context else None
        return context.wrap_socket(
            sock, do_handshake_on_connect=False, server_hostname=self._server_name, session=session
        )

    def synced(self, now: float, seconds: float) -> None:
        """A node has all that it should have, so long after it began to connect."""
        self.last_synced_at = now
        self.tally.counts["synced"] += 1
        self.tally.time("synced", seconds)

    def delivered(self, kind: str, at_ns: int, now: float) -> None:
        """A document of this kind is acknowledged. `at_ns`: when the API was asked for what is in it, 0 where it does not
        say."""
        if at_ns:
            self.last_delivered_at = now
            self.tally.time(f"{kind} delivered", max(0.0, (time.time_ns() - at_ns) / 1e9))

    def note(self, text: str) -> None:
        """Something that whoever reads the report should know; the first NOTES_MAX are kept."""
        if len(self.notes) < NOTES_MAX:
            self.notes.append(text[:NOTE_CHARS_MAX])

    # -- identities ---------------------------------------------------------------------------------------------------

    def trust_roots(self, roots: Sequence[str]) -> None:
        """The hub has sent another bundle; connections trust it from now on."""
        try:
            if bundle_id("".join(roots)) == self.trust:
                return
            self._trust_roots("".join(root.rstrip() + "\n" for root in roots))
            self._cache.save_roots(roots)
        except (OSError, EnrollError) as wrong:
            self.note(f"a trust bundle of the hub could not be taken: {wrong}")

    def _trust_roots(self, roots: str) -> None:
        self.trust = bundle_id(roots)
        self._roots = roots
        self._shared = verifying_context([roots])
        for node in getattr(self, "nodes", ()):
            node.context = None  # from now on each reads its key into the shared one

    def _context_of(self, name: str) -> ssl.SSLContext:
        context = verifying_context([self._roots])
        context.load_cert_chain(self._cache.path(name))
        return context

    def renewed(self, node: SimNode, chain: str, key: str, roots: Sequence[str]) -> None:
        """A new certificate, for the key of the last request; shown from the next connection on."""
        try:
            self._cache.save(node.name, chain, key)
            if node.context is not None:
                node.context = self._context_of(node.name)
            self.tally.counts["renewals"] += 1
        except OSError as failure:
            self.note(f"the renewed certificate of {node.name} could not be kept: {failure}")
        if roots:
            self.trust_roots(roots)

    def new_request(self) -> tuple[str, str]:
        """(certificate request, key), PEM."""
        return new_request()

    def mark(self, name: str) -> str:
        """What the hub knows the node's certificate by; "" where it cannot be read."""
        try:
            return mark_of(self._cache.chain(name))
        except (OSError, EnrollError) as failure:
            self.note(f"the certificate of {name} cannot be read: {failure}")
            return ""
