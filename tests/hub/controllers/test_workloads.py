"""ReplicaSets and DaemonSets on a real store with a fake kubelet."""

from typing import Any

import pytest

from hub import errors
from hub.controllers.replicas import batches
from tests.hub.controllers.kit import (
    DAEMONSETS,
    NODES,
    PODS,
    REPLICASETS,
    Hub,
    daemon_set,
    pod,
    replica_set,
    running,
)

Object = dict[str, Any]


def names(pods: list[Object]) -> set[str]:
    return {p["metadata"]["name"] for p in pods}


def by_node(pods: list[Object]) -> dict[str, str]:
    return {p["spec"]["nodeName"]: p["spec"]["containers"][0]["image"] for p in pods}


async def test_a_replica_set_replaces_deleted_pods_under_new_names() -> None:
    async with running() as hub:
        await hub.node("edge")
        await hub.create(REPLICASETS, replica_set(replicas=3))
        await hub.settle()
        before = names(await hub.all(PODS))
        assert len(before) == 3
        gone = sorted(before)[0]
        await hub.delete(PODS, gone, grace_s=0)
        await hub.settle()
        after = names(await hub.all(PODS))
        assert len(after) == 3
        assert gone not in after
        status = (await hub.get(REPLICASETS, "till"))["status"]
        assert (status["replicas"], status["readyReplicas"], status["availableReplicas"]) == (3, 3, 3)


async def test_matching_pods_without_an_owner_are_adopted_and_others_released() -> None:
    async with running() as hub:
        await hub.node("edge")
        await hub.create(PODS, pod("lone", labels={"app": "till"}))
        await hub.create(REPLICASETS, replica_set(replicas=2))
        await hub.settle()
        pods = await hub.all(PODS)
        assert len(pods) == 2
        assert "lone" in names(pods)
        await hub.edit(PODS, "lone", lambda p: p["metadata"]["labels"].update(app="debug"))
        await hub.settle()
        pods = await hub.all(PODS)
        assert len(pods) == 3
        assert "ownerReferences" not in (await hub.get(PODS, "lone"))["metadata"]


async def test_scaling_down_takes_unbound_and_unready_pods_first() -> None:
    async with running() as hub:
        await hub.node("edge", pods="3")
        hub.kubelet.ready = lambda p: not p["metadata"]["name"].endswith("b")
        await hub.create(REPLICASETS, replica_set(replicas=5))
        await hub.settle()
        unbound = {p["metadata"]["name"] for p in await hub.all(PODS) if not p["spec"].get("nodeName")}
        assert len(unbound) == 2
        await hub.edit(REPLICASETS, "till", lambda r: r["spec"].update(replicas=3))
        await hub.settle()
        assert not names(await hub.all(PODS)) & unbound


async def test_a_refused_pod_is_reported_and_made_once_it_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as hub:
        create, tries = hub.registry.create, []

        async def refuse(res: Any, obj: Object, **more: Any) -> Any:
            if res == PODS:
                tries.append(obj["metadata"]["name"])
                raise errors.Forbidden("pods", obj["metadata"]["name"], "exceeded quota")
            return await create(res, obj, **more)

        monkeypatch.setattr(hub.registry, "create", refuse)
        await hub.create(REPLICASETS, replica_set(replicas=8))
        await hub.settle()
        assert len(tries) == 1, "slow start: what cannot work is tried with one pod"
        (failed,) = (await hub.get(REPLICASETS, "till"))["status"]["conditions"]
        assert (failed["type"], failed["reason"]) == ("ReplicaFailure", "FailedCreate")
        monkeypatch.setattr(hub.registry, "create", create)
        await hub.pass_time(1)
        assert len(await hub.all(PODS)) == 8
        assert "conditions" not in (await hub.get(REPLICASETS, "till"))["status"]


async def test_an_answer_that_is_lost_does_not_double_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as hub:
        create, lost = hub.registry.create, []

        async def lose(res: Any, obj: Object, **more: Any) -> Any:
            stored = await create(res, obj, **more)
            if res == PODS and len(lost) < 3:
                lost.append(obj)
                raise errors.ServiceUnavailable("the answer was lost")
            return stored

        monkeypatch.setattr(hub.registry, "create", lose)
        await hub.create(REPLICASETS, replica_set(replicas=6))
        await hub.settle()
        await hub.pass_time(2)
        assert len(lost) == 3
        assert len(await hub.all(PODS)) == 6
        for entry in await hub.all(REPLICASETS):
            assert entry["status"]["replicas"] == 6


def counting(hub: Hub, monkeypatch: pytest.MonkeyPatch, lose: int = 0) -> list[str]:
    """Names of all pods that are ever made; the answers of the first `lose` are lost."""
    create, made = hub.registry.create, []

    async def count(res: Any, obj: Object, **more: Any) -> Any:
        stored = await create(res, obj, **more)
        if res == PODS:
            made.append(obj["metadata"]["name"])
            if len(made) <= lose:
                raise errors.ServiceUnavailable("the answer was lost")
        return stored

    monkeypatch.setattr(hub.registry, "create", count)
    return made


async def test_a_cache_that_lags_behind_doubles_no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Hub(lag=40)) as hub:
        made = counting(hub, monkeypatch)
        await hub.create(REPLICASETS, replica_set(replicas=7))
        await hub.node("edge")
        await hub.create(DAEMONSETS, daemon_set("lamp"))
        await hub.settle()
        assert len(made) == 8
        await hub.edit(REPLICASETS, "till", lambda r: r["spec"].update(replicas=3))
        await hub.settle()
        assert len(await hub.all(PODS)) == 4
        assert len(made) == 8, "none was deleted too many"


async def test_a_lost_answer_and_a_late_cache_together_double_no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Hub(lag=60)) as hub:
        made = counting(hub, monkeypatch, lose=2)
        await hub.create(REPLICASETS, replica_set(replicas=4))
        for _ in range(300):  # the back-off ends long before the cache shows the pod
            hub.clock.advance(0.01)
            await hub.registry.mutate(REPLICASETS, "shop", "till", touch)
        await hub.settle()
        await hub.pass_time(5)
        assert len(made) == 4


def touch(obj: Object) -> Object:
    notes = obj["metadata"].setdefault("annotations", {})
    notes["touched"] = str(int(notes.get("touched", "0")) + 1)
    return obj


def test_batches_double() -> None:
    assert batches(10) == [1, 2, 4, 3]
    assert batches(0) == []


# -- DaemonSets ---------------------------------------------------------------------------------------------------


async def three_nodes(hub: Hub) -> None:
    for n in range(3):
        await hub.node(f"edge-{n}", labels={"till": "yes"} if n else {})


async def test_a_daemon_set_follows_node_labels() -> None:
    async with running() as hub:
        await three_nodes(hub)
        await hub.create(DAEMONSETS, daemon_set(fields={"nodeSelector": {"till": "yes"}}))
        await hub.settle()
        assert set(by_node(await hub.all(PODS))) == {"edge-1", "edge-2"}
        await hub.edit(NODES, "edge-0", lambda n: n["metadata"]["labels"].update(till="yes"))
        await hub.edit(NODES, "edge-1", lambda n: n["metadata"]["labels"].pop("till"))
        await hub.settle()
        assert set(by_node(await hub.all(PODS))) == {"edge-0", "edge-2"}
        status = (await hub.get(DAEMONSETS, "till"))["status"]
        assert status["desiredNumberScheduled"] == status["numberAvailable"] == 2
        assert status["updatedNumberScheduled"] == status["currentNumberScheduled"] == 2
        assert status["numberMisscheduled"] == 0
        await hub.node("edge-9", labels={"till": "yes"})
        await hub.settle()
        assert "edge-9" in by_node(await hub.all(PODS))


async def test_a_daemon_reaches_a_node_that_is_cut_off_or_cordoned_but_not_a_tainted_one() -> None:
    async with running() as hub:
        await hub.node("cut", ready="Unknown")
        await hub.node("cordoned")
        await hub.node("tainted")
        await hub.edit(NODES, "cordoned", lambda n: n["spec"].update(unschedulable=True))
        taint = {"key": "mine", "effect": "NoSchedule"}
        await hub.edit(NODES, "tainted", lambda n: n["spec"].update(taints=[taint]))
        await hub.settle()
        await hub.create(DAEMONSETS, daemon_set())
        await hub.settle()
        assert set(by_node(await hub.all(PODS))) == {"cut", "cordoned"}


@pytest.mark.parametrize(
    "rolling", [{"maxUnavailable": 1, "maxSurge": 0}, {"maxUnavailable": 0, "maxSurge": 1}]
)
async def test_a_daemon_set_rolls_within_its_bounds(rolling: Object) -> None:
    async with running() as hub:
        await three_nodes(hub)
        strategy = {"type": "RollingUpdate", "rollingUpdate": rolling}
        await hub.create(DAEMONSETS, daemon_set(updateStrategy=strategy))
        await hub.settle()
        hub.kubelet.ready = lambda p: p["spec"]["containers"][0]["image"] == "till:1"
        await hub.edit(
            DAEMONSETS,
            "till",
            lambda d: d["spec"]["template"]["spec"]["containers"][0].update(image="till:2"),
        )
        await hub.settle()
        images = [p["spec"]["containers"][0]["image"] for p in await hub.all(PODS)]
        assert images.count("till:2") == 1, "the first new pod is not available: the update waits"
        assert images.count("till:1") == (3 if rolling["maxSurge"] else 2)
        hub.kubelet.ready = lambda p: True
        hub.kubelet.poke()
        await hub.settle()
        assert by_node(await hub.all(PODS)) == {f"edge-{n}": "till:2" for n in range(3)}
        assert (await hub.get(DAEMONSETS, "till"))["status"]["updatedNumberScheduled"] == 3


async def test_on_delete_replaces_a_pod_only_when_somebody_deletes_it() -> None:
    async with running() as hub:
        await three_nodes(hub)
        await hub.create(DAEMONSETS, daemon_set(updateStrategy={"type": "OnDelete"}))
        await hub.settle()
        await hub.edit(
            DAEMONSETS,
            "till",
            lambda d: d["spec"]["template"]["spec"]["containers"][0].update(image="till:2"),
        )
        await hub.settle()
        pods = await hub.all(PODS)
        assert set(by_node(pods).values()) == {"till:1"}
        await hub.delete(PODS, pods[0]["metadata"]["name"])
        await hub.settle()
        assert sorted(by_node(await hub.all(PODS)).values()) == ["till:1", "till:1", "till:2"]


async def test_a_failed_daemon_pod_is_replaced_with_growing_pauses() -> None:
    async with running() as hub:
        await hub.node("edge")
        await hub.create(DAEMONSETS, daemon_set())
        await hub.settle()
        seen = set()
        for pause in (0, 1, 2, 4):
            (held,) = await hub.all(PODS)
            assert held["metadata"]["uid"] not in seen
            seen.add(held["metadata"]["uid"])
            await hub.edit(PODS, held["metadata"]["name"], lambda p: p["status"].update(phase="Failed"))
            await hub.settle()
            if pause:
                (still,) = await hub.all(PODS)
                assert still["metadata"]["uid"] == held["metadata"]["uid"]
                await hub.pass_time(pause)
