"""`make bench-100k`: a whole fleet on one machine: hub replicas, etcd, NATS and the simulator of its nodes together.

    make bench-100k                                           # 100,000 nodes, 1,000,000 pods, 100 changes/s for 10 minutes
    make bench-100k NODES=10000 PODS=100000 SECONDS=60

Steps: certificates, a backup of the fleet, `cloudhub restore` of it into etcd, replicas, connections, changes of pods. The
first three are kept in the directory of the run, so that it goes on there when it is started again; the simulated nodes
come with empty disks, so that every document is sent to them each time. Ctrl-C ends it; the report says how far it came.

The fleet as it lies in the store was connected a moment ago. A time is from when a change was due until its node has
acknowledged it. The report is one JSON document; the exit code is 1 where something that was wanted was not reached.
"""

import argparse
import asyncio
import json
import math
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hub import backup
from hub.backup import Authority, Header
from hub.kubernetes.client import KubeClient, Limits
from hub.kubernetes.config import KubeConfig
from hub.simulate.crew import Brief, Crew, SimulationError
from hub.simulate.enrolling import issue_all
from hub.simulate.figures import Histogram
from hub.simulate.identities import IdentityCache
from hub.simulate.report import machine
from hub.simulate.settings import Settings, loopback_sources
from security.ca import CertificateAuthority
from tests.e2e.cluster import CACHE, ROOT
from tests.scale import changes
from tests.scale.made import MadeFleet, node_bytes, node_name, pod_bytes, pod_name
from tests.scale.servers import NODES_PER_REPLICA, Servers
from tests.scale.steps import Steps, counting, say
from tests.scale.watch import Ended, Watch

NODES, PODS, SECONDS = 100_000, 1_000_000, 600.0
HEARTBEAT_S: Final = 30.0
CHANGES_PER_S: Final = 100.0
P99_S: Final = 5.0
PER_NODE_S: Final = 0.1
"""Patience with each node of a phase, beside a minute: a tenth of what two idle cores connect in a second."""
LATE_S: Final = 60.0
CONNECT_AT_ONCE: Final = 48
"""Of all processes together. More of them only wait for the two cores, and so do heartbeats and leases then."""
LIMITS: Final = Limits(requests_at_once=150, per_second=100_000.0, timeout_s=120.0)
PROGRESS_S: Final = 5.0
NOTES_MAX: Final = 10
LEASE_TTL: Final = "30s"
"""Replicas that share two cores with a fleet of simulators may wait for one longer than the default lets them."""


class OutOfTime(Exception):
    """A phase was not done in the time that it was given."""

    def __init__(self, phase: str, seconds: float) -> None:
        super().__init__(phase)
        self.phase, self.seconds = phase, seconds


class Run:
    """One run. `report` is complete at any moment, also after an exception."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.nodes, self.each = options.nodes, options.pods // options.nodes
        self.fleet = MadeFleet(self.nodes, self.each)
        directory = Path(options.directory or CACHE / "scale" / f"{self.nodes}-{options.pods}")
        if options.fresh:
            shutil.rmtree(directory, ignore_errors=True)
        self.steps = Steps(directory)
        self._crew: Crew | None = None
        self._watch: Watch | None = None
        parts = math.ceil(self.nodes / NODES_PER_REPLICA)
        self.replicas = options.replicas or max(2, parts)
        self.processes = options.processes or max(1, parts)
        self.wanted: list[dict[str, Any]] = []
        self.report: dict[str, Any] = {
            "bench": "scale fleet",
            "machine": {**machine(), "began": datetime.now(UTC).isoformat(timespec="seconds")},
            "settings": {
                "nodes": self.nodes,
                "pods": self.nodes * self.each,
                "seconds": options.seconds,
                "changes per s": options.changes,
                "heartbeat s": options.heartbeat,
                "replicas": self.replicas,
                "simulator processes": self.processes,
                "lease": LEASE_TTL,
                "bytes": {"node": len(node_bytes()), "pod": len(pod_bytes())},
            },
            "ended": "interrupted",
            "wanted": self.wanted,
        }

    def want(self, what: str, reached: float, ok: bool) -> None:
        """One of the things that the run is judged by."""
        self.wanted.append({"what": what, "reached": round(reached, 4), "ok": bool(ok)})
        say(f"{'reached' if ok else 'MISSED '}: {what}: {reached:.4g}")

    async def run(self) -> None:
        """Raises Ended, and what a part of it does."""
        try:
            self._identities()
            await self._backup()
            with (
                Servers(
                    self.steps.directory,
                    self.replicas,
                    heartbeat=f"{self.options.heartbeat:g}s",
                    lease_ttl=LEASE_TTL,
                ) as servers,
                tempfile.TemporaryDirectory(dir=self.steps.directory, prefix="run-") as run,
                Watch(
                    lambda: {**servers.pids(), "simulator": self._crew.pids if self._crew else ()}
                ) as watch,
            ):
                self._watch = watch
                with self.steps.step("load") as figures:
                    if figures is not None:
                        servers.restore(self._file)
                        figures["keys"], figures["etcd MiB"] = self.keys, servers.data_bytes() >> 20
                with watch.phase("start"):
                    await asyncio.to_thread(servers.start, Path(run), 90 + self.nodes * PER_NODE_S)
                await self._measure(servers)
        finally:
            self._tell()

    # -- what is kept -------------------------------------------------------------------------------------------------

    @property
    def keys(self) -> int:
        """Of the fleet in the store."""
        return 2 * self.nodes * (1 + self.each)

    def _identities(self) -> None:
        directory = self.steps.directory / "ca"
        directory.mkdir(mode=0o700, exist_ok=True)
        self._authority = CertificateAuthority.open(str(directory))
        self._cache = IdentityCache(
            str(self.steps.directory), self._authority.trust_domain, self._authority.root_sha256
        )
        self._cache.open()
        missing = self._cache.missing(node_name(n) for n in range(self.nodes))
        if missing:
            # Also where an earlier run had made them: they may have ended since.
            self.steps.forget("certificates")
            with self.steps.step("certificates", issued=len(missing)):
                issue_all(
                    self._cache, self._authority, missing, counting("certificates", len(missing), 5_000)
                )

    async def _backup(self) -> None:
        self._file = self.steps.directory / "fleet.backup"
        with self.steps.step("backup") as figures:
            if figures is None:
                return
            self._file.unlink(missing_ok=True)
            identity, authority = self.fleet.identity, self._authority
            header = Header(
                backup.FORMAT,
                identity.uuid,
                identity.generation,
                identity.format,
                identity.slots,
                self.fleet.label,
                0.0,
                authority.trust_domain,
                Authority(certificate=authority.root_pem, key=authority.key_record()),
            )
            figures["keys"] = await backup.write(
                str(self._file), self.fleet, header, counting("keys", self.keys, 50_000)
            )
            figures["MiB"] = self._file.stat().st_size >> 20

    # -- what is measured ---------------------------------------------------------------------------------------------

    async def _measure(self, servers: Servers) -> None:
        settings = Settings(
            hub=",".join(replica.edge for replica in servers.replicas),
            nodes=self.nodes,
            processes=self.processes,
            sources=loopback_sources("127.0.0.1:1", self.nodes, self.processes),
            pods=self.each,
            at_once=max(1, CONNECT_AT_ONCE // self.processes),
        )
        authority, directory = self._authority, str(self.steps.directory)
        async with AsyncExitStack() as stack:
            apis = [
                await stack.enter_async_context(KubeClient(KubeConfig.from_file(r.kubeconfig), LIMITS))
                for r in servers.replicas
            ]
            self._crew = crew = Crew(settings, directory, authority.trust_domain, authority.root_sha256)
            try:
                with self._watch.phase("simulator starts"):
                    await stack.enter_async_context(crew)
                await self._connect(crew)
                self._watch.phases["reports"]["longest stalls since the start"] = servers.stalls()
                await self._change(crew, apis)
                self._watch.phases["changes"]["longest stalls"] = servers.stalls()
            finally:
                self._crew = None

    async def _until(self, crew: Crew, phase: str, done: Callable[[Brief], bool], seconds: float) -> Brief:
        """Raises Ended when the time is over, naming what was short."""
        at = time.monotonic()

        def shown(brief: Brief) -> None:
            nonlocal at
            self._watch.check()
            if time.monotonic() >= at:
                at = time.monotonic() + PROGRESS_S
                self.report["last seen"] = {
                    "phase": phase,
                    "states": dict(brief.states),
                    "pods": brief.pods,
                    "counts": dict(sorted(brief.counts.items())),
                }
                states = ", ".join(f"{n} {state}" for state, n in brief.states.most_common())
                counts = brief.counts
                say(
                    f"{phase}: {states}; {counts['connects']} connects, {brief.pods} pods, {counts['documents']} documents,"
                    f" {counts['reports stored']} reports stored; {self._watch.memory()}"
                )

        brief = await crew.until(done, seconds, shown)
        if not done(brief):
            raise OutOfTime(phase, seconds)
        return brief

    async def _connect(self, crew: Crew) -> None:
        patience_s = LATE_S + self.nodes * PER_NODE_S
        with self._watch.phase("connect") as found:
            await crew.start()
            brief = await self._until(crew, "connect", lambda b: b.synced == self.nodes, patience_s)
            told = await crew.report()
            found |= {
                "nodes per s": round(self.nodes / (brief.last_synced_at - brief.first_begun_at), 1),
                "counts": dict(sorted(told.tally.counts.items())),
                "notes": told.notes[:NOTES_MAX],
            }
        self.want("nodes connected and synchronised", brief.synced, brief.synced == self.nodes)
        self.want("pods at their nodes", brief.pods, brief.pods == self.nodes * self.each)
        with self._watch.phase("reports"):
            # Of the Node and of every pod; what an earlier run has stored already is answered without a write.
            reports = self.nodes * (1 + self.each)
            brief = await self._until(
                crew, "reports", lambda b: b.counts["reports stored"] >= reports, patience_s + reports / 100
            )
        self.want("reports stored", brief.counts["reports stored"], True)

    async def _change(self, crew: Crew, apis: list[KubeClient]) -> None:
        options, rng = self.options, random.Random(1)
        pods = [pod_name(n, k) for n in range(self.nodes) for k in range(self.each)]
        await crew.reset()
        with self._watch.phase("changes") as found:
            began = time.monotonic()
            done = await changes.change(apis, pods, options.changes, options.seconds, rng)
            took_s = time.monotonic() - began
            # One that was lost is never delivered: then the patience is what passes.
            brief = await crew.until(lambda b: b.delivered["pod"] >= done.accepted, LATE_S)
            left_s = options.seconds - (time.monotonic() - began)
            await asyncio.sleep(max(0.0, left_s))
            told = await crew.report()
            delivered = told.tally.times.get("pod delivered", Histogram())
            beats = told.tally.times.get("heartbeat", Histogram())
            found |= {
                "wanted": done.wanted,
                "accepted": done.accepted,
                "refused": done.refused,
                "last one begun late by s": round(done.late_s, 3),
                "per s": round(done.accepted / took_s, 1),
                "API s": done.answers.summary(),
                "delivered s": delivered.summary(),
                "heartbeats s": beats.summary(),
                "counts": dict(sorted(told.tally.counts.items())),
                "notes": told.notes[:NOTES_MAX],
            }
            took_s = time.monotonic() - began
        brief = told.brief
        self.want("changes accepted by the API", done.accepted, done.accepted == done.wanted)
        self.want("of these, acknowledged by the edge", delivered.count, delivered.count == done.accepted)
        p99_s = delivered.quantile(0.99)
        within = delivered.count > 0 and p99_s < options.p99
        self.want(f"p99 from write to acknowledgement, s, under {options.p99:g}", p99_s, within)
        # Each node has sent one every interval; half of one may be on its way.
        due = self.nodes * max(0, math.floor(took_s / options.heartbeat - 0.5))
        self.want(f"heartbeats answered, at least {due}", beats.count, beats.count >= due)
        self.want("nodes synchronised afterwards", brief.synced, brief.synced == self.nodes)

    def _tell(self) -> None:
        """What is known by now, into the report."""
        if self._watch is not None:
            self.report["phases"] = self._watch.phases
            self.report["peak MiB"] = {group: n >> 20 for group, n in self._watch.peak_bytes.items()}
            self.report["least free MiB of the machine"] = self._watch.least_free_bytes >> 20
        self.report["steps"] = self.steps.done
        self.report["steps of an earlier run"] = sorted(self.steps.earlier)

    def short_of(self, phase: str) -> str:
        """The resource that a phase that took too long ran short of."""
        return self._watch.short_of(phase) if self._watch is not None else "time"


def execute(run: Run) -> int:
    """The exit code, once `run.report` says how it ended."""
    try:
        asyncio.run(run.run())
        run.report["ended"] = "completed"
    except KeyboardInterrupt:
        say("interrupted; the next run goes on with what is done")
    except OutOfTime as late:
        run.report["ended"] = f"{late.phase} took more than {late.seconds:.0f} s: {run.short_of(late.phase)}"
    except (Ended, TimeoutError) as end:
        run.report["ended"] = str(end)
    except (SimulationError, RuntimeError) as failure:
        run.report["ended"] = f"failed: {failure}"
    say(f"ended: {run.report['ended']}")
    return int(run.report["ended"] != "completed" or not all(one["ok"] for one in run.wanted))


def options_of(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.scale.fleet", description=__doc__)
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--pods", type=int, default=PODS, help="of all nodes together")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long pods are changed")
    parser.add_argument("--changes", type=float, default=CHANGES_PER_S, help="per second")
    parser.add_argument("--p99", type=float, default=P99_S, help="seconds that 99%% of changes may take")
    parser.add_argument("--heartbeat", type=float, default=HEARTBEAT_S, help="seconds")
    parser.add_argument(
        "--replicas", type=int, default=0, help="(default: one for 17,000 nodes, two at least)"
    )
    parser.add_argument(
        "--processes", type=int, default=0, help="of the simulator (default: one for 17,000 nodes)"
    )
    parser.add_argument("--directory", help="where what is done is kept (default: in the cache of the user)")
    parser.add_argument("--report", help="(default: reports/scale-fleet-NODES.json)")
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    options = parser.parse_args(argv)
    if not 0 < options.nodes <= options.pods <= 250 * options.nodes or options.pods % options.nodes:
        parser.error(f"--pods {options.pods}: 1 to 250 for each of {options.nodes} nodes, as many for each")
    return options


def main(argv: list[str]) -> int:
    options = options_of(argv)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    run = Run(options)
    code = execute(run)
    path = Path(options.report or ROOT / "reports" / f"scale-fleet-{options.nodes}.json")
    path.write_text(json.dumps(run.report, indent=1) + "\n")
    say(f"the report is {path}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
