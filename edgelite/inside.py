"""What a stream of kind exec, attach or portforward asks for, checked and begun. Loaded when the first one comes.

A forwarded port is a connection of the agent to the pod's address: with the process runtime, and containers in the host's
network, the node's own 127.0.0.1.
"""

import errno
import socket

from edgelite.containers import RUNNING
from edgelite.loop import POLLIN, POLLOUT, Wait
from edgelite.loop import now as clock
from edgelite.runtimes.base import Ends, RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from edgelite.reconcile import Pod
    from edgelite.runtimes.base import Runtime, Send, Steps

ARGUMENTS_MAX = 4096
CHUNK_BYTES = 32 << 10
CONNECT_S = 10.0
DATA = 0  # a forwarded connection's channel to the pod; what comes from it is on channel 1


def begin(runtime: "Runtime", pod: "Pod", request: "dict[str, Any]") -> "Generator[Wait, bool, Ends]":
    """Generator. Raises RuntimeFailure."""
    if request["kind"] == "portforward":
        return (yield from _forward(runtime, pod, request.get("port")))
    name = str(request.get("container") or "")
    container = pod.container(name)
    title = 'container "%s" in pod "%s"' % (name, pod.doc["name"])
    if container is None:
        raise RuntimeFailure("BadRequest", "container %s is not valid for pod %s" % (name, pod.doc["name"]))
    if container.state != RUNNING:
        raise RuntimeFailure("BadRequest", "%s is not running (%s)" % (title, container.state))
    stdin, tty = bool(request.get("stdin")), bool(request.get("tty"))
    if request["kind"] == "attach":
        return (yield from runtime.open_attach(pod.uid, name, stdin))
    outputs = (bool(request.get("stdout")) or tty, bool(request.get("stderr")) and not tty)
    argv = _argv(request.get("command"))
    return (yield from runtime.open_exec(pod.uid, name, argv, stdin, outputs, tty))


def _argv(command: "Any") -> "list[str]":
    if not isinstance(command, list) or not command or len(command) > ARGUMENTS_MAX:
        raise RuntimeFailure("BadRequest", "command: 1 to %d words are needed" % ARGUMENTS_MAX)
    if not all(isinstance(word, str) and "\0" not in word for word in command):
        raise RuntimeFailure("BadRequest", "command: a word is no text, or holds a NUL")
    return command


def _forward(runtime: "Runtime", pod: "Pod", port: "Any") -> "Generator[Wait, bool, Ends]":
    if not isinstance(port, int) or not 0 < port < 65536:
        raise RuntimeFailure("BadRequest", "port %r: a number from 1 to 65535 is needed" % (port,))
    if not any(c.state == RUNNING for c in pod.containers):
        raise RuntimeFailure("BadRequest", 'nothing of pod "%s" is running' % pod.doc["name"])
    host = yield from runtime.address(pod.uid)
    sock = yield from _connect(host, port)
    return Connection(sock)


def _connect(host: str, port: int) -> "Generator[Wait, bool, socket.socket]":
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        code = sock.connect_ex((host, port))
        if code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            ready = yield Wait(sock.fileno(), POLLOUT, clock() + CONNECT_S)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if ready else errno.ETIMEDOUT
        if code:
            reason = errno.errorcode.get(code, str(code))
            text = "cannot connect to port %d of the pod at %s: %s" % (port, host, reason)
            raise RuntimeFailure("ConnectFailed", text)
        return sock
    except BaseException:
        sock.close()
        raise


class Connection(Ends):
    """One forwarded connection. Takes over the socket."""

    half_closes = True

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._writable = True

    def outputs(self, send: "Send") -> "list[tuple[int, Steps]]":
        return [(1, self._copy(send))]

    def _copy(self, send: "Send") -> "Steps":
        while True:
            try:
                data = self._sock.recv(CHUNK_BYTES)
            except BlockingIOError:
                yield Wait(self._sock.fileno(), POLLIN, None)
                continue
            if not data:
                return
            yield from send(1, data)

    def write(self, data: bytes) -> "Steps":
        while data and self._writable:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                yield Wait(self._sock.fileno(), POLLOUT, None)
            except (BrokenPipeError, ConnectionResetError):
                self._writable = False

    def end_input(self) -> "Steps":
        if self._writable:
            self._writable = False
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                if error.errno != errno.ENOTCONN:  # the pod has ended it already
                    raise
        return
        yield

    def abandon(self) -> "Steps | None":
        self._sock.close()
        return None
