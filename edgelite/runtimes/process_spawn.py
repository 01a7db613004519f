"""Forking: the shim of a container, the launcher for exec, and the probe of what the kernel allows.

A container is three small processes, none of them Python: the workload, its shim and the shim's logger.

    agent ── sh shim.sh            own session; waits for the workload and writes its exit code; outlives the agent
               ├─ sh, cat          copies the workload's output to the log (a pipe, so that /dev/stdout works, and a full
               │                   disk costs log lines instead of the workload)
               └─ the workload     own session; was the launcher until its exec

The shim is a fixed text. What it handles comes as arguments, descriptors and files; the specification, with the environment
and its secrets, lies in an anonymous memory file that the shim holds as descriptor 9 for as long as it lives, so that it
never reaches a disk and can be read again (by exec) after a restart of the agent.

A forked shim waits for a byte on the `go` pipe before it becomes anything. The agent sends it once the shim's pid is
durable; if the agent dies first, the pipe closes and the shim ends having done nothing.
"""

import fcntl
import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHIM_MARK = "EDGELITE_SHIM"
MARK = "EDGELITE_LAUNCH"
PENDING = (
    b"--------------\n"  # room for what the shim writes later, taken now: a full disk then loses no exit code
)
PR_SET_CHILD_SUBREAPER = 36

SHIM = """\
# One per container of the process runtime: starts the workload, logs it, records its end. It outlives the agent.
# $1 python, $2 launcher; the working directory is the attempt's own.
# Descriptors: 3 log, 4 and 5 the output pipe, 6 report of the launcher, 9 specification.
( until cat <&4 >&3 3>&- 4<&-; do sleep 1; done ) 5>&- 6>&- 9<&- &
logger=$!
"$1" -I -S "$2" run >&5 2>&5 3>&- 4<&- 5>&- &
workload=$!
echo "$workload." 1<>pid
exec 4<&- 5>&- 6>&-
wait "$workload"
echo "$?." 1<>exit
wait "$logger"
"""


class Programs:
    """The files that a container is started with: written once, named by their content, never changed in place
    (a running shell reads its script as it goes)."""

    def __init__(self, directory: str, shell: str, python: str) -> None:
        self.shell = shell
        self.python = python
        self.root_dir = os.path.join(directory, "root")  # empty: where a container's own root is put together
        os.makedirs(self.root_dir, exist_ok=True)
        source = _source("process_launcher.py")
        self.shim = _install(directory, "shim", ".sh", SHIM.encode())
        self.launcher = _compiled(python, _install(directory, "launcher", ".py", source))


def _source(name: str) -> bytes:
    """A sibling's source, also from inside a zip archive."""
    loader: "Any" = globals()["__loader__"]
    data: bytes = loader.get_data(os.path.join(os.path.dirname(__file__), name))
    return data


def _install(directory: str, name: str, suffix: str, data: bytes) -> str:
    import binascii

    path = os.path.join(directory, "%s-%08x%s" % (name, binascii.crc32(data), suffix))
    try:
        with open(path, "rb") as f:
            if f.read() == data:
                return path
    except FileNotFoundError:
        pass
    with open(path + ".new", "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(path + ".new", path)
    return path


def _compiled(python: str, source: str) -> str:
    """The launcher as byte code of the interpreter that will run it, which saves a third of a start; its source where that
    cannot be made. Named by the interpreter's identity, for another one refuses it."""
    import binascii

    try:
        status = os.stat(python)
    except OSError:
        return source  # each start will say so
    identity = "%s %d %d" % (python, status.st_mtime_ns, status.st_size)
    path = "%s-%08x.pyc" % (source[:-3], binascii.crc32(identity.encode()))
    if os.path.exists(path):
        return path
    pid = os.fork()
    if pid == 0:
        try:
            code = "import py_compile, sys; py_compile.compile(*sys.argv[1:], doraise=True)"
            os.execve(python, [python, "-I", "-S", "-c", code, source, path], {"PATH": PATH})  # noqa: S606
        finally:
            os._exit(127)
    return path if os.waitpid(pid, 0)[1] == 0 else source


def memory_file(spec: "dict[str, Any]") -> int:
    """A descriptor of an anonymous file that never lies on a disk and holds the specification. Raises OSError."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("edgelite", os.MFD_CLOEXEC)
    else:
        fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)  # noqa: S108  (nameless)
    data = marshal.dumps(spec, 2)
    while data:
        data = data[os.write(fd, data) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def read_spec(shim: int, proc: str) -> "dict[str, Any]":
    """The specification that a living shim holds. Raises OSError."""
    with open("%s/%d/fd/9" % (proc, shim), "rb") as f:
        spec: "dict[str, Any]" = marshal.loads(f.read())  # noqa: S302  (its own)
    return spec


class Child:
    """A forked process and the agent's ends of its pipes. `close` what is no longer needed."""

    __slots__ = ("go", "output", "pid", "report")

    def __init__(self, pid: int, report: int, go: int, output: int) -> None:
        self.pid = pid
        self.report = report  # read end: what the launcher says
        self.go = go  # write end: one byte lets the shim begin; -1 for exec
        self.output = output  # read end: the output of exec; -1 for a shim

    def release(self) -> None:
        os.write(self.go, b"g")
        self.go = _closed(self.go)

    def close(self) -> None:
        self.report = _closed(self.report)
        self.go = _closed(self.go)
        self.output = _closed(self.output)


def _closed(fd: int) -> int:
    if fd >= 0:
        os.close(fd)
    return -1


def fork_shim(
    programs: Programs, launch: str, directory: str, log: str, spec: "dict[str, Any]", reaper: bool
) -> Child:
    """Forks the shim; it waits for `Child.release`. Raises OSError when the machine is out of something."""
    for name in ("pid", "exit"):
        with open(os.path.join(directory, name), "wb") as f:
            f.write(PENDING)
    opened: "list[int]" = []
    try:
        go_r, go_w = _pipe(opened)
        report_r, report_w = _pipe(opened)
        out_r, out_w = _pipe(opened)
        null = _keep(opened, os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        log_fd = _keep(opened, os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
        spec_fd = _keep(opened, memory_file(spec))

        def begin() -> None:
            if os.read(7, 1) != b"g":
                os._exit(0)
            os.close(7)
            if reaper:
                _reap_orphans()
            os.chdir(directory)
            env = _environment(launch)
            argv = [programs.shell, programs.shim, programs.python, programs.launcher]
            os.execve(programs.shell, argv, env)  # noqa: S606

        plan = {0: null, 1: null, 2: log_fd, 3: log_fd, 4: out_r, 5: out_w, 6: report_w, 7: go_r, 9: spec_fd}
        pid = _fork(plan, begin, report_w)
        opened.remove(report_r)
        opened.remove(go_w)
        return Child(pid, report_r, go_w, -1)
    finally:
        for fd in opened:
            os.close(fd)


def fork_exec(
    programs: Programs, launch: str, workload: int, argv: "list[str]", spec: "dict[str, Any]"
) -> Child:
    """Forks the launcher for a command inside a running container, its output in a pipe. Raises OSError."""
    opened: "list[int]" = []
    try:
        out_r, out_w = _pipe(opened)
        null = _keep(opened, os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        child = fork_inside(programs, launch, workload, argv, spec, (null, out_w, out_w), False)
        opened.remove(out_r)
        child.output = out_r
        return child
    finally:
        for fd in opened:
            os.close(fd)


def fork_inside(
    programs: Programs,
    launch: str,
    workload: int,
    argv: "list[str]",
    spec: "dict[str, Any]",
    streams: "tuple[int, int, int]",
    tty: bool,
) -> Child:
    """Forks the launcher for a command inside a running container. streams: its standard streams, which the caller keeps
    and closes; tty: they are a terminal, which becomes the one that controls it. Raises OSError."""
    opened: "list[int]" = []
    try:
        report_r, report_w = _pipe(opened)
        spec_fd = _keep(opened, memory_file(spec))

        def begin() -> None:
            if tty:
                import termios  # in the forked child only

                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            line = [programs.python, "-I", "-S", programs.launcher, "enter", str(workload)] + argv
            os.execve(programs.python, line, _environment(launch))  # noqa: S606

        plan = {0: streams[0], 1: streams[1], 2: streams[2], 6: report_w, 9: spec_fd}
        pid = _fork(plan, begin, report_w)
        opened.remove(report_r)
        return Child(pid, report_r, -1, -1)
    finally:
        for fd in opened:
            os.close(fd)


def _environment(launch: str) -> "dict[str, str]":
    """Of shim and launcher; the workload's own is in the specification."""
    env = {"PATH": PATH, SHIM_MARK: launch}
    if getattr(sys, "frozen", False):
        # The one-file executable is its own interpreter, and so finds what it has unpacked already.
        env.update({name: value for name, value in os.environ.items() if name.startswith("_PYI_")})
    return env


def _pipe(opened: "list[int]") -> "tuple[int, int]":
    r, w = os.pipe()
    opened += [r, w]
    return r, w


def _keep(opened: "list[int]", fd: int) -> int:
    opened.append(fd)
    return fd


def _fork(plan: "dict[int, int]", begin: "Callable[[], None]", report: int) -> int:
    """Forks; the child starts a session, arranges its descriptors as planned, closes all others (also what the agent
    inherited, and its end of the `go` pipe) and calls `begin`, which does not return. 6 is for the report."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        # First out of the way of each other, then into place.
        moved = {to: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for to, fd in plan.items()}
        for to, fd in moved.items():
            os.dup2(fd, to)
        report = 6
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in plan:
                _close_quietly(int(name))
        begin()
    except BaseException as error:
        text = "CreateContainerError\0cannot start a process: %s: %s" % (type(error).__name__, error)
        os.write(report, text.encode("utf-8", "replace"))
    finally:
        os._exit(127)


def _close_quietly(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass  # the one that listed the directory


def _reap_orphans() -> None:
    """Makes this process the parent of orphaned descendants, so that they can be found without a cgroup."""
    try:
        import ctypes  # in the forked child only: the agent itself never loads it

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass  # then the mark in their environment is what finds them


def probe_namespaces(directory: str) -> str:
    """What this machine allows: "mount" (the agent is root), "user" (mount namespaces in user namespaces) or
    "none". Tried in a forked child, which also loads the launcher's imports there instead of here."""
    wanted = "mount" if os.geteuid() == 0 else "user"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            from edgelite.runtimes.process_launcher import Libc, Surroundings

            spec = {
                "mounts": [],
                "cover": directory,
                "namespace": wanted,
                "read_only_root": False,
                "root_dir": directory,
            }
            Surroundings(Libc(), spec).build()
            code = 0
        finally:
            os._exit(code)
    return wanted if os.waitpid(pid, 0)[1] == 0 else "none"


def default_python() -> str:
    """The interpreter itself, not a virtual environment's link to it: the launcher needs nothing from there."""
    base: str = getattr(sys, "_base_executable", "") or sys.executable
    return os.path.realpath(base) if base else ""
