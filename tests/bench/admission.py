"""`make bench ARGS=admission`: what admission costs for each frame, in one process and without sockets."""

import logging
import time
from collections.abc import Callable
from typing import Any

from edgelite import wire
from hub.objects import PODS
from hub.policies.decisions import Binding, Clock, Judgement, Policy
from hub.policies.matching import UPDATE, Attempt
from hub.policies.specs import BindingSpec, PolicySpec, read
from hub.refusals import RefusalLog
from hub.relations import Relations
from hub.throttle import FRAMES
from security.buckets import Buckets, Rates
from security.identity import NodeId
from security.policy import NODE, TABLE, judge, limits_of
from tests.bench.report import emit

TIMES = 200_000
TARGET_US = 2.0


class _Gateway:
    """As much of a gateway as relations ask."""

    def __init__(self, keys: dict[str, str]) -> None:
        self.desired = self
        self._keys = keys

    def of(self, _node: str) -> dict[str, str]:
        return self._keys


def cpu_us(work: Callable[[], Any], times: int = TIMES) -> float:
    """CPU of one call, the best of five runs; the loop's own cost is in it."""
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(times // 5):
            work()
        best = min(best, time.process_time() - start)
    return best / (times // 5) * 1e6


def main() -> None:
    limits, body = limits_of(NODE), b"x" * 100

    def frame() -> bool:
        limit = limits.get(wire.ACK)
        return limit is None or len(body) > limit

    node = NodeId("cloudhub.local", "default", "edge-1", "edge-1")
    key = "pod/shop/till-1/0b5f6c6e-0000-4000-8000-000000000000"
    relations: Any = Relations(_Gateway({key: "v"}))  # type: ignore[arg-type]

    def entry() -> object:
        return TABLE.judge(NODE, "pod", relations.of_entry(node, "pod", key), 300)

    buckets = Buckets(Rates(), 0.0)
    now = time.monotonic

    def charge() -> float:
        return buckets.charge("edge-1", "tills", FRAMES, 4096, now())

    type_us, entry_us, charge_us = cpu_us(frame), cpu_us(entry), cpu_us(charge) / FRAMES
    emit("admission", "type and size of a frame", type_us, "us CPU")
    emit("admission", "buckets of node, pool and replica, per frame", charge_us, "us CPU")
    emit("admission", "relation of an upstream entry", entry_us, "us CPU")
    emit(
        "admission",
        "a frame with an upstream entry, all of it",
        type_us + charge_us + entry_us,
        "us CPU",
        TARGET_US,
    )
    logging.getLogger("hub.refusals").setLevel(logging.ERROR)
    log = RefusalLog(now)
    for _ in range(100):
        log.note(NODE, wire.SET, "type", "node edge-1", "uses up the burst of the log")

    def refused() -> None:
        refusal = judge(NODE, wire.SET)
        assert refusal is not None
        log.note(NODE, wire.SET, refusal.reason, "node edge-1", refusal.message)

    emit("admission", "a refused frame, counted", cpu_us(refused), "us CPU")
    _policies()


def _policies() -> None:
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["pods/status"]}
    spec = {
        "matchConstraints": {"resourceRules": [rule]},
        "validations": [
            {"expression": "object.status.phase != 'Failed' || oldObject.status.phase == 'Running'"}
        ],
    }
    policy = Policy("p", read({"spec": spec}, PolicySpec))
    given = {"policyName": "p", "validationActions": ["Deny"]}
    policy.bindings = [Binding.compile("b", read({"spec": given}, BindingSpec))]
    pod = {
        "metadata": {"name": "till-1", "namespace": "shop", "labels": {"app": "till"}},
        "spec": {"containers": [{"name": f"c{i}", "image": "reg.shop/till:1"} for i in range(3)]},
        "status": {
            "phase": "Running",
            "containerStatuses": [{"name": f"c{i}", "ready": True} for i in range(3)],
        },
    }
    attempt = Attempt(UPDATE, PODS, "shop", "till-1", pod, pod, "system:node:edge-1", subresource="status")

    def one() -> None:
        policy.judge(attempt, None, lambda spec, about: None, Clock.start(0.0), Judgement())

    emit("admission", "one CEL policy over a Pod's status", cpu_us(one, 5_000), "us CPU")
    emit(
        "admission",
        "the same where it does not match",
        cpu_us(lambda: policy.matcher.concerns(UPDATE, PODS, "")),
        "us CPU",
    )
