"""Who may do what, as a user sees it: stock kubectl, a token, a kubeconfig of one's own, and the audit log."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.cluster import Cluster, run_cloudhub, wait_for
from tests.e2e.kube import Kube

DOCS = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [configmaps], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: readers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: User, name: jim, apiGroup: rbac.authorization.k8s.io}]
"""


class Asker:
    """kubectl with another's kubeconfig."""

    def __init__(self, kube: Kube, path: Path) -> None:
        self._kube, self._path = kube, path

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [self._kube.binary, "--kubeconfig", str(self._path), "--namespace", self._kube.namespace, *arguments],
            capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(self._path.parent), "KUBECONFIG": ""},
        )  # fmt: skip
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done.stdout + done.stderr


def with_token(kube: Kube, token: str, path: Path) -> Asker:
    config = yaml.safe_load(Path(kube.cluster.main.kubeconfig).read_text())
    config["users"][0]["user"] = {"token": token}
    path.write_text(yaml.safe_dump(config))
    return Asker(kube, path)


def token_of(kube: Kube, name: str) -> str:
    """By `kubectl create token` where there is one."""
    if kube.is_current:
        return kube("create", "token", name, "--duration=20m").strip()
    path = f"/api/v1/namespaces/{kube.namespace}/serviceaccounts/{name}/token"
    return str(kube.cluster.main.api("POST", path, {"spec": {}})["status"]["token"])


def test_kubectl_gives_rights_by_roles_and_shows_them(kube: Kube, tmp_path: Path) -> None:
    robot = f"{kube.namespace}:robot"
    wait_for(lambda: "default" in kube("get", "serviceaccounts"), "the namespace has its default account")
    kube("create", "serviceaccount", "robot")
    ask = with_token(kube, token_of(kube, "robot"), tmp_path / "robot")
    assert f'"system:serviceaccount:{robot}" cannot list resource "pods"' in ask("get", "pods", code=1)
    assert ask("auth", "can-i", "list", "pods", code=1).startswith("no")

    kube("create", "role", "reader", "--verb=get,list,watch", "--resource=pods")
    kube("create", "rolebinding", "readers", "--role=reader", f"--serviceaccount={robot}")
    wait_for(lambda: ask("auth", "can-i", "list", "pods").startswith("yes"), "the binding holds")
    assert "No resources found" in ask("get", "pods")
    assert "cannot create" in ask("create", "configmap", "x", code=1)
    ask("get", "nodes", code=1)
    assert "pods" in ask("auth", "can-i", "--list")
    if kube.is_current:
        assert f"system:serviceaccount:{robot}" in ask("auth", "whoami")
    assert "Role/reader" in kube("get", "rolebindings")
    assert "[get list watch]" in kube("describe", "role", "reader")

    as_robot = f"--as=system:serviceaccount:{robot}"
    assert kube("auth", "can-i", "get", "pods", as_robot).startswith("yes")
    kube("auth", "can-i", "get", "secrets", as_robot, code=1)
    assert "cannot impersonate" in ask("--as=admin", "get", "pods", code=1)
    stolen = ("create", "rolebinding", "all", "--clusterrole=cluster-admin", f"--serviceaccount={robot}")
    assert "forbidden" in ask(*stolen, code=1)

    file = tmp_path / "docs.yaml"
    file.write_text(DOCS.replace("name: rea", f"namespace: {kube.namespace}, name: rea"))
    reconciled = kube("auth", "reconcile", "-f", str(file))
    assert "missing rules added" in reconciled
    assert "missing subjects added" in reconciled
    assert kube("auth", "can-i", "get", "configmaps", as_robot).startswith("yes")

    kube("delete", "serviceaccount", "robot")
    wait_for(lambda: "service account is gone" in ask("get", "pods", code=1), "the token ends with it")


def test_cluster_roles_are_made_and_the_default_ones_are_shown_whole(kube: Kube) -> None:
    name = kube.namespace
    kube("create", "clusterrole", name, "--verb=get,list", "--resource=nodes")
    kube("create", "clusterrolebinding", name, f"--clusterrole={name}", f"--user={name}")
    assert "n1" in kube("get", "nodes", f"--as={name}")
    kube("get", "pods", f"--as={name}", code=1)
    wait_for(lambda: "deployments.apps" in kube("describe", "clusterrole", "admin"), "its parts are shown")
    assert f"ClusterRole/{name}" in kube("get", "clusterrolebindings", "-o", "wide")
    kube("delete", "clusterrolebinding,clusterrole", name)


def test_a_user_gets_a_kubeconfig_and_what_he_does_is_told(cluster: Cluster, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    rules: Any = [
        {"level": "None", "nonResourceURLs": ["/api*", "/openapi*", "/version*"]},
        {"level": "RequestResponse", "users": ["jane"]},
        {"level": "RequestResponse", "resources": [{"group": ""}], "verbs": ["create"]},
        {"level": "Metadata", "nonResourceURLs": ["/cloudhub/users"]},
    ]
    policy.write_text(yaml.safe_dump({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules}))
    hub = cluster.hub(audit_policy=str(policy))
    made, where = tmp_path / "jane.kubeconfig", ("--data-dir", str(hub.data_dir))
    made_by = ("user", "create", "jane", "--group", "dev", "--ttl", "1h", "--output", str(made), *where)
    assert run_cloudhub(*made_by).strip() == str(made)
    assert made.stat().st_mode & 0o777 == 0o600
    assert "left alone" in run_cloudhub(*made_by, code=1)
    eve = ("user", "create", "eve", "--group", "system:masters", "--output", str(tmp_path / "eve"))
    assert "cannot impersonate" in run_cloudhub(*eve, "--kubeconfig", str(made), code=1)
    assert not (tmp_path / "eve").exists()

    cluster.kubectl("create", "rolebinding", "devs", "--clusterrole=edit", "--group=dev")
    rows = run_cloudhub("user", "list", *where)
    assert ["Group/dev", "default", "ClusterRole/edit", "devs"] in [row.split() for row in rows.splitlines()]

    def kubectl(*arguments: str, code: int = 0) -> str:
        return cluster.kubectl("--kubeconfig", str(made), *arguments, code=code)

    wait_for(lambda: kubectl("auth", "can-i", "create", "secrets").startswith("yes"), "the binding holds")
    kubectl("create", "configmap", "a", "--from-literal=x=in-clear")
    kubectl("create", "secret", "generic", "s", "--from-literal=x=PLANTED-SECRET")
    assert "forbidden" in kubectl("get", "nodes", code=1)
    hub.stop()
    log = hub.data_dir / "audit.log"
    assert log.stat().st_mode & 0o777 == 0o600
    text = log.read_text()
    events = [json.loads(line) for line in text.splitlines()]
    mine = [e for e in events if e["user"].get("username") == "jane" and e["stage"] == "ResponseComplete"]
    told = {(e["verb"], e.get("objectRef", {}).get("resource"), e["responseStatus"]["code"]) for e in mine}
    assert {("create", "configmaps", 201), ("create", "secrets", 201), ("list", "nodes", 403)} <= told
    assert "in-clear" in text
    assert "PLANTED" not in text
    assert "PRIVATE KEY" not in text
    assert any(e["requestURI"] == "/cloudhub/users" for e in events)
