"""The order of one node's connections, and clones: two machines with one identity. [pure]

HELLO carries (journal incarnation, boot count, connection count). Within an incarnation the counts only grow, so the
highest connection is the newest and all others are dead, whatever TCP says. An agent whose data directory was copied
takes a new incarnation; one that is set up anew does as well, once. So a clone is: an incarnation that comes back
after another one, a count that comes twice, or counts that keep coming from below.

While a node counts as cloned every connection of it is refused and told to back off; it is cleared when, for
`quiet_s`, all that came could have been one machine.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

STRIKES_MAX: Final = 2
"""Late HELLOs from below that one machine may produce (a connection that was slow to open) before it is a clone."""


class Verdict(Enum):
    """What to do with a connection that says HELLO."""

    NEWEST = "newest"
    """Take it; close what was there before."""
    LATE = "superseded"
    """A newer one was here already: close it."""
    CLONE = "clone"


@dataclass(slots=True)
class Ordering:
    """The connections of one node. Times are seconds of any one clock."""

    inc: str = ""
    boot: int = -1
    conn: int = -1
    before: str = ""
    """The incarnation before the present one."""
    strikes: int = 0
    conflict_at: float | None = None
    """When the last sign of a clone was seen; None: not cloned."""

    @property
    def cloned(self) -> bool:
        return self.conflict_at is not None

    def hello(self, inc: str, boot: int, conn: int, now: float, quiet_s: float) -> Verdict:
        """Takes note of a HELLO and decides on its connection."""
        sign = self._sign_of_clone(inc, (boot, conn))
        late = inc == self.inc and (boot, conn) < (self.boot, self.conn)
        if inc != self.inc:
            self.before, self.inc = self.inc, inc
            self.boot, self.conn, self.strikes = boot, conn, 0
        elif not late:
            self.boot, self.conn = boot, conn
        if sign or (self.cloned and late):
            self.conflict_at = now
            return Verdict.CLONE
        if self.conflict_at is not None:
            if now - self.conflict_at < quiet_s:
                return Verdict.CLONE
            # `before` stays: when the other one comes back after all, it is known at once.
            self.conflict_at, self.strikes = None, 0
        return Verdict.LATE if late else Verdict.NEWEST

    def _sign_of_clone(self, inc: str, count: tuple[int, int]) -> bool:
        if inc != self.inc:
            return bool(self.inc) and (inc == self.before or self.cloned)
        if count == (self.boot, self.conn):
            return True
        if count < (self.boot, self.conn):
            self.strikes += 1
            return self.strikes > STRIKES_MAX
        return False
