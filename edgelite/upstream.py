"""What the agent has to tell the hub: numbered, journalled, resent until the hub has stored it. [pure]

An entry is {"n","k","t","b"}, kept under `up/<n>`. Numbers are unique within a journal incarnation; they are reserved
in blocks (`meta/n`), so that a number is never used twice although its entry was long forgotten. A newer entry of the
same (type, key) replaces the older one; events never do.

Invariant: an entry is offered for sending only after `committed`, that is once it is durable. Volatile entries
(those that are worked out anew at every start, such as the node's facts) are never journalled and need no sync.

Bounds: EVENTS_MAX events wait, or as many as the driver says (then the oldest is dropped and counted), and one state per
(type, key).
Runs on MicroPython.
"""

import json

from edgelite.desired import compact

PREFIX = "up/"
COUNTER = "meta/n"
BLOCK = 1000
EVENTS_MAX = 1000
ENTRY_BYTES_MAX = 256 << 10
REPORT_BYTES_MAX = 128 << 10
REPORT_ENTRIES_MAX = 64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Writes = list[tuple[str, bytes | None]]


class _Entry:
    __slots__ = ("body", "durable", "key", "kind", "volatile")

    def __init__(self, kind: str, key: str, body: bytes, volatile: bool, durable: bool) -> None:
        self.kind = kind
        self.key = key
        self.body = body
        self.volatile = volatile
        self.durable = durable


class Upstream:
    """The entries that the hub has not acknowledged. events_max: how many of them may be events; `dropped_events` counts those
    given up for lack of room."""

    def __init__(self, events_max: int = EVENTS_MAX) -> None:
        self._events_max = events_max
        self._entries: "dict[int, _Entry]" = {}
        self._newest: "dict[tuple[str, str], int]" = {}
        self._events = 0
        self._next = 1
        self._reserved = 1
        self._reserved_durably = 1
        self._in_flight: "dict[int, bool]" = {}
        self.dropped_events = 0

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, items: "list[tuple[str, bytes]]") -> None:
        """Takes the journal's `up/` and `meta/n` items."""
        for name, value in sorted(items):
            if name == COUNTER:
                self._next = self._reserved = self._reserved_durably = int(value)
            elif name.startswith(PREFIX):
                entry = json.loads(value)
                self._keep(entry["n"], _Entry(entry["t"], entry["k"], value, False, True))

    def add(self, kind: str, key: str, body: "dict[str, Any]", volatile: bool = False) -> "Writes":
        """Queues an entry; returns what to journal. Raises ValueError above ENTRY_BYTES_MAX."""
        writes: "Writes" = []
        number = self._next
        if number + BLOCK // 2 >= self._reserved:
            # Half a block ahead, so that a volatile entry can be numbered while the disk is full.
            self._reserved = number + BLOCK + BLOCK // 2
            writes.append((COUNTER, str(self._reserved).encode()))
        data = compact({"n": number, "k": key, "t": kind, "b": body})
        if len(data) > ENTRY_BYTES_MAX:
            raise ValueError(
                "a report of type %s has %d bytes, at most %d are allowed"
                % (kind, len(data), ENTRY_BYTES_MAX)
            )
        self._next = number + 1
        older = None if kind == "event" else self._newest.get((kind, key))
        if older is not None:
            writes.extend(self._forget(older))
        elif kind == "event" and self._events >= self._events_max:
            writes.extend(self._forget(self._oldest_event()))
            self.dropped_events += 1
        ready = volatile and number < self._reserved_durably
        self._keep(number, _Entry(kind, key, data, volatile, ready))
        if not volatile:
            writes.append((_name(number), data))
        return writes

    def committed(self) -> None:
        """Everything added so far is durable."""
        self._reserved_durably = self._reserved
        for entry in self._entries.values():
            entry.durable = True

    def reset(self) -> None:
        """A new connection: nothing is in flight."""
        self._in_flight = {}

    def batch(self, window: int) -> "list[bytes]":
        """The next entries to send, oldest first: at most REPORT_BYTES_MAX and REPORT_ENTRIES_MAX, and never more
        than `window` unanswered ones. They count as in flight."""
        out: "list[bytes]" = []
        size = 0
        room = min(window - len(self._in_flight), REPORT_ENTRIES_MAX)
        if room <= 0 or len(self._in_flight) == len(self._entries):
            return out
        for number in sorted(self._entries):
            entry = self._entries[number]
            if number in self._in_flight or not entry.durable:
                continue
            if len(out) >= room or (out and size + len(entry.body) > REPORT_BYTES_MAX):
                break
            out.append(entry.body)
            size += len(entry.body)
            self._in_flight[number] = True
        return out

    def stored(self, numbers: "list[int]") -> "tuple[list[tuple[str, str, bytes]], Writes]":
        """The hub has stored (or refused for good) these: ((type, key, entry) of each that was waiting, what to
        journal). Numbers that were replaced meanwhile are ignored."""
        done: "list[tuple[str, str, bytes]]" = []
        writes: "Writes" = []
        for number in numbers:
            entry = self._entries.get(number)
            if entry is not None:
                done.append((entry.kind, entry.key, entry.body))
                writes.extend(self._forget(number))
        return done, writes

    def _keep(self, number: int, entry: _Entry) -> None:
        self._entries[number] = entry
        if entry.kind == "event":
            self._events += 1
        else:
            self._newest[(entry.kind, entry.key)] = number
        if number >= self._next:
            self._next = number + 1

    def _forget(self, number: int) -> "Writes":
        entry = self._entries.pop(number)
        self._in_flight.pop(number, None)
        if entry.kind == "event":
            self._events -= 1
        elif self._newest.get((entry.kind, entry.key)) == number:
            del self._newest[(entry.kind, entry.key)]
        return [] if entry.volatile else [(_name(number), None)]

    def _oldest_event(self) -> int:
        return min([n for n, e in self._entries.items() if e.kind == "event"])


def _name(number: int) -> str:
    return PREFIX + "%012d" % number
