"""What carries the fleet: etcd with its data kept over runs, NATS, and hub replicas as processes of their own."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Self

from tests.e2e.cluster import ROOT, ApiFailure, Hub, run_cloudhub
from tests.observability import scraped
from tests.scale.steps import say
from tests.servers.etcd import EtcdCluster
from tests.servers.nats import NatsServers

QUOTA_BYTES: Final = 8 << 30
SNAPSHOT_ENTRIES: Final = 5_000
"""Entries of its log that etcd keeps in memory beside as many for slow followers. By default 100,000, which of a restore, 150 KB
each, are all: 2.6 GB for 100,000 nodes."""
NODES_PER_REPLICA: Final = 17_000
"""A process may open 20,000 descriptors on many systems; shares differ by some percent."""


class Replica(Hub):
    """`cloudhub serve` as one of several replicas."""

    def __init__(self, directory: Path, name: str, **settings: Any) -> None:
        super().__init__(directory / name, **settings)
        self.name = name

    def argv(self) -> list[str]:
        return [*super().argv(), "--name", self.name]


class Servers:
    """etcd is there when the constructor returns; then `restore`, once in the life of its data, and `start`."""

    def __init__(self, directory: Path, replicas: int, **settings: Any) -> None:
        self._directory = directory
        self.key_file = directory / "replicas.key"
        if not self.key_file.exists():
            run_cloudhub("key", "create", str(self.key_file))
        self.nats: NatsServers | None = None
        self.replicas: list[Replica] = []
        self._settings, self._count = settings, replicas
        self.etcd = EtcdCluster(
            1,
            directory=str(directory / "etcd"),
            keep=True,
            args=("--quota-backend-bytes", str(QUOTA_BYTES), "--snapshot-count", str(SNAPSHOT_ENTRIES)),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for replica in self.replicas:
            if replica.process is not None:
                replica.kill9()
        if self.nats is not None:
            self.nats.close()
        self.etcd.close()

    def restore(self, backup: Path) -> None:
        """`cloudhub restore`, which goes on where an earlier one was cut off."""
        subprocess.run(
            [
                *(sys.executable, "-m", "hub", "restore", str(backup), "--yes"),
                *("--etcd", *self.etcd.endpoints, "--key-file", str(self.key_file)),
            ],
            cwd=ROOT,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )

    def start(self, run: Path, timeout_s: float) -> None:
        """All replicas, until each serves its share. Their directories are made anew in `run`."""
        self.nats = NatsServers(1)
        settings = {"log_format": "json", "key_file": str(self.key_file), "nats": self.nats.urls}
        settings |= {"etcd": self.etcd.endpoints, **self._settings}
        self.replicas = [Replica(run, f"hub-{n + 1}", **settings) for n in range(self._count)]
        for replica in self.replicas:
            replica.spawn()
        deadline = time.monotonic() + timeout_s
        told = ""
        while (now := self._waiting_for()) != "":
            if time.monotonic() > deadline:
                raise TimeoutError(f"the replicas do not serve after {timeout_s:.0f} s: {now}")
            if now != told:
                say(now)
                told = now
            time.sleep(0.1)

    def pids(self) -> dict[str, list[int]]:
        """By group."""
        found = {"hubs": [r.process.pid for r in self.replicas if r.process is not None]}
        found["etcd"] = [self.etcd.pid(0)]
        found["NATS"] = [self.nats.pid()] if self.nats is not None and self.nats.alive() else []
        return found

    def stalls(self) -> dict[str, dict[str, float]]:
        """Of each replica since it was asked last: seconds that its loop was away at most, and of these what it worked."""
        found = {}
        for replica in self.replicas:
            told = scraped.figures(replica.api("GET", "/metrics"), "cloudhub.loop")
            found[replica.name] = {"s": told["longest_s"], "own s": told["longest_busy_s"]}
        return found

    def data_bytes(self) -> int:
        """Of etcd's file."""
        return (Path(self.etcd.data_directory(0)) / "member/snap/db").stat().st_size

    def _waiting_for(self) -> str:
        """ "" once every replica serves its part."""
        for replica in self.replicas:
            assert replica.process is not None
            if replica.process.poll() is not None:
                raise RuntimeError(
                    f"{replica.name} ended with {replica.process.returncode}: {replica.log()[-3000:]}"
                )
        starting = [r.name for r in self.replicas if not (r.data_dir / "endpoints.json").exists()]
        if starting:
            return f"{', '.join(starting)} start"
        try:
            said = self.replicas[0].api("GET", "/cloudhub/status")
        except (ConnectionError, ApiFailure) as busy:
            return f"{self.replicas[0].name} does not answer: {busy}"
        held = {m["name"]: m["slots"] for m in said["members"]}
        fair = said["store"]["slots"] / self._count
        if said["store"]["unownedSlots"] or min(held.values()) < 0.8 * fair or len(held) < self._count:
            return f"slots are shared: {held}, {said['store']['unownedSlots']} nobody's"
        return ""
