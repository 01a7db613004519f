"""Least privilege, tried: a hub without capabilities and writable code, an agent that is an ordinary user."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import ROOT, Agent, Cluster, Hub, sleeper, wait_for
from tests.edgelite.runtimes.harness import NOBODY, python_for_all

POWERLESS = ["setpriv", "--no-new-privs", "--bounding-set", "-all", "--inh-caps", "-all"]
REFUSE_WRITABLE_CODE = "import ctypes,os,sys; assert ctypes.CDLL(None).prctl(65,1,0,0,0) == 0; os.execv(sys.argv[1],sys.argv[1:])"
"""PR_SET_MDWE, what the unit's MemoryDenyWriteExecute does: no page is ever both written and run."""


class PowerlessHub(Hub):
    """A hub as its unit and its chart run it: no capability, no way to one, no writable code."""

    def argv(self) -> list[str]:
        return [*POWERLESS, sys.executable, "-c", REFUSE_WRITABLE_CODE, *super().argv()]


class OrdinaryAgent(Agent):
    """An agent that is an ordinary user without any capability, from code that it cannot change."""

    def _spawn(self, command: str, *options: str) -> "OrdinaryAgent":
        argv = [*POWERLESS, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", python_for_all()]
        argv += ["-m", "edgelite", command, "--data-dir", str(self.data_dir), *options]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                argv,
                cwd=self.data_dir.parent,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that an ordinary user may enter, with the agent's code; pytest's own are root's."""
    with tempfile.TemporaryDirectory(prefix="edgelite-", dir="/tmp") as directory:
        made = Path(directory)
        made.chmod(0o755)
        shutil.copytree(ROOT / "edgelite", made / "edgelite", ignore=shutil.ignore_patterns("__pycache__"))
        (made / "node").mkdir(mode=0o700)
        shutil.chown(made / "node", NOBODY, NOBODY)
        yield made


def status_of(pid: int, field: str) -> str:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(field + ":"))


def test_hub_and_agent_work_without_a_single_privilege(cluster: Cluster, place: Path) -> None:
    hub = PowerlessHub(cluster.root / "hub", log_level="debug")
    cluster.hubs.append(hub)
    hub.start()
    agent = cluster.agents["n1"] = OrdinaryAgent("n1", place / "node")
    agent.join(hub.edge, hub.token("--node", "n1"))
    cluster.wait_ready("n1")
    assert hub.process is not None and agent.process is not None
    for pid in (hub.process.pid, agent.process.pid):
        for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status_of(pid, field), 16) == 0, field
        assert status_of(pid, "NoNewPrivs") == "1"
    assert status_of(agent.process.pid, "Uid").split() == [str(NOBODY)] * 4
    body = {"metadata": {"name": "s"}, "stringData": {"key": "a value"}}
    hub.api("POST", "/api/v1/namespaces/default/secrets", body)
    pod = sleeper(
        "user", "n1", 'id -u; cat v/key; echo; test "$KEY" = "a value" && echo same; exec sleep 1000'
    )
    pod["spec"]["containers"][0] |= {
        "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}}],
        "volumeMounts": [{"name": "v", "mountPath": "v"}],
    }
    pod["spec"]["volumes"] = [{"name": "v", "secret": {"secretName": "s"}}]
    hub.api("POST", "/api/v1/namespaces/default/pods", pod)
    cluster.wait_running("user")
    wait_for(
        lambda: cluster.kubectl("logs", "user").split("\n")[:3] == [str(NOBODY), "a value", "same"],
        "it works",
    )
    assert (
        cluster.kubectl("exec", "user", "--", "sh", "-c", "grep CapEff /proc/self/status")
        .split()[1]
        .strip("0")
        == ""
    )
    agent.kill9()
    agent.run()
    wait_for(lambda: agent.log().count('"message": "connected"') == 2, "it is back", detail=agent.log)
    hub.api("DELETE", "/api/v1/namespaces/default/pods/user")
    cluster.wait_gone("user")
    agent.process.terminate()
    agent.process.wait(15)
    agent.process = None
