"""A board's slots: each a folder of byte code that is put before the firmware's own on the path, by `main.py`, before anything else.

A release for boards is one file: a line of JSON, [[path, bytes], ..], and the files behind it. It is fetched, compared with what was signed,
and unpacked; the mark `release` comes last, so that what a power cut left of a slot is never run. What was installed is not touched:
beside it the file system needs room for the two slots and what is being fetched. Runs on MicroPython.
"""

import json
import os
import sys

from edgelite.updateplan import UpdateError
from edgelite.updatestore import FETCHED, UpdateStore, choose

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MARK = "release"
INDEX_BYTES_MAX = 8192
COPY_BYTES = 512


class SlotStore(UpdateStore):
    """`edgelite.updatestore` with folders for slots."""

    def fill(self, slot: str) -> None:
        """What was fetched becomes the slot; durable on return. Raises OSError, and UpdateError for what is no release for a board."""
        home = self.path(slot)
        _make(home)
        if self._files.exists(home + "/" + MARK):
            self._files.remove(home + "/" + MARK)
        with open(self.path(FETCHED), "rb") as file:
            index = _index(file.readline(INDEX_BYTES_MAX))
            for path, size in index:
                self._copy(file, home + "/" + path, size)
        hash_file = self._files.create(home + "/" + MARK)
        try:
            hash_file.write(self.hash_of(FETCHED).encode())
            self._files.sync(hash_file)
        finally:
            hash_file.close()
        self._files.remove(self.path(FETCHED))
        self.size = 0

    def holds(self, slot: str, sha256: str) -> bool:
        mark = self.path(slot) + "/" + MARK
        try:
            return bool(self._files.exists(mark) and self._files.read(mark) == sha256.encode())
        except OSError:
            return False

    def _copy(self, file: "Any", target: str, size: int) -> None:
        _make(target[: target.rfind("/")])
        made = self._files.create(target)
        try:
            while size > 0:
                part = file.read(min(COPY_BYTES, size))
                if not part:
                    raise UpdateError("BadRelease", "the release ends before %s does" % target)
                made.write(part)
                size -= len(part)
            self._files.sync(made)
        finally:
            made.close()


def pick(store: UpdateStore, base: str, say: "Callable[[str], None]" = print) -> str:
    """First of all in `main.py`: has the release that should run imported from here on; its slot, "" for what was installed. base:
    the version of that."""
    choice, _ = choose(store, base, say)
    if choice is None:
        return ""
    sys.path.insert(0, store.path(choice["slot"]))
    for name in list(sys.modules):
        if name == "edgelite" or name.startswith("edgelite."):
            del sys.modules[name]
    return str(choice["slot"])


def _index(line: bytes) -> "list[tuple[str, int]]":
    try:
        found = [(str(path), int(size)) for path, size in json.loads(line)]
    except (ValueError, TypeError) as error:
        raise UpdateError("BadRelease", "no release for a board: %r" % (error,))
    for path, _ in found:
        if path.startswith("/") or ".." in path or path == MARK:
            raise UpdateError("BadRelease", "the release has a file called %r" % path)
    return found


def _make(folder: str) -> None:
    """The folder and those it lies in."""
    made = ""
    for part in folder.split("/"):
        made = made + "/" + part if made or folder.startswith("/") else part
        try:
            os.stat(made or "/")
        except OSError:
            os.mkdir(made)
