"""Joins that must fail: real `edgelite join` commands; each says why and what to do, and makes no Node."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgelite import wire
from tests.e2e.cluster import ROOT, Agent, Cluster, Hub, running_cluster, wait_for
from tests.e2e.hostile import HUB_NAME, Impostor, authority, forge, nodes, objects
from tests.ports import free_port

FAILED, USAGE, IN_USE = 1, 2, 3


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A hub, on which the node `member` runs."""
    with running_cluster(tmp_path_factory.mktemp("joins")) as cluster:
        cluster.hub()
        yield cluster


def join(hub: str, token: str, data_dir: Path, *options: str) -> tuple[int, str]:
    """(exit code, the message) of a join that must fail; one line, without a traceback and without the token."""
    done = subprocess.run(
        [sys.executable, "-m", "edgelite", "join", "--hub", hub, "--token", token, "--data-dir", str(data_dir),
         "--runtime", "process", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.stdout == ""
    assert done.stderr.startswith("edgelite: ") and done.stderr.count("\n") == 1, done.stderr
    secret = token.split(".")[2] if token.count(".") > 3 else token
    assert len(secret) < 8 or secret not in done.stderr
    assert (
        not (data_dir / "node.json").exists() or "joined already" in done.stderr or done.returncode == IN_USE
    )
    return done.returncode, done.stderr


def tampered(token: str, part: int, text: str) -> str:
    parts = token.split(".", 4)
    parts[part] = text
    return ".".join(parts)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("the secret", "the join token is not valid here: check that it was copied whole, or make a new one"),
        ("the id", "the join token is not valid here: check that it was copied whole, or make a new one"),
        (
            "the root",
            "does not have the certificate authority that the token names: the token is of another hub",
        ),
        ("the trust domain", "not as the hub that the token names"),
        ("its end", "copy it whole"),
        ("everything", "not a join token"),
        ("a character", "join token damaged"),
    ],
)
def test_a_tampered_token_is_refused(hubs: Cluster, tmp_path: Path, what: str, message: str) -> None:
    token = hubs.main.token("--node", "victim")
    before = objects(hubs.main)
    bad = {
        "the secret": tampered(token, 2, "A" * 32),
        "the id": tampered(token, 1, "0" * 16),
        "the root": tampered(token, 3, "A" * 43),
        "the trust domain": tampered(token, 4, "evil.example"),
        "its end": token[: token.rindex(".cloudhub")][:-5],
        "everything": "hello",
        "a character": tampered(token, 2, "!" * 32),
    }[what]
    code, said = join(hubs.main.edge, bad, tmp_path / "a")
    assert code == FAILED and message in said, said
    assert objects(hubs.main) == before, "neither a Node nor a trace on the token"


def test_an_expired_token_is_refused(hubs: Cluster, tmp_path: Path) -> None:
    token = hubs.main.token("--node", "late", "--ttl", "1s")
    made = next(
        t for t in hubs.main.api("GET", "/apis/cloudhub.dev/v1alpha1/jointokens")["items"]
        if t["metadata"]["name"] == token.split(".")[1]
    )  # fmt: skip
    ends = time.time() + 1.0
    assert made["spec"]["ttlSeconds"] == 1
    wait_for(lambda: time.time() > ends, "the token has expired")
    code, said = join(hubs.main.edge, token, tmp_path / "a")
    assert (
        code == FAILED and "the join token has expired; make a new one with `cloudhub token create`" in said
    )
    assert "late" not in nodes(hubs.main)


def test_a_nodes_token_takes_no_other_name(hubs: Cluster, tmp_path: Path) -> None:
    token = hubs.main.token("--node", "mine")
    before = objects(hubs.main)
    code, said = join(hubs.main.edge, token, tmp_path / "a", "--name", "yours")
    assert code == FAILED and "this token is for node 'mine' only; --name goes with pool tokens" in said
    assert objects(hubs.main) == before


def test_a_used_token_admits_no_second_machine_and_leaves_the_first_alone(
    hubs: Cluster, tmp_path: Path
) -> None:
    hub = hubs.main
    token = hub.token("--node", "first")
    agent = hubs.agents["first"] = Agent("first", hubs.root / "agent-first")
    agent.join(hub.edge, token)
    hubs.wait_ready("first")
    uid = hub.api("GET", "/api/v1/nodes/first")["metadata"]["uid"]
    assert agent.process is not None
    code, said = join(hub.edge, token, tmp_path / "second")
    assert code == FAILED and "the join token was used by another machine; make a new one" in said
    hubs.wait_ready("first")
    assert hub.api("GET", "/api/v1/nodes/first")["metadata"]["uid"] == uid
    assert agent.process.poll() is None

    # The same directory again, while its agent runs, and after it has stopped.
    other = hub.token("--node", "other")
    code, said = join(hub.edge, other, agent.data_dir)
    assert (
        code == IN_USE and f"in use by the agent with process id {agent.process.pid}; `edgelite stop" in said
    )
    agent.stop()
    identity = (agent.data_dir / "identity.pem").read_bytes()
    code, said = join(hub.edge, other, agent.data_dir)
    assert code == FAILED and "has joined already; `edgelite run --data-dir" in said
    assert (agent.data_dir / "identity.pem").read_bytes() == identity
    assert "other" not in nodes(hub)

    # The same join, repeated: it is the same node, which runs.
    agent.join(hub.edge, token)
    wait_for(lambda: agent.log().count('"message": "connected"') == 2, "it is back", detail=agent.log)
    hubs.wait_ready("first")
    assert (agent.data_dir / "identity.pem").read_bytes() == identity
    agent.stop()


def test_a_pool_gives_no_more_places_than_it_has_and_no_name_twice(hubs: Cluster, tmp_path: Path) -> None:
    hub = hubs.main
    pool = hub.token("--pool", "tills", "--count", "1")
    agent = hubs.agents["till-1"] = Agent("till-1", hubs.root / "agent-till-1")
    agent.join(hub.edge, pool, "--name", "till-1")
    hubs.wait_ready("till-1")
    before = nodes(hub)
    code, said = join(hub.edge, pool, tmp_path / "a")
    assert code == FAILED and "all 1 places of the pool token are taken; make a new token" in said
    wider = hub.token("--pool", "tills", "--count", "2")
    code, said = join(hub.edge, wider, tmp_path / "b", "--name", "till-1")
    assert code == FAILED and "'till-1' belongs to another machine; choose another with --name" in said
    code, said = join(hub.edge, wider, tmp_path / "c", "--name", "Till_2")
    assert code == FAILED and "'Till_2' is no node name: use lower case letters, digits" in said
    assert nodes(hub) == before
    agent.stop()


def test_a_token_of_another_hub_is_refused_and_not_sent(hubs: Cluster, tmp_path: Path) -> None:
    other = hubs.hub("other")
    foreign = hubs.main.token("--node", "stray")
    before = objects(hubs.main), objects(other)
    code, said = join(other.edge, foreign, tmp_path / "a")
    assert code == FAILED and "the token is of another hub" in said and "nothing secret was sent" in said
    assert (objects(hubs.main), objects(other)) == before
    other.stop()


def test_a_hub_that_cannot_be_reached_is_said_with_its_address(hubs: Cluster, tmp_path: Path) -> None:
    token = hubs.main.token("--node", "lost")
    nowhere = f"127.0.0.1:{free_port()}"
    code, said = join(nowhere, token, tmp_path / "a")
    assert (
        code == FAILED
        and f"cannot connect to {nowhere}" in said
        and "check the address and firewalls" in said
    )
    code, said = join(f"127.0.0.1:{hubs.main.api_port}", token, tmp_path / "a")
    assert code == FAILED and "does not speak the hub's protocol" in said and "is it the edge port?" in said
    code, said = join("127.0.0.1:none", token, tmp_path / "a")
    assert code == FAILED and "is no address of a hub: give host:port" in said
    assert "lost" not in nodes(hubs.main)
    # The same directory and token once the hub is found.
    agent = hubs.agents["lost"] = Agent("lost", tmp_path / "a")
    agent.join(hubs.main.edge, token)
    hubs.wait_ready("lost")
    agent.stop()


def test_a_node_that_poses_as_a_hub_gets_no_token(hubs: Cluster, tmp_path: Path) -> None:
    """It has a certificate of the right authority, and even answers with the right root."""
    hub: Hub = hubs.main
    posing = forge(authority(hub), "posing")
    token = hub.token("--node", "dupe")
    before = objects(hub)

    roots = wire.message(wire.BUNDLE, json.dumps({"roots": [posing.root]}).encode())
    impostor = Impostor(posing.root, posing.cert, posing.key, roots)
    try:
        code, said = join(impostor.address, token, tmp_path / "a")
    finally:
        impostor.close()
    assert (
        code == FAILED
        and "known to the certificate authority, but not as the hub that the token names" in said
    )
    assert HUB_NAME in said or "purpose" in said, said
    assert impostor.visits == 2, "asked for the roots, and then refused to tell anything"
    assert token.split(".")[2].encode() not in impostor.heard
    assert objects(hub) == before
