"""Slows nodes down that send more than their share: their connections are not read until they have paid.

Nothing is refused and nothing is lost: TCP, or a relay's credit, has the node wait, so its journal is taken as fast as
the buckets allow (`security.buckets`). What a node has sent is charged in portions, so that a heartbeat costs nothing
here; a node that sends little in a portion's time never waits for others' sake, only who fills one does.

Bound: one pause is at most PAUSE_MAX_S, less than any patience with a silent node.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hub.reports import POOL
from security.buckets import Buckets

if TYPE_CHECKING:
    from hub.gateway import Gateway
    from hub.peers import Peer

FRAMES: Final = 32
BYTES: Final = 64 << 10
"""A portion: whoever has sent as much since the last one is charged."""
PAUSE_MAX_S: Final = 5.0
PAUSE_MIN_S: Final = 0.005
"""Shorter ones cost more than they slow."""


class Throttle:
    """See the module. `pauses`: how often somebody had to wait; `paused_s`: for how long, all together."""

    def __init__(self, gateway: "Gateway", now: Callable[[], float]) -> None:
        self._gateway = gateway
        self._now = now
        self._buckets = Buckets(gateway.config.rates, now())
        self.pauses = 0
        self.paused_s = 0.0

    def charge(self, peer: "Peer") -> None:
        """The peer has sent a portion."""
        if peer.identity is None:
            self._gateway.close_peer(peer, "overload", "a join takes a few short messages", 30.0, why="rate")
            return
        frames, size = peer.messages, peer.bytes
        peer.messages = peer.bytes = 0
        node = peer.identity.node
        entry = self._gateway.node_entry(node)
        pool = (entry.meta.labels or {}).get(POOL, "") if entry is not None else ""
        wait_s = min(self._buckets.charge(node, pool, frames, size, self._now()), PAUSE_MAX_S)
        if wait_s >= PAUSE_MIN_S:
            self.pauses += 1
            self.paused_s += wait_s
            peer.conn.pause(wait_s)
