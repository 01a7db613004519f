"""What Nodes of edge nodes carry in a cluster."""

import copy
from typing import Any

import pytest

from hub import reports
from hub.kubernetes.nodes import EDGE, REPORTED, ROLE, NodeForm, furnish, register
from hub.objects import Taint

Object = dict[str, Any]
NOW = "2026-01-01T00:00:00Z"


def node(*conditions: tuple[str, str, str], **status: Any) -> Object:
    """`conditions`: (type, status, reason)."""
    held = [{"type": k, "status": s, "reason": r, "message": ""} for k, s, r in conditions]
    return {"metadata": {"name": "edge-1"}, "status": {"conditions": held, **status}}


def shown(obj: Object) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in obj["status"]["conditions"]}


def lost(obj: Object) -> Object:
    """What the node lifecycle controller makes of it."""
    for condition in obj["status"]["conditions"]:
        condition.update(
            status="Unknown", reason="NodeStatusUnknown", message="Kubelet stopped posting node status."
        )
    return obj


def test_a_node_is_furnished_once_and_then_left_alone() -> None:
    form = NodeForm(kubelet_port=10250, labels={"team": "shops"}, addresses=(("InternalIP", "10.0.0.1"),))
    obj = node(
        ("Ready", "True", "EdgeliteReady"), addresses=[{"type": "InternalIP", "address": "192.168.1.5"}]
    )
    furnish(obj, form)
    labels = obj["metadata"]["labels"]
    assert labels == {EDGE: "true", ROLE: "", "kubernetes.io/hostname": "edge-1", "team": "shops"}
    once = copy.deepcopy(obj)
    furnish(obj, form)
    assert obj == once


def test_a_user_takes_the_edge_label_away_and_it_is_set_again() -> None:
    obj = node()
    obj["metadata"]["labels"] = {EDGE: "false", ROLE: "mine", "kubernetes.io/hostname": "h"}
    furnish(obj, NodeForm())
    assert obj["metadata"]["labels"] == {EDGE: "true", ROLE: "mine", "kubernetes.io/hostname": "h"}


def test_the_api_server_is_told_of_the_hub_and_people_of_the_node() -> None:
    form = NodeForm(addresses=(("InternalIP", "10.0.0.1"), ("Hostname", "{node}.nodes.example.com")))
    own = [
        {"type": "InternalIP", "address": "192.168.1.5"},
        {"type": "Hostname", "address": "edge-1"},
        {"type": "ExternalIP", "address": "203.0.113.9"},
    ]
    obj = node(addresses=own)
    furnish(obj, form)
    assert [(a["type"], a["address"]) for a in obj["status"]["addresses"]] == [
        ("InternalIP", "10.0.0.1"),
        ("Hostname", "edge-1.nodes.example.com"),
        ("ExternalIP", "192.168.1.5"),
        ("ExternalIP", "203.0.113.9"),
    ]


def test_a_replica_that_takes_over_leaves_nothing_of_where_the_one_before_was_reached() -> None:
    obj = node(addresses=[{"type": "InternalIP", "address": "192.168.1.5"}])
    for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        furnish(obj, NodeForm(addresses=(("InternalIP", host), ("Hostname", "{node}"))))
    assert [(a["type"], a["address"]) for a in obj["status"]["addresses"]] == [
        ("InternalIP", "10.0.0.3"),
        ("Hostname", "edge-1"),
        ("ExternalIP", "192.168.1.5"),
    ]


def test_pressure_that_the_lifecycle_controller_called_unknown_is_as_it_was_once_the_node_is_back() -> None:
    obj = node(
        ("MemoryPressure", "False", "EdgeliteHasSufficientMemory"),
        ("DiskPressure", "True", "JournalWriteFailed"),
        ("Ready", "True", "EdgeliteReady"),
    )
    furnish(obj, NodeForm())
    assert "DiskPressure" in obj["metadata"]["annotations"][REPORTED]
    furnish(lost(obj), NodeForm())
    assert set(shown(obj).values()) == {("Unknown", "NodeStatusUnknown")}  # not while it is away
    assert reports.connected(obj, NOW)
    furnish(obj, NodeForm())
    assert shown(obj) == {
        "MemoryPressure": ("False", "EdgeliteHasSufficientMemory"),
        "DiskPressure": ("True", "JournalWriteFailed"),
        "Ready": ("True", "EdgeliteReady"),
    }
    obj["status"]["conditions"][1].update(status="False", reason="EdgeliteHasNoDiskPressure")
    furnish(obj, NodeForm())
    assert REPORTED not in obj["metadata"]["annotations"]


@pytest.mark.parametrize("text", ["{", "[]", '{"DiskPressure": 1}', '{"DiskPressure": []}'])
def test_an_annotation_that_somebody_has_edited_is_passed_over(text: str) -> None:
    obj = node(("DiskPressure", "Unknown", "NodeStatusNeverUpdated"), ("Ready", "True", "EdgeliteReady"))
    obj["metadata"]["annotations"] = {REPORTED: text}
    furnish(obj, NodeForm())
    assert shown(obj)["DiskPressure"] == ("False", "EdgeliteHasNoDiskPressure")


def test_taints_are_set_when_a_node_is_made_and_are_the_users_later() -> None:
    form = NodeForm(taints=(Taint("edge", "", "NoSchedule"), Taint("site", "berlin", "NoExecute")))
    obj = node()
    register(obj, form)
    assert obj["spec"]["taints"] == [
        {"key": "edge", "effect": "NoSchedule"},
        {"key": "site", "effect": "NoExecute", "value": "berlin"},
    ]
    obj["spec"]["taints"] = []
    furnish(obj, form)
    assert obj["spec"]["taints"] == []


@pytest.mark.parametrize(
    "wrong",
    [{"taints": (Taint("k", "", "Never"),)}, {"addresses": (("Home", "a"),)}, {"kubelet_port": 70000}],
)
def test_a_form_that_cannot_be_used_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"effect|address type|port"):
        NodeForm(**wrong)
