"""The edge's end of connections in memory: what an agent would say, of as little as that takes.

Of a node is kept the digest of what it holds and nothing else, and what it does is timed apart, so that memory and CPU of a
process are the hub's but for what `Link` weighs. Messages pass by way of a queue, never inside a call of the other end.
"""

import asyncio
import gc
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import orjson

from edgelite import wire
from edgelite.desired import digest_of
from hub.peers import Shown
from security.identity import NodeId
from tests.scale.made import node_name

if TYPE_CHECKING:
    from hub.gateway import Gateway

TURN: Final = 64
"""Connections that begin, or messages that arrive, in one turn of the loop."""
EMPTY: Final = digest_of({})
TRUST_DOMAIN: Final = "cloudhub.local"
YEAR_S: Final = 365 * 86400.0


class Link:
    """`hub.transport.Connection` without a socket. `digest`: of the documents that the node holds, 32 bytes; None: it has
    got others since it was synchronised, and its journal is not simulated."""

    __slots__ = ("backlog_bytes", "digest", "heard", "idle_s", "n", "net", "open", "owner", "pairs", "synced")

    def __init__(self, net: "Net", n: int, now: float) -> None:
        self.net = net
        self.n = n
        self.owner: Any = None
        self.heard = now
        self.idle_s = 10.0
        self.backlog_bytes = 0
        self.open = True
        self.synced = False
        self.digest: bytes | None = bytes.fromhex(EMPTY)
        self.pairs: dict[str, str] | None = None

    def send(self, data: bytes) -> None:
        if self.open:
            self.net.down.append((self, data))

    answer = send

    def close(self, reason: str) -> None:
        if self.open:
            self.open = False
            self.net.ended.append((self, reason))

    abort = close

    def pause(self, seconds: float) -> None:
        """Nodes here are paced by whoever measures."""

    def set_idle(self, idle_s: float) -> None:
        self.idle_s = idle_s

    def peercert(self) -> None:
        return None

    def peername(self) -> str:
        return "memory"


class Net:
    """All links of a gateway. `away_s`: CPU seconds of this thread that went into the edge's end."""

    def __init__(self, gateway: "Gateway", conn: int = 1) -> None:
        self.gateway = gateway
        self.down: deque[tuple[Link, bytes]] = deque()
        self.ended: deque[tuple[Link, str]] = deque()
        self.links: dict[int, Link] = {}
        self.away_s = 0.0
        self.synced = self.acknowledged = self.stored = self.pongs = self.resent = 0
        self.closed: list[str] = []
        self._claims: dict[int, dict[str, Any]] = {}
        self._revision = 0
        self._conn = conn
        self._entries = 0
        self._now = time.time()

    def link_bytes(self) -> int:
        """What one link weighs that is no part of the hub: itself, its digest, its place in `links`."""
        return sys.getsizeof(Link(self, 0, 0.0)) + sys.getsizeof(b"\0" * 32) + 32 + 100

    async def connect(self, numbers: list[int], digest: Callable[[int], bytes | None]) -> None:
        """These nodes come; `digest`: of what each holds. Returns when all are synchronised."""
        self._conn += 1
        for at in range(0, len(numbers), TURN):
            for n in numbers[at : at + TURN]:
                self._dial(n, digest(n))
            await self.quiet()
        await self.until(lambda: all(self.links[n].synced for n in numbers))

    def cut(self, numbers: list[int]) -> dict[int, bytes | None]:
        """Their links break; gives what each node holds."""
        held = {}
        for n in numbers:
            link = self.links.pop(n)
            held[n] = link.digest
            if link.open:
                link.open = False
                self.gateway.closed(link, "cut")  # type: ignore[arg-type]
        return held

    def beat(self, link: Link) -> None:
        """One heartbeat; its answer is taken by `quiet`."""
        link.heard = self.gateway.now()
        self.gateway.received(link, wire.frame(wire.PING))  # type: ignore[arg-type]

    def report(self, link: Link, key: str, status: dict[str, Any]) -> None:
        """The node reports a pod's status."""
        began = time.thread_time()
        self._entries += 1
        body = orjson.dumps({"e": [{"n": self._entries, "k": key, "t": "pod", "b": status}]})
        data = wire.message(wire.REPORT, body)
        self.away_s += time.thread_time() - began
        self.gateway.received(link, data)  # type: ignore[arg-type]

    async def quiet(self) -> None:
        """Until nothing is on its way in either direction at this moment."""
        while self.down or self.ended:
            for _ in range(min(TURN, len(self.down))):
                link, data = self.down.popleft()
                for answer in self._heard(link, data):
                    self.gateway.received(link, answer)  # type: ignore[arg-type]
            while self.ended:
                link, reason = self.ended.popleft()
                if len(self.closed) < 20:
                    self.closed.append(f"{node_name(link.n)}: {reason}")
                self.gateway.closed(link, reason)  # type: ignore[arg-type]
            await asyncio.sleep(0)

    async def until(self, done: Callable[[], bool]) -> None:
        """Passes messages until `done`. Raises RuntimeError when a connection was ended by the hub."""
        while not done():
            await self.quiet()
            if self.closed:
                raise RuntimeError(f"the hub has ended connections: {self.closed}")
            await asyncio.sleep(0.001)

    def _dial(self, n: int, digest: bytes | None) -> None:
        began = time.thread_time()
        gateway, name = self.gateway, node_name(n)
        link = self.links[n] = Link(self, n, gateway.now())
        link.digest = digest
        identity = NodeId(TRUST_DOMAIN, "default", name, name)
        shown = Shown("cloudhub", f"{n:032x}", self._now - 3600, self._now + YEAR_S, f"{n:016x}")
        self.away_s += time.thread_time() - began
        gateway.accept(link, identity, shown)  # type: ignore[arg-type]
        peer = link.owner
        began = time.thread_time()
        hello = {
            "proto": [1, 1],
            "features": ["log", "exec", "portforward", "services", "usage"],
            "agent": "0.1.0",
            "inc": f"{n:032x}",
            "boot": 1,
            "conn": self._conn,
            "digest": digest.hex() if digest is not None else EMPTY,
            "docs": 0,
            "claim": self._claims.get(peer.slot),
            "rev": self._revision,
            "limits": {"document": 1450000, "frame": 1 << 20},
        }
        data = wire.frame(wire.HELLO, orjson.dumps(hello))
        self.away_s += time.thread_time() - began
        gateway.received(link, data)  # type: ignore[arg-type]

    def _heard(self, link: Link, data: bytes) -> list[bytes]:
        """What the node does about it, timed apart."""
        began = time.thread_time()
        try:
            return self._answers(link, data) if link.open else []
        finally:
            self.away_s += time.thread_time() - began

    def _answers(self, link: Link, data: bytes) -> list[bytes]:
        acks: list[list[str]] = []
        out: list[bytes] = []
        for kind, _, body in wire.Decoder().feed(data):
            if kind == wire.PONG:
                self.pongs += 1
            elif kind == wire.SET:
                header = orjson.loads(wire.split_set_body(body)[0])
                acks.append([header["k"], header["v"]])
                self._revision = max(self._revision, header["r"])
                self.acknowledged += 1
                if link.pairs is not None:
                    link.pairs[header["k"]] = header["v"]
                else:
                    link.digest = None
            elif kind == wire.SYNCED:
                link.digest = bytes.fromhex(digest_of(link.pairs or {}))
                assert link.digest.hex() == orjson.loads(body)["digest"], (
                    "hub and node disagree on what it holds"
                )
                link.pairs = None
                self._live(link)
            elif kind == wire.STORED:
                self.stored += len(orjson.loads(body)["n"])
            elif kind == wire.WELCOME:
                out += self._welcomed(link, orjson.loads(body))
            elif kind == wire.GOAWAY:
                self.closed.append(f"{node_name(link.n)}: {body[:200].decode()}")
        if acks:
            out.append(wire.message(wire.ACK, b'{"a":%b}' % orjson.dumps(acks)))
        return out

    def _welcomed(self, link: Link, said: dict[str, Any]) -> list[bytes]:
        if said["sync"] == "hold":
            self.closed.append(f"{node_name(link.n)} is held: {said.get('reason')}")
            return []
        names = {"store": "store", "gen": "gen", "slot": "slot", "epoch": "epoch", "claim": "id"}
        self._claims[said["slot"]] = {short: said[name] for name, short in names.items()}
        self._revision = max(self._revision, said["rev"])
        if said["sync"] == "match":
            self._live(link)
            return []
        # Nothing is there: a new disk, or a journal that is not simulated.
        self.resent += 1
        link.pairs = {}
        return [wire.frame(wire.PAIRS, b'{"pairs":[]}')]

    def _live(self, link: Link) -> None:
        link.synced = True
        self.synced += 1


def collect() -> None:
    """As a hub does when it has loaded what it serves."""
    gc.collect()
    gc.freeze()
