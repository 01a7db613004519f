"""Runs a runtime on a real loop with real processes, as root and as an ordinary user.

A test is a function that takes a `Bench`. `as_user` runs it in a forked child that has become user 65534 for good; what it
raises comes back with its traceback.
"""

import ctypes
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator
from typing import Any

from edgelite.loop import Loop, Task, Wait, now
from edgelite.runtimes.base import Launch, Mount, State, Status
from edgelite.runtimes.process import Config, Host, ProcessRuntime
from edgelite.runtimes.process_cgroups import Cgroups

DEADLINE_S = 30.0
NOBODY = 65534
BOOT = "boot-1"


class MemoryState(State):
    """A dict: what a journal would hold."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.fail_after: int | None = None  # puts until the disk is full
        self.offered: list[bytes] = []  # what was to be put, also when it failed

    def put(self, key: str, value: bytes) -> None:
        self.offered.append(value)
        if self.fail_after is not None:
            if self.fail_after == 0:
                raise OSError(28, "No space left on device")
            self.fail_after -= 1
        self.values[key] = value

    def delete(self, key: str) -> None:
        self.values.pop(key, None)

    def items(self) -> list[tuple[str, bytes]]:
        return list(self.values.items())


class Sink:
    """Takes log bytes; raises BrokenPipeError after `most` bytes, as a reader that has gone."""

    def __init__(self, most: int | None = None) -> None:
        self.data = bytearray()
        self.most = most

    def write(self, data: bytes) -> Generator[Wait, bool, None]:
        self.data += data
        if self.most is not None and len(self.data) > self.most:
            raise BrokenPipeError("the reader has gone")
        return
        yield Wait(-1, 0, None)


class Bench:
    """One node's runtime with its state and directories, and a loop to run its generators."""

    def __init__(self, root: str, **config: Any) -> None:
        self.root = root
        self.data_dir = os.path.join(root, "data")
        os.makedirs(self.data_dir, mode=0o700, exist_ok=True)
        self.state = MemoryState()
        self.config = Config(**config)
        self.loop = Loop()
        self.boot = BOOT
        self.host: dict[str, Any] = {}
        self.runtime = self._runtime()
        self.pods: set[str] = set()

    def _runtime(self) -> ProcessRuntime:
        host = Host(python=python_for_all(), **self.host)
        return ProcessRuntime(self.state, self.data_dir, self.boot, self.config, host)

    def restart(self, **host: Any) -> list[Status]:
        """The agent dies and starts again, and finds what there is."""
        self.runtime.close()
        self.loop = Loop()
        self.host.update(host)
        self.runtime = self._runtime()
        return self.run(self.runtime.recover())  # type: ignore[no-any-return]

    def run(self, generator: Generator[Wait, bool, Any]) -> Any:
        task = self.loop.spawn(generator, "test")
        return self.finish(task)

    def spawn(self, generator: Generator[Wait, bool, Any]) -> Task:
        return self.loop.spawn(generator, "test")

    def finish(self, task: Task) -> Any:
        limit = now() + DEADLINE_S
        while not task.done:
            if now() > limit:
                raise AssertionError(f"not done within {DEADLINE_S} s")
            self.loop._stopping = False
            self.loop.turn(0.2)
        if task.error is not None:
            raise task.error
        return task.result

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Turns the loop until the condition holds."""
        limit = now() + DEADLINE_S
        while True:
            found = condition()
            if found:
                return found
            if now() > limit:
                raise AssertionError(f"{what}: not within {DEADLINE_S} s")
            self.loop.turn(0.02)
            time.sleep(0.005)  # a step of waiting for the condition above

    def launch(
        self,
        command: list[str],
        uid: str = "u1",
        name: str = "main",
        attempt: int = 0,
        env: list[tuple[str, str]] | None = None,
        mounts: list[Mount] | None = None,
        spec: dict[str, Any] | None = None,
        **container: Any,
    ) -> Launch:
        entry = {"name": name, "image": "none", "command": command, **container}
        pod = {"kind": "Pod", "ns": "default", "name": "p-" + uid, "uid": uid}
        pod["spec"] = {"containers": [entry], **(spec or {})}  # type: ignore[assignment]
        pod_dir = os.path.join(self.data_dir, "pods", uid)
        os.makedirs(pod_dir, mode=0o700, exist_ok=True)
        self.pods.add(uid)
        return Launch(pod, entry, attempt, command, [], env or [], mounts or [], pod_dir, {})

    def start(self, command: list[str], **options: Any) -> Status:
        return self.run(self.runtime.start(self.launch(command, **options)))  # type: ignore[no-any-return]

    def sh(self, script: str, **options: Any) -> Status:
        return self.start(["/bin/sh", "-c", script], **options)

    def sh_that_is_killed(self) -> None:
        """Starts a container whose main process is killed by somebody else than the runtime."""
        self.sh("kill -KILL $$")

    def ended(self, uid: str = "u1", name: str = "main") -> Status:
        """Waits for the end of a container as `changes` tells it."""
        limit = now() + DEADLINE_S
        while now() < limit:
            for status in self.run(self.runtime.changes(limit)):
                if (status.uid, status.container) == (uid, name):
                    return status  # type: ignore[no-any-return]
        raise AssertionError(f"{uid}/{name} did not end within {DEADLINE_S} s")

    def log(self, uid: str = "u1", name: str = "main", **options: Any) -> str:
        sink = Sink()
        self.run(self.runtime.logs(uid, name, options, sink))
        return sink.data.decode()

    def log_has(self, text: str, **options: Any) -> str:
        """Waits until the log holds the text."""

        def look() -> str:
            found = self.log(**options)
            return found if text in found else ""

        return str(self.until(look, f"log with {text!r}"))

    def volume(self, name: str, files: dict[str, str]) -> str:
        """A directory as the agent's volumes make them, readable for everybody once one is inside."""
        path = os.path.join(self.data_dir, "volumes", name)
        os.makedirs(path)
        os.chmod(path, 0o777)
        for file, text in files.items():
            with open(os.path.join(path, file), "w") as f:
                f.write(text)
        return path

    def close(self) -> None:
        """Stops and removes everything."""
        for uid in self.pods:
            self.run(self.runtime.remove(uid))
        self.runtime.close()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            data = f.read()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return data[data.rindex(b")") + 2 : data.rindex(b")") + 3] not in b"ZX"


def no_cgroups() -> Cgroups:
    """As on a machine whose cgroups the agent may not write to."""
    return Cgroups("none", mounts="/dev/null", own="/dev/null")


def python_for_all() -> str:
    """An interpreter that every user may run: the launcher's, when the agent is an ordinary user."""
    candidates = [os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"]
    for path in candidates:
        if os.path.exists(path) and _open_to_all(path):
            return path
    raise AssertionError(f"none of {candidates} may be run by every user: install Debian's python3")


def _open_to_all(path: str) -> bool:
    while path != "/":
        if not os.stat(path).st_mode & 0o001:
            return False
        path = os.path.dirname(path)
    return True


def as_user(test: Callable[[str], None]) -> None:
    """Runs `test(directory)` in a child that has dropped to an ordinary user; needs root. The directory is that user's, and
    not below pytest's, which other sessions of pytest close. Raises AssertionError with what the test raised."""
    with tempfile.TemporaryDirectory(prefix="edgelite-", dir="/tmp") as directory:
        os.chown(directory, NOBODY, NOBODY)
        _as_user(lambda: test(directory))


def _as_user(test: Callable[[], None]) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        text = b""
        try:
            signal.alarm(120)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            # After an exec it would be so; without, /proc/self still belongs to root.
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
            test()
        except BaseException:
            text = traceback.format_exc().encode()
        finally:
            os.write(writer, text[-60000:])
            os._exit(1 if text else 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as f:
        text = f.read()
    code = os.waitpid(pid, 0)[1]
    if code:
        raise AssertionError(f"as an ordinary user (wait status {code}):\n" + text.decode())
