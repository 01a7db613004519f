"""Peers without a certificate: they may ask for the trust bundle and join, and nothing else."""

from typing import TYPE_CHECKING, Any, Final

import orjson

from edgelite import wire
from hub.joining import Joining, Refused
from hub.returns import proof_in
from security.policy import OWN, STRANGER, judge

if TYPE_CHECKING:
    from hub.gateway import Gateway
    from hub.peers import Peer

MESSAGES_MAX: Final = 4
JOIN_S: Final = 60.0
"""How long a join may take that waits for others."""


class Strangers:
    """See the module. `count`: how many are connected."""

    def __init__(self, gateway: "Gateway", joining: Joining) -> None:
        self._gateway = gateway
        self._joining = joining
        self.count = 0
        self._since: dict[Peer, float] = {}

    def came(self, peer: "Peer") -> None:
        """A peer without a certificate has connected."""
        self.count += 1
        self._since[peer] = self._gateway.now()

    def went(self, peer: "Peer") -> None:
        """Its connection has ended."""
        self.count -= 1
        self._since.pop(peer, None)

    def sweep(self) -> None:
        """Ends those that have had their time: else a few that say something now and then would take every place."""
        before = self._gateway.now() - self._gateway.config.stranger_s
        for peer in [peer for peer, since in self._since.items() if since < before]:
            self._gateway.close_peer(peer, "slow", "a join does not take so long", 30.0)

    def received(self, peer: "Peer", kind: int, body: bytes) -> None:
        refusal = judge(STRANGER, kind, OWN, len(body))
        if refusal is not None:
            self._gateway.close_peer(peer, refusal.code, refusal.message, None, sent=kind, why=refusal.reason)
        elif kind == wire.BUNDLE:
            self.send_roots(peer, self._gateway.returns.nonce(peer))
        elif kind == wire.JOIN:
            if peer.messages > MESSAGES_MAX:
                self._gateway.close_peer(peer, "overload", "one JOIN to a connection", 30.0)
                return
            self._gateway.serve(peer, self._join(peer, body), "join")
        else:
            peer.conn.close("peer")

    async def _join(self, peer: "Peer", body: bytes) -> None:
        peer.conn.set_idle(JOIN_S)
        returning = proof_in(body)
        try:
            if returning is not None:
                self._joining.pace(peer.conn.peername())
                joined = await self._gateway.returns.come_back(peer, returning)
            else:
                joined = await self._joining.join(body, peer.conn.peername())
        except Refused as no:
            self._gateway.close_peer(peer, no.code, no.message, no.retry_s, no.reason)
            return
        peer.conn.send(wire.message(wire.JOINED, joined))

    def send_roots(self, peer: "Peer", nonce: str = "") -> None:
        """The trust bundle, to whoever asks; without a certificate with a nonce, which a node that comes back signs."""
        body: dict[str, Any] = {"roots": self._joining.roots()}
        if nonce:
            body["nonce"] = nonce
        peer.conn.send(wire.message(wire.BUNDLE, orjson.dumps(body)))
