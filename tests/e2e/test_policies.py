"""ValidatingAdmissionPolicies with stock kubectl: what users may write, and what a real agent may."""

from typing import Any

from tests.e2e.cluster import wait_for
from tests.e2e.kube import Kube, deployment, process_template, processes_with
from tests.observability import scraped

API = {"apiVersion": "admissionregistration.k8s.io/v1"}


def policy(kube: Kube, name: str, resources: list[str], **spec: Any) -> tuple[Any, Any]:
    """A policy for objects of the test's own label, and its binding."""
    group = ["apps"] if resources == ["deployments"] else [""]
    rule = {
        "apiGroups": group,
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": resources,
    }
    match = {"resourceRules": [rule], "objectSelector": {"matchLabels": {"guard": kube.namespace}}}
    named = {**API, "metadata": {"name": f"{name}-{kube.namespace}"}}
    bound = {"policyName": f"{name}-{kube.namespace}", "validationActions": ["Deny"]}
    return (
        {**named, "kind": "ValidatingAdmissionPolicy", "spec": {"matchConstraints": match, **spec}},
        {**named, "kind": "ValidatingAdmissionPolicyBinding", "spec": bound},
    )


def denied(kube: Kube) -> float:
    return scraped.figures(kube.cluster.main.api("GET", "/metrics"), "cloudhub.policies")["denied"]


def test_a_policy_stops_kubectl_and_a_report_of_a_real_agent(kube: Kube) -> None:
    few = {
        "expression": "object.spec.replicas <= 2",
        "messageExpression": "'%d are too many'.format([object.spec.replicas])",
    }
    own = {"expression": "request.userInfo.username != 'system:node:n1'", "message": "n1 says nothing"}
    made = [
        *policy(kube, "few", ["deployments"], validations=[few]),
        *policy(kube, "mute", ["pods/status"], validations=[own]),
    ]
    kube.apply(*made)
    try:
        web = deployment("web", "sleep 1000", replicas=3)
        web["metadata"]["labels"] = {"guard": kube.namespace}
        manifest = kube.file(web)
        said = wait_for(
            lambda: (
                text
                if "denied" in (text := kube("apply", "--dry-run=server", "-f", manifest, code=None))
                else ""
            ),
            "the policy is in force",
        )
        assert f"ValidatingAdmissionPolicy 'few-{kube.namespace}'" in said and "3 are too many" in said, said
        assert "denied request" in kube("apply", "-f", manifest, code=1)
        assert "NotFound" in kube("get", "deployment", "web", code=1)

        before, mark = denied(kube), f"mark-{kube.namespace}"
        for node in ("n1", "n2"):
            template = process_template(
                f"on-{node}", f": {mark}-{node}\nsleep 1000", nodeSelector={"kubernetes.io/hostname": node}
            )
            template["metadata"]["name"] = f"on-{node}"
            template["metadata"]["labels"]["guard"] = kube.namespace
            kube.apply({"apiVersion": "v1", "kind": "Pod", **template})
        kube.ready("pod/on-n2")
        wait_for(lambda: processes_with(f"{mark}-n1"), "it runs at n1 all the same")
        wait_for(lambda: denied(kube) > before, "what n1 says about it is refused")
        assert kube.json("pod", "on-n1")["status"]["phase"] == "Pending"
    finally:
        kube("delete", "-f", kube.file(*made))
