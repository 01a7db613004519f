"""Objects of one kind as compressed bytes, each by itself, against what they have in common. [pure]

Alone, a Pod of 2.8 KB compresses to a third, for most of it stands in it once. Beside another Pod as its dictionary it
compresses to what only it has: 0.2 KB where they are of one Deployment. So the first objects that the dictionary does
not suit become part of it, up to a bound; what was packed before keeps the dictionary that it was packed with.

Bound: SAMPLES_MAX samples, and a dictionary and a decompressor (0.14 MB) for each time that their number has doubled. A
sample outlives its object: not for what must be forgotten when it is deleted.
"""

from collections.abc import Callable
from typing import Final

import zstandard

LEVEL: Final = 3
PACK_MIN_BYTES: Final = 256
"""What is smaller is kept as it is."""
SAMPLES_MAX: Final = 16
SAMPLE_BYTES_MAX: Final = 16 << 10
GAIN_MIN: Final = 10
"""An object that does not become as many times smaller is a sample."""

Unpack = Callable[[bytes], bytes]
Packed = tuple[Unpack | None, bytes]
"""The bytes, and what gives back the original; None: they are the original."""

_compress = zstandard.ZstdCompressor(level=LEVEL).compress
_decompress = zstandard.ZstdDecompressor().decompress


def pack(raw: bytes) -> Packed:
    """One object alone."""
    if len(raw) < PACK_MIN_BYTES:
        return None, raw
    return _decompress, _exact(_compress(raw))


class Packer:
    """See the module. `samples`: how many the dictionary is made of."""

    def __init__(self) -> None:
        self.samples = 0
        self._waiting: list[bytes] = []
        self._dictionary = b""
        self._compress = _compress
        self._unpack: Unpack = _decompress

    def pack(self, raw: bytes) -> Packed:
        """Packs one object, and learns from it where it is of a new sort."""
        if len(raw) < PACK_MIN_BYTES:
            return None, raw
        packed = self._compress(raw)
        if len(packed) * GAIN_MIN > len(raw) and self.samples < SAMPLES_MAX:
            self._waiting.append(raw[:SAMPLE_BYTES_MAX])
            # As many again, each time: what was packed before keeps each dictionary and its decompressor in memory.
            if len(self._waiting) >= self.samples:
                self._learn()
                packed = self._compress(raw)
        return self._unpack, _exact(packed)

    def _learn(self) -> None:
        """Of those that wait, one of each sort."""
        dictionary = None
        for sample in self._waiting:
            # The one before may have been of its sort.
            if self.samples < SAMPLES_MAX and len(self._compress(sample)) * GAIN_MIN > len(sample):
                self.samples += 1
                self._dictionary += sample
                dictionary = zstandard.ZstdCompressionDict(
                    self._dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT
                )
                dictionary.precompute_compress(level=LEVEL)
                self._compress = zstandard.ZstdCompressor(dict_data=dictionary).compress
        if dictionary is not None:
            self._unpack = zstandard.ZstdDecompressor(dict_data=dictionary).decompress
        self._waiting.clear()


def _exact(packed: bytes) -> bytes:
    """A copy: what the compressor returns keeps the slack of its worst case alive."""
    return bytes(memoryview(packed))
