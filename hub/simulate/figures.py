"""Numbers that several processes count and one adds up. [pure]"""

import math
from collections import Counter
from typing import Any, Final

STEP: Final = math.log(1.04)
"""A bucket of a histogram is 4% wide, and so is the error of what is read from it."""
SMALLEST: Final = 1e-7


class Histogram:
    """Values above 0, of any size, in a few hundred buckets."""

    __slots__ = ("_buckets", "count", "largest", "total")

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.total = 0.0
        self.largest = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        if value > self.largest:
            self.largest = value
        bucket = int(math.log(value / SMALLEST) / STEP) if value > SMALLEST else 0
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    def quantile(self, share: float) -> float:
        """The value below which `share` (0 to 1) of all lie, to 4%; 0.0 where there are none."""
        left = share * self.count
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                return min(SMALLEST * math.exp((bucket + 1) * STEP), self.largest)
        return self.largest

    def merge(self, other: "Histogram") -> None:
        self._buckets.update(other._buckets)
        self.count += other.count
        self.total += other.total
        self.largest = max(self.largest, other.largest)

    def as_json(self) -> dict[str, Any]:
        """For `of_json` in another process."""
        return {
            "count": self.count,
            "total": self.total,
            "largest": self.largest,
            "buckets": sorted(self._buckets.items()),
        }

    @classmethod
    def of_json(cls, fields: dict[str, Any]) -> "Histogram":
        made = cls()
        made.count, made.total, made.largest = fields["count"], fields["total"], fields["largest"]
        made._buckets.update(dict(fields["buckets"]))
        return made

    def summary(self) -> dict[str, Any]:
        """For people and their programs; in the unit of the values."""
        return {
            "count": self.count,
            "mean": self.total / self.count if self.count else 0.0,
            "p50": self.quantile(0.5),
            "p90": self.quantile(0.9),
            "p99": self.quantile(0.99),
            "max": self.largest,
        }


class Tally:
    """Counts by name, and histograms of seconds by name."""

    __slots__ = ("counts", "times")

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.times: dict[str, Histogram] = {}

    def time(self, name: str, seconds: float) -> None:
        histogram = self.times.get(name)
        if histogram is None:
            histogram = self.times[name] = Histogram()
        histogram.add(seconds)

    def count(self, name: str) -> int:
        """How many times of this name there are."""
        return self.times[name].count if name in self.times else 0

    def merge(self, other: "Tally") -> None:
        self.counts.update(other.counts)
        for name, histogram in other.times.items():
            self.times.setdefault(name, Histogram()).merge(histogram)

    def as_json(self) -> dict[str, Any]:
        """For `of_json` in another process."""
        return {
            "counts": dict(self.counts),
            "times": {name: histogram.as_json() for name, histogram in self.times.items()},
        }

    @classmethod
    def of_json(cls, fields: dict[str, Any]) -> "Tally":
        made = cls()
        made.counts.update(fields["counts"])
        made.times = {name: Histogram.of_json(value) for name, value in fields["times"].items()}
        return made
