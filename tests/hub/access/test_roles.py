"""Roles at a real server: what a change of a role or binding changes, and that nobody gives away what he does not have."""

import asyncio
from typing import Any

import pytest

from hub.access.bootstrap import ensure_roles
from hub.access.roles import Roles
from hub.objects import CLUSTERROLEBINDINGS, CLUSTERROLES, ROLES, Keys
from hub.registry import Registry
from hub.store.memory import MemoryStore
from security.rbac import User
from tests.hub.access.kit import RBAC, AccessHub, access_hub, rbac_path, rule

JANE = {"kind": "User", "name": "jane", "apiGroup": RBAC}
PODS = "/api/v1/namespaces/shop/pods"
GRANTS = "not currently held"


async def status(hub: AccessHub, method: str, path: str, body: Any = None, **options: Any) -> int:
    return (await hub.ask(method, path, body, tls=hub.user("jane"), **options)).status


async def test_a_right_begins_and_ends_with_its_binding() -> None:
    async with access_hub() as hub:
        await hub.namespace("shop")
        assert await status(hub, "GET", PODS) == 403
        name = await hub.bind("shop", "view", JANE, cluster=True)
        assert await status(hub, "GET", PODS) == 200
        assert await status(hub, "GET", "/api/v1/pods") == 403
        assert await status(hub, "GET", "/api/v1/namespaces/default/pods") == 403
        assert await status(hub, "GET", "/api/v1/namespaces/shop/secrets") == 403
        await hub.ask("DELETE", f"{rbac_path('shop', 'rolebinding')}/{name}")
        await hub.roles.at_least(await hub.registry.revision())
        assert await status(hub, "GET", PODS) == 403


async def test_a_name_in_a_rule_allows_that_object_and_lists_of_it_alone() -> None:
    async with access_hub() as hub:
        await hub.namespace("shop")
        await hub.role("shop", "one", rule("get list watch", "configmaps", names="a"))
        await hub.bind("shop", "one", JANE)
        for name in "ab":
            await hub.made("/api/v1/namespaces/shop/configmaps", {"metadata": {"name": name}})
        maps = "/api/v1/namespaces/shop/configmaps"
        assert await status(hub, "GET", maps + "/a") == 200
        assert await status(hub, "GET", maps + "/b") == 403
        assert await status(hub, "GET", maps) == 403
        assert await status(hub, "GET", maps, params={"fieldSelector": "metadata.name=b"}) == 403
        listed = await hub.ask(
            "GET", maps, tls=hub.user("jane"), params={"fieldSelector": "metadata.name=a,metadata.name!=zz"}
        )
        assert [item["metadata"]["name"] for item in listed.json["items"]] == ["a"]
        # Behind an escaped comma stands no term of its own: this one asks for all.
        for trick in ("metadata.namespace!=x\\,metadata.name=a", "metadata.name!=x\\,metadata.name=a"):
            assert await status(hub, "GET", maps, params={"fieldSelector": trick}) == 403
        assert await status(hub, "GET", maps, params={"fieldSelector": "metadata.name=a,x=y"}) == 403


async def test_nobody_writes_a_role_with_rights_that_he_lacks() -> None:
    async with access_hub() as hub:
        await hub.namespace("shop")
        await hub.bind("shop", "admin", JANE, cluster=True)
        path = rbac_path("shop", "role")

        async def write(method: str, path: str, *rules: Any, **more: Any) -> Any:
            obj = {"metadata": {"name": "r", **more}, "rules": list(rules)}
            return await hub.ask(method, path, obj, tls=hub.user("jane"))

        assert GRANTS in (await write("POST", path, rule("get", "nodes"))).message
        assert GRANTS in (await write("POST", path, rule("*", "pods"))).message
        assert GRANTS in (await write("POST", path, rule("get", "*"))).message
        assert (await write("POST", path, rule("get", "pods secrets"))).status == 201
        assert GRANTS in (await write("PUT", path + "/r", rule("escalate", "roles", RBAC))).message
        patch = {"rules": [rule("impersonate", "users")]}
        refused = await hub.ask(
            "PATCH", path + "/r", patch, tls=hub.user("jane"), content_type="application/merge-patch+json"
        )
        assert (refused.status, GRANTS in refused.message) == (403, True)
        # What others have put into a role does not keep from changing the rest of it.
        await hub.role("shop", "strong", rule("get", "nodes"))
        labels = {"metadata": {"labels": {"a": "b"}}}
        kept = await hub.ask(
            "PATCH",
            path + "/strong",
            labels,
            tls=hub.user("jane"),
            content_type="application/merge-patch+json",
        )
        assert kept.status == 200
        await hub.role("shop", "free", rule("escalate", "roles", RBAC))
        await hub.bind("shop", "free", JANE)
        assert (await write("PUT", path + "/r", rule("*", "*", "*"))).status == 200


async def test_nobody_binds_a_role_with_rights_that_he_lacks() -> None:
    async with access_hub() as hub:
        await hub.namespace("shop")
        await hub.bind("shop", "admin", JANE, cluster=True)
        path = rbac_path("shop", "rolebinding")

        async def bind(role: str, kind: str = "ClusterRole", path: str = path) -> Any:
            obj = {
                "metadata": {"name": f"b-{role}"},
                "roleRef": {"kind": kind, "name": role},
                "subjects": [JANE],
            }
            return await hub.ask("POST", path, obj, tls=hub.user("jane"))

        assert GRANTS in (await bind("cluster-admin")).message
        assert (await bind("view")).status == 201
        assert (await bind("none")).status == 404
        assert (await bind("cluster-admin", path=rbac_path("", "rolebinding"))).status == 403
        await hub.role("shop", "binder", rule("bind", "clusterroles", RBAC, "cluster-admin"))
        await hub.bind("shop", "binder", JANE)
        assert (await bind("cluster-admin")).status == 201
        await hub.roles.at_least(await hub.registry.revision())
        jane = User("jane")
        assert hub.may(jane, "delete", "secrets", "shop")
        assert not hub.may(jane, "get", "pods", "default")
        changed = {"metadata": {"name": "b-view"}, "roleRef": {"kind": "ClusterRole", "name": "edit"}}
        reply = await hub.ask("PUT", path + "/b-view", changed)
        assert (reply.status, "cannot change roleRef" in reply.message) == (422, True)


async def test_an_aggregating_role_takes_every_right_to_write() -> None:
    async with access_hub() as hub:
        await hub.role("", "roles", rule("*", "clusterroles", RBAC))
        await hub.bind("", "roles", JANE)
        obj = {
            "metadata": {"name": "mine"},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]},
        }
        path = rbac_path("", "role")
        # `*` holds escalate as well: who may do all with roles may write any.
        assert (await hub.ask("POST", path, obj, tls=hub.user("jane"))).status == 201
        sam = {"kind": "User", "name": "sam", "apiGroup": RBAC}
        await hub.role("", "some", rule("create update get", "clusterroles", RBAC))
        await hub.bind("", "some", sam)
        reply = await hub.ask("POST", path, {**obj, "metadata": {"name": "his"}}, tls=hub.user("sam"))
        assert (reply.status, GRANTS in reply.message) == (403, True)


async def test_acting_for_another_takes_the_right_to_each_part_of_him() -> None:
    who = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    async with access_hub() as hub:
        await hub.role(
            "", "as", rule("impersonate", "users", names="bob"), rule("impersonate", "groups", names="dev")
        )
        await hub.bind("", "as", JANE)

        async def ask(*headers: tuple[str, str]) -> Any:
            return await hub.ask("POST", who, {}, tls=hub.user("jane"), headers=dict(headers))

        as_bob, as_dev = ("Impersonate-User", "bob"), ("Impersonate-Group", "dev")
        info = (await ask(as_bob, as_dev)).json["status"]["userInfo"]
        assert info == {"username": "bob", "groups": ["dev", "system:authenticated"]}
        refused = hub.refused().get("impersonation", 0)
        for headers, code in (
            ((("Impersonate-User", "root"),), 403),
            ((as_bob, ("Impersonate-Group", "system:masters")), 403),
            ((as_bob, ("Impersonate-Uid", "1")), 403),
            ((as_bob, ("Impersonate-Extra-scope", "all")), 403),
            ((("Impersonate-User", "system:serviceaccount:default:default"),), 403),
            ((as_dev,), 400),
            ((("impersonate-user", "root"),), 403),
        ):
            assert (await ask(*headers)).status == code, headers
        assert hub.refused()["impersonation"] == refused + 6


async def test_defaults_are_completed_at_a_start_and_what_others_added_stays() -> None:
    registry = Registry(MemoryStore(slots=16), Keys())
    await asyncio.gather(*(ensure_roles(registry) for _ in range(3)))  # replicas
    before = await registry.revision()
    await ensure_roles(registry)
    assert await registry.revision() == before, "nothing is written where nothing is missing"

    async def change(res: Any, name: str, edit: Any) -> None:
        await registry.mutate(res, "", name, edit)

    def less(obj: Any) -> Any:
        obj["rules"] = [rule("get", "widgets", "example.com")]
        return obj

    def frozen(obj: Any) -> Any:
        obj["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] = "false"
        obj["subjects"] = []
        return obj

    def more(obj: Any) -> Any:
        obj["subjects"].append(JANE)
        del obj["metadata"]["labels"]
        return obj

    await change(CLUSTERROLES, "system:basic-user", less)
    await change(CLUSTERROLEBINDINGS, "system:discovery", frozen)
    await change(CLUSTERROLEBINDINGS, "system:monitoring", more)
    await ensure_roles(registry)
    basic = (await registry.get(CLUSTERROLES, "", "system:basic-user")).obj()
    assert rule("get", "widgets", "example.com") in basic["rules"]
    assert any("selfsubjectreviews" in r["resources"] for r in basic["rules"])
    assert (await registry.get(CLUSTERROLEBINDINGS, "", "system:discovery")).obj()["subjects"] == []
    monitoring = (await registry.get(CLUSTERROLEBINDINGS, "", "system:monitoring")).obj()
    assert JANE in monitoring["subjects"]
    assert monitoring["metadata"]["labels"]


async def test_a_role_that_nobody_understands_gives_nothing_and_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = MemoryStore(slots=16)
    registry = Registry(store, Keys())
    roles = Roles(store, registry.keys)
    running = asyncio.create_task(roles.run())
    try:
        await roles.synced()
        strange = {"metadata": {"name": "strange", "namespace": "shop"}, "rules": [{"verbs": "all"}]}
        made = await registry.create(ROLES, strange)
        good = {"metadata": {"name": "good", "namespace": "shop"}, "rules": [rule("get", "pods")]}
        await roles.at_least((await registry.create(ROLES, good)).revision)
        assert roles.policy.role("shop", "strange") is None
        assert roles.policy.role("shop", "good") is not None
        assert "not understood" in caplog.text
        await registry.remove(ROLES, made)
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
