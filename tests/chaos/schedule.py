"""What goes wrong when: a schedule of faults from a seed. Pure.

Every kind of fault comes before any comes twice. Within a group (replicas, etcd, NATS) faults keep to limits: one
replica at least is up and awake, etcd loses its quorum only by the fault that says so, and NATS all its servers only
by its own.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

REST_S = 1.0
"""Between two faults of one victim, and of etcd."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`at_s` after the start, `what` happens to `victims` (indexes within the group), for `for_s`."""

    at_s: float
    group: str
    what: str
    victims: tuple[int, ...]
    for_s: float

    @property
    def kind(self) -> str:
        return f"{self.group} {self.what}"

    def __str__(self) -> str:
        return (
            f"{self.at_s:7.1f} s  {self.kind:22} {','.join(map(str, self.victims)):5} for {self.for_s:.1f} s"
        )


def kinds(ttl_s: float) -> dict[str, tuple[float, float]]:
    """Each kind of fault with the bounds of its length, seconds. `ttl_s`: of the replicas' leases."""
    return {
        "replica kill": (0.2, 1.5 * ttl_s),
        "replica freeze-short": (0.1 * ttl_s, 0.8 * ttl_s),
        "replica freeze-long": (1.4 * ttl_s, 3.0 * ttl_s),
        "replica terminate": (1.0, 2.0 * ttl_s),
        "etcd kill": (0.5, 2.0 * ttl_s),
        "etcd freeze-short": (0.1 * ttl_s, 0.8 * ttl_s),
        "etcd freeze-long": (1.4 * ttl_s, 3.0 * ttl_s),
        "etcd quorum-kill": (0.5 * ttl_s, 3.0 * ttl_s),
        "etcd quorum-freeze": (0.5 * ttl_s, 3.0 * ttl_s),
        "nats kill": (0.5, 2.0 * ttl_s),
        "nats freeze": (0.5, 2.0 * ttl_s),
        "nats all-kill": (0.5, 2.0 * ttl_s),
    }


def schedule(
    seed: int, seconds: float, *, replicas: int, etcd: int, nats: int, ttl_s: float, gap_s: float = 3.0
) -> list[Fault]:
    """Faults that begin before `seconds`, in order; each kind at least once, if need be later than that."""
    rng = random.Random(seed)
    bounds = {k: v for k, v in kinds(ttl_s).items() if nats or not k.startswith("nats")}
    sizes = {"replica": replicas, "etcd": etcd, "nats": nats}
    free = {group: [0.0] * size for group, size in sizes.items()}
    deck: list[str] = []
    found: list[Fault] = []
    at = 0.0
    while True:
        at += rng.uniform(0.2, 2.0) * gap_s
        if not deck:
            deck = rng.sample(sorted(bounds), len(bounds))
        kind = deck.pop()
        group, what = kind.split(" ")
        for_s = rng.uniform(*bounds[kind])
        victims = _victims(rng, what, free[group])
        start = max(at, *(free[group][v] for v in _waited_for(group, victims, free[group])))
        if start >= seconds and {fault.kind for fault in found} == bounds.keys():
            break
        for victim in victims:
            free[group][victim] = start + for_s + REST_S
        found.append(Fault(round(start, 2), group, what, victims, round(for_s, 2)))
    return sorted(found, key=lambda fault: fault.at_s)


def _victims(rng: random.Random, what: str, free: Sequence[float]) -> tuple[int, ...]:
    size = len(free)
    if what.startswith("quorum"):
        return tuple(sorted(rng.sample(range(size), size // 2 + 1)))
    if what.startswith("all"):
        return tuple(range(size))
    return (rng.randrange(size),)


def _waited_for(group: str, victims: Sequence[int], free: Sequence[float]) -> list[int]:
    """Victims whose last fault has to be over. Of etcd and NATS nothing else may be away; of replicas, one may."""
    if group != "replica":
        return list(range(len(free)))
    others = sorted((v for v in range(len(free)) if v not in victims), key=lambda v: free[v])
    return [*victims, *others[:1]]
