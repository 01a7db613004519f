"""What a policy and a binding may say; what this hub cannot honour is refused by name."""

import copy
from typing import Any

import pytest

from hub.policies.specs import binding_causes, policy_causes

POLICY: dict[str, Any] = {
    "spec": {
        "failurePolicy": "Fail",
        "matchConstraints": {
            "resourceRules": [
                {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["deployments"]}
            ]
        },
        "validations": [{"expression": "object.spec.replicas <= 5", "message": "five are enough"}],
    }
}  # fmt: skip
BINDING: dict[str, Any] = {"spec": {"policyName": "p", "validationActions": ["Deny"]}}


def changed(base: dict[str, Any], **spec: Any) -> dict[str, Any]:
    made = copy.deepcopy(base)
    made["spec"].update(spec)
    return made


def fields(causes: Any) -> list[str]:
    return [cause.field for cause in causes]


def test_a_plain_policy_and_binding_are_fine() -> None:
    assert fields(policy_causes(POLICY)) == [] and fields(binding_causes(BINDING)) == []


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"validations": []}, "spec.validations"),
        ({"validations": [{"expression": "1"}]}, "spec.validations[0].expression"),
        ({"validations": [{"expression": "nope"}]}, "spec.validations[0].expression"),
        ({"validations": [{"expression": "true", "messageExpression": "1"}]}, "spec.validations[0].messageExpression"),
        ({"validations": [{"expression": "true", "message": "a\nb"}]}, "spec.validations[0].message"),
        ({"validations": [{"expression": "true", "reason": "Whatever"}]}, "spec"),
        ({"validations": [{"expression": "true", "severity": "low"}]}, "spec"),
        ({"matchConstraints": {}}, "spec.matchConstraints.resourceRules"),
        ({"matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": [], "resources": ["pods"]}]}}, "spec"),
        ({"matchConstraints": {"resourceRules": [{"apiGroups": [], "apiVersions": ["v1"], "operations": ["*"], "resources": ["pods"]}]}}, "spec.matchConstraints.resourceRules[0].apiGroups"),
        ({"paramKind": {"apiVersion": "example.com/v1", "kind": "Limit"}}, "spec.paramKind"),
        ({"failurePolicy": "Explode"}, "spec"),
        ({"variables": [{"name": "a b", "expression": "1"}]}, "spec"),
        ({"variables": [{"name": "a", "expression": "1"}, {"name": "a", "expression": "2"}]}, "spec.variables"),
        ({"matchConditions": [{"name": "c", "expression": "'x'"}]}, "spec.matchConditions[0].expression"),
        ({"auditAnnotations": [{"key": "k", "valueExpression": "1"}]}, "spec.auditAnnotations[0].valueExpression"),
        ({"unknown": 1}, "spec"),
    ],
)  # fmt: skip
def test_a_policy_that_cannot_be_honoured_is_refused_where_it_is_wrong(
    spec: dict[str, Any], field: str
) -> None:
    assert field in fields(policy_causes(changed(POLICY, **spec)))


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"policyName": ""}, "spec.policyName"),
        ({"validationActions": []}, "spec"),
        ({"validationActions": ["Deny", "Warn"]}, "spec.validationActions"),
        ({"validationActions": ["Deny", "Deny"]}, "spec.validationActions"),
        ({"validationActions": ["Pray"]}, "spec"),
        ({"paramRef": {"selector": {}, "parameterNotFoundAction": "Deny"}}, "spec.paramRef.selector"),
        ({"paramRef": {"parameterNotFoundAction": "Deny"}}, "spec.paramRef.name"),
        ({"paramRef": {"name": "x"}}, "spec.paramRef.parameterNotFoundAction"),
        ({"matchResources": {"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}}, "spec.matchResources.namespaceSelector"),
        ({"whatever": {}}, "spec"),
    ],
)  # fmt: skip
def test_a_binding_that_cannot_be_honoured_is_refused_where_it_is_wrong(
    spec: dict[str, Any], field: str
) -> None:
    assert field in fields(binding_causes(changed(BINDING, **spec)))
