"""A reconnect storm: all agents of a fleet come back at once after an outage.

    python -m tests.bench.storm [agents]          # 1,000; 10,000 in full

The hub is `cloudhub serve` with its SQLite store. The agents are simulated in processes of their own, over real mTLS, each
with a certificate of its own; on one machine they take a good part of the CPU that the hub would have. A node that was
connected before sends heartbeats without a pause: the longest that one takes is the longest that the hub's loop stood
still, or longer.

Storms: `first`, of nodes that the hub takes for silent, so that each has its Node written; `resumed` after all connections
were cut, TLS sessions resumed; `full` after the hub was killed and started again, full handshakes.
"""

import asyncio
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgelite import wire
from hub.objects import NODES, Keys
from hub.registry import Registry
from hub.reports import new_node
from hub.store.sqlite import SqliteStore
from security import policy
from security.ca import CertificateAuthority
from security.identity import NodeId
from tests.bench.meter import Meter
from tests.bench.report import emit, percentile
from tests.bench.storm_agents import Agents
from tests.e2e.cluster import Hub, running_cluster
from tests.e2e.hostile import HUB_NAME, Identity, figures, hello, peer
from tests.hub.edge_pki import csr
from tests.observability import scraped
from tests.sim.enrolling import enrol

PROCESSES = 2
ENROLMENTS = 200
JOINING_AT_ONCE = 16
PROBE = "probe"
STORED_AT_ONCE = 500
FRAMES = 200_000


@dataclass(frozen=True)
class Outcome:
    """Of one storm. cpu_s: the hub's, until all were back. stalls_s: what each heartbeat of the steady node took. loop: what
    the hub says of its event loop itself, by name: `longest_s` is of this storm, and `longest_busy_s`, what of a stall it
    worked itself at most; the rest it waited for a core of this machine."""

    back: int
    lost: list[str]
    took_s: float
    tries: int
    reused: int
    cpu_s: float
    stalls_s: list[float]
    loop: dict[str, float]


class Storm:
    """A hub and its fleet. Made by `storm`."""

    def __init__(self, hub: Hub, ca: CertificateAuthority, names: list[str], directory: Path) -> None:
        self.hub, self.count = hub, len(names)
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        request, now = csr(key), time.time()

        def certificate(name: str) -> str:
            return ca.issue_node(request, NodeId(ca.trust_domain, "default", name, name), now)

        self._probe = Identity(ca.root_pem, certificate(PROBE), pem)
        address = ("127.0.0.1", hub.edge_port)
        self.processes = [
            Agents(
                directory / f"agents-{n}",
                address,
                ca.root_pem,
                pem,
                [(x, certificate(x)) for x in names[n::PROCESSES]],
            )
            for n in range(PROCESSES)
        ]

    def all(self, command: str) -> list[dict[str, Any]]:
        """Has all processes do it at the same time."""
        for process in self.processes:
            process.tell(command)
        return [process.answer() for process in self.processes]

    def run(self, command: str) -> Outcome:
        assert self.hub.process is not None
        meter = Meter(self.hub.process.pid)
        loop_figures(self.hub)  # the longest stall counts from the last time that somebody looked
        with heartbeats(self.hub, self._probe) as took:
            before = meter.cpu_s()
            said = self.all(command)
            cpu_s = meter.cpu_s() - before
        return Outcome(
            sum(s["back"] for s in said),
            [name for s in said for name in s["lost"]],
            max(s["took_s"] for s in said),
            sum(s["tries"] for s in said),
            sum(s["reused"] for s in said),
            cpu_s,
            took,
            loop_figures(self.hub),
        )

    def stop(self) -> None:
        for process in self.processes:
            process.stop()


def loop_figures(hub: Hub) -> dict[str, float]:
    """The metrics of the event loop, as `hub.stalls` calls them."""
    return scraped.figures(hub.api("GET", "/metrics"), "cloudhub.loop")


@contextmanager
def heartbeats(hub: Hub, identity: Identity) -> Iterator[list[float]]:
    """One after the other from a node that is connected already; seconds of each."""
    took: list[float] = []
    ended = threading.Event()
    with peer(hub, identity.client()) as one:
        one.sock.settimeout(120)
        one.send(wire.HELLO, hello())
        one.receive(wire.WELCOME)

        def beat() -> None:
            while not ended.wait(0.002):
                began = time.monotonic()
                one.send(wire.PING)
                one.receive(wire.PONG)
                took.append(time.monotonic() - began)

        with ThreadPoolExecutor(1) as pool:
            beating = pool.submit(beat)
            try:
                yield took
            finally:
                ended.set()
                beating.result(150)


async def store_nodes(data_dir: Path, names: list[str]) -> None:
    """Nodes as joins would have made them, past the API."""
    store = await SqliteStore.open(str(data_dir))
    try:
        registry = Registry(store, Keys())
        for at in range(0, len(names), STORED_AT_ONCE):
            await asyncio.gather(
                *(
                    registry.create(NODES, new_node(NodeId("cloudhub.local", "default", name, name)))
                    for name in names[at : at + STORED_AT_ONCE]
                )
            )
    finally:
        await store.close()


@contextmanager
def storm(count: int) -> Iterator[Storm]:
    """A hub that knows `count` nodes, none of which is connected yet."""
    names = [f"n{i:05d}" for i in range(count)]
    with tempfile.TemporaryDirectory() as directory, running_cluster(Path(directory)) as cluster:
        # What a first start would make, and then the nodes, before there is a hub.
        data_dir = cluster.root / "hub"
        (data_dir / "ca").mkdir(mode=0o700, parents=True)
        ca = CertificateAuthority.open(str(data_dir / "ca"))
        asyncio.run(store_nodes(data_dir, [*names, PROBE]))
        # No heartbeat is due meanwhile: the steady node alone sends some.
        hub = cluster.hub(heartbeat="10m")
        assert hub.data_dir == data_dir
        made = Storm(hub, ca, names, Path(directory))
        try:
            yield made
        finally:
            made.stop()


def enrolments(hub: Hub, count: int) -> tuple[float, float]:
    """(enrolments per second, CPU seconds of the hub for each), of machines that join with one pool token."""
    assert hub.process is not None
    token, root = hub.token("--pool", "storm", "--count", str(count)), CertificateAuthority.open(
        str(hub.data_dir / "ca")
    ).root_pem  # fmt: skip
    meter = Meter(hub.process.pid)
    began, before = time.monotonic(), meter.cpu_s()
    with ThreadPoolExecutor(JOINING_AT_ONCE) as pool:
        jobs = [pool.submit(enrol, [hub.edge], token, root, HUB_NAME, f"joined-{n}") for n in range(count)]
        for job in jobs:
            job.result()
    return count / (time.monotonic() - began), (meter.cpu_s() - before) / count


def per_frame_us(admit: Callable[[], object]) -> float:
    """Best of five: what one look at a frame costs, the loop around it taken off."""

    def timed(call: Callable[[], object]) -> float:
        began = time.process_time()
        for _ in range(FRAMES):
            call()
        return (time.process_time() - began) * 1e6 / FRAMES

    return min(timed(admit) for _ in range(5)) - min(timed(lambda: None) for _ in range(5))


def run(count: int) -> None:
    with storm(count) as fleet:
        report("first", count, fleet.run("storm full"))
        report("resumed", count, fleet.run("storm resumed"))
        fleet.hub.kill9()
        fleet.hub.start()
        report("full", count, fleet.run("storm full"))
        told = figures(fleet.hub)
        emit("storm", "closed_handshake_crowded", told.get("closed.handshake-crowded", 0.0), "")
        fleet.all("cut")
        rate, cpu_s = enrolments(fleet.hub, ENROLMENTS)
        emit("storm", "enrolments_per_s", rate, "1/s")
        emit("storm", "cpu_per_enrolment", cpu_s * 1e3, "ms")
    cost = per_frame_us(lambda: policy.judge(policy.NODE, wire.REPORT, policy.OWN, 500))
    emit("storm", "admission_per_frame", cost, "us", target=2)


def report(name: str, count: int, one: Outcome) -> None:
    assert one.back == count and not one.lost, (
        f"{name}: {count - one.back} agents did not come back: {one.lost}"
    )
    emit("storm", f"{name}_{count}_all_back", one.took_s, "s")
    emit("storm", f"{name}_load_of_the_machine", os.getloadavg()[0], "")
    emit("storm", f"{name}_tries_per_agent", one.tries / count, "")
    emit("storm", f"{name}_resumed", one.reused, "")
    emit("storm", f"{name}_cpu_per_handshake", one.cpu_s * 1e6 / count, "us")
    emit("storm", f"{name}_longest_heartbeat", max(one.stalls_s) * 1e3, "ms", target=100)
    emit("storm", f"{name}_longest_stall", one.loop["longest_s"] * 1e3, "ms", target=100)
    emit("storm", f"{name}_longest_stall_cpu", one.loop["longest_busy_s"] * 1e3, "ms", target=100)
    emit("storm", f"{name}_heartbeat_p99", percentile(one.stalls_s, 0.99) * 1e3, "ms")
    emit("storm", f"{name}_heartbeat_median", statistics.median(one.stalls_s) * 1e3, "ms")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    run(count)


if __name__ == "__main__":
    main()
