"""What it costs that one ConfigMap reaches many nodes, again and again: rate, times, CPU and instructions of both ends.

    make bench ARGS=fanout           # 1,000 nodes
    python -m tests.bench.fanout 5000

The hub is `cloudhub serve` with its SQLite store, the nodes are those of `cloudhub simulate` in two processes; both and the
store share the machine's cores. Every node has a pod that uses the ConfigMap, which is then changed ROUNDS times; figures are
medians of the rounds, divided by nodes. Of a round, `rate` is nodes by the seconds from before the API is asked until the last
node has the change, so it holds the write of the ConfigMap too. Heartbeats are rare, so that what is counted is the fan-out.
"""

import asyncio
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from hub.kubernetes.client import KubeClient
from hub.kubernetes.config import KubeConfig
from hub.simulate.crew import Crew
from hub.simulate.load import LIMITS, Load
from tests.bench.fleet import PATIENCE_S, SETTLE_MS, SHARED, prepared
from tests.bench.meter import Instructions, Meter
from tests.bench.report import emit

SHORT = 1_000
ROUNDS = 9
HEARTBEAT_S = 60.0


class Bench:
    """A hub's process, the crew of its nodes, and whoever asks the API."""

    def __init__(self, pid: int, crew: Crew, load: Load, count: int) -> None:
        self.hub, self.crew, self.load, self.count = Meter(pid), crew, load, count
        self.pids = {"hub": [pid], "simulator": crew.pids}
        self.found: dict[tuple[str, str], list[float]] = defaultdict(list)

    async def settled(self) -> None:
        """Returns once the hub does little more than to answer heartbeats."""
        last = self.hub.cpu_s()
        for _ in range(300):
            await asyncio.sleep(0.25)
            before, last = last, self.hub.cpu_s()
            if (last - before) * 1000 < 2 * SETTLE_MS:
                break

    async def prepare(self, names: Sequence[str]) -> None:
        await self.load.put_configmap(SHARED, "first")
        await self.crew.start()
        brief = await self.crew.until_synced(PATIENCE_S)
        assert brief.synced == self.count, brief
        await self.load.make_pods(names, 1, [SHARED])
        brief = await self.crew.until(lambda b: b.delivered["pod"] >= self.count, PATIENCE_S)
        assert brief.delivered["pod"] == self.count and not self.load.notes, (brief, self.load.notes)

    async def round(self, n: int) -> None:
        await self.settled()
        await self.crew.reset()
        counters = {who: [Instructions(pid) for pid in pids] for who, pids in self.pids.items()}
        for counter in (c for some in counters.values() for c in some):
            counter.start()
        cpu_s = {who: self._cpu_s(who) for who in self.pids}
        began = time.monotonic()
        await self.load.put_configmap(SHARED, f"{n:04d}" * 250)
        brief = await self.crew.until(lambda b: b.delivered["configmap"] >= self.count, PATIENCE_S)
        assert brief.delivered["configmap"] == self.count, brief
        await asyncio.sleep(0.1)  # for the acknowledgements
        for who in self.pids:
            self._note(f"{who}_cpu", "us", (self._cpu_s(who) - cpu_s[who]) * 1e6 / self.count)
        for who, some in counters.items():
            splits = [split for split in (c.split() for c in some) if split is not None]
            if len(splits) == len(some):
                for kind, total in zip(("user", "kernel"), map(sum, zip(*splits, strict=True)), strict=True):
                    self._note(f"{who}_instructions_{kind}", "", total / self.count)
        told = await self.crew.report()
        times = told.tally.times["configmap delivered"]
        self._note("rate", "1/s", self.count / (brief.last_delivered_at - began))
        self._note("p50", "s", times.quantile(0.5))
        self._note("p99", "s", times.quantile(0.99))

    def _cpu_s(self, who: str) -> float:
        return sum(Meter(pid).cpu_s() for pid in self.pids[who])

    def _note(self, metric: str, unit: str, value: float) -> None:
        self.found[metric, unit].append(value)

    def emit(self) -> None:
        targets = {"rate": 20_000.0, "p99": 0.4}
        for (metric, unit), values in self.found.items():
            emit("fanout", f"{metric}_at_{self.count}", median(values), unit, targets.get(metric))


async def run(count: int) -> None:
    async with (
        prepared(count, HEARTBEAT_S) as (hub, fleet),
        KubeClient(KubeConfig.from_file(hub.kubeconfig), LIMITS) as api,
        Crew(*fleet) as crew,
    ):
        assert hub.process is not None
        bench = Bench(hub.process.pid, crew, Load(api, "default", "bench", 1), count)
        await bench.prepare(fleet[0].names)
        for n in range(ROUNDS):
            await bench.round(n)
        bench.emit()


def main() -> None:
    """1,000 nodes, or as many as are wanted."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else SHORT
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(run(count))


if __name__ == "__main__":
    main()
