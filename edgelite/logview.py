"""`edgelite logs`: what the agent said, and what a container of a pod wrote. Reads files of the data directory, or asks
the machine's own container engine: no network, and no running agent.

Exit codes: 0 shown; 1 there is nothing of that name, or it cannot be read; 4 it has not joined.
"""

import json
import os
import sys
import time

from edgelite import agentlog, statusfile
from edgelite.config import ConfigError
from edgelite.exits import DONE, FAILED, NOT_JOINED, USAGE, fail
from edgelite.snapshot import Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from edgelite.loop import Wait

FOLLOW_S = 0.3
TAIL = 100
TAIL_MAX = 1000000
LAUNCHES = "run/runtime/"
WHOLE = 1 << 62  # no bound of its own: the file is only read
LOG_FILES = 16  # at least as many older parts as any agent keeps


class NoLog(Exception):
    """There is no such log; the message says which there are."""


def logs(values: "dict[str, Any]") -> int:
    """`tail` lines of the agent's log, or of the log of a container of `pod`; with `follow` until Ctrl-C. The exit code."""
    data_dir, text = values["data-dir"], values["tail"]
    if text is not None and not (text.isdigit() and int(text) <= TAIL_MAX):
        return fail("--tail %s is no number of lines from 0 to %d" % (text, TAIL_MAX), USAGE)
    tail = TAIL if text is None else int(text)
    follow = values["follow"] is True
    try:
        if not values["pod"]:
            if values["container"] or values["previous"] is True:
                return fail("--container and --previous are about a pod: name it with --pod", USAGE)
            os.listdir(data_dir)
            where = str(statusfile.read(data_dir).get("log_dir") or data_dir)
            _agent(where, tail, follow, values["output"] == "json")
        else:
            snapshot = Snapshot(data_dir)
            if snapshot.membership is None:
                return fail("%s has not joined a hub" % data_dir, NOT_JOINED)
            _container(snapshot, values, tail, follow)
    except KeyboardInterrupt:
        return DONE
    except BrokenPipeError:
        # Whoever read it has had enough; at the end Python would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except NoLog as error:
        return fail(str(error), FAILED)
    except ConfigError as error:
        return fail(str(error), USAGE)
    except FileNotFoundError:
        return fail("%s has not joined a hub: there is no such directory" % data_dir, NOT_JOINED)
    except (OSError, ValueError) as error:
        return fail("cannot read the log: %s; ask as the user that the agent runs as" % error, FAILED)
    return DONE


# The agent


def _agent(data_dir: str, tail: int, follow: bool, raw: bool) -> None:
    shown = _as_it_is if raw else _readable
    lines: "list[bytes]" = []
    for path in agentlog.parts(data_dir):
        lines += _read(path, 0)[0].splitlines(True)
    if not lines and not follow:
        raise NoLog("the agent of %s has not written a log yet" % data_dir)
    for line in lines[len(lines) - min(tail, len(lines)) :]:
        _out(shown(line))
    path = agentlog.parts(data_dir)[-1]
    at, inode = _size(path)
    rest = b""
    while follow:
        size, now = _size(path)
        if now != inode or size < at:
            at, inode = 0, now  # it was rotated
        data, at = _read(path, at)
        rest += data
        while b"\n" in rest:
            line, _, rest = rest.partition(b"\n")
            _out(shown(line + b"\n"))
        time.sleep(FOLLOW_S)


def _size(path: str) -> "tuple[int, int]":
    """(bytes, inode) of a file; (0, 0) while it is not there."""
    try:
        found = os.stat(path)
        return found.st_size, found.st_ino
    except FileNotFoundError:
        return 0, 0


def _read(path: str, at: int) -> "tuple[bytes, int]":
    """What follows offset `at`, and where that ends."""
    try:
        with open(path, "rb") as file:
            file.seek(at)
            data = file.read(agentlog.BYTES_MAX * 2)
    except FileNotFoundError:
        return b"", at
    return data, at + len(data)


def _as_it_is(line: bytes) -> bytes:
    return line


def _readable(line: bytes) -> bytes:
    """A JSON line of `console.Log` as text; any other line as it is."""
    try:
        entry = json.loads(line.decode())
        head = "%s %-7s %s" % (entry.pop("time"), entry.pop("level"), entry.pop("message"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return line
    return (head + "".join([" %s=%s" % item for item in entry.items()]) + "\n").encode()


def _out(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


# A container


def _container(snapshot: Snapshot, values: "dict[str, Any]", tail: int, follow: bool) -> None:
    pod, one = _chosen(snapshot.pods(), values["pod"], values["container"])
    previous = values["previous"] is True
    prefix = "%s%s/%s/" % (LAUNCHES, pod["uid"], one["name"])
    journal = snapshot.journal
    keys = journal.keys(prefix) if journal is not None else []
    attempts = sorted([int(key[len(prefix) :]) for key in keys if key[len(prefix) :].isdigit()])
    if snapshot.status.get("runtime") == "container" or (
        not attempts and snapshot.config.runtime != "process"
    ):
        _engine(snapshot, pod, one, previous, tail, follow)
        return
    if len(attempts) <= previous:
        which = "previous attempt" if previous and attempts else "attempt"
        raise NoLog("there is no %s of container %s of pod %s here" % (which, one["name"], pod["name"]))
    assert journal is not None
    record = json.loads(journal.get(prefix + "%d" % attempts[-2 if previous else -1]) or b"{}")
    _file(os.path.join(record["dir"], "log"), tail, follow)


def _chosen(pods: "list[dict[str, Any]]", wanted: str, name: "str | None") -> "tuple[Any, Any]":
    """The pod `wanted` ("name" or "namespace/name") and its container. Raises NoLog."""
    full = [pod["namespace"] + "/" + pod["name"] for pod in pods]
    found = [pod for pod in pods if wanted in (pod["name"], pod["namespace"] + "/" + pod["name"])]
    if len(found) != 1:
        what = "%d pods are called %s" % (len(found), wanted) if found else "there is no pod %s here" % wanted
        raise NoLog("%s; there are %s" % (what, ", ".join(full) or "none"))
    containers = found[0]["containers"]
    names = [one["name"] for one in containers]
    if name is None and len(names) > 1:
        raise NoLog("pod %s has the containers %s: name one with --container" % (wanted, ", ".join(names)))
    for one in containers:
        if name in (None, one["name"]):
            return found[0], one
    raise NoLog("pod %s has no container %s; it has %s" % (wanted, name, ", ".join(names)))


def _file(path: str, tail: int, follow: bool) -> None:
    """A log of the process runtime."""
    from edgelite.logfiles import LogFile

    offset = LogFile(path, WHOLE, LOG_FILES).offset_of_tail(tail)
    while True:
        log = LogFile(path, WHOLE, LOG_FILES)  # anew, for the agent rotates it
        at, data = log.read(offset)
        offset = at + len(data)
        _out(data)
        if not data and not follow:
            return
        if not data:
            time.sleep(FOLLOW_S)


def _engine(
    snapshot: Snapshot, pod: "dict[str, Any]", one: "dict[str, Any]", previous: bool, tail: int, follow: bool
) -> None:
    """A log of the container runtime, from its engine. Raises NoLog."""
    from edgelite.loop import Loop
    from edgelite.parts import Parts
    from edgelite.port import Host
    from edgelite.runtimes import container_inside
    from edgelite.runtimes.base import RuntimeFailure
    from edgelite.runtimes.container_record import Container
    from edgelite.runtimes.engine import Engine

    socket = Parts(snapshot.data_dir, snapshot.config, Host(), "").engine_socket()
    if not socket:
        raise NoLog("no container engine answers; `edgelite diagnose` says more")
    attempt = one["attempt"] - previous
    if attempt < 0:
        raise NoLog("there is no such attempt of container %s of pod %s" % (one["name"], pod["name"]))
    c = Container(pod["uid"], one["name"], attempt, "", "")
    c.id, c.tty = c.engine_name, one["tty"]
    loop = Loop()

    def read() -> "Generator[Wait, bool, None]":
        try:
            yield from container_inside.logs(Engine(socket), c, {"tail": tail, "follow": follow}, _Stdout())
        finally:
            loop.stop()

    loop.spawn(read(), "logs")
    try:
        loop.run()
    except RuntimeFailure as error:
        raise NoLog(error.message) from error
    finally:
        loop.close()


class _Stdout:
    """A `LogSink` that never waits."""

    def write(self, data: bytes) -> "Generator[Wait, bool, None]":
        _out(data)
        return
        yield
