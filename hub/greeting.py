"""From HELLO to WELCOME: which connection of a node counts, whether its Node exists, and on what terms they go on.

Invariants: the newest connection is served and no other; a clone's are all refused. A node without a Node, or with a
history of its own, is told to hold (I9), and its Node says what an operator has to confirm.
"""

import functools
import logging
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from edgelite import wire
from hub import errors, reports
from hub.cache import Entry
from hub.hello import Answer, Standing, answer, welcome
from hub.objects import NODES, NodeView, partition_of_slot
from hub.ordering import Ordering, Verdict
from hub.peers import Peer, about
from hub.registry import FenceLost, Object, now_rfc3339
from hub.reports import has_condition
from security.frames import NO_CLAIM, Hello
from shards.claims import SlotRecord

if TYPE_CHECKING:
    from hub.gateway import Gateway

log = logging.getLogger(__name__)

ADOPTIONS_AT_ONCE: Final = 32
EMPTY_RECORD: Final = SlotRecord()


class Greeting:
    """See the module."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._order: dict[int, dict[str, Ordering]] = {}
        """By slot and node."""
        self._adopting: set[str] = set()
        self._held: dict[str, Peer] = {}
        """Nodes that were told to hold; some have gone since the last look."""

    def forget(self, slot: int, node: str) -> None:
        """Its Node is deleted: what comes under this name next is another node."""
        self._order.get(slot, {}).pop(node, None)

    def lost(self, slots: Collection[int]) -> None:
        """Other hubs order the connections of these slots' nodes from here on."""
        for slot in slots:
            self._order.pop(slot, None)

    def untold(self) -> int:
        """How many connected nodes are on hold whose Nodes do not say so yet: nobody who asks the API knows of them."""
        gateway = self._gateway
        self._held = {name: peer for name, peer in self._held.items() if gateway.peers.get(name) is peer}
        count = 0
        for name, peer in self._held.items():
            entry = gateway.nodes.cache.get("", name)
            said = (entry.meta.annotations or {}).get(reports.PARTED) if entry is not None else None
            count += peer.session is not None and said != peer.session.held
        return count

    def hello(self, peer: Peer, hello: Hello, body: bytes) -> None:
        """A node has said HELLO (`body`, as it came): welcome it, have it wait for who may, or end one connection or
        two."""
        assert peer.identity is not None
        name = peer.identity.node
        if self._gateway.refuses(peer):
            return
        if not self._gateway.slots.may_act(peer.slot) or not self._gateway.desired.ready(name):
            self._gateway.routing.arrived(peer, hello, body)
            return
        if self._gateway.peers.get(name) is not peer and not self._is_newest(peer, hello):
            return
        entry = self._gateway.nodes.cache.get("", name)
        if entry is not None:
            self._welcome(peer, hello, entry)
        elif name in self._adopting or len(self._adopting) >= ADOPTIONS_AT_ONCE:
            self._gateway.close_peer(
                peer, "overload", "the hub is making this node's Node; come back", self._gateway.jitter(1, 5)
            )
        else:
            self._adopting.add(name)
            self._gateway.serve(peer, self._adopt(peer, hello, body), f"adopt {name}")

    def _is_newest(self, peer: Peer, hello: Hello) -> bool:
        """Is it the connection of its node that counts? If so, the one before it is closed, else this one."""
        assert peer.identity is not None
        name = peer.identity.node
        order = self._order.setdefault(peer.slot, {}).setdefault(name, Ordering())
        was_cloned = order.cloned
        verdict = order.hello(
            hello.inc, hello.boot, hello.conn, self._gateway.now(), self._gateway.config.clone_quiet_s
        )
        if verdict is Verdict.LATE:
            self._gateway.close_peer(
                peer, "superseded", "a newer connection of this node is here", self._gateway.jitter(4, 8)
            )
            return False
        if order.cloned != was_cloned:
            change = functools.partial(reports.cloned, present=order.cloned)
            self._gateway.write_node(peer, lambda node, now: change(node, now=now))
        older = self._gateway.peers.get(name)
        if verdict is Verdict.CLONE:
            for one in (peer, older):
                if one is not None:
                    message = "two agents use this node's identity; both are refused until one is silent"
                    self._gateway.close_peer(one, "clone", message, self._clone_retry_s())
            return False
        if older is not None and older is not peer:
            self._gateway.close_peer(
                older, "superseded", "a newer connection of this node is here", self._gateway.jitter(4, 8)
            )
        peer.inc = hello.inc
        self._gateway.peers[name] = peer
        return True

    def _clone_retry_s(self) -> float:
        return self._gateway.jitter(
            0.8 * self._gateway.config.clone_retry_s, 1.2 * self._gateway.config.clone_retry_s
        )

    async def _adopt(self, peer: Peer, hello: Hello, body: bytes) -> None:
        """A valid certificate without a Node: makes one that says so; nothing is sent before somebody confirms."""
        assert peer.identity is not None
        name = peer.identity.node
        node = reports.new_node(peer.identity)
        reports.on_hold(
            node,
            reports.UNCONFIRMED,
            "a valid certificate, but no Node was enrolled here",
            hello.held,
            now_rfc3339(),
        )
        try:
            try:
                stored = await self._gateway.registry.create(
                    NODES, node, fence=self._gateway.slots.fence(peer.slot)
                )
            except errors.AlreadyExists:
                stored = await self._gateway.registry.get(NODES, "", name)
            await self._gateway.share.at_least(peer.slot, stored.revision)
        except errors.ApiError as failure:
            self._gateway.close_peer(
                peer,
                "overload",
                f"the Node cannot be made now: {failure.message}",
                self._gateway.jitter(5, 15),
            )
            return
        except FenceLost:
            self._gateway.fence_lost(peer.slot)
            return
        finally:
            self._adopting.discard(name)
        if self._gateway.peers.get(name) is not peer or peer.conn.owner is not peer:
            return  # it has gone, or waits for another owner
        if not self._gateway.slots.may_act(peer.slot) or not self._gateway.desired.ready(name):
            self._gateway.routing.arrived(peer, hello, body)
            return
        entry = self._gateway.nodes.cache.get("", name)
        if entry is not None:
            self._welcome(peer, hello, entry)

    def _welcome(self, peer: Peer, hello: Hello, entry: Entry[NodeView]) -> None:
        assert peer.identity is not None and peer.session is not None
        if self._gateway.refuses(peer):
            return  # the Node was made, or given to another machine, since HELLO was looked at
        if entry.partition != partition_of_slot(peer.slot):
            # Where the Node lies counts, not its site label: that is anybody's to edit, the slot was fixed at enrolment.
            self._gateway.close_peer(
                peer,
                "denied",
                f"the certificate is for site or name {peer.identity.affinity!r}, the Node was made for another;"
                " delete the Node, or join anew",
                300.0,
            )
            return
        if not self._gateway.desired.ready(entry.key[1]):
            message = "what the node's pods refer to is still being read; come back"
            self._gateway.close_peer(peer, "overload", message, self._gateway.jitter(1, 3))
            return
        standing = self._standing(peer, hello, entry)
        decided = answer(hello, standing, peer.session.digest())
        peer.session.refused = self._gateway.intake.refused_of(entry)
        # It may have waited long for its slot's owner, and heartbeats begin with WELCOME.
        peer.conn.heard = self._gateway.now()
        peer.conn.set_idle(self._gateway.config.patience_s)
        body = welcome(
            hello,
            standing,
            decided,
            heartbeat_s=self._gateway.config.heartbeat_s,
            window=self._gateway.config.window,
            now_unix=self._gateway.wall(),
        )
        peer.conn.send(wire.frame(wire.WELCOME, body))
        self._gateway.sessions.began(entry.key[1], self._gateway.wall())
        self._gateway.watch.liveness.connected(entry.key[1])
        self._note_standing(peer, hello, decided, entry)
        self._gateway.perform(peer, peer.session.welcomed(decided))

    def _standing(self, peer: Peer, hello: Hello, entry: Entry[NodeView]) -> Standing:
        owned = self._gateway.ownership.of(peer.slot)
        assert owned is not None  # `may_act` has just said so
        edge = owned if hello.claim is None else self._gateway.ownership.of(hello.claim.slot)
        history = self._gateway.history
        annotations = entry.meta.annotations or {}
        head = max(
            self._gateway.desired.revision,
            # What was read when the slot was loaded, which may be later than the last change of anything that is here.
            self._gateway.share.revision,
            self._gateway.answers.stored_revision,
            history.reached(owned),
        )
        return Standing(
            store=history.uuid,
            generation=history.generation,
            slot=peer.slot,
            claim=owned.claim,
            edge_record=history.record(edge.record if edge is not None else EMPTY_RECORD, head),
            head=head,
            unconfirmed=has_condition(entry, reports.UNCONFIRMED),
            parted=annotations.get(reports.PARTED),
            confirmed=annotations.get(reports.CONFIRMED),
        )

    def _note_standing(self, peer: Peer, hello: Hello, decided: Answer, entry: Entry[NodeView]) -> None:
        """Stores what has changed about the node, and only that."""
        if decided.sync == "hold":
            self._held[entry.key[1]] = peer
            if decided.condition:
                log.warning("node %s is on hold: %s", entry.key[1], decided.reason, extra=about(peer))
                hold = functools.partial(
                    reports.on_hold, condition=decided.condition, reason=decided.reason, held=hello.held
                )
                self._gateway.write_node(peer, lambda node, now: hold(node, now=now))
            return
        annotations = entry.meta.annotations or {}
        certified = self._gateway.bundles.welcomed(peer, hello.trust, entry)
        parted = reports.PARTED in annotations or has_condition(entry, reports.HISTORY_PARTED)
        if parted and not decided.taken_over and hello.held != NO_CLAIM:
            self._write(peer, reports.reunited, certified)
        elif not has_condition(entry, reports.READY):
            self._write(peer, reports.connected, certified)
        elif certified is not None:
            self._gateway.write_node(peer, certified)

    def _write(self, peer: Peer, change: reports.Change, more: reports.Change | None) -> None:
        """Both changes in one."""

        def both(node: Object, now: str) -> Object | None:
            changed = change(node, now)
            also = more(node, now) if more is not None else None
            return changed or also

        self._gateway.write_node(peer, both)
