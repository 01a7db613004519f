"""The files of an update, below `update/` in the data directory: what a power cut leaves of them is always one of two states.

    state.json   the record (`edgelite.updateplan`), replaced as a whole
    fetched      what has come of a release so far; its length is where fetching goes on
    a, b         the slots: a whole release each

A slot is filled by renaming `fetched` over it, once that is synced and its hash is right. Nothing that is read here is believed:
a slot's hash is compared again before it runs. Runs on MicroPython, with other slots (`edgelite.boardslots`).
"""

import binascii
import hashlib
import os

from edgelite import updateplan
from edgelite.exits import DONE, IN_USE, NOT_JOINED, USAGE
from edgelite.files import Files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from edgelite.updateplan import Record

FOLDER = "update"
STATE = "state.json"
FETCHED = "fetched"
PART_BYTES = 1024
ENDED_BY_WILL = (DONE, USAGE, IN_USE, NOT_JOINED)
"""Exit codes that say nothing against a release: it was stopped, or has nothing to run with."""


class UpdateFiles(Files):
    """`edgelite.files`, and what has to be known of files that are large."""

    def size(self, path: str) -> int:
        """In bytes; 0 where there is no such file."""
        return os.stat(path)[6] if self.exists(path) else 0

    def parts(self, path: str) -> "Generator[bytes, None, None]":
        """The content, PART_BYTES at a time: boards have no room for all of it."""
        with open(path, "rb") as file:
            while True:
                part = file.read(PART_BYTES)
                if not part:
                    return
                yield part


class UpdateStore:
    """`files`: an `UpdateFiles`; `folder`: exists. What fails raises OSError."""

    def __init__(self, files: "Any", folder: str) -> None:
        self._files = files
        self._folder = folder
        self.record: "Record" = self._read()
        self.size = -1  # of what was fetched, -1: not looked at yet

    def path(self, name: str) -> str:
        return self._folder + "/" + name

    def reload(self) -> None:
        """Reads the record that another process has written. Raises OSError."""
        self.record = self._read()

    def save(self, record: "Record") -> None:
        """Durable on return."""
        if record == self.record:
            return
        self._put(STATE, updateplan.dump(record))
        self.record = record

    def fetched_bytes(self) -> int:
        """How much of the release is here."""
        if self.size < 0:
            self.size = self._files.size(self.path(FETCHED))
        return self.size

    def begin(self) -> None:
        """Forgets what was fetched before."""
        file = self._files.create(self.path(FETCHED))
        file.close()
        self.size = 0

    def append(self, data: bytes) -> None:
        """More of the release. What a power cut leaves of it is found out by its hash."""
        file = self._files.append(self.path(FETCHED))
        try:
            file.write(data)
        finally:
            file.close()
        self.size = self.fetched_bytes() if self.size < 0 else self.size + len(data)

    def whole(self, sha256: str) -> bool:
        """Is what was fetched the release?"""
        return self.hash_of(FETCHED) == sha256

    def fill(self, slot: str) -> None:
        """What was fetched becomes the slot; durable on return."""
        file = self._files.append(self.path(FETCHED))
        try:
            self._files.sync(file)
        finally:
            file.close()
        self._files.replace(self.path(FETCHED), self.path(slot))
        self.size = 0

    def holds(self, slot: str, sha256: str) -> bool:
        """Does the slot hold the release?"""
        try:
            return self.hash_of(slot) == sha256
        except OSError:
            return False

    def hash_of(self, name: str) -> str:
        """The SHA-256 of a file, in hex."""
        hasher = hashlib.sha256()
        for part in self._files.parts(self.path(name)):
            hasher.update(part)
        return binascii.hexlify(hasher.digest()).decode()

    def _read(self) -> "Record":
        # FAT's rename removes its target first: in between there is only the new one.
        for name in (STATE, STATE + ".new"):
            if self._files.exists(self.path(name)):
                return updateplan.load(self._files.read(self.path(name)))
        return updateplan.load(b"")

    def _put(self, name: str, data: bytes) -> None:
        new = self.path(name + ".new")
        file = self._files.create(new)
        try:
            file.write(data)
            self._files.sync(file)
        finally:
            file.close()
        self._files.replace(new, self.path(name))


def choose(store: UpdateStore, base: str, say: "Callable[[str], None]") -> "tuple[Record | None, bool]":
    """Before anything else of a start: (the slot to run or None for the base, is it on trial). base: the installed version. That is
    written before it is answered; where it cannot be, nothing is tried."""
    while True:
        record, choice, on_trial = updateplan.launch(store.record, base)
        try:
            store.save(record)
            if choice is None or store.holds(choice["slot"], choice["sha256"]):
                return choice, on_trial
            say("slot %s does not hold release %s any more" % (choice["slot"], choice["version"]))
            store.save(updateplan.damaged(store.record))
        except OSError as error:
            say("cannot note which release is started: %s" % error)
            good = store.record["good"]
            sound = (
                good is not None
                and store.record["base"] == base
                and store.holds(good["slot"], good["sha256"])
            )
            return (good if sound else None), False


def ended(store: UpdateStore, code: int, late: bool) -> bool:
    """A trial has ended, or was killed because its deadline was over: notes what that means. Was it stopped by somebody? Raises
    OSError."""
    store.reload()
    if store.record["trial"] is None:
        return False  # it works, or its document is gone
    if late:
        store.save(updateplan.late(store.record))
    elif code in ENDED_BY_WILL:
        store.save(updateplan.stopped(store.record))
        return True
    return False
