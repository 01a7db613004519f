"""What a hub's metrics say, read from the text that Prometheus would scrape."""

import re

from observability.catalogue import CATALOGUE

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Sample = tuple[str, dict[str, str], float]


def samples(text: str) -> list[Sample]:
    """(name, labels, value) of every line."""
    return [
        (name, dict(_LABEL.findall(labels)), float(value)) for name, labels, value in _SAMPLE.findall(text)
    ]


def figures(text: str, group: str) -> dict[str, float]:
    """Those of the catalogue's `group` that have no labels, as the hub calls them where it counts them."""
    names = {m.prometheus: m.figure for m in CATALOGUE if m.group == group}
    return {names[name]: value for name, labels, value in samples(text) if name in names and not labels}
