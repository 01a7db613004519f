"""Structured values from the fuzzer's bytes: what random text would hit once in a million tries.

Every input is worth something: past its end a source yields zeros. The same bytes always give the same values, so that an
input replays without the fuzzer.
"""

import struct
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

DEPTH_MAX = 6
ITEMS_MAX = 6
EDGES = (0, 1, -1, 2**31 - 1, 2**31, 2**53, 2**63, -(2**63), 1 << 80, 0.5, 1e300, -0.0)
TEXTS = ("", "a", "0", "-", "~1", "..", "\x00", "\u202e", "\U0001f600", "İ", "k" * 300, "1Gi", "100%", "http")


class Source:
    """The bytes of one input, taken from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        at = self._at
        self._at = at + 1
        return self._data[at] if at < len(self._data) else 0

    def word(self) -> int:
        """16 bits."""
        return int(struct.unpack(">H", bytes((self.byte(), self.byte())))[0])

    def of(self, choices: Sequence[T]) -> T:
        return choices[(self.byte() if len(choices) <= 256 else self.word()) % len(choices)]

    def take(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._data))

    @property
    def left(self) -> int:
        return max(0, len(self._data) - self._at)

    def text(self) -> str:
        """A name that code might stumble over, or the input's own bytes."""
        if self.byte() % 2:
            return self.of(TEXTS)
        return self.take(self.byte() % 24).decode(errors="replace")

    def value(self, words: Sequence[str], depth: int = 0) -> Any:
        """A JSON value whose objects have names of `words`, mostly."""
        if not self.left:
            return None
        kind = self.byte() % 8
        if kind == 0:
            return None
        if kind == 1:
            return bool(self.byte() & 1)
        if kind == 2:
            return self.of(EDGES)
        if kind == 3:
            return self.byte()
        if kind == 4 or depth >= DEPTH_MAX:
            return self.text()
        if kind == 5:
            return self.of(words)
        if kind == 6:
            return [self.value(words, depth + 1) for _ in range(self.byte() % ITEMS_MAX)]
        return {self.of(words): self.value(words, depth + 1) for _ in range(self.byte() % ITEMS_MAX)}
