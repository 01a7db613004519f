"""All nodes of the fleet by name, as the fleet page needs them, and what has changed since somebody looked. [pure]

A row is four fields, so that 100,000 nodes are some 20 MB and not a cache of Node objects. A snapshot is the whole as
columns; after it a viewer gets the changes by revision. Changes name nodes and say what they are now: to get one twice
does no harm.

Bounds: NODES_MAX rows (the others are counted and named nowhere); LOG_BYTES_MAX of changes are kept for viewers, who
begin anew when they are slower than that.
"""

from collections import deque
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import orjson

from hub.fleet.states import STATES, Row

NODES_MAX: Final = 250_000
LOG_BYTES_MAX: Final = 4 << 20
_ZERO: Final = ord("0")
CHANGES_MAX: Final = 2_000
"""Nodes in one line of changes: a hundred KB, made in 2 ms."""


@dataclass(frozen=True, slots=True)
class Change:
    """A line of changes. `through`: no state in it is younger than this revision; `serial`: its number in this roster."""

    serial: int
    through: int
    line: bytes


@dataclass(frozen=True, slots=True)
class Picture:
    """What a snapshot is made of, copied out: it can be encoded in a thread."""

    revision: int
    omitted: int
    rows: list[tuple[str, Row]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An encoded picture. `made`: seconds of any clock."""

    made: float
    revision: int
    body: bytes


class Roster:
    """See the module. `revision`: of the store, up to which all is in here."""

    def __init__(self, revision: int, nodes_max: int = NODES_MAX) -> None:
        self.revision = revision
        self.counts = [0] * len(STATES)
        self._nodes_max = nodes_max
        self._rows: dict[str, Row] = {}
        self._omitted: set[int] = set()
        """Hashes of the names beyond the bound: 60 bytes each, where a row takes 200."""
        self._dirty: dict[str, None] = {}
        self._log: deque[Change] = deque()
        self._log_bytes = 0
        self._log_after = revision
        self._told = revision
        """The log's lines have all of it."""
        self.serial = 0
        """Of the last line."""
        self.snapshot: Snapshot | None = None
        """The last that was made for a viewer."""

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, name: str) -> Row | None:
        return self._rows.get(name)

    @property
    def omitted(self) -> int:
        """Nodes beyond the bound."""
        return len(self._omitted)

    def put(self, name: str, row: Row) -> None:
        old = self._rows.get(name)
        if old == row:
            return
        if old is None and len(self._rows) >= self._nodes_max:
            self._omitted.add(hash(name))
            return
        if old is not None:
            self.counts[old.state] -= 1
        elif self._omitted:
            self._omitted.discard(hash(name))
        self.counts[row.state] += 1
        self._rows[name] = row
        self._dirty[name] = None

    def drop(self, name: str) -> None:
        old = self._rows.pop(name, None)
        if old is None:
            self._omitted.discard(hash(name))
            return
        self.counts[old.state] -= 1
        self._dirty[name] = None

    def settle(self) -> None:
        """What is in here was listed, and is no change."""
        self._dirty.clear()

    def tick(self) -> bool:
        """Puts what has changed since the last tick into the log, at most CHANGES_MAX nodes of it; False: nothing had."""
        if not self._dirty:
            return False
        names = list(self._dirty)[:CHANGES_MAX]
        rest = len(self._dirty) > len(names)
        for name in names:
            del self._dirty[name]
        there = [(name, row) for name in names if (row := self._rows.get(name)) is not None]
        if not rest:
            self._told = self.revision
        line = {
            "type": "nodes",
            # A viewer has seen a revision only once it has all of it.
            "revision": self._told,
            "set": [[name, row.state, row.slot, row.site, row.pool] for name, row in there],
            "gone": [name for name in names if name not in self._rows],
        }
        self.serial += 1
        change = Change(self.serial, self.revision, orjson.dumps(line) + b"\n")
        self._log.append(change)
        self._log_bytes += len(change.line)
        while self._log_bytes > LOG_BYTES_MAX and len(self._log) > 1:
            gone = self._log.popleft()
            self._log_bytes -= len(gone.line)
            self._log_after = gone.through
        return True

    def after(self, revision: int) -> int | None:
        """The serial number after which a viewer who has seen `revision` has to read; None: it is not kept that far, or
        is of another past."""
        if revision < self._log_after or revision > self.revision:
            return None
        serial = self.serial
        for change in reversed(self._log):
            if change.through <= revision:
                break
            serial = change.serial - 1
        return serial

    def since(self, serial: int) -> list[Change] | None:
        """The lines after this one; None when they are not all kept."""
        if serial < self.serial - len(self._log):
            return None
        missing = self.serial - serial
        return [self._log[at] for at in range(len(self._log) - missing, len(self._log))]

    def picture(self) -> Picture:
        return Picture(self.revision, self.omitted, list(self._rows.items()))


def encode(picture: Picture, slots: int) -> bytes:
    """The snapshot as JSON: columns in the order of names. `state` has a digit per node, the place in `states`; `site`
    and `pool` are places in `sites` and `pools`, and empty where nobody has one. `slots`: how many there are."""
    rows = sorted(picture.rows, key=itemgetter(0))
    sites, site = _places([row.site for _, row in rows])
    pools, pool = _places([row.pool for _, row in rows])
    whole: dict[str, Any] = {
        "revision": picture.revision,
        "omitted": picture.omitted,
        "slots": slots,
        "states": STATES,
        "sites": sites,
        "pools": pools,
        "names": [name for name, _ in rows],
        "state": bytes([_ZERO + row.state for _, row in rows]).decode(),
        "slot": [row.slot for _, row in rows],
        "site": site,
        "pool": pool,
    }
    return orjson.dumps(whole)


def _places(values: list[str]) -> tuple[list[str], list[int]]:
    """Different values, sorted, and the place of each among them."""
    different = sorted(set(values))
    if different in ([], [""]):
        return [], []
    place = {value: at for at, value in enumerate(different)}
    return different, [place[value] for value in values]
