"""Backup, restore and the move to etcd, with a real hub and an agent whose workloads live on."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.cluster import ROOT, Agent, Cluster, Hub, run_cloudhub, sleeper, wait_for
from tests.e2e.ha import Replica
from tests.e2e.observe import condition_of, connect_now, documents_of, node_of
from tests.servers.etcd import EtcdCluster

FOREVER = "exec sleep 100000"


def apply(hub: Hub, name: str) -> None:
    hub.api("POST", "/api/v1/namespaces/default/pods", sleeper(name, "n1", script=FOREVER))


def take_over(cluster: Cluster, hub: Hub) -> None:
    """`hub` serves at the addresses of the cluster's, which is stopped, and is the cluster's from now on."""
    old = cluster.main
    hub.api_port, hub.edge_port = old.api_port, old.edge_port
    cluster.hubs.insert(0, hub)
    hub.start()


def pods_at(agent: Agent) -> list[str]:
    return sorted(key.split("/")[2] for key in documents_of(agent) if key.startswith("pod/"))


def sleeps(agent: Agent) -> set[int]:
    """The processes that the agent's pods run, without their shims."""
    return {p.pid for p in agent.workloads() if p.cmdline()[:1] == ["sleep"]}


def converged(cluster: Cluster, agent: Agent, wanted: list[str]) -> None:
    """The agent follows the hub without having been confirmed, and has these pods."""
    connect_now(agent)
    cluster.wait_ready("n1", timeout_s=60)
    node = node_of(cluster, "n1")
    assert condition_of(node, "HistoryParted") is None
    assert condition_of(node, "Unconfirmed") is None
    wait_for(lambda: pods_at(agent) == wanted, f"n1 has {wanted}", 60, lambda: agent.log()[-2000:])
    for name in wanted:
        cluster.wait_running(name)


def test_an_agent_follows_a_restored_hub_and_restarts_nothing_that_the_backup_knows(
    cluster: Cluster, tmp_path: Path
) -> None:
    hub = cluster.hub()
    agent = cluster.agent("n1")
    apply(hub, "kept")
    cluster.wait_running("kept")
    before = sleeps(agent)
    file = tmp_path / "fleet.backup"

    done = json.loads(run_cloudhub("backup", str(file), "--data-dir", str(hub.data_dir), "-o", "json"))
    assert done["keys"] > 3 and done["generation"] == 1 and done["clear"] is True
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    apply(hub, "newer")
    cluster.wait_running("newer")
    run_cloudhub("backup", str(file), "--data-dir", str(hub.data_dir), code=1)
    hub.stop()

    new = tmp_path / "restored"
    assert "--yes" in run_cloudhub("restore", str(file), "--data-dir", str(new), code=2)
    assert not new.exists()
    told = json.loads(run_cloudhub("restore", str(file), "--data-dir", str(new), "--yes", "-o", "json"))
    assert told["uuid"] == done["uuid"] and told["generation"] > 1_700_000_000
    take_over(cluster, Hub(new, **hub.settings))
    converged(cluster, agent, ["kept"])
    wait_for(lambda: sleeps(agent) == before, "what is newer than the backup is gone, the rest untouched", 60)
    pod = cluster.pod("kept")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    # It is an ordinary hub from here on.
    apply(cluster.main, "after")
    cluster.wait_running("after")
    assert before < sleeps(agent)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_half_a_restore_is_not_served_and_the_same_command_finishes_it(
    cluster: Cluster, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    hub = cluster.hub()
    for i in range(300):
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"c{i}"}, "data": {"i": str(i)}}
        hub.api("POST", "/api/v1/namespaces/default/configmaps", body)
    file, new = tmp_path / "fleet.backup", tmp_path / "restored"
    run_cloudhub("backup", str(file), "--data-dir", str(hub.data_dir))
    hub.stop()

    # In the middle: after two transactions of more.
    script = (
        "import os, signal, sys, hub.transfer as t\n"
        # Tests that a shell runs in its background have inherited that SIGINT is ignored, and so would this.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "write, n = t._write, 0\n"
        "async def dying(*given):\n"
        "    global n\n"
        "    n += 1\n"
        f"    if n == 3: os.kill(os.getpid(), {int(number)})\n"
        "    return await write(*given)\n"
        "t._write = dying\n"
        "from hub.cli import main\n"
        "sys.exit(main())\n"
    )
    command = ["restore", str(file), "--data-dir", str(new), "--yes"]
    ended = subprocess.run(
        [sys.executable, "-c", script, *command], cwd=ROOT, timeout=60, capture_output=True, text=True
    )
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ("run the same command again" in ended.stderr) == (number == signal.SIGINT)

    refused = run_cloudhub("serve", "--data-dir", str(new), code=1)
    assert "half filled" in refused and "Traceback" not in refused
    assert "half filled" in run_cloudhub("backup", str(tmp_path / "b"), "--data-dir", str(new), code=1)
    run_cloudhub(*command)
    take_over(cluster, Hub(new, **hub.settings))
    kept = cluster.main.api("GET", "/api/v1/namespaces/default/configmaps")["items"]
    assert {c["metadata"]["name"] for c in kept} >= {f"c{i}" for i in range(300)}


def test_a_sealed_backup_needs_its_key_file(cluster: Cluster, tmp_path: Path) -> None:
    hub = cluster.hub()
    file, key, other = (str(tmp_path / name) for name in ("fleet.backup", "key", "other"))
    run_cloudhub("key", "create", key)
    run_cloudhub("key", "create", other)
    run_cloudhub("backup", file, "--data-dir", str(hub.data_dir), "--key-file", key)
    target = ["restore", file, "--data-dir", str(tmp_path / "new"), "--yes"]
    assert "--key-file" in run_cloudhub(*target, code=1)
    assert "not the one" in run_cloudhub(*target, "--key-file", other, code=1)
    assert not (tmp_path / "new").exists()
    run_cloudhub(*target, "--key-file", key)
    # Over the fleet that is there, or one that a hub serves, nothing is restored.
    assert "holds a fleet already" in run_cloudhub(*target, "--key-file", key, code=1)
    served = ["restore", file, "--data-dir", str(hub.data_dir), "--yes", "--key-file", key]
    assert "in use" in run_cloudhub(*served, code=1)


def test_a_restore_asks_on_a_terminal_and_does_nothing_without_a_yes(
    cluster: Cluster, tmp_path: Path
) -> None:
    hub = cluster.hub()
    file, new = tmp_path / "fleet.backup", tmp_path / "new"
    run_cloudhub("backup", str(file), "--data-dir", str(hub.data_dir))

    def answering(text: str) -> tuple[int, str]:
        ours, theirs = os.openpty()
        try:
            os.write(ours, text.encode())
            argv = [sys.executable, "-m", "hub", "restore", str(file), "--data-dir", str(new)]
            done = subprocess.run(
                argv,
                cwd=ROOT,
                stdin=theirs,
                capture_output=True,
                text=True,
                timeout=60,
                start_new_session=True,
            )
            return done.returncode, done.stderr
        finally:
            os.close(ours)
            os.close(theirs)

    code, said = answering("y\n")
    assert code == 1 and "nothing was done" in said
    assert "becomes generation" in said and "newer than the backup are removed" in said
    assert not new.exists()
    assert answering("yes\n")[0] == 0
    assert new.exists()


def test_wrong_options_of_the_data_commands_are_one_line_and_exit_code_two(tmp_path: Path) -> None:
    file, there = str(tmp_path / "b"), str(tmp_path / "d")
    cases = [
        (["restore", file, "--etcd", "127.0.0.1:1", "--yes"], "--key-file"),
        (["backup", file, "--etcd", "nonsense"], "HOST:PORT"),
        (["backup", file, "--data-dir", there, "--etcd-ca", "x"], "--etcd-ca goes with --etcd"),
        (["backup", file, "--etcd", "127.0.0.1:1", "--etcd-cert", "x"], "go together"),
    ]
    for arguments, said in cases:
        error = run_cloudhub(*arguments, code=2)
        assert said in error and len(error.splitlines()) == 1, error
    missing = run_cloudhub("restore", file, "--data-dir", there, "--yes", code=1)
    assert "No such file" in missing and len(missing.splitlines()) == 1
    missing = run_cloudhub("backup", file, "--data-dir", there, code=1)
    assert "does not exist" in missing and len(missing.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_a_fleet_moves_from_sqlite_to_etcd_and_its_agent_follows(cluster: Cluster, tmp_path: Path) -> None:
    hub = cluster.hub()
    agent = cluster.agent("n1")
    apply(hub, "kept")
    cluster.wait_running("kept")
    before = sleeps(agent)
    key = str(tmp_path / "replicas.key")
    run_cloudhub("key", "create", key)
    with EtcdCluster(1) as etcd:
        command = ["store", "copy", "--from-data-dir", str(hub.data_dir), "--etcd", ",".join(etcd.endpoints)]
        command += ["--key-file", key, "--yes", "-o", "json"]
        assert "stop the hub first" in run_cloudhub(*command, code=1)
        hub.stop()
        done = json.loads(run_cloudhub(*command))
        assert done["generation"] > 1
        refused = run_cloudhub("serve", "--data-dir", str(hub.data_dir), code=1)
        assert f"moved to etcd at {etcd.endpoints[0]}" in refused
        replica = Replica(tmp_path, "r1", etcd.endpoints, key_file=key, **hub.settings)
        take_over(cluster, replica)
        converged(cluster, agent, ["kept"])
        assert sleeps(agent) == before
        apply(cluster.main, "after")
        cluster.wait_running("after")
        # A backup of what replicas serve, while they do.
        file = str(tmp_path / "fleet.backup")
        run_cloudhub("backup", file, "--etcd", ",".join(etcd.endpoints), "--key-file", key)
        cluster.main.stop()
        # And what replicas share can be restored for one hub that is alone.
        back = tmp_path / "back"
        run_cloudhub("restore", file, "--data-dir", str(back), "--key-file", key, "--yes")
        take_over(cluster, Hub(back, **hub.settings))
        converged(cluster, agent, ["after", "kept"])
        assert before < sleeps(agent)
