"""The agent's settings and its data directory's small files. Written by `edgelite join`, read by `edgelite run`."""

import json
import os

from edgelite.files import write_atomically

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RUNTIMES = ("auto", "process", "container")
LEVELS = ("debug", "info", "warning", "error")


class ConfigError(Exception):
    """A setting or a file of the data directory is wrong; the message names it and what to write."""


class Config:
    """config.json. Every field with its default:

    runtime "auto": container when an engine's socket answers, else process; "process"; "container".
    engine_socket "": the engine's unix socket; empty: the usual places.
    labels {}: the Node's labels beside those of the host.
    allow_privileged false: root, hostPath and hostNetwork are admitted.
    allow_secret_files false: Secrets may lie on a disk where there is no tmpfs.
    static_pods "": the directory of manifests that run without the hub; empty: `manifests` in the data directory.
    local_api true: pods that mount a service account's token reach a read-only API of the node itself.
    default_user 65534: the uid that workloads get when the agent is root and the pod names none.
    log_level "info": debug, info, warning or error.
    pods_max 110: pods this node offers.
    boot_id_file "": where the boot id is read; empty: the kernel's.
    update_keys []: whose releases of the agent may replace this one: public keys of ECDSA P-256, 130 hex digits each (04, x, y).
    update_minimum "": the oldest release that may, also where a downgrade was signed.
    token "": a hash of the token that was redeemed, so that the same `join` may be repeated.
    """

    FIELDS: "dict[str, Any]" = {
        "runtime": "auto",
        "engine_socket": "",
        "labels": {},
        "allow_privileged": False,
        "allow_secret_files": False,
        "static_pods": "",
        "local_api": True,
        "default_user": 65534,
        "log_level": "info",
        "pods_max": 110,
        "boot_id_file": "",
        "update_keys": [],
        "update_minimum": "",
        "token": "",
    }

    def __init__(self, **fields: "Any") -> None:
        for name, value in fields.items():
            if name not in self.FIELDS:
                raise ConfigError("%r is no setting; there are %s" % (name, ", ".join(self.FIELDS)))
            default = self.FIELDS[name]
            if type(value) is not type(default):
                raise ConfigError("%s is %r; it has to be a %s" % (name, value, type(default).__name__))
        self.runtime: str = fields.get("runtime", "auto")
        self.engine_socket: str = fields.get("engine_socket", "")
        self.labels: "dict[str, str]" = dict(fields.get("labels", {}))
        self.allow_privileged: bool = fields.get("allow_privileged", False)
        self.allow_secret_files: bool = fields.get("allow_secret_files", False)
        self.static_pods: str = fields.get("static_pods", "")
        self.local_api: bool = fields.get("local_api", True)
        self.default_user: int = fields.get("default_user", 65534)
        self.log_level: str = fields.get("log_level", "info")
        self.pods_max: int = fields.get("pods_max", 110)
        self.boot_id_file: str = fields.get("boot_id_file", "")
        self.update_keys: "list[str]" = list(fields.get("update_keys", []))
        self.update_minimum: str = fields.get("update_minimum", "")
        self.token: str = fields.get("token", "")
        if self.runtime not in RUNTIMES:
            raise ConfigError("runtime is %r; it has to be one of %s" % (self.runtime, ", ".join(RUNTIMES)))
        if self.log_level not in LEVELS:
            raise ConfigError("log_level is %r; it has to be one of %s" % (self.log_level, ", ".join(LEVELS)))
        if not 1 <= self.pods_max <= 256:
            raise ConfigError("pods_max is %d; it has to be 1 to 256" % self.pods_max)
        for key, value in self.labels.items():
            if not isinstance(value, str):
                raise ConfigError("the label %s is %r; it has to be a text" % (key, value))

    def as_json(self) -> "dict[str, Any]":
        return dict([(name, getattr(self, name)) for name in self.FIELDS])

    def mark(self, version: str) -> str:
        """Differs when an agent might decide otherwise on a document it has refused."""
        return "%s/%s/%d/%d" % (version, self.runtime, self.allow_privileged, self.allow_secret_files)


def load_config(data_dir: str) -> Config:
    """config.json of a data directory; the defaults where there is none. Raises ConfigError."""
    path = os.path.join(data_dir, "config.json")
    try:
        with open(path) as file:
            fields = json.load(file)
    except FileNotFoundError:
        return Config()
    except (OSError, ValueError) as error:
        raise ConfigError("cannot read %s: %s" % (path, error)) from error
    if not isinstance(fields, dict):
        raise ConfigError("%s has to be a JSON object" % path)
    return Config(**fields)


def save_config(data_dir: str, config: Config) -> None:
    """Writes config.json atomically. Raises OSError."""
    text = json.dumps(config.as_json(), indent=2) + "\n"
    write_atomically(os.path.join(data_dir, "config.json"), text.encode())


class Membership:
    """node.json: who this node is and where its hub is."""

    __slots__ = ("edge", "hub", "node", "trust_domain")

    def __init__(self, node: str, trust_domain: str, hub: str, edge: str) -> None:
        self.node = node
        self.trust_domain = trust_domain
        self.hub = hub
        self.edge = edge


def load_membership(data_dir: str) -> "Membership | None":
    """node.json, or None when the directory has not joined. Raises ConfigError."""
    path = os.path.join(data_dir, "node.json")
    try:
        with open(path) as file:
            f = json.load(file)
        return Membership(f["node"], f["trust_domain"], f["hub"], f["edge"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError("cannot read %s: %s" % (path, error.strerror)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "%s is damaged (%r): restore it, or join again into an empty directory" % (path, error)
        ) from error


class Locked(Exception):
    """Another agent runs on this data directory."""


LOCKED_BYTE = 1 << 20


class PidFile:
    """agent.pid: locked by the running agent, whose process id it holds."""

    def __init__(self, data_dir: str) -> None:
        self.path = os.path.join(data_dir, "agent.pid")
        self._fd = -1

    def acquire(self) -> None:
        """Takes the lock for the life of this process. Raises Locked, OSError."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        if not _lock(fd):
            text = os.read(fd, 32).decode("ascii", "replace").strip()
            os.close(fd)
            raise Locked(
                "the data directory is in use by the agent with process id %s; `edgelite stop --data-dir %s` "
                "stops it" % (text or "?", os.path.dirname(self.path))
            )
        self._fd = fd
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())

    def release(self) -> None:
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def holder(self) -> "int | None":
        """The process id of the agent that runs on this directory, None when none does."""
        try:
            fd = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            if _lock(fd):
                return None
            text = os.read(fd, 32).strip()
            return int(text) if text.isdigit() else None
        finally:
            os.close(fd)


def _lock(fd: int) -> bool:
    """Locks an open file for this process; False when another one has it. The lock ends with the descriptor."""
    if os.name == "nt":
        import msvcrt

        # Windows lets nobody read what is locked, so it is a byte far behind the process id.
        windows: "Any" = msvcrt
        os.lseek(fd, LOCKED_BYTE, os.SEEK_SET)
        try:
            windows.locking(fd, windows.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(fd, 0, os.SEEK_SET)
        return True
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
