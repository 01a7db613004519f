"""The documents in the journal, of which those of Secrets are sealed there (`edgelite.vault`).

A sealed value is MARK and what the vault makes of the plain one, under the name of its key; header and version are inside,
for the version of a short Secret would give it away. Values in clear, of earlier versions, are read and sealed at start.

What this node's key does not open (the node has another identity) is forgotten: the hub sends it again. Where the key cannot
be read at all, it stays in the journal and counts as absent.
"""

from edgelite.desired import DOCUMENT
from edgelite.journal import JournalError
from edgelite.runtimes.base import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from edgelite.journal import Journal
    from edgelite.upstream import Writes
    from edgelite.vault import Vault

SEALED = DOCUMENT + "secret/"
MARK = b"\x01"  # what is in clear begins with "{"


class SealedDocuments:
    """vault() makes the vault when it is needed first; it raises RuntimeFailure. `lost` and `unread`: how many Secrets `load`
    forgot, and left as they are; `trouble`: why those of an earlier version could not be sealed, "" when they are."""

    def __init__(self, journal: "Journal", vault: "Callable[[], Vault]") -> None:
        self._journal = journal
        self._vault = vault
        self.lost = 0
        self.unread = 0
        self.trouble = ""

    def load(self) -> "list[tuple[str, bytes]]":
        """All documents that can be read, in clear."""
        from edgelite.vault import Unreadable

        found = []
        changes: "Writes" = []
        for key, value in self._journal.items(DOCUMENT):
            if key.startswith(SEALED):
                try:
                    if value[:1] == MARK:
                        value = self._vault().unseal(key, value[1:])
                    else:
                        changes.append((key, self._seal(key, value)))
                except Unreadable:
                    self.lost += 1
                    changes.append((key, None))
                    continue
                except RuntimeFailure:
                    self.unread += 1
                    continue
            found.append((key, value))
        if changes:
            try:
                self._journal.write(changes)
                self._journal.compact()  # so that nothing in clear is left in the file
            except JournalError as error:
                self.trouble = str(error)
        return found

    def get(self, key: str) -> "bytes | None":
        """The value of a journal's key in clear; None as well where it cannot be opened."""
        value = self._journal.get(key)
        if value is None or not key.startswith(SEALED) or value[:1] != MARK:
            return value
        from edgelite.vault import Unreadable

        try:
            return self._vault().unseal(key, value[1:])
        except (Unreadable, RuntimeFailure):
            return None

    def sealed(self, writes: "Writes") -> "Writes":
        """The same with Secrets sealed, for the journal. Raises RuntimeFailure: the vault cannot be used."""
        return [
            (key, value if value is None or not key.startswith(SEALED) else self._seal(key, value))
            for key, value in writes
        ]

    def _seal(self, key: str, value: bytes) -> bytes:
        return MARK + self._vault().seal(key, value)
