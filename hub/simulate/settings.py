"""What a simulated fleet is to be like, checked as a whole."""

import ipaddress
import re
import resource
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from edgelite.hubs import split_list
from hub.usage import UsageError

NODES_PER_PROCESS_MAX: Final = 19_000
"""A process may open 20,000 descriptors on many systems, and needs some itself."""
NODES_PER_SOURCE: Final = 10_000
"""A pair of addresses has 28,000 ports; those that were closed lately are not free for a minute."""
DESCRIPTORS: Final = 200
"""What a process needs beside its nodes."""
PROCESSES_MAX: Final = 64
PODS_MAX: Final = 250
NAME: Final = re.compile("[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with the simulated links; each bound is checked by `Settings`.

    latency_s: of a round trip, added before whatever arrives is read, handshake included.
    loss_per_min: the share of all links that fall silent in a minute, 0 to 1; the connection is not closed by that.
    outage_s: for how long one is silent.
    slow_share, slow_bytes_s: that share of the nodes reads no more bytes a second.
    storm_every_s: all connections are cut at once that often; 0: never.
    """

    latency_s: float = 0.0
    loss_per_min: float = 0.0
    outage_s: float = 10.0
    slow_share: float = 0.0
    slow_bytes_s: float = 2048.0
    storm_every_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """A fleet. Raises UsageError, which names the option.

    hub: "host:port" of the edge port, several with commas between.
    nodes, processes: how many, over how many processes; names are `<prefix>-<n>`.
    sources: addresses that connections come from, () for the system's choice.
    at_once: connections that one process may be making at a time; connect_per_s: begun over all, 0: no bound.
    pods: of each node; churn_per_s: status changes that the nodes report, over all; updates_per_s: changes of pods
    through the API, over all.
    """

    hub: str
    nodes: int
    processes: int = 1
    prefix: str = "sim"
    sources: tuple[str, ...] = ()
    at_once: int = 64
    connect_per_s: float = 0.0
    pods: int = 0
    churn_per_s: float = 0.0
    updates_per_s: float = 0.0
    seed: int = 1
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        _within("--nodes", self.nodes, 1, PROCESSES_MAX * NODES_PER_PROCESS_MAX)
        _within("--processes", self.processes, 1, PROCESSES_MAX)
        _within("--pods", self.pods, 0, PODS_MAX)
        _within("--at-once", self.at_once, 1, 4096)
        _within("--connect-rate", self.connect_per_s, 0, 100_000)
        _within("--churn", self.churn_per_s, 0, 100_000)
        _within("--updates", self.updates_per_s, 0, 10_000)
        _within("--latency", self.faults.latency_s, 0, 30)
        _within("--link-loss", self.faults.loss_per_min, 0, 1)
        _within("--outage", self.faults.outage_s, 0.1, 3600)
        _within("--slow", self.faults.slow_share, 0, 1)
        _within("--slow-rate", self.faults.slow_bytes_s, 16, 1e9)
        _within("--storm", self.faults.storm_every_s, 0, 86_400)
        if not NAME.fullmatch(self.prefix):
            raise UsageError(
                f"--prefix {self.prefix[:64]!r}: 1 to 42 of a-z, 0-9 and `-`, with a letter or digit first and last"
            )
        if not split_list(self.hub):
            raise UsageError("--hub is missing: the address of the hub's edge port, HOST:PORT")
        if self.nodes < self.processes:
            raise UsageError(f"--processes {self.processes} is more than --nodes {self.nodes}")
        for source in self.sources:
            try:
                ipaddress.ip_address(source)
            except ValueError:
                raise UsageError(f"--source {source}: an IP address of this machine is needed") from None
        self._check_room()

    def _check_room(self) -> None:
        each = -(-self.nodes // self.processes)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = NODES_PER_PROCESS_MAX
        if hard != resource.RLIM_INFINITY:
            room = min(room, hard - DESCRIPTORS)
        if each > room:
            raise UsageError(
                f"{each} nodes in one process: at most {room} are possible here (open files: ulimit -Hn); use"
                f" --processes {-(-self.nodes // max(room, 1))}"
            )

    @property
    def names(self) -> list[str]:
        """Of all nodes."""
        return [f"{self.prefix}-{n}" for n in range(self.nodes)]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def loopback_sources(hub: str, nodes: int, processes: int) -> tuple[str, ...]:
    """Enough addresses of this machine for a hub on it: one for each process and 10,000 nodes. () where the hub is elsewhere."""
    hosts = [address.rpartition(":")[0] for address in split_list(hub)]
    if not all(host == "localhost" or host.startswith("127.") for host in hosts):
        return ()
    count = max(processes, -(-nodes // NODES_PER_SOURCE))
    return tuple(str(ipaddress.IPv4Address("127.0.1.1") + n) for n in range(min(count, 200)))


def _within(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{option} {value:g}: {low:g} to {high:g} are possible")
