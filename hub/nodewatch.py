"""Node objects and connections kept in step: who is silent, who was confirmed, who was deleted.

Invariant I4: only changes are written. The clock is the gateway's.
"""

import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from hub import errors, reports
from hub.cache import Entry
from hub.informer import Delta
from hub.liveness import Liveness
from hub.objects import NODES, NodeView, partition_of_slot
from hub.registry import Object, now_rfc3339
from hub.reports import ready_of
from hub.upstream import Update

if TYPE_CHECKING:
    from collections.abc import Callable

    from hub.gateway import Gateway
from observability.logs import about

log = logging.getLogger(__name__)


class NodeWatch:
    """See the module."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self.liveness = Liveness()
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        self._unsubscribe = self._gateway.nodes.subscribe(self._on_nodes)

    def gained(self, slots: Collection[int]) -> None:
        """Every Node of these slots that is not connected has three heartbeats from now."""
        now, wanted = self._gateway.now(), {partition_of_slot(slot) for slot in slots}
        for entry in self._gateway.nodes.cache:
            if entry.partition in wanted and entry.key[1] not in self._gateway.peers:
                self.liveness.forget(entry.key[1])
                self.liveness.watch(entry.key[1], now, self._gateway.config.patience_s)

    def lost(self, slots: Collection[int]) -> None:
        """The silence of these slots' nodes is another hub's to find."""
        if not slots or not len(self.liveness):
            return
        wanted = {partition_of_slot(slot) for slot in slots}
        for entry in self._gateway.nodes.cache:
            if entry.partition in wanted:
                self.liveness.forget(entry.key[1])

    def restart(self) -> None:
        """The silence may have been ours: three heartbeats anew for all that are not connected."""
        self.liveness.restart(self._gateway.now(), self._gateway.config.patience_s)

    def stop(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def _on_nodes(self, deltas: Sequence[Delta[NodeView]], revision: int) -> None:
        for delta in deltas:
            name = delta.entry.key[1]
            peer = self._gateway.peers.get(name)
            if delta.type == "DELETED":
                self.liveness.forget(name)
                self._gateway.greeting.forget(int(delta.entry.partition), name)
                if peer is not None:
                    message = "the Node was deleted; join anew, or confirm this node when it comes back"
                    self._gateway.close_peer(peer, "denied", message, self._gateway.config.deleted_retry_s)
            elif peer is None:
                if delta.type == "ADDED" and int(delta.entry.partition) in self._gateway.slots.serving:
                    self.liveness.watch(name, self._gateway.now(), self._gateway.config.patience_s)
            elif peer.session is None or self._gateway.refuses(peer):
                continue
            elif peer.session.state == "live" and ready_of(delta.entry) != "True":
                # It was stored as silent while it came back.
                self._gateway.write_node(peer, reports.connected)
            elif peer.session.state == "hold":
                confirmed = (delta.entry.meta.annotations or {}).get(reports.CONFIRMED)
                if confirmed is not None and confirmed == peer.session.held:
                    self._gateway.close_peer(peer, "resync", "an operator has confirmed this node", 0.0)

    def find_silent(self) -> None:
        """Stores who has become silent since the last call."""
        now = self._gateway.now()
        refused: list[str] = []
        for name in self.liveness.due(now):
            entry = self._gateway.nodes.cache.get("", name)
            if entry is None or name in self._gateway.peers:
                continue
            if int(entry.partition) not in self._gateway.slots.serving or ready_of(entry) == "Unknown":
                continue
            if not self._write_silent(entry):
                refused.append(name)
        self.liveness.put_back(refused, now + self._gateway.config.heartbeat_s)

    def _write_silent(self, entry: Entry[NodeView]) -> bool:
        name, slot = entry.key[1], int(entry.partition)
        if not self._gateway.slots.may_act(slot):
            return False

        def apply(node: Object) -> Object | None:
            if name in self._gateway.peers or not self._gateway.slots.may_act(slot):
                return None
            return reports.silent(node, now_rfc3339())

        def done(result: "int | errors.ApiError") -> None:
            if not isinstance(result, int):
                log.info("node %s: silence not stored: %s", name, result, extra=about(node=name, slot=slot))

        return self._gateway.upstream.submit(slot, Update(NODES, "", name, entry.meta.uid, apply, done))
