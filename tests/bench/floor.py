"""The least that a heartbeat and a delivery can cost in Python: bare non-blocking `ssl.SSLSocket`s on one epoll.

`Floor` starts this module as a process of its own, which answers PING with PONG and sends one and the same SET to all when
told to. No admission, no sessions, no limits. The hub's figures are read beside it, since both suffer alike from
whatever else the machine does.
"""

import json
import select
import socket
import ssl
import subprocess
import sys
from pathlib import Path

from edgelite import wire
from edgelite.desired import version_of
from security import tls

ROOT = Path(__file__).resolve().parents[2]
PING = wire.frame(wire.PING)
PONG = wire.frame(wire.PONG)
WELCOME = wire.frame(
    wire.WELCOME,
    json.dumps(
        {"sync": "match", "store": "floor", "gen": 1, "slot": 0, "epoch": 1, "claim": "0" * 16, "rev": 0}
    ).encode(),
)


class Floor:
    """The process. `address` is where simulated nodes connect."""

    def __init__(self, directory: Path, cert_pem: str, key_pem: str, root_pem: str) -> None:
        for name, text in (("cert", cert_pem), ("key", key_pem), ("root", root_pem)):
            (directory / name).write_text(text)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.floor", str(directory)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.address = ("127.0.0.1", int(self.process.stdout.readline()))

    def broadcast(self, text: str) -> None:
        """Sends a SET with `text` in it to every connection."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")

    def stop(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait(10)


def set_frame(text: str, revision: int) -> bytes:
    key = "configmap/default/shared"
    document = json.dumps(
        {"data": {"text": text}, "kind": "ConfigMap", "name": "shared", "ns": "default"},
        separators=(",", ":"),
    ).encode()
    header = json.dumps({"k": key, "v": version_of(document), "r": revision}, separators=(",", ":")).encode()
    return wire.frame(wire.SET, wire.set_body(header, document))


def serve(directory: Path) -> None:
    cert, key, root = ((directory / name).read_text() for name in ("cert", "key", "root"))
    context = tls.edge_server_context(cert, key, root)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    epoll.register(sys.stdin.fileno(), select.EPOLLIN)
    print(listener.getsockname()[1], flush=True)
    shaking: dict[int, ssl.SSLSocket] = {}
    opened: dict[int, ssl.SSLSocket] = {}
    revision = 0
    while True:
        for fd, _ in epoll.poll():
            sock = opened.get(fd)
            try:
                if sock is not None:
                    data = sock.recv(16384)
                    if data == PING:
                        sock.send(PONG)
                    elif not data:
                        epoll.unregister(fd)
                        opened.pop(fd).close()
                    elif data[0] == wire.HELLO:
                        sock.send(WELCOME)
                elif fd == listener.fileno():
                    raw, _ = listener.accept()
                    raw.setblocking(False)
                    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    sock = context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
                    shaking[sock.fileno()] = sock
                    epoll.register(sock.fileno(), select.EPOLLIN)
                elif fd in shaking:
                    shaking[fd].do_handshake()
                    opened[fd] = shaking.pop(fd)
                else:
                    text = sys.stdin.readline()
                    if not text:
                        return
                    revision += 1
                    frame = set_frame(text.strip(), revision)
                    for one in opened.values():
                        one.send(frame)
            except ssl.SSLWantReadError:
                continue


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
