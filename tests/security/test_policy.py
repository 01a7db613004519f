"""Admission on the channel: default deny."""

import time

import pytest

from edgelite import wire
from security.policy import JOINING, NODE, admit, limits_of, may_report, message_bytes_max

FROM_A_NODE = {
    wire.HELLO, wire.GOAWAY, wire.PING, wire.PAIRS, wire.ACK, wire.NACK, wire.REPORT, wire.DATA, wire.CREDIT,
    wire.CLOSE, wire.RENEW, wire.BUNDLE,
}  # fmt: skip
FROM_JOINING = {wire.BUNDLE, wire.JOIN, wire.GOAWAY}


@pytest.mark.parametrize(("kind", "allowed"), [(NODE, FROM_A_NODE), (JOINING, FROM_JOINING)])
def test_exactly_the_listed_messages_are_admitted(kind: str, allowed: set[int]) -> None:
    assert {frame for frame in range(256) if admit(kind, frame, 0) is None} == allowed


@pytest.mark.parametrize("kind", ["hub", "user", "relay", "", "NODE"])
def test_every_other_kind_of_peer_may_send_nothing(kind: str) -> None:
    assert all(admit(kind, frame, 0) for frame in range(256))
    assert message_bytes_max(kind) == 0


def test_a_message_is_admitted_up_to_its_limit() -> None:
    for kind, allowed in ((NODE, FROM_A_NODE), (JOINING, FROM_JOINING)):
        for frame in allowed:
            refusal = admit(kind, frame, wire.MESSAGE_BYTES_MAX + 1)
            assert refusal is not None and refusal.code == "frame" and wire.NAMES[frame] in refusal.message
    assert admit(JOINING, wire.JOIN, 16384) is None
    assert admit(JOINING, wire.JOIN, 16385) is not None
    assert message_bytes_max(JOINING) == 16384
    assert message_bytes_max(NODE) == wire.MESSAGE_BYTES_MAX


def test_the_table_of_limits_says_what_admission_says() -> None:
    for kind in (JOINING, NODE):
        limits = limits_of(kind)
        for frame in range(256):
            limit = limits.get(frame, -1)
            assert all(
                (admit(kind, frame, size) is None) == (size <= limit)
                for size in (0, max(limit, 0), limit + 1)
            )


def test_a_refusal_says_who_may_not_send_what() -> None:
    refusal = admit(JOINING, wire.HELLO, 10)
    assert refusal == ("denied", "a joining peer may not send a message HELLO")
    unknown = admit(NODE, 99, 10)
    assert unknown is not None and "99" in unknown.message


def test_admission_costs_under_two_microseconds() -> None:
    def cpu_us() -> float:
        start = time.process_time()
        for _ in range(20000):
            admit(NODE, wire.PING, 0)
        return (time.process_time() - start) / 20000 * 1e6

    assert min(cpu_us() for _ in range(5)) < 2


BOUND = {"pod/shop/till/u1", "configmap/shop/prices"}


@pytest.mark.parametrize(
    ("entry", "key"),
    [("pod", "pod/shop/till/u1"), ("gone", "pod/shop/till/u1"), ("event", "pod/shop/till/u1"), ("event", "node"),
     ("event", "configmap/shop/prices"), ("node", "node")],
)  # fmt: skip
def test_a_node_reports_on_what_is_bound_to_it(entry: str, key: str) -> None:
    assert may_report(entry, key, BOUND) is None


@pytest.mark.parametrize(
    ("entry", "key"),
    [("pod", "pod/shop/till/u2"), ("gone", "pod/other/till/u1"), ("event", "secret/shop/key"), ("pod", "node"),
     ("gone", "configmap/shop/prices"), ("node", "pod/shop/till/u1"), ("node", "other"), ("lease", "node"),
     ("", ""), ("pod", "")],
)  # fmt: skip
def test_a_node_reports_on_nothing_else(entry: str, key: str) -> None:
    refusal = may_report(entry, key, BOUND)
    assert refusal is not None and refusal.code == "denied"
