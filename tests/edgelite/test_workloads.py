"""The driver, with a scripted runtime, real files and the real loop; the clock can be moved on by hand."""

import json
import os
import time

import pytest

from edgelite.loop import Loop, Wait, now
from edgelite.podenv import NodeFacts
from edgelite.runtimes.base import Runtime, RuntimeFailure, State, Status
from edgelite.workloads import PODS_MAX, Workloads

DEADLINE_S = 10.0


class Store(State):
    def __init__(self):
        self.map = {}
        self.broken = False

    def put(self, key, value):
        if self.broken:
            raise OSError(28, "No space left on device")
        self.map[key] = value

    def delete(self, key):
        self.map.pop(key, None)

    def items(self):
        return list(self.map.items())


class Clock:
    def __init__(self):
        self.ahead = 0.0

    def now(self):
        return now() + self.ahead

    def wall(self):
        return time.time() + self.ahead


class Reader:
    def __init__(self):
        self.data = b""

    def write(self, data):
        self.data += data
        yield Wait(-1, 0, 0.0)


class FakeRuntime(Runtime):
    """What "runs" is a dict; tests end containers, and script failures and refusals."""

    name = "fake"

    def __init__(self):
        self.live = {}  # (uid, container) -> Status
        self.past = {}
        self.launches = []
        self.stopped = []
        self.removed = []
        self.execs = []
        self.failures = []  # raised by the next starts
        self.failures_behind_the_fork = []
        self.refusals = []
        self.warnings = []
        self.exec_result = (0, b"")
        self.ended = []
        self.hold_stop = False
        self.hold_exec = False
        self.hold_recover = False

    def review(self, pod):
        return list(self.refusals), list(self.warnings)

    def recover(self):
        yield Wait(-1, 0, 0.0)
        while self.hold_recover:
            yield Wait(-1, 0, now() + 0.01)
        found = dict(self.past)
        found.update(self.live)
        return list(found.values())

    def start(self, launch):
        yield Wait(-1, 0, 0.0)
        if self.failures:
            raise self.failures.pop(0)
        key = (launch.pod["uid"], launch.container["name"])
        assert key not in self.live, "two attempts at once"
        self.launches.append(launch)
        status = Status(*key, launch.attempt, "running", time.time(), f"fake://{key[1]}/{launch.attempt}")
        self.live[key] = status
        if self.failures_behind_the_fork:
            raise self.failures_behind_the_fork.pop(0)
        return status

    def end(self, uid, container, code=0):
        status = self.live.pop((uid, container))
        done = Status(uid, container, status.attempt, "exited", status.started_at, status.handle)
        done.exit_code, done.finished_at = code, time.time()
        self.past[(uid, container)] = done
        self.ended.append(done)
        return done

    def changes(self, deadline):
        while not self.ended and now() < deadline:
            yield Wait(-1, 0, min(deadline, now() + 0.01))
        ended, self.ended = self.ended, []
        return ended

    def stop(self, uid, container, grace_s):
        self.stopped.append((uid, container, round(grace_s)))
        while self.hold_stop:
            yield Wait(-1, 0, now() + 0.01)
        yield Wait(-1, 0, 0.0)
        if (uid, container) in self.live:
            self.end(uid, container, 143)
        if (uid, container) not in self.past:
            raise RuntimeFailure("NotFound", "no such container")
        return self.past[(uid, container)]

    def remove(self, uid):
        yield Wait(-1, 0, 0.0)
        assert not [k for k in self.live if k[0] == uid], "removed while it runs"
        self.past = {k: v for k, v in self.past.items() if k[0] != uid}
        self.removed.append(uid)

    def exec(self, uid, container, argv, timeout_s):
        yield Wait(-1, 0, 0.0)
        self.execs.append(argv)
        while self.hold_exec:
            yield Wait(-1, 0, now() + 0.01)
        return self.exec_result

    def logs(self, uid, container, options, out):
        yield from out.write(b"hello\n")
        while options.get("follow") and uid not in self.removed:
            yield Wait(-1, 0, now() + 0.1)
            if (uid, container) in self.past:
                yield from out.write(b"bye\n")
                return


class Node:
    """An agent's worth of workloads; `crash` throws the driver away as kill -9 would, and makes a new one."""

    def __init__(self, root, runtime=None, tmpfs=None, vault=None, view=None):
        self.root, self.tmpfs, self.vault, self.view = str(root), tmpfs, vault, view
        self.runtime = runtime or FakeRuntime()
        self.store, self.clock = Store(), Clock()
        self.reports = []
        self.docs = {}
        self.facts = NodeFacts(
            "edge-1", [{"type": "InternalIP", "address": "127.0.0.1"}], allow_secret_files=True, boot_id="a"
        )
        self.crash(start=False)

    def crash(self, start=True):
        self.loop = Loop()
        self.workloads = Workloads(
            self.loop,
            self.runtime,
            self.facts,
            self.root,
            self.report,
            self.store,
            self.clock,
            tmpfs=self.tmpfs,
            vault=self.vault,
            view=self.view,
        )
        for key, body in self.docs.items():
            self.workloads.set(key, body)
        if start:
            self.workloads.start()

    def report(self, kind, key, body):
        if self.store.broken:
            raise OSError(28, "No space left on device")
        self.reports.append((kind, key, json.loads(json.dumps(body))))

    def set(self, key, doc):
        body = json.dumps(doc).encode()
        assert self.workloads.admit(key, body) is None
        self.docs[key] = body
        self.workloads.set(key, body)

    def delete(self, key):
        del self.docs[key]
        self.workloads.delete(key)

    def until(self, true, what="it"):
        deadline = now() + DEADLINE_S
        while not true():
            assert now() < deadline, f"{what} did not come about; last reports: {self.reports[-4:]}"
            assert not self.loop.stopping, self.loop._crash
            self.loop.turn(0.02)

    def settle(self, turns=12):
        for _ in range(turns):
            self.loop.turn(0.01)
        assert self.loop._crash is None, self.loop._crash

    def run(self, gen):
        """Runs a generator as the agent would; what it raises is raised here."""
        errors = []

        def guarded():
            try:
                yield from gen
            except RuntimeFailure as error:
                errors.append(error)

        task = self.loop.spawn(guarded(), "test")
        self.until(lambda: task.done)
        if errors:
            raise errors[0]

    def ahead(self, seconds):
        self.clock.ahead += seconds
        for uid in self.workloads._entries:
            self.workloads._touch(uid)

    def status(self, key="pod/shop/till/u1"):
        found = [b for t, k, b in self.reports if t == "pod" and k == key]
        return found[-1] if found else {}

    def phase(self, key="pod/shop/till/u1"):
        return self.status(key).get("phase")

    def reasons(self):
        return [b["reason"] for t, _, b in self.reports if t == "event"]


KEY = "pod/shop/till/u1"


def container(name="app", **more):
    return {"name": name, "image": "img:1", "command": ["run"], **more}


def pod(*containers, uid="u1", delete=None, **spec):
    doc = {"kind": "Pod", "ns": "shop", "name": "till", "uid": uid, "labels": {"a": "b"}, "annotations": {}}
    doc["spec"] = {"containers": list(containers) or [container()], **spec}
    if delete is not None:
        doc["del"] = {"grace": delete}
    return doc


def config(**data):
    return {"kind": "ConfigMap", "ns": "shop", "name": "cfg", "data": data}


def read(path):
    with open(path) as f:
        return f.read()


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path)
    node.workloads.start()
    return node


def test_a_pod_runs_and_is_reported(node):
    node.set(KEY, pod())
    node.until(lambda: node.phase() == "Running")
    assert node.status()["containerStatuses"][0]["ready"]
    assert "Started" in node.reasons()
    assert [launch.attempt for launch in node.runtime.launches] == [0]


def test_env_and_files_come_from_the_config_map(node):
    node.set("configmap/shop/cfg", config(greeting="hi", n="1"))
    app = container(
        args=["$(GREETING)", "$$(GREETING)", "$(NOT)"],
        env=[{"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "greeting"}}}],
        envFrom=[{"prefix": "C_", "configMapRef": {"name": "cfg"}}],
        volumeMounts=[{"name": "v", "mountPath": "/etc/app"}],
    )
    node.set(KEY, pod(app, volumes=[{"name": "v", "configMap": {"name": "cfg"}}]))
    node.until(lambda: node.phase() == "Running")
    launch = node.runtime.launches[0]
    assert launch.args == ["hi", "$(GREETING)", "$(NOT)"]
    assert dict(launch.env) == {"GREETING": "hi", "C_greeting": "hi", "C_n": "1"}
    mount = launch.mounts[0]
    assert mount.target == "/etc/app" and mount.read_only
    path = os.path.join(mount.source, "greeting")
    assert read(path) == "hi"
    node.set("configmap/shop/cfg", config(greeting="hello"))
    node.until(lambda: read(path) == "hello")
    assert sorted(n for n in os.listdir(mount.source) if not n.startswith("..")) == ["greeting"]
    assert len(node.runtime.launches) == 1


def test_a_missing_config_map_is_waited_for_and_arrives(node):
    app = container(envFrom=[{"configMapRef": {"name": "cfg"}}])
    node.set(KEY, pod(app))
    node.until(lambda: node.status().get("containerStatuses", [{}])[0].get("state", {}).get("waiting"))
    node.until(
        lambda: (
            node.status()["containerStatuses"][0]["state"]["waiting"]["reason"]
            == "CreateContainerConfigError"
        )
    )
    assert node.status()["containerStatuses"][0]["state"]["waiting"]["message"] == 'configmap "cfg" not found'
    node.set("configmap/shop/cfg", config(a="1"))
    node.until(lambda: node.phase() == "Running")


def test_a_crashed_container_is_restarted_with_back_off(node):
    node.set(KEY, pod())
    node.until(lambda: node.phase() == "Running")
    node.runtime.end("u1", "app", 1)
    node.until(lambda: len(node.runtime.launches) == 2)
    node.until(lambda: node.status()["containerStatuses"][0]["restartCount"] == 1)
    node.runtime.end("u1", "app", 1)
    node.until(lambda: "waiting" in node.status()["containerStatuses"][0]["state"])
    assert node.status()["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    node.ahead(11)
    node.until(lambda: len(node.runtime.launches) == 3)


def test_deletion_leaves_nothing_and_says_gone(node, tmp_path):
    node.set(
        KEY,
        pod(
            container(volumeMounts=[{"name": "e", "mountPath": "/e"}]),
            volumes=[{"name": "e", "emptyDir": {}}],
        ),
    )
    node.until(lambda: node.phase() == "Running")
    source = node.runtime.launches[0].mounts[0].source
    os.makedirs(os.path.join(source, "a/b"))
    os.symlink("/etc", os.path.join(source, "a/b/etc"))
    node.set(KEY, pod(delete=4))
    node.until(lambda: ("gone", KEY, {}) in node.reports)
    assert node.runtime.stopped == [("u1", "app", 4)]
    assert node.runtime.removed == ["u1"] and os.listdir(tmp_path / "pods") == []
    assert os.path.exists("/etc/passwd")
    assert node.phase() == "Failed"
    node.delete(KEY)
    node.settle()
    assert node.store.map == {} and node.workloads.pod_count() == 0
    assert [t for t, _, _ in node.reports].count("gone") == 1


def test_an_undesired_pod_is_stopped_and_removed_without_gone(node):
    node.set(KEY, pod())
    node.until(lambda: node.phase() == "Running")
    node.delete(KEY)
    node.until(lambda: node.runtime.removed == ["u1"] and not node.workloads._entries)
    assert "gone" not in [t for t, _, _ in node.reports]
    assert node.store.map == {}


def test_a_pod_desired_again_while_it_is_removed_begins_anew(node):
    node.set(KEY, pod())
    node.until(lambda: node.phase() == "Running")
    node.runtime.hold_stop = True
    node.delete(KEY)
    node.settle()
    node.set(KEY, pod())
    node.settle()
    node.runtime.hold_stop = False
    node.until(lambda: len(node.runtime.launches) == 2 and ("u1", "app") in node.runtime.live)
    assert node.runtime.removed == ["u1"]


def test_kill_9_adopts_what_runs(node):
    node.set(KEY, pod())
    node.until(lambda: node.phase() == "Running")
    told = len(node.reports)
    node.crash()
    node.until(lambda: node.workloads._entries)
    node.settle()
    assert len(node.runtime.launches) == 1 and len(node.reports) == told
    node.runtime.end("u1", "app", 1)
    node.until(lambda: len(node.runtime.launches) == 2)
    assert node.runtime.launches[1].attempt == 1


def test_after_a_reboot_everything_starts_again(node):
    node.set(KEY, pod())
    node.until(lambda: node.phase() == "Running")
    node.runtime.end("u1", "app", 137)
    node.facts.boot_id = "b"
    node.crash()
    node.until(lambda: len(node.runtime.launches) == 2)
    node.until(lambda: node.status()["containerStatuses"][0]["restartCount"] == 1)


def test_what_runs_without_a_document_is_stopped_and_removed(node, tmp_path):
    node.set(KEY, pod(container(lifecycle={"preStop": {"exec": {"command": ["bye"]}}})))
    node.until(lambda: node.phase() == "Running")
    node.docs.clear()
    node.store.map.clear()
    os.makedirs(tmp_path / "pods" / "u9")
    node.crash()
    node.until(lambda: sorted(node.runtime.removed) == ["u1", "u9"] and not node.workloads._entries)
    assert os.listdir(tmp_path / "pods") == []


def test_a_kill_during_an_unwanted_pods_stop_still_honours_its_hook(node):
    node.set(
        KEY,
        pod(
            container(lifecycle={"preStop": {"exec": {"command": ["bye"]}}}), terminationGracePeriodSeconds=9
        ),
    )
    node.until(lambda: node.phase() == "Running")
    node.runtime.hold_stop = True
    node.delete(KEY)
    node.until(lambda: node.runtime.stopped)
    node.runtime.hold_stop = False
    node.runtime.stopped.clear()
    node.runtime.execs.clear()
    node.crash()
    node.until(lambda: node.runtime.removed == ["u1"])
    assert node.runtime.execs == [["bye"]] and node.runtime.stopped == [("u1", "app", 9)]


def test_a_full_disk_holds_starts_back_until_there_is_room(node):
    node.store.broken = True
    node.set(KEY, pod())
    node.settle()
    assert node.runtime.launches == [] and "No space left" in node.workloads.trouble
    node.store.broken = False
    node.ahead(6)
    node.until(lambda: node.phase() == "Running")
    assert node.workloads.trouble == ""


def test_an_unknown_failure_of_a_start_leaves_nothing_running(node):
    node.runtime.failures = [OSError(28, "No space left on device")]
    node.set(KEY, pod())
    node.until(lambda: "Failed" in node.reasons())
    node.ahead(11)
    node.until(lambda: node.phase() == "Running")
    assert [launch.attempt for launch in node.runtime.launches] == [0]


def test_a_start_that_failed_behind_its_fork_is_not_doubled(node):
    node.runtime.failures_behind_the_fork = [OSError(28, "No space left on device")]
    node.set(KEY, pod())
    node.until(lambda: "Failed" in node.reasons())
    assert node.runtime.live == {} and node.runtime.stopped == [("u1", "app", 2)]


def test_a_stop_that_was_overtaken_does_not_reach_the_next_attempt(node):
    node.set(KEY, pod())
    node.until(lambda: node.phase() == "Running")
    node.runtime.hold_stop = True
    node.set(KEY, pod(container(image="img:2")))
    node.until(lambda: node.runtime.stopped)
    node.runtime.end("u1", "app", 0)
    node.until(lambda: len(node.runtime.launches) == 2)
    node.runtime.hold_stop = False
    node.settle()
    assert node.runtime.live[("u1", "app")].attempt == 1


def test_a_hook_that_outlives_its_container_stops_nobody_else(node):
    held = container(lifecycle={"preStop": {"sleep": {"seconds": 600}}})
    node.set(KEY, pod(held))
    node.until(lambda: node.phase() == "Running")
    node.set(KEY, pod({**held, "image": "img:2"}))
    node.until(lambda: "Killing" in node.reasons())
    node.runtime.end("u1", "app", 0)
    node.until(lambda: len(node.runtime.launches) == 2)
    node.settle()
    assert node.runtime.stopped == [] and ("u1", "app") in node.runtime.live


def test_a_refused_pod_fails_with_a_reason(node):
    node.runtime.refusals = ["spec.hostPID: not allowed on this node"]
    node.set(KEY, pod())
    node.until(lambda: node.phase() == "Failed")
    assert node.status()["reason"] == "Unsupported"
    assert "spec.hostPID" in node.status()["message"] and "Unsupported" in node.reasons()
    assert node.runtime.launches == []


def test_warnings_become_one_event(node):
    node.runtime.warnings = ["a: not enforced", "b: not enforced"]
    node.set(KEY, pod())
    node.until(lambda: node.phase() == "Running")
    assert node.reasons().count("FieldsNotHonoured") == 1


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"volumes": [{"name": "v", "nfs": {"server": "x", "path": "/"}}]}, "spec.volumes[0].nfs"),
        (
            {"volumes": [{"name": "v", "projected": {"sources": [{"clusterTrustBundle": {"path": "t"}}]}}]},
            "clusterTrustBundle",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(node, spec, named):
    node.set(KEY, pod(**spec))
    node.until(lambda: node.phase() == "Failed")
    assert named in node.status()["message"]


def test_a_secret_volume_without_tmpfs_is_refused(tmp_path):
    node = Node(tmp_path)
    node.facts.allow_secret_files = False
    node.workloads.start()
    node.set(KEY, pod(volumes=[{"name": "s", "secret": {"secretName": "s"}}]))
    node.until(lambda: node.phase() == "Failed")
    assert "tmpfs" in node.status()["message"]


def test_bad_documents_are_not_admitted(node):
    admit = node.workloads.admit
    assert admit(KEY, b"{")[0] == "Invalid"
    assert admit(KEY, json.dumps(pod(uid="other")).encode())[0] == "Invalid"
    assert admit("pod/../till/u1", json.dumps({**pod(), "ns": ".."}).encode())[0] == "Invalid"
    assert admit("thing/a/b", b"{}")[0] == "UnknownKind"
    assert admit(KEY, b" " * (2 << 20))[0] == "TooLarge"
    secret = {"kind": "Secret", "ns": "shop", "name": "s", "data": {"password": "not base64 %%%"}}
    reason, message = admit("secret/shop/s", json.dumps(secret).encode())
    assert reason == "Invalid" and "%%%" not in message
    assert admit("agent/config", b"{}") is None


def test_the_number_of_pods_is_bounded(tmp_path):
    node = Node(tmp_path)
    for n in range(PODS_MAX):
        key = f"pod/shop/till/u{n}"
        node.workloads.set(key, json.dumps(pod(uid=f"u{n}")).encode())
    assert node.workloads.admit("pod/shop/till/x", json.dumps(pod(uid="x")).encode())[0] == "TooManyPods"
    assert node.workloads.admit("pod/shop/till/u1", json.dumps(pod()).encode()) is None


def test_probes_run_and_decide_readiness(node):
    node.runtime.exec_result = (1, b"not yet")
    node.set(KEY, pod(container(readinessProbe={"exec": {"command": ["ready?"]}, "periodSeconds": 1})))
    node.until(lambda: "Unhealthy" in node.reasons())
    assert not node.status()["containerStatuses"][0]["ready"]
    node.runtime.exec_result = (0, b"")
    node.ahead(1.1)
    node.until(lambda: node.status()["containerStatuses"][0]["ready"])


def test_a_pre_stop_hook_runs_before_the_stop(node):
    node.set(KEY, pod(container(lifecycle={"preStop": {"exec": {"command": ["bye"]}}})))
    node.until(lambda: node.phase() == "Running")
    node.set(KEY, pod(container(lifecycle={"preStop": {"exec": {"command": ["bye"]}}}), delete=20))
    node.until(lambda: ("gone", KEY, {}) in node.reports)
    assert node.runtime.execs == [["bye"]] and node.runtime.stopped[0][2] == 20


def test_logs_come_from_the_runtime_or_say_why_not(node):
    node.set(KEY, pod(container(envFrom=[{"configMapRef": {"name": "cfg"}}])))
    node.until(lambda: node.phase() == "Pending")
    with pytest.raises(RuntimeFailure, match="waiting to start"):
        node.run(node.workloads.logs("u1", "app", {}, Reader()))
    with pytest.raises(RuntimeFailure, match="no pod"):
        node.run(node.workloads.logs("nope", "app", {}, Reader()))
    node.set("configmap/shop/cfg", config(a="1"))
    node.until(lambda: node.phase() == "Running")
    reader = Reader()
    node.run(node.workloads.logs("u1", "app", {}, reader))
    assert reader.data == b"hello\n"
    with pytest.raises(RuntimeFailure, match="previous terminated"):
        node.run(node.workloads.logs("u1", "app", {"previous": True}, reader))


def test_who_follows_a_log_hears_the_last_words_of_a_pod_that_is_removed(node):
    node.set(KEY, pod())
    node.until(lambda: node.phase() == "Running")
    reader = Reader()
    node.loop.spawn(node.workloads.logs("u1", "app", {"follow": True}, reader), "reader")
    node.until(lambda: reader.data)
    node.set(KEY, pod(delete=1))
    node.until(lambda: ("gone", KEY, {}) in node.reports)
    assert reader.data == b"hello\nbye\n"


def test_resync_says_every_status_again(node):
    node.set(KEY, pod())
    node.until(lambda: node.phase() == "Running")
    told = len([1 for t, _, _ in node.reports if t == "pod"])
    node.workloads.resync()
    node.until(lambda: len([1 for t, _, _ in node.reports if t == "pod"]) == told + 1)


def test_drain_stops_everything_and_the_next_agent_starts_it(node):
    node.set(KEY, pod(terminationGracePeriodSeconds=7))
    node.until(lambda: node.phase() == "Running")
    node.run(node.workloads.drain())
    assert node.runtime.live == {} and node.runtime.stopped == [("u1", "app", 7)]
    assert node.runtime.removed == []
    node.crash()
    node.until(lambda: len(node.runtime.launches) == 2)


def test_many_pods_start_and_go(node):
    for n in range(40):
        node.set(f"pod/shop/till/u{n}", pod(container("a"), container("b"), uid=f"u{n}"))
    node.until(lambda: len(node.runtime.live) == 80)
    for n in range(40):
        node.set(f"pod/shop/till/u{n}", pod(container("a"), container("b"), uid=f"u{n}", delete=1))
    node.until(lambda: len([1 for t, _, _ in node.reports if t == "gone"]) == 40)
    assert node.runtime.live == {}


def test_a_probe_that_outlives_its_pod_leaves_nothing_to_do(node):
    node.runtime.hold_exec = True
    probe = {"exec": {"command": ["slow"]}, "timeoutSeconds": 60, "periodSeconds": 1}
    node.set(KEY, pod(container(readinessProbe=probe)))
    node.until(lambda: node.runtime.execs)
    node.delete(KEY)
    node.until(lambda: not node.workloads._entries)
    node.runtime.hold_exec = False
    node.settle()
    # Else the pump turns at full speed, and a drain never ends.
    assert node.workloads._dirty == set()


def test_reporting_anew_is_written_before_it_returns(node):
    node.set(KEY, pod())
    node.until(lambda: node.phase() == "Running")
    node.settle()
    node.reports.clear()
    node.workloads.resync()
    assert node.phase() == "Running"


def test_reporting_anew_waits_for_a_runtime_that_is_not_up_yet(node):
    node.set(KEY, pod())
    node.until(lambda: node.phase() == "Running")
    node.settle()
    node.reports.clear()
    node.runtime.hold_recover = True
    node.crash()
    node.settle()
    node.workloads.resync()
    node.runtime.hold_recover = False
    node.until(lambda: node.phase() == "Running")
