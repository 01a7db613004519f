"""A real OpenTelemetry Collector: its OTLP receiver on a loopback port, what it gets written to a file.

    with Collector() as collector:
        ... OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint ...
        collector.spans(), collector.metrics(), collector.logs()

Blocking on purpose. `make deps-ci` builds it of the published modules (`tests/tools/otelcol`).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.servers.program import Program


@dataclass(frozen=True)
class SpanSeen:
    """A span as the collector has it. `attributes`: its own, `resource`: of who made it."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    kind: int
    error: str
    attributes: dict[str, Any]
    resource: dict[str, Any]


class Collector(Program):
    """See the module."""

    name = "otelcol"

    def argv(self) -> list[str]:
        self.endpoint = f"http://127.0.0.1:{self.port}"
        sinks = {
            f"file/{signal}": {"path": str(self.root / signal)} for signal in ("metrics", "traces", "logs")
        }
        config = {
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": f"127.0.0.1:{self.port}"}}}},
            "exporters": sinks,
            "service": {
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {
                    signal: {"receivers": ["otlp"], "exporters": [f"file/{signal}"]}
                    for signal in ("metrics", "traces", "logs")
                },
            },
        }
        (self.root / "config.yaml").write_text(json.dumps(config))
        return ["--config", f"file:{self.root}/config.yaml"]

    def spans(self) -> list[SpanSeen]:
        """All that have come so far."""
        found: list[SpanSeen] = []
        for one in self._read("traces"):
            for group in one["resourceSpans"]:
                resource = _attributes(group["resource"])
                for scope in group["scopeSpans"]:
                    found += [_span(span, resource) for span in scope["spans"]]
        return found

    def metrics(self) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """The last of each name: (the metric as JSON, its resource)."""
        found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        for one in self._read("metrics"):
            for group in one["resourceMetrics"]:
                resource = _attributes(group["resource"])
                for scope in group["scopeMetrics"]:
                    found |= {metric["name"]: (metric, resource) for metric in scope["metrics"]}
        return found

    def logs(self) -> list[dict[str, Any]]:
        """All records, `attributes` and `resource` as plain dicts, `logger` beside."""
        found: list[dict[str, Any]] = []
        for one in self._read("logs"):
            for group in one["resourceLogs"]:
                resource = _attributes(group["resource"])
                for scope in group["scopeLogs"]:
                    for record in scope["logRecords"]:
                        own = {"attributes": _attributes(record), "resource": resource}
                        found.append({**record, **own, "logger": scope["scope"]["name"]})
        return found

    def _read(self, signal: str) -> Iterator[dict[str, Any]]:
        path = self.root / signal
        if path.exists():
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):  # the last one may still be being written
                    yield json.loads(line)


def _span(span: dict[str, Any], resource: dict[str, Any]) -> SpanSeen:
    return SpanSeen(
        span["name"],
        span["traceId"],
        span["spanId"],
        span.get("parentSpanId", ""),
        int(span["startTimeUnixNano"]),
        int(span["endTimeUnixNano"]),
        span["kind"],
        span.get("status", {}).get("message", ""),
        _attributes(span),
        resource,
    )


def _attributes(of: dict[str, Any]) -> dict[str, Any]:
    return {a["key"]: next(iter(a["value"].values())) for a in of.get("attributes", ())}
