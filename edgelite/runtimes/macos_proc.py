"""What macOS tells of processes, through libproc and sysctl: who is whose child, and which launch it belongs to.

Structures as in sys/proc_info.h; KERN_PROCARGS2 as in sysctl(3). A pid alone is no identity: (pid, start time) is.
"""

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PIDS_MAX = 65536
ARGUMENTS_BYTES = 1 << 20
_INFO, _INFO_BYTES, _ZOMBIE = 3, 136, 5
_TASK, _TASK_BYTES = 4, 96
_KERN, _PROCARGS = 1, 49


class Process:
    """start: microseconds since 1970."""

    __slots__ = ("parent", "pid", "start")

    def __init__(self, pid: int, parent: int, start: int) -> None:
        self.pid = pid
        self.parent = parent
        self.start = start


class Processes:
    """Tests have another of these, for the system that they run on."""

    def __init__(self) -> None:
        self._lib: "Any" = ctypes.CDLL("/usr/lib/libSystem.B.dylib", use_errno=True)
        self._buffer = ctypes.create_string_buffer(ARGUMENTS_BYTES)

    def pids(self) -> "list[int]":
        buffer = (ctypes.c_int * PIDS_MAX)()
        count = self._lib.proc_listallpids(buffer, ctypes.sizeof(buffer))
        return [pid for pid in buffer[: max(0, count)] if pid > 0]

    def read(self, pid: int) -> "Process | None":
        """None for one that has ended, also while its parent has not heard of it."""
        data = ctypes.create_string_buffer(_INFO_BYTES)
        if self._lib.proc_pidinfo(pid, _INFO, ctypes.c_uint64(0), data, _INFO_BYTES) != _INFO_BYTES:
            return None
        words = (ctypes.c_uint32 * 5).from_buffer(data)
        begin = (ctypes.c_uint64 * 2).from_buffer(data, 120)
        return None if words[1] == _ZOMBIE else Process(pid, words[4], begin[0] * 1000000 + begin[1])

    def session(self, pid: int) -> int:
        try:
            return os.getsid(pid)
        except OSError:
            return 0

    def marked(self, pid: int, mark: bytes) -> bool:
        """Whether NAME=VALUE is in its environment; False where that is not ours to read."""
        data = self._buffer
        size = ctypes.c_size_t(ARGUMENTS_BYTES)
        name = (ctypes.c_int * 3)(_KERN, _PROCARGS, pid)
        if self._lib.sysctl(name, 3, data, ctypes.byref(size), None, ctypes.c_size_t(0)):
            return False
        return b"\0" + mark + b"\0" in ctypes.string_at(data, size.value) + b"\0"

    def usage(self, pid: int) -> "tuple[int, int]":
        """(cpu ns, memory bytes), (0, 0) when it has gone."""
        data = ctypes.create_string_buffer(_TASK_BYTES)
        if self._lib.proc_pidinfo(pid, _TASK, ctypes.c_uint64(0), data, _TASK_BYTES) != _TASK_BYTES:
            return 0, 0
        words = (ctypes.c_uint64 * 4).from_buffer(data)  # virtual, resident, user, system
        base = (ctypes.c_uint32 * 2)(1, 1)
        self._lib.mach_timebase_info(base)
        return (words[2] + words[3]) * base[0] // base[1], words[1]
