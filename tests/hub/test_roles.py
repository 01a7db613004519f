"""Roles over one store: one owner of each at a time, fenced writes, hand-over, suspension."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from hub.objects import DEPLOYMENTS, NODES, PODS
from hub.store.memory import MemoryStore
from shards.kv import Compare, Delete, Put, TxnResult
from shards.ownership import CONTROLLERS, ROLES, SCHEDULER
from tests.hub.controllers.kit import DEADLINE_S, Hub, deployment, node, pod, running

Txn = Callable[[Sequence[Compare], Sequence[Put | Delete]], Any]


class Gate:
    """Holds the transactions of a store that write keys with `part`, until opened; keeps what came of them."""

    def __init__(self, store: MemoryStore, part: str) -> None:
        self.held = 0
        self.opened = asyncio.Event()
        self.results: list[TxnResult] = []
        self._part = part
        self._txn: Txn = store.txn
        store.txn = self._gated  # type: ignore[method-assign]

    async def _gated(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        mine = any(self._part in op.key for op in ops) and not self.opened.is_set()
        if mine:
            self.held += 1
            # A request that is on its way is not taken back when its sender is cancelled.
            return await asyncio.shield(asyncio.ensure_future(self._later(compares, ops)))
        result: TxnResult = await self._txn(compares, ops)
        return result

    async def _later(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        await self.opened.wait()
        self.results.append(await self._txn(compares, ops))
        return self.results[-1]


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def two() -> AsyncIterator[tuple[Hub, Hub]]:
    """Two replicas of one store; the first owns the roles."""
    async with running() as first, running(Hub(beside=first), owns=False) as second:
        yield first, second


async def names(hub: Hub) -> list[str]:
    return sorted(p["metadata"]["name"] for p in await hub.all(PODS))


async def test_one_replica_runs_each_role_and_hand_over_doubles_no_pod() -> None:
    async with two() as (first, second):
        await first.create(NODES, node("n"))
        await first.create(DEPLOYMENTS, deployment(replicas=3))
        await first.settle()
        made = await names(first)
        assert len(made) == 3
        assert second.roles.controllers(SCHEDULER) is None and second.roles.controllers(CONTROLLERS) is None
        await first.ownership.give(ROLES)
        assert first.roles.controllers(SCHEDULER) is None and first.roles.controllers(CONTROLLERS) is None
        await second.ownership.take(ROLES)
        await second.settle()
        assert await names(second) == made
        await second.edit(DEPLOYMENTS, "till", lambda d: d["spec"].update(replicas=5))
        await second.settle()
        pods = await second.all(PODS)
        assert len(pods) == 5 and set(made) < {p["metadata"]["name"] for p in pods}
        assert all(p["spec"].get("nodeName") == "n" for p in pods)


async def test_hand_over_in_the_middle_of_a_rollout_makes_exactly_what_is_wanted() -> None:
    async with two() as (first, second):
        await first.create(NODES, node("n"))
        await first.create(DEPLOYMENTS, deployment(replicas=30))
        await until(lambda: len(list(first.informers.of(PODS).cache)) >= 3)
        await first.ownership.give(ROLES)
        some = len(await names(first))
        await second.ownership.take(ROLES)
        await second.settle()
        assert some < 30 and len(await names(second)) == 30


async def test_what_a_lost_role_still_had_on_the_way_is_refused_by_the_store() -> None:
    async with two() as (first, second):
        await first.create(NODES, node("n"))
        gate = Gate(first.store, "/obj/core/pods/")
        await first.create(DEPLOYMENTS, deployment(replicas=2))
        await until(lambda: gate.held)
        # Another one claims them; the first does not know it yet, and its request arrives late.
        await second.ownership.claim(ROLES)
        before = await names(first)
        gate.opened.set()
        await until(lambda: gate.results and set(first.ownership.refused) == {CONTROLLERS})
        assert [r.succeeded for r in gate.results] == [False] * len(gate.results)
        assert await names(first) == before == []
        await until(lambda: first.roles.controllers(CONTROLLERS) is None)
        await second.roles.gained([o for r in ROLES if (o := second.ownership.of(r)) is not None])
        first.roles.lost(ROLES)
        await second.settle()
        assert len(await names(second)) == 2


async def test_a_suspended_role_writes_nothing_and_goes_on_when_it_is_resumed() -> None:
    async with running() as hub:
        await hub.create(NODES, node("n"))
        hub.ownership.suspend()
        await hub.create(PODS, pod("p"))
        await hub.create(DEPLOYMENTS, deployment(replicas=2))
        revision = await hub.store.revision()
        for _ in range(200):
            await asyncio.sleep(0)
        assert await hub.store.revision() == revision
        hub.ownership.resume()
        await hub.settle()
        assert len(await names(hub)) == 3
        assert (await hub.get(PODS, "p"))["spec"]["nodeName"] == "n"


async def test_a_deadline_that_passes_in_the_middle_of_a_sync_stops_its_next_write() -> None:
    async with running() as hub:
        await hub.create(NODES, node("n"))
        gate = Gate(hub.store, "/obj/core/pods/")
        await hub.create(DEPLOYMENTS, deployment(replicas=20))
        await until(lambda: gate.held)
        hub.ownership.suspend()
        gate.opened.set()
        await until(lambda: len(gate.results) == gate.held)
        for _ in range(200):
            await asyncio.sleep(0)
        assert len(await names(hub)) == gate.held < 20  # what was on its way; it was ours, and no other's
        hub.ownership.resume()
        await hub.settle()
        assert len(await names(hub)) == 20


async def test_a_set_starts_only_when_it_has_seen_its_own_claim() -> None:
    async with running(Hub(lag=50), owns=False) as hub:
        await hub.create(NODES, node("n"))
        await hub.create(PODS, pod("p"))
        owned = await hub.ownership.claim(ROLES)
        await hub.roles.gained(owned)
        for one in owned:
            controllers = hub.roles.controllers(one.unit)
            assert controllers is not None
            kinds = [PODS, NODES]
            assert all(controllers.informers.of(r).revision >= one.fence.mod_revision for r in kinds)
        await hub.settle()
        assert (await hub.get(PODS, "p"))["spec"]["nodeName"] == "n"


async def test_a_role_that_comes_back_under_a_new_claim_writes_under_that_one_alone() -> None:
    async with running() as hub:
        old = hub.roles._held[CONTROLLERS]
        hub.ownership.lose(ROLES)
        await hub.ownership.take(ROLES)
        new = hub.roles._held[CONTROLLERS]
        assert old.fence() is None and new.fence() is not None
        await hub.create(DEPLOYMENTS, deployment(replicas=2))
        await hub.settle()
        assert len(await names(hub)) == 2


async def test_the_owner_of_a_role_holds_no_bytes_of_pods() -> None:
    async with running() as hub:
        await hub.create(PODS, pod("p"))
        await hub.settle()
        for role in ROLES:
            entry = hub.controllers.of(role).informers.of(PODS).cache.get("shop", "p")
            assert entry is not None and entry.size == 0 and entry.note is not None
