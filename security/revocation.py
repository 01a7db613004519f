"""Whom the hub refuses although the certificate is good: the entries that somebody has made, and whom they mean. [pure]

    node    every certificate of the node that began before the entry was made, whichever root or replica issued it; a
            node that is enrolled anew later gets certificates that begin after it (`begins_after`)
    token   the join token, and all nodes that were enrolled with it
    serial  one certificate: of a node or of a user

An entry lasts until whatever it refuses has ended by itself (`keep_s`).
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from security.serials import serial_text

NODE, TOKEN, SERIAL = "node", "token", "serial"
KINDS: Final = (NODE, TOKEN, SERIAL)
REASON_CHARS_MAX: Final = 1024


class Entry(NamedTuple):
    """`value`: the node's name, the token's id, or the serial number (`security.serials`). `at`: the second in which it was
    made, unix; `made`: before what tokens were made that it refuses, too."""

    kind: str
    value: str
    at: float
    reason: str
    made: float

    def message(self) -> str:
        """For whoever is refused."""
        what = {
            NODE: "the node was",
            TOKEN: "the join token that the node used was",
            SERIAL: "the certificate was",
        }
        why = f" ({self.reason})" if self.reason else ""
        return f"{what[self.kind]} revoked{why}; join anew with a new token once that is settled"


def entry_of(kind: str, value: str, at: float, reason: str = "", made: float | None = None) -> Entry:
    """An entry in its one form. `made`: the moment within that second; None where it is not known, nor one that is not in it:
    then the whole second counts as before it."""
    exact = at + 1 if made is None or not at <= made < at + 1 else made
    return Entry(kind, serial_text(value) if kind == SERIAL else value, at, reason[:REASON_CHARS_MAX], exact)


class Revoked:
    """All entries, found by whom they mean."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        """By the name of their object."""
        self._by: dict[tuple[str, str], list[Entry]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    @property
    def tokens(self) -> bool:
        """Is any join token revoked? Else nobody has to ask which one a node used."""
        return any(kind == TOKEN for kind, _ in self._by)

    def put(self, name: str, entry: Entry) -> None:
        """Files the entry of an object, in place of what it said before."""
        self.drop(name)
        self._entries[name] = entry
        self._by.setdefault((entry.kind, entry.value), []).append(entry)

    def drop(self, name: str) -> None:
        """The object is gone."""
        entry = self._entries.pop(name, None)
        if entry is None:
            return
        key = entry.kind, entry.value
        left = [other for other in self._by[key] if other is not entry]
        if left:
            self._by[key] = left
        else:
            del self._by[key]

    def certificate(self, node: str, serial: str, begins: float) -> Entry | None:
        """Why a node's certificate is refused; None: it is not. `begins`: unix seconds, 0 where it is not known."""
        for entry in self._by.get((NODE, node), ()):
            if begins <= entry.at:
                return entry
        return self.serial(serial)

    def serial(self, serial: str) -> Entry | None:
        """The same for a certificate of anybody, by its serial number (`security.serials`)."""
        found = self._by.get((SERIAL, serial)) if serial else None
        return found[0] if found else None

    def token(self, id: str) -> Entry | None:
        """Why a join token, and whoever used it, is refused."""
        found = self._by.get((TOKEN, id))
        return found[0] if found else None

    def begins_after(self, node: str) -> float | None:
        """When a certificate of the node has to begin at the earliest so as not to be refused; None: at any time."""
        entries = self._by.get((NODE, node))
        return max(entry.at for entry in entries) + 1 if entries else None

    def tokens_after(self, node: str) -> float | None:
        """From when on a token, or an enrolment, has to be so as not to be refused; None: from any time. Finer than
        `begins_after`: certificates know whole seconds alone."""
        entries = self._by.get((NODE, node))
        return max(entry.made for entry in entries) if entries else None
