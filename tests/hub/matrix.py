"""The cases of the admission matrix: every kind of peer x everything that can be sent x every relation of its object.

What must come out is said here once more, by hand and by another rule than the table's, so that neither a cell that was
changed nor one that was forgotten goes unseen.
"""

import itertools
from typing import NamedTuple

from edgelite import wire
from security.policy import FORMS, KINDS, RELATIONS, Table

MESSAGES = tuple(sorted((*wire.NAMES, 0, 24, 30, 32, 99, 255)))
"""Types that the wire knows, and some that it does not."""
WORDS = (*(s for s in FORMS if isinstance(s, str)), "lease", "secret", "")
SPOKEN_BY = {
    "stranger": {"BUNDLE", "JOIN", "GOAWAY"},
    "node": {
        "HELLO", "GOAWAY", "PING", "PAIRS", "ACK", "NACK", "REPORT", "DATA", "CREDIT", "CLOSE", "RENEW", "BUNDLE",
        "node", "pod", "gone", "event", "token", "static", "twin", "piece",
    },
    "hub": {"relay:node", "relay:log", "relay:stream", "relay:document"},
}  # fmt: skip


class Case(NamedTuple):
    kind: str
    subject: int | str
    relation: str
    oversize: bool = False

    @property
    def name(self) -> str:
        return wire.NAMES.get(self.subject, "unknown") if isinstance(self.subject, int) else self.subject

    @property
    def allowed(self) -> bool:
        """What must come out."""
        if self.oversize or self.name not in SPOKEN_BY.get(self.kind, ()):
            return False
        return self.relation == "own" or (self.name == "PAIRS" and self.relation in ("absent", "cluster"))

    def passes(self, table: Table) -> bool:
        """What comes out of this table."""
        size = (16 << 20) if self.oversize else 0
        return table.judge(self.kind, self.subject, self.relation, size) is None


def cases() -> list[Case]:
    found = [Case(*axes) for axes in itertools.product(KINDS, (*MESSAGES, *WORDS), RELATIONS)]
    return found + [Case(k, s, "own", True) for k, s in itertools.product(KINDS, (*MESSAGES, *WORDS))]
