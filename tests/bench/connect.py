"""What it costs that nodes connect, stay, leave and come back: CPU and instructions, of the hub and of the simulator beside it.

    make bench ARGS=connect                  # 1,000 nodes
    python -m tests.bench.connect 5000
    python -m tests.bench.connect 1000 idle  # keepalives alone

The hub is `cloudhub serve` with its SQLite store, the nodes are those of `cloudhub simulate` in two processes; both and the
store share the machine's cores. In turn:

    new      nodes that the hub knows and that were never Ready: for each something is stored
    full     the hub and the fleet were started again: full handshakes, and reports that say nothing new
    resumed  all links are cut at once, CYCLES times: TLS sessions are resumed; the memory that is left behind
    idle     keepalives, 333 in a second over all nodes; all that the hub does meanwhile is divided by them

CPU and instructions are user and kernel, all threads, until the hub is idle again. On a busy machine the rates and times
tell little and the instructions nearly the same as on a quiet one.
"""

import asyncio
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hub.simulate.crew import Crew
from tests.bench.fleet import IDLE_S, PATIENCE_S, SETTLE_MS, prepared
from tests.bench.meter import Instructions, Meter
from tests.bench.report import emit
from tests.e2e.cluster import Hub

SHORT = 1_000
CYCLES = 5
GROWTH_MAX = 5.0
"""Per cent, after CYCLES of them."""
HEARTBEAT_S = 10.0
"""While nodes come and go: nobody is away for so long that his Node has to say so."""


class Bench:
    """A hub and the crew of its nodes."""

    def __init__(self, hub: Hub, crew: Crew, count: int) -> None:
        assert hub.process is not None
        self.crew, self.count = crew, count
        self.meter = Meter(hub.process.pid)

    def emit(self, metric: str, value: float, unit: str, target: float | None = None) -> None:
        emit("connect", f"{metric}_at_{self.count}", value, unit, target)

    async def settled(self) -> None:
        """Returns once the hub does little more than to answer heartbeats."""
        last = self.meter.cpu_s()
        for _ in range(300):
            await asyncio.sleep(0.25)
            before, last = last, self.meter.cpu_s()
            if (last - before) * 1000 < 2 * SETTLE_MS:
                break

    @asynccontextmanager
    async def costs(
        self, name: str, unit: str = "us", target: float | None = None
    ) -> AsyncIterator[dict[str, float]]:
        """Emits what the block cost, divided by the `units` that it says. `target`: of the hub's CPU."""
        said = {"units": float(self.count)}
        pids = {"hub": [self.meter.pid], "simulator": self.crew.pids}
        counting = {who: [Instructions(pid) for pid in those] for who, those in pids.items()}
        before = {who: sum(Meter(pid).cpu_s() for pid in those) for who, those in pids.items()}
        for counters in counting.values():
            for counter in counters:
                counter.start()
        yield said
        for who, those in pids.items():
            spent_s = sum(Meter(pid).cpu_s() for pid in those) - before[who]
            each = spent_s * (1e6 if unit == "us" else 1e3) / said["units"]
            self.emit(f"{name}_{who}_cpu", each, unit, target if who == "hub" else None)
            counted = [counter.stop() for counter in counting[who]]
            known = [n for n in counted if n is not None]
            if len(known) == len(counted):
                self.emit(f"{name}_{who}_instructions", sum(known) / said["units"], "")

    async def connect(self, name: str) -> None:
        await self.settled()
        rss_kb = self.meter.rss_kb()
        async with self.costs(name, "ms"):
            await self.crew.start()
            brief = await self.crew.until_synced(PATIENCE_S)
            await self.settled()
        assert brief.synced == self.count, brief
        took_s = brief.last_synced_at - brief.first_begun_at
        self.emit(f"{name}_rate", self.count / took_s, "1/s", 700.0)
        self.emit(f"{name}_tries", brief.counts["connects"] / self.count, "")
        self.emit(f"{name}_rss_per_node", (self.meter.rss_kb() - rss_kb) / self.count, "KB", 30.0)

    async def idle(self) -> None:
        await self.crew.reset()
        async with self.costs("keepalive", target=20.0) as said:
            began = time.monotonic()
            await asyncio.sleep(IDLE_S)
            told = await self.crew.report()
            said["units"] = float(told.tally.count("heartbeat"))
        self.emit("keepalives", said["units"] / (time.monotonic() - began), "1/s")
        self.emit("keepalive_p99", told.tally.times["heartbeat"].quantile(0.99) * 1e3, "ms")

    async def leave_and_come_back(self) -> None:
        """CYCLES times. The first one is not compared with: what it leaves behind is what resumption needs."""
        before_kb = 0.0
        for cycle in range(CYCLES + 1):
            await self.crew.reset()
            async with self.costs(f"resumed_{cycle}", "ms"):
                await self.crew.cut()
                brief = await self.crew.until_synced(PATIENCE_S)
                await self.settled()
            assert brief.synced == self.count, brief
            self.emit(f"resumed_{cycle}_share", brief.counts["resumed"] / self.count, "")
            await asyncio.sleep(HEARTBEAT_S)  # an agent that was served for as long comes back at once
            rss_kb = self.meter.rss_kb()
            self.emit(f"resumed_{cycle}_rss", rss_kb / 1024, "MB")
            before_kb = before_kb or rss_kb
        self.emit("churn_growth", (rss_kb / before_kb - 1) * 100, "%", GROWTH_MAX)


async def run(count: int) -> None:
    async with prepared(count, HEARTBEAT_S) as (hub, fleet):
        async with Crew(*fleet) as crew:
            await Bench(hub, crew, count).connect("new")
        hub.stop()
        hub.start()
        async with Crew(*fleet) as crew:
            bench = Bench(hub, crew, count)
            await bench.connect("full")
            await asyncio.sleep(HEARTBEAT_S)
            await bench.leave_and_come_back()
    await run_idle(count)


async def run_idle(count: int) -> None:
    """Twice: soon after all have come, and once what followed from that is done."""
    async with prepared(count) as (hub, fleet), Crew(*fleet) as crew:
        bench = Bench(hub, crew, count)
        await bench.connect("idle")
        for _ in range(2):
            await bench.idle()


def main() -> None:
    """1,000 nodes, or as many as are wanted; of these all, or what costs them nothing but keepalives."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else SHORT
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(run_idle(count) if sys.argv[2:] == ["idle"] else run(count))


if __name__ == "__main__":
    main()
