"""The hub's end of a two-way stream, over the agent's real `Streams` and a runtime, without a connection between them."""

import json
import os
from typing import Any

from edgelite import inside, wire
from edgelite.reconcile import Pod
from edgelite.streams import Streams
from tests.edgelite.runtimes.harness import Bench

CREDIT = 256 << 10


class _Container:
    state = "running"

    def __init__(self, name: str) -> None:
        self.name = name


class _Pod:
    """As much of a `reconcile.Pod` as `inside` asks for."""

    def __init__(self, uid: str, names: tuple[str, ...]) -> None:
        self.uid = uid
        self.doc = {"name": "p-" + uid}
        self.containers = [_Container(name) for name in names]

    def container(self, name: str) -> Any:
        return next((c for c in self.containers if c.name == name), None)


class HubSide:
    """Keeps the accounts that a hub would keep, and fails when the agent breaks them."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.streams = Streams(bench.loop, bench.runtime.logs, self._inside, self._sent, lambda: True)
        self.opened: dict[int, Opened] = {}

    def _inside(self, request: dict[str, Any]) -> Any:
        pod: Pod = _Pod(request["pod"], ("main",))  # type: ignore[assignment]
        return inside.begin(self.bench.runtime, pod, request)

    def _sent(self, kind: int, stream: int, body: bytes) -> None:
        self.opened[stream].sent(kind, body)

    def open(self, kind: str = "exec", credit: int = CREDIT, **more: Any) -> "Opened":
        stream = 2 * len(self.opened) + 1
        made = self.opened[stream] = Opened(self, stream, credit)
        request = {
            "kind": kind,
            "pod": "u1",
            "container": "main",
            "stdin": False,
            "stdout": True,
            "stderr": True,
        }
        request.update(more, credit=credit)
        assert self.streams.message(wire.OPEN, stream, request) is None
        return made

    def run(self, *command: str, **more: Any) -> "Opened":
        """A command, until it has ended."""
        opened = self.open(command=list(command), **more)
        opened.ended()
        return opened


class Opened:
    """One stream as the hub sees it. `channels` is what came, `status` how it ended, `error` what CLOSE said."""

    def __init__(self, side: HubSide, stream: int, credit: int) -> None:
        self._side = side
        self.stream = stream
        self.credit = credit
        self.may_send = 0
        self.channels: dict[int, bytearray] = {n: bytearray() for n in (0, 1, 2, 3, 255)}
        self.closed: dict[str, Any] | None = None
        self.largest = 0

    def sent(self, kind: int, body: bytes) -> None:
        assert self.closed is None, "something came after CLOSE"
        if kind == wire.DATA:
            self.credit -= len(body)
            assert self.credit >= 0, "more than was granted"
            assert len(body) >= 2 and not self.channels[3], "nothing to say, or said after the status"
            self.largest = max(self.largest, len(body))
            self.channels[body[0]] += body[1:]
        elif kind == wire.CREDIT:
            self.may_send += json.loads(body)["c"]
        else:
            assert kind == wire.CLOSE
            self.closed = json.loads(body)

    @property
    def out(self) -> str:
        return self.channels[1].decode()

    @property
    def err(self) -> str:
        return self.channels[2].decode()

    @property
    def status(self) -> dict[str, Any]:
        assert self.closed == {}, self.closed
        return dict(json.loads(self.channels[3]))

    @property
    def code(self) -> int:
        status = self.status
        if status["status"] == "Success":
            return 0
        assert status["reason"] == "NonZeroExitCode"
        (cause,) = status["details"]["causes"]
        assert cause["reason"] == "ExitCode"
        return int(cause["message"])

    @property
    def error(self) -> dict[str, str]:
        assert self.closed is not None
        return dict(self.closed["error"])

    def grant(self, size: int) -> None:
        self.credit += size
        assert self._message(wire.CREDIT, size) is None

    def send(self, channel: int, data: bytes) -> None:
        """Sends all, as the agent grants it."""
        at = 0
        while at < len(data) or not data:
            self._side.bench.until(
                lambda: self.may_send >= 2 or self.closed is not None, "credit for the hub"
            )
            if self.closed is not None:
                return
            chunk = data[at : at + min(self.may_send, 32768) - 1]
            at += len(chunk)
            self.may_send -= len(chunk) + 1
            assert self._message(wire.DATA, bytes([channel]) + chunk) is None
            if not data:
                return

    def type(self, text: str) -> None:
        self.send(0, text.encode())

    def resize(self, width: int, height: int) -> None:
        self.send(4, json.dumps({"Width": width, "Height": height}).encode())

    def end_input(self) -> None:
        self.send(255, b"\0")

    def close(self) -> None:
        assert self._message(wire.CLOSE, {}) is None

    def _message(self, kind: int, body: Any) -> str | None:
        return self._side.streams.message(kind, self.stream, body)

    def says(self, text: str, channel: int = 1) -> str:
        """Waits until the output holds the text."""

        def look() -> str:
            assert self.closed is None or text.encode() in self.channels[channel], (
                self.closed,
                self.channels,
            )
            found = self.channels[channel].decode(errors="replace")
            return found if text in found else ""

        return str(self._side.bench.until(look, f"{text!r} on channel {channel}, {self.channels}"))

    def ended(self) -> None:
        self._side.bench.until(lambda: self.closed is not None, f"the end of the stream, {self.channels}")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
