"""An agent that replaces itself, end to end: real hub, agent, archives and processes; the releases differ in what is wrong with them.

One node lives through all of it, its pod running all the while. The same decisions with power cut at every step: `test_updates`.
"""

import subprocess
import sys
from pathlib import Path

import psutil

from hub.releases import CHUNK_BYTES
from tests.e2e.cluster import ROOT, Agent, Cluster, run_cloudhub, sleeper, wait_for
from tests.e2e.releases import CRASHES, Fleet, broken, good, signing_key


def trials(agent: Agent) -> list[psutil.Process]:
    """The trial that the agent's first process waits for."""
    assert agent.process is not None
    slots = str(agent.data_dir / "update")
    children = psutil.Process(agent.process.pid).children()
    return [c for c in children if any(slots in word or word == "--resident" for word in c.cmdline())]


def lose_power(agent: Agent) -> None:
    """The agent ends at once, and the trial that it waits for; workloads, which this is not about, go on."""
    trial = trials(agent)
    agent.kill9()
    for child in trial:
        child.kill()
    assert not psutil.wait_procs(trial, 30)[1]


def test_a_node_ends_on_a_working_release_every_time_and_says_which(cluster: Cluster, tmp_path: Path) -> None:
    hub = cluster.hub()
    public, key = signing_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    agent = cluster.agent("n1", "--update-key", public)
    cluster.main.api("POST", "/api/v1/namespaces/default/pods", sleeper("web", "n1"))
    cluster.wait_running("web")
    started = cluster.pod("web")["status"]["containerStatuses"][0]["state"]
    fleet = Fleet(cluster, "n1")

    fleet.gives_up_what_is_broken(key)

    # A good one, by the commands, cut off in the middle of fetching, and again while it is on trial.
    (tmp_path / "edgelite.pyz").write_bytes(good("0.9.3"))
    where = ("--data-dir", str(hub.data_dir))
    made = ("publish", str(tmp_path / "edgelite.pyz"), "--key", str(tmp_path / "key"), "--version", "0.9.3")
    assert run_cloudhub("release", *made, *where).startswith("default/edgelite-0.9.3: release 0.9.3")
    rest = fleet.take("edgelite-0.9.3-1")
    words = ("release", "roll", "edgelite-0.9.3", "--hold", "1", "--deadline", "90", *where)
    roll = subprocess.Popen(
        [sys.executable, "-m", "hub", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        fetched = agent.data_dir / "update/fetched"
        wait_for(lambda: fetched.stat().st_size == CHUNK_BYTES, "the first part of it has come", 60)
        lose_power(agent)
        fleet.make(rest)
        agent.run()
        wait_for(lambda: trials(agent), "it is on trial", 60)
        lose_power(agent)
        agent.run()
        said = roll.communicate(timeout=90)[0].splitlines()
    finally:
        roll.kill()
        roll.wait()
    assert (said[-1], roll.returncode) == ("1 nodes run release 0.9.3", 0)
    fleet.wait("0.9.3", "True", "Updated", "runs from slot a")
    # An older one, although it was signed.
    fleet.publish(broken(CRASHES), "0.8.0", key)
    fleet.want("0.8.0")
    fleet.wait("0.9.3", "False", "Downgrade", "0.8.0")

    shown = agent.status()
    assert (shown["agent"], shown["update"]["slot"]) == ("0.9.3", "a")
    assert shown["update"]["last"]["reason"] == "Downgrade"
    now = cluster.pod("web")["status"]["containerStatuses"][0]
    assert (now["state"], now["restartCount"]) == (started, 0), "pods ran all the while"
    # What was kept runs after a restart too, and lets itself be stopped.
    agent.stop()
    agent.run()
    wait_for(
        lambda: (agent.status()["state"], agent.status()["agent"]) == ("connected", "0.9.3"), "it is back"
    )
