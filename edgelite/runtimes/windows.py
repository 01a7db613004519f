"""The `process` runtime on Windows: containers are process trees in job objects. The image is not used.

What lives where: the shim holds the job (named by the launch, so that an agent that starts again opens it), the specification
in shared memory and the console that the workload runs in; the agent holds nothing between calls. Order, durability and
adoption are in `supervised`, the shim in `windows_shim`, what of a Pod is honoured in `windows_fields`.

Stopping: Ctrl-Break to the workload's process group, which C programs get as SIGBREAK and console handlers as
CTRL_BREAK_EVENT; what has no console (a program with windows alone) has nothing to be asked by, and is killed at the end of its
grace. Killing is the end of the job: every process of it, whoever its parent is, with exit code 137.
"""

import os
import sys

from edgelite import kernel32
from edgelite.runtimes import windows_command, windows_names, windows_review, windows_shim
from edgelite.runtimes.base import RuntimeFailure
from edgelite.runtimes.process_cgroups import quantity
from edgelite.runtimes.supervised import Site, Starting, SupervisedRuntime, put

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edgelite.config import Config
    from edgelite.runtimes.base import Launch, Mount, State
    from edgelite.runtimes.process_container import Container
    from edgelite.runtimes.supervised_command import Command

SOURCES = (
    "__init__.py",
    "kernel32.py",
    "runtimes/__init__.py",
    "runtimes/windows_names.py",
    "runtimes/windows_shim.py",
)
PROCESSES_MAX = 4096
MARK = "EDGELITE_LAUNCH"
# What programs of Windows expect of every environment; the rest of the agent's is not for workloads.
INHERITED = (
    "ALLUSERSPROFILE CommonProgramFiles CommonProgramFiles(x86) CommonProgramW6432 COMPUTERNAME ComSpec DriverData "
    "NUMBER_OF_PROCESSORS OS PATHEXT PROCESSOR_ARCHITECTURE PROCESSOR_IDENTIFIER PROCESSOR_LEVEL PROCESSOR_REVISION ProgramData "
    "ProgramFiles ProgramFiles(x86) ProgramW6432 PUBLIC SystemDrive SystemRoot windir"
).split(" ")


def create(state: "State", data_dir: str, boot_id: str, config: "Config") -> SupervisedRuntime:
    """The runtime. data_dir, config: the agent's; boot_id: differs after a reboot. Raises OSError."""
    site = WindowsSite(os.path.join(os.path.realpath(data_dir), "process"), config.allow_privileged)
    return SupervisedRuntime(state, boot_id, site)


class WindowsStarting(Starting):
    def __init__(self, process: int, pid: int, pipe: int, data: bytes) -> None:
        self.pid = pid
        self.start = kernel32.created_at(process)
        self._process = process
        self._pipe = pipe
        self._data = data

    def release(self) -> None:
        taken = kernel32.write(self._pipe, self._data)
        if taken != len(self._data):
            raise OSError("the shim took %d of %d bytes" % (taken, len(self._data)))

    def close(self) -> None:
        kernel32.close(self._pipe, self._process)
        self._pipe = self._process = 0


class WindowsSite(Site):
    name = "windows"

    def __init__(self, directory: str, allow_privileged: bool) -> None:
        os.makedirs(directory, 0o700, exist_ok=True)
        self._allow_privileged = allow_privileged
        # Not the launcher of a virtual environment, which starts the interpreter as a child and stays beside it.
        self._python = getattr(sys, "_base_executable", "") or sys.executable
        self._shim = install(directory)
        self.limits = probe_limits()

    def review(self, pod: "dict[str, Any]") -> "tuple[list[str], list[str]]":
        return windows_review.review(pod, self.limits, self._allow_privileged)

    def specification(self, launch: "Launch", c: "Container") -> "dict[str, Any]":
        work = os.path.join(c.directory, "work")
        os.makedirs(work, exist_ok=True)
        bound = (launch.container.get("resources") or {}).get("limits") or {}
        cores = quantity(bound.get("cpu") or 0)
        processors = os.cpu_count() or 1
        for mount in launch.mounts:
            place(mount, work)
        inherited = [(name, os.environ[name]) for name in INHERITED if name in os.environ]
        root = os.environ.get("SystemRoot", "C:\\Windows")
        own = [
            ("PATH", ";".join([root + "\\system32", root, root + "\\System32\\Wbem"])),
            ("HOME", work),
            ("USERPROFILE", work),
            ("TEMP", work),
            ("TMP", work),
        ]
        spec: "dict[str, Any]" = {
            "directory": c.directory,
            "argv": launch.command + launch.args,
            "env": inherited + own + launch.env + [(MARK, c.launch)],
            "cwd": working_dir(launch.container.get("workingDir") or "", work),
            "memory": int(quantity(bound.get("memory") or 0)) if "memory" in self.limits else 0,
            "cpu": cpu_rate(cores, processors) if cores and "cpu" in self.limits else 0,
            "pids": PROCESSES_MAX if "pids" in self.limits else 0,
        }
        windows_names.command_line(spec["argv"])
        windows_names.environment_block(spec["env"])
        return spec

    def prepare(self, c: "Container", spec: "dict[str, Any]") -> Starting:
        data = windows_shim.packed(spec)
        reader = writer = log = 0
        try:
            reader, writer = kernel32.pipe(len(data) + 4096)
            log = kernel32.open_file(
                c.path("log"), kernel32.FILE_APPEND | kernel32.READ_ATTRIBUTES | kernel32.SYNCHRONIZE, True
            )
            argv = [self._python, "-I", "-S", self._shim, c.launch]
            line = windows_names.command_line(argv)
            own = [(name, os.environ[name]) for name in INHERITED if name in os.environ]
            block = windows_names.environment_block(own)
            process, thread, pid = _break_away(
                self._python, line, block, os.path.dirname(self._shim), (reader, log, log)
            )
            kernel32.close(thread)
            started = WindowsStarting(process, pid, writer, data)
            writer = 0
            return started
        finally:
            kernel32.close(reader, writer, log)

    def alive(self, pid: int, start: int) -> bool:
        if not pid:
            return False
        try:
            process = int(kernel32.call("OpenProcess", _WATCH, False, pid))
        except OSError as error:
            if kernel32.number(error) in (kernel32.INVALID_PARAMETER, kernel32.ACCESS_DENIED):
                return False  # there is none, or the pid is somebody else's by now
            raise
        try:
            return kernel32.runs(process) and kernel32.created_at(process) == start
        finally:
            kernel32.close(process)

    def ask(self, c: "Container") -> None:
        name = windows_shim.stop_name(c.launch)
        try:
            event = int(kernel32.call("OpenEventW", kernel32.EVENT_MODIFY, False, name))
        except OSError as error:
            if kernel32.number(error) == kernel32.NOT_FOUND:
                return  # its shim has gone meanwhile
            raise
        try:
            kernel32.call("SetEvent", event)
        finally:
            kernel32.close(event)

    def _job(self, c: "Container") -> int:
        """The container's job, 0 where there is none any more: nothing of it runs then."""
        try:
            return int(
                kernel32.call("OpenJobObjectW", kernel32.JOB_ALL, False, windows_shim.job_name(c.launch))
            )
        except OSError as error:
            if kernel32.number(error) == kernel32.NOT_FOUND:
                return 0
            raise

    def kill(self, c: "Container") -> None:
        job = self._job(c)
        if job:
            try:
                kernel32.call("TerminateJobObject", job, windows_shim.KILLED)
            finally:
                kernel32.close(job)

    def kill_shim(self, c: "Container") -> None:
        if not self.alive(*c.shim):
            return
        try:
            process = int(kernel32.call("OpenProcess", _WATCH | kernel32.TERMINATE, False, c.shim[0]))
        except OSError as error:
            if kernel32.number(error) == kernel32.INVALID_PARAMETER:
                return  # it has ended meanwhile
            raise
        try:
            if kernel32.runs(process) and kernel32.created_at(process) == c.shim[1]:
                kernel32.call("TerminateProcess", process, windows_shim.KILLED)
        finally:
            kernel32.close(process)

    def members(self, c: "Container") -> "list[int]":
        job = self._job(c)
        if not job:
            return []
        try:
            return kernel32.job_pids(job, PROCESSES_MAX)
        finally:
            kernel32.close(job)

    def usage(self, c: "Container") -> "tuple[int, int]":
        job = self._job(c)
        if not job:
            return 0, 0
        try:
            pids = kernel32.job_pids(job, PROCESSES_MAX)
            return kernel32.job_cpu_ns(job), sum([kernel32.working_set(pid) for pid in pids])
        finally:
            kernel32.close(job)

    def ended(self, code: int) -> "tuple[int, str]":
        return windows_names.exit_status(code)

    def command(
        self,
        c: "Container",
        argv: "list[str]",
        stdin: bool,
        outputs: "tuple[bool, bool]",
        joined: bool,
        tty: bool,
    ) -> "Command":
        if tty:
            raise RuntimeFailure(
                "Unsupported", "there are no terminals on Windows; run the command without one"
            )
        spec = windows_shim.shared(c.launch)
        job = self._job(c)
        if not job:
            raise RuntimeFailure("ExecFailed", "container %s is ending" % c.name)
        try:
            return windows_command.start(spec, job, argv, stdin, outputs, joined)
        except windows_shim.Failure as failure:
            raise RuntimeFailure(failure.reason, failure.message) from failure
        finally:
            kernel32.close(job)


_WATCH = kernel32.QUERY_LIMITED | kernel32.SYNCHRONIZE


def _break_away(
    program: str, line: str, block: str, directory: str, streams: "tuple[int, int, int]"
) -> "tuple[int, int, int]":
    """Starts a shim with a console of its own, outside of whatever job the agent runs in, where that lets it."""
    flags = kernel32.NO_WINDOW | kernel32.NEW_GROUP
    try:
        return kernel32.spawn(program, line, block, directory, flags | kernel32.BREAKAWAY, streams)
    except OSError as error:
        if kernel32.number(error) != kernel32.ACCESS_DENIED:
            raise
        return kernel32.spawn(program, line, block, directory, flags, streams)


def install(directory: str) -> str:
    """Puts the shim and what it imports into a folder named by their content, never changed in place; the shim's path."""
    import binascii

    loader: "Any" = globals()["__loader__"]
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    files = {name: loader.get_data(os.path.join(home, *name.split("/"))) for name in SOURCES}
    mark = 0
    for name in SOURCES:
        mark = binascii.crc32(files[name], mark)
    folder = os.path.join(directory, "shim-%08x" % mark, "edgelite")
    os.makedirs(os.path.join(folder, "runtimes"), 0o700, exist_ok=True)
    for name in SOURCES:
        put(os.path.join(folder, *name.split("/")), files[name])
    return os.path.join(folder, "runtimes", "windows_shim.py")


def probe_limits() -> "set[str]":
    """Which of "memory", "pids" and "cpu" this system's job objects have, tried on one without processes."""
    job = int(kernel32.call("CreateJobObjectW", None, None))
    try:
        found = set()
        for name, memory, processes in (("memory", 1 << 30, 0), ("pids", 0, PROCESSES_MAX)):
            try:
                kernel32.limit_job(job, memory, processes)
                found.add(name)
            except OSError:
                continue  # the review of pods says so
        try:
            kernel32.limit_cpu(job, 10000)
            found.add("cpu")
        except OSError:
            pass  # before Windows 8, and in wine
        return found
    finally:
        kernel32.close(job)


def cpu_rate(cores: float, processors: int) -> int:
    """Hundredths of a percent of all processors, as a job's hard cap has it."""
    return max(1, min(10000, int(cores * 10000 / processors)))


def working_dir(path: str, work: str) -> str:
    """Raises RuntimeFailure."""
    if not path:
        return work
    fault = windows_names.path_fault(path)
    if fault:
        raise RuntimeFailure("CreateContainerConfigError", "workingDir: " + fault)
    if windows_names.is_absolute(path):
        if not os.path.isdir(path):
            raise RuntimeFailure("CreateContainerError", "workingDir %s: no such directory" % path)
        return os.path.abspath(path)
    full = os.path.join(work, _inside(path, "workingDir"))
    os.makedirs(full, exist_ok=True)
    return full


def place(mount: "Mount", work: str) -> None:
    """Shows a volume in the working directory: a junction to a folder, a hard link to a file. Raises RuntimeFailure."""
    target = os.path.join(work, _inside(mount.target, "mountPath"))
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.lexists(target):
        return
    source = os.path.abspath(mount.source)
    try:
        if os.path.isdir(source):
            import _winapi

            junctions: "Any" = _winapi
            junctions.CreateJunction(source, target)
            if not os.path.isdir(target):
                raise OSError("it leads nowhere")
        else:
            os.link(source, target)
    except OSError as error:
        text = "volume %s cannot be shown at %s: %s; the data directory has to lie on NTFS or ReFS, and a file on the same disk"
        raise RuntimeFailure(
            "CreateContainerError", text % (mount.name, mount.target, error.strerror or error)
        ) from error


def _inside(path: str, what: str) -> str:
    """A relative path without "." and "..", with backslashes. Raises RuntimeFailure."""
    parts = [p for p in path.replace("\\", "/").split("/") if p not in ("", ".")]
    fault = windows_names.path_fault(path)
    if windows_names.is_absolute(path) or ".." in parts or not parts:
        fault = "%s leaves the container's directory" % path
    if fault:
        raise RuntimeFailure("CreateContainerConfigError", "%s: %s" % (what, fault))
    return "\\".join(parts)
