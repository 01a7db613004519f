"""Enrolment as an operator sees it: real hub, agents, `cloudhub` and kubectl. The authority's key lies in a PKCS #11 token."""

import contextlib
import csv
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from hub.cli import main
from tests.e2e.cluster import ROOT, Agent, Cluster, kubectl_binaries, run_cloudhub, running_cluster, wait_for
from tests.e2e.hostile import nodes
from tests.e2e.test_bad_joins import FAILED, USAGE, join
from tests.security.softhsm import PIN, Token

TOKENS = "/apis/cloudhub.dev/v1alpha1/jointokens"


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    root = tmp_path_factory.mktemp("enrolment")
    uri = Token(root).uri("ca")
    said = run_cloudhub("key", "create", uri, "--algorithm", "rsa-3072")
    assert said.startswith("made pkcs11:token=") and "(rsa-3072)" in said and PIN not in said
    with running_cluster(root) as cluster:
        cluster.hub("hub", ca_key=uri, hub_key_algorithm="ecdsa-p384")
        yield cluster


def cloudhub(hubs: Cluster, *arguments: str, code: int = 0) -> str:
    """The command in this process, for the start of a Python costs half a second; what it prints, on the error output where it
    fails."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        got = main([*arguments, "--data-dir", str(hubs.main.data_dir)])
    assert got == code, f"cloudhub {' '.join(arguments)}: {got}: {errors.getvalue()}"
    return errors.getvalue() if code else out.getvalue()


def mint(hubs: Cluster, *options: str) -> str:
    return cloudhub(hubs, "token", "create", *options).strip()


def waiting(hubs: Cluster, agent: Agent) -> str:
    """The name of the request by which the agent waits."""
    mark = "kubectl certificate approve "
    wait_for(lambda: mark in agent.log(), "it says what it waits for", detail=agent.log)
    return agent.log().rpartition(mark)[2].split()[0]


def test_the_key_of_the_authority_stays_in_its_token(hubs: Cluster) -> None:
    hub = hubs.main
    root = x509.load_pem_x509_certificate((hub.data_dir / "ca/ca.crt").read_bytes())
    assert isinstance(root.public_key(), rsa.RSAPublicKey)
    key = hub.data_dir / "ca/ca.key"
    assert key.read_text().startswith("pkcs11:token=") and "pin" not in key.read_text()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    for secret in (PIN, "PRIVATE KEY"):
        assert secret not in hub.log()


def test_an_operator_approves_waiting_nodes_with_kubectl_also_after_restarts(hubs: Cluster) -> None:
    hub = hubs.main
    agent = hubs.agents["edge-1"] = Agent("edge-1", hubs.root / "agent-edge-1")
    token = mint(hubs, "--node", "edge-1", "--approval")
    agent.join(hub.edge, token)
    name = waiting(hubs, agent)
    for kubectl in kubectl_binaries():
        table = hubs.kubectl("get", "csr", path=kubectl)
        assert "SIGNERNAME" in table and "cloudhub.dev/node" in table and "Pending" in table
    assert "edge-1" not in nodes(hub)
    # Both have to start anew while the node waits.
    agent.kill9()
    assert hub.stop() == 0
    hub.start()
    assert "approved" in hubs.kubectl("certificate", "approve", name)
    agent.join(hub.edge, token)
    hubs.wait_ready("edge-1")
    assert "Approved,Issued" in hubs.kubectl("get", "csr", name)
    described = hubs.kubectl("describe", "csr", name)
    assert (
        "cloudhub.dev/node" in described and "spiffe://cloudhub.local/node/default/edge-1/edge-1" in described
    )
    # What was decided cannot be taken back.
    undecided = json.dumps({"status": {"conditions": []}})
    said = hubs.kubectl(
        "patch", "csr", name, "--subresource=approval", "--type=merge", "-p", undecided, code=1
    )
    assert "may not remove a condition of type" in said
    assert "already Approved" in hubs.kubectl("certificate", "deny", name, code=1)
    changed = json.dumps({"spec": {"signerName": "example.com/other"}})
    assert "immutable" in hubs.kubectl("patch", "csr", name, "--type=merge", "-p", changed, code=1)
    agent.stop()


def test_a_denied_node_gives_up_and_says_why(hubs: Cluster) -> None:
    hub = hubs.main
    agent = hubs.agents["denied"] = Agent("denied", hubs.root / "agent-denied")
    agent.join(hub.edge, mint(hubs, "--pool", "shop", "--count", "2", "--approval"), "--name", "denied")
    name = waiting(hubs, agent)
    assert "denied" in hubs.kubectl("certificate", "deny", name, path=kubectl_binaries()[1])
    assert agent.process is not None and agent.process.wait(60) == FAILED
    agent.process = None
    assert "an operator has refused node 'denied'" in agent.log()
    assert "denied" not in nodes(hub)


def test_tokens_are_listed_and_a_revoked_one_ends_at_once(hubs: Cluster, tmp_path: Path) -> None:
    hub = hubs.main
    token = mint(hubs, "--pool", "kiosks", "--count", "7", "--site", "mall", "--ttl", "2h", "--approval")
    name = token.split(".")[1]
    listed = cloudhub(hubs, "token", "list")
    (line,) = [line.split() for line in listed.splitlines() if line.startswith(name)]
    assert line[:3] == [name, "pool/kiosks", "0/7"] and line[4:] == ["mall", "default", "approval"]
    found = {t["id"]: t for t in json.loads(cloudhub(hubs, "token", "list", "-o", "json"))}
    assert found[name]["count"] == 7 and found[name]["approval"] is True
    assert token.split(".")[2] not in listed
    agent = hubs.agents["kiosk"] = Agent("kiosk", hubs.root / "agent-kiosk")
    agent.join(hub.edge, token, "--name", "kiosk")
    request = waiting(hubs, agent)
    assert f"{name} revoked" in cloudhub(hubs, "token", "revoke", name)
    code, said = join(hub.edge, token, tmp_path / "a", "--name", "other")
    assert code == FAILED and "the join token is not valid here" in said
    hubs.kubectl("certificate", "approve", request)  # too late: the token is gone
    assert agent.process is not None and agent.process.wait(60) == FAILED
    agent.process = None
    assert "kiosk" not in nodes(hub)
    assert "not found" in cloudhub(hubs, "token", "revoke", name, code=FAILED)
    assert "no id of a token" in cloudhub(hubs, "token", "revoke", "../x", code=USAGE)
    # The same by kubectl.
    other = mint(hubs, "--node", "gone")
    hubs.kubectl("delete", "jointoken", other.split(".")[1])
    assert join(hub.edge, other, tmp_path / "b")[0] == FAILED


def test_a_machine_that_is_set_up_anew_needs_permission_to_take_its_name(
    hubs: Cluster, tmp_path: Path
) -> None:
    hub = hubs.main

    def enrol(token: str, directory: str) -> bool:
        """Joins, and is stopped before it connects: what counts here is who gets a certificate."""
        script = (
            "import sys; from edgelite import enroll;"
            " enroll.join(sys.argv[1], sys.argv[2], None, {}, sys.argv[3])"
        )
        argv = [sys.executable, "-c", script, hub.edge, token, str(tmp_path / directory)]
        return subprocess.run(argv, cwd=ROOT).returncode == 0

    assert enrol(mint(hubs, "--node", "till-1"), "a")
    code, said = join(hub.edge, mint(hubs, "--node", "till-1"), tmp_path / "b")
    assert code == FAILED and "--replace" in said and "cloudhub node allow-rejoin till-1" in said
    assert enrol(mint(hubs, "--node", "till-1", "--replace"), "b")
    assert "may join once" in cloudhub(hubs, "node", "allow-rejoin", "till-1", "--for", "10m")
    # A token of the very second in which the one before was revoked may be older than that, and is refused.
    wait_for(lambda: enrol(mint(hubs, "--node", "till-1"), "c"), "it joins with a newer token")
    assert join(hub.edge, mint(hubs, "--node", "till-1"), tmp_path / "d")[0] == FAILED
    for name, code, said in (("nobody", FAILED, "not found"), ("A/b", USAGE, "no name of a node")):
        assert said in cloudhub(hubs, "node", "allow-rejoin", name, code=code)


def test_a_file_makes_many_tokens_or_none(hubs: Cluster, tmp_path: Path) -> None:
    hub = hubs.main
    before = len(hub.api("GET", TOKENS)["items"])
    file, out = tmp_path / "nodes.csv", tmp_path / "tokens.csv"
    file.write_text("node,pool,site,ttl,count\nbatch-1,,s1,2h,\nbatch-2,,s1,soon,\n")
    create = ["token", "create", "--from-file", str(file)]
    said = cloudhub(hubs, *create, "--output-file", str(out), code=USAGE)
    assert "line 3, column ttl: 'soon' is no duration" in said and "nothing was made" in said
    assert not out.exists() and len(hub.api("GET", TOKENS)["items"]) == before
    file.write_text("node,pool,site,ttl,count\nbatch-1,,s1,2h,\n,batch,,,3\n")
    assert cloudhub(hubs, *create, "--output-file", str(out)) == ""
    assert stat.S_IMODE(os.stat(out).st_mode) == 0o600
    first, second = csv.DictReader(io.StringIO(out.read_text()))
    assert (first["node"], first["site"], second["pool"], second["count"]) == ("batch-1", "s1", "batch", "3")
    assert "exists and is left alone" in cloudhub(hubs, *create, "--output-file", str(out), code=USAGE)
    made = json.loads(cloudhub(hubs, *create, "-o", "json", "--approval"))
    assert [m.get("node") for m in made] == ["batch-1", None]
    assert all(hub.api("GET", f"{TOKENS}/{m['id']}")["spec"]["approval"] for m in made)
    agent = hubs.agents["batch-1"] = Agent("batch-1", hubs.root / "agent-batch-1")
    agent.join(hub.edge, first["token"])
    hubs.wait_ready("batch-1")
    agent.stop()
