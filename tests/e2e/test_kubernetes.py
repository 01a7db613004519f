"""Edge nodes in a real Kubernetes cluster, seen with stock kubectl as a user of kubelet nodes would see them."""

import contextlib
import json
import os
import pty
import re
import select
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgelite import enroll
from hub import kubeconfig
from hub.reports import CONFIRMED, PARTED
from security import tls
from tests.e2e.cluster import ROOT, ApiFailure, wait_for
from tests.e2e.kube import PATIENCE, Kube, config_map, processes_with, secret
from tests.e2e.kube_edge import KubeEdge, job, pod, pod_template, workload
from tests.ports import free_port
from tests.servers.kubernetes import KubeCluster

WAIT_S = 60.0
NODES = ("edge-1", "edge-2")
LIVE = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeEdge]:
    """A cluster of its own, whose only nodes are two at the edge."""
    with KubeCluster() as cluster, KubeEdge(tmp_path_factory.mktemp("edge"), cluster) as made:
        for name in NODES:
            made.agent(name, wait=False)
        for name in NODES:
            made.wait_ready(name)
        yield made


@pytest.fixture
def kube(edge: KubeEdge) -> Iterator[Kube]:
    """The current kubectl in a namespace of its own."""
    made = Kube(edge, edge.kubectl_path, f"t-{os.urandom(4).hex()}")
    yield made
    with contextlib.suppress(ApiFailure):
        edge.main.api("DELETE", f"/api/v1/namespaces/{made.namespace}")


def marks(kube: Kube, *names: str) -> list[str]:
    """Words that tell apart the processes of this test."""
    return [f"mark-{kube.namespace}-{name}" for name in names]


def only(counts: dict[str, int]) -> None:
    """Waits until exactly so many processes carry each mark."""
    wait_for(
        lambda: {mark: len(processes_with(mark)) for mark in counts} == counts,
        f"processes {counts}",
        WAIT_S,
        lambda: {mark: processes_with(mark) for mark in counts},
    )


def test_edge_nodes_are_shown_as_nodes_with_what_their_agents_report(edge: KubeEdge, kube: Kube) -> None:
    lines = {
        line.split()[0]: line for line in kube("get", "nodes", "-o", "wide", "--no-headers").splitlines()
    }
    assert set(lines) == set(NODES)
    assert all(line.split()[1] == "Ready" for line in lines.values()), lines
    node = kube.json("node", "edge-1")
    labels = node["metadata"]["labels"]
    assert labels["cloudhub.dev/edge"] == "true"
    assert labels["kubernetes.io/hostname"] == "edge-1"
    assert labels["kubernetes.io/os"] == "linux" and labels["kubernetes.io/arch"]
    assert int(node["status"]["capacity"]["pods"]) > 0 and node["status"]["allocatable"]["memory"]
    assert node["status"]["nodeInfo"]["operatingSystem"] == "linux"
    shown = kube("describe", "node", "edge-1")
    assert "Ready" in shown and "Allocated resources" in shown

    def renewed() -> str:
        return str(
            edge.main.api("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge-1")[
                "spec"
            ]["renewTime"]
        )

    first = wait_for(renewed, "the node has a lease", WAIT_S)
    wait_for(lambda: renewed() > first, "its lease is renewed", WAIT_S)


def test_the_fleet_page_shows_edge_nodes_of_the_cluster_and_what_their_sessions_hold(
    edge: KubeEdge, kube: Kube
) -> None:
    kube.apply(pod("shown", LIVE, nodeName="edge-1"))
    kube.ready("pod/shown")
    found = kubeconfig.read(str(edge.main.data_dir / "kubeconfig"))
    context = tls.client_context(found.root_pem, found.cert_pem, found.key_pem)

    def ask(path: str) -> Any:
        url = f"https://127.0.0.1:{edge.main.api_port}{path}"
        with urllib.request.urlopen(url, context=context, timeout=WAIT_S) as reply:
            return json.loads(reply.read())

    whole = ask("/cloudhub/fleet/nodes")
    states = dict(zip(whole["names"], whole["state"], strict=True))
    assert {states[name] for name in NODES} == {"0"}
    node = ask("/cloudhub/fleet/node?name=edge-1")
    assert node["state"] == "Ready" and node["session"]["state"] == "live"
    (held,) = [one for one in node["documents"] if one["key"].startswith(f"pod/{kube.namespace}/shown/")]
    assert (held["standing"], held["phase"]) == ("held", "Running")
    assert node["events"] is None and "API server" in node["eventsHidden"]
    for name in ("..", "edge-1%2F..", "edge-1?x=1", "%2e%2e%2fpods"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            ask(f"/cloudhub/fleet/node?name={urllib.parse.quote(name)}")


def test_a_node_waits_as_the_clusters_own_request_until_kubectl_approves_it(
    edge: KubeEdge, tmp_path: Path
) -> None:
    token = edge.main.token("--node", "edge-3", "--approval", "yes")

    def join() -> dict[str, str]:
        return enroll.join(edge.main.edge, token, None, {}, str(tmp_path / "edge-3"))

    for _ in range(2):
        with pytest.raises(enroll.EnrollError, match="kubectl certificate approve edge-3-") as waits:
            join()
        assert waits.value.code == enroll.PENDING
    name = waits.value.message.split()[-1]
    assert "Pending" in edge.kubectl("get", "csr", name)
    assert "edge-3" not in edge.kubectl("get", "nodes")
    edge.kubectl("certificate", "approve", name)
    assert join()["node"] == "edge-3"
    assert "Approved,Issued" in edge.kubectl("get", "csr", name)
    edge.kubectl("delete", "node/edge-3", f"csr/{name}")


def test_a_deployment_runs_rolls_fails_recovers_and_disappears(kube: Kube) -> None:
    red, blue, bad = marks(kube, "red", "blue", "bad")
    script = ": %s; echo up; sleep 1000"
    kube.apply(workload("Deployment", "web", pod_template("web", script % red), replicas=3))
    assert "successfully rolled out" in kube("rollout", "status", "deployment/web", PATIENCE)
    only({red: 3, blue: 0})
    described = kube("describe", "pod", "-l", "app=web")
    assert "Started" in described and "Running" in described

    kube.apply(workload("Deployment", "web", pod_template("web", script % blue), replicas=3))
    kube("rollout", "status", "deployment/web", PATIENCE)
    only({red: 0, blue: 3})

    # A process that dies is started again, and counted.
    (victim, *_) = processes_with(blue)
    victim.kill()
    wait_for(
        lambda: (
            sum(
                s["restartCount"]
                for p in kube.pods("app=web")
                for s in p["status"].get("containerStatuses", ())
            )
            == 1
        ),
        "one restart is counted",
        WAIT_S,
    )
    only({blue: 3})

    # A template that never gets ready keeps the old pods, and is taken back.
    broken = pod_template("web", script % bad)
    broken["spec"]["containers"][0]["readinessProbe"] = {
        "exec": {"command": ["/bin/false"]},
        "periodSeconds": 1,
    }
    kube.apply(workload("Deployment", "web", broken, replicas=3, progressDeadlineSeconds=2))
    assert "exceeded its progress deadline" in kube("rollout", "status", "deployment/web", PATIENCE, code=1)
    wait_for(lambda: "Readiness probe failed" in kube("get", "events"), "its pod says why", WAIT_S)
    kube("rollout", "undo", "deployment/web")
    kube("rollout", "status", "deployment/web", PATIENCE)
    only({blue: 3, bad: 0})

    kube("delete", "deployment", "web", PATIENCE)
    wait_for(lambda: not kube.pods("app=web"), "its pods are gone", WAIT_S, lambda: kube.pods("app=web"))
    only({blue: 0})


def test_a_daemonset_has_a_pod_on_every_edge_node_and_jobs_complete_or_fail(kube: Kube) -> None:
    (mark,) = marks(kube, "daemon")
    kube.apply(
        workload("DaemonSet", "watch", pod_template("watch", f": {mark}; sleep 1000")),
        job("sum", "echo $((6*7))"),
        job("wrong", "exit 3", backoffLimit=1),
    )
    kube("rollout", "status", "daemonset/watch", PATIENCE)
    assert sorted(p["spec"]["nodeName"] for p in kube.pods("app=watch")) == list(NODES)
    only({mark: 2})
    kube("wait", "--for=condition=Complete", "job/sum", PATIENCE)
    assert kube("logs", "job/sum") == "42\n"
    (done,) = kube.pods("app=sum")
    assert done["status"]["phase"] == "Succeeded"
    kube("wait", "--for=condition=Failed", "job/wrong", PATIENCE)
    codes = [
        p["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] for p in kube.pods("app=wrong")
    ]
    assert codes == [3, 3]
    kube("delete", "daemonset/watch", "job/sum", "job/wrong", PATIENCE)
    wait_for(lambda: not kube.pods(""), "all pods are gone", WAIT_S, lambda: kube.pods(""))
    only({mark: 0})


def test_config_maps_and_secrets_reach_the_edge_and_follow_changes(kube: Kube) -> None:
    template = pod("reader", f"cat cfg/a; echo env=$S; {LIVE}")
    template["spec"]["volumes"] = [{"name": "cfg", "configMap": {"name": "c"}}]
    (container,) = template["spec"]["containers"]
    container["volumeMounts"] = [{"name": "cfg", "mountPath": "cfg"}]
    container["env"] = [{"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
    kube.apply(template)
    wait_for(lambda: "not found" in kube("get", "events"), "the pod waits for what it refers to", WAIT_S)
    kube.apply(config_map("c", a="one\n"), secret("s", k="hush"))
    kube.ready("pod/reader")
    assert kube("logs", "reader") == "one\nenv=hush\n"
    kube.apply(config_map("c", a="two\n"))
    wait_for(lambda: kube("exec", "reader", "--", "cat", "cfg/a") == "two\n", "the change is there", WAIT_S)
    kube("delete", "pod", "reader", "--now")


def test_logs_exec_copies_and_forwarded_ports_go_through_the_api_server(kube: Kube, tmp_path: Path) -> None:
    port = free_port()
    listener = (
        f"import socket; s = socket.create_server(('127.0.0.1', {port}))\n"
        "while True:\n c, _ = s.accept(); c.sendall(b'hello ' + c.recv(100)); c.close()"
    )
    kube.apply(
        pod("talk", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done"),
        pod("serve", "exec python3 -c \"$CODE\"",
            containers=[{"name": "main", "image": "none", "command": ["python3", "-c", listener]}]),
    )  # fmt: skip
    kube.ready("pod/talk")
    kube.ready("pod/serve")

    with kube.following("logs", "-f", "talk") as text:
        seen = wait_for(lambda: text() if "line 5" in text() else "", "the log is followed", WAIT_S)
    assert seen.splitlines()[:2] == ["line 1", "line 2"]
    assert kube("logs", "talk", "--tail=1").startswith("line ")

    assert kube("exec", "talk", "--", "sh", "-c", "echo out; echo err >&2; exit 7", code=7).startswith(
        "out\nerr"
    )
    assert kube("exec", "-i", "talk", "--", "cat", stdin="through\n").startswith("through")
    assert "is a terminal" in on_terminal(
        kube, "exec", "-it", "talk", "--", "sh", "-c", "test -t 0 && echo is a terminal"
    )

    source = tmp_path / "source"
    source.write_bytes(os.urandom(300_000))
    folder = kube("exec", "talk", "--", "mktemp", "-d").strip()
    kube("cp", str(source), f"talk:{folder}/there")
    kube("cp", f"talk:{folder}/there", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    kube("exec", "talk", "--", "rm", "-r", folder)

    with kube.following("port-forward", "pod/serve", f":{port}") as text:
        local = wait_for(
            lambda: int(found[1]) if (found := re.search(r"127\.0\.0\.1:(\d+)", text())) else 0,
            "a port is forwarded", WAIT_S, text,
        )  # fmt: skip
        for word in (b"one", b"two"):
            with socket.create_connection(("127.0.0.1", local), timeout=WAIT_S) as connection:
                connection.sendall(word)
                assert connection.makefile("rb").read() == b"hello " + word
    kube("delete", "pod", "talk", "serve", "--now")


def test_what_nodes_and_pods_use_is_told_as_metrics_server_reads_it(edge: KubeEdge, kube: Kube) -> None:
    kube.apply(pod("busy", "while :; do :; done", nodeName="edge-1"))
    kube.ready("pod/busy")
    # Where the Node says that its kubelet is, with the rights of metrics-server.
    status = kube.json("node", "edge-1")["status"]
    host = next(a["address"] for a in status["addresses"] if a["type"] == "InternalIP")
    port = status["daemonEndpoints"]["kubeletEndpoint"]["Port"]
    root = kubeconfig.read(str(edge.main.data_dir / "kubeconfig")).root_pem
    context = ssl.create_default_context(cadata=root)
    context.check_hostname = False
    labels = f'{{container="main",namespace="{kube.namespace}",pod="busy"}}'
    with edge.kubernetes.account("scraper", "system:kubelet-api-admin") as token:

        def scraped() -> str:
            url = f"https://{host}:{port}/metrics/resource?node=edge-1"
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
            with urllib.request.urlopen(request, context=context, timeout=WAIT_S) as reply:
                return str(reply.read().decode())

        def sample(name: str) -> tuple[float, int]:
            (line,) = [line for line in scraped().splitlines() if line.startswith(name + " ")]
            value, at_ms = line.removeprefix(name).split()
            return float(value), int(at_ms)

        cpu = f"container_cpu_usage_seconds_total{labels}"
        first, began_ms = sample(cpu)
        wait_for(lambda: sample(cpu)[0] > first + 0.2, "its cpu is counted", WAIT_S)
        assert sample(cpu)[1] > began_ms
        assert sample(f"container_memory_working_set_bytes{labels}")[0] > 10_000
        assert sample("node_cpu_usage_seconds_total")[0] > first
        assert sample("node_memory_working_set_bytes")[0] > 1 << 20
        assert "\nresource_scrape_error 0\n" in scraped()
    kube("delete", "pod", "busy", "--now", PATIENCE)


def on_terminal(kube: Kube, *arguments: str) -> str:
    """What a kubectl prints on a terminal of its own."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [kube.binary, "--kubeconfig", kube.cluster.main.kubeconfig, "-n", kube.namespace, *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    out = b""
    deadline = time.monotonic() + WAIT_S
    try:
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    data = os.read(ours, 4096)
                except OSError:  # what a terminal without a process says
                    break
                out += data
            elif process.poll() is not None:
                break
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return out.decode(errors="replace")


def test_a_drained_node_is_empty_and_takes_pods_again_when_it_is_uncordoned(kube: Kube) -> None:
    (mark,) = marks(kube, "moved")
    kube.apply(workload("Deployment", "web", pod_template("web", f": {mark}; sleep 1000"), replicas=2))
    kube("rollout", "status", "deployment/web", PATIENCE)
    try:
        kube("drain", "edge-1", "--ignore-daemonsets", "--force", PATIENCE)
        kube("rollout", "status", "deployment/web", PATIENCE)
        wait_for(
            lambda: [p["spec"]["nodeName"] for p in kube.pods("app=web")] == ["edge-2"] * 2,
            "both pods are at the other node", WAIT_S,
        )  # fmt: skip
        only({mark: 2})
        assert "SchedulingDisabled" in kube("get", "node", "edge-1")
    finally:
        kube("uncordon", "edge-1")
    kube("drain", "edge-2", "--ignore-daemonsets", "--force", PATIENCE)
    kube("uncordon", "edge-2")
    wait_for(
        lambda: [p["spec"].get("nodeName") for p in kube.pods("app=web")] == ["edge-1"] * 2,
        "both pods are back", WAIT_S,
    )  # fmt: skip
    kube("delete", "deployment", "web", PATIENCE)
    only({mark: 0})


def test_a_forced_deletion_ends_the_pod_here_and_there(edge: KubeEdge, kube: Kube) -> None:
    (mark,) = marks(kube, "stubborn")
    kube.apply(
        pod(
            "stuck",
            f"trap 'echo told' TERM; : {mark}; while :; do sleep 1; done",
            terminationGracePeriodSeconds=600,
        )
    )
    kube.ready("pod/stuck")
    kube("delete", "pod", "stuck", "--wait=false")
    wait_for(lambda: "told" in kube("logs", "stuck"), "its process is asked to end", WAIT_S)
    only({mark: 1})
    kube("delete", "pod", "stuck", "--force", "--grace-period=0", PATIENCE)
    kube.gone("pods", "stuck")
    only({mark: 0})
    # The name is free at once, also for the node.
    kube.apply(pod("stuck", f": {mark}; sleep 1000"))
    kube.ready("pod/stuck")
    kube("delete", "pod", "stuck", "--now", PATIENCE)


def test_a_deleted_pod_takes_its_grace_and_then_goes(kube: Kube) -> None:
    (mark,) = marks(kube, "polite")
    kube.apply(
        pod(
            "slow",
            f"trap 'sleep 1; exit 0' TERM; : {mark}; while :; do sleep 0.1; done",
            terminationGracePeriodSeconds=30,
        )
    )
    kube.ready("pod/slow")
    kube("delete", "pod", "slow", "--wait=false")
    assert kube.json("pod", "slow")["metadata"]["deletionTimestamp"]
    kube.gone("pods", "slow")
    only({mark: 0})


def test_a_node_whose_agent_is_gone_keeps_its_pods_and_comes_back(edge: KubeEdge, kube: Kube) -> None:
    (mark,) = marks(kube, "offline")
    kube.apply(pod("alone", f": {mark}; sleep 1000", nodeName="edge-2"))
    kube.ready("pod/alone")
    uid = kube.json("pod", "alone")["metadata"]["uid"]
    agent = edge.agents["edge-2"]
    agent.kill9()
    try:
        edge.wait_ready("edge-2", "Unknown", WAIT_S)
        only({mark: 1})
        assert kube.json("pod", "alone")["metadata"]["uid"] == uid
    finally:
        agent.run()
    edge.wait_ready("edge-2", "True", WAIT_S)
    kube.ready("pod/alone")
    assert kube.json("pod", "alone")["metadata"]["uid"] == uid
    assert sum(s["restartCount"] for s in kube.json("pod", "alone")["status"]["containerStatuses"]) == 0
    kube("delete", "pod", "alone", "--now", PATIENCE)
    only({mark: 0})


def test_a_simulated_fleet_connects_to_a_hub_in_kubernetes_and_leaves_nothing_behind(
    edge: KubeEdge, tmp_path: Path
) -> None:
    where = ("--hub", edge.main.edge, "--kubeconfig", edge.main.kubeconfig, "--cache-dir", str(tmp_path))
    load = ("--nodes", "10", "--pods", "1", "--churn", "10", "--updates", "10", "--duration", "2s")
    done = subprocess.run(
        [sys.executable, "-m", "hub", "simulate", *where, *load, "--remove", "-o", "json", "-q"],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["nodes"] == {"wanted": 10, "synced": 10}
    assert told["phases"]["pods delivered"]["done"] == 10
    assert told["seconds"]["api: pod changed"]["count"] > 0
    assert {n["metadata"]["name"] for n in edge.main.api("GET", "/api/v1/nodes")["items"]} == set(NODES)
    assert [
        p for p in edge.main.api("GET", "/api/v1/pods")["items"] if p["metadata"]["name"].startswith("sim-")
    ] == []


def test_a_deleted_node_registers_again_and_its_pods_go_on(edge: KubeEdge, kube: Kube) -> None:
    (mark,) = marks(kube, "again")
    kube.apply(workload("DaemonSet", "every", pod_template("every", f": {mark}; sleep 1000")))
    kube("rollout", "status", "daemonset/every", PATIENCE)
    uid = kube.json("node", "edge-2")["metadata"]["uid"]
    kube("delete", "node", "edge-2")
    agent = edge.agents["edge-2"]
    wait_for(lambda: "the Node was deleted" in agent.log(), "the agent is told", WAIT_S)
    # As a kubelet, an agent registers when it starts (and this one also after a minute).
    agent.kill9()
    agent.run()
    # What else is new here: nobody tells it what to run before somebody says that it is meant (I9).
    wait_for(
        lambda: edge.condition("edge-2", "Unconfirmed") == "True", "the node is registered again", WAIT_S
    )
    assert kube.json("node", "edge-2")["metadata"]["uid"] != uid
    claim = kube.json("node", "edge-2")["metadata"]["annotations"][PARTED]
    kube("annotate", "node", "edge-2", f"{CONFIRMED}={claim}")
    edge.wait_ready("edge-2", "True", WAIT_S)
    # The garbage collector of pods gives a Node 40 s to come back.
    kube("rollout", "status", "daemonset/every", PATIENCE)
    kube("wait", "--for=condition=Ready", "pod", "-l", "app=every", PATIENCE)
    assert sorted(p["spec"]["nodeName"] for p in kube.pods("app=every")) == list(NODES)
    only({mark: 2})
    kube("delete", "daemonset", "every", PATIENCE)
    only({mark: 0})
