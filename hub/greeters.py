"""Connections of nodes that have not said HELLO yet: a few for each node, so that none takes the places of all.

From HELLO on a node has one connection (`hub.ordering`). Before it, whoever has one certificate could open as many as
the port has places, and hold each with a byte now and then. Bound: PER_NODE_MAX; one more, and the oldest is closed. An
agent opens the next connection only when the one before has ended, so an honest node has one, or two while a dead link
is not known to be dead.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hub.peers import Peer

PER_NODE_MAX: Final = 4


class Greeters:
    """See the module."""

    def __init__(self) -> None:
        self._by_node: dict[str, list[Peer]] = {}

    def __len__(self) -> int:
        """Nodes that have such a connection."""
        return len(self._by_node)

    def came(self, node: str, peer: "Peer") -> "Peer | None":
        """A connection of `node` is there; whom to close for it."""
        waiting = [p for p in self._by_node.get(node, ()) if _is_waiting(p)]
        waiting.append(peer)
        self._by_node[node] = waiting
        return waiting.pop(0) if len(waiting) > PER_NODE_MAX else None

    def went(self, node: str, peer: "Peer") -> None:
        """It has said HELLO, or has ended."""
        waiting = [p for p in self._by_node.get(node, ()) if p is not peer and _is_waiting(p)]
        if waiting:
            self._by_node[node] = waiting
        else:
            self._by_node.pop(node, None)


def _is_waiting(peer: "Peer") -> bool:
    return peer.conn.owner is peer and peer.session is not None and peer.session.state == "hello"
