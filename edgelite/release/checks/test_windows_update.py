"""`make agent-check`: an agent on Windows that replaces itself: a real hub, and agent, releases and pod on Windows' CPython under wine.

As `tests/e2e/test_selfupdate.py` has it for Linux: one node lives through all of it, its pod running all the while.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgelite.release.checks.test_windows_node import PATIENCE_S, WindowsAgent
from tests.e2e.cluster import ROOT, Cluster, running_cluster, sleeper, wait_for
from tests.e2e.releases import Fleet, good, signing_key
from tests.wine import Wine, wine  # noqa: F401

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(tmp_path) as made:
        yield made


def test_a_windows_node_ends_on_a_working_release_every_time_and_says_which(
    cluster: Cluster,
    tmp_path: Path,
    wine: Wine,  # noqa: F811
) -> None:
    hub = cluster.hub()
    public, key = signing_key(tmp_path / "key")
    agent = cluster.agents["till"] = WindowsAgent("till", cluster.root / "agent-till", wine)
    agent.join(hub.edge, hub.token("--node", "till"), "--update-key", public)
    cluster.wait_ready("till", timeout_s=PATIENCE_S)
    python = "Z:" + wine.python[1].replace("/", "\\")

    def sleeping(name: str) -> Any:
        pod = sleeper(name, "till")
        pod["spec"]["containers"][0]["command"] = [python, "-c", "import time; time.sleep(100000)"]
        return pod

    hub.api("POST", "/api/v1/namespaces/default/pods", sleeping("web"))
    started = cluster.wait_running("web", PATIENCE_S)["status"]["containerStatuses"][0]["state"]
    fleet = Fleet(cluster, "till")
    fleet.gives_up_what_is_broken(key, deadline=5)
    # The installed release has begun anew in one process, which hears of a stop all the same.
    agent.stop()
    agent.run()

    fleet.takes_one_that_is_cut_off(agent, key, PATIENCE_S)
    assert (agent.status()["agent"], agent.status()["update"]["slot"]) == ("0.9.3", "a")
    # What was kept lets itself be stopped, and is what the service runs; from there it goes on to the other slot.
    agent.stop()
    try:
        said = wine.call(
            str(ROOT / "edgelite/__main__.py"), "service", "install", "--data-dir", str(agent.data_dir)
        )
        assert "starts at every boot" in said
        wait_for(
            lambda: (agent.status()["state"], agent.status()["agent"]) == ("connected", "0.9.3"),
            "it is back",
            PATIENCE_S,
        )
        fleet.publish(good("0.9.4"), "0.9.4", key)
        fleet.want("0.9.4", deadline=90)
        fleet.wait("0.9.4", "True", "Updated", "runs from slot b")
        assert wine.call(str(ROOT / "edgelite/__main__.py"), "service", "status") == "running\n"
        # What a slot's release starts is in the jobs of containers, not in the launcher's.
        hub.api("POST", "/api/v1/namespaces/default/pods", sleeping("late"))
        late = cluster.wait_running("late", PATIENCE_S)["status"]["containerStatuses"][0]["state"]
        assert cluster.kubectl("exec", "late", "--", python, "-c", "print('hello')").strip() == "hello"
    finally:
        wine.ask(str(ROOT / "edgelite/__main__.py"), "service", "remove")
    assert json.loads((agent.data_dir / "status.json").read_text())["state"] == "stopped"
    # The pods run all the while, and the next agent, the kept release again, finds them.
    agent.run()
    wait_for(lambda: agent.status()["state"] == "connected", "it is back", PATIENCE_S)
    for name, begun in (("web", started), ("late", late)):
        now = cluster.pod(name)["status"]["containerStatuses"][0]
        assert (now["state"], now["restartCount"]) == (begun, 0), name
    agent.stop("--workloads")
