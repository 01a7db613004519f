"""The chart's dashboards and alerts, and RUNBOOK.md, made from `observability.dashboards`.

python -m tests.docs.dashboards      # writes them
"""

import json
from pathlib import Path

import yaml

from observability.dashboards.alerts import rules, runbook
from observability.dashboards.boards import BOARDS
from observability.dashboards.grafana import dashboard

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/cloudhub"


def files() -> dict[Path, str]:
    """What they hold, by path."""
    found = {
        CHART / f"dashboards/{board.name}.json": json.dumps(dashboard(board, BOARDS), indent=1) + "\n"
        for board in BOARDS
    }
    head = "# Made by `python -m tests.docs.dashboards`; a rule file of Prometheus.\n"
    found[CHART / "alerts/cloudhub.yaml"] = head + yaml.safe_dump(rules(), sort_keys=False, width=1000)
    found[ROOT / "RUNBOOK.md"] = runbook()
    return found


def unexpected() -> list[Path]:
    """Files beside them that nothing makes."""
    there = [*(CHART / "dashboards").iterdir(), *(CHART / "alerts").iterdir()]
    return sorted(set(there) - set(files()))


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
