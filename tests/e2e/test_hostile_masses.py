"""Masses of connections, frames and bytes on the edge-cloud channel: bounded, and nobody else notices (`hostile_fleet`)."""

import concurrent.futures
import contextlib
import itertools
import resource
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgelite import wire
from tests.e2e.cluster import sleeper, wait_for
from tests.e2e.hostile import HUB_NAME, enrolled, figures, hello, peer, stranger, wait_heartbeats
from tests.e2e.hostile_fleet import PODS, Fleet


@contextlib.contextmanager
def descriptors(count: int) -> Iterator[None]:
    """Allows this process that many open files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count + 256:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count + 256, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def client_hello() -> bytes:
    """The first flight of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client = context.wrap_bio(incoming, outgoing, server_hostname=HUB_NAME)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_a_thousand_connections_that_never_finish_the_handshake_disturb_nobody(
    fleet: Fleet, tmp_path: Path
) -> None:
    """Some say nothing, some stop within the ClientHello, some after it."""
    hub, flight = fleet.hub, client_hello()
    crowded = figures(hub).get("closed.handshake-crowded", 0)
    with descriptors(1000), contextlib.ExitStack() as stack:
        for n in range(1000):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", hub.edge_port), timeout=30))
            with contextlib.suppress(ConnectionError):
                sock.sendall((b"", flight[:100], flight)[n % 3])
        wait_for(lambda: figures(hub)["accepted"] >= 1000, "all are accepted")
        assert figures(hub)["handshaking"] <= 512
        assert figures(hub).get("closed.handshake-crowded", 0) - crowded >= 480, "the oldest made room"
        wait_heartbeats(hub, 3)
        assert "good" in fleet.cluster.kubectl("get", "nodes")
        newcomer = enrolled(hub, "newcomer", tmp_path / "newcomer")
        with peer(hub, newcomer.client()) as one:
            one.send(wire.HELLO, hello())
            assert one.receive(wire.WELCOME)["proto"] == 1
        hub.api("DELETE", "/api/v1/nodes/newcomer")
        wait_for(lambda: figures(hub)["handshaking"] == 0, "the hub has given up on them")


def test_who_connects_and_says_nothing_is_closed(fleet: Fleet) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(peer(fleet.hub, stranger(fleet.hub))) for _ in range(10)]
        silent += [stack.enter_context(peer(fleet.hub, fleet.mallory.client())) for _ in range(10)]
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            list(pool.map(lambda one: one.wait_closed(), silent))
        assert figures(fleet.hub)["closed.idle"] >= 20


def test_a_flood_of_pings_is_cut_off_and_the_others_are_served(fleet: Fleet) -> None:
    """Nobody reads the PONGs either."""
    flood = wire.frame(wire.PING) * 1000
    with peer(fleet.hub, fleet.mallory.client()) as one:
        one.send(wire.HELLO, hello())
        one.receive(wire.WELCOME)
        one.sock.settimeout(60)
        with pytest.raises((ConnectionError, ssl.SSLError, TimeoutError)):
            # Until it is cut off, which the test's own time limit bounds: what it sends behind the good-bye is thrown away
            # faster than it could be handled.
            for n in itertools.count():
                one.raw(flood)
                if n == 5:
                    assert "good" in fleet.cluster.kubectl("get", "nodes")
    closed = figures(fleet.hub)
    assert closed.get("closed.overload", 0) + closed.get("closed.slow", 0) >= 1, closed
    assert figures(fleet.hub)["backlog_bytes"] < 9 << 20


def test_a_peer_that_reads_nothing_costs_the_hub_a_window_and_no_more(fleet: Fleet) -> None:
    """16 MB of documents wait for it; what is under way to it stays below 8 MB."""
    hub = fleet.hub
    small = 4096
    with peer(hub, fleet.mallory.client()) as one:
        one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, small)
        one.send(wire.HELLO, hello())
        one.receive(wire.WELCOME)
        one.send(wire.PAIRS, {"pairs": []})
        one.receive(wire.SYNCED)
        names = [f"slow-{n}" for n in range(16)]
        for name in names:
            hub.api("POST", PODS, sleeper(name, "mallory", script="#" + "x" * 1_000_000))
        backlog = figures(hub)["backlog_bytes"]
        assert backlog < 8 << 20, backlog
        wait_heartbeats(hub, 2)
        assert "good" in fleet.cluster.kubectl("get", "nodes")
    for name in names:
        hub.api("DELETE", f"{PODS}/{name}?gracePeriodSeconds=0")
