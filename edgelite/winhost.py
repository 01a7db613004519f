"""What the agent asks of a Windows machine, and how it is told to stop there, where there are no signals."""

import ctypes
import os
import sys

from edgelite import kernel32
from edgelite.port import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

BOOT_KEY = "SOFTWARE\\CloudHub edgelite boot"
_VOLATILE, _READ_WRITE = 1, 0x2001F
_ROOTS = (0x80000002, 0x80000001)  # HKEY_LOCAL_MACHINE; of an ordinary user HKEY_CURRENT_USER
_ARCHITECTURES = {"AMD64": "amd64", "ARM64": "arm64", "X86": "386"}
STOP, DRAIN, AGAIN = "stop", "drain", "again"


class WindowsHost(Host):
    """See `port.Host`; every fact that cannot be read is left empty rather than guessed."""

    system = "windows"

    def __init__(self, boot_id_file: str = "") -> None:
        super().__init__(boot_id_file)
        self._own_file = bool(boot_id_file)
        self._boot_id = ""

    def boot_id(self) -> str:
        """Windows has none that an ordinary program could read, so it is made: a random one in a part of the registry that a
        restart of Windows forgets. Raises OSError."""
        if self._own_file:
            return super().boot_id()
        if not self._boot_id:
            self._boot_id = _registered_boot_id(self.entropy(16).hex())
        return self._boot_id

    def fingerprint(self, directory: str) -> str:
        return "|".join(
            [_registry("SOFTWARE\\Microsoft\\Cryptography", "MachineGuid"), str(os.stat(directory).st_ino)]
        )

    def hostname(self) -> str:
        return os.environ.get("COMPUTERNAME", "").lower()

    def memory_bytes(self) -> int:
        told = kernel32.MemoryStatus()
        told.size = ctypes.sizeof(told)
        kernel32.call("GlobalMemoryStatusEx", ctypes.byref(told))
        return int(told.total)

    def disk_bytes(self, directory: str) -> int:
        return disk(directory)[0]

    def architecture(self) -> str:
        # The second one is that of a 32-bit Python's Windows.
        own = os.environ.get("PROCESSOR_ARCHITECTURE", "")
        said = os.environ.get("PROCESSOR_ARCHITEW6432") or own
        return _ARCHITECTURES.get(said.upper(), said.lower())

    def node_info(self) -> "dict[str, str]":
        machine_id = _registry("SOFTWARE\\Microsoft\\Cryptography", "MachineGuid")
        version: "Any" = sys.getwindowsversion()  # type: ignore[attr-defined]
        kernel = "%d.%d.%d" % tuple(version.platform_version)
        return {
            "machineID": machine_id,
            "systemUUID": machine_id,
            "bootID": self.boot_id(),
            "kernelVersion": kernel,
            "osImage": _registry("SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion", "ProductName"),
            "operatingSystem": "windows",
            "architecture": self.architecture(),
        }


def disk(directory: str) -> "tuple[int, int]":
    """(all, free for this user) bytes of the disk that holds it. Raises OSError."""
    free, whole, unused = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_uint64()
    told = [ctypes.byref(one) for one in (free, whole, unused)]
    kernel32.call("GetDiskFreeSpaceExW", directory, *told)
    return int(whole.value), int(free.value)


def _registry(key: str, name: str) -> str:
    import winreg

    registry: "Any" = winreg
    try:
        with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, key) as opened:
            return str(registry.QueryValueEx(opened, name)[0])
    except OSError:
        return ""


def _registered_boot_id(fresh: str) -> str:
    """The one that is there, else `fresh` from now on. Raises OSError."""
    import winreg

    registry: "Any" = winreg
    library: "Any" = ctypes.WinDLL("advapi32", use_last_error=True)  # type: ignore[attr-defined]
    create = library.RegCreateKeyExW
    word, pointer, text = ctypes.c_uint32, ctypes.c_void_p, ctypes.c_wchar_p
    create.argtypes = [pointer, text, word, text, word, word, pointer, pointer, pointer]
    create.restype = ctypes.c_int32
    code = 0
    for root in _ROOTS:
        handle = ctypes.c_void_p()
        code = create(root, BOOT_KEY, 0, None, _VOLATILE, _READ_WRITE, None, ctypes.byref(handle), None)
        if not code:
            with _Key(registry, handle.value) as key:
                try:
                    return str(registry.QueryValueEx(key, "id")[0])
                except FileNotFoundError:
                    registry.SetValueEx(key, "id", 0, registry.REG_SZ, fresh)
                    return fresh
    raise kernel32.error("cannot keep a boot id in the registry", code)


class _Key:
    """Closes a key that was opened without winreg."""

    def __init__(self, registry: "Any", handle: "Any") -> None:
        self._registry = registry
        self._handle = handle

    def __enter__(self) -> "Any":
        return self._handle

    def __exit__(self, *_: object) -> None:
        self._registry.CloseKey(self._handle)


# Telling an agent


def _event_name(data_dir: str, what: str) -> str:
    import hashlib

    place = os.path.normcase(os.path.realpath(data_dir)).encode("utf-8", "replace")
    return "Global\\edgelite-%s-%s" % (what, hashlib.sha256(place).hexdigest()[:32])


def tell(data_dir: str, what: str) -> None:
    """Tells the agent of this directory; what: STOP, DRAIN or AGAIN. Raises OSError where none listens."""
    event = int(kernel32.call("OpenEventW", kernel32.EVENT_MODIFY, False, _event_name(data_dir, what)))
    try:
        kernel32.call("SetEvent", event)
    finally:
        kernel32.close(event)


def listen(data_dir: str, agent: "Any") -> "Callable[[], None]":
    """Has the agent (`Agent.stop`, `drain`, `again`) told on a thread whatever somebody tells it, until what is returned is called: then
    another process can listen. Raises OSError."""
    import _thread

    calls = [(STOP, agent.stop), (DRAIN, agent.drain), (AGAIN, agent.again)]
    count = len(calls) + 1
    events = (ctypes.c_void_p * count)()
    # What ends it comes first: of several events that are set the first one is answered.
    events[0] = kernel32.call("CreateEventW", None, True, False, None)
    for n, (what, _) in enumerate(calls):
        events[n + 1] = kernel32.call("CreateEventW", None, False, False, _event_name(data_dir, what))
    listening = _thread.allocate_lock()
    listening.acquire()

    def wait() -> None:
        while True:
            told = kernel32.call("WaitForMultipleObjects", count, events, False, kernel32.FOREVER)
            if not told:
                break
            calls[told - 1][1]()
        listening.release()

    def deaf() -> None:
        kernel32.call("SetEvent", events[0])
        listening.acquire()
        kernel32.close(*events)

    _thread.start_new_thread(wait, ())
    return deaf
