"""What a simulated node does with exec, attach and port-forward: a few made-up commands, credit kept to the byte.

    node.shell = Shell(node.send)         # before the node connects
    ["say", TEXT]          TEXT to stdout            ["cat"]       stdin to stdout until it ends
    ["complain", TEXT]     TEXT to stderr            ["flood", N]  N bytes to stdout
    ["exit", CODE]         ends with CODE            ["sizes", N]  N terminal sizes, a line each
    ["refuse"]             CLOSE with an error       ["wait"]      until the client goes

Attach is `cat`. A forwarded port answers everything in upper case; port 1 cannot be reached.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from edgelite import wire

FIRST_CREDIT = 4096
CHUNK_BYTES = 1500
SUCCESS = {"metadata": {}, "status": "Success"}


def exit_status(code: int) -> dict[str, Any]:
    """As a kubelet says that a command has ended."""
    if not code:
        return SUCCESS
    return {
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


class _Job:
    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.words: list[str] = ["cat"] if request["kind"] == "attach" else request.get("command", ["port"])
        self.credit: int = request["credit"]
        self.granted = FIRST_CREDIT
        self.out = b""
        """DATA bodies for which there is no credit yet, without their cutting."""
        self.channel = 1
        self.status: dict[str, Any] | None = None
        self.sizes = 0


class Shell:
    """All streams of one node. `send` is `SimNode.send`; runs on the fleet's thread."""

    def __init__(
        self,
        send: Callable[[int, Any, int], None],
        features: Sequence[str] = ("exec", "portforward"),
    ) -> None:
        self._send = send
        self.features = features
        self.jobs: dict[int, _Job] = {}
        self.requests: list[dict[str, Any]] = []
        self.hung_up = 0
        """Streams that the hub closed before they had ended."""

    def message(self, kind: int, stream: int, body: bytes) -> bool:
        """False: not of these streams."""
        if kind == wire.OPEN:
            request = json.loads(body)
            if request["kind"] in ("log", "usage"):
                return False
            self._open(stream, request)
            return True
        job = self.jobs.get(stream)
        if kind == wire.DATA:
            if job is not None:
                assert len(body) <= job.granted, f"{len(body)} bytes on a credit of {job.granted}"
                job.granted -= len(body)
                self._input(stream, job, body[0], body[1:])
                self._send(wire.CREDIT, {"c": len(body)}, stream)
                job.granted += len(body)
                self._flush(stream, job)
            return True
        if job is None:
            return False
        if kind == wire.CREDIT:
            job.credit += json.loads(body)["c"]
            self._flush(stream, job)
        elif kind == wire.CLOSE:
            del self.jobs[stream]
            self.hung_up += 1
        return True

    def _open(self, stream: int, request: dict[str, Any]) -> None:
        self.requests.append(request)
        job = _Job(request)
        word, *rest = job.words
        if word == "refuse" or request.get("port") == 1:
            self._send(wire.CLOSE, {"error": {"code": "NotFound", "message": "nobody is there"}}, stream)
            return
        self.jobs[stream] = job
        self._send(wire.CREDIT, {"c": FIRST_CREDIT}, stream)
        if word in ("say", "complain"):
            job.channel = 1 if word == "say" else 2
            job.out, job.status = rest[0].encode(), SUCCESS
        elif word == "flood":
            job.out, job.status = b"f" * int(rest[0]), SUCCESS
        elif word == "exit":
            job.status = exit_status(int(rest[0]))
        self._flush(stream, job)

    def _input(self, stream: int, job: _Job, channel: int, data: bytes) -> None:
        word = job.words[0]
        if channel == 4 and word == "sizes":
            size = json.loads(data)
            job.out += b"%dx%d\n" % (size["Width"], size["Height"])
            job.sizes += 1
            if job.sizes == int(job.words[1]):
                job.status = SUCCESS
        elif channel == 0 and word in ("cat", "port"):
            job.out += data.upper() if word == "port" else data
        elif channel == 255:
            assert data == b"\0"
            if word in ("cat", "port"):
                job.status = SUCCESS

    def _flush(self, stream: int, job: _Job) -> None:
        at = 0
        while at < len(job.out) and job.credit > 1:
            piece = job.out[at : at + min(CHUNK_BYTES, job.credit - 1)]
            at += len(piece)
            job.credit -= 1 + len(piece)
            self._send(wire.DATA, bytes((job.channel,)) + piece, stream)
        job.out = job.out[at:]
        if not job.out and job.status is not None:
            status = b"\3" + json.dumps(job.status).encode()
            if job.credit >= len(status):
                del self.jobs[stream]
                self._send(wire.DATA, status, stream)
                self._send(wire.CLOSE, {}, stream)
