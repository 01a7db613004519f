"""Counters, gauges and histograms of one process: plain integers on hot paths, read when somebody collects.

Adding to an OpenTelemetry counter costs 7 µs, adding to a Python integer 0.05. So code increments integers; whoever
collects (the Prometheus endpoint, `observability.otlp`) takes a `snapshot` of them and works on that.

Invariants: only what the catalogue has is exported, by the names, units and labels that it says there. A family holds at
most `SERIES_MAX` series; what would be one more is counted in a series whose labels are all `other`, so that hostile
labels cannot fill the memory. `snapshot` runs on the event loop, since it reads what the loop changes; rendering and
sending need not.
"""

import bisect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from observability.catalogue import CATALOGUE
from observability.metric import COUNTER, GAUGE, HISTOGRAM, OTHER, Metric
from observability.prometheus import Distribution, Labels, Reading, exposition

__all__ = ["OTHER", "SERIES_MAX", "Family", "Histogram", "Metrics", "Series"]

log = logging.getLogger(__name__)

SERIES_MAX: Final = 1000
Readings = Mapping[Labels, float]


class Series:
    """One number. `value` may be changed directly: that is the hot path."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, amount: float = 1) -> None:
        self.value += amount


class Family:
    """The series of one metric, by label values."""

    def __init__(self, metric: Metric) -> None:
        self.name = metric.name
        self.label_names = metric.label_names
        self._series: dict[Labels, Series] = {}

    def series(self, *labels: str) -> Series:
        """The series with these label values, in the order of the label names. Keep it where it is used often."""
        found = self._series.get(labels)
        if found is not None:
            return found
        if len(labels) != len(self.label_names):
            raise ValueError(f"metric {self.name} has labels {self.label_names}, got {labels}")
        if len(self._series) >= SERIES_MAX:
            labels = (OTHER,) * len(labels)
        return self._series.setdefault(labels, Series())

    def add(self, *labels: str, amount: float = 1) -> None:
        self.series(*labels).value += amount

    def readings(self) -> Readings:
        return {labels: series.value for labels, series in self._series.items()}


class Histogram:
    """How often something took how long, by label values: some 0.4 µs for each."""

    def __init__(self, metric: Metric) -> None:
        self.name = metric.name
        self.label_names = metric.label_names
        self._bounds = metric.bounds
        self._series: dict[Labels, tuple[list[int], Series]] = {}

    def observe(self, value: float, *labels: str) -> None:
        found = self._series.get(labels)
        if found is None:
            found = self._made(labels)
        found[0][bisect.bisect_left(self._bounds, value)] += 1
        found[1].value += value

    def _made(self, labels: Labels) -> tuple[list[int], Series]:
        if len(labels) != len(self.label_names):
            raise ValueError(f"metric {self.name} has labels {self.label_names}, got {labels}")
        if len(self._series) >= SERIES_MAX:
            labels = (OTHER,) * len(labels)
        return self._series.setdefault(labels, ([0] * (len(self._bounds) + 1), Series()))

    def readings(self) -> Mapping[Labels, Distribution]:
        return {labels: Distribution(counts, total.value) for labels, (counts, total) in self._series.items()}


class Metrics:
    """All metrics of one hub process. Whatever is registered has to be in the catalogue."""

    def __init__(self, catalogue: Iterable[Metric] = CATALOGUE) -> None:
        self._catalogue = {metric.name: metric for metric in catalogue}
        self._groups: dict[str, dict[str, Metric]] = {}
        for metric in self._catalogue.values():
            self._groups.setdefault(metric.group, {})[metric.figure] = metric
        self._readers: dict[str, Callable[[], Iterator[Reading]]] = {}
        self._unknown: set[str] = set()

    def counter(self, name: str) -> Family:
        """A family of sums that only grow."""
        family = Family(self._metric(name, COUNTER))
        self._add(name, self._of(name, family.readings))
        return family

    def gauge(self, name: str) -> Family:
        """A family of values that go up and down."""
        family = Family(self._metric(name, GAUGE))
        self._add(name, self._of(name, family.readings))
        return family

    def histogram(self, name: str) -> Histogram:
        histogram = Histogram(self._metric(name, HISTOGRAM))
        self._add(name, self._of(name, histogram.readings))
        return histogram

    def read(self, name: str, read: Callable[[], Mapping[Labels, "float | Distribution"]]) -> None:
        """A metric that is kept elsewhere: `{(label values): number}`, `()` without labels. Read on the event loop."""
        self._metric(name)
        self._add(name, self._of(name, read))

    def figures(self, group: str, read: Callable[[], Mapping[str, float]]) -> None:
        """Metrics without labels that are kept together elsewhere, by the names that they have in the catalogue's `group`. A
        figure that it lacks is left out, and said once."""
        known = self._groups[group]

        def readings() -> Iterator[Reading]:
            for figure, value in read().items():
                metric = known.get(figure)
                if metric is not None:
                    yield metric, {(): value}
                elif (name := f"{group}.{figure}") not in self._unknown:
                    self._unknown.add(name)
                    log.error("%s is not exported: add it to observability/catalogue.py", name)

        self._add(group, readings)

    def snapshot(self) -> list[Reading]:
        """All that there is at this moment. On the event loop; some 100 µs."""
        return [reading for read in self._readers.values() for reading in read()]

    @property
    def undocumented(self) -> frozenset[str]:
        """Figures that were read and are not in the catalogue."""
        return frozenset(self._unknown)

    def prometheus(self) -> bytes:
        """The text exposition of everything; its type is CONTENT_TYPE. `snapshot` and `exposition` where the second half is to
        run elsewhere."""
        return exposition(self.snapshot())

    def _metric(self, name: str, kind: str = "") -> Metric:
        metric = self._catalogue.get(name)
        if metric is None:
            raise ValueError(f"there is no metric {name}: add it to observability/catalogue.py")
        if kind and metric.kind != kind:
            raise ValueError(f"the metric {name} is a {metric.kind}, not a {kind}")
        return metric

    def _add(self, name: str, read: Callable[[], Iterator[Reading]]) -> None:
        if name in self._readers:
            raise ValueError(f"the metric {name} exists already; share its Family instead")
        self._readers[name] = read

    def _of(
        self, name: str, read: Callable[[], Mapping[Labels, "float | Distribution"]]
    ) -> Callable[[], Iterator[Reading]]:
        metric = self._catalogue[name]

        def readings() -> Iterator[Reading]:
            found = read()
            yield metric, found if len(found) <= SERIES_MAX + 1 else dict(list(found.items())[:SERIES_MAX])

        return readings
