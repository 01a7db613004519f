"""From HELLO to WELCOME: which connection of a node counts, whether its Node exists, and on what terms they go on.

Invariants: the newest connection is served and no other; a clone's are all refused. A node without a Node, or with a
history of its own, is told to hold (I9), and its Node says what an operator has to confirm.
"""

import functools
import logging
from typing import TYPE_CHECKING, Final

from edgelite import wire
from hub import errors, reports
from hub.cache import Entry
from hub.hello import NO_CLAIM, Answer, Hello, Standing, answer, welcome
from hub.objects import NODES, NodeView, partition_of_slot
from hub.ordering import Ordering, Verdict
from hub.peers import Peer
from hub.registry import FenceLost, now_rfc3339
from hub.reports import has_condition
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
        self._order: dict[str, Ordering] = {}
        self._adopting: set[str] = set()

    def forget(self, node: str) -> None:
        """Its Node is deleted: what comes under this name next is another node."""
        self._order.pop(node, None)

    def hello(self, peer: Peer, hello: Hello) -> None:
        """A node has said HELLO: welcome it, or end one connection or two."""
        assert peer.identity is not None
        name = peer.identity.node
        order = self._order.setdefault(name, Ordering())
        was_cloned = order.cloned
        verdict = order.hello(
            hello.inc, hello.boot, hello.conn, self._gateway.now(), self._gateway.config.clone_quiet_s
        )
        if verdict is Verdict.LATE:
            self._gateway.close_peer(
                peer, "superseded", "a newer connection of this node is here", self._gateway.jitter(4, 8)
            )
            return
        if order.cloned != was_cloned:
            change = functools.partial(reports.cloned, present=order.cloned)
            self._gateway.write_node(peer, lambda node, now: change(node, now=now))
        older = self._gateway.peers.get(name)
        if verdict is Verdict.CLONE:
            for one in (peer, older):
                if one is not None:
                    message = "two agents use this node's identity; both are refused until one is silent"
                    self._gateway.close_peer(one, "clone", message, self._clone_retry_s())
            return
        if older is not None and older is not peer:
            self._gateway.close_peer(
                older, "superseded", "a newer connection of this node is here", self._gateway.jitter(4, 8)
            )
        peer.inc = hello.inc
        self._gateway.peers[name] = peer
        entry = self._gateway.nodes.cache.get("", name)
        if entry is not None:
            self._welcome(peer, hello, entry)
        elif name in self._adopting or len(self._adopting) >= ADOPTIONS_AT_ONCE:
            self._gateway.close_peer(
                peer, "overload", "the hub is making this node's Node; come back", self._gateway.jitter(1, 5)
            )
        elif peer.slot in self._gateway.suspended or self._gateway.fence(peer.slot) is None:
            self._gateway.close_peer(
                peer,
                "overload",
                "this hub does not own the node's slot at present",
                self._gateway.jitter(5, 15),
            )
        else:
            self._adopting.add(name)
            self._gateway.spawn(self._adopt(peer, hello), f"adopt {name}")

    def _clone_retry_s(self) -> float:
        return self._gateway.jitter(
            0.8 * self._gateway.config.clone_retry_s, 1.2 * self._gateway.config.clone_retry_s
        )

    async def _adopt(self, peer: Peer, hello: Hello) -> None:
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
                    NODES, node, fence=self._gateway.fence(peer.slot)
                )
            except errors.AlreadyExists:
                stored = await self._gateway.registry.get(NODES, "", name)
            await self._gateway.nodes.at_least(stored.revision)
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
        entry = self._gateway.nodes.cache.get("", name)
        if entry is not None and self._gateway.peers.get(name) is peer and peer.conn.owner is peer:
            self._welcome(peer, hello, entry)

    def _welcome(self, peer: Peer, hello: Hello, entry: Entry[NodeView]) -> None:
        assert peer.identity is not None and peer.session is not None
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
        standing = self._standing(peer, hello, entry)
        if standing is None:
            self._gateway.close_peer(
                peer,
                "overload",
                "this hub does not own the node's slot at present",
                self._gateway.jitter(5, 15),
            )
            return
        decided = answer(hello, standing, peer.session.digest())
        peer.session.refused = self._gateway.intake.refused_of(entry)
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
        self._gateway.watch.liveness.connected(entry.key[1])
        self._note_standing(peer, hello, decided, entry)
        self._gateway.perform(peer, peer.session.welcomed(decided))

    def _standing(self, peer: Peer, hello: Hello, entry: Entry[NodeView]) -> Standing | None:
        owned = self._gateway.ownership.of(peer.slot)
        if owned is None:
            return None
        edge = owned if hello.claim is None else self._gateway.ownership.of(hello.claim.slot)
        identity = self._gateway.registry.store.identity
        annotations = entry.meta.annotations or {}
        return Standing(
            store=identity.uuid,
            generation=identity.generation,
            slot=peer.slot,
            claim=owned.claim,
            edge_record=edge.record if edge is not None else EMPTY_RECORD,
            head=max(self._gateway.desired.revision, self._gateway.stored_revision, owned.fence.mod_revision),
            unconfirmed=has_condition(entry, reports.UNCONFIRMED),
            parted=annotations.get(reports.PARTED),
            confirmed=annotations.get(reports.CONFIRMED),
            suspended="this hub has lost the node's slot" if peer.slot in self._gateway.suspended else "",
        )

    def _note_standing(self, peer: Peer, hello: Hello, decided: Answer, entry: Entry[NodeView]) -> None:
        """Stores what has changed about the node, and only that."""
        if decided.sync == "hold":
            if decided.condition:
                log.warning("node %s is on hold: %s", entry.key[1], decided.reason)
                hold = functools.partial(
                    reports.on_hold, condition=decided.condition, reason=decided.reason, held=hello.held
                )
                self._gateway.write_node(peer, lambda node, now: hold(node, now=now))
            return
        annotations = entry.meta.annotations or {}
        parted = reports.PARTED in annotations or has_condition(entry, reports.HISTORY_PARTED)
        if parted and not decided.taken_over and hello.held != NO_CLAIM:
            self._gateway.write_node(peer, reports.reunited)
        elif not has_condition(entry, reports.READY):
            self._gateway.write_node(peer, reports.connected)
