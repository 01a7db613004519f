"""What is exported over OTLP, and where to: options of the hub and the variables that OpenTelemetry has for it. [pure]

Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ and .../protocol/exporter/. What
only concerns the exporters (headers, certificates, compression, time-outs, sizes of batches) they read by themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

RATIO_DEFAULT: Final = 0.001
INTERVAL_S_DEFAULT: Final = 60.0
INTERVAL_S_MIN: Final = 0.1
SIGNALS: Final = ("metrics", "traces", "logs")
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"


class TelemetryError(ValueError):
    """A setting of telemetry that cannot be used: it names the setting, and what would do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`signals`: those that are exported; none: nothing is, and nothing of it is loaded. `endpoint`: "" leaves it to the
    variables. `ratio`: of requests that are traced. `trusting`: a client's traceparent decides. `interval_s`: between
    exports of metrics. `named`: the environment names the service."""

    signals: frozenset[str] = frozenset()
    endpoint: str = ""
    ratio: float = RATIO_DEFAULT
    trusting: bool = True
    interval_s: float = INTERVAL_S_DEFAULT
    named: bool = False


def settings(endpoint: str, ratio: float | None, environ: Mapping[str, str]) -> Settings:
    """`endpoint`, `ratio`: options, which win. Raises TelemetryError."""
    if ratio is not None and not 0.0 <= ratio <= 1.0:
        raise TelemetryError(f"trace_ratio: {ratio:g} is not between 0 and 1")
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Settings()
    signals = frozenset(signal for signal in SIGNALS if _is_wanted(signal, endpoint, environ))
    if not signals:
        return Settings()
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise TelemetryError(
            f"otlp_endpoint: {endpoint!r} is no URL such as http://127.0.0.1:4317 or https://otel.example.com:4317"
        )
    for name in (
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        *(f"OTEL_EXPORTER_OTLP_{s.upper()}_PROTOCOL" for s in signals),
    ):
        if environ.get(name, "grpc") not in ("", "grpc"):
            raise TelemetryError(
                f"{name}={environ[name]}: this hub exports over gRPC alone; collectors take it on port 4317"
            )
    from_environ, trusting = _sampler(environ)
    if not 0.0 <= from_environ <= 1.0:
        raise TelemetryError(f"OTEL_TRACES_SAMPLER_ARG: {from_environ:g} is not between 0 and 1")
    interval_s = _number(environ, "OTEL_METRIC_EXPORT_INTERVAL", INTERVAL_S_DEFAULT * 1000) / 1000
    if interval_s < INTERVAL_S_MIN:
        raise TelemetryError(f"OTEL_METRIC_EXPORT_INTERVAL: {interval_s * 1000:g} ms are less than 100")
    named = bool(environ.get("OTEL_SERVICE_NAME")) or "service.name=" in environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    return Settings(signals, endpoint, from_environ if ratio is None else ratio, trusting, interval_s, named)


def _is_wanted(signal: str, endpoint: str, environ: Mapping[str, str]) -> bool:
    name = f"OTEL_{signal.upper()}_EXPORTER"
    exporter = environ.get(name, "") or "otlp"
    if exporter not in ("otlp", "none"):
        raise TelemetryError(f"{name}={exporter}: there are otlp and none")
    somewhere = (
        endpoint or environ.get(_ENDPOINT) or environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    )
    return exporter == "otlp" and bool(somewhere)


def _sampler(environ: Mapping[str, str]) -> tuple[float, bool]:
    """(ratio, whether a parent decides)."""
    name = environ.get("OTEL_TRACES_SAMPLER", "")
    kind = name.removeprefix("parentbased_")
    if not name:
        return RATIO_DEFAULT, True
    trusting = kind != name
    if kind == "always_on":
        return 1.0, trusting
    if kind == "always_off":
        return 0.0, trusting
    if kind == "traceidratio":
        return _number(environ, "OTEL_TRACES_SAMPLER_ARG", 1.0), trusting
    raise TelemetryError(
        f"OTEL_TRACES_SAMPLER={name}: there are always_on, always_off and traceidratio, and each with parentbased_ before it"
    )


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "")
    try:
        return float(text) if text else default
    except ValueError:
        raise TelemetryError(f"{name}: {text!r} is no number") from None
