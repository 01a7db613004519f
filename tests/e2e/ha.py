"""A hub of several replicas on real etcd members and NATS servers, all of which tests may kill, freeze and start again.

    with HaCluster(tmp_path, replicas=3) as ha:
        fleet = ha.sims(300)
        ha.replicas[0].kill9(); ha.replicas[0].spawn()
        ha.client(rng).send("GET", "/api/v1/nodes")

Replicas sign their transactions (`tests.e2e.traced_hub`), and nobody compacts, so that `tests.e2e.history` can judge
what happened. Ports stay the same over restarts.
"""

import contextlib
import json
import random
import secrets
import signal
import ssl
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from hub import kubeconfig
from security import tls
from tests.e2e.cluster import Agent, ApiFailure, Hub, run_cloudhub, wait_for
from tests.e2e.ha_api import AnyReplica
from tests.e2e.traced_hub import REFUSED
from tests.servers.etcd import EtcdCluster
from tests.servers.nats import NatsServers
from tests.sim.ha_client import SimFleet

ROOT = "/cloudhub/default/"
START_S = 90.0
NODES = "/api/v1/nodes"


class Replica(Hub):
    """One replica. `settings` are keys of its config file."""

    def __init__(self, directory: Path, name: str, etcd: list[str], **settings: Any) -> None:
        super().__init__(directory / name, **settings)
        self.name = name
        self.etcd = etcd
        self.module = "tests.e2e.traced_hub"
        self.environment: dict[str, str] = {}
        self.frozen = False
        self.told_to_stop = False
        self.ended: list[str] = []
        """How the process ended by itself, each time: exit code and last words."""

    def spawn(self) -> "Replica":
        self.told_to_stop = False
        super().spawn()
        return self

    def supervise(self) -> None:
        """Starts the process again if it has ended by itself, as a service manager does."""
        if self.process is not None and not self.told_to_stop and self.process.poll() is not None:
            last = self.log().splitlines()[-1:]
            self.ended.append(f"{self.process.returncode}: {' '.join(last)[:300]}")
            self.kill9()
            self.spawn()

    def argv(self) -> list[str]:
        argv = super().argv()
        argv[argv.index("hub")] = self.module
        given = [f"{key}={value}" for key, value in self.environment.items()]
        return ["env", *given, *argv, "--name", self.name, "--etcd", ",".join(self.etcd)]

    def kill9(self) -> None:
        super().kill9()
        self.frozen = False

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        assert self.process is not None
        self.told_to_stop = True
        self.process.send_signal(signal.SIGTERM)

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.frozen = False

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None and not self.frozen

    def serves(self) -> bool:
        """Does it answer that it is ready?"""
        with contextlib.suppress(ConnectionError, ApiFailure, OSError, ValueError):
            self.api("GET", "/readyz")
            return True
        return False

    def wait_serves(self, timeout_s: float = START_S) -> None:
        def there() -> bool:
            if self.process is not None and self.process.poll() is not None:
                pytest.fail(f"{self.name} ended with {self.process.returncode}: {self.log()[-3000:]}")
            return (self.data_dir / "endpoints.json").exists() and self.serves()

        wait_for(there, f"{self.name} serves", timeout_s, lambda: self.log()[-3000:])

    def refused(self) -> list[Any]:
        """Fenced writes that the store refused because the fence was passed (`tests.e2e.traced_hub`)."""
        path = self.data_dir / REFUSED
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def errors(self) -> list[str]:
        """Lines of level error of its log, and tracebacks, which no fault excuses."""
        return [
            line
            for line in self.log().splitlines()
            if '"level": "error"' in line or '"level":"error"' in line or "Traceback" in line
        ]


class HaCluster:
    """See the module. `relayed`: replicas (by index) that no edge can reach directly, so that their nodes are relayed."""

    def __init__(
        self,
        root: Path,
        *,
        replicas: int = 3,
        etcd: int = 3,
        nats: int = 2,
        relayed: Iterable[int] = (),
        binary: str | None = None,
        **settings: Any,
    ) -> None:
        self.root = root
        self.settings = {"heartbeat": "2s", "history": "24h", "log_format": "json", **settings}
        self.relayed = frozenset(relayed)
        self.key_file = root / "replicas.key"
        self.replicas: list[Replica] = []
        self.agents: dict[str, Agent] = {}
        self.fleets: list[SimFleet] = []
        with contextlib.ExitStack() as started:
            self.etcd = started.enter_context(EtcdCluster(etcd, binary))
            self.nats = started.enter_context(NatsServers(nats)) if nats else None
            self._servers = started.pop_all()
        try:
            run_cloudhub("key", "create", str(self.key_file))
            for _ in range(replicas):
                self.add(wait=False)
            self.wait_serve()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Replicas

    def add(self, *, wait: bool = True, **settings: Any) -> Replica:
        """Starts one replica more."""
        index = len(self.replicas)
        more = {"replica_edge": "none"} if index in self.relayed else {}
        replica = Replica(
            self.root, f"hub-{index + 1}", self.etcd.endpoints,
            nats=self.nats.urls if self.nats else [], key_file=str(self.key_file),
            **{**self.settings, **more, **settings},
        )  # fmt: skip
        self.replicas.append(replica)
        replica.spawn()
        if wait:
            replica.wait_serves()
        return replica

    def wait_serve(self) -> None:
        for replica in self.replicas:
            if replica.process is not None:
                replica.wait_serves()

    @property
    def edges(self) -> list[str]:
        return [replica.edge for replica in self.replicas]

    @property
    def ports(self) -> list[int]:
        """API ports of all replicas, up or down."""
        return [replica.api_port for replica in self.replicas]

    @property
    def credentials(self) -> kubeconfig.Credentials:
        """The administrator's, which hold at every replica; as of now, for a rotation of the root changes them."""
        return kubeconfig.read(self.replicas[0].kubeconfig)

    def context(self) -> ssl.SSLContext:
        held = self.credentials
        return tls.client_context(held.root_pem, held.cert_pem, held.key_pem)

    def client(self, rng: random.Random | None = None) -> AnyReplica:
        """A client of all replicas, for one thread."""
        return AnyReplica(lambda: self.ports, self.context(), rng or random.Random(secrets.randbits(32)))

    def get(self, path: str) -> Any:
        """What the store holds at `path`, through any replica; None when nothing."""
        client = self.client()
        try:
            return client.get(path)
        finally:
            client.close()

    def send(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """A write through any replica; the answer's body. Raises ApiFailure."""
        client = self.client()
        try:
            answer = client.send(method, path, body, **options)
        finally:
            client.close()
        if answer.code >= 400:
            raise ApiFailure(answer.code, answer.body)
        return answer.body

    # Nodes

    def token(self, *arguments: str) -> str:
        live = next(r for r in self.replicas if r.running)
        return live.token(*arguments)

    def sims(self, count: int, *, wait: bool = True, **options: Any) -> SimFleet:
        """Simulated nodes, enrolled and (with `wait`) connected."""
        token = self.token("--pool", "sim", "--count", str(count))
        fleet = SimFleet(
            self.root,
            count=count,
            edges=self.edges,
            token=token,
            root_pem=self.credentials.root_pem,
            **options,
        )
        self.fleets.append(fleet)
        fleet.wait_joined()
        if wait:
            self.wait_connected(fleet)
        return fleet

    def wait_connected(self, fleet: SimFleet, timeout_s: float = 90.0) -> float:
        """Until every node of the fleet is served; seconds that it took."""
        started = time.monotonic()

        def all_are() -> bool:
            return fleet.connected() == len(fleet.names)

        def who() -> Any:
            away = {
                n: (s["state"], s["detail"]) for n, s in fleet.brief().items() if s["state"] != "connected"
            }
            return len(away), dict(list(away.items())[:5]), fleet.log()[-1500:], self.logs()

        wait_for(all_are, f"{len(fleet.names)} simulated nodes are served", timeout_s, who)
        return time.monotonic() - started

    def agent(self, name: str, *options: str) -> Agent:
        """A real agent, joined through any replica."""
        agent = self.agents[name] = Agent(name, self.root / f"agent-{name}")
        agent.join(",".join(self.edges), self.token("--node", name), *options)
        wait_for(
            lambda: self.ready(name) == "True", f"{name} is ready", START_S, lambda: (agent.log()[-1500:], self.logs())
        )  # fmt: skip
        return agent

    def ready(self, node: str) -> str:
        """The status of a Node's Ready condition."""
        return ready_of(self.get(f"{NODES}/{node}"))

    def not_ready(self) -> list[str]:
        """Nodes whose Ready condition is not True."""
        return [n["metadata"]["name"] for n in self.get(NODES)["items"] if ready_of(n) != "True"]

    # What a failed test shows, and the end

    def logs(self, chars: int = 1500) -> dict[str, str]:
        return {replica.name: replica.log()[-chars:] for replica in self.replicas}

    def rss_bytes(self) -> dict[str, int]:
        return {
            r.name: int(psutil.Process(r.process.pid).memory_info().rss)
            for r in self.replicas
            if r.process is not None
        }

    def close(self) -> None:
        """Ends all that was started, frozen or not, workloads too."""
        for fleet in self.fleets:
            fleet.close()
        for agent in self.agents.values():
            agent.kill9()
            agent.kill_workloads()
        for replica in self.replicas:
            if replica.process is not None:
                replica.kill9()
        self._servers.close()


def ready_of(node: Any) -> str:
    held = (node or {}).get("status", {}).get("conditions") or ()
    return next((str(c["status"]) for c in held if c["type"] == "Ready"), "")


def python() -> str:
    return f"{sys.implementation.name} {sys.version.split()[0]}"
