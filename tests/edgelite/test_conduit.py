"""Streams that go both ways, over ends that the tests make up: the rules that real processes seldom break."""

import json

import pytest

from edgelite import conduit, wire
from edgelite.loop import Loop, Wait
from edgelite.runtimes.base import Ends, RuntimeFailure
from edgelite.streams import STREAMS_MAX, Streams


class FakeEnds(Ends):
    """Says `text`, takes input while `hungry`, ends with `code` once that is set."""

    def __init__(self, text=b"", code=None, hungry=True):
        self.text = text
        self.code = code
        self.hungry = hungry
        self.taken = []
        self.sizes = []
        self.input_ended = 0
        self.abandoned = 0
        self.fails = None

    def outputs(self, send):
        return [(1, self._say(send))]

    def _say(self, send):
        if self.text:
            yield from send(1, self.text)
        if self.fails is not None:
            raise self.fails

    def write(self, data):
        while not self.hungry:
            yield Wait(-1, 0, None)
        self.taken.append(data)

    def end_input(self):
        self.input_ended += 1
        return
        yield

    def resize(self, width, height):
        self.sizes.append((width, height))
        return
        yield

    def result(self, quiet):
        while self.code is None:
            yield Wait(-1, 0, None)
        return self.code

    def abandon(self):
        self.abandoned += 1


class Bench:
    def __init__(self):
        self.loop = Loop()
        self.sent = []
        self.ends = FakeEnds()
        self.streams = Streams(
            self.loop,
            None,
            self._inside,
            lambda k, s, b: self.sent.append((k, s, b)),
            lambda: True,
        )

    def _inside(self, request):
        if isinstance(self.ends, Exception):
            raise self.ends
        return self.ends
        yield

    def open(self, stream=1, credit=1 << 20, kind="exec"):
        assert self.message(wire.OPEN, {"kind": kind, "credit": credit}, stream) is None
        return self.ends

    def message(self, kind, body, stream=1):
        error = self.streams.message(kind, stream, body)
        for _ in range(8):
            self.loop.turn(0)
        return error

    def bodies(self, kind):
        return [b for k, _, b in self.sent if k == kind]

    def granted(self):
        return sum(json.loads(b)["c"] for b in self.bodies(wire.CREDIT))

    def closed(self):
        return [json.loads(b) for b in self.bodies(wire.CLOSE)]


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.streams.close_all()
    made.loop.close()


def test_the_status_comes_last_and_whole(bench):
    bench.ends = FakeEnds(b"hello", code=3)
    bench.open(credit=20)
    assert bench.bodies(wire.DATA) == [b"\1hello"]
    assert bench.closed() == []
    bench.message(wire.CREDIT, 1000)
    _, status = bench.bodies(wire.DATA)
    assert status[0] == 3
    assert json.loads(status[1:])["details"] == {"causes": [{"reason": "ExitCode", "message": "3"}]}
    assert bench.closed() == [{}]
    assert bench.ends.abandoned == 1
    assert len(bench.streams) == 0


def test_what_cannot_be_started_is_told_in_close_and_grants_nothing(bench):
    bench.ends = RuntimeFailure("ExecFailed", "there is no such thing")
    bench.open()
    assert bench.closed() == [{"error": {"code": "ExecFailed", "message": "there is no such thing"}}]
    assert bench.bodies(wire.CREDIT) == []


def test_no_more_input_waits_than_was_granted(bench):
    ends = bench.open()
    ends.hungry = False
    assert bench.granted() == conduit.WINDOW_BYTES
    assert bench.message(wire.DATA, b"\0" + bytes(conduit.WINDOW_BYTES - 1)) is None
    assert bench.granted() == conduit.WINDOW_BYTES
    assert "0 are granted" in bench.message(wire.DATA, b"\0x")


def test_input_that_was_used_is_granted_again(bench):
    ends = bench.open()
    for _ in range(10):
        assert bench.message(wire.DATA, b"\0" + bytes(32767)) is None
    assert sum(len(part) for part in ends.taken) == 327670
    assert bench.granted() - 10 * 32768 == conduit.WINDOW_BYTES


def test_the_input_ends_once_and_after_what_was_sent_before(bench):
    ends = bench.open()
    ends.hungry = False
    bench.message(wire.DATA, b"\0last")
    bench.message(wire.DATA, b"\xff\0")
    bench.message(wire.DATA, b"\0too late")
    assert ends.input_ended == 0
    ends.hungry = True
    bench.message(wire.DATA, b"\xff\0")
    assert (ends.taken, ends.input_ended) == ([b"last"], 1)


@pytest.mark.parametrize("size", [b"", b"[]", b"{}", b'{"Width":0,"Height":1}', b'{"Width":"x","Height":1}', b'{"Width":99999,"Height":1}'])  # fmt: skip
def test_a_size_that_makes_no_sense_changes_nothing(bench, size):
    ends = bench.open()
    bench.message(wire.DATA, b"\4" + size)
    bench.message(wire.DATA, b'\4{"Width":80,"Height":24}')
    assert ends.sizes == [(80, 24)]


@pytest.mark.parametrize("body", [b"\7what", b"\xff\1", b"\xff", b"\3no"])
def test_channels_that_nobody_listens_to_are_used_up_and_ignored(bench, body):
    bench.open()
    assert bench.message(wire.DATA, body) is None
    assert bench.closed() == []


def test_data_without_a_channel_is_a_fault(bench):
    bench.open()
    assert "without a channel" in bench.message(wire.DATA, b"")


@pytest.mark.parametrize(
    "failure", [OSError(5, "Input/output error"), RuntimeFailure("StreamFailed", "gone")]
)
def test_an_output_that_fails_ends_its_stream_and_nothing_else(bench, failure):
    bench.ends.fails = failure
    bench.open()
    (closed,) = bench.closed()
    assert closed["error"]["message"]
    assert bench.ends.abandoned == 1
    bench.ends = FakeEnds(b"well", code=0)
    bench.open(3)
    assert b"\1well" in bench.bodies(wire.DATA)


def test_closing_abandons_what_runs_without_an_answer(bench):
    ends = bench.open()
    bench.message(wire.CLOSE, {})
    assert ends.abandoned == 1
    assert bench.closed() == []
    assert bench.message(wire.DATA, b"\0late") is None


def test_a_lost_connection_abandons_everything(bench):
    every = []
    for n in range(STREAMS_MAX):
        bench.ends = FakeEnds()
        every.append(bench.open(2 * n + 1))
    bench.open(2 * STREAMS_MAX + 1)
    assert bench.closed()[0]["error"]["code"] == "TooManyStreams"
    bench.streams.close_all()
    assert [e.abandoned for e in every] == [1] * STREAMS_MAX
