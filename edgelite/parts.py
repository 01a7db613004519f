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
VAULT = "vault"  # its key in that store


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
        self._vault: "Any" = None
        self._vault_store: "State | None" = None
        self._twins: "Any" = None

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
        if name == "process" and self.host.system in ("windows", "darwin"):
            own = _load(
                "edgelite.runtimes.windows" if self.host.system == "windows" else "edgelite.runtimes.macos"
            )
            supervised: "Runtime" = own.create(state, self.data_dir, boot_id, self.config)
            return supervised
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
        clock = Clock(self.host)

        def view(library: "Any", pods: "Any") -> "Any":
            assert self._twins is not None
            make = _load("edgelite.podview").PodView
            return make(library, pods, clock, self.node, node.body, server, self._twins)

        def server(shown: "Any") -> "Any":
            make = _load("edgelite.localserver").LocalApi
            entropy = self.host.entropy
            return make(loop, self.data_dir, store, entropy, shown.objects, shown.revision, shown.report)

        return make(
            loop,
            runtime,
            self._facts,
            self.data_dir,
            report,
            store,
            clock,
            vault=self.vault,
            view=view if self.config.local_api else None,
        )

    def twins(
        self,
        loop: "Loop",
        report: "Callable[[str, str, dict[str, Any]], None]",
        save: "Callable[[str, bytes | None], None]",
        records: "list[tuple[str, bytes]]",
    ) -> "Any":
        """The node's devices. Before `workloads`, which show them."""
        make = _load("edgelite.twinkeeper").TwinKeeper
        self._twins = make(loop, self.host.wall, report, save, records)
        return self._twins

    def static_pods(
        self,
        store: "State",
        workloads: "Any",
        report: "Callable[[str, str, dict[str, Any]], None]",
        log: "Any",
    ) -> "Any":
        directory = self.config.static_pods or os.path.join(self.data_dir, "manifests")
        return _load("edgelite.staticpods").StaticPods(directory, self.node, store, workloads, report, log)

    def keep_vault_in(self, store: "State") -> None:
        """Where the wrapped data key lies. Before `vault` and `rewrap`."""
        self._vault_store = store

    def vault(self) -> "Any":
        """What secrets are sealed with, made when it is needed first. Raises RuntimeFailure where it cannot be kept."""
        if self._vault is None:
            assert self._vault_store is not None
            secrets = self._secrets()
            stored = dict(self._vault_store.items()).get(VAULT)
            made = _load("edgelite.vault").Vault(stored, secrets, self.host.entropy)
            self._vault_store.put(VAULT, made.record(secrets))
            self._vault = made
        return self._vault

    def rewrap(self) -> None:
        """The private keys are others: around the installation of a renewed certificate, before and after. Before it there are
        two, and what is sealed can be opened by each. Raises RuntimeFailure."""
        if self._vault_store is not None and VAULT in dict(self._vault_store.items()):
            record = self.vault().record(self._secrets())
            self._vault_store.put(VAULT, record)

    def _secrets(self) -> "list[bytes]":
        credentials = self.credentials()
        try:
            found: "list[bytes]" = credentials.secrets(self.data_dir)
        except credentials.EnrollError as error:
            raise _load("edgelite.runtimes.base").RuntimeFailure("NoVault", str(error)) from error
        return found

    def addresses_changed(self, node: "NodeReport") -> None:
        """The address towards the hub is another one: pods that start from now on are told."""
        self._facts.addresses = node.addresses()


def _load(name: str) -> "Any":
    """The module of this name; its import is paid for only now."""
    return __import__(name, fromlist=["*"])


def _answers(path: str) -> bool:
    import socket

    if not hasattr(socket, "AF_UNIX"):
        return False  # Windows
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(ENGINE_TIMEOUT_S)
            probe.connect(path)
            return True
    except OSError:
        return False
