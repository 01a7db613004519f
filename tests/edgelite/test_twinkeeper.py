"""Devices in the running agent: journalled, reported, kept while the hub is away."""

import json
import shutil

import pytest

from edgelite import wire
from edgelite.journal import Journal
from edgelite.journalreview import faults
from edgelite.port import Files
from tests.edgelite.scripted_hub import Hub, until
from tests.edgelite.test_agent import Running
from tests.edgelite.test_twins import KEY, SETPOINT, TEMPERATURE, device, having

FAST = having(TEMPERATURE, minIntervalSeconds=1)


@pytest.fixture
def hub(tmp_path):
    made = Hub(tmp_path / "hub")
    made.enrol(str(tmp_path / "node"))
    yield made
    made.close()


@pytest.fixture
def start(tmp_path, monkeypatch, hub):
    started = []

    def go():
        started.append(Running(tmp_path, monkeypatch, hub))
        return started[-1]

    yield go
    for agent in started:
        if agent.code is None:
            agent.stop()


def greet(hub, sync="match"):
    connection = hub.accept()
    connection.expect(wire.HELLO)
    connection.welcome(sync)
    return connection


def next_twin(connection):
    """The next twin entry; reports of the node's own are answered on the way."""
    while True:
        entries = connection.expect(wire.REPORT, wire.ACK, wire.PING, wire.PAIRS)["e"]
        connection.send(
            wire.STORED, {"n": [e["n"] for e in entries if e["t"] != "twin"], "r": 1, "refused": []}
        )
        twins = [e for e in entries if e["t"] == "twin"]
        if twins:
            return twins[0]


def stored(connection, entry, reason=""):
    refused = [[entry["n"], reason]] if reason else []
    connection.send(wire.STORED, {"n": [] if reason else [entry["n"]], "r": 1, "refused": refused})


def report(agent, **values):
    keeper = agent.agent.twins
    keeper.report(keeper.twins.get("shop", "boiler"), values)


def records(agent):
    journal = Journal(Files(), agent.data_dir + "/journal")
    found = journal.items("run/twins/")
    assert faults(journal.items()) == []
    journal.close()
    return found


def test_a_device_is_journalled_acknowledged_and_its_generation_told(hub, start):
    agent = start()
    connection = greet(hub)
    body = device(FAST, SETPOINT, desired={"setpoint": 60})
    connection.set(KEY, body)
    assert next_twin(connection)["b"] == {"gen": 1, "r": {}}
    until(lambda: agent.agent.twins.twins.get("shop", "boiler").desired == {"setpoint": 60})
    connection.set(KEY, device(FAST, SETPOINT, desired={"setpoint": 99}, gen=2), revision=12)
    nack = connection.expect(wire.NACK, wire.REPORT, wire.ACK)
    assert nack["reason"] == "Invalid" and "desired.setpoint: must be at most 90, is 99" in nack["message"]
    assert agent.agent.twins.twins.get("shop", "boiler").desired == {"setpoint": 60}, (
        "the last good one stays"
    )


def test_what_is_reported_while_the_hub_is_away_outlives_the_agent_and_comes_when_it_is_back(hub, start):
    agent = start()
    connection = greet(hub)
    connection.set(KEY, device(FAST, SETPOINT))
    stored(connection, next_twin(connection))
    until(lambda: len(agent.agent.twins.twins) == 1)
    until(lambda: not agent.agent.twins.unsynced)
    hub.listener.close()
    connection.close()
    until(lambda: not agent.agent.link.live)
    report(agent, temperature=1.5, setpoint=50)
    copied = agent.data_dir + "/copied"

    def on_disk():
        shutil.copyfile(agent.data_dir + "/journal", copied)
        journal = Journal(Files(), copied)
        found = journal.get("run/twins/" + KEY) or b""
        journal.close()
        return b"1.5" in found and b"50" in found

    until(on_disk, "what a power cut leaves")
    agent.stop()
    assert [name for name, _ in records(agent)] == ["run/twins/" + KEY]


def test_a_disk_that_fails_holds_up_no_report_while_the_hub_answers(hub, start):
    agent = start()
    connection = greet(hub)
    connection.set(KEY, device(FAST, SETPOINT))
    stored(connection, next_twin(connection))
    until(lambda: len(agent.agent.twins.twins) == 1)
    until(lambda: not agent.agent.twins.unsynced)
    agent.files.full = True
    report(agent, setpoint=50)
    assert [value for _, value in next_twin(connection)["b"]["r"]["setpoint"]] == [50]
    agent.files.full = False


def test_a_restarted_agent_reports_what_the_hub_never_stored_and_nothing_else(hub, start):
    agent = start()
    connection = greet(hub)
    connection.set(KEY, device(FAST, SETPOINT))
    stored(connection, next_twin(connection))
    until(lambda: len(agent.agent.twins.twins) == 1)
    report(agent, temperature=1.5)
    stored(connection, next_twin(connection))
    report(agent, setpoint=50)
    entry = next_twin(connection)
    assert list(entry["b"]["r"]) == ["setpoint"], "what was stored is not sent again"
    agent.stop()
    again = start()
    connection = greet(hub)
    entry = next_twin(connection)
    assert {name: [v for _, v in r] for name, r in entry["b"]["r"].items()} == {"setpoint": [50]}
    stored(connection, entry)
    until(lambda: b"[50]" not in (again.agent.journal.get("run/twins/" + KEY) or b""))
    connection.send(wire.DEL, {"k": KEY, "r": 13})
    until(lambda: again.agent.journal.get("run/twins/" + KEY) is None)
    again.stop()
    assert records(again) == []


def test_a_record_that_was_tampered_with_is_dropped_at_start(hub, start):
    agent = start()
    connection = greet(hub)
    connection.set(KEY, device(FAST))
    next_twin(connection)
    agent.stop()
    journal = Journal(Files(), agent.data_dir + "/journal")
    for value in (
        b"{",
        b'{"told":1,"v":{"temperature":[null,[]]}}',
        json.dumps({"told": 1, "v": {"t": [[1, []], []]}}).encode(),
    ):
        assert faults([("run/twins/" + KEY, value)]) != []
    journal.put("run/twins/" + KEY, b'{"told":1,"v":{"temperature":[null,[]]}}')
    journal.close()
    again = start()
    greet(hub)
    assert again.log.find("damaged") != []
