import json
import os
import socket
import threading
import time

import pytest

from edgelite import credentials, p256, wire
from edgelite.agent import Agent
from edgelite.config import Config, Locked, PidFile, load_membership
from edgelite.console import Log
from edgelite.desired import digest_of, version_of
from edgelite.journal import Journal
from edgelite.loop import sleep
from edgelite.parts import Parts
from edgelite.port import Files, Host
from edgelite.runtimes.base import Runtime, RuntimeFailure
from security.identity import NodeId
from tests.edgelite.memory_files import MemoryFiles
from tests.edgelite.scripted_hub import DOMAIN, Hub, until


class FakeRuntime(Runtime):
    name = "process"

    def facts(self):
        return {"version": "process://0.1.0"}


class FakeWorkloads:
    """Records what it is told; reports and logs what the test wants."""

    def __init__(self, loop, report, store):
        self.loop = loop
        self.report = report
        self.store = store
        self.running = {}
        self.refuse = {}
        self.calls = []
        self.crash = False

    def admit(self, key, body):
        return self.refuse.get(key)

    def set(self, key, body):
        if self.crash:
            raise ValueError("a bug in here")
        self.running[key] = body
        self.calls.append(("set", key))
        if ("start", "") in self.calls:
            self.report("pod", key, {"phase": "Running"})

    def delete(self, key):
        self.running.pop(key, None)
        self.calls.append(("delete", key))

    def start(self):
        self.calls.append(("start", ""))

    def resync(self):
        self.calls.append(("resync", ""))

    def logs(self, uid, container, options, out):
        yield from out.write(b"line of %s/%s\n" % (uid.encode(), container.encode()))

    def drain(self):
        yield from sleep(0)
        self.calls.append(("drain", ""))
        self.running = {}


class FakeParts(Parts):
    def runtime(self, name, loop, state):
        return FakeRuntime()

    def workloads(self, loop, runtime, node, report, store):
        self.made = FakeWorkloads(loop, report, store)
        return self.made

    def addresses_changed(self, node):
        pass


class Lines:
    """A stream for Log."""

    def __init__(self):
        self.lines = []

    def isatty(self):
        return False

    def write(self, text):
        self.lines.append(json.loads(text))

    def flush(self):
        pass

    def find(self, text):
        return [line for line in self.lines if text in line["message"]]


class FaultyFiles(Files):
    """The real files, on a disk that can be full."""

    full = False

    def create(self, path):
        self._check()
        return Files.create(self, path)

    def sync(self, file):
        self._check()
        Files.sync(self, file)

    def _check(self):
        if self.full:
            raise OSError(28, "No space left on device")


class Running:
    """An agent in a thread, against a scripted hub."""

    def __init__(self, tmp_path, monkeypatch, hub, config=None, host=None, edge=""):
        self.data_dir = str(tmp_path / "node")
        self.files = FaultyFiles()
        monkeypatch.setattr("edgelite.agent.Files", lambda: self.files)
        monkeypatch.setattr("edgelite.agent.SYNC_RETRY_S", 0.05)
        monkeypatch.setattr("edgelite.agent.HOUSEKEEPING_S", 0.05)
        monkeypatch.setattr("edgelite.backoff.FIRST_S", 0.01)
        monkeypatch.setattr("edgelite.backoff.MAX_S", 0.05)
        self.log = Lines()
        config = config or Config(runtime="process")
        host = host or Host()
        membership = load_membership(self.data_dir)
        membership.edge = edge or membership.edge
        self.parts = FakeParts(self.data_dir, config, host, membership.node)
        self.agent = Agent(self.data_dir, config, membership, host, Log("debug", self.log), self.parts)
        self.workloads = self.parts.made
        self.code = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        self.code = self.agent.run()

    def stop(self):
        self.agent.stop()
        self.join()

    def join(self):
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path / "ca")
    hub.enrol(str(tmp_path / "node"))
    yield hub
    hub.close()


@pytest.fixture
def start(tmp_path, monkeypatch, hub):
    started = []

    def make(**more):
        started.append(Running(tmp_path, monkeypatch, hub, **more))
        return started[-1]

    yield make
    for one in started:
        if one.thread.is_alive():
            one.stop()


def joined(hub):
    """An accepted connection after HELLO and WELCOME: (connection, hello)."""
    connection = hub.accept()
    hello = connection.expect(wire.HELLO)
    connection.welcome()
    return connection, hello


def reports(connection, *kinds):
    """Reads REPORTs and answers them until each of these types was seen; {type: body}."""
    seen = {}
    while not set(kinds) <= set(seen):
        entries = connection.expect(wire.REPORT, wire.ACK, wire.PING)["e"]
        seen.update((e["t"], e["b"]) for e in entries)
        connection.send(wire.STORED, {"n": [e["n"] for e in entries], "r": 20, "refused": []})
    return seen


def test_the_first_connection_reports_the_node(hub, start):
    agent = start(config=Config(runtime="process", labels={"site": "a1"}))
    connection, hello = joined(hub)
    assert (hello["boot"], hello["conn"], hello["docs"]) == (1, 1, 0)
    node = reports(connection, "node")["node"]
    assert node["capacity"]["pods"] == "110"
    assert int(node["capacity"]["cpu"]) >= 1
    assert node["capacity"]["memory"].endswith("Ki")
    assert node["addresses"][0] == {"type": "InternalIP", "address": "127.0.0.1"}
    assert node["labels"]["cloudhub.dev/runtime"] == "process"
    assert node["labels"]["site"] == "a1"
    assert node["nodeInfo"]["containerRuntimeVersion"] == "process://0.1.0"
    assert {c["type"]: c["status"] for c in node["conditions"]}["DiskPressure"] == "False"
    assert agent.workloads.calls == [("start", "")]


def test_a_document_is_acknowledged_once_durable_and_survives_a_restart_without_the_hub(hub, start):
    agent = start()
    connection, _ = joined(hub)
    connection.set("pod/a/b/u", b'{"kind":"Pod"}', 30)
    acked = connection.expect(wire.ACK, wire.REPORT)
    assert acked == {"a": [["pod/a/b/u", version_of(b'{"kind":"Pod"}')]]}
    on_disk = MemoryFiles({"j": Files().read(agent.data_dir + "/journal")})
    assert Journal(on_disk, "j").get("doc/pod/a/b/u") is not None
    until(lambda: agent.workloads.running == {"pod/a/b/u": b'{"kind":"Pod"}'})
    agent.stop()
    assert agent.code == 0
    again = start()
    assert again.workloads.running == {"pod/a/b/u": b'{"kind":"Pod"}'}
    hello = hub.accept().expect(wire.HELLO)
    assert hello["digest"] == digest_of({"pod/a/b/u": version_of(b'{"kind":"Pod"}')})
    assert (hello["rev"], hello["boot"]) == (30, 2)
    assert hello["claim"] == {"store": "s1", "gen": 1, "slot": 5, "epoch": 7, "id": "c7"}


def test_a_reconnect_with_a_matching_digest_says_hello_and_nothing_more(hub, start):
    start()
    connection, _ = joined(hub)
    connection.set("pod/a/b/u", b"{}")
    reports(connection, "node", "pod")
    connection.send(wire.PING)
    assert connection.expect(wire.PONG, wire.ACK) == b""
    connection.close()
    again, hello = joined(hub)
    again.send(wire.PING)
    again.expect(wire.PONG)
    assert hello["conn"] == 2
    assert again.channel.session_reused
    assert again.received_bytes < 700


def test_a_restart_does_not_report_the_same_node_again(hub, start):
    class Later(Host):
        def wall(self):
            return time.time() + 100

    agent = start()
    connection, _ = joined(hub)
    reports(connection, "node")
    connection.send(wire.PING)
    connection.expect(wire.PONG)
    agent.stop()
    start(host=Later())
    connection, _ = joined(hub)
    connection.send(wire.PING)
    assert connection.expect(wire.PONG) == b""


def test_reports_are_resent_after_every_reconnect_until_stored(hub, start):
    agent = start()
    connection, _ = joined(hub)
    reports(connection, "node")
    connection.set("pod/a/b/u", b"{}")
    first = connection.expect(wire.REPORT, wire.ACK)
    connection.close()
    again, _ = joined(hub)
    assert again.expect(wire.REPORT) == first
    agent.stop()
    start()
    last, _ = joined(hub)
    assert last.expect(wire.REPORT) == first


def test_a_full_disk_acknowledges_nothing_is_shown_as_a_condition_and_heals(hub, start):
    agent = start()
    connection, _ = joined(hub)
    reports(connection, "node")
    agent.files.full = True
    connection.set("pod/a/b/u", b"{}")
    node = reports(connection, "node")["node"]
    full = {c["type"]: c for c in node["conditions"]}["DiskPressure"]
    assert (full["status"], full["reason"]) == ("True", "JournalWriteFailed")
    assert "No space left" in full["message"]
    connection.send(wire.PING)
    connection.expect(wire.PONG)
    assert agent.workloads.running == {}
    with pytest.raises(RuntimeFailure, match="No space left"):
        agent.workloads.store.put("k", b"v")
    agent.files.full = False
    assert connection.expect(wire.ACK, wire.REPORT) == {"a": [["pod/a/b/u", version_of(b"{}")]]}
    until(lambda: agent.workloads.running)
    node = reports(connection, "node")["node"]
    assert {c["type"]: c["status"] for c in node["conditions"]}["DiskPressure"] == "False"


def test_a_document_that_outgrows_the_journal_is_refused_and_the_old_one_stays(hub, start):
    agent = start()
    connection, _ = joined(hub)
    connection.set("configmap/a/b", b"{}")
    assert connection.expect(wire.ACK, wire.REPORT)["a"]
    journal = agent.agent.journal
    until(lambda: agent.workloads.running)
    journal.live_bytes_max = (journal.live_bytes + 2000) * 8 // 7
    connection.set("configmap/a/b", b'{"v": "%s"}' % (b"x" * 4000))
    assert connection.expect(wire.NACK, wire.REPORT)["reason"] == "JournalFull"
    assert agent.workloads.running == {"configmap/a/b": b"{}"}
    connection.set("configmap/a/b", b'{"v": "%s"}' % (b"x" * 1000))
    assert connection.expect(wire.ACK, wire.REPORT)["a"]


def test_what_the_journal_has_no_room_for_is_never_acknowledged(hub, start):
    agent = start()
    connection, _ = joined(hub)
    reports(connection, "node")
    connection.send(wire.PING)
    connection.expect(wire.PONG)
    journal = agent.agent.journal
    bound, journal.live_bytes_max = journal.live_bytes_max, journal.live_bytes
    connection.set("pod/a/b/u", b"{}")
    assert connection.expect(wire.GOAWAY, wire.REPORT)["code"] == "failed"
    assert agent.workloads.running == {}
    journal.live_bytes_max = bound
    again, hello = joined(hub)
    assert hello["docs"] == 0
    again.set("pod/a/b/u", b"{}")
    assert again.expect(wire.ACK, wire.REPORT) == {"a": [["pod/a/b/u", version_of(b"{}")]]}
    assert agent.log.find("the journal would hold")


def test_a_held_node_goes_on_running_what_it_has(hub, start):
    agent = start()
    connection, _ = joined(hub)
    connection.set("pod/a/b/u", b"{}")
    reports(connection, "node", "pod")
    connection.close()
    other = hub.accept()
    other.expect(wire.HELLO)
    other.welcome("diff", store="s2", claim="d1")
    other.send(wire.DEL, {"k": "pod/a/b/u", "r": 99})
    other.send(wire.PING)
    assert other.expect(wire.PONG) == b""
    assert agent.workloads.running == {"pod/a/b/u": b"{}"}
    assert agent.agent.link.state == "held"
    assert "s2" in until(lambda: agent.log.find("held"))[0]["message"]
    other.send(wire.GOAWAY, {"code": "resync", "message": "confirmed", "retry_s": 0})
    confirmed = hub.accept()
    confirmed.expect(wire.HELLO)
    confirmed.welcome("diff", store="s2", claim="d1", confirmed="c7")
    assert len(confirmed.expect(wire.PAIRS)["pairs"]) == 1
    assert "node" in reports(confirmed, "node")
    assert ("resync", "") in agent.workloads.calls
    assert agent.workloads.running == {"pod/a/b/u": b"{}"}


def test_a_redirect_is_followed_at_most_twice(hub, start, tmp_path):
    agent = start()
    for _ in range(2):
        connection = hub.accept()
        connection.expect(wire.HELLO)
        connection.send(wire.REDIRECT, {"to": hub.address})
        assert connection.ended()
    connection = hub.accept()
    connection.expect(wire.HELLO)
    connection.send(wire.REDIRECT, {"to": hub.address})
    until(lambda: agent.log.find("redirected more than 2 times"))
    joined(hub)


def test_the_hub_is_told_of_redirects_and_of_an_owner_that_does_not_answer(hub, start):
    start()
    connection = hub.accept()
    assert "redirects" not in connection.expect(wire.HELLO)
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = f"127.0.0.1:{server.getsockname()[1]}"
    connection.send(wire.REDIRECT, {"to": nobody})
    connection = hub.accept()
    hello = connection.expect(wire.HELLO)
    assert (hello["redirects"], hello["unreached"]) == (1, nobody)
    connection.send(wire.REDIRECT, {"to": hub.address})
    connection = hub.accept()
    assert connection.expect(wire.HELLO)["redirects"] == 2
    connection.welcome("match")
    connection.expect(wire.REPORT)


def test_a_dead_replica_is_passed_over_at_once(hub, start):
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = f"127.0.0.1:{server.getsockname()[1]}"
    agent = start(edge=f"{nobody}, {hub.address},{nobody}")
    joined(hub)
    paused = [line for line in agent.log.find("not connected") if "retry_s" in line]
    assert paused == []


def test_a_clone_backs_off_as_long_as_the_hub_says_and_shows_it(hub, start):
    agent = start()
    connection, _ = joined(hub)
    connection.send(wire.GOAWAY, {"code": "clone", "message": "two incarnations", "retry_s": 10})
    line = until(lambda: agent.log.find("two incarnations"))[0]
    assert 10 <= line["retry_s"] <= 12
    agent.agent.again()
    again, _ = joined(hub)
    seen = reports(again, "node")
    while "IdentityCloned" not in [c["type"] for c in seen["node"]["conditions"]]:
        seen = reports(again, "node")


def test_a_revoked_node_stays_away_and_keeps_running(hub, start):
    agent = start()
    connection, _ = joined(hub)
    connection.send(wire.GOAWAY, {"code": "revoked", "message": "by the operator", "retry_s": None})
    until(lambda: agent.agent.link.state == "refused")
    assert agent.thread.is_alive()
    agent.agent.again()
    joined(hub)


def test_logs_are_streamed_on_request(hub, start):
    start()
    connection, _ = joined(hub)
    request = {"kind": "log", "pod": "u1", "container": "main", "credit": 1000}
    connection.send(wire.OPEN, request, 5)
    kind, stream, body = connection.get()
    while kind == wire.REPORT:
        kind, stream, body = connection.get()
    assert (kind, stream, body) == (wire.DATA, 5, b"line of u1/main\n")
    assert connection.expect(wire.CLOSE, wire.REPORT) == {}


def test_garbage_and_frames_that_are_too_long_end_the_connection_only(hub, start):
    agent = start()
    for junk in (b"\x07\x00\x00\x00\x7f\xff\xff\xff", b"\x07\x00\x00\x00\x00\x00\x00\x01x"):
        connection, _ = joined(hub)
        connection.channel.sendall(junk)
        goaway = connection.expect(wire.GOAWAY, wire.REPORT)
        assert goaway["code"] in ("frame", "protocol")
        assert connection.ended()
        until(lambda: agent.agent.link.state == "waiting")
        agent.agent.again()
    joined(hub)


def test_a_certificate_is_renewed_over_the_channel_at_half_life(hub, start, tmp_path):
    hub.enrol(str(tmp_path / "node"), ttl_s=600)
    chain = credentials.certificate(str(tmp_path / "node"))

    class Later(Host):
        def wall(self):
            return time.time() + 400

    agent = start(host=Later())
    connection, _ = joined(hub)
    csr = connection.expect(wire.RENEW, wire.REPORT)["csr"]
    cert = hub.ca.issue_node(csr, NodeId(DOMAIN, "default", "n1", "n1"), time.time())
    connection.send(wire.RENEWED, {"cert": cert, "bundle": [hub.ca.root_pem]})
    until(lambda: credentials.certificate(agent.data_dir).point != chain.point)
    connection.close()
    joined(hub)
    assert agent.log.find("the new certificate is installed")


def test_a_node_of_another_trust_domain_asks_for_no_renewal_and_connects_with_what_is_put_in_place(
    hub, start, tmp_path, monkeypatch
):
    monkeypatch.setattr("edgelite.agent.IDENTITY_LOOK_S", 0.05)
    node = str(tmp_path / "node")
    hub.enrol(node, ttl_s=600)
    facts = credentials.load_facts(node)
    credentials.write_file(node, credentials.FACTS, json.dumps({**facts, "trust_domain": "partner.example"}))

    def replaced():
        """What an agent of its own authority does: another key and certificate, in one file."""
        private = p256.generate(os.urandom(p256.ENTROPY_BYTES))
        csr = p256.request_pem(private, "n1")
        cert = hub.ca.issue_node(csr, NodeId(DOMAIN, "default", "n1", "n1"), time.time())
        credentials.write_file(node, credentials.IDENTITY, cert + p256.private_pem(private))

    class Later(Host):
        def wall(self):
            return time.time() + 400

    agent = start(host=Later())
    connection, _ = joined(hub)
    connection.expect(wire.REPORT, wire.PING)
    first = connection.channel.getpeercert()["serialNumber"]
    replaced()
    assert connection.expect(wire.GOAWAY, wire.REPORT, wire.PING, wire.ACK)["code"] == "resync"
    connection, _ = joined(hub)
    assert connection.channel.getpeercert()["serialNumber"] != first
    # Its certificate has ended, says the hub: it does not ask to be taken back, and is there with the next one.
    connection.send(
        wire.GOAWAY, {"code": "denied", "message": "ended", "retry_s": 0.0, "reason": "CertificateExpired"}
    )
    connection.close()
    until(lambda: agent.log.find("has to renew it and replace identity.pem"))
    replaced()
    joined(hub)
    assert not agent.log.find("asking")


def test_a_renewal_that_fails_changes_nothing(hub, start, tmp_path):
    hub.enrol(str(tmp_path / "node"), ttl_s=600)

    class Later(Host):
        def wall(self):
            return time.time() + 400

    agent = start(host=Later())
    connection, _ = joined(hub)
    connection.expect(wire.RENEW, wire.REPORT)
    connection.send(wire.RENEWED, {"cert": "nonsense", "bundle": []})
    until(lambda: agent.log.find("could not be installed"))
    connection.close()
    joined(hub)


def test_a_stopping_agent_says_goodbye_and_leaves_workloads_alone(hub, start):
    agent = start()
    connection, _ = joined(hub)
    before = time.monotonic()
    agent.stop()
    assert time.monotonic() - before < 5
    assert connection.expect(wire.GOAWAY, wire.REPORT)["code"] == "shutdown"
    assert ("drain", "") not in agent.workloads.calls


def test_draining_stops_the_workloads_and_then_the_agent(hub, start):
    agent = start()
    joined(hub)
    agent.agent.drain()
    agent.join()
    assert agent.workloads.calls[-1] == ("drain", "")
    assert agent.code == 0


def test_a_crashing_task_ends_the_agent_with_a_trace(hub, start):
    agent = start()
    connection, _ = joined(hub)
    agent.workloads.crash = True
    connection.set("pod/a/b/u", b"{}")
    agent.join()
    assert agent.code == 1
    assert "a bug in here" in agent.log.find("crashed")[0]["trace"]


def test_a_refused_document_is_answered_and_the_reason_survives(hub, start):
    agent = start()
    agent.workloads.refuse["pod/a/b/u"] = ("TooManyPods", "enough")
    connection, _ = joined(hub)
    connection.set("pod/a/b/u", b"{}")
    assert connection.expect(wire.NACK, wire.REPORT)["reason"] == "TooManyPods"
    connection.set("robot/x", b"{}")
    assert connection.expect(wire.NACK, wire.REPORT)["reason"] == "UnsupportedKind"
    connection.set("agent/config", b"[]")
    assert connection.expect(wire.NACK, wire.REPORT)["reason"] == "InvalidDocument"
    assert agent.workloads.running == {}


def test_the_configured_heartbeat_takes_effect_at_once(hub, start):
    agent = start()
    connection, _ = joined(hub)
    connection.set("agent/config", b'{"heartbeat":5}')
    connection.expect(wire.ACK, wire.REPORT)
    assert agent.agent.link.session.heartbeat_s == 5


def test_a_copied_data_directory_gets_an_incarnation_of_its_own(hub, start, tmp_path, monkeypatch):
    import shutil

    agent = start()
    _, first = joined(hub)
    agent.stop()
    shutil.copytree(tmp_path / "node", tmp_path / "copy" / "node")
    clone = Running(tmp_path / "copy", monkeypatch, hub)
    hello = hub.accept().expect(wire.HELLO)
    clone.stop()
    assert hello["inc"] != first["inc"]
    start()
    hello = hub.accept().expect(wire.HELLO)
    assert (hello["inc"], hello["boot"]) == (first["inc"], 2)


def test_a_damaged_journal_is_salvaged_under_a_new_incarnation_and_reported(hub, start, tmp_path):
    agent = start()
    connection, first = joined(hub)
    connection.set("pod/a/b/u", b"{}")
    reports(connection, "pod", "node")
    connection.set("pod/a/b/v", b"{}")
    reports(connection, "pod")
    agent.stop()
    path = tmp_path / "node" / "journal"
    data = bytearray(path.read_bytes())
    data[data.find(b"doc/pod/a/b/u") + 3] ^= 1
    path.write_bytes(bytes(data))
    again = start()
    assert list(again.workloads.running) == ["pod/a/b/v"]
    connection, hello = joined(hub)
    assert hello["inc"] != first["inc"]
    assert reports(connection, "event")["event"]["reason"] == "JournalDamaged"
    assert (tmp_path / "node" / "journal.damaged").exists()


def test_only_one_agent_uses_a_data_directory(tmp_path):
    first = PidFile(str(tmp_path))
    assert first.holder() is None
    first.acquire()
    with pytest.raises(Locked, match="in use by the agent with process id"):
        PidFile(str(tmp_path)).acquire()
    first.release()
    assert PidFile(str(tmp_path)).holder() is None


def test_the_status_file_tells_where_the_agent_is(hub, start, tmp_path):
    agent = start()
    joined(hub)
    path = tmp_path / "node" / "status.json"
    status = until(lambda: [s for s in [json.loads(path.read_text())] if s["state"] == "connected"])[0]
    assert (status["node"], status["hub"]) == ("n1", hub.address)
    synced = until(lambda: json.loads(path.read_text())["synced"])
    assert abs(time.time() - synced) < 60
    agent.stop()
    status = json.loads(path.read_text())
    assert (status["state"], status["synced"]) == ("stopped", synced)


def test_an_agent_whose_journal_has_lost_its_end_begins_anew_once_and_reports_all_again(hub, start):
    agent = start()
    connection, first = joined(hub)
    connection.close()
    connection = hub.accept()
    connection.expect(wire.HELLO)
    # As to one of two machines: the hub has seen a later start of this journal.
    connection.send(wire.GOAWAY, {"code": "superseded", "message": "a newer one is here", "retry_s": 0})
    connection, again = joined(hub)
    assert again["inc"] != first["inc"] and (again["boot"], again["conn"]) == (1, 1)
    assert ("resync", "") in agent.workloads.calls
    assert agent.log.find("its journal has lost what was written last")
    connection.close()
    connection = hub.accept()
    connection.expect(wire.HELLO)
    connection.send(wire.GOAWAY, {"code": "superseded", "message": "a newer one is here", "retry_s": 0})
    assert joined(hub)[1]["inc"] == again["inc"], "if there are two, the hub is to find them"
