"""Hostile peers that hold on to what they were given: streams, windows, old frames, compressed bodies.

Beside each runs a node whose heartbeats and reports are timed (`steady`), besides what `hostile_fleet` watches.
"""

import contextlib
import gzip
import http.client
import json
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

from edgelite import wire
from hub.kubelet import spdy
from hub.logstreams import CREDIT_BYTES
from tests.e2e.cluster import Hub, sleeper, wait_for
from tests.e2e.hostile import (
    Peer,
    admin_context,
    figures,
    hello,
    peer,
    request,
)
from tests.e2e.hostile_fleet import PODS, Fleet
from tests.e2e.steady import Steady, enough

ENDLESS_LINES = 20_000_000


@contextlib.contextmanager
def serving(fleet: Fleet, pod: str) -> Iterator[tuple[Peer, str]]:
    """The enrolled node `mallory`, connected and with a pod that it says is running; (connection, path of its log)."""
    hub = fleet.hub
    made = hub.api("POST", PODS, sleeper(pod, "mallory"))
    key = f"pod/default/{pod}/{made['metadata']['uid']}"
    with peer(hub, fleet.mallory.client()) as one:
        one.send(wire.HELLO, hello())
        one.receive(wire.WELCOME)
        one.send(wire.PAIRS, {"pairs": []})
        one.receive(wire.SYNCED)
        running = {"name": "main", "ready": True, "restartCount": 0, "image": "none", "imageID": "",
                   "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}  # fmt: skip
        status = {"phase": "Running", "containerStatuses": [running]}
        one.send(wire.REPORT, {"e": [{"n": time.time_ns() >> 12, "k": key, "t": "pod", "b": status}]})
        assert one.receive(wire.STORED)["n"]
        yield one, f"{PODS}/{pod}/log?follow=true"
    hub.api("DELETE", f"{PODS}/{pod}?gracePeriodSeconds=0")


@contextlib.contextmanager
def reading(hub: Hub, path: str) -> Iterator[http.client.HTTPConnection]:
    """A client of the API that has asked for `path` over a connection that takes little by itself."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
    raw.settimeout(60)
    raw.connect(("127.0.0.1", hub.api_port))
    connection = http.client.HTTPConnection("127.0.0.1")
    connection.sock = admin_context(hub).wrap_socket(raw, server_hostname="127.0.0.1")
    connection.request("GET", path)
    try:
        yield connection
    finally:
        connection.close()


def stream_of(one: Peer) -> tuple[int, int]:
    """(id, credit) of the stream that the hub opens next on this connection."""
    decoder = one.decoder
    while True:
        data = one.sock.recv(65536)
        assert data, "the hub closed the connection"
        for kind, stream, body in decoder.feed(data):
            if kind == wire.OPEN:
                return stream, int(json.loads(body)["credit"])
            one.arrived.append((kind, body))


def test_a_node_that_sends_more_of_a_log_than_it_was_granted_is_cut_off(
    fleet: Fleet, watched: Steady
) -> None:
    with serving(fleet, "greedy") as (one, path), reading(fleet.hub, path):
        stream, _ = stream_of(one)
        one.raw(
            wire.message(wire.DATA, b"x" * 65535 + b"\n", stream) * 64
        )  # 4 MiB, sixteen times what it has
        said = one.refusal()
        assert said["code"] == "protocol" and "which had" in said["message"], said
        enough(watched)


def test_a_log_that_nobody_reads_costs_its_credit_and_no_more(fleet: Fleet, watched: Steady) -> None:
    hub = fleet.hub
    with serving(fleet, "unread") as (one, path), reading(hub, path):
        stream, credit = stream_of(one)
        rss, sent, granted = hub.rss_bytes(), 0, credit
        one.sock.settimeout(1.0)
        chunk = b"y" * 1023 + b"\n"
        while True:
            while sent + len(chunk) <= granted:
                one.raw(wire.message(wire.DATA, chunk, stream))
                sent += len(chunk)
            try:
                data = one.sock.recv(65536)
            except TimeoutError:
                break  # a second without more credit, while the other node is served
            assert data
            for kind, _, body in one.decoder.feed(data):
                if kind == wire.CREDIT:
                    granted += int(json.loads(body)["c"])
            assert sent < 64 << 20, "a reader that does not read is sent everything"
        assert sent >= credit
        grown = hub.rss_bytes() - rss
        print(f"\n{sent >> 10} KiB left the node, the hub grew by {grown >> 10} KiB")
        assert grown < 16 << 20
        enough(watched)


def test_a_log_without_an_end_reaches_its_reader_and_delays_nobody(fleet: Fleet, watched: Steady) -> None:
    """The node sends as fast as it is granted, the client reads as fast as it can."""
    hub = fleet.hub
    with serving(fleet, "endless") as (one, path), reading(hub, path) as client:
        stream, granted = stream_of(one)
        ended = threading.Event()
        line = b"z" * 1023 + b"\n"

        def pour() -> None:
            nonlocal granted
            sent = 0
            with contextlib.suppress(OSError, ssl.SSLError):
                while not ended.is_set():
                    while sent + 32 * len(line) <= granted:
                        one.raw(wire.message(wire.DATA, 32 * line, stream))
                        sent += 32 * len(line)
                    for kind, _, body in one.decoder.feed(one.sock.recv(65536)):
                        if kind == wire.CREDIT:
                            granted += int(json.loads(body)["c"])
                        if kind == wire.CLOSE:
                            return

        thread = threading.Thread(target=pour)
        thread.start()
        try:
            response = client.getresponse()
            assert response.status == 200
            read, before = 0, len(watched.pings)
            while read < 64 << 20 and len(watched.pings) < before + 40:
                read += len(response.read(1 << 16))
            assert read > 8 * CREDIT_BYTES, "it went on after its first credit"
            enough(watched, reports=2)
        finally:
            ended.set()
            response.close()
            client.close()
            one.sock.shutdown(socket.SHUT_RDWR)
            thread.join(30)


def test_a_stream_that_was_never_opened_or_is_over_takes_nothing(fleet: Fleet, watched: Steady) -> None:
    hub = fleet.hub
    rss = hub.rss_bytes()
    with serving(fleet, "ghostly") as (one, _):
        for stream in (1, 3, 7, 65535, 2, 0):
            for _ in range(64):
                one.raw(wire.message(wire.DATA, bytes(16384), stream))
            one.raw(wire.frame(wire.CREDIT, b'{"c":2147483647}', stream))
            one.raw(wire.frame(wire.CLOSE, b"{}", stream))
        one.send(wire.PING)
        one.receive(wire.PONG)
        enough(watched)
    assert hub.rss_bytes() - rss < 16 << 20


def test_frames_of_an_old_session_that_are_replayed_change_nothing(fleet: Fleet, watched: Steady) -> None:
    """What passed on one connection, recorded, on two later ones: a HELLO that counts less is refused beside a live
    session and after it, and reports that were stored are not stored again."""
    hub = fleet.hub
    event = {
        "reason": "Played",
        "message": "m",
        "type": "Normal",
        "count": 1,
        "first": 1,
        "last": 1,
        "field": "",
    }
    report = {"e": [{"n": 900001, "k": "node", "t": "event", "b": event}]}

    def events() -> list[Any]:
        return [e for e in hub.api("GET", "/api/v1/events")["items"] if e["reason"] == "Played"]

    old = [(wire.HELLO, hello()), (wire.PAIRS, {"pairs": []}), (wire.REPORT, report)]
    with peer(hub, fleet.mallory.client()) as first:
        for kind, body in old:
            first.send(kind, body)
            if kind == wire.HELLO:
                first.receive(wire.WELCOME)
        assert first.receive(wire.STORED)["n"] == [900001]
    wait_for(lambda: len(events()) == 1, "the event is stored")
    with peer(hub, fleet.mallory.client()) as live:
        live.send(wire.HELLO, hello())
        live.receive(wire.WELCOME)
        live.send(wire.PAIRS, {"pairs": []})
        live.receive(wire.SYNCED)
        with peer(hub, fleet.mallory.client()) as replay:
            replay.send(wire.HELLO, old[0][1])
            assert replay.refusal()["code"] == "superseded"
        live.send(wire.PING)
        live.receive(wire.PONG)
        live.send(wire.REPORT, report)
        live.receive(wire.STORED)
    with peer(hub, fleet.mallory.client()) as later:
        later.send(wire.HELLO, old[0][1])
        assert later.refusal()["code"] == "superseded"
    assert [e["count"] for e in events()] == [1]
    enough(watched)


def test_a_compressed_body_is_refused_before_it_is_unpacked(fleet: Fleet, watched: Steady) -> None:
    hub = fleet.hub
    bomb = gzip.compress(b'{"kind":"ConfigMap","data":{"a":"' + bytes(24 << 20) + b'"}}')
    rss = hub.rss_bytes()
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip"):
        path = "/api/v1/namespaces/default/configmaps"
        status, said = request(hub, "POST", path, bomb, headers={"Content-Encoding": encoding})
        assert status == 415 and "uncompressed" in said["message"], said
    assert hub.rss_bytes() - rss < 16 << 20
    enough(watched)


def test_a_bomb_among_the_headers_of_a_stream_ends_its_connection(fleet: Fleet, watched: Steady) -> None:
    """SPDY compresses headers: half a megabyte on the wire could be half a gigabyte here."""
    hub = fleet.hub
    rss = hub.rss_bytes()
    deflate = zlib.compressobj(level=9, zdict=spdy.DICTIONARY)
    block = deflate.compress(struct.pack(">III", 1, 1, 10 << 20) + b"a" * (10 << 20)) + deflate.flush(
        zlib.Z_SYNC_FLUSH
    )
    bomb = spdy._frame(spdy.SYN_STREAM, struct.pack(">IIBB", 1, 0, 0, 0) + block)
    for _ in range(10):
        raw = socket.create_connection(("127.0.0.1", hub.api_port), timeout=60)
        with raw, admin_context(hub).wrap_socket(raw, server_hostname="127.0.0.1") as sock:
            upgrade = (
                f"POST {PODS}/work/exec?command=true&container=main&stdout=true HTTP/1.1\r\nHost: hub\r\n"
                "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
            )
            sock.sendall(upgrade.encode())
            assert b"101" in sock.recv(65536)
            with contextlib.suppress(OSError):
                sock.sendall(bomb)
                while sock.recv(65536):
                    pass
    assert hub.rss_bytes() - rss < 32 << 20
    enough(watched)


def test_a_flood_of_reports_is_held_back_and_the_others_are_stored(fleet: Fleet, watched: Steady) -> None:
    """Many times the window that it was granted, none of them waited for."""
    hub, body = fleet.hub, {"addresses": [{"type": "Hostname", "address": "m"}]}
    entries = [{"n": n, "k": "node", "t": "node", "b": body} for n in range(1, 101)]
    with peer(hub, fleet.mallory.client()) as one:
        one.send(wire.HELLO, hello())
        one.receive(wire.WELCOME)
        one.send(wire.PAIRS, {"pairs": []})
        one.receive(wire.SYNCED)
        one.sock.settimeout(2.0)
        before = len(watched.reports)
        with contextlib.suppress(OSError, ssl.SSLError):  # cut off, or read no more: as the hub decides
            while len(watched.reports) < before + 4:
                one.send(wire.REPORT, {"e": entries})
        enough(watched)
    assert figures(hub)["upstream_jobs"] < 50_000


def test_records_of_one_byte_each_do_not_keep_the_hub_from_the_others(fleet: Fleet, watched: Steady) -> None:
    with peer(fleet.hub, fleet.mallory.client()) as one:
        one.send(wire.HELLO, hello())
        one.receive(wire.WELCOME)
        data = wire.frame(wire.REPORT, b"x" * (1 << 20))
        one.raw(data[: 1 << 19])
        before, at = len(watched.reports), 1 << 19
        with contextlib.suppress(OSError, ssl.SSLError):
            while len(watched.reports) < before + 3 and at < len(data) - 1:
                one.raw(data[at : at + 1])
                at += 1
        enough(watched)
