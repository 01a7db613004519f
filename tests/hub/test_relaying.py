"""Nodes and log readers at the wrong replica: relayed to the owner, over a bus in process and over real NATS."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from hub import farend, nearend
from hub.errors import BadRequest, ServiceUnavailable
from hub.objects import CONFIGMAPS, PODS
from hub.relaying import Relay
from hub.store.memory import MemoryStore
from shards.bus import Bus, LocalBus, LocalNet
from shards.nats import NatsBus, NatsConfig
from shards.ownership import Owned, Unit
from shards.relay import LOG_WINDOW_BYTES
from shards.ring import slot_of
from tests.hub.edge_pki import Pki
from tests.hub.fake_ownership import Cell, FakeOwnership
from tests.hub.hub_fixture import Hub, configmap, hub, pod, until
from tests.servers.nats import NatsServers
from tests.sim.fleet import SimNode, running_status

SLOTS = 16
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


class Replica:
    """A hub, its relay and what it owns; the listener of both is this."""

    def __init__(self, hub: Hub, own: FakeOwnership, bus: Bus) -> None:
        self.hub, self.own, self.bus = hub, own, bus
        self.gateway, self.address = hub.gateway, hub.address
        identity = hub.store.identity
        self.relay = Relay(hub.gateway, bus, identity.uuid, own.id, beat_s=0.2, now=hub.clock)
        hub.gateway.routing.relays = self.relay
        own.listener = self

    async def gained(self, units: list[Owned]) -> None:
        await self.gateway.slots.gained(units)
        await self.relay.gained(units)

    async def drain(self, units: list[Unit]) -> None:
        await self.gateway.slots.drain(units)

    def lost(self, units: list[Unit]) -> None:
        self.gateway.slots.lost(units)
        self.relay.lost(units)

    def resumed(self, units: list[Unit]) -> None:
        self.gateway.slots.resumed(units)

    def routes_changed(self, units: list[Unit]) -> None:
        self.relay.routes_changed(units)
        self.gateway.slots.routes_changed(units)


@contextlib.asynccontextmanager
async def replicas(pki: Pki, buses: list[Bus], **config: Any) -> AsyncIterator[list[Replica]]:
    """Replicas over one store that edges cannot be redirected to; the first owns all slots."""
    store = MemoryStore(slots=SLOTS)
    cell = Cell(store)
    async with contextlib.AsyncExitStack() as stack:
        made: list[Replica] = []
        for i, bus in enumerate(buses):
            own = cell.member(f"hub-{i}")
            cell.members[own.id] = msgspec.structs.replace(cell.members[own.id], bus=True)
            running = await stack.enter_async_context(hub(pki, store, own, **config))
            made.append(Replica(running, own, bus))
        tasks = [asyncio.create_task(r.relay.run()) for r in made]
        tasks += [asyncio.create_task(bus.run()) for bus in buses if isinstance(bus, NatsBus)]
        try:
            await until(lambda: all(b.connected for b in buses), DEADLINE_S, "the bus")
            await made[0].own.take(range(SLOTS))
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def buses(kind: str) -> AsyncIterator[tuple[list[Bus], NatsServers | None]]:
    if kind == "local":
        net = LocalNet()
        yield [net.bus(), net.bus()], None
        return
    loop = asyncio.get_running_loop()
    servers = await loop.run_in_executor(None, NatsServers)
    try:
        yield [NatsBus(NatsConfig(tuple(servers.urls), name=f"hub-{i}")) for i in range(2)], servers
    finally:
        await loop.run_in_executor(None, servers.close)


BUSES = pytest.mark.parametrize("kind", ["local", "nats"])


def slot(name: str) -> int:
    return slot_of(name, SLOTS)


async def relayed(a: Replica, b: Replica, name: str = "edge-1") -> SimNode:
    """A node that is connected to `b` and served by `a`."""
    edge = await a.hub.enrol(name)
    edge.connect(b.address)
    await until(lambda: edge.welcome is not None, DEADLINE_S, "WELCOME over the relay")
    assert name in a.gateway.peers and name not in b.gateway.peers
    return edge


async def served_again(edge: SimNode, b: Replica) -> None:
    """What an agent does after GOAWAY: it comes back, and again when it is sent away."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        edge.connect(b.address)
        await until(lambda: edge.welcome or edge.goaway or edge.closed, DEADLINE_S)
        if edge.welcome is not None:
            return
        assert time.monotonic() < deadline, edge.goaway
        await asyncio.sleep(0.05)


@BUSES
async def test_a_node_at_the_wrong_replica_is_served_by_the_owner_in_order(pki: Pki, kind: str) -> None:
    async with buses(kind) as (two, _), replicas(pki, two) as (a, b):
        edge = await relayed(a, b)
        for i in range(40):
            await a.hub.create(PODS, pod(f"p{i}", "edge-1"))
        await until(lambda: len(edge.docs) == 40 and edge.acks >= 40, DEADLINE_S)
        for key in list(edge.docs):
            edge.report("pod", key, running_status())
        await until(lambda: len(edge.stored) == 40, DEADLINE_S)
        assert list(edge.stored) == sorted(edge.stored) and set(edge.stored.values()) == {""}
        found = await a.hub.pod("p39")
        assert found is not None and found["status"]["phase"] == "Running"
        assert a.relay.stats()["relayed_here"] == b.relay.stats()["relayed_away"] == 1.0
        edge.drop()
        await until(lambda: not a.gateway.peers and not len(b.relay.near), DEADLINE_S, "both ends")


async def test_heartbeats_are_answered_on_the_way_and_reach_the_owner_folded(pki: Pki) -> None:
    async with buses("local") as (two, _), replicas(pki, two, heartbeat_s=1.0) as (a, b):
        edge = await relayed(a, b)
        peer = a.gateway.peers["edge-1"]
        handled, before = peer.messages, peer.conn.heard
        for _ in range(50):
            edge.ping()
            await until(lambda: edge.pongs, DEADLINE_S)
            edge.pongs = 0
        await until(lambda: peer.conn.heard > before, DEADLINE_S, "the folded heartbeat")
        assert peer.messages == handled, "no heartbeat went over the bus"


async def test_a_relayed_node_that_falls_silent_is_closed_at_both_ends(pki: Pki) -> None:
    async with buses("local") as (two, _), replicas(pki, two, heartbeat_s=0.2) as (a, b):
        edge = await relayed(a, b)
        await until(lambda: edge.closed or edge.goaway, DEADLINE_S)
        await until(lambda: not a.gateway.peers and not len(b.relay.near), DEADLINE_S)


@BUSES
async def test_a_lost_bus_ends_relayed_connections_which_are_served_again_once_it_is_back(
    pki: Pki, kind: str
) -> None:
    async with buses(kind) as (two, servers), replicas(pki, two) as (a, b):
        edge = await relayed(a, b)
        local = await a.hub.enrol("edge-2")
        local.connect(a.address)
        await until(lambda: local.welcome is not None, DEADLINE_S)
        loop = asyncio.get_running_loop()
        if servers is not None:
            await loop.run_in_executor(None, servers.kill)
        else:
            for bus in two:
                assert isinstance(bus, LocalBus)
                bus.cut()
        await until(lambda: edge.goaway is not None, DEADLINE_S, "GOAWAY")
        assert edge.goaway is not None and edge.goaway["code"] == "resync" and edge.goaway["retry_s"] <= 1.0
        await until(lambda: "edge-1" not in a.gateway.peers, DEADLINE_S, "the other end to notice")
        with pytest.raises(ServiceUnavailable, match="bus"):
            await anext(b.relay.open_log("edge-2", {"pod": "u"}))
        await a.hub.create(PODS, pod("p", "edge-1"))
        if servers is not None:
            await loop.run_in_executor(None, servers.restart)
        else:
            for bus in two:
                assert isinstance(bus, LocalBus)
                bus.mend()
        began = time.monotonic()
        await served_again(edge, b)
        print(f"{kind}: served again {time.monotonic() - began:.2f} s after the bus had returned")
        await until(lambda: len(edge.docs) == 1, DEADLINE_S)
        assert local.goaway is None and not local.closed, "local nodes notice nothing"


async def test_a_bus_that_swallows_messages_is_found_by_the_gap_or_by_the_beat(pki: Pki) -> None:
    async with buses("local") as (two, _), replicas(pki, two) as (a, b):
        edge = await relayed(a, b)
        bus = two[0]
        real, dropped = bus.publish, []

        def lossy(subject: str, data: bytes) -> bool:
            if not dropped and b"p1" in data:
                dropped.append(subject)
                return True
            return real(subject, data)

        bus.publish = lossy  # type: ignore[method-assign]
        await a.hub.create(PODS, pod("p1", "edge-1"))
        await until(lambda: edge.goaway is not None, DEADLINE_S, "the loss to be found")
        assert dropped and not edge.docs
        await served_again(edge, b)
        await until(lambda: len(edge.docs) == 1, DEADLINE_S, "the digest to repair it")


async def test_a_slot_that_moves_to_the_replica_with_the_connection_is_served_there(pki: Pki) -> None:
    async with buses("local") as (two, _), replicas(pki, two) as (a, b):
        edge = await relayed(a, b)
        await a.own.give([slot("edge-1")])
        await until(lambda: edge.goaway is not None, DEADLINE_S)
        await b.own.take([slot("edge-1")])
        await served_again(edge, b)
        assert "edge-1" in b.gateway.peers and not a.gateway.peers and not len(b.relay.near)


async def test_an_owner_that_forgot_everything_is_found_by_the_beat(pki: Pki) -> None:
    async with buses("local") as (two, _), replicas(pki, two) as (a, b):
        edge = await relayed(a, b)
        a.relay.far._ends.clear()
        a.relay.far._slots.clear()
        await until(lambda: edge.goaway is not None, DEADLINE_S)
        assert edge.goaway is not None and edge.goaway["code"] == "resync"


async def test_a_slot_that_is_claimed_here_ends_its_relays_at_once_also_when_the_old_owner_is_dumb(
    pki: Pki,
) -> None:
    async with buses("local") as (two, _), replicas(pki, two) as (a, b):
        edge = await relayed(a, b)
        two[0].publish = lambda subject, data: True  # type: ignore[method-assign]
        await b.own.take([slot("edge-1")])
        assert not len(b.relay.near)
        await until(lambda: edge.goaway is not None, DEADLINE_S)


async def test_an_owner_that_does_not_answer_costs_the_relay_and_so_does_a_silent_relaying_hub(
    pki: Pki,
) -> None:
    async with buses("local") as (two, _), replicas(pki, two) as (a, b):
        edge = await relayed(a, b)
        for bus in two:
            bus.publish = lambda subject, data: True  # type: ignore[method-assign]
        a.hub.clock.ahead += farend.SILENT_S + 1.0
        a.relay.far.sweep(late=True)
        assert a.gateway.peers, "a hub that stood still blames nobody"
        a.hub.clock.ahead += farend.SILENT_S + 1.0
        a.relay.far.sweep(late=False)
        assert not a.gateway.peers
        b.hub.clock.ahead += nearend.SILENT_S + 1.0
        b.relay.near.beat(late=False)
        await until(lambda: edge.goaway is not None, DEADLINE_S)
        assert edge.goaway is not None and edge.goaway["code"] == "resync"


@BUSES
async def test_more_than_a_window_passes_in_both_directions(pki: Pki, kind: str) -> None:
    async with buses(kind) as (two, _), replicas(pki, two) as (a, b):
        edge = await relayed(a, b)
        edge.log = b"x" * (5 << 20)
        for i in range(8):
            await a.hub.create(CONFIGMAPS, configmap(f"big-{i}", text=str(i) * 400_000))
            uses = {
                "containers": [
                    {"name": "m", "image": "x", "envFrom": [{"configMapRef": {"name": f"big-{i}"}}]}
                ]
            }
            await a.hub.create(PODS, pod(f"p{i}", "edge-1", **uses))
        await until(lambda: len(edge.docs) == 16, DEADLINE_S, "3 MB down")
        got = b"".join([c async for c in a.relay.open_log("edge-1", {"pod": "u", "container": "main"})])
        assert got == edge.log, "5 MB up"
        assert edge.goaway is None and a.relay.stats()["relayed_here"] == 1.0


@BUSES
async def test_a_log_reaches_its_reader_through_any_replica(pki: Pki, kind: str) -> None:
    async with buses(kind) as (two, _), replicas(pki, two) as (a, b):
        edge = await a.hub.enrol("edge-1")
        edge.log = b"line\n" * 40_000
        options = {"pod": "u", "container": "main"}
        with pytest.raises(ServiceUnavailable, match="not connected"):
            await anext(b.relay.open_log("edge-1", options))
        with pytest.raises(BadRequest):
            await anext(b.relay.open_log("edge-1", {"colour": "red"}))
        edge.connect(a.address)
        await until(lambda: edge.welcome is not None, DEADLINE_S)
        for replica in (a, b):
            got = b"".join([c async for c in replica.relay.open_log("edge-1", options)])
            assert got == edge.log
        reading = b.relay.open_log("edge-1", {**options, "follow": True})
        assert (await anext(reading)).startswith(b"line")
        await reading.aclose()  # type: ignore[attr-defined]
        await until(lambda: a.relay.far.logs == 0, DEADLINE_S, "the end at the owner")
        assert not len(b.relay.near)


async def test_a_slow_log_reader_stays_within_its_credit_and_delays_nobody(pki: Pki) -> None:
    async with buses("local") as (two, _), replicas(pki, two) as (a, b):
        edge = await relayed(a, b)
        edge.log = b"x" * (2 << 20)
        carried = 0
        bus = two[0]
        real = bus.publish

        def counted(subject: str, data: bytes) -> bool:
            nonlocal carried
            carried += len(data) if b"xxxxxxxx" in data else 0
            return real(subject, data)

        bus.publish = counted  # type: ignore[method-assign]
        reading = b.relay.open_log("edge-1", {"pod": "u", "container": "main", "follow": True})
        await anext(reading)  # and nothing more
        await a.hub.create(PODS, pod("p", "edge-1"))
        await until(lambda: len(edge.docs) == 1, DEADLINE_S, "the node's documents, beside the stuck log")
        edge.ping()
        await until(lambda: edge.pongs == 1, DEADLINE_S)
        (served,) = (e for e in a.relay.far._ends.values() if isinstance(e, farend.FarLog))
        await until(lambda: served.link.backlog_bytes, DEADLINE_S, "the window to be full")
        assert LOG_WINDOW_BYTES // 2 < carried <= 2 * LOG_WINDOW_BYTES
        assert served.link.backlog_bytes <= 65536
        (unsent,) = edge.unsent.values()
        assert len(edge.log) - len(unsent[0]) <= 2 * LOG_WINDOW_BYTES, "the node sends no more than is read"
        await reading.aclose()  # type: ignore[attr-defined]
