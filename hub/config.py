"""The hub's settings: defaults, a YAML file, options of the command line, in this order; all checked at once."""

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import yaml

from hub import identities
from hub.rates import count, flow
from observability.settings import TelemetryError, settings
from security.algorithms import ALGORITHMS, P256
from security.buckets import NODE_BURST_S, SHARED_BURST_S, Rates
from security.identity import IdentityError, check_name, check_trust_domain
from shards.ring import SLOTS_DEFAULT

if TYPE_CHECKING:
    from security.keys import KeySource

TLS_SANS_MAX = 48
TAINTS_MAX = 16
_TAINT = re.compile(
    r"(?P<key>(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)"
    r"(?:=(?P<value>[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?)?"
    r":(?P<effect>NoSchedule|PreferNoSchedule|NoExecute)",
    re.ASCII,
)
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
    metrics_address: str = ""
    """Where /metrics is served in clear and to everybody, for scrapers without a certificate; empty: on the API port alone."""
    advertise_edge: str = ""
    """host:port that joining agents are told to use, or several with commas between, tried in turn; empty: the one that
    they joined through and those of the other replicas."""
    replica_edge: str = ""
    """host:port at which edges reach this very replica, for redirects; empty: edge_address where that is no wildcard;
    "none": the replica cannot be reached, and its nodes are relayed."""
    etcd: tuple[str, ...] = ()
    """host:port of the etcd members; empty: this hub is alone, with a store of its own in data_dir."""
    etcd_ca: str = ""
    """PEM file of the roots that etcd's certificates are checked with; empty: no TLS (for loopback only)."""
    etcd_cert: str = ""
    """PEM file of the client certificate for etcd."""
    etcd_key: str = ""
    """PEM file of its key."""
    nats: tuple[str, ...] = ()
    """URLs of the NATS servers (nats:// or tls://); empty: nodes of other replicas are redirected, never relayed."""
    nats_ca: str = ""
    """PEM file of the roots that NATS' certificates are checked with."""
    nats_cert: str = ""
    """PEM file of the client certificate for NATS."""
    nats_key: str = ""
    """PEM file of its key."""
    key_file: str = ""
    """Keys that seal the replicas' one authority in etcd, and wrap the data keys of Secrets and join tokens: one on each
    line, the first seals. The same file for every replica; a hub that is alone makes one in data_dir when it has none."""
    kms_socket: str = ""
    """Unix socket of a plugin of Kubernetes' KMS v2 API, which then wraps the data keys of Secrets and join tokens; what a
    key file has wrapped before still opens."""
    name: str = ""
    """This replica's name, different for each and stable over restarts; empty: the host's name."""
    weight: float = 1.0
    """This replica's share of the fleet against the others' weights, 0.01 to 100."""
    lease_ttl: str = "5s"
    """How long the others wait for a replica that is silent before they take its slots, 2s to 60s."""
    tls_san: tuple[str, ...] = ()
    """Extra DNS names and IP addresses of the hub's certificate."""
    source: str = "own"
    """Where objects live: `own`, in this hub's store and behind its API, or `kubernetes`, in a cluster's API server."""
    kubeconfig: str = ""
    """With source kubernetes: how to reach the API server; empty: as a pod of the cluster."""
    kubelet_address: str = "0.0.0.0:10250"
    """With source kubernetes: where the API server reaches logs, exec and port-forward of every edge node. Open like a
    kubelet's: every request is authenticated."""
    kubelet_advertise: str = ""
    """host:port that Nodes name for it; host must be an IP address that the API server reaches; empty: kubelet_address
    where that is no wildcard, else no endpoint is named."""
    kubelet_client_ca: str = ""
    """PEM roots of the client certificates that the API server shows there; empty: bearer tokens alone, reviewed by it."""
    webhook_address: str = ""
    """With source kubernetes: where the admission webhook is served that has pods of edge nodes tolerate a lost link;
    empty: nowhere."""
    node_lease: str = "10s"
    """With source kubernetes: how often the Lease of a node that is alive is renewed, 5s to 30m. Longer ones need a longer
    node-monitor-grace-period of the controller manager."""
    node_taints: tuple[str, ...] = ()
    """With source kubernetes: taints that Nodes are made with, `key:Effect` or `key=value:Effect`; later they are the
    user's to change. Without one the cluster's scheduler places any pod at the edge."""
    spire_server: str = ""
    """host:port of the SPIRE server's API: this hub is a downstream authority of it, and has its own identity from the Workload
    API at spiffe_socket; empty: the embedded authority."""
    spiffe_socket: str = ""
    """With spire_server: the Workload API, unix:///path or tcp://ip:port."""
    federated_bundle: tuple[str, ...] = ()
    """Roots of other trust domains, `TRUST-DOMAIN=PEM-FILE`; without one the Workload API's is used."""
    federated_node: tuple[str, ...] = ()
    """Whose nodes they are: `TRUST-DOMAIN=node:NAME` or `TRUST-DOMAIN=site:NAME`; a NAME may end in *. No other node of
    another trust domain is accepted, and none of the own one under these names."""
    workload_identity: tuple[str, ...] = ()
    """Who gets an X.509-SVID of the embedded authority over the Workload API of this hub, `UID=SPIFFE-ID`; empty: it is not
    served."""
    workload_socket: str = ""
    """Path of its socket; empty: workload.sock in data_dir."""
    workload_group: str = ""
    """A group of users that may connect to it; empty: only this process's own user."""
    ca_key: str = ""
    """URI (RFC 7512) of the authority's key in a PKCS #11 token, with module-path and pin-source, a file; the same key for
    all replicas. Empty: the hub makes and keeps it."""
    ca_key_algorithm: str = P256
    """Of the authority's key; counts when it is made. One in a token has its own."""
    hub_key_algorithm: str = P256
    """Of the key that the hub's own certificate is for, made anew every 12 hours and kept in memory. Boards know ECDSA
    alone."""
    trust_domain: str = "cloudhub.local"
    """The SPIFFE trust domain; fixed once the CA is made."""
    slots: int = SLOTS_DEFAULT
    """Slots of the fleet; counts at the first start only."""
    heartbeat: str = "30s"
    """Interval of every node's heartbeats, 1s to 10m: a dead link is known within three."""
    clone_backoff: str = "1m"
    """How long agents with one identity between them are sent away, 1s to 1h; without a sign of the other for five times
    as long, the one that is left is served again."""
    join_approval: str = "token"
    """Which joining nodes wait until an operator approves them: `always`, or those whose `token` says so."""
    node_certificate: str = "14d"
    """How long a node's certificate lasts, 10s to 365d; agents renew at half life. An agent that is off for longer has
    to join anew. Minutes are for tests."""
    node_rate: str = "1000/s 8MiB/s"
    """Frames and bytes that one node may send; whoever sends more is read more slowly, and nothing is lost. 8 s of it may come
    at once: the whole journal of a long outage."""
    pool_rate: str = "20000/s 64MiB/s"
    """The same for all nodes of one pool together, at each replica; 4 s at once."""
    replica_rate: str = "40000/s 256MiB/s"
    """The same for all nodes of this replica together; 4 s at once."""
    handshake_rate: str = "1000/s"
    """TLS handshakes that are begun, at most; others wait up to 10 s. Each takes about 1 ms of a core, and a slower machine begins
    fewer by itself."""
    renewals_per_s: float = 100.0
    """How many nodes a replica asks to renew in a second when the fleet's root is rotated, 0.1 to 10000."""
    node_return: str = "30d"
    """For how long after its certificate has ended a node that was away is taken back by it, unless it is revoked; 0s: it
    has to join anew; at most 365d. An old root is kept for so long where such a node may depend on it."""
    history: str = "10m"
    """How long changes can be watched from the past before they are compacted, 1m to 24h."""
    audit_policy: str = ""
    """File with an audit.k8s.io/v1 Policy: which API requests the audit log tells of; empty: there is none."""
    audit_log: str = ""
    """With audit_policy: the audit log's file; empty: `audit.log` in the data directory."""
    audit_log_mb: int = 100
    """Size in MB after which the audit log is rotated, 1 to 10000."""
    audit_log_files: int = 10
    """Rotated audit logs that are kept, 1 to 1000."""
    otlp_endpoint: str = ""
    """http:// or https:// URL of an OpenTelemetry collector (gRPC, port 4317) that metrics, traces and logs are sent to; empty:
    what the OTEL_EXPORTER_OTLP_ variables say, else nothing is."""
    trace_ratio: float | None = None
    """Which part of the API's requests is traced that do not say themselves, 0 to 1; none: what OTEL_TRACES_SAMPLER says, else
    0.001."""
    log_level: str = "info"
    """debug, info, warning or error."""
    log_format: str = "auto"
    """json, text, or auto: text on a terminal."""

    def __post_init__(self) -> None:
        for name in ("api_address", "edge_address"):
            split_address(getattr(self, name), name)
        if self.metrics_address:
            split_address(self.metrics_address, "metrics_address")
        for address in filter(None, self.advertise_edge.split(",")):
            _connectable("advertise_edge", address)
        if self.replica_edge not in ("", "none"):
            _connectable("replica_edge", self.replica_edge)
        self._check_cluster()
        self._check_source()
        try:
            check_trust_domain(self.trust_domain)
        except IdentityError as wrong:
            raise ConfigError(f"trust_domain: {wrong}") from wrong
        try:
            identities.check(self)
        except identities.IdentitySettingsError as wrong:
            raise ConfigError(str(wrong)) from wrong
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
        try:
            self.rates, self.handshakes_s  # noqa: B018 - they are parsed
        except ValueError as wrong:
            raise ConfigError(f"node_rate, pool_rate, replica_rate or handshake_rate: {wrong}") from wrong
        if not 0.1 <= self.renewals_per_s <= 10_000:
            raise ConfigError(f"renewals_per_s: {self.renewals_per_s:g} is not between 0.1 and 10000")
        _between("node_return", self.node_return, 0.0, 365 * 86400.0)
        _between("history", self.history, 60.0, 86400.0)
        for name, low, high in (("audit_log_mb", 1, 10_000), ("audit_log_files", 1, 1000)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}: {getattr(self, name)} is not between {low} and {high}")
        if self.audit_log and not self.audit_policy:
            raise ConfigError("audit_log: goes with audit_policy, which says what is told")
        try:
            settings(self.otlp_endpoint, self.trace_ratio, {})
        except TelemetryError as wrong:
            raise ConfigError(str(wrong)) from wrong
        _one_of("join_approval", self.join_approval, ("token", "always"))
        _one_of("ca_key_algorithm", self.ca_key_algorithm, ALGORITHMS)
        _one_of("hub_key_algorithm", self.hub_key_algorithm, ALGORITHMS)
        self._check_ca_key()
        _one_of("log_level", self.log_level, ("debug", "info", "warning", "error"))
        _one_of("log_format", self.log_format, ("auto", "json", "text"))

    def _check_ca_key(self) -> None:
        if not self.ca_key:
            return
        # Here and below: commands that only read settings need no library of cryptography.
        from security.keys import KeyRefused
        from security.pkcs11 import parse

        try:
            uri = parse(self.ca_key)
        except KeyRefused as wrong:
            raise ConfigError(f"ca_key: {wrong}") from wrong
        for given, name in ((uri.module, "module-path"), (uri.pin_source, "pin-source")):
            if not os.path.isabs(given):
                raise ConfigError(f"ca_key: the URI needs {name} with an absolute path")

    def _check_cluster(self) -> None:
        for endpoint in self.etcd:
            _connectable("etcd", endpoint, "a hub")
        for url in self.nats:
            if not re.fullmatch(r"(nats|tls)://\S+", url):
                raise ConfigError(f"nats: {url!r} is no URL such as nats://127.0.0.1:4222")
        if self.etcd and not self.key_file:
            raise ConfigError(
                "key_file: replicas that share etcd share one authority, sealed under a key file; make it once with"
                " `cloudhub key create FILE` and give it to every replica"
            )
        if self.nats and not self.etcd:
            raise ConfigError("nats: goes with etcd; a hub that is alone relays nothing")
        for what, cert, key in (
            ("etcd", self.etcd_cert, self.etcd_key),
            ("nats", self.nats_cert, self.nats_key),
        ):
            if bool(cert) != bool(key):
                raise ConfigError(f"{what}_cert and {what}_key go together")
        if self.name:
            try:
                check_name("name", self.name)
            except IdentityError as wrong:
                raise ConfigError(f"name: {wrong}") from wrong
        if not 0.01 <= self.weight <= 100:
            raise ConfigError(f"weight: {self.weight:g} is not between 0.01 and 100")
        _between("lease_ttl", self.lease_ttl, 2.0, 60.0)

    def _check_source(self) -> None:
        _one_of("source", self.source, ("own", "kubernetes"))
        if self.source == "own":
            for name in (
                "kubeconfig",
                "kubelet_advertise",
                "kubelet_client_ca",
                "webhook_address",
                "node_taints",
            ):
                if getattr(self, name):
                    raise ConfigError(f"{name}: goes with `source: kubernetes`")
        split_address(self.kubelet_address, "kubelet_address")
        if self.webhook_address:
            split_address(self.webhook_address, "webhook_address")
        if self.kubelet_advertise:
            host = split_address(self.kubelet_advertise, "kubelet_advertise")[0]
            _connectable("kubelet_advertise", self.kubelet_advertise, "an API server")
            try:
                ipaddress.ip_address(host)
            except ValueError:
                raise ConfigError(f"kubelet_advertise: {host!r} is no IP address") from None
        _between("node_lease", self.node_lease, 5.0, 1800.0)
        for text in self.node_taints:
            if _TAINT.fullmatch(text) is None:
                raise ConfigError(
                    f"node_taints: {text!r} is no taint; write key:Effect or key=value:Effect with the effect "
                    "NoSchedule, PreferNoSchedule or NoExecute"
                )
        if len(self.node_taints) > TAINTS_MAX:
            raise ConfigError(
                f"node_taints: {len(self.node_taints)} taints, at most {TAINTS_MAX} are supported"
            )

    @property
    def replica(self) -> str:
        """The replica's name."""
        if self.name:
            return self.name
        return socket.gethostname().lower() if self.etcd else "standalone"

    @property
    def ca_key_source(self) -> "KeySource":
        """Where the authority's key comes from."""
        from security.keys import KeySource

        return KeySource(self.ca_key_algorithm, self.ca_key)

    @property
    def lease_ttl_s(self) -> float:
        return duration_s(self.lease_ttl, "lease_ttl")

    @property
    def heartbeat_s(self) -> float:
        return duration_s(self.heartbeat, "heartbeat")

    @property
    def node_lease_s(self) -> float:
        return duration_s(self.node_lease, "node_lease")

    @property
    def clone_backoff_s(self) -> float:
        return duration_s(self.clone_backoff, "clone_backoff")

    @property
    def node_certificate_s(self) -> float:
        return duration_s(self.node_certificate, "node_certificate")

    @property
    def node_return_s(self) -> float:
        return duration_s(self.node_return, "node_return")

    @property
    def taints(self) -> tuple[tuple[str, str, str], ...]:
        """(key, value, effect) of `node_taints`."""
        return tuple(
            (t["key"], t["value"] or "", t["effect"]) for t in map(_TAINT.fullmatch, self.node_taints) if t
        )

    @property
    def rates(self) -> Rates:
        return Rates(
            flow(self.node_rate, NODE_BURST_S),
            flow(self.pool_rate, SHARED_BURST_S),
            flow(self.replica_rate, SHARED_BURST_S),
        )

    @property
    def handshakes_s(self) -> float:
        return count(self.handshake_rate)

    @property
    def history_s(self) -> float:
        return duration_s(self.history, "history")


OPTIONS = (
    "data_dir",
    "api_address",
    "edge_address",
    "metrics_address",
    "advertise_edge",
    "replica_edge",
    "tls_san",
    "etcd",
    "etcd_ca",
    "etcd_cert",
    "etcd_key",
    "nats",
    "nats_ca",
    "nats_cert",
    "nats_key",
    "key_file",
    "kms_socket",
    "name",
    "weight",
    "audit_policy",
    "audit_log",
    "otlp_endpoint",
    "trace_ratio",
    "join_approval",
    "ca_key",
    "ca_key_algorithm",
    "hub_key_algorithm",
    "source",
    "kubeconfig",
    "kubelet_address",
    "kubelet_advertise",
    "kubelet_client_ca",
    "webhook_address",
    "node_lease",
    "trust_domain",
    "spiffe_socket",
    "spire_server",
    "federated_bundle",
    "federated_node",
    "workload_identity",
    "workload_socket",
    "workload_group",
)
"""Fields that `cloudhub serve` has options for, in the order of its help."""

PATHS = (
    "audit_policy",
    "audit_log",
    "key_file",
    "kms_socket",
    "etcd_ca",
    "etcd_cert",
    "etcd_key",
    "nats_ca",
    "nats_cert",
    "nats_key",
    "kubeconfig",
    "kubelet_client_ca",
    "workload_socket",
)
"""Fields that name files; relative ones are made absolute."""

_NUMBERS = ("slots", "audit_log_mb", "audit_log_files")
_LISTS = {"tls_san": "names", "etcd": "host:port", "nats": "URLs", "node_taints": "taints"} | identities.LISTS


def load(path: str | None, options: Mapping[str, Any], spiffe_socket: str = "") -> HubConfig:
    """Defaults, then the file, then those of `options` that are not None. `spiffe_socket`: the one of the environment, which
    counts where there is a SPIRE server and no other is named. Raises ConfigError."""
    values: dict[str, Any] = {"data_dir": default_data_dir()}
    if path is not None:
        values |= _read(path)
    values |= {k: v for k, v in options.items() if v is not None}
    for field in fields(HubConfig):
        if field.name not in values:
            continue
        value = values[field.name]
        if field.name in _LISTS:
            if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
                raise ConfigError(f"{field.name}: a list of {_LISTS[field.name]} is expected")
            values[field.name] = tuple(value)
        elif field.name in ("weight", "renewals_per_s", "trace_ratio"):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"{field.name}: {value!r} is no number")
            values[field.name] = float(value)
        elif field.name in _NUMBERS:
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{field.name}: {value!r} is no whole number")
        elif not isinstance(value, str):
            raise ConfigError(f"{field.name}: {value!r} is no text; write it in quotes")
    if values.get("spire_server") and not values.get("spiffe_socket"):
        values["spiffe_socket"] = spiffe_socket
    values["data_dir"] = os.path.abspath(values["data_dir"])
    for name in PATHS:
        if values.get(name):
            values[name] = os.path.abspath(values[name])
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


def _connectable(name: str, address: str, who: str = "an edge") -> None:
    host, port = split_address(address, name)
    if is_wildcard(host) or port == 0:
        raise ConfigError(f"{name}: {address!r} is no address that {who} can connect to")


def _between(name: str, text: str, low: float, high: float) -> None:
    if not low <= duration_s(text, name) <= high:
        raise ConfigError(f"{name}: {text} is not between {low:g}s and {high:g}s")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}: {value!r} is none of {', '.join(allowed)}")
