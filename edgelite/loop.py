"""A poll loop of generator tasks: what the agent uses instead of asyncio.

A task is a generator. It yields what it waits for and is resumed with True when that happened, or False when
the deadline passed first:

    ready = yield Wait(fd, POLLIN, deadline)   # a descriptor
    yield Wait(-1, 0, deadline)                # just time
Sub-tasks compose with `yield from`; `Loop.wake` resumes a waiting task from another one. Deadlines are absolute seconds on `Loop.now()` (CLOCK_BOOTTIME where there
is one, so that a suspended machine does not stretch them); None waits for ever.

Invariant: a task never blocks; whatever may block is a descriptor it waits for. An exception that leaves a task
is handed to `on_crash`, which by default stops the loop: nothing fails silently.
"""

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

# Windows has no poll; `winloop` takes its place there, with Linux's numbers.
POLLIN: int = getattr(select, "POLLIN", 1)
POLLOUT: int = getattr(select, "POLLOUT", 4)
BROKEN: int = getattr(select, "POLLERR", 8) | getattr(select, "POLLHUP", 16) | getattr(select, "POLLNVAL", 32)
TASKS_MAX = 4096


class Wait:
    """What a task yields: a descriptor with the events it wants (fd -1 for none), and a deadline."""

    __slots__ = ("deadline", "events", "fd")

    def __init__(self, fd: int, events: int, deadline: "float | None") -> None:
        self.fd = fd
        self.events = events
        self.deadline = deadline


class Cancelled(Exception):
    """Thrown into a task that `Loop.cancel` ends; its `finally` blocks run, and it may not wait any more."""


class Task:
    """A running generator. `done` is True once it has ended; `result` is what it returned."""

    __slots__ = ("done", "error", "gen", "name", "result", "wait")

    def __init__(self, gen: "Generator[Wait, bool, Any]", name: str) -> None:
        self.gen = gen
        self.name = name
        self.wait: "Wait | None" = None
        self.done = False
        self.result: "Any" = None
        self.error: "BaseException | None" = None


class Wakeup:
    """Wakes a task: a descriptor to wait for, which `ring` makes readable. Made by `wakeup`."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        return self._reader

    def signals(self) -> int:
        """A descriptor for signal.set_wakeup_fd where a signal does not end the loop's wait, else -1."""
        return -1

    def ring(self) -> None:
        """Safe from signal handlers and other threads."""
        try:
            os.write(self._writer, b".")
        except OSError:
            pass  # the pipe is full: it wakes anyway

    def drain(self) -> None:
        """Takes back all rings so far."""
        try:
            os.read(self._reader, 4096)
        except OSError:
            pass  # there was none

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


def wakeup() -> Wakeup:
    """A new one, as this system can wait for it."""
    if hasattr(select, "poll"):
        return Wakeup()
    from edgelite import winloop

    found: "Any" = winloop.Wakeup()
    return found  # type: ignore[no-any-return]


def _poller() -> "Any":
    if hasattr(select, "poll"):
        return select.poll()
    from edgelite import winloop

    return winloop.Poll()


class Loop:
    """Runs tasks until `stop`. Bound: TASKS_MAX tasks; `spawn` raises RuntimeError above it."""

    def __init__(
        self,
        on_crash: "Callable[[Task, BaseException], None] | None" = None,
        on_interrupt: "Callable[[], None] | None" = None,
    ) -> None:
        self._on_interrupt = on_interrupt
        self._tasks: "list[Task]" = []
        self._stopping = False
        self._on_crash = on_crash
        self._crash: "BaseException | None" = None
        self._woken: "list[Task]" = []
        self.current: "Task | None" = None  # the task whose code runs just now
        self._wakeup = wakeup()

    def now(self) -> float:
        """Seconds on the clock that deadlines use."""
        return now()

    def spawn(self, gen: "Generator[Wait, bool, Any]", name: str) -> Task:
        """Starts a generator as a task; its first step runs in the next turn of the loop."""
        if len(self._tasks) >= TASKS_MAX:
            raise RuntimeError("more than %d tasks; cannot start %s" % (TASKS_MAX, name))
        task = Task(gen, name)
        self._tasks.append(task)
        return task

    def cancel(self, task: "Task | None") -> None:
        """Ends a task now: Cancelled is thrown into it."""
        if task is None or task.done:
            return
        if task is self.current:
            raise RuntimeError("task %s cannot cancel itself; it returns instead" % task.name)
        task.done = True
        try:
            task.gen.throw(Cancelled())
        except (Cancelled, StopIteration):
            pass
        finally:
            task.gen.close()

    def wake(self, task: "Task | None") -> None:
        """Resumes a waiting task with True in the next turn, whatever it waits for. The task has to look again at
        what it wants: a wake-up that comes too early or twice is harmless."""
        if task is not None and not task.done and task.wait is not None and task not in self._woken:
            self._woken.append(task)

    def close(self) -> None:
        """Ends every task, newest first, and closes the loop's own descriptors."""
        for task in reversed(self._tasks):
            self.cancel(task)
        self._tasks = []
        self._wakeup.close()

    def stop(self) -> None:
        """Makes `run` return after this turn; safe to call from a signal handler."""
        self._stopping = True
        self._wakeup.ring()

    def interrupt(self) -> None:
        """Makes the loop call `on_interrupt` in its next turn: the way from a signal handler, which may touch
        nothing else of the loop."""
        self._wakeup.ring()

    def signals(self) -> int:
        """See `Wakeup.signals`."""
        return self._wakeup.signals()

    @property
    def stopping(self) -> bool:
        return self._stopping

    def run(self) -> None:
        """Runs until `stop` is called, or a task crashed and nobody took care of it (its exception is raised)."""
        while not self._stopping:
            self.turn(None)
        if self._crash is not None:
            raise self._crash

    def turn(self, timeout_s: "float | None") -> None:
        """One turn: waits at most `timeout_s` (None: until something is due) and resumes what is ready."""
        fresh = [t for t in self._tasks if t.wait is None and not t.done]
        if not fresh:
            self._poll(timeout_s)
        for task in fresh:
            self._step(task, True)
        self._tasks = [t for t in self._tasks if not t.done]

    def _poll(self, timeout_s: "float | None") -> None:
        poller = _poller()
        wake = self._wakeup.fileno()
        poller.register(wake, POLLIN)
        by_fd: "dict[int, int]" = {}
        nearest: "float | None" = None
        for task in self._tasks:
            wait = task.wait
            if wait is None or task.done:
                continue
            if wait.fd >= 0:
                by_fd[wait.fd] = by_fd.get(wait.fd, 0) | wait.events
            if wait.deadline is not None and (nearest is None or wait.deadline < nearest):
                nearest = wait.deadline
        for fd, events in by_fd.items():
            poller.register(fd, events)
        if nearest is not None:
            left = max(0.0, nearest - now())
            timeout_s = left if timeout_s is None else min(left, timeout_s)
        woken, self._woken = self._woken, []
        ready = dict(poller.poll(0 if woken else _milliseconds(timeout_s)))
        if wake in ready:
            self._wakeup.drain()
            if self._on_interrupt is not None:
                self._on_interrupt()
        at = now()
        for task in list(self._tasks):
            wait = task.wait
            if wait is None or task.done:
                continue
            got = ready.get(wait.fd, 0) if wait.fd >= 0 else 0
            if task in woken or got & (wait.events | BROKEN):
                self._step(task, True)
            elif wait.deadline is not None and wait.deadline <= at:
                self._step(task, False)

    def _step(self, task: Task, ready: bool) -> None:
        if task.done:
            return
        self.current = task
        try:
            started = task.wait is not None
            task.wait = task.gen.send(ready) if started else next(task.gen)
        except StopIteration as end:
            task.done = True
            task.result = end.value
        except Exception as error:
            task.done = True
            task.error = error
            if self._on_crash is not None:
                self._on_crash(task, error)
            else:
                self._crash = error
                self._stopping = True
        finally:
            self.current = None


def _milliseconds(timeout_s: "float | None") -> "int | None":
    """Rounded up: waking a hair too early would spin until the deadline. Bounded by what poll takes."""
    return None if timeout_s is None else min(int(timeout_s * 1000) + 1, 3600000)


def now() -> float:
    """Seconds on CLOCK_BOOTTIME where there is one, else a monotonic clock."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return time.monotonic()


def sleep(seconds: float) -> "Generator[Wait, bool, None]":
    """`yield from sleep(2)` waits that long."""
    yield Wait(-1, 0, now() + seconds)
