"""Bad input, limits, identity, discovery, health: what surrounds the verbs."""

import asyncio
import datetime
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hub import errors
from hub.api import auth
from hub.api.handlers import Timing
from hub.api.server import Limits
from tests.hub import serving
from tests.hub.serving import CONFIGMAPS, DEADLINE_S, Hub, Object, configmap, pod


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    async with serving.hub() as running:
        yield running


def assert_status(reply: serving.Reply, code: int, words: str = "") -> None:
    assert reply.status == code, reply.body
    assert (reply.json["kind"], reply.json["status"], reply.json["code"]) == ("Status", "Failure", code)
    assert words in reply.message


# -- bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type", "code", "words"),
    [
        (b"{", "application/json", 400, "json"),
        (b"[]", "application/json", 400, ""),
        (b"", "application/json", 400, "json"),
        (b"\xff\xfe", "application/json", 400, "UTF-8"),
        (b"[" * 100_000, "application/json", 400, "depth"),
        (b"a: [1", "application/yaml", 400, "yaml"),
        (b"a: &a [x]\nb: [*a,*a]", "application/yaml", 400, "aliases"),
        (b"\x08\x01", "application/x-thrift", 415, "accepted media types include"),
        (
            b"k8s\0",
            "application/vnd.kubernetes.protobuf",
            400,
            "protobuf: Object 'Kind' or 'apiVersion' is missing",
        ),
        (b'{"kind":"Pod","apiVersion":"v1"}', "application/json", 400, "kind"),
        (b'{"kind":"ConfigMap","apiVersion":"v2"}', "application/json", 400, "API version"),
        (b'{"data":{"a":1}}', "application/json", 400, "cannot unmarshal number"),
        (b'{"metadata":{"name":"a/b"}}', "application/json", 422, "metadata.name"),
        (b'{"metadata":{"name":"\\ud800"}}', "application/json", 400, ""),
    ],
)
async def test_a_body_that_is_no_object_is_refused_with_a_reason_and_changes_nothing(
    hub: Hub, body: bytes, content_type: str, code: int, words: str
) -> None:
    before = await hub.store.revision()
    assert_status(await hub.post(CONFIGMAPS, body, content_type=content_type), code, words)
    assert await hub.store.revision() == before


async def test_duplicate_fields_are_refused_under_strict_validation(hub: Hub) -> None:
    body = b'{"metadata":{"name":"a"},"data":{"x":"1","x":"2"}}'
    reply = await hub.post(CONFIGMAPS, body, params={"fieldValidation": "Strict"})
    assert_status(reply, 400, 'duplicate field "data.x"')


async def test_a_body_over_the_limit_is_413_and_the_connection_stays_usable(hub: Hub) -> None:
    big = configmap("a")
    big["data"]["x"] = "y" * 5_000_000
    assert_status(await hub.post(CONFIGMAPS, big), 413, "limit is 3145728")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 65536

    async with hub.http.post(hub.url + CONFIGMAPS, data=endless()) as reply:
        assert reply.status == 413
    assert (await hub.get(CONFIGMAPS)).json["items"] == []


async def test_an_object_over_the_stores_limit_is_refused(hub: Hub) -> None:
    big = pod("a")
    big["metadata"]["labels"] = {}
    big["spec"]["containers"][0]["env"] = [{"name": f"V{i}", "value": "y" * 1000} for i in range(1500)]
    assert_status(await hub.post(serving.PODS, big), 413)
    assert (await hub.get(f"{serving.PODS}/a")).status == 404


async def test_a_compressed_body_is_refused(hub: Hub) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    async with hub.http.post(hub.url + CONFIGMAPS, data=b"\x1f\x8b", headers=headers) as reply:
        assert reply.status == 415


# -- paths and methods ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/api/v2",
        "/api/v1/foos",
        "/apis/foo/v1/bars",
        "/api/v1/namespaces/default/nodes",
        "/api/v1/pods/a",
        "/api/v1/namespaces/default/pods/a/exec",
        "/api/v1/namespaces/default/pods/a/log/b",
        "/api/v1/namespaces//pods",
        "/apis/apps",
        "/openapi/v3/apis/foo/v1",
    ],
)
async def test_a_path_that_serves_nothing_is_404(hub: Hub, path: str) -> None:
    reply = await hub.get(path)
    if path == "/apis/apps":
        assert reply.json["kind"] == "APIGroup"
    else:
        assert_status(reply, 404)


@pytest.mark.parametrize("segment", ["a%2Fb", "..%2f..%2fsecrets", "%00", "a%25b", "%ff", "x" * 600])
async def test_a_path_segment_that_can_be_no_name_is_refused(hub: Hub, segment: str) -> None:
    async with hub.http.get(_raw(f"{hub.url}{CONFIGMAPS}/{segment}")) as reply:
        assert reply.status in (400, 404)
        assert (await reply.json())["kind"] == "Status"


def _raw(url: str) -> Any:
    import yarl

    return yarl.URL(url, encoded=True)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{CONFIGMAPS}/a"),
        ("PUT", CONFIGMAPS),
        ("PATCH", CONFIGMAPS),
        ("POST", "/api/v1/configmaps"),
        ("DELETE", "/api/v1/configmaps"),
        ("POST", f"{serving.PODS}/a/log"),
        ("GET", f"{serving.PODS}/a/binding"),
        ("DELETE", f"{serving.PODS}/a/status"),
        ("POST", "/version"),
    ],
)
async def test_a_verb_that_is_not_served_is_405(hub: Hub, method: str, path: str) -> None:
    assert_status(await hub.call(method, path), 405)


@pytest.mark.parametrize(
    "params",
    [
        {"limit": "-1"},
        {"limit": "x"},
        {"labelSelector": "a in"},
        {"watch": "maybe"},
        {"watch": "1", "timeoutSeconds": "ten"},
        {"watch": "1", "resourceVersion": "-5"},
    ],
)
async def test_a_malformed_parameter_is_400(hub: Hub, params: dict[str, str]) -> None:
    assert_status(await hub.get(CONFIGMAPS, params=params), 400)


async def test_long_headers_and_urls_are_refused(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    for request in (
        f"GET /version?{'x' * 40_000} HTTP/1.1\r\nHost: x\r\n\r\n",
        f"GET /version HTTP/1.1\r\nHost: x\r\nA: {'x' * 40_000}\r\n\r\n",
        "GET /version HTTP/1.1\r\nHost: x\r\n" + "".join(f"H{i}: x\r\n" for i in range(200)) + "\r\n",
        "garbage\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(request.encode())
        async with asyncio.timeout(DEADLINE_S):
            line = await reader.readline()
            rest = await reader.read()
        assert line.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), line
        status = json.loads(rest.partition(b"\r\n\r\n")[2])
        assert (status["kind"], status["reason"]) == ("Status", "BadRequest")
        assert status["message"].startswith("the request is not acceptable: "), status
        assert "xxx" not in status["message"]
        writer.close()
    # Anybody who can connect can do this: it must not fill the log, and a header may hold a secret.

    assert not [r for r in caplog.records if r.exc_info]


# -- limits ---------------------------------------------------------------------------------------------------------


async def test_a_connection_that_sends_no_request_is_closed() -> None:
    async with serving.hub(limits=Limits(first_request_s=0.05)) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(b"GET /version HTTP/1.1\r\nHo")
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.read() == b""
        writer.close()
        assert (await hub.get("/version")).status == 200


async def test_connections_over_the_limit_are_refused_and_served_again_later() -> None:
    async with serving.hub(limits=Limits(connections=3)) as hub:
        held = [await asyncio.open_connection("127.0.0.1", hub.port) for _ in range(3)]
        for _, writer in held:
            writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        for reader, _ in held:
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.read() == b""
        writer.close()
        for _, writer in held:
            writer.close()
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    assert (await hub.get("/version")).status == 200
                    break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.01)


async def test_requests_over_the_limit_are_429() -> None:
    async with serving.hub(limits=Limits(in_flight=0)) as hub:
        reply = await hub.get(CONFIGMAPS)
        assert_status(reply, 429)
        assert reply.headers["Retry-After"] == "1"


async def test_a_request_that_takes_too_long_is_504() -> None:
    async with serving.hub(timing=Timing(request_s=0.05)) as hub:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(f"POST {CONFIGMAPS} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        async with asyncio.timeout(DEADLINE_S):
            assert b" 504 " in await reader.readline()
        writer.close()


async def test_a_fault_of_ours_is_a_500_that_shows_nothing(hub: Hub, monkeypatch: Any, caplog: Any) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(hub.registry, "get", broken)
    reply = await hub.get(f"{CONFIGMAPS}/a")
    assert_status(reply, 500, "Internal error occurred")
    assert "secret detail" not in reply.message
    assert "secret detail" in caplog.text


# -- who asks -------------------------------------------------------------------------------------------------------


class Authority:
    """A CA of the test's own."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test ca")])
        self.cert = self._sign(self.name, self.key, ca=True)

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if not ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def identity(self, path: Path, cn: str, *groups: str) -> Path:
        """A file with a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, g) for g in groups]
        if cn:
            parts.append(x509.NameAttribute(NameOID.COMMON_NAME, cn))
        cert = self._sign(x509.Name(parts), key, ca=False)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        file = path / f"{cn or 'nobody'}.pem"
        file.write_bytes(cert.public_bytes(serialization.Encoding.PEM) + pem)
        return file

    @property
    def pem(self) -> str:
        return self.cert.public_bytes(serialization.Encoding.PEM).decode()


async def test_the_client_certificate_decides_who_may_do_what(tmp_path: Path) -> None:
    ca = Authority()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(ca.identity(tmp_path, "hub"))
    server.load_verify_locations(cadata=ca.pem)
    server.verify_mode = ssl.CERT_OPTIONAL

    def client(identity: Path | None) -> aiohttp.TCPConnector:
        context = ssl.create_default_context(cadata=ca.pem)
        if identity:
            context.load_cert_chain(identity)
        return aiohttp.TCPConnector(ssl=context)

    async def ask(identity: Path | None, path: str) -> tuple[int, Any]:
        url = f"https://localhost:{hub.port}{path}"
        async with aiohttp.ClientSession(connector=client(identity)) as http, http.get(url) as reply:
            text = await reply.text()
            return reply.status, json.loads(text) if text.startswith("{") else text

    async with serving.hub(tls=server) as hub:
        admin = ca.identity(tmp_path, "admin", "team", "system:masters")
        assert (await ask(admin, CONFIGMAPS))[0] == 200
        assert (await ask(admin, "/metrics"))[0] == 200

        bob = ca.identity(tmp_path, "bob", "team")
        code, status = await ask(bob, CONFIGMAPS)
        assert code == 403
        assert status["message"] == (
            'configmaps is forbidden: User "bob" cannot list resource "configmaps" in API group "" '
            'in the namespace "default"'
        )
        code, status = await ask(bob, "/metrics")
        assert (code, status["message"]) == (403, 'forbidden: User "bob" cannot get path "/metrics"')

        assert (await ask(ca.identity(tmp_path, ""), CONFIGMAPS))[0] == 401
        assert (await ask(None, CONFIGMAPS))[0] == 401
        for path in ("/livez", "/readyz", "/version"):
            assert (await ask(None, path))[0] == 200

        stranger = Authority().identity(tmp_path, "stranger", "system:masters")
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await ask(stranger, CONFIGMAPS)

        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(DEADLINE_S):
            assert b"HTTP" not in await reader.read()
        writer.close()


def test_a_certificate_that_expired_since_the_handshake_is_refused() -> None:
    cert = {"subject": ((("commonName", "a"),),), "notAfter": "Jan  1 00:00:00 2030 GMT"}
    end = ssl.cert_time_to_seconds("Jan  1 00:00:00 2030 GMT")
    assert auth.authenticate(cert, end - 1).name == "a"
    with pytest.raises(errors.Unauthorized, match="expired"):
        auth.authenticate(cert, end + 1)


# -- discovery, documents, health ------------------------------------------------------------------------------------

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"


async def test_plain_and_aggregated_discovery_name_the_same_resources(hub: Hub) -> None:
    plain: set[tuple[str, str]] = set()
    groups = (await hub.get("/apis")).json["groups"]
    for path in ["/api/v1", *(f"/apis/{g['preferredVersion']['groupVersion']}" for g in groups)]:
        found = (await hub.get(path)).json
        plain |= {(found["groupVersion"], r["name"]) for r in found["resources"]}
    joined: set[tuple[str, str]] = set()
    for path in ("/api", "/apis"):
        reply = await hub.get(path, accept=AGGREGATED)
        assert "as=APIGroupDiscoveryList" in reply.headers["Content-Type"]
        for item in reply.json["items"]:
            for version in item["versions"]:
                group = item["metadata"]["name"]
                name = f"{group}/{version['version']}" if group else version["version"]
                for r in version["resources"]:
                    joined.add((name, r["resource"]))
                    joined |= {
                        (name, f"{r['resource']}/{s['subresource']}") for s in r.get("subresources", [])
                    }
    assert joined == plain
    assert ("v1", "pods/log") in plain
    assert ("apps/v1", "deployments/scale") in plain


async def test_every_discovered_resource_can_be_listed_and_watched(hub: Hub) -> None:
    for group in [
        "v1",
        *(g["preferredVersion"]["groupVersion"] for g in (await hub.get("/apis")).json["groups"]),
    ]:
        base = f"/api/{group}" if "/" not in group else f"/apis/{group}"
        for resource in (await hub.get(base)).json["resources"]:
            if "list" not in resource["verbs"]:
                continue
            reply = await hub.get(f"{base}/{resource['name']}")
            assert reply.json["kind"] == f"{resource['kind']}List"
            async with hub.watch(f"{base}/{resource['name']}", resourceVersion="0") as watch:
                assert watch.response.status == 200


async def test_the_version_is_the_kubernetes_version_that_is_implemented(hub: Hub) -> None:
    version = (await hub.get("/version")).json
    assert (version["major"], version["minor"]) == ("1", "34")
    assert version["gitVersion"].startswith("v1.34.0+cloudhub")


async def test_openapi_is_served_in_both_versions(hub: Hub) -> None:
    index = (await hub.get("/openapi/v3")).json["paths"]
    url = index["api/v1"]["serverRelativeURL"]
    document = await hub.get(url)
    assert document.json["openapi"].startswith("3.")
    assert "immutable" in document.headers["Cache-Control"]
    assert (await hub.get("/openapi/v2")).json["swagger"] == "2.0"


async def test_readiness_names_what_is_missing() -> None:
    missing: list[str | None] = ["not synced"]
    async with serving.hub(ready={"informers": lambda: missing[0]}) as hub:
        assert (await hub.get("/livez")).body == b"ok"
        reply = await hub.get("/readyz")
        assert reply.status == 503
        assert b"[-]informers failed: not synced" in reply.body
        missing[0] = None
        assert (await hub.get("/readyz")).body == b"ok"
        assert b"[+]informers ok" in (await hub.get("/readyz?verbose")).body
        assert (await hub.get("/readyz/informers")).status == 200
        assert (await hub.get("/readyz/other")).status == 404


async def test_where_objects_live_elsewhere_only_health_metrics_and_status_are_served() -> None:
    async with serving.hub(elsewhere="https://cluster.example:6443") as hub:
        for path in ("/api", "/apis/apps/v1", "/openapi/v2", CONFIGMAPS):
            reply = await hub.get(path)
            assert reply.status == 404 and b"https://cluster.example:6443" in reply.body
        assert (await hub.get("/")).json["paths"] == ["/livez", "/metrics", "/readyz", "/version"]
        for path in ("/livez", "/readyz", "/metrics", "/version"):
            assert (await hub.get(path)).status == 200


async def test_a_draining_server_serves_on_and_ends_each_connection_with_its_answer(hub: Hub) -> None:
    assert "Connection" not in (await hub.get(CONFIGMAPS)).headers
    hub.api.drain()
    assert b"[-]shutdown failed" in (await hub.get("/readyz")).body
    for _ in range(2):
        reply = await hub.get(CONFIGMAPS)
        assert (reply.status, reply.headers["Connection"]) == (200, "close")


async def test_metrics_count_requests_by_verb_resource_and_code(hub: Hub) -> None:
    await hub.get(CONFIGMAPS)
    await hub.get(f"{CONFIGMAPS}/a")
    text = (await hub.get("/metrics")).body.decode()
    assert 'cloudhub_api_requests_total{verb="list",resource="configmaps",code="200"} 1' in text
    assert 'cloudhub_api_requests_total{verb="get",resource="configmaps",code="404"} 1' in text
    assert "cloudhub_api_in_flight" in text
    took = 'http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code='
    assert took + '"200"} 1' in text and took + '"404"} 1' in text


# -- logs -----------------------------------------------------------------------------------------------------------


class Gateway:
    """Answers with what it was asked, then with lines until it is closed."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Object]] = []
        self.closed = asyncio.Event()
        self.refusal: errors.ApiError | None = None
        self.refusals = 1000
        """How often it is given."""

    async def open_log(self, node: str, options: Object) -> AsyncIterator[bytes]:
        self.asked.append((node, options))
        if self.refusal and len(self.asked) <= self.refusals:
            raise self.refusal
        try:
            yield b"first\n"
            while options["follow"]:
                await asyncio.sleep(0.005)
                yield b"more\n"
        finally:
            self.closed.set()


async def test_a_log_is_asked_of_the_pods_node_with_all_options() -> None:
    gateway = Gateway()
    async with serving.hub(gateway=gateway) as hub:
        made = await hub.created(serving.PODS, pod("a", nodeName="n"))
        params = {"tailLines": "5", "limitBytes": "100", "timestamps": "true", "previous": "1"}
        reply = await hub.get(f"{serving.PODS}/a/log", params={**params, "sinceSeconds": "60"})
        assert reply.body == b"first\n"
        assert reply.headers["Content-Type"].startswith("text/plain")
        assert gateway.asked == [
            (
                "n",
                {
                    "pod": made["metadata"]["uid"],
                    "container": "c",
                    "follow": False,
                    "previous": True,
                    "tail": 5,
                    "since_s": 60,
                    "timestamps": True,
                    "limit": 100,
                },
            )
        ]
        since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=100)
        await hub.get(f"{serving.PODS}/a/log", params={"sinceTime": since.isoformat()})
        assert 100 <= gateway.asked[1][1]["since_s"] <= 110


async def test_a_followed_log_ends_when_the_client_goes() -> None:
    gateway = Gateway()
    async with serving.hub(gateway=gateway) as hub:
        await hub.created(serving.PODS, pod("a", nodeName="n"))
        async with hub.http.get(f"{hub.url}{serving.PODS}/a/log?follow=true") as reply:
            assert await reply.content.readline() == b"first\n"
            assert await reply.content.readline() == b"more\n"
        async with asyncio.timeout(DEADLINE_S):
            await gateway.closed.wait()


async def test_a_log_waits_for_a_node_that_is_ready_and_between_two_owners() -> None:
    gateway = Gateway()
    gateway.refusal, gateway.refusals = errors.ServiceUnavailable("node n is not connected"), 2
    async with serving.hub(gateway=gateway) as hub:
        await hub.created(serving.PODS, pod("a", nodeName="n"))
        path = f"{serving.PODS}/a/log"
        assert_status(await hub.get(path), 503, "not connected")
        assert len(gateway.asked) == 1, "nobody waits for a node that is not there"
        node = await hub.created("/api/v1/nodes", {"kind": "Node", "metadata": {"name": "n"}})
        node["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
        assert (await hub.call("PUT", "/api/v1/nodes/n/status", node)).status == 200
        assert (await hub.get(path)).body == b"first\n"
        assert len(gateway.asked) == 3


async def test_log_requests_that_cannot_be_served_say_why() -> None:
    gateway = Gateway()
    async with serving.hub(gateway=gateway) as hub:
        two = pod("two", nodeName="n")
        two["spec"]["containers"].append({"name": "d", "image": "x:1"})
        two["spec"]["initContainers"] = [{"name": "i", "image": "x:1"}]
        await hub.created(serving.PODS, two)
        path = f"{serving.PODS}/two/log"
        assert_status(
            await hub.get(path),
            400,
            "a container name must be specified for pod two, choose one of: [c d] or one of the init containers: [i]",
        )
        assert_status(
            await hub.get(path, params={"container": "x"}), 400, "container x is not valid for pod two"
        )
        assert (await hub.get(path, params={"container": "i"})).body == b"first\n"
        assert_status(await hub.get(f"{serving.PODS}/none/log"), 404)
        assert_status(await hub.get(path, params={"container": "c", "tailLines": "x"}), 400)
        both = {"container": "c", "sinceSeconds": "1", "sinceTime": "2026-01-01T00:00:00Z"}
        assert_status(await hub.get(path, params=both), 422)
        gateway.refusal = errors.ServiceUnavailable("node n is not connected")
        assert_status(await hub.get(path, params={"container": "c"}), 503, "not connected")
        await hub.created(serving.PODS, pod("unbound"))
        assert (await hub.get(f"{serving.PODS}/unbound/log")).body == b""
