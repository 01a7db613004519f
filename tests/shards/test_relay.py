"""The relay protocol's core: whatever the bus does to its messages, what arrives is a prefix of what was sent."""

import struct
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelite import wire
from shards.relay import (
    BEAT,
    CHUNK_BYTES,
    CLOSE,
    DATA,
    OPEN,
    WINDOW_BYTES,
    Beat,
    Boundaries,
    Closing,
    Link,
    Message,
    OpenLog,
    OpenNode,
    RelayError,
    decode,
    decode_beats,
    decode_open,
    encode,
    encode_beats,
)

NODE = OpenNode("spiffe://d/node/default/a/a", 1.0, 3, "p")


def pair(**near: int) -> tuple[Link, Link]:
    one = Link(7, far=False, **near)
    one.open(NODE)
    return one, Link(7, far=True, window=near.get("window", WINDOW_BYTES))


@given(
    kind=st.integers(1, 4),
    connection=st.integers(1, 2**32 - 1),
    number=st.integers(0, 2**32 - 1),
    body=st.binary(max_size=200),
    incarnation=st.from_regex(r"[A-Za-z0-9_-]{0,64}", fullmatch=True),
)
def test_a_message_is_what_it_was_after_the_bus(
    kind: int, connection: int, number: int, body: bytes, incarnation: str
) -> None:
    message = Message(kind, connection, number, body)
    if incarnation.strip("-_") or not incarnation:
        assert decode(encode(message, incarnation.encode())) == (message, incarnation)


@given(st.binary(max_size=400), st.integers(0, 12))
def test_hostile_bytes_are_a_relay_error_or_a_message(data: bytes, kind: int) -> None:
    near, far = pair()
    for raw in (data, struct.pack(">BBBII", 1, kind, 0, 7, 1) + data):
        try:
            message, _ = decode(raw)
        except RelayError:
            continue
        for parse in (decode_open, decode_beats):
            try:
                parse(message.body)
            except RelayError:
                pass
        for link in (near, far):
            try:
                link.receive(message)
            except RelayError:
                pass


@given(
    sends=st.lists(st.integers(1, 3000), max_size=60),
    window=st.integers(1000, 5000),
    reads=st.integers(1, 2500),
)
def test_all_bytes_arrive_in_order_and_never_more_than_the_window_is_under_way(
    sends: list[int], window: int, reads: int
) -> None:
    near, far = pair(window=window)
    flight: deque[Message] = deque()
    sent, got, unread = bytearray(), bytearray(), 0
    for i, size in enumerate(sends):
        data = bytes([i % 256]) * size
        sent += data
        flight.extend(near.send(data))
        assert sum(len(m.body) for m in flight) + unread <= window
        # The other end takes one message and reads a little.
        for _ in range(2):
            if flight:
                part = far.receive(flight.popleft())
                assert isinstance(part, bytes)
                got += part
                unread += len(part)
        taken = min(unread, reads)
        unread -= taken
        for credit in far.passed_on(taken):
            released = near.receive(credit)
            assert isinstance(released, list)
            flight.extend(released)
    for _ in range(1_000_000):
        if not flight and not unread:
            break
        while flight:
            part = far.receive(flight.popleft())
            assert isinstance(part, bytes)
            got += part
            unread += len(part)
        for credit in far.passed_on(unread):
            released = near.receive(credit)
            assert isinstance(released, list)
            flight.extend(released)
        unread = 0
    assert got == sent and near.backlog_bytes == 0


@given(
    count=st.integers(1, 20),
    faults=st.lists(
        st.tuples(st.sampled_from(["lose", "double", "swap"]), st.integers(0, 19)), min_size=1, max_size=4
    ),
)
def test_loss_repetition_and_reordering_end_the_connection_after_a_true_prefix(
    count: int, faults: list[tuple[str, int]]
) -> None:
    near, far = pair()
    sent = [m for i in range(count) for m in near.send(bytes([i]) * 3)]
    order = list(range(count))
    for fault, at in faults:
        at %= max(len(order), 1)
        if not order:
            break
        if fault == "lose":
            del order[at]
        elif fault == "double":
            order.insert(at, order[at])
        else:
            order[at], order[-1] = order[-1], order[at]
    got: list[bytes] = []
    try:
        for i in order:
            part = far.receive(sent[i])
            assert isinstance(part, bytes)
            got.append(part)
        far.beat(near.number)
        assert order == list(range(count)), "a fault went unnoticed"
    except RelayError:
        assert order != list(range(count))
    assert got == [m.body for m in sent[: len(got)]]


def test_more_than_the_credit_is_refused() -> None:
    _, far = pair(window=1000)
    far.receive(Message(DATA, 7, 1, b"x" * 600))
    with pytest.raises(RelayError, match="credit"):
        far.receive(Message(DATA, 7, 2, b"x" * 401))


def test_a_backlog_beyond_its_bound_is_refused() -> None:
    near, _ = pair(window=1000, backlog_bytes_max=500)
    near.send(b"x" * 1400)
    with pytest.raises(RelayError, match="wait"):
        near.send(b"x" * 200)


def test_long_bytes_are_cut_to_chunks_and_a_close_is_said_once() -> None:
    near, far = pair()
    parts = near.send(b"x" * (2 * CHUNK_BYTES + 1))
    assert [len(p.body) for p in parts] == [CHUNK_BYTES, CHUNK_BYTES, 1]
    for part in parts:
        far.receive(part)
    (closing,) = near.close(Closing("end"))
    assert closing.kind == CLOSE and near.close(Closing("end")) == []
    assert far.receive(closing) == Closing("end") and far.close(Closing("x")) == []


@given(
    st.lists(
        st.builds(Beat, st.integers(1, 2**32 - 1), st.integers(0, 2**32 - 1), st.booleans()), max_size=50
    )
)
def test_beats_are_what_they_were(beats: list[Beat]) -> None:
    (body,) = encode_beats(beats)
    assert decode_beats(body) == beats
    assert decode(encode(Message(BEAT, 0, 0, body), b"i"))[0].body == body


def test_many_beats_are_several_messages_within_the_bound() -> None:
    bodies = encode_beats([Beat(i, i, True) for i in range(1, 45_000)])
    assert len(bodies) == 3 and sum(len(decode_beats(b)) for b in bodies) == 44_999


@pytest.mark.parametrize("opening", [NODE, OpenLog("n", 3, {"pod": "u", "follow": True}, 1000)])
def test_an_opening_is_what_it_was(opening: OpenNode | OpenLog) -> None:
    first = Link(7, far=False).open(opening)
    assert first.kind == OPEN and decode_open(first.body) == opening


@given(st.lists(st.binary(max_size=30), max_size=8), st.lists(st.integers(1, 20), max_size=40))
def test_boundaries_agree_with_the_codec(bodies: list[bytes], cuts: list[int]) -> None:
    data = b"".join(wire.frame(wire.REPORT, body) for body in bodies)
    ends, at = {0}, 0
    for body in bodies:
        at += wire.HEADER_BYTES + len(body)
        ends.add(at)
    found, at = Boundaries(), 0
    for cut in [*cuts, len(data)]:
        found.feed(data[at : at + cut])
        at = min(at + cut, len(data))
        assert found.between == (at in ends)


def test_a_frame_that_is_longer_than_any_may_be_is_refused() -> None:
    with pytest.raises(RelayError, match="frame"):
        Boundaries().feed(b"\x0c\x00\x00\x00\xff\xff\xff\xff")
