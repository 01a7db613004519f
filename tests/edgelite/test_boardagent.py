"""A board's whole agent on CPython, over real TLS: its loop, its work, a hub that the test plays."""

import threading

import pytest

from edgelite import wire
from edgelite.boardslots import SlotStore
from edgelite.callables import Functions
from edgelite.desired import compact
from edgelite.firmware import Firmware
from edgelite.twins import Twins
from edgelite.updatestore import UpdateFiles
from tests.edgelite.scripted_hub import Hub, until
from tests.edgelite.test_boardslots import RELEASE, document_of, updates_of
from tests.edgelite.test_boardwork import POD, TANK, fills, pod, tank


class Reset(Exception):
    """The board starts anew."""


def reset():
    raise Reset


class Running:
    """The loop of a firmware, in a thread."""

    def __init__(self, directory, **more):
        functions = Functions()
        functions.register("fills", fills)
        self.said = []
        self.firmware = Firmware(directory, functions, say=self.said.append, twins=Twins(), **more)
        self.work = self.firmware.work
        self.stopping = False
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            while not self.stopping:
                self.firmware.turn()
        except Reset:
            return
        self.firmware.board.close()

    def stop(self):
        self.stopping = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr("edgelite.board.WAIT_S", 0.02)
    made = Hub(tmp_path / "hub")
    made.enrol(str(tmp_path / "node"))
    yield made
    made.close()


@pytest.fixture
def start(tmp_path, hub):
    started = []

    def go(**more):
        started.append(Running(str(tmp_path / "node"), **more))
        return started[-1]

    yield go
    for running in started:
        if not running.stopping:
            running.stop()


def hears(connection, *wanted):
    """Takes reports, all of which are stored, until each (type, condition on its body) has come."""
    left = list(wanted)
    while left:
        found = connection.expect(wire.REPORT, wire.ACK, wire.PING, wire.NACK)["e"]
        connection.send(wire.STORED, {"n": [e["n"] for e in found], "r": 1, "refused": []})
        left = [one for one in left if not any(e["t"] == one[0] and one[1](e["b"]) for e in found)]


def values(body):
    return [value for _, value in body["r"].get("level", [])]


def test_a_board_runs_a_function_that_follows_a_device_and_goes_on_after_a_restart(hub, start):
    running = start()
    connection = hub.accept()
    connection.expect(wire.HELLO)
    connection.welcome()
    connection.set(TANK, compact(tank(4)))
    connection.set(POD, compact(pod()), 12)
    hears(
        connection,
        ("twin", lambda body: values(body) == [4]),
        ("pod", lambda body: body["phase"] == "Running"),
    )
    connection.set(TANK, compact(tank(7, gen=2)), 13)
    hears(connection, ("twin", lambda body: body["gen"] == 2), ("twin", lambda body: values(body) == [7]))
    until(lambda: running.work.twins.get("shop", "tank").body() is None, "the board knows what is stored")
    running.stop()
    connection.close()
    again = start()
    assert again.work.twins.get("shop", "tank").desired == {"level": 7}
    until(lambda: again.work.pods.log("u1", "main") is not None)
    connection = hub.accept()
    assert connection.expect(wire.HELLO)["docs"] == 2
    connection.welcome()
    hears(connection, ("pod", lambda body: body["phase"] == "Running"))


def test_a_board_fetches_a_release_in_pieces_that_its_frames_take_and_starts_anew(hub, start, tmp_path):
    (tmp_path / "update").mkdir()
    updates = updates_of(tmp_path / "update", reset, "0.1.0")
    running = start(updates=updates)
    connection = hub.accept()
    assert connection.expect(wire.HELLO)["limits"]["frame"] == 2048
    connection.welcome()
    connection.set("agent/update", document_of(RELEASE))
    had = 0
    while had < len(RELEASE):
        found = connection.expect(wire.REPORT, wire.ACK, wire.PING, wire.NACK)["e"]
        connection.send(wire.STORED, {"n": [e["n"] for e in found], "r": 1, "refused": []})
        for ask in [e["b"] for e in found if e["t"] == "piece"]:
            assert (ask["at"], ask["len"]) == (had, min(768, len(RELEASE) - had))
            connection.set(f"piece/{ask['sha'][:16]}/{had}", RELEASE[had : had + ask["len"]])
            had += ask["len"]
    running.thread.join(20)
    store = SlotStore(UpdateFiles(), str(tmp_path / "update"))
    assert store.record["trial"]["version"] == "0.2.0"
    assert store.holds("a", store.record["trial"]["sha256"])


def test_a_firmware_without_updates_says_so(hub, start):
    start()
    connection = hub.accept()
    connection.expect(wire.HELLO)
    connection.welcome()
    connection.set("agent/update", document_of(RELEASE))
    assert connection.expect(wire.NACK, wire.REPORT, wire.PING)["k"] == "agent/update"
