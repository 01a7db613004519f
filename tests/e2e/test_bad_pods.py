"""Pods that a node cannot honour: the reason is in their status, and nothing has been started."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgelite import wire
from tests.e2e.cluster import Cluster, running_cluster, sleeper, wait_for
from tests.e2e.hostile import enrolled, hello, peer

PODS = "/api/v1/namespaces/default/pods"
PRIVILEGED = "needs allow_privileged in this node's configuration"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A hub with the node n1, which admits nothing privileged."""
    with running_cluster(tmp_path_factory.mktemp("node")) as cluster:
        cluster.hub(heartbeat="30s")  # a peer that sends none here has the time
        cluster.agent("n1")
        yield cluster


def pod(name: str, pod_fields: dict[str, Any] | None = None, **container: Any) -> Any:
    made = sleeper(name, "n1")
    made["spec"].update(pod_fields or {})
    made["spec"]["containers"][0].update(container)
    return made


def without_command(name: str) -> Any:
    made = pod(name, image="docker.io/library/busybox")
    del made["spec"]["containers"][0]["command"]
    return made


def host_path(name: str) -> Any:
    volumes = [{"name": "v", "hostPath": {"path": "/etc"}}]
    return pod(name, {"volumes": volumes}, volumeMounts=[{"name": "v", "mountPath": "v"}])


REFUSED: dict[str, tuple[Any, str]] = {
    "privileged": (
        pod("privileged", securityContext={"privileged": True}),
        f"spec.containers[0].securityContext.privileged: {PRIVILEGED}",
    ),
    "root": (
        pod("root", securityContext={"runAsUser": 0}),
        "spec.containers[0].securityContext.runAsUser: ",  # privileged, or not an agent that runs as root
    ),
    "host-path": (host_path("host-path"), f"spec.volumes[0].hostPath: {PRIVILEGED}"),
    "host-network": (pod("host-network", {"hostNetwork": True}), f"spec.hostNetwork: {PRIVILEGED}"),
    "host-pid": (pod("host-pid", {"hostPID": True}), f"spec.hostPID: {PRIVILEGED}"),
    "capabilities": (
        pod("capabilities", securityContext={"capabilities": {"add": ["SYS_ADMIN"]}}),
        f"spec.containers[0].securityContext.capabilities.add: {PRIVILEGED}",
    ),
    "no-command": (
        without_command("no-command"),
        "spec.containers[0].command: container main needs a command: the process runtime does not use the image",
    ),
    "claim": (
        pod("claim", {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}),
        "spec.volumes[0].persistentVolumeClaim: this kind of volume does not exist at the edge",
    ),
    "sysctls": (
        pod("sysctls", {"securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "0"}]}}),
        "spec.securityContext.sysctls: they would change the host; set them there",
    ),
    "terminal": (pod("terminal", tty=True), "spec.containers[0].tty: there are no terminals"),
    "grpc": (
        pod("grpc", livenessProbe={"grpc": {"port": 1}}),
        "spec.containers[0].livenessProbe.grpc: not supported; use httpGet, tcpSocket or exec",
    ),
    "runtime-class": (
        pod("runtime-class", {"runtimeClassName": "kata"}),
        "spec.runtimeClassName: the node has one runtime; select the node instead",
    ),
}


def test_what_a_node_cannot_honour_is_said_in_the_status_and_not_started(node: Cluster) -> None:
    agent = node.agents["n1"]
    for made, _ in REFUSED.values():
        node.main.api("POST", PODS, made)
    for name, (_, reason) in REFUSED.items():
        status = wait_for(
            lambda name=name: (s := node.pod(name)["status"]).get("phase") == "Failed" and s,  # type: ignore[misc]
            f"{name} is refused",
            detail=agent.log,
        )
        assert status["reason"] == "Unsupported", (name, status)
        assert reason in status["message"], (name, status["message"])
        assert not any("running" in c.get("state", {}) for c in status.get("containerStatuses", []))
    # A good one, bound last, runs: so whatever the others would have started had its time.
    node.main.api("POST", PODS, sleeper("good", "n1"))
    uid = node.wait_running("good")["metadata"]["uid"]
    refused = [node.pod(name)["metadata"]["uid"] for name in REFUSED]
    seen = [json.dumps([p.cmdline(), p.environ()]) for p in agent.workloads()]
    assert any(uid in text for text in seen), seen
    assert not [text for text in seen if any(other in text for other in refused)]
    wait_for(lambda: events_of(node) >= set(REFUSED), "an event for each")


def events_of(cluster: Cluster) -> set[str]:
    events = cluster.main.api("GET", "/api/v1/namespaces/default/events")["items"]
    return {e["involvedObject"]["name"] for e in events if e["reason"] == "Unsupported"}


def test_a_document_over_the_nodes_own_limit_is_not_sent_but_becomes_a_condition(
    node: Cluster, tmp_path: Path
) -> None:
    hub = node.main
    small = enrolled(hub, "small", tmp_path / "small")
    with peer(hub, small.client()) as board:
        board.send(wire.HELLO, hello(limits={"document": 4096, "frame": 4096}))
        assert board.receive(wire.WELCOME)["sync"] == "diff"
        board.send(wire.PAIRS, {"pairs": []})
        board.receive(wire.SYNCED)
        large = sleeper("large", "small", script="#" + "x" * 8000)
        hub.api("POST", PODS, large)
        hub.api("POST", PODS, sleeper("fits", "small"))
        sent = board.receive(wire.SET)
        assert b'"name":"fits"' in sent and b"xxxx" not in sent
        condition = wait_for(
            lambda: next(
                (
                    c
                    for c in hub.api("GET", "/api/v1/nodes/small")["status"]["conditions"]
                    if c["type"] == "DocumentsRefused" and c["status"] == "True"
                ),
                None,
            ),
            "the node says which document is too large",
        )
        assert "pod/default/large/" in condition["message"], condition
        assert "4096" in condition["message"], condition
        status = wait_for(
            lambda: (s := node.pod("large")["status"]).get("reason") and s, "the pod says so too"
        )
        assert "4096" in status["message"], status
        assert not [body for kind, body in board.arrived if kind == wire.SET and b"xxxx" in body]
