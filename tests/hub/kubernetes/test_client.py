"""The client of the API server: what it asks, what it makes of answers, and its bounds."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import orjson
import pytest

from hub import errors
from hub.kubernetes import client as module
from hub.kubernetes.answers import error_of, resource_of
from hub.kubernetes.client import KubeClient, Limits
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import until
from tests.hub.kubernetes.fake_api import TOKEN, FakeApi, kubeconfig


def pod(name: str, node: str = "n1", namespace: str = "default") -> dict[str, object]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"nodeName": node}}


async def test_an_object_is_read_and_a_refusal_is_the_error_that_the_server_told(
    api: FakeApi, client: KubeClient
) -> None:
    api.put("pods", pod("a"))
    obj = await client.get("/api/v1/namespaces/default/pods/a")
    assert obj["metadata"]["resourceVersion"] == "101"
    with pytest.raises(errors.NotFound, match='pods "b" not found'):
        await client.get("/api/v1/namespaces/default/pods/b")
    assert client.counts.requests == {("get", "pods"): 2} and client.counts.refused == 1


async def test_a_list_comes_in_pages_and_one_whose_revision_is_forgotten_says_so(
    api: FakeApi, client: KubeClient
) -> None:
    for i in range(5):
        api.put("pods", pod(f"p{i}"))
    pages = [page async for page in client.list("/api/v1/pods", page=2)]
    assert [len(page.items or ()) for page in pages] == [2, 2, 1]
    assert {page.metadata.resourceVersion for page in pages} == {"105"}
    api.before_page = api.compact
    with pytest.raises(errors.Expired):
        [page async for page in client.list("/api/v1/pods", page=2)]


async def test_a_watch_tells_every_event_and_its_end_and_a_revision_that_is_too_old(
    api: FakeApi, client: KubeClient
) -> None:
    api.watch_s = 0.5
    at = api.revision
    big = {**pod("big"), "data": "x" * 300_000}
    api.put("pods", pod("a"))
    api.put("pods", big)
    api.remove("pods", "default", "a")
    query = {"resourceVersion": at, "allowWatchBookmarks": "true"}
    events = [(kind, orjson.loads(raw)) async for kind, raw in client.watch("/api/v1/pods", query)]
    assert [kind for kind, _ in events] == ["ADDED", "ADDED", "DELETED", "BOOKMARK"]
    assert events[1][1]["data"] == "x" * 300_000
    assert client.watches == 0
    api.compact()
    with pytest.raises(errors.Expired, match="too old"):
        [e async for e in client.watch("/api/v1/pods", query)]


async def test_429_is_waited_for_a_bounded_number_of_times(
    api: FakeApi, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_MAX_S", 0.01)
    api.put("pods", pod("a"))
    api.throttle = module.RETRIES
    await client.get("/api/v1/namespaces/default/pods/a")
    assert client.counts.throttled == module.RETRIES
    api.throttle = 1000
    with pytest.raises(errors.TooManyRequests):
        await client.get("/api/v1/namespaces/default/pods/a")
    assert 1000 - api.throttle == module.RETRIES + 1
    with pytest.raises(errors.TooManyRequests):
        [e async for e in client.watch("/api/v1/pods")]
    api.throttle, api.retry_after = 10, "100000"
    monkeypatch.setattr(module, "PAUSE_MAX_S", 100000.0)
    async with asyncio.timeout(10):
        with pytest.raises(errors.TooManyRequests):
            await client.get("/api/v1/pods")  # longer than anybody waits


async def test_a_token_that_was_replaced_is_read_again_when_it_is_refused(
    api: FakeApi, pki: Pki, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    config = kubeconfig(str(tmp_path / "config"), api.url, pki.ca.root_pem, tokenFile=str(token))
    async with KubeClient(config) as client:
        api.put("pods", pod("a"))
        await client.get("/api/v1/namespaces/default/pods/a")
        api.tokens = {"next"}
        with pytest.raises(errors.Unauthorized):
            await client.get("/api/v1/namespaces/default/pods/a")
        token.unlink()  # being replaced: the old one stays in use
        with pytest.raises(errors.Unauthorized):
            await client.get("/api/v1/namespaces/default/pods/a")
        token.write_text("next")
        await client.get("/api/v1/namespaces/default/pods/a")


async def test_no_answer_is_an_error_that_says_whether_a_write_may_have_taken_effect(
    api: FakeApi, client: KubeClient
) -> None:
    api.down = True
    with pytest.raises(errors.ServiceUnavailable, match="cannot reach the API server"):
        await client.get("/api/v1/pods")
    with pytest.raises(errors.Timeout, match="not known"):
        await client.request("POST", "/api/v1/namespaces/default/pods", body=pod("a"))
    with pytest.raises(errors.ServiceUnavailable):
        [e async for e in client.watch("/api/v1/pods")]
    assert client.counts.failed == 3 and client.watches == 0


async def test_a_server_that_is_not_there_has_done_nothing(pki: Pki, tmp_path: Path) -> None:
    config = kubeconfig(str(tmp_path / "config"), "https://127.0.0.1:1", pki.ca.root_pem)
    async with KubeClient(config) as client:
        with pytest.raises(errors.ServiceUnavailable):
            await client.request("POST", "/api/v1/nodes", body={})


async def test_a_server_with_another_authority_is_not_believed(
    api: FakeApi, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Pki(str(tmp_path_factory.mktemp("other")))
    config = kubeconfig(str(tmp_path / "config"), api.url, other.ca.root_pem)
    async with KubeClient(config) as client:
        with pytest.raises(errors.ServiceUnavailable, match=r"(?i)certificate"):
            await client.get("/api/v1/pods")
    assert api.asked == []


async def test_answers_and_watches_have_their_bounds(api: FakeApi, pki: Pki, tmp_path: Path) -> None:
    limits = Limits(answer_bytes_max=10_000, event_bytes_max=100_000, watches_max=1)
    at = api.revision
    api.put("pods", {**pod("big"), "data": "x" * 300_000})
    config = kubeconfig(str(tmp_path / "config"), api.url, pki.ca.root_pem)
    async with KubeClient(config, limits) as client:
        with pytest.raises(errors.ServiceUnavailable, match="over 10000 bytes"):
            await client.get("/api/v1/namespaces/default/pods/big")
        with pytest.raises(errors.ServiceUnavailable, match="over 100000 bytes"):
            [e async for e in client.watch("/api/v1/pods", {"resourceVersion": at})]
        watching = asyncio.create_task(_drain(client.watch("/api/v1/nodes", {"resourceVersion": at})))
        await until(lambda: client.watches == 1)
        with pytest.raises(errors.TooManyRequests, match="1 watches already"):
            await _drain(client.watch("/api/v1/pods"))
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        assert client.watches == 0


async def _drain(events: AsyncIterator[object]) -> None:
    async for _ in events:
        pass


async def test_requests_are_spread_and_no_more_than_the_bound_are_open(
    api: FakeApi, pki: Pki, tmp_path: Path
) -> None:
    config = kubeconfig(str(tmp_path / "config"), api.url, pki.ca.root_pem)
    api.put("pods", pod("a"))
    async with KubeClient(config, Limits(requests_at_once=2, per_second=100)) as client:
        loop, open_now, most = asyncio.get_running_loop(), 0, 0
        trace = aiohttp.TraceConfig()

        async def begun(*_: object) -> None:
            nonlocal open_now, most
            open_now += 1
            most = max(most, open_now)

        async def ended(*_: object) -> None:
            nonlocal open_now
            open_now -= 1

        trace.on_request_start.append(begun)
        trace.on_request_end.append(ended)
        trace.freeze()
        assert client._session is not None
        client._session.trace_configs.append(trace)
        began = loop.time()
        await asyncio.gather(*(client.get("/api/v1/namespaces/default/pods/a") for _ in range(120)))
        assert loop.time() - began > 0.15, "100 at once, then one every 10 ms"
        assert most <= 2


async def test_a_list_does_not_go_over_one_connection_after_the_other_that_a_burst_has_left(
    api: FakeApi, client: KubeClient
) -> None:
    """Each would keep the buffers of a list."""
    api.put("pods", pod("a"))
    made: Counter[str] = Counter()
    for name, session in (("small", client._session), ("bulk", client._bulk)):
        trace: aiohttp.TraceConfig = aiohttp.TraceConfig()

        async def begun(*_: object, name: str = name) -> None:
            made[f"{name} requests"] += 1

        async def connected(*_: object, name: str = name) -> None:
            made[f"{name} connections"] += 1

        trace.on_request_start.append(begun)
        trace.on_connection_create_end.append(connected)
        trace.freeze()
        assert session is not None
        session.trace_configs.append(trace)
    await asyncio.gather(*(client.get("/api/v1/namespaces/default/pods/a") for _ in range(20)))
    assert made["small connections"] > 5
    for _ in range(30):
        assert [page async for page in client.list("/api/v1/pods")]
    assert made["bulk requests"] == 30 and made["bulk connections"] == 1
    assert made["small requests"] == 20


async def test_a_request_apart_does_not_wait_behind_a_backlog_of_others(
    api: FakeApi, pki: Pki, tmp_path: Path
) -> None:
    config = kubeconfig(str(tmp_path / "config"), api.url, pki.ca.root_pem)
    api.put("pods", pod("a"))
    path = "/api/v1/namespaces/default/pods/a"
    async with KubeClient(config, Limits(requests_at_once=1)) as client:
        async with client._at_once:
            behind = asyncio.create_task(client.request("GET", path))
            code, _ = await client.request("GET", path, apart=True)
            assert code == 200 and not behind.done()
        assert (await behind)[0] == 200


def test_a_refusal_that_is_no_status_keeps_its_code_and_its_beginning() -> None:
    error = error_of(502, b"<html>bad gateway</html>" * 1000)
    assert error.code == 502 and error.message.startswith("<html>bad") and len(error.message) <= 2000
    conflict = error_of(409, b'{"kind":"Status","reason":"Conflict","message":"m","details":{"name":"x"}}')
    assert isinstance(conflict, errors.Conflict) and conflict.details == {"name": "x"}
    exists = error_of(409, b'{"kind":"Status","reason":"AlreadyExists","message":"m"}')
    assert isinstance(exists, errors.AlreadyExists)
    assert isinstance(error_of(409, b""), errors.Conflict)
    invalid = error_of(422, b'{"kind":"Status","reason":"Invalid","message":"m"}')
    assert isinstance(invalid, errors.Unprocessable)


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/api/v1/pods", "pods"),
        ("/api/v1/namespaces/a/pods/b/status", "pods/status"),
        ("/api/v1/nodes/n/status", "nodes/status"),
        ("/api/v1/namespaces/a", "namespaces"),
        ("/api/v1/namespaces/a/finalize", "namespaces/finalize"),
        ("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n", "leases"),
        ("/version", ""),
    ],
)
def test_requests_are_counted_by_their_resource(path: str, resource: str) -> None:
    assert resource_of(path) == resource


async def test_what_has_to_hold_when_a_request_leaves_is_asked_before_every_try(
    api: FakeApi, client: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Lost(Exception):
        pass

    def before() -> None:
        asked.append(len(client.counts.requests))
        if len(asked) == 2:
            raise Lost

    monkeypatch.setattr(module, "PAUSE_MAX_S", 0.01)
    api.throttle = 1
    with pytest.raises(Lost):
        await client.request("PATCH", "/api/v1/namespaces/default/pods/a", body={}, before=before)
    assert client.counts.requests == {("patch", "pods"): 1}
