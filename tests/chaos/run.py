"""One run of chaos: a fleet, a load, a schedule of faults, and the judgement of what came of it.

`Chaos(...).run()` gives a report as plain data; `violations` in it are sentences, and none is success:

- every agent holds exactly the documents that the store wants there;
- what the API acknowledged is in the store, what agents were told is STORED is in etcd's history;
- the history of (unit, epoch, writer) has no two writers of one epoch and no write of an old epoch;
- no workload was restarted, evicted, or deleted unless the load asked for it.
"""

import contextlib
import dataclasses
import heapq
import json
import os
import platform
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.schedule import Fault, schedule
from tests.e2e.cluster import Agent, sleeper
from tests.e2e.convergence import unlike, unsettled, wanted
from tests.e2e.ha import NODES, ROOT, START_S, HaCluster, python, ready_of
from tests.e2e.ha_load import CONFIGMAPS, PODS, HaLoad, Record, unkept
from tests.e2e.history import Verdict, judge, judge_stored, read
from tests.e2e.observe import documents_of, processes, still_run
from tests.sim.ha_client import SimFleet

BOARD = {"cloudhub.dev/board": "sim"}
SHOWN_MAX = 50
PROGRESS_S = 10.0
CALM_S = 2.0
"""Load after the last fault, and before the first."""


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """`nodes` simulated in `processes`, `agents` real ones; faults for `seconds`. `settle_s`: patience at the end."""

    replicas: int = 3
    nodes: int = 300
    processes: int = 3
    agents: int = 3
    seconds: float = 300.0
    ttl_s: float = 5.0
    slots: int = 1024
    threads: int = 4
    pods_each: int = 60
    statuses_per_s: float = 30.0
    settle_s: float = 180.0
    gap_s: float = 3.0


class Chaos:
    """See the module. `say` gets lines of progress."""

    def __init__(
        self, root: Path, seed: int, size: Size, say: Callable[[str], None] = print, **settings: Any
    ) -> None:
        self.root, self.seed, self.size, self.say = root, seed, size, say
        self.settings = settings
        self.faults = schedule(
            seed, size.seconds, replicas=size.replicas, etcd=3, nats=2, ttl_s=size.ttl_s, gap_s=size.gap_s
        )
        self.violations: list[str] = []
        self.report: dict[str, Any] = {
            "seed": seed,
            "size": dataclasses.asdict(size),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
        }

    def run(self) -> dict[str, Any]:
        for fault in self.faults:
            self.say(str(fault))
        with HaCluster(
            self.root,
            replicas=self.size.replicas,
            relayed=(2,),
            slots=self.size.slots,
            lease_ttl=f"{self.size.ttl_s:g}s",
            **self.settings,
        ) as ha:
            self.report["machine"]["etcd"] = etcd_version(ha)
            try:
                self._run(ha)
            finally:
                self.report["ended by themselves"] = {r.name: r.ended for r in ha.replicas}
                errors = {r.name: r.errors() for r in ha.replicas}
                self.report["errors logged"] = {
                    n: [len(e), *(x[:500] for x in e[:3])] for n, e in errors.items()
                }
                self.violations += [
                    f"{n}: {e[:500]}" for n, some in errors.items() for e in some if "Traceback" in e
                ]
        self.report["violations"] = self.violations[:SHOWN_MAX]
        self.report["violations found"] = len(self.violations)
        return self.report

    def _run(self, ha: HaCluster) -> None:
        size = self.size
        started = time.monotonic()
        fleet = ha.sims(
            size.nodes, processes=size.processes, statuses_per_s=size.statuses_per_s, seed=self.seed
        )
        agents = [ha.agent(f"real-{n}") for n in range(size.agents)]
        steady = _Steady(ha, agents)
        self.report["start s"] = round(time.monotonic() - started, 1)
        self.say(f"{len(fleet.names)} simulated nodes and {len(agents)} real ones are served")
        load = HaLoad(
            ha.client,
            [*fleet.names, *(a.name for a in agents)],
            seed=self.seed,
            threads=size.threads,
            pods_max=size.pods_each,
            selector=BOARD,
        ).start()
        self._calm(load)
        with _Sampler(ha) as sampler:
            self._disturb(ha, load)
        self._calm(load)
        self._judge(ha, fleet, agents, steady, load, sampler)

    def _calm(self, load: HaLoad) -> None:
        """The load acknowledges writes for a while."""
        before, until = load.writes, time.monotonic() + CALM_S
        deadline = until + self.size.settle_s
        while time.monotonic() < until or load.writes < before + 10:
            self._check(load)
            if time.monotonic() > deadline:
                raise AssertionError("no write is acknowledged although nothing is disturbed")
            time.sleep(0.1)

    def _check(self, load: HaLoad) -> None:
        if load.failure is not None:
            raise load.failure

    def _disturb(self, ha: HaCluster, load: HaLoad) -> None:
        """Carries the schedule out; afterwards everything runs again."""
        events: list[tuple[float, int, Fault, bool]] = []
        for n, fault in enumerate(self.faults):
            heapq.heappush(events, (fault.at_s, 2 * n, fault, True))
            heapq.heappush(events, (fault.at_s + fault.for_s, 2 * n + 1, fault, False))
        started = time.monotonic()
        shown = 0.0
        while events:
            at, _, fault, begins = heapq.heappop(events)
            while (now := time.monotonic() - started) < at:
                if now - shown >= PROGRESS_S:
                    shown = now
                    self.say(f"{now:7.1f} s  {load.writes} writes acknowledged")
                if load.failure is not None:
                    break
                _supervise(ha)
                time.sleep(min(0.1, at - now))
            if begins and load.failure is None:
                self.say(f"{time.monotonic() - started:7.1f} s  {fault.kind} {fault.victims}")
                _begin(ha, fault)
            elif not begins:
                _end(ha, fault)
        _heal(ha)
        self.report["faults"] = {
            k: sum(f.kind == k for f in self.faults) for k in {f.kind for f in self.faults}
        }
        self.report["disturbed s"] = round(time.monotonic() - started, 1)
        self._check(load)

    # Judgement

    def _judge(
        self, ha: HaCluster, fleet: SimFleet, agents: list[Agent], steady: "_Steady", load: HaLoad,
        sampler: "_Sampler",
    ) -> None:  # fmt: skip
        record = load.stop()
        fleet.statuses(0)
        self.report["settled s"] = self._settle(ha, fleet)
        pods, configs = ha.get(PODS)["items"], ha.get(CONFIGMAPS)["items"]
        want, dump = wanted(pods, configs), fleet.dump()
        self.violations += unkept(record, pods, configs)
        for name, node in dump["nodes"].items():
            self.violations += unlike(node["docs"], want.get(name, {}), name)
            self.violations += node["anomalies"]
            self.violations += [f"{name} refused {key}: {why}" for key, why in node["refused"].items()]
        self._statuses(dump["nodes"], pods)
        for agent in agents:
            self._agent(agent, want.get(agent.name, {}))
        self.violations += steady.broken(pods)
        verdict = self._history(ha, record.wanted_gone)
        self.violations += judge_stored(verdict, dump["nodes"])
        self._fill(record, dump, verdict, pods, sampler, ha)

    def _settle(self, ha: HaCluster, fleet: SimFleet) -> float:
        """Waits until nothing is on its way; seconds. What is left becomes violations."""
        started = time.monotonic()
        left: list[str] = []
        while time.monotonic() < started + self.size.settle_s:
            pods, configs = ha.get(PODS)["items"], ha.get(CONFIGMAPS)["items"]
            left = unsettled(fleet.brief(), pods, configs)
            left += [
                f"pod {p['metadata']['name']} does not run"
                for p in pods
                if p["status"].get("phase") != "Running" and p["spec"].get("nodeName")
            ]
            left += [
                f"node {n['metadata']['name']} is not ready"
                for n in ha.get(NODES)["items"]
                if ready_of(n) != "True"
            ]
            if not left:
                break
            time.sleep(0.5)
        self.violations += [f"not settled within {self.size.settle_s:g} s: {text}" for text in left]
        return round(time.monotonic() - started, 1)

    def _statuses(self, nodes: dict[str, Any], pods: Iterable[Any]) -> None:
        """What each node last reported is what the store shows."""
        stored = {p["metadata"]["uid"]: p["status"].get("message", "") for p in pods}
        for name, node in nodes.items():
            for key, count in node["running"].items():
                shown = stored.get(key.rsplit("/", 1)[-1])
                if shown != count:
                    self.violations.append(f"{name} reported {count} for {key}, the store shows {shown}")

    def _agent(self, agent: Agent, want: dict[str, str]) -> None:
        from edgelite.desired import version_of

        held = {key: version_of(body) for key, body in documents_of(agent).items()}
        self.violations += unlike(held, want, agent.name)

    def _history(self, ha: HaCluster, deleted: set[str]) -> Verdict:
        verdict = judge(read(ha.etcd.endpoints[0], ROOT), deleted)
        self.violations += verdict.violations
        return verdict

    def _fill(
        self, record: Record, dump: dict[str, Any], verdict: Verdict, pods: list[Any], sampler: "_Sampler",
        ha: HaCluster,
    ) -> None:  # fmt: skip
        nodes = dump["nodes"].values()
        self.report["load"] = {
            "acknowledged": dict(record.acknowledged),
            "conflicts": record.conflicts,
            "ambiguous creates": len(record.ambiguous),
            "tries not answered": dict(record.troubles),
            "slowest write s": round(record.slowest_s, 2),
            "pods at the end": len(pods),
        }
        self.report["fleet"] = {
            "SETs": sum(n["sets"] for n in nodes),
            "DELs": sum(n["dels"] for n in nodes),
            "reports stored": sum(len(n["stored"]) for n in nodes),
            "welcomes": sum(len(n["welcomes"]) for n in nodes),
            "connections ended": dump["ended"],
        }
        self.report["history"] = verdict.summary()
        self.report["rss MB"] = {name: b >> 20 for name, b in ha.rss_bytes().items()}
        self.report["highest rss MB"] = {name: b >> 20 for name, b in sampler.highest.items()}


class _Steady:
    """Pods of real agents and of a Deployment that nothing may touch."""

    def __init__(self, ha: HaCluster, agents: list[Agent]) -> None:
        self._agents = agents
        template = {
            "metadata": {"labels": {"app": "steady", "cloudhub.dev/runtime": "process"}},
            "spec": {"nodeSelector": BOARD, "containers": [{"name": "main", "command": ["sleep", "100000"]}]},
        }
        ha.send(
            "POST",
            "/apis/apps/v1/namespaces/default/deployments",
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "steady"},
                "spec": {
                    "replicas": 5,
                    "selector": {"matchLabels": {"app": "steady"}},
                    "template": template,
                },
            },
        )
        for agent in agents:
            ha.send("POST", PODS, sleeper(f"steady-{agent.name}", agent.name, "exec sleep 100000"))
        self.uids = self._wait(ha, 5 + len(agents))
        self._processes = {agent.name: processes(agent) for agent in agents}

    def _wait(self, ha: HaCluster, count: int) -> dict[str, str]:
        deadline = time.monotonic() + 90
        while True:
            pods = [p for p in ha.get(PODS)["items"] if p["metadata"]["name"].startswith("steady-")]
            if len(pods) == count and all(p["status"].get("phase") == "Running" for p in pods):
                return {p["metadata"]["name"]: p["metadata"]["uid"] for p in pods}
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"steady pods do not run: {[(p['metadata']['name'], p['status']) for p in pods]}"
                )
            time.sleep(0.2)

    def broken(self, pods: Iterable[Any]) -> list[str]:
        now = {
            p["metadata"]["name"]: p["metadata"]["uid"]
            for p in pods
            if p["metadata"]["name"].startswith("steady-")
        }
        found = [f"the steady pods are {now}, they were {self.uids}"] if now != self.uids else []
        return found + [
            f"processes of {agent.name} that nobody stopped have ended"
            for agent in self._agents
            if not still_run(agent, self._processes[agent.name])
        ]


class _Sampler:
    """The highest memory of each replica meanwhile."""

    def __init__(self, ha: HaCluster) -> None:
        self._ha = ha
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.highest: dict[str, int] = {}

    def __enter__(self) -> "_Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            for replica in self._ha.replicas:
                process = replica.process
                with contextlib.suppress(psutil.Error):
                    if process is not None:
                        rss = int(psutil.Process(process.pid).memory_info().rss)
                        self.highest[replica.name] = max(rss, self.highest.get(replica.name, 0))


# -- faults


def _begin(ha: HaCluster, fault: Fault) -> None:
    for victim in fault.victims:
        if fault.group == "replica":
            replica = ha.replicas[victim]
            if fault.what == "kill":
                replica.kill9()
            elif fault.what == "terminate":
                replica.terminate()
            else:
                replica.freeze()
        elif fault.group == "etcd":
            (ha.etcd.kill if "kill" in fault.what else ha.etcd.freeze)(victim)
        else:
            assert ha.nats is not None
            (ha.nats.kill if "kill" in fault.what else ha.nats.freeze)(victim)


def _end(ha: HaCluster, fault: Fault) -> None:
    for victim in fault.victims:
        if fault.group == "replica":
            replica = ha.replicas[victim]
            if "freeze" in fault.what:
                replica.thaw()
            else:
                replica.kill9()  # one that was told to stop and has not: as if the machine's patience had ended
                replica.spawn()
        elif fault.group == "etcd":
            if "kill" in fault.what:
                ha.etcd.restart(victim, wait=False)
            else:
                ha.etcd.thaw(victim)
        else:
            assert ha.nats is not None
            (ha.nats.restart if "kill" in fault.what else ha.nats.thaw)(victim)


def _supervise(ha: HaCluster) -> None:
    for replica in ha.replicas:
        replica.supervise()


def _heal(ha: HaCluster) -> None:
    ha.etcd.wait_healthy()
    deadline = time.monotonic() + START_S
    while not all(replica.serves() for replica in ha.replicas):
        _supervise(ha)
        if time.monotonic() > deadline:
            raise AssertionError(f"not all replicas serve again: {ha.logs()}")
        time.sleep(0.2)


# -- the machine


def machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "memory GB": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": python(),
    }


def etcd_version(ha: HaCluster) -> str:
    from tests.servers.etcd import debian_etcd

    shown = subprocess.run([debian_etcd(), "--version"], capture_output=True, text=True, check=True).stdout
    return shown.splitlines()[0].removeprefix("etcd Version: ")


def as_json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=1, sort_keys=False)


def seed_of(text: str | None) -> int:
    return random.SystemRandom().randrange(1 << 31) if text is None else int(text)
