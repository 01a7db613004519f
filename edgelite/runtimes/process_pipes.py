"""What the agent reads from the processes that it forks: the launcher's report, and the output of exec."""

import os
import select

from edgelite.loop import POLLIN, Wait
from edgelite.loop import now as clock
from edgelite.runtimes.base import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from edgelite.runtimes.process_spawn import Child

OUTPUT_BYTES = 10240  # of an exec; the rest is read and dropped
REPORT_BYTES = 65536
RETRY_S = 0.03


def attend(
    child: "Child", deadline: float, use_pidfd: bool
) -> "Generator[Wait, bool, tuple[bytes, int | None]]":
    """Collects the output until the command ends; None for its code when it did not in time."""
    output = bytearray()
    os.set_blocking(child.output, False)
    pidfd = os.pidfd_open(child.pid) if use_pidfd and hasattr(os, "pidfd_open") else -1
    both = select.epoll()
    try:
        both.register(child.output, select.EPOLLIN)
        if pidfd >= 0:
            both.register(pidfd, select.EPOLLIN)
        open_output = True
        while True:
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if open_output and not _drain(child.output, output, OUTPUT_BYTES):
                open_output = False
                both.unregister(child.output)
            if pid:
                return bytes(output), exit_code(status)
            if clock() >= deadline:
                return bytes(output), None
            wake = deadline if pidfd >= 0 else min(deadline, clock() + RETRY_S)
            yield Wait(both.fileno(), POLLIN, wake)
    finally:
        both.close()
        if pidfd >= 0:
            os.close(pidfd)


def read_report(fd: int, deadline: float) -> "Generator[Wait, bool, bytes]":
    """All that the launcher says, which ends with its exec."""
    data = b""
    while len(data) < REPORT_BYTES:
        ready = yield Wait(fd, POLLIN, deadline)
        if not ready:
            return b"RunContainerError\0it did not get going in time; a volume's or the command's file system may hang"
        more = os.read(fd, 4096)
        if not more:
            break
        data += more
    return data


def failure(report: bytes) -> "RuntimeFailure | None":
    """What went wrong by the launcher's report; None when it reached its exec."""
    text = (report.partition(b"\n")[2] if report.startswith(b"ready ") else report).decode("utf-8", "replace")
    if not text and report:
        return None
    reason, _, message = text.partition("\0")
    silence = "the launcher ended without a word; the container's log or the kernel's may tell why"
    return RuntimeFailure(reason or "RunContainerError", message or silence)


def read_rest(fd: int) -> bytes:
    os.set_blocking(fd, False)
    found = bytearray()
    _drain(fd, found, REPORT_BYTES)
    return bytes(found)


def _drain(fd: int, into: bytearray, limit: int) -> bool:
    """Reads what is there, keeps the first `limit` bytes; False at the end."""
    for _ in range(64):
        try:
            data = os.read(fd, 16384)
        except BlockingIOError:
            return True
        if not data:
            return False
        into += data[: max(0, limit - len(into))]
    return True


def exit_code(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
