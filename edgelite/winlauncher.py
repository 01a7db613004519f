"""The agent's process on Windows, where no process becomes another one: it runs the installed release itself, and one that was fetched
into a slot as its child, for as long as that one runs.

The child is in a job that ends with this process: a trial that hangs does not outlive who waits for it, and whoever ends the agent has
ended all of it. What the child starts is not in that job, since workloads outlive an agent. Told to stop, by the service manager, Ctrl-C
or Ctrl-Break, this process asks the child as `edgelite stop` does, and ends it after STOP_S.
"""

import ctypes
import os
import sys
import time

from edgelite import kernel32, winhost
from edgelite.commands import run_arguments
from edgelite.exits import DONE, FAILED, RESTART
from edgelite.launcher import SLOT, launch
from edgelite.runtimes.windows_names import command_line, environment_block, exit_status
from edgelite.updatestore import UpdateFiles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STOP_S = 20.0
"""Less than the 30 s that the service manager is told."""
ASK_AGAIN_MS = 200
KILL_MS = 30_000
KILLED = 137
CTRL_C_EXIT = 0xC000013A
LINE_BYTES_MAX = 8000
PIPE_BYTES = 64 << 10
_HANDLER: "Any" = getattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE)(ctypes.c_int32, ctypes.c_uint32)


class SlotFiles(UpdateFiles):
    """A scanner of viruses may have a file open for a moment after it was written."""

    def replace(self, source: str, target: str) -> None:
        from edgelite.winfiles import replace

        replace(source, target)


class Launcher:
    """Runs the agent of a directory, whichever release of it should run. level, log_dir: as `resident.run_agent` has them.

    stream: a text stream that gets what the agent says, line by line, of a service, which has no output and no console of its own; None:
    it says it where this process does, and Ctrl-C stops it. Raises OSError."""

    def __init__(self, data_dir: str, level: str, log_dir: str = "", stream: "Any" = None) -> None:
        self._data_dir = data_dir
        self._level = level
        self._log_dir = log_dir
        self._stream = stream
        self._agent: "Any" = None
        self._stopping = False
        self._stop = int(kernel32.call("CreateEventW", None, True, False, None))
        # Kept: Windows calls it for as long as it is told to.
        self._handler = _HANDLER(self._heard)

    def run(self) -> int:
        """From the start of the agent to its end, whatever releases follow one another meanwhile; the exit code."""
        while True:
            code = self._slot()
            if code is None and not self._stopping:
                code = self._base()
            if self._stopping and code in (None, RESTART):
                return DONE
            if code != RESTART:
                return FAILED if code is None else code

    def stop(self) -> None:
        """Has `run` end; may be called from anywhere."""
        self._stopping = True
        kernel32.call("SetEvent", self._stop)
        agent = self._agent
        if agent is not None:
            agent.stop()

    def _slot(self) -> "int | None":
        """Runs what is in a slot; None: the installed release should run."""
        words = run_arguments(self._data_dir, self._level, self._log_dir)
        return launch(self._data_dir, words, SlotFiles, self._child)

    def _base(self) -> int:
        """Runs the installed release, in this process."""
        from edgelite import resident

        if self._stream is None:
            return resident.resident(self._data_dir, "run", self._level, self._log_dir)
        try:
            return resident.run_agent(
                self._data_dir, "run", self._level, self._log_dir, self._stream, self._control
            )
        finally:
            self._agent = None

    def _control(self, agent: "Any") -> None:
        self._agent = agent
        if self._stopping:
            agent.stop()

    def _heard(self, event: int) -> bool:
        """A console's event, on a thread of Windows' own. What else there is (it closes) ends both processes."""
        if event in (kernel32.CTRL_C, kernel32.CTRL_BREAK):
            self.stop()
            return True
        return False

    # A release of a slot

    def _child(self, command: "list[str]", slot: str, deadline_s: int) -> "tuple[int, bool]":
        """See `launcher.launch`."""
        if self._stopping:
            return DONE, False
        # Not the launcher of a virtual environment, which starts the interpreter as a child that is not in the job.
        python = getattr(sys, "_base_executable", "") or sys.executable
        kept: "list[int]" = []
        try:
            job = int(kernel32.call("CreateJobObjectW", None, None))
            kept.append(job)
            away = kernel32.LIMIT_BREAKAWAY | kernel32.LIMIT_SILENT_BREAKAWAY
            kernel32.limit_job(job, 0, 0, away)
            process, copied = self._start(job, [python] + command[1:], slot)
            kept.append(process)
            if self._stream is None:
                kernel32.call("SetConsoleCtrlHandler", self._handler, True)
            try:
                return self._wait(job, process, deadline_s)
            finally:
                if self._stream is None:
                    kernel32.call("SetConsoleCtrlHandler", self._handler, False)
                copied.acquire(timeout=STOP_S)
        except OSError as error:
            sys.stderr.write("edgelite: cannot run %s: %s\n" % (command[-1], error))
            return FAILED, False
        finally:
            kernel32.close(*kept)

    def _start(self, job: int, argv: "list[str]", slot: str) -> "tuple[int, Any]":
        """(the child's process handle, a lock that is free once all of its output was copied). Raises OSError."""
        import _thread
        import msvcrt

        system: "Any" = msvcrt
        copied = _thread.allocate_lock()
        nothing = kernel32.open_file("NUL", kernel32.GENERIC_READ | kernel32.GENERIC_WRITE, False)
        given, flags = [nothing], kernel32.SUSPENDED
        try:
            streams = [nothing, nothing, nothing]
            if self._stream is None:
                for fd in range(3):
                    try:
                        streams[fd] = int(system.get_osfhandle(fd))
                    except OSError:
                        pass  # this process has none
            else:
                flags |= kernel32.NO_WINDOW
                reader, writer = kernel32.pipe(PIPE_BYTES)
                given.append(writer)
                streams[1] = streams[2] = writer
                copied.acquire()
                file = os.fdopen(system.open_osfhandle(reader, os.O_RDONLY), "rb")
                _thread.start_new_thread(self._copy, (file, copied))
            variables = [(name, value) for name, value in os.environ.items() if name and name[0] != "="]
            block = environment_block(variables + [(SLOT, slot)])
            process, thread, _ = kernel32.spawn(
                argv[0], command_line(argv), block, os.getcwd(), flags, (streams[0], streams[1], streams[2])
            )
            try:
                kernel32.call("AssignProcessToJobObject", job, process)
                kernel32.call("ResumeThread", thread)
            except OSError:
                kernel32.call("TerminateProcess", process, KILLED)
                kernel32.close(process)
                raise
            finally:
                kernel32.close(thread)
            return process, copied
        finally:
            kernel32.close(*given)

    def _copy(self, file: "Any", copied: "Any") -> None:
        """On a thread of its own, to the end of the child's output."""
        with file:
            while True:
                line = file.readline(LINE_BYTES_MAX)
                if not line:
                    break
                try:
                    self._stream.write(line.decode("utf-8", "replace"))
                except OSError:
                    continue  # a full event log; the agent's own log has it, and who writes must not wait
        copied.release()

    def _wait(self, job: int, process: int, deadline_s: int) -> "tuple[int, bool]":
        until = (ctypes.c_void_p * 2)(process, self._stop)
        milliseconds = deadline_s * 1000 or kernel32.FOREVER
        told = kernel32.call("WaitForMultipleObjects", 2, until, False, milliseconds)
        late = told == kernel32.WAIT_TIMEOUT
        if late or (told != kernel32.WAIT_OBJECT and not self._ask(process)):
            kernel32.call("TerminateJobObject", job, KILLED)
            kernel32.call("WaitForSingleObject", process, KILL_MS)
        code = kernel32.exit_code(process)
        if self._stopping and not late and code in (KILLED, CTRL_C_EXIT):
            return DONE, False  # somebody wanted that: no crash
        return exit_status(code)[0], late

    def _ask(self, process: int) -> bool:
        """Asks the agent to stop, again and again, since one that begins does not listen yet. Has it ended?"""
        until = time.monotonic() + STOP_S
        while time.monotonic() < until:
            try:
                winhost.tell(self._data_dir, winhost.STOP)
            except OSError as error:
                if kernel32.number(error) != kernel32.NOT_FOUND:
                    raise
            if kernel32.call("WaitForSingleObject", process, ASK_AGAIN_MS) == kernel32.WAIT_OBJECT:
                return True
        return False
