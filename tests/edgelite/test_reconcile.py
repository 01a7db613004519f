"""The pod state machine, driven by hand: runs on CPython and in the MicroPython VM."""

import json

from edgelite import podrecovery
from edgelite.containers import EXITED, RUNNING, STARTING, WAITING
from edgelite.podactions import Check, Event, Gone, Hook, Remove, Report, Save, Start, Stop
from edgelite.podenv import NodeFacts
from edgelite.podevents import PodEvents
from edgelite.reconcile import Pod
from edgelite.runtimes.base import Status

WALL = 1700000000.0
NODE = NodeFacts("edge-1", [{"type": "InternalIP", "address": "10.0.0.7"}], boot_id="boot-a")


def handle(name, attempt):
    return "fake://" + name + "/" + str(attempt)


def container(name="app", **more):
    entry = {"name": name, "image": "img:1"}
    entry.update(more)
    return entry


def document(containers=None, inits=None, delete=None, **spec):
    spec["containers"] = containers or [container()]
    if inits:
        spec["initContainers"] = inits
    doc = {
        "kind": "Pod",
        "ns": "shop",
        "name": "till",
        "uid": "u1",
        "labels": {},
        "annotations": {},
        "spec": spec,
    }
    if delete is not None:
        doc["del"] = {"grace": delete}
    return doc


class Bench:
    """A pod, a clock, and everything the machine has asked for."""

    def __init__(self, doc, record=None, statuses=None, now=100.0, node=NODE, wall=None, refusal=None):
        self.now = now
        self.skew = (WALL if wall is None else wall) - now
        self.actions = []
        self.reports = []
        self.events = []
        self.pod = Pod(doc, node, now, self.wall)
        self.pod.recovered(json.loads(record) if record else None, statuses or [], now, self.wall)
        if refusal:
            self.pod.refuse("Unsupported", refusal, self.now, self.wall)
        self.step()

    @property
    def wall(self):
        return self.now + self.skew

    def step(self, after=0.0):
        self.now += after
        self.actions = self.pod.step(self.now, self.wall)
        for act in self.actions:
            if isinstance(act, Report):
                self.reports.append(act.status)
            if isinstance(act, Event):
                self.events.append(act.body["reason"])
        return self.actions

    def runs(self, name="app", attempt=0):
        status = Status("u1", name, attempt, "running", self.wall, handle(name, attempt))
        self.pod.running(status, self.now, self.wall)
        return self.step()

    def ends(self, name="app", attempt=0, code=0, after=1.0):
        self.now += after
        self.pod.exited(ended(name, attempt, code, self.wall - after, self.wall), self.now, self.wall)
        return self.step()

    def check(self, kind, ok, name="app", attempt=0):
        self.pod.checked(name, attempt, kind, ok, "it said no", self.now, self.wall)
        return self.step()

    def saved(self):
        return podrecovery.record(self.pod)

    def starts(self):
        return [(a.name, a.attempt) for a in self.actions if isinstance(a, Start)]

    def stops(self):
        return [(a.name, a.attempt) for a in self.actions if isinstance(a, Stop)]

    def state(self, name="app"):
        return self.pod.container(name).state

    def status(self, name="app"):
        last = self.reports[-1]
        for c in last.get("initContainerStatuses", []) + last["containerStatuses"]:
            if c["name"] == name:
                return c
        return None

    def condition(self, name):
        return next(c for c in self.reports[-1]["conditions"] if c["type"] == name)


def ended(name, attempt, code, started, finished):
    status = Status("u1", name, attempt, "exited", started, handle(name, attempt))
    status.finished_at = finished
    status.exit_code = code
    return status


def kinds(actions):
    return [type(a).__name__ for a in actions]


def test_a_new_pod_is_reported_then_saved_then_started():
    b = Bench(document())
    assert kinds(b.actions) == ["Report", "Save", "Start"]
    saved = json.loads(b.actions[1].record)
    assert saved["c"]["app"]["a"] == 0 and saved["c"]["app"]["s"] == STARTING
    assert b.reports[-1]["phase"] == "Pending"
    assert b.status()["state"]["waiting"]["reason"] == "ContainerCreating"


def test_a_running_pod_reports_a_whole_status():
    b = Bench(document())
    b.pod.prepared()
    b.runs()
    status = b.reports[-1]
    assert status["phase"] == "Running"
    assert status["podIP"] == "10.0.0.7" and status["hostIP"] == "10.0.0.7"
    assert status["qosClass"] == "BestEffort"
    assert status["startTime"] == "2023-11-14T22:13:20Z"
    for name in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"):
        assert b.condition(name)["status"] == "True", name
    app = b.status()
    assert app["ready"] and app["started"] and app["restartCount"] == 0
    assert app["containerID"] == "fake://app/0"
    assert app["state"] == {"running": {"startedAt": "2023-11-14T22:13:20Z"}}
    assert b.events == ["Created", "Started"]


def test_an_unchanged_status_is_not_reported_again():
    b = Bench(document())
    b.runs()
    told = len(b.reports)
    b.step(5)
    b.pod.poke()
    b.step(5)
    assert len(b.reports) == told
    assert b.actions == []


def test_crashes_are_backed_off_as_in_kubernetes():
    b = Bench(document())
    waits = []
    for attempt in range(9):
        b.runs(attempt=attempt)
        b.ends(attempt=attempt, code=1)
        if b.state() == WAITING:
            due = b.pod.deadline()
            waits.append(round(b.pod.container("app").retry_at - b.now))
            assert due is not None and due <= b.pod.container("app").retry_at
            assert b.status()["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            assert b.status()["lastState"]["terminated"]["exitCode"] == 1
            assert b.status()["restartCount"] == attempt
            b.step(b.pod.container("app").retry_at - b.now)
        assert b.starts() == [("app", attempt + 1)]
    assert waits == [10, 20, 40, 80, 160, 300, 300, 300]
    text = b.reports[-1]["containerStatuses"][0]["state"]["waiting"]["message"]
    assert text == "back-off 5m0s restarting failed container=app pod=till_shop(u1)"


def test_ten_good_minutes_reset_the_back_off():
    b = Bench(document())
    for attempt in range(3):
        b.runs(attempt=attempt)
        b.ends(attempt=attempt, code=1)
        b.step(max(0.0, b.pod.container("app").retry_at - b.now))
    b.runs(attempt=3)
    b.ends(attempt=3, code=1, after=601)
    assert b.starts() == [("app", 4)]


def test_policy_never_lets_the_pod_fail_and_on_failure_succeed():
    b = Bench(document(restartPolicy="Never"))
    b.runs()
    b.ends(code=3)
    assert b.starts() == []
    assert b.reports[-1]["phase"] == "Failed"
    assert b.status()["state"]["terminated"]["exitCode"] == 3
    b = Bench(document(restartPolicy="OnFailure"))
    b.runs()
    b.ends(code=1)
    assert b.starts() == [("app", 1)]
    b.runs(attempt=1)
    b.ends(attempt=1)
    assert b.reports[-1]["phase"] == "Succeeded"
    assert b.condition("Ready")["reason"] == "PodCompleted"
    assert all(isinstance(a, Event) for a in b.step(1000))


def test_init_containers_run_in_order_before_the_others():
    b = Bench(document(inits=[container("i1"), container("i2")]))
    assert b.starts() == [("i1", 0)]
    assert b.status("app")["state"]["waiting"]["reason"] == "PodInitializing"
    assert b.condition("Initialized")["message"] == "containers with incomplete status: [i1 i2]"
    b.runs("i1")
    assert b.ends("i1") and b.starts() == [("i2", 0)]
    b.runs("i2")
    b.ends("i2", code=1)
    assert b.starts() == [("i2", 1)]
    b.runs("i2", 1)
    b.ends("i2", 1)
    assert b.starts() == [("app", 0)]
    b.runs()
    assert b.condition("Initialized")["status"] == "True"
    assert b.status("i1")["ready"] and b.status("i2")["restartCount"] == 1


def test_a_failed_init_container_fails_a_pod_that_never_restarts():
    b = Bench(document(inits=[container("i1")], restartPolicy="Never"))
    b.runs("i1")
    b.ends("i1", code=1)
    assert b.reports[-1]["phase"] == "Failed"
    assert b.starts() == []


def test_a_sidecar_starts_before_and_stops_after_the_others():
    probe = {"exec": {"command": ["true"]}}
    b = Bench(
        document(inits=[container("side", restartPolicy="Always", startupProbe=probe)], restartPolicy="Never")
    )
    assert b.starts() == [("side", 0)]
    b.runs("side")
    assert b.starts() == [] and [a.kind for a in b.actions if isinstance(a, Check)] == ["startup"]
    b.check("startup", True, "side")
    assert b.starts() == [("app", 0)]
    b.runs()
    b.ends("side", code=1)
    assert b.starts() == [("side", 1)]
    b.runs("side", 1)
    b.ends()
    assert b.stops() == [("side", 1)]
    assert b.reports[-1]["phase"] == "Running"
    b.ends("side", 1, code=143)
    assert b.reports[-1]["phase"] == "Succeeded"


def test_only_another_image_restarts_a_container():
    b = Bench(document())
    b.runs()
    other = document([container(command=["x"], env=[{"name": "A", "value": "1"}])])
    other["labels"] = {"new": "label"}
    b.pod.update(other, b.now)
    b.step(1)
    assert b.stops() == [] and b.starts() == []
    b.pod.update(document([container(image="img:2")]), b.now)
    b.step(1)
    assert b.stops() == [("app", 0)]
    b.ends(code=143)
    assert b.starts() == [("app", 1)]
    b.runs(attempt=1)
    b.step(1)
    assert b.stops() == []


def test_another_image_restarts_even_where_the_policy_says_never():
    b = Bench(document(restartPolicy="Never"))
    b.runs()
    b.pod.update(document([container(image="img:2")], restartPolicy="Never"), b.now)
    b.step()
    b.ends(code=143)
    assert b.starts() == [("app", 1)]


def test_deletion_stops_reports_removes_and_says_gone_once():
    b = Bench(document([container(lifecycle={"preStop": {"sleep": {"seconds": 1}}})]))
    b.runs()
    b.pod.update(document([container()], delete=7), b.now)
    b.step()
    stop = next(a for a in b.actions if isinstance(a, Stop))
    assert stop.grace_s == 7
    assert not any(isinstance(a, Remove) for a in b.actions)
    b.ends(code=143)
    assert kinds(b.actions) == ["Report", "Save", "Remove"]
    assert b.reports[-1]["phase"] == "Failed"
    assert b.step(1) == []
    b.pod.remove_done()
    assert kinds(b.step()) == ["Gone", "Save"]
    assert b.pod.done and b.step(10) == []


def test_gone_is_not_said_again_after_a_restart_but_after_parted_histories():
    doc = document(delete=5)
    b = Bench(doc)
    b.pod.remove_done()
    b.step()
    again = Bench(doc, record=b.saved())
    assert again.actions == [] or kinds(again.actions) == ["Save"]
    again.pod.forget_report()
    assert "Gone" in kinds(again.step())


def test_a_crash_between_removal_and_gone_loses_nothing():
    doc = document(delete=5)
    b = Bench(doc)
    assert "Remove" in kinds(b.actions)
    again = Bench(doc, record=b.saved())
    assert "Remove" in kinds(again.actions)
    again.pod.remove_done()
    assert "Gone" in kinds(again.step())


def test_a_shorter_grace_overtakes_a_stop_that_is_under_way():
    b = Bench(document())
    b.runs()
    b.pod.update(document(delete=60), b.now)
    b.step()
    assert b.stops() == [("app", 0)]
    b.pod.update(document(delete=60), b.now)
    assert Stop not in [type(a) for a in b.step(1)]
    b.pod.update(document(delete=0), b.now)
    b.step(1)
    assert [a.grace_s for a in b.actions if isinstance(a, Stop)] == [2.0]


def test_a_deletion_by_force_ends_the_grace_of_a_pod_that_is_being_deleted():
    b = Bench(document())
    b.runs()
    b.pod.update(document(delete=3600), b.now)
    b.step(1)
    b.pod.undesired(b.now)
    b.step(1)
    assert [a.grace_s for a in b.actions if isinstance(a, Stop)] == [2.0]


def test_an_undesired_pod_is_removed_without_a_word():
    b = Bench(document())
    b.runs()
    told = len(b.reports)
    b.pod.undesired(b.now)
    b.step()
    assert b.stops() == [("app", 0)]
    b.ends(code=143)
    assert kinds(b.actions) == ["Save", "Remove"]
    b.pod.remove_done()
    b.step()
    assert b.pod.done and len(b.reports) == told


def test_deletion_waits_for_a_start_under_way():
    b = Bench(document())
    b.pod.update(document(delete=5), b.now)
    assert "Remove" not in kinds(b.step(1))
    b.runs()
    assert b.stops() == [("app", 0)]


def test_an_adopted_container_is_not_restarted():
    b = Bench(document([container(readinessProbe={"exec": {"command": ["t"]}})]))
    b.runs()
    b.check("readiness", True)
    assert b.status()["ready"]
    running = Status("u1", "app", 0, "running", WALL, "fake://app/0")
    again = Bench(
        document([container(readinessProbe={"exec": {"command": ["t"]}})]), b.saved(), [running], now=5.0
    )
    assert again.starts() == []
    assert again.reports == []  # nothing changed, so nothing is said
    assert again.pod.container("app").restarts == 0
    assert again.pod.container("app").ready


def test_what_ended_while_the_agent_was_away_follows_its_policy():
    b = Bench(document())
    b.runs()
    gone = ended("app", 0, 9, WALL, WALL + 5)
    again = Bench(document(), b.saved(), [gone], now=5.0)
    assert again.starts() == [("app", 1)]
    assert again.status()["lastState"]["terminated"]["exitCode"] == 9


def test_a_back_off_survives_the_agent():
    b = Bench(document())
    for attempt in range(2):
        b.runs(attempt=attempt)
        b.ends(attempt=attempt, code=1)
    last = ended("app", 1, 1, b.wall - 1, b.wall)
    again = Bench(document(), b.saved(), [last], now=3.0, wall=b.wall + 4)
    assert again.starts() == []
    assert again.step(5) == []
    again.step(1.5)
    assert again.starts() == [("app", 2)]


def test_an_intended_start_is_tried_again_under_the_same_number():
    b = Bench(document())
    again = Bench(document(), b.saved(), [])
    assert again.starts() == [("app", 0)]
    running = Status("u1", "app", 0, "running", WALL)
    assert Bench(document(), b.saved(), [running]).starts() == []


def test_a_container_that_vanished_counts_as_ended():
    b = Bench(document(restartPolicy="Never"))
    b.runs()
    again = Bench(document(restartPolicy="Never"), b.saved(), [])
    assert again.reports[-1]["phase"] == "Failed"
    assert again.status()["state"]["terminated"]["reason"] == "ContainerStatusUnknown"


def test_after_a_reboot_init_containers_run_again():
    doc = document(inits=[container("i1")])
    b = Bench(doc)
    b.runs("i1")
    b.ends("i1")
    b.runs()
    lost = [ended("i1", 0, 0, WALL, WALL + 1), ended("app", 0, 137, WALL, WALL + 9)]
    node = NodeFacts("edge-1", NODE.addresses, boot_id="boot-b")
    again = Bench(doc, b.saved(), lost, node=node)
    assert again.starts() == [("i1", 1)]
    again.runs("i1", 1)
    again.ends("i1", 1)
    assert again.starts() == [("app", 1)]
    assert again.status()["restartCount"] == 0
    again.runs("app", 1)
    assert again.status()["restartCount"] == 1


def test_after_a_reboot_what_was_finished_stays_finished():
    doc = document(inits=[container("i1")], restartPolicy="OnFailure")
    b = Bench(doc)
    b.runs("i1")
    b.ends("i1")
    b.runs()
    b.ends()
    lost = [ended("i1", 0, 0, WALL, WALL + 1), ended("app", 0, 0, WALL, WALL + 2)]
    again = Bench(doc, b.saved(), lost, node=NodeFacts("edge-1", NODE.addresses, boot_id="boot-b"))
    assert again.starts() == [] and again.reports == []


def test_a_missing_document_is_waited_for():
    b = Bench(document())
    b.pod.start_blocked("app", 0, 'configmap "cfg" not found', b.now, b.wall)
    b.step()
    waiting = b.status()["state"]["waiting"]
    assert waiting == {"reason": "CreateContainerConfigError", "message": 'configmap "cfg" not found'}
    assert b.step(1000) == [] and b.pod.deadline() is None
    b.pod.poke()
    b.step()
    assert b.starts() == [("app", 0)]


def test_an_image_that_cannot_be_pulled_keeps_its_attempt():
    b = Bench(document())
    b.pod.start_failed("app", 0, "ErrImagePull", "no route", b.now, b.wall)
    b.step()
    assert b.status()["state"]["waiting"]["reason"] == "ImagePullBackOff"
    b.step(10)
    assert b.starts() == [("app", 0)]
    b.pod.start_failed("app", 0, "ErrImagePull", "no route", b.now, b.wall)
    b.step(10)
    assert b.starts() == []
    b.step(10)
    assert b.starts() == [("app", 0)]


def test_what_cannot_be_executed_counts_as_an_attempt():
    b = Bench(document())
    b.pod.start_failed("app", 0, "RunContainerError", "no such file: /x", b.now, b.wall)
    b.step()
    assert b.starts() == [("app", 1)]
    assert b.status()["lastState"]["terminated"]["reason"] == "StartError"
    b.pod.start_failed("app", 1, "RunContainerError", "no such file: /x", b.now, b.wall)
    b.step()
    assert b.status()["state"]["waiting"]["reason"] == "CrashLoopBackOff"


def test_liveness_kills_and_the_policy_restarts():
    probe = {"exec": {"command": ["t"]}, "periodSeconds": 5, "terminationGracePeriodSeconds": 3}
    b = Bench(document([container(livenessProbe=probe)]))
    b.runs()
    assert [a.kind for a in b.actions if isinstance(a, Check)] == ["liveness"]
    for _ in range(2):
        b.check("liveness", False)
        assert b.stops() == []
        b.step(5)
    b.check("liveness", False)
    assert [a.grace_s for a in b.actions if isinstance(a, Stop)] == [3.0]
    assert "Unhealthy" in b.events and "Killing" in b.events
    b.ends(code=137)
    assert b.starts() == [("app", 1)]


def test_readiness_follows_its_thresholds_and_kills_nothing():
    probe = {"exec": {"command": ["t"]}, "successThreshold": 2, "failureThreshold": 1}
    b = Bench(document([container(readinessProbe=probe)]))
    b.runs()
    assert not b.status()["ready"]
    assert b.condition("Ready")["message"] == "containers with unready status: [app]"
    b.check("readiness", True)
    assert not b.status()["ready"]
    b.check("readiness", True)
    assert b.status()["ready"] and b.condition("Ready")["status"] == "True"
    b.check("readiness", False)
    assert not b.status()["ready"] and b.stops() == []


def test_startup_holds_the_other_probes_back():
    probe = {"exec": {"command": ["t"]}, "failureThreshold": 2, "periodSeconds": 1}
    b = Bench(document([container(startupProbe=probe, livenessProbe=probe, readinessProbe=probe)]))
    b.runs()
    assert [a.kind for a in b.actions if isinstance(a, Check)] == ["startup"]
    b.check("startup", True)
    assert sorted(a.kind for a in b.actions if isinstance(a, Check)) == ["liveness", "readiness"]
    assert b.status()["started"] and not b.status()["ready"]


def test_a_readiness_gate_counts_as_false():
    b = Bench(document(readinessGates=[{"conditionType": "x/y"}]))
    b.runs()
    assert b.condition("ContainersReady")["status"] == "True"
    assert b.condition("Ready")["reason"] == "ReadinessGatesNotReady"


def test_post_start_holds_readiness_and_its_failure_kills():
    hooked = container(lifecycle={"postStart": {"exec": {"command": ["t"]}}})
    b = Bench(document([hooked]))
    b.runs()
    assert [a.name for a in b.actions if isinstance(a, Hook)] == ["app"]
    assert not b.status()["started"] and not b.status()["ready"]
    b.pod.hook_done("app", 0, "", b.now, b.wall)
    b.step()
    assert b.status()["ready"]
    b = Bench(document([hooked]))
    b.runs()
    b.pod.hook_done("app", 0, "exit code 1", b.now, b.wall)
    b.step()
    assert b.stops() == [("app", 0)] and "FailedPostStartHook" in b.events


def test_active_deadline_fails_the_pod():
    b = Bench(document(activeDeadlineSeconds=60))
    b.runs()
    assert b.pod.deadline() == 160
    b.step(59)
    assert b.stops() == []
    b.step(1)
    assert b.stops() == [("app", 0)]
    b.ends(code=143)
    assert b.reports[-1]["phase"] == "Failed" and b.reports[-1]["reason"] == "DeadlineExceeded"
    assert b.starts() == []


def test_a_refused_pod_fails_with_its_reason_and_can_be_deleted():
    b = Bench(document(), refusal="spec.hostPID: not here")
    assert b.starts() == [] and b.events == ["Unsupported"]
    assert b.reports[-1]["phase"] == "Failed" and b.reports[-1]["reason"] == "Unsupported"
    assert "containerStatuses" not in b.reports[-1]  # or kubectl shows ContainerCreating
    b.pod.update(document(delete=1), b.now)
    assert "Remove" in kinds(b.step())


def test_a_refusal_never_kills_what_runs():
    b = Bench(document())
    b.runs()
    b.pod.refuse("Unsupported", "spec.hostPID: not here", b.now, b.wall)
    b.step()
    assert b.stops() == [] and b.state() == RUNNING


def test_drain_stops_everything_and_the_next_agent_starts_it_again():
    b = Bench(document())
    b.runs()
    b.pod.drain(b.now)
    b.step()
    assert b.stops() == [("app", 0)]
    b.ends(code=143)
    assert b.pod.at_rest and b.state() == EXITED
    again = Bench(document(), b.saved(), [ended("app", 0, 143, WALL, WALL + 1)])
    assert again.starts() == [("app", 1)]


def test_a_stop_that_failed_is_tried_again():
    b = Bench(document())
    b.runs()
    b.pod.update(document(delete=5), b.now)
    b.step()
    b.pod.stop_failed("app", 0, "engine is away", b.now, b.wall)
    b.step()
    assert b.stops() == [] and b.pod.deadline() is not None
    b.step(10)
    assert b.stops() == [("app", 0)]


def test_events_of_one_reason_about_different_things_are_told_apart():
    events = PodEvents()
    for n in range(3):
        events.add("Warning", "Unhealthy", f"Readiness probe failed: exit code {n}", "f", n, n)
        events.add("Warning", "Unhealthy", f"Liveness probe failed: exit code {n}", "f", n, n)
    told = [(e["message"], e["count"]) for e in events.take(3)]
    assert told == [("Readiness probe failed: exit code 0", 1), ("Liveness probe failed: exit code 0", 1)]
    told = [(e["message"], e["count"]) for e in events.take(100)]
    assert told == [("Readiness probe failed: exit code 2", 2), ("Liveness probe failed: exit code 2", 2)]


def test_repeated_events_are_folded_and_counted():
    b = Bench(document([container(readinessProbe={"exec": {"command": ["t"]}})]))
    b.runs()
    bodies = []
    for _ in range(30):
        b.check("readiness", False)
        bodies += [a.body for a in b.actions if isinstance(a, Event) and a.body["reason"] == "Unhealthy"]
        b.step(10)
        bodies += [a.body for a in b.actions if isinstance(a, Event) and a.body["reason"] == "Unhealthy"]
    assert len(bodies) <= 7
    assert 24 <= sum(e["count"] for e in bodies) <= 30
    assert bodies[0]["count"] == 1 and bodies[0]["field"] == "spec.containers{app}"


def test_a_repeated_exit_during_the_back_off_counts_once():
    b = Bench(document())
    for attempt in range(2):
        b.runs(attempt=attempt)
        b.ends(attempt=attempt, code=1)
    assert b.state() == WAITING
    b.pod.exited(ended("app", 1, 1, b.wall - 1, b.wall), b.now, b.wall)
    assert b.step() == [] and b.state() == WAITING
    b.step(10)
    assert b.starts() == [("app", 2)]


def test_the_record_and_save_come_before_every_start():
    b = Bench(document())
    for attempt in range(3):
        b.runs(attempt=attempt)
        b.ends(attempt=attempt, code=1)
        if b.state() == WAITING:
            b.step(b.pod.container("app").retry_at - b.now)
        names = kinds(b.actions)
        assert names.index("Save") < names.index("Start")
        save = next(a for a in b.actions if isinstance(a, Save))
        assert json.loads(save.record)["c"]["app"]["a"] == attempt + 1


def test_gone_comes_only_after_removal():
    b = Bench(document(delete=5))
    assert not any(isinstance(a, Gone) for a in b.actions)
