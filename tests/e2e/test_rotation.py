"""A new root in the old one's place, with real agents: nobody is lost, whoever is away meanwhile, and whatever crashes."""

import json
import signal
import subprocess
import sys
from typing import Any

from edgelite import credentials
from hub.certpaths import CA_PATH, ROTATION_PATH
from tests.e2e.cluster import ROOT, Agent, Cluster, Hub, run_cloudhub, sleeper, wait_for


def ca_status(hub: Hub) -> Any:
    return hub.api("GET", CA_PATH)


def start_rotation(hub: Hub) -> "subprocess.Popen[str]":
    """`cloudhub ca rotate --wait`, which goes on while the hub is away."""
    argv = [
        sys.executable,
        "-m",
        "hub",
        "ca",
        "rotate",
        "--wait",
        "-o",
        "json",
        "--data-dir",
        str(hub.data_dir),
    ]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def roots(agent: Agent) -> int:
    """How many roots the agent trusts."""
    return (agent.data_dir / credentials.BUNDLE).read_text().count("BEGIN CERTIFICATE")


def test_a_root_is_replaced_while_an_agent_is_away_and_the_hub_crashes(cluster: Cluster) -> None:
    hub = cluster.hub()
    here, away = cluster.agent("here"), cluster.agent("away")
    first = ca_status(hub)
    assert [r["phase"] for r in first["roots"]] == ["active"] and not first["rotating"]
    kept = (hub.data_dir / "kubeconfig").read_text()
    before = credentials.certificate_mark(str(here.data_dir))
    session = cluster.main.api("GET", "/api/v1/nodes/here")["metadata"]["uid"]
    away.stop()

    command = start_rotation(hub)
    begun = wait_for(lambda: (s := ca_status(hub))["rotating"] and s, "the rotation has begun")
    again = hub.api("POST", ROTATION_PATH, {})
    assert [r["id"] for r in again["roots"]] == [r["id"] for r in begun["roots"]], (
        "a second rotation was begun"
    )
    hub.kill9()
    hub.start()

    def renewed() -> bool:
        return credentials.certificate_mark(str(here.data_dir)) != before

    wait_for(
        renewed, "the agent that is here has renewed", 60, lambda: (here.log()[-2000:], hub.log()[-3000:])
    )
    wait_for(lambda: ca_status(hub)["nodes"]["renewed"] == 1, "and says so", 30, lambda: ca_status(hub))
    waiting = ca_status(hub)
    assert [r["phase"] for r in waiting["roots"]] == ["retired", "active"]
    assert waiting["waitsFor"] == ["1 nodes have not shown a certificate of the new root yet"]
    assert roots(here) == 2

    # Whoever was away knows the old root alone, and still recognises the hub.
    assert roots(away) == 1
    away.run()
    said, progress = command.communicate(timeout=90)
    assert command.returncode == 0, progress
    assert "of 2 nodes have renewed; next: " in progress
    done = json.loads(said)
    assert [r["id"] for r in done["roots"]] == [begun["roots"][1]["id"]], done
    for agent in (here, away):
        wait_for(lambda a=agent: roots(a) == 1, "the old root is trusted no more", 30, agent.log)  # type: ignore[misc]
        cluster.wait_ready(agent.name)
    assert (hub.data_dir / "ca/ca.key").exists() is False
    assert hub.api("GET", "/api/v1/nodes/here")["metadata"]["uid"] == session

    said = run_cloudhub("cert", "-o", "json", "--data-dir", str(hub.data_dir))
    shown = {(c["kind"], c["name"].split(" ")[0]): c for c in json.loads(said)["certificates"]}
    assert {kind for kind, _ in shown} == {"root", "hub", "user", "node"}
    for agent in (here, away):
        node = shown["node", agent.name]
        assert node["ends"] == credentials.certificate(str(agent.data_dir)).not_after
        assert node["issuer"] == done["roots"][0]["id"]
    run_cloudhub("cert", "list", "--within", "25h", "--data-dir", str(hub.data_dir), code=1)  # the hub's own

    # A kubeconfig of before is refused, and refuses the hub; the one in the data directory was written anew.
    old = hub.data_dir.parent / "old-kubeconfig"
    old.write_text(kept)
    said = run_cloudhub("ca", "status", "--kubeconfig", str(old), code=1)
    assert "its certificate is not of a root that the kubeconfig names" in said


def test_a_revoked_node_is_out_in_seconds_and_goes_on_with_its_work(cluster: Cluster) -> None:
    cluster.hub()
    agent = cluster.agent("n1")
    cluster.main.api(
        "POST", "/api/v1/namespaces/default/pods", sleeper("web", "n1", script="exec sleep 1000")
    )
    cluster.wait_running("web")
    before = {p.pid for p in agent.workloads()}
    hub = cluster.main
    said = run_cloudhub("revoke", "node", "n1", "--reason", "stolen", "--data-dir", str(hub.data_dir))
    assert said.startswith("revoked node n1 (node-n1-")

    def refused() -> Any:
        status = agent.status()
        return status if status["state"] == "refused" else None

    status = wait_for(refused, "the agent is told", 5.0 + 10.0)  # 5 s are promised; this machine may be busy
    assert "revoked: the node was revoked (stolen)" in status["detail"]
    assert "n1" in cluster.kubectl("get", "revocations") and "stolen" in cluster.kubectl("get", "revocations")
    assert {p.pid for p in agent.workloads()} == before, "what runs goes on"
    # kubectl makes and deletes the same.
    cluster.kubectl("delete", "revocations", "--all")
    agent.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
    wait_for(lambda: agent.status()["state"] == "connected", "the node is back")
    spec = {"token": enrolled_token(hub, "n1")}
    manifest = {
        "apiVersion": "cloudhub.dev/v1alpha1",
        "kind": "Revocation",
        "metadata": {"name": "leak"},
        "spec": spec,
    }
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(manifest))
    wait_for(refused, "whom the token admitted is out", 5.0 + 10.0)
    wrong = {**manifest, "metadata": {"name": "both"}, "spec": {"node": "n1", "serial": "zz"}}
    refusal = cluster.kubectl("create", "-f", "-", stdin=json.dumps(wrong), code=1)
    assert "spec.serial" in refusal and "may not be set together" in refusal


def enrolled_token(hub: Hub, node: str) -> str:
    annotations = hub.api("GET", f"/api/v1/nodes/{node}")["metadata"]["annotations"]
    return str(json.loads(annotations["cloudhub.dev/enrolled"])["token"])
