"""Pods in a real Podman, driven by the agent's own pod loop: volumes, environment, probes, restarts, kill -9, removal."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgelite.config import Config
from edgelite.loop import Loop, now
from edgelite.parts import Parts
from edgelite.podenv import NodeFacts
from edgelite.port import Host
from edgelite.runtimes.container import ContainerRuntime
from edgelite.workloads import Workloads
from tests.edgelite.runtimes.harness import MemoryState
from tests.podman import IMAGE, Podman, podman  # noqa: F401

DEADLINE_S = 40.0
KEY = "pod/shop/till/u1"
CONFIG = "configmap/shop/cfg"


class Clock:
    def now(self) -> float:
        return now()

    def wall(self) -> float:
        return time.time()


class Node:
    """An agent's workloads over the runtime that the agent itself would make; `kill` is kill -9."""

    def __init__(self, root: str, socket: str) -> None:
        self.root, self.config = root, Config(runtime="container", engine_socket=socket)
        self.store, self.state = MemoryState(), MemoryState()
        self.docs: dict[str, bytes] = {}
        self.status: dict[str, Any] = {}
        self.events: list[str] = []
        self.begin()

    def begin(self) -> None:
        self.loop = Loop()
        made = Parts(self.root, self.config, Host(), "edge-1").runtime("container", self.loop, self.state)
        assert isinstance(made, ContainerRuntime)
        self.runtime = made
        facts = NodeFacts("edge-1", [{"type": "InternalIP", "address": "127.0.0.1"}], boot_id="a")
        self.workloads = Workloads(
            self.loop, self.runtime, facts, self.root, self.report, self.store, Clock(), tmpfs=None
        )
        for key, body in self.docs.items():
            self.workloads.set(key, body)
        self.workloads.start()

    def kill(self) -> None:
        self.runtime.close()
        self.begin()

    def report(self, kind: str, key: str, body: dict[str, Any]) -> None:
        if kind == "pod":
            self.status = json.loads(json.dumps(body))
        elif kind == "event":
            self.events.append(body["reason"])

    def set(self, key: str, doc: dict[str, Any]) -> None:
        self.docs[key] = json.dumps(doc).encode()
        assert self.workloads.admit(key, self.docs[key]) is None
        self.workloads.set(key, self.docs[key])

    def until(self, condition: Callable[[], Any], what: str) -> None:
        limit = now() + DEADLINE_S
        while not condition():
            assert now() < limit, f"{what} did not come about: {self.status} {self.events}"
            assert not self.loop.stopping
            self.loop.turn(0.05)

    def main(self) -> dict[str, Any]:
        found = self.status.get("containerStatuses") or [{}]
        return found[0]  # type: ignore[no-any-return]


@pytest.fixture
def node(podman: Podman, tmp_path: Path) -> Iterator[Node]:  # noqa: F811
    made = Node(str(tmp_path), podman.socket)
    yield made
    made.runtime.close()
    podman.run("rm", "--all", "--force", "--time", "0")


def pod(script: str, **container: Any) -> dict[str, Any]:
    entry = {
        "name": "main",
        "image": IMAGE,
        "command": ["/bin/sh", "-c", script],
        "env": [{"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "colour"}}}],
        "volumeMounts": [{"name": "v", "mountPath": "/etc/cfg"}],
        **container,
    }
    spec = {
        "containers": [entry],
        "volumes": [{"name": "v", "configMap": {"name": "cfg"}}],
        "terminationGracePeriodSeconds": 5,
    }
    return {
        "kind": "Pod",
        "ns": "shop",
        "name": "till",
        "uid": "u1",
        "labels": {},
        "annotations": {},
        "spec": spec,
    }


def config(colour: str) -> dict[str, Any]:
    return {"kind": "ConfigMap", "ns": "shop", "name": "cfg", "data": {"colour": colour}}


def test_a_pod_lives_its_life_in_podman(node: Node, podman: Podman) -> None:  # noqa: F811
    probe = {"exec": {"command": ["grep", "-q", "green", "/etc/cfg/colour"]}, "periodSeconds": 1}
    node.set(CONFIG, config("blue"))
    node.set(KEY, pod("echo $COLOUR; trap 'exit 0' TERM; while :; do sleep 0.1; done", readinessProbe=probe))
    node.until(lambda: node.status.get("phase") == "Running", "Running")
    assert node.main()["containerID"].startswith("podman://") and not node.main()["ready"]
    assert podman.run("logs", "cloudhub_main_u1_0") == "blue\n"
    node.set(CONFIG, config("green"))
    node.until(lambda: node.main().get("ready"), "readiness, by the file that changed inside")
    handle = node.main()["containerID"]
    node.kill()
    node.until(lambda: node.workloads._recovered, "recovery")
    assert len(podman.run("ps", "--all", "--quiet").split()) == 1
    assert (node.main()["containerID"], node.main()["restartCount"]) == (handle, 0)
    podman.run("kill", "--signal", "KILL", "cloudhub_main_u1_0")
    node.until(
        lambda: node.main().get("restartCount") == 1 and "running" in node.main()["state"], "a restart"
    )
    assert node.main()["lastState"]["terminated"]["exitCode"] == 137
    del node.docs[KEY]
    node.workloads.delete(KEY)
    node.until(lambda: node.workloads.pod_count() == 0, "the pod's removal")
    assert podman.run("ps", "--all", "--quiet") == ""
    assert os.listdir(os.path.join(node.root, "pods")) == []


def test_an_image_that_cannot_be_pulled_is_backed_off(node: Node) -> None:
    node.set(CONFIG, config("blue"))
    node.set(KEY, pod("true", image="127.0.0.1:1/none:1"))
    node.until(lambda: "waiting" in node.main().get("state", {}) and "BackOff" in node.events, "the back-off")
    waiting = node.main()["state"]["waiting"]
    assert waiting["reason"] == "ImagePullBackOff" and "connection refused" in waiting["message"]
