"""Peers that say what they say a byte now and then: they end within their time, whatever they are, and only they."""

import asyncio
import contextlib
import json
import socket
import ssl
from typing import Any

import pytest

from edgelite import wire
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import Hub, hub, until

HUB_NAME = "hub.cloudhub.local"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


def dribble(address: tuple[str, int], context: ssl.SSLContext, first: bytes, rest: bytes) -> dict[str, Any]:
    """Sends `first`, then `rest` a byte at a time and over again, until the hub says GOAWAY: its body."""
    decoder = wire.Decoder()
    with (
        socket.create_connection(address, timeout=30) as raw,
        context.wrap_socket(raw, server_hostname=HUB_NAME) as sock,
    ):
        sock.sendall(first)
        sock.settimeout(0.02)
        for at in range(10_000):
            try:
                sock.sendall(rest[at % len(rest) :][:1])
                for kind, _, body in decoder.feed(sock.recv(65536)):
                    if kind == wire.GOAWAY:
                        found: dict[str, Any] = json.loads(body)
                        return found
            except TimeoutError:
                continue
    raise AssertionError("the hub listens for ever")


async def against(h: Hub, name: str | None, first: bytes, rest: bytes) -> dict[str, Any]:
    steady = await h.enrol("steady")
    await h.connect(steady)
    context = h.pki.client(name)
    said = await asyncio.to_thread(dribble, h.address, context, first, rest)
    steady.ping()
    await until(lambda: steady.pongs == 1)
    assert h.gateway._framing.held_bytes == 0 or h.gateway.port.counters.closed["slow"] == 1
    await until(lambda: len(h.gateway.port) == 1)
    assert not h.gateway._framing.overdue(0.0) and h.gateway.strangers.count == 0
    return said


async def test_a_hello_that_never_ends_is_given_up(pki: Pki) -> None:
    async with hub(pki, message_s=0.5) as h:
        said = await against(h, "slow", wire.frame(wire.HELLO, b" " * 9000)[:2000], b" ")
    assert (said["code"], said["message"]) == ("slow", "a message that is not whole after 0 s")


async def test_a_message_in_parts_that_never_ends_is_given_up(pki: Pki) -> None:
    part = wire.frame(wire.JOIN, b"x", flags=wire.MORE)
    async with hub(pki, message_s=0.5) as h:
        said = await against(h, None, part, part)
    assert said["code"] == "slow"


async def test_a_stranger_that_says_something_now_and_then_has_its_time_and_no_more(pki: Pki) -> None:
    """Whole messages, each allowed: without a bound a few hundred such peers would keep every machine from joining."""
    async with hub(pki, stranger_s=0.5) as h:
        said = await against(h, None, b"", wire.frame(wire.BUNDLE, b"{}"))
    assert said["code"] == "slow" and said["retry_s"] == 30.0


async def test_who_sends_much_and_steadily_is_not_slow(pki: Pki) -> None:
    """A decoder that always holds the beginning of the next message."""
    async with hub(pki, message_s=0.4) as h:
        node = await h.enrol("busy")
        await h.connect(node)
        message = wire.frame(
            wire.NACK, json.dumps({"k": "pod/a/b/c", "v": "1" * 32, "reason": "x" * 100}).encode()
        )
        flow = message * 40
        for at in range(0, len(flow), 100):
            node.raw(flow[at : at + 100])
            await asyncio.sleep(0.01)
        node.raw(b"")
        node.ping()
        await until(lambda: node.pongs == 1)
        assert node.goaway is None


def unfinished(h: Hub, name: str, count: int, size: int) -> list[ssl.SSLSocket]:
    """So many connections of a node, each with the beginning of a HELLO."""
    opened = []
    for _ in range(count):
        raw = socket.create_connection(h.address, timeout=30)
        sock = h.pki.client(name).wrap_socket(raw, server_hostname=HUB_NAME)
        sock.sendall(wire.frame(wire.HELLO, b" " * (size + 1))[:size])
        opened.append(sock)
    return opened


async def test_a_node_has_a_few_connections_without_hello_and_takes_nobodys_place(pki: Pki) -> None:
    async with hub(pki) as h:
        steady = await h.enrol("steady")
        await h.connect(steady)
        opened = await asyncio.to_thread(unfinished, h, "many", 20, 100)
        await until(lambda: h.gateway.port.counters.closed.get("superseded", 0) == 16)
        await until(lambda: len(h.gateway._everyone) == 1 + 4)
        steady.ping()
        await until(lambda: steady.pongs == 1)
        for sock in opened:
            sock.close()
        await until(lambda: len(h.gateway._everyone) == 1)
        assert len(h.gateway._greeters) == 0 and h.gateway._framing._by_node == {}


async def test_a_node_that_connects_again_and_again_without_a_good_bye_keeps_its_last_connection(
    pki: Pki,
) -> None:
    async with hub(pki) as h:
        node = await h.enrol("mobile")
        for _ in range(10):
            assert (await h.connect(node))["sync"] == "match"
        node.ping()
        await until(lambda: node.pongs == 1)


async def test_unfinished_messages_of_one_node_leave_room_for_those_of_others(pki: Pki) -> None:
    async with hub(pki, partial_bytes_max=32 << 20) as h:
        good = await h.enrol("good")
        await h.connect(good)
        opened = await asyncio.to_thread(unfinished, h, "greedy", 4, 1_000_000)
        part = wire.frame(wire.REPORT, bytes(1 << 20), flags=wire.MORE)
        for sock in opened:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(sock.sendall, part)
        assert h.gateway._framing.held_bytes <= (8 << 20) + (1 << 20)
        body = json.dumps({"e": [], "x": "y" * 900_000}).encode()
        good.raw(wire.frame(wire.REPORT, body)[:500_000])
        await until(lambda: h.gateway._framing._by_node.get("good", 0) > 400_000)
        good.raw(wire.frame(wire.REPORT, body)[500_000:])
        good.ping()
        await until(lambda: good.pongs == 1)
        for sock in opened:
            sock.close()
