"""`make agent-check`: the one-file executable that is replaced: it stays as it was installed, and runs the archives of later releases.

As `tests/e2e/test_selfupdate.py` has it for the archive: one node lives through all of it, its pod running all the while.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from edgelite.release import executable
from edgelite.release.sources import epoch
from tests.e2e.cluster import Agent, Cluster, running_cluster, sleeper, wait_for
from tests.e2e.releases import Fleet, good, signing_key

PATIENCE_S = 60.0
pytestmark = pytest.mark.timeout(1800)


class OneFile(Agent):
    """An agent that is the one-file executable: a process that unpacks it, and its child, which is the agent."""

    def __init__(self, name: str, data_dir: Path, program: Path) -> None:
        super().__init__(name, data_dir)
        self.program = str(program)

    def _spawn(self, command: str, *options: str) -> "OneFile":
        assert self.process is None
        argv = [self.program, command, "--data-dir", str(self.data_dir), *options]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        return self

    def kill9(self) -> None:
        """Both of it, and a trial that it waits for."""
        process, self.process = self.process, None
        if process is not None:
            family = psutil.Process(process.pid).children(recursive=True)
            for one in family:
                # Workloads are in sessions of their own.
                if os.getsid(one.pid) == process.pid:
                    one.kill()
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(tmp_path) as made:
        yield made


def test_the_one_file_executable_ends_on_a_working_release_every_time(
    cluster: Cluster, tmp_path: Path
) -> None:
    program = tmp_path / executable.name()
    program.write_bytes(executable.build(epoch()))
    program.chmod(0o755)
    hub = cluster.hub()
    public, key = signing_key(tmp_path / "key")
    agent = cluster.agents["n1"] = OneFile("n1", cluster.root / "agent-n1", program)
    agent.join(hub.edge, hub.token("--node", "n1"), "--update-key", public)
    cluster.wait_ready("n1", timeout_s=PATIENCE_S)
    cluster.main.api("POST", "/api/v1/namespaces/default/pods", sleeper("web", "n1"))
    started = cluster.wait_running("web", PATIENCE_S)["status"]["containerStatuses"][0]["state"]
    fleet = Fleet(cluster, "n1")

    def pids() -> list[int]:
        assert agent.process is not None
        family = psutil.Process(agent.process.pid).children()
        return [one.pid for one in family if os.getsid(one.pid) == agent.process.pid]

    first = pids()
    assert len(first) == 1
    fleet.gives_up_what_is_broken(key)
    assert pids() == first, "what was tried and given up has left one process, the same"
    fleet.takes_one_that_is_cut_off(agent, key, PATIENCE_S)
    # From one slot to the other, and after a stop.
    fleet.publish(good("0.9.4"), "0.9.4", key)
    fleet.want("0.9.4", deadline=90)
    fleet.wait("0.9.4", "True", "Updated", "runs from slot b")
    assert len(pids()) == 1
    cluster.main.api("POST", "/api/v1/namespaces/default/pods", sleeper("late", "n1"))
    cluster.wait_running("late", PATIENCE_S)
    agent.stop()
    agent.run()
    wait_for(
        lambda: (agent.status()["state"], agent.status()["agent"]) == ("connected", "0.9.4"),
        "it is back",
        PATIENCE_S,
    )
    print(f"resident: {psutil.Process(pids()[0]).memory_info().rss / 2**20:.1f} MiB")
    now = cluster.pod("web")["status"]["containerStatuses"][0]
    assert (now["state"], now["restartCount"]) == (started, 0), "the pod ran all the while"
    agent.stop("--workloads")
