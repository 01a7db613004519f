"""Services of the namespaces that pods here are in: what is not used is dropped, what may not be read is waited for by nobody."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from hub.kubernetes import namespaced
from hub.kubernetes.client import KubeClient
from hub.kubernetes.namespaced import KubeNamespaced
from hub.objects import SERVICES
from hub.outage import Outage
from tests.hub.hub_fixture import until
from tests.hub.kubernetes.fake_api import FakeApi
from tests.hub.kubernetes.test_share import service


@contextlib.asynccontextmanager
async def following(client: KubeClient) -> AsyncIterator[KubeNamespaced]:
    made = KubeNamespaced(client, SERVICES, Outage())
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(made.run())
        yield made
        running.cancel()


def names(kind: KubeNamespaced) -> set[tuple[str, str]]:
    return {entry.key for entry in kind.cache}


async def test_nothing_is_asked_for_before_a_namespace_is_used_and_nothing_of_others_is_kept(
    api: FakeApi, client: KubeClient
) -> None:
    async with following(client) as kind:
        for namespace in ("shop", "bank"):
            api.put("services", service("web", namespace))
        assert api.asked == [] and not kind.known("shop")
        kind.use("shop")
        await until(lambda: kind.known("shop"))
        assert names(kind) == {("shop", "web")}
        await until(lambda: api.watching.get("services") == 1)
        api.put("services", service("more", "bank"))
        api.put("services", service("more", "shop"))
        await until(lambda: len(kind) == 2)
        assert kind.foreign == 1 and ("shop", "more") in names(kind)
        kind.use("bank")
        await until(lambda: len(kind) == 4)
        kind.release("shop")
        assert names(kind) == {("bank", "web"), ("bank", "more")} and not kind.known("shop")
        assert api.watching["services"] == 1


async def test_a_hub_without_the_right_says_so_and_keeps_nobody_waiting(
    api: FakeApi, client: KubeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(namespaced, "FORBIDDEN_S", 0.05)
    api.forbidden = {"services"}
    api.put("services", service("web", "shop"))
    told: list[str] = []
    async with following(client) as kind:
        kind.on_read(told.append)
        kind.use("shop")
        assert kind.waits("shop")
        await kind.read()
        await until(lambda: "shop" in told)
        assert not kind.waits("shop") and not kind.known("shop"), (
            "what may not be read is not known to be absent"
        )
        assert "give it list and watch" in caplog.text
        api.forbidden = set()
        await until(lambda: kind.known("shop"))
        assert names(kind) == {("shop", "web")}


async def test_what_is_deleted_while_its_namespace_is_listed_stays_deleted(
    api: FakeApi, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaced, "LIST_PAGE", 1)
    for name in "abc":
        api.put("services", service(name, "shop"))
    async with following(client) as kind:
        kind.use("bank")
        await until(lambda: kind.known("bank") and api.watching.get("services") == 1)
        going = asyncio.Event()

        def between_pages() -> None:
            if not going.is_set():
                going.set()
                api.remove("services", "shop", "a")
                api.put("services", service("d", "shop"))

        api.before_page = between_pages
        kind.use("shop")
        await until(lambda: kind.known("shop") and len(kind) == 3)
        assert names(kind) == {("shop", "b"), ("shop", "c"), ("shop", "d")}


async def test_a_watch_with_a_gap_is_followed_by_lists_that_find_what_has_gone(
    api: FakeApi, client: KubeClient
) -> None:
    api.put("services", service("old", "shop"))
    async with following(client) as kind:
        kind.use("shop")
        await until(lambda: len(kind) == 1 and api.watching.get("services") == 1)
        api.down = True
        api.cut_watches()
        api.remove("services", "shop", "old")
        api.put("services", service("new", "shop"))
        api.compact()
        assert names(kind) == {("shop", "old")}, "what is known stays while the server is away"
        api.down = False
        await until(lambda: names(kind) == {("shop", "new")}, 30.0)


async def test_an_object_that_cannot_be_read_is_passed_over_and_the_rest_followed(
    api: FakeApi, client: KubeClient, caplog: pytest.LogCaptureFixture
) -> None:
    odd = {"metadata": {"name": "odd", "namespace": "shop"}, "spec": {"ports": 7}}
    api.put("services", odd)
    api.put("services", service("web", "shop"))
    async with following(client) as kind:
        kind.use("shop")
        await until(lambda: names(kind) == {("shop", "web")} and api.watching.get("services") == 1)
        before = kind.cache.get("shop", "web")
        api.put("services", {**odd, "metadata": {"name": "web", "namespace": "shop"}})
        api.put("services", service("more", "shop"))
        await until(lambda: len(kind) == 2)
        assert kind.cache.get("shop", "web") is before, "the last good one stays"
        assert caplog.text.count("is not told to edge nodes") == 2
