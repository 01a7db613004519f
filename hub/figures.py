"""The edge port's figures as metrics: read when somebody collects, so that counting stays an addition."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from hub.gateway import Gateway


class MetricsSink(Protocol):
    """As much of `observability.metrics.Metrics` as is used here."""

    def gauge_of(
        self,
        name: str,
        help: str,
        read: Callable[[], Mapping[tuple[str, ...], float]],
        labels: Sequence[str] = (),
        unit: str = "",
    ) -> None: ...


def publish(gateway: "Gateway", metrics: MetricsSink) -> None:
    """Has `metrics` read the gateway from now on."""
    metrics.gauge_of(
        "cloudhub_edge",
        "Figures of the edge port, by name.",
        lambda: {(name,): value for name, value in gateway.stats().items()},
        ("figure",),
    )
    metrics.gauge_of(
        "cloudhub_edge_closed",
        "Edge connections closed, by reason.",
        lambda: {(reason,): n for reason, n in gateway.port.counters.closed.items()},
        ("reason",),
    )
