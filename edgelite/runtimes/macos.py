"""The `process` runtime on macOS: containers are sessions of processes. The image is not used.

macOS has neither cgroups nor namespaces: limits are warned about, absolute mount paths refused. What a container's processes are
is told by their session, their descent and a mark in their environment; one that loses all three is not found any more.
launchd leaves all of them alone when it stops the agent (AbandonProcessGroup in `launchd`). Order, durability and adoption are in
`supervised`, the shim in `macos_shim`.
"""

import os
import signal
import sys

from edgelite.runtimes import macos_fields, macos_proc, macos_shim, process_review
from edgelite.runtimes.base import RuntimeFailure
from edgelite.runtimes.macos_command import MacCommand, MacTerminal
from edgelite.runtimes.process_plan import inside
from edgelite.runtimes.supervised import Site, Starting, SupervisedRuntime, put
from edgelite.runtimes.supervised_command import STDERR, STDOUT, Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edgelite.config import Config
    from edgelite.runtimes.base import Launch, State
    from edgelite.runtimes.macos_proc import Processes
    from edgelite.runtimes.process_container import Container

MARK = "EDGELITE_LAUNCH"
PATH = "/usr/local/bin:/opt/homebrew/bin:/usr/bin:/bin:/usr/sbin:/sbin"
KILL_ROUNDS = 16


def create(
    state: "State", data_dir: str, boot_id: str, config: "Config", processes: "Processes | None" = None
) -> SupervisedRuntime:
    """The runtime. data_dir, config: the agent's; boot_id: differs after a reboot. Raises OSError."""
    directory = os.path.join(os.path.realpath(data_dir), "process")
    site = MacSite(directory, config, processes or macos_proc.Processes())
    return SupervisedRuntime(state, boot_id, site)


class MacStarting(Starting):
    def __init__(self, pid: int, start: int, pipe: int, data: bytes) -> None:
        self.pid = pid
        self.start = start
        self._pipe = pipe
        self._data = data

    def release(self) -> None:
        # Larger than a pipe holds, it waits for the shim, which reads first of all.
        data = self._data
        while data:
            data = data[os.write(self._pipe, data) :]

    def close(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


class MacSite(Site):
    name = "darwin"

    def __init__(self, directory: str, config: "Config", processes: "Processes") -> None:
        os.makedirs(directory, 0o700, exist_ok=True)
        self._config = config
        self._processes = processes
        self._python = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
        self._shim = install(directory)
        self._children: "set[int]" = set()

    def _abilities(self) -> process_review.Abilities:
        user = self._config.default_user
        return process_review.Abilities(
            os.geteuid(),
            os.getegid(),
            os.getgroups(),
            "none",
            set(),
            self._config.allow_privileged,
            user,
            user,
        )

    def review(self, pod: "dict[str, Any]") -> "tuple[list[str], list[str]]":
        return process_review.review(pod, self._abilities(), macos_fields.FIELDS, "darwin")

    def specification(self, launch: "Launch", c: "Container") -> "dict[str, Any]":
        can = self._abilities()
        try:
            user = process_review.identify(launch.pod["spec"], launch.container, "container " + c.name, can)
        except process_review.Refused as error:
            raise RuntimeFailure("CreateContainerConfigError", str(error)) from error
        work = os.path.join(c.directory, "work")
        os.makedirs(work, exist_ok=True)
        if can.uid == 0:
            os.chown(work, user.uid, user.gid)
        for mount in launch.mounts:
            target = os.path.join(work, inside(mount.target, "mountPath"))
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if not os.path.lexists(target):
                os.symlink(mount.source, target)
        cwd = launch.container.get("workingDir") or work
        if not cwd.startswith("/"):
            cwd = os.path.join(work, inside(cwd, "workingDir"))
            os.makedirs(cwd, exist_ok=True)
        own = [("PATH", PATH), ("HOME", work), ("TMPDIR", work + "/"), ("SHELL", "/bin/sh")]
        return {
            "directory": c.directory,
            "argv": launch.command + launch.args,
            "env": own + launch.env + [(MARK, c.launch)],
            "cwd": cwd,
            "user": [user.uid, user.gid, list(user.groups)] if can.uid == 0 else None,
        }

    def prepare(self, c: "Container", spec: "dict[str, Any]") -> Starting:
        reader, writer = os.pipe()
        log = os.open(c.path("log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            pid = self._spawn(["run", c.launch], {0: reader, 1: log, 2: log})
            self._children.add(pid)
            found = self._processes.read(pid)
            started = MacStarting(
                pid, found.start if found is not None else 0, writer, macos_shim.packed(spec)
            )
            writer = -1
            return started
        finally:
            for fd in (reader, writer, log):
                if fd >= 0:
                    os.close(fd)

    def _spawn(self, words: "list[str]", descriptors: "dict[int, int]") -> int:
        """Starts the shim's file with these descriptors and no others."""
        argv = [self._python, "-I", "-S", self._shim, *words]
        # Out of the way of each other first: what is above the targets stays where it is.
        moved = [(_high(fd), to) for to, fd in descriptors.items()]
        try:
            actions = [(os.POSIX_SPAWN_DUP2, fd, to) for fd, to in moved]
            return os.posix_spawn(self._python, argv, {"PATH": PATH}, file_actions=actions)
        finally:
            for fd, _ in moved:
                os.close(fd)

    def alive(self, pid: int, start: int) -> bool:
        if not pid:
            return False
        if pid in self._children:
            try:
                if os.waitpid(pid, os.WNOHANG)[0]:
                    self._children.discard(pid)
            except ChildProcessError:
                self._children.discard(pid)
        found = self._processes.read(pid)
        return found is not None and found.start == start

    def members(self, c: "Container") -> "list[int]":
        leader = c.written("pid") or c.written("child")
        if leader is None:
            return []
        processes = self._processes
        first = processes.read(leader)
        mark = (MARK + "=" + c.launch).encode()
        if first is not None and first.parent != c.shim[0] and not processes.marked(leader, mark):
            return []  # it ended, and its number is somebody else's
        children: "dict[int, list[int]]" = {}
        found = [] if first is None else [leader]
        for pid in processes.pids():
            process = processes.read(pid)
            if process is not None:
                children.setdefault(process.parent, []).append(pid)
                if pid != leader and processes.session(pid) == leader:
                    found.append(pid)
        found += [pid for pid in processes.pids() if pid not in found and processes.marked(pid, mark)]
        queue = list(found)
        while queue:
            for pid in children.get(queue.pop(), ()):
                if pid not in found:
                    found.append(pid)
                    queue.append(pid)
        return found

    def _signal(self, c: "Container", number: int) -> int:
        """How many it was sent to."""
        found = self.members(c)
        for pid in found:
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                pass  # gone; or setuid to somebody whom this agent may not signal
        return len(found)

    def ask(self, c: "Container") -> None:
        self._signal(c, signal.SIGTERM)

    def kill(self, c: "Container") -> None:
        for _ in range(KILL_ROUNDS):  # what is alive forks
            if not self._signal(c, signal.SIGKILL):
                return

    def kill_shim(self, c: "Container") -> None:
        if self.alive(*c.shim):
            os.kill(c.shim[0], signal.SIGKILL)
            macos_shim.unshare(c.launch)

    def usage(self, c: "Container") -> "tuple[int, int]":
        told = [self._processes.usage(pid) for pid in self.members(c)]
        return sum([cpu for cpu, _ in told]), sum([memory for _, memory in told])

    def command(
        self,
        c: "Container",
        argv: "list[str]",
        stdin: bool,
        outputs: "tuple[bool, bool]",
        joined: bool,
        tty: bool,
    ) -> Command:
        given: "list[int]" = []
        kept: "list[int]" = []
        try:
            report_r, report_w = os.pipe()
            given.append(report_w)
            kept.append(report_r)
            if tty:
                master, slave = os.openpty()
                given.append(slave)
                kept.append(master)
                plan = {0: slave, 1: slave, 2: slave, macos_shim.REPORT_FD: report_w}
                pid = self._spawn(["terminal", c.launch, *argv], plan)
                made: "MacCommand" = MacTerminal(pid, report_r, master, stdin)
            else:
                null = os.open(os.devnull, os.O_RDWR)
                given.append(null)
                plan = {0: null, 1: null, 2: null, macos_shim.REPORT_FD: report_w}
                readers: "dict[int, int]" = {}
                own = -1
                if stdin:
                    plan[0], own = os.pipe()
                    given.append(plan[0])
                    kept.append(own)
                for channel, wanted in ((STDOUT, outputs[0]), (STDERR, outputs[1])):
                    if wanted and joined and readers:
                        plan[channel] = plan[STDOUT]
                    elif wanted:
                        readers[channel], plan[channel] = os.pipe()
                        given.append(plan[channel])
                        kept.append(readers[channel])
                made = MacCommand(self._spawn(["enter", c.launch, *argv], plan), own, report_r, readers)
            kept = []
            return made
        finally:
            for fd in given + kept:
                os.close(fd)


def _high(fd: int) -> int:
    """A copy of a descriptor above those that are given to shims."""
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20)


def install(directory: str) -> str:
    """Puts the shim into a file named by its content; its path."""
    import binascii

    loader: "Any" = globals()["__loader__"]
    data: bytes = loader.get_data(os.path.join(os.path.dirname(os.path.abspath(__file__)), "macos_shim.py"))
    path = os.path.join(directory, "shim-%08x.py" % binascii.crc32(data))
    put(path, data)
    return path
