import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from hub import errors
from hub.objects import CONFIGMAPS, NAMESPACES, NODES, PODS, SHARED, Keys, Resource, partition_of_slot
from hub.registry import BATCH_OBJECTS_MAX, Change, FenceLost, Object, Registry, Stored
from hub.store.memory import MemoryStore
from shards.claims import Fence
from shards.kv import KeyValue, Put, TxnResult, Unavailable, Unreadable
from shards.ring import slot_of

SLOTS = 16


@pytest.fixture
def registry() -> Registry:
    return Registry(MemoryStore(slots=SLOTS), Keys())


def configmap(name: str, namespace: str = "d", **data: str) -> Object:
    return {"metadata": {"name": name, "namespace": namespace}, "data": data}


def pod(name: str, node: str = "") -> Object:
    return {"metadata": {"name": name, "namespace": "d"}, "spec": {"nodeName": node} if node else {}}


async def test_a_created_object_is_read_back_with_its_revision_as_resource_version(
    registry: Registry,
) -> None:
    made = await registry.create(CONFIGMAPS, configmap("a", x="1"))
    found = await registry.get(CONFIGMAPS, "d", "a")
    assert found == made
    meta = found.obj()["metadata"]
    assert meta["resourceVersion"] == str(made.revision)
    assert meta["uid"] and meta["creationTimestamp"]
    assert b"resourceVersion" not in found.raw


async def test_a_name_is_taken_only_once_wherever_the_object_lies(registry: Registry) -> None:
    await registry.create(PODS, pod("a"))
    with pytest.raises(errors.AlreadyExists, match='pods "a" already exists'):
        await registry.create(PODS, pod("a", node="n"))
    await registry.create(CONFIGMAPS, configmap("a", namespace="other"))


async def test_nothing_is_created_in_a_namespace_that_changed_since_it_was_read(registry: Registry) -> None:
    read = await registry.create(NAMESPACES, {"metadata": {"name": "d"}})
    await registry.create(CONFIGMAPS, configmap("a"), within=read)
    now = await registry.replace(NAMESPACES, read, {"metadata": {"name": "d", "deletionTimestamp": "now"}})
    with pytest.raises(errors.Conflict, match='namespaces "d"'):
        await registry.create(CONFIGMAPS, configmap("b"), within=read)
    with pytest.raises(errors.AlreadyExists):
        await registry.create(CONFIGMAPS, configmap("a"), within=read)
    await registry.remove(NAMESPACES, now)
    with pytest.raises(errors.Conflict):
        await registry.create(CONFIGMAPS, configmap("b"), within=now)
    assert await registry.find(CONFIGMAPS, "d", "b") is None


async def test_a_write_over_another_state_than_was_read_is_a_conflict(registry: Registry) -> None:
    first = await registry.create(CONFIGMAPS, configmap("a"))
    await registry.replace(CONFIGMAPS, first, configmap("a", x="1"))
    with pytest.raises(errors.Conflict):
        await registry.replace(CONFIGMAPS, first, configmap("a", x="2"))
    await registry.remove(CONFIGMAPS, await registry.get(CONFIGMAPS, "d", "a"))
    with pytest.raises(errors.NotFound):
        await registry.replace(CONFIGMAPS, first, configmap("a", x="3"))
    with pytest.raises(errors.NotFound):
        await registry.remove(CONFIGMAPS, first)


async def test_unchanged_bytes_are_not_written(registry: Registry) -> None:
    made = await registry.create(CONFIGMAPS, configmap("a"))
    assert await registry.replace(CONFIGMAPS, made, made.obj()) == made
    assert await registry.store.revision() == made.revision


async def test_removing_frees_the_name(registry: Registry) -> None:
    made = await registry.create(CONFIGMAPS, configmap("a"))
    await registry.remove(CONFIGMAPS, made)
    assert await registry.find(CONFIGMAPS, "d", "a") is None
    again = await registry.create(CONFIGMAPS, configmap("a"))
    assert again.obj()["metadata"]["uid"] != made.obj()["metadata"]["uid"]


async def test_concurrent_mutations_all_take_effect(registry: Registry) -> None:
    await registry.create(CONFIGMAPS, configmap("a", n="0"))

    def add(obj: Object) -> Object:
        obj["data"]["n"] = str(int(obj["data"]["n"]) + 1)
        return obj

    await asyncio.gather(*(registry.mutate(CONFIGMAPS, "d", "a", add) for _ in range(8)))
    assert (await registry.get(CONFIGMAPS, "d", "a")).obj()["data"]["n"] == "8"


async def test_a_mutation_of_another_uid_is_not_found(registry: Registry) -> None:
    await registry.create(CONFIGMAPS, configmap("a"))
    with pytest.raises(errors.NotFound):
        await registry.mutate(CONFIGMAPS, "d", "a", lambda o: o, uid="other")


async def test_binding_moves_a_pod_to_its_nodes_partition_in_one_step(registry: Registry) -> None:
    node: Object = {"metadata": {"name": "n", "labels": {"cloudhub.dev/site": "s"}}}
    partition = (await registry.create(NODES, node)).partition
    assert partition == partition_of_slot(slot_of("s", SLOTS))
    made = await registry.create(PODS, pod("a"))
    uid = made.obj()["metadata"]["uid"]
    bound = await registry.bind("d", "a", uid, "n")
    assert bound.partition == partition
    assert bound.revision == made.revision + 1
    assert await registry.get(PODS, "d", "a") == bound
    assert [s.key for s in (await registry.page(PODS)).items] == [bound.key]
    with pytest.raises(errors.Conflict, match='already assigned to node "n"'):
        await registry.bind("d", "a", uid, "n2")
    with pytest.raises(errors.NotFound):
        await registry.bind("d", "a", "other uid", "n2")


async def test_a_pod_that_names_its_node_is_created_in_its_partition(registry: Registry) -> None:
    node = await registry.create(NODES, {"metadata": {"name": "n", "labels": {"cloudhub.dev/site": "s"}}})
    made = await registry.create(PODS, pod("a", node="n"))
    assert made.partition == node.partition == partition_of_slot(slot_of("s", SLOTS))


async def test_a_pod_that_names_a_node_to_come_waits_among_the_shared_and_is_placed_once_it_is_there(
    registry: Registry,
) -> None:
    early = await registry.create(PODS, pod("a", node="n"))
    uid = early.obj()["metadata"]["uid"]
    assert early.partition == SHARED
    assert await registry.place("d", "a", uid) == early
    node = await registry.create(NODES, {"metadata": {"name": "n", "labels": {"cloudhub.dev/site": "s"}}})
    with pytest.raises(errors.NotFound):
        await registry.place("d", "a", "another")
    placed = await registry.place("d", "a", uid)
    assert placed.partition == node.partition and placed.raw == early.raw
    assert await registry.get(PODS, "d", "a") == placed == await registry.place("d", "a", uid)
    assert await registry.store.get(early.key) is None
    with pytest.raises(errors.AlreadyExists):
        await registry.create(PODS, pod("a"))


async def test_a_node_that_appears_while_its_pod_is_made_gets_it(registry: Registry) -> None:
    class Race(Registry):
        """The Node is made between the look for it and the write of the pod."""

        raced = False

        async def _txn(self, *args: Any) -> TxnResult:
            if not self.raced:
                self.raced = True
                await registry.create(NODES, {"metadata": {"name": "n"}})
            return await super()._txn(*args)

    made = await Race(registry.store, registry.keys).create(PODS, pod("a", node="n"))
    assert made.partition == partition_of_slot(slot_of("n", SLOTS))


async def test_an_update_that_meets_a_moved_pod_is_a_conflict_and_not_a_404(registry: Registry) -> None:
    made = await registry.create(PODS, pod("a"))
    await registry.bind("d", "a", made.obj()["metadata"]["uid"], "n")
    with pytest.raises(errors.Conflict):
        await registry.replace(PODS, made, {**made.obj(), "x": 1})


async def test_a_namespaces_list_holds_bound_and_unbound_pods_by_name(registry: Registry) -> None:
    for name, node in (("c", "n1"), ("a", ""), ("b", "n2")):
        await registry.create(PODS, pod(name, node))
    names: list[str] = []
    start = None
    while True:
        page = await registry.page(PODS, "d", limit=2, start_key=start)
        names += [s.obj()["metadata"]["name"] for s in page.items]
        start = page.next_key
        if start is None:
            break
    assert names == ["a", "b", "c"]


async def test_pages_of_one_list_agree_whatever_is_written_between_them(registry: Registry) -> None:
    for name in ("a", "b", "c"):
        await registry.create(PODS, pod(name, "n"))
    first = await registry.page(PODS, "d", limit=1)
    await registry.remove(PODS, await registry.get(PODS, "d", "b"))
    rest = await registry.page(PODS, "d", revision=first.revision, start_key=first.next_key)
    assert [s.obj()["metadata"]["name"] for s in rest.items] == ["b", "c"]
    await registry.store.compact(await registry.store.revision())
    with pytest.raises(errors.Expired):
        await registry.page(PODS, "d", revision=first.revision, start_key=first.next_key)


async def test_a_batch_is_one_transaction_and_each_failure_is_its_own(registry: Registry) -> None:
    for name in ("a", "b"):
        await registry.create(CONFIGMAPS, configmap(name, n="0"))

    def put(obj: Object) -> Object:
        obj["data"]["n"] = "1"
        return obj

    def refuse(obj: Object) -> Object:
        raise errors.BadRequest("no")

    results = await registry.mutate_many(
        [
            Change(CONFIGMAPS, "d", "a", None, put),
            Change(CONFIGMAPS, "d", "missing", None, put),
            Change(CONFIGMAPS, "d", "b", "other uid", put),
            Change(CONFIGMAPS, "d", "b", None, refuse),
        ]
    )
    assert [type(r).__name__ for r in results] == ["Stored", "NotFound", "NotFound", "BadRequest"]
    both = await registry.mutate_many([Change(CONFIGMAPS, "d", n, None, put) for n in ("a", "b")])
    assert [r.obj()["data"]["n"] for r in both if not isinstance(r, errors.ApiError)] == ["1", "1"]
    with pytest.raises(ValueError, match="at most 100"):
        await registry.mutate_many([Change(CONFIGMAPS, "d", "a", None, put)] * (BATCH_OBJECTS_MAX + 1))


async def test_what_lies_where_it_is_likely_to_is_read_in_one_step(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "moved"):
        await registry.create(CONFIGMAPS, configmap(name, n="0"))
    alone: list[str] = []
    get = registry.get

    async def count(res: Resource, namespace: str, name: str) -> Stored:
        alone.append(name)
        return await get(res, namespace, name)

    monkeypatch.setattr(registry, "get", count)

    def put(obj: Object) -> Object:
        obj["data"]["n"] = "1"
        return obj

    where = {"a": "-", "b": "-", "moved": "0007", "missing": "0007"}
    changes = [Change(CONFIGMAPS, "d", name, None, put, at) for name, at in where.items()]
    results = await registry.mutate_many(changes)
    assert [type(r).__name__ for r in results] == ["Stored"] * 3 + ["NotFound"]
    assert alone == ["moved", "missing"]
    assert (await get(CONFIGMAPS, "d", "moved")).obj()["data"]["n"] == "1"

    async def unreadable(keys: Sequence[str]) -> list[KeyValue | None]:
        raise Unreadable("one of them")

    monkeypatch.setattr(registry.store, "get_many", unreadable)
    alone.clear()
    assert [type(r).__name__ for r in await registry.mutate_many(changes[:2])] == ["Stored"] * 2
    assert alone == ["a", "b"]


async def test_a_write_under_a_lost_fence_changes_nothing(registry: Registry) -> None:
    held = await registry.store.txn([], [Put("fence", b"1")])
    fence = Fence("fence", held.revision)
    made = await registry.create(CONFIGMAPS, configmap("a"), fence=fence)
    await registry.store.txn([], [Put("fence", b"2")])
    with pytest.raises(FenceLost):
        await registry.replace(CONFIGMAPS, made, configmap("a", x="1"), fence=fence)
    with pytest.raises(FenceLost):
        await registry.mutate_many([Change(CONFIGMAPS, "d", "a", None, lambda o: {**o, "x": 1})], fence=fence)
    assert await registry.get(CONFIGMAPS, "d", "a") == made


async def test_an_object_over_the_stores_limit_is_too_large(registry: Registry) -> None:
    with pytest.raises(errors.TooLarge, match="at most 1450000 are stored"):
        await registry.create(CONFIGMAPS, configmap("a", x="y" * 1_500_000))
    assert await registry.find(CONFIGMAPS, "d", "a") is None


async def test_a_store_that_cannot_answer_is_a_503(registry: Registry) -> None:
    await registry.store.close()
    for call in (registry.get(CONFIGMAPS, "d", "a"), registry.create(CONFIGMAPS, configmap("a"))):
        with pytest.raises(errors.ServiceUnavailable) as caught:
            await call
        assert isinstance(caught.value.__cause__, Unavailable)


def test_keys_of_two_objects_never_coincide() -> None:
    keys: Any = Keys()
    assert keys.name(NODES, "", "x") != keys.name(CONFIGMAPS, "", "x")
    assert not keys.names(PODS, "a").startswith(keys.names(PODS, "a-b"))
    assert not keys.names(PODS, "a-b").startswith(keys.names(PODS, "a"))
