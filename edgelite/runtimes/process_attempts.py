"""What the `process` runtime is on every system: its record of the attempts of each container, and what is answered from it.

`process` (Linux) and `supervised` (Windows, macOS) start, watch and end processes, each in its own way, and keep here what became
of them. Ends are durable, and handed out once.
"""

import os
import time

from edgelite import __version__
from edgelite.logfiles import LOOK_S, Reader
from edgelite.loop import now as clock
from edgelite.runtimes.base import Runtime, RuntimeFailure
from edgelite.runtimes.process_container import UNKNOWN_EXIT, Container, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from edgelite.logfiles import LogFile
    from edgelite.loop import Wait
    from edgelite.runtimes.base import Ends, Launch, LogSink, State, Status


class HostRuntime(Runtime):
    """See the module's docstring, and Runtime for the interface. state: the durable map; boot_id: differs after a reboot."""

    name = "process"

    def __init__(self, state: "State", boot_id: str) -> None:
        self._state = state
        self._boot = boot_id
        self._attempts: "dict[tuple[str, str], list[Container]]" = {}  # newest last, at most two and one starting
        self._active: "list[Container]" = []
        self._unrecorded: "list[Container]" = []  # ended, and the journal could not take it yet
        self._looked_at = 0.0

    def facts(self) -> "dict[str, str]":
        return {"version": "process://" + __version__}

    # What differs between systems

    def _remove_tree(self, path: str) -> None:
        """Removes a directory with what is in it, following no link; one that is not there is fine. Raises OSError."""
        raise NotImplementedError

    def _log(self, c: Container) -> "LogFile":
        raise NotImplementedError

    def _launch(self, c: Container, launch: "Launch") -> "Any":
        """Starts the shim, with all of it recorded first. Raises anything."""
        raise NotImplementedError

    # Beginnings

    def _new(self, launch: "Launch") -> Container:
        uid, name = launch.pod["uid"], launch.container["name"]
        attempts = self._attempts.get((uid, name), [])
        if attempts and attempts[-1].status is None:
            raise RuntimeFailure(
                "CreateContainerError", "container %s is still running; stop it first" % name
            )
        if not launch.command:
            text = "container %s needs a command: the process runtime does not use the image" % name
            raise RuntimeFailure("CreateContainerConfigError", text)
        directory = os.path.join(os.path.realpath(launch.pod_dir), "process", name, str(launch.attempt))
        c = Container(uid, name, launch.attempt, os.urandom(16).hex(), directory, self._boot)
        c.starting = True
        return c

    def _prune(self, c: Container) -> None:
        """Forgets attempts before the previous one, whose log and end are kept; its working directory is not."""
        attempts = self._attempts.get((c.uid, c.name), [])
        for old in attempts[:-1] + [o for o in attempts[-1:] if o.attempt == c.attempt]:
            self._forget(old)
            attempts.remove(old)
        for old in attempts:
            self._remove_tree(old.path("work"))

    def _begin(self, c: Container, launch: "Launch") -> "Any":
        """Everything up to the shim's start; what `_launch` returned. Raises RuntimeFailure, with nothing left behind."""
        try:
            made = self._launch(c, launch)
        except RuntimeFailure:
            self._forget(c)
            raise
        except Exception as error:
            self._forget(c)
            text = "cannot start container %s: %s: %s" % (c.name, type(error).__name__, error)
            raise RuntimeFailure("CreateContainerError", text) from error
        self._attempts.setdefault((c.uid, c.name), []).append(c)
        self._active.append(c)
        return made

    def _discard(self, c: Container) -> None:
        """It did not begin, so there was no such attempt."""
        self._attempts[(c.uid, c.name)].remove(c)
        self._forget(c)

    def _forget(self, c: Container) -> None:
        if c in self._unrecorded:
            self._unrecorded.remove(c)
        self._remove_tree(c.directory)
        self._state.delete(c.key)

    # Ends

    def _drop(self, c: Container) -> None:
        """It is watched no more."""
        if c in self._active:
            self._active.remove(c)

    def _conclude(self, c: Container, status: "Status") -> None:
        c.status = status
        if c.log is not None:
            c.log.look(time.time())
            c.log = None
        self._drop(c)
        self._unrecorded.append(c)
        self._record_ends()

    def _recorded(self, c: Container, code: int) -> "Status":
        """The end that the shim wrote."""
        return c.exited(code, "Completed" if code == 0 else "Error", "", os.stat(c.path("exit")).st_mtime)

    def _after_reboot(self, c: Container, code: "int | None") -> None:
        """code: what its shim wrote, if it did."""
        if code is None:
            text = "the machine was restarted while it ran, so nothing recorded how it ended"
            status = c.exited(UNKNOWN_EXIT, "ContainerStatusUnknown", text, time.time())
        else:
            status = self._recorded(c, code)
        self._conclude(c, status)

    def _record_ends(self) -> None:
        """Makes ends durable. While the disk is full they are kept here and tried again with the logs; an agent that
        dies meanwhile finds them once more in what the shim wrote."""
        for c in list(self._unrecorded):
            try:
                self._state.put(c.key, c.record())
            except Exception:  # noqa: S112  (of whatever kind the journal's is)
                continue
            self._unrecorded.remove(c)

    def _look(self) -> None:
        """Makes ends durable, and samples and rotates the logs of what runs; once a second."""
        if clock() - self._looked_at < LOOK_S:
            return
        self._looked_at = clock()
        self._record_ends()
        for c in self._active:
            if c.log is None:
                c.log = self._log(c)
            c.log.look(time.time())

    def _unreported(self) -> "list[Status]":
        """The ends nobody has been told of, once."""
        ended = []
        for c in [a for attempts in self._attempts.values() for a in attempts[-1:]]:
            if c.status is not None and not c.reported and not c.stops:
                c.reported = True
                ended.append(c.status)
        return ended

    # Finding again

    def _load(self) -> "list[Container]":
        """Reads what was recorded; those without an end."""
        for key, value in self._state.items():
            c = parse(key, value)
            self._attempts.setdefault((c.uid, c.name), []).append(c)
        for attempts in self._attempts.values():
            attempts.sort(key=lambda c: c.attempt)
        return [c for attempts in self._attempts.values() for c in attempts if c.status is None]

    def _found(self) -> "list[Status]":
        """What `recover` returns."""
        newest = [attempts[-1] for attempts in self._attempts.values() if attempts]
        for c in newest:
            c.reported = c.status is not None
        return [c.status or c.running() for c in newest]

    # What is asked

    def _newest(self, uid: str, container: str) -> Container:
        attempts = self._attempts.get((uid, container))
        if not attempts:
            raise RuntimeFailure(
                "NotFound", "container %s of pod %s has not been started here" % (container, uid)
            )
        return attempts[-1]

    def _enterable(self, uid: str, container: str, argv: "list[str]") -> Container:
        """The container, which runs, and something to run in it. Raises RuntimeFailure."""
        c = self._newest(uid, container)
        if c.status is not None or c.starting or c.ending_at:
            raise RuntimeFailure("ExecFailed", "container %s is not running" % container)
        if not argv:
            raise RuntimeFailure("ExecFailed", "exec needs a command")
        return c

    def remove(self, uid: str) -> "Generator[Wait, bool, None]":
        for key in [k for k in self._attempts if k[0] == uid]:
            if self._attempts[key] and self._attempts[key][-1].status is None:
                yield from self.stop(uid, key[1], 0.0)
            for c in list(self._attempts[key]):
                self._forget(c)
                self._attempts[key].remove(c)
                self._remove_tree(os.path.dirname(c.directory))
                try:
                    os.rmdir(os.path.dirname(os.path.dirname(c.directory)))
                except OSError:
                    pass  # other containers of the pod are in it
            del self._attempts[key]

    def open_attach(self, uid: str, container: str, stdin: bool) -> "Generator[Wait, bool, Ends]":
        from edgelite.runtimes.attached import Output

        if stdin:
            text = "containers of the process runtime have no standard input; attach without it, or use exec"
            raise RuntimeFailure("Unsupported", text)
        self._enterable(uid, container, ["attach"])
        options = {"follow": True, "tail": 0}
        return Output(lambda sink: self.logs(uid, container, options, sink))
        yield

    def address(self, uid: str) -> "Generator[Wait, bool, str]":
        return "127.0.0.1"  # processes share the host's network
        yield

    def logs(
        self, uid: str, container: str, options: "dict[str, Any]", out: "LogSink"
    ) -> "Generator[Wait, bool, None]":
        c = self._newest(uid, container)
        if options.get("previous"):
            attempts = self._attempts[(uid, container)]
            if len(attempts) < 2:
                raise RuntimeFailure("NotFound", "container %s has no previous attempt" % container)
            c = attempts[-2]
        log = c.log
        if log is None:
            log = self._log(c)
            if c.status is None:
                c.log = log
        yield from Reader(log, options).stream(out, lambda: c.status is not None)
