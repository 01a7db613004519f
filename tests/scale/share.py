"""`make bench-1m`: what a replica needs for its share of a million nodes, of which no machine has the sockets.

    make bench-1m                                 # 1,000,000 nodes, 10,000,000 pods, 8 replicas, one after the other
    make bench-1m NODES=80000 PODS=800000 SHARES=1

Everything of the hub is the real thing but the transport: `Gateway` with its sessions, `Share` and its caches, `Desired`,
`Upstream`, `Registry` on etcd, `Member` with its ring, claims and fences. Nodes come over links in memory (`links`), whose
edge end is timed apart. The other replicas are records in etcd, so that this one owns what it would; one of them is taken
away, and its share comes here. What TLS and sockets cost is in `make bench ARGS=fleet` and `make bench-100k`.

One replica at a time, in a process of its own; what is done is kept, and the report is one JSON document.
"""

import argparse
import asyncio
import json
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hub.simulate.report import machine
from hub.store.etcd import ROOT as CELL
from hub.store.etcd import EtcdStore
from hub.store.marks import Opening
from hub.transfer import fill
from tests.e2e.cluster import CACHE, ROOT, run_cloudhub
from tests.scale.replica import CHANGES_PER_NODE_S, HEARTBEAT_S, Size
from tests.scale.servers import QUOTA_BYTES
from tests.scale.steps import Steps, counting, say
from tests.servers.etcd import EtcdCluster, wheel_etcd

NODES, PODS, REPLICAS = 1_000_000, 10_000_000, 8
SECONDS = 30


def filled(size: Size, etcd: EtcdCluster) -> None:
    """The replica's part of the fleet, into an etcd that is empty or half filled."""

    async def go() -> None:
        fleet = size.fleet()
        keys = 2 * (1 + size.pods_each) * sum(map(len, fleet.numbers().values()))
        store = await EtcdStore.open(etcd.endpoints, opening=Opening(fill=fleet.identity))
        try:
            await fill(store, CELL, fleet, store.identity.generation, counting("keys", keys, 50_000))
            await store.finish_filling()
        finally:
            await store.close()

    asyncio.run(go())


def share(size: Size, steps: Steps) -> None:
    """One replica: its etcd is filled, and it is measured in a process of its own. What is done is not done again."""
    name = f"replica {size.index}"
    if name in steps.done:
        say(f"{name}: done before")
        return
    directory = steps.directory / name.replace(" ", "-")
    directory.mkdir(mode=0o700, exist_ok=True)
    (directory / "ca").mkdir(mode=0o700, exist_ok=True)
    if not (directory / "replicas.key").exists():
        run_cloudhub("key", "create", str(directory / "replicas.key"))
    quota = ("--quota-backend-bytes", str(QUOTA_BYTES))
    # Without fsync: what is measured is this process, and CPU of etcd, not the disk.
    with EtcdCluster(1, wheel_etcd(), directory=str(directory / "etcd"), keep=True, args=quota) as etcd:
        with steps.step(f"{name} stored"):
            filled(size, etcd)
        spec = {**asdict(size), "endpoints": etcd.endpoints, "etcd": etcd.pid(0), "directory": str(directory)}
        done = subprocess.run(
            [sys.executable, "-m", "tests.scale.replica", json.dumps(spec)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
        )
        found = json.loads(done.stdout)
        data = Path(etcd.data_directory(0)) / "member/snap/db"
        steps.finish(name, {**found, "etcd bytes": data.stat().st_size})
    shutil.rmtree(directory, ignore_errors=True)


def summary(found: list[dict[str, Any]]) -> dict[str, float]:
    """What a fleet costs, of the replicas that were measured."""

    def total(phase: str, figure: str) -> float:
        return float(sum(one["phases"][phase].get(figure, 0) for one in found))

    nodes, pods = total("load", "nodes"), total("load", "pods")
    links = sum(one["link bytes"] * one["phases"]["load"]["nodes"] for one in found)
    seconds = total("run", "simulated s") / len(found)
    taken = total("take over", "nodes")
    return {
        "nodes": nodes,
        "pods": pods,
        "replicas": len(found),
        "bytes per node, loaded with its pods": total("load", "rss bytes") / nodes,
        "bytes per node, its session, with its pods delivered": (total("connect", "rss bytes") - links)
        / nodes,
        "bytes per node, in all": (total("load", "rss bytes") + total("connect", "rss bytes") - links)
        / nodes,
        "etcd bytes per node, with its pods": sum(one["etcd bytes"] for one in found) / (nodes + taken),
        "load: CPU us per object": total("load", "cpu s") * 1e6 / (nodes + pods),
        "connect, everything sent: CPU us per node": total("connect", "cpu s") * 1e6 / nodes,
        "come back, nothing sent: CPU us per node": total("come back", "cpu s") * 1e6 / nodes,
        "CPU s per simulated s of all": total("run", "cpu s") / seconds,
        "CPU us per node and simulated s": total("run", "cpu s") * 1e6 / seconds / nodes,
        "etcd CPU s per simulated s of all": total("run", "etcd cpu s") / seconds,
        "take over: s until served": total("take over", "until served s") / len(found),
        "take over: CPU ms per node": total("take over", "cpu s") * 1e3 / taken if taken else 0.0,
        "take over: nodes per replica": taken / len(found),
    }


def options_of(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.scale.share", description=__doc__)
    parser.add_argument("--nodes", type=int, default=NODES, help="of the whole fleet")
    parser.add_argument("--pods", type=int, default=PODS, help="of the whole fleet")
    parser.add_argument("--replicas", type=int, default=REPLICAS)
    parser.add_argument("--shares", type=int, default=0, help="measure so many replicas (default: all)")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of the fleet's life")
    parser.add_argument("--directory", help="where what is done is kept (default: in the cache of the user)")
    parser.add_argument("--report", help="(default: reports/scale-share-NODES.json)")
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    options = parser.parse_args(argv)
    if options.nodes < options.replicas or options.replicas < 2 or options.pods % options.nodes:
        parser.error("two replicas at least, a node for each, and as many pods for each node")
    return options


def main(argv: list[str]) -> int:
    options = options_of(argv)
    path = Path(options.report or ROOT / "reports" / f"scale-share-{options.nodes}.json")
    report = execute(options)
    path.write_text(json.dumps(report, indent=1) + "\n")
    say(f"the report is {path}")
    return int(report["ended"] != "completed")


def execute(options: argparse.Namespace) -> dict[str, Any]:
    """The report, also of a run that was cut off."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    each = options.pods // options.nodes
    directory = Path(
        options.directory
        or CACHE / "scale" / f"share-{options.nodes}-{options.pods}-{options.replicas}-{options.seconds}"
    )
    if options.fresh:
        shutil.rmtree(directory, ignore_errors=True)
    steps = Steps(directory)
    report: dict[str, Any] = {
        "bench": "scale share",
        "machine": {**machine(), "began": datetime.now(UTC).isoformat(timespec="seconds")},
        "settings": {
            "nodes": options.nodes,
            "pods": each * options.nodes,
            "replicas": options.replicas,
            "heartbeat s": HEARTBEAT_S,
            "changes per s": options.nodes * CHANGES_PER_NODE_S,
        },
        "ended": "interrupted",
    }
    try:
        for index in range(options.shares or options.replicas):
            share(Size(options.nodes, each, options.replicas, index, options.seconds), steps)
        report["ended"] = "completed"
    except KeyboardInterrupt:
        say("interrupted; the next run goes on with what is done")
    except subprocess.CalledProcessError as failure:
        report["ended"] = f"failed: a replica's process has ended with {failure.returncode}"
    found = [steps.done[f"replica {n}"] for n in range(options.replicas) if f"replica {n}" in steps.done]
    if found:
        report["figures"] = {name: round(value, 6) for name, value in summary(found).items()}
    report["replicas measured"] = found
    return report


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
