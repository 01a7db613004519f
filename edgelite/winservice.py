"""The agent as a Windows service: installing it, and the entry that the service manager starts. No third-party wrapper.

Started again after a crash and after an exit code other than 0 (RESTART_S apart); at boot, after what is more urgent; it logs to
the Application event log under the source edgelite. The agent runs on the thread that the service manager's dispatcher makes.
"""

import ctypes
import json
import os
import subprocess
import sys
import time

from edgelite import winapi
from edgelite.service import NAME, ServiceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ENTRY = "--service"
"""`edgelite --service DATA_DIR` is what the service manager starts; see `edgelite.cli`."""
RESTART_S = (2, 10, 60)
RESET_S = 3600
STOP_S = 30.0
WAIT_S = 0.1
SOURCES = "SYSTEM\\CurrentControlSet\\Services\\EventLog\\Application\\"
MESSAGES = "%SystemRoot%\\System32\\EventCreate.exe"
"""Its messages 1 to 1000 are nothing but the text that is given."""
EVENT = 100
EVENT_TYPES = {"error": 1, "warning": 2}
INFORMATION = 4
TEXT_MAX = 8000


class Handles:
    """Closes what was opened, in a `with`."""

    def __init__(self) -> None:
        self._open: "list[Any]" = []

    def __enter__(self) -> "Handles":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in reversed(self._open):
            winapi.call("CloseServiceHandle", handle)

    def manager(self, rights: int) -> "Any":
        self._open.append(winapi.call("OpenSCManagerW", None, None, rights))
        return self._open[-1]

    def service(self, manager: "Any", rights: int) -> "Any":
        """None where it is not installed."""
        try:
            self._open.append(winapi.call("OpenServiceW", manager, NAME, rights))
        except OSError as error:
            if _number(error) == winapi.DOES_NOT_EXIST:
                return None
            raise
        return self._open[-1]

    def keep(self, handle: "Any") -> "Any":
        self._open.append(handle)
        return handle


def command_line(program: "list[str]", data_dir: str) -> str:
    """What the service manager starts, quoted as Windows programs split it."""
    return subprocess.list2cmdline(program + [ENTRY, data_dir])


def install(program: "list[str]", data_dir: str, user: "str | None") -> str:
    """See `service.install`; user: None for LocalSystem. Raises ServiceError, OSError."""
    line = command_line(program, data_dir)
    account = user or None
    with Handles() as handles:
        manager = handles.manager(winapi.MANAGER_ALL)
        service = handles.service(manager, winapi.SERVICE_ALL)
        kind = (winapi.OWN_PROCESS, winapi.AUTO_START, winapi.ERROR_NORMAL)
        if service is None:
            title = "CloudHub edgelite"
            who = (None, None, None, account, None)
            made = winapi.call("CreateServiceW", manager, NAME, title, winapi.SERVICE_ALL, *kind, line, *who)
            service = handles.keep(made)
        else:
            winapi.call("ChangeServiceConfigW", service, *kind, line, None, None, None, account, None, None)
        _configure(service)
        _register_source()
        _stop(service)
        winapi.call("StartServiceW", service, 0, None)
        state = _wait(service, (winapi.RUNNING, winapi.STOPPED))
    if state != winapi.RUNNING:
        raise ServiceError("it is installed but has not started: see the Application log in the Event Viewer")
    return "the service %s runs, and starts at every boot; its log: Event Viewer, Application, source %s" % (
        NAME,
        NAME,
    )


def remove() -> str:
    with Handles() as handles:
        service = handles.service(handles.manager(winapi.MANAGER_ALL), winapi.SERVICE_ALL)
        if service is None:
            return "there is no service %s" % NAME
        _stop(service)
        winapi.call("DeleteService", service)
    return "the service %s is removed; the data directory stays" % NAME


def status() -> "tuple[bool, str]":
    """(whether it runs, what to show)."""
    with Handles() as handles:
        service = handles.service(handles.manager(winapi.MANAGER_CONNECT), winapi.QUERY_STATUS)
        if service is None:
            return False, "not installed: there is no service %s" % NAME
        found = _query(service)
    text = winapi.STATES.get(found.state, "in state %d" % found.state)
    if found.state == winapi.STOPPED and found.exit_code:
        code = found.specific_code if found.exit_code == winapi.SPECIFIC_ERROR else found.exit_code
        text += ", last exit code %d" % code
    return found.state == winapi.RUNNING, text


# Installing


def _configure(service: "Any") -> None:
    described = winapi.Text("Runs this node's workloads and keeps it connected to its CloudHub hub.")
    actions = (winapi.Action * len(RESTART_S))(
        *[winapi.Action(winapi.ACTION_RESTART, 1000 * seconds) for seconds in RESTART_S]
    )
    failure = winapi.FailureActions(RESET_S, None, None, len(actions), actions)
    for level, info in (
        (winapi.CONFIG_DESCRIPTION, described),
        (winapi.CONFIG_FAILURE_ACTIONS, failure),
        (winapi.CONFIG_FAILURE_FLAG, winapi.Flag(True)),
        (winapi.CONFIG_DELAYED_START, winapi.Flag(True)),
    ):
        try:
            winapi.call("ChangeServiceConfig2W", service, level, ctypes.byref(info))
        except OSError as error:
            # Before Windows Vista, and in wine, there is no delayed start, and a restart only after a crash.
            if _number(error) != winapi.INVALID_LEVEL or level == winapi.CONFIG_FAILURE_ACTIONS:
                raise


def _register_source() -> None:
    import winreg

    registry: "Any" = winreg
    with registry.CreateKey(registry.HKEY_LOCAL_MACHINE, SOURCES + NAME) as key:
        registry.SetValueEx(key, "EventMessageFile", 0, registry.REG_EXPAND_SZ, MESSAGES)
        registry.SetValueEx(key, "TypesSupported", 0, registry.REG_DWORD, 7)


def _stop(service: "Any") -> None:
    try:
        winapi.call("ControlService", service, winapi.CONTROL_STOP, ctypes.byref(winapi.ServiceStatus()))
    except OSError as error:
        if _number(error) != winapi.NOT_ACTIVE:
            raise
    if _wait(service, (winapi.STOPPED,)) != winapi.STOPPED:
        raise ServiceError("the service has not stopped within %g s" % STOP_S)


def _wait(service: "Any", states: "tuple[int, ...]") -> int:
    """The state, one of these unless STOP_S have passed."""
    until = time.monotonic() + STOP_S
    while True:
        state = int(_query(service).state)
        if state in states or time.monotonic() > until:
            return state
        time.sleep(WAIT_S)


def _query(service: "Any") -> winapi.ServiceStatus:
    found = winapi.ServiceStatus()
    winapi.call("QueryServiceStatus", service, ctypes.byref(found))
    return found


def _number(error: OSError) -> int:
    return int(getattr(error, "winerror", 0) or 0)


# The service itself


class EventLog:
    """A text stream for `console.Log`: each line becomes an event. Raises OSError."""

    def __init__(self) -> None:
        self._source = winapi.call("RegisterEventSourceW", None, NAME)

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> None:
        level = "info"
        try:
            entry = json.loads(text)
            level, said = entry.pop("level"), entry.pop("message")
            del entry["time"]
            text = said + "".join(["\r\n%s: %s" % item for item in entry.items()])
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # not a line of the log: shown as it is
        strings = (ctypes.c_wchar_p * 1)(text[:TEXT_MAX])
        kind = EVENT_TYPES.get(level, INFORMATION)
        winapi.call("ReportEventW", self._source, kind, 0, EVENT, None, 1, 0, strings, None)

    def flush(self) -> None:
        """Nothing is buffered."""


class Service:
    """run(stream, control): the agent from start to end; its exit code. It hands what stops the agent by `stop()` to `control` once that
    is possible."""

    def __init__(self, run: "Callable[[Any, Callable[[Any], None]], int]") -> None:
        self._run = run
        self._agent: "Any" = None
        self._stopping = False
        self._status: "Any" = None
        self._callbacks: "Any" = (winapi.SERVICE_MAIN(self._main), winapi.HANDLER(self._handle))

    def serve(self) -> int:
        """Returns when the service has ended. Raises OSError: 1063 where no service manager started this process."""
        table = (winapi.TableEntry * 2)()
        table[0].name, table[0].main = NAME, self._callbacks[0]
        winapi.call("StartServiceCtrlDispatcherW", table)
        return 0

    def _main(self, count: int, arguments: "Any") -> None:
        self._status = winapi.call("RegisterServiceCtrlHandlerExW", NAME, self._callbacks[1], None)
        self._tell(winapi.START_PENDING)
        code = 1
        try:
            stream = EventLog()
            self._tell(winapi.RUNNING)
            code = self._guarded(stream)
        finally:
            self._tell(winapi.STOPPED, code)

    def _guarded(self, stream: EventLog) -> int:
        """What leaves the agent would leave a callback of Windows, where nobody sees it."""
        import traceback

        try:
            return self._run(stream, self._control)
        except Exception:
            stream.write(json.dumps({"time": "", "level": "error", "message": traceback.format_exc()}))
            return 1

    def _control(self, agent: "Any") -> None:
        self._agent = agent
        if self._stopping:
            agent.stop()

    def _handle(self, control: int, kind: int, data: "Any", context: "Any") -> int:
        """On the dispatcher's thread; `stop` may be called from anywhere."""
        if control in (winapi.CONTROL_STOP, winapi.CONTROL_SHUTDOWN):
            self._stopping = True
            self._tell(winapi.STOP_PENDING)
            if self._agent is not None:
                self._agent.stop()
            return winapi.NO_ERROR
        return winapi.NO_ERROR if control == winapi.CONTROL_INTERROGATE else winapi.CALL_NOT_IMPLEMENTED

    def _tell(self, state: int, code: int = 0) -> None:
        accepted = winapi.ACCEPT_STOP | winapi.ACCEPT_SHUTDOWN if state == winapi.RUNNING else 0
        status = winapi.ServiceStatus(
            winapi.OWN_PROCESS,
            state,
            accepted,
            winapi.SPECIFIC_ERROR if code else winapi.NO_ERROR,
            code,
            0,
            int(1000 * STOP_S) if state in (winapi.START_PENDING, winapi.STOP_PENDING) else 0,
        )
        winapi.call("SetServiceStatus", self._status, ctypes.byref(status))


def serve(data_dir: str) -> int:
    """`edgelite --service DATA_DIR`: the agent of this directory as the service manager wants it; the exit code."""
    from edgelite.config import load_config
    from edgelite.winlauncher import Launcher

    def run(stream: "Any", control: "Callable[[Any], None]") -> int:
        sys.stdout = sys.stderr = stream  # a service has neither
        os.chdir(data_dir)
        launcher = Launcher(data_dir, load_config(data_dir).log_level, stream=stream)
        control(launcher)
        return launcher.run()

    return Service(run).serve()
