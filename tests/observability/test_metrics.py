import time

import pytest

from observability.metrics import OTHER, SERIES_MAX, Metrics


def test_counts_and_gauges_are_exported_as_prometheus_text() -> None:
    metrics = Metrics()
    requests = metrics.counter("requests", "Requests answered.", ("verb",))
    requests.add("get")
    requests.series("get").add(2)
    metrics.gauge("temperature", "Degrees.").series().value = -3
    metrics.gauge_of("queue", "Queued items.", lambda: {("a",): 5}, ("name",))
    text = metrics.prometheus().decode()
    assert 'requests_total{verb="get"} 3.0' in text
    assert "# HELP requests_total Requests answered." in text
    assert "temperature -3.0" in text
    assert 'queue{name="a"} 5.0' in text
    metrics.close()


def test_two_processes_worth_of_metrics_do_not_share_state() -> None:
    first, second = Metrics(), Metrics()
    first.counter("requests", "Requests.").add()
    second.counter("requests", "Requests.")
    assert "requests_total 1.0" not in second.prometheus().decode()
    first.close()
    second.close()


def test_labels_without_end_are_counted_together() -> None:
    metrics = Metrics()
    family = metrics.counter("requests", "Requests.", ("path",))
    for i in range(SERIES_MAX + 50):
        family.add(str(i))
    readings = [(labels["path"], value) for labels, value in family.readings()]
    assert len(readings) == SERIES_MAX + 1
    assert (OTHER, 50) in readings
    metrics.close()


def test_a_name_is_given_once_and_labels_must_fit() -> None:
    metrics = Metrics()
    family = metrics.counter("requests", "Requests.", ("verb",))
    with pytest.raises(ValueError, match="exists already"):
        metrics.gauge("requests", "Requests.")
    with pytest.raises(ValueError, match="has labels"):
        family.add("get", "200")
    metrics.close()


def test_counting_costs_far_less_than_an_opentelemetry_call() -> None:
    metrics = Metrics()
    series = metrics.counter("requests", "Requests.", ("verb",)).series("get")
    began = time.process_time()
    for _ in range(100_000):
        series.value += 1
    assert (time.process_time() - began) / 100_000 < 2e-6
    metrics.close()
