"""A hub whose objects live in a real Kubernetes API server, with real agents: what `--source kubernetes` is tested on.

with KubeEdge(tmp_path, kubernetes) as edge:       # `cloudhub serve --source kubernetes`, waited for
    edge.agent("edge-1")                           # joined, and Ready in `kubectl get nodes`
    kube = Kube(edge, edge.kubectl_path, "shop")   # as in the tests of a hub alone
"""

import secrets
import time
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from hub import kubeconfig
from hub.kubernetes import tokens
from security import ca, join
from tests.e2e.cluster import ROOT, ApiFailure, Cluster, Hub
from tests.helm.chart import FULL, NAMESPACE, rendered
from tests.ports import free_port
from tests.servers.kubernetes import ApiError, KubeCluster

RIGHTS = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
TOKEN_S = 3600.0


class KubeHub(Hub):
    """One `cloudhub serve --source kubernetes`. `api` and `kubeconfig` are those of the API server."""

    def __init__(self, data_dir: Path, cluster: KubeCluster, kubeconfig: str, **settings: Any) -> None:
        self.cluster = cluster
        super().__init__(
            data_dir,
            **{
                "source": "kubernetes",
                "kubeconfig": kubeconfig,
                "kubelet_address": f"127.0.0.1:{free_port()}",
                "kubelet_client_ca": cluster.kubelet_client_ca,
                **settings,
            },
        )

    @property
    def kubeconfig(self) -> str:
        return self.cluster.kubeconfig

    def api(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        try:
            return self.cluster.api(method, path, body, content_type)
        except ApiError as refused:
            raise ApiFailure(refused.code, refused.status) from refused

    def token(self, *arguments: str) -> str:
        return mint_token(self.cluster, str(self.data_dir / "kubeconfig"), *arguments)


class KubeEdge(Cluster):
    """See the module. The hub has the rights of the chart."""

    def __init__(self, root: Path, kubernetes: KubeCluster, **settings: Any) -> None:
        super().__init__(root)
        self.kubernetes = kubernetes
        self.settings = {"heartbeat": "1s", "node_lease": "5s", **settings}
        token = kubernetes.root / "cloudhub.token"
        token.touch(mode=0o600)
        token.write_text(Account(kubernetes).token())
        self.hub_kubeconfig = kubernetes.pki.kubeconfig(kubernetes.server, "cloudhub", token_file=str(token))
        try:
            self.edge_hub()
        except BaseException:
            self.close()
            raise

    def edge_hub(self, name: str = "hub", **settings: Any) -> KubeHub:
        """Starts a hub; the first one is the cluster's."""
        made = KubeHub(
            self.root / name, self.kubernetes, self.hub_kubeconfig, **{**self.settings, **settings}
        )
        self.hubs.append(made)
        made.start()
        return made

    def __enter__(self) -> "KubeEdge":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Account:
    """The hub's service account with the rights that the chart gives it and no others; the chart's own kinds are served, too."""

    def __init__(self, kubernetes: KubeCluster) -> None:
        self._kubernetes = kubernetes
        self._path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
        kubernetes.api("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        rights = [o for o in rendered({"source": "kubernetes"}) if o["kind"] in RIGHTS]
        kubernetes.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(rights))
        kubernetes.kubectl("apply", "-f", str(ROOT / "helm/cloudhub/resources"))
        kubernetes.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        self._uid = self._make()

    def token(self) -> str:
        return self._kubernetes.pki.token(NAMESPACE, FULL, self._uid, TOKEN_S)

    def revoke(self) -> None:
        """Every token until now is refused."""
        self._kubernetes.api("DELETE", f"{self._path}/{FULL}")
        self._uid = self._make()

    def _make(self) -> str:
        return str(self._kubernetes.api("POST", self._path, {"metadata": {"name": FULL}})["metadata"]["uid"])


def mint_token(kubernetes: KubeCluster, hub_kubeconfig: str, *options: str) -> str:
    """A join token that is made here, as `cloudhub token create OPTIONS` makes it; the API server gets its JoinToken.
    `hub_kubeconfig`: what the hub writes into its data directory, which has its root."""
    given = {name.removeprefix("--"): value for name, value in zip(options[::2], options[1::2], strict=True)}
    spec: dict[str, Any] = {**given, **({"count": int(given["count"])} if "count" in given else {})}
    spec |= {"approval": True} if "approval" in given else {}
    root = x509.load_pem_x509_certificate(kubeconfig.read(hub_kubeconfig).root_pem.encode())
    request = join.TokenRequest(
        ca.DEFAULT_TRUST_DOMAIN,
        root.fingerprint(hashes.SHA256()),
        node=given.get("node"),
        pool=given.get("pool"),
        count=int(given.get("count", 1)),
        approval=bool(given.get("approval")),
    )
    record, text = join.mint(request, time.time(), secrets.token_bytes(join.ENTROPY_BYTES))
    kubernetes.api("POST", "/apis/cloudhub.dev/v1alpha1/jointokens", tokens.new_token(spec, record))
    return text


def pod_template(app: str, script: str, **spec: Any) -> dict[str, Any]:
    """A pod template of one process on an edge node."""
    return {
        "metadata": {"labels": {"app": app, "cloudhub.dev/runtime": "process"}},
        "spec": {
            "terminationGracePeriodSeconds": 2,
            "automountServiceAccountToken": False,
            "nodeSelector": {"cloudhub.dev/edge": "true"},
            "containers": [{"name": "main", "image": "none", "command": ["/bin/sh", "-c", script]}],
            **spec,
        },
    }


def workload(kind: str, name: str, template: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """A Deployment or a DaemonSet of a template that `pod_template` made for `name`."""
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template, **spec},
    }


def job(name: str, script: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"template": pod_template(name, script, restartPolicy="Never"), **spec},
    }


def pod(name: str, script: str, **spec: Any) -> dict[str, Any]:
    made = pod_template(name, script, **spec)
    made["metadata"]["name"] = name
    return {"apiVersion": "v1", "kind": "Pod", **made}
