"""A hub from the rendered command line, environment and files, at a real cluster, with the chart's role and nothing more.

The release is installed by Helm, so that the ServiceAccount, its roles, the CustomResourceDefinition and the webhook's
registration are the chart's. An agent joins, a pod runs there, and its log is read through the API server.
"""

import base64
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import helm_python
import pytest

from hub.kubernetes import tokens
from hub.kubernetes.webhook import NAME as WEBHOOK
from observability.catalogue import CATALOGUE
from security import join
from security.ca import CertificateAuthority
from tests.e2e.cluster import Agent, wait_for
from tests.helm.chart import CHART, FULL, NAMESPACE, RELEASE, VALUE_SETS, Object, merged, rendered
from tests.helm.pod import Pod
from tests.observability.scraped import samples
from tests.servers.kubernetes import ApiError, KubeCluster

HOOKS = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{WEBHOOK}"
VALUES = merged(
    VALUE_SETS["webhook"],
    {
        "replicas": 1,
        "etcd": {"mode": "none"},
        "nats": {"mode": "none"},
        "hub": {"slots": 16, "heartbeat": "2s"},
    },
    {"kubernetes": {"kubelet": {"clientCaConfigMap": "client-ca"}}},
)
POD = {
    "metadata": {"name": "hello", "labels": {"cloudhub.dev/runtime": "process"}},
    "spec": {
        "nodeName": "edge-1",
        "containers": [{"name": "c", "image": "none", "command": ["sh", "-c", "echo hello; exec sleep 600"]}],
        "terminationGracePeriodSeconds": 1,
    },
}


@pytest.fixture
def cluster() -> Iterator[KubeCluster]:
    # What the chart gives edge nodes is the hub's own certificate, which is not from the cluster's authority.
    with KubeCluster(verify_kubelets=False) as started:
        started.api("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        yield started


def test_a_hub_with_the_charts_role_runs_pods_at_the_edge_of_a_real_cluster(
    cluster: KubeCluster, tmp_path: Path
) -> None:
    with helm_python.Config(kubeconfig_path=cluster.kubeconfig, namespace=NAMESPACE) as helm:
        helm.install(CHART, RELEASE, VALUES)
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(own_kubeconfig(cluster, tmp_path))
        root = tmp_path / "hub"
        root.mkdir()
        pod = Pod(
            rendered(VALUES), FULL, root, program=[sys.executable, "-m", "hub"],
            given={"client-ca": {"ca.crt": Path(cluster.kubelet_client_ca).read_text()}},
            # A pod has the same from its environment.
            more=["--kubeconfig", str(kubeconfig)],
        )  # fmt: skip
        agent = Agent("edge-1", tmp_path / "agent")
        try:
            with pod:
                pod.wait_ready()
                roots = Path(pod.path("/data/cloudhub/ca/ca.crt")).read_bytes()
                hook = cluster.api("GET", HOOKS)["webhooks"][0]
                assert base64.b64decode(hook["clientConfig"]["caBundle"]).strip() == roots.strip()

                agent.join(pod.address("edge"), join_token(cluster, pod))
                wait_for(
                    lambda: ready(cluster),
                    "the Node is ready",
                    60,
                    lambda: (agent.log_path.read_text(), pod.log()),
                )
                wait_for(lambda: found(cluster, LEASE), "its lease is there", 60, pod.log)
                wait_for(
                    lambda: (
                        "\ncloudhub_kubernetes_leases_renewed_total " in pod.get("metrics", "/metrics")[1]
                    ),
                    "its renewals are counted",
                    60,
                    pod.log,
                )
                scraped = {name for name, _, _ in samples(pod.get("metrics", "/metrics")[1])}
                wanted = {m.prometheus for m in CATALOGUE if m.when == "--source kubernetes"}
                assert wanted <= scraped, f"documented and not exported: {sorted(wanted - scraped)}"
                assert "is not exported: add it" not in pod.log()
                cluster.api("POST", "/api/v1/namespaces/default/pods", POD)
                wait_for(
                    lambda: phase(cluster) == "Running",
                    "the pod runs",
                    60,
                    lambda: (agent.log_path.read_text(), pod.log()),
                )
                # Sent to the pod's address and the kubelet's port, that the Node names.
                wait_for(
                    lambda: "hello" in cluster.kubectl("logs", "hello", code=None), "its log", 60, pod.log
                )
                cluster.api("DELETE", "/api/v1/namespaces/default/pods/hello")
                wait_for(
                    lambda: phase(cluster) is None,
                    "the pod is gone",
                    60,
                    lambda: (agent.log_path.read_text(), pod.log()),
                )

                helm.upgrade(CHART, RELEASE, merged(VALUES, {"hub": {"logLevel": "debug"}}))
                assert cluster.api("GET", HOOKS)["webhooks"][0] == hook, (
                    "an upgrade keeps the roots that the hub gave"
                )
                assert "forbidden" not in pod.log(None).lower(), pod.log(None)
                assert pod.terminate() == 0
        finally:
            agent.kill9()
            agent.kill_workloads()


LEASE = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1"
MOUNTED = "/var/run/secrets/kubernetes.io/serviceaccount"


def own_kubeconfig(cluster: KubeCluster, directory: Path) -> str:
    """The kubeconfig in the release's ConfigMap, with what a pod is given: its account's files, the cluster's DNS."""
    account = cluster.api("GET", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{FULL}")
    token = cluster.pki.token(NAMESPACE, FULL, account["metadata"]["uid"], 3600)
    (directory / "token").write_text(token)
    (directory / "ca.crt").write_bytes(Path(cluster.pki.root).read_bytes())
    text = str(cluster.api("GET", f"/api/v1/namespaces/{NAMESPACE}/configmaps/{FULL}")["data"]["kubeconfig"])
    return text.replace(MOUNTED, str(directory)).replace("https://kubernetes.default.svc", cluster.server)


def join_token(cluster: KubeCluster, pod: Pod) -> str:
    """A token as the command line makes it."""
    authority = CertificateAuthority.open(pod.path("/data/cloudhub/ca"), "cloudhub.local")
    request = join.TokenRequest(authority.trust_domain, authority.root_sha256, node="edge-1")
    record, text = join.mint(request, time.time(), secrets.token_bytes(join.ENTROPY_BYTES))
    cluster.api(
        "POST", "/apis/cloudhub.dev/v1alpha1/jointokens", tokens.new_token({"node": "edge-1"}, record)
    )
    return text


def found(cluster: KubeCluster, path: str) -> Object | None:
    try:
        answer: Object = cluster.api("GET", path)
    except ApiError as failure:
        if failure.code == 404:
            return None
        raise
    return answer


def ready(cluster: KubeCluster) -> bool:
    node = found(cluster, "/api/v1/nodes/edge-1") or {"status": {}}
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", []))


def phase(cluster: KubeCluster) -> str | None:
    pod = found(cluster, "/api/v1/namespaces/default/pods/hello")
    return str(pod["status"].get("phase")) if pod is not None else None
