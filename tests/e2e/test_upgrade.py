"""A rolling upgrade to the next release: replicas of both serve the fleet together."""

import http.client
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub import documents
from hub.api.logs import MOVING_S
from shards import ring
from shards.ownership import ROLES, MemberRecord
from tests.e2e import next_release, other_rendering
from tests.e2e.cluster import sleeper, wait_for
from tests.e2e.ha import HaCluster, Replica
from tests.e2e.ha_api import AnyReplica
from tests.e2e.ha_load import PODS, HaLoad
from tests.e2e.observe import processes, still_run
from tests.e2e.owners import owners
from tests.e2e.test_ha import BOARD, SLOTS, restart, settle

FLEET = 60
PATIENCE_S = 90.0


@pytest.fixture
def ha(tmp_path: Path) -> Iterator[HaCluster]:
    # Three heartbeats of the usual 2 s are less than a busy machine may take for one turn of everybody.
    with HaCluster(tmp_path, etcd=1, nats=1, relayed=(2,), slots=SLOTS, heartbeat="10s") as made:
        yield made


class LogReads:
    """Reads a pod's log again and again, through any replica that a load balancer would send to."""

    def __init__(self, client: AnyReplica, path: str, expected: str) -> None:
        self._client, self._path, self._expected = client, path, expected
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.reads = 0
        self.failures: list[str] = []

    def __enter__(self) -> "LogReads":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        self._client.close()

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            began = time.monotonic()
            try:
                answer = self._client.once("GET", self._path)
            except (OSError, http.client.HTTPException) as failure:
                self.failures.append(repr(failure))
                continue
            self.reads += 1
            # On a busy machine a hand-over may take longer than a replica waits for it; then it has to say so.
            late = answer.code == 503 and time.monotonic() - began >= MOVING_S
            if answer.body != self._expected and not late:
                self.failures.append(f"{answer.code} of port {answer.port}: {answer.body}")


def wanted_owners(version: int) -> dict[str, str]:
    """By unit, as a ring version of all three replicas has it."""
    members = [MemberRecord(f"hub-{n}", "") for n in (1, 2, 3)]
    found = (next_release.assign_2 if version == 2 else ring.assign)(members, SLOTS, ROLES)
    return {f"{slot:04d}": owner for slot, owner in enumerate(found.slots)} | found.roles


def versions(ha: HaCluster) -> dict[str, Any]:
    return {m["name"]: m["version"] for m in ha.get("/cloudhub/status")["members"]}


def test_replicas_of_two_releases_serve_together_while_all_are_replaced_one_by_one(
    ha: HaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = ha.sims(FLEET, statuses_per_s=10)
    agent = ha.agent("real-1")
    ha.send("POST", PODS, sleeper("web", agent.name, script="echo served; exec sleep 100000"))
    wait_for(
        lambda: ha.get(f"{PODS}/web")["status"].get("phase") == "Running", "web runs", PATIENCE_S, ha.logs
    )
    workloads = processes(agent)
    away: set[int] = set()

    def client(rng: random.Random) -> AnyReplica:
        # A load balancer sends nothing new to a replica that is being replaced.
        return AnyReplica(lambda: [p for p in ha.ports if p not in away], ha.context(), rng, PATIENCE_S)

    def owned_as(version: int) -> None:
        want = wanted_owners(version)
        wait_for(
            lambda: owners(ha.etcd.endpoints[0]) == want, f"all is owned as ring version {version} wants it", PATIENCE_S,
            lambda: (ha.get("/cloudhub/status")["members"], ha.logs()),
        )  # fmt: skip

    def upgrade(replica: Replica, version: int) -> None:
        away.add(replica.api_port)
        assert replica.stop() == 0
        replica.module = "tests.e2e.next_release"
        restart(replica)
        away.discard(replica.api_port)
        owned_as(version)
        before = load.writes
        wait_for(lambda: load.writes > before + 20, "the load goes on", PATIENCE_S)

    owned_as(1)
    load = HaLoad(client, fleet.names, seed=7, threads=2, selector=BOARD).start()
    with LogReads(client(random.Random(8)), f"{PODS}/web/log", "served\n") as logs:
        began = time.monotonic()
        upgrade(ha.replicas[0], 1)
        upgrade(ha.replicas[1], 1)
        assert versions(ha) == {"hub-1": "0.2.0", "hub-2": "0.2.0", "hub-3": versions(ha)["hub-3"]}
        assert wanted_owners(1) != wanted_owners(2)
        upgrade(ha.replicas[2], 2)
        assert set(versions(ha).values()) == {"0.2.0"}
        print(f"\nthree replicas were replaced in {time.monotonic() - began:.1f} s, {load.writes} writes")
    record = load.stop()
    assert not record.troubles, f"requests failed: {record.troubles}"
    assert logs.reads > 20 and logs.failures == []
    # What all nodes hold now is of the next release's rendering.
    monkeypatch.setattr(documents, "SPEC_DEFAULTS", {})
    monkeypatch.setattr(documents, "CONTAINER_DEFAULTS", {})
    monkeypatch.setattr(documents, "render_pod", other_rendering.render_pod)
    monkeypatch.setattr(documents, "render_config", other_rendering.render_config)
    assert settle(ha, fleet, record).not_ready == [], "nodes turned NotReady"
    assert still_run(agent, workloads), "a workload was restarted"
    status = ha.get(f"{PODS}/web")["status"]
    assert status["containerStatuses"][0]["restartCount"] == 0
    assert [(r.name, r.errors()) for r in ha.replicas if r.errors()] == []
