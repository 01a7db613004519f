import json

import pytest

from edgelite import wire
from edgelite.loop import Loop, sleep
from edgelite.runtimes.base import RuntimeFailure
from edgelite.streams import STREAMS_MAX, Streams


def no_inside(request):
    raise AssertionError("these tests open logs only")
    yield


class Bench:
    """Streams over a fake connection; `source` is the runtime's log generator."""

    def __init__(self, source):
        self.loop = Loop()
        self.sent = []
        self.room = True
        self.streams = Streams(
            self.loop, source, no_inside, lambda k, s, b: self.sent.append((k, s, b)), lambda: self.room
        )

    def open(self, stream=1, credit=10, **more):
        request = {"kind": "log", "pod": "u", "container": "c", "credit": credit}
        request.update(more)
        error = self.streams.message(wire.OPEN, stream, request)
        self.turns()
        return error

    def turns(self, count=4):
        for _ in range(count):
            self.loop.turn(0)

    def data(self, stream=1):
        return b"".join(b for k, s, b in self.sent if k == wire.DATA and s == stream)

    def closed(self):
        return [json.loads(b) for k, _, b in self.sent if k == wire.CLOSE]


@pytest.fixture
def bench():
    made = []

    def make(source):
        made.append(Bench(source))
        return made[-1]

    yield make
    for one in made:
        one.loop.close()


def test_usage_is_told_where_the_agent_knows_it(bench):
    made = bench(numbers)
    made.open(kind="usage")
    assert made.closed()[0]["error"]["code"] == "Unsupported"

    def usage(out):
        yield from out.write(b"x" * 25)

    made.streams._usage = usage
    made.open(stream=3, kind="usage", credit=10)
    assert made.data(3) == b"x" * 10, "it waits for credit"
    made.streams.message(wire.CREDIT, 3, 100)
    made.turns()
    assert made.data(3) == b"x" * 25 and made.closed()[1:] == [{}]


def numbers(uid, container, options, out):
    yield from out.write(b"0123456789abcdefghij")


def endless(uid, container, options, out):
    yield from sleep(60)


def test_no_more_than_the_credit_is_sent(bench):
    b = bench(numbers)
    b.open(credit=7)
    assert b.data() == b"0123456"
    b.streams.message(wire.CREDIT, 1, 5)
    b.turns()
    assert b.data() == b"0123456789ab"
    assert b.closed() == []
    b.streams.message(wire.CREDIT, 1, 100)
    b.turns()
    assert b.data() == b"0123456789abcdefghij"
    assert b.closed() == [{}]
    assert len(b.streams) == 0


def test_a_long_queue_pauses_streams_until_there_is_room(bench):
    b = bench(numbers)
    b.room = False
    b.open(credit=100)
    assert b.data() == b""
    b.room = True
    b.streams.wake()
    b.turns()
    assert b.data() == b"0123456789abcdefghij"


def test_frames_of_a_stream_are_bounded(bench):
    def big(uid, container, options, out):
        yield from out.write(bytes(100000))

    b = bench(big)
    b.open(credit=1 << 20)
    assert [len(x) for k, _, x in b.sent if k == wire.DATA] == [32768, 32768, 32768, 1696]


def test_a_missing_log_is_reported_with_its_reason(bench):
    def missing(uid, container, options, out):
        raise RuntimeFailure("NotFound", "container c has no previous log")
        yield

    b = bench(missing)
    b.open()
    assert b.closed() == [{"error": {"code": "NotFound", "message": "container c has no previous log"}}]


def test_closing_ends_the_reader_without_an_answer(bench):
    b = bench(numbers)
    b.open(credit=3)
    b.streams.message(wire.CLOSE, 1, {})
    b.turns()
    assert len(b.streams) == 0
    assert b.closed() == []
    b.streams.message(wire.CREDIT, 1, 100)
    b.turns()
    assert b.data() == b"012"


def test_streams_are_bounded_in_number(bench):
    b = bench(endless)
    for number in range(STREAMS_MAX + 1):
        b.open(1 + 2 * number)
    assert b.closed()[0]["error"]["code"] == "TooManyStreams"
    assert len(b.streams) == STREAMS_MAX
    b.streams.close_all()
    assert len(b.streams) == 0


def test_an_unknown_kind_is_refused_and_a_stream_cannot_be_opened_twice(bench):
    b = bench(endless)
    assert b.open(kind="teleport") is None
    assert b.closed()[0]["error"]["code"] == "Unsupported"
    assert b.open(3) is None
    assert "which is open" in b.open(3)
    assert b.streams.message(wire.OPEN, 5, []) == "OPEN without a request"
    assert b.streams.message(wire.CREDIT, 3, -1) == "negative credit"
    assert b.streams.message(wire.DATA, 3, b"x") == "DATA on a stream that takes none"
