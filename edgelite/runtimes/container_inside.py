"""Looking inside a container of an engine: exec and logs."""

import os
import time

from edgelite.loop import Wait
from edgelite.loop import now as clock
from edgelite.runtimes.base import RuntimeFailure
from edgelite.runtimes.engine import EngineDown, EngineRefused
from edgelite.runtimes.engine_containers import POLL_S
from edgelite.runtimes.engine_http import BadAnswer, Frames, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from edgelite.runtimes.base import LogSink
    from edgelite.runtimes.container_record import Container
    from edgelite.runtimes.engine import Engine

OUTPUT_BYTES = 10240


def run(
    engine: "Engine", c: "Container", argv: "list[str]", timeout_s: float
) -> "Generator[Wait, bool, tuple[int, bytes]]":
    """`Runtime.exec` for a container that runs."""
    deadline = clock() + timeout_s
    try:
        code, output = yield from _exec(engine, c, argv, deadline)
    except (EngineDown, EngineRefused, BadAnswer) as error:
        if clock() >= deadline:
            raise RuntimeFailure("Timeout", "%s: %s" % (argv[0], error)) from error
        text = "cannot run %s in container %s: %s" % (argv[0], c.name, error)
        raise RuntimeFailure("ExecFailed", text) from error
    if code is None:
        raise RuntimeFailure("Timeout", "%s did not end within %g s" % (argv[0], timeout_s))
    if code in (126, 127) and b"OCI runtime" in output:
        text = "cannot run %s in container %s: %s" % (argv[0], c.name, output.decode("utf-8", "replace"))
        raise RuntimeFailure("ExecFailed", text[:1024])
    return code, output


def _exec(
    engine: "Engine", c: "Container", argv: "list[str]", deadline: float
) -> "Generator[Wait, bool, tuple[int | None, bytes]]":
    """(exit code, output); None for the code when it did not end in time, and was killed."""
    body = {"AttachStdout": True, "AttachStderr": True, "Cmd": argv}
    made = yield from engine.call("POST", "/containers/%s/exec" % c.id, None, body)
    path = "/exec/%s" % quote(str((made or {}).get("Id")))
    output = bytearray()
    stream = yield from engine.open("POST", path + "/start", None, {"Detach": False, "Tty": False}, deadline)
    try:
        frames = Frames()
        while True:
            data = yield from stream.read(deadline)
            if not data:
                break
            output += frames.feed(data)[: max(0, OUTPUT_BYTES - len(output))]
    finally:
        stream.close()
    looks = 0
    while True:
        found = yield from engine.call("GET", path + "/json")
        if not isinstance(found, dict):
            raise BadAnswer("the engine's description of the exec makes no sense")
        if not found.get("Running"):
            return int(found.get("ExitCode") or 0), bytes(output)
        if data is None or clock() >= deadline:
            yield from kill_exec(engine, c, int(found.get("Pid") or 0))
            return None, bytes(output)
        # Its output has ended: most often its end is on the way.
        yield Wait(-1, 0, min(deadline, clock() + POLL_S[min(looks, len(POLL_S) - 1)]))
        looks += 1


def kill_exec(engine: "Engine", c: "Container", pid: int) -> "Generator[Wait, bool, None]":
    """The API cannot end an exec, so its session is killed from outside: its pid is the host's. It is ours to kill when it shares
    the container's pid namespace."""
    from edgelite.runtimes.process_inside import end_session  # seldom needed

    try:
        found = yield from engine.call("GET", "/containers/%s/json" % c.id)
        main = int(found["State"]["Pid"])
        if pid > 1 and os.readlink("/proc/%d/ns/pid" % pid) == os.readlink("/proc/%d/ns/pid" % main):
            end_session(pid, "/proc")
    except (OSError, KeyError, TypeError, EngineRefused):
        pass  # it has ended, or the engine is on another machine or user: then it runs on until its container ends


def logs(
    engine: "Engine", c: "Container", options: "dict[str, Any]", out: "LogSink"
) -> "Generator[Wait, bool, None]":
    """`Runtime.logs` of one attempt."""
    try:
        stream = yield from engine.open("GET", "/containers/%s/logs" % c.id, _log_query(options))
        try:
            frames = Frames(raw=c.tty)
            left = 1 << 62 if options.get("limit") is None else int(options["limit"])
            while left > 0:
                data = yield from stream.read(None)
                if not data:
                    return
                text = frames.feed(data)[:left]
                left -= len(text)
                if text:
                    yield from out.write(text)
        finally:
            stream.close()
    except EngineRefused as error:
        reason = "NotFound" if error.status == 404 else "LogsFailed"
        raise RuntimeFailure(reason, "log of container %s: %s" % (c.name, error)) from error
    except (EngineDown, BadAnswer) as error:
        raise RuntimeFailure("LogsFailed", "log of container %s: %s" % (c.name, error)) from error


def _log_query(options: "dict[str, Any]") -> "list[tuple[str, str]]":
    query = [("stdout", "1"), ("stderr", "1")]
    for name in ("follow", "timestamps"):
        if options.get(name):
            query.append((name, "1"))
    if options.get("tail") is not None:
        query.append(("tail", str(options["tail"])))
    if options.get("since_s") is not None:
        query.append(("since", str(int(time.time() - options["since_s"]))))
    return query
