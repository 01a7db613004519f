"""I8 in the chart: what it renders for the webhook is what the hub's own code says, and the policy comes as it is tested."""

from typing import Any

import yaml

from hub.kubernetes.webhook import NAME, PATH, configuration
from tests.helm.chart import CHART, FULL, NAMESPACE, at, of_kind, rendered

KINDS = ("MutatingWebhookConfiguration", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding")


def by_kind(way: str) -> dict[str, Any]:
    objects = rendered(at("kubernetes.tolerations", way))
    return {kind: found[0] for kind in KINDS if (found := of_kind(objects, kind))}


def test_the_webhook_is_registered_as_the_hub_expects_it() -> None:
    (registered,) = by_kind("webhook").values()
    service = {"name": FULL, "namespace": NAMESPACE, "port": 9443, "path": PATH}
    wanted = configuration({"service": service})
    assert registered["webhooks"] == wanted["webhooks"] and registered["metadata"]["name"] == NAME


def test_the_policy_is_rendered_as_it_is_tested() -> None:
    found = by_kind("policy")
    assert list(found) == list(KINDS[1:])
    assert list(found.values()) == list(
        yaml.safe_load_all((CHART / "policies/edge-tolerations.yaml").read_text())
    )


def test_by_default_neither_is_needed() -> None:
    assert by_kind("owner") == {}
