"""What others make of a pod's status is put right while its node is connected, and never against a younger report."""

import asyncio
import copy
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from hub import reports
from hub.cache import by_node
from hub.kubernetes.registry import KubeRegistry
from hub.kubernetes.repair import Repair
from hub.mirror import Mirror
from hub.objects import NODES, PODS, Keys, NodeView, PodView
from hub.store.memory import MemoryStore
from hub.upstream import Update, Upstream
from shards.claims import Fence
from shards.kv import Put
from tests.hub.kubernetes.fake_objects import FakeApi

POD = "/api/v1/namespaces/shop/pods/till"
SLOT = 3
FOREVER = [
    {"key": key, "operator": "Exists", "effect": "NoExecute"}
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
]
Object = dict[str, Any]


def status(ready: str = "True", phase: str = "Running") -> Object:
    return {
        "phase": phase,
        "conditions": [
            {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "ContainersReady", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ],
    }


class World:
    """An API server, a registry over it with its upstream, and mirrors that show what the test lets them."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.api = FakeApi()
        store = MemoryStore()
        self.registry = KubeRegistry(self.api, store, Keys())
        self.pods: Mirror[PodView] = Mirror(PODS, {"node": by_node})
        self.nodes: Mirror[NodeView] = Mirror(NODES, {})
        self.registry.mirrors = {PODS: self.pods}
        self.connected = {"edge-1"}
        self.fence = Fence("", 0)
        self.store = store
        self.upstream = Upstream(
            self.registry,
            lambda slot: self.fence,
            lambda slot: True,
            lambda slot: pytest.fail("lost"),
            lambda work, name: tasks.create_task(work),
        )
        self.repair = Repair(
            self.pods, self.nodes, lambda node: node in self.connected, self.upstream.submit, kept_max=100
        )
        self.registry.wrote = self.repair.wrote
        self.repair.start()

    async def start(self, **given: Any) -> "World":
        key = Keys().slot_epoch(SLOT)
        self.fence = Fence(key, (await self.store.txn([], [Put(key, b"{}")])).revision)
        spec = {"nodeName": "edge-1", "tolerations": FOREVER, **given.pop("spec", {})}
        self.api.put(POD, {"apiVersion": "v1", "kind": "Pod", "spec": spec, "status": {}, **given})
        return self

    def pod(self) -> Object:
        return self.api.objects[POD]

    def show(self) -> None:
        """The watch has caught up."""
        obj = self.pod()
        revision = int(obj["metadata"]["resourceVersion"])
        entry = self.pods.cache.entry(("shop", "till"), f"{SLOT:04d}", revision, orjson.dumps(obj))
        self.pods.advance(self.pods.set_state(entry.key, entry, revision), revision)

    def show_node(self, ready: str) -> None:
        self.api.revision += 1
        node = {
            "metadata": {"name": "edge-1", "uid": "n"},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }
        entry = self.nodes.cache.entry(("", "edge-1"), f"{SLOT:04d}", self.api.revision, orjson.dumps(node))
        self.nodes.advance(self.nodes.set_state(entry.key, entry, entry.revision), entry.revision)

    async def report(self, reported: Object) -> None:
        apply = reports.merge_pod("edge-1", reported)
        update = Update(
            PODS, "shop", "till", self.pod()["metadata"]["uid"], apply, lambda result: None, whole=True
        )
        assert self.upstream.submit(SLOT, update)

    async def settled(self) -> None:
        await self.upstream.settled()

    def edit(self, change: Object) -> None:
        """Somebody else writes the status."""
        obj = copy.deepcopy(self.pod())
        obj["status"] = {**obj["status"], **change}
        self.api.put(POD, obj)

    def condition(self, kind: str) -> str:
        return next(str(c["status"]) for c in self.pod()["status"]["conditions"] if c["type"] == kind)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with asyncio.TaskGroup() as tasks:
        yield await World(tasks).start()


async def test_a_status_that_somebody_edits_becomes_what_the_node_reported(world: World) -> None:
    await world.report(status())
    await world.settled()
    world.show()
    world.edit({"phase": "Failed", "reason": "Edited"})
    world.show()
    await world.settled()
    assert world.pod()["status"]["phase"] == "Running" and "reason" not in world.pod()["status"]
    assert world.repair.repairs == 1
    world.show()
    await world.settled()
    assert world.repair.repairs == 1


async def test_a_pod_called_not_ready_while_the_node_was_away_is_ready_once_it_is_back(world: World) -> None:
    await world.report(status())
    await world.settled()
    world.show()
    world.connected.clear()
    world.show_node("Unknown")
    not_ready = status()["conditions"]
    not_ready[0]["status"] = "False"
    world.edit({"conditions": not_ready})
    world.show()
    await world.settled()
    assert world.condition("Ready") == "False"  # of a silent node others know as much
    world.connected.add("edge-1")
    world.show_node("True")
    await world.settled()
    assert world.condition("Ready") == "True"


async def test_a_hub_that_has_just_started_derives_ready_as_a_kubelet_does(world: World) -> None:
    not_ready = status()["conditions"]
    not_ready[0] = {**not_ready[0], "status": "False"}
    world.edit({"phase": "Running", "conditions": not_ready})
    world.show()
    await world.settled()
    assert world.condition("Ready") == "True" and len(world.repair) == 1


async def test_a_readiness_gate_that_is_not_met_keeps_a_pod_not_ready() -> None:
    async with asyncio.TaskGroup() as tasks:
        world = await World(tasks).start(spec={"readinessGates": [{"conditionType": "example.com/lb"}]})
        conditions = status()["conditions"]
        conditions[0]["status"] = "False"
        world.edit({"conditions": conditions})
        world.show()
        await world.settled()
        assert world.condition("Ready") == "False"
        world.edit({"conditions": [*conditions, {"type": "example.com/lb", "status": "True"}]})
        world.show()
        await world.settled()
        assert world.condition("Ready") == "True"


async def test_conditions_of_others_stay_through_reports_and_repairs(world: World) -> None:
    world.edit({"conditions": [{"type": "DisruptionTarget", "status": "True"}]})
    world.show()
    await world.report(status())
    await world.settled()
    world.show()
    world.edit({"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "False"}]})
    world.show()
    await world.settled()
    assert world.pod()["status"]["phase"] == "Running" and world.condition("Ready") == "True"
    assert world.condition("DisruptionTarget") == "False"


async def test_a_repair_never_overtakes_a_younger_report(world: World) -> None:
    await world.report(status())
    await world.settled()
    world.show()
    world.edit({"phase": "Failed"})
    await world.report(status(phase="Succeeded", ready="False"))  # waits while the edit is seen
    world.show()
    await world.settled()
    assert world.pod()["status"]["phase"] == "Succeeded"
    world.show()
    await world.settled()
    assert world.pod()["status"]["phase"] == "Succeeded"


async def test_our_own_write_seen_late_repairs_nothing(world: World) -> None:
    await world.report(status(ready="False"))
    await world.settled()
    seen_late = copy.deepcopy(world.pod())
    await world.report(status())
    await world.settled()
    newest, world.api.objects[POD] = world.pod(), seen_late
    written = world.upstream.transactions
    world.show()
    world.api.objects[POD] = newest
    world.show()
    await world.settled()
    assert world.repair.repairs == 0 and world.condition("Ready") == "True"
    assert world.upstream.transactions == written


async def test_a_pod_that_was_bound_without_them_gets_tolerations_without_an_end() -> None:
    async with asyncio.TaskGroup() as tasks:
        given = [{**t, "tolerationSeconds": 300} for t in FOREVER]
        world = await World(tasks).start(spec={"tolerations": given})
        world.show()
        await world.settled()
        assert world.pod()["spec"]["tolerations"] == FOREVER
        world.show()
        await world.settled()
        assert world.repair.tolerations_set == 1


async def test_what_is_kept_is_bounded_and_forgotten_with_its_slot(world: World) -> None:
    for i in range(150):
        world.api.put(
            f"/api/v1/namespaces/shop/pods/p{i}",
            {"kind": "Pod", "spec": {"nodeName": "edge-1"}, "status": {}},
        )
        await world.registry.mutate(
            PODS, "shop", f"p{i}", reports.merge_pod("edge-1", status()), fence=world.fence
        )
    assert len(world.repair) == 100
    await world.report(status())
    await world.settled()
    world.show()
    uid = world.pod()["metadata"]["uid"]
    assert uid in world.repair._kept
    world.pods.forget({f"{SLOT:04d}"})
    assert uid not in world.repair._kept
