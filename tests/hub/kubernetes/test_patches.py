"""What is written is the difference, and where there is none nothing is."""

from typing import Any

from hub.kubernetes.patches import difference, patches
from hub.objects import PODS

READY = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
MAIN = {
    "name": "main",
    "ready": True,
    "restartCount": 0,
    "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
}


def pod(*, conditions: list[Any], containers: list[Any]) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "default", "uid": "u"},
        "spec": {"nodeName": "till-1"},
        "status": {"conditions": conditions, "containerStatuses": containers, "phase": "Running"},
    }


def test_what_the_api_server_spells_out_is_no_difference() -> None:
    """The next owner of a slot hears every status again: it is not written again."""
    held = pod(
        conditions=[{**READY, "lastProbeTime": None}], containers=[{**MAIN, "lastState": {}, "resources": {}}]
    )
    assert patches(PODS, held, pod(conditions=[READY], containers=[MAIN])) == []


def test_what_says_something_else_is_one() -> None:
    held = pod(conditions=[READY], containers=[{**MAIN, "lastState": {"terminated": {"exitCode": 1}}}])
    (patch,) = patches(PODS, held, pod(conditions=[READY], containers=[MAIN]))
    assert patch.subresource == "status" and patch.body == {"status": {"containerStatuses": [MAIN]}}
    waits = {**MAIN, "state": {"waiting": {}}}
    assert patches(
        PODS, pod(conditions=[], containers=[waits]), pod(conditions=[], containers=[{**MAIN, "state": {}}])
    )


def test_an_empty_field_that_chooses_is_kept() -> None:
    volumes: dict[str, Any] = {"volumes": [{"name": "scratch", "emptyDir": {}}]}
    assert difference({"volumes": [{"name": "scratch"}]}, volumes) == volumes
