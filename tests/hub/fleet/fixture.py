"""The fleet page of a hub in the test's process: API with roles over TLS, and a real gateway with simulated nodes."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp

from hub.access.authorizer import Authorizer
from hub.fleet.detail import Details
from hub.fleet.follower import Fleet
from hub.fleet.following import stored
from hub.fleet.pages import Pages
from hub.objects import NODES, Keys
from hub.registry import Registry
from hub.store.memory import MemoryStore
from tests.hub import hub_fixture
from tests.hub.access.kit import DEADLINE_S, AccessHub, access_hub
from tests.hub.edge_pki import Pki

SLOTS = 16
NODES_PATH = "/cloudhub/fleet/nodes"


async def status() -> Mapping[str, Any]:
    """As `hub.status` has it, of one replica."""
    member = {
        "name": "hub-0", "state": "Ready", "version": "1", "weight": 1.0, "edge": "127.0.0.1:1", "ageSeconds": 15, "slots": SLOTS,
        "roles": ["scheduler"], "nodes": 3, "connected": 2, "relayedHere": 0, "relayedAway": 0, "incarnation": "x",
    }  # fmt: skip
    slots: list[dict[str, Any]] = [
        {"slot": n, "owner": "hub-0", "epoch": 1, "nodes": n, "connected": n} for n in range(SLOTS)
    ]
    slots[3] = {"slot": 3, "owner": None, "epoch": None, "nodes": None, "connected": None}
    return {
        "store": {"uuid": "u" * 32, "generation": 1, "slots": SLOTS, "unownedSlots": 1},
        "answeredBy": {"member": "hub-0", "stale": False},
        "members": [member],
        "roles": [{"role": "scheduler", "owner": "hub-0", "epoch": 1}],
        "slots": slots,
    }


class FleetHub:
    """`access`: the API; `edge`: the gateway and its nodes."""

    def __init__(self, access: AccessHub, edge: hub_fixture.Hub, fleet: Fleet) -> None:
        self.access, self.edge, self.fleet = access, edge, fleet

    async def node(self, name: str, ready: str = "True", **labels: str) -> int:
        """Stores a Node as it is, whatever the API would say; its revision."""
        condition = {
            "type": "Ready",
            "status": ready,
            "reason": "Test",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        meta = {"name": name, "labels": {f"cloudhub.dev/{key}": value for key, value in labels.items()}}
        obj = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": meta,
            "spec": {},
            "status": {"conditions": [condition]},
        }
        return (await self.edge.registry.create(NODES, obj)).revision

    async def becomes(self, name: str, ready: str) -> int:
        def change(node: Any) -> Any:
            node["status"]["conditions"][0]["status"] = ready
            return node

        return (await self.edge.registry.mutate(NODES, "", name, change)).revision

    @contextlib.asynccontextmanager
    async def changes(self, revision: int, token: str | None = None) -> AsyncIterator["Lines"]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        context = self.access.anybody if token else self.access.admin
        url = f"{self.access.hub.url}/cloudhub/fleet/changes?revision={revision}"
        async with self.access.hub.http.get(url, headers=headers, ssl=context) as response:
            assert response.status == 200, await response.text()
            yield Lines(response)

    async def viewer(self, name: str, *rules: dict[str, Any], role: str = "") -> str:
        """A token of a new service account with a new role of these rules, or a role that there is."""
        if rules:
            role = f"role-{name}"
            await self.access.role("", role, *rules)
        await self.access.account("default", name)
        if role:
            await self.access.bind("", role, {"kind": "ServiceAccount", "name": name, "namespace": "default"})
        return await self.access.token("default", name)


class Lines:
    """A stream of changes."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self, kind: str = "") -> dict[str, Any]:
        """The next line, of this type."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                line = await self.response.content.readline()
                assert line, f"the stream ended before a line {kind}"
                found: dict[str, Any] = json.loads(line)
                if kind in ("", found["type"]):
                    return found

    async def ended(self) -> bool:
        async with asyncio.timeout(DEADLINE_S):
            return not await self.response.content.read()


@contextlib.asynccontextmanager
async def fleet_hub(pki: Pki, **timing: float) -> AsyncIterator[FleetHub]:
    """`timing`: of the Fleet."""
    store = MemoryStore(slots=SLOTS)
    registry = Registry(store, Keys())
    fleet = Fleet(lambda: stored(registry), SLOTS, status, **{"tick_s": 0.02, "slots_s": 0.05, **timing})
    running = asyncio.create_task(fleet.run())
    try:
        async with hub_fixture.hub(pki, store) as edge:

            def pages(authorizer: Authorizer) -> Pages:
                return Pages(fleet, Details(registry, edge.gateway, authorizer, registry), authorizer)

            async with access_hub(store=store, fleet=pages) as access:
                yield FleetHub(access, edge, fleet)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
