"""PodStatus of one pod's state machine, as a kubelet would write it. [pure]

Left out on purpose: the condition PodScheduled, which is the hub's.
"""

import hashlib
import json
from binascii import hexlify

from edgelite.containers import APP, EXITED, INIT, RUNNING, SIDECAR, STOPPING
from edgelite.dates import rfc3339
from edgelite.podenv import qos_class

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edgelite.containers import Container
    from edgelite.reconcile import Pod
    from edgelite.runtimes.base import Status


def duration(seconds: float) -> str:
    """Go's way to write whole seconds: 10s, 1m20s, 5m0s."""
    whole = int(seconds)
    if whole < 60:
        return "%ds" % whole
    return "%dm%ds" % (whole // 60, whole % 60)


def fingerprint(status: "dict[str, Any]") -> str:
    return hexlify(hashlib.sha256(json.dumps(status).encode()).digest()).decode()[:24]


def build(pod: "Pod", wall: float) -> "dict[str, Any]":
    """The whole status. Remembers in `pod.conditions` since when each condition has been what it is."""
    phase = _phase(pod)
    ips = pod.node.ips()
    status: "dict[str, Any]" = {
        "phase": phase,
        "startTime": rfc3339(pod.start_wall),
        "qosClass": qos_class(pod.doc.get("spec") or {}),
        "conditions": _conditions(pod, phase, wall),
    }
    if pod.reason:
        status["reason"] = pod.reason
    if pod.message:
        status["message"] = pod.message
    if ips:
        status["hostIP"] = ips[0]
        status["hostIPs"] = [{"ip": ip} for ip in ips[:2]]
        if pod.sandboxed:
            status["podIP"] = ips[0]
            status["podIPs"] = [{"ip": ip} for ip in ips[:2]]
    if not (phase == "Failed" and all(c.attempt < 0 for c in pod.containers)):
        # A pod that failed before anything was started has no containers that wait: `kubectl get` would show them
        # in place of the reason.
        inits = [_container(pod, c) for c in pod.of(INIT, SIDECAR)]
        if inits:
            status["initContainerStatuses"] = inits
        status["containerStatuses"] = [_container(pod, c) for c in pod.of(APP)]
    generation = pod.doc.get("generation")
    if generation is not None:
        status["observedGeneration"] = generation
    return status


def _phase(pod: "Pod") -> str:
    """The kubelet's getPhase; final only once nothing runs any more."""
    if pod.phase and pod.at_rest:
        return pod.phase
    apps = pod.of(APP)
    if any(c.state in (RUNNING, STOPPING) for c in apps):
        fresh = any(c.state not in (RUNNING, STOPPING, EXITED) and c.last is None for c in apps)
        return "Pending" if fresh else "Running"
    if not pod.initialized or any(c.state != EXITED and c.last is None for c in apps):
        return "Pending"
    return "Running"


def _conditions(pod: "Pod", phase: str, wall: float) -> "list[dict[str, Any]]":
    inits, apps = pod.of(INIT, SIDECAR), pod.of(APP)
    undone = [c.name for c in inits if not (c.succeeded if c.kind == INIT else c.started)]
    unready = [c.name for c in apps + pod.of(SIDECAR) if not c.ready]
    completed = phase == "Succeeded"
    gates = [g.get("conditionType", "") for g in (pod.doc.get("spec") or {}).get("readinessGates") or []]

    initialized = ("True", "", "")
    if completed:
        initialized = ("True", "PodCompleted", "")
    elif undone and not pod.initialized:
        text = "containers with incomplete status: [%s]" % " ".join(undone)
        initialized = ("False", "ContainersNotInitialized", text)
    containers_ready = ("True", "", "")
    if completed:
        containers_ready = ("False", "PodCompleted", "")
    elif phase == "Failed":
        containers_ready = ("False", "PodFailed", "")
    elif unready:
        text = "containers with unready status: [%s]" % " ".join(unready)
        containers_ready = ("False", "ContainersNotReady", text)
    ready = containers_ready
    if ready[0] == "True" and gates:
        text = "".join(
            'corresponding condition of pod readiness gate "%s" does not exist.' % g for g in gates
        )
        ready = ("False", "ReadinessGatesNotReady", text)
    sandbox = "True" if pod.sandboxed and phase not in ("Succeeded", "Failed") else "False"
    return [
        _condition(pod, "PodReadyToStartContainers", (sandbox, "", ""), wall),
        _condition(pod, "Initialized", initialized, wall),
        _condition(pod, "Ready", ready, wall),
        _condition(pod, "ContainersReady", containers_ready, wall),
    ]


def _condition(pod: "Pod", name: str, now: "tuple[str, str, str]", wall: float) -> "dict[str, Any]":
    before = pod.conditions.get(name)
    since = before[1] if before is not None and before[0] == now[0] else rfc3339(wall)
    pod.conditions[name] = [now[0], since]
    condition: "dict[str, Any]" = {
        "type": name,
        "status": now[0],
        "lastProbeTime": None,
        "lastTransitionTime": since,
    }
    if now[1]:
        condition["reason"] = now[1]
    if now[2]:
        condition["message"] = now[2]
    return condition


def _container(pod: "Pod", c: "Container") -> "dict[str, Any]":
    image = c.spec.get("image") or ""
    status: "dict[str, Any]" = {
        "name": c.name,
        "image": image,
        "imageID": c.image_id,
        "ready": c.succeeded if c.kind == INIT else c.ready,
        "restartCount": c.restarts,
        "started": c.started,
        "state": _state(pod, c),
        "lastState": {} if c.last is None else {"terminated": c.last},
    }
    if c.handle:
        status["containerID"] = c.handle
    return status


def _state(pod: "Pod", c: "Container") -> "dict[str, Any]":
    if c.state in (RUNNING, STOPPING):
        return {"running": {"startedAt": rfc3339(c.started_wall)}}
    if c.state == EXITED and c.ended is not None:
        return {"terminated": c.ended}
    waiting = {"reason": c.reason or "ContainerCreating"}
    if not c.reason and c.kind != INIT and not pod.initialized and pod.of(INIT, SIDECAR):
        waiting["reason"] = "PodInitializing"
    if c.message:
        waiting["message"] = c.message
    return {"waiting": waiting}


def terminated(status: "Status") -> "dict[str, Any]":
    """ContainerStateTerminated of what the runtime found."""
    ended: "dict[str, Any]" = {
        "exitCode": status.exit_code,
        "reason": status.reason or ("Completed" if status.exit_code == 0 else "Error"),
        "startedAt": rfc3339(status.started_at),
        "finishedAt": rfc3339(status.finished_at),
    }
    if status.message:
        ended["message"] = status.message[:4096]
    if status.handle:
        ended["containerID"] = status.handle
    return ended


def lost(c: "Container", wall: float) -> "dict[str, Any]":
    ended: "dict[str, Any]" = {
        "exitCode": 137,
        "reason": "ContainerStatusUnknown",
        "message": "The container could not be located when the agent was started",
        "startedAt": rfc3339(c.started_wall),
        "finishedAt": rfc3339(wall),
    }
    if c.handle:
        ended["containerID"] = c.handle
    return ended


def start_error(message: str, wall: float) -> "dict[str, Any]":
    at = rfc3339(wall)
    return {
        "exitCode": 128,
        "reason": "StartError",
        "message": message[:4096],
        "startedAt": at,
        "finishedAt": at,
    }
