"""kill -9 of the hub and of agents under load: what the API acknowledged happens exactly once.

Every workload notes its pod's UID and its process id when it starts, so a pod that ran twice or never is seen; what runs
now is read from /proc, so is what nobody wanted.
"""

import collections
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.cluster import Agent, Cluster, Hub, wait_for
from tests.e2e.load import Load
from tests.e2e.starts import Starts

PODS = "/api/v1/namespaces/default/pods"
SETTLE_S = 180.0
SLEEP = "100000"


def fleet(cluster: Cluster, count: int) -> list[Agent]:
    """Nodes e0, e1, ... joined with one pool token."""
    token = cluster.main.token("--pool", "e", "--count", str(count))
    agents = []
    for number in range(count):
        agent = Agent(f"e{number}", cluster.root / f"agent-e{number}")
        cluster.agents[agent.name] = agent
        agents.append(agent.join(cluster.main.edge, token, "--name", agent.name))
    for agent in agents:
        cluster.wait_ready(agent.name, timeout_s=SETTLE_S)
    return agents


def noted(starts: Starts, name: str, node: str | None) -> Any:
    """A pod of one tiny process that notes its UID when it starts."""
    script = f"echo $POD_UID $$$$ >> {starts.path('all')}; exec sleep {SLEEP}"
    env = [{"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"cloudhub.dev/runtime": "process"}},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            **({"nodeName": node} if node else {}),
            "containers": [{"name": "main", "command": ["/bin/sh", "-c", script], "env": env}],
        },
    }


def begun(starts: Starts) -> "collections.Counter[str]":
    """How often each pod has started, by UID."""
    try:
        return collections.Counter(line.split()[0] for line in starts.path("all").read_text().splitlines())
    except FileNotFoundError:
        return collections.Counter()


def alive(starts: Starts) -> "collections.Counter[str]":
    """How many workloads of each pod run now, by UID: read from /proc, so also those that nobody knows of."""
    mark = f"{starts.folder}/".encode()
    found: collections.Counter[str] = collections.Counter()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            cmdline = Path(entry.path, "cmdline").read_bytes()
            if not (cmdline.startswith(b"sleep\0" + SLEEP.encode()) or mark in cmdline):
                continue
            environ = Path(entry.path, "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # ended meanwhile
        uid = next((v[8:].decode() for v in environ if v.startswith(b"POD_UID=")), "")
        if uid:
            found[uid] += 1
    return found


def left_over(agents: list[Agent]) -> list[Path]:
    return [path for agent in agents for path in (agent.data_dir / "pods").glob("*")]


def phases(cluster: Cluster) -> dict[str, str]:
    """UID -> phase of every pod in the API."""
    return {p["metadata"]["uid"]: p["status"].get("phase", "") for p in cluster.pods()}


def revive(hub: Hub) -> None:
    """kill -9, and started again on the same ports and data."""
    hub.kill9()
    hub.start()


def reconnect(agents: list[Agent]) -> None:
    """SIGHUP: nobody waits for the end of a back-off that many restarts of the hub have made long."""
    for agent in agents:
        process = agent.process
        assert process is not None
        status = agent.data_dir / "status.json"  # its pid: by now the agent handles signals
        wait_for(
            lambda: json.loads(status.read_bytes())["pid"] == process.pid,  # noqa: B023
            f"{agent.name} is up",
            SETTLE_S,
            lambda: agent.log()[-2000:],  # noqa: B023
        )
        process.send_signal(signal.SIGHUP)


def check_exactly_once(cluster: Cluster, starts: Starts, acknowledged: dict[str, Any]) -> None:
    """Every acknowledged pod is Running and has started once; nothing else runs, and nothing was lost."""
    uids = {answer["metadata"]["uid"] for answer in acknowledged.values()}
    assert len(uids) == len(acknowledged)

    def all_run() -> bool:
        found = phases(cluster)
        return set(found) == uids and set(found.values()) == {"Running"}

    def missing() -> Any:
        found = phases(cluster)
        stuck = [p for p in cluster.pods() if p["status"].get("phase") != "Running"]
        lost = [n for n, a in acknowledged.items() if a["metadata"]["uid"] not in found]
        return {
            "phases": collections.Counter(found.values()),
            "lost": lost,
            "stuck": stuck[:2],
            "hub": cluster.main.log()[-1500:],
        }

    wait_for(all_run, "every acknowledged pod runs", SETTLE_S, missing)
    once = collections.Counter(uids)
    wait_for(lambda: begun(starts) == once, "each has started once", detail=lambda: begun(starts) - once)
    now = alive(starts)
    ours = collections.Counter({uid: n for uid, n in now.items() if uid in uids or uid in begun(starts)})
    assert ours == once, {"doubled": ours - once, "missing": once - ours}
    counts = [s["restartCount"] for p in cluster.pods() for s in p["status"]["containerStatuses"]]
    assert counts == [0] * len(uids)


def check_nothing_left(cluster: Cluster, starts: Starts, agents: list[Agent], uids: set[str]) -> None:
    """No object, process or directory of the deleted pods, and none was started again for its deletion."""
    wait_for(
        lambda: not phases(cluster),
        "every pod is gone from the API",
        SETTLE_S,
        lambda: (phases(cluster), cluster.main.log()[-1500:]),
    )
    assert not {uid: n for uid, n in alive(starts).items() if uid in uids}
    wait_for(lambda: not left_over(agents), "no directory is left", detail=lambda: left_over(agents)[:5])
    assert begun(starts) == collections.Counter(uids)


class Pace:
    """Prints the seed that a failed run can be repeated with, and how long each part took."""

    def __init__(self) -> None:
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")
        self.rng = random.Random(seed)
        self._began = time.monotonic()

    def lap(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s: {what}", flush=True)


def create_and_delete(
    cluster: Cluster,
    starts: Starts,
    agents: list[Agent],
    count: int,
    times: int,
    disturb: Callable[[], None],
    pace: Pace,
) -> None:
    """`count` pods are created and then deleted while `disturb` happens `times` times each."""
    rng = pace.rng
    pods = {}
    for number in range(count):
        node = rng.choice(agents).name if rng.random() < 0.3 else None
        pods[f"p{number}"] = noted(starts, f"p{number}", node)
    create = Load(cluster.main, ((name, "POST", PODS, pod) for name, pod in pods.items()))
    created = create.run(disturb, times, rng)
    pace.lap(f"{count} pods are acknowledged")
    reconnect(agents)
    check_exactly_once(cluster, starts, created)
    pace.lap("they run, once each")

    names = list(pods)
    rng.shuffle(names)
    delete = Load(cluster.main, ((name, "DELETE", f"{PODS}/{name}", None) for name in names))
    delete.run(disturb, times, rng)
    pace.lap(f"{count} deletions are acknowledged")
    reconnect(agents)
    uids = {answer["metadata"]["uid"] for answer in created.values()}
    check_nothing_left(cluster, starts, agents, uids)
    pace.lap("nothing is left")


def test_500_pods_over_20_agents_run_exactly_once_though_the_hub_is_killed_ten_times(
    cluster: Cluster, starts: Starts
) -> None:
    pace = Pace()
    hub = cluster.hub()
    agents = fleet(cluster, 20)
    pace.lap("20 agents are Ready")
    create_and_delete(cluster, starts, agents, 500, 5, lambda: revive(hub), pace)


def test_pods_run_exactly_once_though_hub_and_agents_are_killed_in_turns(
    cluster: Cluster, starts: Starts
) -> None:
    pace = Pace()
    hub = cluster.hub()
    agents = fleet(cluster, 3)

    def disturb() -> None:
        victim = pace.rng.choice(agents)
        victim.kill9()
        if pace.rng.random() < 0.5:
            revive(hub)
        victim.run()

    create_and_delete(cluster, starts, agents, 60, 8, disturb, pace)
