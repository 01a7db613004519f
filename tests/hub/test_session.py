"""The hub's session: what is sent when, how it is bounded, and that no peer can make it raise."""

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelite import wire
from edgelite.actions import Send as EdgeSend
from edgelite.desired import Desired, digest_of
from edgelite.session import Identity
from edgelite.session import Session as EdgeSession
from edgelite.upstream import Upstream
from hub.documents import Layers
from hub.hello import Answer
from hub.messages import (
    Action,
    Close,
    Confirmed,
    Foreign,
    Greeted,
    Refusals,
    Report,
    Send,
    StreamClosed,
    StreamData,
)
from hub.session import UNANSWERED_MAX, LastSet, Session, Shared
from security.policy import NODE, OWN, judge
from tests.hub.channel_fakes import FakeDocs, hello, version

WELCOME = {
    "proto": 1, "features": [], "store": "s", "gen": 1, "slot": 0, "epoch": 1, "claim": "0" * 16, "rev": 0,
    "heartbeat": 30.0, "window": 64, "time": 0.0, "sync": "match",
}  # fmt: skip
MATCH, DIFF, HOLD = Answer("match"), Answer("diff"), Answer("hold", "parted", "HistoryParted")


def live(
    docs: FakeDocs, answer: Answer = MATCH, *, hello_fields: dict[str, Any] | None = None, **shared: Any
) -> Session:
    session = Session(Shared(docs, **shared), "edge-1")
    greeted = session.receive(wire.HELLO, 0, hello(**(hello_fields or {})))
    assert isinstance(greeted[0], Greeted)
    session.welcomed(answer)
    return session


def sent(actions: Any) -> list[tuple[str, Any]]:
    """(message name, body) of what is sent; SET bodies as (header, document)."""
    decoder = wire.Decoder()
    out: list[tuple[str, Any]] = []
    for action in actions:
        if isinstance(action, Send):
            for kind, _, body in decoder.feed(action.data):
                if kind == wire.SET:
                    header, document = wire.split_set_body(body)
                    out.append(("SET", (json.loads(header), document)))
                elif kind == wire.DATA:
                    out.append(("DATA", body))
                else:
                    out.append((wire.NAMES[kind], json.loads(body) if body else None))
    return out


def names(actions: Any) -> list[str]:
    return [name for name, _ in sent(actions)]


def keys(actions: Any) -> list[str]:
    return [
        body[0]["k"] if name == "SET" else body["k"] for name, body in sent(actions) if name in ("SET", "DEL")
    ]


def ack(session: Session, *pairs: tuple[str, str]) -> Any:
    return session.receive(wire.ACK, 0, json.dumps({"a": pairs}).encode())


def change(session: Session, *changed: str) -> Any:
    for key in changed:
        session.changed(key)
    return session.pump()


def test_an_agent_that_does_not_know_services_is_told_of_none() -> None:
    docs = FakeDocs()
    docs.put("pod/shop/till/u", b"{}")
    own = dict(docs.documents)
    docs.put("service/shop/web", b"{}")
    shared = {"service/shop/web": docs.documents["service/shop/web"]}
    docs.documents = Layers(own, [shared])  # type: ignore[assignment]
    for features, known in ((["log"], own), (["services"], {**own, **shared})):
        session = live(docs, DIFF, hello_fields={"features": features})
        assert session.digest() == digest_of({key: d.version for key, d in known.items()})
        answered = session.receive(wire.PAIRS, 0, b'{"pairs":[]}')
        assert sorted(keys(answered)) == sorted(known)
        ack(session, *((key, d.version) for key, d in known.items()))
        assert keys(change(session, "service/shop/web")) == sorted(known.keys() & shared.keys())


def test_a_heartbeat_is_answered_without_anything_being_made() -> None:
    session = live(FakeDocs())
    first, second = session.receive(wire.PING, 0, b""), session.receive(wire.PING, 0, b"")
    assert names(first) == ["PONG"] and first is second


def test_only_what_differs_is_sent_and_then_synced() -> None:
    docs = FakeDocs()
    docs.put("pod/d/same/u", b"same")
    docs.put("pod/d/changed/u", b"new")
    docs.put("configmap/d/added", b"added")
    session = live(docs, DIFF)
    docs.put("pod/d/late/u", b"while PAIRS are under way")
    assert change(session, "pod/d/late/u") == ()
    held = [
        ["pod/d/same/u", version(b"same")],
        ["pod/d/changed/u", version(b"old")],
        ["secret/d/gone", "0" * 32],
    ]
    actions = session.receive(wire.PAIRS, 0, json.dumps({"pairs": held}).encode())
    assert keys(actions) == ["configmap/d/added", "pod/d/changed/u", "pod/d/late/u", "secret/d/gone"]
    name, body = sent(actions)[-1]
    assert name == "SYNCED" and body == {"digest": session.digest(), "r": docs.revision}


def test_a_key_that_changes_while_it_is_in_flight_is_sent_once_more_after_its_ack() -> None:
    docs = FakeDocs()
    session = live(docs)
    key = docs.put("pod/d/a/u", b"1")
    assert keys(change(session, key)) == [key]
    for text in (b"2", b"3", b"4"):
        assert keys(change(session, docs.put(key, text))) == []
    actions = ack(session, (key, version(b"1")))
    assert [body[1] for _, body in sent(actions)] == [b"4"]
    assert ack(session, (key, version(b"4"))) == []


def test_the_window_bounds_what_is_unacknowledged_in_count_and_bytes() -> None:
    docs = FakeDocs()
    session = live(docs, window=4, window_bytes=1000)
    wanted = [docs.put(f"pod/d/{i}/u", b"x" * 10) for i in range(10)]
    assert keys(change(session, *wanted)) == wanted[:4]
    assert keys(ack(session, *((k, version(b"x" * 10)) for k in wanted[:2]))) == wanted[4:6]
    session = live(docs, window=4, window_bytes=1000)
    big = [docs.put(f"pod/d/big{i}/u", b"y" * 900) for i in range(3)]
    assert keys(change(session, *big)) == big[:1]
    huge = docs.put("pod/d/big0/u", b"z" * 5000)
    assert keys(ack(session, (huge, version(b"y" * 900)))) == [big[1]]


def test_configs_are_sent_before_pods_and_deleted_after_them() -> None:
    docs = FakeDocs()
    session = live(docs)
    docs.put("pod/d/new/u", b"p")
    docs.put("secret/d/new", b"s")
    actions = change(session, "configmap/d/old", "pod/d/old/u", "pod/d/new/u", "secret/d/new")
    assert keys(actions) == ["secret/d/new", "pod/d/old/u", "pod/d/new/u", "configmap/d/old"]


def test_a_config_that_comes_back_while_its_deletion_waits_is_set() -> None:
    docs = FakeDocs()
    session = live(docs, window=1)
    first = docs.put("pod/d/a/u", b"1")
    change(session, first)
    change(session, "configmap/d/c")
    docs.put("configmap/d/c", b"again")
    change(session, "configmap/d/c")
    assert names(ack(session, (first, version(b"1")))) == ["SET"]


def test_what_is_not_known_yet_is_not_taken_away_until_it_is_known() -> None:
    docs = FakeDocs()
    docs.unknown = {"configmap/d/unread"}
    session = live(docs, DIFF)
    held = [["configmap/d/unread", "a" * 24], ["configmap/d/gone", "b" * 24]]
    actions = session.receive(wire.PAIRS, 0, json.dumps({"pairs": held}).encode())
    assert keys(actions) == ["configmap/d/gone"]
    ack(session, ("configmap/d/gone", ""))
    assert keys(change(session, "configmap/d/unread")) == []
    docs.unknown.clear()
    assert keys(change(session, "configmap/d/unread")) == ["configmap/d/unread"]


def test_a_document_above_the_nodes_limit_is_refused_here_and_its_old_version_stays_in_the_digest() -> None:
    docs = FakeDocs()
    key = docs.put("configmap/d/big", b"x" * 500)
    session = live(docs, DIFF, hello_fields={"limits": {"document": 100, "frame": 256}})
    assert session.refused is not None and session.refused[key][0] == "DocumentTooLarge"
    pairs = json.dumps({"pairs": [[key, "1" * 32]]}).encode()
    actions = session.receive(wire.PAIRS, 0, pairs)
    assert names(actions) == ["SYNCED"]
    from edgelite.desired import digest_of

    assert sent(actions)[0][1]["digest"] == digest_of({key: "1" * 32})


def test_long_documents_go_in_the_frames_that_the_node_takes() -> None:
    docs = FakeDocs()
    session = live(docs, hello_fields={"limits": {"document": 5000, "frame": 256}})
    key = docs.put("pod/d/a/u", bytes(range(256)) * 10)
    actions = change(session, key)
    decoder = wire.Decoder(256)
    messages = [m for a in actions if isinstance(a, Send) for m in decoder.feed(a.data)]
    assert len(messages) == 1 and wire.split_set_body(messages[0][2])[1] == bytes(range(256)) * 10


def test_a_refusal_frees_the_window_and_is_taken_back_by_an_ack() -> None:
    docs = FakeDocs()
    session = live(docs, window=1)
    a, b = docs.put("pod/d/a/u", b"a"), docs.put("pod/d/b/u", b"b")
    change(session, a, b)
    nack = {"k": a, "v": version(b"a"), "reason": "Unsupported", "message": "no"}
    actions = session.receive(wire.NACK, 0, json.dumps(nack).encode())
    assert actions[0] == Refusals(a, "Unsupported", "no") and keys(actions) == [b]
    ack(session, (b, version(b"b")))
    change(session, docs.put(a, b"better"))
    assert ack(session, (a, version(b"better"))) == [Refusals("", "", "")] and session.refused == {}


def test_acks_for_what_was_never_sent_change_nothing() -> None:
    docs = FakeDocs()
    session = live(docs)
    key = docs.put("pod/d/a/u", b"1")
    change(session, key)
    assert ack(session, (key, "0" * 32), (key, "")) == []
    assert ack(session, ("pod/d/other/u", "")) == [Foreign(wire.ACK, ("pod/d/other/u",))]
    change(session, docs.put(key, b"2"))
    assert keys(ack(session, (key, version(b"1")))) == [key]


def test_on_hold_nothing_but_heartbeats_and_renewals_pass() -> None:
    docs = FakeDocs()
    session = live(docs, HOLD)
    assert change(session, docs.put("pod/d/a/u", b"1")) == ()
    assert session.receive(wire.REPORT, 0, b'{"e":[{"n":1,"k":"node","t":"node","b":{}}]}') == ()
    assert session.receive(wire.PAIRS, 0, b'{"pairs":[]}') == ()
    assert names(session.receive(wire.PING, 0, b"")) == ["PONG"]
    assert len(session.receive(wire.RENEW, 0, b'{"csr":"x"}')) == 1
    assert session.open_stream({}, 1) is None and session.stored([1], 1, []) == ()


def test_the_first_proof_after_a_takeover_is_told_once() -> None:
    docs = FakeDocs()
    session = live(docs, Answer("match", taken_over=True, confirmed="c"))
    report = b'{"e":[{"n":1,"k":"node","t":"node","b":{}}]}'
    actions = session.receive(wire.REPORT, 0, report)
    assert isinstance(actions[0], Confirmed) and isinstance(actions[1], Report)
    assert [type(a) for a in session.receive(wire.REPORT, 0, report)] == [Report]


def test_reports_without_end_close_the_connection() -> None:
    session = live(FakeDocs())
    entries = [{"n": n, "k": "node", "t": "node", "b": {}} for n in range(1000)]
    actions: Any = ()
    for _ in range(UNANSWERED_MAX // 1000 + 1):
        actions = session.receive(wire.REPORT, 0, json.dumps({"e": entries}).encode())
    assert actions[0].code == "overload"


def test_stream_data_beyond_its_credit_closes_the_connection_and_late_data_does_not() -> None:
    session = live(FakeDocs(), streams_max=2)
    opened = session.open_stream({"kind": "log"}, 10)
    assert opened is not None
    stream, actions = opened
    assert sent(actions) == [("OPEN", {"kind": "log", "credit": 10})] and stream % 2 == 1
    assert session.receive(wire.DATA, stream, b"12345") == (StreamData(stream, b"12345"),)
    session.grant(stream, 5)
    assert session.receive(wire.DATA, stream, b"1234567890") == (StreamData(stream, b"1234567890"),)
    other = session.open_stream({}, 1)
    assert other is not None and session.open_stream({}, 1) is None
    assert names(session.close_stream(stream)) == ["CLOSE"]
    assert session.receive(wire.DATA, stream, b"late") == (Foreign(wire.DATA),)
    assert session.receive(wire.CLOSE, other[0], b"{}") == (StreamClosed(other[0], None),)
    again = session.open_stream({}, 1)
    assert again is not None
    closing = session.receive(wire.DATA, again[0], b"12")
    assert isinstance(closing[0], Close) and closing[0].code == "protocol"


@pytest.mark.parametrize(
    "fields",
    [
        {"proto": [2, 3]},
        {"inc": "short"},
        {"boot": -1},
        {"conn": "7"},
        {"digest": None},
        {"features": ["x"] * 100},
        {"claim": {"store": "s"}},
        {"limits": {"document": 1}},
        {"rev": 1.5},
    ],
)
def test_every_field_of_hello_is_checked(fields: dict[str, Any]) -> None:
    session = Session(Shared(FakeDocs()), "edge-1")
    (action,) = session.receive(wire.HELLO, 0, hello(**fields))
    assert isinstance(action, Close) and action.code == "protocol" and session.state == "closed"


def test_a_newer_agent_with_unknown_fields_and_a_wider_range_is_served() -> None:
    session = Session(Shared(FakeDocs()), "edge-1")
    (action,) = session.receive(wire.HELLO, 0, hello(proto=[1, 9], features=["log", "warp"], colour="red"))
    assert isinstance(action, Greeted)


def test_messages_before_hello_and_a_second_hello_end_the_connection() -> None:
    session = Session(Shared(FakeDocs()), "edge-1")
    (action,) = session.receive(wire.PING, 0, b"")
    assert isinstance(action, Close) and action.code == "protocol"
    session = live(FakeDocs())
    (action,) = session.receive(wire.HELLO, 0, hello())
    assert isinstance(action, Close)


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
BODIES = (
    st.binary(max_size=64)
    | JSONISH.map(lambda v: json.dumps(v).encode())
    | st.fixed_dictionaries(
        {},
        optional={
            "a": st.lists(st.lists(st.text(max_size=8), max_size=3), max_size=4),
            "e": st.lists(
                st.fixed_dictionaries({}, optional={"n": JSONISH, "k": JSONISH, "t": JSONISH}), max_size=3
            ),
            "pairs": st.lists(st.lists(st.sampled_from(["pod/d/a/u", "configmap/d/c", "é", ""]), max_size=3)),
            "k": st.sampled_from(["pod/d/a/u", 7]),
            "v": st.text(max_size=4),
            "csr": JSONISH,
            "error": JSONISH,
        },
    ).map(lambda v: json.dumps(v).encode())
)
FRAMES = st.lists(st.tuples(st.integers(0, 33), st.integers(0, 65535), BODIES), max_size=30)


@settings(max_examples=100, deadline=None)
@given(frames=FRAMES, answer=st.sampled_from([None, MATCH, DIFF, HOLD]), edits=st.lists(st.integers(0, 3)))
def test_no_message_makes_the_session_raise(frames: Any, answer: Answer | None, edits: list[int]) -> None:
    docs = FakeDocs()
    session = Session(Shared(docs, window=2), "edge-1")
    if answer is not None:
        session.receive(wire.HELLO, 0, hello())
        session.welcomed(answer)
        session.open_stream({}, 16)
    for i, (kind, stream, body) in enumerate(frames):
        actions: Any = session.receive(kind, stream, body)
        assert all(isinstance(a, Action.__args__) for a in actions)  # type: ignore[attr-defined]
        if any(isinstance(a, Close) for a in actions):
            assert session.state == "closed"
        if i < len(edits):
            key = ("pod/d/a/u", "configmap/d/c", "secret/d/s", "pod/d/b/u")[edits[i]]
            docs.put(key, bytes([i])) if i % 2 else docs.drop(key)
            session.changed(key)
            session.pump()


def put_in_flight(session: Session, docs: FakeDocs, key: str, body: bytes = b"shared") -> Any:
    return change(session, docs.put(key, body))


class Always:
    """Every document is of a traced change."""

    def context(self, document: Any) -> str:
        return f"00-{'a' * 32}-{'b' * 16}-01"

    def sent(self, node: str, document: Any) -> None: ...

    def landed(self, node: str, key: str, version: str, echoes: Any, refused: str = "") -> None: ...


@pytest.mark.parametrize("traces", [None, Always()])
def test_the_acknowledgement_that_is_expected_is_the_one_that_agents_write(traces: Always | None) -> None:
    docs = FakeDocs()
    session = live(docs, traces=traces)
    key = "configmap/d/c"
    put_in_flight(session, docs, key)
    desired = Desired()
    edge = EdgeSession(desired, Upstream(), Identity("ab" * 16, 1, 1), lambda k, d: None, {}.get)
    edge.start(0.0)
    edge.receive(wire.WELCOME, 0, json.dumps(WELCOME).encode(), 0.0)
    edge.writes()
    edge.commit(0.0)
    set_frame = session._shared.last_set.alone[0].data
    for message in wire.Decoder().feed(set_frame):
        edge.receive(*message, 0.0)
    edge.writes()
    acks = [a.data for a in edge.commit(0.0) if isinstance(a, EdgeSend) and a.data[0] == wire.ACK]
    assert acks == [session._shared.last_set.ack]


STATES = st.tuples(
    st.sampled_from(["live", "hold", "hello", "confirming", "pairs"]),
    st.booleans(),  # the last SET is in flight here
    st.booleans(),  # another document is, too
    st.booleans(),  # a key waits behind a full window
    st.booleans(),  # a document was refused before
)


def prepared(docs: FakeDocs, last: LastSet, state: tuple[str, bool, bool, bool, bool]) -> Session:
    name, last_in_flight, other_in_flight, waits, refused = state
    window = 2 if other_in_flight and last_in_flight else 1
    shared = Shared(docs, window=window, last_set=last)
    session = Session(shared, "edge-1")
    if name == "hello":
        return session
    session.receive(wire.HELLO, 0, hello())
    session.welcomed(
        {"hold": HOLD, "confirming": Answer("match", taken_over=True), "pairs": DIFF}.get(name, MATCH)
    )
    session.refused = {"configmap/d/last": ("R", "m")} if refused else None
    if other_in_flight:
        change(session, "pod/d/other/u")
    if last_in_flight:
        change(session, "configmap/d/last")
    if waits:
        session.changed("pod/d/waits/u")
    return session


@given(STATES)
@settings(max_examples=200, deadline=None)
def test_the_shortcut_for_an_acknowledgement_does_what_decoding_it_does(
    state: tuple[str, bool, bool, bool, bool],
) -> None:
    docs = FakeDocs()
    for key in ("pod/d/other/u", "pod/d/waits/u", "configmap/d/last"):
        docs.put(key, key.encode())
    last = LastSet()
    short, whole = (prepared(docs, last, state) for _ in range(2))
    assert last.of(docs.documents["configmap/d/last"], docs.revision, docs, wire.FRAME_BYTES_MAX)
    body = last.ack[wire.HEADER_BYTES :]
    assert judge(NODE, wire.ACK, OWN, len(body)) is None
    assert list(short.took_last()) == list(whole.receive(wire.ACK, 0, body))
    fields = [name for name in Session.__slots__ if name != "_shared"]
    assert [getattr(short, f) for f in fields] == [getattr(whole, f) for f in fields]
    assert list(short.pump()) == list(whole.pump())


def test_one_change_for_many_nodes_is_put_together_once() -> None:
    docs = FakeDocs()
    shared = Shared(docs)
    sessions = [Session(shared, f"edge-{i}") for i in range(3)]
    for session in sessions:
        session.receive(wire.HELLO, 0, hello())
        session.welcomed(MATCH)
    key = docs.put("configmap/d/c", b"text")
    first, second, third = [change(session, key) for session in sessions]
    assert names(first) == ["SET"] and first[0] is second[0] and second is third


def test_what_is_shared_fits_each_node_and_names_the_revision_of_its_own_moment() -> None:
    docs = FakeDocs()
    shared = Shared(docs)
    limits: list[dict[str, Any]] = [
        {},
        {},
        {"limits": {"document": 1 << 20, "frame": 1000}},
        {"limits": {"document": 1500, "frame": 1 << 20}},
    ]
    sessions = [Session(shared, f"edge-{i}") for i in range(len(limits))]
    for session, fields in zip(sessions, limits, strict=True):
        session.receive(wire.HELLO, 0, hello(**fields))
        session.welcomed(MATCH)
    key = docs.put("configmap/d/c", b"x" * 2000)
    (first,) = sent(change(sessions[0], key))
    docs.revision += 1
    (later,) = sent(change(sessions[1], key))
    assert (first[1][0]["r"], later[1][0]["r"]) == (docs.revision - 1, docs.revision)
    (cut,) = change(sessions[2], key)
    assert sent([cut]) == [later] and cut.data.count(struct.pack(">BB", wire.SET, wire.MORE)) == 2
    (refused,) = change(sessions[3], key)
    assert isinstance(refused, Refusals) and refused.reason == "DocumentTooLarge"
