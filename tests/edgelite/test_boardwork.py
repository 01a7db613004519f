"""A board's work with the agent's session and journal: frames of a hub in, frames out, power cuts between.
Runs on CPython and in the MicroPython VM."""

import json

from edgelite import wire
from edgelite.actions import Apply, Delivered, Send, Welcomed
from edgelite.boardwork import BoardWork
from edgelite.callables import Functions
from edgelite.desired import Desired, compact, version_of
from edgelite.journal import Journal
from edgelite.session import Identity, Session
from edgelite.twins import Twins
from edgelite.upstream import COUNTER, PREFIX, Upstream
from tests.edgelite.memory_files import MemoryFiles

POD = "pod/shop/web/u1"
TANK = "device/shop/tank/d1"
LEVEL = {"name": "level", "type": "integer", "access": "ReadWrite", "maximum": 10, "minIntervalSeconds": 1}


def pod(image="callable:fills", **more):
    container = {"name": "main", "image": image}
    container.update(more)
    return {"kind": "Pod", "ns": "shop", "name": "web", "uid": "u1", "spec": {"containers": [container]}}


def tank(desired, gen=1):
    return {
        "kind": "Device",
        "ns": "shop",
        "name": "tank",
        "uid": "d1",
        "gen": gen,
        "properties": [LEVEL],
        "desired": {"level": desired},
    }


def fills(task):
    """Reports what is desired, for ever."""
    while not task.stopping:
        task.devices.report("tank", task.devices.desired("tank"))
        yield 1


class Board:
    """An agent of a board as its loop has it, over files in memory; the test is the hub, and drives the time."""

    def __init__(self, files=None, twins=True):
        self.now = 0.0
        self.files = files or MemoryFiles()
        self.journal = Journal(self.files, "journal", 64 << 10)
        functions = Functions()
        functions.register("fills", fills)
        self.upstream = Upstream()
        self.upstream.load(self.journal.items(PREFIX) + self.journal.items(COUNTER))
        self.work = BoardWork(
            functions, self.journal, self.report, self.time, self.wall_ms, Twins() if twins else None
        )
        self.desired = Desired("board")
        self.decoder = wire.Decoder()
        self.heard = []
        self.session = None
        for key, body in self.desired.load(self.journal.items("doc/") + self.journal.items("meta/")):
            self.work.on_document(key, body)
        self.work.started()

    def time(self):
        return self.now

    def wall_ms(self):
        return 1700000000000 + int(self.now * 1000)

    def report(self, kind, key, body):
        self.journal.write(self.upstream.add(kind, key, body, False))

    def connect(self):
        identity = Identity("0" * 32, 1, 1, 1024, 2048)
        self.session = Session(self.desired, self.upstream, identity, self.work.admit, self.journal.get)
        self.perform(self.session.start(self.now))
        welcome = {
            "proto": 1,
            "store": "s",
            "gen": 1,
            "slot": 1,
            "epoch": 1,
            "claim": "c",
            "rev": 1,
            "heartbeat": 30.0,
        }
        welcome.update({"window": 64, "sync": "match"})
        self.hub(wire.WELCOME, welcome)

    def hub(self, kind, body):
        data = body if isinstance(body, bytes) else compact(body)
        self.perform(self.session.receive(kind, 0, data, self.now))
        self.turn()

    def set(self, key, doc, revision=2):
        body = compact(doc)
        header = compact({"k": key, "v": version_of(body), "r": revision})
        self.hub(wire.SET, wire.set_body(header, body))

    def turn(self):
        """One turn of the loop: work, then save before send."""
        self.work.turn()
        if self.session is None:
            return
        writes = self.session.writes()
        if writes:
            self.journal.write(writes)
        self.journal.sync()
        self.perform(self.session.commit(self.now))

    def run(self, seconds):
        until = self.now + seconds
        self.turn()
        for _ in range(1000):
            due = self.work.deadline()
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            self.turn()
        self.now = until
        self.turn()

    def perform(self, actions):
        for action in actions:
            if isinstance(action, Send):
                for kind, _, body in self.decoder.feed(action.data):
                    self.heard.append((kind, json.loads(body) if body else None))
            elif isinstance(action, Apply):
                self.work.on_document(action.key, action.body)
            elif isinstance(action, Delivered):
                self.work.delivered(action.kind, action.key, action.entry, action.reason)
            elif isinstance(action, Welcomed) and action.resync:
                self.work.anew()

    def entries(self, kind):
        """The entries of a type that the hub has heard, oldest first."""
        found = []
        for what, body in self.heard:
            if what == wire.REPORT:
                found.extend([entry for entry in body["e"] if entry["t"] == kind])
        return found

    def stored(self):
        """The hub stores all that it has heard."""
        numbers = []
        for kind in ("pod", "twin", "event", "gone"):
            numbers.extend([entry["n"] for entry in self.entries(kind)])
        self.heard = []
        self.hub(wire.STORED, {"n": numbers, "r": 3, "refused": []})

    def cut(self):
        """The power goes: a board that starts with what was synced."""
        return Board(MemoryFiles(self.files.durable))


def test_a_function_follows_what_is_desired_of_a_device_and_both_are_reported():
    board = Board()
    board.connect()
    board.set(TANK, tank(4))
    board.set(POD, pod())
    board.run(3)
    assert [e["b"]["phase"] for e in board.entries("pod")][-1] == "Running"
    last = board.entries("twin")[-1]["b"]
    assert last["gen"] == 1 and [value for _, value in last["r"]["level"]] == [4]
    board.stored()
    board.set(TANK, tank(7, gen=2), 4)
    board.run(3)
    last = board.entries("twin")[-1]["b"]
    assert last["gen"] == 2 and [value for _, value in last["r"]["level"]] == [7]
    board.stored()
    board.run(20)
    assert board.entries("twin") == [] and board.entries("pod") == [], "what the hub knows costs nothing"


def test_a_power_cut_loses_neither_what_runs_nor_what_was_reported():
    board = Board()
    board.connect()
    board.set(TANK, tank(4))
    board.set(POD, pod())
    board.run(3)
    board.stored()
    board.session = None
    board.work.twins.get("shop", "tank").report({"level": 9}, board.now, board.wall_ms())
    board.run(5)
    again = board.cut()
    again.run(2)
    assert again.work.pods.log("u1", "main") is not None, "it runs without the hub"
    again.connect()
    again.run(1)
    told = [value for entry in again.entries("twin") for _, value in entry["b"]["r"].get("level", [])]
    assert told and told[-1] == 4
    assert [e["b"]["phase"] for e in again.entries("pod")][-1] == "Running"


def test_a_document_that_the_board_cannot_do_is_refused_and_what_ran_goes_on():
    board = Board()
    board.connect()
    board.set(TANK, tank(4))
    board.set(POD, pod())
    board.run(2)
    board.set(TANK, tank(11, gen=2), 5)
    nacks = [body for kind, body in board.heard if kind == wire.NACK]
    assert nacks[-1]["k"] == TANK and "must be at most 10, is 11" in nacks[-1]["message"]
    board.set("secret/shop/x", {"kind": "Secret"}, 6)
    nacks = [body for kind, body in board.heard if kind == wire.NACK]
    assert nacks[-1]["reason"] == "UnsupportedKind"
    assert board.work.twins.get("shop", "tank").desired == {"level": 4}


def test_while_the_journal_fails_nothing_is_reported_and_afterwards_all_of_it():
    board = Board()
    board.connect()
    board.set(TANK, tank(4))
    board.run(0)
    board.stored()
    board.files.fail = "sync"
    board.work.twins.get("shop", "tank").report({"level": 5}, board.now, board.wall_ms())
    board.now += 2
    board.work.turn()
    assert board.work.trouble != "" and board.entries("twin") == []
    board.files.fail = None
    board.run(2)
    assert board.work.trouble == ""
    assert [v for _, v in board.entries("twin")[-1]["b"]["r"]["level"]] == [5]


def test_what_the_hub_takes_away_ends_and_leaves_nothing_in_the_journal():
    board = Board()
    board.connect()
    board.set(TANK, tank(4))
    board.set(POD, pod())
    board.run(2)
    board.stored()
    for key in (POD, TANK):
        board.hub(wire.DEL, {"k": key, "r": 9})
    board.run(2)
    assert board.work.deadline() is None and len(board.work.twins) == 0
    assert board.journal.keys("run/") == [] and board.journal.keys("doc/") == []


def test_a_firmware_without_twins_refuses_devices_and_goes_on_with_those_of_an_earlier_one_in_its_journal():
    with_twins = Board()
    with_twins.connect()
    with_twins.set(TANK, tank(4))
    with_twins.run(2)
    board = Board(with_twins.files, twins=False)
    assert board.work.admit(TANK, compact(tank(5)))[0] == "UnsupportedKind"
    board.connect()
    board.hub(wire.DEL, {"k": TANK, "r": 9})
    board.run(2)
    assert board.work.deadline() is None and board.work.trouble == ""
    assert board.journal.keys("doc/") == []
