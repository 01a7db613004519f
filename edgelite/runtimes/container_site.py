"""The container runtime's options, and what it has to know of its node."""

import os

SOCKETS = ("/run/podman/podman.sock", "/var/run/docker.sock")


class Config:
    """Options of the runtime.

    socket: the engine's unix socket. allow_privileged: whether pods may use privileged, hostPath, hostNetwork and the like.
    network: the engine's network that containers join: "host" (the default: what the agent reports as the pod's address and probes
    is then right, and the containers of a pod reach each other), or one of the engine's, in which every container is alone.
    log_bytes x log_files: size and number of log files of a container (Podman keeps one). pids_max: processes per container.
    pull_s: how long one pull may take."""

    __slots__ = ("allow_privileged", "log_bytes", "log_files", "network", "pids_max", "pull_s", "socket")

    def __init__(
        self,
        socket: str,
        allow_privileged: bool = False,
        network: str = "host",
        log_bytes: int = 10 << 20,
        log_files: int = 3,
        pids_max: int = 4096,
        pull_s: float = 1800.0,
    ) -> None:
        self.socket = socket
        self.allow_privileged = allow_privileged
        self.network = network
        self.log_bytes = log_bytes
        self.log_files = log_files
        self.pids_max = pids_max
        self.pull_s = pull_s


def find_socket() -> str:
    """The engine socket that exists in one of the usual places; Podman's when none does."""
    for path in SOCKETS + ("/run/user/%d/podman/podman.sock" % os.getuid(),):
        if os.path.exists(path):
            return path
    return SOCKETS[0]


def owner_of(path: str) -> str:
    """The id by which this agent's containers are known to the engine. It lies in the data directory and moves with it."""
    try:
        with open(path) as f:
            found = f.read().strip()
        if len(found) == 32 and all(c in "0123456789abcdef" for c in found):
            return found
    except FileNotFoundError:
        pass  # the first start
    made = os.urandom(16).hex()
    with open(path + ".new", "w") as f:
        f.write(made + "\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(path + ".new", path)
    return made


def ulimits() -> "list[tuple[str, int]]":
    """What an engine may set here: not above the agent's own, for engines' defaults can be more than the machine allows them."""
    import resource

    found = []
    for name, kind, ceiling in (
        ("nofile", resource.RLIMIT_NOFILE, "/proc/sys/fs/nr_open"),
        ("nproc", resource.RLIMIT_NPROC, "/proc/sys/kernel/pid_max"),
    ):
        try:
            with open(ceiling) as f:
                most = int(f.read())
        except (OSError, ValueError):
            most = 32768
        hard = resource.getrlimit(kind)[1]
        found.append((name, most if hard == resource.RLIM_INFINITY else min(hard, most)))
    return found
