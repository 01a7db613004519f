"""The hub's client of the Kubernetes API on a real API server: lists, watches, refusals, credentials, faults."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from hub import errors
from hub.kubernetes.client import KubeClient, Limits
from hub.kubernetes.config import KubeConfig
from tests.hub.hub_fixture import until
from tests.servers.kubeproxy import KubeProxy
from tests.servers.kubernetes import KubeCluster

MERGE = "application/merge-patch+json"
WAIT_S = 60.0


@pytest.fixture
def namespace(kubernetes: KubeCluster) -> Iterator[str]:
    """A namespace of the test's own."""
    name = f"client-{os.urandom(4).hex()}"
    kubernetes.api("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    yield name
    kubernetes.api("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def maps(namespace: str) -> str:
    """The path of the config maps in the test's namespace."""
    return f"/api/v1/namespaces/{namespace}/configmaps"


@pytest.fixture
async def api(kubernetes: KubeCluster) -> AsyncIterator[KubeClient]:
    config = KubeConfig.from_file(kubernetes.kubeconfig_of("client-tests", "system:masters"))
    async with KubeClient(config) as made:
        yield made


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": data}


async def test_a_list_comes_whole_in_pages_of_one_revision(api: KubeClient, maps: str) -> None:
    for i in range(7):
        await api.request("POST", maps, body=config_map(f"m{i}"))
    pages = [page async for page in api.list(maps, {"labelSelector": "!none"}, page=3)]
    names = [orjson.loads(bytes(item))["metadata"]["name"] for page in pages for item in page.items or ()]
    assert [name for name in names if name.startswith("m")] == [f"m{i}" for i in range(7)]
    assert len(pages) > 2
    assert len({page.metadata.resourceVersion for page in pages}) == 1


async def test_a_watch_tells_what_follows_a_list_and_nothing_twice(api: KubeClient, maps: str) -> None:
    pages = [page async for page in api.list(maps, {"fieldSelector": "metadata.name=w"})]
    query = {"fieldSelector": "metadata.name=w", "resourceVersion": pages[-1].metadata.resourceVersion}
    seen: list[tuple[str, str]] = []

    async def watch() -> None:
        async with contextlib.aclosing(api.watch(maps, {**query, "allowWatchBookmarks": "true"})) as told:
            async for kind, raw in told:
                if kind != "BOOKMARK":
                    seen.append((kind, orjson.loads(raw).get("data", {}).get("v", "")))

    async with _background(watch()):
        await api.request("POST", maps, body=config_map("other"))
        await api.request("POST", maps, body=config_map("w", v="1"))
        await api.request("PATCH", f"{maps}/w", body={"data": {"v": "2"}}, content_type=MERGE)
        await api.request("DELETE", f"{maps}/w")
        await until(lambda: len(seen) >= 3, WAIT_S, "the watch tells three events")
    assert seen == [("ADDED", "1"), ("MODIFIED", "2"), ("DELETED", "2")]
    assert api.watches == 0


async def test_a_watch_that_begins_with_a_list_says_where_the_list_ends(api: KubeClient, maps: str) -> None:
    await api.request("POST", maps, body=config_map("first"))
    query = {
        "sendInitialEvents": "true",
        "allowWatchBookmarks": "true",
        "resourceVersionMatch": "NotOlderThan",
    }
    names: list[str] = []
    async with asyncio.timeout(WAIT_S):
        async with contextlib.aclosing(api.watch(maps, query)) as told:
            async for kind, raw in told:
                metadata = orjson.loads(raw)["metadata"]
                if kind == "BOOKMARK":
                    assert metadata["annotations"]["k8s.io/initial-events-end"] == "true"
                    break
                names.append(metadata["name"])
    assert "first" in names


async def test_refusals_are_the_hubs_own_errors(api: KubeClient, maps: str, kubernetes: KubeCluster) -> None:
    _, raw = await api.request("POST", maps, body=config_map("once"))
    made = orjson.loads(raw)["metadata"]
    with pytest.raises(errors.AlreadyExists):
        await api.request("POST", maps, body=config_map("once"))
    with pytest.raises(errors.NotFound):
        await api.get(f"{maps}/never")
    with pytest.raises(errors.Unprocessable) as invalid:
        await api.request("POST", maps, body=config_map("Not_A_Name"))
    assert invalid.value.details is not None and invalid.value.details["causes"]
    await api.request("PATCH", f"{maps}/once", body={"data": {"a": "b"}}, content_type=MERGE)
    stale = {"metadata": {"resourceVersion": made["resourceVersion"]}}
    with pytest.raises(errors.Conflict):
        await api.request("PATCH", f"{maps}/once", body=stale, content_type=MERGE)
    # Not a conflict, as one might expect: of a patch the API server takes another UID for a change of the field.
    with pytest.raises(errors.Unprocessable, match="uid"):
        await api.request("PATCH", f"{maps}/once", body={"metadata": {"uid": "another"}}, content_type=MERGE)
    with pytest.raises(errors.Conflict):
        await api.request("PUT", f"{maps}/once", body={"metadata": {"name": "once", "uid": "another"}})
    with pytest.raises(errors.Conflict):
        await api.request("DELETE", f"{maps}/once", body={"preconditions": {"uid": "another"}})
    stranger = KubeConfig.from_file(kubernetes.kubeconfig_of("stranger"))
    async with KubeClient(stranger) as powerless:
        with pytest.raises(errors.Forbidden, match="stranger"):
            await powerless.get(maps)


async def test_a_token_that_has_expired_is_read_again_and_the_request_goes_on(
    kubernetes: KubeCluster, tmp_path: Path
) -> None:
    with kubernetes.account("renewed") as fresh:
        uid = kubernetes.api("GET", "/api/v1/namespaces/default/serviceaccounts/renewed")["metadata"]["uid"]
        file = tmp_path / "token"
        file.write_text(kubernetes.pki.token("default", "renewed", uid, -60))
        file.chmod(0o600)
        path = kubernetes.pki.kubeconfig(kubernetes.server, "renewed", token_file=str(file))
        async with KubeClient(KubeConfig.from_file(path)) as api:
            with pytest.raises(errors.Unauthorized):
                await api.get("/api/v1/namespaces/default")
            file.write_text(fresh)
            found = await api.get("/api/v1/namespaces/default")
    assert found["metadata"]["name"] == "default"


async def test_refused_requests_are_made_again_when_the_server_says_and_not_for_ever(
    kubernetes: KubeCluster,
) -> None:
    with kubernetes.account("stormy") as token, KubeProxy(kubernetes) as proxy:
        async with KubeClient(KubeConfig.from_file(proxy.kubeconfig("stormy", token))) as api:
            proxy.refused_share = 1.0
            asked = asyncio.create_task(api.get("/api/v1/namespaces/default"))
            await until(lambda: proxy.refused >= 2, WAIT_S, "the client asks again")
            proxy.refused_share = 0.0
            assert (await asked)["kind"] == "Namespace"
            assert api.counts.throttled == proxy.refused


async def test_a_server_that_cuts_connections_gives_errors_that_say_what_is_not_known(
    kubernetes: KubeCluster,
) -> None:
    with kubernetes.account("cutoff") as token, KubeProxy(kubernetes) as proxy:
        config = KubeConfig.from_file(proxy.kubeconfig("cutoff", token))
        async with KubeClient(config, Limits(timeout_s=2.0)) as api:
            watched: list[str] = []

            async def watch() -> str:
                try:
                    async with contextlib.aclosing(api.watch("/api/v1/namespaces")) as told:
                        async for kind, _ in told:
                            watched.append(kind)
                except errors.ServiceUnavailable as cut:
                    return str(cut)
                return "ended"

            watching = asyncio.create_task(watch())
            await until(lambda: watched, WAIT_S, "the watch tells something")
            proxy.cut()
            async with asyncio.timeout(WAIT_S):
                assert "cut off" in await watching
            proxy.down = True
            with pytest.raises(errors.ServiceUnavailable, match="cannot reach"):
                await api.get("/api/v1/namespaces/default")
            with pytest.raises(errors.Timeout, match="not known"):
                await api.request("POST", "/api/v1/namespaces", body={"metadata": {"name": "default"}})


@contextlib.asynccontextmanager
async def _background(work: Any) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
