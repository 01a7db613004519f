"""I8 in a real API server: pods that ask for edge nodes tolerate without an end, by webhook and by policy alike."""

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from hub.kubernetes.client import KubeClient
from hub.kubernetes.config import KubeConfig
from hub.kubernetes.tolerations import TAINTS
from hub.kubernetes.webhook import PATH, Webhook, configuration, publish_roots
from tests.e2e.cluster import wait_for
from tests.servers.kubernetes import APISERVER, KubeCluster

POLICY = Path(__file__).parents[2] / "helm/cloudhub/policies/edge-tolerations.yaml"
FOREVER = [{"key": key, "operator": "Exists", "effect": "NoExecute"} for key in TAINTS]
EDGE = {"cloudhub.dev/edge": "true"}
Object = dict[str, Any]


def affinity(*terms: list[Object]) -> Object:
    required = {"nodeSelectorTerms": [{"matchExpressions": term} for term in terms]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


ASKS = {"key": "cloudhub.dev/edge", "operator": "In", "values": ["true"]}
OTHER = {"key": "disk", "operator": "Exists"}
TIMED = [{**t, "tolerationSeconds": 7} for t in FOREVER]
# (what the pod's spec says, seconds of each toleration that it ends up with: None is without an end)
CASES: dict[str, tuple[Object, list[int | None]]] = {
    "selector": ({"nodeSelector": EDGE}, [None, None]),
    "affinity": ({"affinity": affinity([ASKS, OTHER], [ASKS])}, [None, None]),
    "affinity-exists": ({"affinity": affinity([{"key": ASKS["key"], "operator": "Exists"}])}, [None, None]),
    "or-elsewhere": ({"affinity": affinity([ASKS], [OTHER])}, [300, 300]),
    "elsewhere": ({"nodeSelector": {"disk": "ssd"}}, [300, 300]),
    "not-the-edge": ({"nodeSelector": {"cloudhub.dev/edge": "false"}}, [300, 300]),
    "its-own-time": ({"nodeSelector": EDGE, "tolerations": TIMED}, [7, 7]),
    "one-of-two": ({"nodeSelector": EDGE, "tolerations": TIMED[:1]}, [7, None]),
    "tolerates-all": ({"nodeSelector": EDGE, "tolerations": [{"operator": "Exists"}]}, []),
}


def made(cluster: KubeCluster, spec: Object) -> list[int | None]:
    """The times for which a new pod tolerates that its node is not heard of, by taint."""
    name = f"pod-{secrets.token_hex(4)}"
    pod = {
        "metadata": {"name": name},
        "spec": {
            "containers": [{"name": "main", "image": "none"}],
            "automountServiceAccountToken": False,
            **spec,
        },
    }
    found = cluster.api("POST", "/api/v1/namespaces/default/pods", pod)["spec"]["tolerations"]
    cluster.api("DELETE", f"/api/v1/namespaces/default/pods/{name}")
    keyed = {t["key"]: t.get("tolerationSeconds") for t in found if t.get("key") in TAINTS}
    return [keyed[key] for key in TAINTS if key in keyed]


def all_made(cluster: KubeCluster) -> dict[str, list[int | None]]:
    return {name: made(cluster, spec) for name, (spec, _) in CASES.items()}


EXPECTED = {name: wanted for name, (_, wanted) in CASES.items()}


@pytest.fixture
async def webhook(kubernetes: KubeCluster) -> AsyncIterator[Webhook]:
    certificate, key = kubernetes.pki.issue("webhook", addresses=("127.0.0.1",))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    served = Webhook(tls, lambda node: node.startswith("edge-"), host="127.0.0.1")
    _, port = await served.start()
    client = {"url": f"https://127.0.0.1:{port}{PATH}"}  # without roots, as the chart registers it
    path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
    body = configuration(client)
    await asyncio.to_thread(kubernetes.api, "POST", path, body)
    try:
        config = KubeConfig.from_file(kubernetes.kubeconfig_of("hub", "system:masters"))
        async with KubeClient(config) as api:
            for _ in range(2):
                assert await publish_roots(api, Path(kubernetes.pki.root).read_text())
            assert not await publish_roots(api, "", "nobody-has-registered-it")
        yield served
    finally:
        await asyncio.to_thread(kubernetes.api, "DELETE", f"{path}/{body['metadata']['name']}")
        await served.stop()


async def test_the_webhook_gives_pods_of_the_edge_tolerations_without_an_end(
    kubernetes: KubeCluster, webhook: Webhook
) -> None:
    def effective() -> bool:
        return made(kubernetes, {"nodeSelector": EDGE}) == [None, None]

    await asyncio.to_thread(wait_for, effective, "the API server asks the webhook", 60)
    before = webhook.reviews
    assert await asyncio.to_thread(all_made, kubernetes) == EXPECTED
    # Of those that ask for other nodes by a selector the hub never hears.
    assert webhook.reviews - before == len(CASES) - 1
    bound = {"nodeName": "edge-1"}
    assert await asyncio.to_thread(made, kubernetes, bound) == [None, None]
    assert await asyncio.to_thread(made, kubernetes, {"nodeName": "server-1"}) == [300, 300]


async def test_a_webhook_that_is_away_keeps_no_pod_from_being_made(
    kubernetes: KubeCluster, webhook: Webhook
) -> None:
    await webhook.stop()
    assert await asyncio.to_thread(made, kubernetes, {"nodeSelector": EDGE}) in ([300, 300], [None, None])


@pytest.fixture(scope="module")
def with_policies() -> Iterator[KubeCluster]:
    flags = {
        "feature-gates": "MutatingAdmissionPolicy=true",
        "runtime-config": "admissionregistration.k8s.io/v1beta1=true",
    }
    with KubeCluster(parts=(APISERVER,), apiserver=flags) as cluster:
        # Its controller does not run here.
        cluster.api("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
        yield cluster


def test_the_policy_gives_pods_of_the_edge_tolerations_without_an_end(with_policies: KubeCluster) -> None:
    with_policies.kubectl("create", "-f", str(POLICY))

    def effective() -> bool:
        return made(with_policies, {"nodeSelector": EDGE}) == [None, None]

    wait_for(effective, "the policy is in force", 60)
    assert all_made(with_policies) == EXPECTED
