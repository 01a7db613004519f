"""A container of a rendered StatefulSet as a process of this machine, so that chart and program are tried together.

    with Pod(objects, "fleet-cloudhub", root, program=[sys.executable, "-m", "hub"]) as pod:
        pod.wait(lambda: pod.get("readinessProbe") == 200)

Its command line, environment and files are the rendered ones. What has to differ on a machine without pods is mapped, and
nothing else: mount paths to a directory, ports to free ones on loopback, names of other pods to where those are.
"""

import base64
import re
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.helm.chart import FULL, NAMESPACE, ROOT, Object, one
from tests.ports import free_ports

START_S = 90.0


class Pod:
    """`given`: Secrets and ConfigMaps that the user brings, name to key to text. `hosts`: host:port of others to where they
    are here. `program`: what stands for the image's command. `more`: options that a pod has no need of."""

    def __init__(
        self,
        objects: list[Object],
        name: str,
        root: Path,
        *,
        program: Sequence[str],
        ordinal: int = 0,
        hosts: Mapping[str, str] | None = None,
        given: Mapping[str, Mapping[str, str]] | None = None,
        more: Sequence[str] = (),
    ) -> None:
        found = one(objects, "StatefulSet", name)
        self.name = f"{name}-{ordinal}"
        self.spec = found["spec"]["template"]["spec"]
        self.grace_s = float(self.spec["terminationGracePeriodSeconds"])
        (self.container,) = self.spec["containers"]
        self._root = root
        self._program = list(program)
        self._more = list(more)
        self._hosts = dict(hosts or {})
        self._given = given or {}
        self._objects = objects
        self._mounts = {m["mountPath"]: m["name"] for m in self.container["volumeMounts"]}
        self.ports = dict(
            zip((p["containerPort"] for p in self.container["ports"]), free_ports(9), strict=False)
        )
        self._by_name = {p["name"]: p["containerPort"] for p in self.container["ports"]}
        self._environment = {e["name"]: self._value(e) for e in self.container["env"]}
        self._claims = {c["metadata"]["name"] for c in found["spec"].get("volumeClaimTemplates", [])}
        self._log = root / "log"
        self._process: subprocess.Popen[bytes] | None = None

    # What is mapped

    def path(self, inside: str) -> str:
        """Where a path of the container is here."""
        return self.mapped(inside)

    def address(self, port: str) -> str:
        """host:port of a named port here."""
        return f"127.0.0.1:{self.ports[self._by_name[port]]}"

    def mapped(self, text: str) -> str:
        """Text of the container as it is here."""
        for there, here in self._hosts.items():
            text = text.replace(there, here)
        text = re.sub(r"(?:0\.0\.0\.0|\[::\]):([0-9]+)", lambda m: f"127.0.0.1:{self.ports[int(m[1])]}", text)
        paths = "|".join(sorted(map(re.escape, self._mounts), key=len, reverse=True))
        return re.sub(rf"(?<![\w./-])({paths})(?=/|$|[\s\"'])", lambda m: str(self._root) + m[1], text)

    def knows(self, hosts: Mapping[str, str]) -> None:
        """More of `hosts`, before it is started."""
        self._hosts |= hosts

    def argv(self) -> list[str]:
        own = [self._expanded(a) for a in self.container["args"]]
        return [*self._program, *(self.mapped(a) for a in own), *self._more]

    def environment(self) -> dict[str, str]:
        return {k: self.mapped(v) for k, v in self._environment.items()}

    # The process

    def __enter__(self) -> "Pod":
        self._write_files()
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self.argv(),
                cwd=ROOT,
                env={"PATH": "/usr/bin:/bin", **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Until it holds; fails where the process ends before."""
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while not condition():
            if self._process.poll() is not None:
                pytest.fail(f"{self.name} ended with {self._process.returncode} before {what}: {self.log()}")
            if time.monotonic() > deadline:
                pytest.fail(f"{self.name}: not {what} within {START_S:g} s: {self.log()}")
            time.sleep(0.05)

    def wait_ready(self) -> None:
        self.wait(lambda: self.probe("readinessProbe") == 200, "ready")

    def probe(self, name: str) -> int:
        """The code that a probe of the kubelet would get, 0 for no answer."""
        get = self.container[name]["httpGet"]
        return self.get(get["port"], get["path"], get.get("scheme", "HTTP"))[0]

    def get(self, port: str, path: str, scheme: str = "HTTP") -> tuple[int, str]:
        """As a kubelet asks: without a certificate, and whoever answers. (0, "") without an answer."""
        anybody = ssl.create_default_context()
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        url = f"{scheme.lower()}://{self.address(port)}{path}"
        try:
            with urllib.request.urlopen(url, timeout=10, context=anybody) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()
        except OSError:
            return 0, ""

    def terminate(self) -> int:
        """SIGTERM, as a kubelet does; the exit code. Fails after the grace period."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(self.grace_s)
        except subprocess.TimeoutExpired:
            pytest.fail(
                f"{self.name} did not end within its grace period of {self.grace_s:g} s: {self.log()}"
            )

    def log(self, chars: int | None = 4000) -> str:
        """The end of what it has said; None: all."""
        text = self._log.read_text(errors="replace")
        return text if chars is None else text[-chars:]

    # Its files

    def _value(self, env: Object) -> str:
        if "value" in env:
            return str(env["value"])
        path = env["valueFrom"]["fieldRef"]["fieldPath"]
        return {
            "metadata.name": self.name,
            "metadata.namespace": NAMESPACE,
            "status.hostIP": "127.0.0.1",
            "status.podIP": "127.0.0.1",
        }[path]

    def _expanded(self, text: str) -> str:
        """$(NAME) as Kubernetes expands it: what is not known stays."""
        return re.sub(r"\$\((\w+)\)", lambda m: self._environment.get(m[1], m[0]), text)

    def _write_files(self) -> None:
        volumes = {v["name"]: v for v in self.spec.get("volumes", [])}
        for mount, name in self._mounts.items():
            directory = Path(f"{self._root}{mount}")
            directory.mkdir(parents=True)
            if name in self._claims or "emptyDir" in volumes[name] or "csi" in volumes[name]:
                continue
            for key, (data, mode) in self._contents(volumes[name]).items():
                file = directory / key
                file.write_text(self.mapped(data))
                file.chmod(mode)

    def _contents(self, volume: Object) -> Mapping[str, tuple[str, int]]:
        source = volume.get("secret") or volume["configMap"]
        name = source.get("secretName") or source["name"]
        kind = "Secret" if "secret" in volume else "ConfigMap"
        mode = source.get("defaultMode", 0o644)
        data: Mapping[str, str]
        if name in self._given:
            data = self._given[name]
        else:
            data = one(self._objects, kind, name)["data"]
            if kind == "Secret":
                data = {k: base64.b64decode(v).decode() for k, v in data.items()}
        if items := source.get("items"):
            data = {item["path"]: data[item["key"]] for item in items}
        return {k: (v, mode) for k, v in data.items()}


def bundled_hosts(objects: list[Object], part: str, pod: Pod) -> dict[str, str]:
    """Where others find the bundled server of one pod: its DNS name and ports to where they are here."""
    service = one(objects, "Service", f"{FULL}-{part}")
    host = f"{pod.name}.{FULL}-{part}.{NAMESPACE}.svc.cluster.local"
    return {f"{host}:{p['port']}": pod.address(p["name"]) for p in service["spec"]["ports"]}
