"""The functions of Windows' kernel that the agent, its runtime and the shims of containers call, through ctypes.

Structures and constants as in winbase.h, winnt.h and psapi.h. Every function raises OSError with Windows' own number and
text. Handles are plain numbers; whoever opens one closes it.
"""

import ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# As on Windows, wherever this is read.
_HANDLE, _POINTER, _TEXT = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_wchar_p
_DWORD, _WORD, _BOOL = ctypes.c_uint32, ctypes.c_uint16, ctypes.c_int32
_U64 = ctypes.c_uint64
_SIZE = ctypes.c_size_t

ACCESS_DENIED, NOT_FOUND, BROKEN_PIPE, NO_DATA, INVALID_PARAMETER = 5, 2, 109, 232, 87
WAIT_OBJECT, WAIT_TIMEOUT, WAIT_FAILED, FOREVER = 0, 0x102, 0xFFFFFFFF, 0xFFFFFFFF
SYNCHRONIZE, EVENT_MODIFY = 0x100000, 2
QUERY_LIMITED, TERMINATE = 0x1000, 1
JOB_ALL = 0x1F001F
FILE_APPEND, READ_ATTRIBUTES, GENERIC_READ, GENERIC_WRITE = 4, 0x80, 0x80000000, 0x40000000
SHARE_ALL, OPEN_EXISTING, OPEN_ALWAYS, NORMAL = 7, 3, 4, 0x80
SUSPENDED, NEW_GROUP, UNICODE_ENVIRONMENT = 0x4, 0x200, 0x400
EXTENDED_STARTUP, BREAKAWAY, NO_WINDOW = 0x80000, 0x1000000, 0x8000000
USE_STANDARD_HANDLES = 0x100
HANDLE_LIST = 0x20002
CTRL_C, CTRL_BREAK = 0, 1
PIPE_NOWAIT = 1
LIMIT_PROCESSES, LIMIT_MEMORY, LIMIT_DIE, LIMIT_KILL_ON_CLOSE = 0x8, 0x200, 0x400, 0x2000
LIMIT_BREAKAWAY, LIMIT_SILENT_BREAKAWAY = 0x800, 0x1000
CPU_ENABLE, CPU_HARD_CAP = 1, 4
JOB_ACCOUNTING, JOB_PROCESSES, JOB_LIMITS, JOB_CPU = 1, 3, 9, 15
INVALID = ctypes.c_void_p(-1).value


class StartupInfo(ctypes.Structure):
    """STARTUPINFOEXW"""

    _fields_ = [
        ("size", _DWORD),
        ("reserved", _TEXT),
        ("desktop", _TEXT),
        ("title", _TEXT),
        ("x", _DWORD),
        ("y", _DWORD),
        ("width", _DWORD),
        ("height", _DWORD),
        ("columns", _DWORD),
        ("rows", _DWORD),
        ("fill", _DWORD),
        ("flags", _DWORD),
        ("show", _WORD),
        ("reserved_size", _WORD),
        ("reserved_2", _POINTER),
        ("stdin", _HANDLE),
        ("stdout", _HANDLE),
        ("stderr", _HANDLE),
        ("attributes", _POINTER),
    ]


class ProcessInfo(ctypes.Structure):
    """PROCESS_INFORMATION"""

    _fields_ = [("process", _HANDLE), ("thread", _HANDLE), ("pid", _DWORD), ("tid", _DWORD)]


class JobLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION"""

    _fields_ = [
        ("process_time", ctypes.c_int64),
        ("job_time", ctypes.c_int64),
        ("flags", _DWORD),
        ("working_set_min", _SIZE),
        ("working_set_max", _SIZE),
        ("processes", _DWORD),
        ("affinity", _SIZE),
        ("priority", _DWORD),
        ("scheduling", _DWORD),
        ("io", _U64 * 6),
        ("process_memory", _SIZE),
        ("job_memory", _SIZE),
        ("process_peak", _SIZE),
        ("job_peak", _SIZE),
    ]


class CpuRate(ctypes.Structure):
    """JOBOBJECT_CPU_RATE_CONTROL_INFORMATION; rate: hundredths of a percent of all processors"""

    _fields_ = [("flags", _DWORD), ("rate", _DWORD)]


class JobAccounting(ctypes.Structure):
    """JOBOBJECT_BASIC_ACCOUNTING_INFORMATION; times in units of 100 ns"""

    _fields_ = [
        ("user", ctypes.c_int64),
        ("kernel", ctypes.c_int64),
        ("period_user", ctypes.c_int64),
        ("period_kernel", ctypes.c_int64),
        ("faults", _DWORD),
        ("started", _DWORD),
        ("active", _DWORD),
        ("killed", _DWORD),
    ]


class MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS"""

    _fields_ = [("size", _DWORD), ("faults", _DWORD), ("peak", _SIZE), ("working_set", _SIZE)] + [
        ("rest%d" % n, _SIZE) for n in range(6)
    ]


class MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX"""

    _fields_ = [("size", _DWORD), ("load", _DWORD), ("total", _U64), ("free", _U64)] + [
        ("rest%d" % n, _U64) for n in range(5)
    ]


_P = ctypes.POINTER
_SIGNATURES: "dict[str, Any]" = {
    "AssignProcessToJobObject": (_BOOL, [_HANDLE, _HANDLE]),
    "CloseHandle": (_BOOL, [_HANDLE]),
    "CreateEventW": (_HANDLE, [_POINTER, _BOOL, _BOOL, _TEXT]),
    "CreateFileW": (_HANDLE, [_TEXT, _DWORD, _DWORD, _POINTER, _DWORD, _DWORD, _HANDLE]),
    "CreateJobObjectW": (_HANDLE, [_POINTER, _TEXT]),
    "CreatePipe": (_BOOL, [_P(_HANDLE), _P(_HANDLE), _POINTER, _DWORD]),
    "CreateProcessW": (
        _BOOL,
        [
            _TEXT,
            _POINTER,
            _POINTER,
            _POINTER,
            _BOOL,
            _DWORD,
            _POINTER,
            _TEXT,
            _P(StartupInfo),
            _P(ProcessInfo),
        ],
    ),
    "GenerateConsoleCtrlEvent": (_BOOL, [_DWORD, _DWORD]),
    "GetDiskFreeSpaceExW": (_BOOL, [_TEXT, _P(_U64), _P(_U64), _P(_U64)]),
    "GetExitCodeProcess": (_BOOL, [_HANDLE, _P(_DWORD)]),
    "GetProcessTimes": (_BOOL, [_HANDLE, _P(_U64), _P(_U64), _P(_U64), _P(_U64)]),
    "GlobalMemoryStatusEx": (_BOOL, [_P(MemoryStatus)]),
    "InitializeProcThreadAttributeList": (_BOOL, [_POINTER, _DWORD, _DWORD, _P(_SIZE)]),
    "K32GetProcessMemoryInfo": (_BOOL, [_HANDLE, _P(MemoryCounters), _DWORD]),
    "OpenEventW": (_HANDLE, [_DWORD, _BOOL, _TEXT]),
    "OpenJobObjectW": (_HANDLE, [_DWORD, _BOOL, _TEXT]),
    "OpenProcess": (_HANDLE, [_DWORD, _BOOL, _DWORD]),
    "PeekNamedPipe": (_BOOL, [_HANDLE, _POINTER, _DWORD, _POINTER, _P(_DWORD), _POINTER]),
    "QueryInformationJobObject": (_BOOL, [_HANDLE, ctypes.c_int, _POINTER, _DWORD, _POINTER]),
    "ReadFile": (_BOOL, [_HANDLE, _POINTER, _DWORD, _P(_DWORD), _POINTER]),
    "ResumeThread": (_DWORD, [_HANDLE]),
    "SetConsoleCtrlHandler": (_BOOL, [_POINTER, _BOOL]),
    "SetEvent": (_BOOL, [_HANDLE]),
    "SetHandleInformation": (_BOOL, [_HANDLE, _DWORD, _DWORD]),
    "SetInformationJobObject": (_BOOL, [_HANDLE, ctypes.c_int, _POINTER, _DWORD]),
    "SetNamedPipeHandleState": (_BOOL, [_HANDLE, _P(_DWORD), _POINTER, _POINTER]),
    "TerminateJobObject": (_BOOL, [_HANDLE, _DWORD]),
    "TerminateProcess": (_BOOL, [_HANDLE, _DWORD]),
    "UpdateProcThreadAttribute": (_BOOL, [_POINTER, _DWORD, _SIZE, _POINTER, _SIZE, _POINTER, _POINTER]),
    "WaitForMultipleObjects": (_DWORD, [_DWORD, _POINTER, _BOOL, _DWORD]),
    "WaitForSingleObject": (_DWORD, [_HANDLE, _DWORD]),
    "WriteFile": (_BOOL, [_HANDLE, _POINTER, _DWORD, _P(_DWORD), _POINTER]),
}
# What these answer says nothing about success by being 0.
_WAITS = ("WaitForMultipleObjects", "WaitForSingleObject", "ResumeThread")
_library: "list[Any]" = []


def call(name: str, *arguments: "Any") -> "Any":
    """Calls a function of kernel32 that answers with a handle, a truth value or what it waited for. Raises OSError."""
    if not _library:
        _library.append(ctypes.WinDLL("kernel32", use_last_error=True))  # type: ignore[attr-defined]
    function = getattr(_library[0], name)
    function.restype, function.argtypes = _SIGNATURES[name]
    answer = function(*arguments)
    failed = answer == WAIT_FAILED if name in _WAITS else not answer or answer == INVALID
    if failed:
        raise error(name)
    return answer


def error(what: str, number: "int | None" = None) -> OSError:
    """The last error of this thread, or one by its number, as OSError with `winerror`."""
    code = ctypes.get_last_error() if number is None else number  # type: ignore[attr-defined]
    text = ctypes.FormatError(code).strip()  # type: ignore[attr-defined]
    return OSError(0, text, what, code)


def number(problem: OSError) -> int:
    """Windows' own number of an error, 0 for one that is not Windows'."""
    return int(getattr(problem, "winerror", 0) or 0)


def close(*handles: "int | None") -> None:
    for handle in handles:
        if handle:
            call("CloseHandle", handle)


# Processes


def spawn(
    program: str,
    line: str,
    environment: str,
    directory: str,
    flags: int,
    streams: "tuple[int, int, int]",
) -> "tuple[int, int, int]":
    """(process handle, thread handle, pid) of a new process that inherits these three streams and nothing else. line: the whole
    command line; environment: a block as `windows_names.environment_block` makes it. Raises OSError."""
    unique = sorted(set(streams))
    for handle in unique:
        call("SetHandleInformation", handle, 1, 1)
    size = ctypes.c_size_t()
    try:
        call("InitializeProcThreadAttributeList", None, 1, 0, ctypes.byref(size))
    except OSError:
        pass  # it tells the size that way
    attributes = ctypes.create_string_buffer(size.value)
    call("InitializeProcThreadAttributeList", attributes, 1, 0, ctypes.byref(size))
    inherited = (ctypes.c_void_p * len(unique))(*unique)
    call(
        "UpdateProcThreadAttribute",
        attributes,
        0,
        HANDLE_LIST,
        inherited,
        ctypes.sizeof(inherited),
        None,
        None,
    )
    info = StartupInfo()
    info.size = ctypes.sizeof(StartupInfo)
    info.flags = USE_STANDARD_HANDLES
    info.stdin, info.stdout, info.stderr = streams
    info.attributes = ctypes.cast(attributes, ctypes.c_void_p)
    made = ProcessInfo()
    # The kernel writes into the command line.
    text = ctypes.create_unicode_buffer(line)
    block = ctypes.create_unicode_buffer(environment)
    flags |= UNICODE_ENVIRONMENT | EXTENDED_STARTUP
    call(
        "CreateProcessW",
        program,
        text,
        None,
        None,
        True,
        flags,
        block,
        directory,
        ctypes.byref(info),
        ctypes.byref(made),
    )
    return int(made.process), int(made.thread), int(made.pid)


def created_at(process: int) -> int:
    """When the process of a handle began, in units of 100 ns since 1601: with the pid its identity."""
    times = [ctypes.c_uint64() for _ in range(4)]
    call("GetProcessTimes", process, *[ctypes.byref(one) for one in times])
    return int(times[0].value)


def runs(process: int) -> bool:
    return bool(call("WaitForSingleObject", process, 0) == WAIT_TIMEOUT)


def exit_code(process: int) -> int:
    """Of a process that has ended: 32 bits, unsigned."""
    code = ctypes.c_uint32()
    call("GetExitCodeProcess", process, ctypes.byref(code))
    return int(code.value)


# Pipes and files


def pipe(room: int) -> "tuple[int, int]":
    """(reader, writer) of an anonymous pipe that takes `room` bytes without waiting."""
    reader, writer = ctypes.c_void_p(), ctypes.c_void_p()
    call("CreatePipe", ctypes.byref(reader), ctypes.byref(writer), None, room)
    assert reader.value is not None and writer.value is not None
    return reader.value, writer.value


def open_file(path: str, access: int, create: bool) -> int:
    """Shared with readers, writers and who deletes it."""
    how = OPEN_ALWAYS if create else OPEN_EXISTING
    return int(call("CreateFileW", path, access, SHARE_ALL, None, how, NORMAL, None))


def read_ready(handle: int, size: int) -> "bytes | None":
    """What a pipe holds now, at most `size` bytes: b"" when nothing, None at its end."""
    ready = ctypes.c_uint32()
    try:
        call("PeekNamedPipe", handle, None, 0, None, ctypes.byref(ready), None)
        if not ready.value:
            return b""
        data = ctypes.create_string_buffer(min(size, ready.value))
        call("ReadFile", handle, data, len(data), ctypes.byref(ready), None)
        return data.raw[: ready.value]
    except OSError as problem:
        if number(problem) in (BROKEN_PIPE, NO_DATA):
            return None
        raise


def write(handle: int, data: bytes) -> int:
    """How many bytes it took. Raises OSError."""
    taken = ctypes.c_uint32()
    call("WriteFile", handle, data, len(data), ctypes.byref(taken), None)
    return int(taken.value)


# Jobs


def limit_job(job: int, memory: int, processes: int, more: int = 0) -> None:
    """Bounds (bytes, count; 0 is none), and the end of all of the job's processes with its last handle; more: flags besides. Raises
    OSError."""
    limits = JobLimits()
    limits.flags = LIMIT_KILL_ON_CLOSE | LIMIT_DIE | more
    if memory:
        limits.flags |= LIMIT_MEMORY
        limits.job_memory = memory
    if processes:
        limits.flags |= LIMIT_PROCESSES
        limits.processes = processes
    call("SetInformationJobObject", job, JOB_LIMITS, ctypes.byref(limits), ctypes.sizeof(limits))


def limit_cpu(job: int, rate: int) -> None:
    """rate: hundredths of a percent of all processors, 1 to 10000. Raises OSError where the system has no such limit."""
    wanted = CpuRate(CPU_ENABLE | CPU_HARD_CAP, rate)
    call("SetInformationJobObject", job, JOB_CPU, ctypes.byref(wanted), ctypes.sizeof(wanted))


def job_pids(job: int, most: int) -> "list[int]":
    """The processes of a job, at most `most` of them."""
    words = (ctypes.c_size_t * (most + 1))()  # two 32-bit counts, then the ids
    call("QueryInformationJobObject", job, JOB_PROCESSES, words, ctypes.sizeof(words), None)
    listed = min(most, int(words[0]) >> 32 if ctypes.sizeof(ctypes.c_size_t) == 8 else int(words[1]))
    begin = 1 if ctypes.sizeof(ctypes.c_size_t) == 8 else 2
    return [int(words[n]) for n in range(begin, begin + listed) if words[n]]


def job_cpu_ns(job: int) -> int:
    told = JobAccounting()
    call("QueryInformationJobObject", job, JOB_ACCOUNTING, ctypes.byref(told), ctypes.sizeof(told), None)
    return (int(told.user) + int(told.kernel)) * 100


def working_set(pid: int) -> int:
    """Bytes that a process has in memory, 0 when it has gone."""
    try:
        process = int(call("OpenProcess", QUERY_LIMITED, False, pid))
    except OSError:
        return 0
    try:
        told = MemoryCounters()
        told.size = ctypes.sizeof(told)
        call("K32GetProcessMemoryInfo", process, ctypes.byref(told), told.size)
        return int(told.working_set)
    finally:
        close(process)
