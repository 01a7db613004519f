"""Node objects and connections kept in step: who is silent, who was confirmed, who was deleted.

Invariant I4: only changes are written. The clock is the gateway's.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hub import errors, reports
from hub.cache import Entry
from hub.informer import Delta
from hub.liveness import Liveness
from hub.objects import NODES, NodeView
from hub.registry import Object, now_rfc3339
from hub.reports import ready_of
from hub.upstream import Update

if TYPE_CHECKING:
    from collections.abc import Callable

    from hub.gateway import Gateway

log = logging.getLogger(__name__)


class NodeWatch:
    """See the module."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self.liveness = Liveness()
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        """Every Node that should be here has three heartbeats from now."""
        now = self._gateway.now()
        for entry in self._gateway.nodes.cache:
            self.liveness.watch(entry.key[1], now, self._gateway.config.patience_s)
        self._unsubscribe = self._gateway.nodes.subscribe(self._on_nodes)

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
                self._gateway.greeting.forget(name)
                if peer is not None:
                    message = "the Node was deleted; join anew, or confirm this node when it comes back"
                    self._gateway.close_peer(peer, "denied", message, self._gateway.config.deleted_retry_s)
            elif peer is None:
                if delta.type == "ADDED":
                    self.liveness.watch(name, self._gateway.now(), self._gateway.config.patience_s)
            elif peer.session is None:
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
            if entry is None or name in self._gateway.peers or ready_of(entry) == "Unknown":
                continue
            if not self._write_silent(entry):
                refused.append(name)
        self.liveness.put_back(refused, now + self._gateway.config.heartbeat_s)

    def _write_silent(self, entry: Entry[NodeView]) -> bool:
        name = entry.key[1]

        def apply(node: Object) -> Object | None:
            return None if name in self._gateway.peers else reports.silent(node, now_rfc3339())

        def done(result: "int | errors.ApiError") -> None:
            if not isinstance(result, int):
                log.info("node %s: silence not stored: %s", name, result)

        slot = int(entry.partition)
        if slot in self._gateway.suspended:
            return False
        return self._gateway.upstream.submit(slot, Update(NODES, "", name, entry.meta.uid, apply, done))
