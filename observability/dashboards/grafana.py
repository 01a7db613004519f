"""What a dashboard is made of, and the JSON that Grafana 9 and later imports. [pure]

Source: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

SCHEMA: Final = 39
WIDTH: Final = 24
HEIGHT: Final = 8
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
JOB: Final = 'job=~"$job"'
"""The selector that every expression has: a Prometheus may scrape several hubs."""
INSTANCE: Final = f'{JOB},instance=~"$instance"'
RATE: Final = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Query:
    """`legend`: what a series is called, with {{label}} in it."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """`unit`: Grafana's name of it. `kind`: timeseries, stat or heatmap. `per_row`: how many such panels share a row."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    what: str = ""
    kind: str = "timeseries"
    per_row: int = 2
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Board:
    """`name`: of the file and of the uid. `by_instance`: single replicas can be chosen."""

    name: str
    title: str
    what: str
    panels: tuple[Panel, ...]
    by_instance: bool = False


def dashboard(board: Board, others: Sequence[Board] = ()) -> dict[str, Any]:
    """The JSON model. Stable: the same board gives the same bytes."""
    links = [
        {
            "type": "link",
            "title": other.title,
            "url": f"/d/cloudhub-{other.name}",
            "keepTime": True,
            "includeVars": True,
        }
        for other in others
        if other is not board
    ]
    return {
        "uid": f"cloudhub-{board.name}",
        "title": f"CloudHub: {board.title}",
        "description": board.what,
        "tags": ["cloudhub"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "links": links,
        "templating": {"list": _variables(board)},
        "panels": _placed(board.panels),
    }


def _variables(board: Board) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        _variable("job", "label_values(cloudhub_build_info, job)", "Hub"),
    ]
    if board.by_instance:
        query = 'label_values(cloudhub_build_info{job=~"$job"}, instance)'
        found.append(_variable("instance", query, "Replica"))
    return found


def _variable(name: str, query: str, label: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _placed(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Row by row: a row holds panels of one width."""
    placed: list[dict[str, Any]] = []
    x = y = 0
    per_row = 0
    for number, panel in enumerate(panels, 1):
        width = WIDTH // panel.per_row
        if x and (panel.per_row != per_row or x + width > WIDTH):
            x, y = 0, y + _height(per_row)
        per_row = panel.per_row
        placed.append(_panel(panel, number, {"x": x, "y": y, "w": width, "h": _height(per_row)}))
        x += width
    return placed


def _height(per_row: int) -> int:
    return HEIGHT if per_row <= 3 else HEIGHT // 2


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    custom = {"stacking": {"mode": "normal"}, "fillOpacity": 20} if panel.stacked else {"fillOpacity": 5}
    made: dict[str, Any] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.what,
        "gridPos": place,
        "datasource": DATASOURCE,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                **({"custom": custom} if panel.kind == "timeseries" else {}),
            },
            "overrides": [],
        },
        "targets": [
            {
                "refId": chr(ord("A") + n),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                **({"format": "heatmap"} if panel.kind == "heatmap" else {}),
            }
            for n, query in enumerate(panel.queries)
        ],
    }
    if panel.kind == "timeseries":
        made["options"] = {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi"},
        }
    elif panel.kind == "stat":
        made["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value"}
    return made
