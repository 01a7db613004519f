"""The board's loop on CPython against a scripted hub; its modules are those of the MicroPython package."""

import json
import threading
import time

import pytest

from edgelite import board, wire
from edgelite.board import Board, BoardError
from edgelite.callables import Functions
from edgelite.firmware import Firmware
from tests.edgelite.scripted_hub import Hub, until

KEY = "pod/default/blink/u1"
POD = b'{"kind":"Pod","spec":{"containers":[{"name":"led"}]}}'


class Running:
    """A board on a thread of its own."""

    def __init__(self, directory, admit=lambda key, document: None):
        self.documents, self.said = {}, []
        self.board = Board(str(directory), self.document, admit, self.said.append)
        self.stopping = False
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def document(self, key, document):
        self.documents[key] = document

    def work(self):
        while not self.stopping:
            self.board.turn()
        self.board.close()

    def stop(self):
        self.stopping = True
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path / "ca")
    hub.enrol(str(tmp_path / "node"))
    yield hub
    hub.close()


@pytest.fixture
def start(tmp_path):
    started = []

    def run(**how):
        started.append(Running(tmp_path / "node", **how))
        return started[-1]

    yield run
    for one in started:
        one.stop()


def test_a_board_takes_documents_reports_and_resumes_after_a_reset(hub, start):
    first = start(admit=lambda key, document: ("Unsupported", "no secrets") if key[0] == "s" else None)
    connection = hub.accept()
    hello = connection.expect(wire.HELLO)
    assert hello["limits"] == {"document": 1024, "frame": 2048} and (hello["boot"], hello["docs"]) == (1, 0)
    connection.welcome(heartbeat=0.2)
    connection.set(KEY, POD)
    assert connection.expect(wire.ACK, wire.PING)["a"][0][0] == KEY
    until(lambda: first.documents.get(KEY) == POD)
    connection.set("secret/default/s", b"{}")
    assert connection.expect(wire.NACK, wire.PING)["reason"] == "Unsupported"
    connection.set(KEY + "1", b"x" * 1025)
    assert connection.expect(wire.NACK, wire.PING)["reason"] == "DocumentTooLarge"
    first.board.report("pod", KEY, {"phase": "Running"})
    connection.send(wire.PING)
    entry = connection.expect(wire.REPORT, wire.PING, wire.PONG)["e"][0]
    assert (entry["k"], entry["b"]) == (KEY, {"phase": "Running"})
    first.stop()
    assert connection.expect(wire.GOAWAY, wire.PING)["code"] == "shutdown"
    second = start()
    assert second.documents == {KEY: POD}
    again = hub.accept()
    hello = again.expect(wire.HELLO)
    assert (hello["boot"], hello["docs"]) == (2, 3)
    again.welcome()
    # What was not stored before the reset is sent again.
    assert again.expect(wire.REPORT)["e"][0]["n"] == entry["n"]
    again.send(wire.DEL, {"k": KEY, "r": 12})
    until(lambda: second.documents[KEY] is None)


def test_a_board_comes_back_after_a_lost_connection_and_stays_away_when_told_to(hub, start):
    running = start()
    connection = hub.accept()
    connection.expect(wire.HELLO)
    connection.welcome()
    connection.close()
    connection = hub.accept()
    connection.expect(wire.HELLO)
    connection.send(wire.GOAWAY, {"code": "revoked", "message": "no more", "retry_s": None})
    until(lambda: running.board.state == "refused")
    assert running.said[-1] == "not connected: no more"


def test_a_board_whose_clock_was_never_set_runs_what_it_has_and_does_not_connect(hub, start, monkeypatch):
    real = time.time
    monkeypatch.setattr(board, "unix_time", lambda: 1000.0)
    running = start()
    until(lambda: running.said == ["the clock is not set: set it (NTP, or an RTC), for TLS needs it"])
    monkeypatch.undo()
    assert abs(board.unix_time() - real()) < 5
    hub.accept().expect(wire.HELLO)


def test_a_board_without_a_hub_keeps_the_newest_events_and_its_journal_within_its_bound(hub, tmp_path):
    def opened():
        return Board(str(tmp_path / "node"), lambda key, body: None, lambda key, body: None, print)

    first = opened()
    for number in range(10_000):
        body = {"reason": "BackOff", "message": f"{number}: " + "x" * 200, "type": "Warning", "count": 1}
        first.report("event", KEY, body)
        first.report("pod", KEY, {"phase": "Running", "restarts": number})
        assert first.journal.file_bytes <= board.JOURNAL_BYTES_MAX
    first.journal.close()
    again = opened()
    kept = [json.loads(value) for _, value in again.journal.items("up/")]
    again.close()
    numbers = [int(entry["b"]["message"].partition(":")[0]) for entry in kept if entry["t"] == "event"]
    assert numbers == list(range(10_000 - board.EVENTS_MAX, 10_000))
    assert [entry["b"]["restarts"] for entry in kept if entry["t"] == "pod"] == [9_999]


def test_a_board_whose_journal_has_lost_its_end_begins_anew_once(hub, start):
    start()
    seen = []
    for _ in range(3):
        connection = hub.accept()
        seen.append(connection.expect(wire.HELLO)["inc"])
        connection.send(wire.GOAWAY, {"code": "superseded", "message": "a newer one is here", "retry_s": 0})
        connection.close()
    assert seen[0] != seen[1] == seen[2]


def test_a_document_that_the_journal_has_no_room_for_is_refused_and_the_board_goes_on(hub, start):
    running = start()
    connection = hub.accept()
    connection.expect(wire.HELLO)
    connection.welcome(heartbeat=0.2)
    refused, number = None, 0
    while refused is None:
        assert number < 64, "64 KiB are full long ago"
        connection.set(f"configmap/default/c{number}", b"x" * 1000)
        number += 1
        kind = wire.PING
        while kind == wire.PING:
            kind, _, body = connection.get()
        refused = json.loads(body) if kind == wire.NACK else None
    assert refused["reason"] == "JournalFull" and "are left in this board's journal" in refused["message"]
    running.board.report("pod", KEY, {"phase": "Running"})
    assert connection.expect(wire.REPORT, wire.PING)["e"][0]["b"] == {"phase": "Running"}


def test_a_directory_without_a_node_is_no_board(tmp_path):
    with pytest.raises(BoardError, match="enrol this node first"):
        Board(str(tmp_path), print, print, print)


def test_firmware_runs_a_function_as_a_pod_shows_its_log_and_takes_it_up_after_a_reset(hub, tmp_path):
    fed, ran, stop = [], [], threading.Event()

    def blink(task):
        while not task.stopping:
            ran.append(task.args)
            task.print("on", *task.args)
            yield 0.01

    def started():
        functions = Functions()
        functions.register("blink", blink)
        return Firmware(
            str(tmp_path / "node"),
            functions,
            feed=lambda: fed.append(1),
            watchdog_s=0.1,
            say=lambda text: None,
        )

    def turning(firmware):
        """A thread that turns it until `stop` is set."""

        def work():
            while not stop.is_set():
                firmware.turn()

        stop.clear()
        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def received(*kinds):
        found = []
        while not found:
            kind, _, body = connection.get()
            found += [body] if kind in kinds else []
        return found[0]

    spec = {"containers": [{"name": "led", "image": "callable:blink", "args": ["red"]}]}
    document = json.dumps(
        {"kind": "Pod", "ns": "default", "name": "blink", "uid": "u1", "spec": spec}
    ).encode()
    firmware = started()
    thread = turning(firmware)
    try:
        connection = hub.accept()
        connection.expect(wire.HELLO)
        connection.welcome(heartbeat=0.2)
        connection.set(KEY, document)
        connection.set("pod/default/bad/u2", document)
        assert json.loads(received(wire.NACK))["reason"] == "Unsupported"
        until(lambda: len(ran) > 3 and fed)
        connection.send(
            wire.OPEN, {"kind": "log", "pod": "u1", "container": "led", "tail": 2, "credit": 4096}, 1
        )
        connection.send(wire.OPEN, {"kind": "exec", "pod": "u1", "container": "led"}, 3)
        assert received(wire.DATA) == b"on red\non red\n"
        assert json.loads(received(wire.CLOSE)) == {}
        assert json.loads(received(wire.CLOSE))["error"]["code"] == "Unsupported"
    finally:
        stop.set()
        thread.join(30)
    firmware.board.journal.close()  # the power goes
    firmware.board._drop()
    connection.close()
    hub.listener.close()  # the network is gone, too
    del ran[:]
    again = started()
    thread = turning(again)
    try:
        until(lambda: ran == [["red"]] or len(ran) > 1)
    finally:
        stop.set()
        thread.join(30)
        again.board.close()


def test_a_board_refuses_a_hub_of_another_authority(tmp_path, hub, start):
    other = Hub(tmp_path / "other")
    path = tmp_path / "node/node.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "edge": other.address}))
    thread, box = other.accept_in_thread()
    running = start()
    thread.join(20)
    until(lambda: any("certificate verify failed" in said.lower() for said in running.said), running.said)
    assert not box
    other.close()
