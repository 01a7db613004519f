from __future__ import annotations

from typing import Any

import pytest
import yaml

from hub.api import schema
from hub.api.ages import human_duration, unix
from hub.api.tables import table
from hub.errors import BadRequest

NOW = 1_700_000_000.0  # 2023-11-14T22:13:20Z
CREATED = "2023-11-14T22:03:20Z"  # ten minutes before


def cells(kind: str, text: str, api_version: str = "") -> dict[str, Any]:
    obj = yaml.safe_load(text)
    obj.setdefault("metadata", {}).setdefault("name", "x")
    obj["metadata"]["creationTimestamp"] = CREATED
    r = next(r for r in schema.RESOURCES if r.kind == kind and api_version in ("", r.api_version))
    got = table(r, [obj], now=NOW)
    names = [c["name"] for c in got["columnDefinitions"]]
    row = got["rows"][0]["cells"]
    assert len(names) == len(row)
    return dict(zip(names, row, strict=True))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (330, "5m30s"),
        (600, "10m"),
        (10_799, "179m"),
        (10_800, "3h"),
        (3600 * 5 + 60, "5h1m"),
        (3600 * 47, "47h"),
        (86_400 * 2 + 3600, "2d1h"),
        (86_400 * 8, "8d"),
        (86_400 * 729, "729d"),
        (86_400 * 731, "2y1d"),
        (86_400 * 365 * 9, "9y"),
    ],
)
def test_ages_read_as_kubectl_writes_them(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


RUNNING = "{name: a, ready: true, state: {running: {}}}"


@pytest.mark.parametrize(
    ("status", "spec", "shown"),
    [
        ("{phase: Pending}", "", "Pending"),
        (f"{{phase: Running, containerStatuses: [{RUNNING}]}}", "", "Running"),
        ("{phase: Failed, reason: Evicted}", "", "Evicted"),
        (
            "{phase: Running, containerStatuses: [{state: {waiting: {reason: CrashLoopBackOff}}}]}",
            "",
            "CrashLoopBackOff",
        ),
        (
            "{phase: Succeeded, containerStatuses: [{state: {terminated: {reason: Completed, exitCode: 0}}}]}",
            "",
            "Completed",
        ),
        ("{phase: Failed, containerStatuses: [{state: {terminated: {exitCode: 3}}}]}", "", "ExitCode:3"),
        ("{phase: Failed, containerStatuses: [{state: {terminated: {signal: 9}}}]}", "", "Signal:9"),
        (
            "{phase: Running, conditions: [{type: Ready, status: 'True'}], containerStatuses: "
            f"[{{state: {{terminated: {{reason: Completed}}}}}}, {RUNNING}]}}",
            "",
            "Running",
        ),
        (
            f"{{phase: Running, containerStatuses: [{{state: {{terminated: {{reason: Completed}}}}}}, {RUNNING}]}}",
            "",
            "NotReady",
        ),
        (
            "{phase: Pending, initContainerStatuses: [{state: {running: {}}}]}",
            "initContainers: [{name: i}]",
            "Init:0/1",
        ),
        (
            "{phase: Pending, initContainerStatuses: [{state: {terminated: {exitCode: 0}}}, {state: {waiting: "
            "{reason: PodInitializing}}}]}",
            "initContainers: [{name: i}, {name: j}]",
            "Init:1/2",
        ),
        (
            "{phase: Pending, initContainerStatuses: [{state: {terminated: {exitCode: 2}}}]}",
            "initContainers: [{name: i}]",
            "Init:ExitCode:2",
        ),
        (
            "{phase: Pending, initContainerStatuses: [{state: {waiting: {reason: ImagePullBackOff}}}]}",
            "initContainers: [{name: i}]",
            "Init:ImagePullBackOff",
        ),
        (
            "{phase: Running, initContainerStatuses: [{name: s, started: true, ready: true, state: {running: {}}}], "
            f"containerStatuses: [{RUNNING}]}}",
            "initContainers: [{name: s, restartPolicy: Always}]",
            "Running",
        ),
        (
            "{phase: Pending, conditions: [{type: PodScheduled, reason: SchedulingGated}]}",
            "",
            "SchedulingGated",
        ),
    ],
)
def test_the_status_of_a_pod_in_one_word(status: str, spec: str, shown: str) -> None:
    text = f"spec: {{containers: [{{name: a}}], {spec}}}\nstatus: {status}"
    assert cells("Pod", text)["Status"] == shown
    leaving = "metadata: {deletionTimestamp: '2023-11-14T22:00:00Z'}\n" + text
    done = "Succeeded" in status or "Failed" in status
    assert cells("Pod", leaving)["Status"] == (shown if done else "Terminating")


def test_a_lost_node_makes_a_leaving_pod_unknown() -> None:
    text = "{metadata: {deletionTimestamp: x}, status: {phase: Running, reason: NodeLost}}"
    assert cells("Pod", text)["Status"] == "Unknown"


def test_the_other_cells_of_a_pod() -> None:
    got = cells(
        "Pod",
        """
spec: {nodeName: n, containers: [{name: a}, {name: b}], readinessGates: [{conditionType: g}]}
status:
  phase: Running
  podIP: 10.0.0.1
  conditions: [{type: g, status: "True"}]
  containerStatuses:
  - {ready: true, state: {running: {}}, restartCount: 2, lastState: {terminated: {finishedAt: "2023-11-14T22:08:20Z"}}}
  - {restartCount: 1}
""",
    )
    assert got == {
        "Name": "x",
        "Ready": "1/2",
        "Status": "Running",
        "Restarts": "3 (5m ago)",
        "Age": "10m",
        "IP": "10.0.0.1",
        "Node": "n",
        "Nominated Node": "<none>",
        "Readiness Gates": "1/1",
    }


def test_nodes_show_readiness_cordon_and_roles() -> None:
    got = cells(
        "Node",
        "{metadata: {labels: {node-role.kubernetes.io/till: ''}}, spec: {unschedulable: true}, "
        "status: {conditions: [{type: Ready, status: Unknown}], nodeInfo: {kubeletVersion: v1}}}",
    )
    assert (got["Status"], got["Roles"], got["Version"]) == ("NotReady,SchedulingDisabled", "till", "v1")
    assert cells("Node", "{}")["Status"] == "Unknown"


def test_workloads_config_and_tokens() -> None:
    deployment = cells(
        "Deployment",
        "{spec: {replicas: 3, selector: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: In, values: [e, d]}]}, "
        "template: {spec: {containers: [{name: n, image: i}]}}}, status: {readyReplicas: 2}}",
    )
    assert (deployment["Ready"], deployment["Up-to-date"], deployment["Images"]) == ("2/3", 0, "i")
    assert deployment["Selector"] == "a=b,c in (d,e)"
    assert cells("ReplicaSet", "{spec: {replicas: 1}, status: {replicas: 1}}")["Current"] == 1
    daemon = cells(
        "DaemonSet", "{status: {numberReady: 4}, spec: {template: {spec: {nodeSelector: {a: b}}}}}"
    )
    assert (daemon["Ready"], daemon["Node Selector"]) == (4, "a=b")
    assert cells("ConfigMap", "{data: {a: b}, binaryData: {c: d}}")["Data"] == 2
    assert cells("Secret", "{type: Opaque}")["Type"] == "Opaque"
    token = cells(
        "JoinToken", "{spec: {pool: p, count: 3}, status: {redeemed: 1, expires: '2023-11-14T23:13:20Z'}}"
    )
    assert (token["For"], token["Redeemed"], token["Expires"]) == ("pool/p", "1/3", "60m")


def test_both_kinds_of_event_read_the_same() -> None:
    old = cells(
        "Event",
        "{involvedObject: {kind: Pod, name: p}, reason: R, type: Normal, message: m, count: 2, "
        "lastTimestamp: '2023-11-14T22:08:20Z', source: {component: c}}",
        "v1",
    )
    new = cells(
        "Event",
        "{regarding: {kind: Pod, name: p}, reason: R, type: Normal, note: m, reportingController: c, "
        "series: {count: 2, lastObservedTime: '2023-11-14T22:08:20.000000Z'}, eventTime: '2023-11-14T22:03:20Z'}",
        "events.k8s.io/v1",
    )
    for column in ("Last Seen", "Type", "Reason", "Object", "Message", "Count", "Source"):
        assert old[column] == new[column], column
    assert (old["Object"], old["Last Seen"]) == ("pod/p", "5m")


@pytest.mark.parametrize("r", schema.RESOURCES, ids=lambda r: r.qualified)
def test_an_empty_object_of_any_kind_has_a_full_row(r: schema.Resource) -> None:
    got = table(r, [{}], now=NOW, include="None")
    assert len(got["rows"][0]["cells"]) == len(got["columnDefinitions"])
    assert "object" not in got["rows"][0]


def test_include_object_decides_what_a_row_carries() -> None:
    pod = schema.resource_of("v1", "Pod")
    assert pod
    obj = {"metadata": {"name": "a"}, "spec": {}}
    row = table(pod, [obj], now=NOW, version="v1beta1")["rows"][0]
    assert row["object"] == {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1beta1",
        "metadata": {"name": "a"},
    }
    full = table(pod, [obj], now=NOW, include="Object", columns=False, list_meta={"resourceVersion": "7"})
    assert full["rows"][0]["object"] == {"kind": "Pod", "apiVersion": "v1", **obj}
    assert full["columnDefinitions"] is None
    assert full["metadata"] == {"resourceVersion": "7"}
    with pytest.raises(BadRequest, match="includeObject"):
        table(pod, [], now=NOW, include="All")
    assert unix("never") is None
