"""What the agent asks of a Mac, through sysctlbyname(3)."""

import ctypes
import os

from edgelite.port import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = "/System/Library/CoreServices/SystemVersion.plist"
VALUE_BYTES = 256


class MacHost(Host):
    """See `port.Host`; every fact that cannot be read is left empty rather than guessed."""

    system = "darwin"

    def __init__(self, boot_id_file: str = "") -> None:
        super().__init__(boot_id_file)
        self._own_file = bool(boot_id_file)

    def boot_id(self) -> str:
        if self._own_file:
            return super().boot_id()
        found = _asked("kern.bootsessionuuid")
        if not found:
            raise OSError("this macOS does not tell its boot session: name a file with --boot-id-file")
        return found.rstrip(b"\0").decode()

    def fingerprint(self, directory: str) -> str:
        return "|".join([_machine(), str(os.stat(directory).st_ino)])

    def memory_bytes(self) -> int:
        return int.from_bytes(_asked("hw.memsize"), "little")

    def node_info(self) -> "dict[str, str]":
        machine = _machine()
        return {
            "machineID": machine,
            "systemUUID": machine,
            "bootID": self.boot_id(),
            "kernelVersion": os.uname().release,
            "osImage": _version(),
            "operatingSystem": self.system,
            "architecture": self.architecture(),
        }


def _library() -> "Any":
    return ctypes.CDLL("/usr/lib/libSystem.B.dylib", use_errno=True)


def _asked(name: str) -> bytes:
    data, size = ctypes.create_string_buffer(VALUE_BYTES), ctypes.c_size_t(VALUE_BYTES)
    if _library().sysctlbyname(name.encode(), data, ctypes.byref(size), None, ctypes.c_size_t(0)):
        return b""
    return data.raw[: size.value]


def _machine() -> str:
    """gethostuuid(2): of the hardware."""
    found = (ctypes.c_ubyte * 16)()
    patience = (ctypes.c_long * 2)(1, 0)
    return "" if _library().gethostuuid(found, patience) else bytes(found).hex()


def _version() -> str:
    try:
        with open(VERSION) as file:
            text = file.read(65536)
    except OSError:
        return ""
    _, _, rest = text.partition("<key>ProductVersion</key>")
    return "macOS " + rest.partition("<string>")[2].partition("</string>")[0]
