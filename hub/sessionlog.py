"""When nodes came and went, as this replica saw it: what the fleet page shows of a node's past connections. [pure]

Kept in memory alone, for all nodes together, since a count per node would cost each of 100,000 something: the last
ENTRIES_MAX beginnings and ends. In a storm of reconnects that is the storm; of a quiet fleet it is days.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

ENTRIES_MAX: Final = 20_000
"""2 MB."""
SHOWN_MAX: Final = 50


class Entry(NamedTuple):
    """`at`: unix seconds. `why`: of an end, the word that it is counted under; "" for a beginning."""

    at: float
    node: str
    why: str


class SessionLog:
    """See the module."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries: deque[Entry] = deque(maxlen=entries_max)

    def began(self, node: str, at: float) -> None:
        self._entries.append(Entry(at, node, ""))

    def ended(self, node: str, why: str, at: float) -> None:
        self._entries.append(Entry(at, node, why or "closed"))

    def of(self, node: str, most: int = SHOWN_MAX) -> list[Entry]:
        """The last ones of a node, the newest first. Looks through all: 1 ms."""
        found: list[Entry] = []
        for entry in self._newest_first():
            if entry.node == node:
                found.append(entry)
                if len(found) == most:
                    break
        return found

    def _newest_first(self) -> Iterator[Entry]:
        return reversed(self._entries)
