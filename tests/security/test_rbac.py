"""RBAC: what rules allow, whom bindings mean, and who may give what to others."""

from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security import rbac_defaults
from security.rbac import (
    AggregationRule,
    Binding,
    Policy,
    Request,
    Role,
    RoleRef,
    Rule,
    Subject,
    User,
    allows,
    covers,
)

VERBS = ["get", "list", "create", "delete"]
GROUPS = ["", "apps"]
RESOURCES = ["pods", "pods/log", "pods/exec", "deployments", "deployments/scale"]
NAMES = ["a", "b"]


def default_policy() -> Policy:
    policy = Policy()
    for obj in rbac_defaults.cluster_roles():
        meta = obj["metadata"]
        aggregation = obj.get("aggregationRule")
        policy.put_role(
            Role(
                "",
                meta["name"],
                tuple(msgspec.convert(obj["rules"], list[Rule])),
                tuple(meta["labels"].items()),
                msgspec.convert(aggregation, AggregationRule) if aggregation else None,
            )
        )
    for obj in rbac_defaults.cluster_role_bindings():
        policy.put_binding(
            Binding(
                "",
                obj["metadata"]["name"],
                msgspec.convert(obj["roleRef"], RoleRef),
                tuple(msgspec.convert(obj["subjects"], list[Subject])),
            )
        )
    return policy


def bound(policy: Policy, role: str, user: str, namespace: str = "") -> None:
    policy.put_binding(
        Binding(namespace, f"{user}-{role}", RoleRef("ClusterRole", role), (Subject("User", user),))
    )


def test_who_is_bound_to_nothing_may_ask_about_himself_and_nothing_else() -> None:
    policy = default_policy()
    eve = User("eve", ("system:authenticated",))
    assert policy.allowed(eve, Request("create", "authentication.k8s.io", "selfsubjectreviews"))
    assert policy.allowed(eve, Request("get", path="/readyz/ping"))
    assert policy.allowed(eve, Request("get", path="/apis/apps/v1"))
    assert not policy.allowed(eve, Request("get", path="/metrics"))
    assert not policy.allowed(eve, Request("get", "", "pods", namespace="default", name="a"))
    assert not policy.allowed(User("nobody", ("system:unauthenticated",)), Request("get", path="/apis"))


def test_masters_may_do_everything() -> None:
    root = User("root", ("system:masters",))
    for wanted in (Request("delete", "x", "y", "z", "ns", "n"), Request("post", path="/anything")):
        assert default_policy().allowed(root, wanted)


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        (
            "view",
            ["get pods", "list deployments", "get pods/log"],
            ["get secrets", "create pods", "get roles"],
        ),
        (
            "edit",
            ["get pods", "create pods", "create pods/exec", "get secrets"],
            ["create roles", "create nodes"],
        ),
        (
            "admin",
            ["get pods", "create pods", "create roles", "get secrets"],
            ["get nodes", "delete namespaces"],
        ),
    ],
)
def test_the_default_roles_build_on_each_other(role: str, may: list[str], may_not: list[str]) -> None:
    policy = default_policy()
    bound(policy, role, "jane", "shop")
    jane = User("jane")
    groups = {"deployments": "apps", "roles": "rbac.authorization.k8s.io"}
    for text, allowed in [*((t, True) for t in may), *((t, False) for t in may_not)]:
        verb, what = text.split()
        resource, _, sub = what.partition("/")
        wanted = Request(verb, groups.get(resource, ""), resource, sub, "shop")
        assert bool(policy.allowed(jane, wanted)) == allowed, text
        elsewhere = Request(verb, groups.get(resource, ""), resource, sub, "other")
        assert not policy.allowed(jane, elsewhere), f"{text}: a binding gives nothing outside its namespace"


def test_a_role_with_the_label_extends_an_aggregating_one_at_once() -> None:
    policy = default_policy()
    bound(policy, "view", "jane")
    wanted = Request("get", "example.com", "widgets", namespace="shop")
    assert not policy.allowed(User("jane"), wanted)
    label = (("rbac.authorization.k8s.io/aggregate-to-view", "true"),)
    policy.put_role(Role("", "widgets", (Rule(("get",), ("example.com",), ("widgets",)),), label))
    assert policy.allowed(User("jane"), wanted)
    policy.drop_role("", "widgets")
    assert not policy.allowed(User("jane"), wanted)


def test_roles_that_aggregate_each_other_end() -> None:
    policy = Policy()
    for name, other in (("a", "b"), ("b", "a")):
        aggregation = msgspec.convert(
            {"clusterRoleSelectors": [{"matchLabels": {"to": name}}]}, AggregationRule
        )
        policy.put_role(Role("", name, (), (("to", other),), aggregation))
    bound(policy, "a", "jane")
    assert not policy.allowed(User("jane"), Request("get", "", "pods"))


def test_a_service_account_is_meant_by_its_namespace_and_name() -> None:
    policy = default_policy()
    subjects = (Subject("ServiceAccount", "robot", "ci"), Subject("ServiceAccount", "local"))
    policy.put_binding(Binding("shop", "b", RoleRef("ClusterRole", "view"), subjects))
    wanted = Request("get", "", "pods", namespace="shop")
    assert policy.allowed(User("system:serviceaccount:ci:robot"), wanted)
    assert policy.allowed(User("system:serviceaccount:shop:local"), wanted)
    assert not policy.allowed(User("system:serviceaccount:shop:robot"), wanted)
    assert not policy.allowed(User("robot"), wanted)


def test_a_role_of_one_namespace_cannot_be_bound_in_another_or_for_the_cluster() -> None:
    policy = Policy()
    policy.put_role(Role("shop", "reader", (Rule(("get",), ("",), ("pods",)),)))
    for namespace in ("", "other"):
        policy.put_binding(Binding(namespace, "b", RoleRef("Role", "reader"), (Subject("User", "jane"),)))
    assert not policy.allowed(User("jane"), Request("get", "", "pods", namespace="shop"))
    policy.put_binding(Binding("shop", "b", RoleRef("Role", "reader"), (Subject("User", "jane"),)))
    assert policy.allowed(User("jane"), Request("get", "", "pods", namespace="shop"))
    policy.drop_binding("shop", "b")
    assert not policy.allowed(User("jane"), Request("get", "", "pods", namespace="shop"))


def test_listed_names_allow_no_request_that_names_no_object() -> None:
    rule = Rule(("get", "list"), ("",), ("pods",), ("a",))
    assert allows(rule, Request("get", "", "pods", namespace="x", name="a"))
    assert not allows(rule, Request("get", "", "pods", namespace="x", name="b"))
    assert not allows(rule, Request("list", "", "pods", namespace="x"))


def test_a_resource_does_not_include_its_subresources() -> None:
    rule = Rule(("get",), ("",), ("pods",))
    assert not allows(rule, Request("get", "", "pods", "log"))
    assert allows(Rule(("get",), ("",), ("*/log",)), Request("get", "", "pods", "log"))
    assert not allows(Rule(("get",), ("",), ("*/log",)), Request("get", "", "pods"))


def words(values: Iterable[str], empty: bool = False) -> st.SearchStrategy[tuple[str, ...]]:
    chosen = st.lists(st.sampled_from([*values, "*"]), min_size=0 if empty else 1, max_size=2, unique=True)
    return chosen.map(tuple)


RULES = st.builds(
    Rule,
    words(VERBS),
    words(GROUPS),
    words([*RESOURCES, "*/scale"]),
    st.lists(st.sampled_from(NAMES), max_size=2, unique=True).map(tuple),
)
REQUESTS = [
    Request(verb, group, resource.partition("/")[0], resource.partition("/")[2], "ns", name)
    for verb in [*VERBS, "watch"]
    for group in [*GROUPS, "other"]
    for resource in [*RESOURCES, "nodes", "nodes/scale"]
    for name in ["", *NAMES, "c"]
]


@given(st.lists(RULES, max_size=4), RULES)
@settings(max_examples=300, deadline=None)
def test_what_covers_a_rule_allows_all_that_it_allows(held: list[Rule], wanted: Rule) -> None:
    if covers(held, wanted):
        for request in REQUESTS:
            if allows(wanted, request):
                assert any(allows(rule, request) for rule in held), request


@given(RULES)
@settings(max_examples=100, deadline=None)
def test_every_rule_covers_itself(rule: Rule) -> None:
    assert covers([rule], rule)
