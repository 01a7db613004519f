"""NoExecute taints: who has to leave, when, and what never evicts."""

import math
from typing import Any

import pytest

from hub.controllers.evictions import due, evicting
from hub.objects import Taint
from tests.hub.controllers.kit import DEPLOYMENTS, NODES, PODS, Hub, deployment, pod, running

Object = dict[str, Any]
BROKEN = Taint("broken", "yes", "NoExecute")


def tainted(*taints: Object) -> Any:
    return lambda node: node["spec"].update(taints=list(taints))


def tolerating(**fields: Any) -> list[Object]:
    return [{"key": "broken", "operator": "Exists", "effect": "NoExecute", **fields}]


async def names(hub: Hub) -> set[str]:
    return {p["metadata"]["name"] for p in await hub.all(PODS)}


@pytest.mark.parametrize(
    ("tolerations", "at"),
    [
        ([], -math.inf),
        ([{"key": "other", "operator": "Exists"}], -math.inf),
        (tolerating(), math.inf),
        (tolerating(tolerationSeconds=30), 130.0),
        (tolerating(tolerationSeconds=-5), 100.0),
        ([{"operator": "Exists"}], math.inf),
    ],
)
def test_a_toleration_says_how_long_a_pod_may_stay(tolerations: list[Object], at: float) -> None:
    assert due({BROKEN: 100.0}, tolerations) == at


@pytest.mark.parametrize("key", ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"])
def test_a_node_that_cannot_be_reached_evicts_nobody_whoever_taints_it(key: str) -> None:
    assert evicting([Taint(key, "", "NoExecute"), Taint("broken", "", "NoSchedule"), BROKEN]) == (BROKEN,)


async def test_pods_leave_a_node_that_somebody_taints_unless_they_tolerate_it() -> None:
    async with running() as hub:
        await hub.node("edge")
        await hub.create(PODS, pod("till"))
        await hub.create(PODS, pod("camera", tolerations=tolerating()))
        await hub.create(PODS, pod("patient", tolerations=tolerating(tolerationSeconds=60)))
        await hub.settle()
        await hub.edit(NODES, "edge", tainted({"key": "broken", "value": "yes", "effect": "NoExecute"}))
        await hub.settle()
        assert await names(hub) == {"camera", "patient"}
        await hub.pass_time(50, step=50)
        assert await names(hub) == {"camera", "patient"}
        await hub.pass_time(20, step=20)
        assert await names(hub) == {"camera"}
        await hub.create(PODS, pod("pinned", nodeName="edge"))
        await hub.settle()
        assert await names(hub) == {"camera"}


async def test_a_taint_that_goes_in_time_evicts_nobody() -> None:
    async with running() as hub:
        await hub.node("edge")
        await hub.create(PODS, pod("patient", tolerations=tolerating(tolerationSeconds=60)))
        await hub.settle()
        await hub.edit(NODES, "edge", tainted({"key": "broken", "effect": "NoExecute"}))
        await hub.pass_time(50, step=50)
        await hub.edit(NODES, "edge", tainted())
        await hub.pass_time(100, step=50)
        assert await names(hub) == {"patient"}


async def test_what_is_evicted_runs_on_another_node() -> None:
    async with running() as hub:
        await hub.node("a")
        await hub.create(DEPLOYMENTS, deployment(replicas=3))
        await hub.settle()
        await hub.node("b")
        await hub.edit(NODES, "a", tainted({"key": "broken", "effect": "NoExecute"}))
        await hub.settle()
        assert [p["spec"]["nodeName"] for p in await hub.all(PODS)] == ["b"] * 3
