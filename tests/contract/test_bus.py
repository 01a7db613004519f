"""One contract for every bus: in this process, and over real NATS servers, one or a cluster of two."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from shards.bus import PAYLOAD_BYTES_MAX, Bus, LocalNet
from shards.nats import NatsBus, NatsConfig
from tests.hub.hub_fixture import until
from tests.servers.nats import NatsServers

WAIT_S = 60.0


class Ear:
    """Keeps what it hears, and what it is told about the bus."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.told: list[str] = []

    def __call__(self, subject: str, data: bytes) -> None:
        self.heard.append((subject, data))

    def bus_lost(self) -> None:
        self.told.append("lost")

    def bus_returned(self) -> None:
        self.told.append("returned")


@dataclass
class Place:
    """Two buses that reach each other, and how to cut them off and back."""

    one: Bus
    two: Bus
    cut: Callable[[], Any]
    mend: Callable[[], Awaitable[None]]


@contextlib.asynccontextmanager
async def running(*buses: NatsBus) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(bus.run()) for bus in buses]
    try:
        await until(lambda: all(bus.connected for bus in buses), WAIT_S, "the connection to NATS")
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def place(kind: str) -> AsyncIterator[Place]:
    if kind == "local":
        net = LocalNet()
        one, two = net.bus(), net.bus()

        async def mend() -> None:
            one.mend()
            two.mend()

        yield Place(one, two, lambda: (one.cut(), two.cut()), mend)
        return
    count = 2 if kind == "cluster" else 1
    loop = asyncio.get_running_loop()
    servers = await loop.run_in_executor(None, NatsServers, count)
    try:
        first = NatsBus(NatsConfig((servers.urls[0],), name="one"))
        second = NatsBus(NatsConfig((servers.urls[-1],), name="two"))

        async def restart() -> None:
            for i in range(count):
                await loop.run_in_executor(None, servers.restart, i)

        async with running(first, second):
            yield Place(first, second, lambda: [servers.kill(i) for i in range(count)], restart)
    finally:
        await loop.run_in_executor(None, servers.close)


KINDS = pytest.mark.parametrize("kind", ["local", "nats", "cluster"])


async def reaches(p: Place) -> None:
    """Servers of a cluster tell each other about subscriptions after they have told us."""
    ear = Ear()
    for bus, other in ((p.one, p.two), (p.two, p.one)):
        await other.subscribe("probe", ear)
        deadline = asyncio.get_running_loop().time() + WAIT_S
        before = len(ear.heard)
        while len(ear.heard) == before:
            assert asyncio.get_running_loop().time() < deadline, "the buses do not reach each other"
            bus.publish("probe", b"")
            await asyncio.sleep(0.02)
        await other.unsubscribe("probe")


@KINDS
async def test_what_is_published_arrives_in_order_also_over_several_subjects_of_one_subscription(
    kind: str,
) -> None:
    async with place(kind) as p:
        await reaches(p)
        ear, other = Ear(), Ear()
        await p.two.subscribe("s.*", ear)
        await p.two.subscribe("t.1", other)
        await reaches(p)
        sent = [(f"s.{i % 7}", str(i).encode()) for i in range(2000)]
        for subject, data in sent:
            assert p.one.publish(subject, data)
        assert p.one.publish("t.1", b"end") and p.one.publish("t.1.2", b"no") and p.one.publish("s", b"no")
        await until(lambda: other.heard and len(ear.heard) == len(sent), WAIT_S, "all messages")
        assert ear.heard == sent and other.heard == [("t.1", b"end")]


@KINDS
async def test_a_callback_that_fails_and_an_end_of_a_subscription_harm_nobody(kind: str) -> None:
    async with place(kind) as p:
        await reaches(p)
        ear = Ear()

        def broken(subject: str, data: bytes) -> None:
            ear(subject, data)
            raise RuntimeError("a bug")

        await p.two.subscribe("a", broken)
        await reaches(p)
        p.one.publish("a", b"1")
        p.one.publish("a", b"2")
        await until(lambda: len(ear.heard) == 2, WAIT_S)
        await p.two.unsubscribe("a")
        await p.two.unsubscribe("a")
        p.one.publish("a", b"3")
        await reaches(p)
        assert len(ear.heard) == 2
        await p.two.subscribe("a", ear)
        with pytest.raises(ValueError):
            await p.two.subscribe("a", ear)
        await reaches(p)
        p.one.publish("a", b"4")
        await until(lambda: ear.heard[2:] == [("a", b"4")], WAIT_S)


@KINDS
async def test_nothing_of_a_lost_bus_is_sent_later_and_subscriptions_come_back(kind: str) -> None:
    async with place(kind) as p:
        ear, voice = Ear(), Ear()
        p.two.listen(ear)
        p.one.listen(voice)
        await p.two.subscribe("a", ear)
        p.cut()
        await until(lambda: not p.one.connected and not p.two.connected, WAIT_S, "the loss to be noticed")
        assert ear.told[-1] == voice.told[-1] == "lost"
        assert p.one.publish("a", b"lost") is False
        await p.two.subscribe("b", ear)  # while there is no connection
        await p.mend()
        await until(lambda: p.one.connected and p.two.connected, WAIT_S, "the return")
        assert ear.told[-1] == voice.told[-1] == "returned"
        await reaches(p)
        p.one.publish("a", b"1")
        p.one.publish("b", b"2")
        await until(lambda: len(ear.heard) == 2, WAIT_S)
        assert ear.heard == [("a", b"1"), ("b", b"2")]


@KINDS
async def test_a_message_that_is_too_long_is_refused_before_it_harms_the_connection(kind: str) -> None:
    async with place(kind) as p:
        ear = Ear()
        await p.two.subscribe("a", ear)
        await reaches(p)
        with pytest.raises(ValueError, match="at most"):
            p.one.publish("a", bytes(PAYLOAD_BYTES_MAX + 1))
        p.one.publish("a", bytes(PAYLOAD_BYTES_MAX))
        await until(lambda: len(ear.heard) == 1, WAIT_S)
        assert p.one.connected and len(ear.heard[0][1]) == PAYLOAD_BYTES_MAX
