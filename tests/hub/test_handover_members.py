"""Gateways under real members: slots move because replicas come and go, and nodes follow."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from hub.objects import CONFIGMAPS, PODS, Keys
from hub.slots import Slots
from hub.store.memory import MemoryStore
from shards.member import Member, MemberOptions
from shards.ownership import MemberRecord, Owned, Unit
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import Hub, configmap, hub, pod, until
from tests.hub.test_handover import recolour, report
from tests.ports import free_port
from tests.sim.fleet import Fleet

DEADLINE_S = 60.0
SLOTS = 64


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


class OnlySlots:
    """A listener without roles."""

    slots: Slots

    async def gained(self, units: list[Owned]) -> None:
        await self.slots.gained(units)

    async def drain(self, units: list[Unit]) -> None:
        await self.slots.drain(numbers(units))

    def lost(self, units: list[Unit]) -> None:
        self.slots.lost(numbers(units))

    def suspended(self) -> None:
        self.slots.suspended()

    def resumed(self, units: list[Unit]) -> None:
        self.slots.resumed(numbers(units))

    def routes_changed(self, units: list[Unit]) -> None:
        self.slots.routes_changed(numbers(units))


def numbers(units: list[Unit]) -> list[int]:
    return [unit for unit in units if isinstance(unit, int)]


@contextlib.asynccontextmanager
async def replica(pki: Pki, store: MemoryStore, id: str) -> AsyncIterator[tuple[Hub, Member]]:
    """A hub whose slots a real member claims; handed over at the end."""
    port, listener = free_port(), OnlySlots()
    edge = f"127.0.0.1:{port}"
    record = MemberRecord(id, incarnation=f"{id}-1", edge=edge)
    member = Member(store, Keys().root, record, listener, MemberOptions(holdoff_s=0.05))
    async with hub(pki, store, member, port=port, replica_edge=edge) as h:
        listener.slots = h.gateway.slots
        await member.start()
        running = asyncio.create_task(member.run())
        try:
            yield h, member
            assert not running.done(), running
        finally:
            member.stop()
            await running


async def test_nodes_follow_their_slots_when_a_replica_joins_and_when_one_leaves(pki: Pki) -> None:
    store = MemoryStore(slots=SLOTS)
    async with contextlib.AsyncExitStack() as stack:
        b_stack = await stack.enter_async_context(contextlib.AsyncExitStack())
        async with replica(pki, store, "hub-a") as (a, _):
            await until(lambda: len(a.gateway.slots.serving) == SLOTS, DEADLINE_S)
            fleet = Fleet(a.address)
            stack.push_async_callback(asyncio.to_thread, fleet.stop)
            fleet.start()
            a.fleet = fleet
            nodes = [await a.enrol(f"edge-{i}") for i in range(10)]
            for edge in nodes:
                edge.unanswered = {}
                await a.connect(edge)
            await a.create(CONFIGMAPS, configmap("shared", n="0"))
            uses = {
                "containers": [{"name": "m", "image": "x", "envFrom": [{"configMapRef": {"name": "shared"}}]}]
            }
            for i in range(10):
                await a.create(PODS, pod(f"p{i}", f"edge-{i}", **uses))
            await until(lambda: all(len(n.docs) == 2 for n in nodes), DEADLINE_S)

            b, _ = await b_stack.enter_async_context(replica(pki, store, "hub-b"))
            shares = (a.gateway.slots.serving, b.gateway.slots.serving)
            await until(lambda: len(shares[1]) > SLOTS // 3 and sum(map(len, shares)) == SLOTS, DEADLINE_S)
            await recolour(a, "1")
            for edge in nodes:
                report(a, edge, "while they move")
            await until(lambda: len(a.gateway.peers) + len(b.gateway.peers) == 10, DEADLINE_S)
            await until(lambda: len(b.gateway.peers) > 0, DEADLINE_S)
        # The first has gone: everything is the other's.
        await until(lambda: len(b.gateway.slots.serving) == SLOTS, DEADLINE_S)
        for edge in nodes:
            if edge.closed or edge.welcome is None:  # it was told to come back
                edge.connect(b.address)
        await until(lambda: len(b.gateway.peers) == 10, DEADLINE_S)
        await recolour(b, "2")
        await until(lambda: all(b'"2"' in n.bodies["configmap/default/shared"] for n in nodes), DEADLINE_S)
        await until(lambda: all(not n.unanswered for n in nodes), DEADLINE_S)
        assert all(n.dels == 0 for n in nodes)
        for i, edge in enumerate(nodes):
            stored = await b.pod(f"p{i}")
            assert stored is not None and stored["status"]["message"] == str(edge.n)
