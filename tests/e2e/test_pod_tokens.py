"""A pod's own token where the objects are the hub's own: as a kubelet gives it one, without a Kubernetes cluster."""

import json
import os
from pathlib import Path

from tests.e2e.cluster import Cluster, kubectl_binaries, run_cloudhub, sleeper, wait_for
from tests.e2e.kube import Kube
from tests.e2e.test_access import with_token


def test_a_pod_of_the_embedded_store_has_a_token_that_is_its_account_and_ends_with_it(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    kube = Kube(shared_cluster, kubectl_binaries()[0], f"t-{os.urandom(4).hex()}")
    kube("create", "serviceaccount", "robot")
    kube("create", "role", "reader", "--verb=list", "--resource=pods")
    kube("create", "rolebinding", "readers", "--role=reader", f"--serviceaccount={kube.namespace}:robot")
    source = {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}
    pod = sleeper("shop", "n1", serviceAccountName="robot")
    pod["spec"]["volumes"] = [{"name": "access", "projected": {"sources": [source]}}]
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "access", "mountPath": "access"}]
    kube.apply(pod)
    kube.ready("pod/shop")
    token = kube("exec", "shop", "--", "cat", "access/token").strip()

    ask = with_token(kube, token, tmp_path / "robot")
    who = json.loads(ask("auth", "whoami", "-o", "json"))["status"]["userInfo"]
    assert who["username"] == f"system:serviceaccount:{kube.namespace}:robot"
    assert who["extra"]["authentication.kubernetes.io/pod-name"] == ["shop"]
    assert "shop" in ask("get", "pods")
    assert "forbidden" in ask("get", "secrets", code=1)
    agent = shared_cluster.agents["n1"]
    for path in agent.data_dir.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert token.encode() not in path.read_bytes(), f"{path} has the token in clear"
    assert b"token/" in (agent.data_dir / "journal").read_bytes(), "it is kept, sealed, for a restart"

    where = ("--data-dir", str(shared_cluster.main.data_dir))
    rows = run_cloudhub("serviceaccount", "rotate-keys", *where).splitlines()
    assert [row.split()[1] for row in rows] == ["PHASE", "signs", "verifies"]
    assert "shop" in ask("get", "pods"), "the key before goes on verifying"

    kube("delete", "pod", "shop")
    wait_for(lambda: "bound to is gone" in ask("get", "pods", code=1), "the token ends with its pod")
    shared_cluster.main.api("DELETE", f"/api/v1/namespaces/{kube.namespace}")
