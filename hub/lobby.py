"""Who may begin a TLS handshake, and who waits: a bound on handshakes a second that is fair to those who were here before. [pure]

A handshake costs the hub about a millisecond, a socket that waits costs it nothing but a descriptor. So after an outage, or
under a flood, accepted sockets wait here, in two lines: sources (addresses) from which a node has come lately, and all
others. Each line gets half of the handshakes while both wait, all of them while it is alone; of unknown sources none may
hold more than its share of the line. A line waits as long as there is no room for it among the handshakes in flight, which
the caller counts: one that was begun and then pushed out by the next would be paid for twice. Who finds its line full is turned away before any TLS: agents come back with growing
pauses of which half is chance (`edgelite.backoff`).

Bounds: `waiting_max` a line, `per_source_max` of one unknown source, SOURCES_MAX known sources, the one that was silent
longest is forgotten first. Time is an argument, in seconds.
"""

import functools
import ipaddress
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from security.buckets import Bucket

SOURCES_MAX: Final = 32_768
KNOWN_S: Final = 86_400.0
"""How long a source stays known after a node has come from it."""

SOURCES_CACHED: Final = 4096
"""Addresses whose source is not worked out anew, as those of a site's gateway."""
AT_ONCE: Final = 32
"""Begun by one call: wrapping a socket takes 0.1 ms, and after a quiet time a second's worth may begin."""
LATE_AT_ONCE: Final = 256
"""Closed by one call."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LobbyLimits:
    """handshakes_s: begun in a second; each takes about 1 ms of a core, and who is slower begins fewer (`admit`'s `room`).
    waiting_max: accepted sockets in one line. waiting_s: how long one waits, less than agents do. per_source_max: of one
    unknown source, many nodes may be behind one address."""

    handshakes_s: float = 1000.0
    waiting_max: int = 4096
    waiting_s: float = 10.0
    per_source_max: int = 512


class Guest(NamedTuple, Generic[T]):
    """`known`: the line that it waited in; its source may have become known meanwhile."""

    item: T
    source: str
    since: float
    known: bool


class Lobby(Generic[T]):
    """See the module."""

    def __init__(self, limits: LobbyLimits, now: float) -> None:
        self._limits = limits
        self._bucket = Bucket(limits.handshakes_s, limits.handshakes_s, now)
        self._lines: tuple[deque[Guest[T]], deque[Guest[T]]] = (deque(), deque())
        """Unknown sources, known ones."""
        self._turn = 0
        self._strangers: Counter[str] = Counter()
        """How many of each unknown source wait."""
        self._known: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lines[0]) + len(self._lines[1])

    def is_known(self, source: str, now: float) -> bool:
        return self._known.get(source, -KNOWN_S) + KNOWN_S > now

    def vouch(self, source: str, now: float) -> None:
        """A node has come from there."""
        self._known[source] = now
        self._known.move_to_end(source)
        if len(self._known) > SOURCES_MAX:
            self._known.popitem(last=False)

    def arrive(self, item: T, source: str, now: float) -> bool:
        """Takes an accepted socket; False: turn it away."""
        known = self.is_known(source, now)
        line = self._lines[known]
        if len(line) >= self._limits.waiting_max:
            return False
        if not known:
            if self._strangers[source] >= self._limits.per_source_max:
                return False
            self._strangers[source] += 1
        line.append(Guest(item, source, now, known))
        return True

    def admit(
        self, now: float, room: tuple[int, int] = (AT_ONCE, AT_ONCE)
    ) -> tuple[list[Guest[T]], list[Guest[T]]]:
        """(who begins now, who has waited too long and is to be closed). `room`: how many of unknown and of known sources may
        begin at most."""
        begin: list[Guest[T]] = []
        late: list[Guest[T]] = []
        for known, line in enumerate(self._lines):
            while line and line[0].since + self._limits.waiting_s < now and len(late) < LATE_AT_ONCE:
                late.append(self._leave(known))
        left = list(room)
        while len(begin) < AT_ONCE:
            first = self._turn ^ 1
            turn = next((n for n in (first, first ^ 1) if self._lines[n] and left[n] > 0), None)
            if turn is None or not self._bucket.try_take(1.0, now):
                break
            self._turn = turn
            left[turn] -= 1
            begin.append(self._leave(turn))
        return begin, late

    def waits(self, known: bool) -> int:
        """How many stand in that line."""
        return len(self._lines[known])

    def clear(self) -> list[Guest[T]]:
        """Empties it; returns who was there."""
        left = [*self._lines[0], *self._lines[1]]
        for line in self._lines:
            line.clear()
        self._strangers.clear()
        return left

    def _leave(self, known: int) -> Guest[T]:
        guest = self._lines[known].popleft()
        if not known:
            self._strangers[guest.source] -= 1
            if not self._strangers[guest.source]:
                del self._strangers[guest.source]
        return guest


@functools.lru_cache(maxsize=SOURCES_CACHED)
def source_of(host: str) -> str:
    """What counts as one source: an IPv4 address, or the 64 bits of an IPv6 one that are a network."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    mapped = address.ipv4_mapped
    return str(mapped) if mapped is not None else address.packed[:8].hex()
