"""What the fleet page costs a replica: by CPU of this process, bytes, and memory, for NODES nodes in a store in memory.

    python -m tests.bench.fleetpage [NODES]

The Nodes are as large as real ones; one in a hundred is not ready. Reading them from etcd or SQLite comes on top of the list.
"""

import asyncio
import gc
import gzip
import sys
import time
import tracemalloc
from typing import Any, Final

import orjson

from hub.fleet import roster
from hub.fleet.follower import Fleet
from hub.fleet.following import stored
from hub.objects import NODES, SHARED, Keys, partition_of_slot
from hub.registry import Registry
from hub.store.memory import MemoryStore
from shards.kv import Put
from shards.ring import slot_of
from tests.bench.report import emit

NODES_DEFAULT: Final = 100_000
SLOTS: Final = 1024
SITES: Final = 400
CHANGES: Final = 1000


def node(n: int, ready: str = "True") -> dict[str, Any]:
    """As a join and the first reports leave it."""
    room = {"cpu": "4", "memory": "3906612Ki", "pods": "110", "ephemeral-storage": "30417388Ki"}
    at = "2026-11-21T10:00:00Z"
    conditions = [
        {"type": "Ready", "status": ready, "reason": "EdgeliteReady", "message": "edgelite is connected"},
        *(
            {"type": kind, "status": "False", "reason": f"EdgeliteHasNo{kind}", "message": ""}
            for kind in ("DiskPressure",)
        ),
    ]
    labels = {
        "kubernetes.io/hostname": f"store-{n:06d}", "kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64",
        "cloudhub.dev/runtime": "process", "cloudhub.dev/agent-version": "0.1.0", "cloudhub.dev/site": f"site-{n % SITES:03d}",
        "cloudhub.dev/pool": ("tills", "kiosks", "cameras", "gateways")[n % 4],
    }  # fmt: skip
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"store-{n:06d}", "uid": f"{n:08x}-0000-4000-8000-000000000000", "labels": labels, "creationTimestamp": at},
        "spec": {"unschedulable": True} if n % 997 == 5 else {},
        "status": {
            "capacity": room,
            "allocatable": room,
            "addresses": [{"type": "InternalIP", "address": f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}"}],
            "nodeInfo": {"operatingSystem": "linux", "architecture": "arm64", "osImage": "Debian GNU/Linux 12", "kubeletVersion": "edgelite/0.1.0"},
            "conditions": [{**condition, "lastHeartbeatTime": at, "lastTransitionTime": at} for condition in conditions],
        },
    }  # fmt: skip


def key_of(keys: Keys, obj: dict[str, Any]) -> str:
    slot = slot_of(obj["metadata"]["labels"]["cloudhub.dev/site"], SLOTS)
    return keys.object(NODES, partition_of_slot(slot), SHARED, obj["metadata"]["name"])


async def filled(nodes: int) -> tuple[MemoryStore, Registry]:
    """A store with `nodes` Nodes."""
    store, keys = MemoryStore(slots=SLOTS), Keys()
    for first in range(0, nodes, 100):
        made = (node(n, state(n)) for n in range(first, min(first + 100, nodes)))
        await store.txn([], [Put(key_of(keys, obj), orjson.dumps(obj)) for obj in made])
    return store, Registry(store, keys)


def state(n: int) -> str:
    return "Unknown" if n % 113 == 7 else "False" if n % 1009 == 3 else "True"


async def measure(nodes: int) -> None:
    store, registry = await filled(nodes)
    fleet = Fleet(lambda: stored(registry), SLOTS, linger_s=0.0, tick_s=3600.0)
    running = asyncio.create_task(fleet.run())
    gc.collect()
    began, wall = time.process_time(), time.monotonic()
    async with fleet.used() as held:
        _tell("open: list of all nodes", time.process_time() - began, time.monotonic() - wall)
        began = time.process_time()
        body = roster.encode(held.picture(), SLOTS)
        encoded = time.process_time()
        packed = gzip.compress(body, 1)
        emit("fleetpage", "snapshot: made, in a thread", (encoded - began) * 1e3, "ms CPU")
        emit(
            "fleetpage", "snapshot: compressed, in a thread", (time.process_time() - encoded) * 1e3, "ms CPU"
        )
        emit("fleetpage", "snapshot", len(body) / nodes, "bytes/node")
        emit("fleetpage", "snapshot, compressed", len(packed) / nodes, "bytes/node")
        emit("fleetpage", "snapshot, compressed", len(packed) / 1024, "KB")

        keys, before = registry.keys, held.serial
        lines = [node(n, "False") for n in range(11, nodes, max(1, nodes // CHANGES))][:CHANGES]
        puts = [Put(key_of(keys, obj), orjson.dumps(obj)) for obj in lines]
        began = time.process_time()
        for put in puts:
            await store.txn([], [put])
        written = time.process_time() - began
        revision = await store.revision()
        while held.revision < revision:
            await asyncio.sleep(0)
        while held.tick():
            pass
        told = held.since(before)
        assert told is not None
        spent = time.process_time() - began - written
        emit("fleetpage", "a node's change, for all viewers", spent / len(lines) * 1e6, "us CPU")
        emit(
            "fleetpage",
            "a node's change, to each viewer",
            sum(len(c.line) for c in told) / len(lines),
            "bytes",
        )
    await memory(registry)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def memory(registry: Registry) -> None:
    """What the roster takes while somebody looks."""
    gc.collect()
    tracemalloc.start()
    fleet = Fleet(lambda: stored(registry), SLOTS, linger_s=0.0, tick_s=3600.0)
    running = asyncio.create_task(fleet.run())
    async with fleet.used() as held:
        gc.collect()
        emit(
            "fleetpage",
            "memory while somebody looks",
            tracemalloc.get_traced_memory()[0] / len(held),
            "bytes/node",
        )
    tracemalloc.stop()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def _tell(what: str, cpu_s: float, wall_s: float) -> None:
    emit("fleetpage", what, cpu_s, "s CPU")
    emit("fleetpage", f"{what}, until it is there", wall_s, "s")


def main(nodes: int = NODES_DEFAULT) -> None:
    emit("fleetpage", "nodes", nodes, "")
    asyncio.run(measure(nodes))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else NODES_DEFAULT)
