"""The few functions of Windows' service manager and event log that `edgelite.winservice` calls, through ctypes.

Structures and constants as in winsvc.h and winnt.h. Every function raises OSError with Windows' own number and text.
"""

import ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# As on Windows, wherever this is read.
_HANDLE, _POINTER, _TEXT = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_wchar_p
_DWORD, _WORD, _BOOL = ctypes.c_uint32, ctypes.c_uint16, ctypes.c_int32

OWN_PROCESS = 0x10
AUTO_START = 2
ERROR_NORMAL = 1
MANAGER_ALL = 0xF003F
MANAGER_CONNECT = 1
SERVICE_ALL = 0xF01FF
QUERY_STATUS = 4
CONFIG_DESCRIPTION, CONFIG_FAILURE_ACTIONS, CONFIG_DELAYED_START, CONFIG_FAILURE_FLAG = 1, 2, 3, 4
ACTION_RESTART = 1
STOPPED, START_PENDING, STOP_PENDING, RUNNING = 1, 2, 3, 4
STATES = {
    1: "stopped",
    2: "starting",
    3: "stopping",
    4: "running",
    5: "continuing",
    6: "pausing",
    7: "paused",
}
ACCEPT_STOP, ACCEPT_SHUTDOWN = 1, 4
CONTROL_STOP, CONTROL_INTERROGATE, CONTROL_SHUTDOWN = 1, 4, 5
NO_ERROR, CALL_NOT_IMPLEMENTED, INVALID_LEVEL, SPECIFIC_ERROR = 0, 120, 124, 1066
DOES_NOT_EXIST, NOT_ACTIVE, ALREADY_RUNNING = 1060, 1062, 1056


class ServiceStatus(ctypes.Structure):
    """SERVICE_STATUS"""

    _fields_ = [
        (name, _DWORD)
        for name in ("type", "state", "accepted", "exit_code", "specific_code", "checkpoint", "wait_hint")
    ]


class Action(ctypes.Structure):
    """SC_ACTION; delay in milliseconds"""

    _fields_ = [("type", ctypes.c_int), ("delay", _DWORD)]


class FailureActions(ctypes.Structure):
    """SERVICE_FAILURE_ACTIONSW; reset_period in seconds"""

    _fields_ = [
        ("reset_period", _DWORD),
        ("reboot_message", _TEXT),
        ("command", _TEXT),
        ("count", _DWORD),
        ("actions", ctypes.POINTER(Action)),
    ]


class Text(ctypes.Structure):
    """SERVICE_DESCRIPTIONW"""

    _fields_ = [("text", _TEXT)]


class Flag(ctypes.Structure):
    """SERVICE_DELAYED_AUTO_START_INFO, SERVICE_FAILURE_ACTIONS_FLAG"""

    _fields_ = [("on", _BOOL)]


SERVICE_MAIN: "Any" = getattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE)(None, _DWORD, ctypes.POINTER(_TEXT))
HANDLER: "Any" = getattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE)(
    _DWORD, _DWORD, _DWORD, ctypes.c_void_p, ctypes.c_void_p
)


class TableEntry(ctypes.Structure):
    """SERVICE_TABLE_ENTRYW"""

    _fields_ = [("name", _TEXT), ("main", SERVICE_MAIN)]


_SIGNATURES: "dict[str, Any]" = {
    "OpenSCManagerW": (_HANDLE, [_TEXT, _TEXT, _DWORD]),
    "OpenServiceW": (_HANDLE, [_HANDLE, _TEXT, _DWORD]),
    "CreateServiceW": (
        _HANDLE,
        [_HANDLE, _TEXT, _TEXT] + [_DWORD] * 4 + [_TEXT, _TEXT, _POINTER, _TEXT, _TEXT, _TEXT],
    ),
    "ChangeServiceConfigW": (
        _BOOL,
        [_HANDLE] + [_DWORD] * 3 + [_TEXT, _TEXT, _POINTER, _TEXT, _TEXT, _TEXT, _TEXT],
    ),
    "ChangeServiceConfig2W": (_BOOL, [_HANDLE, _DWORD, _POINTER]),
    "StartServiceW": (_BOOL, [_HANDLE, _DWORD, _POINTER]),
    "ControlService": (_BOOL, [_HANDLE, _DWORD, ctypes.POINTER(ServiceStatus)]),
    "QueryServiceStatus": (_BOOL, [_HANDLE, ctypes.POINTER(ServiceStatus)]),
    "DeleteService": (_BOOL, [_HANDLE]),
    "CloseServiceHandle": (_BOOL, [_HANDLE]),
    "StartServiceCtrlDispatcherW": (_BOOL, [ctypes.POINTER(TableEntry)]),
    "RegisterServiceCtrlHandlerExW": (_HANDLE, [_TEXT, HANDLER, _POINTER]),
    "SetServiceStatus": (_BOOL, [_HANDLE, ctypes.POINTER(ServiceStatus)]),
    "RegisterEventSourceW": (_HANDLE, [_TEXT, _TEXT]),
    "ReportEventW": (
        _BOOL,
        [_HANDLE, _WORD, _WORD, _DWORD, _POINTER, _WORD, _DWORD, _POINTER, _POINTER],
    ),
}
_library: "list[Any]" = []


def call(name: str, *arguments: "Any") -> "Any":
    """Calls a function of advapi32 that answers with a handle or a truth value. Raises OSError."""
    if not _library:
        _library.append(ctypes.WinDLL("advapi32", use_last_error=True))  # type: ignore[attr-defined]
    function = getattr(_library[0], name)
    function.restype, function.argtypes = _SIGNATURES[name]
    answer = function(*arguments)
    if not answer:
        number = ctypes.get_last_error()  # type: ignore[attr-defined]
        raise OSError(0, ctypes.FormatError(number).strip(), None, number)  # type: ignore[attr-defined]
    return answer
