"""The kubelet's face without an API server: who is let in, at a replica that does not serve the node, over WebSocket."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from hub import errors
from hub.kubelet.access import ALLOWED_S, AUTHENTICATED_S, DENIED_S, KEPT_MAX, Access, Caller, Wanted
from hub.kubelet.server import KubeletServer, Limits
from security.tls import kubelet_server_context
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import until
from tests.hub.kubelet.kubectl_kit import DEADLINE_S, node_with_pod
from tests.hub.test_relaying import buses, replicas
from tests.servers.kubepki import Pki as KubePki

EXEC = "/exec/default/web/main"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


@pytest.fixture(scope="module")
def kube_pki(tmp_path_factory: pytest.TempPathFactory) -> KubePki:
    return KubePki(tmp_path_factory.mktemp("kube"))


class Far:
    """The face at a replica that serves no node, and the shell of a node that another one serves."""

    def __init__(self, url: str, http: aiohttp.ClientSession, shell: Any, edge: Any, server: Any) -> None:
        self.url, self.http, self.shell, self.edge, self.server = url, http, shell, edge, server
        self.drop_documents: Callable[[], None]

    @contextlib.asynccontextmanager
    async def socket(self, path: str, *protocols: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        async with (
            asyncio.timeout(DEADLINE_S),
            self.http.ws_connect(self.url + path, protocols=protocols) as socket,
        ):
            yield socket


@pytest.fixture
async def far(pki: Pki, kube_pki: KubePki) -> AsyncIterator[Far]:
    cert, key = kube_pki.issue("kubelet", addresses=("127.0.0.1",))
    tls = kubelet_server_context(Path(cert).read_text(), Path(key).read_text(), kube_pki.root_pem)
    context = ssl.create_default_context(cafile=kube_pki.root)
    context.load_cert_chain(*kube_pki.issue("kube-apiserver", ("system:masters",)))
    async with buses("local") as (two, _), replicas(pki, two) as (a, b):
        edge, shell = await node_with_pod(a.hub)
        address, access = ("127.0.0.1", 0), Access(None)
        usage = a.gateway.streams.usage
        owner = KubeletServer(a.hub.registry, a.relay, a.hub.share, access, tls, address, usage=usage)
        a.relay.far.documents = owner.document
        elsewhere = b.relay.open_document
        server = KubeletServer(
            b.hub.registry, b.relay, b.hub.share, access, tls, address, Limits(at_once=2), elsewhere=elsewhere
        )
        _, port = await server.start()
        connector = aiohttp.TCPConnector(ssl=context)
        try:
            async with aiohttp.ClientSession(connector=connector) as http:
                made = Far(f"https://127.0.0.1:{port}", http, shell, edge, server)
                made.drop_documents = lambda: setattr(a.relay.far, "documents", None)
                yield made
        finally:
            await server.stop(0.5)


async def by_channel(socket: aiohttp.ClientWebSocketResponse) -> dict[int, bytes]:
    got: dict[int, bytes] = {}
    async for message in socket:
        got[message.data[0]] = got.get(message.data[0], b"") + message.data[1:]
    return got


async def test_a_websocket_at_another_replica_reaches_the_node_and_ends_with_its_status(far: Far) -> None:
    path = f"{EXEC}?command=cat&input=1&output=1&error=1"
    async with far.socket(path, "v5.channel.k8s.io") as socket:
        for _ in range(12):
            await socket.send_bytes(b"\0" + b"x" * 30_000)
        await socket.send_bytes(b"\xff\0")
        got = await by_channel(socket)
    assert len(got[1]) == 360_000 and orjson.loads(got[3])["status"] == "Success"
    assert far.shell.requests[0]["container"] == "main"


async def test_a_client_of_version_4_gets_all_and_says_no_half_close(far: Far) -> None:
    async with far.socket(f"{EXEC}?command=flood&command=500000&output=1", "v4.channel.k8s.io") as socket:
        assert len((await by_channel(socket))[1]) == 500_000
    async with far.socket(f"{EXEC}?command=wait&input=1&output=1", "v4.channel.k8s.io") as socket:
        await until(lambda: far.shell.jobs, DEADLINE_S)
        await socket.send_bytes(b"\0typed")
    await until(lambda: far.shell.hung_up == 1, DEADLINE_S, "the command's end with its client")


async def test_a_message_that_is_too_long_ends_the_client_not_the_hub(far: Far) -> None:
    async with far.socket(f"{EXEC}?command=cat&input=1&output=1", "v5.channel.k8s.io") as socket:
        await socket.send_bytes(b"\0" + b"x" * (2 << 20))
        assert await by_channel(socket) == {1: b""}
        assert socket.closed
    await until(lambda: far.shell.hung_up == 1, DEADLINE_S)
    async with far.http.get(far.url + "/healthz") as reply:
        assert reply.status == 200


async def test_what_is_asked_in_an_unknown_way_is_refused_by_name(far: Far) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "SPDY/3.1",
        "X-Stream-Protocol-Version": "v4.channel.k8s.io",
    }
    asked = [
        (f"{EXEC}?output=1", upgrade, 400, "1 to 1024 words"),
        (f"{EXEC}?command=x", upgrade, 400, "at least 1 of stdin"),
        (f"{EXEC}?command=x&output=maybe", upgrade, 400, "must be true or false"),
        ("/exec/default/web/other?command=x&output=1", upgrade, 400, "container other is not valid"),
        ("/exec/default/web/wrong-uid/main?command=x&output=1", upgrade, 404, "not found"),
        ("/exec/default/web", upgrade, 404, "could not find"),
        ("/exec/default/none/main?command=x&output=1", upgrade, 404, "is on no node"),
        (f"{EXEC}?command=x&output=1", {}, 400, "Upgrade request required"),
        ("/run/default/web/main", {}, 404, "could not find"),
    ]
    for path, headers, code, why in asked:
        method = "POST" if headers else "GET"
        async with far.http.request(method, far.url + path, headers=headers) as reply:
            text = await reply.text()
            assert reply.status == code and why in text, (path, reply.status, text)
    path = "/exec/default/web/web-uid/main?command=say&command=yes&output=1"
    async with far.socket(path, "v5.channel.k8s.io") as socket:
        assert (await by_channel(socket))[1] == b"yes"


async def test_a_page_of_another_origin_opens_no_websocket(far: Far) -> None:
    path = f"{far.url}{EXEC}?command=say&command=x&output=1"
    protocols = ("v5.channel.k8s.io",)
    for origin in ("https://elsewhere.example", "null", "https://[broken"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await far.http.ws_connect(path, protocols=protocols, origin=origin)
        assert refused.value.status == 403 and not far.shell.requests
    async with far.http.ws_connect(path, protocols=protocols, origin=far.url) as socket:
        assert (await by_channel(socket))[1] == b"x"


async def test_requests_at_once_are_bounded(far: Far) -> None:
    path = f"{EXEC}?command=wait&output=1"
    async with far.socket(path, "v5.channel.k8s.io"), far.socket(path, "v5.channel.k8s.io"):
        async with far.http.get(far.url + "/healthz") as reply:
            assert reply.status == 429 and reply.headers["Retry-After"] == "1"


async def test_a_log_is_read_at_any_replica(far: Far) -> None:
    far.edge.log = b"line\n" * 1000
    async with far.http.get(far.url + "/containerLogs/default/web/main?tailLines=5") as reply:
        assert (reply.status, await reply.read()) == (200, far.edge.log)


async def test_what_a_node_uses_is_asked_of_it_wherever_it_is_served(far: Far) -> None:
    path = f"{far.url}/metrics/resource?node=edge-1"
    async with far.http.get(path) as reply:
        assert "resource_scrape_error 1" in await reply.text(), "its agent tells nothing"
    far.edge.log = b'{"at":1800000000.0,"node":[1000000000,4096],"containers":[]}'
    far.edge.shell.features = (*far.edge.shell.features, "usage")
    far.edge.connect()
    await until(lambda: far.edge.welcome is not None, DEADLINE_S)
    async with far.http.get(path) as reply:
        text = await reply.text()
    assert "node_cpu_usage_seconds_total 1.000000000 1800000000000" in text
    assert "resource_scrape_error 0" in text
    far.edge.log = b"{" * 100
    async with far.http.get(path) as reply:
        assert "resource_scrape_error 1" in await reply.text(), "what makes no sense is not told"


async def test_what_a_kubelet_tells_of_its_node_is_told_at_any_replica(far: Far) -> None:
    told = {
        "/pods": ("application/json", '"name":"web"'),
        "/metrics/resource": ("text/plain", "resource_scrape_error"),
        "/stats/summary": ("application/json", '"nodeName":"edge-1"'),
    }
    for path, (kind, text) in told.items():
        async with far.http.get(f"{far.url}{path}?node=edge-1") as reply:
            assert (reply.status, reply.content_type) == (200, kind), await reply.text()
            assert text in await reply.text()
    async with far.http.get(far.url + "/pods?node=edge-9") as reply:
        assert reply.status == 404 and "edge-9" in await reply.text()
    async with far.http.get(far.url + "/runningpods?node=edge-1") as reply:
        assert reply.status == 404
    far.drop_documents()
    async with far.http.get(far.url + "/pods?node=edge-1") as reply:
        assert reply.status == 503 and "no kubelet" in await reply.text()


# -- who is let in --------------------------------------------------------------------------------------------------


class Reviewer:
    """Answers as an API server would; counts what it was asked."""

    def __init__(self) -> None:
        self.tokens = {
            "good": {"username": "scraper", "groups": ["scrapers"], "uid": "u1", "extra": {"k": ["v"]}}
        }
        self.allowed = True
        self.asked: list[dict[str, Any]] = []

    async def request(self, method: str, path: str, *, body: Any = None) -> tuple[int, bytes]:
        self.asked.append(body)
        if body["kind"] == "TokenReview":
            user = self.tokens.get(body["spec"]["token"])
            status: dict[str, Any] = {"authenticated": user is not None}
            return 201, orjson.dumps({"status": {**status, **({"user": user} if user else {})}})
        return 201, orjson.dumps({"status": {"allowed": self.allowed}})


METRICS = Wanted("get", "edge-1", "metrics")


async def test_a_token_is_reviewed_once_in_a_while_and_a_right_as_well() -> None:
    now = [0.0]
    reviewer = Reviewer()
    access = Access(reviewer, lambda: now[0])
    for _ in range(3):
        caller = await access.caller(None, "Bearer good")
        await access.check(caller, METRICS)
    assert [body["kind"] for body in reviewer.asked] == ["TokenReview", "SubjectAccessReview"]
    asked = reviewer.asked[1]["spec"]
    assert asked["user"] == "scraper" and asked["groups"] == ["scrapers"] and asked["extra"] == {"k": ["v"]}
    assert asked["resourceAttributes"]["subresource"] == "metrics"
    assert asked["resourceAttributes"]["name"] == "edge-1"
    now[0] += AUTHENTICATED_S
    reviewer.tokens.clear()
    with pytest.raises(errors.Unauthorized):
        await access.caller(None, "Bearer good")
    now[0] = ALLOWED_S
    reviewer.allowed = False
    with pytest.raises(errors.Forbidden, match='"scraper" cannot get resource "nodes/metrics"'):
        await access.check(caller, METRICS)
    reviewer.allowed = True
    with pytest.raises(errors.Forbidden):
        await access.check(caller, METRICS)
    now[0] += DENIED_S
    await access.check(caller, METRICS)


async def test_one_right_is_not_another() -> None:
    reviewer = Reviewer()
    access = Access(reviewer)
    caller = Caller("scraper", ("scrapers",))
    await access.check(caller, METRICS)
    reviewer.allowed = False
    for other in (
        Wanted("create", "edge-1", "metrics"),
        Wanted("get", "edge-2", "metrics"),
        Wanted("get", "edge-1", "proxy"),
    ):
        with pytest.raises(errors.Forbidden):
            await access.check(caller, other)
    with pytest.raises(errors.Forbidden):
        await access.check(Caller("scraper", ("others",)), METRICS)


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer  ", "Basic good", "good", "Bearer " + "x" * 20_000])
async def test_who_shows_nothing_that_counts_is_nobody(header: str) -> None:
    reviewer = Reviewer()
    with pytest.raises(errors.Unauthorized):
        await Access(reviewer).caller(None, header)
    assert not reviewer.asked


async def test_without_an_api_server_only_masters_by_certificate_are_let_in() -> None:
    access = Access(None)
    with pytest.raises(errors.Unauthorized):
        await access.caller(None, "Bearer good")
    subject = ((("organizationName", "system:masters"),), (("commonName", "kube-apiserver"),))
    cert = {"subject": subject, "notAfter": "Jan  1 00:00:00 2090 GMT"}
    await access.check(await access.caller(cert, ""), METRICS)
    with pytest.raises(errors.Forbidden):
        await access.check(Caller("somebody", ("system:authenticated",)), METRICS)


async def test_an_api_server_that_does_not_answer_lets_nobody_in() -> None:
    class Down(Reviewer):
        async def request(self, method: str, path: str, *, body: Any = None) -> tuple[int, bytes]:
            raise errors.ServiceUnavailable("no answer")

    access = Access(Down())
    with pytest.raises(errors.ServiceUnavailable):
        await access.caller(None, "Bearer good")
    with pytest.raises(errors.ServiceUnavailable):
        await access.check(Caller("somebody", ()), METRICS)


async def test_what_is_remembered_of_callers_is_bounded() -> None:
    reviewer = Reviewer()
    access = Access(reviewer)
    for i in range(KEPT_MAX + 10):
        reviewer.tokens[f"t{i}"] = {"username": f"u{i}", "groups": [], "uid": "", "extra": {}}
        await access.caller(None, f"Bearer t{i}")
    assert len(access._callers._kept) == KEPT_MAX
