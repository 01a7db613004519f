"""Admission on the channel: one table, default deny."""

import itertools
import time

import msgspec
import pytest

from edgelite import wire
from security.policy import (
    ABSENT,
    FORMS,
    KINDS,
    NODE,
    OTHER_POOL,
    OTHER_TENANT,
    OWN,
    RELATIONS,
    SIBLING,
    STRANGER,
    TABLE,
    Place,
    judge,
    kind_of,
    limits_of,
    message_bytes_max,
    relation_between,
)

FROM_A_NODE = {
    wire.HELLO, wire.GOAWAY, wire.PING, wire.PAIRS, wire.ACK, wire.NACK, wire.REPORT, wire.DATA, wire.CREDIT,
    wire.CLOSE, wire.RENEW, wire.BUNDLE,
}  # fmt: skip
FROM_A_STRANGER = {wire.BUNDLE, wire.JOIN, wire.GOAWAY}


@pytest.mark.parametrize(("kind", "allowed"), [(NODE, FROM_A_NODE), (STRANGER, FROM_A_STRANGER)])
def test_exactly_the_listed_messages_are_admitted(kind: str, allowed: set[int]) -> None:
    assert {frame for frame in range(256) if judge(kind, frame) is None} == allowed


@pytest.mark.parametrize("kind", ["hub", "user", "relay", "unverified", "", "NODE"])
def test_every_other_kind_of_peer_may_send_no_message(kind: str) -> None:
    assert all(judge(kind, frame) for frame in range(256))
    assert message_bytes_max(kind) == 0 and limits_of(kind) == {}


def test_a_message_is_admitted_up_to_its_limit() -> None:
    for kind, allowed in ((NODE, FROM_A_NODE), (STRANGER, FROM_A_STRANGER)):
        for frame in allowed:
            refusal = judge(kind, frame, OWN, wire.MESSAGE_BYTES_MAX + 1)
            assert refusal is not None and refusal.code == "frame" and wire.NAMES[frame] in refusal.message
    assert judge(STRANGER, wire.JOIN, OWN, 16384) is None
    assert judge(STRANGER, wire.JOIN, OWN, 16385) is not None
    assert message_bytes_max(STRANGER) == 16384
    assert message_bytes_max(NODE) == wire.MESSAGE_BYTES_MAX


def test_the_limits_for_the_hot_path_say_what_the_table_says() -> None:
    for kind in KINDS:
        limits = limits_of(kind)
        for frame in range(256):
            limit = limits.get(frame, -1)
            assert all(
                (judge(kind, frame, OWN, size) is None) == (size <= limit)
                for size in (0, max(limit, 0), limit + 1)
            )


def test_what_is_not_in_the_table_is_refused_for_every_relation() -> None:
    for kind, subject, relation in itertools.product(KINDS, FORMS, RELATIONS):
        assert (judge(kind, subject, relation) is None) == ((kind, subject, relation) in TABLE.allowed)


def test_only_pairs_may_name_what_is_not_ones_own() -> None:
    others = {(subject, relation) for _, subject, relation in TABLE.allowed if relation != OWN}
    assert others == {(wire.PAIRS, "absent"), (wire.PAIRS, "cluster")}


def test_every_struct_of_the_table_decodes_only_its_own_shape() -> None:
    for form in FORMS.values():
        if form.body is not None:
            for wrong in (b"[]", b"1", b"null", b"{", b'"x"', b"\xff"):
                with pytest.raises((msgspec.MsgspecError, UnicodeError)):
                    msgspec.json.decode(wrong, type=form.body)


def test_a_refusal_says_who_may_not_send_what() -> None:
    assert judge(STRANGER, wire.HELLO) == ("denied", "type", "a stranger may not send a message HELLO")
    unknown = judge(NODE, 99)
    assert unknown is not None and "99" in unknown.message and unknown.reason == "unknown"
    other = judge(NODE, "pod", OTHER_TENANT)
    assert other is not None and other.reason == OTHER_TENANT


def test_admission_costs_under_two_microseconds() -> None:
    def cpu_us() -> float:
        start = time.process_time()
        for _ in range(20000):
            judge(NODE, wire.REPORT, OWN, 100)
        return (time.process_time() - start) / 20000 * 1e6

    assert min(cpu_us() for _ in range(5)) < 2


def test_nodes_are_siblings_by_pool_or_site_and_never_across_tenants() -> None:
    own = Place("a", "tills", "berlin")
    assert relation_between(own, Place("a", "tills", "bonn")) == SIBLING
    assert relation_between(own, Place("a", "", "berlin")) == SIBLING
    assert relation_between(own, Place("a", "signs", "bonn")) == OTHER_POOL
    assert relation_between(own, Place("b", "tills", "berlin")) == OTHER_TENANT
    assert relation_between(Place("a", "", ""), Place("a", "", "")) == OTHER_POOL
    assert ABSENT in RELATIONS


def test_the_kind_that_a_certificate_claims_is_told_for_counting() -> None:
    assert kind_of("spiffe://td/hub/hub-0") == "hub"
    assert kind_of("spiffe://td/relay/berlin") == "relay"
    assert kind_of("spiffe://td/../node/x") == "unverified"
    assert kind_of("") == kind_of("spiffe://") == "unverified"
