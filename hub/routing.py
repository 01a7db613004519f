"""Nodes that are connected here while their slot is not served here: they wait, are redirected, or are relayed.

Any replica accepts any node. A node whose slot another replica owns is sent to the address that this one advertises;
one that cannot be reached there (it advertises none, or the node says that nobody answered, or it was redirected twice
already) is relayed. While nobody can serve it, it waits here, heartbeats answered, at most WAIT_S (WAIT_OWN_S); then it is
told to come back.

Invariant: a waiting connection is in no other book of the gateway than `everyone`, and gets nothing but PONGs.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final, Protocol

import orjson

from edgelite import wire
from hub.peers import Peer
from security.frames import Hello
from shards.ownership import Route

if TYPE_CHECKING:
    from hub.gateway import Gateway

log = logging.getLogger(__name__)

WAIT_S: Final = 10.0
"""Longer than a dead owner's slots are without one."""
WAIT_OWN_S: Final = 20.0
"""The same while the slot is ours, but suspended or not loaded yet: shorter than an agent waits for WELCOME (30 s)."""
REDIRECTS_MAX: Final = 2
PLACED_AT_ONCE: Final = 32


class Relays(Protocol):
    """Who carries a connection to the owner of its slot (`hub.relaying`)."""

    def available(self, route: Route) -> bool:
        """Can the owner be reached that way now?"""
        ...

    def take(self, peer: Peer, first: bytes, route: Route) -> None:
        """Takes the connection over: sets `peer.relayed`, which gets its bytes and its end from then on. `first`: the
        HELLO that has been read already, as a whole message."""
        ...


class Waiting:
    """What a waiting node has said. `hello` None: it was served here, and cannot be welcomed twice."""

    __slots__ = ("body", "hello", "since")

    def __init__(self, hello: Hello | None, body: bytes, since: float) -> None:
        self.hello = hello
        self.body = body
        self.since = since


class Routing:
    """See the module."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._waiting: dict[Peer, Waiting] = {}
        self._due: deque[Peer] = deque()
        """Waiting ones that may have a way now."""
        self.relays: Relays | None = None
        self.redirected = 0

    def __len__(self) -> int:
        """Connections that wait."""
        return len(self._waiting)

    def forget(self, peer: Peer) -> None:
        """Its connection has ended."""
        self._waiting.pop(peer, None)

    def arrived(self, peer: Peer, hello: Hello, body: bytes) -> None:
        """A node has said HELLO while this hub may not act for its slot, or does not know all that it should hold."""
        assert peer.session is not None
        peer.session.park()
        self._wait(peer, Waiting(hello, body, self._gateway.now()))
        if not self._gateway.slots.may_act(peer.slot):
            self._place(peer)

    def displaced(self, peer: Peer) -> None:
        """Its slot was served here until now."""
        assert peer.session is not None and peer.identity is not None
        if self._gateway.peers.get(peer.identity.node) is peer:
            del self._gateway.peers[peer.identity.node]
        self._gateway.streams.end_all(peer)
        peer.session.park()
        if peer.conn.backlog_bytes:
            # What was decided as the owner must not leave after that; the node comes back and is routed then.
            peer.conn.abort("fenced")
            return
        self._wait(peer, Waiting(None, b"", self._gateway.now()))

    def _wait(self, peer: Peer, waiting: Waiting) -> None:
        peer.conn.set_idle(max(2 * WAIT_OWN_S, self._gateway.config.patience_s))
        self._waiting[peer] = waiting

    def slots_changed(self, slots: Collection[int]) -> None:
        """Other owners, or this one at last: looks where those that wait can go now."""
        if self._waiting:
            wanted = set(slots)
            self._look_at([peer for peer in self._waiting if peer.slot in wanted])

    def _look_at(self, peers: Iterable[Peer]) -> None:
        idle = not self._due
        self._due.extend(peers)
        if self._due and idle:
            asyncio.get_running_loop().call_soon(self._place_some)

    def _place_some(self) -> None:
        """A few in a turn of the loop: thousands may wait for a slot, and heartbeats and leases must not."""
        for _ in range(min(PLACED_AT_ONCE, len(self._due))):
            self._place(self._due.popleft())
        if self._due:
            asyncio.get_running_loop().call_soon(self._place_some)

    def sweep(self) -> None:
        """Sends those away that have waited for too long."""
        now = self._gateway.now()
        held = self._gateway.slots.held
        for peer, waiting in list(self._waiting.items()):
            if now - waiting.since < (WAIT_OWN_S if held(peer.slot) else WAIT_S):
                continue
            message = "no hub serves the node's slot at present"
            self._gateway.close_peer(peer, "overload", message, self._gateway.jitter(1, 3))
        if not self._due:
            self._look_at(self._waiting)

    def _place(self, peer: Peer) -> None:
        """Welcomes, redirects or relays it, where one of these can be done now."""
        waiting = self._waiting.get(peer)
        if waiting is None or peer.conn.owner is not peer:
            return
        gateway = self._gateway
        if gateway.slots.may_act(peer.slot):
            del self._waiting[peer]
            if waiting.hello is not None:
                gateway.greeting.hello(peer, waiting.hello, waiting.body)
            elif gateway.config.replica_edge:
                self._redirect(peer, gateway.config.replica_edge)
            else:
                gateway.close_peer(peer, "resync", "this hub serves the node's slot again", 0.0)
            return
        if gateway.slots.held(peer.slot):
            return
        route = gateway.ownership.route(peer.slot)
        if route is None:
            return
        to = self._address(route, waiting.hello)
        if to:
            self._redirect(peer, to)
        elif self.relays is not None and self.relays.available(route):
            self._relay(peer, waiting, route)

    def _address(self, route: Route, hello: Hello | None) -> str:
        """Where to send the node, or ""."""
        to = route.member.edge if route.member is not None else ""
        if to == self._gateway.config.replica_edge:
            return ""
        if hello is not None and (hello.redirects >= REDIRECTS_MAX or hello.unreached == to):
            return ""
        return to

    def _redirect(self, peer: Peer, to: str) -> None:
        self._waiting.pop(peer, None)
        self.redirected += 1
        peer.conn.send(wire.frame(wire.REDIRECT, orjson.dumps({"to": to})))
        peer.conn.close("redirect")

    def _relay(self, peer: Peer, waiting: Waiting, route: Route) -> None:
        assert self.relays is not None
        del self._waiting[peer]
        if waiting.hello is None:
            # The agent takes one WELCOME on a connection; the next connection is relayed from its HELLO on.
            message = "another hub serves the node's slot now"
            self._gateway.close_peer(peer, "resync", message, self._gateway.jitter(0, 1))
            return
        peer.session = None
        self.relays.take(peer, wire.message(wire.HELLO, waiting.body), route)
