"""A real SPIRE: one server and one agent on loopback and Unix sockets, as `make deps-ci` builds them.

    with Spire("example.org") as spire:
        spire.entry("spiffe://example.org/hub/standalone", uid=os.getuid(), dns="hub.example.org", downstream=True)
        spire.agent_socket, spire.server_address, spire.bundle_pem()
        spire.rotate_authority()

Blocking on purpose (tests on a loop use `asyncio.to_thread`). Every wait has a deadline and waits for a condition.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.ports import free_port
from tests.servers.program import tool

READY_S = 60.0


class Spire:
    """See the module. Lives for the `with` block, or until `close`."""

    def __init__(
        self, trust_domain: str = "example.org", *, ca_ttl: str = "1h", svid_ttl: str = "10m"
    ) -> None:
        self.trust_domain = trust_domain
        self._ttls = (ca_ttl, svid_ttl)
        # Short: paths of Unix sockets have a bound of 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="spire-"))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._host = f"spiffe://{trust_domain}/host"
        self.port = 0
        try:
            self._start_first()
        except BaseException:
            self.close()
            raise

    # -- where it is ----------------------------------------------------------------------------------------------

    @property
    def server_address(self) -> str:
        """host:port of the server's API over TLS."""
        return f"127.0.0.1:{self.port}"

    @property
    def agent_path(self) -> Path:
        return self.directory / "agent.sock"

    @property
    def agent_socket(self) -> str:
        """The Workload API, as SPIFFE_ENDPOINT_SOCKET names it."""
        return f"unix://{self.agent_path}"

    # -- what it is told --------------------------------------------------------------------------------------------

    def entry(
        self,
        spiffe_id: str,
        *,
        uid: int,
        dns: str = "",
        downstream: bool = False,
        ttl_s: int = 0,
        federates_with: str = "",
    ) -> str:
        """A registration entry for processes of a user; its id. The agent knows of it a little later."""
        arguments = ["-parentID", self._host, "-spiffeID", spiffe_id, "-selector", f"unix:uid:{uid}"]
        if dns:
            arguments += ["-dns", dns]
        if downstream:
            arguments.append("-downstream")
        if ttl_s:
            arguments += ["-x509SVIDTTL", str(ttl_s)]
        if federates_with:
            arguments += ["-federatesWith", f"spiffe://{federates_with}"]
        told = json.loads(self.server("entry", "create", *arguments, "-output", "json"))
        return str(told["results"][0]["entry"]["id"])

    def delete_entry(self, entry_id: str) -> None:
        self.server("entry", "delete", "-entryID", entry_id)

    def bundle_pem(self) -> str:
        """The roots of the trust domain at this moment."""
        return self.server("bundle", "show")

    def set_bundle(self, trust_domain: str, pem: str) -> None:
        """The bundle of a trust domain that this one is federated with."""
        self.server("bundle", "set", "-id", f"spiffe://{trust_domain}", stdin=pem)

    def authorities(self) -> dict[str, Any]:
        """The X.509 authorities by state: active, prepared, old."""
        return dict(json.loads(self.server("localauthority", "x509", "show", "-output", "json")))

    def prepare(self) -> str:
        """A new authority, trusted and not used yet; its id."""
        told = json.loads(self.server("localauthority", "x509", "prepare", "-output", "json"))
        return str(told["prepared_authority"]["authority_id"])

    def activate(self, authority: str) -> None:
        """It signs from now on."""
        self.server("localauthority", "x509", "activate", "-authorityID", authority)

    def taint(self, authority: str) -> None:
        """Everything that it has signed is to be replaced at once."""
        self.server("localauthority", "x509", "taint", "-authorityID", authority)

    def revoke(self, authority: str) -> None:
        """It is in no bundle any more."""
        self.server("localauthority", "x509", "revoke", "-authorityID", authority)

    # -- life -------------------------------------------------------------------------------------------------------

    def stop_agent(self) -> None:
        self._stop("agent")

    def start_agent(self) -> None:
        """On its own data: it was attested before."""
        self._spawn("agent", "spire-agent", "run", "-config", str(self.directory / "agent.conf"))
        self._wait("the agent serves", self._agent_serves)

    def stop_server(self) -> None:
        self._stop("server")

    def start_server(self) -> None:
        self._spawn("server", "spire-server", "run", "-config", str(self.directory / "server.conf"))
        self._wait("the server serves", self._server_serves)

    def close(self) -> None:
        """Ends both and removes their data."""
        for name in list(self._processes):
            self._stop(name)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> "Spire":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def server(self, *arguments: str, stdin: str = "") -> str:
        """A command of `spire-server`; its output."""
        words = [a for a in arguments if not a.startswith("-")]
        depth = 3 if words[0] == "localauthority" else 2
        command = [
            tool("spire-server"),
            *arguments[:depth],
            "-socketPath",
            str(self.directory / "api.sock"),
        ]
        done = subprocess.run(
            [*command, *arguments[depth:]],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(
                f"spire-server {' '.join(arguments)}: {done.stdout}{done.stderr}\n{self.logs()}"
            )
        return done.stdout

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.directory.glob("*.log"))
        )

    def _start_first(self) -> None:
        self.port = free_port()
        self._configure_server()
        self.start_server()
        told = self.server("token", "generate", "-spiffeID", self._host)
        token = told.split("Token:")[1].split()[0]
        (self.directory / "bundle.pem").write_text(self.bundle_pem())
        self._configure_agent(token)
        self.start_agent()

    def _configure_server(self) -> None:
        here, (ca_ttl, svid_ttl) = self.directory, self._ttls
        (here / "server.conf").write_text(f"""
server {{
  bind_address = "127.0.0.1"
  bind_port = "{self.port}"
  socket_path = "{here}/api.sock"
  trust_domain = "{self.trust_domain}"
  data_dir = "{here}/server"
  log_level = "INFO"
  ca_ttl = "{ca_ttl}"
  default_x509_svid_ttl = "{svid_ttl}"
  agent_ttl = "1h"
  experimental {{ cache_reload_interval = "500ms" }}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{here}/store.sqlite3" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ keys_path = "{here}/keys.json" }} }}
}}
""")

    def _configure_agent(self, token: str) -> None:
        here = self.directory
        (here / "agent.conf").write_text(f"""
agent {{
  data_dir = "{here}/agent"
  log_level = "INFO"
  server_address = "127.0.0.1"
  server_port = "{self.port}"
  socket_path = "{self.agent_path}"
  trust_bundle_path = "{here}/bundle.pem"
  trust_domain = "{self.trust_domain}"
  join_token = "{token}"
  experimental {{ sync_interval = "500ms" }}
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ directory = "{here}/agent" }} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
""")

    def _spawn(self, name: str, program: str, *arguments: str) -> None:
        (self.directory / name).mkdir(mode=0o700, exist_ok=True)
        with open(self.directory / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                [tool(program), *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _stop(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_S
        while not condition():
            ended = [n for n, p in self._processes.items() if p.poll() is not None]
            if ended:
                raise RuntimeError(f"SPIRE's {ended[0]} ended\n{self.logs()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {READY_S:g} s: {what}\n{self.logs()}")
            time.sleep(0.05)

    def _server_serves(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return _accepts(self.directory / "api.sock")
        return False

    def _agent_serves(self) -> bool:
        return _accepts(self.agent_path)


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        return True
    return False
