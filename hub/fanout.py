"""Changed documents on their way to the sessions that they concern: in portions, so that one change that concerns every node
does not keep all else waiting until the last of them has been served.

Job: which sessions have something to send, and when each is asked what it is. Where pods and what they refer to may still be
on their way, it waits for both, SETTLE_S at most.

Invariants: one turn of the loop serves sessions for PORTION_S, and AT_ONCE more at most. Whatever only an owner may send is
preceded by the inline check, in the turn in which it is sent. A session waits once, however often it changes.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hub.gateway import Gateway
    from hub.peers import Peer
    from hub.session import LastSet

SETTLE_S: Final = 0.1
"""How long a pod's document may wait for news of what it refers to."""
PORTION_S: Final = 0.02
"""Twice what messages of connections take in a turn (`hub.transport`): nodes should have a change before the
acknowledgements of others are looked at, and heartbeats and leases can wait that long."""
AT_ONCE: Final = 32
"""Sessions between two looks at the clock."""


class Fanout:
    """See the module. `changed` and `advanced` are what `hub.desired.Desired` calls. `last`: of all sessions."""

    def __init__(self, gateway: "Gateway", last: "LastSet", now: Callable[[], float]) -> None:
        self._gateway = gateway
        self._last = last
        self._now = now
        self._dirty: set[Peer] = set()
        """Something has changed for these, and perhaps not all of it is known yet."""
        self._ready: set[Peer] = set()
        """These are served, in no order."""
        self._settling = self._serving = False
        """Is `_settled` or `_serve` about to be called?"""

    def changed(self, node: str, key: str) -> None:
        """A node should have another version of a document, or none."""
        peer = self._gateway.peers.get(node)
        if peer is not None and peer.session is not None:
            peer.session.changed(key)
            self._dirty.add(peer)

    def advanced(self) -> None:
        """All changes of a revision have been told."""
        if not self._dirty:
            return
        if self._gateway.desired.settled:
            self._settled()
        elif not self._settling:
            # ConfigMaps and Secrets of the same revision may still be on their way.
            self._settling = True
            asyncio.get_running_loop().call_later(SETTLE_S, self._settled)

    def _settled(self) -> None:
        self._settling = False
        self._ready |= self._dirty
        self._dirty = set()
        if not self._serving:
            self._serve()

    def _serve(self) -> None:
        """A portion; the next one follows when the loop's other callbacks have run."""
        self._serving = True
        try:
            self._serve_until(self._now() + PORTION_S)
        finally:
            # Also when one of them has failed: the others are not to wait for the next change.
            self._serving = bool(self._ready)
            if self._serving:
                asyncio.get_running_loop().call_soon(self._serve)

    def _serve_until(self, until: float) -> None:
        ready, gateway, last = self._ready, self._gateway, self._last
        while ready:
            for _ in range(min(AT_ONCE, len(ready))):
                peer = ready.pop()
                if peer.session is None:
                    continue
                gateway.check(peer)
                actions = peer.session.pump()
                if actions is last.alone:
                    peer.conn.answer(last.alone[0].data)
                elif actions:
                    gateway.answer(peer, actions)
            if self._now() >= until:
                return
