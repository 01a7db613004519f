"""What the kubelet's face tells of usage: in the names, types and units of a kubelet, and nothing that nobody knows."""

from typing import Any

import msgspec
import orjson
import pytest

from hub.kubelet.figures import NodePod, resource_metrics, summary, usage_of


def pod(name: str, *containers: str) -> dict[str, Any]:
    running = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    statuses = [{"name": one, "state": running} for one in containers]
    ended = [{"name": "setup", "state": {"terminated": {"exitCode": 0}}}]
    return {
        "metadata": {"name": name, "namespace": "shop", "uid": f"{name}-uid"},
        "status": {"containerStatuses": statuses, "initContainerStatuses": ended, "startTime": "then"},
    }


def told(**more: object) -> bytes:
    containers = [
        ["web-uid", "a", 1_500_000_000, 1000],
        ["web-uid", "b", 500_000_000, 24],
        ["static-uid", "main", 7, 7],
        ["stranger", "x", 1, 1],
    ]
    return orjson.dumps({"at": 1.8e9, "node": [9_000_000_000, 4096], "containers": containers, **more})


PODS = [NodePod(pod("web", "a", "b"), "web-uid"), NodePod(pod("till", "main"), "static-uid")]


def samples(text: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def test_metrics_are_those_of_a_kubelet() -> None:
    text = resource_metrics(PODS, usage_of(told()))
    names = 'namespace="shop",pod="web"'
    found = samples(text)
    assert found["node_cpu_usage_seconds_total"] == "9.000000000 1800000000000"
    assert found["node_memory_working_set_bytes"] == "4096 1800000000000"
    assert found[f'container_cpu_usage_seconds_total{{container="a",{names}}}'] == "1.500000000 1800000000000"
    assert found[f'container_memory_working_set_bytes{{container="b",{names}}}'] == "24 1800000000000"
    assert found[f"pod_cpu_usage_seconds_total{{{names}}}"] == "2.000000000 1800000000000"
    assert found[f"pod_memory_working_set_bytes{{{names}}}"] == "1024 1800000000000"
    # A mirror pod is known to its node by another UID; of pods that are not bound to it a node cannot tell.
    assert found['pod_memory_working_set_bytes{namespace="shop",pod="till"}'] == "7 1800000000000"
    assert found["resource_scrape_error"] == "0" and "stranger" not in text
    assert found[f'container_start_time_seconds{{container="a",{names}}}'] == "1767225600.0"
    assert text.count("# TYPE container_cpu_usage_seconds_total counter") == 1 and text.endswith("\n")


def test_without_usage_starts_are_told_and_the_want_of_the_rest() -> None:
    found = samples(resource_metrics(PODS, None))
    assert found.pop("resource_scrape_error") == "1"
    assert {name.partition("{")[0] for name in found} == {"container_start_time_seconds"}
    shown = summary("edge-1", PODS, None)
    assert shown["node"] == {"nodeName": "edge-1"} and "cpu" not in shown["pods"][0]


def test_what_does_not_run_is_not_told_and_names_are_quoted() -> None:
    one = pod("web", 'm"')
    one["status"]["containerStatuses"].append({"name": "waits", "state": {"waiting": {}}})
    text = resource_metrics([NodePod(one, "u")], usage_of(told(containers=[["u", "waits", 1, 1]])))
    assert 'container="m\\""' in text and "waits" not in text and "setup" not in text


def test_the_summary_has_the_same_figures() -> None:
    shown = summary("edge-1", PODS, usage_of(told()))
    at = "2027-01-15T08:00:00Z"
    assert shown["node"]["cpu"] == {"time": at, "usageCoreNanoSeconds": 9_000_000_000}
    web, till = shown["pods"]
    assert web["memory"] == {"time": at, "workingSetBytes": 1024}
    assert [c["memory"]["workingSetBytes"] for c in web["containers"]] == [1000, 24]
    assert till["cpu"]["usageCoreNanoSeconds"] == 7
    assert "cpu" not in summary("edge-1", PODS, usage_of(told(node=None)))["node"]


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"[]", told(at=-1), told(at=1e300), told(node=[1]), told(node=[-1, 1]),
        told(containers=[["u", "c", 1.5, 1]]), told(containers=[["u", "c", 1 << 63, 1]]), told(containers=[["u"]]),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_not_taken(raw: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        usage_of(raw)
