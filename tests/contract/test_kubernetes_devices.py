"""Devices of a real API server: the chart's definition, what a replica follows of them, and the status that it writes."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hub import devices
from hub.desired import Desired
from hub.kubernetes.client import KubeClient
from hub.kubernetes.config import KubeConfig
from hub.kubernetes.registry import KubeRegistry
from hub.kubernetes.share import KubeShare
from hub.objects import DEVICES, NODES, Keys
from hub.registry import Change, now_rfc3339
from hub.store.memory import MemoryStore
from security.frames import decode_twin
from tests.hub.hub_fixture import device, until
from tests.servers.kubernetes import KubeCluster

CRD = Path(__file__).parents[2] / "helm/cloudhub/resources/devices.yaml"
PATH = "/apis/cloudhub.dev/v1alpha1/namespaces/default/devices"
SLOTS = 4
WAIT_S = 60.0


class World:
    """A replica's share of the cluster, with one edge node, and the documents that follow."""

    def __init__(self, cluster: KubeCluster, client: KubeClient) -> None:
        self.cluster = cluster
        self.mark = secrets.token_hex(4)
        self.node, self.name = f"edge-{self.mark}", f"boiler-{self.mark}"
        self.share = KubeShare(client, SLOTS)
        self.registry = KubeRegistry(client, MemoryStore(slots=SLOTS), Keys())
        self.registry.mirrors = {NODES: self.share.nodes, DEVICES: self.share.devices}
        self.told: list[tuple[str, str]] = []
        self.desired = Desired(
            self.share.pods,
            self.share.configmaps,
            self.share.secrets,
            lambda node, key: self.told.append((node, key)),
            lambda: None,
            namespaced=self.share.namespaced,
            devices=self.share.devices,
        )

    async def api(self, method: str, path: str, body: Any = None, content_type: str = "") -> Any:
        kind = {"content_type": content_type} if content_type else {}
        return await asyncio.to_thread(self.cluster.api, method, path, body, **kind)

    async def make_node(self) -> None:
        labels = {"cloudhub.dev/edge": "true"}
        await self.api("POST", "/api/v1/nodes", {"metadata": {"name": self.node, "labels": labels}})

    async def make(self, **spec: Any) -> Any:
        made = device(self.name, self.node, **spec)
        made["metadata"].pop("generation")
        return await self.api("POST", PATH, made)

    def documents(self) -> list[str]:
        return [key for key in self.desired.of(self.node) if key.startswith("device/")]


@pytest.fixture
async def world(kubernetes: KubeCluster) -> AsyncIterator[World]:
    await asyncio.to_thread(kubernetes.kubectl, "apply", "--server-side", "-f", str(CRD))
    await asyncio.to_thread(
        kubernetes.kubectl, "wait", "--for=condition=Established", "crd/devices.cloudhub.dev", "--timeout=60s"
    )
    config = KubeConfig.from_file(kubernetes.kubeconfig_of("hub", "system:masters"))
    async with KubeClient(config) as client:
        made = World(kubernetes, client)
        made.desired.start()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(made.share.run())
            yield made
            running.cancel()
        for path in (f"{PATH}/{made.name}", f"/api/v1/nodes/{made.node}"):
            await made.api("DELETE", path)


async def test_a_device_is_followed_from_its_making_and_its_reports_are_written(world: World) -> None:
    await world.make()
    await world.share.load(range(SLOTS), 1)
    # The Node comes last, so its devices are asked for by its name.
    await world.make_node()
    await until(world.documents, WAIT_S, "the device is told to its node")
    key = world.documents()[0]
    first = world.desired.of(world.node)[key].version
    patch = {"spec": {"desired": {"setpoint": 60}}}
    await world.api("PATCH", f"{PATH}/{world.name}", patch, "application/merge-patch+json")
    await until(lambda: world.desired.of(world.node)[key].version != first, WAIT_S)
    namespace, name, uid = devices.split_device_key(key) or ("", "", "")
    for at, value in ((1_700_000_000_000, 20.5), (1_700_000_060_000, 21)):
        report = decode_twin(b'{"gen":2,"r":{"temperature":[[%d,%s]]}}' % (at, str(value).encode()))
        merge = devices.Merge(world.node, report, now_rfc3339)
        (result,) = await world.registry.mutate_many([Change(DEVICES, namespace, name, uid, merge)])
        assert not isinstance(result, Exception) and merge.faults == []
    status = (await world.api("GET", f"{PATH}/{world.name}"))["status"]
    assert status["reported"] == {"temperature": {"value": 21, "time": "2023-11-14T22:14:20.000000Z"}}
    assert status["observedGeneration"] == 2 and status["conditions"][0]["type"] == "Accepted"
    shown = await asyncio.to_thread(world.cluster.kubectl, "get", "dev", world.name)
    assert world.node in shown and "True" in shown


async def test_the_definition_refuses_what_makes_no_sense(world: World) -> None:
    await world.make_node()
    await world.make()
    prop = {"name": "t", "type": "number"}
    for wrong in (
        {"type": "float"},
        {"minimum": 2, "maximum": 1},
        {"values": ["a"]},
        {"keep": 65},
        {"minIntervalSeconds": 0},
        {"name": "a b"},
        {"access": "Secret"},
    ):
        bad = device(f"bad-{world.mark}", world.node, properties=[{**prop, **wrong}])
        with pytest.raises(Exception, match="nvalid"):
            await world.api("POST", PATH, bad)
    with pytest.raises(Exception, match="nodeName cannot be changed"):
        patch = {"spec": {"nodeName": "other"}}
        await world.api("PATCH", f"{PATH}/{world.name}", patch, "application/merge-patch+json")
