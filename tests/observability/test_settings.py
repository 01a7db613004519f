"""Options and OpenTelemetry's variables together."""

import pytest

from observability.settings import RATIO_DEFAULT, Settings, TelemetryError, settings

AT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}
ALL = frozenset(("metrics", "traces", "logs"))


def test_nothing_is_exported_unless_somebody_says_where_to() -> None:
    assert settings("", None, {}) == settings("", 1.0, {"OTEL_TRACES_SAMPLER": "always_on"}) == Settings()
    assert settings("http://c:4317", None, AT | {"OTEL_SDK_DISABLED": "true"}) == Settings()


def test_the_option_or_the_variables_switch_signals_on() -> None:
    assert settings("https://c:4317", None, {}) == Settings(ALL, "https://c:4317", RATIO_DEFAULT)
    assert settings("", None, AT).signals == ALL and settings("", None, AT).endpoint == ""
    one = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}
    assert settings("", None, one).signals == {"traces"}
    assert settings("", None, AT | {"OTEL_LOGS_EXPORTER": "none"}).signals == {"metrics", "traces"}


@pytest.mark.parametrize(
    ("variables", "ratio", "trusting"),
    [
        ({}, RATIO_DEFAULT, True),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, 1.0, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, 0.0, True),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, 0.25, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}, 0.5, True),
    ],
)
def test_samplers_are_those_of_the_specification(
    variables: dict[str, str], ratio: float, trusting: bool
) -> None:
    found = settings("", None, AT | variables)
    assert (found.ratio, found.trusting) == (ratio, trusting)
    assert settings("", 0.125, AT | variables).ratio == 0.125


@pytest.mark.parametrize(
    ("endpoint", "ratio", "variables", "said"),
    [
        ("collector:4317", None, {}, "otlp_endpoint: 'collector:4317' is no URL such as"),
        ("http://c", 1.5, {}, "trace_ratio: 1.5 is not between 0 and 1"),
        ("", -0.5, {}, "trace_ratio: -0.5 is not between 0 and 1"),
        (
            "",
            None,
            AT | {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "7"},
            "OTEL_TRACES_SAMPLER_ARG: 7 is not between",
        ),
        ("", None, AT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "exports over gRPC alone"),
        ("", None, AT | {"OTEL_METRICS_EXPORTER": "prometheus"}, "there are otlp and none"),
        ("", None, AT | {"OTEL_TRACES_SAMPLER": "jaeger_remote"}, "there are always_on, always_off"),
        ("", None, AT | {"OTEL_METRIC_EXPORT_INTERVAL": "soon"}, "'soon' is no number"),
        ("", None, AT | {"OTEL_METRIC_EXPORT_INTERVAL": "10"}, "10 ms are less than 100"),
    ],
)
def test_what_cannot_be_used_is_named_with_what_would_do(
    endpoint: str, ratio: float | None, variables: dict[str, str], said: str
) -> None:
    with pytest.raises(TelemetryError, match=said):
        settings(endpoint, ratio, variables)
