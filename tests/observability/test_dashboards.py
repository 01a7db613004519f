"""Dashboards and alerts are well formed, and each alert fires: `promtool test rules` with series made for it.

That every expression returns data of a running hub is shown in `tests/e2e/test_telemetry.py`.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from observability.catalogue import CATALOGUE
from observability.dashboards.alerts import ALERTS, rules
from observability.dashboards.boards import BOARDS
from observability.dashboards.grafana import WIDTH, dashboard
from observability.metric import HISTOGRAM, prometheus_label
from tests.docs import dashboards
from tests.servers.prometheus import promtool

ROOT = Path(__file__).resolve().parents[2]
DAY = 86400
BUILD = ('cloudhub_build_info{job="j",instance="a"}', "1x120")


class Fires(NamedTuple):
    """Series under which an alert fires after `minutes`, and those under which it does not."""

    series: list[tuple[str, str]]
    quiet: list[tuple[str, str]]
    minutes: int = 20
    labels: dict[str, str] | None = None


A: dict[str, str] = {"job": "j", "instance": "a"}


def one(metric: str, firing: str, quiet: str, labels: dict[str, str] | None = None, **more: str) -> Fires:
    """A metric of one instance with these values over time."""
    text = ",".join(f'{k}="{v}"' for k, v in {**A, **more}.items())
    return Fires(
        [(f"{metric}{{{text}}}", firing)],
        [(f"{metric}{{{text}}}", quiet)],
        labels=A if labels is None else labels,
    )


JOB = {"job": "j"}
TOOK = "cloudhub_store_transaction_duration_seconds"


def ends(metric: str, left_s: int, quiet_s: int, labels: dict[str, str]) -> Fires:
    """Seen 100 minutes after time 0, which is when promtool's tests begin."""
    made = one(metric, f"{6000 + left_s}x120", f"{6000 + quiet_s}x120", labels)
    return made._replace(minutes=100)


def pool(lost: int, all_: int) -> list[tuple[str, str]]:
    states = {"True": all_ - lost, "False": 0, "Unknown": lost}
    return [
        (f'cloudhub_nodes_nodes{{job="j",instance="a",pool="shops",ready="{state}"}}', f"{n}x120")
        for state, n in states.items()
    ]


FIRES: dict[str, Fires] = {
    "CloudHubSlotsWithoutOwner": one("cloudhub_shard_slots_unowned", "3x120", "0x120", JOB),
    "CloudHubRolesWithoutOwner": one("cloudhub_shard_roles_unowned", "1x120", "0x120", JOB),
    "CloudHubFenceRejections": one("cloudhub_shard_fence_rejections_total", "0x18 1x100", "7x120"),
    "CloudHubReplicaSuspended": one("cloudhub_shard_suspended", "1x120", "0x120"),
    "CloudHubBacklog": one("cloudhub_edge_backlog_bytes", "100000000x120", "1000000x120"),
    "CloudHubStatusBacklog": one("cloudhub_edge_upstream_jobs", "20000x120", "100x120"),
    "CloudHubHubCertificateEnds": ends("cloudhub_certificate_hub_ends_seconds", 3600, 13 * 3600, A),
    "CloudHubAuthorityEnds": ends("cloudhub_certificate_authority_ends_seconds", 30 * DAY, 90 * DAY, JOB),
    "CloudHubRevocationsStale": one("cloudhub_certificate_revocations_fresh", "0x120", "1x120"),
    "CloudHubLoopStalls": one("cloudhub_loop_stalls_total", "0+60x120", "0+3x120"),
    "CloudHubNodesLost": Fires(pool(30, 100), pool(10, 100), labels={"job": "j", "pool": "shops"}),
    "CloudHubStoreSlow": Fires(
        [(f'{TOOK}_bucket{{job="j",le="{le}"}}', steps) for le, steps in (("1", "0x120"), ("5", "0+9x120"), ("+Inf", "0+9x120"))],
        [(f'{TOOK}_bucket{{job="j",le="{le}"}}', "0+9x120") for le in ("0.01", "1", "+Inf")],
        labels=JOB,
    ),
    "CloudHubStoreFails": Fires(
        [BUILD, (f'{TOOK}_count{{job="j",instance="a",outcome="failed"}}', "0+60x120")],
        [BUILD, (f'{TOOK}_count{{job="j",instance="a",outcome="failed"}}', "0+1x120")],
        labels=A,
    ),
    "CloudHubApiFails": Fires(
        [BUILD, ('cloudhub_api_requests_total{job="j",code="200"}', "0+60x120"), ('cloudhub_api_requests_total{job="j",code="503"}', "0+10x120")],
        [BUILD, ('cloudhub_api_requests_total{job="j",code="200"}', "0+60x120"), ('cloudhub_api_requests_total{job="j",code="404"}', "0+99x120")],
        labels=JOB,
    ),
    "CloudHubRefusals": one(
        "cloudhub_channel_refused_total", "0+600x120", "0+60x120", {**JOB, "kind": "node", "reason": "size"}, kind="node", reason="size"
    ),
    "CloudHubBusAway": one("cloudhub_relay_bus_up", "0x120", "1x120"),
    "CloudHubDescriptors": one("process_open_file_descriptor_count", "18000x120", "9000x120"),
    "CloudHubAway": Fires(
        [BUILD, ('cloudhub_shard_members{job="j",instance="a"}', "2x120")],
        [BUILD, ('cloudhub_shard_members{job="j",instance="a"}', "1x120")],
        labels=JOB,
    ),
}  # fmt: skip


def rule_test(alert: str, series: list[tuple[str, str]], minutes: int, labels: dict[str, str] | None) -> Any:
    """One test of promtool; `labels` None: nothing fires."""
    expected = [] if labels is None else [{"exp_labels": {**labels, "severity": severity_of(alert)}}]
    return {
        "name": f"{alert} {'fires' if labels is not None else 'is quiet'}",
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series],
        "alert_rule_test": [{"eval_time": f"{minutes}m", "alertname": alert, "exp_alerts": expected}],
    }


def severity_of(name: str) -> str:
    return next(alert.severity for alert in ALERTS if alert.name == name)


def test_every_alert_fires_and_is_quiet_when_all_is_well(tmp_path: Path) -> None:
    assert list(FIRES) == [alert.name for alert in ALERTS]
    groups = rules()
    for rule in groups["groups"][0]["rules"]:
        rule.pop("annotations")  # what they say is tested below; here their labels are compared
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(groups))
    tests = [
        test
        for name, fires in FIRES.items()
        for test in (
            rule_test(name, fires.series, fires.minutes, fires.labels),
            rule_test(name, fires.quiet, fires.minutes, None),
        )
    ]
    (tmp_path / "tests.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests})
    )
    assert "SUCCESS" in promtool("test", "rules", str(tmp_path / "tests.yaml"))


def test_nothing_is_lost_in_a_pool_of_a_few_nodes(tmp_path: Path) -> None:
    assert "quiet" in rule_test("CloudHubNodesLost", pool(2, 4), 20, None)["name"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules()))
    one_test = rule_test("CloudHubNodesLost", pool(2, 4), 20, None)
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [one_test]}))
    assert "SUCCESS" in promtool("test", "rules", str(tmp_path / "tests.yaml"))


def test_the_rules_that_are_shipped_are_valid_and_say_what_to_do() -> None:
    path = dashboards.CHART / "alerts/cloudhub.yaml"
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(path))
    for rule in yaml.safe_load(path.read_text())["groups"][0]["rules"]:
        assert rule["annotations"]["summary"] and "(1)" in rule["annotations"]["runbook"]
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            assert re.search(rf"by \([\w, ]*\b{label}\b", rule["expr"]), (rule["alert"], label)


def test_what_is_shipped_is_what_is_made_from_code() -> None:
    for path, text in dashboards.files().items():
        assert path.read_text() == text, f"{path}: run: python -m tests.docs.dashboards"
    assert dashboards.unexpected() == []


def test_expressions_name_metrics_and_labels_that_there_are() -> None:
    names: dict[str, set[str]] = {}
    for metric in CATALOGUE:
        labels = {prometheus_label(label) for label in metric.label_names} | {"job", "instance"}
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == HISTOGRAM else ("",)
        for suffix in suffixes:
            names[metric.prometheus + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    exprs = [(b.name, q.expr) for b in BOARDS for p in b.panels for q in p.queries]
    exprs += [(alert.name, alert.expr) for alert in ALERTS]
    for where, expr in exprs:
        used = set(re.findall(r"\b(?:cloudhub|process|http)_\w+", expr))
        assert used and used <= names.keys(), (where, used - names.keys())
        known = set().union(*(names[name] for name in used))
        named = re.findall(r"by \(([\w, ]+)\)", expr) + re.findall(r"[{,](\w+)[=!]", expr)
        assert {label.strip() for group in named for label in group.split(",")} <= known, (where, expr)


def test_panels_of_a_dashboard_have_places_of_their_own() -> None:
    for board in BOARDS:
        model = json.loads(json.dumps(dashboard(board, BOARDS)))
        taken: set[tuple[int, int]] = set()
        for panel in model["panels"]:
            at = panel["gridPos"]
            cells = {
                (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
            }
            assert not cells & taken and at["x"] + at["w"] <= WIDTH, (board.name, panel["title"])
            taken |= cells
        assert len({p["id"] for p in model["panels"]}) == len(board.panels)
        assert len(model["links"]) == len(BOARDS) - 1
