"""The one word that `kubectl get pods` prints under STATUS, with READY and RESTARTS. [pure]"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

Object = dict[str, Any]


class Summary(NamedTuple):
    """ready of total containers; last_restart is RFC 3339, "" when unknown."""

    status: str
    ready: int
    total: int
    restarts: int
    last_restart: str


def _exit_text(ended: Object) -> str:
    if ended.get("reason"):
        return str(ended["reason"])
    if ended.get("signal"):
        return f"Signal:{ended['signal']}"
    return f"ExitCode:{ended.get('exitCode', 0)}"


def _condition(pod: Object, kind: str) -> Object:
    for condition in pod.get("status", {}).get("conditions", []):
        if condition.get("type") == kind:
            return dict(condition)
    return {}


def _sidecars(pod: Object) -> set[str]:
    """The init containers that run on beside the others."""
    containers = pod.get("spec", {}).get("initContainers", [])
    return {c.get("name", "") for c in containers if c.get("restartPolicy") == "Always"}


def _latest(statuses: list[Object]) -> str:
    ends = (s.get("lastState", {}).get("terminated", {}).get("finishedAt", "") for s in statuses)
    return max(ends, default="")


def _init_texts(pod: Object, statuses: list[Object], sidecars: set[str]) -> Iterator[str]:
    """`Init:…` for each init container that holds the pod back, in their order."""
    total = len(pod.get("spec", {}).get("initContainers", []))
    for i, status in enumerate(statuses):
        state = status.get("state", {})
        ended, waiting = state.get("terminated"), state.get("waiting", {})
        if ended is not None and ended.get("exitCode", 0) == 0:
            continue
        if status.get("name") in sidecars and status.get("started"):
            continue
        if ended is not None:
            yield "Init:" + _exit_text(ended)
        elif waiting.get("reason") and waiting["reason"] != "PodInitializing":
            yield "Init:" + waiting["reason"]
        else:
            yield f"Init:{i}/{total}"


def _main_text(pod: Object, statuses: list[Object], text: str) -> str:
    """The status when the init containers are through: the first container's state wins."""
    running = False
    for status in reversed(statuses):
        state = status.get("state", {})
        waiting, ended = state.get("waiting", {}), state.get("terminated")
        if waiting.get("reason"):
            text = waiting["reason"]
        elif ended is not None:
            text = _exit_text(ended)
        elif status.get("ready") and "running" in state:
            running = True
    if text == "Completed" and running:
        ready = _condition(pod, "Ready").get("status") == "True"
        return "Running" if ready else "NotReady"
    return text


def summary(pod: Object) -> Summary:
    """What to print of a pod."""
    spec, status = pod.get("spec", {}), pod.get("status", {})
    sidecars = _sidecars(pod)
    inits, mains = status.get("initContainerStatuses", []), status.get("containerStatuses", [])
    beside = [s for s in inits if s.get("name") in sidecars]
    text = status.get("reason") or status.get("phase", "")
    if _condition(pod, "PodScheduled").get("reason") == "SchedulingGated":
        text = "SchedulingGated"
    waiting = next(_init_texts(pod, inits, sidecars), "")
    initialized = _condition(pod, "Initialized").get("status") == "True"
    ready = sum(1 for s in beside if s.get("started") and s.get("ready"))
    if waiting and not initialized:
        text, counted = waiting, inits
    else:
        text, counted = _main_text(pod, mains, waiting or text), [*beside, *mains]
        ready += sum(1 for s in mains if s.get("ready") and "running" in s.get("state", {}))
    if pod.get("metadata", {}).get("deletionTimestamp"):
        if status.get("reason") == "NodeLost":
            text = "Unknown"
        elif status.get("phase") not in ("Succeeded", "Failed"):
            text = "Terminating"
    return Summary(
        text,
        ready,
        len(spec.get("containers", [])) + len(sidecars),
        sum(s.get("restartCount", 0) for s in counted),
        _latest(counted),
    )
