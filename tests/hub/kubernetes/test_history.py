"""What nodes are told of a Kubernetes cluster's history, and what happens when it goes back (I9)."""

import pytest

from hub.kubernetes.history import KubeHistory, mark_key
from hub.store.memory import MemoryStore
from shards import claims
from shards.claims import EdgeClaim, SlotRecord
from shards.kv import HistoryLost

ROOT = "/cloudhub/default/"
CLUSTER = "0e2b2a54-5f4e-4e53-9a33-6a2a9cbb1a11"


async def test_a_hub_that_starts_again_on_the_same_cluster_tells_the_same_history() -> None:
    store = MemoryStore()
    first = await KubeHistory.open(store, ROOT, CLUSTER, 100)
    again = await KubeHistory.open(store, ROOT, CLUSTER, 250)
    assert (first.uuid, first.generation) == (again.uuid, again.generation)


async def test_a_cluster_that_went_back_is_another_store_to_the_nodes() -> None:
    store = MemoryStore()
    first = await KubeHistory.open(store, ROOT, CLUSTER, 100)
    await first.check(500)
    restored = await KubeHistory.open(store, ROOT, CLUSTER, 499)
    assert restored.uuid != first.uuid
    edge = EdgeClaim(first.uuid, first.generation, 5, 1, "c1")
    record = SlotRecord(1, (claims.Claim(1, "c1", 7, 0.0),))
    parted = claims.judge(
        edge, 100, store=restored.uuid, generation=restored.generation, record=record, head=499
    )
    assert parted is not None
    again = await KubeHistory.open(store, ROOT, CLUSTER, 499)
    assert again.uuid == restored.uuid, "found once, not at every start"


async def test_another_cluster_is_another_store_to_the_nodes() -> None:
    store = MemoryStore()
    first = await KubeHistory.open(store, ROOT, CLUSTER, 100)
    other = await KubeHistory.open(store, ROOT, "another", 5000)
    assert other.uuid != first.uuid


async def test_a_replica_that_runs_ends_when_another_has_found_that_the_cluster_went_back() -> None:
    store = MemoryStore()
    running = await KubeHistory.open(store, ROOT, CLUSTER, 100)
    await running.check(200)
    await KubeHistory.open(store, ROOT, CLUSTER, 150)
    with pytest.raises(HistoryLost, match="start this hub again"):
        await running.check(201)


async def test_a_replica_that_runs_ends_when_the_cluster_goes_back() -> None:
    history = await KubeHistory.open(MemoryStore(), ROOT, CLUSTER, 100)
    await history.check(200)
    await history.check(200)
    with pytest.raises(HistoryLost, match="is at resourceVersion 199, and was at 200"):
        await history.check(199)


async def test_the_mark_never_falls() -> None:
    store = MemoryStore()
    behind = await KubeHistory.open(store, ROOT, CLUSTER, 100)
    ahead = await KubeHistory.open(store, ROOT, CLUSTER, 100)
    await ahead.check(200)
    await behind.check(150)  # it had asked before the other one
    page = await store.page(mark_key(ROOT), mark_key(ROOT) + "\0", limit=1)
    assert b'"revision":200' in page.items[0].value


async def test_claims_of_the_own_store_are_judged_by_revisions_of_the_cluster() -> None:
    store = MemoryStore()
    history = await KubeHistory.open(store, ROOT, CLUSTER, 100)
    record = SlotRecord(2, (claims.Claim(1, "c1", 3, 0.0), claims.Claim(2, "c2", 9, 0.0)))
    edge = EdgeClaim(history.uuid, history.generation, 5, 1, "c1")

    def parted(seen: int, head: int) -> bool:
        judged = claims.judge(
            edge,
            seen,
            store=history.uuid,
            generation=history.generation,
            record=history.record(record, head),
            head=head,
        )
        return judged is not None

    assert not parted(90, 100), "the revisions of the claims themselves are another store's"
    assert parted(101, 100)
