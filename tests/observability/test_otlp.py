"""The export where things go wrong; that it arrives is shown with a real collector (`tests/e2e/test_telemetry.py`)."""

import asyncio
import logging
import threading
import time

import pytest

from observability import otlp
from observability.metric import COUNTER, Metric
from observability.metrics import Metrics
from observability.otlp import Complaints, Exporter, LogHandler, resource_of
from observability.settings import settings
from observability.tracing import Tracer
from tests.ports import free_ports

ROWS = (Metric("a.requests", COUNTER, "Requests."),)


async def test_a_collector_that_is_away_is_told_in_a_line_and_holds_up_a_stop_no_longer_than_the_bound(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(otlp, "STOP_S", 0.3)
    before = set(threading.enumerate())
    (port,) = free_ports(1)
    chosen = settings(f"http://127.0.0.1:{port}", 1.0, {"OTEL_METRIC_EXPORT_INTERVAL": "100"})
    metrics = Metrics(ROWS)
    metrics.counter("a.requests").add()
    exporter = Exporter(chosen, resource_of("hub-1", "1", False), metrics.snapshot)
    exporter.start()
    running = asyncio.create_task(exporter.run())
    tracer = Tracer(1.0, exporter.span)
    for _ in range(50):
        span = tracer.begin("POST", "", {"a": 1})
        assert span is not None
        tracer.end(span)
    logging.getLogger("hub.somewhere").warning("a record")

    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.name == "observability.otlp"]

    async with asyncio.timeout(60):
        while not said():
            await asyncio.sleep(0.05)
    running.cancel()
    began = time.monotonic()
    await exporter.stop()
    assert time.monotonic() - began < 10
    assert len(said()) == 2, said()
    assert said()[0].startswith("telemetry is not exported: ") and "within 0 s" in said()[1]
    root, library = logging.getLogger(), logging.getLogger("opentelemetry")
    assert not [h for h in (*root.handlers, *library.handlers) if isinstance(h, LogHandler | Complaints)]
    assert library.propagate
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), f"{thread.name} goes on"


def test_complaints_come_at_intervals_with_the_number_that_was_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    complaints = Complaints(lambda: now[0])
    record = logging.LogRecord("opentelemetry.x", logging.ERROR, "", 1, "refused", (), None)
    for at in (0.0, 1.0, 2.0, otlp.COMPLAIN_S):
        now[0] = at
        complaints.emit(record)
    assert [r.getMessage() for r in caplog.records] == [
        "telemetry is not exported: refused",
        "telemetry is not exported: refused (2 such lines are not shown)",
    ]


def test_the_service_is_named_by_the_environment_or_is_cloudhub(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resource_of("hub-1", "1.2", False).attributes["service.name"] == "cloudhub"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "edge")
    found = resource_of("hub-1", "1.2", True).attributes
    assert (found["service.name"], found["service.instance.id"]) == ("edge", "hub-1")
