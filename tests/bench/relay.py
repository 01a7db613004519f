"""What relaying costs: round trips of one message over a NATS server, and messages per second of CPU of one end.

    python -m tests.bench.relay

Two buses in this process, over a real NATS server: the near end's link sends 200-byte messages (an ACK or a small
report), the far end's link takes them and grants credit. CPU is this process's: both ends and both NATS
clients together, without the server and without TLS.
"""

import asyncio
import time

import uvloop

from shards.nats import NatsBus, NatsConfig
from shards.relay import Link, OpenNode, decode, encode
from tests.bench.report import emit, percentile
from tests.servers.nats import NatsServers

MESSAGES = 100_000
ROUND_TRIPS = 2000
BODY = b"x" * 200


async def measure(url: str) -> None:
    buses = [NatsBus(NatsConfig((url,))) for _ in range(2)]
    tasks = [asyncio.create_task(bus.run()) for bus in buses]
    try:
        while not all(bus.connected for bus in buses):
            await asyncio.sleep(0.01)
        await _throughput(*buses)
        await _round_trips(*buses)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _throughput(near_bus: NatsBus, far_bus: NatsBus) -> None:
    near, far = Link(1, far=False), Link(1, far=True)
    near.open(OpenNode("spiffe://d/node/default/a/a", 0.0, 1))
    taken, done = 0, asyncio.Event()

    def up(_: str, data: bytes) -> None:
        nonlocal taken
        got = far.receive(decode(data)[0])
        assert isinstance(got, bytes)
        taken += 1
        for message in far.passed_on(len(got)):
            far_bus.publish("t.down", encode(message))
        if taken == MESSAGES:
            done.set()

    def down(_: str, data: bytes) -> None:
        released = near.receive(decode(data)[0])
        assert isinstance(released, list)
        for message in released:
            near_bus.publish("t.up", encode(message, b"0123456789abcdef"))

    await far_bus.subscribe("t.up", up)
    await near_bus.subscribe("t.down", down)
    cpu, began = time.process_time(), time.perf_counter()
    for i in range(MESSAGES):
        for message in near.send(BODY):
            assert near_bus.publish("t.up", encode(message, b"0123456789abcdef"))
        if i % 50 == 49:
            await asyncio.sleep(0)
        while near.backlog_bytes > 1 << 20:
            await asyncio.sleep(0.001)
    await done.wait()
    cpu, took = time.process_time() - cpu, time.perf_counter() - began
    emit("relay", "frames of 200 B per second of CPU, both ends", MESSAGES / cpu, "1/s")
    emit("relay", "frames of 200 B per second", MESSAGES / took, "1/s")


async def _round_trips(near_bus: NatsBus, far_bus: NatsBus) -> None:
    back = asyncio.Event()

    def echo(_: str, data: bytes) -> None:
        far_bus.publish("r.down", data)

    await far_bus.subscribe("r.up", echo)
    await near_bus.subscribe("r.down", lambda _, data: back.set())
    times = []
    for _ in range(ROUND_TRIPS):
        back.clear()
        began = time.perf_counter()
        near_bus.publish("r.up", BODY)
        await back.wait()
        times.append((time.perf_counter() - began) * 1e6)
    emit("relay", "round trip over NATS, p50", percentile(times, 0.5), "µs")
    emit("relay", "round trip over NATS, p99", percentile(times, 0.99), "µs")


def main() -> None:
    with NatsServers() as servers:
        uvloop.run(measure(servers.urls[0]))


if __name__ == "__main__":
    main()
