"""A real agent with a real workload while its slot goes from replica to replica, and while replicas are gone."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from hub.figures import stats
from hub.objects import PODS
from tests.e2e.cluster import Agent, sleeper
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import eventually, until
from tests.hub.test_handover import replicas, slot
from tests.hub.test_joining import token

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


async def test_a_workload_lives_through_hand_overs_and_a_dead_replica(pki: Pki, tmp_path: Path) -> None:
    """The agent joins at the wrong replica, is redirected, handed over, and finds the other one when its own is gone."""
    async with replicas(pki, heartbeat_s=1.0) as (a, b):
        text = await token(b.hub, node="edge-1")
        edge = ",".join(f"{host}:{port}" for host, port in (b.address, a.address))
        agent = Agent("edge-1", tmp_path / "node")
        await asyncio.to_thread(agent.join, edge, text)
        try:
            await until(lambda: "edge-1" in a.gateway.peers, DEADLINE_S, "the owner serves the node")
            pod: dict[str, Any] = sleeper("web", "edge-1", "exec sleep 100000")
            pod["metadata"]["namespace"] = "default"
            pod["spec"]["restartPolicy"] = "Always"
            await a.hub.create(PODS, pod)

            async def started() -> str:
                found = await a.hub.pod("web")
                assert found is not None
                states = found.get("status", {}).get("containerStatuses") or [{}]
                return str(states[0].get("state", {}).get("running", {}).get("startedAt", ""))

            at_first = await eventually(started, DEADLINE_S)

            def sleeping() -> list[int]:
                return [p.pid for p in agent.workloads() if p.cmdline()[:1] == ["sleep"]]

            await until(lambda: len(sleeping()) == 1, DEADLINE_S)
            workload = sleeping()
            await a.own.give([slot("edge-1")])
            await b.own.take([slot("edge-1")])
            await until(lambda: "edge-1" in b.gateway.peers, DEADLINE_S, "the new owner serves the node")
            assert stats(a.gateway)["redirected"] == 1

            await b.gateway.stop()
            b.own.cell.members.pop("hub-1")
            await a.own.take([slot("edge-1")])
            await until(
                lambda: "edge-1" in a.gateway.peers, DEADLINE_S, "the replica that is left serves the node"
            )
            assert sleeping() == workload and await started() == at_first
        finally:
            await asyncio.to_thread(agent.kill9)
            await asyncio.to_thread(agent.kill_workloads)
