"""The audit log's file: one JSON object a line, mode 0600, rotated by size, the oldest rotated files removed.

Job: take records on the event loop without waiting, and write them in a thread of its own. Invariants: the loop never waits
for the disk; what waits to be written is bounded, and what does not fit is lost and counted; a line is written whole or
not at all (but for a full disk, whose half line is ended before the next).
Not guaranteed: that a record is on the disk when its request is answered (no fsync: a crash of the machine loses the last).
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import yaml

from hub.access.auditpolicy import Policy, PolicyError, parse
from hub.config import ConfigError, yaml_problem
from observability.metrics import Series

log = logging.getLogger(__name__)

RECORDS_MAX: Final = 10_000
BYTES_MAX: Final = 16 << 20
POLICY_BYTES_MAX: Final = 1 << 20
BATCH: Final = 256
STOP_S: Final = 5.0
FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW

Render = Callable[[], bytes]
"""Makes a record's line, without its newline; run in the writer's thread. What it raises loses the record."""


@dataclass(frozen=True, slots=True)
class AuditFile:
    """Where events go. `size`: bytes after which the file is rotated; `keep`: rotated files that are kept."""

    path: str
    size: int = 100 << 20
    keep: int = 10


def read_policy(path: str) -> Policy:
    """The policy in a file. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            return parse(yaml.safe_load(file.read(POLICY_BYTES_MAX)))
    except OSError as failure:
        raise ConfigError(f"audit_policy: cannot read {path}: {failure.strerror}") from failure
    except yaml.YAMLError as wrong:
        raise ConfigError(f"audit_policy: {path} is no YAML: {yaml_problem(wrong)}") from wrong
    except PolicyError as wrong:
        raise ConfigError(f"audit_policy: {path}: {wrong}") from wrong


class AuditLog:
    """`start`, then `put`; `stop` writes what waits, within STOP_S."""

    def __init__(self, file: AuditFile, written: Series, lost: Series) -> None:
        """`written`, `lost`: count records."""
        self._written = written
        self._lost = lost
        self._file = file
        self._waiting: deque[tuple[Render, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._fd = -1
        self._torn = False
        self._thread = threading.Thread(target=self._run, name="audit log", daemon=True)

    def start(self) -> None:
        """Raises OSError when the file cannot be opened."""
        self._open()
        self._thread.start()

    def put(self, render: Render, size: int) -> bool:
        """Takes a record of about `size` bytes; False when it is lost, because too much waits."""
        with self._changed:
            if len(self._waiting) >= RECORDS_MAX or self._bytes + size > BYTES_MAX or self._stopping:
                self._lost.add()
                return False
            self._waiting.append((render, size))
            self._bytes += size
            self._changed.notify()
        return True

    def stop(self) -> None:
        """Blocks, at most STOP_S."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        if self._thread.is_alive():
            log.warning("the audit log was not written out within %g s", STOP_S)
        elif self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # -- in the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while batch := self._next():
            lines = []
            for render, _ in batch:
                try:
                    lines.append(render() + b"\n")
                except Exception:
                    self._lose(1)
                    log.exception("bug: an audit record cannot be rendered")
            try:
                self._write(lines)
            except OSError as failure:
                self._lose(len(lines))
                log.error("%d audit records are lost: %s: %s", len(lines), self._file.path, failure.strerror)

    def _next(self) -> list[tuple[Render, int]]:
        """What is to be written next; nothing at the end."""
        with self._changed:
            while not self._waiting and not self._stopping:
                self._changed.wait()
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            self._bytes -= sum(size for _, size in batch)
            return batch

    def _write(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        if os.fstat(self._fd).st_size + len(data) > self._file.size and os.fstat(self._fd).st_size:
            self._rotate()
        view = memoryview(b"\n" + data if self._torn else data)
        self._torn = True
        while view:
            view = view[os.write(self._fd, view) :]
        self._torn = False
        self._written.add(len(lines))

    def _lose(self, count: int) -> None:
        with self._changed:
            self._lost.add(count)

    def _open(self) -> None:
        self._fd = os.open(self._file.path, FLAGS, 0o600)
        os.fchmod(self._fd, 0o600)

    def _rotate(self) -> None:
        root, extension = os.path.splitext(self._file.path)
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
        os.rename(self._file.path, f"{root}-{moment}{extension}")
        os.close(self._fd)
        self._open()
        for path in self._rotated()[: -self._file.keep or None]:
            os.unlink(path)

    def _rotated(self) -> list[str]:
        """The rotated files, oldest first."""
        directory, name = os.path.split(os.path.abspath(self._file.path))
        root, extension = os.path.splitext(name)
        return sorted(
            os.path.join(directory, found)
            for found in os.listdir(directory)
            if found.startswith(root + "-2") and found.endswith(extension)
        )
