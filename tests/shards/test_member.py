"""Members over real stores: they share, hand over, take over, are suspended and resume."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from hub.store.etcd import EtcdStore
from hub.store.memory import MemoryStore
from hub.store.sqlite import SqliteStore
from shards.kv import Ambiguous, Compare, Put, Store
from shards.member import MemberTaken
from tests.servers.etcd import EtcdCluster
from tests.shards.members import DEADLINE_S, ROOT, Replica, all_owned, replicas, until

SLOTS = 64


@pytest.fixture(scope="module")
def etcd() -> Any:
    with EtcdCluster(1) as cluster:
        yield cluster


@pytest.fixture(params=["memory", "etcd"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore(slots=SLOTS)
        return
    cluster = request.getfixturevalue("etcd")
    made = await EtcdStore.open(cluster.endpoints, slots=SLOTS, root=ROOT)
    try:
        yield made
        page = await made.page(ROOT + "member/", ROOT + "t", limit=1000)
        leases = {kv.lease for kv in page.items if kv.lease}
        for lease in leases:
            await made.revoke(lease)
    finally:
        await made.close()


def expire(store: Store, replica: Replica) -> None:
    """etcd ends a lease that nobody renews; the memory store has no clock and is told."""
    if isinstance(store, MemoryStore):
        store.expire(replica.member.lease)


class Faulty:
    """A store that a test cuts off from one member: nothing is answered while `frozen`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.identity = store.identity
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.lose_answers = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name == "watch":
            return self._watch

        async def call(*args: Any, **kwargs: Any) -> Any:
            await self.thawed.wait()
            return await method(*args, **kwargs)

        return call

    async def _watch(self, ranges: Any, after: int) -> AsyncIterator[Any]:
        async for batch in self._store.watch(ranges, after):
            await self.thawed.wait()
            yield batch


async def test_the_first_member_of_an_empty_store_owns_everything_at_once(store: Store) -> None:
    async with replicas(store, "a", holdoff_s=60.0) as (a,):
        assert all_owned(store, a)()
        route = a.member.route(5)
        assert route is not None and route.member is not None and route.member.edge == "a:1"
        fence = a.member.fence("scheduler")
        assert fence is not None and a.member.live
        assert (await store.txn([Compare(fence.key, fence.mod_revision)], [])).succeeded


async def test_members_share_the_slots_and_a_drained_one_leaves_no_long_gap(store: Store) -> None:
    async with replicas(store, "a", "b", "c") as (a, b, c):
        everyone = (a, b, c)
        # Who comes later takes its share from those that have more, a slot at a time, while all are owned throughout.
        await until(lambda: all(15 <= len(r.slots) <= 24 for r in everyone) and all_owned(store, *everyone)())
        await until(lambda: all(r.member.route(s) for r in everyone for s in range(SLOTS)))
        for slot in range(SLOTS):
            owners = {r.member.route(slot).owner.member for r in everyone}  # type: ignore[union-attr]
            assert len(owners) == 1
        await a.stop()
        await until(all_owned(store, b, c))
        assert not a.listener.held and a.member.fence(0) is None
        await until(lambda: set(b.member.members) == {"b", "c"})
        print("gap of a drain:", max(b.member.counters.gap_s, c.member.counters.gap_s))
        assert a.member.counters.lost == 0 and a.member.counters.releases > 0


async def test_what_a_killed_member_owned_is_owned_again(store: Store) -> None:
    async with replicas(store, "a", "b") as (a, b):
        await until(all_owned(store, a, b))
        before = {s: a.member.of(s) for s in a.slots}
        await a.kill()
        expire(store, a)
        await until(all_owned(store, b))
        for slot, owned in before.items():
            now = b.member.of(slot)
            assert owned is not None and now is not None and now.claim.epoch > owned.claim.epoch
            assert now.claim.first_revision < now.fence.mod_revision
            assert now.claim.first_revision >= owned.fence.mod_revision


async def test_a_frozen_store_suspends_and_the_epoch_goes_on(store: Store) -> None:
    faulty = Faulty(store)
    replica = await Replica(faulty, "a", ttl_s=3.0).start()  # type: ignore[arg-type]
    try:
        await asyncio.wait_for(replica.member.settled(), DEADLINE_S)
        lease = replica.member.lease
        epochs = {s: replica.member.of(s).claim for s in replica.slots}  # type: ignore[union-attr]
        faulty.thawed.clear()
        while "suspended" not in replica.listener.calls:
            await store.keepalive(lease)  # the store is only slow to answer this member: its lease lives
            await asyncio.sleep(0.05)
        assert replica.member.fence(0) is None and not replica.member.live
        assert replica.member.of(0) is not None
        await store.keepalive(lease)
        faulty.thawed.set()
        await until(lambda: "resumed" in replica.listener.calls)
        assert replica.member.fence(0) is not None and replica.member.live
        assert {s: replica.member.of(s).claim for s in replica.slots} == epochs  # type: ignore[union-attr]
        assert "lost" not in replica.listener.calls and replica.member.counters.suspensions == 1
    finally:
        await replica.kill()


async def test_a_lease_that_ended_meanwhile_is_lost_and_a_late_write_is_refused(store: Store) -> None:
    faulty = Faulty(store)
    async with contextlib.AsyncExitStack() as stack:
        (b,) = await stack.enter_async_context(replicas(store, "b"))
        a = await Replica(faulty, "a", check_deadline=False).start()  # type: ignore[arg-type]
        stack.push_async_callback(a.kill)
        await until(lambda: bool(a.slots) and all_owned(store, a, b)())
        slots = list(a.slots)
        faulty.thawed.clear()
        expire(store, a)
        await until(lambda: len(b.slots) == SLOTS)
        fence = a.member.fence(slots[0])
        assert fence is not None, "the inline check is off"
        late = await store.txn([Compare(fence.key, fence.mod_revision)], [Put(ROOT + "x", b"late")])
        assert not late.succeeded
        a.member.fence_lost(slots[0])
        assert a.member.fence(slots[0]) is None
        faulty.thawed.set()
        await until(lambda: a.listener.lost_units >= set(slots))
        await until(all_owned(store, a, b))
        await until(lambda: bool(a.slots))


async def test_a_second_process_of_one_id_is_refused(store: Store) -> None:
    async with replicas(store, "a", ttl_s=1.0):
        with pytest.raises(MemberTaken, match="'a' is running already"):
            await Replica(store, "a", incarnation="other", ttl_s=1.0).start()


async def test_a_restarted_member_waits_for_its_old_lease(store: Store) -> None:
    async with replicas(store, "a") as (a,):
        await a.kill()
        expire(store, a)
        again = await Replica(store, "a", incarnation="a-2").start()
        try:
            await until(all_owned(store, again))
        finally:
            await again.kill()


async def test_claims_whose_answers_are_lost_are_found_again() -> None:
    class Lossy(Faulty):
        def __getattr__(self, name: str) -> Any:
            method = super().__getattr__(name)
            if name != "txn":
                return method

            async def txn(compares: Sequence[Compare], ops: Sequence[Any]) -> Any:
                result = await method(compares, ops)
                self.lose_answers += 1
                if self.lose_answers % 2:
                    raise Ambiguous("the answer was lost by the test")
                return result

            return txn

    store = MemoryStore(slots=SLOTS)
    async with replicas(Lossy(store), "a", "b") as (a, b):  # type: ignore[arg-type]
        await until(all_owned(store, a, b))
        await a.stop()
        await until(all_owned(store, b))


async def test_a_standalone_restart_finds_its_slots_free(tmp_path: Path) -> None:
    path = tmp_path / "hub"
    loop = asyncio.get_running_loop()
    epochs: list[int] = []
    for turn in range(3):
        store = await SqliteStore.open(str(path))
        began = loop.time()
        replica = await Replica(store, "hub", incarnation=f"{turn}", holdoff_s=30.0).start()
        await asyncio.wait_for(replica.member.settled(), DEADLINE_S)
        print(f"{store.identity.slots} slots in {loop.time() - began:.3f} s")
        assert all_owned(store, replica)()
        epochs.append(replica.member.of(1023).claim.epoch)  # type: ignore[union-attr]
        if turn == 1:
            await replica.stop()
        else:
            await replica.kill()
        await store.close()
    assert epochs == [1, 2, 3]
