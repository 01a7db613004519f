"""Both ends of the channel, without sockets: the hub's session and the agent's own, over a link that loses connections."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from edgelite import wire
from edgelite.actions import Close as EdgeClose
from edgelite.actions import Send as EdgeSend
from edgelite.desired import DOCUMENT, Desired
from edgelite.session import Identity
from edgelite.session import Session as EdgeSession
from edgelite.upstream import Upstream
from hub.hello import Standing, answer, welcome
from hub.messages import Close, Greeted, Send
from hub.session import Session, Shared
from shards.claims import Claim, SlotRecord
from tests.hub.channel_fakes import INC, FakeDocs

CLAIM = Claim(1, "c1", 5, 0.0)
RECORD = SlotRecord(1, (CLAIM,))


class Link:
    """An agent with a dict for a journal, and a hub; `step` moves one message in one direction."""

    def __init__(self) -> None:
        self.docs = FakeDocs()
        self.journal: dict[str, bytes] = {}
        self.conn = 0
        self.applied = 0
        self.documents_sent = 0
        self.connect()

    def connect(self) -> None:
        """A new connection: what was under way is lost, what was not synced is forgotten."""
        self.conn += 1
        desired = Desired()
        desired.load([(k, v) for k, v in self.journal.items() if k.startswith(("doc/", "meta/"))])
        self.desired = desired
        self.edge = EdgeSession(
            desired, Upstream(), Identity(INC, 1, self.conn), lambda k, d: None, self.journal.get
        )
        self.hub = Session(Shared(self.docs, window=3), "edge-1")
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self.up_decoder, self.down_decoder = wire.Decoder(), wire.Decoder()
        self._edge_actions(self.edge.start(0.0))

    def _edge_actions(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, EdgeSend):
                self.up.append(action.data)
            assert not isinstance(action, EdgeClose), action.message

    def commit(self) -> None:
        """The agent's disk: journal, then acknowledge."""
        for key, value in self.edge.writes():
            if value is None:
                self.journal.pop(key, None)
            else:
                self.journal[key] = value
        self._edge_actions(self.edge.commit(0.0))

    def _hub_actions(self, actions: Any) -> None:
        for action in actions:
            assert not isinstance(action, Close), action
            if isinstance(action, Send):
                self.down.append(action.data)
            elif isinstance(action, Greeted):
                standing = Standing("s", 1, 3, CLAIM, RECORD, self.docs.revision)
                decided = answer(action.hello, standing, self.hub.digest())
                assert decided.sync != "hold", decided.reason
                body = welcome(action.hello, standing, decided, heartbeat_s=30.0, window=3, now_unix=0.0)
                self.down.append(wire.frame(wire.WELCOME, body))
                self._hub_actions(self.hub.welcomed(decided))

    def step(self) -> bool:
        """Moves one message up and one down; False when nothing was under way."""
        moved = bool(self.up or self.down)
        if self.up:
            for message in self.up_decoder.feed(self.up.pop(0)):
                self._hub_actions(self.hub.receive(*message))
        if self.down:
            for kind, stream, body in self.down_decoder.feed(self.down.pop(0)):
                self.documents_sent += kind in (wire.SET, wire.DEL)
                self._edge_actions(self.edge.receive(kind, stream, body, 0.0))
        return moved

    def change(self, key: str, body: bytes | None) -> None:
        self.hub.changed(self.docs.put(key, body) if body is not None else self.docs.drop(key))
        self._hub_actions(self.hub.pump())

    def settle(self) -> None:
        for _ in range(1000):
            moved = self.step()
            self.commit()
            if not moved and not self.up:
                return
        raise AssertionError("the two ends do not come to rest")

    def check(self) -> None:
        """Both ends, and the journal, hold the same."""
        wanted = {key: d.version for key, d in self.docs.documents.items()}
        assert self.desired.versions == wanted
        journalled = {
            k.removeprefix(DOCUMENT): json.loads(v.split(b"\n", 1)[0])["v"]
            for k, v in self.journal.items()
            if k.startswith(DOCUMENT)
        }
        assert journalled == wanted


KEYS = ["pod/d/a/u", "pod/d/b/u", "configmap/d/c", "secret/d/s", "pod/d/e/u"]
OPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(KEYS), st.integers(0, 5)),
    st.tuples(st.just("drop"), st.sampled_from(KEYS), st.just(0)),
    st.tuples(st.just("step"), st.just(""), st.integers(1, 4)),
    st.tuples(st.just("commit"), st.just(""), st.just(0)),
    st.tuples(st.just("cut"), st.just(""), st.just(0)),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(OPS, max_size=60))
def test_whatever_happens_to_the_link_both_ends_agree_in_the_end(ops: list[tuple[str, str, int]]) -> None:
    link = Link()
    for op, key, n in ops:
        if op == "put":
            link.change(key, b"body %d" % n)
        elif op == "drop":
            link.change(key, None)
        elif op == "step":
            for _ in range(n):
                link.step()
        elif op == "commit":
            link.commit()
        else:
            link.connect()
    link.settle()
    link.check()
    link.documents_sent = 0
    link.connect()
    link.settle()
    link.check()
    assert link.documents_sent == 0, "a digest that matches brings no document"
