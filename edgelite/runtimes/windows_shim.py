"""One per container of the Windows runtime: starts the workload in a job object, asks it to stop, records its end. It
outlives the agent, and is never part of it.

Run as `python -I -S <this file> <launch id>`. Standard input: 8 bytes of length (big endian), then the specification as JSON
(`windows_host.specification`); an agent that dies first sends less, and then nothing happens. Standard output and error are the
container's log, which the workload inherits.

It promises: the workload runs in its job from its first instruction on. `pid` says that it runs, `exit` how it ended, `failed`
(reason NUL message NUL) why it did not begin; each ends so that what is not whole is seen. With the shim the job ends, and all that is in it. The
specification, with its environment, lies in memory under a name for as long as the shim lives, and never on a disk.
"""

import sys

if not __package__:
    # Run by path in isolated mode: nothing is importable yet.
    sys.path.insert(0, __file__.replace("\\", "/").rpartition("/edgelite/")[0] or ".")

import ctypes
import json
import mmap
import os

from edgelite import kernel32
from edgelite.runtimes import windows_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KILLED = 137
HEADER_BYTES = 8


class Failure(Exception):
    """What the agent raises as RuntimeFailure(reason, message)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def job_name(launch: str) -> str:
    """Global: an agent in another session, as a service is, finds it too."""
    return "Global\\edgelite-" + launch


def stop_name(launch: str) -> str:
    return "Global\\edgelite-stop-" + launch


def spec_name(launch: str) -> str:
    """Local, for only administrators may make global ones of this kind."""
    return "Local\\edgelite-spec-" + launch


def packed(spec: "dict[str, Any]") -> bytes:
    body = json.dumps(spec).encode()
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def share(launch: str, data: bytes) -> "Any":
    """Memory of that name that holds `data`, for as long as what this returns is kept."""
    named: "Any" = {"tagname": spec_name(launch)}
    held = mmap.mmap(-1, len(data), **named)
    held[: len(data)] = data
    return held


def shared(launch: str) -> "dict[str, Any]":
    """The specification that a living shim holds. Raises OSError, ValueError where there is none."""
    named: "Any" = {"tagname": spec_name(launch)}
    with mmap.mmap(-1, HEADER_BYTES, **named) as head:
        size = int.from_bytes(head[:], "big")
    if not size:
        raise ValueError("its shim does not hold the specification in this session of Windows")
    with mmap.mmap(-1, HEADER_BYTES + size, **named) as whole:
        spec: "dict[str, Any]" = json.loads(whole[HEADER_BYTES:])
    return spec


def find(argv: "list[str]", env: "list[tuple[str, str]]", directory: str) -> str:
    """The file of the program. Raises Failure."""
    name = argv[0]
    path = windows_names.lookup(env, "PATH")
    for place in windows_names.candidates(name, directory, path):
        if os.path.isfile(place):
            if windows_names.is_script(place):
                text = '"%s" is a batch file: run cmd.exe /d /c with it, and quote for cmd.exe yourself'
                raise Failure("RunContainerError", text % name)
            return place
    plain = not windows_names.is_absolute(name) and "/" not in name and "\\" not in name
    where = "executable file not found in %PATH%" if plain else "no such file on this machine"
    raise Failure("RunContainerError", 'exec: "%s": %s' % (name, where))


def suspended(
    spec: "dict[str, Any]", argv: "list[str]", streams: "tuple[int, int, int]", flags: int
) -> "tuple[int, int, int]":
    """(process, thread, pid) of a program in a container's surroundings, which runs nothing yet. Raises Failure."""
    env = [(name, value) for name, value in spec["env"]]
    program = find(argv, env, spec["cwd"])
    try:
        line = windows_names.command_line([program] + argv[1:])
        block = windows_names.environment_block(env)
        return kernel32.spawn(program, line, block, spec["cwd"], kernel32.SUSPENDED | flags, streams)
    except ValueError as error:
        raise Failure("RunContainerError", str(error))
    except OSError as error:
        raise Failure("RunContainerError", 'exec: "%s": %s' % (argv[0], error.strerror))


def limit(job: int, spec: "dict[str, Any]") -> None:
    """Raises Failure: a bound that was promised by the review of the pod has to hold."""
    try:
        kernel32.limit_job(job, spec["memory"], spec["pids"])
        if spec["cpu"]:
            kernel32.limit_cpu(job, spec["cpu"])
    except OSError as error:
        raise Failure("CreateContainerError", "cannot limit the job: %s" % error.strerror)


def note(path: str, text: str) -> None:
    """In place, and not by a rename, which for a moment lets nobody open the file. Each text has an end that tells it is whole."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def ask(pid: int) -> None:
    """Asks a process group of this console to end. Ctrl-C is for wine, which has no Ctrl-Break; on Windows it is off in a group
    of its own."""
    try:
        kernel32.call("GenerateConsoleCtrlEvent", kernel32.CTRL_BREAK, pid)
    except OSError:
        try:
            kernel32.call("GenerateConsoleCtrlEvent", kernel32.CTRL_C, pid)
        except OSError as error:
            # Its grace passes, and it is killed.
            sys.stderr.write("edgelite: cannot ask process %d to stop: %s\n" % (pid, error.strerror))


def run(spec: "dict[str, Any]", launch: str) -> None:
    """From the job to its end. Raises Failure before the workload runs, OSError."""
    directory = spec["directory"]
    job = int(kernel32.call("CreateJobObjectW", None, job_name(launch)))
    limit(job, spec)
    # Resets itself: each setting asks once.
    stop = int(kernel32.call("CreateEventW", None, False, False, stop_name(launch)))
    nothing = kernel32.open_file("NUL", kernel32.GENERIC_READ, False)
    import msvcrt

    streams: "Any" = msvcrt
    log = int(streams.get_osfhandle(1))
    process, thread, pid = suspended(spec, spec["argv"], (nothing, log, log), kernel32.NEW_GROUP)
    try:
        kernel32.call("AssignProcessToJobObject", job, process)
        note(os.path.join(directory, "pid"), "%d.\n" % pid)
    except OSError:
        kernel32.call("TerminateProcess", process, KILLED)
        raise
    kernel32.call("ResumeThread", thread)
    kernel32.close(thread, nothing)
    waited = (ctypes.c_void_p * 2)(process, stop)
    while kernel32.call("WaitForMultipleObjects", 2, waited, False, kernel32.FOREVER):
        ask(pid)
    code = kernel32.exit_code(process)
    note(os.path.join(directory, "exit"), "%d.\n" % code)
    kernel32.call("TerminateJobObject", job, KILLED)


def refuse(spec: "dict[str, Any]", reason: str, message: str) -> None:
    note(os.path.join(spec["directory"], "failed"), "%s\0%s\0" % (reason, message))


def main(launch: str) -> int:
    raw = sys.stdin.buffer.read()
    size = int.from_bytes(raw[:HEADER_BYTES], "big")
    if not size or len(raw) != HEADER_BYTES + size:
        return 0  # the agent died on the way; whoever starts next begins anew
    spec: "dict[str, Any]" = json.loads(raw[HEADER_BYTES:])
    held = share(launch, raw)
    try:
        run(spec, launch)
    except Failure as failure:
        refuse(spec, failure.reason, failure.message)
    except OSError as error:
        if os.path.exists(os.path.join(spec["directory"], "pid")):
            raise
        refuse(spec, "CreateContainerError", "cannot start the container: %s" % error)
    finally:
        held.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
