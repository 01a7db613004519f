"""How settings write rates: `1000/s 8MiB/s` (frames and bytes of what nodes send), `400/s` (handshakes)."""

import re
from typing import Final

from security.buckets import Rate

_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_FLOW: Final = re.compile(r"([1-9][0-9]{0,8})/s +([1-9][0-9]{0,8})(B|KiB|MiB|GiB)/s", re.ASCII)
_COUNT: Final = re.compile(r"([1-9][0-9]{0,5})/s", re.ASCII)


def flow(text: str, burst_s: float) -> Rate:
    """Frames and bytes. Raises ValueError."""
    found = _FLOW.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no rate of frames and bytes, such as 1000/s 8MiB/s")
    return Rate(float(found[1]), float(int(found[2]) * _UNITS[found[3]]), burst_s)


def count(text: str) -> float:
    """A number of things in a second. Raises ValueError."""
    found = _COUNT.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no rate, such as 400/s")
    return float(found[1])
