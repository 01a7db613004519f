"""What the agent asks of the machine: files, clocks, facts. The seam that tests and other systems replace.

`Files` also runs on MicroPython, where there is no fsync (flush and os.sync take its place) and rename replaces.
`Host` is Linux; every fact that cannot be read is left empty rather than guessed.
"""

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Files:
    """The few file operations the journal needs. All raise OSError."""

    def exists(self, path: str) -> bool:
        try:
            os.stat(path)
            return True
        except OSError:
            return False

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def create(self, path: str) -> "Any":
        return open(path, "wb")

    def append(self, path: str) -> "Any":
        return open(path, "ab")

    def sync(self, file: "Any") -> None:
        """Flushes `file` and waits until it is on the disk."""
        file.flush()
        if hasattr(os, "fdatasync"):
            os.fdatasync(file.fileno())
        elif hasattr(os, "fsync"):
            os.fsync(file.fileno())
        elif hasattr(os, "sync"):
            os.sync()

    def replace(self, source: str, target: str) -> None:
        """Renames over `target`, and makes the rename durable where a directory can be synced."""
        getattr(os, "replace", os.rename)(source, target)
        self.sync_directory(target)

    def sync_directory(self, path: str) -> None:
        """Makes creation and renaming of `path` durable."""
        if not hasattr(os, "fsync") or os.name != "posix":
            return
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def remove(self, path: str) -> None:
        getattr(os, "unlink", os.remove)(path)


def write_atomically(path: str, data: bytes, mode: int = 0o600) -> None:
    """Replaces `path` by `data`: after a power cut it holds the old content or the new, never a mixture."""
    files = Files()
    new = "%s.%d.tmp" % (path, os.getpid())
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            files.sync(file)
        files.replace(new, path)
    except OSError:
        if files.exists(new):
            files.remove(new)
        raise


class Host:
    """A Linux host.

    boot_id_file: where the boot id is read; tests name a file of their own to play a reboot.
    root: prefix of /proc, /sys and /etc, for tests.
    """

    def __init__(self, boot_id_file: str = "", root: str = "/") -> None:
        self._root = root
        self._boot_id_file = boot_id_file or os.path.join(root, "proc/sys/kernel/random/boot_id")

    def now(self) -> float:
        """Seconds on a clock that never steps and counts suspension where the system can."""
        try:
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        except (AttributeError, OSError):
            return time.monotonic()

    def wall(self) -> float:
        """Unix seconds."""
        return time.time()

    def entropy(self, size: int) -> bytes:
        """`size` bytes fit for keys."""
        return os.urandom(size)

    def chance(self) -> float:
        """A number in [0, 1): for jitter."""
        return int.from_bytes(os.urandom(4), "big") / 4294967296.0

    def boot_id(self) -> str:
        """Differs after every reboot of the machine. Raises OSError where the system has none."""
        with open(self._boot_id_file) as file:
            return file.read().strip()

    def fingerprint(self, directory: str) -> str:
        """Differs when `directory` was copied, or its disk was moved into another machine: what tells a clone from
        the original. A change only costs a new journal incarnation."""
        parts = [self._read("etc/machine-id"), str(os.stat(directory).st_ino)]
        net = os.path.join(self._root, "sys/class/net")
        for name in sorted(_listdir(net)):
            # Only permanent addresses of real devices: virtual ones change with every start.
            if os.path.exists(os.path.join(net, name, "device")):
                if self._read("sys/class/net/%s/addr_assign_type" % name) == "0":
                    parts.append(self._read("sys/class/net/%s/address" % name))
        return "|".join(parts)

    def hostname(self) -> str:
        return os.uname().nodename.lower()

    def cpus(self) -> int:
        """The processors that this process may use."""
        try:
            return len(os.sched_getaffinity(0))
        except (AttributeError, OSError):
            return os.cpu_count() or 1

    def memory_bytes(self) -> int:
        for line in self._read("proc/meminfo").split("\n"):
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
        return 0

    def disk_bytes(self, directory: str) -> int:
        """The size of the file system that holds `directory`."""
        stat = os.statvfs(directory)
        return stat.f_blocks * stat.f_frsize

    def architecture(self) -> str:
        """As Go and Kubernetes name it: amd64, arm64, arm, ..."""
        machine = os.uname().machine
        names = {
            "x86_64": "amd64",
            "aarch64": "arm64",
            "armv7l": "arm",
            "armv6l": "arm",
            "i686": "386",
            "i386": "386",
        }
        return names.get(machine, machine)

    def node_info(self) -> "dict[str, str]":
        """The host's part of a Node's status.nodeInfo."""
        os_release: "dict[str, str]" = {}
        for line in self._read("etc/os-release").split("\n"):
            key, _, value = line.partition("=")
            os_release[key] = value.strip('"')
        machine_id = self._read("etc/machine-id")
        return {
            "machineID": machine_id,
            "systemUUID": self._read("sys/class/dmi/id/product_uuid") or machine_id,
            "bootID": self.boot_id(),
            "kernelVersion": os.uname().release,
            "osImage": os_release.get("PRETTY_NAME", ""),
            "operatingSystem": "linux",
            "architecture": self.architecture(),
        }

    def address_towards(self, host: str, port: int) -> str:
        """The address this machine would use to reach (host, port), "" when there is no route. Sends nothing."""
        import socket

        try:
            family, kind, proto, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
            )[0]
            with socket.socket(family, kind, proto) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
        except OSError:
            return ""

    def _read(self, path: str) -> str:
        try:
            with open(os.path.join(self._root, path)) as file:
                return file.read().strip()
        except OSError:
            return ""


def _listdir(path: str) -> "list[str]":
    try:
        return os.listdir(path)
    except OSError:
        return []
