"""The `edgelite` command as real processes: the real runtime, a scripted hub."""

import compileall
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from edgelite import cli, wire
from edgelite.options import Command, Option, UsageError
from security import join as security_join
from security.identity import NodeId
from tests.edgelite.scripted_hub import DOMAIN, Hub, until

SLEEP = ["/bin/sleep", "1000"]


class Cli:
    """Starts `edgelite` processes and ends those that are left."""

    def __init__(self, hub, directory):
        self.hub = hub
        self.data_dir = str(directory / "node")
        self.boot = directory / "boot_id"
        self.boot.write_text("boot-1\n")
        self.started = []

    def start(self, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "edgelite", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def call(self, *arguments):
        """(exit code, stdout, stderr)"""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def enrol(self, **settings):
        self.hub.enrol(self.data_dir)
        config = {"runtime": "process", "boot_id_file": str(self.boot), **settings}
        with open(self.data_dir + "/config.json", "w") as file:
            json.dump(config, file)

    def run(self, **settings):
        """A running agent and its connection after WELCOME."""
        if not os.path.exists(self.data_dir + "/node.json"):
            self.enrol(**settings)
        process = self.start("run", "--data-dir", self.data_dir)
        connection = self.hub.accept()
        self.hello = connection.expect(wire.HELLO)
        connection.welcome()
        return process, Reports(connection)

    def close(self):
        if os.path.exists(self.data_dir + "/node.json"):
            self.call("stop", "--data-dir", self.data_dir, "--workloads", "--timeout", "20")
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()


class Reports:
    """Answers reports and keeps the newest status of each pod."""

    def __init__(self, connection):
        self.connection = connection
        self.pods = {}
        self.acked = {}

    def read(self):
        kind, _, body = self.connection.get()
        if kind == wire.REPORT:
            entries = json.loads(body)["e"]
            for entry in entries:
                if entry["t"] == "pod":
                    self.pods[entry["k"]] = entry["b"]
            self.connection.send(wire.STORED, {"n": [e["n"] for e in entries], "r": 20, "refused": []})
        elif kind == wire.ACK:
            self.acked.update(json.loads(body)["a"])

    def phase(self, key, wanted):
        while self.pods.get(key, {}).get("phase") != wanted:
            self.read()
        return self.pods[key]

    def running(self, key):
        self.phase(key, "Running")
        while not self.pods[key]["containerStatuses"][0].get("ready"):
            self.read()
        return self.pods[key]["containerStatuses"][0]


def pod(name, command=None, grace=1):
    document = {
        "kind": "Pod",
        "ns": "default",
        "name": name,
        "uid": "uid-" + name,
        "labels": {},
        "annotations": {},
        "created": "2026-01-01T00:00:00Z",
        "spec": {
            "containers": [{"name": "main", "image": "none", "command": command or SLEEP}],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": grace,
        },
    }
    return f"pod/default/{name}/uid-{name}", json.dumps(document).encode()


def processes(tag):
    """Process ids whose command line holds `tag` as a word."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if tag in (process.info["cmdline"] or []) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


@pytest.fixture
def edgelite(tmp_path):
    hub = Hub(tmp_path / "ca")
    made = Cli(hub, tmp_path)
    yield made
    made.close()
    hub.close()


def test_help_and_version_need_no_directory(edgelite):
    code, out, _ = edgelite.call("--help")
    assert code == 0
    for word in ("join", "run", "stop", "status", "logs", "diagnose"):
        assert f"edgelite {word}" in out
    code, out, _ = edgelite.call("join", "--help")
    assert code == 0
    for option in ("--hub HOST:PORT", "--token TOKEN", "--data-dir DIR", "--name", "--runtime", "--label"):
        assert option in out
    assert "(default: auto)" in out
    assert edgelite.call("--version")[1].startswith("edgelite ")
    assert edgelite.call()[0] == 2


def test_wrong_usage_exits_2_and_says_what_is_wrong(edgelite):
    directory = edgelite.data_dir
    cases = [
        (["fly"], "no command 'fly'"),
        (["join", "--hub", "h:1"], "--token TOKEN is required"),
        (["run", "--data-dir"], "--data-dir needs a value"),
        (["run", "--speed", "9"], "knows no --speed"),
        (["run", "--data-dir", "a", "--data-dir", "b"], "given twice"),
        (["stop", "--workloads=yes"], "takes no value"),
        (["stop", "--data-dir", directory, "--timeout", "soon"], "no number of seconds"),
        (
            ["join", "--hub", "h:1", "--token", "t", "--data-dir", directory, "--runtime", "vm"],
            "has to be one of",
        ),
        (["join", "--hub", "h:1", "--token", "t", "--data-dir", directory, "--label", "x"], "KEY=VALUE"),
        (["join", "--hub", "h:1", "--token", "t", "--data-dir", directory, "--pods-max", "999"], "1 to 256"),
    ]
    for arguments, text in cases:
        error = run_here(arguments)
        assert text in error, (arguments, error)
    assert not os.path.exists(directory)


def run_here(arguments):
    """stderr of a command that fails with exit code 2, in this process."""
    import contextlib
    import io

    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        assert cli.main(arguments) == 2
    return err.getvalue()


def test_a_directory_that_has_not_joined_exits_4(edgelite):
    code, _, err = edgelite.call("run", "--data-dir", edgelite.data_dir)
    assert code == 4
    assert "has not joined" in err
    assert edgelite.call("status", "--data-dir", edgelite.data_dir)[0] == 4


def test_a_second_agent_on_a_directory_exits_3(edgelite):
    edgelite.run()
    code, _, err = edgelite.call("run", "--data-dir", edgelite.data_dir)
    assert code == 3
    assert "in use by the agent with process id" in err


def test_a_broken_setting_is_named(edgelite):
    edgelite.enrol(runtime="process", speed=9)
    code, _, err = edgelite.call("run", "--data-dir", edgelite.data_dir)
    assert code == 2
    assert "'speed' is no setting" in err


def test_sigterm_stops_the_agent_and_leaves_the_workload_which_the_next_one_adopts(edgelite):
    process, reports = edgelite.run()
    key, document = pod("stays", ["/bin/sleep", "100.25"])
    reports.connection.set(key, document)
    reports.running(key)
    before = processes("100.25")
    assert len(before) == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert processes("100.25") == before
    edgelite.run()
    assert edgelite.hello["docs"] == 1
    assert processes("100.25") == before
    code, _, _ = edgelite.call("stop", "--data-dir", edgelite.data_dir, "--workloads")
    assert code == 0
    assert processes("100.25") == []


def test_kill_9_and_a_restart_without_the_hub_adopt_what_runs(edgelite):
    process, reports = edgelite.run()
    key, document = pod("kept", ["/bin/sleep", "100.5"])
    reports.connection.set(key, document)
    reports.running(key)
    before = processes("100.5")
    reports.connection.close()
    process.kill()
    process.wait(10)
    again = edgelite.start("run", "--data-dir", edgelite.data_dir)
    until(
        lambda: edgelite.call("status", "-o", "json", "--data-dir", edgelite.data_dir)[1].count(
            '"documents": 1'
        )
    )
    assert processes("100.5") == before
    again.send_signal(signal.SIGTERM)
    again.wait(10)
    assert processes("100.5") == before


def test_after_a_reboot_with_the_hub_away_the_workload_starts_again_from_the_journal(edgelite):
    process, reports = edgelite.run()
    key, document = pod("reborn", ["/bin/sleep", "100.75"])
    reports.connection.set(key, document)
    reports.running(key)
    before = processes("100.75")
    reports.connection.close()
    process.kill()
    process.wait(10)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not processes("100.75"))
    edgelite.boot.write_text("boot-2\n")
    edgelite.start("run", "--data-dir", edgelite.data_dir)
    until(lambda: processes("100.75"))
    assert processes("100.75") != before


def test_stop_workloads_works_without_a_running_agent(edgelite):
    process, reports = edgelite.run()
    key, document = pod("orphan", ["/bin/sleep", "100.125"])
    reports.connection.set(key, document)
    reports.running(key)
    process.kill()
    process.wait(10)
    assert processes("100.125")
    code, _, err = edgelite.call("stop", "--data-dir", edgelite.data_dir, "--workloads")
    assert code == 0, err
    assert processes("100.125") == []
    code, _, err = edgelite.call("stop", "--data-dir", edgelite.data_dir)
    assert code == 0
    assert "no agent runs" in err


def test_status_shows_the_connection(edgelite):
    edgelite.run()

    def state():
        return json.loads(edgelite.call("status", "-o", "json", "--data-dir", edgelite.data_dir)[1])["state"]

    until(lambda: state() == "connected")
    edgelite.call("stop", "--data-dir", edgelite.data_dir)
    assert state() == "not running"


def test_join_enrols_and_runs_and_may_be_repeated_with_the_same_token_only(edgelite):
    hub = edgelite.hub
    token = join_token(hub)
    arguments = ["join", "--hub", hub.address, "--data-dir", edgelite.data_dir, "--runtime", "process"]
    joining = threading.Thread(target=answer_join, args=(hub,))
    joining.start()
    process = edgelite.start(*arguments, "--token", token, "--label", "site=a1")
    joining.join(20)
    connection = hub.accept()
    connection.expect(wire.HELLO)
    connection.welcome()
    node = connection.expect(wire.REPORT)["e"][0]["b"]
    assert node["labels"]["site"] == "a1"
    assert os.stat(edgelite.data_dir).st_mode & 0o777 == 0o700
    config = json.loads(Path(edgelite.data_dir, "config.json").read_text())
    assert config["labels"] == {"site": "a1"}
    assert token not in json.dumps(config)
    assert int(Path(edgelite.data_dir, "agent.pid").read_text()) == process.pid
    assert edgelite.call(*arguments, "--token", token)[0] == 3
    assert edgelite.call("stop", "--data-dir", edgelite.data_dir)[0] == 0
    code, _, err = edgelite.call(*arguments, "--token", token + "x")
    assert code == 1
    assert "has joined already" in err
    edgelite.start(*arguments, "--token", token)
    hub.accept().expect(wire.HELLO)


def test_a_bad_token_is_refused_before_anything_is_sent(edgelite):
    code, _, err = edgelite.call(
        "join", "--hub", edgelite.hub.address, "--token", "nonsense", "--data-dir", edgelite.data_dir
    )
    assert code == 1
    assert "cannot join" in err
    assert not os.path.exists(edgelite.data_dir + "/node.json")


def test_the_resident_agent_with_twenty_pods_stays_under_20_mb_and_imports_nothing_heavy(edgelite):
    # As pip leaves it: compiling at the first start costs 0.7 MB once.
    assert compileall.compile_dir(os.path.dirname(cli.__file__), quiet=1)
    process, reports = edgelite.run()
    keys = []
    for number in range(20):
        key, document = pod(f"p{number}")
        keys.append(key)
        reports.connection.set(key, document)
    for key in keys:
        reports.running(key)
    rss_kb = psutil.Process(process.pid).memory_info().rss // 1024
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    print("RSS of the agent with twenty pods:", rss_kb, "KB")
    assert "_ctypes" not in maps and "_asyncio" not in maps
    assert rss_kb < 20 * 1024


def test_the_resident_part_imports_no_asyncio_http_client_argparse_or_ctypes():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import edgelite.resident, edgelite.agent, edgelite.agentlog, edgelite.parts, edgelite.console\n"
        "import edgelite.credentials, edgelite.workloads, edgelite.runtimes.process\n"
        "bad = {'asyncio','http.client','argparse','ctypes','subprocess','typing','threading','importlib.metadata'}\n"
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, os.getcwd()], capture_output=True, text=True, timeout=20
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_options_parse_values_flags_and_lists():
    command = Command(
        "x",
        "tests",
        [
            Option("a", "A", "a", default="1"),
            Option("f", "", "f", kind="flag", default=False),
            Option("l", "L", "l", kind="list"),
        ],
    )
    assert command.parse([]) == {"a": "1", "f": False, "l": []}
    assert command.parse(["--a=", "--f", "--l", "1", "--l=2"]) == {"a": "", "f": True, "l": ["1", "2"]}
    with pytest.raises(UsageError):
        command.parse(["stray"])


def join_token(hub):
    """A token whose text carries the hub's root, as `security.join` mints it."""
    root = bytes.fromhex(hub.ca.root_sha256) if isinstance(hub.ca.root_sha256, str) else hub.ca.root_sha256
    request = security_join.TokenRequest(DOMAIN, root, node="n1")
    return security_join.mint(request, time.time(), os.urandom(security_join.ENTROPY_BYTES))[1]


def answer_join(hub):
    """Plays the hub's part of enrolment: BUNDLE on the first connection, JOIN on the second."""
    first = hub.accept()
    first.expect(wire.BUNDLE)
    first.send(wire.BUNDLE, {"roots": [hub.ca.root_pem]})
    first.ended()
    second = hub.accept()
    wanted = second.expect(wire.JOIN)
    cert = hub.ca.issue_node(wanted["csr"], NodeId(DOMAIN, "default", "n1", "n1"), time.time())
    facts = {"cert": cert, "bundle": [hub.ca.root_pem], "node": "n1", "trust_domain": DOMAIN}
    second.send(wire.JOINED, dict(facts, hub="hub." + DOMAIN, edge=None))
    second.ended()


def test_join_comes_back_to_a_busy_hub_and_to_no_other_refusal(monkeypatch, tmp_path, capsys):
    from edgelite import commands, enroll
    from edgelite.config import Config
    from edgelite.credentials import EnrollError

    busy = [EnrollError("TooManyJoins", "the hub refused: many machines join at this moment", True)] * 2
    calls = []

    def fake_join(hub, token, **options):
        calls.append(hub)
        if busy:
            raise busy.pop()
        return {"node": "n1"}

    monkeypatch.setattr(enroll, "join", fake_join)
    monkeypatch.setattr(commands.time, "sleep", lambda seconds: None)
    values = {"hub": "h:1", "token": "t", "name": None, "again": False}
    assert commands._join_patiently(values, str(tmp_path), Config())["node"] == "n1"
    assert len(calls) == 3
    assert "trying again" in capsys.readouterr().err
    busy.append(EnrollError("TokenUsed", "the hub refused: used", False))
    with pytest.raises(EnrollError):
        commands._join_patiently(values, str(tmp_path), Config())
    assert len(calls) == 4
