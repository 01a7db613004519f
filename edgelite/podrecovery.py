"""How a pod's state machine survives the agent: what is written down, and how that is matched with what runs. [pure]

Where the record and the runtime differ, the runtime is right: it was there.
"""

import json

from edgelite.containers import APP, EXITED, INIT, RUNNING, STARTING, STOPPING, WAITING
from edgelite.podstatus import lost, terminated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edgelite.containers import Container
    from edgelite.reconcile import Pod
    from edgelite.runtimes.base import Status


def record(pod: "Pod") -> bytes:
    """What has to survive kill -9, as JSON."""
    return json.dumps(
        {
            "boot": pod.node.boot_id,
            "start": pod.start_wall,
            "phase": [pod.phase, pod.reason, pod.message],
            "init": pod.initialized,
            "box": pod.sandboxed,
            "conds": pod.conditions,
            "sent": pod.sent,
            "gone": pod.gone,
            "c": {c.name: c.record() for c in pod.containers},
        }
    ).encode()


def restore(pod: "Pod", record: "dict[str, Any]", now: float, wall: float) -> None:
    """Takes over what was written down."""
    pod.start_wall = record["start"]
    pod.phase, pod.reason, pod.message = record["phase"]
    pod.initialized = record["init"]
    pod.sandboxed = record["box"]
    pod.conditions = record["conds"]
    pod.sent = record["sent"]
    pod.gone = record["gone"]
    pod.removed = pod.told_gone = pod.gone
    for c in pod.containers:
        if c.name in record["c"]:
            c.restore(record["c"][c.name], now, wall)


def match(c: "Container", status: "Status | None", now: float, wall: float) -> None:
    """Brings one container in line with what the runtime found of it (None: nothing)."""
    if status is None or (status.phase == "exited" and status.attempt < c.attempt):
        if c.state in (RUNNING, STOPPING):
            c.end(lost(c, wall), 0.0)
        elif c.state == STARTING:  # it was only intended: nothing of it runs
            c.state, c.retry_at = WAITING, now
    elif status.phase == "running":
        if status.attempt != c.attempt:
            c.attempt, c.image = status.attempt, None
            c.started = c.ready = False
        c.adopt(status, now, wall)
    elif c.state != EXITED or status.attempt > c.attempt:
        if c.state == WAITING and not c.assigned and status.attempt == c.attempt:
            return  # its end is known already, and its restart is waited for
        c.attempt = status.attempt
        c.end(terminated(status), status.finished_at - status.started_at)


def rebooted(pod: "Pod") -> None:
    """The sandbox is lost: init containers run again, unless nothing of the pod is to run any more."""
    attempted = any(c.attempt >= 0 for c in pod.containers)
    if pod.policy == "Never" and attempted:
        return
    if all(c.succeeded and not pod.restarts(c) for c in pod.of(APP)):
        return
    pod.initialized = pod.sandboxed = False
    for c in pod.containers:
        c.backoff_s = 0.0
        c.retry_at = 0.0
        if c.kind == INIT and c.state == EXITED:
            c.last, c.ended = c.ended, None
            c.state = WAITING
