"""One probe of one running container: when it is due, and what its results mean. [pure]

The rules are the kubelet's: a result counts once it came `threshold` times in a row; liveness starts as good,
readiness as bad, startup as undecided; startup is over at its first success.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STARTUP = "startup"
LIVENESS = "liveness"
READINESS = "readiness"
FIELDS = ((STARTUP, "startupProbe"), (LIVENESS, "livenessProbe"), (READINESS, "readinessProbe"))


class Probe:
    """`verdict` is True, False or None (undecided); times are seconds on the agent's monotonic clock."""

    __slots__ = ("_failures", "_successes", "due", "in_flight", "kind", "spec", "verdict")

    def __init__(self, kind: str, spec: "dict[str, Any]", age_s: float, now: float) -> None:
        """`age_s`: for how long the container has been running already."""
        self.kind = kind
        self.spec = spec
        self.due = now + max(0.0, (spec.get("initialDelaySeconds") or 0) - max(0.0, age_s))
        self.in_flight = False
        self.verdict: "bool | None" = {STARTUP: None, LIVENESS: True, READINESS: False}[kind]
        self._successes = 0
        self._failures = 0

    @property
    def period_s(self) -> float:
        return float(max(1, self.spec.get("periodSeconds") or 10))

    @property
    def timeout_s(self) -> float:
        return float(max(1, self.spec.get("timeoutSeconds") or 1))

    @property
    def grace_s(self) -> "float | None":
        """terminationGracePeriodSeconds of the probe itself, which only a kill by this probe uses."""
        grace = self.spec.get("terminationGracePeriodSeconds")
        return None if grace is None else float(grace)

    def begin(self, now: float) -> None:
        self.in_flight = True
        self.due = now + self.period_s

    def result(self, ok: bool, now: float) -> bool:
        """Takes one result; True when the verdict changed."""
        self.in_flight = False
        self.due = max(self.due, now)
        if ok:
            self._successes += 1
            self._failures = 0
            needed, count = self.spec.get("successThreshold") or 1, self._successes
        else:
            self._failures += 1
            self._successes = 0
            needed, count = self.spec.get("failureThreshold") or 3, self._failures
        if count < needed or self.verdict is ok:
            return False
        self.verdict = ok
        return True


def probes_of(container: "dict[str, Any]", age_s: float, now: float) -> "list[Probe]":
    return [Probe(kind, container[f], age_s, now) for kind, f in FIELDS if container.get(f)]
