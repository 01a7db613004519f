"""The agent's own log in its data directory, for `edgelite logs`: the same on every system, whatever keeps stderr there.

Two files of at most BYTES_MAX each, agent.log and the older agent.log.1. Nothing is synced: the last lines before a power
cut may be missing.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "agent.log"
BYTES_MAX = 256 << 10


class AgentLog:
    """A text stream for `console.Log`. The first write opens the file; each write may raise OSError, and the next one
    tries again."""

    def __init__(self, data_dir: str, bytes_max: int = BYTES_MAX) -> None:
        self.path = os.path.join(data_dir, NAME)
        self._bytes_max = bytes_max
        self._file: "Any" = None

    def write(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        if self._file is None:
            self._open()
        if self._file.tell() + len(data) > self._bytes_max:
            self.close()  # before it is renamed: Windows renames no open file
            os.replace(self.path, self.path + ".1")
            self._open()
        self._file.write(data)

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(fd, "ab", 0)
        self._file.seek(0, os.SEEK_END)


def parts(data_dir: str) -> "list[str]":
    """The paths of the files, oldest first."""
    path = os.path.join(data_dir, NAME)
    return [path + ".1", path]
