"""The pods of this node: documents in, runtime calls and reports out. `reconcile` decides; this carries out.

One task, the pump, steps the state machines of pods that something happened to or whose time has come, and carries out
their actions in order. What takes time runs as operations beside it, each kind with its own bound; more of them wait in
line. When the journal cannot take a record (a full disk), the actions behind it wait too and are tried again: nothing is
started or stopped on the strength of what is not durable.

Keys in the store: `pod/<uid>` the machine's record; `doc/<uid>` the document of a pod that is being stopped although its
document is gone, so that its hooks and grace are honoured after kill -9 as well.
"""

import json

from edgelite import podreview, podservices
from edgelite.containers import EXITED, WAITING
from edgelite.localview import usual_volumes
from edgelite.loop import POLLIN, Cancelled, Wait, wakeup
from edgelite.operations import Operations
from edgelite.payload import references
from edgelite.podactions import Check, Event, Gone, Hook, Remove, Report, Save, Start, Stop
from edgelite.podenv import (
    BadReference,
    Library,
    MissingReference,
    NodeFacts,
    check_library_document,
)
from edgelite.podtasks import PodTasks
from edgelite.reconcile import RETRY_S, UNDESIRED, Pod
from edgelite.runtimes.base import RuntimeFailure
from edgelite.tokenkeeper import TokenKeeper
from edgelite.tokens import fault as token_fault
from edgelite.volumes import VolumeError, Volumes, find_tmpfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any, Protocol

    from edgelite.loop import Loop
    from edgelite.operations import Operation
    from edgelite.podview import PodView
    from edgelite.runtimes.base import Ends, LogSink, Runtime, State, Status
    from edgelite.vault import Vault

    class Clock(Protocol):
        def now(self) -> float: ...
        def wall(self) -> float: ...

    Steps = Generator[Wait, bool, None]
    Shown = tuple[Pod, set[str]] | None

PODS_MAX = 256
DOCUMENT_BYTES_MAX = 1520435  # 1.45 MiB
CHANGES_WAIT_S = 5.0
REFRESH_RETRY_S = 60.0
STORE_RETRY_S = 5.0
# What pods use, by the first part of its documents' keys
LIBRARY = {
    "configmap": "ConfigMap",
    "secret": "Secret",
    "service": "Service",
    "endpointslice": "EndpointSlice",
}
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
        self.stops: "dict[str, Operation]" = {}


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
        vault: "Callable[[], Vault] | None" = None,
        view: "Callable[[Library, Callable[[str], Shown]], PodView] | None" = None,
    ) -> None:
        """tmpfs: where Secrets are put; "" finds one, None is for hosts without. vault: makes what tokens are sealed with.
        view: makes what the node's own API shows, None for a node without one."""
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
        self._operations = Operations(loop, LIMITS)
        self._tasks = PodTasks(
            loop, runtime, node, self._library, self._volumes, clock, self._touch, self._note_trouble
        )
        self._tokens = TokenKeeper(
            loop, self._library.tokens, self._running, report, store, vault or _no_vault, clock.wall
        )
        self._make_view = view
        self._view: "PodView | None" = None  # made for the first pod that needs it: most nodes have none
        if view is not None:
            self._library.local_api = self._local_api
        self._recovered = False
        self._tell_anew = False
        self._draining = False
        self._wakeup = wakeup()

    # -- documents

    def admit(self, key: str, body: bytes) -> "tuple[str, str] | None":
        """(reason, message) when the document cannot be taken, before it is journalled."""
        if len(body) > DOCUMENT_BYTES_MAX:
            return "TooLarge", "%s: %d bytes; at most %d" % (key, len(body), DOCUMENT_BYTES_MAX)
        kind, parts = key.split("/")[0], key.split("/")
        if kind in ("configmap", "secret") and len(parts) == 3:
            fault = check_library_document(key, body)
            return None if fault is None else ("Invalid", "%s: %s" % (key, fault))
        if kind in podservices.KINDS and len(parts) == 3:
            fault = podservices.fault(key, body)
            return None if fault is None else ("Invalid", "%s: %s" % (key, fault))
        if kind == "agent":
            return None
        if kind == "token":
            fault = token_fault(key, body)
            return None if fault is None else ("Invalid", "%s: %s" % (key, fault))
        if kind != "pod" or len(parts) != 4:
            return "UnknownKind", "%s: this agent knows pods and what they use" % key
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
        if kind in LIBRARY:
            self._library.put(*_library_key(key), body)
            self._poke(key)
        elif kind == "token":
            self._take_token(key, body)
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

    def _take_token(self, key: str, body: bytes) -> None:
        entry = self._entries.get(key.split("/")[1])
        if entry is None or key not in entry.refs:
            return  # its pod has gone meanwhile
        try:
            self._tokens.take(key, body)
        except RuntimeFailure as error:
            entry.pod.warn(
                "TokenNotKept", "a restart of the node would ask anew: " + error.message, *self._times()
            )
        self._poke(key)

    def token_refused(self, key: str, reason: str) -> None:
        """The hub could not get the tokens of a pod; they are asked for again."""
        entry = self._entries.get(key.split("/")[-1])
        if entry is not None:
            text = "the hub got no token of the pod's service account: " + reason
            entry.pod.warn("FailedMount", text, *self._times())
            self._touch(entry.pod.uid)

    def _running(self) -> "list[tuple[str, dict[str, Any]]]":
        """The pods that may use tokens."""
        return [
            (e.key, e.pod.doc)
            for e in self._entries.values()
            if not e.pod.ending and any(c.state != EXITED for c in e.pod.containers)
        ]

    def _shown(self, uid: str) -> "Shown":
        entry = self._entries.get(uid)
        return None if entry is None else (entry.pod, entry.refs)

    def _local_api(self) -> "tuple[int, str]":
        """Raises VolumeError."""
        assert self._make_view is not None
        try:
            if self._view is None:
                self._view = self._make_view(self._library, self._shown)
            return self._view.api()
        except (OSError, RuntimeFailure) as error:
            raise VolumeError("the node's own API cannot be started: %s" % error)

    def _begin_local_api(self) -> None:
        """What runs from before was told of it."""
        if self._make_view is not None and any(usual_volumes(e.pod.doc) for e in self._entries.values()):
            try:
                self._local_api()
            except VolumeError as error:
                self.trouble = error.message

    def delete(self, key: str) -> None:
        """A document is no longer desired: its pod is stopped gracefully and removed."""
        kind = key.split("/")[0]
        if kind in LIBRARY:
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
        if self._view is not None:
            self._view.changed()
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
        stored = {}
        for name, value in self._store.items():
            if name.startswith("token/"):
                self._tokens.restore(name, value)
            elif "/" in name:
                stored[name] = value
        self._recovered = True
        for key, doc in list(self._wanted.items()):
            uid = doc["uid"]
            self._create(key, doc, stored.get("pod/" + uid), found.pop(uid, []))
        self._wanted.clear()
        self._tell_anew = False
        for name in stored:
            kind, _, uid = name.partition("/")
            if uid not in self._entries:
                self._create_orphan(uid, stored, found.pop(uid, []))
            elif kind == "doc":
                self._store.delete(name)
        for uid in list(found) + sorted(self._volumes.leftovers()):
            if uid not in self._entries:
                self._create_orphan(uid, stored, found.get(uid, []))
        self._begin_local_api()
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
        if self._tell_anew:
            pod.forget_report()
        if self._draining:
            pod.drain(now)
        entry = self._entries[pod.uid] = _Entry(key, pod)
        entry.refresh_at = None if record is None else now
        self._touch(pod.uid)
        self._tokens.look()

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
        if uid not in self._entries:
            return  # a probe or hook that outlived its pod: the pump would look for it for ever
        self._dirty.add(uid)
        self._wakeup.ring()

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
                yield Wait(self._wakeup.fileno(), POLLIN, deadline)
            else:
                yield Wait(-1, 0, 0.0)
            self._wakeup.drain()

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
        self._tokens.forget(uid)
        self._entries.pop(uid, None)
        doc = self._wanted.pop(entry.key, None)
        if doc is not None:
            self._create(entry.key, doc, None, [])

    def _carry_out(self, entry: _Entry, act: "Any") -> None:
        pod = entry.pod
        if isinstance(act, Report):
            self._report("pod", entry.key, act.status)
            if self._view is not None:
                self._view.changed()
        elif isinstance(act, Event):
            self._report("event", entry.key, act.body)
        elif isinstance(act, Gone):
            self._report("gone", entry.key, {})
        elif isinstance(act, Save):
            if pod.ending == UNDESIRED and not pod.removed:
                self._store.put("doc/" + pod.uid, json.dumps(pod.doc).encode())
            self._store.put("pod/" + pod.uid, act.record)
        elif isinstance(act, Start):
            self._operations.cancel(entry.stops.pop(act.name, None))
            self._operations.run("start", act.name, self._tasks.start(pod, act.name, act.attempt))
        elif isinstance(act, Stop):
            self._operations.cancel(entry.stops.pop(act.name, None))
            entry.stops[act.name] = self._operations.run("stop", act.name, self._tasks.stop(pod, act))
        elif isinstance(act, Hook):
            self._operations.run("hook", act.name, self._tasks.post_start(pod, act))
        elif isinstance(act, Check):
            self._operations.run("probe", act.name, self._tasks.check(pod, act))
        elif isinstance(act, Remove):
            self._operations.run("remove", pod.uid, self._tasks.remove(pod))

    def _note_trouble(self, text: str) -> None:
        self.trouble = text

    def _times(self) -> "tuple[float, float]":
        return self._clock.now(), self._clock.wall()

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

    def usage(self, out: "LogSink") -> "Steps":
        """Writes what the node and its containers use, as JSON (ARCHITECTURE.md, "Usage"). Fails with RuntimeFailure and what
        `out` raises."""
        from edgelite import nodeusage  # most agents are never asked

        found = yield from self._runtime.usage()
        body = {"at": self._clock.wall(), "node": nodeusage.read(), "containers": found}
        yield from out.write(json.dumps(body, separators=(",", ":")).encode())

    def inside(self, request: "dict[str, Any]") -> "Generator[Wait, bool, Ends]":
        """Generator. Opens what a stream of kind exec, attach or portforward asks for (ARCHITECTURE.md, OPEN). Raises
        RuntimeFailure with a reason for the asker."""
        from edgelite import inside  # most agents never need it

        uid = str(request.get("pod"))
        entry = self._entries.get(uid)
        if entry is None:
            raise RuntimeFailure("NotFound", "this node has no pod with UID %s" % uid)
        return (yield from inside.begin(self._runtime, entry.pod, request))

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
        yield from self._tasks.logs(uid, container, options, out)

    def resync(self) -> None:
        """Reports every pod's status anew: the hub may know nothing of what it was told.

        The reports are written on return, so that they reach the disk no later than the claim that called for them: after
        kill -9 nothing would ask for them again. Before the runtime has been heard they are made with its answer."""
        self._tell_anew = not self._recovered
        for entry in list(self._entries.values()):
            entry.pod.forget_report()
            self._step(entry)
            self._touch(entry.pod.uid)

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


def _no_vault() -> "Vault":
    raise RuntimeFailure("TokenNotKept", "this node has no key to seal tokens with")


def _library_key(key: str) -> "tuple[str, str, str]":
    kind, namespace, name = key.split("/", 2)
    return LIBRARY[kind], namespace, name


def _same_containers(pod: Pod, doc: "dict[str, Any]") -> bool:
    entries = (doc["spec"].get("initContainers") or []) + doc["spec"]["containers"]
    return {c.name for c in pod.containers} == {e["name"] for e in entries}
