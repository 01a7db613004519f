"""Invariant I9: no hub that knows less than the edge takes workloads away, and an upgraded one restarts nothing."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from edgelite.desired import CLAIM
from hub.cli import main
from tests.e2e.cluster import Agent, Cluster, Hub, run_cloudhub, sleeper, wait_for
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
)

PARTED = "cloudhub.dev/parted"
CONFIRMED = "cloudhub.dev/confirmed"
FOREVER = "exec sleep 100000"


def apply(hub: Hub, name: str, node: str) -> None:
    hub.api("POST", "/api/v1/namespaces/default/pods", sleeper(name, node, script=FOREVER))


def take_over(cluster: Cluster, data_dir: Path) -> Hub:
    """A hub on other data at the address of the cluster's, which has to be stopped; it is the cluster's from now on."""
    old = cluster.main
    hub = Hub(data_dir, **old.settings)
    hub.api_port, hub.edge_port = old.api_port, old.edge_port
    cluster.hubs.insert(0, hub)
    return hub.start()


def kill_pod(agent: Agent) -> None:
    """kill -9 of what the agent's only pod runs, not of its shim."""
    (main,) = [p for p in agent.workloads() if p.cmdline()[:1] == ["sleep"]]
    main.kill()


def restarts(cluster: Cluster, pod: str) -> int:
    return int(cluster.pod(pod)["status"]["containerStatuses"][0]["restartCount"])


def copy_ca(hub: Hub, data_dir: Path) -> None:
    """What somebody saves who has lost everything else."""
    (data_dir / "ca").mkdir(parents=True, mode=0o700)
    for name in ("ca.crt", "ca.key"):
        shutil.copy2(hub.data_dir / "ca" / name, data_dir / "ca" / name)
    assert (data_dir / "ca/ca.key").stat().st_mode & 0o777 == 0o600


def copy_stopped(hub: Hub, data_dir: Path) -> None:
    """A backup of a hub at rest."""
    hub.stop()
    shutil.copytree(hub.data_dir, data_dir)
    hub.start()


def copy_running(hub: Hub, data_dir: Path) -> None:
    """A backup of the database of a hub that goes on writing."""
    shutil.copytree(hub.data_dir, data_dir, ignore=shutil.ignore_patterns("store.db*", "endpoints.json"))
    source, target = sqlite3.connect(hub.data_dir / "store.db"), sqlite3.connect(data_dir / "store.db")
    with target:
        source.backup(target)
    source.close()
    target.close()


def wait_held(cluster: Cluster, agents: list[Agent]) -> None:
    """Waits until every node says what there is to confirm, then shows that nothing passes while heartbeats do."""
    for agent in agents:
        connect_now(agent)
        claim = json.loads(journal_of(agent)[CLAIM])["id"]

        def parted(name: str = agent.name, claim: str = claim) -> dict[str, str] | None:
            node = node_of(cluster, name)
            if (node["metadata"].get("annotations") or {}).get(PARTED) != claim:
                return None
            return condition_of(node, "HistoryParted")

        condition = wait_for(
            parted,
            f"{agent.name} says that histories have parted and which claim to confirm",
            60,
            lambda agent=agent: (cluster.main.log()[-1500:], agent.log()[-1500:]),
        )
        assert condition["status"] == "True"
        assert "cloudhub confirm" in condition["message"], condition
        node = node_of(cluster, agent.name)
        ready = condition_of(node, "Ready")
        assert ready is not None and ready["status"] == "False", ready
        assert "held" in agent.log()
    wait_heartbeats(cluster.main, len(agents))


def wait_confirmed(cluster: Cluster, agent: Agent) -> None:
    cluster.wait_ready(agent.name, timeout_s=60)
    node = node_of(cluster, agent.name)
    assert condition_of(node, "HistoryParted") is None
    assert condition_of(node, "Unconfirmed") is None
    assert not {PARTED, CONFIRMED} & set(node["metadata"].get("annotations", {}))


def restart_needs_no_confirmation(cluster: Cluster, agents: list[Agent]) -> None:
    """Once and for all: a later start of the same hub is an ordinary one."""
    before = {agent.name: processes(agent) for agent in agents}
    cluster.main.stop()
    cluster.main.start()
    for agent in agents:
        connect_now(agent)
    wait_for(lambda: figures(cluster.main)["nodes"] == len(agents), "all are back", 60)
    wait_heartbeats(cluster.main, len(agents))
    for agent in agents:
        wait_confirmed(cluster, agent)
        assert still_run(agent, before[agent.name])


def test_a_hub_that_has_only_the_authority_left_takes_nothing_away_before_it_is_confirmed(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.hub()
    agents = [cluster.agent(name) for name in ("n1", "n2", "n3")]
    for agent in agents:
        apply(cluster.main, f"old-{agent.name}", agent.name)
    for agent in agents:
        cluster.wait_running(f"old-{agent.name}")
    before = {agent.name: processes(agent) for agent in agents}
    cluster.main.stop()

    copy_ca(cluster.main, tmp_path / "empty")
    take_over(cluster, tmp_path / "empty")
    wait_held(cluster, agents)
    # Bound by hand to nodes on hold: that is no confirmation either.
    for agent in agents:
        apply(cluster.main, f"new-{agent.name}", agent.name)
    wait_heartbeats(cluster.main, len(agents))
    for agent in agents:
        assert still_run(agent, before[agent.name])
        assert [key.split("/")[2] for key in documents_of(agent)] == [f"old-{agent.name}"]

    n1, n2, n3 = agents
    assert "n1 confirmed" in run_cloudhub("confirm", "--node", "n1", "--data-dir", str(cluster.main.data_dir))
    cluster.wait_running("new-n1", 60)
    wait_confirmed(cluster, n1)
    wait_for(lambda: not still_run(n1, before["n1"]), "what the confirmed hub does not want ends")
    for agent in (n2, n3):
        assert still_run(agent, before[agent.name])
        assert cluster.condition(agent.name, "HistoryParted") == "True"

    # The same by kubectl alone.
    claim = node_of(cluster, "n2")["metadata"]["annotations"][PARTED]
    cluster.kubectl("annotate", "node", "n2", f"{CONFIRMED}={claim}")
    cluster.wait_running("new-n2", 60)
    wait_confirmed(cluster, n2)
    assert still_run(n3, before["n3"])
    cluster.main.api("POST", "/api/v1/nodes", {"metadata": {"name": "never-seen"}})
    assert main(["confirm", "--all", "--data-dir", str(cluster.main.data_dir)]) == 0
    out, err = capsys.readouterr()
    assert out == "n3 confirmed\n" and err.startswith("1 node of 4 not connected: ")
    cluster.wait_running("new-n3", 60)
    wait_confirmed(cluster, n3)
    for agent in agents:
        wait_for(
            lambda agent=agent: [key.split("/")[2] for key in documents_of(agent)] == [f"new-{agent.name}"],
            f"{agent.name} holds what the new hub wants and nothing else",
        )
    restart_needs_no_confirmation(cluster, agents)


@pytest.mark.parametrize("copy", [copy_stopped, copy_running])
def test_a_hub_on_an_older_copy_takes_nothing_away_before_it_is_confirmed(
    cluster: Cluster, tmp_path: Path, copy: Callable[[Hub, Path], None]
) -> None:
    cluster.hub()
    agents = [cluster.agent(name) for name in ("n1", "n2")]
    for agent in agents:
        apply(cluster.main, f"first-{agent.name}", agent.name)
    for agent in agents:
        cluster.wait_running(f"first-{agent.name}")
    first = {agent.name: processes(agent) for agent in agents}
    copy(cluster.main, tmp_path / "copy")
    # After the copy, n1 gets another pod; n2 only reports something new.
    n1, n2 = agents
    for agent in agents:
        connect_now(agent)
    apply(cluster.main, "second-n1", "n1")
    kill_pod(n2)
    cluster.wait_running("second-n1", 60)
    wait_for(lambda: restarts(cluster, "first-n2") == 1, "the restart is stored", 60)
    cluster.wait_running("first-n2")
    first["n2"] = processes(n2)
    both = {agent.name: processes(agent) for agent in agents}
    cluster.main.stop()

    # The copy lives on without the agents, until its revision has passed what they have seen.
    copied = Hub(tmp_path / "copy", **cluster.main.settings)
    copied.start()
    seen = max(int(journal_of(agent)["meta/rev"]) for agent in agents)
    wrote = 0
    while wrote <= seen:
        made = copied.api(
            "POST", "/api/v1/namespaces/default/configmaps", {"metadata": {"generateName": "other-"}}
        )
        wrote = int(made["metadata"]["resourceVersion"])
    for agent in agents:
        apply(copied, f"third-{agent.name}", agent.name)
    copied.stop()
    take_over(cluster, tmp_path / "copy")
    wait_held(cluster, agents)
    for agent in agents:
        assert still_run(agent, both[agent.name])

    out = run_cloudhub("confirm", "--all", "--data-dir", str(cluster.main.data_dir))
    assert "n1 confirmed" in out and "n2 confirmed" in out
    for agent in agents:
        cluster.wait_running(f"third-{agent.name}", 60)
        cluster.wait_running(f"first-{agent.name}", 60)
        wait_confirmed(cluster, agent)
        assert still_run(agent, first[agent.name])
        names = sorted(key.split("/")[2] for key in documents_of(agent))
        assert names == [f"first-{agent.name}", f"third-{agent.name}"]
    second = {pid: at for pid, at in both["n1"].items() if pid not in first["n1"]}
    wait_for(lambda: not still_run(n1, second), "the unwanted one ends")
    # All status has been reported anew: also what the original had acknowledged.
    wait_for(lambda: restarts(cluster, "first-n2") == 1, "the copy learns of the restart")
    restart_needs_no_confirmation(cluster, agents)


class OtherRelease(Hub):
    """A hub whose documents have other bytes."""

    def argv(self) -> list[str]:
        argv = super().argv()
        argv[argv.index("hub")] = "tests.e2e.other_rendering"
        return argv


def test_a_hub_upgraded_to_another_rendering_restarts_nothing(cluster: Cluster) -> None:
    hub = cluster.hub()
    agent = cluster.agent("n1")
    hub.api(
        "POST",
        "/api/v1/namespaces/default/configmaps",
        {"metadata": {"name": "settings"}, "data": {"colour": "green"}},
    )
    pod = sleeper("web", "n1", script=FOREVER)
    pod["spec"]["containers"][0]["envFrom"] = [{"configMapRef": {"name": "settings"}}]
    hub.api("POST", "/api/v1/namespaces/default/pods", pod)
    status = cluster.wait_running("web")["status"]
    before, held = processes(agent), documents_of(agent)
    hub.stop()

    upgraded = OtherRelease(hub.data_dir, **hub.settings)
    upgraded.api_port, upgraded.edge_port = hub.api_port, hub.edge_port
    cluster.hubs.insert(0, upgraded)
    upgraded.start()
    connect_now(agent)
    wait_for(
        lambda: all(b'"another release"' in body for body in documents_of(agent).values()),
        "every document has come in its new rendering",
        60,
        lambda: (agent.log()[-2000:], upgraded.log()[-2000:]),
    )
    now = documents_of(agent)
    assert now.keys() == held.keys() and all(now[key] != held[key] for key in held)
    assert b'"dnsPolicy"' in b"".join(now.values())
    wait_heartbeats(upgraded)
    # A new connection whose digests match shows that the hub has every acknowledgement.
    upgraded.stop()
    upgraded.start()
    connect_now(agent)
    wait_for(lambda: figures(upgraded)["nodes"] == 1, "the agent is back", 60)
    wait_heartbeats(upgraded)
    assert figures(upgraded)["bytes_out"] < min(len(body) for body in now.values()) + 512
    assert still_run(agent, before)
    after = cluster.wait_running("web")["status"]
    assert after["containerStatuses"] == status["containerStatuses"]
    assert agent.status()["refused"] == []
