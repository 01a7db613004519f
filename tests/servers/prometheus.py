"""A real Prometheus that scrapes what it is given, and its `promtool`.

    with Prometheus(["127.0.0.1:9090"]) as prometheus:
        prometheus.query("up"), prometheus.targets()

Blocking on purpose. `make deps-ci` unpacks Debian's programs.
"""

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

import yaml

from tests.servers.program import Program, tool

JOB = "hub"


class Prometheus(Program):
    """See the module. Scrapes each second."""

    name = "prometheus"

    def __init__(self, targets: Sequence[str], rules: str = "") -> None:
        self._targets, self._rules = targets, rules
        super().__init__()

    def argv(self) -> list[str]:
        config: dict[str, Any] = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": list(self._targets)}]}],
        }
        if self._rules:
            (self.root / "rules.yaml").write_text(self._rules)
            config["rule_files"] = ["rules.yaml"]
        (self.root / "prometheus.yaml").write_text(yaml.safe_dump(config))
        return [
            f"--config.file={self.root}/prometheus.yaml",
            f"--storage.tsdb.path={self.root}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The vector that `expr` gives now: [{"metric": labels, "value": [time, text]}]. Raises OSError (an HTTP error for
        what is no PromQL)."""
        found = self._get("query", query=expr)
        if found["resultType"] == "scalar":
            return [{"metric": {}, "value": found["result"]}]
        result: list[dict[str, Any]] = found["result"]
        return result

    def targets(self) -> list[dict[str, Any]]:
        """What is scraped, with `health` and `lastError`."""
        found: list[dict[str, Any]] = self._get("targets")["activeTargets"]
        return found

    def metadata(self) -> dict[str, dict[str, str]]:
        """Type and help of each metric."""
        return {name: rows[0] for name, rows in self._get("metadata").items()}

    def _get(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]


def promtool(*arguments: str, stdin: bytes = b"") -> str:
    """Runs it; stdout and stderr. Fails the test when it does."""
    done = subprocess.run([tool("promtool"), *arguments], input=stdin, capture_output=True, timeout=120)
    text = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, text
    return text
