"""Secrets are in no file that others may read (`test_planted`: nor anywhere else where they do not belong)."""

import os
import stat
from pathlib import Path

from edgelite import credentials
from tests.e2e.cluster import Agent, Cluster, sleeper, wait_for

PODS = "/api/v1/namespaces/default/pods"
PLANTED = "planted-9b1f6e5c-value"
PUBLIC = {"ca.crt", "endpoints.json"}
"""What holds nothing secret and is meant for others."""


def others_can_read(directory: Path) -> list[str]:
    """Files that somebody else could open by their own mode; the directory above them is 0755 here on purpose."""
    found = []
    for path in directory.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and mode & 0o077 and path.name not in PUBLIC:
            found.append(f"{path.relative_to(directory)} {mode & 0o777:o}")
    return found


def test_data_directories_are_closed_and_so_is_every_secret_file_in_them(cluster: Cluster) -> None:
    """Also where the directory was made by somebody else with a wider mode, under the usual umask."""
    old = os.umask(0o022)
    try:
        hub_dir, agent_dir = cluster.root / "hub", cluster.root / "agent-n1"
        for directory in (hub_dir, agent_dir):
            directory.mkdir(mode=0o755)
        hub = cluster.hub()
        agent = cluster.agents["n1"] = Agent("n1", agent_dir)
        agent.join(hub.edge, hub.token("--node", "n1"))
        cluster.wait_ready("n1")
        hub.api(
            "POST",
            "/api/v1/namespaces/default/secrets",
            {"metadata": {"name": "s"}, "stringData": {"k": PLANTED}},
        )
        pod = sleeper("user", "n1", "cat v/k; exec sleep 1000")
        pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": "v"}]
        pod["spec"]["volumes"] = [{"name": "v", "secret": {"secretName": "s"}}]
        hub.api("POST", PODS, pod)
        cluster.wait_running("user")
        wait_for(lambda: cluster.kubectl("logs", "user") == PLANTED, "the workload reads its secret")
    finally:
        os.umask(old)
    assert others_can_read(hub_dir) == []
    for name in (credentials.IDENTITY, credentials.BUNDLE, "journal", "config.json", "node.json"):
        assert (agent_dir / name).stat().st_mode & 0o077 == 0, name
    on_disk = [
        str(p) for p in agent_dir.rglob("*")
        if p.is_file() and not p.is_symlink() and PLANTED.encode() in p.read_bytes() and p.stat().st_mode & 0o004
    ]  # fmt: skip
    assert not [p for p in on_disk if reachable_by_others(Path(p), agent_dir)], on_disk


def reachable_by_others(path: Path, top: Path) -> bool:
    """Whether every directory from `top` down to the file lets others pass."""
    while path != top:
        path = path.parent
        if not path.stat().st_mode & 0o001:
            return False
    return True


def test_new_data_directories_have_mode_0700(cluster: Cluster) -> None:
    hub = cluster.hub()
    agent = cluster.agent("n1")
    for directory in (hub.data_dir, hub.data_dir / "ca", agent.data_dir):
        assert directory.stat().st_mode & 0o777 == 0o700, directory
    assert (hub.data_dir / "kubeconfig").stat().st_mode & 0o777 == 0o600
