"""Releases of the agent that are good or broken, and a fleet that wants them: for all platforms' tests of updates."""

import json
import random
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from edgelite import __version__
from edgelite.release import pyz
from edgelite.release.sources import agent as sources
from hub.releases import ANNOTATION, CHUNK_BYTES, annotation, configmaps, release
from tests.e2e.cluster import Agent, Cluster, run_cloudhub, wait_for

CRASHES = "raise SystemExit('this release does not start')\n"
HANGS = "import time; time.sleep(3600)\n"


def broken(fault: str) -> bytes:
    """An edgelite.pyz whose command does that and nothing else."""
    return pyz.build(0, {"edgelite/__init__.py": "", "edgelite/cli.py": fault})


def good(version: str) -> bytes:
    """An edgelite.pyz of that version that works; with something in it that makes it fill more than one ConfigMap."""
    files = sources()
    first = files["edgelite/__init__.py"]
    assert f'__version__ = "{__version__}"' in first
    files["edgelite/__init__.py"] = first.replace(__version__, version)
    files["edgelite/padding.py"] = f"# {random.Random(1).randbytes(400_000).hex()}\n"
    made = pyz.build(0, files)
    assert CHUNK_BYTES < len(made) < 2 * CHUNK_BYTES
    return made


def signing_key(path: Path) -> tuple[str, int]:
    """Makes a key at `path`, by the command; (what a node is told of it, the private number)."""
    public = run_cloudhub("release", "keygen", str(path)).strip()
    key = load_pem_private_key(path.read_bytes(), None)
    return public, key.private_numbers().private_value  # type: ignore[union-attr]


class Fleet:
    """The hub's side: what is published, and what the node wants."""

    def __init__(self, cluster: Cluster, node: str) -> None:
        self.cluster, self.node = cluster, node

    def publish(self, data: bytes, version: str, key: int) -> None:
        self.said = release(data, version, key)
        for made in configmaps("default", f"release-{version}", self.said, data):
            self.make(made)

    def make(self, configmap: Any) -> None:
        self.cluster.main.api("POST", "/api/v1/namespaces/default/configmaps", configmap)

    def take(self, name: str) -> Any:
        """Takes a ConfigMap away; what it was."""
        path = f"/api/v1/namespaces/default/configmaps/{name}"
        found = self.cluster.main.api("GET", path)
        self.cluster.main.api("DELETE", path)
        for field in ("resourceVersion", "uid", "creationTimestamp"):
            del found["metadata"][field]
        return found

    def want(self, version: str, deadline: int = 60, hold: int = 0, **settings: Any) -> None:
        text = annotation(
            "default", f"release-{version}", self.said, deadline=deadline, hold=hold, **settings
        )
        patch = {"metadata": {"annotations": {ANNOTATION: text}}}
        kind = "application/merge-patch+json"
        self.cluster.main.api("PATCH", f"/api/v1/nodes/{self.node}", patch, kind)

    def condition(self) -> Any:
        node = self.cluster.main.api("GET", f"/api/v1/nodes/{self.node}")
        found = [c for c in node["status"]["conditions"] if c["type"] == "AgentUpdate"]
        return found[0] if found else {"status": "", "reason": "", "message": ""}

    def version(self) -> str:
        node = self.cluster.main.api("GET", f"/api/v1/nodes/{self.node}")
        return str(node["status"]["nodeInfo"]["kubeletVersion"])

    def wait(self, version: str, status: str, reason: str, text: str = "") -> None:
        """Until the node says so, and runs that."""

        def told() -> bool:
            said = self.condition()
            right = (said["status"], said["reason"]) == (status, reason) and text in said["message"]
            return right and self.version() == f"v{version}-edgelite"

        agent = self.cluster.agents[self.node]
        wait_for(
            told, f"{version} runs, and says {reason}", 90, lambda: (self.condition(), agent.log()[-3000:])
        )

    def gives_up_what_is_broken(self, key: int, deadline: int = 1) -> None:
        """One that nobody whom the node trusts has signed, one that crashes, one that hangs: the installed one runs after each."""
        self.publish(broken(CRASHES), "0.9.0", key + 1)
        self.want("0.9.0")
        self.wait(__version__, "False", "BadSignature", "0.9.0")
        self.publish(broken(CRASHES), "0.9.1", key)
        self.want("0.9.1")
        self.wait(__version__, "False", "Crashed", "0.9.1")
        self.publish(broken(HANGS), "0.9.2", key)
        self.want("0.9.2", deadline=deadline)
        self.wait(__version__, "False", "NotConfirmed", "0.9.2")

    def takes_one_that_is_cut_off(self, agent: Agent, key: int, patience_s: float) -> None:
        """0.9.3, good: the agent is killed in the middle of fetching, and again while it is on trial. It runs from slot a."""
        update = agent.data_dir / "update"

        def trial() -> Any:
            return json.loads((update / "state.json").read_text())["trial"]

        self.publish(good("0.9.3"), "0.9.3", key)
        rest = self.take("release-0.9.3-1")
        self.want("0.9.3", deadline=90, hold=1)
        fetched = update / "fetched"
        wait_for(lambda: fetched.stat().st_size == CHUNK_BYTES, "a part of it has come", patience_s)
        agent.kill9()
        self.make(rest)
        agent.run()
        wait_for(lambda: (found := trial()) and found["starts"] == 1, "it is on trial", patience_s)
        agent.kill9()
        agent.run()
        self.wait("0.9.3", "True", "Updated", "runs from slot a")
