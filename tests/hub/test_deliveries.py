"""Traced changes on their way to nodes: bounds, ends, and what an object bears of a trace."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from edgelite import wire
from hub import deliveries as module
from hub import tracecontext
from hub.deliveries import Deliveries
from hub.documents import TRACE_ANNOTATION, Document, render_pod
from observability.catalogue import CATALOGUE
from observability.metrics import Metrics
from observability.tracing import CURRENT, Context, Span, Tracer
from tests.hub.channel_fakes import FakeDocs
from tests.hub.test_session import live, sent

CONTEXT = Context("a" * 32, "b" * 16)
NS = 1_000_000_000
NOW_S = 1_700_000_000


class World:
    def __init__(self) -> None:
        self.ns = NOW_S * NS
        self.ended: list[Span] = []
        self.metrics = Metrics(CATALOGUE)
        tracer = Tracer(0.0, self.ended.append, wall_ns=lambda: self.ns)
        seconds = self.metrics.histogram("cloudhub.channel.acknowledgement")
        self.deliveries = Deliveries(tracer, lambda node: {"cloudhub.slot": 7}, seconds)

    def learned(self, key: str = "configmap/shop/c", body: bytes = b"{}", age_s: int = 0) -> Document:
        document = Document(key, body)
        at = self.ns // NS - age_s
        self.deliveries.learned(document, {TRACE_ANNOTATION: f"{CONTEXT.traceparent}@{at}"})
        return document


@pytest.fixture
def world() -> World:
    return World()


def test_an_answer_ends_two_spans_that_begin_where_the_other_ended(world: World) -> None:
    document = world.learned()
    world.ns += 2 * NS
    world.deliveries.sent("n1", document)
    world.ns += NS
    world.deliveries.landed("n1", document.key, document.version, (CONTEXT.traceparent,))
    owner, channel = world.ended
    assert [(s.name, (s.end_ns - s.start_ns) / NS, s.error) for s in world.ended] == [
        ("owner", 2, ""),
        ("channel", 1, ""),
    ]
    assert (owner.parent_id, channel.parent_id) == (CONTEXT.span_id, owner.context.span_id)
    assert owner.context.trace_id == channel.context.trace_id == CONTEXT.trace_id
    assert channel.attributes["cloudhub.echoed"] is True and channel.attributes["cloudhub.slot"] == 7
    assert b"cloudhub_channel_acknowledgement_seconds_sum 1\n" in world.metrics.prometheus()
    assert len(world.deliveries) == 0


def test_an_agent_that_does_not_echo_and_one_that_refuses_end_the_span_too(world: World) -> None:
    document = world.learned()
    for node, refused in (("old", ""), ("full", "DiskFull")):
        world.deliveries.sent(node, document)
        world.deliveries.landed(node, document.key, document.version, (), refused)
    assert [(s.error, s.attributes["cloudhub.echoed"]) for s in world.ended if s.name == "channel"] == [
        ("", False),
        ("DiskFull", False),
    ]
    assert b"cloudhub_channel_acknowledgement_seconds_count 1\n" in world.metrics.prometheus()


def test_a_later_version_a_lost_connection_and_silence_are_told_apart(world: World) -> None:
    first = world.learned(body=b"1")
    world.deliveries.sent("n1", first)
    world.ns += NS
    world.deliveries.sent("n1", first)  # again, after the connection was lost: the time counts from the first
    second = world.learned(body=b"2")
    world.deliveries.sent("n1", second)
    assert [s.error for s in world.ended if s.name == "channel"] == ["a later version was sent"]
    world.deliveries.landed("n1", first.key, first.version, ())
    assert len(world.deliveries) == 1
    world.ns += module.WAIT_S * NS
    world.deliveries.sweep()
    assert (
        world.ended[-1].error.startswith("not acknowledged within") and world.deliveries.unacknowledged == 1
    )
    world.deliveries.landed("n1", second.key, second.version, ())
    assert len(world.ended) == 4 and not world.deliveries.context(second)


def test_numbers_of_nodes_documents_and_answers_are_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = world.learned()
    for n in range(module.NODES_MAX + 5):
        world.deliveries.sent(f"n{n}", document)
    assert len(world.deliveries) == module.NODES_MAX
    monkeypatch.setattr(module, "WAITING_MAX", module.NODES_MAX)
    world.deliveries.sent("n1", world.learned("configmap/shop/d", b"d"))
    assert len(world.deliveries) == module.NODES_MAX
    monkeypatch.setattr(module, "DOCUMENTS_MAX", 2)
    made = [world.learned(f"configmap/shop/{n}", str(n).encode()) for n in range(4)]
    assert [bool(world.deliveries.context(d)) for d in made] == [False, False, True, True]


@pytest.mark.parametrize(
    "value",
    [
        "",
        CONTEXT.traceparent,
        f"{CONTEXT.traceparent}@",
        f"{CONTEXT.traceparent}@soon",
        f"{CONTEXT.traceparent}@{NOW_S - tracecontext.FRESH_S - 1}",
        f"{CONTEXT.traceparent}@{NOW_S + tracecontext.FRESH_S + 1}",
        f"{CONTEXT.traceparent[:-1]}0@{NOW_S}",
        f"{CONTEXT.traceparent}@{'9' * 5000}",
        f"{CONTEXT.traceparent}@\u0661",
        f"nonsense@{NOW_S}",
    ],
)
def test_what_is_no_fresh_sampled_context_is_passed_over(value: str) -> None:
    assert tracecontext.context_of({TRACE_ANNOTATION: value}, NOW_S) is None


@pytest.fixture
def request_span() -> Iterator[Span]:
    span = Span("POST", "server", CONTEXT, "", NOW_S * NS, {})
    before = CURRENT.set(span)
    yield span
    CURRENT.reset(before)


def test_an_object_bears_the_context_of_the_request_that_wrote_it(request_span: Span) -> None:
    obj: dict[str, Any] = {"metadata": {"name": "a", "annotations": {"own": "1"}}}
    tracecontext.stamp(obj)
    assert obj["metadata"]["annotations"]["own"] == "1"
    assert tracecontext.context_of(obj["metadata"]["annotations"], NOW_S) == CONTEXT


def test_a_change_that_is_not_traced_takes_the_context_of_the_last_one_away() -> None:
    obj: dict[str, Any] = {"metadata": {"annotations": {"own": "1", TRACE_ANNOTATION: "x"}}}
    tracecontext.stamp(obj)
    assert obj == {"metadata": {"annotations": {"own": "1"}}}
    obj = {"metadata": {"annotations": {TRACE_ANNOTATION: "x"}}}
    tracecontext.stamp(obj)
    assert obj == {"metadata": {}}


def test_the_context_is_no_part_of_a_document() -> None:
    pod: dict[str, Any] = {
        "metadata": {"namespace": "d", "name": "p", "uid": "u"},
        "spec": {"containers": []},
    }
    plain = render_pod(pod)
    pod["metadata"]["annotations"] = {TRACE_ANNOTATION: "x"}
    assert render_pod(pod) == plain


def test_the_frame_carries_the_context_and_the_expected_acknowledgement_echoes_it(world: World) -> None:
    docs = FakeDocs()
    session = live(docs, traces=world.deliveries)
    docs.put("configmap/shop/c", b"{}")
    document = docs.documents["configmap/shop/c"]
    world.deliveries.learned(document, {TRACE_ANNOTATION: f"{CONTEXT.traceparent}@{NOW_S}"})
    session.changed(document.key)
    ((_, (header, _)),) = sent(session.pump())
    assert header["t"] == CONTEXT.traceparent
    last = session._shared.last_set
    assert json.loads(last.ack[wire.HEADER_BYTES :]) == {
        "a": [[document.key, document.version]],
        "t": [CONTEXT.traceparent],
    }
    assert session.took_last() == ()
    assert [s.attributes["cloudhub.echoed"] for s in world.ended if s.name == "channel"] == [True]


@pytest.mark.parametrize("answer", ["ack", "nack"])
def test_any_spelling_of_an_answer_ends_the_span(world: World, answer: str) -> None:
    docs = FakeDocs()
    session = live(docs, traces=world.deliveries)
    docs.put("configmap/shop/c", b"{}")
    document = docs.documents["configmap/shop/c"]
    world.deliveries.learned(document, {TRACE_ANNOTATION: f"{CONTEXT.traceparent}@{NOW_S}"})
    session.changed(document.key)
    session.pump()
    if answer == "ack":
        body: dict[str, Any] = {"t": [CONTEXT.traceparent], "a": [[document.key, document.version]]}
        session.receive(wire.ACK, 0, json.dumps(body).encode())
    else:
        body = {"k": document.key, "v": document.version, "reason": "NoRoom", "message": "x"}
        session.receive(wire.NACK, 0, json.dumps(body).encode())
    (channel,) = (s for s in world.ended if s.name == "channel")
    assert (channel.error, channel.attributes["cloudhub.echoed"]) == (
        ("", True) if answer == "ack" else ("NoRoom", False)
    )


def test_echoes_without_end_are_refused(world: World) -> None:
    session = live(FakeDocs(), traces=world.deliveries)
    session.receive(wire.ACK, 0, json.dumps({"a": [], "t": ["x"] * 5000}).encode())
    assert session.state == "closed"
