"""An engine that answers what a test tells it to, byte by byte, and remembers what it was asked."""

import json
import os
import socket
import threading
from collections.abc import Callable

PING = b"HTTP/1.1 200 OK\r\nApi-Version: 1.43\r\nServer: Docker/24.0.7 (linux)\r\nContent-Length: 2\r\n\r\nOK"


def answer(status: int, body: object = None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(data), data)


class FakeEngine:
    """`answers`: what to send for "METHOD /path" (the query and the API version left out); None closes without a word, a callable is
    asked. The last entry of a list is repeated. Anything else gets 404."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.answers: dict[str, bytes | list[bytes | None] | Callable[[], bytes | None] | None] = {}
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def asked(self) -> list[str]:
        return [line for line, _, _ in self.requests if "_ping" not in line]

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        os.unlink(self.path)

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(10)
                self._handle(sock)

    def _handle(self, sock: socket.socket) -> None:
        with sock.makefile("rb") as f:
            line = f.readline().decode()
            headers = {}
            for header in iter(f.readline, b"\r\n"):
                name, _, value = header.decode().partition(":")
                headers[name.lower()] = value.strip()
            body = f.read(int(headers.get("content-length", "0")))
        method, target, _ = line.split(" ")
        path = target.partition("?")[0]
        if path.startswith("/v1."):
            path = "/" + path.split("/", 2)[2]
        self.requests.append((f"{method} {target}", headers, body))
        reply = self.answers.get(f"{method} {path}", answer(404, {"message": "no such thing"}))
        if path == "/_ping" and "GET /_ping" not in self.answers:
            reply = PING
        if isinstance(reply, list):
            reply = reply.pop(0) if len(reply) > 1 else reply[0]
        if callable(reply):
            reply = reply()
        if reply:
            try:
                sock.sendall(reply)
            except BrokenPipeError:
                pass  # the client had enough
