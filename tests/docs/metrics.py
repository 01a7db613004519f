"""METRICS.md, made from the catalogue.

python -m tests.docs.metrics      # writes it
"""

from pathlib import Path

from observability.catalogue import SECTIONS
from observability.metric import Label, Metric

PAGE = Path(__file__).resolve().parents[2] / "METRICS.md"
HEAD = """# Metrics

Every metric that a hub exports; made from `observability/catalogue.py` by `python -m tests.docs.metrics`. Names are those of
Prometheus. In OpenTelemetry the name has dots and neither unit nor `_total`: it stands in the second line where it is more than
that. Nothing else is exported, and no label has a value that is not said here: never the name of a node, a pod or a user. Over
1,000 series of one metric everything is counted in one whose labels are all `other`.
"""


def page() -> str:
    parts = [HEAD]
    for title, metrics in SECTIONS:
        parts.append(
            f"\n## {title}\n\n| metric | kind | labels | what | in hubs with |\n|---|---|---|---|---|\n"
        )
        parts.extend(_row(metric) for metric in metrics)
    return "".join(parts)


def _row(metric: Metric) -> str:
    labels = "; ".join(map(_label, metric.labels))
    cells = (f"`{metric.prometheus}`<br>{metric.name}", metric.kind, labels, metric.help, metric.when)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _label(label: Label) -> str:
    name = label.name.replace(".", "_")
    return f"`{name}`: {label.words or ', '.join(f'`{value}`' for value in label.values)}"


if __name__ == "__main__":
    PAGE.write_text(page())
