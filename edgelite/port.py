"""What the agent asks of the machine: files (`edgelite.files`), clocks, facts. The seam that tests and other systems replace.

`Host` is Linux; every fact that cannot be read is left empty rather than guessed.
"""

import os
import time

from edgelite.files import Files, write_atomically

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


__all__ = ["Files", "Host", "this_host", "write_atomically"]


class Host:
    """A Linux host. `this_host` makes the one of this machine.

    boot_id_file: where the boot id is read; tests name a file of their own to play a reboot.
    root: prefix of /proc, /sys and /etc, for tests.
    """

    system = "linux"
    """As Go and Kubernetes name it."""

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
            "operatingSystem": self.system,
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


def this_host(boot_id_file: str = "") -> Host:
    """The host that this process runs on."""
    import sys

    if sys.platform == "win32":
        from edgelite.winhost import WindowsHost

        return WindowsHost(boot_id_file)
    if sys.platform == "darwin":
        from edgelite.machost import MacHost

        return MacHost(boot_id_file)
    return Host(boot_id_file)


def _listdir(path: str) -> "list[str]":
    try:
        return os.listdir(path)
    except OSError:
        return []
