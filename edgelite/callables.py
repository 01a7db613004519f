"""Workloads that are functions of the firmware, in place of containers: for boards without processes. [pure]

A function is registered by name and is called with a `Task`: its arguments, its environment, its log, and whether it is to
end. What it returns decides: a generator is stepped by the agent's loop and yields the seconds until its next step (None:
the next turn); its return value, or that of a plain function, is the exit code (None is 0). An exception is exit code 1, its
traceback goes to the log.

Everything runs on the one loop: a step has to return soon. One that never does starves the loop, and the watchdog
(`edgelite.watchdog`) resets the board. Bounds: LOG_BYTES_MAX of log for each container, the oldest lines going first.
Runs on MicroPython.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from edgelite.twins import Twin, Twins

    Function = Callable[["Task"], Any]

LOG_BYTES_MAX = 4096
LINE_CHARS_MAX = 256
FUNCTIONS_MAX = 64
ERROR, KILLED = 1, 137
LINE_OVERHEAD = 16


class Functions:
    """The functions that workloads may name. The firmware registers them before the agent starts."""

    def __init__(self) -> None:
        self._functions: "dict[str, Function]" = {}

    def register(self, name: str, function: "Function") -> None:
        """Raises ValueError for a name that is taken, or no name."""
        if not name or name in self._functions or len(self._functions) >= FUNCTIONS_MAX:
            raise ValueError("%r cannot be registered: empty, taken, or more than %d" % (name, FUNCTIONS_MAX))
        self._functions[name] = function

    def get(self, name: str) -> "Function | None":
        return self._functions.get(name)

    def names(self) -> "list[str]":
        return sorted(self._functions)


class LogRing:
    """The last lines of a container's log, at most LOG_BYTES_MAX of them."""

    __slots__ = ("_bytes", "_lines", "dropped")

    def __init__(self) -> None:
        self._lines: "list[tuple[int, str]]" = []
        self._bytes = 0
        self.dropped = 0

    def write(self, text: str, wall_ms: int) -> None:
        """Adds the lines of a text, each cut at LINE_CHARS_MAX."""
        for line in text.rstrip("\n").split("\n"):
            line = line[:LINE_CHARS_MAX]
            self._lines.append((wall_ms, line))
            self._bytes += len(line) + LINE_OVERHEAD
        while self._bytes > LOG_BYTES_MAX and len(self._lines) > 1:
            self._bytes -= len(self._lines.pop(0)[1]) + LINE_OVERHEAD
            self.dropped += 1

    def lines(self, tail: "int | None" = None, since_ms: int = 0) -> "list[tuple[int, str]]":
        """(Unix milliseconds, line): the last `tail`, of those since a time."""
        found = [line for line in self._lines if line[0] >= since_ms]
        return found if tail is None else found[max(0, len(found) - tail) :]


class Task:
    """What a function is given. args: list of str; env: dict of str; devices: the node's twins of the pod's namespace (see
    `Devices`), None where there are none. `stopping` is True once it is to end."""

    __slots__ = ("_log", "_wall_ms", "args", "devices", "env", "stopping")

    def __init__(
        self,
        args: "list[str]",
        env: "dict[str, str]",
        log: LogRing,
        wall_ms: "Callable[[], int]",
        devices: "Devices | None" = None,
    ) -> None:
        self.args = args
        self.env = env
        self.devices = devices
        self.stopping = False
        self._log = log
        self._wall_ms = wall_ms

    def print(self, *values: object) -> None:
        """Writes a line to the log."""
        self._log.write(" ".join([str(value) for value in values]), self._wall_ms())


class Devices:
    """The devices of one namespace, for a function. report(namespace, name, values) raises `edgelite.twins.Refused`, and
    KeyError for a device that is not there; desired(namespace, name) raises KeyError."""

    __slots__ = ("_desired", "_namespace", "_report")

    def __init__(
        self,
        namespace: str,
        desired: "Callable[[str, str], dict[str, Any]]",
        report: "Callable[[str, str, dict[str, Any]], None]",
    ) -> None:
        self._namespace = namespace
        self._desired = desired
        self._report = report

    def desired(self, name: str) -> "dict[str, Any]":
        return self._desired(self._namespace, name)

    def report(self, name: str, values: "dict[str, Any]") -> None:
        self._report(self._namespace, name, values)


def devices_of(
    twins: "Twins", now: "Callable[[], float]", wall_ms: "Callable[[], int]"
) -> "Callable[[str], Devices]":
    """What functions see of the node's twins, by namespace."""

    def found(namespace: str, name: str) -> "Twin":
        twin = twins.get(namespace, name)
        if twin is None:
            raise KeyError("this board has no device %s in namespace %s" % (name, namespace))
        return twin

    def desired(namespace: str, name: str) -> "dict[str, Any]":
        return found(namespace, name).desired

    def report(namespace: str, name: str, values: "dict[str, Any]") -> None:
        found(namespace, name).report(values, now(), wall_ms())

    return lambda namespace: Devices(namespace, desired, report)


class Run:
    """One run of a function. `exit_code` is None while it runs; `message` says why it failed."""

    __slots__ = ("_function", "_generator", "_log", "_wall_ms", "due", "exit_code", "message", "task")

    def __init__(self, function: "Function", task: Task, log: LogRing, wall_ms: "Callable[[], int]") -> None:
        self.task = task
        self.exit_code: "int | None" = None
        self.message = ""
        self.due = 0.0
        self._function = function
        self._generator: "Any" = None
        self._log = log
        self._wall_ms = wall_ms

    def begin(self, now: float) -> None:
        """Calls the function; a generator takes its first step at once, so that one that cannot start says so here."""
        try:
            made = self._function(self.task)
        except Exception as error:
            self._failed(error)
            return
        except SystemExit as error:
            self._ended(error.args[0] if error.args else 0)
            return
        if not hasattr(made, "send"):
            self._ended(made)
            return
        self._generator = made
        self.step(now)

    def step(self, now: float) -> None:
        """Its next step, if it is due."""
        if self.exit_code is not None or now < self.due:
            return
        try:
            pause = next(self._generator)
        except StopIteration as end:
            self._ended(end.value)
        except SystemExit as error:
            self._ended(error.args[0] if error.args else 0)
        except Exception as error:
            self._failed(error)
        else:
            numeric = isinstance(pause, (int, float)) and not isinstance(pause, bool)
            self.due = now + max(0.0, float(pause)) if numeric else now

    def stop(self, now: float) -> None:
        """Asks it to end; it gets a step at once to notice."""
        self.task.stopping = True
        self.due = now

    def kill(self) -> None:
        """Ends it here and now: its generator is closed, so `finally` blocks run."""
        if self.exit_code is not None:
            return
        self.exit_code = KILLED
        try:
            self._generator.close()
        except Exception as error:  # it went on in spite of being closed, or failed on its way out
            self.message = describe(error)[-1]
        self._generator = None

    def _ended(self, value: object) -> None:
        self._generator = None
        if value is None or value is True or value is False:
            self.exit_code = 0 if value is not False else ERROR
        elif isinstance(value, int):
            self.exit_code = value & 0xFF
        else:
            self.exit_code = ERROR
            self.message = "it returned %r, which is no exit code" % (value,)

    def _failed(self, error: BaseException) -> None:
        self._generator = None
        self.exit_code = ERROR
        lines = describe(error)
        self.message = lines[-1][:LINE_CHARS_MAX]
        self._log.write("\n".join(lines), self._wall_ms())


def describe(error: BaseException) -> "list[str]":
    """An exception's traceback, in lines, on either Python."""
    if hasattr(sys, "print_exception"):  # MicroPython
        import io

        out = io.StringIO()
        sys.print_exception(error, out)
        text = out.getvalue()
    else:
        import traceback

        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return text.rstrip("\n").split("\n") or [repr(error)]
