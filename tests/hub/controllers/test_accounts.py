"""Service accounts of namespaces, and aggregated roles, as the controllers keep them."""

from typing import Any

from hub.objects import CLUSTERROLES, NAMESPACES, SERVICEACCOUNTS
from tests.hub.controllers.kit import Hub, running

Object = dict[str, Any]
VIEW = "rbac.authorization.k8s.io/aggregate-to-view"


def role(name: str, *rules: Object, labels: Object | None = None, **more: Any) -> Object:
    return {"metadata": {"name": name, "labels": labels or {}}, "rules": list(rules), **more}


async def names(hub: Hub) -> list[str]:
    return [account["metadata"]["name"] for account in await hub.all(SERVICEACCOUNTS)]


async def test_every_namespace_has_a_default_account_and_gets_it_back() -> None:
    hub = Hub()
    await hub.namespace()
    async with running(hub) as hub:
        assert await names(hub) == ["default"]
        before = (await hub.get(SERVICEACCOUNTS, "default"))["metadata"]["uid"]
        await hub.delete(SERVICEACCOUNTS, "default")
        await hub.settle()
        after = await hub.get(SERVICEACCOUNTS, "default")
        assert after["metadata"]["uid"] != before
        await hub.delete(NAMESPACES, "shop")
        await hub.settle()
        assert await names(hub) == []
        assert await hub.registry.find(NAMESPACES, "", "shop") is None


async def test_an_aggregated_role_shows_what_its_parts_say() -> None:
    async with running() as hub:
        pods = {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}
        maps = {"verbs": ["list"], "apiGroups": [""], "resources": ["configmaps"]}
        selectors = {"clusterRoleSelectors": [{"matchLabels": {VIEW: "true"}}]}
        await hub.create(CLUSTERROLES, role("view", aggregationRule=selectors))
        await hub.create(CLUSTERROLES, role("a", pods, labels={VIEW: "true"}))
        await hub.create(CLUSTERROLES, role("b", maps))
        await hub.settle()
        assert (await hub.get(CLUSTERROLES, "view"))["rules"] == [pods]

        def label(obj: Object) -> None:
            obj["metadata"]["labels"] = {VIEW: "true"}

        await hub.edit(CLUSTERROLES, "b", label, spec=False)
        await hub.settle()
        assert (await hub.get(CLUSTERROLES, "view"))["rules"] == [pods, maps]
        await hub.delete(CLUSTERROLES, "a")
        await hub.settle()
        assert (await hub.get(CLUSTERROLES, "view"))["rules"] == [maps]
        hub.check_no_bugs()
