"""The pods of this node: documents in, runtime calls and reports out. `reconcile` decides; this carries out.

One task, the pump, steps the state machines of pods that something happened to or whose time has come, and carries out
their actions in order. What takes time runs as operations beside it, each kind with its own bound; more of them wait in
line. When the journal cannot take a record (a full disk), the actions behind it wait too and are tried again: nothing is
started or stopped on the strength of what is not durable.

Keys in the store: `pod/<uid>` the machine's record; `doc/<uid>` the document of a pod that is being stopped although its
document is gone, so that its hooks and grace are honoured after kill -9 as well.
"""

import json
import os

from edgelite import podreview, proberunner
from edgelite.containers import STOPPING, WAITING
from edgelite.loop import POLLIN, Cancelled, Wait
from edgelite.payload import references
from edgelite.podactions import Check, Event, Gone, Hook, Remove, Report, Save, Start, Stop
from edgelite.podenv import (
    BadReference,
    Library,
    MissingReference,
    NodeFacts,
    check_library_document,
    environment,
    pull_secrets,
)
from edgelite.reconcile import GRACE_MIN_S, RETRY_S, UNDESIRED, Pod
from edgelite.runtimes.base import Launch, RuntimeFailure
from edgelite.volumes import VolumeError, Volumes, find_tmpfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any, Protocol

    from edgelite.loop import Loop, Task
    from edgelite.runtimes.base import LogSink, Runtime, State, Status

    class Clock(Protocol):
        def now(self) -> float: ...
        def wall(self) -> float: ...

    Steps = Generator[Wait, bool, None]

PODS_MAX = 256
DOCUMENT_BYTES_MAX = 1520435  # 1.45 MiB
CHANGES_WAIT_S = 5.0
REFRESH_RETRY_S = 60.0
STORE_RETRY_S = 5.0
HOOK_TIMEOUT_S = 300.0
# How many operations of a kind run at once: far below what the loop and the host can carry.
LIMITS = {"start": 8, "stop": 1024, "remove": 8, "probe": 64, "hook": 128}


class _Entry:
    """One pod with what its driver needs."""

    __slots__ = ("backlog", "due", "key", "pod", "refresh_at", "refs", "stops")

    def __init__(self, key: str, pod: Pod) -> None:
        self.key = key
        self.pod = pod
        self.refs = references(pod.doc)
        self.due: "float | None" = None
        self.refresh_at: "float | None" = None  # when its volumes are to be brought up to date
        self.backlog: "list[Any]" = []  # actions that wait for the store
        self.stops: "dict[str, _Operation]" = {}


class _Operation:
    """Something under way, or waiting in line."""

    __slots__ = ("cancelled", "done", "gen", "kind", "name", "task")

    def __init__(self, kind: str, name: str, gen: "Steps") -> None:
        self.kind = kind
        self.name = name
        self.gen = gen
        self.task: "Task | None" = None
        self.cancelled = False
        self.done = False


class Workloads:
    """See the module. `report(type, key, body)` journals an upstream entry; `store` is a durable map; `clock` has now()
    (the loop's clock) and wall() (unix seconds); `root` is the agent's data directory. `trouble` says what keeps the store
    from taking records, "" when nothing does."""

    def __init__(
        self,
        loop: "Loop",
        runtime: "Runtime",
        node: NodeFacts,
        root: str,
        report: "Callable[[str, str, dict[str, Any]], None]",
        store: "State",
        clock: "Clock",
        tmpfs: "str | None" = "",
    ) -> None:
        """tmpfs: where Secrets are put; "" finds one, None is for hosts without."""
        self.trouble = ""
        self._loop = loop
        self._runtime = runtime
        self._node = node
        self._report = report
        self._store = store
        self._clock = clock
        self._library = Library()
        self._volumes = Volumes(root, node, self._library, find_tmpfs() if tmpfs == "" else tmpfs)
        self._entries: "dict[str, _Entry]" = {}  # by UID
        self._wanted: "dict[str, dict[str, Any]]" = {}  # documents of pods that have no machine (yet), by key
        self._dirty: "set[str]" = set()
        self._running: "dict[str, int]" = {kind: 0 for kind in LIMITS}
        self._lines: "dict[str, list[_Operation]]" = {kind: [] for kind in LIMITS}
        self._recovered = False
        self._draining = False
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)

    # -- documents

    def admit(self, key: str, body: bytes) -> "tuple[str, str] | None":
        """(reason, message) when the document cannot be taken, before it is journalled."""
        if len(body) > DOCUMENT_BYTES_MAX:
            return "TooLarge", "%s: %d bytes; at most %d" % (key, len(body), DOCUMENT_BYTES_MAX)
        kind, parts = key.split("/")[0], key.split("/")
        if kind in ("configmap", "secret") and len(parts) == 3:
            fault = check_library_document(key, body)
            return None if fault is None else ("Invalid", "%s: %s" % (key, fault))
        if kind == "agent":
            return None
        if kind != "pod" or len(parts) != 4:
            return "UnknownKind", "%s: this agent knows pods, configmaps and secrets" % key
        try:
            doc = json.loads(body)
        except ValueError as error:
            return "Invalid", "%s: not JSON: %s" % (key, error)
        fault = podreview.faults(doc, key)
        if fault is not None:
            return "Invalid", "%s: %s" % (key, fault)
        entry = self._entries.get(doc["uid"])
        if entry is not None and entry.key != key:
            return "Invalid", "%s: its UID is that of %s" % (key, entry.key)
        if entry is not None and not _same_containers(entry.pod, doc):
            return (
                "Invalid",
                "%s: spec.containers: the containers of a pod cannot be others than before" % key,
            )
        if entry is None and key not in self._wanted and self.pod_count() >= PODS_MAX:
            return "TooManyPods", "%s: this node runs %d pods already" % (key, PODS_MAX)
        return None

    def pod_count(self) -> int:
        uids = set(self._entries)
        uids.update(doc["uid"] for doc in self._wanted.values())
        return len(uids)

    def set(self, key: str, body: bytes) -> None:
        """A journalled document is desired from now on. Documents of other kinds are not for workloads."""
        kind = key.split("/")[0]
        if kind in ("configmap", "secret"):
            self._library.put(*_library_key(key), body)
            self._poke(key)
        elif kind == "pod":
            doc = json.loads(body)
            entry = self._entries.get(doc["uid"])
            if not self._recovered or (entry is not None and entry.pod.ending == UNDESIRED):
                self._wanted[key] = doc
            elif entry is None:
                self._create(key, doc, None, [])
            else:
                entry.pod.update(doc, self._clock.now())
                entry.refs = references(doc)
                entry.refresh_at = self._clock.now()
                self._touch(doc["uid"])

    def delete(self, key: str) -> None:
        """A document is no longer desired: its pod is stopped gracefully and removed."""
        kind = key.split("/")[0]
        if kind in ("configmap", "secret"):
            self._library.drop(*_library_key(key))
        elif kind == "pod":
            self._wanted.pop(key, None)
            uid = key.split("/")[3]
            entry = self._entries.get(uid)
            if entry is None or entry.pod.ending == UNDESIRED:
                return
            if entry.pod.done:
                self._forget(entry)
                return
            entry.pod.undesired(self._clock.now())
            self._touch(uid)

    def _poke(self, key: str) -> None:
        for uid, entry in self._entries.items():
            if key in entry.refs:
                entry.pod.poke()
                entry.refresh_at = self._clock.now()
                self._touch(uid)

    # -- beginning

    def start(self) -> None:
        """Once, after every journalled document was set: finds what runs, adopts it, and goes on from there."""
        self._loop.spawn(self._begin(), "workloads")

    def _begin(self) -> "Steps":
        while True:
            try:
                statuses = yield from self._runtime.recover()
                break
            except RuntimeFailure as error:  # an engine that is not up yet
                self.trouble = "runtime: " + error.message
                yield Wait(-1, 0, self._loop.now() + RETRY_S)
        self.trouble = ""
        found: "dict[str, list[Status]]" = {}
        for status in statuses:
            found.setdefault(status.uid, []).append(status)
        stored = dict(self._store.items())
        self._recovered = True
        for key, doc in list(self._wanted.items()):
            uid = doc["uid"]
            self._create(key, doc, stored.get("pod/" + uid), found.pop(uid, []))
        self._wanted.clear()
        for name in stored:
            kind, _, uid = name.partition("/")
            if uid not in self._entries:
                self._create_orphan(uid, stored, found.pop(uid, []))
            elif kind == "doc":
                self._store.delete(name)
        for uid in list(found) + sorted(self._volumes.leftovers()):
            if uid not in self._entries:
                self._create_orphan(uid, stored, found.get(uid, []))
        self._loop.spawn(self._watch(), "workloads.changes")
        yield from self._pump()

    def _create(
        self, key: str, doc: "dict[str, Any]", record: "bytes | None", statuses: "list[Status]"
    ) -> None:
        now, wall = self._clock.now(), self._clock.wall()
        pod = Pod(doc, self._node, now, wall)
        pod.recovered(None if record is None else json.loads(record), statuses, now, wall)
        if record is None and not statuses:
            self._review(pod, now, wall)
        if self._draining:
            pod.drain(now)
        entry = self._entries[pod.uid] = _Entry(key, pod)
        entry.refresh_at = None if record is None else now
        self._touch(pod.uid)

    def _review(self, pod: Pod, now: float, wall: float) -> None:
        refusals, warnings = podreview.review(pod.doc)
        more = self._runtime.review(pod.doc)
        refusals = refusals + self._volumes.review(pod.doc) + more[0]
        warnings = warnings + more[1]
        if refusals:
            pod.refuse("Unsupported", "; ".join(refusals), now, wall)
        elif warnings:
            pod.warn("FieldsNotHonoured", "; ".join(warnings), now, wall)

    def _create_orphan(self, uid: str, stored: "dict[str, bytes]", statuses: "list[Status]") -> None:
        """Something is left of a pod that nobody wants: it is stopped and removed."""
        record = json.loads(stored["pod/" + uid]) if "pod/" + uid in stored else None
        if "doc/" + uid in stored:
            doc = json.loads(stored["doc/" + uid])
        else:
            names = sorted({s.container for s in statuses} | set(record["c"] if record else ()))
            spec = {"containers": [{"name": name} for name in names]}
            doc = {"kind": "Pod", "ns": "", "name": "", "uid": uid, "spec": spec}
        now, wall = self._clock.now(), self._clock.wall()
        pod = Pod(doc, self._node, now, wall)
        pod.recovered(record, statuses, now, wall)
        pod.gone = pod.removed = False
        pod.undesired(now)
        self._entries[uid] = _Entry("pod/%s/%s/%s" % (doc["ns"], doc["name"], uid), pod)
        self._touch(uid)

    # -- the pump

    def _touch(self, uid: str) -> None:
        self._dirty.add(uid)
        try:
            os.write(self._wake_w, b".")
        except BlockingIOError:
            pass  # the pipe is full: the pump wakes up anyway

    def _pump(self) -> "Steps":
        while True:
            now = self._clock.now()
            for uid, entry in list(self._entries.items()):
                if uid in self._dirty or (entry.due is not None and entry.due <= now):
                    self._dirty.discard(uid)
                    self._step(entry)
            dues = [e.due for e in self._entries.values() if e.due is not None]
            deadline = None if not dues else self._loop.now() + max(0.0, min(dues) - self._clock.now())
            if not self._dirty:
                yield Wait(self._wake_r, POLLIN, deadline)
            else:
                yield Wait(-1, 0, 0.0)
            try:
                os.read(self._wake_r, 4096)
            except BlockingIOError:
                pass

    def _step(self, entry: _Entry) -> None:
        now = self._clock.now()
        if not entry.backlog:
            if entry.refresh_at is not None and entry.refresh_at <= now:
                self._refresh(entry)
            entry.backlog = entry.pod.step(now, self._clock.wall())
        while entry.backlog:
            try:
                self._carry_out(entry, entry.backlog[0])
            except Cancelled:
                raise
            except Exception as error:
                # Whatever kept the journal from taking it: what follows relies on it, so it waits.
                self.trouble = "%s: %s" % (entry.key, error)
                entry.due = now + STORE_RETRY_S
                return
            del entry.backlog[0]
            self.trouble = ""
        dues = [d for d in (entry.pod.deadline(), entry.refresh_at) if d is not None]
        entry.due = min(dues) if dues else None
        if entry.pod.done and entry.pod.ending == UNDESIRED:
            self._forget(entry)

    def _forget(self, entry: _Entry) -> None:
        """Nothing of it is left; when it is desired again meanwhile, it begins anew."""
        uid = entry.pod.uid
        self._store.delete("pod/" + uid)
        self._store.delete("doc/" + uid)
        self._entries.pop(uid, None)
        doc = self._wanted.pop(entry.key, None)
        if doc is not None:
            self._create(entry.key, doc, None, [])

    def _carry_out(self, entry: _Entry, act: "Any") -> None:
        pod = entry.pod
        if isinstance(act, Report):
            self._report("pod", entry.key, act.status)
        elif isinstance(act, Event):
            self._report("event", entry.key, act.body)
        elif isinstance(act, Gone):
            self._report("gone", entry.key, {})
        elif isinstance(act, Save):
            if pod.ending == UNDESIRED and not pod.removed:
                self._store.put("doc/" + pod.uid, json.dumps(pod.doc).encode())
            self._store.put("pod/" + pod.uid, act.record)
        elif isinstance(act, Start):
            self._cancel(entry.stops.pop(act.name, None))
            self._run("start", act.name, self._start(entry, act.name, act.attempt))
        elif isinstance(act, Stop):
            self._cancel(entry.stops.pop(act.name, None))
            entry.stops[act.name] = self._run("stop", act.name, self._stop(entry, act))
        elif isinstance(act, Hook):
            self._run("hook", act.name, self._post_start(entry, act))
        elif isinstance(act, Check):
            self._run("probe", act.name, self._check(entry, act))
        elif isinstance(act, Remove):
            self._run("remove", pod.uid, self._remove(entry))

    # -- operations

    def _run(self, kind: str, name: str, gen: "Steps") -> _Operation:
        operation = _Operation(kind, "%s %s" % (kind, name), gen)
        self._lines[kind].append(operation)
        self._advance(kind)
        return operation

    def _advance(self, kind: str) -> None:
        while self._lines[kind] and self._running[kind] < LIMITS[kind]:
            operation = self._lines[kind].pop(0)
            if not operation.cancelled:
                self._running[kind] += 1
                operation.task = self._loop.spawn(self._attend(operation), operation.name)

    def _attend(self, operation: _Operation) -> "Steps":
        try:
            yield from operation.gen
        finally:
            self._over(operation)

    def _over(self, operation: _Operation) -> None:
        if not operation.done:
            operation.done = True
            self._running[operation.kind] -= 1
            self._advance(operation.kind)

    def _cancel(self, operation: "_Operation | None") -> None:
        if operation is None or operation.done:
            return
        operation.cancelled = True
        if operation.task is not None:
            self._loop.cancel(operation.task)
            self._over(operation)  # a task that had not begun has no `finally` to run

    def _times(self) -> "tuple[float, float]":
        return self._clock.now(), self._clock.wall()

    def _start(self, entry: _Entry, name: str, attempt: int) -> "Steps":
        pod = entry.pod
        try:
            launch = self._prepare(entry, name, attempt)
        except (MissingReference, BadReference) as error:
            if isinstance(error, MissingReference) and error.volume:
                text = 'MountVolume.SetUp failed for volume "%s" : %s' % (error.volume, error.message)
                pod.warn("FailedMount", text, *self._times())
            pod.start_blocked(name, attempt, error.message, *self._times())
        except (VolumeError, OSError) as error:
            pod.start_failed(name, attempt, "CreateContainerError", str(error), *self._times())
        else:
            yield from self._launch(pod, launch)
        self._touch(pod.uid)

    def _prepare(self, entry: _Entry, name: str, attempt: int) -> Launch:
        """Everything that a start needs. Raises MissingReference, BadReference, VolumeError or OSError."""
        pod = entry.pod
        container = pod.container(name)
        assert container is not None
        doc, spec = pod.doc, container.spec
        pod_dir = self._volumes.pod_dir(pod.uid)
        self._volumes.prepare(doc, self._clock.wall())
        pod.prepared()
        env = environment(doc, spec, self._library, self._node)
        if env.skipped:
            text = "Keys %s cannot be names of environment variables, and were skipped" % ", ".join(
                env.skipped
            )
            pod.warn("InvalidEnvironmentVariableNames", text, *self._times())
        mounts = self._volumes.mounts(doc, spec, env)
        logins, unusable = pull_secrets(doc, self._library)
        if unusable:
            text = "Unable to use image pull secrets (%s): the image may not be pulled" % ", ".join(unusable)
            pod.warn("FailedToRetrieveImagePullSecret", text, *self._times())
        command, args = env.expand(spec.get("command") or []), env.expand(spec.get("args") or [])
        return Launch(doc, spec, attempt, command, args, env.pairs(), mounts, pod_dir, logins)

    def _launch(self, pod: Pod, launch: Launch) -> "Steps":
        name = launch.container["name"]
        try:
            status = yield from self._runtime.start(launch)
        except RuntimeFailure as error:
            pod.start_failed(name, launch.attempt, error.reason, error.message, *self._times())
            return
        except Cancelled:
            raise
        except Exception as error:
            # It is not known how far it came (the journal may have failed behind a fork): nothing may be left running.
            yield from self._make_sure_it_ended(pod, name)
            text = "%s: %s" % (type(error).__name__, error)
            pod.start_failed(name, launch.attempt, "CreateContainerError", text, *self._times())
            return
        pod.running(status, *self._times())

    def _make_sure_it_ended(self, pod: Pod, name: str) -> "Steps":
        while True:
            try:
                yield from self._runtime.stop(pod.uid, name, GRACE_MIN_S)
                return
            except RuntimeFailure:
                return  # the runtime knows of no such container
            except Cancelled:
                raise
            except Exception as error:
                self.trouble = "container %s of %s: %s" % (name, pod.title, error)
                yield Wait(-1, 0, self._loop.now() + RETRY_S)

    def _stop(self, entry: _Entry, act: Stop) -> "Steps":
        pod, began = entry.pod, self._loop.now()
        container = pod.container(act.name)
        assert container is not None
        if act.hook:
            ok, text = yield from self._handle(entry, container.spec, "preStop", act.grace_s)
            if not ok:
                pod.hook_failed(act.name, text, *self._times())
        if container.state != STOPPING or container.attempt != act.attempt:
            return  # it ended meanwhile; there may be another attempt already, which is not to be stopped
        left = max(GRACE_MIN_S, act.grace_s - (self._loop.now() - began))
        try:
            status = yield from self._runtime.stop(pod.uid, act.name, left)
        except Cancelled:
            raise
        except Exception as error:
            pod.stop_failed(act.name, act.attempt, str(error), *self._times())
        else:
            pod.exited(status, *self._times())
            if container.state == STOPPING and container.attempt == act.attempt:
                text = "the runtime speaks of attempt %d instead of %d" % (status.attempt, act.attempt)
                pod.stop_failed(act.name, act.attempt, text, *self._times())
        self._touch(pod.uid)

    def _handle(
        self, entry: _Entry, spec: "dict[str, Any]", field: str, timeout_s: float
    ) -> "Generator[Wait, bool, tuple[bool, str]]":
        """Runs a lifecycle hook."""
        handler = (spec.get("lifecycle") or {}).get(field) or {}
        return (yield from self._ask(entry, spec, handler, timeout_s))

    def _ask(
        self, entry: _Entry, spec: "dict[str, Any]", handler: "dict[str, Any]", timeout_s: float
    ) -> "Generator[Wait, bool, tuple[bool, str]]":
        ips = self._node.ips()
        pod_ip = ips[0] if ips else "127.0.0.1"
        return (yield from proberunner.run(self._runtime, entry.pod.uid, spec, handler, pod_ip, timeout_s))

    def _post_start(self, entry: _Entry, act: Hook) -> "Steps":
        container = entry.pod.container(act.name)
        assert container is not None
        ok, text = yield from self._handle(entry, container.spec, "postStart", HOOK_TIMEOUT_S)
        entry.pod.hook_done(act.name, act.attempt, "" if ok else text, *self._times())
        self._touch(entry.pod.uid)

    def _check(self, entry: _Entry, act: Check) -> "Steps":
        container = entry.pod.container(act.name)
        assert container is not None
        ok, text = yield from self._ask(entry, container.spec, act.spec, act.timeout_s)
        entry.pod.checked(act.name, act.attempt, act.kind, ok, text, *self._times())
        self._touch(entry.pod.uid)

    def _remove(self, entry: _Entry) -> "Steps":
        try:
            yield from self._runtime.remove(entry.pod.uid)
            yield from self._volumes.remove(entry.pod.uid)
        except Cancelled:
            raise
        except Exception as error:
            entry.pod.remove_failed(str(error), *self._times())
        else:
            entry.pod.remove_done()
        self._touch(entry.pod.uid)

    def _refresh(self, entry: _Entry) -> None:
        """Brings the files of its volumes up to date; when that fails the old ones stay, and it is tried again."""
        entry.refresh_at = None
        if entry.pod.ending or entry.pod.at_rest:
            return
        try:
            self._volumes.refresh(entry.pod.doc, self._clock.wall())
        except (MissingReference, BadReference, VolumeError) as error:
            entry.pod.warn("FailedMount", "volumes were not updated: " + error.message, *self._times())
            entry.refresh_at = self._clock.now() + REFRESH_RETRY_S

    def _watch(self) -> "Steps":
        """Hears of containers that ended."""
        while True:
            try:
                statuses = yield from self._runtime.changes(self._loop.now() + CHANGES_WAIT_S)
            except RuntimeFailure:  # an engine that went away; its containers are heard of when it is back
                yield Wait(-1, 0, self._loop.now() + CHANGES_WAIT_S)
                continue
            for status in statuses:
                entry = self._entries.get(status.uid)
                if entry is not None:
                    entry.pod.exited(status, *self._times())
                    self._touch(status.uid)

    # -- what the agent asks for

    def logs(self, uid: str, container: str, options: "dict[str, Any]", out: "LogSink") -> "Steps":
        """Generator. Writes a container's log to `out`. Raises RuntimeFailure with a reason for the reader."""
        entry = self._entries.get(uid)
        if entry is None:
            raise RuntimeFailure("NotFound", "this node has no pod with UID %s" % uid)
        pod = entry.pod
        found = pod.container(container)
        if found is None:
            raise RuntimeFailure(
                "BadRequest", "container %s is not valid for pod %s" % (container, pod.doc["name"])
            )
        title = 'container "%s" in pod "%s"' % (container, pod.doc["name"])
        if options.get("previous") and found.last is None:
            raise RuntimeFailure("BadRequest", "previous terminated " + title + " not found")
        if found.state == WAITING and found.last is None:
            raise RuntimeFailure(
                "BadRequest", title + " is waiting to start: " + (found.reason or "ContainerCreating")
            )
        yield from self._runtime.logs(uid, container, options, out)

    def resync(self) -> None:
        """Reports every pod's status anew: the hub may know nothing of what it was told."""
        for uid, entry in self._entries.items():
            entry.pod.forget_report()
            self._touch(uid)

    def drain(self) -> "Steps":
        """Generator. Stops everything gracefully; ends when nothing runs any more. What is desired stays desired and is
        started again with the next agent."""
        self._draining = True
        while not self._recovered:
            yield Wait(-1, 0, self._loop.now() + 0.05)
        for uid, entry in self._entries.items():
            entry.pod.drain(self._clock.now())
            self._touch(uid)
        while self._dirty or not all(self._quiet(e) for e in self._entries.values()):
            yield Wait(-1, 0, self._loop.now() + 0.05)

    def _quiet(self, entry: _Entry) -> bool:
        return entry.pod.at_rest and not entry.backlog and not entry.pod.removing


def _library_key(key: str) -> "tuple[str, str, str]":
    kind, namespace, name = key.split("/", 2)
    return {"configmap": "ConfigMap", "secret": "Secret"}[kind], namespace, name


def _same_containers(pod: Pod, doc: "dict[str, Any]") -> bool:
    entries = (doc["spec"].get("initContainers") or []) + doc["spec"]["containers"]
    return {c.name for c in pod.containers} == {e["name"] for e in entries}
