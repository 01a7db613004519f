"""One per container of the macOS runtime: starts the workload in a session of its own and records its end. It outlives the
agent, and is never part of it.

Run as `python -I -S <this file> run <launch id>` with 8 bytes of length and the specification as JSON on standard input (an agent
that dies first sends less, and then nothing happens), the container's log as standard output and error; or as `... enter|terminal
<launch id> <argv...>` to become a command in the container's surroundings, the latter with its standard input as the terminal
that controls it, with descriptor 3 for what goes wrong (reason NUL message).

`child` is the workload's process id before it has become the workload, `pid` after, `exit` how it ended, `failed` why it did not
begin; each is whole or not there. The specification, with its environment, lies in POSIX shared memory (mode 0600) for as long as
the shim lives, and never on a disk. Source: shm_open(2), setsid(2) of macOS; everything here is POSIX.
"""

import json
import mmap
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEADER_BYTES = 8
REPORT_FD = 3
NAME_CHARS = 20  # macOS takes 31 for the whole name


class Failure(Exception):
    """What the agent raises as RuntimeFailure(reason, message)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def memory_name(launch: str) -> str:
    return "/edgelite." + launch[:NAME_CHARS]


def packed(spec: "dict[str, Any]") -> bytes:
    body = json.dumps(spec).encode()
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def share(launch: str, data: bytes) -> None:
    """Puts `data` into memory of that name, until `unshare` or a reboot. Raises OSError."""
    import _posixshmem  # type: ignore[import-not-found]

    fd = _posixshmem.shm_open(memory_name(launch), os.O_CREAT | os.O_EXCL | os.O_RDWR, mode=0o600)
    try:
        os.ftruncate(fd, len(data))
        with mmap.mmap(fd, len(data)) as held:
            held[: len(data)] = data
    finally:
        os.close(fd)


def shared(launch: str) -> "dict[str, Any]":
    """The specification that a living shim holds. Raises OSError, ValueError."""
    import _posixshmem

    fd = _posixshmem.shm_open(memory_name(launch), os.O_RDONLY, mode=0o600)
    try:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as held:  # macOS may round the size up
            size = int.from_bytes(held[:HEADER_BYTES], "big")
            spec: "dict[str, Any]" = json.loads(held[HEADER_BYTES : HEADER_BYTES + size])
    finally:
        os.close(fd)
    return spec


def unshare(launch: str) -> None:
    import _posixshmem

    try:
        _posixshmem.shm_unlink(memory_name(launch))
    except FileNotFoundError:
        pass  # the agent was first


def write_whole(path: str, text: str) -> None:
    with open(path + ".new", "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def become(spec: "dict[str, Any]", argv: "list[str]") -> None:
    """Replaces this process by a program in the container's surroundings. Raises Failure."""
    try:
        os.chdir(spec["cwd"])
    except OSError as error:
        raise Failure("CreateContainerError", "workingDir %s: %s" % (spec["cwd"], error.strerror))
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
    try:
        if spec["user"] is not None:
            uid, gid, groups = spec["user"]
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
    except OSError as error:
        raise Failure("CreateContainerError", "cannot become user %s: %s" % (spec["user"][0], error.strerror))
    env = dict([(name, value) for name, value in spec["env"]])
    name = argv[0]
    places = [name]
    if "/" not in name:
        places = [os.path.join(d or ".", name) for d in env.get("PATH", "").split(":")]
    denied = False
    for place in places:
        try:
            os.execve(place, argv, env)  # noqa: S606
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            denied = True
        except (OSError, ValueError) as error:
            raise Failure("RunContainerError", 'exec: "%s": %s' % (name, error))
    if denied:
        text = 'exec: "%s": permission denied to the user of the container' % name
        raise Failure("RunContainerError", text)
    where = "no such file on this machine" if "/" in name else "executable file not found in $PATH"
    raise Failure("RunContainerError", 'exec: "%s": %s' % (name, where))


def _child(spec: "dict[str, Any]", go: int, report: int) -> None:
    """Never returns."""
    try:
        os.setsid()
        if os.read(go, 1) != b"g":
            os._exit(127)  # the shim has gone
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        become(spec, spec["argv"])
    except Failure as failure:
        os.write(report, ("%s\0%s" % (failure.reason, failure.message)).encode("utf-8", "replace"))
    except BaseException as error:
        os.write(report, ("CreateContainerError\0%r" % (error,)).encode("utf-8", "replace"))
    finally:
        os._exit(127)


def run(spec: "dict[str, Any]", launch: str) -> None:
    """From the workload's start to its end. Raises OSError."""
    directory = spec["directory"]
    go_r, go_w = os.pipe()
    report_r, report_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go_w)
        _child(spec, go_r, report_w)
    os.close(report_w)
    os.close(go_r)
    write_whole(os.path.join(directory, "child"), "%d.\n" % pid)
    os.write(go_w, b"g")
    said = os.read(report_r, 65536)  # ends with the exec
    if said:
        os.waitpid(pid, 0)
        write_whole(os.path.join(directory, "failed"), said.decode("utf-8", "replace") + "\0")
        return
    write_whole(os.path.join(directory, "pid"), "%d.\n" % pid)
    status = os.waitpid(pid, 0)[1]
    code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    write_whole(os.path.join(directory, "exit"), "%d.\n" % code)
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # nothing is left; the agent looks for what has left the group


def _control(spec: "dict[str, Any]") -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if not any(name == "TERM" for name, _ in spec["env"]):
        spec["env"].append(["TERM", "xterm"])


def main(arguments: "list[str]") -> int:
    mode, launch = arguments[:2]
    os.setsid()
    if mode != "run":
        os.set_inheritable(REPORT_FD, False)
        try:
            spec = shared(launch)
            if mode == "terminal":
                _control(spec)
            become(spec, arguments[2:])
        except (Failure, OSError, ValueError) as error:
            reason = error.reason if isinstance(error, Failure) else "ExecFailed"
            os.write(REPORT_FD, ("%s\0%s" % (reason, error)).encode("utf-8", "replace"))
        return 127
    raw = sys.stdin.buffer.read()
    size = int.from_bytes(raw[:HEADER_BYTES], "big")
    if not size or len(raw) != HEADER_BYTES + size:
        return 0  # the agent died on the way; whoever starts next begins anew
    share(launch, raw)
    try:
        run(json.loads(raw[HEADER_BYTES:]), launch)
    finally:
        unshare(launch)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
