"""Tokens of service accounts on a node: asked for, mounted, sealed, renewed, forgotten."""

import glob
import json
import os

import pytest

from edgelite import credentials, p256
from edgelite.config import Config
from edgelite.parts import Parts
from edgelite.port import Host
from edgelite.tokens import ASK_AGAIN_S, Need, Tokens, fault, needs, token_key
from edgelite.vault import Vault
from tests.edgelite.test_workloads import KEY, Node, Store, pod

TOKEN = "planted.token.value"
NEXT = "another.token.value"
VOLUME = {
    "name": "access",
    "projected": {
        "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {
                "downwardAPI": {
                    "items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]
                }
            },
        ]
    },
}
CA = {"kind": "ConfigMap", "ns": "shop", "name": "ca", "data": {"ca.crt": "roots"}}
WANTED = token_key("u1", "", 3607)


def document(wall, token=TOKEN, life=3607):
    return {
        "kind": "Token", "uid": "u1", "audience": "", "seconds": 3607, "token": token, "from": wall, "until": wall + life,
    }  # fmt: skip


@pytest.fixture
def node(tmp_path):
    shm = tmp_path / "shm"
    shm.mkdir()
    secret = os.urandom(32)
    made = Node(tmp_path, tmpfs=str(shm))
    made.vault = lambda: Vault(made.sealed, [secret], os.urandom)
    made.sealed = Vault(None, [secret], os.urandom).record([secret])
    made.crash()
    made.set("configmap/shop/ca", CA)
    return made


def read(*path):
    with open(os.path.join(*path), errors="replace") as f:
        return f.read()


def asked(node):
    return [body["want"] for kind, key, body in node.reports if kind == "token" and key == KEY]


def deliver(node, **more):
    """As the session does: not journalled by it."""
    body = json.dumps(document(node.clock.wall(), **more)).encode()
    assert node.workloads.admit(WANTED, body) is None
    node.workloads.set(WANTED, body)


def with_token():
    mount = {"name": "access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
    made = pod(volumes=[VOLUME])
    made["spec"]["containers"][0]["volumeMounts"] = [mount]
    return made


def test_a_pod_starts_with_its_token_and_nobody_hears_that_it_waited(node):
    node.set(KEY, with_token())
    node.until(lambda: asked(node) == [[["access", 0]]])
    deliver(node)
    node.until(lambda: node.phase() == "Running")
    (mount,) = node.runtime.launches[0].mounts
    assert mount.source.startswith(node.tmpfs) and mount.read_only
    found = {name: read(mount.source, name) for name in ("token", "ca.crt", "namespace")}
    assert found == {"token": TOKEN, "ca.crt": "roots", "namespace": "shop"}
    assert "FailedMount" not in node.reasons()


def test_the_token_is_on_no_disk_in_clear_and_outlives_the_agent(node):
    node.set(KEY, with_token())
    node.until(lambda: asked(node))
    deliver(node)
    node.until(lambda: node.phase() == "Running")
    stored = dict(node.store.items())
    assert any(name.startswith("token/") for name in stored)
    assert not [name for name, value in stored.items() if TOKEN.encode() in value]
    for path in glob.glob(node.root + "/pods/**", recursive=True):
        assert not os.path.isfile(path) or TOKEN not in read(path)
    node.reports.clear()
    node.crash()
    node.until(lambda: node.workloads._recovered)
    node.settle()
    assert node.workloads._library.tokens.get(WANTED) == TOKEN
    assert asked(node) == []


def test_what_another_identity_sealed_is_asked_for_anew(node):
    node.set(KEY, with_token())
    node.until(lambda: asked(node))
    deliver(node)
    node.until(lambda: node.phase() == "Running")
    node.reports.clear()
    node.vault = lambda: Vault(None, [os.urandom(32)], os.urandom)
    node.crash()
    node.until(lambda: asked(node))
    assert node.workloads._library.tokens.get(WANTED) is None


def test_a_token_is_renewed_at_four_fifths_of_its_life_and_the_file_follows(node):
    node.set(KEY, with_token())
    node.until(lambda: asked(node))
    deliver(node)
    node.until(lambda: node.phase() == "Running")
    source = node.runtime.launches[0].mounts[0].source
    node.clock.ahead += 3607 * 0.79
    node.workloads._tokens.look()
    node.settle()
    assert len(asked(node)) == 1
    node.clock.ahead += 3607 * 0.02
    node.workloads._tokens.look()
    node.until(lambda: len(asked(node)) == 2)
    deliver(node, token=NEXT)
    node.until(lambda: read(source, "token") == NEXT)
    assert len(node.runtime.launches) == 1


def test_a_token_that_does_not_come_is_asked_for_again_and_the_reason_is_told(node):
    node.set(KEY, with_token())
    node.until(lambda: asked(node))
    node.workloads.token_refused(KEY, "this hub has no API server that issues tokens")
    node.until(lambda: "FailedMount" in node.reasons())
    node.settle()
    assert len(asked(node)) == 1
    node.clock.ahead += ASK_AGAIN_S + 1
    node.workloads._tokens.look()
    node.until(lambda: len(asked(node)) == 2)
    assert node.runtime.launches == []


def test_nothing_of_a_pods_tokens_stays_when_it_has_gone(node):
    node.set(KEY, with_token())
    node.until(lambda: asked(node))
    deliver(node)
    node.until(lambda: node.phase() == "Running")
    node.delete(KEY)
    node.until(lambda: "u1" in node.runtime.removed)
    node.until(lambda: not [name for name, _ in node.store.items() if name.startswith("token/")])
    assert node.workloads._library.tokens.owner(TOKEN) is None
    deliver(node)  # late: it was under way
    assert not [name for name, _ in node.store.items() if name.startswith("token/")]


def test_a_node_without_tmpfs_refuses_the_pod(tmp_path):
    node = Node(tmp_path)
    node.facts.allow_secret_files = False
    node.workloads.start()
    node.set(KEY, with_token())
    node.until(lambda: node.phase() == "Failed")
    assert "tmpfs" in node.status()["message"]
    assert asked(node) == []


def test_a_token_document_has_to_be_what_its_key_says():
    good = document(1000.0)
    assert fault(WANTED, json.dumps(good).encode()) is None
    for change in (
        {"uid": "u2"},
        {"audience": "x"},
        {"seconds": 1},
        {"token": ""},
        {"kind": "Pod"},
        {"until": 1.0},
    ):
        told = fault(WANTED, json.dumps({**good, **change}).encode())
        assert told and TOKEN not in told
    assert fault(WANTED, b"[]") and fault(WANTED, b"{") and fault(WANTED, bytes(20000))


def test_volumes_that_ask_for_the_same_share_a_token():
    volumes = [{**VOLUME, "name": name} for name in ("a", "b")]
    other = {"serviceAccountToken": {"path": "t", "audience": "bank", "expirationSeconds": 600}}
    volumes.append({"name": "c", "projected": {"sources": [other]}})
    found = needs({"uid": "u1", "spec": {"volumes": volumes}})
    assert sorted((n.audience, n.seconds) for n in found) == [("", 3607), ("bank", 600)]


def test_a_long_lived_token_is_renewed_after_a_day():
    tokens = Tokens()
    need = Need("u1", "v", 0, {"expirationSeconds": 3607})
    tokens.put(need.key, json.dumps(document(0.0, life=10 * 86400)).encode())
    assert tokens.due_at(need) == 86400.0


def test_what_is_sealed_survives_the_renewal_of_the_nodes_certificate(tmp_path):
    """`Parts` over the key files of a real data directory, as the agent uses it around a renewal."""
    data_dir = str(tmp_path)
    old, new = (p256.generate(os.urandom(p256.ENTROPY_BYTES)) for _ in range(2))
    store = Store()

    def parts():
        made = Parts(data_dir, Config(), Host(), "e1")
        made._vault_store = store
        return made

    credentials.write_file(data_dir, credentials.IDENTITY, p256.private_pem(old))
    agent = parts()
    agent.rewrap()  # nothing is sealed yet: nothing to keep
    assert store.items() == []
    sealed = agent.vault().seal("name", b"secret")
    credentials.write_file(data_dir, credentials.IDENTITY_NEXT, p256.private_pem(new))
    agent.rewrap()
    assert parts().vault().unseal("name", sealed) == b"secret"
    os.replace(tmp_path / credentials.IDENTITY_NEXT, tmp_path / credentials.IDENTITY)
    assert parts().vault().unseal("name", sealed) == b"secret"
    agent.rewrap()
    assert parts().vault().unseal("name", sealed) == b"secret"
    assert len(json.loads(dict(store.items())["vault"])) == 1
    credentials.write_file(data_dir, credentials.IDENTITY, p256.private_pem(old))
    assert parts().vault().fresh
