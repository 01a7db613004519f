"""kubectl as a user types it: one binary, one namespace of a shared cluster.

kube = Kube(cluster, binary, "ns-1")
kube.apply(manifest)                     # the dicts, through a file and `apply -f`
kube("rollout", "status", "deployment/web", "--timeout=60s")
with kube.following("logs", "-f", "web") as text:
    wait_for(lambda: "open" in text(), "the line is followed")
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.cluster import Agent, ApiFailure, Cluster, wait_for

PATIENCE = "--timeout=60s"


class Kube:
    """Every call is one run of the binary; it fails the test on another exit code than `code`."""

    def __init__(self, cluster: Cluster, binary: str, namespace: str) -> None:
        self.cluster, self.binary, self.namespace = cluster, binary, namespace
        self._files = cluster.root / f"manifests-{namespace}"
        self._files.mkdir()
        cluster.main.api(
            "POST",
            "/api/v1/namespaces",
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        )

    @property
    def is_current(self) -> bool:
        """A kubectl of today, which has commands that Debian's 1.20 lacks."""
        return "1.20" not in os.path.basename(self.binary)

    def __call__(
        self, *arguments: str, code: int | None = 0, stdin: str | None = None, editor: str = ""
    ) -> str:
        """stdout, and stderr behind it."""
        return self.cluster.kubectl(
            "--namespace", self.namespace, *arguments, stdin=stdin, code=code, path=self.binary,
            env={"EDITOR": editor} if editor else {},
        )  # fmt: skip

    def file(self, *objects: Any) -> str:
        """The objects as a manifest; its path."""
        path: Path = self._files / f"{len(list(self._files.iterdir()))}.json"
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
        return str(path)

    def apply(self, *objects: Any) -> str:
        return self("apply", "-f", self.file(*objects))

    def json(self, *arguments: str) -> Any:
        """`kubectl get ARGUMENTS -o json`."""
        return json.loads(self("get", *arguments, "-o", "json"))

    def pods(self, selector: str) -> list[Any]:
        """Straight from the API, for loops that wait."""
        return self.cluster.pods(selector, self.namespace)

    def ready(self, what: str) -> None:
        """`kubectl wait` until the pod is ready, with everything about it on failure."""
        try:
            self("wait", "--for=condition=Ready", what, PATIENCE)
        except AssertionError as failure:
            shown = self("get", what, "-o", "yaml", code=None)[-3000:]
            raise AssertionError(f"{failure}\n{shown}\n{self('get', 'events', code=None)[-2000:]}") from None

    def gone(self, kind: str, name: str) -> None:
        group = "apis/apps/v1" if kind in ("deployments", "daemonsets", "replicasets") else "api/v1"

        def missing() -> bool:
            try:
                self.cluster.main.api("GET", f"/{group}/namespaces/{self.namespace}/{kind}/{name}")
            except ApiFailure as failure:
                return failure.code == 404
            return False

        wait_for(missing, f"{kind}/{name} is gone", 60)

    @contextlib.contextmanager
    def following(self, *arguments: str) -> Iterator[Callable[[], str]]:
        """A kubectl that goes on (logs -f, get -w) until the block ends; yields what it has printed so far."""
        out = self._files.parent / f"follow-{self.namespace}-{os.urandom(4).hex()}"
        argv = [self.binary, "--kubeconfig", self.cluster.main.kubeconfig, "-n", self.namespace, *arguments]
        with open(out, "wb") as file:
            process = subprocess.Popen(
                argv, stdout=file, stderr=file, env={**os.environ, "HOME": str(self.cluster.root)}
            )
        try:
            yield out.read_text
        finally:
            process.kill()
            process.wait()


def processes_with(mark: str) -> list[psutil.Process]:
    """Processes of this machine whose command line holds `mark`, which a test puts into its pod's script."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if mark in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def files_of(agent: Agent, uid: str) -> Path:
    """Where the pod's volumes and logs lie at the node."""
    return agent.data_dir / "pods" / uid


def config_map(name: str, **data: str) -> Any:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def secret(name: str, **data: str) -> Any:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def process_template(app: str, script: str, **spec: Any) -> Any:
    """A pod template of one process."""
    return {
        "metadata": {"labels": {"app": app, "cloudhub.dev/runtime": "process"}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            **spec,
            "containers": [{"name": "main", "command": ["/bin/sh", "-c", script]}],
        },
    }


def deployment(name: str, script: str, replicas: int = 2, **spec: Any) -> Any:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            **spec,
            "template": process_template(name, script),
        },
    }


def daemon_set(name: str, script: str, **template: Any) -> Any:
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": process_template(name, script, **template),
        },
    }
