"""Agents as far as a reconnect storm needs them: many in one process, each with a certificate of its own.

`Agents` starts this module as a process. Commands come as lines, each is answered by one JSON line:
`storm full`, `storm resumed` connect all at once, with a full handshake or with the TLS session of the connection before, and
end when all have had WELCOME; `cut` drops all connections without a word. Whoever fails tries again after the agent's own
back-off, or when a GOAWAY says.
"""

import contextlib
import errno
import heapq
import json
import random
import select
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgelite import wire
from edgelite.backoff import Backoff
from edgelite.desired import compact, digest_of
from security import tls

ROOT = Path(__file__).resolve().parents[2]
HUB_NAME = "hub.cloudhub.local"
TRY_S = 20.0
"""How long an agent waits for a connection and its WELCOME."""
GIVE_UP_S = 1200.0
TRIES_AT_ONCE = 32
"""New ones between two looks at those under way: agents do not wait for each other's arithmetic on machines of their own."""


class Agents:
    """The process. `identities`: (name, certificate PEM) of each; they share a key, for making one takes the longest."""

    def __init__(
        self,
        directory: Path,
        address: tuple[str, int],
        root: str,
        key: str,
        identities: list[tuple[str, str]],
    ) -> None:
        directory.mkdir(mode=0o700)
        path = directory / "agents.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps({"address": address, "root": root, "key": key, "identities": identities}))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.storm_agents", str(path)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.answer()

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")

    def answer(self) -> dict[str, Any]:
        """What the last command came to."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process of the simulated agents has ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def stop(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Agent:
    """One of them. `due`: when it tries next, or gives up what it tries."""

    def __init__(self, number: int, name: str, context: ssl.SSLContext) -> None:
        self.name, self.context = name, context
        self.inc = f"{random.getrandbits(128):032x}"
        self.backoff = Backoff()
        self.sock: socket.socket | None = None
        self.session: ssl.SSLSession | None = None
        self.decoder = wire.Decoder()
        self.conn = 0
        self.due = 0.0
        self.number = number
        self.step = "idle"  # connecting, shaking, greeting, back
        self.retry_s: float | None = None

    def hello(self) -> bytes:
        body = {
            "proto": [1, 1],
            "inc": self.inc,
            "boot": 1,
            "conn": self.conn,
            "digest": digest_of({}),
            "agent": "sim",
        }
        return wire.frame(wire.HELLO, compact(body))


class _Storm:
    """All agents of the process, on one epoll."""

    def __init__(self, address: tuple[str, int], agents: list[_Agent]) -> None:
        self._address = address
        self._agents = agents
        self._epoll = select.epoll()
        self._by_fd: dict[int, _Agent] = {}
        self._resume = False
        self._due: list[tuple[float, int]] = []
        """When each agent is due; entries that its `due` has overtaken do not count."""
        self.tries = self.reused = 0

    def cut(self) -> None:
        for agent in self._agents:
            self._close(agent)
            agent.step = "idle"

    def run(self, resume: bool) -> dict[str, Any]:
        """Connects all at once; what it took."""
        self.cut()
        self._resume, self.tries, self.reused = resume, 0, 0
        began = time.monotonic()
        for agent in self._agents:
            agent.backoff.reset()
            agent.due = began
        missing = set(self._agents)
        self._due = [(began, n) for n in range(len(self._agents))]
        while missing and time.monotonic() < began + GIVE_UP_S:
            now = time.monotonic()
            tried = 0
            while self._due and self._due[0][0] <= now and tried < TRIES_AT_ONCE:
                at, n = heapq.heappop(self._due)
                agent = self._agents[n]
                if agent in missing and agent.due == at:
                    tried += 1
                    self._try(agent, now)
            for fd, _ in self._epoll.poll(0.02, 256):
                agent_or_none = self._by_fd.get(fd)
                if agent_or_none is not None:
                    self._ready(agent_or_none)
                    if agent_or_none.step == "back":
                        missing.discard(agent_or_none)
        return {
            "back": len(self._agents) - len(missing),
            "lost": sorted(a.name for a in missing)[:10],
            "took_s": time.monotonic() - began,
            "tries": self.tries,
            "reused": self.reused,
        }

    def watch(self) -> int:
        """How many that were back have been closed since."""
        ended = 0
        for fd, _ in self._epoll.poll(0, len(self._by_fd) or 1):
            agent = self._by_fd.get(fd)
            if agent is not None and agent.step == "back":
                self._ready(agent)
                ended += agent.step != "back"
        return ended

    def _try(self, agent: _Agent, now: float) -> None:
        self._close(agent)
        if agent.step not in ("idle", "waiting"):
            self._again(agent, now)  # it took too long
            return
        self.tries += 1
        agent.conn += 1
        agent.decoder = wire.Decoder()
        agent.retry_s = None
        self._plan(agent, now + TRY_S)
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        agent.sock = sock
        code = sock.connect_ex(self._address)
        if code not in (0, errno.EINPROGRESS):
            self._failed(agent)
            return
        agent.step = "connecting"
        self._by_fd[sock.fileno()] = agent
        self._epoll.register(sock.fileno(), select.EPOLLOUT)

    def _ready(self, agent: _Agent) -> None:
        try:
            if agent.step == "connecting":
                self._connected(agent)
            if agent.step == "shaking":
                self._shake(agent)
            if agent.step in ("greeting", "back"):
                self._read(agent)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:
            self._failed(agent)

    def _connected(self, agent: _Agent) -> None:
        raw = agent.sock
        assert raw is not None
        code = raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, "cannot connect")
        fd = raw.fileno()
        session = agent.session if self._resume else None
        agent.sock = agent.context.wrap_socket(
            raw, server_hostname=HUB_NAME, do_handshake_on_connect=False, session=session
        )
        assert agent.sock.fileno() == fd
        self._epoll.modify(fd, select.EPOLLIN | select.EPOLLRDHUP)
        agent.step = "shaking"

    def _shake(self, agent: _Agent) -> None:
        sock = agent.sock
        assert isinstance(sock, ssl.SSLSocket)
        sock.do_handshake()
        self.reused += bool(sock.session_reused)
        sock.send(agent.hello())
        agent.step = "greeting"

    def _read(self, agent: _Agent) -> None:
        sock = agent.sock
        assert isinstance(sock, ssl.SSLSocket)
        while agent.step in ("greeting", "back"):
            data = sock.recv(16384)
            if not data:
                raise ConnectionError("closed")
            for kind, _, body in agent.decoder.feed(data):
                if kind == wire.WELCOME:
                    agent.session = sock.session
                    agent.step = "back"
                elif kind == wire.GOAWAY:
                    agent.retry_s = json.loads(body)["retry_s"]

    def _failed(self, agent: _Agent) -> None:
        self._close(agent)
        self._again(agent, time.monotonic())

    def _again(self, agent: _Agent, now: float) -> None:
        wait_s = agent.backoff.next(random.random()) if agent.retry_s is None else agent.retry_s
        self._plan(agent, now + wait_s)
        agent.step = "waiting"

    def _plan(self, agent: _Agent, at: float) -> None:
        agent.due = at
        heapq.heappush(self._due, (at, agent.number))

    def _close(self, agent: _Agent) -> None:
        sock, agent.sock = agent.sock, None
        if sock is not None:
            if self._by_fd.pop(sock.fileno(), None) is not None:
                self._epoll.unregister(sock.fileno())
            sock.close()


def main() -> None:
    with open(sys.argv[1]) as file:
        given = json.load(file)
    agents = [
        _Agent(number, name, tls.client_context(given["root"], cert, given["key"]))
        for number, (name, cert) in enumerate(given["identities"])
    ]
    storm = _Storm(tuple(given["address"]), agents)
    print(json.dumps({"agents": len(agents)}), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        for line in sys.stdin:
            command = line.strip()
            if command == "cut":
                storm.cut()
                said: dict[str, Any] = {}
            elif command == "watch":
                said = {"ended": storm.watch()}
            else:
                said = storm.run(command == "storm resumed")
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
