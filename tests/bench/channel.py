"""What the channel costs: memory per connected node, CPU per heartbeat, CPU per delivered and acknowledged document.

    python -m tests.bench.channel [nodes]

The hub runs in a process of its own (memory store, uvloop), the simulated fleet in this one. Prints one JSON object
per line: {"bench", "metric", "value", "unit"}. CPU is user plus system time of the hub's process.
"""

import asyncio
import contextlib
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

from tests.hub.edge_pki import Pki
from tests.sim.fleet import Fleet, SimNode

HEARTBEATS = 20
BROADCASTS = 10
TARGETS = {"rss_per_node": 30.0, "cpu_per_heartbeat": 20.0, "cpu_per_document": 30.0}


def rss_kb() -> float:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize() / 1024


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def serve(pipe: Connection, directory: str, nodes: int) -> None:
    """The hub's process: answers commands from `pipe`."""
    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(pipe, directory, nodes))


async def _serve(pipe: Connection, directory: str, nodes: int) -> None:
    import gc
    import secrets

    from hub.gateway import Gateway
    from hub.informer import Informers
    from hub.objects import CONFIGMAPS, NODES, PODS, SECRETS, Keys
    from hub.ownership import Ownership
    from hub.peers import GatewayConfig
    from hub.registry import Registry, now_rfc3339
    from hub.reports import connected, new_node
    from hub.store.memory import MemoryStore
    from security.identity import NodeId
    from tests.hub.hub_fixture import configmap, pod

    pki = Pki(directory)
    store, keys = MemoryStore(), Keys()
    registry = Registry(store, keys)
    own = await Ownership.claim_all(
        store, keys, "bench", now=time.time(), random_id=lambda: secrets.token_hex(8)
    )
    informers = Informers(store, keys, (PODS, NODES, CONFIGMAPS, SECRETS))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(informers.run())
        gateway = Gateway(
            registry, informers, own, pki.ca, pki.server(), GatewayConfig(host="127.0.0.1", port=0)
        )
        address = await gateway.start()
        pipe.send(address)
        while True:
            command = await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
            if command == "stop":
                break
            if command == "nodes":
                for i in range(nodes):
                    name = f"n{i:05d}"
                    node = new_node(NodeId(pki.ca.trust_domain, "default", name, name))
                    # Stored Ready, so that what is measured is the connection and not the Node's first status.
                    connected(node, now_rfc3339())
                    await registry.create(NODES, node)
                await informers.of(NODES).at_least(await store.revision())
            elif command == "pods":
                uses = [{"name": "main", "image": "x", "envFrom": [{"configMapRef": {"name": "shared"}}]}]
                await registry.create(CONFIGMAPS, configmap("shared", text="0" * 900))
                for i in range(nodes):
                    await registry.create(PODS, pod(f"p{i:05d}", f"n{i:05d}", containers=uses))
                await informers.of(PODS).at_least(await store.revision())
            elif command == "edit":
                mark = secrets.token_hex(450)
                await registry.mutate(
                    CONFIGMAPS, "default", "shared", lambda obj, m=mark: {**obj, "data": {"text": m}}
                )
            elif command == "settle":
                await gateway.upstream.settled()
                await store.compact(await store.revision())
                gc.collect()
            pipe.send((rss_kb(), cpu_s()))
        await gateway.stop()
        running.cancel()


class Bench:
    def __init__(self, pipe: Connection, fleet: Fleet, nodes: list[SimNode]) -> None:
        self.pipe, self.fleet, self.nodes = pipe, fleet, nodes

    def ask(self, command: str) -> tuple[float, float]:
        self.pipe.send(command)
        while not self.pipe.poll(0):
            self.fleet.step(0.005)
        answer: tuple[float, float] = self.pipe.recv()
        return answer


def emit(metric: str, value: float, unit: str) -> None:
    print(
        json.dumps({"bench": "channel", "metric": metric, "value": round(value, 2), "unit": unit}), flush=True
    )


def heartbeats(bench: Bench) -> float:
    """µs of hub CPU per heartbeat."""
    _, before = bench.ask("report")
    for _ in range(HEARTBEATS):
        wanted = [n.pongs + 1 for n in bench.nodes]
        for i, node in enumerate(bench.nodes):
            node.ping()
            if i % 16 == 15:
                bench.fleet.step(0)  # heartbeats are spread over time, not one burst
        bench.fleet.run(lambda w=wanted: all(n.pongs >= p for n, p in zip(bench.nodes, w, strict=True)))
    _, after = bench.ask("report")
    return (after - before) * 1e6 / (HEARTBEATS * len(bench.nodes))


def documents(bench: Bench) -> float:
    """µs of hub CPU per document of 1 KB that was delivered to a node and acknowledged."""
    _, before = bench.ask("report")
    for _ in range(BROADCASTS):
        wanted = bench.nodes[0].acks + 1
        bench.ask("edit")
        bench.fleet.run(lambda w=wanted: all(n.acks >= w for n in bench.nodes))
    _, after = bench.ask("report")
    return (after - before) * 1e6 / (BROADCASTS * len(bench.nodes))


def run(count: int) -> dict[str, float]:
    """Runs everything with `count` nodes; returns the figures by metric."""
    out: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        pki = Pki(directory)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        hub = context.Process(target=serve, args=(theirs, directory, count), daemon=True)
        hub.start()
        theirs.close()
        address: Any = ours.recv()
        fleet = Fleet(address)
        try:
            bench = Bench(ours, fleet, [])
            out["rss_idle"] = bench.ask("settle")[0] / 1024
            base, cpu = bench.ask("nodes")
            base, cpu = bench.ask("settle")
            nodes = [fleet.node(f"n{i:05d}", pki.client(f"n{i:05d}")) for i in range(count)]
            bench.nodes = nodes
            fleet.connect_all(nodes)
            rss, after = bench.ask("settle")
            assert all(n.welcome for n in nodes)
            out["rss_per_node"] = (rss - base) / count
            out["cpu_per_connect"] = (after - cpu) * 1e6 / count
            out["cpu_per_heartbeat"] = heartbeats(bench)
            bench.ask("pods")
            fleet.run(lambda: all(n.acks >= 2 for n in nodes))
            out["cpu_per_document"] = documents(bench)
            out["rss_per_node_with_pod"] = (bench.ask("settle")[0] - base) / count
            ours.send("stop")
            hub.join(10)
        finally:
            fleet.stop()
            if hub.is_alive():
                hub.terminate()
                hub.join(5)
    return out


UNITS = {
    "rss_idle": "MB",
    "rss_per_node": "KB",
    "rss_per_node_with_pod": "KB",
    "cpu_per_connect": "us",
    "cpu_per_heartbeat": "us",
    "cpu_per_document": "us",
}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft < count + 100:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (count + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        )
    for metric, value in run(count).items():
        emit(metric, value, UNITS[metric])


if __name__ == "__main__":
    main()
