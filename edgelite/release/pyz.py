"""edgelite.pyz: one file for any CPython 3.9 or newer.

A zip packs every file by itself, which costs a third more than packing them together. So the zip holds two: the
bootstrap, and all sources as one piece (JSON {path: source}, bz2).
"""

import bz2
import json
from pathlib import Path

from edgelite.release.archives import zipped
from edgelite.release.sources import packed

SHEBANG = b"#!/usr/bin/env python3\n"
BYTES_MAX = 150_000


def build(at: int, sources: "dict[str, str] | None" = None) -> bytes:
    """The file; at: unix seconds; sources: {path: source}, the agent's where not given. Raises BuildError."""
    whole = json.dumps(sources or packed(), separators=(",", ":"), ensure_ascii=False).encode()
    files = {
        "__main__.py": (Path(__file__).parent / "bootstrap.py").read_bytes(),
        "edgelite.json.bz2": bz2.compress(whole, 9),
    }
    return SHEBANG + zipped(files, at)
