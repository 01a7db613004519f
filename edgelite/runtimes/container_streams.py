"""Streams into a container of an engine: exec and attach over the connection that the engine hands over ("hijacks").

With a terminal the connection's bytes are its own in both directions; without one, output comes in frames that tell
standard output from standard error (engine_http.Frames), and input is raw. The API cannot end an exec, so what was started is
killed by its pid (container_inside.kill_exec).
"""

from edgelite.loop import Wait
from edgelite.loop import now as clock
from edgelite.runtimes import container_inside
from edgelite.runtimes.base import Ends, RuntimeFailure
from edgelite.runtimes.engine import EngineDown, EngineRefused
from edgelite.runtimes.engine_containers import POLL_S
from edgelite.runtimes.engine_http import BadAnswer, Frames, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from edgelite.runtimes.base import Send, Steps
    from edgelite.runtimes.container_record import Container
    from edgelite.runtimes.engine import Engine, Stream

BEGIN_S = 30.0
RESIZE_S = 5.0
STARTED_S = 10.0
STDOUT = 1


class Hijacked(Ends):
    """A connection handed over by the engine. path: whose terminal it is, for its size; tty: whether there is one."""

    def __init__(self, engine: "Engine", path: str, stream: "Stream", tty: bool, stdin: bool) -> None:
        self._engine = engine
        self._path = path
        self._stream = stream
        self._tty = tty
        self._stdin = stdin
        self._frames = Frames(raw=tty)

    def outputs(self, send: "Send") -> "list[tuple[int, Steps]]":
        return [(STDOUT, self._copy(send))]

    def _copy(self, send: "Send") -> "Steps":
        try:
            while True:
                data = yield from self._stream.read(None)
                if not data:
                    return
                for channel, part in self._frames.split(data):
                    if part:
                        yield from send(channel, part)
        except (EngineDown, EngineRefused, BadAnswer) as error:
            raise RuntimeFailure("StreamFailed", str(error)) from error

    def write(self, data: bytes) -> "Steps":
        if not self._stdin:
            return
        try:
            self._stdin = yield from self._stream.write(data)
        except EngineDown as error:
            raise RuntimeFailure("StreamFailed", str(error)) from error

    def end_input(self) -> "Steps":
        try:
            if self._stdin and self._tty:
                yield from self.write(b"\x04")  # a terminal has no end: it is typed
            elif self._stdin:
                self._stream.end_writing()
        except EngineDown as error:
            raise RuntimeFailure("StreamFailed", str(error)) from error
        self._stdin = False

    def resize(self, width: int, height: int) -> "Steps":
        if not self._tty:
            return
        query = [("h", str(height)), ("w", str(width))]
        try:
            yield from self._engine.call("POST", self._path + "/resize", query, None, RESIZE_S)
        except (EngineDown, EngineRefused):
            pass  # it has ended, or keeps its size: nothing that the stream should end for

    def abandon(self) -> "Steps | None":
        self._stream.close()
        return None


class Exec(Hijacked):
    """A command. `c`: its container."""

    def __init__(
        self, engine: "Engine", path: str, stream: "Stream", tty: bool, stdin: bool, c: "Container"
    ) -> None:
        Hijacked.__init__(self, engine, path, stream, tty, stdin)
        self._container = c
        self._ended = False

    def result(self, quiet: "Callable[[], bool]") -> "Generator[Wait, bool, int]":
        yield from super().result(quiet)
        looks = 0
        while True:
            found = yield from self._inspect()
            if not found.get("Running"):
                self._ended = True
                return int(found.get("ExitCode") or 0)
            # Its output has ended: most often its end is on the way.
            yield Wait(-1, 0, clock() + POLL_S[min(looks, len(POLL_S) - 1)])
            looks += 1

    def _inspect(self) -> "Generator[Wait, bool, dict[str, Any]]":
        try:
            found = yield from self._engine.call("GET", self._path + "/json")
        except (EngineDown, EngineRefused) as error:
            raise RuntimeFailure("StreamFailed", "how the command ended is not known: %s" % error) from error
        if not isinstance(found, dict):
            raise RuntimeFailure("StreamFailed", "the engine's description of the exec makes no sense")
        return found

    def abandon(self) -> "Steps | None":
        self._stream.close()
        return None if self._ended else self._kill()

    def _kill(self) -> "Steps":
        """A command of which the engine has not said its pid yet is waited for."""
        until = clock() + STARTED_S
        try:
            while True:
                found = yield from self._inspect()
                pid = int(found.get("Pid") or 0)
                if pid or not found.get("Running") or clock() >= until:
                    break
                yield Wait(-1, 0, clock() + POLL_S[1])
            if found.get("Running"):
                yield from container_inside.kill_exec(self._engine, self._container, pid)
        except (RuntimeFailure, EngineDown):
            return  # the engine has gone, or knows nothing of it: then it ends with its container


def open_exec(
    engine: "Engine",
    c: "Container",
    argv: "list[str]",
    stdin: bool,
    outputs: "tuple[bool, bool]",
    tty: bool,
) -> "Generator[Wait, bool, Ends]":
    """`Runtime.open_exec` for a container that runs. Raises RuntimeFailure."""
    body = {
        "AttachStdin": stdin,
        "AttachStdout": outputs[0],
        "AttachStderr": outputs[1],
        "Tty": tty,
        "Cmd": argv,
    }
    try:
        made = yield from engine.call("POST", "/containers/%s/exec" % c.id, None, body)
        path = "/exec/%s" % quote(str((made or {}).get("Id")))
        stream = yield from _hijack(engine, path + "/start", [], {"Detach": False, "Tty": tty})
    except (EngineDown, EngineRefused) as error:
        text = "cannot run %s in container %s: %s" % (argv[0], c.name, error)
        raise RuntimeFailure("ExecFailed", text[:1024]) from error
    return Exec(engine, path, stream, tty, stdin, c)


def open_attach(engine: "Engine", c: "Container", stdin: bool) -> "Generator[Wait, bool, Ends]":
    """`Runtime.open_attach` for a container that runs. Raises RuntimeFailure."""
    path = "/containers/%s" % c.id
    wanted = ["stream", "stdout", "stderr"] + (["stdin"] if stdin else [])
    try:
        stream = yield from _hijack(engine, path + "/attach", [(name, "1") for name in wanted], None)
    except (EngineDown, EngineRefused) as error:
        raise RuntimeFailure("AttachFailed", "cannot attach to container %s: %s" % (c.name, error)) from error
    return Hijacked(engine, path, stream, c.tty, stdin)


def _hijack(
    engine: "Engine", path: str, query: "list[tuple[str, str]]", body: "dict[str, Any] | None"
) -> "Generator[Wait, bool, Stream]":
    """Raises EngineDown, EngineRefused."""
    deadline = clock() + BEGIN_S
    stream = yield from engine.open("POST", path, query, body, deadline)
    try:
        yield from stream.begun(deadline)
    except BaseException:
        stream.close()
        raise
    return stream
