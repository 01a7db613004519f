"""Planted secrets are found nowhere: not in logs, stores, journals, process lists, metrics, events, statuses or backups."""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path

import psutil
import pytest

from edgelite import jointoken
from edgelite.podenv import HIDDEN
from hub import kubeconfig
from hub.backup import BackupSource
from hub.keyproviders import OWN_KEY_FILE
from security import tls
from tests.e2e.cluster import ROOT, Agent, Cluster, Hub, run_cloudhub, sleeper, wait_for
from tests.e2e.hostile import request
from tests.e2e.plants import Plant, found, found_in_files, found_in_process, pem_body, planted
from tests.security.softhsm import Token
from tests.servers.etcd import EtcdCluster

SECRETS = "/api/v1/namespaces/default/secrets"
PODS = "/api/v1/namespaces/default/pods"
ACCOUNT = "/api/v1/namespaces/default/serviceaccounts/default"
TOKENS = "/apis/cloudhub.dev/v1alpha1/jointokens"


@pytest.mark.parametrize("wrap", [bytes, lambda v: v[::-1], bytes.hex, base64.b64encode, zlib.compress])
def test_the_search_finds_a_plant_in_every_form(wrap, tmp_path: Path) -> None:
    plant = planted("it")
    wrapped = wrap(b"x" + plant.value + b"yz") if wrap is base64.b64encode else wrap(plant.value)
    data = wrapped.encode() if isinstance(wrapped, str) else wrapped
    data = data if wrap is zlib.compress else b"before " + data + b" behind"
    assert found([plant], "here", data)
    assert found([plant], "here", data.replace(b"\0", b"\0")[: len(data)])
    assert not found([planted("another")], "here", data)
    assert not found([Plant("it", plant.value, ("/home",))], "a/home", data)


def bad_secret(hub: Hub, plant: Plant) -> None:
    """Everything that is refused with a secret in it."""
    text = plant.value.decode()
    for method, path, body, kind in (
        ("POST", SECRETS, f'{{"metadata":{{"name":"t"}},"data":{{"key":"!{text}"}}}}', "application/json"),
        ("POST", SECRETS, f'{{"metadata":{{"name":"t"}},"stringData":{{"key":["{text}"]}}}}', "application/json"),
        ("POST", SECRETS, f'{{"metadata":{{"name":"t"}},"stringData":{{"key":"{text}"', "application/json"),
        ("POST", SECRETS, f'{{"metadata":{{"name":"t"}},"stringData":{{"k y":"{text}"}}}}', "application/json"),
        ("POST", SECRETS, f"stringData: {{key: [{text}", "application/yaml"),
        ("POST", SECRETS, "\0k8s\0" + text, "application/vnd.kubernetes.protobuf"),
        ("PATCH", SECRETS + "/s", f'{{"data":{{"key":"!{text}"}}}}', "application/merge-patch+json"),
        ("PATCH", SECRETS + "/s", f'[{{"op":"test","path":"/data/key","value":"{text}"}}]', "application/json-patch+json"),
        ("PUT", SECRETS + "/other", f'{{"metadata":{{"name":"s"}},"stringData":{{"key":"{text}"}}}}', "application/json"),
    ):  # fmt: skip
        code, answer = request(hub, method, path, body.encode(), kind)
        assert code >= 400, (method, path, body, answer)
        assert not found([plant], "", json.dumps(answer).encode()), answer
    code, _ = request(hub, "GET", PODS, headers={"Authorization": f"Bearer {text}", "X-Big": text * 900})
    assert code in (200, 400, 401, 431)


def pods(node: str, plant: Plant) -> list[dict[str, object]]:
    """Pods that use a Secret in every way, and some whose start fails with it in hand."""
    key = {"valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}}
    probing = sleeper("user", node, 'test -n "$KEY" && test -s v/key && test -s one && exec sleep 1000')
    probing["spec"]["containers"][0] |= {
        "env": [{"name": "KEY", **key}],
        "envFrom": [{"secretRef": {"name": "s"}, "prefix": "ALL_"}],
        "volumeMounts": [
            {"name": "v", "mountPath": "v"},
            {"name": "v", "mountPath": "one", "subPath": "key"},
        ],
        "livenessProbe": {
            "exec": {"command": ["/bin/sh", "-c", "exit 1"]},
            "periodSeconds": 1,
            "failureThreshold": 50,
        },
    }
    probing["spec"]["volumes"] = [{"name": "v", "secret": {"secretName": "s"}}]
    crashing = sleeper("crashing", node, "kill -SEGV $$")
    crashing["spec"]["containers"][0]["env"] = [{"name": "KEY", **key}]
    missing = sleeper("missing", node)
    missing["spec"]["containers"][0] |= {"env": [{"name": "KEY", **key}], "command": ["/no/such/$(KEY)"]}
    misplaced = sleeper("misplaced", node)
    misplaced["spec"]["containers"][0] |= {
        "env": [{"name": "KEY", **key}],
        "volumeMounts": [{"name": "v", "mountPath": "v", "subPathExpr": "no/$(KEY)"}],
    }
    misplaced["spec"]["volumes"] = [{"name": "v", "secret": {"secretName": "s"}}]
    absent = sleeper("absent", node)
    absent["spec"]["containers"][0]["env"] = [
        {"name": "A", **key},
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "none"}}},
    ]
    return [probing, crashing, missing, misplaced, absent]


def service_account_token(hub: Hub) -> Plant:
    """The signature of one that a user asked for, and uses for what is refused."""
    request_body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    asked = hub.api("POST", ACCOUNT + "/token", request_body)["status"]["token"]
    context = tls.client_context(kubeconfig.read(hub.kubeconfig).root_pem)
    for path in (SECRETS, "/api/v1/namespaces/kube-system/secrets", "/no/such/path"):
        code, _ = request(hub, "GET", path, headers={"Authorization": f"Bearer {asked}"}, context=context)
        assert code in (403, 404)
        code, _ = request(hub, "GET", path, headers={"Authorization": f"Bearer {asked}x"}, context=context)
        assert code == 401
    return Plant("signature of a service account's token", asked.split(".")[2].encode())


def join_with_a_wrong_token(hub: Hub, right: str, directory: Path) -> tuple[Plant, bytes]:
    """A token that is not known here, given in a file descriptor; what the agent says."""
    parts = right.split(".", 4)
    plant = Plant("secret of a wrong join token", base64.urlsafe_b64encode(os.urandom(24)))
    text = ".".join([parts[0], parts[1], plant.value.decode(), *parts[3:]])
    jointoken.parse(text)
    done = subprocess.run(
        [sys.executable, "-m", "edgelite", "join", "--hub", hub.edge, "--token", "-", "--data-dir", str(directory)],
        cwd=ROOT, input=text.encode(), capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    return plant, done.stdout + done.stderr


def test_planted_secrets_are_nowhere_to_be_found(cluster: Cluster) -> None:
    hub = cluster.hub(log_level="debug")
    value = planted("value of a Secret")
    other = planted("value of a Secret that is refused")
    gone = planted("value of a Secret that was replaced")
    text = hub.token("--node", "n1")
    token = Plant("secret of the join token", text.split(".")[2].encode())
    agent = cluster.agents["n1"] = Agent("n1", cluster.root / "agent-n1")
    agent.join(hub.edge, text, "--log-level", "debug")
    cluster.wait_ready("n1")
    wrong, said = join_with_a_wrong_token(hub, text, cluster.root / "agent-n2")
    for planting in (gone, value):
        body = {"metadata": {"name": "s"}, "stringData": {"key": planting.value.decode()}}
        hub.api("PUT", SECRETS + "/s", body) if planting is value else hub.api("POST", SECRETS, body)
    for pod in pods("n1", value):
        hub.api("POST", PODS, pod)
    bad_secret(hub, other)
    cluster.wait_running("user")
    wait_for(lambda: cluster.pod("crashing")["status"].get("containerStatuses"), "it crashes")
    for name in ("missing", "misplaced"):
        wait_for(
            lambda name=name: HIDDEN in json.dumps(cluster.pod(name)), f"{name} says why, without the value"
        )
    agent.kill9()
    agent.run()
    hub.kill9()
    hub.start()
    cluster.wait_running("user")
    wait_for(lambda: agent.log().count('"message": "connected"') >= 2, "it is back", detail=agent.log)

    keys = [
        pem_body("the authority's key", hub.data_dir / "ca" / "ca.key", ("/ca/ca.key",)),
        pem_body("the node's key", agent.data_dir / "identity.pem", ("/identity.pem",)),
        pem_body("the key of tokens", hub.data_dir / "ca" / "token.keys", ("/ca/token.keys",)),
        Plant("the key file", (hub.data_dir / OWN_KEY_FILE).read_bytes().strip(), ("/" + OWN_KEY_FILE,)),
    ]
    plants = [value, other, gone, token, wrong, *keys, service_account_token(hub)]
    assert hub.process is not None and agent.process is not None
    seen = found(plants, "the join with a wrong token", said)
    for process in (hub.process, agent.process):
        seen += found_in_process(plants, psutil.Process(process.pid))
    for process in agent.workloads():
        with contextlib.suppress(psutil.Error):
            if "shim-" in " ".join(process.cmdline()):
                seen += found_in_process(plants, process)
    clear, sealed = cluster.root / "clear.backup", cluster.root / "sealed.backup"
    run_cloudhub("backup", str(clear), "--data-dir", str(hub.data_dir))
    run_cloudhub("key", "create", str(cluster.root / "keys"))
    run_cloudhub(
        "backup", str(sealed), "--data-dir", str(hub.data_dir), "--key-file", str(cluster.root / "keys")
    )
    for path in (clear, sealed):
        seen += found_in_backup(plants, path)
    for path in (
        "/metrics",
        "/cloudhub/status",
        "/api/v1/events",
        "/api/v1/nodes",
        "/api/v1/pods",
        TOKENS,
        "/openapi/v2",
    ):
        answer = hub.api("GET", path)
        seen += found(
            plants, path, answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        )
    seen += found(plants, "edgelite status", agent.command("status").encode())
    seen += found(
        plants, "cloudhub status", run_cloudhub("status", "--slots", "--data-dir", str(hub.data_dir)).encode()
    )
    # Everything that lies on a disk, while both run, with the write-ahead log, and after both have ended.
    seen += on_disk(plants, cluster.root)
    with contextlib.closing(sqlite3.connect(hub.data_dir / "store.db")) as store:
        assert store.execute("SELECT count(*) FROM kv WHERE key LIKE '%/secrets/%'").fetchone()[0] >= 2
    agent.stop()
    hub.stop()
    seen += on_disk(plants, cluster.root)
    assert not seen, "\n".join(sorted(set(seen)))
    assert hashlib.sha256(text.encode()).hexdigest()[:32] in (agent.data_dir / "config.json").read_text()


def found_in_backup(plants: list[Plant], path: Path) -> list[str]:
    """In the values, which a backup has in base64 once more."""

    async def search() -> list[str]:
        return [
            line
            async for key, value in BackupSource.open(str(path)).items()
            for line in found(plants, f"{path.name}, {key}", value)
        ]

    return asyncio.run(search())


def on_disk(plants: list[Plant], root: Path) -> list[str]:
    """A backup that is not sealed holds the authority's key as PEM inside, and those of tokens, on purpose and said so."""
    allowed = ("clear.backup: the authority's key", "clear.backup: the key of tokens")
    return [line for line in found_in_files(plants, root) if not any(text in line for text in allowed)]


def test_what_is_planted_in_etcd_is_not_in_its_files_and_its_keys_change_under_a_running_hub(
    tmp_path: Path,
) -> None:
    value = planted("value of a Secret")
    keys, old, new = (str(tmp_path / name) for name in ("keys", "old", "new"))
    for path in (old, new):
        run_cloudhub("key", "create", path)

    def give(*paths: str) -> None:
        Path(keys).touch(mode=0o600)
        Path(keys).write_text("".join(Path(path).read_text() for path in paths))

    give(old)
    pin = planted("the PIN of the authority's key", ("/pin",))
    uri = Token(tmp_path, pin.value.decode()).uri("ca")
    said = run_cloudhub("key", "create", uri)
    with EtcdCluster(1) as etcd:
        hub = Hub(
            tmp_path / "hub-0", etcd=etcd.endpoints, key_file=keys, ca_key=uri, slots=4, log_level="debug"
        )

        def shown() -> bytes:
            return base64.b64decode(hub.api("GET", SECRETS + "/s")["data"]["key"])

        try:
            hub.start()
            text = hub.token("--node", "n1")
            hub.api("POST", SECRETS, {"metadata": {"name": "s"}, "stringData": {"key": value.value.decode()}})
            give(new, old)
            arguments = ("store", "reencrypt", "--etcd", ",".join(etcd.endpoints), "--key-file", keys)
            done = json.loads(run_cloudhub(*arguments, "-o", "json"))
            assert (done["values"], done["of"], done["given_up"], done["shared"]) == (2, 2, 1, True)
            give(new)
            assert shown() == value.value, "the hub that ran all the time has taken the new key over"
            hub.api(
                "PATCH", SECRETS + "/s", {"metadata": {"labels": {"a": "b"}}}, "application/merge-patch+json"
            )
            hub.stop()
            hub.start()
            assert shown() == value.value, "and so has one that starts now"
            assert hub.process is not None
            seen = found_in_process([value, pin], psutil.Process(hub.process.pid))
            give(old)
            run_cloudhub(*arguments, code=1)
        finally:
            hub.stop()
        plants = [
            value,
            pin,
            Plant("secret of the join token", text.split(".")[2].encode()),
            *(
                Plant(f"the {Path(path).name} key", Path(path).read_bytes().strip(), (path, keys))
                for path in (old, new)
            ),
        ]
        etcd.kill(0)
        directory = Path(etcd.data_directory(0))
        assert any(b"obj/core/secrets/" in p.read_bytes() for p in directory.rglob("*") if p.is_file())
        seen += found(plants, "cloudhub key create", said.encode())
        seen += found_in_files(plants, directory) + found_in_files(plants, tmp_path)
        assert not seen, "\n".join(seen)
