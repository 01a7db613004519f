"""A container engine that speaks the Docker Engine API over a unix socket, as tasks of `edgelite.loop` see it.

One connection per request: nothing is shared between requests, so a broken one breaks nothing else, and an engine that was
restarted is simply spoken to again. The API's version is negotiated at first contact (`/_ping`).

Errors: EngineDown when the engine cannot be reached or broke off (whether the request was carried out is then unknown, unless
`sent` is False); EngineRefused when it answered with an error.
"""

import errno
import json
import select
import socket

from edgelite.loop import POLLIN, POLLOUT, Wait
from edgelite.loop import now as clock
from edgelite.runtimes.engine_http import Answer, BadAnswer, request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

CALL_S = 60.0
BODY_BYTES_MAX = 8 << 20
READ_BYTES = 32768
CONNECT_RETRY_S = 0.05
API_NEWEST = (1, 47)
API_OLDEST = (1, 30)


class EngineDown(Exception):
    """The engine cannot be reached, broke off or did not answer in time. sent: it may have got the request."""

    def __init__(self, message: str, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class EngineRefused(Exception):
    """The engine answered with an error. status: HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Stream:
    """An answer's body as it comes. The head is read with the first bytes, for some engines send it only then."""

    def __init__(self, sock: "socket.socket", what: str) -> None:
        self._sock = sock
        self._what = what
        self._answer = Answer()
        self._ready = b""

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def headers(self) -> "dict[str, str]":
        """Under lower-case names."""
        return self._answer.headers

    def close(self) -> None:
        self._sock.close()

    def read(self, deadline: "float | None") -> "Generator[Wait, bool, bytes | None]":
        """Generator. The next bytes; b"" at the end, None when the deadline passed. Raises EngineDown; EngineRefused when
        the status is an error."""
        while not self._ready and not self._answer.done:
            if not (yield from self._fill(deadline)):
                return None
        found, self._ready = self._ready, b""
        return found

    def _fill(self, deadline: "float | None") -> "Generator[Wait, bool, bool]":
        """Takes what comes next; False when the deadline passed."""
        data = yield from self._receive(deadline)
        if data is None:
            return False
        try:
            if data:
                self._ready += self._answer.feed(data)
            else:
                self._answer.end()
        except BadAnswer as error:
            raise EngineDown("%s: %s" % (self._what, error), True) from error
        if self._answer.status >= 400:
            yield from self._refuse(deadline)
        return True

    def begun(self, deadline: float) -> "Generator[Wait, bool, None]":
        """Generator. Waits for the answer's head. Raises EngineDown, EngineRefused."""
        while not self._answer.status:
            if not (yield from self._fill(deadline)):
                raise EngineDown("%s: no answer in time" % self._what, True)

    def write(self, data: bytes) -> "Generator[Wait, bool, bool]":
        """Generator. Sends on a hijacked connection; False when the other side takes no more. Raises EngineDown."""
        while data:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                yield Wait(self._sock.fileno(), POLLOUT, None)
            except (BrokenPipeError, ConnectionResetError):
                return False
            except OSError as error:
                raise EngineDown("%s: %s" % (self._what, error), True) from error
        return True

    def end_writing(self) -> None:
        """There is no more input; output goes on."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # the engine has ended it already
                raise EngineDown("%s: %s" % (self._what, error), True) from error

    def whole(self, deadline: float) -> "Generator[Wait, bool, bytes]":
        """Generator. The whole body, at most BODY_BYTES_MAX. Raises EngineDown, EngineRefused."""
        found = bytearray()
        while True:
            data = yield from self.read(deadline)
            if data is None:
                raise EngineDown("%s: no answer in time" % self._what, True)
            if not data:
                return bytes(found)
            found += data
            if len(found) > BODY_BYTES_MAX:
                raise EngineDown("%s: an answer of more than %d bytes" % (self._what, BODY_BYTES_MAX), True)

    def _refuse(self, deadline: "float | None") -> "Generator[Wait, bool, None]":
        body = self._ready
        while not self._answer.done and len(body) < READ_BYTES:
            data = yield from self._receive(clock() + CALL_S if deadline is None else deadline)
            if not data:
                break
            try:
                body += self._answer.feed(data)
            except BadAnswer:
                break  # the status is known, and what there is of the reason is shown
        raise EngineRefused(self._answer.status, _message(body) or "status %d" % self._answer.status)

    def _receive(self, deadline: "float | None") -> "Generator[Wait, bool, bytes | None]":
        """What came, b"" at the end of the connection, None when the deadline passed."""
        while True:
            try:
                return self._sock.recv(READ_BYTES)
            except BlockingIOError:
                pass  # nothing there yet
            except ConnectionResetError:
                return b""
            except OSError as error:
                raise EngineDown("%s: %s" % (self._what, error), True) from error
            ready = yield Wait(self._sock.fileno(), POLLIN, deadline)
            if not ready:
                return None


class Engine:
    """See the module's docstring. path: the socket's. `name` and `version` are "" until the first contact."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = ""  # "podman" or "docker"
        self.version = ""
        self._prefix = ""

    def forget(self) -> None:
        """The next request negotiates again: the engine may be another one after a restart."""
        self._prefix = ""

    def contact(self, timeout_s: float) -> "Generator[Wait, bool, None]":
        """Generator. Finds out who it is. Raises EngineDown, EngineRefused."""
        yield from self._negotiate(clock() + timeout_s)

    def call(
        self,
        method: str,
        path: str,
        query: "list[tuple[str, str]] | None" = None,
        body: "dict[str, Any] | None" = None,
        timeout_s: float = CALL_S,
    ) -> "Generator[Wait, bool, Any]":
        """Generator. The answer's JSON, None when there is no body. Raises EngineDown, EngineRefused."""
        deadline = clock() + timeout_s
        stream = yield from self.open(method, path, query, body, deadline)
        try:
            data = yield from stream.whole(deadline)
        finally:
            stream.close()
        return self._parse(method + " " + path, data)

    def open(
        self,
        method: str,
        path: str,
        query: "list[tuple[str, str]] | None" = None,
        body: "dict[str, Any] | None" = None,
        deadline: "float | None" = None,
        headers: "list[tuple[str, str]] | None" = None,
    ) -> "Generator[Wait, bool, Stream]":
        """Generator. Sends a request whose answer is a stream; close it. Raises EngineDown, EngineRefused."""
        deadline = clock() + CALL_S if deadline is None else deadline
        if not self._prefix:
            yield from self._negotiate(deadline)
        return (yield from self._send(method, self._prefix + path, query, body, deadline, headers))

    def _negotiate(self, deadline: float) -> "Generator[Wait, bool, None]":
        # Not /version: Podman takes a second for it.
        stream = yield from self._send("GET", "/_ping", None, None, deadline, None)
        try:
            yield from stream.whole(deadline)
        finally:
            stream.close()
        server = stream.headers.get("server", "").partition(" ")[0]  # "Libpod/4.3.1", "Docker/27.1.0"
        try:
            newest = _version(stream.headers["api-version"])
        except (KeyError, ValueError) as error:
            raise EngineDown("%s does not speak the Docker Engine API" % self.path, True) from error
        if newest < API_OLDEST:
            text = "%s speaks version %d.%d of the Docker Engine API, at least %d.%d is needed; upgrade the engine"
            raise EngineDown(text % ((server,) + newest + API_OLDEST), True)
        self._prefix = "/v%d.%d" % min(newest, API_NEWEST)
        self.name = "podman" if server.lower().startswith("libpod") else "docker"
        self.version = server.partition("/")[2] or "unknown"

    def _send(
        self,
        method: str,
        path: str,
        query: "list[tuple[str, str]] | None",
        body: "dict[str, Any] | None",
        deadline: float,
        headers: "list[tuple[str, str]] | None",
    ) -> "Generator[Wait, bool, Stream]":
        payload = b"" if body is None else json.dumps(body).encode()
        more = [("Content-Type", "application/json")] if body is not None else []
        data = request(method, path, query or [], more + (headers or []), payload)
        sock = yield from self._connect(deadline)
        try:
            while data:
                try:
                    data = data[sock.send(data) :]
                except BlockingIOError:
                    ready = yield Wait(sock.fileno(), POLLOUT, deadline)
                    if not ready:
                        raise EngineDown("%s %s: the engine takes no request" % (method, path), True)
                except OSError as error:
                    raise EngineDown("%s %s: %s" % (method, path, error), True) from error
        except BaseException:
            sock.close()
            raise
        return Stream(sock, "%s %s" % (method, path))

    def _connect(self, deadline: float) -> "Generator[Wait, bool, socket.socket]":
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:  # out of descriptors
            raise EngineDown("no socket for %s: %s" % (self.path, error), False) from error
        sock.setblocking(False)
        try:
            while True:
                code = sock.connect_ex(self.path)
                if code == 0:
                    return sock
                # A full backlog is EAGAIN for unix sockets, and nothing tells when there is room.
                if code not in (errno.EAGAIN, errno.EINTR) or clock() >= deadline:
                    reason = errno.errorcode.get(code, str(code))
                    text = "no container engine answers at %s (%s): start it (for Podman: systemctl start podman.socket)"
                    raise EngineDown(text % (self.path, reason), False)
                yield Wait(-1, 0, min(deadline, clock() + CONNECT_RETRY_S))
        except OSError as error:  # a path that is too long for a socket
            sock.close()
            raise EngineDown("%s: %s" % (self.path, error), False) from error
        except BaseException:
            sock.close()
            raise

    def _parse(self, what: str, data: bytes) -> "Any":
        if not data.strip():
            return None
        try:
            return json.loads(data)
        except ValueError as error:
            raise EngineDown("%s: the answer is no JSON" % what, True) from error


def at_once(generator: "Generator[Wait, bool, Any]") -> "Any":
    """Runs a generator without a loop, for the one question at start that nothing else can wait for. It has to end by its own
    deadlines."""
    try:
        wait = next(generator)
        while True:
            poller = select.poll()
            if wait.fd >= 0:
                poller.register(wait.fd, wait.events)
            left = None if wait.deadline is None else int(max(0.0, wait.deadline - clock()) * 1000) + 1
            wait = generator.send(bool(poller.poll(left)))
    except StopIteration as end:
        return end.value


def _version(text: str) -> "tuple[int, int]":
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def _message(body: bytes) -> str:
    """What an engine says in an error's body."""
    try:
        found = json.loads(body)
        return str(found.get("message") or found.get("cause") or "")[:1024]
    except (ValueError, AttributeError):
        return body.decode("utf-8", "replace").strip()[:1024]
