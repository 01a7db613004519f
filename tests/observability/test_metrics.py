import time

import pytest

from observability.metric import BYTES, COUNTER, GAUGE, HISTOGRAM, SECONDS, Label, Metric
from observability.metrics import OTHER, SERIES_MAX, Metrics
from tests.observability.scraped import figures, samples

VERB = Label("verb", ("get", "put"))
ROWS = (
    Metric("a.requests", COUNTER, "Requests answered.", labels=(VERB,)),
    Metric("a.temperature", GAUGE, "Degrees."),
    Metric("a.queue", GAUGE, "Queued items.", labels=(Label("name", pattern="[a-z]+"),)),
    Metric("a.sent", COUNTER, "Bytes sent.", BYTES, key="bytes_out"),
    Metric("a.wait", HISTOGRAM, 'How "long"\nit took.', SECONDS, (VERB,), bounds=(0.1, 1.0)),
)


def test_counts_and_gauges_are_exported_as_prometheus_text() -> None:
    metrics = Metrics(ROWS)
    requests = metrics.counter("a.requests")
    requests.add("get")
    requests.series("get").add(2)
    metrics.gauge("a.temperature").series().value = -3.5
    metrics.read("a.queue", lambda: {("a",): 5})
    metrics.figures("a", lambda: {"bytes_out": 1 << 60})
    assert metrics.prometheus().decode() == (
        "# HELP a_queue Queued items.\n# TYPE a_queue gauge\n"
        'a_queue{name="a"} 5\n'
        "# HELP a_requests_total Requests answered.\n# TYPE a_requests_total counter\n"
        'a_requests_total{verb="get"} 3\n'
        "# HELP a_sent_bytes_total Bytes sent.\n# TYPE a_sent_bytes_total counter\n"
        f"a_sent_bytes_total {1 << 60}\n"
        "# HELP a_temperature Degrees.\n# TYPE a_temperature gauge\n"
        "a_temperature -3.5\n"
    )


def test_a_histogram_has_cumulative_buckets_a_sum_and_a_count() -> None:
    metrics = Metrics(ROWS)
    wait = metrics.histogram("a.wait")
    for seconds in (0.1, 0.5, 7.0):
        wait.observe(seconds, "get")
    text = metrics.prometheus().decode()
    assert '# HELP a_wait_seconds How "long"\\nit took.\n' in text
    assert samples(text) == [
        ("a_wait_seconds_bucket", {"verb": "get", "le": "0.1"}, 1),
        ("a_wait_seconds_bucket", {"verb": "get", "le": "1"}, 2),
        ("a_wait_seconds_bucket", {"verb": "get", "le": "+Inf"}, 3),
        ("a_wait_seconds_sum", {"verb": "get"}, 7.6),
        ("a_wait_seconds_count", {"verb": "get"}, 3),
    ]


def test_two_processes_worth_of_metrics_do_not_share_state() -> None:
    first, second = Metrics(ROWS), Metrics(ROWS)
    first.counter("a.requests").add("get")
    second.counter("a.requests")
    assert "a_requests_total" in first.prometheus().decode() and not second.prometheus()


def test_labels_without_end_are_counted_together() -> None:
    metrics = Metrics(ROWS)
    family, wait = metrics.counter("a.requests"), metrics.histogram("a.wait")
    for i in range(SERIES_MAX + 50):
        family.add(str(i))
        wait.observe(0.1, str(i))
    counted = {labels[0]: value for labels, value in family.readings().items()}
    assert len(counted) == SERIES_MAX + 1 and counted[OTHER] == 50
    assert len(wait.readings()) == SERIES_MAX + 1 and sum(wait.readings()[(OTHER,)].counts) == 50
    assert f'a_requests_total{{verb="{OTHER}"}} 50\n' in metrics.prometheus().decode()


def test_a_name_is_in_the_catalogue_given_once_and_its_labels_fit() -> None:
    metrics = Metrics(ROWS)
    family = metrics.counter("a.requests")
    with pytest.raises(ValueError, match="exists already"):
        metrics.counter("a.requests")
    with pytest.raises(ValueError, match="has labels"):
        family.add("get", "200")
    with pytest.raises(ValueError, match=r"no metric a\.others: add it to observability/catalogue\.py"):
        metrics.gauge("a.others")
    with pytest.raises(ValueError, match="is a gauge, not a counter"):
        metrics.counter("a.temperature")


def test_a_figure_that_the_catalogue_lacks_is_left_out_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics(ROWS)
    metrics.figures("a", lambda: {"temperature": 3.0, "new": 1.0})
    for _ in range(2):
        assert figures(metrics.prometheus().decode(), "a") == {}
    assert metrics.undocumented == {"a.new"}
    assert [r.getMessage() for r in caplog.records] == [
        "a.new is not exported: add it to observability/catalogue.py"
    ]


def test_counting_costs_far_less_than_an_opentelemetry_call() -> None:
    metrics = Metrics(ROWS)
    series, wait = metrics.counter("a.requests").series("get"), metrics.histogram("a.wait")
    began = time.process_time()
    for _ in range(100_000):
        series.value += 1
    assert (time.process_time() - began) / 100_000 < 2e-6
    began = time.process_time()
    for _ in range(100_000):
        wait.observe(0.5, "get")
    assert (time.process_time() - began) / 100_000 < 5e-6
