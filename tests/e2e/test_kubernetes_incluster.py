"""Workloads of a real Kubernetes cluster that read the API from the edge: with the token, the roots and the address that they
are given, also while the hub is away; what they are told of Services; and static pods beside them."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import wait_for
from tests.e2e.kube import Kube, config_map, files_of, processes_with
from tests.e2e.kube_edge import KubeEdge, pod
from tests.servers.kubernetes import KubeCluster

WAIT_S = 90.0
PLACE = "/var/run/secrets/kubernetes.io/serviceaccount"
# kubectl as any client finds its way in a cluster: by environment and mounted files alone.
READER = """unset KUBECONFIG; export HOME=$PWD
n=0
while :; do
  n=$((n+1))
  echo "round $n pod=$({kubectl} get pod reader -o jsonpath='{{.metadata.uid}}')\
 map=$({kubectl} get configmap settings -o jsonpath='{{.data.colour}}')"
  sleep 0.5
done"""


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeEdge]:
    with KubeCluster() as cluster, KubeEdge(tmp_path_factory.mktemp("edge"), cluster) as made:
        made.agent("edge-1")
        yield made


@pytest.fixture
def kube(edge: KubeEdge) -> Kube:
    return Kube(edge, edge.kubectl_path, f"t-{os.urandom(4).hex()}")


@pytest.fixture
def client(edge: KubeEdge) -> Iterator[str]:
    """A kubectl that the user of the workloads may run: the tests' folders are closed to it."""
    with tempfile.TemporaryDirectory(prefix="incluster-") as directory:
        os.chmod(directory, 0o755)
        path = os.path.join(directory, "kubectl")
        shutil.copyfile(edge.kubectl_path, path)
        os.chmod(path, 0o755)
        yield path


def holds(directory: Path, text: str) -> list[str]:
    """Regular files below a directory that hold the text."""
    found = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path) for path in found if text.encode() in path.read_bytes()]


def test_a_workload_reads_the_api_with_its_token_and_goes_on_without_the_hub(
    edge: KubeEdge, kube: Kube, client: str
) -> None:
    wait_for(lambda: kube.json("serviceaccount", "default"), "the namespace has its service account", WAIT_S)
    wait_for(lambda: kube.json("configmap", "kube-root-ca.crt"), "and its roots", WAIT_S)
    script = READER.format(kubectl=client)
    reader = pod("reader", script, automountServiceAccountToken=True)
    container = reader["spec"]["containers"][0]
    container["env"] = [
        {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}}
    ]
    kube.apply(config_map("settings", colour="red"), reader)
    kube.ready("pod/reader")
    uid = kube.json("pod", "reader")["metadata"]["uid"]
    wait_for(
        lambda: f"pod={uid} map=red" in kube("logs", "reader"),
        "it reads itself",
        WAIT_S,
        lambda: kube("logs", "reader"),
    )
    token = kube("exec", "reader", "--", "cat", f"{PLACE}/token").strip()
    assert token.count(".") == 2
    agent = edge.agents["edge-1"]
    assert holds(agent.data_dir, token) == []
    assert "FailedMount" not in kube("get", "events", "--field-selector", "involvedObject.name=reader")

    kube("patch", "configmap", "settings", "-p", '{"data":{"colour":"blue"}}')
    wait_for(
        lambda: f"pod={uid} map=blue" in kube("logs", "reader", "--tail=3"), "it reads the change", WAIT_S
    )
    edge.main.stop()
    (log,) = files_of(agent, uid).rglob("log")
    lines = len(log.read_text().splitlines())
    wait_for(lambda: len(log.read_text().splitlines()) >= lines + 5, "it goes on", WAIT_S)
    assert log.read_text().splitlines()[-2].endswith(f"pod={uid} map=blue")
    edge.main.start()
    edge.wait_ready("edge-1")


FINDER = """unset KUBECONFIG; export HOME=$PWD
while :; do
  echo "env=$MY_DB_SERVICE_HOST:$MY_DB_SERVICE_PORT_SQL api=$KUBERNETES_SERVICE_HOST\
 service=$({kubectl} get service my-db -o jsonpath='{{.spec.clusterIP}}')\
 endpoints=$({kubectl} get endpointslices -l kubernetes.io/service-name=my-db -o jsonpath='{{.items[*].endpoints[*].addresses}}')"
  sleep 0.5
done"""
PLAIN = ': {mark}; echo "env=$MY_DB_PORT api=$KUBERNETES_SERVICE_HOST"; sleep 1000; true'


def endpoint_slice(*endpoints: tuple[str, bool]) -> Any:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "my-db-1", "labels": {"kubernetes.io/service-name": "my-db"}},
        "addressType": "IPv4",
        "ports": [{"name": "sql", "port": 5432}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": up}} for address, up in endpoints],
    }


def test_pods_are_told_of_services_by_environment_and_by_the_nodes_own_api_also_without_the_hub(
    edge: KubeEdge, kube: Kube, client: str
) -> None:
    wait_for(lambda: kube.json("serviceaccount", "default"), "the namespace has its service account", WAIT_S)
    ports = [{"name": "sql", "port": 5432}]
    kube.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "my-db"}, "spec": {"ports": ports}},
        endpoint_slice(("10.9.0.1", True), ("10.9.0.2", False)),
    )
    address = kube.json("service", "my-db")["spec"]["clusterIP"]
    master = edge.main.api("GET", "/api/v1/namespaces/default/services/kubernetes")["spec"]["clusterIP"]
    mark = f"mark-{kube.namespace}"
    kube.apply(
        pod("finder", FINDER.format(kubectl=client), automountServiceAccountToken=True),
        pod("plain", PLAIN.format(mark=mark)),
        pod("silent", PLAIN.format(mark="silent"), enableServiceLinks=False),
    )
    for name in ("finder", "plain", "silent"):
        kube.ready(f"pod/{name}")
    told = f"env=tcp://{address}:5432 api={master}"
    assert kube("logs", "plain") == f"{told}\n"
    assert kube("logs", "silent") == f"env= api={master}\n"

    def found(endpoints: str) -> str:
        return f"env={address}:5432 api=127.0.0.1 service={address} endpoints={endpoints}"

    def shows(line: str) -> None:
        wait_for(
            lambda: line in kube("logs", "finder", "--tail=3"), line, WAIT_S, lambda: kube("logs", "finder")
        )

    shows(found('["10.9.0.1"]'))
    kube.apply(endpoint_slice(("10.9.0.1", True), ("10.9.0.2", True)))
    shows(found('["10.9.0.1"] ["10.9.0.2"]'))
    assert sum(s["restartCount"] for s in kube.json("pod", "plain")["status"]["containerStatuses"]) == 0

    logs = {
        name: files_of(edge.agents["edge-1"], kube.json("pod", name)["metadata"]["uid"])
        for name in ("finder", "plain")
    }
    edge.main.stop()

    def lines(name: str) -> list[str]:
        return [
            line for log in logs[name].rglob("log*") for line in log.read_text(errors="replace").splitlines()
        ]

    before = lines("finder").count(found('["10.9.0.1"] ["10.9.0.2"]'))
    wait_for(
        lambda: lines("finder").count(found('["10.9.0.1"] ["10.9.0.2"]')) > before + 3, "it goes on", WAIT_S
    )
    # A container that starts meanwhile is told from the journal, and so is one after the agent's own restart.
    edge.agents["edge-1"].kill9()
    edge.agents["edge-1"].run()
    (process,) = processes_with(mark)
    process.kill()
    wait_for(lambda: lines("plain").count(told) == 2, "it is told again", WAIT_S, lambda: lines("plain"))
    edge.main.start()
    edge.wait_ready("edge-1")


def test_a_static_pod_is_mirrored_in_the_cluster(edge: KubeEdge, kube: Kube) -> None:
    directory = edge.agents["edge-1"].data_dir / "manifests"
    directory.mkdir(exist_ok=True)
    file = directory / "till.json"
    container = {"name": "main", "image": "none", "command": ["/bin/sh", "-c", "echo static; sleep 1000"]}
    meta = {"name": "till", "namespace": kube.namespace, "labels": {"cloudhub.dev/runtime": "process"}}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}))
    try:
        kube_shows = lambda: kube.json("pod", "till-edge-1")["status"]["phase"] == "Running"  # noqa: E731
        wait_for(kube_shows, "the mirror is shown", WAIT_S)
        assert kube("logs", "till-edge-1") == "static\n"
    finally:
        file.unlink()
    kube.gone("pods", "till-edge-1")
