"""A hub's channel in the test's process: memory store, share, ownership, gateway; and a fleet to talk to it."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from hub.gateway import Gateway
from hub.objects import NODES, PODS, Keys, Resource
from hub.peers import GatewayConfig
from hub.policies.watching import Policies
from hub.registry import Object, Registry, Stored
from hub.share import Share
from hub.slots import Loader
from hub.store.memory import MemoryStore
from security.identity import NodeId
from shards.ownership import Ownership
from tests.hub.alone import Ownership as Alone
from tests.hub.edge_pki import TRUST_DOMAIN, Pki
from tests.sim.fleet import Fleet, SimNode


async def until(condition: Callable[[], Any], seconds: float = 30.0, what: str = "the condition") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in time"
        await asyncio.sleep(0.005)


async def eventually(ask: Callable[[], Awaitable[Any]], seconds: float = 30.0) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while True:
        answer = await ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, "no true answer in time"
        await asyncio.sleep(0.005)


class Clock:
    """A clock that can be put forward."""

    def __init__(self, real: Callable[[], float] = time.monotonic) -> None:
        self._real = real
        self.ahead = 0.0

    def __call__(self) -> float:
        return self._real() + self.ahead


class Hub:
    """One started hub. Restart by `hub()` again on the same store."""

    def __init__(
        self,
        store: MemoryStore,
        pki: Pki,
        gateway: Gateway,
        share: Share,
        registry: Registry,
        clock: Clock,
    ) -> None:
        self.store, self.pki, self.gateway, self.share = store, pki, gateway, share
        self.registry, self.clock = registry, clock
        self.address = ("", 0)
        self.fleet: Fleet

    async def reached(self, stored: Stored) -> None:
        """Returns when the gateway knows of `stored`, a Node; at once where its slot is not here."""
        await self.share.at_least(int(stored.partition), stored.revision)

    def sim(self, name: str, affinity: str | None = None) -> SimNode:
        """A simulated node with a certificate, not connected."""
        return self.fleet.node(name, self.pki.client(name, affinity))

    def sim_stranger(self) -> SimNode:
        """A peer without a certificate, not connected."""
        peer = self.fleet.node(f"stranger-{len(self.fleet.nodes)}", self.pki.client(None))
        peer.stranger = True
        return peer

    async def enrol(self, name: str, affinity: str | None = None) -> SimNode:
        """As a join would: a Node, and the simulated node for it."""
        from hub.reports import new_node

        node = new_node(NodeId(TRUST_DOMAIN, "default", affinity or name, name))
        stored = await self.registry.create(NODES, node)
        await self.reached(stored)
        return self.sim(name, affinity)

    async def connect(self, node: SimNode, seconds: float = 30.0) -> dict[str, Any]:
        """Connects and returns WELCOME."""
        node.connect()
        await until(lambda: node.welcome or node.goaway, seconds, f"WELCOME of {node.name}")
        assert node.welcome is not None, node.goaway
        return node.welcome

    async def create(self, res: Resource, obj: Object) -> Stored:
        return await self.registry.create(res, obj)

    async def node(self, name: str) -> Object:
        return (await self.registry.get(NODES, "", name)).obj()

    async def pod(self, name: str, namespace: str = "default") -> Object | None:
        stored = await self.registry.find(PODS, namespace, name)
        return stored.obj() if stored is not None else None

    async def condition(self, node: str, kind: str) -> Object | None:
        obj = await self.node(node)
        return next((c for c in obj["status"].get("conditions") or [] if c["type"] == kind), None)


@contextlib.asynccontextmanager
async def hub(
    pki: Pki,
    store: MemoryStore | None = None,
    ownership: Ownership | None = None,
    loader: Loader | None = None,
    policies: Policies | None = None,
    **config: Any,
) -> AsyncIterator[Hub]:
    """A hub that owns everything, or what `ownership` says."""
    store = store or MemoryStore(slots=16)
    keys = Keys()
    registry = Registry(store, keys)
    clock = Clock()
    own: Ownership = ownership or await Alone.claim_all(
        store, keys, "hub-0", now=time.time(), random_id=lambda: secrets.token_hex(8)
    )
    share = Share(store, keys)
    running = asyncio.create_task(share.run())
    settings = GatewayConfig(**{"host": "127.0.0.1", "port": 0, **config})
    gateway = Gateway(
        registry, share, own, pki.ca, pki.server(), settings, loader=loader, policies=policies, now=clock
    )
    made = Hub(store, pki, gateway, share, registry, clock)
    fleet: Fleet | None = None
    try:
        made.address = await gateway.start()
        fleet = made.fleet = Fleet(made.address)
        fleet.start()
        yield made
    finally:
        if fleet is not None:
            await asyncio.get_running_loop().run_in_executor(None, fleet.stop)
        await gateway.stop()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def pod(name: str, node: str, uid: str | None = None, **spec: Any) -> Object:
    """A bound pod, as the API stores it."""
    meta: Object = {"name": name, "namespace": "default", "labels": {"app": name}}
    if uid is not None:
        meta["uid"] = uid
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}], **spec},
        "status": {"phase": "Pending"},
    }


def configmap(name: str, **data: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": data,
    }


def device(name: str, node: str, uid: str | None = None, **spec: Any) -> Object:
    """A device with a temperature and a setpoint, as the API stores it."""
    meta: Object = {"name": name, "namespace": "default", "generation": 1}
    if uid is not None:
        meta["uid"] = uid
    temperature = {"name": "temperature", "type": "number", "unit": "Cel", "minimum": -20, "maximum": 120}
    setpoint = {"name": "setpoint", "type": "integer", "access": "ReadWrite", "minimum": 5, "maximum": 90}
    return {
        "apiVersion": "cloudhub.dev/v1alpha1",
        "kind": "Device",
        "metadata": meta,
        "spec": {"nodeName": node, "properties": [temperature, setpoint], **spec},
        "status": {},
    }
