"""What a node may say of an object's status: whatever its readers could not read is refused by its path."""

import json
from typing import Any

import msgspec
import pytest

from hub.reports import (
    CERTIFICATE,
    ENROLLED,
    certificate_of,
    connected,
    drop_conditions,
    enrolment_of,
    merge_node,
    merge_pod,
    silent,
)
from hub.statusforms import check_node, pod_status
from security.frames import decode_node
from tests.sim.fleet import running_status

STATUS = running_status()


def said(**fields: Any) -> bytes:
    return json.dumps({**STATUS, **fields}).encode()


def container(**fields: Any) -> bytes:
    return said(containerStatuses=[{"name": "main", **fields}])


def test_the_status_of_an_agent_is_taken_as_it_is() -> None:
    assert pod_status(said()) == STATUS


def test_nulls_and_fields_that_the_schema_lacks_are_dropped() -> None:
    condition = {"type": "Ready", "status": "True"}
    status = pod_status(
        said(conditions=[{**condition, "lastProbeTime": None}], resize=None, later={"x": [1]})
    )
    assert status == {**STATUS, "conditions": [condition]}


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (said(conditions=[{"type": [], "status": "True"}]), "conditions[0].type"),
        (said(conditions=[{"type": "Ready", "status": 5}]), "conditions[0].status"),
        (said(conditions=[{"status": "True"}]), "conditions[0]"),
        (said(conditions=[None]), "conditions[0]"),
        (said(conditions={"type": "Ready"}), "conditions"),
        (said(podIPs=["10.0.0.1"]), "podIPs[0]"),
        (said(startTime="yesterday"), "startTime"),
        (said(startTime="2026-02-31T00:00:00Z"), "startTime"),
        (said(startTime="2026-01-01 00:00:00Z"), "startTime"),
        (container(state="running"), "containerStatuses[0].state"),
        (container(restartCount=1 << 40), "containerStatuses[0].restartCount"),
        (container(lastState={"terminated": {"exitCode": "0"}}), "lastState.terminated.exitCode"),
        (container(allocatedResources={"cpu": "much"}), "allocatedResources"),
        (said(containerStatuses=[{"ready": True}]), "containerStatuses[0]"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_by_its_path(raw: bytes, path: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        pod_status(raw)
    assert path in str(refused.value)


def test_a_phase_that_is_none_and_lists_without_end_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="phase"):
        pod_status(said(phase="Great"))
    with pytest.raises(msgspec.ValidationError, match="33 entries, at most 32"):
        pod_status(said(conditions=[{"type": f"T{n}", "status": "True"} for n in range(33)]))
    with pytest.raises(msgspec.ValidationError, match="257 entries, at most 256"):
        pod_status(said(containerStatuses=[{"name": f"c{n}"} for n in range(257)]))


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"capacity": {"cpu": "lots"}}, "capacity"),
        ({"addresses": [{"type": "InternalIP"}]}, "addresses[0]"),
        ({"conditions": [{"type": "Odd", "status": "True", "lastTransitionTime": "now"}]}, "lastTransitionTime"),
        ({"conditions": [{"type": "Odd"}]}, "conditions[0]"),
    ],
)  # fmt: skip
def test_a_nodes_report_is_held_to_the_schema_too(body: Any, path: str) -> None:
    check_node(b'{"capacity":{"cpu":"2","memory":"1Gi"},"labels":{"of":"no status"}}')
    with pytest.raises(msgspec.ValidationError) as refused:
        check_node(json.dumps(body).encode())
    assert path in str(refused.value)


def test_a_condition_without_a_type_that_a_user_has_written_harms_no_report() -> None:
    """The API takes it, as Kubernetes does."""
    odd: Any = {"status": "True"}
    pod: Any = {"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": {"conditions": [dict(odd)]}}
    merged = merge_pod("n", pod_status(said()))(pod)
    assert merged is not None and odd not in merged["status"]["conditions"][1:]
    node: Any = {"metadata": {"name": "n", "labels": {}}, "status": {"conditions": [dict(odd)]}}
    node = merge_node(node, decode_node(b'{"conditions":[{"type":"DiskPressure","status":"False"}]}'))
    assert connected(node, "2026-01-01T00:00:00Z") is not None
    assert silent(node, "2026-01-01T00:00:00Z") is not None
    drop_conditions(node, ["Ready"])
    assert [c.get("type") for c in node["status"]["conditions"]] == [None, "DiskPressure"]


def test_annotations_that_are_nested_too_deep_count_as_damaged() -> None:
    deep = '{"x":' + "[" * 100_000
    assert certificate_of({CERTIFICATE: deep}) is None
    assert enrolment_of({ENROLLED: deep}).token == ""
