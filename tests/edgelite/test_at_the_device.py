"""`edgelite status`, `logs` and `diagnose`: what the person beside the device sees, from real processes and a scripted hub."""

import io
import json
import os
import signal
import threading
import time

import pytest

from edgelite import wire
from edgelite.agentlog import AgentLog
from edgelite.console import Log
from edgelite.journal import Journal
from edgelite.port import Files
from edgelite.snapshot import ReadOnlyFiles, Snapshot
from tests.edgelite.scripted_hub import Hub, until
from tests.edgelite.test_cli import Cli, join_token, pod


@pytest.fixture
def edgelite(tmp_path):
    hub = Hub(tmp_path / "ca")
    made = Cli(hub, tmp_path)
    yield made
    made.close()
    hub.close()


def at(edgelite, *words):
    return edgelite.call(words[0], "--data-dir", edgelite.data_dir, *words[1:])


def answer(hub):
    """(messages, thread): answers the two connections of a diagnosis, of which the one for the route says nothing."""
    seen = []

    def work():
        for _ in range(2):
            try:
                connection = hub.accept()
            except OSError:
                continue
            kind, _, body = connection.get()
            seen.append((kind, body))
            connection.send(wire.BUNDLE, {"roots": [hub.ca.root_pem]})

    thread = threading.Thread(target=work)
    thread.start()
    return seen, thread


def results(edgelite, *words):
    """(exit code, {check: (result, detail)}) of `diagnose`; of a check with several lines the worst."""
    code, out, err = at(edgelite, "diagnose", "-o", "json", *words)
    assert not err, err
    found = {}
    for line in json.loads(out):
        if found.get(line["check"], ("", ""))[0] != "failed":
            found[line["check"]] = (line["result"], line["detail"])
    return code, found


def test_the_person_at_the_device_sees_link_workloads_and_logs_with_the_agent_running_and_without(edgelite):
    process, reports = edgelite.run()
    key, document = pod("till", ["/bin/sh", "-c", "echo one; echo two; echo three; exec sleep 1000"])
    reports.connection.set(key, document)
    assert reports.running(key)
    until(lambda: Snapshot(edgelite.data_dir).status.get("synced"))
    code, out, _ = at(edgelite, "status")
    assert code == 0, out
    lines = dict(line.split(None, 1) for line in out.splitlines() if line and not line.startswith(" "))
    assert lines["link"].startswith("connected for ") and lines["workloads"] == "1 Running"
    assert "1 documents" in lines["journal"] and lines["certificate"].startswith("ends ")
    assert lines["clock"].endswith("the hub's") and "default/till  Running" in out and "main  running" in out
    code, out, _ = at(edgelite, "logs", "--pod", "till", "--tail", "2")
    assert (code, out) == (0, "two\nthree\n")
    code, out, _ = at(edgelite, "logs")
    assert code == 0 and "edgelite 0.1.0 starts node=n1" in out and "connected documents=0" in out
    code, _, err = at(edgelite, "logs", "--pod", "tills")
    assert code == 1 and "there is no pod tills here; there are default/till" in err
    seen, thread = answer(edgelite.hub)
    code, found = results(edgelite)
    thread.join(20)
    assert code == 0, found
    assert seen == [(wire.BUNDLE, b"{}")]
    assert {check for check, (result, _) in found.items() if result == "ok"} == {
        "directory", "certificate", "clock", "token", "name", "route", "tls", "runtime", "journal", "agent",
    }  # fmt: skip
    # What was asked has not been taken for a second agent of this node, and the connection goes on.
    reports.connection.send(wire.PING)
    reports.connection.expect(wire.PONG, wire.REPORT, wire.ACK)

    reports.connection.close()
    edgelite.hub.listener.close()
    until(lambda: at(edgelite, "status")[0] == 5)
    code, found = results(edgelite)
    assert code == 1 and found["route"][0] == "failed" and "nobody listens there" in found["route"][1]
    assert found["tls"][0] == "skipped"
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    code, out, _ = at(edgelite, "status")
    assert code == 6 and "no agent runs" in out and "default/till  Running" in out and "ago)" in out
    assert at(edgelite, "logs", "--pod", "default/till", "-c", "main")[1] == "one\ntwo\nthree\n"
    code, found = results(edgelite)
    assert code == 1 and found["agent"] == (
        "failed", "does not run: `edgelite run`, or the service of `edgelite service status`",
    )  # fmt: skip


def test_diagnose_names_each_thing_that_is_wrong_without_a_network(edgelite, tmp_path):
    edgelite.hub.enrol(edgelite.data_dir, edge="hub.invalid:8444", ttl_s=1)
    (tmp_path / "node" / "config.json").write_text(
        '{"runtime": "container", "engine_socket": "/nonexistent"}'
    )
    os.chmod(edgelite.data_dir, 0o755)
    until(lambda: edgelite_expired(edgelite))
    began = time.monotonic()
    code, found = results(edgelite)
    assert time.monotonic() - began < 60
    assert code == 1
    bad = {check: detail for check, (result, detail) in found.items() if result == "failed"}
    assert set(bad) == {"directory", "certificate", "name", "runtime", "agent"}, found
    assert "open to other users (mode 755): chmod 700" in bad["directory"]
    assert "join --again" in bad["certificate"] and "hub.invalid" in bad["name"]
    assert "no container engine answers at /nonexistent" in bad["runtime"]
    assert found["tls"][0] == "skipped" and found["journal"][0] == "skipped"
    (tmp_path / "node" / "node.json").unlink()  # nothing runs on it that has to be stopped


def edgelite_expired(edgelite):
    return Snapshot(edgelite.data_dir).certificate().not_after < time.time()


def test_diagnose_checks_a_token_before_joining_without_sending_it(edgelite):
    hub, token = edgelite.hub, join_token(edgelite.hub)
    seen, thread = answer(hub)
    code, found = results(edgelite, "--hub", hub.address, "--token", token)
    thread.join(20)
    assert (code, found["tls"][0]) == (0, "ok"), found
    assert seen == [(wire.BUNDLE, b"{}")] and not os.path.exists(edgelite.data_dir)
    code, found = results(edgelite, "--hub", "127.0.0.1:x", "--token", token[:40])
    assert code == 1 and "copy it whole" in found["token"][1] and "is no address of a hub" in found["name"][1]


def test_a_snapshot_reads_the_journal_of_a_running_agent_and_changes_nothing(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(Files(), str(path))
    journal.put("doc/pod/a/b/c", b"1")
    journal.sync()
    with open(path, "ab") as file:
        file.write(b"\0\0\0\x09torn")
    before = path.read_bytes()
    journal._file.close()
    found = Journal(ReadOnlyFiles(), str(path))
    assert found.get("doc/pod/a/b/c") == b"1" and found.cut_bytes == 8
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["journal"]
    path.rename(tmp_path / "journal.new")  # as FAT leaves it when the power goes between two steps
    assert Journal(ReadOnlyFiles(), str(path)).get("doc/pod/a/b/c") == b"1"
    assert os.listdir(tmp_path) == ["journal.new"]


def test_the_agents_log_is_bounded_private_and_survives_a_disk_that_refuses_it(tmp_path):
    log, kept = Log("info", stream=io.StringIO()), AgentLog(str(tmp_path), bytes_max=2000)
    log.copy_to(kept)
    for n in range(100):
        log.info(f"line {n}", word="ä\n")
    files = sorted(tmp_path.iterdir())
    assert [f.name for f in files] == ["agent.log", "agent.log.1"]
    assert all(f.stat().st_size <= 2000 and f.stat().st_mode & 0o777 == 0o600 for f in files)
    lines = [json.loads(line) for f in reversed(files) for line in f.read_bytes().splitlines()]
    assert [line["message"] for line in lines] == [f"line {n}" for n in range(100 - len(lines), 100)]
    kept.close()
    for f in files:
        f.unlink()
    tmp_path.rmdir()
    log.info("nowhere")
    assert log.lost == 1
    tmp_path.mkdir()
    log.info("again")
    assert b"again" in (tmp_path / "agent.log").read_bytes()
    kept.close()
