"""Options of the process runtime, and where it finds things on a machine."""

from edgelite.runtimes import process_spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from edgelite.runtimes.process_cgroups import Cgroups


class Config:
    """Options of the runtime.

    allow_privileged: whether pods may use root, hostPath, hostNetwork and the like. default_uid, default_gid: as whom
    containers run when the agent is root and the pod does not say. log_bytes x log_files: size and number of log files of a
    container; all logs together at most log_share of their disk. pids_max: processes and threads per container."""

    __slots__ = (
        "allow_privileged",
        "default_gid",
        "default_uid",
        "log_bytes",
        "log_files",
        "log_share",
        "pids_max",
    )

    def __init__(
        self,
        allow_privileged: bool = False,
        default_uid: int = 65534,
        default_gid: int = 65534,
        log_bytes: int = 10 << 20,
        log_files: int = 3,
        log_share: float = 0.1,
        pids_max: int = 4096,
    ) -> None:
        self.allow_privileged = allow_privileged
        self.default_uid = default_uid
        self.default_gid = default_gid
        self.log_bytes = log_bytes
        self.log_files = log_files
        self.log_share = log_share
        self.pids_max = pids_max


class Host:
    """Where things are on this machine; tests put others in. namespaces, cgroups: None to find out."""

    __slots__ = ("cgroups", "namespaces", "pidfd", "proc", "python", "shell")

    def __init__(
        self,
        proc: str = "/proc",
        shell: str = "/bin/sh",
        python: str = "",
        namespaces: "str | None" = None,
        cgroups: "Cgroups | None" = None,
        pidfd: bool = True,
    ) -> None:
        self.proc = proc
        self.shell = shell
        self.python = python or process_spawn.default_python()
        self.namespaces = namespaces
        self.cgroups = cgroups
        self.pidfd = pidfd
