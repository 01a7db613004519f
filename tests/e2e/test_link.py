"""The connection between hub and agent: what a reconnect costs, what a dead link and a copied identity lead to."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgelite import wire
from edgelite.desired import CLAIM, digest_of, version_of
from tests.e2e.cluster import Agent, Cluster, Hub, sleeper, wait_for
from tests.e2e.observe import (
    condition_of,
    connect_now,
    documents_of,
    figures,
    journal_of,
    node_of,
    processes,
    still_run,
    wait_heartbeats,
    when,
)
from tests.e2e.rawpeer import peer_of

FOREVER = "exec sleep 100000"
RECONNECT_BYTES_MAX = 1024


def test_a_reconnect_with_a_matching_digest_moves_under_a_kilobyte_and_no_document(cluster: Cluster) -> None:
    hub = cluster.hub()
    agent = cluster.agent("n1")
    for i in range(3):
        pod = sleeper(f"p{i}", "n1", script=FOREVER)
        pod["metadata"]["annotations"] = {"note": "x" * 2000}
        hub.api("POST", "/api/v1/namespaces/default/pods", pod)
    for i in range(3):
        cluster.wait_running(f"p{i}")
    wait_for(lambda: not [k for k in journal_of(agent) if k.startswith("up/")], "every report is stored")
    before = processes(agent)

    # The real agent, to a hub that has counted nothing before. Its heartbeats are counted too.
    hub.stop()
    hub.start()
    connect_now(agent)
    when(lambda: figures(hub)["nodes"] == 1, "the agent is back", agent, hub)
    wait_heartbeats(hub)
    seen = figures(hub)
    assert seen["handshakes"] == 1
    assert 0 < seen["bytes_in"] + seen["bytes_out"] < RECONNECT_BYTES_MAX, seen
    assert still_run(agent, before)

    # The same HELLO from a peer that shows each message, and the tickets beside them.
    agent.stop()
    held = {key: version_of(body) for key, body in documents_of(agent).items()}
    journal = journal_of(agent)
    incarnation = json.loads(journal["meta/incarnation"])
    with peer_of(agent, hub) as peer:
        peer.hello(
            inc=incarnation["inc"],
            boot=incarnation["boot"] + 1,
            digest=digest_of(held),
            docs=len(held),
            claim=json.loads(journal[CLAIM]),
            rev=int(journal["meta/rev"]),
        )
        assert peer.expect(wire.WELCOME)["sync"] == "match"
        for _ in range(3):
            peer.heartbeat()
        assert peer.app_in + peer.app_out < RECONNECT_BYTES_MAX
        assert peer.tickets == 1
    with peer_of(agent, hub) as other:
        # The counter-check: an agent that holds nothing is sent all of it.
        other.hello(inc=incarnation["inc"], boot=incarnation["boot"] + 2)
        assert other.expect(wire.WELCOME)["sync"] == "diff"
        other.send(wire.PAIRS, {"pairs": []})
        for _ in held:
            assert other.get()[0] == wire.SET
        assert other.app_in > 3 * 2000


class Namespace:
    """A network namespace with a cable to this one. Needs root, iproute2 and nftables."""

    def __init__(self) -> None:
        number = os.getpid()
        self.name = f"cloudhub-{number}"
        self._cable = f"ch{number}"
        # Of the range for tests of networks (RFC 2544); one /30 for each process that tests.
        base = (number * 4) % (1 << 17)
        prefix = f"198.{18 + (base >> 16)}.{(base >> 8) & 255}"
        self.here, self.there = f"{prefix}.{(base & 252) + 1}", f"{prefix}.{(base & 252) + 2}"

    def open(self) -> None:
        far = f"{self._cable}p"
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", self._cable, "type", "veth", "peer", "name", far, "netns", self.name)
        _run("ip", "address", "add", f"{self.here}/30", "dev", self._cable)
        _run("ip", "link", "set", self._cable, "up")
        self.inside("ip", "address", "add", f"{self.there}/30", "dev", far)
        self.inside("ip", "link", "set", far, "up")
        self.inside("ip", "link", "set", "lo", "up")

    def inside(self, *command: str) -> None:
        _run(*self.prefix(), *command)

    def prefix(self) -> list[str]:
        """Starts a command there, without new mounts, so that /sys stays as it is."""
        return ["nsenter", f"--net=/run/netns/{self.name}"]

    def cut(self) -> None:
        """From now on every packet is lost, both ways, and nobody is told."""
        self.inside("nft", "add", "table", "inet", "cut")
        for hook in ("input", "output"):
            chain = f"{{ type filter hook {hook} priority 0 ; policy drop ; }}"
            self.inside("nft", "add", "chain", "inet", "cut", hook, chain)

    def mend(self) -> None:
        self.inside("nft", "delete", "table", "inet", "cut")

    def close(self) -> None:
        for command in (["ip", "link", "delete", self._cable], ["ip", "netns", "delete", self.name]):
            subprocess.run(command, capture_output=True, timeout=30, check=False)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    for program in ("ip", "nft", "nsenter"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is missing: `make deps-ci` installs it")
    if os.geteuid() != 0:
        pytest.fail("network namespaces need root: run this test as root, as `make deps-ci` is run")
    made = Namespace()
    try:
        made.open()
        yield made
    finally:
        made.close()


class CabledHub(Hub):
    """A hub whose edge port is at one end of a cable."""

    host = ""

    @property
    def edge(self) -> str:
        return f"{self.host}:{self.edge_port}"


def test_both_ends_notice_within_three_heartbeats_that_packets_get_lost(
    cluster: Cluster, namespace: Namespace, tmp_path: Path
) -> None:
    heartbeat_s, slack_s = 2.0, 10.0
    hub = CabledHub(tmp_path / "hub", heartbeat=f"{heartbeat_s:g}s")
    hub.host = namespace.here
    cluster.hubs.append(hub)
    hub.start()
    agent = Agent("n1", tmp_path / "agent-n1")
    agent.prefix = namespace.prefix()
    cluster.agents["n1"] = agent
    agent.join(hub.edge, hub.token("--node", "n1"))
    cluster.wait_ready("n1")
    hub.api("POST", "/api/v1/namespaces/default/pods", sleeper("web", "n1", script=FOREVER))
    uid = cluster.wait_running("web")["metadata"]["uid"]
    before = processes(agent)
    assert figures(hub)["connections"] == 1

    namespace.cut()
    within_s = 3 * heartbeat_s + slack_s
    when(lambda: figures(hub).get("closed idle") == 1, "the hub drops the connection", agent, hub, within_s)
    when(lambda: "the hub has not answered for" in agent.log(), "the agent gives up", agent, hub, within_s)
    when(
        lambda: cluster.condition("n1", "Ready") == "Unknown",
        "the node becomes Unknown",
        agent,
        hub,
        within_s,
    )
    ready = condition_of(node_of(cluster, "n1"), "Ready")
    assert ready is not None and ready["reason"] == "NodeStatusUnknown"
    (line,) = [json.loads(x) for x in agent.log().splitlines() if "the hub has not answered for" in x]
    assert float(line["message"].split()[-2]) < within_s
    # The taint of an unreachable node is there; the pod stays all the same (I8).
    wait_for(lambda: node_of(cluster, "n1")["spec"].get("taints"), "the node is tainted")
    assert still_run(agent, before)
    pod = cluster.pod("web")
    assert pod["metadata"]["uid"] == uid and "deletionTimestamp" not in pod["metadata"]

    namespace.mend()
    connect_now(agent)
    cluster.wait_ready("n1", timeout_s=60)
    wait_heartbeats(hub)
    wait_for(lambda: not node_of(cluster, "n1")["spec"].get("taints"), "the taint goes")
    pod = cluster.wait_running("web")
    assert pod["metadata"]["uid"] == uid and "deletionTimestamp" not in pod["metadata"]
    assert still_run(agent, before)


def connections_made(*agents: Agent) -> int:
    """How often the agents were served."""
    return sum(
        json.loads(line)["message"] == "connected"
        for agent in agents
        for line in agent.log().splitlines()
        if line.startswith("{")
    )


def test_two_agents_with_one_identity_are_reported_and_do_not_take_turns(
    cluster: Cluster, tmp_path: Path
) -> None:
    hub = cluster.hub(clone_backoff="2s")
    agent = cluster.agent("n1")
    copy = Agent("n1", tmp_path / "copy")
    shutil.copytree(agent.data_dir, copy.data_dir, ignore=shutil.ignore_patterns("agent.pid", "status.json"))
    cluster.agents["the copy"] = copy
    copy.run()
    condition = when(
        lambda: condition_of(node_of(cluster, "n1"), "CloneDetected"), "the clone is reported", agent, hub
    )
    assert condition["status"] == "True" and "join anew" in condition["message"]
    when(lambda: figures(hub)["nodes"] == 0, "neither is served", agent, hub)
    for one in (agent, copy):
        when(lambda one=one: "two agents use this node's identity" in one.log(), "both hear why", one, hub)

    served, refused = connections_made(agent, copy), figures(hub)["closed clone"]
    when(lambda: figures(hub)["closed clone"] >= refused + 6, "both try on", agent, hub, 60)
    assert connections_made(agent, copy) == served
    assert cluster.condition("n1", "CloneDetected") == "True"

    copy.stop()
    del cluster.agents["the copy"]
    cluster.wait_ready("n1", timeout_s=60)
    assert cluster.condition("n1", "CloneDetected") is None
    wait_heartbeats(hub)
    assert connections_made(agent) + connections_made(copy) == served + 1

    # Started again, the copy gets no turn either.
    copy.run()
    cluster.agents["the copy"] = copy
    when(lambda: cluster.condition("n1", "CloneDetected") == "True", "it is known at once", agent, hub)
    assert connections_made(agent) + connections_made(copy) == served + 1
