"""What the tests' Kubernetes is relied on for: its parts work together, and its faults are those of real ones."""

import contextlib
import http.client
import json
import ssl
import subprocess
from collections.abc import Iterator
from email.message import Message
from typing import Any

import pytest

from tests.e2e.cluster import wait_for
from tests.servers.kubeproxy import KubeProxy
from tests.servers.kubernetes import APISERVER, CONTROLLERS, SCHEDULER, KubeCluster


def node(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}}}


def make_ready(cluster: KubeCluster, name: str) -> None:
    """What a kubelet would say of an empty node."""
    conditions = [
        {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
         "lastHeartbeatTime": "2030-01-01T00:00:00Z", "lastTransitionTime": "2025-01-01T00:00:00Z"},
    ]  # fmt: skip
    room = {"cpu": "1", "memory": "1Gi", "pods": "10"}
    cluster.api(
        "PATCH",
        f"/api/v1/nodes/{name}/status",
        {"status": {"conditions": conditions, "capacity": room, "allocatable": room}},
        "application/merge-patch+json",
    )


def bound(cluster: KubeCluster, namespace: str) -> list[str]:
    pods = cluster.api("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]
    return [pod["spec"]["nodeName"] for pod in pods if "nodeName" in pod["spec"]]


def test_a_deployment_lands_on_the_node_that_somebody_reports(kubernetes: KubeCluster) -> None:
    kubernetes.api("POST", "/api/v1/nodes", node("server-1", here="yes"))
    kubernetes.kubectl("create", "namespace", "server")
    try:
        kubernetes.kubectl("-n", "server", "create", "deployment", "web", "--image=none", "--replicas=3")
        make_ready(kubernetes, "server-1")
        wait_for(lambda: bound(kubernetes, "server") == ["server-1"] * 3, "three pods are bound", 60)
        wait_for(
            lambda: kubernetes.metric("apiserver_longrunning_requests", verb="WATCH", resource="pods") >= 2,
            "the API server says who watches",
        )
    finally:
        kubernetes.kubectl("delete", "node", "server-1")
        kubernetes.kubectl("delete", "namespace", "server", "--wait=false")


@pytest.fixture(scope="module")
def own() -> Iterator[KubeCluster]:
    """A cluster that may be broken."""
    with KubeCluster() as made:
        yield made


def test_a_node_whose_lease_is_not_renewed_becomes_unknown_soon(own: KubeCluster) -> None:
    own.api("POST", "/api/v1/nodes", node("silent"))
    make_ready(own, "silent")

    def ready() -> str:
        found = own.api("GET", "/api/v1/nodes/silent")["status"]["conditions"]
        return next(str(c["status"]) for c in found if c["type"] == "Ready")

    wait_for(lambda: ready() == "Unknown", "the node is Unknown", 60)


def test_a_watch_from_before_a_compaction_and_a_restart_is_gone(own: KubeCluster) -> None:
    own.api("POST", "/api/v1/nodes", node("before"))
    old = own.api("GET", "/api/v1/nodes")["metadata"]["resourceVersion"]
    own.api(
        "PATCH", "/api/v1/nodes/before", {"metadata": {"labels": {"a": "b"}}}, "application/merge-patch+json"
    )
    own.kill(APISERVER)
    assert own.compact() > int(old)
    own.restart(APISERVER)
    connection = http.client.HTTPSConnection("127.0.0.1", own.port, context=_context(own), timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", f"/api/v1/nodes?watch=1&resourceVersion={old}")
        answer = connection.getresponse()
        text = answer.readline()
    assert b'"code":410' in text or answer.status == 410


def test_every_part_can_be_frozen_and_killed_and_comes_back(own: KubeCluster) -> None:
    own.freeze(APISERVER)
    with pytest.raises(ConnectionError):
        _quick(own)
    own.thaw(APISERVER)
    wait_for(lambda: _quick(own), "the thawed API server answers")
    for part in (APISERVER, CONTROLLERS, SCHEDULER, "etcd"):
        own.kill(part)
        own.restart(part)
    wait_for(lambda: own.api("GET", "/readyz"), "all of it is ready")


def test_through_the_proxy_watches_are_counted_and_closed_and_requests_refused(
    kubernetes: KubeCluster,
) -> None:
    with kubernetes.account("proxied") as token, KubeProxy(kubernetes) as proxy:
        config = proxy.kubeconfig("proxied", token)
        watching = ["get", "namespaces", "-w"]
        argv = [kubernetes.kubectl_argv()[0], "--kubeconfig", config]
        process = subprocess.Popen(
            [*argv, *watching], stdout=subprocess.DEVNULL, env=kubernetes.kubectl_environment()
        )
        try:
            wait_for(lambda: dict(proxy.watches) == {"/api/v1/namespaces": 1}, "the watch is counted")
            assert proxy.requests["list", "namespaces"] == 1
            proxy.cut()
            wait_for(lambda: not proxy.watches, "the watch is cut")
        finally:
            process.kill()
            process.wait()
        proxy.refused_share = 1.0
        status, headers = _asked(kubernetes, proxy.url, token)
        assert (status, headers["Retry-After"]) == (429, "1")
        proxy.refused_share = 0.0
        assert _asked(kubernetes, proxy.url, token)[0] == 200
        proxy.down = True
        with pytest.raises(ConnectionError):
            _asked(kubernetes, proxy.url, token)


def test_a_token_that_has_expired_is_refused(kubernetes: KubeCluster) -> None:
    with kubernetes.account("expired") as token:
        assert _asked(kubernetes, kubernetes.server, token)[0] == 200
        assert _asked(kubernetes, kubernetes.server, _expired(kubernetes))[0] == 401


def _asked(cluster: KubeCluster, server: str, token: str) -> tuple[int, Message]:
    """The status and the headers of one request with a token. Raises ConnectionError."""
    address = server.removeprefix("https://")
    context = ssl.create_default_context(cafile=cluster.pki.root)
    connection = http.client.HTTPSConnection(address, timeout=30, context=context)
    try:
        with contextlib.closing(connection):
            connection.request("GET", "/api/v1/nodes", headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            return answer.status, answer.headers
    except (OSError, http.client.HTTPException) as failure:
        raise ConnectionError(repr(failure)) from failure


def _expired(cluster: KubeCluster) -> str:
    uid = cluster.api("GET", "/api/v1/namespaces/default/serviceaccounts/expired")["metadata"]["uid"]
    return cluster.pki.token("default", "expired", uid, -60)


def _context(cluster: KubeCluster) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=cluster.pki.root)
    context.load_cert_chain(*cluster.pki.issue("watcher", ("system:masters",)))
    return context


def _quick(cluster: KubeCluster) -> bool:
    """One request with little patience. Raises ConnectionError."""
    connection = http.client.HTTPSConnection("127.0.0.1", cluster.port, context=_context(cluster), timeout=2)
    try:
        with contextlib.closing(connection):
            connection.request("GET", "/api/v1/namespaces/default")
            return bool(json.loads(connection.getresponse().read())["metadata"]["name"] == "default")
    except (OSError, http.client.HTTPException) as failure:
        raise ConnectionError(repr(failure)) from failure
