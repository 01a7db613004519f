"""Runs on CPython under pytest and, unmodified, in the MicroPython VM."""

import json

from edgelite import wire
from edgelite.actions import Apply, Bundle, Close, Delivered, Note, Renewed, Send, Stream, Welcomed
from edgelite.desired import Claim, Desired, digest_of, version_of
from edgelite.journal import Journal, JournalError
from edgelite.session import Identity, Session
from edgelite.upstream import Upstream
from tests.edgelite.memory_files import MemoryFiles

CLAIM = {"store": "s1", "gen": 1, "slot": 5, "epoch": 7, "id": "c7"}


class Edge:
    """An agent around the session: a journal in memory, the hub played by the test."""

    def __init__(self, files=None, limit=1000, mark="m"):
        self.files = files or MemoryFiles()
        self.journal = Journal(self.files, "j")
        self.desired = Desired(mark)
        self.running = dict(self.desired.load(self.journal.items("doc/") + self.journal.items("meta/")))
        self.upstream = Upstream()
        self.upstream.load(self.journal.items("up/") + self.journal.items("meta/n"))
        self.refuse = {}
        self.limit = limit
        self.now = 100.0
        self.conn = 0
        self.actions = []
        self.session = None

    def connect(self):
        self.conn += 1
        self.session = Session(
            self.desired,
            self.upstream,
            Identity("inc", 3, self.conn, self.limit),
            lambda key, body: self.refuse.get(key),
            self.journal.get,
        )
        return self.perform(self.session.start(self.now))

    def perform(self, actions, sync=True):
        """The driver's turn; returns the messages sent as (type, body)."""
        done = list(actions)
        self.journal.write(self.session.writes() or [("meta/none", None)])
        if sync:
            try:
                self.journal.sync()
            except JournalError:
                pass
            else:
                done += self.session.commit(self.now)
        for action in done:
            if isinstance(action, Apply):
                if action.body is None:
                    self.running.pop(action.key, None)
                else:
                    self.running[action.key] = action.body
        self.actions += done
        return messages(done)

    def get(self, kind, body=b"", stream=0, sync=True):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return self.perform(self.session.receive(kind, stream, body, self.now), sync)

    def welcome(self, sync="match", claim=None, **more):
        claim = claim or CLAIM
        body = {
            "proto": 1,
            "features": [],
            "store": claim["store"],
            "gen": claim["gen"],
            "slot": claim["slot"],
            "epoch": claim["epoch"],
            "claim": claim["id"],
            "rev": 10,
            "heartbeat": 10.0,
            "window": 4,
            "time": 1700000000,
            "sync": sync,
        }
        body.update(more)
        return self.get(wire.WELCOME, body)

    def set(self, key, document, revision=11, sync=True):
        header = json.dumps({"k": key, "v": version_of(document), "r": revision}).encode()
        return self.get(wire.SET, wire.set_body(header, document), sync=sync)

    def live(self):
        self.connect()
        self.welcome()
        return self

    def tick(self, seconds):
        self.now += seconds
        return self.perform(self.session.tick(self.now))

    def report(self, kind, key, body, volatile=False):
        self.journal.write(self.upstream.add(kind, key, body, volatile) or [("meta/none", None)])

    def last(self, kind):
        found = [a for a in self.actions if isinstance(a, kind)]
        return found[-1] if found else None

    def restart(self, mark="m"):
        return Edge(MemoryFiles(self.files.durable), self.limit, mark)


def messages(actions):
    decoder = wire.Decoder()
    out = []
    for action in actions:
        if isinstance(action, Send):
            for kind, _, body in decoder.feed(action.data):
                out.append((kind, json.loads(body) if body else None))
    return out


def kinds(sent):
    return [wire.NAMES[kind] for kind, _ in sent]


def test_hello_says_what_is_held():
    edge = Edge().live()
    edge.set("pod/a/b/u", b"{}", 42)
    again = edge.restart()
    kind, body = again.connect()[0]
    assert kind == wire.HELLO
    assert body["proto"] == [1, 1]
    assert (body["inc"], body["boot"], body["conn"]) == ("inc", 3, 1)
    assert body["digest"] == digest_of({"pod/a/b/u": version_of(b"{}")})
    assert body["docs"] == 1
    assert body["claim"] == CLAIM
    assert body["rev"] == 42
    assert body["limits"] == {"document": 1000, "frame": 1 << 20}


def test_a_first_hello_holds_nothing():
    _, body = Edge().connect()[0]
    assert body["claim"] is None
    assert body["rev"] == 0
    assert body["digest"] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_matching_digest_sends_nothing_more():
    edge = Edge()
    edge.connect()
    assert edge.welcome() == []
    assert edge.last(Welcomed).hold == ""
    assert edge.last(Welcomed).time == 1700000000


def test_a_set_is_acknowledged_and_applied_only_when_it_is_durable():
    edge = Edge().live()
    assert edge.set("pod/a/b/u", b"{}", sync=False) == []
    assert edge.running == {}
    edge.journal.sync()
    sent = edge.perform(edge.session.commit(edge.now))
    assert sent == [(wire.ACK, {"a": [["pod/a/b/u", version_of(b"{}")]]})]
    assert edge.running == {"pod/a/b/u": b"{}"}
    assert edge.restart().running == {"pod/a/b/u": b"{}"}


def test_acknowledgements_of_one_turn_share_a_frame():
    edge = Edge().live()
    edge.set("configmap/a/b", b"1", sync=False)
    edge.set("pod/a/b/u", b"2", sync=False)
    sent = edge.get(wire.DEL, {"k": "pod/a/c/v", "r": 12})
    assert kinds(sent) == ["ACK"]
    assert sent[0][1]["a"] == [
        ["configmap/a/b", version_of(b"1")],
        ["pod/a/b/u", version_of(b"2")],
        ["pod/a/c/v", ""],
    ]


def test_a_del_removes_the_document():
    edge = Edge().live()
    edge.set("pod/a/b/u", b"{}")
    edge.get(wire.DEL, {"k": "pod/a/b/u", "r": 12})
    assert edge.running == {}
    assert edge.restart().desired.versions == {}
    assert edge.restart().desired.revision == 12


def test_a_full_disk_acknowledges_and_applies_nothing_while_heartbeats_go_on():
    edge = Edge().live()
    edge.files.room = 0
    assert edge.set("pod/a/b/u", b"{}") == []
    assert edge.running == {}
    assert kinds(edge.tick(10)) == ["PING"]
    assert kinds(edge.get(wire.PING)) == ["PONG"]
    edge.files.room = None
    assert kinds(edge.tick(1)) == ["ACK"]
    assert edge.running == {"pod/a/b/u": b"{}"}


def test_while_the_disk_is_full_a_new_hello_claims_only_what_is_durable():
    edge = Edge().live()
    edge.set("pod/a/b/u", b"old")
    edge.files.room = 0
    edge.set("pod/a/b/u", b"new", 50)
    _, hello = edge.connect()[0]
    assert hello["digest"] == digest_of({"pod/a/b/u": version_of(b"old")})
    assert hello["rev"] == 11


def test_bytes_that_do_not_have_their_version_end_the_connection():
    edge = Edge().live()
    header = json.dumps({"k": "pod/a/b/u", "v": "0" * 32, "r": 11}).encode()
    sent = edge.get(wire.SET, wire.set_body(header, b"{}"))
    assert kinds(sent) == ["GOAWAY"]
    assert edge.last(Close).code == "protocol"
    assert edge.journal.items("doc/") == []


def test_a_refusal_is_journalled_answered_and_part_of_the_digest():
    edge = Edge().live()
    edge.refuse["pod/a/b/u"] = ("TooManyPods", "256 pods run here")
    sent = edge.set("pod/a/b/u", b"{}")
    want = {"k": "pod/a/b/u", "v": version_of(b"{}"), "reason": "TooManyPods", "message": "256 pods run here"}
    assert sent == [(wire.NACK, want)]
    assert edge.running == {}
    again = edge.restart()
    assert again.desired.digest() == digest_of({"pod/a/b/u": version_of(b"{}")})
    assert again.desired.refusals == {"pod/a/b/u": ("TooManyPods", "256 pods run here")}
    assert again.running == {}


def test_a_refused_update_leaves_the_accepted_document_running_also_after_a_restart():
    edge = Edge().live()
    edge.set("pod/a/b/u", b"good", sync=False)
    edge.refuse["pod/a/b/u"] = ("Bad", "no")
    edge.set("pod/a/b/u", b"bad 1")
    edge.set("pod/a/b/u", b"bad 2")
    assert edge.running == {"pod/a/b/u": b"good"}
    again = edge.restart()
    assert again.running == {"pod/a/b/u": b"good"}
    assert again.desired.versions == {"pod/a/b/u": version_of(b"bad 2")}


def test_an_agent_that_changed_forgets_refusals_so_that_the_document_comes_again():
    edge = Edge().live()
    edge.refuse["pod/a/b/u"] = ("Bad", "no")
    edge.set("pod/a/b/u", b"bad")
    assert edge.restart("other").desired.versions == {}
    edge.refuse = {}
    edge.set("pod/a/b/v", b"good")
    edge.refuse["pod/a/b/v"] = ("Bad", "no")
    edge.set("pod/a/b/v", b"bad")
    again = edge.restart("other")
    assert again.desired.versions == {"pod/a/b/v": version_of(b"good")}
    assert again.running == {"pod/a/b/v": b"good"}


def test_a_document_over_the_limit_is_refused():
    edge = Edge(limit=10).live()
    sent = edge.set("pod/a/b/u", b"x" * 11)
    assert sent[0][1]["reason"] == "DocumentTooLarge"
    assert edge.running == {}


def test_a_different_digest_sends_the_pairs_refusals_included():
    edge = Edge().live()
    edge.refuse["pod/a/b/u"] = ("Bad", "no")
    edge.set("pod/a/b/u", b"bad")
    edge.set("pod/a/a/t", b"good")
    edge.connect()
    sent = edge.welcome("diff")
    want = [["pod/a/a/t", version_of(b"good")], ["pod/a/b/u", version_of(b"bad")]]
    assert sent == [(wire.PAIRS, {"pairs": want})]


def test_synced_compares_digests_and_asks_again_a_bounded_number_of_times():
    edge = Edge()
    edge.connect()
    edge.welcome("diff")
    edge.set("pod/a/b/u", b"{}", sync=False)
    assert kinds(edge.get(wire.SYNCED, {"digest": digest_of({"pod/a/b/u": version_of(b"{}")}), "r": 30})) == [
        "ACK"
    ]
    assert edge.restart().desired.revision == 30
    assert kinds(edge.get(wire.SYNCED, {"digest": "00", "r": 30})) == ["PAIRS"]
    assert kinds(edge.get(wire.SYNCED, {"digest": "00", "r": 30})) == ["PAIRS"]
    assert kinds(edge.get(wire.SYNCED, {"digest": "00", "r": 30})) == ["GOAWAY"]
    assert edge.last(Close).code == "resync"
    assert edge.last(Close).retry_s == 60


def test_hold_passes_no_documents_and_no_reports_but_heartbeats():
    edge = Edge()
    edge.report("pod", "pod/a/b/u", {"phase": "Running"})
    edge.connect()
    assert edge.welcome("hold", reason="HistoryParted") == []
    assert edge.last(Welcomed).hold == "HistoryParted"
    assert edge.set("pod/a/b/u", b"{}") == []
    assert edge.running == {}
    assert "HistoryParted" in edge.last(Note).message
    assert kinds(edge.tick(10)) == ["PING"]
    assert edge.restart().desired.claim is None


def parted(**claim):
    """Whether an agent that holds CLAIM refuses a hub with this claim."""
    edge = Edge().live()
    edge.set("pod/a/b/u", b"{}")
    other = dict(CLAIM)
    other.update(claim)
    edge.connect()
    sent = edge.welcome("diff", other)
    held = edge.last(Welcomed).hold != ""
    if held:
        assert sent == []
        edge.get(wire.DEL, {"k": "pod/a/b/u", "r": 12})
        assert edge.running == {"pod/a/b/u": b"{}"}
        assert edge.restart().desired.claim.as_json() == CLAIM
        edge.connect()
        edge.welcome("diff", other, confirmed="something else")
        assert edge.last(Welcomed).hold != ""
        edge.connect()
        assert edge.welcome("diff", other, confirmed="c7") != []
        assert edge.last(Welcomed).resync
    assert edge.restart().desired.claim.as_json() == other
    return held


def test_another_store_a_lower_generation_and_a_lower_epoch_are_refused_until_confirmed():
    assert parted(store="s2")
    assert parted(gen=0)
    assert parted(epoch=6, id="c6")
    assert parted(id="x7")


def test_a_refused_claim_is_explained():
    held = Claim("s1", 1, 5, 7, "c7")
    assert "epoch 6, this node has seen 7" in Claim("s1", 1, 5, 6, "c6").parted_from(held)
    assert "two hubs own slot 5" in Claim("s1", 1, 5, 7, "x").parted_from(held)
    assert "generation 0" in Claim("s1", 0, 5, 9, "x").parted_from(held)
    assert Claim("s1", 1, 5, 7, "c7").parted_from(held) == ""


def test_a_newer_epoch_another_slot_and_a_higher_generation_are_accepted():
    assert not parted(epoch=8, id="c8")
    assert not parted(slot=6, epoch=1, id="d1")
    assert not parted(gen=2, epoch=1, id="e1")


def test_a_confirmed_history_forgets_the_revision_and_reports_anew():
    edge = Edge().live()
    edge.set("pod/a/b/u", b"{}", 1000)
    edge.connect()
    other = dict(CLAIM)
    other["store"] = "s2"
    edge.welcome("diff", other, confirmed="c7")
    again = edge.restart()
    assert again.desired.revision == 0
    assert again.desired.claim.store == "s2"
    edge.set("pod/a/b/u", b"[]", 7)
    assert edge.restart().desired.revision == 7
    edge.connect()
    edge.welcome("match", other)
    assert not edge.last(Welcomed).resync


def test_a_higher_generation_reports_anew():
    edge = Edge().live()
    edge.connect()
    other = dict(CLAIM)
    other["gen"] = 2
    edge.welcome("diff", other)
    assert edge.last(Welcomed).resync


def test_a_report_is_sent_once_it_is_durable_and_again_after_every_reconnect_until_stored():
    edge = Edge().live()
    edge.report("pod", "pod/a/b/u", {"phase": "Running"})
    sent = edge.tick(0)
    assert sent == [(wire.REPORT, {"e": [{"n": 1, "k": "pod/a/b/u", "t": "pod", "b": {"phase": "Running"}}]})]
    assert edge.tick(0) == []
    again = edge.restart()
    again.connect()
    assert again.welcome() == sent
    again.get(wire.STORED, {"n": [1], "r": 50, "refused": []})
    assert again.last(Delivered).key == "pod/a/b/u"
    last = again.restart()
    last.connect()
    assert last.welcome() == []
    assert len(last.upstream) == 0


def test_what_the_hub_has_stored_counts_among_the_revisions_seen():
    """Else a hub on an older copy of its data could pass for one that knows of the report."""
    edge = Edge().live()
    edge.report("pod", "pod/a/b/u", {"phase": "Running"})
    edge.tick(0)
    edge.get(wire.STORED, {"n": [1], "r": 50, "refused": []})
    ((kind, hello),) = edge.restart().connect()
    assert (kind, hello["rev"]) == (wire.HELLO, 50)


def test_a_number_is_never_used_twice():
    edge = Edge().live()
    edge.report("pod", "a", {})
    edge.tick(0)
    edge.get(wire.STORED, {"n": [1]})
    again = edge.restart().live()
    again.report("pod", "a", {})
    assert again.tick(0)[0][1]["e"][0]["n"] > 1


def test_a_newer_status_replaces_the_older_one_and_events_do_not():
    edge = Edge()
    edge.report("pod", "a", {"x": 1})
    edge.report("event", "a", {"x": 1})
    edge.report("pod", "a", {"x": 2})
    edge.report("event", "a", {"x": 2})
    edge.report("gone", "a", {})
    edge.connect()
    entries = edge.welcome()[0][1]["e"]
    assert [(e["t"], e["b"].get("x")) for e in entries] == [
        ("event", 1),
        ("pod", 2),
        ("event", 2),
        ("gone", None),
    ]


def test_a_refused_entry_is_forgotten_so_that_nothing_blocks_behind_it():
    edge = Edge().live()
    edge.report("pod", "a", {})
    edge.tick(0)
    edge.get(wire.STORED, {"n": [], "r": 5, "refused": [[1, "NotFound"]]})
    assert edge.last(Delivered).reason == "NotFound"
    assert len(edge.upstream) == 0


def test_no_more_reports_than_the_window_are_in_flight():
    edge = Edge().live()
    for number in range(10):
        edge.report("pod", f"p{number}", {})
    first = edge.tick(0)
    assert [len(b["e"]) for _, b in first] == [4]
    sent = edge.get(wire.STORED, {"n": [e["n"] for e in first[0][1]["e"]], "r": 1})
    assert [len(b["e"]) for _, b in sent] == [4]


def test_a_volatile_entry_is_sent_although_the_disk_is_full():
    edge = Edge().live()
    edge.report("pod", "a", {})
    edge.tick(0)
    edge.files.room = 0
    edge.report("node", "node", {"full": True}, True)
    edge.report("pod", "b", {})
    sent = edge.tick(0)
    assert [[e["t"] for e in body["e"]] for _, body in sent] == [["node"]]


def test_events_that_wait_are_bounded():
    edge = Edge()
    for number in range(1005):
        edge.report("event", "a", {"x": number})
    assert len(edge.upstream) == 1000
    assert edge.upstream.dropped_events == 5


def test_the_first_heartbeat_follows_one_interval_later():
    edge = Edge().live()
    assert edge.session.deadline() == edge.now + 10
    assert edge.tick(9.9) == []
    assert kinds(edge.tick(0.2)) == ["PING"]


def test_a_silent_link_is_closed_after_three_heartbeats():
    edge = Edge().live()
    edge.tick(10)
    edge.get(wire.PONG)
    edge.tick(10)
    edge.tick(10)
    assert edge.last(Close) is None
    assert edge.tick(10) == []
    assert edge.last(Close).code == "silent"


def test_a_hub_that_never_welcomes_is_given_up():
    edge = Edge()
    edge.connect()
    edge.tick(29)
    assert edge.last(Close) is None
    edge.tick(1.1)
    assert edge.last(Close).code == "silent"


def test_unknown_message_types_are_ignored_and_known_ones_in_a_wrong_place_end_the_connection():
    edge = Edge().live()
    assert edge.get(30, b"whatever") == []
    assert edge.session.ignored == 1
    assert kinds(edge.get(wire.HELLO, {})) == ["GOAWAY"]
    early = Edge()
    early.connect()
    early.get(wire.DEL, {"k": "pod/a", "r": 1})
    assert "before WELCOME" in early.last(Close).message
    twice = Edge().live()
    twice.welcome()
    assert "second WELCOME" in twice.last(Close).message


def test_malformed_messages_end_the_connection_and_change_nothing():
    bad = [
        (wire.SET, b"\x00"),
        (wire.SET, b"\x00\x09{}"),
        (wire.SET, wire.set_body(b"{}", b"")),
        (wire.SET, wire.set_body(b"[1]", b"")),
        (wire.DEL, b"nonsense"),
        (wire.DEL, b'{"k":"a\\nb","r":1}'),
        (wire.DEL, b'{"k":5,"r":1}'),
        (wire.SYNCED, b"{}"),
        (wire.STORED, b'{"n":["x"]}'),
        (wire.CREDIT, b"[]"),
        (wire.GOAWAY, b"{}"),
        (wire.WELCOME, b"{}"),
    ]
    for kind, body in bad:
        edge = Edge().live()
        edge.set("pod/a/b/u", b"{}")
        edge.get(kind, body)
        assert edge.last(Close).code == "protocol", (kind, body)
        assert edge.running == {"pod/a/b/u": b"{}"}
        assert edge.session.receive(wire.PING, 0, b"", edge.now) == []


def test_a_hub_of_another_protocol_is_told_which_one_is_spoken_here():
    edge = Edge()
    edge.connect()
    sent = edge.welcome(proto=2)
    assert kinds(sent) == ["GOAWAY"]
    assert "speaks 1 to 1" in sent[0][1]["message"]


def test_a_newer_hubs_unknown_fields_and_features_change_nothing():
    edge = Edge()
    edge.connect()
    assert edge.welcome(features=["flying"], novelty={"x": 1}) == []
    assert edge.session.features == ["flying"]


def test_goaway_and_redirect_close_with_what_the_hub_said():
    edge = Edge().live()
    edge.get(wire.GOAWAY, {"code": "clone", "message": "two of you", "retry_s": 300})
    assert (edge.last(Close).code, edge.last(Close).retry_s) == ("clone", 300)
    edge.connect()
    edge.get(wire.GOAWAY, {"code": "revoked", "message": "gone", "retry_s": None})
    assert edge.last(Close).retry_s is None
    edge.connect()
    edge.get(wire.REDIRECT, {"to": "other:8444"})
    assert (edge.last(Close).code, edge.last(Close).to) == ("redirect", "other:8444")


def test_renewal_bundle_and_streams_pass_through():
    edge = Edge().live()
    assert edge.perform(edge.session.renew("CSR")) == [(wire.RENEW, {"csr": "CSR"})]
    edge.get(wire.RENEWED, {"cert": "CERT", "bundle": ["ROOT"]})
    assert (edge.last(Renewed).cert, edge.last(Renewed).bundle) == ("CERT", ["ROOT"])
    edge.get(wire.BUNDLE, {"roots": ["R2"]})
    assert edge.last(Bundle).roots == ["R2"]
    edge.get(wire.OPEN, {"kind": "log"}, 7)
    assert (edge.last(Stream).kind, edge.last(Stream).stream) == (wire.OPEN, 7)
    edge.get(wire.CREDIT, {"c": 5}, 7)
    assert edge.last(Stream).body == 5
    edge.get(wire.OPEN, {"kind": "log"}, 8)
    assert "odd" in edge.last(Close).message


def test_a_set_of_what_is_held_is_acknowledged_and_not_applied_again():
    edge = Edge().live()
    edge.set("pod/a/b/u", b"{}")
    edge.actions = []
    assert kinds(edge.set("pod/a/b/u", b"{}")) == ["ACK"]
    assert edge.last(Apply) is None


def test_more_unsynced_documents_than_the_bound_end_the_connection():
    edge = Edge().live()
    edge.files.room = 0
    for number in range(1024):
        edge.get(wire.DEL, {"k": f"pod/{number}", "r": 1}, sync=False)
    assert edge.last(Close) is None
    edge.get(wire.DEL, {"k": "pod/x", "r": 1}, sync=False)
    assert edge.last(Close).code == "protocol"


def test_the_context_of_a_trace_comes_back_with_the_acknowledgement():
    edge = Edge()
    edge.connect()
    edge.welcome()
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"

    def traced(key, document, context, sync=True):
        header = {"k": key, "v": version_of(document), "r": 11, "t": context}
        return edge.get(wire.SET, wire.set_body(json.dumps(header).encode(), document), sync=sync)

    assert traced("pod/a", b"1", trace, sync=False) == []
    sent = traced("pod/b", b"2", trace)
    assert sent == [
        (wire.ACK, {"a": [["pod/a", version_of(b"1")], ["pod/b", version_of(b"2")]], "t": [trace]})
    ]
    assert "t" not in edge.set("pod/c", b"3")[0][1]
    for odd in (7, {"x": 1}, "x" * 1000, ""):
        assert "t" not in traced("pod/d", b"4", odd)[0][1]
