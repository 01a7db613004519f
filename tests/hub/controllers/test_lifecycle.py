"""What goes with what: owner references, namespaces, nodes, events."""

from typing import Any

import pytest

from hub.controllers import replicas
from hub.controllers.events import TTL_S
from hub.controllers.taints import taint_keys, with_taints
from hub.objects import CONFIGMAPS, EVENTS, NAMESPACES, SHARED, Condition
from tests.hub.controllers.kit import (
    DEPLOYMENTS,
    NODES,
    PODS,
    REPLICASETS,
    Hub,
    deployment,
    node,
    pod,
    replica_set,
    running,
)

Object = dict[str, Any]


async def deployed(hub: Hub, replicas: int = 2) -> None:
    await hub.node("edge")
    await hub.create(DEPLOYMENTS, deployment(replicas=replicas))
    await hub.settle()
    assert len(await hub.all(PODS)) == replicas


def config_map(name: str, *owners: Object, **ref: Any) -> Object:
    refs = [
        {
            "apiVersion": o["apiVersion"],
            "kind": o["kind"],
            "name": o["metadata"]["name"],
            "uid": o["metadata"]["uid"],
            **ref,
        }
        for o in owners
    ]
    meta: Object = {"name": name, "namespace": "shop"}
    if refs:
        meta["ownerReferences"] = refs
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {}}


# -- owners -------------------------------------------------------------------------------------------------------


async def test_deleting_a_deployment_takes_its_replica_sets_and_pods_along() -> None:
    async with running() as hub:
        await deployed(hub)
        await hub.delete(DEPLOYMENTS, "till")
        await hub.settle()
        assert await hub.all(REPLICASETS) == []
        assert await hub.all(PODS) == []


async def test_foreground_keeps_the_owner_until_the_last_pod_is_gone() -> None:
    async with running() as hub:
        await deployed(hub)
        hub.kubelet.cut_off = {"edge"}
        await hub.delete(DEPLOYMENTS, "till", propagation="Foreground")
        await hub.settle()
        assert (await hub.get(DEPLOYMENTS, "till"))["metadata"]["deletionTimestamp"]
        assert len(await hub.all(REPLICASETS)) == 1
        assert all(p["metadata"]["deletionTimestamp"] for p in await hub.all(PODS))
        hub.kubelet.cut_off = set()
        hub.kubelet.poke()
        await hub.settle()
        for res in (PODS, REPLICASETS, DEPLOYMENTS):
            assert await hub.all(res) == []


async def test_orphan_leaves_the_pods_without_an_owner() -> None:
    async with running() as hub:
        await hub.node("edge")
        await hub.create(REPLICASETS, replica_set(replicas=2))
        await hub.settle()
        await hub.delete(REPLICASETS, "till", propagation="Orphan")
        await hub.settle()
        assert await hub.all(REPLICASETS) == []
        pods = await hub.all(PODS)
        assert len(pods) == 2
        assert not any("ownerReferences" in p["metadata"] for p in pods)


async def test_orphan_finds_the_dependents_that_the_cache_does_not_show_yet() -> None:
    async with running(Hub(lag=50)) as hub:
        owner = await hub.create(REPLICASETS, replica_set(replicas=0))
        await hub.settle()
        child = pod("child", labels={"app": "other"})
        ref = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "till", "uid": owner["metadata"]["uid"]}
        child["metadata"]["ownerReferences"] = [ref]
        await hub.create(PODS, child)
        await hub.delete(REPLICASETS, "till", propagation="Orphan")
        await hub.settle()
        assert "ownerReferences" not in (await hub.get(PODS, "child"))["metadata"]


async def test_foreground_waits_for_dependents_that_the_cache_does_not_show_yet() -> None:
    async with running(Hub(lag=50)) as hub:
        hub.kubelet.cut_off = {"edge"}
        owner = await hub.create(CONFIGMAPS, config_map("owner"))
        await hub.settle()
        child = pod("child", nodeName="edge")
        child["metadata"]["ownerReferences"] = config_map("x", owner, blockOwnerDeletion=True)["metadata"][
            "ownerReferences"
        ]
        await hub.create(PODS, child)
        await hub.delete(CONFIGMAPS, "owner", propagation="Foreground")
        await hub.settle()
        assert (await hub.get(CONFIGMAPS, "owner"))["metadata"]["finalizers"] == ["foregroundDeletion"]
        assert (await hub.get(PODS, "child"))["metadata"]["deletionTimestamp"]


async def test_an_object_with_two_owners_goes_with_the_last() -> None:
    async with running() as hub:
        first = await hub.create(CONFIGMAPS, config_map("first"))
        second = await hub.create(CONFIGMAPS, config_map("second"))
        await hub.create(CONFIGMAPS, config_map("child", first, second))
        await hub.delete(CONFIGMAPS, "first")
        await hub.settle()
        child = await hub.get(CONFIGMAPS, "child")
        assert [r["name"] for r in child["metadata"]["ownerReferences"]] == ["second"]
        await hub.delete(CONFIGMAPS, "second")
        await hub.settle()
        assert await hub.all(CONFIGMAPS) == []


async def test_an_owner_of_the_same_name_and_another_uid_is_not_the_owner() -> None:
    async with running() as hub:
        owner = await hub.create(CONFIGMAPS, config_map("owner"))
        owner["metadata"]["uid"] = "another"
        await hub.create(CONFIGMAPS, config_map("child", owner))
        await hub.settle()
        assert {o["metadata"]["name"] for o in await hub.all(CONFIGMAPS)} == {"owner"}


async def test_a_dependent_whose_owner_the_cache_has_not_seen_is_left_alone() -> None:
    async with running() as hub:
        owner = await hub.create(CONFIGMAPS, config_map("owner"))
        hub.controllers.of("controllers").informers.of(CONFIGMAPS).cache.drop(("shop", "owner"))
        await hub.create(CONFIGMAPS, config_map("child", owner))
        await hub.settle()
        assert (await hub.get(CONFIGMAPS, "child"))["metadata"]["uid"]


async def test_an_owner_of_an_unknown_kind_counts_as_present() -> None:
    async with running() as hub:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "uid": "u"}}
        await hub.create(CONFIGMAPS, config_map("child", job))
        await hub.settle()
        assert len(await hub.all(CONFIGMAPS)) == 1


async def test_what_lost_its_owner_while_the_hub_was_down_goes_when_it_starts() -> None:
    hub = Hub()
    await hub.namespace()
    gone = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "gone", "uid": "u"}}
    await hub.create(CONFIGMAPS, config_map("child", gone))
    await hub.create(CONFIGMAPS, config_map("other"))
    async with running(hub) as hub:
        assert [o["metadata"]["name"] for o in await hub.all(CONFIGMAPS)] == ["other"]


# -- namespaces ---------------------------------------------------------------------------------------------------


async def test_a_namespace_goes_after_everything_in_it() -> None:
    async with running() as hub:
        await deployed(hub)
        await hub.create(CONFIGMAPS, config_map("c"))
        hub.kubelet.cut_off = {"edge"}
        await hub.delete(NAMESPACES, "shop")
        await hub.settle()
        held = await hub.get(NAMESPACES, "shop")
        assert held["status"]["phase"] == "Terminating"
        told = {c["type"]: c["message"] for c in held["status"]["conditions"]}
        assert told["NamespaceContentRemaining"] == (
            "Some resources are remaining: pods has 2 resource instances"
        )
        assert await hub.all(CONFIGMAPS) == []
        hub.kubelet.cut_off = set()
        hub.kubelet.poke()
        await hub.settle()
        assert await hub.registry.find(NAMESPACES, "", "shop") is None
        assert await hub.all(PODS) == await hub.all(EVENTS) == []


# -- nodes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "wanted"),
    [("True", set()), ("False", {"not-ready"}), ("Unknown", {"unreachable"}), (None, {"not-ready"})],
)
def test_taints_follow_the_ready_condition(status: str | None, wanted: set[str]) -> None:
    conditions = [Condition("Ready", status)] if status else []
    assert taint_keys(conditions, False) == {f"node.kubernetes.io/{w}" for w in wanted}


def test_no_taint_evicts_and_others_taints_stay() -> None:
    mine = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}
    new = with_taints([mine], {"node.kubernetes.io/unreachable"}, 0.0)
    assert new[0] == mine
    assert [t["effect"] for t in new[1:]] == ["NoSchedule"]
    assert with_taints(new, set(), 0.0) == [mine]


async def test_a_node_that_is_lost_keeps_its_pods_and_loses_its_taint_on_return() -> None:
    async with running() as hub:
        await deployed(hub)

        def ready(status: str) -> Any:
            return lambda n: n["status"]["conditions"][0].update(status=status)

        await hub.edit(NODES, "edge", ready("Unknown"))
        await hub.pass_time(3600, step=600)
        (taint,) = (await hub.get(NODES, "edge"))["spec"]["taints"]
        assert (taint["key"], taint["effect"]) == ("node.kubernetes.io/unreachable", "NoSchedule")
        assert not any(p["metadata"].get("deletionTimestamp") for p in await hub.all(PODS))
        await hub.edit(NODES, "edge", ready("True"))
        await hub.settle()
        assert "taints" not in (await hub.get(NODES, "edge"))["spec"]


async def test_pods_of_a_deleted_node_go_after_five_minutes_and_not_before() -> None:
    async with running() as hub:
        await hub.node("edge")
        await hub.create(PODS, pod("till"))
        await hub.settle()
        await hub.delete(NODES, "edge")
        await hub.settle()
        await hub.pass_time(290, step=145)
        assert len(await hub.all(PODS)) == 1
        await hub.pass_time(20, step=20)
        assert await hub.all(PODS) == []


async def test_a_pod_that_waits_for_its_node_to_join_is_not_collected() -> None:
    async with running() as hub:
        await hub.create(PODS, pod("till", nodeName="not-yet-here"))
        await hub.node("returning")
        await hub.create(PODS, pod("other", nodeName="returning"))
        hub.kubelet.cut_off = {"not-yet-here"}
        await hub.settle()
        await hub.delete(NODES, "returning")
        await hub.settle()
        await hub.pass_time(200, step=200)
        await hub.node("returning")
        await hub.pass_time(1000, step=500)
        assert {p["metadata"]["name"] for p in await hub.all(PODS)} == {"till", "other"}


async def test_a_pod_that_is_deleted_while_it_waits_for_its_node_goes_without_the_node() -> None:
    async with running() as hub:
        hub.kubelet.cut_off = {"not-yet-here"}
        await hub.create(PODS, pod("till", nodeName="not-yet-here"))
        await hub.create(PODS, pod("other", nodeName="not-yet-here"))
        await hub.pass_time(1000, step=500)
        await hub.delete(PODS, "till")
        await hub.pass_time(20, step=20)
        assert len(await hub.all(PODS)) == 2
        await hub.pass_time(60, step=60)
        assert [p["metadata"]["name"] for p in await hub.all(PODS)] == ["other"]


async def test_a_pod_that_is_deleted_is_left_to_its_node_where_there_is_one() -> None:
    async with running() as hub:
        await hub.node("edge")
        hub.kubelet.cut_off = {"edge"}
        await hub.create(PODS, pod("till", nodeName="edge"))
        await hub.settle()
        await hub.delete(PODS, "till")
        await hub.pass_time(1000, step=500)
        assert len(await hub.all(PODS)) == 1


async def test_finished_pods_are_kept_up_to_a_bound_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hub.controllers.nodes.FINISHED_KEPT", 3)
    async with running() as hub:
        await hub.node("edge")
        for n in range(5):
            made = pod(f"job-{n}")
            made["status"] = {"phase": "Succeeded"}
            made["spec"]["nodeName"] = "edge"
            await hub.create(PODS, made)
            hub.clock.advance(1)
        await hub.settle()
        assert {p["metadata"]["name"] for p in await hub.all(PODS)} == {"job-2", "job-3", "job-4"}


# -- events -------------------------------------------------------------------------------------------------------


async def test_what_happens_again_is_counted_in_one_event() -> None:
    async with running() as hub:
        await hub.create(PODS, pod("till", nodeName="edge"))
        await hub.settle()
        meta = hub.informers.of(PODS).cache.get("shop", "till").meta
        for _ in range(3):
            hub.controllers.events.event(PODS, meta, "Warning", "Odd", "something is odd")
            await hub.settle()
            hub.clock.advance(5)
        (event,) = [e for e in await hub.all(EVENTS) if e["reason"] == "Odd"]
        assert event["count"] == 3
        assert event["lastTimestamp"] > event["firstTimestamp"]
        assert event["involvedObject"]["uid"] == meta.uid


async def test_a_noisy_object_is_combined_and_limited() -> None:
    async with running() as hub:
        await hub.create(PODS, pod("till", nodeName="edge"))
        await hub.settle()
        meta = hub.informers.of(PODS).cache.get("shop", "till").meta
        for n in range(100):
            hub.controllers.events.event(PODS, meta, "Warning", "Odd", f"odd thing {n}")
        await hub.settle()
        odd = [e for e in await hub.all(EVENTS) if e["reason"] == "Odd"]
        assert len(odd) == 11
        assert sum(e["count"] for e in odd) == 25
        assert any(e["message"].startswith("(combined from similar events): ") for e in odd)
        assert hub.controllers.events.log.dropped == 75


async def test_events_go_an_hour_after_their_last_occurrence() -> None:
    async with running() as hub:
        await hub.create(PODS, pod("till", nodeName="edge"))
        await hub.settle()
        meta = hub.informers.of(PODS).cache.get("shop", "till").meta
        hub.controllers.events.event(PODS, meta, "Normal", "Odd", "first")
        hub.controllers.events.event(PODS, meta, "Normal", "Even", "second")
        await hub.pass_time(TTL_S / 2, step=TTL_S)
        hub.controllers.events.event(PODS, meta, "Normal", "Even", "second")
        await hub.pass_time(TTL_S / 2 + 10, step=TTL_S)
        assert [e["reason"] for e in await hub.all(EVENTS)] == ["Even"]
        await hub.pass_time(TTL_S, step=TTL_S)
        assert await hub.all(EVENTS) == []


@pytest.mark.parametrize("last", ["1970-01-01T00:00:07Z", "2099-01-01T00:00:00Z"])
async def test_an_event_of_a_node_with_a_wrong_clock_is_kept_for_an_hour_and_no_longer(last: str) -> None:
    async with running() as hub:
        event: Object = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "till.1", "namespace": "shop"},
            "involvedObject": {"kind": "Pod", "namespace": "shop", "name": "till"},
            "reason": "Odd",
            "firstTimestamp": last,
            "lastTimestamp": last,
        }
        await hub.create(EVENTS, event)
        await hub.settle()
        await hub.pass_time(TTL_S - 60, step=TTL_S)
        assert len(await hub.all(EVENTS)) == 1
        await hub.pass_time(120, step=TTL_S)
        assert await hub.all(EVENTS) == []


async def test_no_event_is_written_into_a_namespace_that_is_going() -> None:
    async with running() as hub:
        await hub.create(PODS, pod("till", nodeName="edge"))
        hub.kubelet.cut_off = {"edge"}
        await hub.settle()
        meta = hub.informers.of(PODS).cache.get("shop", "till").meta
        await hub.delete(NAMESPACES, "shop")
        await hub.settle()
        hub.controllers.events.event(PODS, meta, "Normal", "Odd", "too late")
        await hub.settle()
        assert await hub.all(EVENTS) == []


# -- the driver ---------------------------------------------------------------------------------------------------


async def test_a_bug_in_one_key_is_counted_and_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as hub:
        await hub.node("edge")
        plan = replicas.plan
        broken = [True]

        def buggy(wanted: int, active: Any) -> Any:
            if wanted == 3 and broken:
                raise KeyError("a bug")
            return plan(wanted, active)

        monkeypatch.setattr(replicas, "plan", buggy)
        await hub.create(REPLICASETS, replica_set("bad", replicas=3))
        await hub.create(REPLICASETS, replica_set("good", replicas=2))
        await hub.settle()
        assert len(await hub.all(PODS)) == 2
        assert hub.controllers.figures()["replicaset"]["bugs"] >= 1
        broken.clear()
        await hub.pass_time(1)
        assert len(await hub.all(PODS)) == 5
        for driver in hub.controllers.drivers:
            driver.bugs = 0


async def test_a_pod_that_was_there_before_its_node_moves_to_the_nodes_slot() -> None:
    async with running() as hub:
        await hub.create(PODS, pod("early", nodeName="edge"))
        await hub.settle()
        assert (await hub.registry.get(PODS, "shop", "early")).partition == SHARED
        await hub.create(NODES, node("edge", labels={"cloudhub.dev/site": "harbour"}))
        await hub.settle()
        lies = (await hub.registry.get(NODES, "", "edge")).partition
        assert (await hub.registry.get(PODS, "shop", "early")).partition == lies
