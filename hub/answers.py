"""Answers to reports, gathered: those of one turn of the loop leave as one STORED (I3: only what is durable is named)."""

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hub.gateway import Gateway
    from hub.peers import Peer


class Answers:
    """See the module. While this hub may not act for a node's slot its answers are kept; they are dropped when the slot
    is lost, for the node sends again what was not answered."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._answering: set[Peer] = set()
        self._due = False
        self.stored_revision = 0
        """The highest that STORED has named: informers may be behind it when its node comes back."""

    def note(self, peer: "Peer", n: int, revision: int, refused: str = "") -> None:
        """Entry `n` is durable at `revision`, or refused for good (`refused` says why)."""
        if peer.answers is None:
            peer.answers = ([], [], 0)
        stored, no, reached = peer.answers
        if refused:
            no.append((n, refused))
        else:
            stored.append(n)
        peer.answers = (stored, no, max(reached, revision))
        self._answering.add(peer)
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self.send)

    def send(self) -> None:
        """Sends what has gathered."""
        self._due = False
        answering, self._answering = self._answering, set()
        for peer in answering:
            session = peer.session
            if session is None or peer.answers is None or session.state in ("closed", "parked"):
                peer.answers = None
            elif self._gateway.slots.fence(peer.slot) is None or session.state == "paused":
                self._answering.add(peer)
            else:
                (stored, refused, revision), peer.answers = peer.answers, None
                revision = revision or self._gateway.desired.revision
                self.stored_revision = max(self.stored_revision, revision)
                self._gateway.answer(peer, session.stored(stored, revision, refused))
