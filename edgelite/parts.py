"""What the agent is made of on a real machine: which runtime, which workloads, whose credentials. Imported late and
piece by piece, for every module costs resident memory."""

import os

from edgelite.config import Config, ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from edgelite.loop import Loop
    from edgelite.nodereport import NodeReport
    from edgelite.port import Host
    from edgelite.runtimes.base import Runtime, State

ENGINE_SOCKETS = (
    "/run/podman/podman.sock",
    "/var/run/docker.sock",
    "/run/user/%d/podman/podman.sock" % (os.getuid() if hasattr(os, "getuid") else 0),
)
ENGINE_TIMEOUT_S = 2.0


class Clock:
    """The two clocks of `Workloads`: now() as deadlines have it, wall() in Unix seconds."""

    def __init__(self, host: "Host") -> None:
        self.now = host.now
        self.wall = host.wall


class Parts:
    """Makes the parts for one data directory. Tests replace it."""

    def __init__(self, data_dir: str, config: Config, host: "Host", node: str) -> None:
        self.data_dir = data_dir
        self.config = config
        self.host = host
        self.node = node
        self._facts: "Any" = None

    def credentials(self) -> "Any":
        """The module with client_context, renewal_time, renewal_retry_s, begin_renewal, install_renewed, install_bundle
        and EnrollError."""
        return _load("edgelite.credentials")

    def runtime_name(self) -> str:
        """ "process" or "container"; with `auto` the latter where an engine answers."""
        if self.config.runtime != "auto":
            return self.config.runtime
        return "container" if self.engine_socket() else "process"

    def engine_socket(self) -> str:
        """The first engine socket that takes a connection, "" when none does."""
        for path in [self.config.engine_socket] if self.config.engine_socket else ENGINE_SOCKETS:
            if _answers(path):
                return path
        return ""

    def runtime(self, name: str, loop: "Loop", state: "State") -> "Runtime":
        """Raises ConfigError when this edgelite has no such runtime."""
        boot_id = self.host.boot_id()
        if name == "process":
            process = _load("edgelite.runtimes.process")
            user = self.config.default_user
            settings = process.Config(self.config.allow_privileged, user, user)
            made: "Runtime" = process.ProcessRuntime(state, self.data_dir, boot_id, settings)
            return made
        try:
            container = _load("edgelite.runtimes.container")
        except ImportError as error:
            raise ConfigError(
                "this edgelite has no container runtime (%s): set runtime to process" % error
            ) from error
        made = container.create(self.config, self.engine_socket(), self.data_dir, boot_id, loop, state)
        return made  # noqa: RET504

    def workloads(
        self,
        loop: "Loop",
        runtime: "Runtime",
        node: "NodeReport",
        report: "Callable[[str, str, dict[str, Any]], None]",
        store: "State",
    ) -> "Any":
        self._facts = _load("edgelite.podenv").NodeFacts(
            self.node,
            node.addresses(),
            self.config.allow_secret_files,
            node.capacity(),
            node.allocatable(),
            self.host.boot_id(),
        )
        make = _load("edgelite.workloads").Workloads
        return make(loop, runtime, self._facts, self.data_dir, report, store, Clock(self.host))

    def addresses_changed(self, node: "NodeReport") -> None:
        """The address towards the hub is another one: pods that start from now on are told."""
        self._facts.addresses = node.addresses()


def _load(name: str) -> "Any":
    """The module of this name; its import is paid for only now."""
    return __import__(name, fromlist=["*"])


def _answers(path: str) -> bool:
    import socket

    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(ENGINE_TIMEOUT_S)
            probe.connect(path)
            return True
    except OSError:
        return False
