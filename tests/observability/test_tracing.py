"""Which requests are followed, and how spans hang together."""

import pytest

from observability.tracing import PER_S, SERVER, Context, Span, Tracer, parse

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Clock:
    def __init__(self) -> None:
        self.ns = 1_700_000_000_000_000_000

    def __call__(self) -> int:
        return self.ns


def tracer(ratio: float, chance: float = 0.5, trusting: bool = True) -> tuple[Tracer, list[Span], Clock]:
    ended: list[Span] = []
    clock = Clock()
    return Tracer(ratio, ended.append, trusting=trusting, wall_ns=clock, chance=lambda: chance), ended, clock


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"00-{TRACE}-{PARENT}-01", (Context(TRACE, PARENT), True)),
        (f"00-{TRACE}-{PARENT}-00", (Context(TRACE, PARENT), False)),
        (f"00-{TRACE}-{PARENT}-03", (Context(TRACE, PARENT), True)),
        (f"01-{TRACE}-{PARENT}-01-more", (Context(TRACE, PARENT), True)),
        (f"00-{TRACE}-{PARENT}-01-more", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{PARENT}-01", None),
        (f"00-{TRACE}-{PARENT}", None),
        ("00-" + "4" * 100_000, None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_as_the_standard_has_it(text: str, expected: object) -> None:
    assert parse(text) == expected


def test_a_request_that_says_nothing_is_followed_by_the_ratio() -> None:
    assert tracer(0.4)[0].begin("POST", "", {}) is None
    span = tracer(0.6)[0].begin("POST", "", {})
    assert span is not None and span.kind == SERVER and span.parent_id == ""
    assert parse(span.context.traceparent) == (span.context, True)


def test_a_clients_traceparent_decides_and_becomes_the_parent() -> None:
    never, always = tracer(0.0)[0], tracer(1.0)[0]
    span = never.begin("POST", f"00-{TRACE}-{PARENT}-01", {})
    assert span is not None and (span.context.trace_id, span.parent_id) == (TRACE, PARENT)
    assert always.begin("POST", f"00-{TRACE}-{PARENT}-00", {}) is None
    assert always.begin("POST", "nonsense", {}) is not None
    alone = tracer(1.0, trusting=False)[0].begin("POST", f"00-{TRACE}-{PARENT}-00", {})
    assert alone is not None and alone.context.trace_id != TRACE


def test_no_more_are_followed_in_a_second_than_the_bound_whoever_asks() -> None:
    made, _, clock = tracer(0.0)
    asked = f"00-{TRACE}-{PARENT}-01"
    assert sum(made.begin("POST", asked, {}) is not None for _ in range(PER_S + 5)) == PER_S
    assert (made.sampled, made.limited) == (PER_S, 5)
    clock.ns += 1_000_000_000
    assert made.begin("POST", asked, {}) is not None


def test_a_span_ends_once_it_is_over_and_never_before_it_began() -> None:
    made, ended, clock = tracer(1.0)
    root = made.begin("POST", "", {"a": 1})
    assert root is not None and ended == []
    child = made.child("txn", "client", root.context, clock.ns + 5, {})
    made.end(child, "conflict", clock.ns)
    assert (child.parent_id, child.context.trace_id) == (root.context.span_id, root.context.trace_id)
    assert (child.end_ns, child.error) == (child.start_ns, "conflict") and ended == [child]
