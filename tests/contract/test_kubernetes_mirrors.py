"""Mirror pods in a real API server: made, kept in step, replaced and removed by the hub's own code for them."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from hub import errors
from hub.desired import MIRROR
from hub.edgewrites import EdgeWrites
from hub.kubernetes.client import KubeClient
from hub.kubernetes.config import KubeConfig
from hub.mirrorpods import MirrorPods, _decode
from hub.objects import PODS
from tests.contract.test_kubernetes_writes import World, status
from tests.servers.kubernetes import KubeCluster


@pytest.fixture
async def world(kubernetes: KubeCluster) -> AsyncIterator[World]:
    config = KubeConfig.from_file(kubernetes.kubeconfig_of("mirror-tests", "system:masters"))
    async with KubeClient(config) as client:
        made = World(client)
        yield made
        await client.request("DELETE", f"/api/v1/nodes/{made.node}")


def mirrors(world: World, node_uid: str) -> tuple[MirrorPods, Any]:
    """With as much of a gateway and a peer as one report takes; the registry and what is behind it are real."""
    node = SimpleNamespace(meta=SimpleNamespace(uid=node_uid))
    gateway = SimpleNamespace(
        registry=world.registry,
        slots=SimpleNamespace(fence=lambda slot: None),
        node_entry=lambda name: node,
    )
    peer = SimpleNamespace(identity=SimpleNamespace(node=world.node), slot=0)
    return MirrorPods(gateway, EdgeWrites(None)), peer  # type: ignore[arg-type]


def report(name: str, uid: str, phase: str) -> Any:
    spec = {"containers": [{"name": "main", "image": "img:1", "command": ["run"]}]}
    pod = {"metadata": {"name": name, "namespace": "default", "labels": {"app": "till"}}, "spec": spec}
    return _decode(orjson.dumps({"uid": uid, "pod": pod, "status": status(phase)}))


async def test_a_mirror_lives_in_the_api_server_as_long_as_its_pod(world: World) -> None:
    enrolled = await world.enrol()
    keeper, peer = mirrors(world, enrolled.obj()["metadata"]["uid"])
    name = f"till-{world.node}"
    await keeper._keep(peer, "default", name, report(name, "u1", "Running"), status("Running"))
    first = (await world.registry.get(PODS, "default", name)).obj()
    assert first["metadata"]["annotations"][MIRROR] == "u1"
    assert (first["spec"]["nodeName"], first["status"]["phase"]) == (world.node, "Running")
    await keeper._keep(peer, "default", name, report(name, "u2", "Running"), status("Running"))
    second = (await world.registry.get(PODS, "default", name)).obj()
    assert second["metadata"]["annotations"][MIRROR] == "u2"
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    await keeper._keep(peer, "default", name, _decode(b'{"gone":true}'), {})
    try:
        found = await world.registry.get(PODS, "default", name)
    except errors.NotFound:
        found = None
    assert found is None
