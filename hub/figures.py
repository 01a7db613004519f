"""The edge port's figures as metrics: read when somebody collects, so that counting stays an addition."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from hub.gateway import Gateway


class MetricsSink(Protocol):
    """As much of `observability.metrics.Metrics` as is used here. All names are the catalogue's."""

    def read(self, name: str, read: Callable[[], Mapping[tuple[str, ...], Any]]) -> None: ...

    def figures(self, group: str, read: Callable[[], Mapping[str, float]]) -> None: ...


def publish(gateway: "Gateway", metrics: MetricsSink) -> None:
    """Has `metrics` read the gateway from now on."""
    metrics.figures("cloudhub.edge", lambda: stats(gateway))
    metrics.read(
        "cloudhub.edge.closed",
        lambda: {(reason,): n for reason, n in gateway.port.counters.closed.items()},
    )
    metrics.read("cloudhub.channel.refused", gateway.refusals.counts.copy)


def stats(gateway: "Gateway") -> dict[str, float]:
    """The gateway's figures, by name."""
    counters = gateway.port.counters
    return {
        "connections": len(gateway.port),
        "handshaking": gateway.port.shaking,
        "handshakes_waiting": gateway.port.waiting,
        "nodes": len(gateway.peers),
        "waiting": len(gateway.routing),
        "redirected": gateway.routing.redirected,
        "backlog_bytes": gateway.port.backlog_bytes,
        "accepted": counters.accepted,
        "handshakes": counters.handshakes,
        "bytes_in": counters.bytes_in,
        "bytes_out": counters.bytes_out,
        "refused": gateway.refusals.total + counters.refused,
        "throttled": gateway.throttle.pauses,
        "throttled_s": gateway.throttle.paused_s,
        "joined": gateway.joining.granted,
        "joins_refused": gateway.joining.refused,
        "joins_limited": gateway.joining.limited,
        "joins_pending": gateway.joining.pending,
        "upstream_jobs": gateway.upstream.jobs,
        "upstream_transactions": gateway.upstream.transactions,
        "upstream_retries": gateway.upstream.retries,
        **gateway.slots.stats(),
    }
