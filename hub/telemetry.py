"""One replica's telemetry: what is exported over OTLP, and which of its requests are traced.

Off unless an endpoint is given, by option or by OpenTelemetry's variables; then nothing of it is imported.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from hub.config import ConfigError, HubConfig
from hub.deliveries import Deliveries
from observability.metrics import Metrics
from observability.settings import Settings, TelemetryError, settings
from observability.tracing import CLIENT, CURRENT, Span, Tracer

if TYPE_CHECKING:
    from collections.abc import Callable

    from hub.gateway import Gateway
    from observability.otlp import Exporter

MISSING: Final = (
    "telemetry: OpenTelemetry's exporter is missing; install it with: pip install 'cloudhub[otel]'"
)
SWEEP_S: Final = 10.0


class Telemetry:
    """`tracer`: None where nothing is traced."""

    def __init__(self, config: HubConfig, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        self._took = metrics.histogram("cloudhub.store.transaction.duration")
        self._system = "etcd" if config.etcd else "sqlite"
        self._exporter: Exporter | None = None
        self._deliveries: Deliveries | None = None
        self.tracer: Tracer | None = None

    @contextlib.asynccontextmanager
    async def exporting(self, version: str) -> AsyncIterator[None]:
        """Exports until it is left. Raises ConfigError."""
        try:
            chosen = settings(self._config.otlp_endpoint, self._config.trace_ratio, os.environ)
        except TelemetryError as wrong:
            raise ConfigError(str(wrong)) from wrong
        if not chosen.signals:
            yield
            return
        try:
            from observability.otlp import Exporter, resource_of  # with grpc it takes 13 MB
        except ModuleNotFoundError as missing:
            raise ConfigError(MISSING) from missing
        resource = resource_of(self._config.replica, version, chosen.named)
        exporter = self._exporter = Exporter(chosen, resource, self._metrics.snapshot)
        if "traces" in chosen.signals:
            self._trace(chosen, exporter.span)
        exporter.start()
        try:
            yield
        finally:
            await exporter.stop()

    async def run(self) -> None:
        """Sends metrics and ends spans that nobody answers, for ever."""
        async with asyncio.TaskGroup() as tasks:
            if self._exporter is not None:
                tasks.create_task(self._exporter.run(), name="export of metrics")
            tasks.create_task(self._sweep(), name="spans without an end")

    def attach(self, gateway: "Gateway") -> None:
        """Documents that the gateway sends are followed to their nodes."""
        if self.tracer is None:
            return

        def place(node: str) -> Mapping[str, Any]:
            peer = gateway.peers.get(node)
            owned = gateway.ownership.of(peer.slot) if peer is not None else None
            return {"cloudhub.slot": peer.slot, "cloudhub.epoch": owned.claim.epoch} if peer and owned else {}

        seconds = self._metrics.histogram("cloudhub.channel.acknowledgement")
        self._deliveries = Deliveries(self.tracer, place, seconds)
        gateway.trace(self._deliveries)

    def took(self, seconds: float, outcome: str) -> None:
        """A transaction of the store has ended (`Registry.took`)."""
        self._took.observe(seconds, outcome)
        request = CURRENT.get()
        if request is None or self.tracer is None:
            return
        began_ns = self.tracer.now_ns() - int(seconds * 1e9)
        attributes = {"db.system.name": self._system, "db.operation.name": "txn", "cloudhub.outcome": outcome}
        span = self.tracer.child(f"txn {self._system}", CLIENT, request.context, began_ns, attributes)
        self.tracer.end(span, "" if outcome == "committed" else outcome)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            if self._deliveries is not None:
                self._deliveries.sweep()

    def _trace(self, chosen: Settings, sink: "Callable[[Span], None]") -> None:
        self.tracer = tracer = Tracer(chosen.ratio, sink, trusting=chosen.trusting)
        self._metrics.figures(
            "cloudhub.trace",
            lambda: {
                "sampled": tracer.sampled,
                "limited": tracer.limited,
                "spans": tracer.spans,
                "deliveries": len(self._deliveries) if self._deliveries is not None else 0,
                "unacknowledged": self._deliveries.unacknowledged if self._deliveries is not None else 0,
            },
        )
