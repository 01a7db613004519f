"""The whole system on this machine: an embedded hub, two edge agents, the example manifests.

    make demo                 # runs on until Ctrl-C, then stops and removes everything
    make demo ARGS=--once     # exits after the report: 0 when all of it runs, else 1 with the reason

Needs no root, no cluster and no container engine. kubectl is used where there is one.
"""

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from hub import kubeconfig
from hub.client import ApiClient, ClientError

MANIFESTS = Path(__file__).resolve().parent / "manifests"
NODES = ("edge-1", "edge-2")
START_S = 60.0
RUNNING_S = 120.0
PATHS = {
    "ConfigMap": "/api/v1/namespaces/default/configmaps",
    "Pod": "/api/v1/namespaces/default/pods",
    "Deployment": "/apis/apps/v1/namespaces/default/deployments",
    "DaemonSet": "/apis/apps/v1/namespaces/default/daemonsets",
}


class Failed(Exception):
    """The demo cannot go on; the message says why."""


class Stopped(BaseException):
    """Ctrl-C or SIGTERM."""


class Demo:
    """The processes of one demo, below one temporary directory."""

    def __init__(self, root: Path, manifests: Path) -> None:
        self.root = root
        self.manifests = manifests
        self.hub_dir = root / "hub"
        self.kubectl = shutil.which("kubectl")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:5.1f} s] {text}", flush=True)

    # -- processes ------------------------------------------------------------------------------------------------

    def spawn(self, name: str, *argv: str) -> "subprocess.Popen[bytes]":
        """Starts a program of ours in a session of its own: Ctrl-C is for this script, which stops it in order."""
        with open(self.root / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *argv],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def start_hub(self) -> None:
        self.say("starting a hub: SQLite, built-in CA, free ports")
        hub = self.spawn(
            "hub", "hub", "serve", "--data-dir", str(self.hub_dir),
            "--api-address", "127.0.0.1:0", "--edge-address", "127.0.0.1:0",
        )  # fmt: skip
        endpoints = self.hub_dir / "endpoints.json"
        self.wait(endpoints.exists, START_S, "the hub to serve", hub)
        where = json.loads(endpoints.read_text())
        self.edge = str(where["edge"])
        self.say(f"the hub serves kubectl at {where['api']} and edges at {self.edge}")

    def start_agents(self) -> None:
        for name in NODES:
            token = self.output(
                "hub", "token", "create", "--node", name, "--data-dir", str(self.hub_dir)
            ).strip()
            self.spawn(
                name, "edgelite", "join", "--hub", self.edge, "--token", token,
                "--data-dir", str(self.root / name), "--runtime", "process",
            )  # fmt: skip
            self.say(f"{name} joins with a token of its own")

        def ready() -> bool:
            nodes = self.call("/api/v1/nodes")["items"]
            return sum(_condition(node, "Ready") == "True" for node in nodes) == len(NODES)

        self.wait(ready, START_S, "the nodes to be Ready", *self.processes[1:])
        self.say("both nodes are Ready")

    def stop(self) -> None:
        """Stops workloads, agents and the hub; nothing that the demo started is left."""
        self.say("stopping workloads and agents")
        stops = [
            subprocess.Popen(
                [sys.executable, "-m", "edgelite", "stop", "--workloads", "--data-dir", str(self.root / name)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )
            for name in NODES
            if (self.root / name / "node.json").exists()
        ]  # fmt: skip
        for one in stops:
            one.wait(60)
        self.say("stopping the hub")
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def output(self, *argv: str) -> str:
        done = subprocess.run([sys.executable, "-m", *argv], capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise Failed(f"{' '.join(argv[:3])} failed: {done.stderr.strip()}")
        return done.stdout

    def wait(self, done: Any, seconds: float, what: str, *processes: "subprocess.Popen[bytes]") -> None:
        """Waits for `done()`; raises Failed when a process ends meanwhile or the time is up."""
        deadline = time.monotonic() + seconds
        while not done():
            for process in processes:
                if process.poll() is not None:
                    raise Failed(f"a process ended with {process.returncode} while waiting for {what}")
            if time.monotonic() > deadline:
                raise Failed(f"waited {seconds:.0f} s for {what}")
            time.sleep(0.1)

    # -- the API ----------------------------------------------------------------------------------------------------

    def call(self, path: str, body: Any = None, text: bool = False) -> Any:
        """One request as the administrator."""

        async def request() -> Any:
            async with ApiClient(kubeconfig.read(str(self.hub_dir / "kubeconfig"))) as api:
                if text:
                    return await api.text(path)
                return await (api.get(path) if body is None else api.post(path, body))

        return asyncio.run(request())

    def run_kubectl(self, *arguments: str) -> str:
        assert self.kubectl is not None
        # Its discovery cache lies below our directory, so that nothing is left in the user's home.
        where = [
            "--kubeconfig",
            str(self.hub_dir / "kubeconfig"),
            "--cache-dir",
            str(self.root / "kubectl-cache"),
        ]
        done = subprocess.run([self.kubectl, *where, *arguments], capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise Failed(f"kubectl {arguments[0]} failed: {done.stderr.strip()}")
        return done.stdout

    def apply(self) -> None:
        files = sorted(self.manifests.glob("*.yaml"))
        if not files:
            raise Failed(f"there are no manifests in {self.manifests}")
        if self.kubectl is not None:
            self.say(f"kubectl apply -f {self.manifests}")
            print(_indent(self.run_kubectl("apply", "-f", str(self.manifests))))
            return
        self.say(f"there is no kubectl here: {self.manifests} goes through the API")
        for file in files:
            for obj in yaml.safe_load_all(file.read_text()):
                self.call(PATHS[obj["kind"]], obj)
                print(f"    {obj['kind'].lower()}/{obj['metadata']['name']} created")

    def wait_running(self) -> None:
        """Until every Deployment and DaemonSet has its pods and every pod is ready."""
        shown = ""

        def running() -> bool:
            nonlocal shown
            pods = self.call(PATHS["Pod"])["items"]
            ready = sum(_condition(pod, "Ready") == "True" for pod in pods)
            wanted = self._wanted()
            line = f"{ready} of {max(wanted, len(pods))} pods are ready"
            if line != shown:
                shown = line
                self.say(line)
            return ready == len(pods) == wanted

        try:
            self.wait(running, RUNNING_S, "the examples to run", *self.processes)
        except Failed as failure:
            raise Failed(f"{failure}\n{self._reasons()}") from failure

    def _wanted(self) -> int:
        deployments = self.call(PATHS["Deployment"])["items"]
        daemons = self.call(PATHS["DaemonSet"])["items"]
        owned = sum(d["spec"]["replicas"] for d in deployments)
        owned += sum(
            d.get("status", {}).get("desiredNumberScheduled", len(NODES)) or len(NODES) for d in daemons
        )
        pods = self.call(PATHS["Pod"])["items"]
        return int(owned) + sum(not pod["metadata"].get("ownerReferences") for pod in pods)

    def _reasons(self) -> str:
        lines = []
        for pod in self.call(PATHS["Pod"])["items"]:
            if _condition(pod, "Ready") != "True":
                status = pod.get("status", {})
                why = [c.get("message", "") for c in status.get("conditions", []) if c["status"] != "True"]
                waits = [s["state"].get("waiting") for s in status.get("containerStatuses", [])]
                why += [f"{w.get('reason')}: {w.get('message', '')}" for w in waits if w]
                name, phase = pod["metadata"]["name"], status.get("phase", "Pending")
                lines.append(
                    f"    pod {name} is {phase}: {status.get('message') or '; '.join(filter(None, why))}"
                )
        for log in sorted(self.root.glob("*.log")):
            lines += [f"    {log.name}: {line}" for line in log.read_text().splitlines()[-3:]]
        return "\n".join(lines)

    def report(self) -> None:
        print("\nNodes")
        print(_indent(self._table("/api/v1/nodes")))
        print("Pods")
        print(_indent(self._table(PATHS["Pod"])))
        print("The log of pod hello")
        print(_indent(self.call(f"{PATHS['Pod']}/hello/log?tailLines=5", text=True)))

    def _table(self, path: str) -> str:
        if self.kubectl is not None:
            return self.run_kubectl("get", "nodes" if path.endswith("nodes") else "pods", "-o", "wide")
        rows = [("NAME", "STATUS", "NODE")]
        for obj in self.call(path)["items"]:
            ready = "Ready" if _condition(obj, "Ready") == "True" else "NotReady"
            rows.append(
                (obj["metadata"]["name"], obj["status"].get("phase", ready), obj["spec"].get("nodeName", ""))
            )
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        )

    def hints(self) -> None:
        print("Try next:\n")
        print(f"    export KUBECONFIG={self.hub_dir / 'kubeconfig'}")
        for line in (
            "kubectl logs -f hello",
            """kubectl patch configmap greeting -p '{"data":{"GREETING":"changed"}}'   # the file at the edge follows""",
            "kubectl scale deployment till --replicas=4",
            "kubectl get pods -o wide --watch",
            "kubectl describe node edge-1",
        ):
            print(f"    {line}")
        if self.kubectl is None:
            print(
                "\n(There is no kubectl on the PATH; https://kubernetes.io/docs/tasks/tools/ says how to get it.)"
            )


def _condition(obj: Any, kind: str) -> str | None:
    return next((c["status"] for c in obj.get("status", {}).get("conditions", []) if c["type"] == kind), None)


def _indent(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.rstrip().splitlines())


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """A temporary directory that is removed in the end."""
    root = Path(tempfile.mkdtemp(prefix="cloudhub-demo-"))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="make demo ARGS=...",
        description="Runs a hub, two agents and the example manifests on this machine until Ctrl-C.",
    )
    parser.add_argument("--once", action="store_true", help="exit after the report instead of running on")
    parser.add_argument(
        "--manifests",
        type=Path,
        default=MANIFESTS,
        metavar="DIR",
        help="what to apply (default: examples/manifests)",
    )
    options = parser.parse_args(arguments)

    def stopped(number: int, frame: object) -> None:
        raise Stopped

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stopped)
    with directory() as root:
        demo = Demo(root, options.manifests)
        try:
            return run(demo, options.once)
        finally:
            # A second Ctrl-C must not leave processes behind.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            demo.stop()


def run(demo: Demo, once: bool) -> int:
    """The demo up to its end; the exit code."""
    try:
        demo.start_hub()
        demo.start_agents()
        demo.apply()
        demo.wait_running()
        demo.report()
        if once:
            return 0
        demo.hints()
        print("\nRunning until Ctrl-C.", flush=True)
        signal.pause()
        return 0
    except Stopped:
        print()
        return 0 if not once else 130
    except (Failed, ClientError, kubeconfig.KubeconfigError, OSError, KeyError) as failure:
        print(f"demo: {failure!r}" if isinstance(failure, KeyError) else f"demo: {failure}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
