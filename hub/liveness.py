"""Which nodes have fallen silent: kept in memory, reported only when it changes. [pure]

A connected node is alive; the transport closes a connection that is silent for three heartbeats. A node without a
connection has until three heartbeats after its last byte; then it is due to become Unknown, once. After a start, a
claim or a suspension every node gets three heartbeats anew (`restart`), since the silence may have been ours.

Invariant: nothing here is written anywhere; a heartbeat costs nothing (I4). Times are seconds of one clock.
"""

import itertools
from collections.abc import Iterable
from typing import Final

DUE_AT_ONCE: Final = 2_000
"""All nodes of a hub may have lost it at the same moment; each costs 10 µs of a turn of the loop."""


class Liveness:
    """Deadlines of the nodes that have no connection; `patience_s` is three heartbeats of that node."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def __len__(self) -> int:
        """Nodes without a connection whose time still runs."""
        return len(self._until)

    def __contains__(self, node: str) -> bool:
        """Has the node no connection, and time left?"""
        return node in self._until

    def connected(self, node: str) -> None:
        self._until.pop(node, None)

    def lost(self, node: str, heard: float, patience_s: float) -> None:
        """The connection has ended; its last byte came at `heard`."""
        self._until[node] = heard + patience_s

    def watch(self, node: str, now: float, patience_s: float) -> None:
        """A node that should be there and has no connection, unless its time runs already."""
        self._until.setdefault(node, now + patience_s)

    def forget(self, node: str) -> None:
        """The node is deleted, or known to be Unknown."""
        self._until.pop(node, None)

    def restart(self, now: float, patience_s: float) -> None:
        """Nobody's silence counts before `now`."""
        for node in self._until:
            self._until[node] = now + patience_s

    def due(self, now: float) -> list[str]:
        """Up to DUE_AT_ONCE nodes that have become silent since the last call; each is named once."""
        found = (node for node, until in self._until.items() if until <= now)
        silent = list(itertools.islice(found, DUE_AT_ONCE))
        for node in silent:
            del self._until[node]
        return silent

    def put_back(self, nodes: Iterable[str], at: float) -> None:
        """What could not be stored is due again at `at`."""
        for node in nodes:
            self._until.setdefault(node, at)
