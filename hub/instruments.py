"""What one replica tells of itself beside its edge port and its API: process, slots, controllers, certificates, fleet.

Everything is read when somebody collects, on the event loop. Counting the Nodes takes 0.3 µs for each, and is done again
after FLEET_S at the earliest.
"""

import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hub.reports import POOL, ready_of
from observability.metric import OTHER
from shards.ownership import ROLES

if TYPE_CHECKING:
    from hub.certificates import Certificates
    from hub.gateway import Gateway
    from hub.relaying import Relay
    from hub.revocations import Revocations
    from hub.roles import Roles
    from hub.trust import Trust
    from observability.metrics import Metrics
    from shards.member import Member

FLEET_S: Final = 5.0
POOLS_MAX: Final = 100
NO_POOL: Final = "none"
READY: Final = ("True", "False", "Unknown")
CONTROLLER_FIGURES: Final = ("depth", "syncs", "retries", "failures")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
_SELF: Final = "/proc/self/statm"
_DESCRIPTORS: Final = "/proc/self/fd"


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a replica that are read."""

    gateway: "Gateway"
    member: "Member"
    trust: "Trust"
    certificates: "Certificates"
    revocations: "Revocations"
    roles: "Roles | None"
    relay: "Relay | None"


def publish_process(metrics: "Metrics", version: str) -> None:
    """What is known before there is anything else."""
    began = time.monotonic()
    metrics.read("cloudhub.build.info", lambda: {(version,): 1})
    metrics.read("process.cpu.time", _cpu_times)
    metrics.read("process.uptime", lambda: {(): time.monotonic() - began})
    if os.path.exists(_SELF):
        metrics.read("process.memory.usage", lambda: {(): _rss_bytes()})
        metrics.read("process.open_file_descriptor.count", lambda: {(): len(os.listdir(_DESCRIPTORS))})


def publish(parts: Parts, metrics: "Metrics") -> None:
    """Has `metrics` read the replica from now on."""
    fleet = Fleet(parts.gateway)
    gateway, revocations, trust = parts.gateway, parts.revocations, parts.trust
    metrics.figures("cloudhub.shard", lambda: _shards(parts))
    metrics.read("cloudhub.nodes.nodes", fleet.read)
    metrics.read("cloudhub.store.revision", lambda: {(): gateway.desired.revision})
    metrics.figures(
        "cloudhub.certificate",
        lambda: {
            "hub_ends": parts.certificates.ends,
            "authority_ends": trust.authorities.active.not_after,
            "roots": len(trust.authorities.roots),
            "revocations": len(revocations.revoked),
            "revocations_fresh": 1.0 if revocations.fresh() else 0.0,
        },
    )
    if parts.relay is not None:
        metrics.figures("cloudhub.relay", parts.relay.stats)
    if parts.roles is not None:
        figures = parts.roles.figures
        for name in CONTROLLER_FIGURES:
            metrics.read(f"cloudhub.controller.{name}", _by_controller(figures, name))


class Fleet:
    """The Nodes of a replica's slots by pool and by what is stored of them. The pools with most nodes have a series each, the
    others one together."""

    def __init__(self, gateway: "Gateway", now: Callable[[], float] = time.monotonic) -> None:
        self._gateway = gateway
        self._now = now
        self._read_at = float("-inf")
        self._found: dict[tuple[str, ...], float] = {}

    def read(self) -> dict[tuple[str, ...], float]:
        if self._now() - self._read_at >= FLEET_S:
            self._found, self._read_at = self._count(), self._now()
        return self._found

    def _count(self) -> dict[tuple[str, ...], float]:
        counts: Counter[tuple[str, str]] = Counter()
        for entry in self._gateway.nodes.cache:
            pool = (entry.view.metadata.labels or {}).get(POOL) or NO_POOL
            ready = ready_of(entry)
            counts[(pool, ready if ready in READY else "Unknown")] += 1
        sizes: Counter[str] = Counter()
        for (pool, _), count in counts.items():
            sizes[pool] += count
        shown = {pool for pool, _ in sizes.most_common(POOLS_MAX)}
        # A series for each state, also of 0: what an alert divides has to be there.
        found: dict[tuple[str, ...], float] = {(pool, ready): 0 for pool in sorted(shown) for ready in READY}
        for (pool, ready), count in counts.items():
            series = (pool if pool in shown else OTHER, ready)
            found[series] = found.get(series, 0) + count
        return found


def _shards(parts: Parts) -> Mapping[str, float]:
    member = parts.member
    return {
        "slots": member.slots,
        "slots_unowned": sum(member.route(slot) is None for slot in range(member.slots)),
        "roles_unowned": sum(member.route(role) is None for role in ROLES),
        "roles_owned": sum(member.of(role) is not None for role in ROLES),
        "members": len(member.members),
        "suspended": 0.0 if member.live else 1.0,
        "claims": member.counters.claims,
        "releases": member.counters.releases,
        "losses": member.counters.lost,
        "suspensions": member.counters.suspensions,
        "fence_rejections": parts.gateway.registry.fences_lost,
    }


def _by_controller(
    figures: Callable[[], Mapping[str, Mapping[str, int]]], name: str
) -> Callable[[], dict[tuple[str, ...], float]]:
    return lambda: {(controller.lower(),): found[name] for controller, found in figures().items()}


def _cpu_times() -> dict[tuple[str, ...], float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {("user",): used.ru_utime, ("system",): used.ru_stime}


def _rss_bytes() -> int:
    with open(_SELF, encoding="ascii") as statm:
        return int(statm.read().split()[1]) * _PAGE_BYTES
