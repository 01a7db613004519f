"""The node's own API, as a workload reaches it: over TLS, with what is mounted in its pod and nothing else."""

import contextlib
import http.client
import json
import os
import ssl
import threading

import pytest

from edgelite import localapi, localserver
from edgelite.localserver import LocalApi
from edgelite.localview import usual_volumes
from edgelite.podview import PodView
from edgelite.twinkeeper import TwinKeeper
from edgelite.vault import Vault
from tests.edgelite.test_podservices import MASTER, SLICE, WEB
from tests.edgelite.test_tokens import CA, TOKEN, VOLUME, WANTED, deliver, read, with_token
from tests.edgelite.test_workloads import KEY, Node, pod

SECRET = {"kind": "Secret", "ns": "shop", "name": "pw", "type": "Opaque", "data": {"k": "djE="}}
OTHER = {"kind": "Secret", "ns": "shop", "name": "other", "type": "Opaque", "data": {"k": "djE="}}

NAMESAKE = {**OTHER, "name": "ca"}  # the pod refers to the ConfigMap of this name


class LocalNode(Node):
    """A node with a running pod that has a token, and whose API has begun."""

    def __init__(self, root):
        (root / "shm").mkdir()
        secret = os.urandom(32)
        self.twin_reports = []
        sealed = Vault(None, [secret], os.urandom).record([secret])
        Node.__init__(self, root, tmpfs=str(root / "shm"), vault=lambda: Vault(sealed, [secret], os.urandom), view=self._make)  # fmt: skip
        self.keeper = TwinKeeper(
            self.loop, self.clock.wall, lambda *told: self.twin_reports.append(told), lambda *saved: None, []
        )

    def _make(self, library, pods):
        report = {"labels": {"zone": "a"}, "capacity": {"cpu": "2"}}

        def server(view):
            return LocalApi(
                self.loop, self.root, self.store, os.urandom, view.objects, view.revision, view.report
            )

        return PodView(library, pods, self.clock, "edge-1", lambda: report, server, self.keeper)

    def run_pod(self):
        self.workloads.start()
        for name, doc in (
            ("configmap/shop/ca", CA),
            ("secret/shop/pw", SECRET),
            ("secret/shop/other", OTHER),
            ("secret/shop/ca", NAMESAKE),
        ):
            self.set(name, doc)
        doc = with_token()
        doc["spec"]["containers"][0]["env"] = [
            {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "pw", "key": "k"}}}
        ]
        self.set(KEY, doc)
        self.until(lambda: any(kind == "token" for kind, _, _ in self.reports))
        deliver(self)
        self.until(lambda: self.phase() == "Running")
        return self.runtime.launches[0]

    def elsewhere(self, work):
        """Runs `work` in a thread, as a workload would beside the agent; what it returns."""
        found = []

        def go():
            try:
                found.append(work())
            except Exception as error:
                found.append(error)

        thread = threading.Thread(target=go)
        thread.start()
        try:
            self.until(lambda: found)
        finally:
            thread.join()
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]


@pytest.fixture
def node(tmp_path):
    made = LocalNode(tmp_path)
    yield made
    made.loop.close()


class Client:
    """Knows what a container is told: environment and mounted files."""

    def __init__(self, launch):
        env = dict(launch.env)
        self.place = launch.mounts[0].source
        self.address = (env["KUBERNETES_SERVICE_HOST"], int(env["KUBERNETES_SERVICE_PORT"]))
        self.context = ssl.create_default_context(cafile=os.path.join(self.place, "ca.crt"))
        # As Python has it from 3.13 on.
        self.context.verify_flags |= ssl.VERIFY_X509_STRICT

    @contextlib.contextmanager
    def ask(self, path, method="GET", token=None, body=None, content_type=""):
        connection = http.client.HTTPSConnection(*self.address, context=self.context, timeout=30)
        token = read(self.place, "token") if token is None else token
        try:
            headers = {"Authorization": "Bearer " + token, "Content-Type": content_type}
            connection.request(method, path, body=body, headers=headers)
            yield connection.getresponse()
        finally:
            connection.close()

    def get(self, path, **more):
        with self.ask(path, **more) as response:
            return response.status, json.loads(response.read())


def test_a_workload_reads_itself_its_node_and_what_it_refers_to(node):
    client = Client(node.run_pod())

    def work():
        base = "/api/v1/namespaces/shop/"
        return [
            client.get(path)
            for path in (
                base + "pods/till",
                base + "configmaps/ca",
                base + "secrets/pw",
                "/api/v1/nodes/edge-1",
                "/api/v1/namespaces/shop",
                base + "pods",
                "/api/v1/pods?fieldSelector=spec.nodeName%3Dedge-1",
                "/version",
                "/api",
                "/apis",
                "/api/v1",
            )
        ]

    answers = node.elsewhere(work)
    found, config, secret, machine, space, every, selected, *rest = [answer for _, answer in answers]
    assert [code for code, _ in answers] == [200] * 6 + [400] + [200] * 4
    assert (found["kind"], found["metadata"]["uid"], found["spec"]["nodeName"]) == ("Pod", "u1", "edge-1")
    assert found["status"]["phase"] == "Running"
    assert config["data"] == CA["data"] and secret["data"] == SECRET["data"]
    assert machine["metadata"]["labels"] == {"zone": "a"} and machine["status"]["capacity"] == {"cpu": "2"}
    assert space["metadata"]["name"] == "shop"
    assert every["kind"] == "PodList" and [o["metadata"]["name"] for o in every["items"]] == ["till"]
    assert "metadata.name" in selected["message"]
    assert rest[1]["versions"] == ["v1"]


def test_what_the_pod_does_not_refer_to_does_not_exist_for_it(node):
    client = Client(node.run_pod())
    base = "/api/v1/namespaces/shop/"
    paths = [base + "secrets/other", base + "secrets/ca", "/api/v1/namespaces/bank/secrets/pw", "/api/v1/nodes/edge-2", base + "services/x", "/apis/apps/v1"]  # fmt: skip
    assert [code for code, _ in node.elsewhere(lambda: [client.get(p) for p in paths])] == [404] * 6
    code, listed = node.elsewhere(lambda: client.get(base + "secrets"))
    assert code == 200 and [o["metadata"]["name"] for o in listed["items"]] == ["pw"]


def test_a_pod_finds_its_namespaces_services_and_hears_of_changes(node):
    client = Client(node.run_pod())
    node.set("service/shop/my-web", WEB)
    node.set("service/default/kubernetes", MASTER)
    node.set("service/bank/vault", {**WEB, "ns": "bank", "name": "vault"})
    node.set("endpointslice/shop/my-web-1", SLICE)
    slices = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"
    paths = [
        "/api/v1/namespaces/shop/services/my-web",
        "/api/v1/services",
        slices + "?labelSelector=kubernetes.io/service-name%3Dmy-web",
        "/apis/discovery.k8s.io/v1",
        "/apis",
        "/api/v1/namespaces/bank/services/vault",
        "/apis/v1/namespaces/shop/services/my-web",
        "/api/v1/namespaces/shop/endpointslices",
    ]
    answers = node.elsewhere(lambda: [client.get(path) for path in paths])
    assert [code for code, _ in answers] == [200] * 5 + [404] * 3
    web, every, found, known, groups = [answer for _, answer in answers[:5]]
    assert web["spec"] == WEB["spec"]
    assert [o["metadata"]["name"] for o in every["items"]] == ["my-web", "kubernetes"]
    assert (found["kind"], found["apiVersion"]) == ("EndpointSliceList", "discovery.k8s.io/v1")
    assert [o["endpoints"][0]["addresses"] for o in found["items"]] == [["10.1.0.1"]]
    assert [r["name"] for r in known["resources"]] == ["endpointslices"]
    assert [g["name"] for g in groups["groups"]] == ["discovery.k8s.io", "cloudhub.dev"]

    seen, done = [], []
    version = found["metadata"]["resourceVersion"]

    def watch():
        with client.ask(f"{slices}?watch=1&resourceVersion={version}") as response:
            seen.append("begun")
            done.append(json.loads(response.readline()))

    thread = threading.Thread(target=watch)
    thread.start()
    node.until(lambda: seen)
    node.set("endpointslice/shop/my-web-1", {**SLICE, "endpoints": []})
    node.until(lambda: done)
    thread.join()
    assert (done[0]["type"], done[0]["object"]["endpoints"]) == ("MODIFIED", [])
    node.delete("service/shop/my-web")
    assert node.elsewhere(lambda: client.get(paths[0]))[0] == 404


def test_nobody_reads_without_a_pods_token_and_nobody_writes(node):
    client = Client(node.run_pod())
    path = "/api/v1/namespaces/shop/secrets/pw"

    def work():
        return [
            client.get(path, token="")[0],
            client.get(path, token=TOKEN + "x")[0],
            client.get(path, method="DELETE")[0],
            client.get(path, method="PATCH", body=b"{}")[0],
            client.get("/healthz", token="")[0],
        ]

    assert node.elsewhere(work) == [401, 401, 405, 405, 200]


def test_a_token_opens_nothing_once_its_pod_has_gone(node):
    client = Client(node.run_pod())
    token = read(client.place, "token")
    node.delete(KEY)
    node.until(lambda: "u1" in node.runtime.removed)
    node.settle()
    assert node.elsewhere(lambda: client.get("/api/v1/pods", token=token))[0] == 401


def test_a_watch_tells_of_changes(node):
    client = Client(node.run_pod())
    seen, told = [], threading.Event()

    def work():
        base = "/api/v1/namespaces/shop/configmaps"
        _, listed = client.get(base)
        version = listed["metadata"]["resourceVersion"]
        with client.ask(f"{base}?watch=1&resourceVersion={version}") as response:
            told.set()
            seen.append(json.loads(response.readline()))
        with client.ask(base + "?watch=1&resourceVersion=1") as response:
            seen.append(json.loads(response.read()))
        with client.ask(base + "?watch=1&timeoutSeconds=1") as response:
            seen.extend(json.loads(line) for line in response.read().splitlines())
        return True

    done = []
    thread = threading.Thread(target=lambda: done.append(work()))
    thread.start()
    node.until(told.is_set)
    node.set("configmap/shop/ca", {**CA, "data": {"ca.crt": "others"}})
    node.until(lambda: done)
    thread.join()
    assert (seen[0]["type"], seen[0]["object"]["data"]) == ("MODIFIED", {"ca.crt": "others"})
    assert (seen[1]["code"], seen[1]["reason"]) == (410, "Expired")
    assert [event["type"] for event in seen[2:]] == ["ADDED"]
    assert localserver.CONNECTIONS_MAX > 0 and not node.workloads._view._api._watchers


def test_a_restarted_agent_serves_where_running_workloads_were_told(node):
    launch = node.run_pod()
    client = Client(launch)
    assert node.elsewhere(lambda: client.get("/api/v1/pods"))[0] == 200
    node.loop.close()
    node.crash()
    node.until(lambda: node.workloads._recovered)
    node.settle()
    code, listed = node.elsewhere(lambda: client.get("/api/v1/pods"))
    assert code == 200 and len(listed["items"]) == 1


def test_the_key_of_the_api_is_the_agents_alone(node):
    node.run_pod()
    assert os.stat(os.path.join(node.root, localserver.FILE)).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(2000), b""])
def test_who_speaks_no_tls_is_dropped_and_disturbs_nobody(node, data):
    import socket

    client = Client(node.run_pod())

    def work():
        with socket.create_connection(client.address, timeout=30) as raw:
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while raw.recv(1000):
                    pass
        return client.get("/api/v1/pods")[0]

    assert node.elsewhere(work) == 200
    node.settle()
    assert node.workloads._view._api._connections == 0


@pytest.mark.parametrize(
    "head", [b"GET /x\r\n\r\n", b"\xff\r\n\r\n", b"GET /%zz HTTP/1.1\r\n\r\n", b"A" * 40000]
)
def test_a_request_that_is_none_ends_its_connection(node, head):
    import socket

    client = Client(node.run_pod())

    def work():
        with socket.create_connection(client.address, timeout=30) as raw, client.context.wrap_socket(raw, server_hostname="localhost") as tls:  # fmt: skip
            with contextlib.suppress(OSError):
                tls.sendall(head)
                assert tls.recv(100) == b""
        return client.get("/api/v1/pods")[0]

    assert node.elsewhere(work) == 200


def test_a_pod_that_names_another_api_server_is_left_to_it():
    doc = with_token()
    assert usual_volumes(doc) == {"access"}
    doc["spec"]["containers"][0]["env"] = [{"name": "KUBERNETES_SERVICE_HOST", "value": "api.example"}]
    assert usual_volumes(doc) == set()
    assert usual_volumes(pod(volumes=[VOLUME])) == set()


def test_a_token_for_somebody_else_opens_nothing(node):
    node.run_pod()
    tokens = node.workloads._library.tokens
    assert tokens.owner(TOKEN) == "u1"
    tokens._docs[WANTED]["audience"] = "bank"
    assert tokens.owner(TOKEN) is None


@pytest.mark.parametrize("selector", ["a!=b", "a", "a in (b)"])
def test_selectors_that_cannot_be_answered_are_refused(selector):
    code, status = localapi.answer("GET", "/api/v1/pods", {"labelSelector": selector}, lambda plural: [], lambda: 1)  # fmt: skip
    assert code == 400 and status["reason"] == "BadRequest"
