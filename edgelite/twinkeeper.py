"""Carries out what `edgelite.twins` decides: reports go to the journal's upstream entries, records to the journal.

Invariant: what passed a property's deadband and interval is journalled before the next report of it can pass. While the
hub answers, the disk is not waited for: what the hub has stored is safe, and the rest costs at most the agent's
housekeeping interval at a power cut. `unsynced`: something waits for a sync.

Most nodes have no devices: `edgelite.twins`, 110 KB in memory, is imported with the first.
"""

import json

from edgelite.loop import Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from edgelite.loop import Loop, Task
    from edgelite.twins import Twin, Twins

RECORDS = "run/twins/"
"""Prefix of its records in the journal."""
ENTRY = "twin"
PREFIX = "device/"
"""As in `edgelite.twins`."""


class TwinKeeper:
    """report(type, key, body) queues an upstream entry; save(key, record or None) journals without waiting; wall() in Unix
    seconds; records: those of the journal. `changed` is called when something that can be read is another."""

    def __init__(
        self,
        loop: "Loop",
        wall: "Callable[[], float]",
        report: "Callable[[str, str, dict[str, Any]], None]",
        save: "Callable[[str, bytes | None], None]",
        records: "list[tuple[str, bytes]]",
    ) -> None:
        self._loop = loop
        self._wall = wall
        self._report = report
        self._save = save
        self._task: "Task | None" = None
        self._records = [(name[len(RECORDS) :], record) for name, record in records]
        self._twins: "Twins | None" = None
        self.changed: "Callable[[], None]" = lambda: None
        self.unsynced = False

    @property
    def twins(self) -> "Twins":
        """The devices."""
        if self._twins is None:
            from edgelite.twins import Twins

            self._twins = Twins()
            self._twins.load(self._records)
            self._records = []
        return self._twins

    def start(self) -> None:
        """Once, after every journalled document was set."""
        if self._records or self._twins is not None:
            self.twins.recovered()
        self._task = self._loop.spawn(self._run(), "twins")

    def admit(self, key: str, body: bytes) -> "tuple[str, str] | None":
        return self.twins.admit(key, body)

    def set(self, key: str, body: bytes) -> None:
        self.twins.set(key, body, self._loop.now())
        self._poke()

    def delete(self, key: str) -> None:
        self.twins.delete(key)
        self._poke()

    def report(self, twin: "Twin", values: "dict[str, Any]") -> None:
        """Takes values of one device. Raises `edgelite.twins.Refused`."""
        twin.report(values, self._loop.now(), int(self._wall() * 1000))
        self._poke()

    def delivered(self, key: str, entry: bytes, reason: str) -> None:
        """The hub has answered an entry."""
        self.twins.delivered(key, json.loads(entry)["b"], reason, self._loop.now())
        self._poke()

    def anew(self) -> None:
        """Everything is reported again."""
        if self._twins is not None:
            self._twins.anew(self._loop.now())
            self._poke()

    def _poke(self) -> None:
        self._loop.wake(self._task)
        self.changed()

    def _run(self) -> "Generator[Wait, bool, None]":
        while True:
            for what, key, value in self._twins.poll(self._loop.now()) if self._twins is not None else ():
                if what == "save":
                    self._save(key, value)
                    self.unsynced = True
                else:
                    self._report(ENTRY, key, value)
            yield Wait(-1, 0, self._twins.deadline() if self._twins is not None else None)
