"""Metrics, traces and logs to an OpenTelemetry collector, over gRPC. Imported only where they are exported.

Why gRPC: grpcio is a dependency for etcd already, where OTLP over HTTP would bring another client. Readings, spans and log
records are ours; here they become OpenTelemetry's and are handed to its exporters. There are no instruments with callbacks:
the library would call them on a thread of its own, beside the loop that changes what they read, and it has no observable
histograms.

Everything is sent from threads; a collector that is away costs memory up to the queues' bounds (2,048 spans and log
records, what is more is dropped) and no time.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    HistogramDataPoint,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.metrics.export import Metric as MetricData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from observability.metric import COUNTER, HISTOGRAM
from observability.prometheus import Distribution, Labels, Reading
from observability.settings import Settings
from observability.tracing import CLIENT, CURRENT, INTERNAL, SERVER, Span

log = logging.getLogger(__name__)

SCOPE: Final = "cloudhub"
STOP_S: Final = 3.0
EXPORT_S: Final = 10.0
_KINDS: Final = {SERVER: SpanKind.SERVER, CLIENT: SpanKind.CLIENT, INTERNAL: SpanKind.INTERNAL}
_SEVERITIES: Final = (
    (logging.ERROR, SeverityNumber.ERROR),
    (logging.WARNING, SeverityNumber.WARN),
    (logging.INFO, SeverityNumber.INFO),
    (logging.NOTSET, SeverityNumber.DEBUG),
)
COMPLAIN_S: Final = 60.0
_LIBRARY: Final = "opentelemetry"
_OWN: Final = (_LIBRARY, "grpc", __name__)
"""Loggers of the export itself: told on stderr, and not exported, which could go round for ever."""


def resource_of(replica: str, version: str, named: bool) -> Resource:
    """Who speaks, by OpenTelemetry's conventions; OTEL_RESOURCE_ATTRIBUTES adds to it."""
    about = {"service.instance.id": replica, "service.version": version, "host.name": socket.gethostname()}
    if not named:
        about["service.name"] = SCOPE
    return Resource.create({**about, "process.pid": os.getpid()})


class Exporter:
    """See the module. `start`, `run` in a task (it sends the metrics), then `stop`; `span` takes those that have ended."""

    def __init__(self, settings: Settings, resource: Resource, snapshot: Callable[[], list[Reading]]) -> None:
        self._settings = settings
        self._resource = resource
        self._snapshot = snapshot
        self._began_ns = time.time_ns()
        where = settings.endpoint or None
        signals = settings.signals
        self._scope = InstrumentationScope(SCOPE, str(resource.attributes["service.version"]))
        self._metrics = OTLPMetricExporter(endpoint=where) if "metrics" in signals else None
        spans = OTLPSpanExporter(endpoint=where) if "traces" in signals else None
        logs = OTLPLogExporter(endpoint=where) if "logs" in signals else None
        self._exporters = [e for e in (self._metrics, spans, logs) if e is not None]
        self._spans = BatchSpanProcessor(spans) if spans is not None else None
        self._logs = LoggerProvider(resource, shutdown_on_exit=False) if logs is not None else None
        self._handler: LogHandler | None = None
        self._complaints = Complaints()
        if self._logs is not None and logs is not None:
            self._logs.add_log_record_processor(BatchLogRecordProcessor(logs))
            self._handler = LogHandler(self._logs)

    def start(self) -> None:
        """Log records are exported from now on."""
        self._complaints.hear(True)
        if self._handler is not None:
            logging.getLogger().addHandler(self._handler)

    async def run(self) -> None:
        """Sends the metrics, for ever. What could not be sent is not sent later: the next has it in."""
        while True:
            await asyncio.sleep(self._settings.interval_s)
            await self._send_metrics()

    async def stop(self) -> None:
        """Sends what waits, for STOP_S at most, and ends the export's threads."""
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
        data = self._data(self._snapshot(), time.time_ns())
        sending = asyncio.ensure_future(_aside(lambda: self._flush(data)))
        sent, _ = await asyncio.wait({sending}, timeout=STOP_S)
        if not sent:
            log.warning(
                "telemetry that waited is not sent: the collector did not take it within %.0f s", STOP_S
            )
            for exporter in self._exporters:  # ends their pauses between attempts, so that the threads end
                exporter.shutdown()
            sent, _ = await asyncio.wait({sending}, timeout=STOP_S)
        for ended in sent:
            if failure := ended.exception():
                log.warning("telemetry that waited is not sent: %s", failure)
        self._complaints.hear(False)

    def span(self, span: Span) -> None:
        """A span has ended: it is queued."""
        if self._spans is not None:
            self._spans.on_end(_readable(span, self._resource, self._scope))

    async def _send_metrics(self) -> None:
        if self._metrics is None:
            return
        metrics, data = self._metrics, self._data(self._snapshot(), time.time_ns())
        await _aside(lambda: metrics.export(data, EXPORT_S * 1000))  # it logs itself what goes wrong

    def _data(self, readings: Iterable[Reading], now_ns: int) -> MetricsData:
        made = [_metric(reading, self._began_ns, now_ns) for reading in readings if reading[1]]
        scope = ScopeMetrics(self._scope, made, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])

    def _flush(self, data: MetricsData) -> None:
        if self._metrics is not None:
            self._metrics.export(data, STOP_S * 1000)
        if self._spans is not None:
            self._spans.force_flush(int(STOP_S * 1000))
            self._spans.shutdown()  # type: ignore[no-untyped-call]
        if self._logs is not None:
            self._logs.force_flush(int(STOP_S * 1000))
            self._logs.shutdown()
        if self._metrics is not None:
            self._metrics.shutdown()


async def _aside(job: Callable[[], object]) -> None:
    """Runs `job` on a thread that nobody waits for at exit: a collector that does not answer may hold it for a while, where
    the loop's own threads would hold up the end of the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(failure: Exception | None) -> None:
        if done.done():
            return
        if failure is None:
            done.set_result(None)
        else:
            done.set_exception(failure)

    def work() -> None:
        failure: Exception | None = None
        try:
            job()
        except Exception as raised:
            failure = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, failure)

    threading.Thread(target=work, name="telemetry", daemon=True).start()
    await done


class Complaints(logging.Handler):
    """What the library says of exports that fail, which it does for each attempt: a line each COMPLAIN_S."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._now = now
        self._again_at = float("-inf")
        self._unsaid = 0

    def hear(self, on: bool) -> None:
        """From now on, or no more; others do not hear the library meanwhile."""
        library = logging.getLogger(_LIBRARY)
        library.propagate = not on
        if on:
            library.addHandler(self)
        else:
            library.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if self._now() < self._again_at:
            self._unsaid += 1
            return
        self._again_at = self._now() + COMPLAIN_S
        unsaid, self._unsaid = self._unsaid, 0
        more = f" ({unsaid} such lines are not shown)" if unsaid else ""
        log.warning("telemetry is not exported: %s%s", record.getMessage(), more)


class LogHandler(logging.Handler):
    """Hands log records on as OpenTelemetry's, with the trace that they belong to."""

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._provider = provider

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(_OWN):
            return
        span = CURRENT.get()
        severity = next(number for level, number in _SEVERITIES if record.levelno >= level)
        attributes: dict[str, Any] = dict(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[0] is not None:
            attributes["exception.type"] = record.exc_info[0].__name__
            attributes["exception.message"] = str(record.exc_info[1])
            attributes["exception.stacktrace"] = logging.Formatter().formatException(record.exc_info)
        self._provider.get_logger(record.name).emit(
            LogRecord(
                timestamp=int(record.created * 1e9),
                observed_timestamp=time.time_ns(),
                trace_id=int(span.context.trace_id, 16) if span is not None else 0,
                span_id=int(span.context.span_id, 16) if span is not None else 0,
                trace_flags=TraceFlags(TraceFlags.SAMPLED if span is not None else TraceFlags.DEFAULT),
                severity_text=record.levelname,
                severity_number=severity,
                body=record.getMessage(),
                attributes={name: _plain(value) for name, value in attributes.items()},
            )
        )


def _plain(value: Any) -> str | bool | int | float:
    return value if isinstance(value, str | bool | int | float) else json.dumps(value, default=str)


def _metric(reading: Reading, began_ns: int, now_ns: int) -> MetricData:
    metric, series = reading
    names = metric.label_names
    if metric.kind == HISTOGRAM:
        cumulative = AggregationTemporality.CUMULATIVE
        data: Any = HistogramData(
            [
                _distribution(metric.bounds, names, labels, value, began_ns, now_ns)
                for labels, value in series.items()
            ],
            cumulative,
        )
    else:
        points = list(_numbers(names, series.items(), began_ns, now_ns))
        data = (
            Sum(points, AggregationTemporality.CUMULATIVE, True) if metric.kind == COUNTER else Gauge(points)
        )
    return MetricData(metric.name, metric.help, metric.unit or "1", data)


def _numbers(
    names: tuple[str, ...], series: Iterable[tuple[Labels, Any]], began_ns: int, now_ns: int
) -> Iterator[NumberDataPoint]:
    for labels, value in series:
        yield NumberDataPoint(dict(zip(names, labels, strict=True)), began_ns, now_ns, value)


def _distribution(
    bounds: tuple[float, ...], names: tuple[str, ...], labels: Labels, value: Any, began_ns: int, now_ns: int
) -> HistogramDataPoint:
    assert isinstance(value, Distribution)
    # What was smallest and largest is not counted; the format has no "unknown" but not to set them.
    unknown: Any = None
    return HistogramDataPoint(
        dict(zip(names, labels, strict=True)),
        began_ns,
        now_ns,
        sum(value.counts),
        value.total,
        value.counts,
        bounds,
        unknown,
        unknown,
    )


def _readable(span: Span, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    flags = TraceFlags(TraceFlags.SAMPLED)
    trace_id = int(span.context.trace_id, 16)
    parent = SpanContext(trace_id, int(span.parent_id, 16), True, flags) if span.parent_id else None
    return ReadableSpan(
        span.name,
        SpanContext(trace_id, int(span.context.span_id, 16), False, flags),
        parent,
        resource,
        span.attributes,
        kind=_KINDS[span.kind],
        status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=scope,
    )
