"""Updates of a board's agent, for a firmware that wants them (16 KB of byte code): `Firmware(.., updates=BoardUpdates([KEY], machine.reset))`,
and `pick` (`edgelite.boardslots`) at the top of `main.py`. Runs on MicroPython.

A release that crashes or hangs is started again by the board's reset and its watchdog, and given up after a few starts; one that never
reaches the hub gives itself up when its time is over.
"""

from edgelite import __version__
from edgelite.boardslots import SlotStore
from edgelite.updater import CONDITION, DOCUMENT, Site, Updater
from edgelite.updatestore import UpdateFiles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

FOLDER = "update"


class BoardUpdates(Site):
    """keys: whose releases may run, public keys of P-256 in hex; reset(): starts the board anew; folder: an existing one, for slots and
    record."""

    version = __version__
    platform = "mpy"
    piece_bytes = 768  # so that a frame takes it

    def __init__(
        self, keys: "list[str]", reset: "Callable[[], Any]", folder: str = FOLDER, minimum: str = ""
    ) -> None:
        self.keys = keys
        self.minimum = minimum
        self._reset = reset
        self._folder = folder
        self._board: "Any" = None
        self._now: "Callable[[], float]" = lambda: 0.0
        self._updater: "Updater | None" = None

    def attach(self, board: "Any", now: "Callable[[], float]") -> None:
        """By the firmware, once. Raises OSError."""
        self._board, self._now = board, now
        self._updater = Updater(self, SlotStore(UpdateFiles(), self._folder))

    @property
    def updater(self) -> Updater:
        assert self._updater is not None
        return self._updater

    def admit(self, key: str, body: bytes) -> "tuple[str, str] | None":
        """(reason, message) when the document cannot be taken."""
        return self.updater.admit(body)

    def on_document(self, key: str, body: "bytes | None") -> None:
        """The document is in force, or (None) gone; or a piece has come."""
        if key == DOCUMENT:
            self.updater.delete() if body is None else self.updater.set(body)
        elif body is not None:
            self.updater.piece(key, body)
        self.updater.due = self.now()

    def turn(self) -> None:
        """Does what is due."""
        session = self._board.session
        if session is not None and session.synced:
            session.synced = False
            self.updater.synced()
            self.updater.due = self.now()
        if self.updater.due is not None and self.updater.due <= self.now():
            self.updater.turn()

    def deadline(self) -> "float | None":
        """When `turn` is to be called at the latest."""
        return self.updater.due

    # Site

    def now(self) -> float:
        return self._now()

    def live(self) -> bool:
        return bool(self._board.state == "connected")

    def report(self, kind: str, key: str, body: "dict[str, Any]") -> None:
        # Volatile: what is asked for must not wear the flash out.
        self._board.journal.write(self._board.upstream.add(kind, key, body, True))

    def condition(self, status: str, reason: str, message: str) -> None:
        said = {"type": CONDITION, "status": status, "reason": reason, "message": message}
        self._board.report("node", "node", {"conditions": [said]})

    def say(self, text: str) -> None:
        print(text)

    def restart(self) -> None:
        try:
            self._board.close()
        finally:
            self._reset()
