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
from tests.e2e.cluster import Hub, sleeper, wait_for
from tests.e2e.hostile import client_hello, enrolled, figures, hello, peer, stranger, wait_heartbeats
from tests.e2e.hostile_fleet import PODS, Fleet
from tests.e2e.steady import Steady, enough

HALF_OPEN = 10_000


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


def test_ten_thousand_connections_that_never_finish_the_handshake_disturb_nobody(
    fleet: Fleet, watched: Steady, tmp_path: Path
) -> None:
    """From 250 addresses. Some say nothing, some stop within the ClientHello, some after it."""
    hub, flight = fleet.hub, client_hello()
    before = gone(hub)
    with descriptors(HALF_OPEN), contextlib.ExitStack() as stack:
        for n in range(HALF_OPEN):
            source = (f"127.0.{1 + n % 10}.{1 + n // 10 % 25}", 0)
            sock = stack.enter_context(
                socket.create_connection(("127.0.0.1", hub.edge_port), timeout=30, source_address=source)
            )
            with contextlib.suppress(ConnectionError):
                sock.sendall((b"", flight[:100], flight)[n % 3])
        wait_for(
            lambda: gone(hub) - before >= HALF_OPEN - 512, "the oldest made room, or others wait outside"
        )
        assert figures(hub)["handshaking"] <= 512
        wait_heartbeats(hub, 3)
        assert "good" in fleet.cluster.kubectl("get", "nodes")
        newcomer = enrolled(hub, "newcomer", tmp_path / "newcomer")
        with peer(hub, newcomer.client()) as one:
            one.send(wire.HELLO, hello())
            assert one.receive(wire.WELCOME)["proto"] == 1
        hub.api("DELETE", "/api/v1/nodes/newcomer")
        enough(watched, reports=2)
        wait_for(lambda: figures(hub)["handshaking"] == 0, "the hub has given up on them")


def gone(hub: Hub) -> float:
    """Connections that the hub has closed or refused, for whatever reason, or that wait outside."""
    counted = ("refused", "handshakes_waiting")
    return sum(v for name, v in figures(hub).items() if name.startswith("closed.") or name in counted)


def test_who_connects_and_says_nothing_is_closed(fleet: Fleet) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(peer(fleet.hub, stranger(fleet.hub))) for _ in range(10)]
        silent += [stack.enter_context(peer(fleet.hub, fleet.mallory.client())) for _ in range(10)]
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            list(pool.map(lambda one: one.wait_closed(), silent))
        closed = figures(fleet.hub)
        assert closed["closed.idle"] >= 14 and closed["closed.superseded"] >= 6, "of one node four at a time"


def test_a_flood_of_pings_is_read_no_faster_than_allowed_and_the_others_are_served(fleet: Fleet) -> None:
    """Nobody reads the PONGs either."""
    flood = wire.frame(wire.PING) * 1000
    before = figures(fleet.hub).get("throttled", 0)
    with peer(fleet.hub, fleet.mallory.client()) as one:
        one.send(wire.HELLO, hello())
        one.receive(wire.WELCOME)
        one.sock.settimeout(3)
        with pytest.raises((ConnectionError, ssl.SSLError, TimeoutError)):
            # Until the hub's back-pressure holds it up, or it is closed as slow; the test's own time limit bounds it.
            for n in itertools.count():
                one.raw(flood)
                if n == 5:
                    assert "good" in fleet.cluster.kubectl("get", "nodes")
        wait_heartbeats(fleet.hub, 2)
        assert figures(fleet.hub)["backlog_bytes"] < 9 << 20
    assert figures(fleet.hub)["throttled"] > before


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
