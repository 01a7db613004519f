"""The file operations of journal and settings, durable. Runs on MicroPython too, where there is no fsync (flush and os.sync
take its place) and rename replaces."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Files:
    """The few file operations the journal needs. All raise OSError."""

    def exists(self, path: str) -> bool:
        try:
            os.stat(path)
            return True
        except OSError:
            return False

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def create(self, path: str) -> "Any":
        return open(path, "wb")

    def append(self, path: str) -> "Any":
        return open(path, "ab")

    def sync(self, file: "Any") -> None:
        """Flushes `file` and waits until it is on the disk."""
        file.flush()
        if hasattr(os, "fdatasync"):
            os.fdatasync(file.fileno())
        elif hasattr(os, "fsync"):
            os.fsync(file.fileno())
        elif hasattr(os, "sync"):
            os.sync()

    def replace(self, source: str, target: str) -> None:
        """Renames over `target`, and makes the rename durable where a directory can be synced."""
        getattr(os, "replace", os.rename)(source, target)
        self.sync_directory(target)

    def sync_directory(self, path: str) -> None:
        """Makes creation and renaming of `path` durable."""
        if not hasattr(os, "fsync") or os.name != "posix":
            return
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def remove(self, path: str) -> None:
        getattr(os, "unlink", os.remove)(path)


def write_atomically(path: str, data: bytes, mode: int = 0o600) -> None:
    """Replaces `path` by `data`: after a power cut it holds the old content or the new, never a mixture."""
    files = Files()
    new = "%s.%d.tmp" % (path, os.getpid())
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            files.sync(file)
        files.replace(new, path)
    except OSError:
        if files.exists(new):
            files.remove(new)
        raise
