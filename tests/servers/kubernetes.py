"""A real Kubernetes control plane on free loopback ports, and what can happen to its parts: killed, frozen, restarted.

    with KubeCluster() as cluster:                       # etcd, API server, controller manager, scheduler: ready
        cluster.kubectl("get", "nodes")                  # the stock kubectl, as the administrator
        cluster.api("GET", "/api/v1/nodes")              # one request, decoded
        hub("--kubeconfig", cluster.kubeconfig_of("hub", "system:masters"))
        cluster.kill(APISERVER); cluster.compact(); cluster.restart(APISERVER)

The parts are Kubernetes' own, built from its published module by `make deps-ci` (tests/tools/kubernetes). There is no
kubelet: nodes are made by what is tested. Blocking on purpose; tests on a loop use `asyncio.to_thread`.
"""

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.ports import free_ports
from tests.servers.etcd import EtcdCluster
from tests.servers.kubepki import ISSUER, Pki

APISERVER, CONTROLLERS, SCHEDULER = "kube-apiserver", "kube-controller-manager", "kube-scheduler"
ETCD = "etcd"
READY_S = 120.0
TOKEN_S = 3600.0
IDLE_S = 30.0
"""A connection that was not used for this long is made anew: the API server closes idle ones."""
CACHE = Path(
    os.environ.get("CLOUDHUB_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudhub"
)
NOTHING: Mapping[str, str] = MappingProxyType({})


def kubernetes_binary() -> str:
    """The program that holds all parts. Fails the test, naming the remedy, where it is missing."""
    return _built("kubernetes")


def kubectl_binary() -> str:
    """The current stock kubectl. Fails the test, naming the remedy, where it is missing."""
    return _built("kubectl")


def _built(name: str) -> str:
    path = CACHE / "bin" / name
    if not path.exists():
        pytest.fail(f"{path} is missing: `make deps-ci` builds it", pytrace=False)
    return str(path)


class ApiError(Exception):
    """An answer of the API server that is no success: its code and its metav1.Status, where it is one."""

    def __init__(self, code: int, status: Any) -> None:
        super().__init__(f"{code}: {status.get('message') if isinstance(status, dict) else status}")
        self.code = code
        self.status = status


class KubeCluster:
    """See the module. `apiserver`, `controllers`, `scheduler`: flags beside or in place of those set here, without dashes,
    e.g. {"node-monitor-grace-period": "6s"}. `parts`: what is started; the API server always is. `verify_kubelets`: the
    API server wants kubelets' certificates from its own authority, for the address that it calls."""

    def __init__(
        self,
        *,
        parts: tuple[str, ...] = (APISERVER, CONTROLLERS, SCHEDULER),
        apiserver: Mapping[str, str] = NOTHING,
        controllers: Mapping[str, str] = NOTHING,
        scheduler: Mapping[str, str] = NOTHING,
        verify_kubelets: bool = False,
    ) -> None:
        self._binary = kubernetes_binary()
        self._kubectl = kubectl_binary()
        self._parts = parts
        self._given = {APISERVER: apiserver, CONTROLLERS: controllers, SCHEDULER: scheduler}
        self._verify_kubelets = verify_kubelets
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._connection: http.client.HTTPSConnection | None = None
        self._used = 0.0
        self.root = Path(tempfile.mkdtemp(prefix="kubernetes-"))
        self.etcd: EtcdCluster | None = None
        try:
            self.pki = Pki(self.root)
            loopback = ("127.0.0.1", "localhost", "kubernetes", "kubernetes.default.svc")
            self._serving = self.pki.issue("serving", addresses=loopback)
            self._kubelet_client = self.pki.issue("kube-apiserver-kubelet-client", ("system:masters",))
            self._admin = self.pki.issue("admin", ("system:masters",))
            self._context = ssl.create_default_context(cafile=self.pki.root)
            self._context.load_cert_chain(*self._admin)
            self.etcd = EtcdCluster(1, (self._binary, ETCD))
            self._start_first()
        except BaseException:
            self.close()
            raise

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return f"https://127.0.0.1:{self._ports[APISERVER]}"

    @property
    def port(self) -> int:
        """The API server's."""
        return self._ports[APISERVER]

    @property
    def kubelet_client_ca(self) -> str:
        """The path of the authority that the API server's certificate towards kubelets is from."""
        return self.pki.root

    @property
    def etcd_endpoint(self) -> str:
        """host:port of its etcd, in which the API server's objects lie under /registry/."""
        return self._etcd().endpoints[0]

    def context(self, user: str, *groups: str) -> ssl.SSLContext:
        """For connections to the API server with a certificate for a user, an administrator without `groups`."""
        made = ssl.create_default_context(cafile=self.pki.root)
        made.load_cert_chain(*self.pki.issue(user, groups or ("system:masters",)))
        return made

    def kubeconfig_of(self, user: str, *groups: str, server: str | None = None) -> str:
        """The path of a kubeconfig with a certificate for a user in groups; `server`: another URL, e.g. of a proxy."""
        return self.pki.kubeconfig(server or self.server, user, groups)

    @contextlib.contextmanager
    def account(self, name: str, role: str = "cluster-admin") -> Iterator[str]:
        """A service account in `default`, bound to a ClusterRole and gone afterwards; its token."""
        token = self.token(name)
        self.kubectl(
            "create", "clusterrolebinding", name, f"--clusterrole={role}", f"--serviceaccount=default:{name}"
        )
        try:
            yield token
        finally:
            with contextlib.suppress(ApiError, ConnectionError):
                self.api("DELETE", f"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{name}")
                self.api("DELETE", f"/api/v1/namespaces/default/serviceaccounts/{name}")

    def token(self, name: str) -> str:
        """Makes a service account in `default`; its token, which holds as long as the account is there, an hour at most."""
        made = self.api("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": name}})
        return self.pki.token("default", name, made["metadata"]["uid"], TOKEN_S)

    def api(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """One request as the administrator; the decoded answer. Raises ApiError; ConnectionError when nobody answers."""
        now = time.monotonic()
        if now - self._used > IDLE_S:
            self._disconnect()
        self._used = now
        connection = self._connection
        if connection is None:
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, context=self._context, timeout=30
            )
            self._connection = connection
        data = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {"Content-Type": content_type} if data else {})
            answer = connection.getresponse()
            raw = answer.read()
        except (OSError, http.client.HTTPException) as failure:
            self._disconnect()
            raise ConnectionError(f"{method} {path}: {failure!r}") from failure
        decoded = json.loads(raw) if answer.headers.get_content_type() == "application/json" else raw.decode()
        if answer.status >= 400:
            raise ApiError(answer.status, decoded)
        return decoded

    def kubectl(
        self, *arguments: str, stdin: str | None = None, code: int | None = 0, timeout_s: float = 120
    ) -> str:
        """Runs kubectl as the administrator; stdout, and stderr behind it. Fails the test on another exit code."""
        done = subprocess.run(
            self.kubectl_argv(*arguments),
            input=stdin, capture_output=True, text=True, timeout=timeout_s, env=self.kubectl_environment(),
        )  # fmt: skip
        if code is not None:
            assert done.returncode == code, (
                f"kubectl {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done.stdout + done.stderr

    def kubectl_argv(self, *arguments: str) -> list[str]:
        """The command line of `kubectl`, for tests that start it themselves."""
        return [self._kubectl, "--kubeconfig", self.kubeconfig, *arguments]

    def kubectl_environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.root), "KUBECONFIG": ""}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the API server's samples of `name` that have these labels; 0.0 where there are none."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        total = 0.0
        for line in self.api("GET", "/metrics").splitlines():
            found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if found and wanted <= set(re.findall(r'\w+="[^"]*"', found[1] or "")):
                total += float(found[2])
        return total

    def revision(self) -> int:
        """etcd's, which is what the API server's newest resourceVersions are."""
        answer = self._etcd_api("/v3/kv/range", {"key": base64.b64encode(b"compact_rev_key").decode()})
        return int(answer["header"]["revision"])

    def compact(self) -> int:
        """Compacts etcd to its present revision, which is returned: watches from before get 410 Gone, unless the API server
        still has them in its cache, which a restart empties."""
        revision = self.revision()
        self._etcd_api("/v3/kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    def pid(self, part: str) -> int:
        return self._running(part).pid

    def alive(self, part: str) -> bool:
        process = self._processes.get(part)
        return process is not None and process.poll() is None

    def kill(self, part: str) -> None:
        """kill -9. Nothing when it does not run."""
        if part == APISERVER:
            self._disconnect()
        if part == ETCD:
            self._etcd().kill(0)
        elif (process := self._processes.pop(part, None)) is not None:
            process.kill()
            process.wait()

    def freeze(self, part: str) -> None:
        """SIGSTOP: its connections stay open and nothing answers."""
        if part == ETCD:
            self._etcd().freeze(0)
        else:
            self._running(part).send_signal(signal.SIGSTOP)

    def thaw(self, part: str) -> None:
        if part == ETCD:
            self._etcd().thaw(0)
        else:
            self._running(part).send_signal(signal.SIGCONT)

    def restart(self, part: str, *, wait: bool = True) -> None:
        """Starts a part on its old port and data, killing it first where it runs. `wait`: until it is ready."""
        self.kill(part)
        if part == ETCD:
            self._etcd().restart(0, wait=wait)
            return
        self._start(part)
        if wait:
            self._await(part)

    def log(self, part: str) -> str:
        """What a part has said, for the message of a failed test."""
        path = self.root / f"{part}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        """Ends all parts, frozen ones too, and removes their files."""
        self._disconnect()
        for part in list(self._processes):
            self.kill(part)
        if self.etcd is not None:
            self.etcd.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> "KubeCluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_first(self) -> None:
        self._ports = dict(zip((APISERVER, CONTROLLERS, SCHEDULER), free_ports(3), strict=True))
        self.kubeconfig = self.pki.kubeconfig(self.server, "administrator", ("system:masters",))
        self._start(APISERVER)
        self._await(APISERVER)
        others = [part for part in self._parts if part != APISERVER]
        for part in others:
            self._start(part)
        for part in others:
            self._await(part)

    def _start(self, part: str) -> None:
        made = {
            APISERVER: self._apiserver_flags,
            CONTROLLERS: self._controller_flags,
            SCHEDULER: self._client_flags,
        }
        flags = {**made[part](part), **self._given[part]}
        with open(self.root / f"{part}.log", "ab") as log:
            self._processes[part] = subprocess.Popen(
                [self._binary, part, *(f"--{name}={value}" for name, value in flags.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.root,
                env={"PATH": os.environ.get("PATH", ""), "HOME": str(self.root)},
                # Its own group: an interrupted test run still closes it in order.
                start_new_session=True,
            )

    def _apiserver_flags(self, part: str) -> dict[str, str]:
        return {
            **self._serving_flags(part),
            # Never told to anybody (no endpoint reconciler); a loopback address would be refused.
            "advertise-address": "192.0.2.1",
            "endpoint-reconciler-type": "none",
            "etcd-servers": ",".join(f"http://{endpoint}" for endpoint in self._etcd().endpoints),
            # Compaction is a fault that tests choose.
            "etcd-compaction-interval": "0",
            "client-ca-file": self.pki.root,
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "service-account-issuer": ISSUER,
            "service-account-key-file": self.pki.signer_public,
            "service-account-signing-key-file": self.pki.signer_key,
            "service-cluster-ip-range": "10.96.0.0/24",
            "kubelet-client-certificate": self._kubelet_client[0],
            "kubelet-client-key": self._kubelet_client[1],
            "kubelet-preferred-address-types": "InternalIP,Hostname",
            **({"kubelet-certificate-authority": self.pki.root} if self._verify_kubelets else {}),
            "allow-privileged": "true",
        }

    def _controller_flags(self, part: str) -> dict[str, str]:
        return {
            **self._client_flags(part),
            "use-service-account-credentials": "true",
            "service-account-private-key-file": self.pki.signer_key,
            "root-ca-file": self.pki.root,
            "cluster-signing-cert-file": self.pki.root,
            "cluster-signing-key-file": self.pki.root_key,
            # The defaults (40 s, 5 s) divided by 8.
            "node-monitor-grace-period": "5s",
            "node-monitor-period": "600ms",
            "kube-api-qps": "200",
            "kube-api-burst": "400",
        }

    def _client_flags(self, part: str) -> dict[str, str]:
        return {
            **self._serving_flags(part),
            "kubeconfig": self.pki.kubeconfig(self.server, f"system:{part}"),
            "leader-elect": "false",
            "authentication-skip-lookup": "true",
        }

    def _serving_flags(self, part: str) -> dict[str, str]:
        return {
            "bind-address": "127.0.0.1",
            "secure-port": str(self._ports[part]),
            "tls-cert-file": self._serving[0],
            "tls-private-key-file": self._serving[1],
            "profiling": "false",
        }

    def _await(self, part: str) -> None:
        path = "/readyz" if part == APISERVER else "/healthz"
        url = f"https://127.0.0.1:{self._ports[part]}{path}"
        deadline = time.monotonic() + READY_S
        while not self._answers(url):
            if not self.alive(part):
                raise RuntimeError(f"{part} ended at its start:\n{self.log(part)[-4000:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{part} is not ready after {READY_S:.0f} s:\n{self.log(part)[-4000:]}")
            time.sleep(0.05)
        if part == CONTROLLERS:
            # Without it no pod can be made: of what the manager does at its start, this comes late.
            self._await_account(deadline)

    def _await_account(self, deadline: float) -> None:
        while True:
            with contextlib.suppress(ApiError, ConnectionError):
                self.api("GET", "/api/v1/namespaces/default/serviceaccounts/default")
                return
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"there is no default service account after {READY_S:.0f} s:\n{self.log(CONTROLLERS)[-4000:]}"
                )
            time.sleep(0.05)

    def _answers(self, url: str) -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2, context=self._context) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _etcd(self) -> EtcdCluster:
        assert self.etcd is not None
        return self.etcd

    def _etcd_api(self, path: str, body: Mapping[str, Any]) -> Any:
        """etcd's own HTTP gateway."""
        request = urllib.request.Request(
            f"http://{self._etcd().endpoints[0]}{path}", json.dumps(body).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    def _running(self, part: str) -> subprocess.Popen[bytes]:
        process = self._processes.get(part)
        assert process is not None, f"{part} does not run"
        return process

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
