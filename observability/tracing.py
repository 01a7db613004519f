"""Traces: which requests are followed, and the spans of those that are.

A span costs nothing where nobody is followed: the decision is made once, at the API, and whoever comes later only looks
whether there is a context. Contexts travel as W3C `traceparent` texts (https://www.w3.org/TR/trace-context/). Spans that
have ended go to a `sink`, such as `observability.otlp`; nothing here knows OpenTelemetry's library.

Bound: `PER_S` requests a second are followed at most, also of clients that ask for it; what is more is counted.
"""

import random
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

PER_S: Final = 50
TRACEPARENT_CHARS: Final = 55
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_SAMPLED: Final = 1
SERVER, CLIENT, INTERNAL = "server", "client", "internal"


class Context(NamedTuple):
    """A span's place: 32 and 16 hex digits."""

    trace_id: str
    span_id: str

    @property
    def traceparent(self) -> str:
        """As others read it; sampled, for what is not is not passed on."""
        return f"00-{self.trace_id}-{self.span_id}-01"


def parse(text: str) -> tuple[Context, bool] | None:
    """A traceparent's context, and whether it is sampled; None for what is none. Later versions may be longer."""
    found = _TRACEPARENT.fullmatch(text[: 2 * TRACEPARENT_CHARS])
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return Context(trace_id, span_id), bool(int(flags, 16) & _SAMPLED)


class Span:
    """Something that took a while. `start_ns`, `end_ns`: unix time. `error`: why it failed, "" when it did not."""

    __slots__ = ("attributes", "context", "end_ns", "error", "kind", "name", "parent_id", "start_ns")

    def __init__(
        self,
        name: str,
        kind: str,
        context: Context,
        parent_id: str,
        start_ns: int,
        attributes: dict[str, Any],
    ) -> None:
        self.name = name
        self.kind = kind
        self.context = context
        self.parent_id = parent_id
        self.start_ns = start_ns
        self.end_ns = 0
        self.attributes = attributes
        self.error = ""


CURRENT: ContextVar[Span | None] = ContextVar("span", default=None)
"""Of the request that is being served; None where it is not followed."""


class Tracer:
    """Decides and makes spans. `ratio`: of requests that say nothing about it, 0 to 1. `trusting`: a client's traceparent
    decides, as in OpenTelemetry's parent-based samplers."""

    def __init__(
        self,
        ratio: float,
        sink: Callable[[Span], None],
        *,
        trusting: bool = True,
        wall_ns: Callable[[], int] = time.time_ns,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._ratio = ratio
        self._sink = sink
        self._trusting = trusting
        self.now_ns = wall_ns
        self._chance = chance
        self._second = self._begun = 0
        self.sampled = self.limited = self.spans = 0

    def begin(self, name: str, traceparent: str, attributes: dict[str, Any]) -> Span | None:
        """The span of a request that has just come; None where it is not followed."""
        parent = parse(traceparent) if traceparent and self._trusting else None
        wanted = parent[1] if parent is not None else self._chance() < self._ratio
        if not wanted or not self._has_room():
            return None
        self.sampled += 1
        if parent is None:
            return Span(name, SERVER, Context(_digits(128), _digits(64)), "", self.now_ns(), attributes)
        return self.child(name, SERVER, parent[0], self.now_ns(), attributes)

    def child(self, name: str, kind: str, parent: Context, start_ns: int, attributes: dict[str, Any]) -> Span:
        """A span below another one, wherever that is."""
        context = Context(parent.trace_id, _digits(64))
        return Span(name, kind, context, parent.span_id, start_ns, attributes)

    def end(self, span: Span, error: str = "", end_ns: int = 0) -> None:
        """It is over; once. `end_ns` 0: now."""
        span.error = error
        span.end_ns = max(end_ns or self.now_ns(), span.start_ns)
        self.spans += 1
        self._sink(span)

    def _has_room(self) -> bool:
        second = self.now_ns() // 1_000_000_000
        if second != self._second:
            self._second, self._begun = second, 0
        if self._begun >= PER_S:
            self.limited += 1
            return False
        self._begun += 1
        return True


def _digits(bits: int) -> str:
    """Random hex digits, not all zero."""
    return f"{random.getrandbits(bits) or 1:0{bits // 4}x}"
