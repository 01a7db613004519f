"""The `process` runtime: containers are process trees on the host. The image is not used. [Linux]

How a container is made is told in process_spawn, its surroundings in process_launcher, what of a Pod is
honoured in process_fields. Here: starting, watching, stopping and finding again.

Invariants: a container runs at most once, whatever kills the agent when. The intent (attempt and a random launch id) and
then the shim's identity are durable before the shim does anything; until then it waits for the agent and dies with it.
An end is decided once, and its Status kept, when nothing of the container runs any more. Every end is handed out once:
by the `stop` that waited for it, else by `changes`, or by `recover` when it came while no agent ran.
"""

import os
import select
import signal
import time

from edgelite.logfiles import LOOK_S, LogFile
from edgelite.loop import POLLIN, Wait
from edgelite.loop import now as clock
from edgelite.runtimes import process_pipes, process_plan, process_proc, process_review, process_spawn
from edgelite.runtimes.base import RuntimeFailure
from edgelite.runtimes.process_attempts import HostRuntime
from edgelite.runtimes.process_cgroups import Cgroups
from edgelite.runtimes.process_config import Config as Config
from edgelite.runtimes.process_config import Host as Host
from edgelite.runtimes.process_container import NOBODY, UNKNOWN_EXIT, Container
from edgelite.runtimes.process_proc import Process, Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from edgelite.runtimes.base import Ends, Launch, State, Status
    from edgelite.runtimes.process_review import Abilities

START_S = 30.0  # for the launcher's report: a mount of a dead file server must not hold a start for ever
SHIM_S = 5.0  # after the workload's end, for the shim to write the rest of the output
UNKILLABLE_S = 10.0  # after SIGKILL, for processes in uninterruptible sleep
RETRY_S = 0.03
UNWATCHED_S = 0.5  # how often processes are looked at where there is no pidfd


class ProcessRuntime(HostRuntime):
    """See the module's docstring, and Runtime for the interface.

    state: the durable map; data_dir: the agent's, an own folder `process` is made in it; boot_id: differs after a reboot."""

    def __init__(
        self,
        state: "State",
        data_dir: str,
        boot_id: str,
        config: "Config | None" = None,
        host: "Host | None" = None,
    ) -> None:
        super().__init__(state, boot_id)
        self._config = config or Config()
        self._host = host or Host()
        directory = os.path.join(os.path.realpath(data_dir), "process")
        os.makedirs(directory, 0o700, exist_ok=True)
        self._programs = process_spawn.Programs(directory, self._host.shell, self._host.python)
        self._cgroups = self._host.cgroups or Cgroups("%08x" % _crc(directory))
        self._namespaces = self._host.namespaces
        if self._namespaces is None:
            self._namespaces = process_spawn.probe_namespaces(self._programs.root_dir)
        self._by_fd: "dict[int, Container]" = {}
        self._unreaped: "set[int]" = set()
        self._epoll = select.epoll()
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._epoll.register(self._wake_r, select.EPOLLIN)

    def close(self) -> None:
        """Lets go of descriptors. What runs goes on running; a runtime made anew with the same state adopts it."""
        for fd in list(self._by_fd):
            os.close(fd)
        self._by_fd.clear()
        self._epoll.close()
        os.close(self._wake_r)
        os.close(self._wake_w)
        self._cgroups.close()

    def review(self, pod: "dict[str, Any]") -> "tuple[list[str], list[str]]":
        return process_review.review(pod, self._abilities())

    def _abilities(self) -> "Abilities":
        config = self._config
        return process_review.Abilities(
            os.geteuid(),
            os.getegid(),
            os.getgroups(),
            self._namespaces or "none",
            self._cgroups.limits,
            config.allow_privileged,
            config.default_uid,
            config.default_gid,
        )

    # Starting

    def start(self, launch: "Launch") -> "Generator[Wait, bool, Status]":
        c = self._new(launch)
        child: process_spawn.Child = self._begin(c, launch)
        self._watch(c, c.shim)
        self._wake()
        try:
            report = yield from process_pipes.read_report(child.report, clock() + START_S)
            failure = process_pipes.failure(report)
            if failure is None:
                c.find_workload(self._host.proc)
                self._watch(c, c.work)
                return c.running()
        finally:
            # Also when cancelled: then it runs, or ends, and `changes` reports it.
            child.close()
            c.starting = False
            self._wake()
        self._watch(c, NOBODY)
        yield from self._undo(c)
        raise failure

    def _launch(self, c: Container, launch: "Launch") -> process_spawn.Child:
        spec = self._prepare(c, launch)
        self._state.put(c.key, c.record())
        reaper = not self._cgroups.tracking
        child = process_spawn.fork_shim(self._programs, c.launch, c.directory, c.path("log"), spec, reaper)
        self._unreaped.add(child.pid)
        try:
            found = process_proc.read(child.pid, self._host.proc)
            c.shim = (child.pid, found.start if found is not None else 0)
            c.started_at = time.time()
            self._state.put(c.key, c.record())
            child.release()
        except BaseException:
            child.close()  # the shim sees it and ends without having done anything
            raise
        return child

    def _prepare(self, c: Container, launch: "Launch") -> "dict[str, Any]":
        can = self._abilities()
        self._prune(c)
        try:
            user = process_review.identify(launch.pod["spec"], launch.container, "container " + c.name, can)
            limits = process_plan.limits(launch.container, self._config.pids_max)
        except (process_review.Refused, ValueError) as error:
            raise RuntimeFailure("CreateContainerConfigError", str(error)) from error
        self._remove_tree(c.directory)
        os.makedirs(c.directory, 0o700)
        spec = process_plan.specification(launch, c.launch, c.directory, user, can, self._programs.root_dir)
        spec["cgroups"] = self._cgroups.create(c.group, limits)
        return spec

    def _undo(self, c: Container) -> "Generator[Wait, bool, None]":
        """After a failed start: waits until nothing of it runs, and forgets that there was an attempt."""
        c.starting = True  # nobody else's business
        deadline = clock() + SHIM_S
        while process_proc.alive(c.shim[0], c.shim[1], self._host.proc):
            if clock() >= deadline:
                self._kill_all(c)
            yield Wait(-1, 0, clock() + RETRY_S)
        self._kill_all(c)
        self._drop(c)
        self._discard(c)

    def _kill_all(self, c: Container) -> None:
        """Shim included, found by marks: for starts and ends that did not go as they should."""
        self._cgroups.kill(c.group)
        snapshot = Snapshot(self._host.proc)
        for process in snapshot.workload(c.launch, 0, 0) + snapshot.shim(c.launch):
            process_proc.send(process, signal.SIGKILL, self._host.proc)

    def _forget(self, c: Container) -> None:
        self._cgroups.remove(c.group)
        super()._forget(c)

    def _remove_tree(self, path: str) -> None:
        if not os.path.lexists(path):
            return
        for _, directories, files, fd in os.fwalk(path, topdown=False, follow_symlinks=False):
            for name in files:
                os.unlink(name, dir_fd=fd)
            for name in directories:
                try:
                    os.rmdir(name, dir_fd=fd)
                except NotADirectoryError:
                    os.unlink(name, dir_fd=fd)  # a link to a directory
        os.rmdir(path)

    # Watching

    def changes(self, deadline: "float | None") -> "Generator[Wait, bool, list[Status]]":
        while True:
            ended = self._settle()
            if ended:
                return ended
            if deadline is not None and clock() >= deadline:
                return []
            yield Wait(self._epoll.fileno(), POLLIN, self._wake_at(deadline))

    def _wake_at(self, deadline: "float | None") -> "float | None":
        times = [] if deadline is None else [deadline]
        if self._active or self._unrecorded:
            times.append(self._looked_at + LOOK_S)
        if any(c.ending_at for c in self._active):
            times.append(clock() + RETRY_S)
        if any(not c.fds and not c.starting for c in self._active):
            times.append(clock() + UNWATCHED_S)
        return min(times) if times else None

    def _settle(self) -> "list[Status]":
        """Moves everything on by what has happened, without waiting; returns the ends nobody has been told of."""
        self._poll()
        snapshots: "list[Snapshot]" = []
        for c in list(self._active):
            self._advance(c, snapshots)
        self._look()
        for pid in list(self._unreaped):
            self._reap(pid)
        return self._unreported()

    def _poll(self) -> None:
        for fd, _ in self._epoll.poll(0):
            if fd == self._wake_r:
                os.read(fd, 4096)
            else:
                self._unwatch(fd)

    def _advance(self, c: Container, snapshots: "list[Snapshot]") -> None:
        """Decides the end of one container. snapshots: [] or the one already taken in this pass."""
        if c.starting:
            return
        proc = self._host.proc
        if not c.ending_at:
            if len(c.fds) == 2:
                return  # both pidfds are silent
            if process_proc.alive(c.shim[0], c.shim[1], proc):
                if c.work == NOBODY and c.find_workload(proc):
                    self._watch(c, c.work)
                if c.work == NOBODY and c.written("pid") is None:
                    return
                if process_proc.alive(c.work[0], c.work[1], proc):
                    return
            c.ending_at = clock()
        left = self._members(c, snapshots)
        shim = process_proc.alive(c.shim[0], c.shim[1], proc)
        overdue = clock() - c.ending_at
        if left and overdue < UNKILLABLE_S:
            self._kill(c, left)
        elif shim and overdue < SHIM_S:
            pass
        elif shim and overdue < UNKILLABLE_S:
            self._kill_all(c)
        else:
            self._end(c, left)

    def _members(self, c: Container, snapshots: "list[Snapshot]") -> "list[Process]":
        """The processes of the workload, without the shim and its logger."""
        proc = self._host.proc
        if self._cgroups.tracking and c.boot == self._boot:
            pids = list(self._cgroups.pids(c.group))
            # Before it has joined its cgroup the workload is not in there; twice in the list, it would be told twice.
            if c.work[0] not in pids and c.work != NOBODY and process_proc.alive(c.work[0], c.work[1], proc):
                pids.append(c.work[0])
            found = [process_proc.read(pid, proc) for pid in pids]
            return [p for p in found if p is not None and p.state not in "ZX"]
        if not snapshots:
            snapshots.append(Snapshot(proc))
        session = c.work[0] if process_proc.alive(c.work[0], c.work[1], proc) else 0
        shim = c.shim[0] if process_proc.alive(c.shim[0], c.shim[1], proc) else 0
        members = snapshots[0].workload(c.launch, session, shim)
        members = [p for p in members if process_proc.alive(p.pid, p.start, proc)]
        if members:
            snapshots.clear()  # what is there next time has to be seen anew
        return members

    def _kill(self, c: Container, members: "list[Process]") -> None:
        self._cgroups.kill(c.group)
        for process in members:
            process_proc.send(process, signal.SIGKILL, self._host.proc)

    def _end(self, c: Container, left: "list[Process]") -> None:
        code = c.written("exit")
        finished_at = time.time()
        message = ""
        if code is None:
            code, reason = UNKNOWN_EXIT, "ContainerStatusUnknown"
            message = "its shim was killed, so nothing recorded how it ended; what was left of it was killed"
            self._kill_all(c)
        else:
            finished_at = os.stat(c.path("exit")).st_mtime
            reason = "Completed" if code == 0 else "Error"
            if code and self._cgroups.oom_killed(c.group):
                reason, message = "OOMKilled", "the kernel killed it for its memory limit"
        if left:
            message = "%d of its processes cannot be killed, first %d" % (len(left), left[0].pid)
        self._conclude(c, c.exited(code, reason, message, finished_at))

    def _log(self, c: Container) -> LogFile:
        """With the share of the disk that all logs may take divided among the containers."""
        config = self._config
        bound = config.log_bytes
        try:
            disk = os.statvfs(c.directory)
            share = disk.f_frsize * disk.f_blocks * config.log_share
            bound = int(min(bound, share / (2 * config.log_files * max(1, len(self._attempts)))))
        except FileNotFoundError:
            pass  # removed meanwhile: there is nothing to rotate
        return LogFile(c.path("log"), max(65536, bound), config.log_files)

    def _watch(self, c: Container, who: "tuple[int, int]") -> None:
        fd = process_proc.watch(who[0], who[1], self._host.proc) if self._host.pidfd else -1
        if fd >= 0:
            c.fds.append(fd)
            self._by_fd[fd] = c
            self._epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        c = self._by_fd.pop(fd)
        c.fds.remove(fd)
        self._epoll.unregister(fd)
        os.close(fd)

    def _drop(self, c: Container) -> None:
        for fd in list(c.fds):
            self._unwatch(fd)
        super()._drop(c)
        self._cgroups.remove(c.group)

    def _wake(self) -> None:
        try:
            os.write(self._wake_w, b".")
        except BlockingIOError:
            pass  # full: it wakes anyway

    def _reap(self, pid: int) -> None:
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            pass  # somebody else's, or reaped
        self._unreaped.discard(pid)

    # Finding again

    def recover(self) -> "Generator[Wait, bool, list[Status]]":
        unended = self._load()
        snapshot = Snapshot(self._host.proc)
        for c in unended:
            self._find(c)
        yield from self._kill_strays([c for attempts in self._attempts.values() for c in attempts], snapshot)
        while any(c.ending_at or c.work == NOBODY for c in self._active):
            self._poll()
            snapshots: "list[Snapshot]" = []
            for c in list(self._active):
                self._advance(c, snapshots)
            yield Wait(-1, 0, clock() + RETRY_S)
        return self._found()

    def _kill_strays(self, known: "list[Container]", snapshot: Snapshot) -> "Generator[Wait, bool, None]":
        """Ends whatever belongs to a container that has ended: after a reboot that was none (a moved or thawed machine), its
        processes still run. Looked at until nothing is left, for what is alive forks."""
        ended = [c.launch for c in known if c.status is not None]
        deadline = clock() + UNKILLABLE_S
        while clock() < deadline:
            found = [p for launch in ended for p in snapshot.workload(launch, 0, 0) + snapshot.shim(launch)]
            if not found:
                return
            for process in found:
                process_proc.send(process, signal.SIGKILL, self._host.proc)
            yield Wait(-1, 0, clock() + RETRY_S)
            snapshot = Snapshot(self._host.proc)

    def _find(self, c: Container) -> None:
        """Adopts what runs, and brings to an end what does not run as recorded."""
        proc = self._host.proc
        here = c.boot == self._boot
        ours = here and process_proc.alive(c.shim[0], c.shim[1], proc)
        if ours and process_proc.marks(c.shim[0], proc)[1] == c.launch:
            self._active.append(c)
            self._unreaped.add(
                c.shim[0]
            )  # our own child still, where this process was another release before
            self._watch(c, c.shim)
            if c.find_workload(proc):
                self._watch(c, c.work)
            return
        c.shim = NOBODY  # whoever has that pid now is somebody else
        if here and c.written("pid") is None:
            self._kill_all(c)
            self._discard(c)  # intended, or forked and never released
            return
        if here:
            self._active.append(c)
            c.ending_at = clock()
            c.work = (-1, 0)
            return
        self._after_reboot(c, c.written("exit"))

    # Stopping

    def stop(self, uid: str, container: str, grace_s: float) -> "Generator[Wait, bool, Status]":
        c = self._newest(uid, container)
        c.stops += 1
        try:
            kill_at = clock() + grace_s
            told = False
            while c.status is None:
                if not c.starting:
                    self._poll()
                    self._advance(c, [])
                    if not told and c.status is None:
                        told = True
                        self._tell(c, signal.SIGTERM)
                    if c.status is None and clock() >= kill_at and not c.ending_at:
                        self._kill(c, self._members(c, []))
                    if c.status is not None:
                        break
                yield from self._await_end(c, kill_at)
            c.reported = True
            return c.status
        finally:
            c.stops -= 1
            self._wake()

    def _tell(self, c: Container, number: int) -> None:
        for process in self._members(c, []):
            process_proc.send(process, number, self._host.proc)

    def _await_end(self, c: Container, kill_at: float) -> "Generator[Wait, bool, None]":
        """Until the workload has ended or it is time to look again."""
        quiet = not c.ending_at and not c.starting and clock() < kill_at
        fd = process_proc.watch(c.work[0], c.work[1], self._host.proc) if quiet and self._host.pidfd else -1
        try:
            if fd >= 0:
                yield Wait(fd, POLLIN, kill_at)
            else:
                yield Wait(-1, 0, clock() + RETRY_S)
        finally:
            if fd >= 0:
                os.close(fd)

    # Looking inside

    def exec(
        self, uid: str, container: str, argv: "list[str]", timeout_s: float
    ) -> "Generator[Wait, bool, tuple[int, bytes]]":
        c = self._enterable(uid, container, argv)
        try:
            spec = process_spawn.read_spec(c.shim[0], self._host.proc)
            child = process_spawn.fork_exec(self._programs, c.launch, c.work[0], argv, spec)
        except (OSError, ValueError) as error:
            raise RuntimeFailure(
                "ExecFailed", "cannot enter container %s: %s" % (container, error)
            ) from error
        output = b""
        try:
            output, code = yield from process_pipes.attend(child, clock() + timeout_s, self._host.pidfd)
        finally:
            report = process_pipes.read_rest(child.report)
            child.close()
            self._end_session(child.pid)
        if code is None:
            raise RuntimeFailure("Timeout", "%s did not end within %g s" % (argv[0], timeout_s))
        failure = process_pipes.failure(report)
        if failure is not None:
            raise failure
        return code, output

    def open_exec(
        self,
        uid: str,
        container: str,
        argv: "list[str]",
        stdin: bool,
        outputs: "tuple[bool, bool]",
        tty: bool,
    ) -> "Generator[Wait, bool, Ends]":
        from edgelite.runtimes import process_inside  # most agents never need it

        c = self._enterable(uid, container, argv)
        return (
            yield from process_inside.start(
                self._programs, self._host, self._unreaped.add, c, argv, stdin, outputs, tty
            )
        )

    def usage(self) -> "Generator[Wait, bool, list[tuple[str, str, int, int]]]":
        from edgelite.runtimes import process_usage  # most agents are never asked

        found, proc = [], self._host.proc
        snapshot: "list[Snapshot]" = []
        for (uid, name), attempts in list(self._attempts.items()):
            c = attempts[-1] if attempts else None
            if c is None or c.status is not None:
                continue
            tracked = self._cgroups.tracking and c.boot == self._boot
            if not tracked and not snapshot:
                snapshot.append(Snapshot(proc))  # one for all: they are many, and a moment later will do
            members = self._members(c, list(snapshot))
            groups = self._cgroups.paths(c.group) if tracked else []
            found.append((uid, name, *process_usage.measure(groups, members, proc)))
            yield Wait(-1, 0, clock())  # others have their turn
        return found

    def _end_session(self, pid: int) -> None:
        """What an exec leaves in its own session ends with it."""
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self._unreaped.add(pid)
        self._reap(pid)


def _crc(text: str) -> int:
    import binascii

    return binascii.crc32(text.encode())
