"""Writes to an API server that are fenced without its help: against one in memory, where conflicts come on cue."""

import asyncio
from typing import Any

import pytest

from hub import errors
from hub.kubernetes.nodes import EDGE, NodeForm
from hub.kubernetes.registry import KubeRegistry, WriteLimits, owned_by
from hub.mirror import Mirror
from hub.objects import EVENTS, NODES, PODS, Keys, Taint, partition_of_slot
from hub.registry import Change, FenceLost
from hub.store.memory import MemoryStore
from shards.claims import Fence
from shards.kv import Put
from shards.ring import slot_of
from tests.hub.fake_ownership import Cell
from tests.hub.kubernetes.fake_objects import FakeApi

POD = "/api/v1/namespaces/shop/pods/till"
Object = dict[str, Any]


def pod(**meta: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {"nodeName": "edge-1", "containers": [{"name": "main", "image": "none"}]},
        "status": {"phase": "Pending", "qosClass": "BestEffort"},
    }


class World:
    def __init__(self) -> None:
        self.api = FakeApi()
        self.store = MemoryStore()
        self.keys = Keys()
        self.registry = KubeRegistry(
            self.api,
            self.store,
            self.keys,
            limits=WriteLimits(per_second=1e6),
            sleep=lambda s: asyncio.sleep(0),
        )

    async def fence(self, slot: int = 3) -> Fence:
        key = self.keys.slot_epoch(slot)
        return Fence(key, (await self.store.txn([], [Put(key, b"{}")])).revision)


@pytest.fixture
async def world() -> World:
    made = World()
    made.api.put(POD, pod())
    return made


def running(obj: Object) -> Object:
    obj["status"] = {"phase": "Running"}
    return obj


async def test_a_status_is_written_alone_with_uid_and_resource_version(world: World) -> None:
    held = world.api.objects[POD]["metadata"]
    fence = await world.fence()
    stored = await world.registry.mutate(PODS, "shop", "till", running, fence=fence)
    assert world.api.log == [("GET", POD), ("PATCH", f"{POD}/status")]
    assert world.api.bodies[-1] == {
        "metadata": {"uid": held["uid"], "resourceVersion": held["resourceVersion"]},
        "status": {"phase": "Running"},
    }
    assert stored.revision == world.api.revision and stored.obj()["status"]["qosClass"] == "BestEffort"


async def test_what_differs_in_nothing_is_not_written(world: World) -> None:
    before = world.api.revision
    stored = await world.registry.mutate(PODS, "shop", "till", lambda obj: obj, fence=await world.fence())
    assert stored.revision == before == world.api.revision
    assert [method for method, _ in world.api.log] == ["GET"]


async def test_after_a_conflict_the_change_is_derived_anew_from_a_fresh_read(world: World) -> None:
    world.api.meddle = [lambda: world.api.touch(POD, other="wrote")]
    seen: list[Object] = []

    def change(obj: Object) -> Object:
        seen.append(obj["metadata"].get("labels") or {})
        return running(obj)

    await world.registry.mutate(PODS, "shop", "till", change, fence=await world.fence())
    assert seen == [{}, {"other": "wrote"}]
    assert world.api.objects[POD]["status"]["phase"] == "Running"
    assert world.api.objects[POD]["metadata"]["labels"] == {"other": "wrote"}


async def test_after_a_conflict_nothing_is_written_for_a_slot_that_another_owns_now(world: World) -> None:
    fence = await world.fence()

    def meddle() -> None:
        world.api.touch(POD, by="the-next-owner")

    world.api.meddle = [meddle]
    await world.fence()  # claimed anew: the fence's key has changed
    with pytest.raises(FenceLost):
        await world.registry.mutate(PODS, "shop", "till", running, fence=fence)
    assert world.api.objects[POD]["status"]["phase"] == "Pending"
    assert [method for method, _ in world.api.log] == ["GET", "PATCH"]


async def test_a_write_is_not_sent_once_the_lease_has_passed_even_while_it_waits(world: World) -> None:
    fence = await world.fence()
    live = [True]
    world.registry.live = lambda: live[0]
    world.api.sent = lambda: live.__setitem__(0, False)  # frozen between the read and the write
    with pytest.raises(errors.ServiceUnavailable):
        await world.registry.mutate(PODS, "shop", "till", running, fence=fence)
    assert [method for method, _ in world.api.log] == ["GET"]


async def test_a_write_is_not_sent_for_a_slot_that_was_given_away(world: World) -> None:
    cell = Cell(world.store)
    member = cell.member("a")
    owned = (await member.claim([3]))[0]
    world.registry.owns = owned_by(member, world.keys)
    await world.registry.mutate(PODS, "shop", "till", running, fence=owned.fence)
    member._owned.clear()
    with pytest.raises(FenceLost):
        await world.registry.mutate(
            PODS, "shop", "till", lambda obj: {**obj, "status": {"phase": "Failed"}}, fence=owned.fence
        )
    assert world.api.objects[POD]["status"]["phase"] == "Running"


async def test_a_pod_made_anew_under_the_same_name_is_not_found(world: World) -> None:
    uid = world.api.objects[POD]["metadata"]["uid"]
    del world.api.objects[POD]
    world.api.put(POD, pod())
    with pytest.raises(errors.NotFound):
        await world.registry.mutate(PODS, "shop", "till", running, uid=uid, fence=await world.fence())


async def test_a_pod_made_anew_between_read_and_write_is_not_touched(world: World) -> None:
    uid = world.api.objects[POD]["metadata"]["uid"]

    def replaced() -> None:
        del world.api.objects[POD]
        world.api.put(POD, pod())

    world.api.meddle = [replaced]
    with pytest.raises(errors.NotFound):
        await world.registry.mutate(PODS, "shop", "till", running, uid=uid, fence=await world.fence())
    assert world.api.objects[POD]["status"]["phase"] == "Pending"


async def test_a_batch_fails_one_by_one_and_keeps_its_order(world: World) -> None:
    names = [f"till-{i}" for i in range(20)]
    for name in names[:-1]:
        world.api.put(f"/api/v1/namespaces/shop/pods/{name}", pod())
    results = await world.registry.mutate_many(
        [Change(PODS, "shop", name, None, running) for name in names], fence=await world.fence()
    )
    assert isinstance(results[-1], errors.NotFound)
    assert all(not isinstance(r, errors.ApiError) for r in results[:-1])
    assert [r.obj()["metadata"]["name"] for r in results[:-1]] == names[:-1]  # type: ignore[union-attr]


async def test_a_pod_that_its_node_reports_gone_is_deleted_at_once_by_its_uid(world: World) -> None:
    uid = world.api.objects[POD]["metadata"]["uid"]
    stored = await world.registry.get(PODS, "shop", "till")
    await world.registry.remove(PODS, stored, fence=await world.fence())
    assert POD not in world.api.objects
    assert world.api.bodies[-1]["gracePeriodSeconds"] == 0
    assert world.api.bodies[-1]["preconditions"]["uid"] == uid


async def test_a_gone_pod_with_finalizers_waits_for_whoever_holds_them(world: World) -> None:
    world.api.put(POD, pod(finalizers=["example.com/hold"], deletionTimestamp="2026-01-01T00:00:00Z"))
    stored = await world.registry.get(PODS, "shop", "till")
    obj = stored.obj()
    obj["metadata"]["deletionGracePeriodSeconds"] = 0
    await world.registry.replace(PODS, stored, obj, fence=await world.fence())
    assert world.api.objects[POD]["metadata"]["deletionGracePeriodSeconds"] == 0
    assert world.api.log[-1] == ("DELETE", POD)


async def test_a_removal_meets_a_changed_pod_and_conflicts(world: World) -> None:
    stored = await world.registry.get(PODS, "shop", "till")
    world.api.touch(POD, changed="yes")
    with pytest.raises(errors.Conflict):
        await world.registry.remove(PODS, stored, fence=await world.fence())
    assert POD in world.api.objects


async def test_a_lost_answer_to_a_create_is_found_out_by_its_name(world: World) -> None:
    event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "till.1", "namespace": "shop"}}
    world.api.lost = 1
    with pytest.raises(errors.Timeout):
        await world.registry.create(EVENTS, event, fence=await world.fence())
    with pytest.raises(errors.AlreadyExists):
        await world.registry.create(EVENTS, event, fence=await world.fence())


async def test_a_lost_answer_to_a_status_is_written_only_once(world: World) -> None:
    world.api.lost = 1
    fence = await world.fence()
    with pytest.raises(errors.Timeout):
        await world.registry.mutate(PODS, "shop", "till", running, fence=fence)
    reached = world.api.revision
    stored = await world.registry.mutate(PODS, "shop", "till", running, fence=fence)
    assert stored.revision == reached == world.api.revision


@pytest.mark.parametrize(
    "failure",
    [errors.Unauthorized(), errors.TooManyRequests(), errors.Forbidden("pods", "till", "no role")],
    ids=["expired-token", "throttled", "no-role"],
)
async def test_what_is_no_fault_of_the_report_is_tried_again(world: World, failure: errors.ApiError) -> None:
    world.api.failures = [failure]
    with pytest.raises(errors.ServiceUnavailable):
        await world.registry.mutate(PODS, "shop", "till", running, fence=await world.fence())


# -- copies of the mirror -----------------------------------------------------------------------------------------


def followed(world: World) -> Mirror[Any]:
    mirror: Mirror[Any] = Mirror(PODS, {})
    world.registry.mirrors[PODS] = mirror
    return mirror


def show(world: World, mirror: Mirror[Any]) -> None:
    import orjson

    obj = world.api.objects[POD]
    revision = int(obj["metadata"]["resourceVersion"])
    entry = mirror.cache.entry(("shop", "till"), "0003", revision, orjson.dumps(obj))
    mirror.advance(mirror.set_state(("shop", "till"), entry, revision), revision)


async def test_what_is_followed_anyway_is_not_read_again(world: World) -> None:
    show(world, followed(world))
    await world.registry.mutate(PODS, "shop", "till", running, fence=await world.fence())
    assert world.api.log == [("PATCH", f"{POD}/status")]


async def test_a_mirror_that_is_behind_our_own_write_is_not_believed(world: World) -> None:
    mirror, fence = followed(world), await world.fence()
    show(world, mirror)
    await world.registry.mutate(PODS, "shop", "till", running, fence=fence)

    def pending(obj: Object) -> Object:
        obj["status"] = {"phase": "Pending"}  # as the mirror still shows it
        return obj

    await world.registry.mutate(PODS, "shop", "till", pending, fence=fence)
    assert world.api.objects[POD]["status"]["phase"] == "Pending"


async def test_a_stale_copy_costs_one_conflict_and_then_a_read(world: World) -> None:
    show(world, followed(world))
    world.api.touch(POD, other="wrote")
    await world.registry.mutate(PODS, "shop", "till", running, fence=await world.fence())
    assert [method for method, _ in world.api.log] == ["PATCH", "GET", "PATCH"]
    assert world.api.objects[POD]["status"]["phase"] == "Running"


async def test_not_found_by_a_stale_copy_is_asked_again(world: World) -> None:
    show(world, followed(world))
    del world.api.objects[POD]
    world.api.put(POD, pod())
    uid = world.api.objects[POD]["metadata"]["uid"]
    await world.registry.mutate(PODS, "shop", "till", running, uid=uid, fence=await world.fence())
    assert world.api.objects[POD]["status"]["phase"] == "Running"


# -- nodes ---------------------------------------------------------------------------------------------------------


async def test_a_node_is_registered_with_label_role_taints_and_its_slot() -> None:
    world = World()
    form = NodeForm(taints=(Taint("cloudhub.dev/edge", "", "NoSchedule"),), kubelet_port=10250)
    registry = KubeRegistry(world.api, world.store, world.keys, form)
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "edge-1", "labels": {"cloudhub.dev/site": "s"}},
    }
    stored = await registry.create(NODES, node)
    made = world.api.objects["/api/v1/nodes/edge-1"]
    assert made["metadata"]["labels"][EDGE] == "true"
    assert made["metadata"]["labels"]["kubernetes.io/hostname"] == "edge-1"
    assert "node-role.kubernetes.io/edge" in made["metadata"]["labels"]
    assert made["spec"]["taints"] == [{"key": "cloudhub.dev/edge", "effect": "NoSchedule"}]
    assert made["status"]["daemonEndpoints"] == {"kubeletEndpoint": {"Port": 10250}}
    assert stored.partition == partition_of_slot(slot_of("s", world.store.identity.slots))


async def test_a_nodes_labels_go_along_with_its_status_in_one_write(world: World) -> None:
    labels = {"metadata": {"labels": {EDGE: "true"}}}
    world.api.put("/api/v1/nodes/edge-1", {"kind": "Node", **labels, "spec": {}, "status": {}})

    def change(node: Object) -> Object:
        node["metadata"].setdefault("labels", {})["kubernetes.io/os"] = "linux"
        node["status"]["capacity"] = {"cpu": "4"}
        return node

    await world.registry.mutate(NODES, "", "edge-1", change, fence=await world.fence())
    assert [entry for entry in world.api.log if entry[0] != "GET"] == [
        ("PATCH", "/api/v1/nodes/edge-1/status")
    ]
    node = world.api.objects["/api/v1/nodes/edge-1"]
    assert node["metadata"]["labels"]["kubernetes.io/os"] == "linux" and node["status"]["capacity"] == {
        "cpu": "4"
    }


async def test_a_node_of_the_cluster_itself_is_never_taken_over(world: World) -> None:
    made = world.api.put("/api/v1/nodes/server-1", {"kind": "Node", "spec": {}, "status": {}})
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "server-1"}}
    with pytest.raises(errors.AlreadyExists):
        await world.registry.create(NODES, node)
    with pytest.raises(errors.Forbidden, match="not at the edge; choose another name"):
        await world.registry.mutate(NODES, "", "server-1", lambda obj: obj)
    assert world.api.objects["/api/v1/nodes/server-1"] == made


async def test_a_node_of_ours_that_lost_its_label_gets_it_back_when_its_agent_comes(world: World) -> None:
    meta = {"annotations": {"cloudhub.dev/enrolled": "{}"}}
    world.api.put("/api/v1/nodes/edge-1", {"kind": "Node", "metadata": meta, "spec": {}, "status": {}})
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-1"}}
    with pytest.raises(errors.AlreadyExists):
        await world.registry.create(NODES, node, fence=await world.fence())
    assert world.api.objects["/api/v1/nodes/edge-1"]["metadata"]["labels"][EDGE] == "true"


# -- how fast --------------------------------------------------------------------------------------------------------


async def test_a_backlog_leaves_at_the_rate_that_was_set() -> None:
    world, clock = World(), [0.0]

    async def sleep(seconds: float) -> None:
        clock[0] += seconds

    limits = WriteLimits(at_once=1, per_second=50.0, burst=10)
    registry = KubeRegistry(
        world.api, world.store, world.keys, limits=limits, now=lambda: clock[0], sleep=sleep
    )
    names = [f"till-{i}" for i in range(100)]
    for name in names:
        world.api.put(f"/api/v1/namespaces/shop/pods/{name}", pod())
    await registry.mutate_many(
        [Change(PODS, "shop", n, None, running) for n in names], fence=await world.fence()
    )
    assert len(world.api.log) == 200
    assert clock[0] == pytest.approx((200 - 10) / 50.0)


async def test_what_is_under_way_at_a_time_is_bounded() -> None:
    world, most, now = World(), [0], [0]
    registry = KubeRegistry(world.api, world.store, world.keys, limits=WriteLimits(at_once=4, per_second=1e6))
    plain = world.api.request

    async def counted(*args: Any, **options: Any) -> tuple[int, bytes]:
        now[0] += 1
        most[0] = max(most[0], now[0])
        await asyncio.sleep(0)
        try:
            return await plain(*args, **options)
        finally:
            now[0] -= 1

    world.api.request = counted  # type: ignore[method-assign]
    names = [f"till-{i}" for i in range(50)]
    for name in names:
        world.api.put(f"/api/v1/namespaces/shop/pods/{name}", pod())
    await registry.mutate_many(
        [Change(PODS, "shop", n, None, running) for n in names], fence=await world.fence()
    )
    assert most[0] == 4
