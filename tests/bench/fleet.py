"""What a hub holds: the figures of a whole fleet, beside KubeEdge's cloudcore on the same kind of machine.

    make bench ARGS=fleet            # 1,000 nodes
    make bench ARGS=fleet-full       # 5,000; `python -m tests.bench.fleet 10000` for another number

The hub is `cloudhub serve` with its SQLite store; the nodes are those of `cloudhub simulate` in two processes, and the API
is asked by this one: hub, simulator, client and store share the machine's cores, as they did for KubeEdge. A time is from
before the API is asked until the node has acknowledged. CPU is the hub's, user and system, all its threads.
"""

import asyncio
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

from hub.kubernetes.client import KubeClient
from hub.kubernetes.config import KubeConfig
from hub.simulate.crew import Crew
from hub.simulate.enrolling import issue_all
from hub.simulate.identities import IdentityCache
from hub.simulate.load import LIMITS, Load
from hub.simulate.settings import Settings, loopback_sources
from security.ca import CertificateAuthority
from tests.bench.meter import Instructions, Meter
from tests.bench.report import emit
from tests.bench.storm import store_nodes
from tests.e2e.cluster import Hub, running_cluster

SHORT, FULL = 1_000, 5_000
PROCESSES = 2
PATIENCE_S = 1_800.0
KEEPALIVES_S = 333.0
"""Of all nodes together: 10,000 nodes at 30 s."""
IDLE_S = 20.0
UPDATES_S, UPDATES_PER_S = 15.0, 20.0
SATURATED_S = 10.0
FANOUTS = 5
SETTLE_MS = 10.0
SHARED = "shared"


class Bench:
    """A hub, its simulated fleet, and whoever asks the API."""

    def __init__(self, hub: Hub, crew: Crew, load: Load, count: int) -> None:
        assert hub.process is not None
        self.hub, self.crew, self.load, self.count = hub, crew, load, count
        self.meter = Meter(hub.process.pid)
        self.instructions = Instructions(hub.process.pid)

    def emit(
        self, metric: str, value: float, unit: str, kubeedge: str = "", target: float | None = None
    ) -> None:
        emit("fleet", f"{metric}_at_{self.count}", value, unit, target, kubeedge)

    def emit_instructions(self, metric: str, count: int) -> None:
        """Of the hub since they were started, for each of `count`: they repeat where times do not."""
        counted = self.instructions.stop()
        if counted is not None:
            self.emit(f"{metric}_hub_instructions", counted / 1e6 / count, "M")

    async def settled(self) -> float:
        """CPU so far of the hub, once it has nothing to do but heartbeats."""
        last = self.meter.cpu_s()
        for _ in range(300):
            await asyncio.sleep(0.25)
            before, last = last, self.meter.cpu_s()
            if (last - before) * 1000 < SETTLE_MS + KEEPALIVES_S * 0.25 * 0.05:
                break
        return last

    async def connect(self, name: str, kubeedge: str, target: float | None) -> None:
        cpu_s, rss_kb = await self.settled(), self.meter.rss_kb()
        await self.crew.start()
        brief = await self.crew.until_synced(PATIENCE_S)
        assert brief.synced == self.count, brief
        took_s = brief.last_synced_at - brief.first_begun_at
        self.emit(f"connect_{name}", self.count / took_s, "1/s", kubeedge, target)
        told = await self.crew.report()
        self.emit(f"connect_{name}_p99", told.tally.times["synced"].quantile(0.99), "s")
        self.emit(f"connect_{name}_tries", told.brief.counts["connects"] / self.count, "")
        self.emit(f"connect_{name}_hub_cpu", (await self.settled() - cpu_s) * 1e3 / self.count, "ms")
        spent_s = told.cpu_s - told.made_cpu_s
        self.emit(f"connect_{name}_simulator_cpu", spent_s * 1e3 / self.count, "ms")
        grown_kb = (self.meter.rss_kb() - rss_kb) / self.count
        self.emit(f"rss_per_node_{name}", grown_kb, "KB", *(("169-187", 30.0) if name == "known" else ()))

    async def keepalives(self) -> None:
        await self.settled()
        await self.crew.reset()
        before, began = self.meter.cpu_s(), time.monotonic()
        await asyncio.sleep(IDLE_S)
        told = await self.crew.report()
        cpu_s, took_s = self.meter.cpu_s() - before, time.monotonic() - began
        beats = told.tally.count("heartbeat")
        self.emit("cpu_per_keepalive_total", cpu_s * 1e6 / beats, "us", "370", 20.0)
        self.emit("keepalives", beats / took_s, "1/s")
        self.emit("keepalive_p99", told.tally.times["heartbeat"].quantile(0.99) * 1e3, "ms")

    async def first_pods(self, names: list[str]) -> None:
        await self.crew.reset()
        cpu_s, rss_kb = await self.settled(), self.meter.rss_kb()
        self.instructions.start()
        began = time.monotonic()
        await self.load.make_pods(names, 1, [SHARED])
        brief = await self.crew.until(lambda b: b.delivered["pod"] >= self.count, PATIENCE_S)
        assert brief.delivered["pod"] == self.count and not self.load.notes, (brief, self.load.notes)
        self.emit("first_pods", self.count / (brief.last_delivered_at - began), "1/s", "87", 3_000.0)
        told = await self.crew.report()
        self.emit("first_pods_p50", told.tally.times["pod delivered"].quantile(0.5), "s")
        self.emit("first_pods_p99", told.tally.times["pod delivered"].quantile(0.99), "s", "46", 2.0)
        self.emit("first_pods_hub_cpu", (await self.settled() - cpu_s) * 1e3 / self.count, "ms")
        self.emit_instructions("first_pods", self.count)
        self.emit("rss_per_delivered_pod", (self.meter.rss_kb() - rss_kb) / self.count, "KB", "16", 2.5)

    async def fan_out(self) -> None:
        """FANOUTS times after the first; medians, and the hub's cost of the last."""
        rates: list[float] = []
        p99s_s: list[float] = []
        for n in range(FANOUTS + 1):
            cpu_s = await self.settled()
            await self.crew.reset()
            if n == FANOUTS:
                self.instructions.start()
            began = time.monotonic()
            await self.load.put_configmap(SHARED, f"{n:04d}" * 250)
            brief = await self.crew.until(lambda b: b.delivered["configmap"] >= self.count, PATIENCE_S)
            assert brief.delivered["configmap"] == self.count, brief
            took_s = brief.last_delivered_at - began
            if n == 0:
                self.emit("configmap_first_last_node", took_s, "s", "42", 1.0)
                continue
            told = await self.crew.report()
            rates.append(self.count / took_s)
            p99s_s.append(told.tally.times["configmap delivered"].quantile(0.99))
        self.emit("configmap_again", median(rates), "1/s", "4300", 20_000.0)
        self.emit("configmap_again_p99", median(p99s_s), "s", "1.0", 0.4)
        self.emit("configmap_again_hub_cpu", (await self.settled() - cpu_s) * 1e6 / self.count, "us")
        self.emit_instructions("configmap_again", self.count)

    async def updates(self) -> None:
        await self.settled()
        await self.crew.reset()
        stop = asyncio.Event()
        changing = asyncio.create_task(self.load.change_pods(UPDATES_PER_S, stop))
        await asyncio.sleep(UPDATES_S)
        stop.set()
        await changing
        told = await self.crew.report()
        delivered = told.tally.times["pod delivered"]
        self.emit("update_p50", delivered.quantile(0.5) * 1e3, "ms", "6", 5.0)
        self.emit("update_p99", delivered.quantile(0.99) * 1e3, "ms", "9", 15.0)

    async def saturated(self) -> None:
        await self.crew.reset()
        cpu_s = await self.settled()
        self.instructions.start()
        began = time.monotonic()
        changed = await self.load.saturate(SATURATED_S)
        # A change that meets another of its pod on the way goes with it, so that there may be fewer deliveries.
        await asyncio.sleep(1.0)
        brief = await self.crew.brief()
        self.emit(
            "updates_saturated",
            brief.delivered["pod"] / (brief.last_delivered_at - began),
            "1/s",
            "200",
            3_000.0,
        )
        self.emit("updates_saturated_hub_cpu", (await self.settled() - cpu_s) * 1e3 / changed, "ms")
        self.emit_instructions("updates_saturated", changed)


def heartbeat_of(count: int) -> float:
    """Of so many nodes, seconds."""
    return max(1.0, count / KEEPALIVES_S)


Fleet = tuple[Settings, str, str, bytes]
"""What a `Crew` is made of."""


@asynccontextmanager
async def prepared(count: int, heartbeat_s: float | None = None) -> AsyncIterator[tuple[Hub, Fleet]]:
    """A hub that knows `count` nodes which were never connected, and their fleet, with keys and certificates. `heartbeat_s`:
    None for one that makes KEEPALIVES_S of them."""
    with tempfile.TemporaryDirectory() as directory, running_cluster(Path(directory)) as cluster:
        # What a first start would make, and then the Nodes, before there is a hub.
        data_dir, cache_dir = cluster.root / "hub", str(cluster.root / "cache")
        (data_dir / "ca").mkdir(mode=0o700, parents=True)
        authority = CertificateAuthority.open(str(data_dir / "ca"))
        cache = IdentityCache(cache_dir, authority.trust_domain, authority.root_sha256)
        cache.open()
        names = [f"n-{n}" for n in range(count)]
        issue_all(cache, authority, names, lambda _: None)
        await store_nodes(data_dir, names)
        hub = cluster.hub(heartbeat=f"{heartbeat_s or heartbeat_of(count):.1f}s")
        settings = Settings(
            hub.edge, count, PROCESSES, prefix="n", sources=loopback_sources(hub.edge, count, PROCESSES)
        )
        yield hub, (settings, cache_dir, authority.trust_domain, authority.root_sha256)


async def run(count: int) -> None:
    async with prepared(count) as (hub, fleet):
        emit("fleet", "rss_idle", hub.rss_bytes() / 2**20, "MB")
        async with KubeClient(KubeConfig.from_file(hub.kubeconfig), LIMITS) as api:
            load = Load(api, "default", "bench", 1)
            async with Crew(*fleet) as crew:
                await Bench(hub, crew, load, count).connect("new", "460-700", 700.0)
            hub.stop()
            hub.start()
            async with Crew(*fleet) as crew:
                await measure(Bench(hub, crew, load, count), fleet[0].names)


async def measure(bench: Bench, names: list[str]) -> None:
    """At a hub that knows its nodes already."""
    await bench.connect("known", "460-700", 700.0)
    await bench.keepalives()
    await bench.first_pods(names)
    await bench.fan_out()
    await bench.updates()
    await bench.saturated()


def main(count: int | None = None) -> None:
    """The short form, or as many nodes as are wanted."""
    wanted = count or (int(sys.argv[1]) if len(sys.argv) > 1 else SHORT)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(run(wanted))


if __name__ == "__main__":
    main()
