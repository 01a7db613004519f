"""`make agent-check`: a node on Windows, through the whole: a real hub, and the agent on Windows' CPython under wine, with its
job objects, consoles and files. One hub, one Windows and one agent for one life of a node."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import ROOT, Agent, Cluster, free_port, running_cluster, wait_for
from tests.wine import Wine, wine  # noqa: F401

PATIENCE_S = 90.0
PYTHON = "python.exe"
SERVER = """
import ctypes, os, signal, socket, sys
def bye(*_):
    print("told", flush=True)
    os._exit(0)
signal.signal(signal.SIGBREAK, bye)
signal.signal(signal.SIGINT, bye)  # of wine, which has no Ctrl-Break; in a group of its own it is off
ctypes.WinDLL("kernel32").SetConsoleCtrlHandler(None, False)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
server.settimeout(0.05)
open("ready", "w").close()
print("up", os.environ["COLOUR"], os.getpid(), flush=True)
while True:
    try:
        client, _ = server.accept()
    except TimeoutError:
        continue
    client.settimeout(5)
    client.recv(4096)
    client.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n" + os.environ["COLOUR"].encode())
    client.close()
"""


class WindowsAgent(Agent):
    """An agent in a Windows of wine's."""

    def __init__(self, name: str, data_dir: Path, windows: Wine) -> None:
        super().__init__(name, data_dir)
        self.windows = windows

    def _spawn(self, command: str, *options: str) -> "WindowsAgent":
        assert self.process is None
        words = [str(ROOT / "edgelite/__main__.py"), command, "--data-dir", str(self.data_dir), *options]
        self.process = self.windows.start(self.log_path, *words)
        return self

    def command(self, *arguments: str, code: int = 0) -> str:
        words = [str(ROOT / "edgelite/__main__.py"), arguments[0], "--data-dir", str(self.data_dir)]
        return self.windows.call(*words, *arguments[1:], code=code)

    def status(self) -> Any:
        """As Windows' Python tells it: who holds the directory's lock is known there alone."""
        return json.loads(self.command("status", "-o", "json"))

    def kill_workloads(self) -> None:
        self.windows.end()


def pod(name: str, port: int, colour: str, **container: Any) -> Any:
    main = {
        "name": "main",
        "image": "none",
        "command": [PYTHON, "-c", SERVER, str(port)],
        "env": [{"name": "PATH", "value": container.pop("path")}, {"name": "COLOUR", "value": colour}],
        "resources": {"limits": {"memory": "256Mi"}},
        "startupProbe": {
            "httpGet": {"port": port},
            "periodSeconds": 1,
            "failureThreshold": 300,
            "timeoutSeconds": 10,
        },
        "readinessProbe": {
            "exec": {"command": [PYTHON, "-c", "open('ready').close()"]},
            "periodSeconds": 60,
            "timeoutSeconds": 60,
        },
        **container,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": "till",
            "os": {"name": "windows"},
            "terminationGracePeriodSeconds": 30,
            "containers": [main],
        },
    }


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(tmp_path) as made:
        yield made


def test_a_windows_node_joins_runs_serves_survives_kill_9_and_stops_gracefully(
    cluster: Cluster,
    wine: Wine,  # noqa: F811
) -> None:
    hub = cluster.hub()
    agent = cluster.agents["till"] = WindowsAgent("till", cluster.root / "agent-till", wine)
    agent.join(hub.edge, hub.token("--node", "till"))
    cluster.wait_ready("till", timeout_s=PATIENCE_S)

    def node() -> Any:
        return hub.api("GET", "/api/v1/nodes/till")

    wait_for(lambda: node()["metadata"]["labels"]["kubernetes.io/os"] == "windows", "its facts", detail=node)
    assert node()["status"]["nodeInfo"]["operatingSystem"] == "windows"

    # What Windows cannot do is refused by name.
    port, path = free_port(), "Z:" + str(Path(wine.python[1]).parent).replace("/", "\\")
    pods = "/api/v1/namespaces/default/pods"
    refused = pod("refused", port, "red", path=path, workingDir="sub\\nul")
    hub.api("POST", pods, refused)

    def message() -> str:
        return str(cluster.pod("refused")["status"].get("message"))

    wait_for(lambda: "spec.containers[0].workingDir: nul is a device of Windows" in message(), "it is refused", detail=message)  # fmt: skip

    hub.api("POST", pods, pod("web", port, "blue", path=path))
    cluster.wait_running("web", PATIENCE_S)

    def log(name: str = "web", query: str = "") -> str:
        return str(hub.api("GET", f"{pods}/{name}/log{query}")).replace("\r\n", "\n")

    first = wait_for(log, "it writes", PATIENCE_S)
    assert first.startswith("up blue ")
    out = cluster.kubectl("exec", "web", "--", PYTHON, "-c", "import os; print(os.environ['COLOUR'])")
    assert out.strip() == "blue"

    # kill -9 of the agent: the workload goes on, and the next agent finds it.
    agent.kill9()
    agent.run()
    wait_for(lambda: log() == first, "the hub reaches the new agent, and it the old log", PATIENCE_S)
    assert agent.status()["state"] == "connected"
    again = cluster.wait_running("web", PATIENCE_S)["status"]["containerStatuses"][0]
    assert (again["restartCount"], log()) == (0, first)

    # Deleted: asked by Ctrl-Break first, which a follower of its log sees.
    follower = subprocess.Popen(
        [cluster.kubectl_path, "--kubeconfig", hub.kubeconfig, "logs", "-f", "web"], stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert follower.stdout is not None and follower.stdout.readline() == first
    hub.api("DELETE", f"{pods}/web")
    said, _ = follower.communicate(timeout=PATIENCE_S)
    assert said.replace("\r", "").endswith("told\n"), said
    cluster.wait_gone("web", PATIENCE_S)

    agent.stop("--workloads")
    assert json.loads((agent.data_dir / "status.json").read_text())["state"] == "stopped"
