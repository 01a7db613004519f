"""Leases of nodes: how many requests they cost, how evenly, and who may renew them."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from hub import errors
from hub.kubernetes.leases import Alive, LeaseOptions, Leases
from hub.kubernetes.registry import KubeRegistry
from hub.kubernetes.trickle import FRESH_PER_S, Trickle
from hub.kubernetes.window import PAUSE_MAX_S
from hub.objects import Keys
from hub.store.memory import MemoryStore
from shards.claims import Fence
from shards.kv import Put
from tests.hub.kubernetes.fake_objects import FakeApi

PATH = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
KUBELET_LEASE_S = 10.0
KUBELET_STATUS_S = 300.0
"""Of the kubelet's documented defaults: nodeLeaseDurationSeconds / 4 and nodeStatusReportFrequency."""


class World:
    def __init__(self, nodes: int, period_s: float = 10.0) -> None:
        self.clock = 0.0
        self.api = FakeApi()
        self.store = MemoryStore()
        self.keys = Keys()
        self.registry = KubeRegistry(self.api, self.store, self.keys)
        self.alive = {f"edge-{i}": Alive(i % 8, f"uid-{i}") for i in range(nodes)}
        self.fences: dict[int, Fence] = {}
        self.lost: list[int] = []
        self.refused: list[float] = []
        self.per_second: Counter[int] = Counter()
        self.renewals: dict[str, list[float]] = {}
        self.api.sent = self._sent
        self.leases = Leases(
            self.api,
            self.registry,
            lambda: dict(self.alive),
            self.fences.get,
            self.lost.append,
            LeaseOptions(period_s),
            now=lambda: self.clock,
            wall=lambda: self.clock,
        )

    async def start(self) -> "World":
        for slot in range(8):
            await self.claim(slot)
        return self

    async def claim(self, slot: int) -> None:
        key = self.keys.slot_epoch(slot)
        self.fences[slot] = Fence(key, (await self.store.txn([], [Put(key, b"{}")])).revision)

    def _sent(self) -> None:
        method, path = self.api.log[-1]
        self.per_second[int(self.clock)] += 1
        if method != "GET":
            name = path.rsplit("/", 1)[1] if method == "PATCH" else "new"
            self.renewals.setdefault(name, []).append(self.clock)

    async def pass_time(self, seconds: float, tick_s: float = 0.1) -> None:
        until = self.clock + seconds
        while self.clock < until:
            await asyncio.gather(*(self.leases.renew(node) for node in self.leases.due()))
            self.clock = round(self.clock + tick_s, 6)

    def busiest(self, since: float) -> int:
        return max((n for second, n in self.per_second.items() if second >= since), default=0)


async def test_a_thousand_idle_nodes_cost_under_120_requests_in_any_second(
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = await World(1000).start()
    await world.pass_time(60)  # 1,000 leases are made first
    since, before = world.clock, len(world.api.log)
    await world.pass_time(60)
    mean = (len(world.api.log) - before) / 60
    kubelets = 1000 * (1 / KUBELET_LEASE_S + 1 / KUBELET_STATUS_S)
    with capsys.disabled():
        print(
            f"\n1,000 idle nodes: {mean:.1f} requests/s, at most {world.busiest(since)} in a second;"
            f" as many kubelets: {kubelets:.1f}/s and at least 4,000 watches"
        )
    assert 99 <= mean <= 101 and world.busiest(since) < 120
    for times in world.renewals.values():
        late = [b - a for a, b in itertools.pairwise(times) if a >= since]
        assert all(gap <= 10.5 for gap in late)


async def test_a_period_of_ten_minutes_costs_under_5_requests_a_second(
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = await World(1000, period_s=600).start()
    await world.pass_time(60)
    since, before = world.clock, len(world.api.log)
    await world.pass_time(1200, tick_s=0.5)
    mean = (len(world.api.log) - before) / 1200
    with capsys.disabled():
        print(
            f"\n1,000 idle nodes, leases every 600 s: {mean:.2f} requests/s, at most {world.busiest(since)} in a second"
        )
    assert mean <= 1.7 and world.busiest(since) < 5
    assert world.api.objects[f"{PATH}/edge-0"]["spec"]["leaseDurationSeconds"] == 2400


async def test_nodes_that_come_all_at_once_are_renewed_at_a_bounded_rate() -> None:
    world = await World(0).start()
    await world.pass_time(5)
    world.alive = {f"edge-{i}": Alive(0, "uid") for i in range(1000)}
    await world.pass_time(40)
    assert len([k for k in world.api.objects if k.startswith(PATH)]) == 1000
    # A new one is looked for and then made; beside it the line moves on.
    assert world.busiest(0) <= 2 * FRESH_PER_S + 100 + 20


async def test_a_silent_nodes_lease_is_left_to_end_and_taken_up_at_once_when_it_is_back() -> None:
    world = await World(20).start()
    await world.pass_time(20)
    away = world.alive.pop("edge-7")
    await world.pass_time(2)
    last = world.renewals["edge-7"][-1]
    await world.pass_time(60)
    assert world.renewals["edge-7"][-1] == last
    world.alive["edge-7"] = away
    await world.pass_time(2)
    assert world.renewals["edge-7"][-1] > last


async def test_nothing_is_renewed_while_this_hub_may_not_act_for_the_slot() -> None:
    world = await World(8).start()
    await world.pass_time(11)
    del world.fences[3]
    await world.pass_time(1)
    before = len(world.renewals["edge-3"])
    await world.pass_time(30)
    assert len(world.renewals["edge-3"]) == before and len(world.renewals["edge-4"]) > before


async def test_a_conflict_shows_that_another_owner_renews() -> None:
    world = await World(8).start()
    await world.pass_time(11)
    fence = world.fences[3]
    await world.claim(3)
    world.fences[3] = fence  # this hub does not know yet
    world.api.touch(f"{PATH}/edge-3", by="the-next-owner")
    await world.pass_time(11)
    assert world.lost == [3]


async def test_a_conflict_with_somebody_else_is_followed_by_a_fresh_read_and_a_renewal() -> None:
    world = await World(1).start()
    await world.pass_time(11)
    world.api.touch(f"{PATH}/edge-0", by="a-user")
    before = world.api.objects[f"{PATH}/edge-0"]["spec"]["renewTime"]
    await world.pass_time(11)
    assert world.api.objects[f"{PATH}/edge-0"]["spec"]["renewTime"] > before
    assert not world.lost


async def test_a_lease_that_was_deleted_is_made_anew_for_the_present_node() -> None:
    world = await World(1).start()
    await world.pass_time(11)
    del world.api.objects[f"{PATH}/edge-0"]
    world.alive["edge-0"] = Alive(0, "uid-of-the-new-node")
    await world.pass_time(11)
    owner = world.api.objects[f"{PATH}/edge-0"]["metadata"]["ownerReferences"][0]
    assert owner["uid"] == "uid-of-the-new-node" and owner["kind"] == "Node"


def fail_while(world: World, failure: Callable[[], Exception]) -> list[bool]:
    """Until the flag that is returned is taken down every request fails so, and is not in the log."""
    plain, down = world.api.request, [True]

    async def request(*args: Any, **options: Any) -> tuple[int, bytes]:
        if down[0]:
            world.refused.append(world.clock)
            raise failure()
        return await plain(*args, **options)

    world.api.request = request  # type: ignore[method-assign]
    return down


async def test_an_outage_is_not_made_up_for_in_a_burst() -> None:
    world = await World(1000).start()
    await world.pass_time(40)
    down = fail_while(world, lambda: errors.ServiceUnavailable("the API server is down"))
    await world.pass_time(30)
    down[0] = False
    since, before = world.clock, len(world.api.log)
    await world.pass_time(20)
    # What was not taken is known to be as it was: no lease is read again.
    assert world.busiest(since) <= 200 and {method for method, _ in world.api.log[before:]} == {"PATCH"}
    assert all(times[-1] >= since for name, times in world.renewals.items() if name != "new")


async def test_an_api_server_that_is_away_is_asked_by_one_request_every_few_seconds() -> None:
    world = await World(1000).start()
    await world.pass_time(40)
    fail_while(world, lambda: errors.ServiceUnavailable("the API server is down"))
    await world.pass_time(60)
    assert len(world.refused) <= 16 + 8 + 4 + 2 + 60 / PAUSE_MAX_S + 5
    assert sum(at > world.clock - 30 for at in world.refused) <= 30 / PAUSE_MAX_S + 1


async def test_a_renewal_without_an_answer_is_followed_by_a_read_for_it_may_have_taken_effect() -> None:
    world = await World(1).start()
    await world.pass_time(11)
    world.api.lost = 1
    await world.pass_time(30)
    lost = world.leases.failed
    assert lost == 1 and not world.lost and world.renewals["edge-0"][-1] >= world.clock - 11
    assert [method for method, _ in world.api.log[-4:]] == ["PATCH", "GET", "PATCH", "PATCH"]


async def test_a_lease_that_is_refused_for_itself_slows_no_other_down() -> None:
    world = await World(20).start()
    await world.pass_time(11)
    plain = world.api.request

    async def request(method: str, path: str, **options: Any) -> tuple[int, bytes]:
        if path.endswith("/edge-7"):
            raise errors.Forbidden("leases", "edge-7", "a webhook does not like it")
        return await plain(method, path, **options)

    world.api.request = request  # type: ignore[method-assign]
    await world.pass_time(40)
    others = [times[-1] for name, times in world.renewals.items() if name not in ("new", "edge-7")]
    assert world.leases.failed >= 3 and min(others) >= world.clock - 10.5


def test_everyone_gets_a_turn_in_every_period_however_many_come_and_go() -> None:
    trickle, turns, clock = Trickle(10.0), Counter[str](), 0.0
    for step in range(2000):
        trickle.set_nodes({f"n{i}" for i in range(50 + step % 7)})
        for node in trickle.due(clock, 100):
            turns[node] += 1
        clock += 0.1
    stayed = [turns[f"n{i}"] for i in range(50)]
    assert min(stayed) >= 19 and max(stayed) <= 24
