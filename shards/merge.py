"""Events of several watches, merged by the store's revision. [pure]

Each source is a watch of its own range; ranges do not overlap. Revision R is given out only when every source has
progressed through R, so what one transaction changed in several ranges is one batch. Sources come and go while the
merge runs. What a source sends ahead of the slowest one is held, up to a bound in events and bytes.
"""

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from shards.kv import Event, WatchBatch

HELD_EVENTS_MAX = 50_000
HELD_BYTES_MAX = 64 << 20

S = TypeVar("S", bound=Hashable)


class MergeFull(Exception):
    """The slowest source is too far behind the others: end the watch, its consumer lists again."""


class RevisionMerge(Generic[S]):
    """Batches in ascending order of revision, each whole and once. `S` names a source.

    Every call that may complete revisions returns them. The last batch returned may be empty: it tells progress only.
    To add a range while the merge runs: `add(source, merge.emitted)`, which holds the merge there; list the range at a
    revision of at least that, tell `progress(source, listed)`, and watch it from there.
    """

    def __init__(self, *, events_max: int = HELD_EVENTS_MAX, bytes_max: int = HELD_BYTES_MAX) -> None:
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._reached: dict[S, int] = {}
        self._at_lowest = 0
        self._ahead: dict[int, list[tuple[S, tuple[Event, ...]]]] = {}
        self.emitted = 0
        """All revisions up to this one have been given out."""
        self.held = 0
        """Events that wait for slower sources."""
        self.held_bytes = 0
        """Bytes of the values in these."""

    def add(self, source: S, after: int) -> None:
        """A further source, which will tell of revisions > `after`. Raises ValueError if it is there already, or if
        `after` has been passed: what the source still has to tell would come too late."""
        if source in self._reached:
            raise ValueError(f"source {source!r} is merged already")
        if after < self.emitted:
            raise ValueError(f"source {source!r} starts after {after}, but {self.emitted} has been given out")
        if not self._reached:
            # Nobody was watched before, so nothing older can still come.
            self.emitted = after
        self._reached[source] = after
        self._at_lowest += after == self.emitted

    def remove(self, source: S) -> list[WatchBatch]:
        """The source is watched no more: what it sent and is still held is dropped, what waited for it is given
        out. Raises KeyError if it is not there."""
        del self._reached[source]
        for revision, parts in list(self._ahead.items()):
            kept = [part for part in parts if part[0] != source]
            if len(kept) == len(parts):
                continue
            for _, events in parts:
                self._count(events, -1)
            for _, events in kept:
                self._count(events, +1)
            if kept:
                self._ahead[revision] = kept
            else:
                del self._ahead[revision]
        self._recount()
        return self._ready()

    def feed(self, source: S, revision: int, events: Sequence[Event]) -> list[WatchBatch]:
        """All events of `revision` in the source's range; it has then progressed through it.

        Raises ValueError when the source had progressed that far already (nothing is taken), MergeFull when too much
        is held, KeyError for an unknown source."""
        reached = self._reached[source]
        if revision <= reached:
            raise ValueError(f"source {source!r} told of revision {revision} after {reached}")
        taken = tuple(events)
        if taken:
            self._ahead.setdefault(revision, []).append((source, taken))
            self._count(taken, +1)
        ready = self.progress(source, revision)
        if self.held > self._events_max or self.held_bytes > self._bytes_max:
            raise MergeFull(
                f"{self.held} events ({self.held_bytes} bytes) are held for {self.slowest()!r}, which is at revision"
                f" {self.emitted}; at most {self._events_max} events and {self._bytes_max} bytes are"
            )
        return ready

    def progress(self, source: S, revision: int) -> list[WatchBatch]:
        """The source has told everything through `revision`. Going back is no error and changes nothing: a store may
        answer an older question for progress after newer events."""
        reached = self._reached[source]
        if revision <= reached:
            return []
        self._reached[source] = revision
        if reached == self.emitted:
            self._at_lowest -= 1
        return self._ready()

    def progress_all(self, revision: int) -> list[WatchBatch]:
        """`progress` of every source: the store's answer for all watches of one stream."""
        for source, reached in self._reached.items():
            if reached < revision:
                self._reached[source] = revision
        self._recount()
        return self._ready()

    def slowest(self) -> S | None:
        """A source that all others wait for; None without sources."""
        return min(self._reached, key=self._reached.__getitem__, default=None)

    def _recount(self) -> None:
        self._at_lowest = sum(reached == self.emitted for reached in self._reached.values())

    def _ready(self) -> list[WatchBatch]:
        # Counting who is still at `emitted` keeps the common step O(1); the minimum is looked for only when all moved.
        if self._at_lowest or not self._reached:
            return []
        through = min(self._reached.values())
        batches = []
        for revision in sorted(r for r in self._ahead if r <= through):
            events: list[Event] = []
            for _, part in self._ahead.pop(revision):
                events += part
                self._count(part, -1)
            batches.append(WatchBatch(revision, tuple(events)))
        if not batches or batches[-1].revision < through:
            batches.append(WatchBatch(through, ()))
        self.emitted = through
        self._recount()
        return batches

    def _count(self, events: tuple[Event, ...], sign: int) -> None:
        self.held += sign * len(events)
        self.held_bytes += sign * sum(
            (len(e.kv.value) if e.kv else 0) + (len(e.prev.value) if e.prev else 0) for e in events
        )
