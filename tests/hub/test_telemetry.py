"""What a replica says when telemetry cannot be switched on, and that it is off by default."""

import sys
from pathlib import Path

import pytest

from hub.config import ConfigError, HubConfig, load
from hub.telemetry import Telemetry
from observability.metrics import Metrics


async def test_without_the_package_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "observability.otlp", None)
    telemetry = Telemetry(HubConfig(str(tmp_path), otlp_endpoint="http://127.0.0.1:1"), Metrics())
    with pytest.raises(ConfigError, match=r"pip install 'cloudhub\[otel\]'"):
        async with telemetry.exporting("1"):
            pass


async def test_variables_that_cannot_be_used_are_refused_and_none_means_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)
    telemetry = Telemetry(HubConfig(str(tmp_path)), Metrics())
    async with telemetry.exporting("1"):
        assert telemetry.tracer is None
        telemetry.took(0.001, "committed")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(ConfigError, match="OTEL_TRACES_EXPORTER=zipkin: there are otlp and none"):
        async with telemetry.exporting("1"):
            pass


def test_options_are_checked_with_all_others() -> None:
    with pytest.raises(ConfigError, match="is no URL such as"):
        load(None, {"otlp_endpoint": "collector:4317"})
    with pytest.raises(ConfigError, match="trace_ratio: 2 is not between 0 and 1"):
        load(None, {"otlp_endpoint": "http://c:4317", "trace_ratio": 2.0})
    assert load(None, {"trace_ratio": 0.5}).trace_ratio == 0.5
