"""Many edge nodes in one process: real mTLS, the real codec, the agent's rules, no workloads.

For tests and benches of the hub. Each `SimNode` keeps documents, acknowledges them, sends heartbeats and reports when
told to; one epoll drives them all, on a thread of its own or from an asyncio test through `run_in_executor`.
`Fleet.step` is the whole loop body, so that a test decides when time passes.

Does not do: journals, reconnecting by itself (call `connect` again), TLS name checks beyond the context's own.
"""

import json
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from edgelite import wire
from edgelite.desired import compact, digest_of, version_of
from hub.simulate.node import running_status
from tests.sim.shell import Shell

HUB_NAME = "hub.cloudhub.local"
PING = wire.frame(wire.PING)


class SimNode:
    """One simulated agent. `claim`, `docs` and `revision` survive reconnects, as a journal would have it."""

    def __init__(self, fleet: "Fleet", name: str, context: ssl.SSLContext) -> None:
        self.fleet = fleet
        self.name = name
        self.context = context
        self.inc = os.urandom(16).hex()
        self.boot = 1
        self.conn = 0
        self.docs: dict[str, str] = {}
        self.bodies: dict[str, bytes] = {}
        self.claim: dict[str, Any] | None = None
        self.revision = 0
        self.n = 0
        self.limits: dict[str, int] | None = None
        self.nacks: dict[str, tuple[str, str]] = {}
        self.report_running = False
        self.silent = False
        self.trust = ""
        """The bundle that it says to hold; "": an agent that does not know them."""
        self.stranger = False
        """It has no certificate, and says nothing by itself."""
        self.session: ssl.SSLSession | None = None
        self.streams: dict[int, bytes] = {}
        self.log: bytes = b""
        self.unsent: dict[int, tuple[bytes, bool]] = {}
        """What of its logs waits for credit, by stream, and whether the stream is followed."""
        self.shell: Shell | None = None
        """What serves exec, attach and port-forward here; None: an agent that does not know them."""
        self.sock: ssl.SSLSocket | None = None
        self.address: tuple[str, int] | None = None
        self.redirects = 0
        self.dels = 0
        self.unanswered: dict[int, dict[str, Any]] | None = None
        """Reports that are sent again on every connection until they are answered; None: each is sent once."""
        self._reset()

    def _reset(self) -> None:
        self.decoder = wire.Decoder()
        self.out = b""
        self.shaking = True
        self.welcome: dict[str, Any] | None = None
        self.goaway: dict[str, Any] | None = None
        self.bundle: dict[str, Any] = {}
        self.bundles = self.asked = 0
        self.renewed: dict[str, Any] | None = None
        self.joined: dict[str, Any] | None = None
        self.redirect: str | None = None
        self.closed = False
        self.synced = 0
        self.sets = 0
        self.acks = 0
        self.pongs = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self.stored: dict[int, str] = {}

    def connect(self, address: tuple[str, int] | None = None) -> None:
        """Opens a new connection; what was there is dropped without a word. `address`: not the fleet's."""
        self.redirects, self.address = 0, address or self.fleet.address
        self._connect()

    def _connect(self) -> None:
        self.drop()
        self._reset()
        self.conn += 1
        raw = socket.create_connection(self.address or self.fleet.address, timeout=10)
        raw.setblocking(False)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self.context.wrap_socket(raw, server_hostname=HUB_NAME, do_handshake_on_connect=False)
        self.fleet.add(self)

    def drop(self) -> None:
        """Cuts the connection."""
        with self.fleet.lock:  # the test's thread and the fleet's own may both cut it
            if self.sock is not None:
                self.fleet.remove(self)
                self.sock.close()
                self.sock = None
        self.closed = True

    def send(self, kind: int, body: Any = None, stream: int = 0) -> None:
        raw = body if isinstance(body, bytes) else b"" if body is None else compact(body)
        self.raw(wire.message(kind, raw, stream))

    def raw(self, data: bytes) -> None:
        # The test's thread, or the fleet's own, which may be sending at this moment.
        with self.fleet.lock:
            self.sent_bytes += len(data)
            self.out += data
            if not self.shaking:
                self.flush()

    def ping(self) -> None:
        self.raw(PING)

    def report(self, kind: str, key: str, body: Any) -> int:
        """Sends one upstream entry; returns its number."""
        with (
            self.fleet.lock
        ):  # tests call it beside the fleet's thread, which may be writing to the same socket
            self.n += 1
            entry = {"n": self.n, "k": key, "t": kind, "b": body}
            if self.unanswered is not None:
                self.unanswered[self.n] = entry
                if self.welcome is None or self.closed:
                    return self.n
            self.send(wire.REPORT, {"e": [entry]})
            return self.n

    def flush(self) -> None:
        if self.sock is None:
            return
        try:
            while self.out:
                sent = self.sock.send(self.out[:65536])
                self.out = self.out[sent:]
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:
            self.drop()

    # -- what the socket brings --------------------------------------------------------------------------------------

    def ready(self) -> None:
        try:
            if self.shaking:
                assert self.sock is not None
                self.sock.do_handshake()
                self.shaking = False
                if not self.stranger:
                    self._hello()
                self.flush()
            while self.sock is not None:
                data = self.sock.recv(16384)
                if not data:
                    self.drop()
                    return
                self.received_bytes += len(data)
                acks: list[list[str]] = []
                for kind, stream, body in self.decoder.feed(data):
                    self._message(kind, stream, body, acks)
                if self.redirect is not None:
                    self._follow(self.redirect)
                    return
                if acks:
                    self.acks += len(acks)
                    self.send(wire.ACK, {"a": acks})
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self.flush()
        except OSError:
            self.drop()

    def _follow(self, to: str) -> None:
        self.redirects = 1 if self.welcome else self.redirects + 1
        assert self.redirects <= 4, f"{self.name} is sent from hub to hub"
        host, _, port = to.rpartition(":")
        self.address = (host, int(port))
        self._connect()

    def _hello(self) -> None:
        self.send(
            wire.HELLO,
            {
                "proto": [1, 1],
                "features": [
                    "log",
                    *(self.shell.features if self.shell else ()),
                    *(["trust"] if self.trust else ()),
                ],
                "agent": "sim",
                "inc": self.inc,
                "boot": self.boot,
                "conn": self.conn,
                "digest": digest_of(self.docs),
                "docs": len(self.docs),
                "claim": self.claim,
                "rev": self.revision,
                **({"limits": self.limits} if self.limits else {}),
                **({"trust": self.trust} if self.trust else {}),
                **({"redirects": self.redirects} if self.redirects else {}),
            },
        )

    def _message(self, kind: int, stream: int, body: bytes, acks: list[list[str]]) -> None:
        if kind == wire.PONG:
            self.pongs += 1
        elif kind == wire.SET:
            self._set(body, acks)
        elif kind == wire.DEL:
            fields = json.loads(body)
            self.dels += 1
            self.docs.pop(fields["k"], None)
            self.bodies.pop(fields["k"], None)
            self.revision = max(self.revision, fields["r"])
            acks.append([fields["k"], ""])
        elif kind == wire.WELCOME:
            self._welcomed(json.loads(body))
        elif kind == wire.SYNCED:
            fields = json.loads(body)
            assert fields["digest"] == digest_of(self.docs), f"{self.name}: digests differ after SYNCED"
            self.synced += 1
        elif kind == wire.STORED:
            fields = json.loads(body)
            self.stored.update((n, "") for n in fields["n"])
            self.stored.update((n, reason) for n, reason in fields["refused"])
            self.revision = max(self.revision, fields["r"])
            for n in [*fields["n"], *(n for n, _ in fields["refused"])]:
                (self.unanswered or {}).pop(n, None)
        elif kind == wire.GOAWAY:
            self.goaway = json.loads(body)
        elif kind == wire.BUNDLE:
            self.bundle = json.loads(body)
            self.bundles += 1
            self.asked += self.bundle.get("renew") is True
        elif kind == wire.RENEWED:
            self.renewed = json.loads(body)
        elif kind == wire.JOINED:
            self.joined = json.loads(body)
        elif kind == wire.REDIRECT:
            self.redirect = json.loads(body)["to"]
        elif self.shell is not None and self.shell.message(kind, stream, body):
            pass
        elif kind == wire.OPEN:
            self._open(stream, json.loads(body))
        elif kind == wire.CLOSE:
            self.streams.pop(stream, None)
            self.unsent.pop(stream, None)
        elif kind == wire.CREDIT:
            self._credit(stream, json.loads(body)["c"])

    def _welcomed(self, fields: dict[str, Any]) -> None:
        self.welcome = fields
        if fields["sync"] == "hold":
            return
        self.claim = {"store": fields["store"], "gen": fields["gen"], "slot": fields["slot"]}
        self.claim.update(epoch=fields["epoch"], id=fields["claim"])
        if fields.get("confirmed"):
            self.revision = 0
        if fields["sync"] == "diff":
            self.send(wire.PAIRS, {"pairs": sorted(self.docs.items())})
        if self.unanswered:
            self.send(wire.REPORT, {"e": list(self.unanswered.values())})

    def _set(self, body: bytes, acks: list[list[str]]) -> None:
        header, document = wire.split_set_body(body)
        fields = json.loads(header)
        key, version = fields["k"], fields["v"]
        if not self.silent:
            assert version == version_of(document)
        self.sets += 1
        self.docs[key] = version
        self.bodies[key] = document
        self.revision = max(self.revision, fields["r"])
        if self.silent:
            return
        refusal = self.nacks.get(key)
        if refusal is not None:
            reason, message = refusal
            self.send(wire.NACK, {"k": key, "v": version, "reason": reason, "message": message})
            return
        acks.append([key, version])
        if self.report_running and key.startswith("pod/"):
            if "del" in json.loads(document):
                self.report("gone", key, {})
            else:
                self.report("pod", key, running_status())

    def _open(self, stream: int, request: dict[str, Any]) -> None:
        self.streams[stream] = json.dumps(request).encode()
        if self.log:
            self.unsent[stream] = (self.log, request.get("follow", False))
            self._credit(stream, request["credit"])

    def _credit(self, stream: int, credit: int) -> None:
        if stream not in self.unsent:
            return
        rest, follow = self.unsent.pop(stream)
        for at in range(0, min(credit, len(rest)), 65536):
            self.send(wire.DATA, rest[at : min(at + 65536, credit)], stream)
        if rest[credit:]:
            self.unsent[stream] = (rest[credit:], follow)
        elif not follow:
            self.send(wire.CLOSE, {}, stream)


class Fleet:
    """All simulated nodes of a process, on one epoll."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.nodes: dict[str, SimNode] = {}
        self._by_fd: dict[int, SimNode] = {}
        self._epoll = select.epoll()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.failure: BaseException | None = None
        self.lock = threading.RLock()

    def node(self, name: str, context: ssl.SSLContext) -> SimNode:
        node = self.nodes[name] = SimNode(self, name, context)
        return node

    def add(self, node: SimNode) -> None:
        assert node.sock is not None
        with self.lock:
            self._by_fd[node.sock.fileno()] = node
            self._epoll.register(node.sock.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
            node.ready()  # ClientHello

    def remove(self, node: SimNode) -> None:
        assert node.sock is not None
        with self.lock:
            if self._by_fd.pop(node.sock.fileno(), None) is not None:
                self._epoll.unregister(node.sock.fileno())

    def step(self, seconds: float = 0.01) -> None:
        """Waits up to `seconds` for something to happen and lets the nodes act on it."""
        for fd, _ in self._epoll.poll(seconds, 512):
            with self.lock:
                node = self._by_fd.get(fd)
                if node is not None:
                    node.ready()

    def run(self, done: Callable[[], bool], seconds: float = 30.0) -> None:
        """Steps until `done()`. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError("the fleet did not get there in time")
            self.step()

    def run_for(self, seconds: float) -> None:
        """Steps for that long."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.step(left)

    def connect_all(self, nodes: Iterable[SimNode], at_once: int = 50, seconds: float = 120.0) -> None:
        """Connects and waits for every WELCOME, `at_once` handshakes at a time."""
        waiting: list[SimNode] = []

        def answered() -> bool:
            return any(n.welcome or n.closed for n in waiting)

        for node in nodes:
            node.connect()
            waiting.append(node)
            if len(waiting) >= at_once:
                self.run(answered, seconds)
                waiting[:] = [n for n in waiting if not (n.welcome or n.closed)]
        self.run(lambda: all(n.welcome or n.closed for n in waiting), seconds)

    def start(self) -> None:
        """Runs on a thread of its own until `stop`; for tests whose hub is in the same process."""
        self._thread = threading.Thread(target=self._forever, name="fleet", daemon=True)
        self._thread.start()

    def _forever(self) -> None:
        try:
            while not self._stop.is_set():
                self.step(0.02)
        except BaseException as failure:
            self.failure = failure
            raise

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10)
        for node in self.nodes.values():
            node.drop()
        self._epoll.close()
        if self.failure is not None:
            raise self.failure
