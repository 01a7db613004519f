"""What /proc tells: who a process is, whose child, and which launch it belongs to. [Linux]

A pid alone is no identity, for pids are used again. (boot id, pid, start time) is one, and a random launch id in the
environment is another that children inherit.
"""

import os
import signal

from edgelite.runtimes.process_spawn import MARK, SHIM_MARK

ENVIRON_BYTES = 1 << 18


class Process:
    """One line of /proc/<pid>/stat: state (one letter), parent, session and start time (clock ticks since boot)."""

    __slots__ = ("parent", "pid", "session", "start", "state")

    def __init__(self, pid: int, state: str, parent: int, session: int, start: int) -> None:
        self.pid = pid
        self.state = state
        self.parent = parent
        self.session = session
        self.start = start


def read(pid: int, proc: str) -> "Process | None":
    """None when there is no such process."""
    try:
        with open("%s/%d/stat" % (proc, pid), "rb") as f:
            data = f.read(2048)
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything, parentheses included.
    fields = data[data.rindex(b")") + 2 :].split()
    return Process(pid, fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]))


def session(leader: int, proc: str) -> "list[Process]":
    """The living processes of a session."""
    found = [read(int(name), proc) for name in os.listdir(proc) if name.isdigit()]
    return [p for p in found if p is not None and p.session == leader and p.state not in "ZX"]


def alive(pid: int, start: int, proc: str) -> bool:
    """Whether this very process still runs; a zombie does not."""
    found = read(pid, proc) if pid > 0 else None
    return found is not None and found.start == start and found.state not in "ZX"


def marks(pid: int, proc: str) -> "tuple[str, str]":
    """(launch id as a part of a workload, launch id as a shim or its logger), "" where it is neither or not ours to read."""
    try:
        with open("%s/%d/environ" % (proc, pid), "rb") as f:
            data = b"\0" + f.read(ENVIRON_BYTES)
    except OSError:
        return "", ""
    return _value(data, MARK), _value(data, SHIM_MARK)


def _value(data: bytes, name: str) -> str:
    at = data.find(b"\0" + name.encode() + b"=")
    if at < 0:
        return ""
    at += len(name) + 2
    end = data.find(b"\0", at)
    return data[at : end if end >= 0 else len(data)].decode("utf-8", "replace")


class Snapshot:
    """All processes at one moment, read once and asked for several containers. A dead process costs nothing later:
    whoever signals checks the start time again."""

    def __init__(self, proc: str) -> None:
        self._children: "dict[int, list[Process]]" = {}
        self._by_mark: "dict[str, list[Process]]" = {}
        self._by_shim_mark: "dict[str, list[Process]]" = {}
        self._by_session: "dict[int, list[Process]]" = {}
        for name in os.listdir(proc):
            if name.isdigit():
                self._add(int(name), proc)

    def _add(self, pid: int, proc: str) -> None:
        process = read(pid, proc)
        if process is None or process.state in "ZX":
            return
        self._children.setdefault(process.parent, []).append(process)
        self._by_session.setdefault(process.session, []).append(process)
        workload, shim = marks(pid, proc)
        if workload:
            self._by_mark.setdefault(workload, []).append(process)
        if shim:
            self._by_shim_mark.setdefault(shim, []).append(process)

    def workload(self, launch: str, session: int, shim: int) -> "list[Process]":
        """What belongs to a container: by mark, in the workload's session, or descended from either or from the shim.
        session, shim: pids whose identity the caller has verified, 0 when it could not."""
        own = {p.pid for p in self._by_shim_mark.get(launch, ())}
        found = {p.pid: p for p in self._by_mark.get(launch, ())}
        if session:
            found.update((p.pid, p) for p in self._by_session.get(session, ()))
        queue = list(found) + ([shim] if shim else [])
        while queue:
            for child in self._children.get(queue.pop(), ()):
                if child.pid not in found:
                    queue.append(child.pid)
                    if child.pid not in own or child.pid == session:
                        found[child.pid] = child
        return list(found.values())

    def shim(self, launch: str) -> "list[Process]":
        """The shim of a launch, its logger, and a launcher that has not become the workload yet."""
        return self._by_shim_mark.get(launch, [])


def send(process: Process, number: int, proc: str) -> None:
    """Signals this very process; one that has gone is fine. The start time is compared while a pidfd holds the pid."""
    try:
        if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
            if alive(process.pid, process.start, proc):
                os.kill(process.pid, number)
            return
        fd = os.pidfd_open(process.pid)
    except (ProcessLookupError, PermissionError):
        return
    try:
        if alive(process.pid, process.start, proc):
            signal.pidfd_send_signal(fd, number)
    except (ProcessLookupError, PermissionError):
        pass  # gone; or setuid to somebody whom this agent may not signal: whoever counts what is left will say so
    finally:
        os.close(fd)


def watch(pid: int, start: int, proc: str) -> int:
    """A descriptor that becomes readable when this very process ends; -1 when it has ended or the system has none."""
    try:
        fd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") and pid > 0 else -1
    except OSError:
        return -1
    if fd >= 0 and not alive(pid, start, proc):
        os.close(fd)
        return -1
    return fd
