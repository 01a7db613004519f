"""Random interleavings of everything that can happen to a pod, kill -9 and reboots among it."""

import json

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgelite.podactions import Check, Gone, Hook, Remove, Save, Start, Stop
from edgelite.podenv import NodeFacts
from edgelite.reconcile import Pod
from edgelite.runtimes.base import Status

WALL = 1700000000.0
PROBE = {"exec": {"command": ["t"]}, "failureThreshold": 1, "periodSeconds": 1}


def document(policy, inits, images, delete):
    def entry(name, **more):
        return {"name": name, "image": images[name], **more}

    first = [entry("i"), entry("s", restartPolicy="Always", startupProbe=PROBE)][:inits]
    apps = [
        entry("a", livenessProbe=PROBE, lifecycle={"preStop": {"sleep": {"seconds": 1}}}),
        entry("b", readinessProbe=PROBE, lifecycle={"postStart": {"sleep": {"seconds": 1}}}),
    ]
    spec = {"restartPolicy": policy, "initContainers": first, "containers": apps}
    doc = {"kind": "Pod", "ns": "n", "name": "p", "uid": "u", "spec": spec}
    if delete is not None:
        doc["del"] = {"grace": delete}
    return doc


class World(RuleBasedStateMachine):
    """The host as it is, beside the machine that has to find out."""

    @initialize(policy=st.sampled_from(["Always", "OnFailure", "Never"]), inits=st.integers(0, 2))
    def begin(self, policy, inits):
        self.policy, self.inits = policy, inits
        self.images = dict.fromkeys("isab", "img:0")
        self.delete = None
        self.unwanted = False
        self.now, self.boot = 100.0, 0
        self.live = {}  # name -> Status
        self.past = {}  # name -> Status
        self.ran = {}  # name -> attempts that really ran
        self.durable = None
        self.starting, self.stopping, self.removing = [], [], False
        self.left = False  # something of the pod is on the host
        self.gone = 0
        self.revive()

    @property
    def wall(self):
        return WALL + self.now

    def doc(self):
        return document(self.policy, self.inits, self.images, self.delete)

    def revive(self):
        """A fresh agent on what is durable."""
        self.starting, self.stopping, self.removing = [], [], False
        node = NodeFacts("e", boot_id=str(self.boot))
        self.pod = Pod(self.doc(), node, self.now, self.wall)
        record = json.loads(self.durable) if self.durable else None
        statuses = list({**self.past, **self.live}.values())
        self.pod.recovered(record, statuses, self.now, self.wall)
        if self.unwanted:
            self.pod.undesired(self.now)
        self.step()

    def step(self, stop_after=None):
        for n, act in enumerate(self.pod.step(self.now, self.wall)):
            if stop_after is not None and n >= stop_after:
                return  # killed in the middle of carrying out
            self.carry_out(act)

    def carry_out(self, act):
        if isinstance(act, Save):
            self.durable = act.record
        elif isinstance(act, Start):
            assert act.name not in self.live, "two attempts at once"
            assert not any(a.name == act.name for a in self.starting), "two starts at once"
            written = json.loads(self.durable)["c"][act.name]
            assert written["a"] == act.attempt, "started before its number was durable"
            assert act.attempt not in self.ran.get(act.name, []), "an attempt ran twice"
            assert not self.removing
            assert not self.gone, "started after gone"
            self.left = True
            self.starting.append(act)
        elif isinstance(act, Stop):
            self.stopping = [a for a in self.stopping if a.name != act.name] + [act]
        elif isinstance(act, Remove):
            assert not self.live and not self.starting, "removed while something runs"
            self.removing = True
        elif isinstance(act, Gone):
            assert not self.left and not self.live, "gone, but something is left"
            assert self.delete is not None and not self.unwanted
            self.gone += 1
        elif isinstance(act, Hook | Check):
            assert act.name in self.live or act.name in self.past

    def really_start(self, act):
        status = Status("u", act.name, act.attempt, "running", self.wall)
        self.live[act.name] = status
        self.ran.setdefault(act.name, []).append(act.attempt)
        assert self.ran[act.name] == sorted(set(self.ran[act.name]))
        return status

    def really_end(self, name, code):
        old = self.live.pop(name)
        status = Status("u", name, old.attempt, "exited", old.started_at)
        status.finished_at, status.exit_code = self.wall, code
        self.past[name] = status
        return status

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 11.0, 400.0]))
    def time_passes(self, seconds):
        self.now += seconds
        self.step()

    @precondition(lambda self: self.starting)
    @rule(outcome=st.sampled_from(["ok", "ok", "ok", "RunContainerError", "ErrImagePull", "blocked"]))
    def a_start_ends(self, outcome):
        act = self.starting.pop(0)
        if outcome == "ok":
            self.pod.prepared()
            self.pod.running(self.really_start(act), self.now, self.wall)
        elif outcome == "blocked":
            self.pod.start_blocked(act.name, act.attempt, "missing", self.now, self.wall)
        else:
            self.pod.start_failed(act.name, act.attempt, outcome, "no", self.now, self.wall)
        self.step()

    @precondition(lambda self: self.live)
    @rule(code=st.sampled_from([0, 1]), data=st.data())
    def a_container_ends(self, code, data):
        status = self.really_end(data.draw(st.sampled_from(sorted(self.live))), code)
        self.stopping = [a for a in self.stopping if a.name != status.container]
        self.pod.exited(status, self.now, self.wall)
        self.pod.exited(status, self.now, self.wall)
        self.step()

    @precondition(lambda self: self.stopping)
    @rule(fails=st.booleans())
    def a_stop_ends(self, fails):
        act = self.stopping.pop(0)
        if fails:
            self.pod.stop_failed(act.name, act.attempt, "no", self.now, self.wall)
        else:
            status = self.really_end(act.name, 143) if act.name in self.live else self.past[act.name]
            self.pod.exited(status, self.now, self.wall)
        self.step()

    @precondition(lambda self: self.removing)
    @rule(fails=st.booleans())
    def a_removal_ends(self, fails):
        self.removing = False
        if fails:
            self.pod.remove_failed("no", self.now, self.wall)
        else:
            self.left = False
            self.past.clear()
            self.pod.remove_done()
        self.step()

    @precondition(lambda self: self.live)
    @rule(data=st.data(), kind=st.sampled_from(["startup", "liveness", "readiness"]), ok=st.booleans())
    def a_probe_answers(self, data, kind, ok):
        name = data.draw(st.sampled_from(sorted(self.live)))
        container = self.pod.container(name)
        if any(p.kind == kind and p.in_flight for p in container.probes):
            self.pod.checked(name, container.attempt, kind, ok, "no", self.now, self.wall)
            self.step()

    @precondition(lambda self: "b" in self.live)
    @rule(error=st.sampled_from(["", "no"]))
    def a_hook_ends(self, error):
        self.pod.hook_done("b", self.live["b"].attempt, error, self.now, self.wall)
        self.step()

    @rule(name=st.sampled_from("isab"), image=st.sampled_from(["img:0", "img:1"]))
    def the_image_changes(self, name, image):
        self.images[name] = image
        self.pod.update(self.doc(), self.now)
        self.step()

    @rule()
    def a_document_arrives(self):
        self.pod.poke()
        self.step()

    @precondition(lambda self: not self.unwanted)
    @rule(grace=st.integers(0, 40))
    def it_is_deleted(self, grace):
        self.delete = grace
        self.pod.update(self.doc(), self.now)
        self.step()

    @precondition(lambda self: not self.gone)
    @rule()
    def its_document_goes(self):
        self.unwanted = True
        self.pod.undesired(self.now)
        self.step()

    @rule(carried_out=st.integers(0, 3), landed=st.booleans())
    def kill_9(self, carried_out, landed):
        """In the middle of a list of actions; starts that were under way have landed or not."""
        before = self.gone
        self.pod.poke()
        self.step(stop_after=carried_out)
        if landed:
            for act in self.starting:
                self.really_start(act)
        self.revive()
        if not before:
            self.gone = min(self.gone, 1)  # said, not yet durable, said again: the hub takes it twice

    @rule()
    def reboot(self):
        for name in list(self.live):
            self.really_end(name, 137)
        self.boot += 1
        self.revive()

    @invariant()
    def gone_is_said_once(self):
        if hasattr(self, "gone"):
            assert self.gone <= 1

    @invariant()
    def it_never_spins(self):
        """After a step nothing is due that the step could have done."""
        if hasattr(self, "pod"):
            due = self.pod.deadline()
            assert due is None or due > self.now or self.pod.step(self.now, self.wall) == []

    def teardown(self):
        """However it came here: once it is deleted and everything works, it ends with nothing left."""
        if not hasattr(self, "pod"):
            return
        if not self.unwanted:
            self.it_is_deleted(5)
        for _ in range(60):
            if self.pod.done:
                break
            if self.starting:
                self.a_start_ends("ok")
            elif self.stopping:
                self.a_stop_ends(False)
            elif self.removing:
                self.a_removal_ends(False)
            else:
                self.time_passes(11.0)
        assert self.pod.done and not self.live and not self.left
        assert self.unwanted or self.gone == 1


World.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRandomLives = World.TestCase
