"""What a metric is: its name, kind, unit, and the label values that it may have. [pure]

Names are OpenTelemetry's (dots, the unit apart); `Metric.prometheus` is the name that the specification's compatibility
rules make of it ("Prometheus and OpenMetrics Compatibility"): dots become underscores, the unit a suffix, and a counter
ends in `_total`. So what a collector writes on from OTLP and what is scraped bear the same names.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"
SECONDS: Final = "s"
BYTES: Final = "By"
UNIX_TIME: Final = "s"
_SUFFIXES: Final = {SECONDS: "_seconds", BYTES: "_bytes"}
LABEL_CHARS_MAX: Final = 80
OTHER: Final = "other"
"""The value of all labels of the series in which everything is counted that came after the bound."""


@dataclass(frozen=True, slots=True)
class Label:
    """`values`: all that there are, or a pattern that they match (`words` then says where they come from). Never the name of
    a node, a pod or a user: there would be a series for each."""

    name: str
    values: Collection[str] = ()
    pattern: str = ""
    words: str = ""

    def allows(self, value: str) -> bool:
        """May a series have it?"""
        if value == OTHER:
            return True
        if self.pattern:
            return len(value) <= LABEL_CHARS_MAX and re.fullmatch(self.pattern, value) is not None
        return value in self.values


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the catalogue. `key`: what the figure is called where it is counted, when not as the last part of the name.
    `bounds`: of a histogram, upper ones, ascending. `when`: which hubs have it, empty for all."""

    name: str
    kind: str
    help: str
    unit: str = ""
    labels: tuple[Label, ...] = ()
    key: str = ""
    bounds: tuple[float, ...] = ()
    when: str = ""

    @property
    def prometheus(self) -> str:
        """The name of it in Prometheus; the series of a histogram add `_bucket`, `_sum` and `_count`."""
        suffix = _SUFFIXES.get(self.unit, "")
        return self.name.replace(".", "_") + suffix + ("_total" if self.kind == COUNTER else "")

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @property
    def group(self) -> str:
        """The name without its last part."""
        return self.name.rpartition(".")[0]

    @property
    def figure(self) -> str:
        """What it is called among the figures of its group."""
        return self.key or self.name.rpartition(".")[2]


def prometheus_label(name: str) -> str:
    """As Prometheus spells the name of a label."""
    return name.replace(".", "_")
