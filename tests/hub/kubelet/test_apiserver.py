"""The kubelet's face behind a real kube-apiserver: what stock kubectls ask of it, it asks of the hub, which asks a node."""

import asyncio
import contextlib
import os
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from hub.kubelet.access import Access
from hub.kubelet.server import KubeletServer
from hub.kubernetes.client import KubeClient
from hub.kubernetes.config import KubeConfig
from security.tls import kubelet_server_context
from tests.e2e.cluster import kubectl_binaries
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import Hub, hub, until
from tests.hub.kubelet.kubectl_kit import DEADLINE_S, Kubectl, ended, node_with_pod
from tests.hub.kubelet.test_connect_kubectl import through
from tests.servers.kubernetes import APISERVER, ApiError, KubeCluster
from tests.sim.fleet import SimNode
from tests.sim.shell import Shell

CORE = "/api/v1/namespaces/default"


@pytest.fixture(scope="module")
def cluster() -> Iterator[KubeCluster]:
    with KubeCluster(parts=(APISERVER,)) as made:
        made.api("POST", f"{CORE}/serviceaccounts", {"metadata": {"name": "default"}})
        yield made


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("ca")))


class Face:
    """A hub with a node and its pod, the kubelet's face of it, and the same node and pod at the API server."""

    def __init__(self, running: Hub, server: KubeletServer, port: int, edge: SimNode, shell: Shell) -> None:
        self.hub, self.server, self.port, self.edge, self.shell = running, server, port, edge, shell

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"


def register(cluster: KubeCluster, port: int) -> None:
    with contextlib.suppress(ApiError):
        cluster.api("DELETE", f"{CORE}/pods/web?gracePeriodSeconds=0")
    with contextlib.suppress(ApiError):
        cluster.api("DELETE", "/api/v1/nodes/edge-1")
    node: dict[str, Any] = {"metadata": {"name": "edge-1"}}
    cluster.api("POST", "/api/v1/nodes", node)
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }
    merge = "application/merge-patch+json"
    cluster.api("PATCH", "/api/v1/nodes/edge-1/status", {"status": status}, merge)
    pod = {
        "metadata": {"name": "web"},
        "spec": {"nodeName": "edge-1", "containers": [{"name": "main", "image": "none"}]},
    }
    cluster.api("POST", f"{CORE}/pods", pod)
    cluster.api("PATCH", f"{CORE}/pods/web/status", {"status": {"phase": "Running"}}, merge)


@pytest.fixture
async def face(cluster: KubeCluster, pki: Pki) -> AsyncIterator[Face]:
    cert, key = cluster.pki.issue("kubelet", ("system:nodes",), addresses=("127.0.0.1",))
    tls = kubelet_server_context(
        Path(cert).read_text(), Path(key).read_text(), Path(cluster.kubelet_client_ca).read_text()
    )
    async with hub(pki) as h, KubeClient(KubeConfig.from_file(cluster.kubeconfig)) as api:
        edge, shell = await node_with_pod(h)
        server = KubeletServer(h.registry, h.gateway, h.share, Access(api), tls, ("127.0.0.1", 0))
        _, port = await server.start()
        try:
            await asyncio.to_thread(register, cluster, port)
            yield Face(h, server, port, edge, shell)
        finally:
            await server.stop(1.0)


@pytest.fixture(params=[0, 1], ids=["1.34", "1.20"])
def kubectl(request: pytest.FixtureRequest, cluster: KubeCluster, tmp_path: Path) -> Kubectl:
    binary = kubectl_binaries()[request.param]
    return Kubectl(binary, cluster.server, tmp_path, "--kubeconfig", cluster.kubeconfig)


async def test_a_command_runs_through_the_api_server_and_its_exit_code_comes_back(
    kubectl: Kubectl, face: Face
) -> None:
    assert await kubectl("exec", "web", "--", "say", "hello") == (0, b"hello", "")
    code, _, err = await kubectl("exec", "web", "--", "exit", "42")
    assert code == 42 and "exit code 42" in err
    code, _, err = await kubectl("exec", "web", "--", "refuse")
    assert code == 1 and "nobody is there" in err
    code, out, _ = await kubectl("attach", "-i", "web", stdin=b"to the container")
    assert code == 0 and b"to the container" in out


async def test_megabytes_pass_through_the_api_server_whole(kubectl: Kubectl, face: Face) -> None:
    data = os.urandom(1 << 20)
    code, out, err = await kubectl("exec", "-i", "web", "--", "cat", stdin=data)
    assert (code, len(out), err) == (0, len(data), "") and out == data
    code, out, _ = await kubectl("exec", "web", "--", "flood", str(2 << 20))
    assert (code, len(out)) == (0, 2 << 20)


async def test_logs_come_through_the_api_server(kubectl: Kubectl, face: Face) -> None:
    face.edge.log = b"line\n" * 20_000
    code, out, _ = await kubectl("logs", "web")
    assert (code, out) == (0, face.edge.log)
    process = await kubectl.start("logs", "-f", "web")
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readexactly(5), DEADLINE_S) == b"line\n"
    finally:
        await ended(process)
    await until(lambda: not face.hub.gateway.peers["edge-1"].streams, DEADLINE_S, "the end at the node")
    face.edge.drop()
    code, _, err = await kubectl("logs", "web")
    assert code == 1 and 'node "edge-1" is not connected' in err


async def test_several_connections_through_the_api_server_to_a_port(kubectl: Kubectl, face: Face) -> None:
    process = await kubectl.start("port-forward", "web", ":8080")
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)
        found = re.match(rb"Forwarding from 127.0.0.1:(\d+)", line)
        assert found, line
        texts = [bytes([97 + i]) * (50_000 * (i + 1)) for i in range(4)]
        got = await asyncio.gather(*(through(int(found[1]), text) for text in texts))
        assert got == [text.upper() for text in texts]
    finally:
        await ended(process)


async def ask(face: Face, path: str, method: str = "GET", **options: Any) -> tuple[int, str]:
    context = ssl.create_default_context(cafile=options.pop("root"))
    if "cert" in options:
        context.load_cert_chain(*options.pop("cert"))
    headers = {"Authorization": f"Bearer {options.pop('token')}"} if "token" in options else {}
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, face.url + path, ssl=context, headers=headers, **options) as reply,
    ):
        return reply.status, await reply.text()


async def test_nobody_is_answered_who_is_unknown_or_may_not(cluster: KubeCluster, face: Face) -> None:
    root = cluster.pki.root
    asked = (
        "/healthz",
        "/pods?node=edge-1",
        "/containerLogs/default/web/main",
        "/exec/default/web/main",
        "/no",
    )
    for path in asked:
        assert (await ask(face, path, root=root))[0] == 401, path
        assert (await ask(face, path, root=root, token="made.up.token"))[0] == 401, path
        nobody = cluster.pki.issue("nobody", ("strangers",))
        code, text = await ask(face, path, root=root, cert=nobody)
        assert code == 403 and "cannot" in text, path
    # Whether a pod exists is told to nobody who may not.
    codes = [(await ask(face, f"/exec/default/{p}/main", root=root, cert=nobody))[0] for p in ("web", "none")]
    assert codes == [403, 403]
    assert face.server.refused == len(asked) * 3 + 2 and not face.shell.requests


async def test_a_token_is_let_in_where_the_api_server_knows_it_and_grants_the_right(
    cluster: KubeCluster, face: Face
) -> None:
    root = cluster.pki.root
    role = "system:kubelet-api-admin"
    with cluster.account("scraper", role) as token:
        assert await ask(face, "/healthz", root=root, token=token) == (200, "ok")
        code, text = await ask(face, "/pods?node=edge-1", root=root, token=token)
        assert code == 200 and '"name":"web"' in text
        code, text = await ask(face, "/metrics/resource?node=edge-1", root=root, token=token)
        assert code == 200 and "resource_scrape_error 1" in text
        code, text = await ask(face, "/stats/summary?node=edge-1", root=root, token=token)
        assert code == 200 and '"podRef"' in text
        code, text = await ask(face, "/pods", root=root, token=token)
        assert code == 400 and "which node" in text
        code, text = await ask(face, "/pods?node=edge-2", root=root, token=token)
        assert code == 503 and "another replica" in text
        assert (await ask(face, "/exec/default/none/main", "POST", root=root, token=token))[0] == 404
        assert (await ask(face, "/healthz", "PUT", root=root, token=token))[0] == 405
    fine = {"apiGroups": [""], "resources": ["nodes/pods"], "verbs": ["get"]}
    rbac = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
    cluster.api("POST", rbac, {"metadata": {"name": "pods-of-nodes"}, "rules": [fine]})
    with cluster.account("lister", "pods-of-nodes") as token:
        assert (await ask(face, "/pods?node=edge-1", root=root, token=token))[0] == 200
        assert (await ask(face, "/containerLogs/default/web/main", root=root, token=token))[0] == 403
    with cluster.account("reader", "view") as token:
        assert (await ask(face, "/metrics/resource?node=edge-1", root=root, token=token))[0] == 403
