"""Slots that move between two gateways over one store, and what their nodes see of it: over real mTLS."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import pytest

from edgelite.credentials import client_context
from hub import routing
from hub.figures import stats
from hub.objects import CONFIGMAPS, PODS
from hub.registry import Object
from hub.share import Share
from hub.store.memory import MemoryStore
from shards.ring import slot_of
from tests.hub.edge_pki import Pki
from tests.hub.fake_ownership import Cell, FakeOwnership
from tests.hub.hub_fixture import Hub, configmap, eventually, hub, pod, until
from tests.hub.test_joining import enrol, token
from tests.ports import free_port
from tests.sim.fleet import SimNode, running_status

SLOTS = 16
DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


class Passing:
    """A loader that hands on to a share."""

    def __init__(self, share: Share) -> None:
        self.share = share

    async def load(self, slots: Collection[int], revision: int) -> None:
        await self.share.load(slots, revision)

    def drop(self, slots: Collection[int]) -> None:
        self.share.drop(slots)


class Replica:
    """A hub and what it owns."""

    def __init__(self, hub: Hub, own: FakeOwnership) -> None:
        self.hub, self.own = hub, own
        self.gateway = hub.gateway
        self.address = hub.address


@contextlib.asynccontextmanager
async def replicas(
    pki: Pki, count: int = 2, reachable: bool = True, **config: Any
) -> AsyncIterator[list[Replica]]:
    """Replicas over one store; the first owns all slots."""
    store = MemoryStore(slots=SLOTS)
    cell = Cell(store)
    async with contextlib.AsyncExitStack() as stack:
        made: list[Replica] = []
        for i in range(count):
            port = free_port()
            edge = f"127.0.0.1:{port}" if reachable else ""
            own = cell.member(f"hub-{i}", edge)
            running = await stack.enter_async_context(
                hub(pki, store, own, port=port, replica_edge=edge, **config)
            )
            own.listener = running.gateway.slots
            made.append(Replica(running, own))
        await made[0].own.take(range(SLOTS))
        yield made


def slot(name: str) -> int:
    return slot_of(name, SLOTS)


async def stored_phase(h: Hub, name: str) -> str:
    found = await h.pod(name)
    return str(found["status"].get("phase")) if found is not None else ""


async def test_a_node_at_the_wrong_replica_is_redirected_to_the_owner_and_served_there(pki: Pki) -> None:
    async with replicas(pki) as (a, b):
        edge = await b.hub.enrol("edge-1")
        edge.connect(b.address)
        await until(lambda: edge.welcome is not None, DEADLINE_S)
        assert edge.address == a.address and edge.redirects == 1
        await a.hub.create(PODS, pod("p", "edge-1"))
        await until(lambda: len(edge.docs) == 1, DEADLINE_S)
        assert list(a.gateway.peers) == ["edge-1"] and not b.gateway.peers


async def test_a_node_that_was_redirected_twice_waits_instead_of_going_round(pki: Pki) -> None:
    async with replicas(pki) as (_, b):
        edge = await b.hub.enrol("edge-1")
        edge.address, edge.redirects = b.address, 2
        edge._connect()
        await until(lambda: len(b.gateway.routing) == 1, DEADLINE_S)
        edge.ping()
        await until(lambda: edge.pongs == 1, DEADLINE_S)
        await b.own.take([slot("edge-1")])
        await until(lambda: edge.welcome is not None, DEADLINE_S)
        assert edge.redirects == 2


async def test_a_node_whose_slot_nobody_owns_waits_and_is_sent_away_after_a_while(pki: Pki) -> None:
    async with replicas(pki) as (a, b):
        edge = await a.hub.enrol("edge-1")
        a.own.lose([slot("edge-1")])
        edge.connect(b.address)
        await until(lambda: len(b.gateway.routing) == 1, DEADLINE_S)
        assert edge.goaway is None and edge.welcome is None
        b.hub.clock.ahead += routing.WAIT_S + 0.1
        await until(lambda: edge.goaway is not None, DEADLINE_S)
        assert edge.goaway is not None and edge.goaway["code"] == "overload" and edge.goaway["retry_s"] <= 3.0
        assert len(b.gateway.routing) == 0


async def test_a_drained_slot_takes_its_nodes_along_without_a_document_sent_twice(pki: Pki) -> None:
    async with replicas(pki) as (a, b):
        edge = await a.hub.enrol("edge-1")
        edge.unanswered = {}
        await a.hub.connect(edge)
        epoch = edge.claim["epoch"]  # type: ignore[index]
        await a.hub.create(CONFIGMAPS, configmap("settings", colour="red"))
        await a.hub.create(PODS, pod("p", "edge-1"))
        await until(lambda: edge.acks == 1, DEADLINE_S)
        write, gate = a.hub.store.txn, asyncio.Event()

        async def slowly(*args: Any, **named: Any) -> Any:
            await gate.wait()
            return await write(*args, **named)

        a.hub.store.txn = slowly  # type: ignore[method-assign]
        edge.report("pod", next(iter(edge.docs)), running_status())
        await until(lambda: a.gateway.upstream.jobs > 0, DEADLINE_S)
        giving = asyncio.create_task(a.own.give([slot("edge-1")]))
        await until(lambda: stats(a.gateway)["slots_draining"] == 1, DEADLINE_S)
        gate.set()
        await giving
        a.hub.store.txn = write  # type: ignore[method-assign]
        assert await stored_phase(b.hub, "p") == "Running", "what was taken before is stored by then"
        await until(lambda: not edge.unanswered, DEADLINE_S, "the answer of the old owner")
        assert edge.address == a.address
        edge.ping()
        await until(lambda: edge.pongs == 1, DEADLINE_S, "a heartbeat between two owners")
        await b.own.take([slot("edge-1")])
        await until(lambda: edge.address == b.address and edge.welcome is not None, DEADLINE_S)
        assert edge.welcome is not None and edge.welcome["sync"] == "match"
        assert edge.claim is not None and edge.claim["epoch"] == epoch + 1
        assert (edge.sets, edge.dels, edge.unanswered) == (0, 0, {})


async def test_slots_handed_to_and_fro_under_load_lose_no_report_and_delete_nothing(pki: Pki) -> None:
    async with replicas(pki) as (a, b):
        nodes = [await a.hub.enrol(f"edge-{i}") for i in range(12)]
        for i, edge in enumerate(nodes):
            edge.unanswered = {}
            edge.connect((a, b)[i % 2].address)
        await until(lambda: all(n.welcome for n in nodes), DEADLINE_S)
        await a.hub.create(CONFIGMAPS, configmap("shared", n="0"))
        uses = {
            "containers": [{"name": "m", "image": "x", "envFrom": [{"configMapRef": {"name": "shared"}}]}]
        }
        for i in range(12):
            await a.hub.create(PODS, pod(f"p{i}", f"edge-{i}", **uses))
        await until(lambda: all(len(n.docs) == 2 for n in nodes), DEADLINE_S)

        sent = 0
        for turn in range(8):
            giver, taker = ((a, b), (b, a))[turn % 2]
            moved = range(0, SLOTS, 2) if turn < 6 else range(SLOTS)
            moving = asyncio.create_task(move(giver, taker, [s for s in moved if giver.own.of(s)]))
            await recolour(a.hub, str(turn))
            while not moving.done():
                for edge in nodes:
                    report(a.hub, edge, f"{turn}")
                    sent += 1
                await asyncio.sleep(0.01)
            await moving
            await until(lambda: all(n.welcome and not n.closed for n in nodes), DEADLINE_S)
        await until(lambda: all(not n.unanswered for n in nodes), DEADLINE_S, "an answer to every report")
        await until(lambda: all(b'"7"' in n.bodies["configmap/default/shared"] for n in nodes), DEADLINE_S)
        assert sent > 50 and all(n.dels == 0 for n in nodes)
        for i, edge in enumerate(nodes):
            stored = await a.hub.pod(f"p{i}")
            assert stored is not None and stored["status"]["message"] == f"{edge.n}", (
                "the newest report is what counts"
            )
        assert not a.own.refused and not b.own.refused


def report(h: Hub, edge: SimNode, text: str) -> None:
    with edge.fleet.lock:
        key = next(k for k in edge.docs if k.startswith("pod/"))
        edge.report("pod", key, {**running_status(), "message": str(edge.n + 1)})


async def move(giver: Replica, taker: Replica, slots: Collection[int]) -> None:
    await giver.own.give(slots)
    await taker.own.take(slots)


async def recolour(h: Hub, n: str) -> None:
    def change(obj: Object) -> Object:
        obj["data"]["n"] = n
        return obj

    await h.registry.mutate(CONFIGMAPS, "default", "shared", change)


async def test_a_suspended_hub_keeps_its_connections_and_says_nothing_until_it_is_resumed(pki: Pki) -> None:
    async with replicas(pki, 1) as (a,):
        edge = await a.hub.enrol("edge-1")
        await a.hub.connect(edge)
        await a.hub.create(PODS, pod("p", "edge-1"))
        await until(lambda: edge.acks == 1, DEADLINE_S)
        a.own.suspend()  # the listener is not told: what counts is the check at the moment
        written = await a.hub.store.revision()
        n = edge.report("pod", next(iter(edge.docs)), running_status())
        await a.hub.create(PODS, pod("q", "edge-1"))
        late = await a.hub.enrol("late")
        late.connect()
        await until(lambda: len(a.gateway.routing) == 1 and a.gateway.upstream.jobs == 1, DEADLINE_S)
        await a.hub.share.pods.at_least(written + 2)
        edge.ping()
        late.ping()
        await until(lambda: edge.pongs == 1 and late.pongs == 1, DEADLINE_S)
        assert len(edge.docs) == 1 and edge.stored == {} and late.welcome is None
        assert await stored_phase(a.hub, "p") == "Pending"
        with pytest.raises(Exception, match="may not act"):
            await anext(a.gateway.open_log("edge-1", {"pod": "u"}))
        a.own.resume()
        await until(lambda: len(edge.docs) == 2 and edge.stored == {n: ""}, DEADLINE_S)
        await until(lambda: late.welcome is not None, DEADLINE_S)
        assert await stored_phase(a.hub, "p") == "Running" and not edge.closed


async def test_a_session_that_was_paused_right_before_the_lease_was_renewed_goes_on_by_itself(
    pki: Pki,
) -> None:
    async with replicas(pki, 1) as (a,):
        edge = await a.hub.enrol("edge-1")
        await a.hub.connect(edge)
        session = a.gateway.peers["edge-1"].session
        assert session is not None
        a.own.suspend()
        await a.hub.create(PODS, pod("p", "edge-1"))
        await until(lambda: session.state == "paused", DEADLINE_S)
        a.own.alive = True  # nobody is told: the member never saw its lease end
        await until(lambda: session.state == "live" and len(edge.docs) == 1, DEADLINE_S)
        await until(lambda: not a.gateway.slots._paused, DEADLINE_S, "the next sweep forgets it")


async def test_a_hub_that_was_frozen_past_its_claim_writes_nothing_when_it_wakes(pki: Pki) -> None:
    async with replicas(pki) as (a, b):
        edge = await a.hub.enrol("edge-1")
        await a.hub.connect(edge)
        await a.hub.create(PODS, pod("p", "edge-1"))
        await until(lambda: edge.acks == 1, DEADLINE_S)
        a.own.suspend()
        edge.report("pod", next(iter(edge.docs)), running_status())
        await until(lambda: a.gateway.upstream.jobs == 1, DEADLINE_S)
        await b.own.claim([slot("edge-1")])
        a.own.alive, a.own.checked = False, False  # no inline check: the store has the last word
        a.gateway.upstream.wake()
        await until(lambda: a.own.refused == [slot("edge-1")], DEADLINE_S)
        assert a.gateway.upstream.jobs == 0 and edge.stored == {}
        assert await stored_phase(a.hub, "p") == "Pending"
        await until(lambda: edge.address == b.address, DEADLINE_S, "the way to the new owner")
        assert edge.dels == 0


async def test_a_hub_frozen_between_reading_and_writing_does_not_write(pki: Pki) -> None:
    async with replicas(pki, 1) as (a,):
        edge = await a.hub.enrol("edge-1")
        await a.hub.connect(edge)
        await a.hub.create(PODS, pod("p", "edge-1"))
        await until(lambda: edge.acks == 1, DEADLINE_S)
        await eventually(lambda: a.hub.condition("edge-1", "Ready"), DEADLINE_S)
        read = a.hub.store.get

        async def freeze(key: str, **named: Any) -> Any:
            found = await read(key, **named)
            a.own.alive = False
            return found

        a.hub.store.get = freeze  # type: ignore[method-assign]
        n = edge.report("pod", next(iter(edge.docs)), running_status())
        await until(lambda: not a.own.alive and a.gateway.upstream.retries > 0, DEADLINE_S)
        a.hub.store.get = read  # type: ignore[method-assign]
        assert await stored_phase(a.hub, "p") == "Pending" and edge.stored == {}
        a.own.resume()
        await until(lambda: edge.stored == {n: ""}, DEADLINE_S)
        assert await stored_phase(a.hub, "p") == "Running"


async def test_what_was_stored_at_the_last_moment_is_answered_once_the_hub_may(pki: Pki) -> None:
    async with replicas(pki, 1) as (a,):
        edge = await a.hub.enrol("edge-1")
        await a.hub.connect(edge)
        await a.hub.create(PODS, pod("p", "edge-1"))
        await until(lambda: edge.acks == 1, DEADLINE_S)
        await eventually(lambda: a.hub.condition("edge-1", "Ready"), DEADLINE_S)
        write = a.hub.store.txn

        async def freeze(*args: Any, **named: Any) -> Any:
            result = await write(*args, **named)
            a.own.alive = False
            return result

        a.hub.store.txn = freeze  # type: ignore[method-assign]
        n = edge.report("pod", next(iter(edge.docs)), running_status())
        await until(lambda: not a.own.alive and a.gateway.upstream.jobs == 0, DEADLINE_S)
        a.hub.store.txn = write  # type: ignore[method-assign]
        edge.ping()
        await until(lambda: edge.pongs == 1, DEADLINE_S)
        assert edge.stored == {} and await stored_phase(a.hub, "p") == "Running"
        a.own.resume()
        await until(lambda: edge.stored == {n: ""}, DEADLINE_S)


async def test_a_machine_joins_at_any_replica_and_is_sent_to_its_owner(pki: Pki, tmp_path: Path) -> None:
    async with replicas(pki) as (a, b):
        text = await token(b.hub, node="edge-1", site="shop-7")
        facts = await enrol(b.hub, text, tmp_path / "node")
        assert sorted(facts["edge"].split(",")) == sorted(f"{h}:{p}" for h, p in (a.address, b.address))
        edge = b.hub.fleet.node("edge-1", client_context(str(tmp_path / "node")))
        edge.connect(b.address)
        await until(lambda: edge.welcome is not None, DEADLINE_S)
        assert edge.address == a.address and edge.welcome is not None and edge.welcome["sync"] == "match"
        assert edge.welcome["slot"] == slot("shop-7")


async def test_what_a_slow_reader_has_not_taken_does_not_leave_after_the_deadline(pki: Pki) -> None:
    async with replicas(pki, 1) as (a,):
        edge = await a.hub.enrol("edge-1")
        await a.hub.connect(edge)
        peer = a.gateway.peers["edge-1"]
        peer.conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with edge.fleet.lock:  # the node reads nothing
            for i in range(12):
                env = [{"name": "A", "value": f"{i}" * 300_000}]
                containers = [{"name": "main", "image": "none", "env": env}]
                await a.hub.create(PODS, pod(f"p{i}", "edge-1", containers=containers))
            await until(lambda: peer.conn.backlog_bytes > 0, DEADLINE_S)
            a.own.suspend()
        await until(lambda: edge.closed, DEADLINE_S)
        assert len(edge.docs) < 12 and a.gateway.port.counters.closed.get("fenced") == 1


async def test_a_lost_slot_deletes_nothing_and_its_nodes_wait_for_the_next_owner(pki: Pki) -> None:
    async with replicas(pki) as (a, b):
        edge = await a.hub.enrol("edge-1")
        await a.hub.connect(edge)
        await a.hub.create(PODS, pod("p", "edge-1"))
        await until(lambda: edge.acks == 1, DEADLINE_S)
        a.own.suspend()
        edge.report("pod", next(iter(edge.docs)), running_status())
        await until(lambda: a.gateway.upstream.jobs == 1, DEADLINE_S)
        a.own.lose(range(SLOTS))
        assert a.gateway.upstream.jobs == 0, "the next owner gets it from the node"
        n = edge.report("pod", next(iter(edge.docs)), running_status())
        edge.ping()
        await until(lambda: edge.pongs == 1, DEADLINE_S)
        gone = await a.hub.registry.remove(PODS, await a.hub.registry.get(PODS, "default", "p"))
        assert gone
        edge.ping()
        await until(lambda: edge.pongs == 2, DEADLINE_S)
        assert (len(edge.docs), edge.dels, n in edge.stored, edge.closed) == (1, 0, False, False)
        assert a.gateway.peers == {} and len(a.gateway.watch.liveness) == 0
        await b.own.take(range(SLOTS))
        await until(lambda: edge.address == b.address and edge.docs == {}, DEADLINE_S)


async def test_nothing_is_answered_before_a_gained_slot_is_loaded(pki: Pki) -> None:
    class Slow(Passing):
        loaded = asyncio.Event()

        async def load(self, slots: Collection[int], revision: int) -> None:
            await super().load(slots, revision)
            await self.loaded.wait()

    async with replicas(pki) as (a, b):
        edge = await a.hub.enrol("edge-1")
        slow = Slow(b.hub.share)
        b.gateway.slots._loader = slow
        await a.own.give([slot("edge-1")])
        taking = asyncio.create_task(b.own.take([slot("edge-1")]))
        edge.connect(b.address)
        await until(lambda: len(b.gateway.routing) == 1, DEADLINE_S)
        await until(lambda: stats(b.gateway)["slots_loading"] == 1, DEADLINE_S)
        edge.ping()
        await until(lambda: edge.pongs == 1, DEADLINE_S)
        assert edge.welcome is None and not taking.done()
        slow.loaded.set()
        await taking
        await until(lambda: edge.welcome is not None, DEADLINE_S)


async def test_after_a_claim_no_node_becomes_unknown_before_three_heartbeats(pki: Pki) -> None:
    async with replicas(pki, heartbeat_s=1.0) as (a, b):
        edge = await a.hub.enrol("edge-1")
        await a.hub.connect(edge)

        async def ready(wanted: str) -> bool:
            condition = await a.hub.condition("edge-1", "Ready")
            return condition is not None and condition["status"] == wanted

        await eventually(lambda: ready("True"), DEADLINE_S)
        edge.drop()
        b.hub.clock.ahead += 100.0
        await a.own.give(range(SLOTS))
        await b.own.take(range(SLOTS))
        b.hub.clock.ahead += 2.5
        b.gateway.watch.find_silent()
        await b.gateway.upstream.settled()
        assert await ready("True") and len(b.gateway.watch.liveness) == 1
        b.own.suspend()
        b.hub.clock.ahead += 10.0
        b.gateway.watch.find_silent()
        assert await ready("True"), "a suspended hub changes nobody's liveness"
        b.hub.clock.ahead += 10.0
        b.own.resume()
        b.gateway.watch.find_silent()
        assert await ready("True") and len(b.gateway.watch.liveness) == 1
        b.hub.clock.ahead += 3.5
        await eventually(lambda: ready("Unknown"), DEADLINE_S)


async def test_a_drain_cancelled_load_leaves_nothing_half_served(pki: Pki) -> None:
    class Never(Passing):
        async def load(self, slots: Collection[int], revision: int) -> None:
            await asyncio.Event().wait()

    async with replicas(pki) as (a, b):
        b.gateway.slots._loader = Never(b.hub.share)
        await a.own.give([3])
        taking = asyncio.create_task(b.own.take([3]))
        await until(lambda: stats(b.gateway)["slots_loading"] == 1, DEADLINE_S)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        assert stats(b.gateway)["slots_loading"] == stats(b.gateway)["slots_serving"] == 0


async def test_a_slot_lost_and_taken_up_again_under_its_claim_waits_for_its_own_load(pki: Pki) -> None:
    class Gated(Passing):
        def __init__(self, share: Share) -> None:
            super().__init__(share)
            self.gates = [asyncio.Event(), asyncio.Event(), asyncio.Event()]
            self.begun = 0

        async def load(self, slots: Collection[int], revision: int) -> None:
            gate = self.gates[self.begun]
            self.begun += 1
            await super().load(slots, revision)
            await gate.wait()

    async with replicas(pki) as (a, b):
        slots, gated = b.gateway.slots, Gated(b.hub.share)
        slots._loader = gated
        await a.own.give([3, 4])
        owned = await b.own.claim([3, 4])
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(slots.gained(owned))
            await until(lambda: gated.begun == 1, DEADLINE_S)
            slots.lost([3])
            second = tasks.create_task(slots.gained(owned[:1]))
            await until(lambda: gated.begun == 2, DEADLINE_S)
            gated.gates[0].set()
            await first
            assert slots.serving == {4}, "slot 3 is not here yet"
            slots.lost([3])
            third = tasks.create_task(slots.gained(owned[:1]))
            await until(lambda: gated.begun == 3, DEADLINE_S)
            second.cancel()
            await asyncio.wait([second])
            gated.gates[2].set()
            await third
            assert slots.serving == {3, 4}, (
                "an earlier load that is cancelled takes nothing from the next one"
            )
