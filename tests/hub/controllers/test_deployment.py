"""Deployments, driven through a real store with a fake kubelet."""

from typing import Any

from hub.controllers.rollout import REVISION
from tests.hub.controllers.kit import DEPLOYMENTS, PODS, REPLICASETS, Hub, deployment, running

Object = dict[str, Any]


def set_image(obj: Object, image: str) -> None:
    obj["spec"]["template"]["spec"]["containers"][0]["image"] = image


def images(pods: list[Object]) -> list[str]:
    return sorted(p["spec"]["containers"][0]["image"] for p in pods)


def condition(obj: Object, kind: str) -> Object:
    return next(c for c in obj["status"]["conditions"] if c["type"] == kind)


async def deployed(hub: Hub, **spec: Any) -> Object:
    for n in range(3):
        await hub.node(f"edge-{n}")
    await hub.create(DEPLOYMENTS, deployment(**spec))
    await hub.settle()
    return await hub.get(DEPLOYMENTS, "till")


async def test_a_deployment_becomes_pods_that_are_bound_and_available() -> None:
    async with running() as hub:
        held = await deployed(hub, replicas=3)
        pods = await hub.all(PODS)
        assert len(pods) == 3
        assert {p["spec"]["nodeName"] for p in pods} == {"edge-0", "edge-1", "edge-2"}
        status = held["status"]
        assert (status["replicas"], status["updatedReplicas"], status["availableReplicas"]) == (3, 3, 3)
        assert status["observedGeneration"] == 1
        assert condition(held, "Available")["status"] == "True"
        assert condition(held, "Progressing")["reason"] == "NewReplicaSetAvailable"
        assert held["metadata"]["annotations"][REVISION] == "1"
        (rs,) = await hub.all(REPLICASETS)
        assert rs["metadata"]["labels"]["pod-template-hash"] == rs["metadata"]["name"].removeprefix("till-")
        assert "Scaled up replica set" in (await hub.events("ScalingReplicaSet"))[0]


async def test_a_new_template_replaces_all_pods_and_undo_brings_the_old_replica_set_back() -> None:
    async with running() as hub:
        await deployed(hub, replicas=3)
        await hub.edit(DEPLOYMENTS, "till", lambda d: set_image(d, "till:2"))
        await hub.settle()
        assert images(await hub.all(PODS)) == ["till:2"] * 3
        held = await hub.get(DEPLOYMENTS, "till")
        assert held["metadata"]["annotations"][REVISION] == "2"
        assert held["status"]["updatedReplicas"] == 3 == held["status"]["replicas"]
        await hub.edit(DEPLOYMENTS, "till", lambda d: set_image(d, "till:1"))
        await hub.settle()
        assert images(await hub.all(PODS)) == ["till:1"] * 3
        sets = await hub.all(REPLICASETS)
        assert len(sets) == 2
        assert sorted(rs["metadata"]["annotations"][REVISION] for rs in sets) == ["2", "3"]
        assert (await hub.get(DEPLOYMENTS, "till"))["metadata"]["annotations"][REVISION] == "3"


async def test_a_rollout_whose_pods_do_not_become_ready_stops_and_fails_at_its_deadline() -> None:
    async with running() as hub:
        await deployed(hub, replicas=4, progressDeadlineSeconds=60)
        hub.kubelet.ready = lambda pod: pod["spec"]["containers"][0]["image"] != "till:2"
        await hub.edit(DEPLOYMENTS, "till", lambda d: set_image(d, "till:2"))
        await hub.settle()
        pods = await hub.all(PODS)
        assert len(pods) <= 5
        assert images(pods).count("till:1") >= 3
        await hub.pass_time(62, step=31)
        held = await hub.get(DEPLOYMENTS, "till")
        assert condition(held, "Progressing")["reason"] == "ProgressDeadlineExceeded"
        assert condition(held, "Available")["status"] == "True"


async def test_recreate_starts_no_new_pod_before_the_last_old_one_is_gone() -> None:
    async with running() as hub:
        await deployed(hub, replicas=2, strategy={"type": "Recreate"})
        nodes = {p["spec"]["nodeName"] for p in await hub.all(PODS)}
        hub.kubelet.cut_off = nodes
        await hub.edit(DEPLOYMENTS, "till", lambda d: set_image(d, "till:2"))
        await hub.settle()
        pods = await hub.all(PODS)
        assert images(pods) == ["till:1"] * 2
        assert all(p["metadata"].get("deletionTimestamp") for p in pods)
        hub.kubelet.cut_off = set()
        hub.kubelet.poke()
        await hub.settle()
        assert images(await hub.all(PODS)) == ["till:2"] * 2


async def test_a_paused_deployment_scales_but_does_not_roll_until_resumed() -> None:
    async with running() as hub:
        await deployed(hub, replicas=2)
        await hub.edit(DEPLOYMENTS, "till", lambda d: d["spec"].update(paused=True))
        await hub.edit(DEPLOYMENTS, "till", lambda d: set_image(d, "till:2"))
        await hub.edit(DEPLOYMENTS, "till", lambda d: d["spec"].update(replicas=4))
        await hub.settle()
        assert images(await hub.all(PODS)) == ["till:1"] * 4
        held = await hub.get(DEPLOYMENTS, "till")
        assert condition(held, "Progressing")["reason"] == "DeploymentPaused"
        await hub.edit(DEPLOYMENTS, "till", lambda d: d["spec"].pop("paused"))
        await hub.settle()
        assert images(await hub.all(PODS)) == ["till:2"] * 4
        held = await hub.get(DEPLOYMENTS, "till")
        assert condition(held, "Progressing")["reason"] == "NewReplicaSetAvailable"


async def test_scaling_to_zero_and_back_keeps_the_replica_set() -> None:
    async with running() as hub:
        await deployed(hub, replicas=3)
        for replicas in (0, 5, 1):
            await hub.edit(DEPLOYMENTS, "till", lambda d, n=replicas: d["spec"].update(replicas=n))
            await hub.settle()
            assert len(await hub.all(PODS)) == replicas
        assert len(await hub.all(REPLICASETS)) == 1


async def test_history_is_kept_up_to_its_limit() -> None:
    async with running() as hub:
        await deployed(hub, replicas=1, revisionHistoryLimit=2)
        for n in range(2, 7):
            await hub.edit(DEPLOYMENTS, "till", lambda d, n=n: set_image(d, f"till:{n}"))
            hub.clock.advance(1)
            await hub.settle()
        sets = await hub.all(REPLICASETS)
        assert sorted(rs["metadata"]["annotations"][REVISION] for rs in sets) == ["4", "5", "6"]


async def test_pods_count_as_available_only_after_min_ready_seconds() -> None:
    async with running() as hub:
        held = await deployed(hub, replicas=2, minReadySeconds=10)
        assert held["status"].get("availableReplicas", 0) == 0
        assert held["status"]["readyReplicas"] == 2
        await hub.pass_time(11, step=5.5)
        held = await hub.get(DEPLOYMENTS, "till")
        assert held["status"]["availableReplicas"] == 2


async def test_an_orphaned_replica_set_of_the_same_template_is_adopted_with_its_pods() -> None:
    async with running() as hub:
        await deployed(hub, replicas=2)
        before = {p["metadata"]["uid"] for p in await hub.all(PODS)}
        await hub.delete(DEPLOYMENTS, "till", propagation="Orphan")
        await hub.settle()
        assert {p["metadata"]["uid"] for p in await hub.all(PODS)} == before
        await hub.create(DEPLOYMENTS, deployment(replicas=2))
        await hub.settle()
        assert {p["metadata"]["uid"] for p in await hub.all(PODS)} == before
        assert len(await hub.all(REPLICASETS)) == 1


async def test_a_settled_deployment_causes_no_writes() -> None:
    async with running() as hub:
        await deployed(hub, replicas=3)
        revision = await hub.store.revision()
        for driver in hub.controllers.drivers:
            if driver.name in ("deployment", "replicaset"):
                (rs,) = await hub.all(REPLICASETS)
                driver.queue.add(("shop", "till"))
                driver.queue.add(("shop", rs["metadata"]["name"]))
        await hub.settle()
        assert await hub.store.revision() == revision
