"""The present versions of the keys that were read or written of late, beside a store that is written by this process alone. [pure]

What is written is read again within moments, most often more than once: by whoever patches it, by the report about it, by the
compares of both. Each of these is a search in the database otherwise.

Bounds: HEADS_BYTES_MAX bytes; the oldest go first. An absent key is not remembered.
"""

from collections.abc import Iterable
from typing import Final

from shards.kv import Event, KeyValue

HEADS_BYTES_MAX: Final = 1 << 19
_OVERHEAD_BYTES: Final = 256
"""What an entry takes beside its key and value."""


class Heads:
    """See the module. It holds what has been committed, and no other version of a key than its newest."""

    def __init__(self, bytes_max: int = HEADS_BYTES_MAX) -> None:
        self._held: dict[str, KeyValue] = {}
        self._bytes = 0
        self._bytes_max = bytes_max

    def get(self, key: str) -> KeyValue | None:
        """None: it is not known here."""
        return self._held.get(key)

    def put(self, kv: KeyValue) -> None:
        """This is the newest version."""
        self.drop(kv.key)
        self._held[kv.key] = kv
        self._bytes += _size(kv)
        while self._bytes > self._bytes_max:
            oldest = next(iter(self._held))
            self.drop(oldest)

    def drop(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._bytes -= _size(held)

    def committed(self, events: Iterable[Event]) -> None:
        """These were committed, in this order."""
        for event in events:
            if event.kv is not None:
                self.put(event.kv)
            else:
                self.drop(event.key)


def _size(kv: KeyValue) -> int:
    return len(kv.key) + len(kv.value) + _OVERHEAD_BYTES
