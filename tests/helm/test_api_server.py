"""The chart at a real API server: every value set applies, a release is installed, upgraded and removed."""

import secrets as random
import shutil
import time
from collections.abc import Iterator
from typing import Any

import helm_python
import pytest
import yaml

from hub.kubernetes import tokens
from security import join
from tests.helm.chart import CHART, FULL, NAMESPACE, RELEASE, VALUE_SETS, Object, of_kind, rendered
from tests.servers.kubernetes import APISERVER, ApiError, KubeCluster

DRY = "dry"
"""A namespace in which nothing is installed."""
SECRETS = f"/api/v1/namespaces/{NAMESPACE}/secrets"
STATEFULSET = f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/{FULL}"
JOINTOKENS = "/apis/cloudhub.dev/v1alpha1/jointokens"


def make_namespace(cluster: KubeCluster, name: str, **labels: str) -> None:
    cluster.api("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    # The controller manager, which does not run here, would make it.
    cluster.api("POST", f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})


@pytest.fixture(scope="module")
def cluster() -> Iterator[KubeCluster]:
    # Services of both families, for the value set of a cluster with IPv6 alone.
    ranges = {"service-cluster-ip-range": "10.96.0.0/24,fd00:96::/112"}
    with KubeCluster(parts=(APISERVER,), apiserver=ranges) as started:
        make_namespace(started, NAMESPACE, **{"pod-security.kubernetes.io/enforce": "restricted"})
        make_namespace(started, DRY, **{"pod-security.kubernetes.io/enforce": "restricted"})
        # In a dry run nothing is made, and a pod without its account is refused for that.
        started.api("POST", f"/api/v1/namespaces/{DRY}/serviceaccounts", {"metadata": {"name": FULL}})
        make_namespace(started, "shop")
        yield started


@pytest.fixture(scope="module")
def installed(cluster: KubeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[helm_python.Config]:
    """The default values, installed from a chart whose CustomResourceDefinition is older."""
    older = tmp_path_factory.mktemp("older") / "cloudhub"
    shutil.copytree(CHART, older)
    path = older / "resources/jointokens.yaml"
    definition = yaml.safe_load(path.read_text())
    del definition["spec"]["versions"][0]["additionalPrinterColumns"]
    path.write_text(yaml.safe_dump(definition))
    with helm_python.Config(kubeconfig_path=cluster.kubeconfig, namespace=NAMESPACE) as helm:
        helm.install(older, RELEASE, {})
        yield helm


OPERATORS = ("PrometheusRule", "ServiceMonitor")
"""Kinds of the Prometheus operator, which is not there."""


@pytest.mark.parametrize("name", sorted(VALUE_SETS))
def test_a_value_set_applies_with_a_server_side_dry_run(cluster: KubeCluster, name: str) -> None:
    objects = [o for o in rendered(VALUE_SETS[name], namespace=DRY) if o["kind"] not in OPERATORS]
    said = cluster.kubectl(
        *("apply", "--server-side", "--dry-run=server", "--force-conflicts", "--validate=strict", "-f", "-"),
        stdin=yaml.safe_dump_all(objects),
    )
    assert said.count("serverside-applied (server dry run)") == len(objects)
    assert "unknown field" not in said and "deprecated" not in said
    assert ("would violate PodSecurity" in said) == (name == "host-ports"), said
    for found in of_kind(objects, "StatefulSet"):
        outcome = pod_refused(cluster, found)
        if name == "host-ports" and found["metadata"]["name"] == FULL:
            assert outcome is not None and "hostPort" in outcome
        else:
            assert outcome is None


def pod_refused(cluster: KubeCluster, stateful: Object) -> str | None:
    """Why a namespace with the restricted standard does not take a pod of it; None: it does."""
    template = stateful["spec"]["template"]
    spec = dict(template["spec"])
    claimed = [c["metadata"]["name"] for c in stateful["spec"].get("volumeClaimTemplates", [])]
    spec["volumes"] = spec.get("volumes", []) + [{"name": c, "emptyDir": {}} for c in claimed]
    pod = {"metadata": {**template["metadata"], "name": "a-pod"}, "spec": spec}
    try:
        cluster.api("POST", f"/api/v1/namespaces/{DRY}/pods?dryRun=All&fieldValidation=Strict", pod)
    except ApiError as refused:
        return str(refused)
    return None


def secrets(cluster: KubeCluster) -> dict[str, Any]:
    found = cluster.api("GET", SECRETS)["items"]
    return {s["metadata"]["name"]: s["data"] for s in found if s["metadata"]["name"].startswith(FULL)}


def a_token() -> Object:
    """A JoinToken as the command line makes it."""
    request = join.TokenRequest("cloudhub.local", bytes(32), node="n1")
    record, _ = join.mint(request, time.time(), random.token_bytes(join.ENTROPY_BYTES))
    return tokens.new_token({"node": "n1", "tenant": "default"}, record)


def test_a_release_keeps_over_upgrade_and_removal_what_cannot_be_made_again(
    cluster: KubeCluster, installed: helm_python.Config
) -> None:
    def columns() -> list[str]:
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/jointokens.cloudhub.dev"
        version = cluster.api("GET", path)["spec"]["versions"][0]
        return [column["name"] for column in version.get("additionalPrinterColumns", [])]

    made = secrets(cluster)
    assert set(made) == {f"{FULL}-authority-key", f"{FULL}-etcd-tls", f"{FULL}-nats-tls"}
    assert "Redeemed" not in columns()
    assert installed.upgrade(CHART, RELEASE, {"replicas": 4})["status"] == "deployed"
    assert secrets(cluster) == made
    assert cluster.api("GET", STATEFULSET)["spec"]["replicas"] == 4
    assert "Redeemed" in columns(), "an upgrade of the chart upgrades its definitions"

    with pytest.raises(
        helm_python.HelmError, match=r"etcd.bundled.members: the etcd that runs has 3 members"
    ):
        installed.upgrade(CHART, RELEASE, {"etcd": {"bundled": {"members": 5}}})

    token = cluster.api("POST", JOINTOKENS, a_token())
    installed.uninstall(RELEASE)
    kept = f"{FULL}-authority-key"
    assert secrets(cluster) == {kept: made[kept]}
    assert cluster.api("GET", f"{JOINTOKENS}/{token['metadata']['name']}")["spec"] == token["spec"]
    installed.install(CHART, RELEASE, {})
    assert secrets(cluster)[kept] == made[kept]


HUB_USER = f"system:serviceaccount:{NAMESPACE}:{FULL}"
MAY = [
    ("list", "pods", "shop"), ("create", "pods", "shop"), ("patch", "pods", "shop"), ("delete", "pods", "shop"),
    ("patch", "pods/status", "shop"), ("watch", "nodes", ""), ("create", "nodes", ""), ("patch", "nodes", ""),
    ("patch", "nodes/status", ""), ("create", "leases.coordination.k8s.io", "kube-node-lease"),
    ("patch", "leases.coordination.k8s.io", "kube-node-lease"), ("watch", "configmaps", "shop"), ("watch", "secrets", "shop"),
    ("watch", "services", ""), ("list", "endpointslices.discovery.k8s.io", ""),
    ("create", "events", "shop"), ("create", "serviceaccounts/token", "shop"), ("create", "tokenreviews.authentication.k8s.io", ""),
    ("create", "subjectaccessreviews.authorization.k8s.io", ""), ("get", "jointokens.cloudhub.dev", ""),
    ("patch", "jointokens.cloudhub.dev/status", ""), ("get", "namespaces", "shop"),
    ("create", "certificatesigningrequests.certificates.k8s.io", ""), ("get", "certificatesigningrequests.certificates.k8s.io", ""),
    ("patch", "certificatesigningrequests.certificates.k8s.io/status", ""),
]  # fmt: skip
MAY_NOT = [
    ("delete", "nodes", ""), ("list", "namespaces", ""), ("create", "secrets", "shop"), ("delete", "secrets", "shop"), ("update", "configmaps", "shop"),
    ("create", "pods/exec", "shop"), ("patch", "leases.coordination.k8s.io", "kube-system"), ("patch", "jointokens.cloudhub.dev", ""),
    ("create", "deployments.apps", "shop"), ("get", "clusterroles.rbac.authorization.k8s.io", ""),
    ("update", "certificatesigningrequests.certificates.k8s.io/approval", ""), ("sign", "signers.certificates.k8s.io", ""),
    ("delete", "certificatesigningrequests.certificates.k8s.io", ""),
]  # fmt: skip


def test_the_hub_may_what_it_does_and_nothing_else(
    cluster: KubeCluster, installed: helm_python.Config
) -> None:
    def may(verb: str, resource: str, namespace: str) -> bool:
        plural, _, sub = resource.partition("/")
        name, _, group = plural.partition(".")
        attributes = {
            "verb": verb,
            "resource": name,
            "group": group,
            "subresource": sub,
            "namespace": namespace,
        }
        review = {"spec": {"user": HUB_USER, "resourceAttributes": attributes}}
        answer = cluster.api("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        return bool(answer["status"]["allowed"])

    assert [wanted for wanted in MAY if not may(*wanted)] == []
    assert [wanted for wanted in MAY_NOT if may(*wanted)] == []


def test_join_tokens_are_kept_whole_and_cannot_be_changed(
    cluster: KubeCluster, installed: helm_python.Config
) -> None:
    made = a_token()
    record = made["spec"]["record"]
    assert cluster.api("POST", JOINTOKENS, made)["spec"] == made["spec"]
    path = f"{JOINTOKENS}/{record['id']}"
    status = {"status": {"redeemed": 1, "used": {"k": "n1"}}}
    cluster.api("PATCH", f"{path}/status", status, "application/merge-patch+json")
    held = tokens.from_api(cluster.api("GET", path))["status"]
    assert (
        held["redeemed"] == 1
        and held["record"]["used"] == {"k": "n1"}
        and held["record"]["hash"] == record["hash"]
    )
    for patch, why in (
        ({"spec": {"node": "n2"}}, "cannot be changed"),
        ({"spec": {"pool": "p"}}, "exactly one of node and pool"),
    ):
        with pytest.raises(ApiError, match=why):
            cluster.api("PATCH", path, patch, "application/merge-patch+json")
    assert record["id"] in cluster.kubectl("get", "jointokens")
