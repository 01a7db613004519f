"""Real hubs and agents as processes of their own, for end-to-end tests.

    cluster = Cluster(tmp_path)            # the `cluster` fixture, which stops all that it started
    hub = cluster.hub()                    # `cloudhub serve`, waited for
    agent = cluster.agent("n1")            # `edgelite join`, waited for until its Node is Ready
    cluster.kubectl("apply", "-f", "-", stdin=manifest)
    wait_for(lambda: cluster.pod("web")["status"]["phase"] == "Running", "web runs")

Ports are picked free once and kept over restarts, since agents remember where their hub is.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import psutil
import pytest
import yaml

from edgelite.exits import AWAY
from edgelite.exits import DONE as CONNECTED
from hub import kubeconfig
from hub.app import HANDOVER_S
from security import tls
from tests.ports import free_port

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 30.0
STOP_S = HANDOVER_S + 25.0
"""For a hub to end after SIGTERM: its own bounds on handing over and on closing connections, and a busy machine."""
IDLE_S = 60.0
"""A connection that was not used for this long is made anew: the hub closes idle ones after two minutes."""
CACHE = Path(
    os.environ.get("CLOUDHUB_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudhub"
)


def wait_for(
    condition: Callable[[], T], what: str, timeout_s: float = WAIT_S, detail: Callable[[], Any] | None = None
) -> T:
    """The first true value of `condition`. Fails after `timeout_s`, saying what was waited for and the last error."""
    deadline = time.monotonic() + timeout_s
    error: Exception | None = None
    while True:
        try:
            value = condition()
            error = None
            if value:
                return value
        except (AssertionError, ApiFailure, ConnectionError, KeyError, IndexError, OSError, ValueError) as e:
            error = e
        if time.monotonic() > deadline:
            shown = f"; {detail()}" if detail else ""
            pytest.fail(f"not within {timeout_s:g} s: {what}{f' ({error!r})' if error else ''}{shown}")
        time.sleep(0.05)


def kubectl_binaries() -> list[str]:
    """A current stock kubectl and Debian's 1.20. Fails, naming the remedy, where one is missing."""
    current = CACHE / "bin/kubectl"
    paths = [
        str(current) if current.exists() else shutil.which("kubectl") or "",
        str(CACHE / "bin/kubectl-1.20"),
    ]
    for path in paths:
        if not path or not os.path.exists(path):
            pytest.fail(f"kubectl is missing ({path or 'none on the PATH'}): `make deps-ci` installs it")
    return paths


class ApiFailure(Exception):
    """A metav1.Status that is no success."""

    def __init__(self, code: int, status: Any) -> None:
        super().__init__(f"{code}: {status.get('message') if isinstance(status, dict) else status}")
        self.code = code
        self.status = status


class Hub:
    """One `cloudhub serve` on a data directory."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self.data_dir = data_dir
        self.settings = {"heartbeat": "1s", **settings}
        self.api_port, self.edge_port = free_port(), free_port()
        self._used = 0.0
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = data_dir.parent / f"{data_dir.name}.log"
        self._connection: http.client.HTTPSConnection | None = None

    @property
    def edge(self) -> str:
        return f"127.0.0.1:{self.edge_port}"

    @property
    def kubeconfig(self) -> str:
        return str(self.data_dir / "kubeconfig")

    def argv(self) -> list[str]:
        config = self.data_dir.parent / f"{self.data_dir.name}.yaml"
        config.write_text(yaml.safe_dump(self.settings))
        return [
            sys.executable, "-m", "hub", "serve", "--config", str(config), "--data-dir", str(self.data_dir),
            "--api-address", f"127.0.0.1:{self.api_port}", "--edge-address", self.edge,
        ]  # fmt: skip

    def spawn(self) -> "Hub":
        """Starts the process without waiting for it."""
        assert self.process is None
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                self.argv(), cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        return self

    def start(self) -> "Hub":
        """Starts and waits until it serves."""
        self.spawn()
        process = self.process
        assert process is not None

        def serves() -> bool:
            if process.poll() is not None:
                pytest.fail(f"the hub ended with {process.returncode}: {self.log()[-3000:]}")
            return (self.data_dir / "endpoints.json").exists()

        wait_for(serves, "the hub serves", detail=lambda: self.log()[-2000:])
        return self

    def kill9(self) -> None:
        self._end(signal.SIGKILL)
        # A killed hub leaves the file behind; whoever waits for the next start must not see it.
        (self.data_dir / "endpoints.json").unlink(missing_ok=True)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        process, self.process = self.process, None
        self._disconnect()
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"the hub did not stop within {STOP_S:g} s of signal {number}: {self.log()[-3000:]}")

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def rss_bytes(self) -> int:
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def api(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """One request as the administrator; the decoded answer. Raises ApiFailure, ConnectionError."""
        if time.monotonic() - self._used > IDLE_S:
            self._disconnect()
        self._used = time.monotonic()
        if self._connection is None:
            found = kubeconfig.read(self.kubeconfig)
            context = tls.client_context(found.root_pem, found.cert_pem, found.key_pem)
            self._connection = http.client.HTTPSConnection(
                "127.0.0.1", self.api_port, context=context, timeout=30
            )
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self._connection.request(method, path, data, {"Content-Type": content_type} if data else {})
            response = self._connection.getresponse()
            raw = response.read()
        except (OSError, http.client.HTTPException) as failure:
            self._disconnect()
            raise ConnectionError(f"{method} {path}: {failure!r}") from failure
        answer = (
            json.loads(raw) if response.headers.get_content_type() == "application/json" else raw.decode()
        )
        if response.status >= 400:
            raise ApiFailure(response.status, answer)
        return answer

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def token(self, *arguments: str) -> str:
        """`cloudhub token create ARGUMENTS`."""
        return run_cloudhub("token", "create", *arguments, "--data-dir", str(self.data_dir)).strip()


def run_cloudhub(*arguments: str, code: int = 0) -> str:
    """Runs the command; its stdout (stderr where `code` is not 0)."""
    done = subprocess.run(
        [sys.executable, "-m", "hub", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, f"cloudhub {' '.join(arguments)}: {done.returncode}: {done.stderr}"
    return done.stderr if code else done.stdout


class Agent:
    """One edgelite on a data directory."""

    def __init__(self, name: str, data_dir: Path) -> None:
        self.name = name
        self.data_dir = data_dir
        self.python = sys.executable
        self.prefix: list[str] = []
        """A command that the agent is started through, and replaces."""
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = data_dir.parent / f"{data_dir.name}.log"
        self.boot_id_file = data_dir.parent / f"{data_dir.name}.boot"
        self.boot_id_file.write_text("11111111-0000-0000-0000-000000000000\n")

    def join(self, edge: str, token: str, *options: str) -> "Agent":
        """`edgelite join`, which becomes the agent."""
        runtime = [] if "--runtime" in options else ["--runtime", "process"]
        return self._spawn(
            "join", "--hub", edge, "--token", token, *runtime,
            "--boot-id-file", str(self.boot_id_file), *options,
        )  # fmt: skip

    def run(self) -> "Agent":
        return self._spawn("run")

    def _spawn(self, command: str, *options: str) -> "Agent":
        assert self.process is None
        argv = [*self.prefix, self.python, "-m", "edgelite", command]
        argv += ["--data-dir", str(self.data_dir), *options]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                argv, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        return self

    def kill9(self) -> None:
        """kill -9 of the agent alone: workloads go on."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def stop(self, *options: str) -> None:
        """`edgelite stop`."""
        self.command("stop", *options)
        process, self.process = self.process, None
        if process is not None:
            process.wait(15)

    def command(self, *arguments: str, code: int = 0) -> str:
        """Runs an edgelite command on this directory; stdout and stderr."""
        done = subprocess.run(
            [self.python, "-m", "edgelite", arguments[0], "--data-dir", str(self.data_dir), *arguments[1:]],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == code, f"edgelite {' '.join(arguments)}: {done.returncode}: {done.stderr}"
        return done.stdout + done.stderr

    def status(self) -> Any:
        """What `edgelite status` says, connected or not."""
        said = [self.python, "-m", "edgelite", "status", "--data-dir", str(self.data_dir), "-o", "json"]
        done = subprocess.run(said, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode in (CONNECTED, AWAY), f"edgelite status: {done.returncode}: {done.stderr}"
        return json.loads(done.stdout)

    def reboot(self) -> None:
        """Changes the boot id and ends everything of this node, as losing power does; the agent is left stopped."""
        self.kill9()
        self.kill_workloads()
        self.boot_id_file.write_text(f"{time.time_ns():036d}\n")

    def workloads(self) -> list[psutil.Process]:
        """Processes that work in this agent's directory or carry its pods' environment: shims and workloads."""
        mark = str(self.data_dir)
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            if self.process is not None and process.pid == self.process.pid:
                continue
            with contextlib.suppress(psutil.Error):
                text = " ".join(process.cmdline())
                if "edgelite" in text and mark in text and "--resident" in text:
                    continue
                if mark in text or any(mark in v for v in process.environ().values()):
                    found.append(process)
        return found

    def kill_workloads(self) -> None:
        """kill -9 of everything that this node runs."""
        for _ in range(50):
            processes = self.workloads()
            if not processes:
                return
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.02)
        pytest.fail(f"workloads of {self.name} survive kill -9: {processes}")

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def rss_bytes(self) -> int:
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)


class Cluster:
    """One hub (more on demand) and its agents, below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hubs: list[Hub] = []
        self.agents: dict[str, Agent] = {}
        self.kubectl_path = kubectl_binaries()[0]

    def hub(self, name: str = "hub", **settings: Any) -> Hub:
        """Starts a hub; the first one is the cluster's."""
        made = Hub(self.root / name, **settings)
        self.hubs.append(made)
        return made.start()

    @property
    def main(self) -> Hub:
        return self.hubs[0]

    def agent(self, name: str, *options: str, wait: bool = True) -> Agent:
        """Joins and starts a node with a token of its own."""
        agent = Agent(name, self.root / f"agent-{name}")
        self.agents[name] = agent
        agent.join(self.main.edge, self.main.token("--node", name), *options)
        if wait:
            self.wait_ready(name)
        return agent

    def wait_ready(self, name: str, status: str = "True", timeout_s: float = WAIT_S) -> None:
        agent = self.agents.get(name)
        wait_for(
            lambda: self.condition(name, "Ready") == status,
            f"node {name} has Ready={status}",
            timeout_s,
            lambda: (agent.log()[-1500:] if agent else "", self.main.log()[-1500:]),
        )

    def condition(self, node: str, kind: str) -> str | None:
        """The status of a Node's condition, None when it has none."""
        found = self.main.api("GET", f"/api/v1/nodes/{node}")["status"].get("conditions", [])
        return next((c["status"] for c in found if c["type"] == kind), None)

    def pod(self, name: str, namespace: str = "default") -> Any:
        return self.main.api("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")

    def pods(self, selector: str = "", namespace: str = "default") -> list[Any]:
        query = f"?labelSelector={selector}" if selector else ""
        items: list[Any] = self.main.api("GET", f"/api/v1/namespaces/{namespace}/pods{query}")["items"]
        return items

    def wait_running(self, name: str, timeout_s: float = WAIT_S) -> Any:
        """Waits until the pod runs and is ready; the pod."""

        def running() -> Any:
            pod = self.pod(name)
            ready = any(
                c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", [])
            )
            return pod if pod["status"].get("phase") == "Running" and ready else None

        return wait_for(
            running,
            f"pod {name} runs",
            timeout_s,
            lambda: (self.pod(name)["status"], self.main.log()[-1500:]),
        )

    def wait_gone(self, name: str, timeout_s: float = WAIT_S) -> None:
        def gone() -> bool:
            try:
                self.pod(name)
            except ApiFailure as failure:
                return failure.code == 404
            return False

        wait_for(gone, f"pod {name} is gone", timeout_s)

    def kubectl(
        self,
        *arguments: str,
        stdin: str | None = None,
        code: int | None = 0,
        path: str | None = None,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """Runs kubectl as the administrator; stdout, and stderr behind it."""
        done = subprocess.run(
            [path or self.kubectl_path, "--kubeconfig", self.main.kubeconfig, *arguments],
            input=stdin, capture_output=True, text=True, timeout=120,
            env={**os.environ, "HOME": str(self.root), "KUBECONFIG": "", **env},
        )  # fmt: skip
        if code is not None:
            assert done.returncode == code, (
                f"kubectl {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done.stdout + done.stderr

    def close(self) -> None:
        """Stops everything that was started, workloads too."""
        for agent in self.agents.values():
            agent.kill9()
            agent.kill_workloads()
        for hub in self.hubs:
            if hub.process is not None:
                hub.kill9()


def sleeper(
    name: str,
    node: str | None = None,
    script: str = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done",
    **spec: Any,
) -> Any:
    """A process pod that runs `script` until it is stopped."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"cloudhub.dev/runtime": "process", "app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 2,
            **({"nodeName": node} if node else {}),
            **spec,
            "containers": [{"name": "main", "command": ["/bin/sh", "-c", script]}],
        },
    }


@contextlib.contextmanager
def running_cluster(root: Path) -> Iterator[Cluster]:
    cluster = Cluster(root)
    try:
        yield cluster
    finally:
        cluster.close()
