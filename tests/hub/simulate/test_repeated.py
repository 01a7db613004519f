import json
from collections.abc import Callable
from typing import Any

import pytest

from edgelite import wire
from edgelite.actions import Send
from edgelite.desired import Desired, version_of
from edgelite.session import Identity, Session
from edgelite.upstream import Upstream
from hub.simulate.repeated import LastSet, SimSession

KEY = "configmap/default/shared"
WELCOME: dict[str, Any] = {
    "proto": 1, "features": [], "store": "s", "gen": 1, "slot": 5, "epoch": 7, "claim": "c", "rev": 1,
    "heartbeat": 30.0, "window": 64, "time": 1, "sync": "match",
}  # fmt: skip


def live() -> SimSession:
    session = SimSession(
        Desired("sim"), Upstream(), Identity("ab" * 16, 1, 1), lambda key, document: None, lambda key: None
    )
    session.start(0.0)
    session.receive(wire.WELCOME, 0, json.dumps(WELCOME).encode(), 0.0)
    session.writes()
    session.commit(0.0)
    return session


def frame(text: str, revision: int, trace: str = "", key: str = KEY) -> bytes:
    document = json.dumps({"data": {"simulate.cloudhub.dev.at": "17", "text": text}}, separators=(",", ":"))
    header = {"k": key, "v": version_of(document.encode()), "r": revision, **({"t": trace} if trace else {})}
    return wire.message(wire.SET, wire.set_body(json.dumps(header).encode(), document.encode()))


def take(session: SimSession, data: bytes, now: float) -> tuple[list[Any], LastSet | None]:
    """As a node does for which the SET is new: what its session did, and what the others may repeat."""
    ((kind, stream, body),) = wire.Decoder().feed(data)
    assert session.receive(kind, stream, body, now) == []
    session.writes()
    actions = session.commit(now)
    return actions, LastSet.of(data, body, actions)


def state_of(session: Session) -> dict[str, Any]:
    return {
        name: {**vars(value)} if isinstance(value, Desired) else value
        for name, value in vars(session).items()
        if name not in ("_identity", "_admit", "_fetch", "_upstream")
    } | {"claim": None, "_desired": {k: v for k, v in vars(session._desired).items() if k != "claim"}}


@pytest.mark.parametrize("trace", ["", "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"])
def test_a_set_that_is_taken_again_leaves_what_taking_it_in_full_leaves(trace: str) -> None:
    first, again, full = live(), live(), live()
    # The last one is of a hub that is behind: the highest revision counts.
    for now, revision in enumerate((9, 12, 11), start=1):
        data = frame(f"{now}", revision, trace)
        _, last = take(first, data, now)
        assert last is not None and (last.key, last.revision, last.at_ns) == (KEY, revision, 17)
        actions, _ = take(full, data, now)
        assert again.take_again(last, now)
        assert state_of(again) == state_of(full)
        assert [a.data for a in actions if isinstance(a, Send)] == [last.ack]


def something_to_report(session: SimSession) -> None:
    session._upstream.add("pod", "pod/a/b/u", {})


def something_staged(session: SimSession) -> None:
    ((kind, stream, body),) = wire.Decoder().feed(frame("other", 3, key="configmap/default/other"))
    session.receive(kind, stream, body, 1.0)


def refused(session: SimSession) -> None:
    session._desired.refusals[KEY] = ("Invalid", "no")


def held(session: SimSession) -> None:
    session.state = "hold"


def had(session: SimSession) -> None:
    take(session, frame("new", 5), 1.0)


@pytest.mark.parametrize("more", [something_to_report, something_staged, refused, held, had])
def test_a_session_with_more_on_its_mind_takes_nothing_again(more: Callable[[SimSession], None]) -> None:
    _, last = take(live(), frame("new", 5), 1.0)
    session = live()
    more(session)
    before = state_of(session)
    assert last is not None and not session.take_again(last, 2.0)
    assert state_of(session) == before


def test_only_what_every_node_would_answer_alike_is_taken_again() -> None:
    assert take(live(), frame("a", 2, key="pod/default/web/u1"), 1.0)[1] is None  # its reports follow
    session = live()
    something_to_report(session)
    assert take(session, frame("a", 2), 1.0)[1] is None
    had(session)
    assert take(session, frame("new", 6), 1.0)[1] is None  # an acknowledgement of what was there
