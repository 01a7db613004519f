"""How many Nodes the slots of this replica have, and how many of them are connected: counted as they come and go.

`hub.status` asks every two seconds. To count 10,000 nodes anew each time would be half of what their heartbeats may cost.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hub.cache import Entry
from hub.mirror import Delta
from hub.objects import NodeView

if TYPE_CHECKING:
    from hub.gateway import Gateway


class Census:
    """See the module. Lives as long as the gateway."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._nodes = Counter(int(entry.partition) for entry in gateway.nodes.cache)
        gateway.nodes.subscribe(self._on_nodes, self._on_forgotten)
        self._counted: tuple[int, int] | None = None
        """At which changes of the connections the next two were counted."""
        self._connected: dict[int, int] = {}
        self._bundles: dict[str, int] = {}

    def nodes(self) -> dict[int, int]:
        """Nodes by slot; slots without are left out."""
        return dict(sorted((+self._nodes).items()))

    def connected(self) -> dict[int, int]:
        """Connected nodes by slot, here or relayed; slots without are left out."""
        self._count()
        return self._connected

    def bundles(self) -> dict[str, int]:
        """Connected nodes by the trust bundle that they hold, of those that know bundles."""
        self._count()
        return self._bundles

    def _count(self) -> None:
        gateway = self._gateway
        changes = gateway.peers.changes, gateway.bundles.changes
        if changes != self._counted:
            self._counted = changes
            self._connected = dict(sorted(Counter(peer.slot for peer in gateway.peers.values()).items()))
            self._bundles = gateway.bundles.figures()

    def _on_nodes(self, deltas: Sequence[Delta[NodeView]], revision: int) -> None:
        for delta in deltas:
            if delta.old is not None:
                self._nodes[int(delta.old.partition)] -= 1
            if delta.type != "DELETED":
                self._nodes[int(delta.entry.partition)] += 1

    def _on_forgotten(self, entries: Sequence[Entry[NodeView]]) -> None:
        for entry in entries:
            self._nodes[int(entry.partition)] -= 1
