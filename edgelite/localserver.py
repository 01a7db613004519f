"""The agent's local API as a server: HTTPS on the loopback address, on the agent's own loop. `edgelite.localapi` answers.

Its address is kept in the store, for workloads that run were told of it. Key and certificate lie in `local-api.pem` (0600).
Nobody off this machine can reach it, and nobody without a pod's token learns anything.

Bounds: CONNECTIONS_MAX at once, HEAD_BYTES_MAX for a request, IDLE_S without one, WATCH_S for a watch; a client that does not
read is dropped after SEND_S.
"""

import json
import os
import socket
import ssl

from edgelite import localapi, localdevices
from edgelite.loop import POLLIN, POLLOUT, Cancelled, Wait
from edgelite.loop import now as clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from edgelite.loop import Loop, Task
    from edgelite.runtimes.base import State

    Steps = Generator[Wait, bool, None]

HOST = "127.0.0.1"
FILE = "local-api.pem"
STORED = "local-api"
CONNECTIONS_MAX = 64
HEAD_BYTES_MAX = 16 << 10
BODY_BYTES_MAX = 1 << 20
HANDSHAKE_S = 10.0
IDLE_S = 120.0
SEND_S = 30.0
WATCH_S = 600.0
ACCEPT_RETRY_S = 1.0
REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    410: "Gone",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Entity",
}


class LocalApi:
    """See the module. objects(token): what a token lets see, as `localapi.answer` wants it, None for a token of nobody here;
    revision(): of all objects; report(token, namespace, name, content type, body): takes a report about a device, the body
    None where it is too long. Raises OSError when there is no port or file to be had."""

    def __init__(
        self,
        loop: "Loop",
        data_dir: str,
        store: "State",
        entropy: "Callable[[int], bytes]",
        objects: "Callable[[str], Callable[[str], list[dict[str, Any]]] | None]",
        revision: "Callable[[], int]",
        report: "Callable[[str, str, str, str, bytes | None], tuple[int, dict[str, Any]]]",
    ) -> None:
        self._loop = loop
        self._objects = objects
        self._report = report
        self._revision = revision
        self._context, self.ca = _identity(os.path.join(data_dir, FILE), entropy)
        stored = dict(store.items()).get(STORED)
        self._listener = _listen(int(stored or 0))
        self.port: int = self._listener.getsockname()[1]
        if stored != str(self.port).encode():
            store.put(STORED, str(self.port).encode())
        self._watchers: "list[Task]" = []
        self._connections = 0
        loop.spawn(self._accept(), "local API")

    def changed(self) -> None:
        """Some object is another one."""
        for task in self._watchers:
            self._loop.wake(task)

    def _accept(self) -> "Steps":
        try:
            while True:
                if self._connections >= CONNECTIONS_MAX:
                    yield Wait(-1, 0, clock() + ACCEPT_RETRY_S)
                    continue
                yield Wait(self._listener.fileno(), POLLIN, None)
                try:
                    sock, _ = self._listener.accept()
                except BlockingIOError:
                    continue
                except OSError:  # out of descriptors
                    yield Wait(-1, 0, clock() + ACCEPT_RETRY_S)
                    continue
                self._connections += 1
                self._loop.spawn(self._serve(sock), "local API connection")
        finally:
            self._listener.close()

    def _serve(self, raw: socket.socket) -> "Steps":
        raw.setblocking(False)
        sock: "socket.socket" = raw
        try:
            sock = tls = self._context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
            yield from _io(tls, tls.do_handshake, clock() + HANDSHAKE_S)
            rest = b""
            while True:
                head, rest = yield from _head(tls, rest)
                if not head:
                    return
                request = parse(head)
                # Also one that says nothing: a connection that ends with unread bytes takes its answer along.
                content, rest = yield from _body(tls, rest, request[3])
                if not (yield from self._respond(tls, *request, content)):
                    return
        except Cancelled:
            raise
        except (OSError, ValueError):
            return  # whoever it was has gone, speaks no TLS, or no HTTP: there is nobody to tell
        finally:
            self._connections -= 1
            sock.close()

    def _respond(
        self,
        sock: ssl.SSLSocket,
        method: str,
        path: str,
        query: "dict[str, str]",
        headers: "dict[str, str]",
        content: "bytes | None",
    ) -> "Generator[Wait, bool, bool]":
        """Answers one request; whether the connection goes on. Raises OSError."""
        kind, _, token = headers.get("authorization", "").partition(" ")
        token = token.strip()
        objects = self._objects(token) if kind.lower() == "bearer" and token else None
        content_type = headers.get("content-type", "")

        def report(namespace: str, name: str) -> "tuple[int, dict[str, Any]]":
            return self._report(token, namespace, name, content_type, content)

        answer = localapi.answer(method, path, query, objects, self._revision, report)
        if isinstance(answer, localapi.Watch):
            assert objects is not None
            yield from self._watch(sock, answer, objects, query)
            return False
        code, obj = answer
        body = json.dumps(obj).encode()
        close = headers.get("connection", "").lower() == "close"
        lines = [
            "HTTP/1.1 %d %s" % (code, REASONS.get(code, "Status")),
            "Content-Type: application/json",
            "Content-Length: %d" % len(body),
        ]
        if close:
            lines.append("Connection: close")
        data = ("\r\n".join(lines) + "\r\n\r\n").encode() + (b"" if method == "HEAD" else body)
        yield from _send(sock, data)
        return not close

    def _watch(
        self,
        sock: ssl.SSLSocket,
        watch: localapi.Watch,
        objects: "Callable[[str], list[dict[str, Any]]]",
        query: "dict[str, str]",
    ) -> "Steps":
        """Until the client goes, or for so long as it wants."""
        until = clock() + min(WATCH_S, float(query.get("timeoutSeconds") or WATCH_S))
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        yield from _send(sock, head.encode())
        task = self._loop.current
        assert task is not None
        self._watchers.append(task)
        try:
            while clock() < until:
                lines = [
                    json.dumps({"type": t, "object": o}) + "\n" for t, o in watch.step(objects(watch.plural))
                ]
                data = "".join(lines).encode()
                if data:
                    yield from _send(sock, b"%x\r\n%s\r\n" % (len(data), data))
                yield Wait(sock.fileno(), POLLIN, until)
                try:
                    if not sock.recv(1024):
                        return
                except ssl.SSLWantReadError:
                    pass  # woken for a change
            yield from _send(sock, b"0\r\n\r\n")
        finally:
            self._watchers.remove(task)


def parse(head: bytes) -> "tuple[str, str, dict[str, str], dict[str, str]]":
    """(method, path, query, headers under lower-case names) of a request's head. Raises ValueError."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1.") or not words[1].startswith("/"):
        raise ValueError("not a request")
    path, _, text = words[1].partition("?")
    query = {}
    for pair in text.split("&") if text else []:
        name, _, value = pair.partition("=")
        query[_unquoted(name)] = _unquoted(value)
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return words[0], _unquoted(path), query, headers


def _unquoted(text: str) -> str:
    """Raises ValueError."""
    parts = text.replace("+", " ").split("%")
    found = parts[0].encode("latin-1")
    for part in parts[1:]:
        found += bytes((int(part[:2], 16),)) + part[2:].encode("latin-1")
    return found.decode()


def _head(sock: ssl.SSLSocket, rest: bytes) -> "Generator[Wait, bool, tuple[bytes, bytes]]":
    """(a request's head, what came behind it); b"" when there is no other. Raises OSError, ValueError."""
    deadline = clock() + IDLE_S
    while b"\r\n\r\n" not in rest:
        if len(rest) > HEAD_BYTES_MAX:
            raise ValueError("a request of more than %d bytes" % HEAD_BYTES_MAX)
        data = yield from _io(sock, _reading(sock), deadline)
        if not data:
            return b"", b""
        rest += data
    head, _, rest = rest.partition(b"\r\n\r\n")
    return head, rest


def _body(
    sock: ssl.SSLSocket, rest: bytes, headers: "dict[str, str]"
) -> "Generator[Wait, bool, tuple[bytes | None, bytes]]":
    """(a request's body, None where it is longer than what anybody reads of it; what came behind it). Raises OSError,
    ValueError."""
    if "transfer-encoding" in headers:
        raise ValueError("a body of unknown length")
    left = int(headers.get("content-length") or 0)
    if not 0 <= left <= BODY_BYTES_MAX:
        raise ValueError("a body of %d bytes" % left)
    deadline = clock() + IDLE_S
    kept: "bytes | None" = b"" if left <= localdevices.BODY_BYTES_MAX else None
    while left > len(rest):
        left -= len(rest)
        kept = None if kept is None else kept + rest
        rest = yield from _io(sock, _reading(sock), deadline)
        if not rest:
            raise ValueError("the body broke off")
    return None if kept is None else kept + rest[:left], rest[left:]


def _reading(sock: ssl.SSLSocket) -> "Callable[[], bytes]":
    return lambda: sock.recv(4096)


def _sending(sock: ssl.SSLSocket, part: bytes) -> "Callable[[], int]":
    return lambda: sock.send(part)


def _send(sock: ssl.SSLSocket, data: bytes) -> "Steps":
    deadline = clock() + SEND_S
    while data:
        sent = yield from _io(sock, _sending(sock, data[:16384]), deadline)
        data = data[sent:]


def _io(sock: ssl.SSLSocket, call: "Callable[[], Any]", deadline: float) -> "Generator[Wait, bool, Any]":
    """Raises OSError, TimeoutError when the deadline has passed."""
    while True:
        try:
            return call()
        except ssl.SSLWantReadError:
            events = POLLIN
        except ssl.SSLWantWriteError:
            events = POLLOUT
        ready = yield Wait(sock.fileno(), events, deadline)
        if not ready:
            raise TimeoutError("the other side took too long")


def _identity(path: str, entropy: "Callable[[int], bytes]") -> "tuple[ssl.SSLContext, str]":
    """(server's context, the certificate that clients trust); made at the first start. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(path)
    except (ssl.SSLError, FileNotFoundError):
        from edgelite import localcert, p256
        from edgelite.files import write_atomically

        private = p256.generate(entropy(p256.ENTROPY_BYTES))
        serial = int.from_bytes(entropy(16), "big") >> 1 | 1
        made = localcert.self_signed_pem(private, serial) + p256.private_pem(private)
        write_atomically(path, made.encode())
        context.load_cert_chain(path)
    with open(path) as f:
        text = f.read()
    return context, text[: text.index("-----BEGIN EC PRIVATE KEY")]


def _listen(port: int) -> socket.socket:
    """On the port that workloads were told of, another one where somebody has taken it. Raises OSError."""
    for wanted in (port, 0) if port else (0,):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            if os.name == "posix":  # elsewhere it would let others take the port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((HOST, wanted))
            sock.listen(16)
            sock.setblocking(False)
            return sock
        except OSError:
            sock.close()
            if not wanted:
                raise
    raise OSError("no port")
