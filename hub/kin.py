"""The caches of one kind in one process: what several of them hold of an object is one Entry, decoded once (I7). [pure]

A replica's share, its scheduler and its controllers follow Pods each by itself, for each begins, ends and lags by itself,
and a share has its slots where a role's owner has all. So every cache files what its own watch tells it, and at its own
time; but of an object in one state (key and resourceVersion) all of them file the same Entry: whoever comes first makes
it of what the most demanding of them wants, whoever comes later finds it. The bytes are in it where a share wants them.

Invariant: a cache is given at least what it asks for (its form and its bytes). Does not guarantee that nothing is held
twice: what was filed before a more demanding cache came is the old Entry until that one has filed its own.
"""

from collections.abc import Sequence
from typing import Any

from hub.cache import NO_BYTES, Cache, Entry, Keep, Key, Slim

Form = Keep | Slim | None
"""What a cache keeps of an object: its `keep` or `slim`; None: its whole view."""


class Kin:
    """See the module. `forms`: those of the caches that join, from the least to the most: each has all that is in those
    before it. None are named where all caches keep the whole view and no note. All have to follow the same store."""

    def __init__(self, *forms: Form) -> None:
        self._forms = forms
        self._members: tuple[Cache[Any], ...] = ()
        self._richest: Cache[Any] | None = None

    def join(self, cache: Cache[Any]) -> None:
        """From now on `cache` shares what it is given with the others. Raises ValueError for a form that is not known."""
        cache.rank = self._forms.index(cache.form) if self._forms else 0
        self._set((*self._members, cache))

    def leave(self, cache: Cache[Any]) -> None:
        """What the others hold stays as it is until it changes."""
        self._set(tuple(member for member in self._members if member is not cache))

    def _set(self, members: tuple[Cache[Any], ...]) -> None:
        self._members = members
        self._richest = max(members, key=lambda member: member.rank, default=None)

    def entry(self, cache: Cache[Any], key: Key, partition: str, revision: int, raw: bytes) -> Entry[Any]:
        """What `cache` is to file for these stored bytes; made only as far as no other has it."""
        held: Entry[Any] | None = None
        for member in self._members:
            found = member.entries.get(key)
            if found is not None and found.revision == revision and found.partition == partition:
                held = found if held is None or held is found else _both(held, found)
        if held is not None and held.rank >= cache.rank and (cache.thin or held.blob):
            return held
        packed = NO_BYTES if cache.thin else cache.pack(raw)
        if held is not None and held.rank >= cache.rank:
            return Entry(held.key, partition, revision, held.view, held.note, held.rank, *packed)
        richest = self._richest if self._richest is not None else cache
        view, note = richest.shape(raw)
        return Entry(cache.same(key, view.metadata), partition, revision, view, note, richest.rank, *packed)

    def unite(self, entry: Entry[Any]) -> Entry[Any]:
        """What is to be filed in place of `entry`, so that all who hold this state of the object hold one; who holds less is
        given it."""
        poorer: list[Cache[Any]] = []
        for member in self._members:
            found = member.entries.get(entry.key)
            if found is None or found is entry or found.revision != entry.revision:
                continue
            if found.partition == entry.partition:
                entry = _both(entry, found)
                poorer.append(member)
        for member in poorer:
            if member.entries.get(entry.key) is not entry:
                member.put(entry)
        return entry

    def forgotten(self, entries: Sequence[Entry[Any]]) -> None:
        """A share has dropped these: who still holds them, and wants no bytes, need not keep theirs."""
        thin = [member for member in self._members if member.thin]
        for entry in entries:
            holders = [m for m in thin if m.entries.get(entry.key) is entry] if entry.blob else []
            if holders:
                bare = entry.bare()
                for member in holders:
                    member.swap(bare)


def _both(one: Entry[Any], other: Entry[Any]) -> Entry[Any]:
    """Of two of the same state, one that has what both have."""
    top, low = (one, other) if one.rank >= other.rank else (other, one)
    if top.blob or not low.blob:
        return top
    return Entry(
        top.key, top.partition, top.revision, top.view, top.note, top.rank, unpack=low.unpack, blob=low.blob
    )
