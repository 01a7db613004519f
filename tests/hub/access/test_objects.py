"""Roles, bindings and accounts as the API takes them."""

from typing import Any

import pytest

from tests.hub.access.kit import RBAC, access_hub, rbac_path, rule

VIEW = {"kind": "ClusterRole", "name": "view"}
ROLE, BINDING = rbac_path("default", "role"), rbac_path("default", "rolebinding")
CLUSTER_ROLE, CLUSTER_BINDING = rbac_path("", "role"), rbac_path("", "rolebinding")
PATHS = {"verbs": ["get"], "nonResourceURLs": ["/metrics"]}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (ROLE, {"rules": [{"apiGroups": [""], "resources": ["pods"]}]}, "rules[0].verbs: Required value"),
        (ROLE, {"rules": [{"verbs": ["get"], "resources": ["pods"]}]}, "rules[0].apiGroups: Required value"),
        (ROLE, {"rules": [{"verbs": ["get"], "apiGroups": [""]}]}, "rules[0].resources: Required value"),
        (ROLE, {"rules": [PATHS]}, "namespaced rules cannot apply to non-resource URLs"),
        (CLUSTER_ROLE, {"rules": [{**PATHS, "resources": ["pods"]}]}, "cannot apply to both"),
        (CLUSTER_ROLE, {"aggregationRule": {}}, "at least one clusterRoleSelector"),
        (
            CLUSTER_ROLE,
            {"aggregationRule": {"clusterRoleSelectors": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}},
            "matchLabels only",
        ),
        (ROLE, {"metadata": {"name": "a/b"}}, "may not contain '/'"),
        (ROLE, {"metadata": {"name": ".."}}, "may not be '..'"),
        (ROLE, {"rules": [rule("v " * 101, "r " * 101)]}, "10201 combinations"),
        (BINDING, {"roleRef": {"kind": "Other", "name": "x"}}, "roleRef.kind: Unsupported value"),
        (BINDING, {"roleRef": {**VIEW, "apiGroup": "apps"}}, "roleRef.apiGroup: Unsupported value"),
        (BINDING, {"roleRef": {"kind": "Role"}}, "roleRef.name: Required value"),
        (CLUSTER_BINDING, {"roleRef": {"kind": "Role", "name": "x"}}, "roleRef.kind: Unsupported value"),
        (BINDING, {"roleRef": VIEW, "subjects": [{"kind": "Robot", "name": "x"}]}, "subjects[0].kind"),
        (BINDING, {"roleRef": VIEW, "subjects": [{"kind": "User", "name": ""}]}, "subjects[0].name: Required value"),
        (
            CLUSTER_BINDING,
            {"roleRef": VIEW, "subjects": [{"kind": "ServiceAccount", "name": "x"}]},
            "subjects[0].namespace: Required value",
        ),
        (
            BINDING,
            {"roleRef": VIEW, "subjects": [{"kind": "ServiceAccount", "name": "x", "apiGroup": RBAC}]},
            "subjects[0].apiGroup: Unsupported value",
        ),
        (BINDING, {"roleRef": VIEW, "subjects": [{"kind": "User", "name": "x"}] * 1001}, "Too many: 1001"),
    ],
)  # fmt: skip
async def test_what_makes_no_sense_is_refused_with_its_place(path: str, body: Any, words: str) -> None:
    async with access_hub() as hub:
        reply = await hub.ask("POST", path, {"metadata": {"name": "x"}, **body})
        assert (reply.status, words in reply.message) == (422, True), reply.body


async def test_names_may_have_colons_and_groups_are_filled_in() -> None:
    async with access_hub() as hub:
        await hub.made(ROLE, {"metadata": {"name": "system:reader"}})
        subjects = [{"kind": "User", "name": "jane"}, {"kind": "ServiceAccount", "name": "a"}]
        ref = {"kind": "Role", "name": "system:reader"}
        made = await hub.made(BINDING, {"metadata": {"name": "b:c"}, "roleRef": ref, "subjects": subjects})
        assert made["roleRef"]["apiGroup"] == RBAC
        assert made["subjects"][0]["apiGroup"] == RBAC
        assert "apiGroup" not in made["subjects"][1]
        assert (await hub.ask("GET", f"{ROLE}/system:reader")).status == 200


async def test_a_put_that_would_create_takes_the_right_to_create() -> None:
    leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
    jane = {"kind": "User", "name": "jane", "apiGroup": RBAC}
    async with access_hub() as hub:
        await hub.role("default", "writer", rule("update", "leases", "coordination.k8s.io"))
        await hub.bind("default", "writer", jane)
        body = {"metadata": {"name": "a"}, "spec": {"holderIdentity": "me"}}
        reply = await hub.ask("PUT", f"{leases}/a", body, tls=hub.user("jane"))
        assert (reply.status, "cannot create" in reply.message) == (403, True)
        await hub.made(leases, body)
        body["spec"]["holderIdentity"] = "you"
        assert (await hub.ask("PUT", f"{leases}/a", body, tls=hub.user("jane"))).status == 200


async def test_reviews_about_others_are_for_those_who_may_ask() -> None:
    reviews, local = (
        f"/apis/authorization.k8s.io/v1/{p}" for p in ("subjectaccessreviews", "namespaces/default/")
    )
    local += "localsubjectaccessreviews"
    pods = {"verb": "get", "resource": "pods", "namespace": "default"}
    jane = {"kind": "User", "name": "jane", "apiGroup": RBAC}
    async with access_hub() as hub:
        await hub.bind("default", "view", jane, cluster=True)

        async def allowed(path: str, **spec: Any) -> Any:
            return (await hub.ask("POST", path, {"spec": spec})).json.get("status")

        assert (await allowed(reviews, user="jane", resourceAttributes=pods))["allowed"] is True
        assert (await allowed(reviews, user="jane", resourceAttributes={**pods, "namespace": "x"}))[
            "allowed"
        ] is False
        assert (await allowed(reviews, user="bob", resourceAttributes=pods))["allowed"] is False
        assert (await allowed(reviews, groups=["system:masters"], resourceAttributes=pods))["allowed"] is True
        assert (
            await allowed(reviews, user="jane", nonResourceAttributes={"verb": "get", "path": "/metrics"})
        )["allowed"] is False
        assert (await allowed(local, user="jane", resourceAttributes=pods))["allowed"] is True
        wrong = await hub.ask(
            "POST", local, {"spec": {"user": "jane", "resourceAttributes": {**pods, "namespace": "x"}}}
        )
        assert wrong.status == 422
        assert (await hub.ask("POST", reviews, {"spec": {"resourceAttributes": pods}})).status == 422
        assert (await hub.ask("POST", reviews, {"spec": {}}, tls=hub.user("jane"))).status == 403
        await hub.bind("", "system:auth-delegator", jane)
        assert (
            await hub.ask(
                "POST", reviews, {"spec": {"user": "x", "resourceAttributes": pods}}, tls=hub.user("jane")
            )
        ).status == 201


async def test_a_certificate_is_made_for_whom_one_may_act_for() -> None:
    asked: list[Any] = []

    def issue(name: str, groups: list[str], ttl_s: float) -> tuple[str, str, str]:
        asked.append((name, groups, ttl_s))
        return "certificate", "key", "root"

    jane = {"kind": "User", "name": "jane", "apiGroup": RBAC}
    async with access_hub(issue_user=issue) as hub:
        await hub.role(
            "", "as", rule("impersonate", "users", names="bob"), rule("impersonate", "groups", names="dev")
        )
        await hub.bind("", "as", jane)

        async def post(body: Any) -> int:
            return (await hub.ask("POST", "/cloudhub/users", body, tls=hub.user("jane"))).status

        good = {"name": "bob", "groups": ["dev"], "ttlSeconds": 60}
        assert await post(good) == 201
        for more, code in (
            ({"name": "root"}, 403),
            ({"groups": ["dev", "system:masters"]}, 403),
            ({"ttlSeconds": 59}, 400),
            ({"ttlSeconds": 10**12}, 400),
            ({"admin": True}, 400),
        ):
            assert await post({**good, **more}) == code, more
        assert (await hub.ask("GET", "/cloudhub/users")).status == 405
        assert (await hub.ask("POST", "/cloudhub/users", good, tls=hub.anybody)).status == 401
        assert asked == [("bob", ["dev"], 60.0)]
