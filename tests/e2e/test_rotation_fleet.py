"""A new root for a whole fleet while the hub is killed twice in the middle: no node is lost.

CI rotates FLEET nodes of a lone hub, which is away altogether when it is killed; `make soak` (part `rotation`) 1,000 nodes of
two replicas on etcd, of which the one that drives the rotation is killed. CLOUDHUB_TEST_ROTATION_NODES sets the number.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hub import kubeconfig
from hub.certpaths import CA_PATH, ROTATION_PATH
from tests.e2e.cluster import ApiFailure, Hub, wait_for
from tests.e2e.ha import NODES, HaCluster
from tests.sim.ha_client import SimFleet

SHORT = 60
FLEET = int(os.environ.get("CLOUDHUB_TEST_ROTATION_NODES", str(SHORT)))
WAVES_S = 4.0
"""How long the renewals of all nodes take, at the rate that the replicas are given."""
PATIENCE_S = 60.0 + 0.6 * FLEET
"""A deadline alone: on a machine that others use as well the hubs may have a tenth of a core."""
HARMLESS = {
    "lost",
    "connect",
    "timeout",
    "redirect",
    "shutdown",
    "resync",
    "overload",
    "superseded",
    "tls",
    "silent",
}
"""Why connections of nodes may end when hubs are killed. None of these is a refusal."""


class World:
    """Hubs and a fleet that is connected to them."""

    def __init__(self, hubs: list[Hub], fleet: SimFleet) -> None:
        self.hubs, self.fleet = hubs, fleet

    def ask(self, path: str, method: str = "GET") -> Any:
        """What a hub that runs answers, by the kubeconfig that it has written last; None where none answers now."""
        for hub in self.hubs:
            if hub.process is not None and hub.process.poll() is None:
                with contextlib.suppress(
                    ConnectionError, OSError, ValueError, ApiFailure, kubeconfig.KubeconfigError
                ):
                    return hub.api(method, path)
        return None

    def driver(self) -> Hub:
        """The hub that owns the role `controllers`, and with it the rotation."""
        if len(self.hubs) == 1:
            return self.hubs[0]

        def found() -> Hub | None:
            roles = (self.ask("/cloudhub/status") or {"roles": []})["roles"]
            name = next((role["owner"] for role in roles if role["role"] == "controllers"), None)
            return next((hub for hub in self.hubs if hub.data_dir.name == name), None)

        hub = wait_for(found, "a hub owns the role", PATIENCE_S)
        assert hub is not None
        return hub

    def renewed(self, old: set[str]) -> int:
        return sum(node["issuer"] not in old for node in self.fleet.brief().values())

    def settled(self, bundle: str) -> bool:
        return all(n["state"] == "connected" and n["trust"] == bundle for n in self.fleet.brief().values())

    def shown(self) -> Any:
        """For a failed test."""
        away = [
            (n, s["state"], s["detail"]) for n, s in self.fleet.brief().items() if s["state"] != "connected"
        ]
        return away[:5], self.ask(CA_PATH), [hub.log()[-2500:] for hub in self.hubs]


@contextlib.contextmanager
def world(root: Path, rate: float) -> Iterator[World]:
    if FLEET > SHORT:
        with HaCluster(
            root,
            replicas=2,
            etcd=1,
            nats=0,
            heartbeat="10s",
            slots=64,
            renewals_per_s=rate / 2,
            lease_ttl="10s",
        ) as ha:
            fleet = ha.sims(FLEET, wait=False, statuses_per_s=5.0)
            ha.wait_connected(fleet, PATIENCE_S)
            yield World(list(ha.replicas), fleet)
        return
    hub = Hub(root / "hub", heartbeat="10s", slots=64, renewals_per_s=rate).start()
    try:
        token = hub.token("--pool", "sim", "--count", str(FLEET))
        root_pem = kubeconfig.read(hub.kubeconfig).root_pem
        fleet = SimFleet(
            root, count=FLEET, edges=[hub.edge], token=token, root_pem=root_pem, statuses_per_s=5.0
        )
        try:
            fleet.wait_joined()
            wait_for(lambda: fleet.connected() == FLEET, "the fleet is connected", PATIENCE_S, hub.log)
            yield World([hub], fleet)
        finally:
            fleet.close()
    finally:
        hub.kill9()


def test_no_node_is_lost_when_the_root_is_rotated_and_the_hub_is_killed_twice(tmp_path: Path) -> None:
    rate = max(1.0, FLEET / WAVES_S)
    with world(tmp_path, rate) as w:
        fleet = w.fleet
        uids = {node["metadata"]["name"]: node["metadata"]["uid"] for node in w.ask(NODES)["items"]}
        old = {node["issuer"] for node in fleet.brief().values()}
        assert len(old) == 1
        began = time.monotonic()
        assert w.ask(ROTATION_PATH, "POST")["rotating"]

        killed: list[int] = []
        for nodes in (0, FLEET // 4):  # in the first phase, and in the middle of the renewals
            victim = w.driver()
            wait_for(lambda n=nodes: w.renewed(old) >= n, f"{nodes} nodes have renewed", PATIENCE_S, w.shown)  # type: ignore[misc]
            victim.kill9()
            killed.append(w.renewed(old))
            victim.spawn()
            served = victim.data_dir / "endpoints.json"
            wait_for(served.exists, "the killed hub serves again", PATIENCE_S, w.shown)

        def over() -> Any:
            found = w.ask(CA_PATH)
            return None if found is None or found["rotating"] else found

        done = wait_for(over, "the rotation is over", PATIENCE_S, w.shown)
        took_s = time.monotonic() - began
        wait_for(lambda: w.settled(done["bundle"]), "all nodes hold the new root alone", PATIENCE_S, w.shown)

        brief = fleet.brief()
        issuers = Counter(node["issuer"] for node in brief.values())
        assert len(brief) == FLEET and len(issuers) == 1 and not old & set(issuers), issuers
        dump = fleet.dump()
        refused = {code: n for code, n in dump["ended"].items() if code not in HARMLESS}
        assert not refused, f"nodes were refused: {refused}; {dump['notes']}"
        assert [a for node in dump["nodes"].values() for a in node["anomalies"]] == []
        assert {node["metadata"]["name"]: node["metadata"]["uid"] for node in w.ask(NODES)["items"]} == uids
        assert done["nodes"]["renewed"] == FLEET and [r["phase"] for r in done["roots"]] == ["active"]
        for hub in w.hubs:
            wrong = [
                line for line in hub.log().splitlines() if "Traceback" in line or '"level": "error"' in line
            ]
            assert not wrong, wrong[:3]
        print(
            f"\nrotation of {FLEET} nodes: {took_s:.1f} s, {rate:g} renewals/s at most; killed when {killed} had renewed;"
            f" connections ended {dump['ended']}"
        )
