"""Bad input at the API: each with a clear error, and nothing has changed."""

import concurrent.futures
import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from security import tls
from security.ca import CertificateAuthority
from tests.e2e.cluster import Cluster, Hub, running_cluster, sleeper, wait_for
from tests.e2e.hostile import (
    admin_context,
    authority,
    enrolled,
    forge,
    objects,
    request,
    revision,
)

CONFIGMAPS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"
YAML = "application/yaml"
LOOKS = 20


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A hub without nodes: nothing writes to its store but these tests."""
    with running_cluster(tmp_path_factory.mktemp("alone")) as cluster:
        hub = cluster.hub()
        hub.api("POST", CONFIGMAPS, configmap("held", {"a": "1"}))
        last: list[int] = []

        def still() -> bool:
            """Every namespace has its account, which comes last, and nothing has been written for a while."""
            last.append(revision(hub))
            accounts = hub.api("GET", "/api/v1/serviceaccounts")["items"]
            namespaces = hub.api("GET", "/api/v1/namespaces")["items"]
            return len(accounts) == len(namespaces) and len(last) > LOOKS and len(set(last[-LOOKS:])) == 1

        wait_for(still, "the hub has written what a start writes")
        yield cluster


@pytest.fixture
def unchanged(alone: Cluster) -> Iterator[Hub]:
    """The hub, of which the test has to leave every object and the store's revision as they are."""
    before = revision(alone.main), objects(alone.main)
    yield alone.main
    assert (revision(alone.main), objects(alone.main)) == before, "bad input has changed something"


def configmap(name: str, data: Any = None, **fields: Any) -> Any:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, **fields}
    return body if data is None else {**body, "data": data}


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def big_pod(bytes_: int) -> Any:
    container = {"name": "main", "image": "none", "command": ["x" * bytes_]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "big"},
        "spec": {"containers": [container]},
    }


NESTED = b'{"a":' * 5000 + b"1" + b"}" * 5000

REFUSED: dict[str, tuple[str, bytes, str, int, str]] = {
    "malformed JSON": (CONFIGMAPS, b'{"kind": ', "application/json", 400, "json: Expecting value at line 1 column 10"),
    "malformed YAML": (CONFIGMAPS, b"a: [1\nb: {", YAML, 400, "yaml: line 2: did not find expected ',' or ']'"),
    "no body": (CONFIGMAPS, b"", "application/json", 400, "json: Expecting value"),
    "not an object": (CONFIGMAPS, b"[]", "application/json", 400, "cannot unmarshal array"),
    "two YAML documents": (CONFIGMAPS, b"a: b\n---\na: c\n", YAML, 400, "found another document"),
    "YAML aliases": (CONFIGMAPS, b"a: &a [1]\nb: [*a, *a]\n", YAML, 400, "aliases are not accepted"),
    "an unknown field": (
        CONFIGMAPS + "?fieldValidation=Strict", encoded(configmap("x", bogus=1)), "application/json",
        400, 'strict decoding error: unknown field "bogus"',
    ),
    "an unknown field deep inside": (
        PODS + "?fieldValidation=Strict", encoded({**sleeper("x"), "spec": {"containers": [{"name": "c", "nope": 1}]}}),
        "application/json", 400, 'unknown field "spec.containers[0].nope"',
    ),
    "a key given twice": (
        CONFIGMAPS + "?fieldValidation=Strict", b'{"metadata":{"name":"x"},"data":{"a":"1","a":"2"}}', "application/json",
        400, 'duplicate field "data.a"',
    ),
    "a key given twice in YAML": (
        CONFIGMAPS + "?fieldValidation=Strict", b"metadata: {name: x}\ndata:\n  a: '1'\n  a: '2'\n", YAML,
        400, 'duplicate field "data.a"',
    ),
    "an invalid name": (
        CONFIGMAPS, encoded(configmap("Bad_Name")), "application/json",
        422, 'ConfigMap "Bad_Name" is invalid: metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain',
    ),
    "an invalid namespace": (
        "/api/v1/namespaces", encoded({"metadata": {"name": "a.b"}}), "application/json",
        422, "a lowercase RFC 1123 label must consist of",
    ),
    "a value of the wrong type": (
        CONFIGMAPS, encoded(configmap("x", {"a": 1})), "application/json",
        400, "cannot unmarshal number into Go struct field ConfigMap.data of type string",
    ),
    "another kind": (
        CONFIGMAPS, encoded({**configmap("x"), "kind": "Secret"}), "application/json",
        400, "the kind in the data (Secret) does not match the expected kind (ConfigMap)",
    ),
    "another apiVersion": (
        CONFIGMAPS, encoded({**configmap("x"), "apiVersion": "v2"}), "application/json",
        400, "the API version in the data (v2) does not match the expected API version (v1)",
    ),
    "another namespace": (
        CONFIGMAPS, encoded({**configmap("x"), "metadata": {"name": "x", "namespace": "other"}}), "application/json",
        400, "the namespace of the provided object does not match the namespace sent on the request",
    ),
    "a namespace that is not there": (
        CONFIGMAPS.replace("default", "nowhere"), encoded(configmap("x")), "application/json",
        404, 'namespaces "nowhere" not found',
    ),
    "deep nesting": (CONFIGMAPS, NESTED, "application/json", 400, "json: exceeded max depth of 200"),
    "deeper nesting": (CONFIGMAPS, b"[" * 500_000, "application/json", 400, "json: exceeded max depth of 200"),
    "deep nesting in YAML": (CONFIGMAPS, b"[" * 500_000, YAML, 400, "yaml: exceeded max depth of 200"),
    "invalid UTF-8": (
        CONFIGMAPS, b'{"metadata":{"name":"a\xff"}}', "application/json", 400, "json: invalid UTF-8 at byte 22",
    ),
    "invalid UTF-8 in YAML": (CONFIGMAPS, b'metadata: {name: "a\xff"}', YAML, 400, "invalid leading UTF-8 octet"),
    "half a surrogate pair": (
        CONFIGMAPS, b'{"metadata":{"name":"x"},"data":{"a":"\\ud800"}}', "application/json", 400, "surrogate pair",
    ),
    "an unknown content type": (
        CONFIGMAPS, encoded(configmap("x")), "application/xml", 415, "accepted media types include: application/json",
    ),
    "an object of 5 MB": (
        CONFIGMAPS, encoded(configmap("x", {"a": "x" * 5_000_000})), "application/json",
        413, "Request entity too large: limit is 3145728 bytes",
    ),
    "an object just over 1.45 MB": (
        PODS, encoded(big_pod(1_450_000)), "application/json", 413, "at most 1450000 are stored",
    ),
    "a pod without containers": (
        PODS, encoded({"metadata": {"name": "x"}, "spec": {"containers": []}}), "application/json",
        422, "spec.containers: Required value",
    ),
    "an unknown validation mode": (
        CONFIGMAPS + "?fieldValidation=Loose", encoded(configmap("x")), "application/json",
        400, 'fieldValidation: Unsupported value: "Loose"',
    ),
    "a path that is none": ("/api/v1/nothing", b"{}", "application/json", 404, "could not find the requested resource"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_the_api_refuses_it_by_name_and_changes_nothing(unchanged: Hub, what: str) -> None:
    path, body, content_type, code, message = REFUSED[what]
    got, status = request(unchanged, "POST", path, body, content_type)
    assert (got, status["kind"], status["status"], status["code"]) == (code, "Status", "Failure", code)
    assert message in status["message"], status["message"]


def test_what_is_just_below_the_bound_is_stored(alone: Cluster) -> None:
    hub = alone.main
    code, made = request(hub, "POST", PODS, encoded(big_pod(1_449_000)))
    assert code == 201, made
    hub.api("DELETE", PODS + "/big?gracePeriodSeconds=0")
    alone.wait_gone("big")


def test_a_bad_patch_and_a_stale_update_change_nothing(unchanged: Hub) -> None:
    held = unchanged.api("GET", CONFIGMAPS + "/held")
    stale = {**held, "metadata": {**held["metadata"], "resourceVersion": "1"}, "data": {"a": "2"}}
    for method, body, content_type, code, message in (
        ("PUT", encoded(stale), "application/json", 409, "the object has been modified"),
        ("PATCH", b"{", "application/merge-patch+json", 400, "json"),
        (
            "PATCH",
            b'[{"op":"test","path":"/data/a","value":"9"}]',
            "application/json-patch+json",
            422,
            "test",
        ),
        ("PATCH", b'{"metadata":{"name":"other"}}', "application/merge-patch+json", 400, "name"),
        ("PATCH", b'{"data":{"a":1}}', "application/merge-patch+json", 400, "cannot unmarshal number"),
        ("PATCH", b"{}", "application/yaml", 415, "accepted media types include"),
    ):
        got, status = request(unchanged, method, CONFIGMAPS + "/held", body, content_type)
        assert got == code and message in status["message"], (method, body, got, status)


def test_kubectl_strict_validation_names_the_unknown_field(alone: Cluster, unchanged: Hub) -> None:
    text = yaml.safe_dump(configmap("x", {"a": "b"}, bogus=1))
    said = alone.kubectl("apply", "--validate=strict", "-f", "-", stdin=text, code=1)
    assert 'strict decoding error: unknown field "bogus"' in said, said


def test_kubectl_shows_why_an_object_is_refused(alone: Cluster, unchanged: Hub) -> None:
    said = alone.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(configmap("Bad_Name", {"a": "b"})), code=1)
    assert 'metadata.name: Invalid value: "Bad_Name"' in said, said
    said = alone.kubectl(
        "apply", "-f", "-", stdin=yaml.safe_dump(configmap("x", {"a": "x" * 5_000_000})), code=1
    )
    assert "limit is 3145728 bytes" in said or "Too long" in said, said[-500:]


# -- who asks ------------------------------------------------------------------------------------------------------------


def test_who_shows_no_certificate_may_do_nothing(unchanged: Hub) -> None:
    nobody = tls.client_context(authority(unchanged).root_pem)
    for method, path in (
        ("GET", PODS),
        ("GET", "/api/v1/secrets"),
        ("POST", CONFIGMAPS),
        ("GET", "/metrics"),
    ):
        body = encoded(configmap("x")) if method == "POST" else None
        code, status = request(unchanged, method, path, body, context=nobody)
        assert (code, status["reason"]) == (401, "Unauthorized"), (path, status)
        assert "a client certificate or a token is required: use the kubeconfig" in status["message"]


def test_a_token_instead_of_a_certificate_opens_nothing(unchanged: Hub) -> None:
    nobody = tls.client_context(authority(unchanged).root_pem)
    code, status = request(
        unchanged,
        "GET",
        PODS,
        context=nobody,
        headers={"Authorization": "Bearer some", "X-Remote-User": "admin"},
    )
    assert code == 401, status


def test_a_certificate_of_another_authority_is_refused_in_the_handshake(
    unchanged: Hub, tmp_path: Path
) -> None:
    other = CertificateAuthority.open(str(tmp_path))
    cert, key = other.issue_user("admin", ["system:masters"], "cloudhub.local", time.time())
    context = tls.client_context(authority(unchanged).root_pem, cert, key)
    assert answer_to(unchanged, context) == b""
    assert answer_to(unchanged, admin_context(unchanged)).startswith(b"HTTP/1.1 200")


def test_an_expired_certificate_of_an_administrator_is_refused(unchanged: Hub) -> None:
    ca = authority(unchanged)
    cert, key = ca.issue_user("admin", ["system:masters"], "cloudhub.local", time.time() - 100, 50)
    assert answer_to(unchanged, tls.client_context(ca.root_pem, cert, key)) == b""


def answer_to(hub: Hub, context: ssl.SSLContext) -> bytes:
    """What the API says to a client certificate. asyncio's TLS closes without an alert, so there is no reason to see."""
    head = f"GET {PODS} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    try:
        with socket.create_connection(("127.0.0.1", hub.api_port), timeout=60) as raw:
            with context.wrap_socket(raw, server_hostname="127.0.0.1") as sock:
                sock.sendall(head)
                return sock.recv(100)
    except (ssl.SSLError, ConnectionError):
        return b""


def test_a_user_outside_the_administrators_is_forbidden_by_name(unchanged: Hub) -> None:
    ca = authority(unchanged)
    cert, key = ca.issue_user("eve", ["guests"], "cloudhub.local", time.time())
    context = tls.client_context(ca.root_pem, cert, key)
    code, status = request(unchanged, "POST", CONFIGMAPS, encoded(configmap("x")), context=context)
    assert code == 403
    assert (
        'User "eve" cannot create resource "configmaps" in API group "" in the namespace "default"'
        in status["message"]
    )


def test_a_nodes_certificate_opens_nothing_at_the_api(alone: Cluster, tmp_path: Path) -> None:
    hub = alone.main
    node = enrolled(hub, "spy", tmp_path / "spy")
    before = objects(hub)
    for identity in (node, forge(authority(hub), "spy")):
        for method, path in (
            ("GET", "/api/v1/secrets"),
            ("POST", CONFIGMAPS),
            ("DELETE", "/api/v1/nodes/spy"),
        ):
            body = encoded(configmap("x")) if method == "POST" else None
            code, status = request(hub, method, path, body, context=identity.client())
            assert code in (401, 403), (path, status)
            assert "names no user" in status["message"], status
    assert objects(hub) == before
    hub.api("DELETE", "/api/v1/nodes/spy")


# -- HTTP ----------------------------------------------------------------------------------------------------------------


def test_huge_headers_and_what_is_no_http_get_a_status_and_leave_no_traceback(unchanged: Hub) -> None:
    said = len(unchanged.log())
    for headers, path in (
        ({"X-Big": "planted" * 6000}, PODS),
        ({f"X-{n}": "y" for n in range(200)}, PODS),
        ({}, PODS + "?" + "planted" * 6000),
    ):
        code, status = request(unchanged, "GET", path, headers=headers)
        assert (code, status["kind"]) == (400, "Status"), status
        assert status["message"].startswith("the request is not acceptable: ")
    with secure(unchanged) as sock:
        sock.sendall(b"\x00\x01garbage\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1."), "an answer"
    log = unchanged.log()[said:]
    assert "Traceback" not in log and "planted" not in log


@contextlib.contextmanager
def secure(hub: Hub) -> Iterator[ssl.SSLSocket]:
    with socket.create_connection(("127.0.0.1", hub.api_port), timeout=60) as raw:
        with admin_context(hub).wrap_socket(raw, server_hostname="127.0.0.1") as sock:
            yield sock


def test_slow_clients_are_cut_off_and_delay_nobody(alone: Cluster, unchanged: Hub) -> None:
    """No handshake, no request, a head that never ends, a body that never comes."""

    def until_closed(sock: socket.socket) -> bytes:
        try:
            return sock.recv(4096)
        except ConnectionError:
            return b""

    with contextlib.ExitStack() as stack:
        mute = [
            stack.enter_context(socket.create_connection(("127.0.0.1", unchanged.api_port), timeout=60))
            for _ in range(20)
        ]
        silent = [stack.enter_context(secure(unchanged)) for _ in range(5)]
        dribbling = [stack.enter_context(secure(unchanged)) for _ in range(5)]
        bodiless = [stack.enter_context(secure(unchanged)) for _ in range(5)]
        for sock in dribbling:
            sock.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\nX-A")
        for sock in bodiless:
            sock.sendall(
                f"POST {CONFIGMAPS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                'Content-Length: 100\r\n\r\n{"metadata"'.encode()
            )
        assert "held" in alone.kubectl("get", "configmaps")
        with concurrent.futures.ThreadPoolExecutor(30) as pool:
            ends = list(pool.map(until_closed, [*mute, *silent, *dribbling]))
        assert ends == [b""] * 30, "closed without an answer"
        assert "held" in alone.kubectl("get", "configmaps")
