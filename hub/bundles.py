"""Brings the fleet's roots to its nodes, and has the nodes renew when another root signs.

Nodes that know it say which bundle they hold (HELLO `trust`, and BUNDLE with `have` once they have installed one). Who
holds another one gets BUNDLE; whose certificate is not of the active root is asked to renew. Both are spread: PUSHES_PER_S
and `renewals_per_s` at most, so that a rotation of a large fleet takes its time and no heartbeat waits. Nothing of this is
stored: after a crash it follows from what the nodes show.

What a node has *shown*, or said to have installed, is noted on its Node (CERTIFICATE), once for each certificate: that
decides when nobody depends on an old root any more. What was only sent may have been lost.
"""

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

import orjson
from cryptography import x509

from edgelite import wire
from hub import reports
from hub.messages import Trusts
from hub.peers import Peer, Shown, shown_by
from hub.registry import Object
from hub.trust import EdgeTrust

if TYPE_CHECKING:
    from hub.cache import Entry
    from hub.gateway import Gateway
    from hub.objects import NodeView

log = logging.getLogger(__name__)

TICK_S: Final = 0.5
PUSHES_PER_S: Final = 400
AGAIN_S: Final = 30.0
"""After this long without an answer a node is told again."""
REMOVED_S: Final = 5.0
"""Nodes are told this long after a root was removed: until then a replica may still show a certificate of it, which whoever
trusts the others alone would not take."""
NOTE_AGAIN_S: Final = 5.0
"""After this long a note that has not reached the Node is written again."""


class Bundles:
    """See the module. `renewals_per_s`: so many nodes are asked to renew; each costs the hub about half a millisecond."""

    def __init__(self, gateway: "Gateway", trust: EdgeTrust, renewals_per_s: float) -> None:
        self._gateway = gateway
        self._trust = trust
        self._renewals_per_s = renewals_per_s
        self._due: dict[str, Peer] = {}
        """Nodes that may have to be told something, in the order in which they are."""
        self._told: dict[str, float] = {}
        """When those that have not answered were told last."""
        self._notes: dict[str, tuple[Peer, str, float]] = {}
        """What is on its way to Nodes, and since when: what is queued for a Node may be lost with a slot's owner."""
        self._owed = 0.0
        self._roots = set(trust.roots)
        self._quiet_until = float("-inf")
        self.changes = 0
        """How often a node has said which bundle it holds."""
        self.pushed = 0
        self.asked = 0
        trust.listen(self._changed)

    # -- what nodes say -------------------------------------------------------------------------------------------

    def welcomed(self, peer: Peer, trusts: str, entry: "Entry[NodeView]") -> "reports.Change | None":
        """A node got its WELCOME and says that it holds the bundle `trusts` ("": it does not know). Returns how its Node
        has to change for the certificate that it has shown."""
        assert peer.identity is not None
        peer.trusts = trusts or None
        self.changes += 1
        if peer.trusts is not None:
            self._due[peer.identity.node] = peer
        shown = peer.shown
        issuer = self._trust.issuer_of_name(shown.issuer)
        if not shown.serial or not issuer:
            return None
        wanted = reports.certificate_text(issuer, shown.serial, shown.begins, peer.expires)
        if (entry.meta.annotations or {}).get(reports.CERTIFICATE) == wanted:
            return None
        self._notes[peer.identity.node] = peer, wanted, self._gateway.now()
        return lambda node, now: reports.certified(node, wanted)

    def renewed(self, peer: Peer, cert_pem: str) -> None:
        """A node was sent a certificate."""
        cert = x509.load_pem_x509_certificate(cert_pem.encode())
        peer.issued = shown_by(cert)

    def heard(self, peer: Peer, said: Trusts) -> None:
        """A node has installed what it was sent."""
        assert peer.identity is not None
        name = peer.identity.node
        peer.trusts = said.have
        self.changes += 1
        issued = peer.issued
        if issued is not None and issued.mark == said.cert:
            peer.issued, peer.installed = None, issued
            issuer = self._trust.issuer_of_name(issued.issuer)
            self._note(peer, reports.certificate_text(issuer, issued.serial, issued.begins, issued.ends))
        if not self._wanted(peer):
            self._told.pop(name, None)
        elif peer.trusts != self._trust.id:
            self._due[name] = peer  # the roots have changed meanwhile
        # Who has yet to renew was asked to, and is asked again after AGAIN_S.

    def _note(self, peer: Peer, text: str) -> None:
        assert peer.identity is not None
        self._notes[peer.identity.node] = peer, text, self._gateway.now()
        self._gateway.write_node(peer, lambda node, now: reports.certified(node, text))

    def _note_again(self, now: float) -> None:
        """Writes what has not reached its Node."""
        for name, (peer, text, at) in list(self._notes.items()):
            if now - at < NOTE_AGAIN_S:
                continue
            entry = self._gateway.node_entry(name)
            stored = entry is None or (entry.meta.annotations or {}).get(reports.CERTIFICATE) == text
            if stored or self._gateway.peers.get(name) is not peer:
                del self._notes[name]
            else:
                self._note(peer, text)

    def forget(self, node: str) -> None:
        """Its connection has ended."""
        self._due.pop(node, None)
        self._notes.pop(node, None)
        self._told.pop(node, None)

    # -- what they are told ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(TICK_S)
            self.tick(TICK_S)

    def tick(self, passed_s: float) -> None:
        """Tells as many nodes as may be told in `passed_s`."""
        self._owed = min(self._owed + self._renewals_per_s * passed_s, max(self._renewals_per_s, 1.0))
        now = self._gateway.now()
        self._note_again(now)
        if now < self._quiet_until:
            return
        for name, at in list(self._told.items()):
            peer = self._gateway.peers.get(name)
            if now - at >= AGAIN_S and peer is not None:
                del self._told[name]
                self._due[name] = peer
        pushes = max(1, int(PUSHES_PER_S * passed_s))
        later: list[Peer] = []
        while self._due and pushes > 0:
            name = next(iter(self._due))
            peer = self._due.pop(name)
            if self._gateway.peers.get(name) is not peer or not self._wanted(peer):
                continue
            renew = self._behind(peer)
            if renew and self._owed < 1:
                if peer.trusts == self._trust.id:
                    later.append(peer)
                    continue
                renew = False
                later.append(peer)
            pushes -= 1
            self._tell(peer, renew)
            self._told[name] = now
        for peer in later:
            assert peer.identity is not None
            self._due[peer.identity.node] = peer

    def _tell(self, peer: Peer, renew: bool) -> None:
        body: Object = {"roots": self._trust.roots}
        if renew:
            body["renew"] = True
            self._owed -= 1
            self.asked += 1
        self.pushed += 1
        peer.conn.send(wire.message(wire.BUNDLE, orjson.dumps(body)))

    def _wanted(self, peer: Peer) -> bool:
        """Has it to be told anything? Nodes that do not know bundles get them with their renewals."""
        return peer.trusts is not None and (peer.trusts != self._trust.id or self._behind(peer))

    def _behind(self, peer: Peer) -> bool:
        """Is its newest certificate of another root than the one that signs?"""
        assert peer.identity is not None
        if peer.identity.trust_domain != self._trust.trust_domain:
            return False  # another authority renews it
        newest: Shown = peer.installed or peer.shown
        return bool(newest.serial) and self._trust.issuer_of_name(newest.issuer) != self._trust.active_id

    def _changed(self) -> None:
        roots = set(self._trust.roots)
        if not self._roots <= roots:
            self._quiet_until = self._gateway.now() + REMOVED_S
        self._roots = roots
        self._due = {name: peer for name, peer in self._gateway.peers.items() if peer.trusts is not None}
        self._told.clear()

    def figures(self) -> dict[str, int]:
        """By bundle, the connected nodes that hold it; of those that know bundles."""
        return dict(Counter(p.trusts for p in self._gateway.peers.values() if p.trusts is not None))
