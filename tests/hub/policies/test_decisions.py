"""One policy and one attempt: whom it concerns, what it finds, and what happens when it cannot say."""

from typing import Any

import pytest

from hub.objects import DEPLOYMENTS, NAMESPACES, NODES, PODS, Resource
from hub.policies import decisions
from hub.policies.decisions import NO_PARAMS, Binding, Clock, Judgement, Policy
from hub.policies.matching import Attempt
from hub.policies.specs import BindingSpec, PolicySpec, read

RULE = {"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*", "*/*"]}


def policy(binding: dict[str, Any] | None = None, **spec: Any) -> Policy:
    body = {"matchConstraints": {"resourceRules": [RULE]}, **spec}
    made = Policy("p", read({"spec": body}, PolicySpec))
    given = {"policyName": "p", "validationActions": ["Deny"], **(binding or {})}
    made.bindings = [Binding.compile("b", read({"spec": given}, BindingSpec))]
    return made


def attempt(obj: Any = None, res: Resource = PODS, operation: str = "UPDATE", **fields: Any) -> Attempt:
    obj = {"metadata": {"name": "x"}} if obj is None else obj
    values = {
        "namespace": "shop" if res.namespaced else "",
        "name": "x",
        "old": None,
        "user": "ann",
        **fields,
    }
    return Attempt(operation, res, obj=obj, **values)


def judge(
    p: Policy, a: Attempt, namespace: Any = None, params: Any = None, at: float = 0.0, cpu: Any = lambda: 0.0
) -> Judgement:
    out = Judgement()
    p.judge(a, namespace, lambda spec, about: params, Clock.start(at, cpu), out)
    return out


def messages(found: Judgement) -> list[str]:
    return [f.message for f in found.findings]


def test_a_validation_that_does_not_hold_says_its_message_or_its_expression() -> None:
    p = policy(validations=[
        {"expression": "object.n < 5", "message": "too many"},
        {"expression": "object.n < 5"},
        {"expression": "object.n < 5", "messageExpression": "'%d is too many'.format([object.n])", "message": "m"},
        {"expression": "object.n < 5", "messageExpression": "object.nope", "message": "fallback"},
        {"expression": "object.n < 100"},
    ])  # fmt: skip
    assert messages(judge(p, attempt({"n": 9}))) == [
        "too many", "failed expression: object.n < 5", "9 is too many", "fallback"
    ]  # fmt: skip
    assert judge(p, attempt({"n": 1})).findings == []


def test_expressions_see_who_asks_what_was_and_the_params() -> None:
    p = policy(
        paramKind={"apiVersion": "v1", "kind": "ConfigMap"},
        validations=[{
            "expression": "request.userInfo.username == 'system:node:a' && 'system:nodes' in request.userInfo.groups && "
            "request.operation == 'UPDATE' && request.resource.resource == 'nodes' && request.subResource == 'status' && "
            "oldObject.n == 1 && object.n == 2 && params.data.limit == '3' && namespaceObject == null && request.name == 'x'"
        }],
    )  # fmt: skip
    a = attempt(
        {"n": 2}, NODES, old={"n": 1}, user="system:node:a", groups=("system:nodes",), subresource="status"
    )
    assert judge(p, a, params={"data": {"limit": "3"}}).findings == []
    assert len(judge(p, a, params={"data": {"limit": "4"}}).findings) == 1


def test_variables_are_made_in_order_and_their_errors_count_only_where_they_are_used() -> None:
    variables = [
        {"name": "n", "expression": "object.n"},
        {"name": "twice", "expression": "variables.n * 2"},
        {"name": "broken", "expression": "object.nope"},
    ]
    p = policy(variables=variables, validations=[{"expression": "variables.twice == 4"}])
    assert judge(p, attempt({"n": 2})).findings == []
    p = policy(variables=variables, validations=[{"expression": "variables.broken == 4"}])
    assert "nope" in messages(judge(p, attempt({"n": 2})))[0]


def test_variables_that_double_each_other_end_at_a_bound() -> None:
    variables = [{"name": "v0", "expression": "'xxxxxxxxxxxxxxxx'"}]
    variables += [
        {"name": f"v{i}", "expression": f"variables.v{i - 1} + variables.v{i - 1}"} for i in range(1, 32)
    ]
    p = policy(variables=variables, validations=[{"expression": "size(variables.v31) > 0"}])
    assert (
        "larger than" in messages(judge(p, attempt({})))[0]
        or "not found" in messages(judge(p, attempt({})))[0]
    )


@pytest.mark.parametrize(("failure", "found"), [("Fail", 1), ("Ignore", 0)])
def test_an_expression_without_a_value_counts_as_its_failure_policy_says(failure: str, found: int) -> None:
    p = policy(failurePolicy=failure, validations=[{"expression": "object.nope == 1"}])
    assert len(judge(p, attempt({})).findings) == found
    p = policy(
        failurePolicy=failure,
        matchConditions=[{"name": "c", "expression": "object.nope"}],
        validations=[{"expression": "false"}],
    )
    assert len(judge(p, attempt({})).findings) == found


def test_match_conditions_choose_and_audit_annotations_are_kept() -> None:
    p = policy(
        matchConditions=[{"name": "not nodes", "expression": "!request.userInfo.username.startsWith('system:node:')"}],
        validations=[{"expression": "false"}],
        auditAnnotations=[{"key": "who", "valueExpression": "request.userInfo.username"}, {"key": "none", "valueExpression": "null"}],
    )  # fmt: skip
    assert judge(p, attempt(user="system:node:a")).findings == []
    found = judge(p, attempt(user="ann"))
    assert len(found.findings) == 1 and found.annotations == {"p/who": "ann"}


@pytest.mark.parametrize(("action", "found"), [("Allow", 0), ("Deny", 1)])
def test_params_that_do_not_exist_allow_or_deny_as_the_binding_says(action: str, found: int) -> None:
    ref = {"name": "limits", "namespace": "shop", "parameterNotFoundAction": action}
    p = policy(
        {"paramRef": ref},
        paramKind={"apiVersion": "v1", "kind": "ConfigMap"},
        validations=[{"expression": "false"}],
    )
    assert len(judge(p, attempt({}), params=NO_PARAMS).findings) == found


@pytest.mark.parametrize(
    ("match", "hits"),
    [
        ({}, True),
        ({"resourceRules": [{**RULE, "resources": ["pods"]}]}, True),
        ({"resourceRules": [{**RULE, "resources": ["pods/status"]}]}, False),
        ({"resourceRules": [{**RULE, "resources": ["pods/*"]}]}, True),
        ({"resourceRules": [{**RULE, "apiGroups": ["apps"]}]}, False),
        ({"resourceRules": [{**RULE, "operations": ["DELETE"]}]}, False),
        ({"resourceRules": [{**RULE, "scope": "Cluster"}]}, False),
        ({"resourceRules": [{**RULE, "resourceNames": ["y"]}]}, False),
        ({"resourceRules": [{**RULE, "resourceNames": ["x"]}]}, True),
        ({"excludeResourceRules": [{**RULE, "resources": ["pods"]}]}, False),
        ({"objectSelector": {"matchLabels": {"app": "till"}}}, True),
        ({"objectSelector": {"matchLabels": {"app": "sign"}}}, False),
        ({"namespaceSelector": {"matchLabels": {"team": "retail"}}}, True),
        ({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}}, False),
    ],
)
def test_rules_and_selectors_choose_whom_a_policy_concerns(match: dict[str, Any], hits: bool) -> None:
    p = policy({"matchResources": match}, validations=[{"expression": "false"}])
    obj = {"metadata": {"name": "x", "labels": {"app": "till"}}}
    found = judge(p, attempt(obj), namespace={"metadata": {"name": "shop", "labels": {"team": "retail"}}})
    assert bool(found.findings) == hits


def test_kinds_without_a_namespace_pass_a_namespace_selector_and_namespaces_are_judged_by_their_own() -> None:
    p = policy(
        {"matchResources": {"namespaceSelector": {"matchLabels": {"team": "retail"}}}},
        validations=[{"expression": "false"}],
    )
    assert judge(p, attempt({"metadata": {"name": "x"}}, NODES)).findings
    assert not judge(p, attempt({"metadata": {"name": "x"}}, NAMESPACES)).findings
    assert judge(p, attempt({"metadata": {"name": "x", "labels": {"team": "retail"}}}, NAMESPACES)).findings


def test_a_policy_that_takes_too_long_is_suspended_and_runs_again_later() -> None:
    p = policy(validations=[{"expression": "true"}])
    times = iter([0.0, 0.0])
    slow = judge(p, attempt({}), at=10.0, cpu=lambda: next(times, 1.0))
    assert "too expensive" in messages(slow)[0]
    assert "too expensive" in messages(judge(p, attempt({}), at=10.0 + decisions.SUSPEND_S / 2))[0]
    assert judge(p, attempt({}), at=11.0 + decisions.SUSPEND_S).findings == []


def test_the_seconds_that_policies_take_are_shared_by_all_of_one_attempt() -> None:
    first, second = policy(validations=[{"expression": "true"}]), policy(validations=[{"expression": "true"}])
    out, now = Judgement(), [0.0]
    clock = Clock.start(0.0, lambda: now[0])
    first.judge(attempt({}, DEPLOYMENTS), None, lambda spec, about: None, clock, out)
    assert out.findings == []
    now[0] = 1.0
    second.judge(attempt({}, DEPLOYMENTS), None, lambda spec, about: None, clock, out)
    assert len(out.findings) == 1
