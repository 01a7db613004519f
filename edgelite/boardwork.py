"""What a board does with its documents: pods of functions and modules, and devices where its firmware has twins (8 KB of byte
code more). For the loop of a board's agent. [pure]

The loop gives it documents (`admit` before one is journalled, `on_document` when it is), what the hub has answered (`delivered`) and
whether everything is to be told again (`anew`), and calls `turn` in each of its turns, at the latest at `deadline`. It reports
through `report(type, key, body)` and keeps what must outlive a power cut in the journal, under PREFIX and the records of twins.

Invariant: what `turn` has saved is durable before anything that follows from it is reported. While the journal fails nothing is
reported, and all of it is tried again. Runs on MicroPython.
"""

import json

from edgelite.boardpods import BoardPods
from edgelite.callables import devices_of
from edgelite.journal import JournalError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from edgelite.callables import Functions
    from edgelite.journal import Journal
    from edgelite.twins import Twins

PREFIX = "run/board/"
TWINS = "run/twins/"
DEVICE = "device/"
ENTRY = "twin"
"""As in `edgelite.twins`, which is not imported for it."""


class BoardWork:
    """See the module. now(): seconds that count on; wall_ms(): Unix milliseconds. twins: None for a board without devices. modules: may ConfigMaps bring code? files,
    directory: for compiled modules. suspect: `<uid>/<container>` that ran when the watchdog reset the board; mark(name): told of
    each step (see `edgelite.boardpods`)."""

    def __init__(
        self,
        functions: "Functions",
        journal: "Journal",
        report: "Callable[[str, str, dict[str, Any]], None]",
        now: "Callable[[], float]",
        wall_ms: "Callable[[], int]",
        twins: "Twins | None" = None,
        modules: bool = False,
        files: "Any" = None,
        directory: str = "",
        suspect: str = "",
        mark: "Callable[[str], None] | None" = None,
    ) -> None:
        self.twins = twins
        self.trouble = ""
        self._journal = journal
        self._report = report
        self._now = now
        self._reports: "list[tuple[str, str, dict[str, Any]]]" = []
        self.pods = BoardPods(
            functions,
            wall_ms,
            modules,
            devices_of(twins, now, wall_ms) if twins is not None else None,
            files,
            directory,
            suspect,
            mark,
        )
        self.pods.load([(key[len(PREFIX) :], value) for key, value in journal.items(PREFIX)])
        if twins is not None:
            twins.load([(key[len(TWINS) :], value) for key, value in journal.items(TWINS)])

    def started(self) -> None:
        """All documents of the journal were set."""
        if self.twins is not None:
            self.twins.recovered()

    # Documents

    def admit(self, key: str, body: bytes) -> "tuple[str, str] | None":
        """(reason, message) when the document cannot be taken, before it is journalled."""
        if key.startswith(DEVICE) and self.twins is not None:
            return self.twins.admit(key, body)
        return self.pods.admit(key, body)

    def on_document(self, key: str, body: "bytes | None") -> None:
        """A journalled document is in force, or (None) is to go."""
        now = self._now()
        if key.startswith(DEVICE):
            if self.twins is None:
                return  # of a firmware that had twins
            if body is None:
                self.twins.delete(key)
            else:
                self.twins.set(key, body, now)
        elif body is None:
            self.pods.delete(key, now)
        else:
            self.pods.set(key, body, now)

    # What the hub says

    def delivered(self, kind: str, key: str, entry: bytes, reason: str) -> None:
        """The hub has stored an upstream entry; with a `reason` it has refused it."""
        if kind == ENTRY and self.twins is not None:
            self.twins.delivered(key, json.loads(entry)["b"], reason, self._now())

    def anew(self) -> None:
        """The hub may know nothing of what it was told."""
        self.pods.anew()
        if self.twins is not None:
            self.twins.anew(self._now())

    # The loop

    def turn(self) -> None:
        """Steps what is due, saves, reports. `trouble` says what keeps the journal from taking it, "" when nothing does."""
        now = self._now()
        saves: "list[tuple[str, bytes | None]]" = []
        for what, name, value, body in self.pods.poll(now):
            if what == "save":
                saves.append((PREFIX + name, value))
            else:
                self._reports.append((name, value, body))
        for what, key, value in self.twins.poll(now) if self.twins is not None else ():
            if what == "save":
                saves.append((TWINS + key, value))
            else:
                self._reports.append((ENTRY, key, value))
        if not saves and not self._reports:
            return
        try:
            if saves:
                self._journal.write(saves)
            self._journal.sync()
        except JournalError as error:
            self.trouble = str(error)
            return
        self.trouble = ""
        reports, self._reports = self._reports, []
        for kind, key, body in reports:
            self._report(kind, key, body)

    def deadline(self) -> "float | None":
        """When `turn` has to be called at the latest; None: when a document comes."""
        twins = self.twins.deadline() if self.twins is not None else None
        found = [due for due in (self.pods.deadline(), twins) if due is not None]
        return min(found) if found else None
