"""The hub's settings: defaults, a YAML file, options of the command line, in this order; all checked at once."""

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import yaml

from security.identity import IdentityError, check_name, check_trust_domain
from shards.ring import SLOTS_DEFAULT

TLS_SANS_MAX = 48
"""Fewer than a certificate holds, for the hub adds names of its own."""


class ConfigError(Exception):
    """A setting that cannot be used. The message names it and says what would do."""


@dataclass(frozen=True, slots=True)
class HubConfig:
    """Every field is a key of the config file; those in OPTIONS are options of `cloudhub serve` too."""

    data_dir: str
    """Where the store, the CA and the kubeconfig are kept (mode 0700, locked by the process)."""
    api_address: str = "127.0.0.1:8443"
    """Where kubectl is served. Loopback by default: who administers a fleet opens it on purpose."""
    edge_address: str = "0.0.0.0:8444"
    """Where edges connect. Every peer is authenticated, so it is open to the world by default."""
    advertise_edge: str = ""
    """host:port that joining agents are told to use; empty: the one that they joined through."""
    tls_san: tuple[str, ...] = ()
    """Extra DNS names and IP addresses of the hub's certificate."""
    trust_domain: str = "cloudhub.local"
    """The SPIFFE trust domain; fixed once the CA is made."""
    slots: int = SLOTS_DEFAULT
    """Slots of the fleet; counts at the first start only."""
    heartbeat: str = "30s"
    """Interval of every node's heartbeats, 1s to 10m: a dead link is known within three."""
    clone_backoff: str = "1m"
    """How long agents with one identity between them are sent away, 1s to 1h; without a sign of the other for five times
    as long, the one that is left is served again."""
    node_certificate: str = "14d"
    """How long a node's certificate lasts, 10s to 365d; agents renew at half life. An agent that is off for longer has
    to join anew. Minutes are for tests."""
    history: str = "10m"
    """How long changes can be watched from the past before they are compacted, 1m to 24h."""
    log_level: str = "info"
    """debug, info, warning or error."""
    log_format: str = "auto"
    """json, text, or auto: text on a terminal."""

    def __post_init__(self) -> None:
        for name in ("api_address", "edge_address"):
            split_address(getattr(self, name), name)
        if self.advertise_edge:
            host, port = split_address(self.advertise_edge, "advertise_edge")
            if is_wildcard(host) or port == 0:
                raise ConfigError(
                    f"advertise_edge: {self.advertise_edge!r} is no address that an edge can connect to"
                )
        try:
            check_trust_domain(self.trust_domain)
        except IdentityError as wrong:
            raise ConfigError(f"trust_domain: {wrong}") from wrong
        wrong_names = [name for name in self.tls_san if not _is_host(name)]
        if wrong_names:
            raise ConfigError(
                f"tls_san: {wrong_names[0]!r} is neither an IP address nor a DNS name in lower case"
            )
        if len(self.tls_san) > TLS_SANS_MAX:
            raise ConfigError(f"tls_san: {len(self.tls_san)} names, at most {TLS_SANS_MAX} are supported")
        if not 1 <= self.slots <= 65536:
            raise ConfigError(f"slots: {self.slots} is not between 1 and 65536")
        _between("heartbeat", self.heartbeat, 1.0, 600.0)
        _between("clone_backoff", self.clone_backoff, 1.0, 3600.0)
        _between("node_certificate", self.node_certificate, 10.0, 365 * 86400.0)
        _between("history", self.history, 60.0, 86400.0)
        _one_of("log_level", self.log_level, ("debug", "info", "warning", "error"))
        _one_of("log_format", self.log_format, ("auto", "json", "text"))

    @property
    def heartbeat_s(self) -> float:
        return duration_s(self.heartbeat, "heartbeat")

    @property
    def clone_backoff_s(self) -> float:
        return duration_s(self.clone_backoff, "clone_backoff")

    @property
    def node_certificate_s(self) -> float:
        return duration_s(self.node_certificate, "node_certificate")

    @property
    def history_s(self) -> float:
        return duration_s(self.history, "history")


OPTIONS = ("data_dir", "api_address", "edge_address", "advertise_edge", "tls_san")
"""Fields that `cloudhub serve` has options for, in the order of its help."""


def load(path: str | None, options: Mapping[str, Any]) -> HubConfig:
    """Defaults, then the file, then those of `options` that are not None. Raises ConfigError."""
    values: dict[str, Any] = {"data_dir": default_data_dir()}
    if path is not None:
        values |= _read(path)
    values |= {k: v for k, v in options.items() if v is not None}
    for field in fields(HubConfig):
        if field.name not in values:
            continue
        value = values[field.name]
        if field.name == "tls_san":
            if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
                raise ConfigError("tls_san: a list of names is expected")
            values["tls_san"] = tuple(value)
        elif field.name == "slots":
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"slots: {value!r} is no whole number")
        elif not isinstance(value, str):
            raise ConfigError(f"{field.name}: {value!r} is no text; write it in quotes")
    values["data_dir"] = os.path.abspath(values["data_dir"])
    return HubConfig(**values)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            loaded = yaml.safe_load(file.read(1 << 20))
    except OSError as failure:
        raise ConfigError(f"cannot read the config file {path}: {failure.strerror}") from failure
    except yaml.YAMLError as wrong:
        raise ConfigError(f"{path} is no YAML: {yaml_problem(wrong)}") from wrong
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: a mapping of settings is expected, such as `api_address: 127.0.0.1:8443`")
    known = {f.name for f in fields(HubConfig)}
    unknown = sorted(str(k) for k in loaded if k not in known)
    if unknown:
        raise ConfigError(
            f"{path}: unknown setting {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    return loaded


def yaml_problem(wrong: yaml.YAMLError) -> str:
    """What is wrong with a YAML text, on one line."""
    if isinstance(wrong, yaml.MarkedYAMLError) and wrong.problem_mark is not None:
        mark = wrong.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {wrong.problem or wrong.context}"
    return str(wrong).partition("\n")[0]


def default_data_dir() -> str:
    """/var/lib/cloudhub as root, else under XDG_STATE_HOME."""
    if os.geteuid() == 0:
        return "/var/lib/cloudhub"
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "cloudhub")


def split_address(text: str, what: str = "address") -> tuple[str, int]:
    """(host, port) of `host:port` or `[v6]:port`. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{what}: {text!r}: write an IPv6 address in brackets, [::1]:8443")
    if not colon or not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ConfigError(f"{what}: {text!r} is not HOST:PORT")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_wildcard(host: str) -> bool:
    return host in ("0.0.0.0", "::", "*", "")  # noqa: S104 - asked, not bound


def reachable(host: str) -> str:
    """The address to use on this machine for what listens on `host`: a wildcard is never advertised."""
    if host == "::":
        return "::1"
    return "127.0.0.1" if is_wildcard(host) else host


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration_s(text: str, what: str = "duration") -> float:
    """Seconds of `90s`, `5m`, `1h30m`, `2d`. Raises ConfigError."""
    if not re.fullmatch(r"([0-9]+(\.[0-9]+)?[smhd])+", text):
        raise ConfigError(f"{what}: {text!r} is no duration; write it as 30s, 5m, 1h or 2d")
    return sum(float(n) * _UNITS[unit] for n, unit in re.findall(r"([0-9.]+)([smhd])", text))


def names_of_this_host() -> list[str]:
    """DNS names that clients on this machine and its network use for it: its own where it can be one."""
    own = socket.gethostname().lower()
    return ["localhost", own] if own != "localhost" and _is_host(own) else ["localhost"]


def _is_host(text: str) -> bool:
    """Whether a certificate can hold it: an IP address, or a DNS name that may begin with `*.`."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        try:
            check_name("name", text.removeprefix("*."))
        except IdentityError:
            return False
    return True


def _between(name: str, text: str, low: float, high: float) -> None:
    if not low <= duration_s(text, name) <= high:
        raise ConfigError(f"{name}: {text} is not between {low:g}s and {high:g}s")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}: {value!r} is none of {', '.join(allowed)}")
