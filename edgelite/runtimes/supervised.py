"""Containers as process trees on hosts without cgroups and namespaces: what the Windows and the macOS runtime share.

Each container has a shim, a small Python that outlives the agent (`windows_shim`, `macos_shim`). What differs between systems is
a `Site`: starting, asking, killing, counting. Here: order and durability, watching, finding again.

Invariants, as in `process`: a container runs at most once, whatever kills the agent when. The intent and then the shim's identity
(pid, start time) are durable before the shim is told what to do; until then it waits for the agent and ends with it. An end is
decided once, and its Status kept, when nothing of the container runs any more. Every end is handed out once.
Nothing here announces the end of a process to a poll loop: shims are looked at every WATCH_S while containers run.
"""

import os
import time

from edgelite.atomicfiles import remove_tree
from edgelite.logfiles import LOOK_S, LogFile
from edgelite.loop import Wait
from edgelite.loop import now as clock
from edgelite.runtimes.base import RuntimeFailure
from edgelite.runtimes.process_attempts import HostRuntime
from edgelite.runtimes.process_container import UNKNOWN_EXIT, Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from edgelite.runtimes.base import Ends, Launch, State, Status
    from edgelite.runtimes.supervised_command import Command

START_S = 60.0  # a cold Python on a slow disk, and whatever scans new programs there
SHIM_S = 5.0  # after the workload's end, for its shim to record it
UNKILLABLE_S = 10.0
WATCH_S = 0.2
RETRY_S = 0.03
REMOVE_TRIES, REMOVE_PAUSE_S = 10, 0.02
LOG_BYTES, LOG_FILES = 10 << 20, 3


class Starting:
    """A shim that waits to be told what to do. `release` tells it; `close` without that ends it."""

    pid = 0
    start = 0

    def release(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Site:
    """What this system does with the processes of a container. Methods raise OSError."""

    name = ""

    def review(self, pod: "dict[str, Any]") -> "tuple[list[str], list[str]]":
        """See `Runtime.review`."""
        raise NotImplementedError

    def specification(self, launch: "Launch", c: Container) -> "dict[str, Any]":
        """What the shim is told; makes the working directory. Raises RuntimeFailure, ValueError for what is no quantity."""
        raise NotImplementedError

    def prepare(self, c: Container, spec: "dict[str, Any]") -> Starting:
        raise NotImplementedError

    def alive(self, pid: int, start: int) -> bool:
        """Whether this very process runs."""
        raise NotImplementedError

    def ask(self, c: Container) -> None:
        """Asks the workload to end."""
        raise NotImplementedError

    def kill(self, c: Container) -> None:
        """Ends every process of the workload at once; its shim records that. Nothing left to kill is fine."""
        raise NotImplementedError

    def kill_shim(self, c: Container) -> None:
        """The same for the shim itself."""
        raise NotImplementedError

    def members(self, c: Container) -> "list[int]":
        """Process ids of the workload."""
        raise NotImplementedError

    def command(
        self,
        c: Container,
        argv: "list[str]",
        stdin: bool,
        outputs: "tuple[bool, bool]",
        joined: bool,
        tty: bool,
    ) -> "Command":
        """Starts a command in the container's surroundings. joined: both outputs are one; tty: all three streams are a
        terminal. Raises RuntimeFailure, ValueError."""
        raise NotImplementedError

    def usage(self, c: Container) -> "tuple[int, int]":
        """(cpu ns, memory bytes)"""
        raise NotImplementedError

    def ended(self, code: int) -> "tuple[int, str]":
        """(exit code, what it says) of what the shim wrote."""
        return code, ""


class SupervisedRuntime(HostRuntime):
    """See the module's docstring, and Runtime for the interface. state: the durable map; boot_id: differs after a reboot."""

    def __init__(self, state: "State", boot_id: str, site: Site) -> None:
        super().__init__(state, boot_id)
        self._site = site

    def close(self) -> None:
        """What runs goes on running; a runtime made anew with the same state adopts it."""

    def review(self, pod: "dict[str, Any]") -> "tuple[list[str], list[str]]":
        return self._site.review(pod)

    # Starting

    def start(self, launch: "Launch") -> "Generator[Wait, bool, Status]":
        c = self._new(launch)
        self._begin(c, launch)
        deadline = clock() + START_S
        try:
            while True:
                if _written(c, "pid") is not None:
                    return c.running()
                failure = _failed(c)
                if failure is not None:
                    raise failure
                if not self._site.alive(*c.shim):
                    failure = _failed(c) or RuntimeFailure(
                        "RunContainerError", "its shim ended without a word: " + _tail(c.path("log"))
                    )
                    if _written(c, "pid") is not None:
                        return c.running()  # and ended at once
                    raise failure
                if clock() >= deadline:
                    raise RuntimeFailure("RunContainerError", "it did not begin within %g s" % START_S)
                yield Wait(-1, 0, clock() + RETRY_S)
        except RuntimeFailure:
            yield from self._undo(c)
            raise
        finally:
            c.starting = False  # also when cancelled: then it runs, or ends, and `changes` reports it

    def _launch(self, c: Container, launch: "Launch") -> None:
        self._prune(c)
        self._remove_tree(c.directory)
        os.makedirs(c.directory, 0o700)
        try:
            spec = self._site.specification(launch, c)
        except ValueError as error:
            raise RuntimeFailure("CreateContainerConfigError", str(error)) from error
        self._state.put(c.key, c.record())
        shim = self._site.prepare(c, spec)
        try:
            c.shim = (shim.pid, shim.start)
            c.started_at = time.time()
            self._state.put(c.key, c.record())
            shim.release()
        finally:
            shim.close()

    def _undo(self, c: Container) -> "Generator[Wait, bool, None]":
        """After a failed start: waits until nothing of it runs, and forgets that there was an attempt."""
        yield from self._end_all(c, clock() + SHIM_S)
        self._drop(c)
        self._discard(c)

    def _end_all(self, c: Container, patience: float) -> "Generator[Wait, bool, None]":
        """Ends workload and shim; the latter by force after `patience`, and gives up on it UNKILLABLE_S later."""
        self._site.kill(c)
        while self._site.alive(*c.shim) and clock() < patience + UNKILLABLE_S:
            if clock() >= patience:
                self._site.kill_shim(c)
            yield Wait(-1, 0, clock() + RETRY_S)
        self._site.kill(c)

    # Watching

    def changes(self, deadline: "float | None") -> "Generator[Wait, bool, list[Status]]":
        while True:
            ended = self._settle()
            if ended:
                return ended
            if deadline is not None and clock() >= deadline:
                return []
            until = clock() + (WATCH_S if self._active else LOOK_S)
            yield Wait(-1, 0, until if deadline is None else min(until, deadline))

    def _settle(self) -> "list[Status]":
        """Moves everything on by what has happened, without waiting; returns the ends nobody has been told of."""
        for c in list(self._active):
            self._advance(c)
        self._look()
        return self._unreported()

    def _advance(self, c: Container) -> None:
        """Decides the end of one container: its shim has gone, or does not go although the workload has."""
        if c.starting or c.status is not None:
            return
        if self._site.alive(*c.shim):
            if _written(c, "exit") is None:
                return
            if not c.ending_at:
                c.ending_at = clock()
            if clock() - c.ending_at < SHIM_S:
                return
            self._site.kill(c)
            self._site.kill_shim(c)
            if clock() - c.ending_at < SHIM_S + UNKILLABLE_S:
                return
        self._site.kill(c)  # what an exec has left, or a shim that was killed
        code = _written(c, "exit")
        if code is None and os.path.exists(c.path("exit")):
            c.ending_at = c.ending_at or clock()
            if clock() - c.ending_at < UNKILLABLE_S:
                return  # held by somebody, or a power cut tore it
        if code is None:
            message = "its shim was killed, so nothing recorded how it ended; what was left of it was killed"
            status = c.exited(UNKNOWN_EXIT, "ContainerStatusUnknown", message, time.time())
        else:
            status = self._recorded(c, code)
        self._conclude(c, status)

    def _recorded(self, c: Container, code: int) -> "Status":
        code, said = self._site.ended(code)
        reason = "Completed" if code == 0 else "Error"
        return c.exited(code, reason, said, os.stat(c.path("exit")).st_mtime)

    # Finding again

    def recover(self) -> "Generator[Wait, bool, list[Status]]":
        for c in self._load():
            yield from self._find(c)
        return self._found()

    def _find(self, c: Container) -> "Generator[Wait, bool, None]":
        """Adopts what runs, and brings to an end what does not run as recorded."""
        here = c.boot == self._boot
        deadline = clock() + START_S
        # A shim that has been told, and has not got to its workload yet.
        while here and self._site.alive(*c.shim) and _written(c, "pid") is None and _failed(c) is None:
            if clock() >= deadline:
                self._site.kill_shim(c)
            yield Wait(-1, 0, clock() + RETRY_S)
        if here and _written(c, "pid") is None:
            yield from self._end_all(c, clock() + SHIM_S)
            self._discard(c)  # intended, or started and never told
        elif here:
            self._active.append(c)
            while c.status is None and (not self._site.alive(*c.shim) or _written(c, "exit") is not None):
                self._advance(c)
                yield Wait(-1, 0, clock() + RETRY_S)
        else:
            self._after_reboot(c, _written(c, "exit"))
            if self._site.alive(*c.shim):
                yield from self._end_all(c, clock())  # a moved or thawed machine: it was no reboot

    # Stopping

    def stop(self, uid: str, container: str, grace_s: float) -> "Generator[Wait, bool, Status]":
        c = self._newest(uid, container)
        c.stops += 1
        try:
            kill_at = clock() + grace_s
            told = False
            while c.status is None:
                self._advance(c)
                if c.status is None and not c.starting:
                    if not told:
                        told = True
                        self._site.ask(c)
                    if clock() >= kill_at:
                        self._site.kill(c)
                if c.status is None:
                    yield Wait(-1, 0, clock() + RETRY_S)
            c.reported = True
            return c.status
        except OSError as error:
            raise RuntimeFailure("StopFailed", "cannot stop container %s: %s" % (container, error)) from error
        finally:
            c.stops -= 1

    # Looking inside

    def _command(
        self,
        uid: str,
        container: str,
        argv: "list[str]",
        stdin: bool,
        outputs: "tuple[bool, bool]",
        joined: bool,
        tty: bool,
    ) -> "Command":
        c = self._enterable(uid, container, argv)
        try:
            return self._site.command(c, argv, stdin, outputs, joined, tty)
        except (OSError, ValueError) as error:
            raise RuntimeFailure(
                "ExecFailed", "cannot enter container %s: %s" % (container, error)
            ) from error

    def exec(
        self, uid: str, container: str, argv: "list[str]", timeout_s: float
    ) -> "Generator[Wait, bool, tuple[int, bytes]]":
        command = self._command(uid, container, argv, False, (True, True), True, False)
        try:
            found = yield from command.collect(clock() + timeout_s)
        finally:
            command.abandon()
        if found is None:
            raise RuntimeFailure("Timeout", "%s did not end within %g s" % (argv[0], timeout_s))
        return found

    def open_exec(
        self,
        uid: str,
        container: str,
        argv: "list[str]",
        stdin: bool,
        outputs: "tuple[bool, bool]",
        tty: bool,
    ) -> "Generator[Wait, bool, Ends]":
        return self._command(uid, container, argv, stdin, outputs, False, tty)
        yield

    def usage(self) -> "Generator[Wait, bool, list[tuple[str, str, int, int]]]":
        found = []
        for (uid, name), attempts in list(self._attempts.items()):
            c = attempts[-1] if attempts else None
            if c is None or c.status is not None or c.starting:
                continue
            try:
                found.append((uid, name, *self._site.usage(c)))
            except OSError:
                continue  # it has ended meanwhile
            yield Wait(-1, 0, clock())  # others have their turn
        return found

    def _log(self, c: Container) -> LogFile:
        return LogFile(c.path("log"), LOG_BYTES, LOG_FILES)

    def _remove_tree(self, path: str) -> None:
        """Windows lets go of the files of a process that was killed a moment after its end."""
        for left in range(REMOVE_TRIES - 1, -1, -1):
            try:
                remove_tree(path)
                return
            except OSError:
                if os.name != "nt" or not left:
                    raise
                time.sleep(REMOVE_PAUSE_S)


def put(path: str, data: bytes) -> None:
    """Has the file hold this; one that does is left alone, for somebody may run it. Raises OSError."""
    from edgelite.files import write_atomically

    try:
        with open(path, "rb") as file:
            if file.read() == data:
                return
    except FileNotFoundError:
        pass
    write_atomically(path, data)


def _written(c: Container, name: str) -> "int | None":
    """What the shim wrote to "pid" or "exit", None while it has not, or while Windows keeps it to somebody else: a program that
    looks at every new file."""
    try:
        return c.written(name)
    except PermissionError:
        return None


def _failed(c: Container) -> "RuntimeFailure | None":
    """Why the shim could not begin."""
    try:
        with open(c.path("failed"), encoding="utf-8") as file:
            text = file.read(65536)
    except (FileNotFoundError, PermissionError):
        return None  # not yet; see `_written`
    reason, _, message = text.partition("\0")
    return RuntimeFailure(reason, message[:-1]) if message.endswith("\0") else None


def _tail(path: str) -> str:
    """The last words of a log, for an error."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.stat(path).st_size - 1024))
            return file.read(1024).decode("utf-8", "replace").strip() or "its log is empty"
    except FileNotFoundError:
        return "it has no log"
