"""One pod, as a state machine: documents, runtime news, probe results and time in; actions out. [pure]

It is what a kubelet's sync loop decides. The driver (`workloads`) reports what happened through the methods, then calls
`step`, and carries out the returned actions in their order: an entry for the hub, then what has to be durable, and only then
the starts and stops that rely on it.

Invariants: at most one attempt of a container is ever live; an attempt's number is durable before its start is tried;
after `Remove` was carried out nothing of the pod is left, and only then `Gone` is said, once.
"""

from edgelite import podrecovery, podstatus
from edgelite.containers import (
    APP,
    EXITED,
    INIT,
    RUNNING,
    SIDECAR,
    STARTING,
    STOPPING,
    WAITING,
    Container,
)
from edgelite.podactions import Check, Event, Gone, Hook, Remove, Report, Save, Start, Stop
from edgelite.podevents import PodEvents
from edgelite.probes import LIVENESS, STARTUP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edgelite.podenv import NodeFacts
    from edgelite.runtimes.base import Status

GRACE_DEFAULT_S = 30.0
GRACE_MIN_S = 2.0  # as the kubelet: even a forced deletion lets a process end by itself
RETRY_S = 10.0  # after a stop or a removal that the runtime could not do

DELETED = "deleted"  # the document says so: stop, remove, then say gone
UNDESIRED = "undesired"  # the document is gone: stop, remove, say nothing
FINISHED = "finished"  # its phase is final: what still runs (sidecars) is stopped, nothing is removed
DRAINED = "drained"  # everything on this node is stopped; it starts again with the agent


class Pod:
    """The machine. `doc` is a Pod document (ARCHITECTURE.md); `node` gives addresses and the boot id."""

    def __init__(self, doc: "dict[str, Any]", node: "NodeFacts", now: float, wall: float) -> None:
        self.doc = doc
        self.node = node
        self.events = PodEvents()
        self.start_wall = wall
        self.phase = ""  # only once it is final: Succeeded or Failed
        self.reason = ""
        self.message = ""
        self.ending = ""  # DELETED, UNDESIRED, FINISHED, DRAINED or ""
        self.end_by: "float | None" = None
        self.initialized = False  # every init container was done in this boot
        self.sandboxed = False  # volumes are there: a start was tried
        self.conditions: "dict[str, list[Any]]" = {}
        self.sent = ""  # fingerprint of the status that was reported last
        self.removing = False
        self.remove_at = 0.0
        self.removed = False
        self.gone = False
        self.containers: "list[Container]" = []
        self.told_gone = False
        self._limit_at = 0.0
        self._saved = b""
        self._out: "list[Any]" = []
        self._touched = True
        spec = doc.get("spec") or {}
        for entry in spec.get("initContainers") or []:
            kind = SIDECAR if entry.get("restartPolicy") == "Always" else INIT
            self.containers.append(Container(entry, kind))
        for entry in spec.get("containers") or []:
            self.containers.append(Container(entry, APP))
        if doc.get("del"):
            self._end(DELETED, self._document_grace(), now)

    # -- views

    @property
    def uid(self) -> str:
        return str(self.doc["uid"])

    @property
    def title(self) -> str:
        """As the kubelet's messages name a pod."""
        return "%s_%s(%s)" % (self.doc.get("name"), self.doc.get("ns"), self.doc["uid"])

    @property
    def policy(self) -> str:
        return str((self.doc.get("spec") or {}).get("restartPolicy") or "Always")

    @property
    def done(self) -> bool:
        """Nothing of it is left, and whoever had to know was told."""
        return self.removed and (self.gone or self.ending == UNDESIRED)

    @property
    def at_rest(self) -> bool:
        """Nothing of it runs or is being started."""
        return not any(c.live for c in self.containers)

    def container(self, name: str) -> "Container | None":
        for c in self.containers:
            if c.name == name:
                return c
        return None

    def of(self, *kinds: str) -> "list[Container]":
        return [c for c in self.containers if c.kind in kinds]

    # -- what happened: the document

    def update(self, doc: "dict[str, Any]", now: float) -> None:
        """Takes a new rendering. Of all differences only another image restarts a container."""
        self.doc = doc
        spec = doc.get("spec") or {}
        entries = {e["name"]: e for e in (spec.get("initContainers") or []) + (spec.get("containers") or [])}
        for c in self.containers:
            if c.name in entries:
                if c.state == WAITING and entries[c.name].get("image") != c.spec.get("image"):
                    c.backoff_s = c.retry_at = 0.0
                c.spec = entries[c.name]
        if doc.get("del"):
            self._end(DELETED, self._document_grace(), now)
        self.poke()

    def poke(self) -> None:
        """A document that the pod refers to has come or changed: whoever waits for one tries again."""
        for c in self.containers:
            c.blocked = False
        self._touched = True

    def undesired(self, now: float) -> None:
        """Its document is gone. Nobody waits to hear of it any more. One that was being deleted already has been
        deleted by force: its grace ends."""
        self._end(UNDESIRED, GRACE_MIN_S if self.ending == DELETED else self._document_grace(), now)

    def drain(self, now: float) -> None:
        """Everything on the node is to be stopped; the pod stays desired."""
        if not self.ending:
            self._end(DRAINED, self._document_grace(), now)

    def refuse(self, reason: str, message: str, now: float, wall: float) -> None:
        """It cannot be honoured here. What already runs is left alone: a refusal never kills."""
        if self.phase or any(c.attempt >= 0 for c in self.containers):
            return
        self._event("Warning", reason, message, "", now, wall)
        self._finish("Failed", reason, "Pod was rejected: " + message, now)

    def warn(self, reason: str, message: str, now: float, wall: float) -> None:
        self._event("Warning", reason, message, "", now, wall)

    def forget_report(self) -> None:
        """The hub may know nothing of what it was told: say all of it again."""
        self.sent = ""
        self.gone = self.told_gone = False
        self._touched = True

    def _document_grace(self) -> float:
        spec_grace = (self.doc.get("spec") or {}).get("terminationGracePeriodSeconds")
        grace = (self.doc.get("del") or {}).get("grace")
        if grace is None:
            grace = GRACE_DEFAULT_S if spec_grace is None else spec_grace
        return max(GRACE_MIN_S, float(grace))

    def _end(self, ending: str, grace_s: float, now: float) -> None:
        """Deletion overrules every other ending; a second one may only bring the end nearer."""
        rank = ("", FINISHED, DRAINED, DELETED, UNDESIRED)
        if rank.index(ending) >= rank.index(self.ending):
            self.ending = ending
        end_by = now + grace_s
        self.end_by = end_by if self.end_by is None else min(self.end_by, end_by)
        self._touched = True

    def _finish(self, phase: str, reason: str, message: str, now: float) -> None:
        self.phase, self.reason, self.message = phase, reason, message
        self._end(FINISHED, self._document_grace(), now)

    # -- what happened: the runtime

    def recovered(
        self, record: "dict[str, Any] | None", statuses: "list[Status]", now: float, wall: float
    ) -> None:
        """Once, first: what was written down before, and what the runtime found. The runtime is right where they differ."""
        if record is not None:
            podrecovery.restore(self, record, now, wall)
            if self.phase and not self.ending:
                self._end(FINISHED, self._document_grace(), now)
        found = {s.container: s for s in statuses}
        for c in self.containers:
            podrecovery.match(c, found.get(c.name), now, wall)
        if record is not None and record["boot"] != self.node.boot_id:
            podrecovery.rebooted(self)
        self._touched = True

    def prepared(self) -> None:
        """Its volumes are in place."""
        self._touched = self._touched or not self.sandboxed
        self.sandboxed = True

    def running(self, status: "Status", now: float, wall: float) -> None:
        """A start succeeded."""
        c = self.container(status.container)
        if c is None or c.state != STARTING or c.attempt != status.attempt:
            return
        hook = bool((c.spec.get("lifecycle") or {}).get("postStart")) and not self.ending
        c.begin(status, hook, now, wall)
        image = c.spec.get("image") or ""
        if status.image_id:
            self._event(
                "Normal",
                "Pulled",
                'Container image "%s" is present on the machine' % image,
                c.field,
                now,
                wall,
            )
        self._event("Normal", "Created", "Created container: " + c.name, c.field, now, wall)
        self._event("Normal", "Started", "Started container " + c.name, c.field, now, wall)
        if hook:
            self._out.append(Hook(c.name, c.attempt))

    def start_blocked(self, name: str, attempt: int, message: str, now: float, wall: float) -> None:
        """A start was not tried, because a document that it needs is missing; `poke` tries again."""
        c = self.container(name)
        if c is None or c.state != STARTING or c.attempt != attempt:
            return
        c.state, c.blocked = WAITING, True
        c.reason, c.message = "CreateContainerConfigError", message
        self._event("Warning", "Failed", "Error: " + message, c.field, now, wall)

    def start_failed(
        self, name: str, attempt: int, reason: str, message: str, now: float, wall: float
    ) -> None:
        """A start was tried and nothing runs. An image that cannot be had is waited for; what could not be executed
        counts as an attempt."""
        c = self.container(name)
        if c is None or c.state != STARTING or c.attempt != attempt:
            return
        if reason in ("RunContainerError", "StartError"):
            self._event("Warning", "Failed", "Error: " + message, c.field, now, wall)
            c.end(podstatus.start_error(message, wall), 0.0)
            self._touched = True
            return
        if reason in ("ErrImagePull", "ImagePullBackOff"):
            image = c.spec.get("image")
            self._event(
                "Warning", "Failed", 'Failed to pull image "%s": %s' % (image, message), c.field, now, wall
            )
            reason, message = "ImagePullBackOff", 'Back-off pulling image "%s": %s' % (image, message)
            self._event("Normal", "BackOff", 'Back-off pulling image "%s"' % image, c.field, now, wall)
        else:
            self._event("Warning", "Failed", "Error: %s: %s" % (reason, message), c.field, now, wall)
        c.await_retry(now, wall)
        c.reason, c.message = reason, message

    def exited(self, status: "Status", now: float, wall: float) -> None:
        """A container ended, by itself or because it was stopped. Repetitions are harmless."""
        c = self.container(status.container)
        if c is None or c.attempt != status.attempt or not c.live:
            return
        c.end(podstatus.terminated(status), status.finished_at - status.started_at)
        self._touched = True

    def stop_failed(self, name: str, attempt: int, message: str, now: float, wall: float) -> None:
        """The runtime could not stop it: it is tried again."""
        c = self.container(name)
        if c is None or c.state != STOPPING or c.attempt != attempt:
            return
        self._event(
            "Warning", "FailedKillPod", "error killing container %s: %s" % (name, message), "", now, wall
        )
        c.retry_at = now + RETRY_S

    def remove_failed(self, message: str, now: float, wall: float) -> None:
        self._event("Warning", "FailedKillPod", "error removing pod: " + message, "", now, wall)
        self.removing = False
        self.remove_at = now + RETRY_S

    def remove_done(self) -> None:
        self.removing = False
        self.removed = True

    # -- what happened: hooks and probes

    def hook_done(self, name: str, attempt: int, error: str, now: float, wall: float) -> None:
        """postStart ended; `error` is empty when it succeeded. A failure kills the container, as in Kubernetes."""
        c = self.container(name)
        if c is None or c.state != RUNNING or c.attempt != attempt or not c.hook:
            return
        c.hook = False
        c.refresh()
        self._touched = True
        if error:
            self._event(
                "Warning", "FailedPostStartHook", "PostStartHook failed: " + error, c.field, now, wall
            )
            self._kill(c, self._document_grace(), "FailedPostStartHook", now, wall)

    def hook_failed(self, name: str, error: str, now: float, wall: float) -> None:
        """preStop failed: the container is stopped all the same."""
        c = self.container(name)
        if c is not None:
            self._event("Warning", "FailedPreStopHook", "PreStopHook failed: " + error, c.field, now, wall)

    def checked(
        self, name: str, attempt: int, kind: str, ok: bool, message: str, now: float, wall: float
    ) -> None:
        """A probe's result."""
        c = self.container(name)
        if c is None or c.state != RUNNING or c.attempt != attempt:
            return
        probe = next(p for p in c.probes if p.kind == kind)
        if not ok:
            text = "%s probe failed: %s" % (kind[0].upper() + kind[1:], message)
            self._event("Warning", "Unhealthy", text, c.field, now, wall)
        if not probe.result(ok, now):
            return
        if c.refresh():
            self._touched = True
        if kind in (LIVENESS, STARTUP) and not ok:
            grace = probe.grace_s
            why = "Container %s failed %s probe, will be restarted" % (c.name, kind)
            self._kill(c, self._document_grace() if grace is None else grace, why, now, wall)

    def _kill(self, c: Container, grace_s: float, why: str, now: float, wall: float) -> None:
        """Stops one running container; its restart policy decides what comes afterwards."""
        self._stop(c, max(GRACE_MIN_S, grace_s), True, why, now, wall)

    def _stop(self, c: Container, grace_s: float, hook: bool, why: str, now: float, wall: float) -> None:
        c.state = STOPPING
        c.stop_by = now + grace_s
        c.retry_at = float("inf")
        has_hook = hook and bool((c.spec.get("lifecycle") or {}).get("preStop"))
        self._out.append(Stop(c.name, c.attempt, grace_s, has_hook))
        self._event("Normal", "Killing", why, c.field, now, wall)
        c.refresh()

    # -- deciding

    def step(self, now: float, wall: float) -> "list[Any]":
        """Decides, and returns what is to be done, in order: Report, Event, Save, then the rest."""
        if not self.ending:
            self._check_deadline(now, wall)
        self._retry_stops(now)
        if not self.ending:
            self._drive(now, wall)
        if self.ending:
            self._wind_down(now, wall)
        self._start_probes(now)
        acts, self._out = self._out, []
        says = self._say(now, wall)
        if acts or says or self._touched:
            record = podrecovery.record(self)
            if record != self._saved:
                self._saved = record
                says.append(Save(record))
        self._touched = False
        return says + acts

    def deadline(self) -> "float | None":
        """When `step` is to be called next, if nothing else happens."""
        times: "list[float | None]" = [self.events.deadline()]
        if not self.ending and self._limit_s() is not None:
            times.append(self._limit_at)
        for c in self.containers:
            if c.state == WAITING and not c.blocked and not self.ending:
                times.append(c.retry_at if self._may_start(c) else None)
            elif c.state == STOPPING:
                times.append(c.retry_at)
            elif c.state == RUNNING:
                times.append(c.probe_deadline())
        if self.ending in (DELETED, UNDESIRED) and not self.removed and not self.removing and self.at_rest:
            times.append(self.remove_at)
        known = [t for t in times if t is not None and t != float("inf")]
        return min(known) if known else None

    def _limit_s(self) -> "float | None":
        limit = (self.doc.get("spec") or {}).get("activeDeadlineSeconds")
        return None if limit is None else float(limit)

    def _check_deadline(self, now: float, wall: float) -> None:
        limit = self._limit_s()
        if limit is None:
            return
        left = min(limit, self.start_wall + limit - wall)
        self._limit_at = now + left
        if left <= 0:
            text = "Pod was active on the node longer than the specified deadline"
            self._event("Normal", "DeadlineExceeded", text, "", now, wall)
            self._finish("Failed", "DeadlineExceeded", text, now)

    def _may_start(self, c: Container) -> bool:
        """Whether it is this container's turn: everything before it in the order of initialization is done."""
        if self.initialized:
            return c.kind != INIT
        for other in self.of(INIT, SIDECAR):
            if other is c:
                return True
            if not (other.succeeded if other.kind == INIT else other.started):
                return False
        return c.kind == APP

    def _drive(self, now: float, wall: float) -> None:
        for c in self.containers:
            if c.kind == INIT and (self.initialized or c.succeeded):
                continue
            if not self._may_start(c):
                break
            if c.kind == APP and not self.initialized:
                self.initialized = True
                self._touched = True
            self._ensure(c, now, wall)
            if c.kind == INIT and c.state == EXITED:  # it failed, and is not restarted
                self._finish("Failed", "", "", now)
                return
        apps = self.of(APP)
        if all(c.state == EXITED and not self.restarts(c) for c in apps):
            self._finish("Succeeded" if all(c.succeeded for c in apps) else "Failed", "", "", now)

    def restarts(self, c: Container) -> bool:
        """Whether a container that has ended is to run again."""
        if c.replace or c.kind == SIDECAR:
            return True
        if c.kind == INIT:
            return not c.succeeded and self.policy != "Never"
        return self.policy == "Always" or (self.policy == "OnFailure" and not c.succeeded)

    def _ensure(self, c: Container, now: float, wall: float) -> None:
        """Brings one container nearer to running."""
        if c.state == RUNNING and c.image != (c.spec.get("image") or ""):
            c.replace = True
            why = "Container %s definition changed, will be restarted" % c.name
            self._stop(c, self._document_grace(), True, why, now, wall)
        if c.state == EXITED and self.restarts(c):
            wait_s = c.await_restart(now, wall)
            if wait_s > 0:
                c.reason = "CrashLoopBackOff"
                wait = podstatus.duration(wait_s)
                c.message = "back-off %s restarting failed container=%s pod=%s" % (wait, c.name, self.title)
                text = "Back-off restarting failed container %s in pod %s" % (c.name, self.title)
                self._event("Warning", "BackOff", text, c.field, now, wall)
            else:
                c.reason = c.message = ""
        if c.state == WAITING and not c.blocked and c.retry_at <= now:
            c.hand_out()
            self._out.append(Start(c.name, c.attempt))
            self._touched = True

    def _retry_stops(self, now: float) -> None:
        for c in self.containers:
            if c.state == STOPPING and c.retry_at <= now:
                c.retry_at = float("inf")
                self._out.append(Stop(c.name, c.attempt, GRACE_MIN_S, False))

    def _wind_down(self, now: float, wall: float) -> None:
        """Stops what runs: everything but sidecars at once, then those in reverse order; then removes."""
        assert self.end_by is not None
        left = max(GRACE_MIN_S, self.end_by - now)
        for c in self.of(APP, INIT):
            self._stop_for_end(c, left, now, wall)
        if any(c.live for c in self.of(APP, INIT)):
            return
        sidecars = self.of(SIDECAR)
        sidecars.reverse()
        for c in sidecars:
            self._stop_for_end(c, left, now, wall)
            if c.live:
                return
        if self.ending in (DELETED, UNDESIRED):
            self._clear(now)

    def _stop_for_end(self, c: Container, left_s: float, now: float, wall: float) -> None:
        if c.state == RUNNING:
            self._stop(c, left_s, True, "Stopping container " + c.name, now, wall)
        elif c.state == STOPPING and c.stop_by > now + left_s + 0.5:
            c.stop_by = now + left_s
            self._out.append(Stop(c.name, c.attempt, left_s, False))

    def _clear(self, now: float) -> None:
        if self.ending == DELETED and not self.phase:
            self.phase = "Succeeded" if all(c.succeeded for c in self.of(APP)) else "Failed"
            self._touched = True
        if not self.removed and not self.removing and self.remove_at <= now:
            self.removing = True
            self._out.append(Remove())
        if self.removed and self.ending == DELETED and not self.gone:
            self.gone = True
            self._touched = True

    def _start_probes(self, now: float) -> None:
        for c in self.containers:
            for probe in c.due_probes(now):
                probe.begin(now)
                self._out.append(Check(c.name, c.attempt, probe.kind, probe.spec, probe.timeout_s))

    # -- saying

    def _event(self, kind: str, reason: str, message: str, field: str, now: float, wall: float) -> None:
        self.events.add(kind, reason, message, field, now, wall)
        self._touched = True

    def _say(self, now: float, wall: float) -> "list[Any]":
        """Reports and events: they are journalled before the record that says they were."""
        if self.ending == UNDESIRED:
            self.events.take(now)
            return []
        says: "list[Any]" = [Event(body) for body in self.events.take(now)]
        was_gone = self.told_gone
        self.told_gone = self.gone
        if self.gone:
            return says + ([] if was_gone else [Gone()])
        if self._touched:
            status = podstatus.build(self, wall)
            mark = podstatus.fingerprint(status)
            if mark != self.sent:
                self.sent = mark
                says.append(Report(status))
        return says
