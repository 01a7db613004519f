"""The last step before a workload: becomes it, in its surroundings, as its user. Never part of the resident agent.

Run as `python -I -S <this file> run` by the shim of a container, or `... enter <pid> <argv...>` by the agent for exec.
It lives for some 25 ms and is then replaced by the workload, which is why it may use ctypes: unshare, setns, mount and
prctl have no other door in the standard library, and util-linux costs a process per mount.

What it is given: descriptor 9 is the specification (marshal, see `spec` in process_spawn), descriptor 6 takes
the report: `ready <pid>` NEWLINE just before exec, then nothing (the descriptor closes with exec) or, at any time, an error
as `reason NUL message`. What it promises: nothing is created on a real file system of the host outside of the
container's own directory. A mount point that does not exist is made in a tmpfs that covers its nearest existing
parent, with everything that the parent held bound again at its place.
"""

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any
else:
    try:
        import _signal as signal  # what `signal` wraps; the wrapper's enums take as long as all the rest here
    except ImportError:
        import signal

REPORT_FD = 6
SPEC_FD = 9
SCRATCH = b"mode=0755,size=16m,nr_inodes=16384"
ENTRIES_MAX = 4096

CLONE_NEWNS = 0x20000
CLONE_NEWUSER = 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 32, 4096, 8192, 16384
MS_UNBINDABLE, MS_SLAVE = 1 << 17, 1 << 19
MNT_DETACH = 2
# statvfs flag -> mount flag: what a remount has to repeat, or it would be asked to lift a locked restriction.
KEEP = ((2, MS_NOSUID), (4, MS_NODEV), (8, MS_NOEXEC), (1024, 1024), (2048, 2048), (4096, 1 << 21))
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
NR_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1


class Failure(Exception):
    """What the agent raises as RuntimeFailure(reason, message)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Libc:
    """System calls that the os module lacks. Each raises OSError."""

    def __init__(self) -> None:
        import ctypes

        self._ctypes = ctypes
        self._lib = ctypes.CDLL(None, use_errno=True)

    def call(self, name: str, *args: "Any") -> int:
        result = int(getattr(self._lib, name)(*args))
        if result == -1:
            number = self._ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def mount(
        self, source: "str | None", target: str, kind: "bytes | None", flags: int, data: "bytes | None"
    ) -> None:
        long = self._ctypes.c_ulong(flags)
        name = None if source is None else os.fsencode(source)
        self.call("mount", name, os.fsencode(target), kind, long, data)

    def prctl(self, option: int, value: int) -> None:
        zero = self._ctypes.c_ulong(0)
        self.call("prctl", option, self._ctypes.c_ulong(value), zero, zero, zero)

    def set_read_only(self, path: str, recursive: bool, wanted: bool) -> None:
        """mount_setattr(2), Linux 5.12."""
        value = self._ctypes.c_uint64 * 4
        attr = value(MOUNT_ATTR_RDONLY if wanted else 0, 0 if wanted else MOUNT_ATTR_RDONLY, 0, 0)
        flags = AT_RECURSIVE if recursive else 0
        size = self._ctypes.c_size_t(32)
        self.call(
            "syscall", NR_MOUNT_SETATTR, AT_FDCWD, os.fsencode(path), flags, self._ctypes.byref(attr), size
        )


class Surroundings:
    """Builds the private mount namespace of one container."""

    def __init__(self, libc: Libc, spec: "dict[str, Any]") -> None:
        self._libc = libc
        self._spec = spec
        self._scratch: "set[int]" = set()  # st_dev of the tmpfs file systems made here
        self._volumes: "list[tuple[str, bool]]" = []  # (real path, read only) of what is mounted so far

    def build(self) -> None:
        self._separate()
        mounts = sorted(self._spec["mounts"], key=lambda m: m["target"].count("/"))
        if any(_nearest(os.path.realpath(m["target"])) == "/" for m in mounts):
            self._new_root()
        sources = [self._open(m) for m in mounts]
        if self._spec["cover"]:
            self._cover(self._spec["cover"])
        for n, m in enumerate(mounts):
            self._place(m, *sources[n])
            os.close(sources[n][0])
        if self._spec["read_only_root"]:
            self._seal()

    def _separate(self) -> None:
        uid, gid = os.geteuid(), os.getegid()
        flags = CLONE_NEWNS
        if self._spec["namespace"] == "user":
            flags |= CLONE_NEWUSER
        self._libc.call("unshare", flags)
        if flags & CLONE_NEWUSER:
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", "%d %d 1" % (uid, uid))
            _write("/proc/self/gid_map", "%d %d 1" % (gid, gid))
        # Slave: nothing made here is seen on the host, and what the host unmounts is not kept busy from here.
        self._libc.mount(None, "/", None, MS_REC | MS_SLAVE, None)

    def _open(self, m: "dict[str, Any]") -> "tuple[int, bool]":
        try:
            fd = os.open(m["source"], os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise Failure(
                "CreateContainerError", "volume %s: %s: %s" % (m["name"], m["source"], error.strerror)
            )
        return fd, os.path.isdir(m["source"])

    def _cover(self, path: str) -> None:
        """Hides a directory that the workload's user may not enter anyway, to show its working directory inside."""
        self._libc.mount("edgelite", path, b"tmpfs", MS_NOSUID | MS_NODEV, SCRATCH)
        self._scratch.add(os.stat(path).st_dev)

    def _place(self, m: "dict[str, Any]", fd: int, is_dir: bool) -> None:
        target = os.path.realpath(m["target"])
        try:
            if target == "/":
                raise Failure(
                    "CreateContainerError", "mountPath /: the root of the machine cannot be replaced"
                )
            if not os.path.exists(target):
                self._make(m["target"], target, is_dir)
            elif os.path.isdir(target) != is_dir:
                kinds = ("a directory", "a file") if is_dir else ("a file", "a directory")
                text = "mountPath %s: the volume is %s, but %s exists on this machine at that path"
                raise Failure("CreateContainerError", text % ((m["target"],) + kinds))
            self._libc.mount("/proc/self/fd/%d" % fd, target, None, MS_BIND | MS_REC, None)
            if m["read_only"]:
                self._libc.mount(None, target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | _kept(target), None)
        except OSError as error:
            raise Failure("CreateContainerError", "mountPath %s: %s" % (m["target"], error.strerror))
        self._volumes.append((target, m["read_only"]))

    def _make(self, name: str, target: str, is_dir: bool) -> None:
        """Makes a missing mount point where making it leaves no trace on the host."""
        parent = _nearest(target)
        volume = [v for v in self._volumes if parent == v[0] or parent.startswith(v[0] + "/")]
        if volume and volume[-1][1]:
            text = "mountPath %s: does not exist in the read-only volume mounted at %s; mount it beside that volume"
            raise Failure("CreateContainerError", text % (name, volume[-1][0]))
        if not volume and os.stat(parent).st_dev not in self._scratch:
            self._scratch_over(parent)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if is_dir:
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))

    def _scratch_over(self, parent: str) -> None:
        old = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._fill(old, parent, parent)

    def _new_root(self) -> None:
        old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        new = self._spec["root_dir"]
        self._fill(old, new, "/")
        os.chdir(new)
        try:
            self._libc.call("pivot_root", b".", b".")
            self._libc.call("umount2", b".", MNT_DETACH)
        except OSError:
            # The root of an initramfs cannot be pivoted away: cover it instead.
            self._libc.mount(".", "/", None, MS_MOVE, None)
            os.chroot(".")
        os.chdir("/")

    def _fill(self, old: int, new: str, label: str) -> None:
        """Mounts a tmpfs at `new` and shows in it all that the directory `old` holds."""
        status = os.stat(old)
        names = os.listdir("/proc/self/fd/%d" % old)
        if len(names) > ENTRIES_MAX:
            text = "%s holds more than %d entries: choose a mountPath below a smaller directory"
            raise Failure("CreateContainerError", text % (label, ENTRIES_MAX))
        self._libc.mount("edgelite", new, b"tmpfs", MS_NOSUID | MS_NODEV, SCRATCH)
        # Unbindable, or binding the directory that holds `new` would show the new root inside itself.
        self._libc.mount(None, new, None, MS_UNBINDABLE, None)
        for name in names:
            self._bind_again(old, name, new + "/" + name if new != "/" else "/" + name)
        if self._spec["namespace"] != "user":
            os.chown(new, status.st_uid, status.st_gid)
        os.chmod(new, status.st_mode & 0o7777)
        self._scratch.add(os.stat(new).st_dev)
        os.close(old)

    def _bind_again(self, old: int, name: str, target: str) -> None:
        try:
            mode = os.stat(name, dir_fd=old, follow_symlinks=False).st_mode & 0o170000
            if mode == 0o120000:
                os.symlink(os.readlink(name, dir_fd=old), target)
                return
        except (FileNotFoundError, PermissionError):
            return  # gone meanwhile, or a FUSE mount of another user: not visible to the workload either way
        if mode == 0o040000:
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        self._libc.mount("/proc/self/fd/%d/%s" % (old, name), target, None, MS_BIND | MS_REC, None)

    def _seal(self) -> None:
        """readOnlyRootFilesystem: everything but writable volumes, /dev and /proc."""
        keep = [path for path, read_only in self._volumes if not read_only and path != self._spec["work"]]
        keep = [
            p
            for p in keep + ["/dev", "/dev/shm", "/proc"]  # noqa: S108
            if os.path.exists(p) and not os.statvfs(p).f_flag & MS_RDONLY
        ]
        try:
            self._libc.set_read_only("/", True, True)
            for path in keep:
                self._libc.set_read_only(path, False, False)
        except OSError as error:
            text = "securityContext.readOnlyRootFilesystem: needs Linux 5.12 or newer here (%s)"
            raise Failure("CreateContainerError", text % error.strerror)


def enter(libc: Libc, pid: int) -> None:
    """Joins the namespaces of a running workload, user namespace first."""
    fds = []
    for kind in ("user", "mnt"):
        theirs = "/proc/%d/ns/%s" % (pid, kind)
        if os.readlink(theirs) != os.readlink("/proc/self/ns/" + kind):
            fds.append(os.open(theirs, os.O_RDONLY | os.O_CLOEXEC))
    for fd in fds:
        libc.call("setns", fd, 0)
        os.close(fd)


def become(libc: "Libc | None", spec: "dict[str, Any]") -> None:
    """Drops to the workload's user, for good."""
    if spec["caps_drop"] and libc is not None:
        for number in spec["caps_drop"]:
            try:
                libc.prctl(PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno != 22:  # EINVAL: this kernel does not have that capability
                    raise
    if spec["user"] is not None:
        uid, gid, groups = spec["user"]
        for fd in (1, 2):
            os.fchown(fd, uid, gid)  # so that /dev/stdout can be opened by its name
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    if spec["no_new_privs"] and libc is not None:
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1)


def run(argv: "list[str]", env: "dict[str, str]") -> None:
    """execvp with the PATH of the workload's own environment. Only returns by raising Failure."""
    name = argv[0]
    if "/" in name:
        places = [name]
    else:
        places = [os.path.join(d or ".", name) for d in env.get("PATH", "").split(":")]
    denied: "OSError | None" = None
    for place in places:
        try:
            os.execve(place, argv, env)  # noqa: S606
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            denied = error
        except OSError as error:
            raise Failure("RunContainerError", 'exec: "%s": %s' % (name, error.strerror))
    if denied is not None:
        raise Failure(
            "RunContainerError", 'exec: "%s": permission denied to the user of the container' % name
        )
    where = "no such file on this machine" if "/" in name else "executable file not found in $PATH"
    raise Failure("RunContainerError", 'exec: "%s": %s' % (name, where))


def main(args: "list[str]") -> None:
    spec = marshal.loads(_read("/proc/self/fd/%d" % SPEC_FD))  # noqa: S302  (written by the agent itself)
    argv = spec["argv"] if args[0] == "run" else args[2:]
    if args[0] == "run":
        os.setsid()
    for path in spec["cgroups"]:
        try:
            _write(path, "0")
        except OSError as error:
            raise Failure("CreateContainerError", "cannot join %s: %s" % (path, error.strerror))
    namespace = spec["namespace"] != "none"
    libc = Libc() if namespace or spec["caps_drop"] or spec["no_new_privs"] else None
    if libc is not None and namespace:
        os.umask(0o022)  # what is made on the way to a mount point is for the workload's user to pass
        if args[0] == "run":
            Surroundings(libc, spec).build()
        else:
            enter(libc, int(args[1]))
    try:
        os.chdir(spec["cwd"])
    except OSError as error:
        raise Failure("CreateContainerError", "workingDir %s: %s" % (spec["cwd"], error.strerror))
    _reset()
    become(libc, spec)
    os.set_inheritable(REPORT_FD, False)
    os.set_inheritable(SPEC_FD, False)
    report(b"ready %d\n" % os.getpid())
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    run(argv, dict(spec["env"]))


def report(data: bytes) -> None:
    """Tells the agent; one that has died meanwhile must not keep the workload from running. SIGPIPE is ignored here, as
    Python does."""
    try:
        os.write(REPORT_FD, data)
    except BrokenPipeError:
        pass


def _reset() -> None:
    """What a program may expect at its start: default signals, none blocked, the usual umask, an ordinary OOM score."""
    for number in range(1, signal.NSIG):
        if number == signal.SIGPIPE:
            continue  # once the report is written
        try:
            signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):
            pass  # SIGKILL, SIGSTOP and those that libc keeps
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    try:
        if int(_read("/proc/self/oom_score_adj")) < 0:
            _write("/proc/self/oom_score_adj", "0")
    except OSError:
        pass  # a kernel without it: nothing to correct


def _nearest(path: str) -> str:
    """The nearest existing directory at or above a path that need not exist."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def _kept(path: str) -> int:
    have = os.statvfs(path).f_flag
    return sum(flag for bit, flag in KEEP if have & bit)


def _read(path: str) -> bytes:
    with open(path, "rb") as f:
        return f.read()


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Failure as failure:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        report(("%s\0%s" % (failure.reason, failure.message)).encode("utf-8", "replace"))
    except Exception as error:
        text = "CreateContainerError\0starting failed on this machine: %s: %s" % (type(error).__name__, error)
        report(text.encode("utf-8", "replace"))
    os._exit(127)
