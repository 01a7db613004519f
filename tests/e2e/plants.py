"""Secrets that are planted in a fleet, and the search for them wherever they must not be.

A plant is looked for as it is, reversed, as hex, in base64 at each of its three alignments and in base64 of its reversed
form, and by its halves: what is cut at the end of a page or a line is found still.
"""

import base64
import secrets
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import zstandard

CHUNK_BYTES_MIN = 16


@dataclass(frozen=True)
class Plant:
    """A secret. `homes`: ends of the paths of files that may hold it, being what it is kept in."""

    name: str
    value: bytes
    homes: tuple[str, ...] = ()

    def forms(self) -> Iterator[tuple[str, bytes]]:
        """(name of the form, what to look for)."""
        half = max(CHUNK_BYTES_MIN, len(self.value) // 2)
        for part, text in {
            "": self.value,
            " (begin)": self.value[:half],
            " (end)": self.value[-half:],
        }.items():
            yield "as it is" + part, text
            yield "reversed" + part, text[::-1]
            yield "hex" + part, text.hex().encode()
            for shift in range(3):
                yield f"base64{part}", _inner(text, shift)
                yield f"base64 of its reversed form{part}", _inner(text[::-1], shift)


def _inner(text: bytes, shift: int) -> bytes:
    """The characters of `text` in base64 that do not depend on what stands before and behind it."""
    encoded = base64.b64encode(b"\0" * shift + text)
    return encoded[(4 if shift else 0) : len(encoded) - 4]


def planted(name: str, homes: tuple[str, ...] = ()) -> Plant:
    """A secret of its own that nothing else looks like."""
    return Plant(name, f"plant-{secrets.token_hex(14)}".encode(), homes)


def pem_body(name: str, path: Path, homes: tuple[str, ...]) -> Plant:
    """The private key in a PEM file: the characters in the middle of its base64."""
    text = path.read_text()
    begin = text.index("PRIVATE KEY-----") + len("PRIVATE KEY-----")
    body = "".join(text[begin : text.index("-----END", begin)].split())
    # The first part is the same for all keys of the kind.
    return Plant(name, base64.b64decode(body)[40:72], homes)


def found(plants: Iterable[Plant], name: str, data: bytes) -> list[str]:
    """What of the plants stands in `data`, which is called `name`."""
    texts = [data, *_unpacked(data)]
    return [
        f"{name}: {plant.name}, {form}"
        for plant in plants
        if not name.endswith(plant.homes or ("\0",))
        for form, wanted in plant.forms()
        if any(wanted in text for text in texts)
    ]


def _unpacked(data: bytes) -> Iterator[bytes]:
    """What is compressed as a whole."""
    try:
        yield zstandard.ZstdDecompressor().stream_reader(data).read()
    except zstandard.ZstdError:
        pass
    try:
        yield zlib.decompress(data, wbits=47)
    except zlib.error:
        pass


def found_in_files(plants: Iterable[Plant], directory: Path) -> list[str]:
    """The same over every file below a directory; links are not followed."""
    plants = list(plants)
    found_there = []
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            found_there += found(plants, str(path), path.read_bytes())
    return found_there


def found_in_process(plants: Iterable[Plant], process: psutil.Process) -> list[str]:
    """The same in what `ps` shows of a process, and in its environment."""
    plants = list(plants)
    name = f"process {process.pid}"
    command = "\0".join(process.cmdline()).encode()
    with open(f"/proc/{process.pid}/environ", "rb") as file:
        environment = file.read()
    return found(plants, f"{name}, command line", command) + found(
        plants, f"{name}, environment", environment
    )
