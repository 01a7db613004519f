"""The data directory, which one hub at a time has, whichever store it keeps there or elsewhere."""

import fcntl
import os

from shards.kv import StoreError


class DirectoryLocked(StoreError):
    """Another hub runs on this data directory."""


class DirectoryUnusable(StoreError):
    """The data directory cannot be made or written."""


def lock_directory(directory: str) -> int:
    """Takes the data directory for this process; returns the descriptor that holds the lock until it is closed.
    Raises DirectoryLocked, DirectoryUnusable."""
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        fd = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as failure:
        why = "it is a file" if isinstance(failure, FileExistsError) else failure.strerror
        raise DirectoryUnusable(
            f"cannot use the data directory {directory}: {why}; correct that, or set data_dir to another"
        ) from failure
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as held:
        pid = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise DirectoryLocked(
            f"{directory} is in use by another hub (pid {pid}); stop it, or give this one its own --data-dir"
        ) from held
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
