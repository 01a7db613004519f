"""Which slot a node belongs to. [pure]"""

import zlib

SLOTS_DEFAULT = 1024


def slot_of(affinity: str, slots: int = SLOTS_DEFAULT) -> int:
    """The slot of everything with this affinity (the node's site where it has one, else its name)."""
    return zlib.crc32(affinity.encode()) % slots
