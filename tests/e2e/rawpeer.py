"""A peer played message by message, on either end of the channel, beside real processes.

`RawPeer` is a node: it takes the identity of an agent's data directory and says whatever a test wants, counting what
passes. `play_hub` is a hub: it listens where a real hub did, with that hub's authority, and serves a real agent.
"""

import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgelite import credentials, wire
from tests.e2e.cluster import Agent, Hub
from tests.edgelite import scripted_hub

DEADLINE_S = 30.0
TLS13_APPLICATION_DATA = 23
NEW_SESSION_TICKET = 4


class Ended(Exception):
    """The hub has closed the connection."""


class RawPeer:
    """One connection to a hub. `app_in`, `app_out`: bytes of frames; `tickets`: session tickets that came."""

    def __init__(self, data_dir: str, edge: str) -> None:
        self.app_in = self.app_out = self.tickets = 0
        self._decoder = wire.Decoder()
        self._waiting: list[tuple[int, int, bytes]] = []
        context = credentials.client_context(data_dir)
        # Not public, but the one way to see tickets, which TLS 1.3 sends among the application's records.
        context._msg_callback = self._on_tls_message  # type: ignore[attr-defined]
        host, port = edge.rsplit(":", 1)
        raw = socket.create_connection((host, int(port)), DEADLINE_S)
        self._tls = context.wrap_socket(raw, server_hostname=credentials.hub_name(data_dir))

    def _on_tls_message(
        self, conn: Any, direction: str, version: Any, content: Any, kind: Any, data: bytes
    ) -> None:
        if direction == "read" and kind == NEW_SESSION_TICKET and content == 22:
            self.tickets += 1

    def send(self, kind: int, body: Any = b"") -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        data = wire.message(kind, raw)
        self.app_out += len(data)
        self._tls.sendall(data)

    def get(self, timeout_s: float = DEADLINE_S) -> tuple[int, bytes]:
        """The next message: (type, body). Raises Ended, TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not self._waiting:
            self._tls.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self._tls.recv(65536)
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError) as end:
                raise Ended(str(end)) from end
            if not data:
                raise Ended
            self.app_in += len(data)
            self._waiting = self._decoder.feed(data)
        kind, _, body = self._waiting.pop(0)
        return kind, body

    def expect(self, kind: int) -> Any:
        """The next message's JSON, which has to be of this type."""
        got, body = self.get()
        assert got == kind, f"{wire.NAMES.get(got, got)} {body[:300]!r} instead of {wire.NAMES[kind]}"
        return json.loads(body) if body else None

    def heartbeat(self) -> None:
        """PING, and nothing but its PONG comes back."""
        self.send(wire.PING)
        self.expect(wire.PONG)

    def hello(self, **fields: Any) -> None:
        """HELLO of an agent that holds nothing, with these fields on top."""
        empty = {
            "proto": [wire.PROTOCOL_MIN, wire.PROTOCOL_MAX],
            "features": ["log"],
            "agent": "0.1.0",
            "inc": "ab" * 16,
            "boot": 1,
            "conn": 1,
            "digest": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "docs": 0,
            "claim": None,
            "rev": 0,
        }
        self.send(wire.HELLO, {**empty, **fields})

    def close(self) -> None:
        self._tls.close()

    def __enter__(self) -> "RawPeer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def peer_of(agent: Agent, hub: Hub) -> RawPeer:
    """Connects with the identity of an agent, whose own process should be stopped."""
    return RawPeer(str(agent.data_dir), hub.edge)


@contextmanager
def play_hub(stopped: Hub) -> Iterator[scripted_hub.Hub]:
    """Takes the place of a hub that was stopped: its edge address, its authority."""
    assert stopped.process is None
    played = scripted_hub.Hub(stopped.data_dir / "ca", stopped.edge_port)  # type: ignore[no-untyped-call]
    played.listener.settimeout(DEADLINE_S)
    try:
        yield played
    finally:
        played.close()  # type: ignore[no-untyped-call]
