"""`make bench-linear`: does cost grow as the fleet does? The same figures at several sizes, fitted, in one plot.

    make bench-linear                                 # 1,000 to 100,000 nodes of one replica, 10 pods each
    make bench-linear SIZES=1000,3000,10000

Figures are those of one replica of eight (`tests.scale.replica`) that has as many nodes, with its sessions in memory. A size
that was measured is not measured again. Each figure is fitted with y = a + b n, residuals relative, so that a small size
weighs as much as a large one; `exponent` is the slope of the logarithms: 1 is linear, 2 quadratic.
"""

import argparse
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.simulate.report import machine
from tests.e2e.cluster import CACHE, ROOT
from tests.scale.png import BLACK, BLUE, GREY, RED, Picture, text_width
from tests.scale.replica import Size
from tests.scale.share import REPLICAS, SECONDS, share
from tests.scale.steps import Steps, say

SIZES = "1000,3000,10000,30000,100000"
PODS_EACH = 10
WIDTH, HEIGHT, COLUMNS = 480, 340, 3
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 60, 40


@dataclass(frozen=True)
class Figure:
    """Something that should grow with the nodes. `of`: of one replica's report."""

    name: str
    unit: str
    of: Callable[[dict[str, Any]], float]


def _memory(one: dict[str, Any]) -> float:
    phases = one["phases"]
    links = one["link bytes"] * phases["load"]["nodes"]
    return float(phases["load"]["rss bytes"] + phases["connect"]["rss bytes"] - links) / 2**20


FIGURES = (
    Figure("memory above idle", "MiB", _memory),
    Figure("load", "CPU s", lambda one: float(one["phases"]["load"]["cpu s"])),
    Figure("connect and send all", "CPU s", lambda one: float(one["phases"]["connect"]["cpu s"])),
    Figure("come back, nothing new", "CPU s", lambda one: float(one["phases"]["come back"]["cpu s"])),
    Figure(
        "a second of its life",
        "CPU s",
        lambda one: float(one["phases"]["run"]["cpu s"]) / float(one["phases"]["run"]["simulated s"]),
    ),
    Figure("take over a seventh", "CPU s", lambda one: float(one["phases"]["take over"]["cpu s"])),
)


@dataclass(frozen=True)
class Fit:
    """y = intercept + slope n. residuals: of each point, relative to it. exponent: of the best y = c n^exponent."""

    intercept: float
    slope: float
    residuals: tuple[float, ...]
    exponent: float

    @property
    def worst(self) -> float:
        return max(map(abs, self.residuals))


def fit(points: Sequence[tuple[float, float]]) -> Fit:
    """Of at least two points with y above 0, weighted by 1 / y^2."""
    weights = [1 / (y * y) for _, y in points]
    intercept, slope = _line([(n, y) for n, y in points], weights)
    residuals = tuple((y - intercept - slope * n) / y for n, y in points)
    _, exponent = _line([(math.log(n), math.log(y)) for n, y in points], [1.0] * len(points))
    return Fit(intercept, slope, residuals, exponent)


def _line(points: Sequence[tuple[float, float]], weights: Sequence[float]) -> tuple[float, float]:
    """(intercept, slope) of the line of least squares."""
    whole = sum(weights)
    x = sum(w * p[0] for w, p in zip(weights, points, strict=True)) / whole
    y = sum(w * p[1] for w, p in zip(weights, points, strict=True)) / whole
    above = sum(w * (p[0] - x) * (p[1] - y) for w, p in zip(weights, points, strict=True))
    below = sum(w * (p[0] - x) ** 2 for w, p in zip(weights, points, strict=True))
    return y - above / below * x, above / below


def report_of(measured: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Of replicas by the size that was asked for; a size is the number of nodes that the replica really had."""
    ordered = [measured[size] for size in sorted(measured)]
    sizes = [int(one["phases"]["load"]["nodes"]) for one in ordered]
    figures = {}
    for figure in FIGURES:
        values = [figure.of(one) for one in ordered]
        found = fit(list(zip(map(float, sizes), values, strict=True)))
        figures[figure.name] = {
            "unit": figure.unit,
            "values": [round(value, 6) for value in values],
            "intercept": found.intercept,
            "slope per node": found.slope,
            "relative residuals": [round(one, 4) for one in found.residuals],
            "exponent": round(found.exponent, 4),
        }
    return {"bench": "scale linear", "machine": machine(), "nodes": sizes, "figures": figures}


def plot(report: dict[str, Any], path: Path) -> None:
    """Both axes logarithmic; the line is the fit of `report_of`."""
    rows = math.ceil(len(report["figures"]) / COLUMNS)
    picture = Picture(COLUMNS * WIDTH, rows * HEIGHT)
    for n, (name, found) in enumerate(report["figures"].items()):
        _panel(picture, n % COLUMNS * WIDTH, n // COLUMNS * HEIGHT, name, report["nodes"], found)
    picture.save(path)


def _panel(picture: Picture, x0: int, y0: int, name: str, nodes: list[int], found: dict[str, Any]) -> None:
    values = found["values"]
    across = _axis(nodes, x0 + LEFT, x0 + WIDTH - RIGHT)
    upward = _axis(values, y0 + HEIGHT - BOTTOM, y0 + TOP)
    for power in _powers(nodes):
        x = across(power)
        picture.line(x, y0 + TOP, x, y0 + HEIGHT - BOTTOM, GREY)
        picture.text(x - text_width(_short(power)) // 2, y0 + HEIGHT - BOTTOM + 8, _short(power))
    for power in _powers(values):
        y = upward(power)
        picture.line(x0 + LEFT, y, x0 + WIDTH - RIGHT, y, GREY)
        picture.text(x0 + LEFT - 8 - text_width(_short(power)), y - 5, _short(power))
    picture.text(x0 + LEFT, y0 + 10, f"{name}, {found['unit']}", scale=3)
    worst = max(map(abs, found["relative residuals"]))
    told = (
        f"{found['slope per node']:.3g} per node, residuals to {worst:.0%}, exponent {found['exponent']:.2f}"
    )
    picture.text(x0 + LEFT, y0 + 34, told)
    low, high = math.log(min(nodes)), math.log(max(nodes))
    curve = [math.exp(low + (high - low) * n / 60) for n in range(61)]
    at = [(across(n), upward(max(found["intercept"] + found["slope per node"] * n, 1e-9))) for n in curve]
    for (x1, y1), (x2, y2) in itertools.pairwise(at):
        picture.line(x1, y1, x2, y2, RED, 2)
    for n, value in zip(nodes, values, strict=True):
        picture.dot(across(n), upward(value), BLUE, 9)
    picture.line(x0 + LEFT, y0 + TOP, x0 + LEFT, y0 + HEIGHT - BOTTOM, BLACK)
    picture.line(x0 + LEFT, y0 + HEIGHT - BOTTOM, x0 + WIDTH - RIGHT, y0 + HEIGHT - BOTTOM, BLACK)


def _axis(values: Sequence[float], start: int, end: int) -> Callable[[float], int]:
    """From a value to its place, with a tenth of the axis free at both ends."""
    low, high = math.log(min(values)), math.log(max(values))
    low, high = low - 0.1 * (high - low or 1), high + 0.1 * (high - low or 1)
    return lambda value: round(start + (end - start) * (math.log(value) - low) / (high - low))


def _powers(values: Sequence[float]) -> list[float]:
    """Powers of ten that lie among the values, or about them."""
    low, high = math.floor(math.log10(min(values)) + 0.2), math.ceil(math.log10(max(values)) - 0.2)
    return [
        10.0**n for n in range(low, max(high, low) + 1) if 0.7 * min(values) < 10.0**n < 1.4 * max(values)
    ]


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scale.linear", description=__doc__)
    parser.add_argument("--sizes", default=SIZES, help="nodes of the replica, with commas between")
    parser.add_argument("--pods-each", type=int, default=PODS_EACH)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--directory", type=Path, default=CACHE / "scale" / "linear")
    parser.add_argument("--reports", type=Path, default=ROOT / "reports")
    options = parser.parse_args(argv)
    measured: dict[int, dict[str, Any]] = {}
    try:
        for size in sorted({int(text) for text in options.sizes.split(",")}):
            steps = Steps(options.directory / f"{size}-{options.pods_each}-{options.seconds}")
            share(Size(size * REPLICAS, options.pods_each, REPLICAS, 0, options.seconds), steps)
            measured[size] = steps.done["replica 0"]
    except (KeyboardInterrupt, subprocess.CalledProcessError) as end:
        say(f"cut off: {end!r}; the next run goes on with what is done")
    if len(measured) < 2:
        say("a line needs two sizes")
        return 1
    report = report_of(measured)
    options.reports.mkdir(exist_ok=True)
    (options.reports / "scale-linear.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(report, options.reports / "scale-linear.png")
    for name, found in report["figures"].items():
        say(f"{name}: {found['slope per node']:.4g} {found['unit']} per node, exponent {found['exponent']}")
    return int(len(measured) < len(options.sizes.split(",")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
