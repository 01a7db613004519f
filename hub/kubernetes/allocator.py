"""Memory that large answers have taken goes back to the system.

glibc gives back only what lies free at the end of its heap. After a list of the whole cluster something that is kept lies
there (`give_back`); and once a large block was freed, the next ones of its size are put into the heap as well, where small
ones that outlive them come to lie between (`keep_large_apart`): the buffers of a TLS connection are such blocks, of 256 KB.
Elsewhere (musl, macOS, Windows) nothing is done.
"""

import ctypes
from collections.abc import Callable
from typing import Any, Final

LARGE_BYTES: Final = 128 << 10
"""glibc's threshold as long as nothing has raised it."""
M_MMAP_THRESHOLD: Final = -3
"""Of <malloc.h>."""


def _find(name: str) -> Callable[..., int] | None:
    try:
        found: Any = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    function: Callable[..., int] = found
    return function


_malloc_trim: Final = _find("malloc_trim")
_mallopt: Final = _find("mallopt")


def give_back() -> None:
    """Takes some milliseconds."""
    if _malloc_trim is not None:
        _malloc_trim(0)


def keep_large_apart() -> None:
    """From now on blocks of LARGE_BYTES and more are mappings of their own, which end when they are freed. Of the whole
    process."""
    if _mallopt is not None:
        _mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
