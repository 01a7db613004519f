"""Which node's lease is renewed when: each once in a period, spread so evenly that no second sees more than its share.
[pure]

Whoever was renewed longest ago is next, at a rate of nodes / period; a node that is new here, or back, does not wait for
its turn, within a rate of its own. What could not be done in time is not made up for in a burst. Times are seconds of
one clock.
"""

from collections import OrderedDict
from collections.abc import Collection
from typing import Final

FRESH_PER_S: Final = 50.0
FRESH_AT_ONCE: Final = 10.0
CATCH_UP_S: Final = 1.0


class Trickle:
    """See the module. Every node that `due` names is at the end of the line again."""

    def __init__(self, period_s: float) -> None:
        if period_s <= 0:
            raise ValueError(f"a period of {period_s:g} s; it has to be above 0")
        self._period_s = period_s
        self._line: OrderedDict[str, float] = OrderedDict()
        """Nodes with the time of their last turn, oldest first."""
        self._fresh: OrderedDict[str, None] = OrderedDict()
        self._at: float | None = None
        self._turns = 0.0
        self._fresh_turns = 0.0

    def __len__(self) -> int:
        return len(self._line) + len(self._fresh)

    def set_nodes(self, alive: Collection[str]) -> None:
        """These are alive, and no others."""
        for line in (self._line, self._fresh):
            for node in [node for node in line if node not in alive]:
                del line[node]
        for node in alive:
            if node not in self._line:
                self._fresh[node] = None

    def again(self, node: str) -> None:
        """Its turn came to nothing, and it should not wait for the next."""
        if self._line.pop(node, None) is not None:
            self._fresh[node] = None

    def due(self, now: float, most: int) -> list[str]:
        """Up to `most` nodes whose turn it is."""
        passed_s = 0.0 if self._at is None else max(0.0, now - self._at)
        self._at = now
        rate = len(self._line) / self._period_s
        self._turns = min(self._turns + passed_s * rate, max(1.0, CATCH_UP_S * rate))
        self._fresh_turns = min(self._fresh_turns + passed_s * FRESH_PER_S, FRESH_AT_ONCE)
        turn: list[str] = []
        while self._fresh and self._fresh_turns >= 1 and len(turn) < most:
            self._fresh_turns -= 1
            turn.append(self._fresh.popitem(last=False)[0])
        while self._line and self._turns >= 1 and len(turn) < most:
            self._turns -= 1
            turn.append(self._line.popitem(last=False)[0])
        for node in turn:
            self._line[node] = now
        return turn

    def oldest_s(self, now: float) -> float:
        """How long ago the turn was of whoever has waited longest; 0 when nobody waits."""
        return now - next(iter(self._line.values())) if self._line else 0.0
