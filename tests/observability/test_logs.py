import io
import json
import logging
from collections.abc import Iterator

import pytest

from observability import logs
from observability.tracing import CURRENT, Context, Span


@pytest.fixture(autouse=True)
def root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_bears_node_slot_replica_and_the_trace_of_the_request() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream, replica="hub-2")
    log = logging.getLogger("hub.somewhere")
    before = CURRENT.set(Span("POST", "server", Context("a" * 32, "b" * 16), "", 1, {}))
    log.warning("node %s is on hold", "n1", extra=logs.about(node="n1", slot=0))
    CURRENT.reset(before)
    log.info("slot lost", extra=logs.about(slot=7))
    first, second = lines(stream)
    assert {k: v for k, v in first.items() if k != "ts"} == {
        "level": "warn",
        "logger": "hub.somewhere",
        "msg": "node n1 is on hold",
        "replica": "hub-2",
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
        "node": "n1",
        "slot": 0,
    }
    assert second["slot"] == 7 and not {"node", "trace_id", "span_id"} & second.keys()
