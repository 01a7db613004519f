"""The text that Prometheus scrapes (exposition format 0.0.4). [pure]

Source: https://prometheus.io/docs/instrumenting/exposition_formats/. Written here rather than by a client library, which
would hold a second registry beside ours and 4 MB of every replica.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from observability.metric import HISTOGRAM, Metric, prometheus_label

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
Labels = tuple[str, ...]


class Distribution:
    """A histogram's series at one moment. `counts`: by bucket, not cumulative, the last one is what is beyond all bounds."""

    __slots__ = ("counts", "total")

    def __init__(self, counts: Sequence[int], total: float) -> None:
        self.counts = tuple(counts)
        self.total = total


Reading = tuple[Metric, Mapping[Labels, "float | Distribution"]]


def exposition(readings: Iterable[Reading]) -> bytes:
    """All families, in the order of their names; those without a series are left out."""
    lines: list[str] = []
    for metric, series in sorted(readings, key=lambda reading: reading[0].prometheus):
        if not series:
            continue
        name = metric.prometheus
        lines.append(f"# HELP {name} {_escape_help(metric.help)}")
        lines.append(f"# TYPE {name} {metric.kind}")
        names = [prometheus_label(label) for label in metric.label_names]
        for values, value in series.items():
            pairs = [f'{n}="{_escape(v)}"' for n, v in zip(names, values, strict=True)]
            if isinstance(value, Distribution):
                _histogram(name, pairs, metric, value, lines)
            else:
                lines.append(f"{name}{_braces(pairs)} {_number(value)}")
    return ("\n".join(lines) + "\n").encode() if lines else b""


def _histogram(name: str, pairs: list[str], metric: Metric, value: Distribution, lines: list[str]) -> None:
    assert metric.kind == HISTOGRAM
    so_far = 0
    bounds = [*map(_number, metric.bounds), "+Inf"]
    for bound, count in zip(bounds, value.counts, strict=True):
        so_far += count
        bucket = _braces([*pairs, f'le="{bound}"'])
        lines.append(f"{name}_bucket{bucket} {so_far}")
    lines.append(f"{name}_sum{_braces(pairs)} {_number(value.total)}")
    lines.append(f"{name}_count{_braces(pairs)} {so_far}")


def _braces(pairs: list[str]) -> str:
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _number(value: float) -> str:
    """Whole numbers without a fraction, also large ones."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
