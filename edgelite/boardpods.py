"""The pods of a board: containers that are functions of the firmware or modules out of ConfigMaps. [pure]

An image says which: `callable:<function>` or `module:<configmap>/<key>`; of the latter `command: [<function>]` may name another
entry than `main`. `args`, and `env` with values or keys of ConfigMaps, are given to it. What else a Pod may say and a board
cannot do is refused by name (`admit`). Containers start again as their restartPolicy says, after a kubelet's back-off.

A module whose ConfigMap changes is loaded beside the one that runs, and takes its place. It is on probation for PROBATION_S: when it
cannot be loaded, fails, or ends badly in that time, the one before runs again, the event `ModuleRolledBack` says why, and that
version is not tried again. What passed probation is saved, so that a board that starts with a bad version rolls back too.

The driver calls `poll` at `deadline`, once in every turn of the loop, and does what it returns: ("report", type, key, body),
("save", name, bytes or None). Names saved are `good/<namespace>/<configmap>/<key>`, `bad/..` and `pod/<uid>` (a pod that has
ended, which must not run again after a restart). Bounds: PODS_MAX, CONTAINERS_MAX. Runs on MicroPython.
"""

import json

from edgelite.boardrun import GRACE_DEFAULT_S, Container, Images
from edgelite.dates import rfc3339
from edgelite.desired import compact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from edgelite.callables import Devices, Functions, LogRing

    Object = dict[str, Any]
    Action = tuple[str, str, Any, Any]

PODS_MAX = 16
CONTAINERS_MAX = 4
HONOURED = ("containers", "restartPolicy", "terminationGracePeriodSeconds", "enableServiceLinks", "dnsPolicy")
HONOURED_OF_CONTAINER = ("name", "image", "imagePullPolicy", "command", "args", "env")
EVENTS_MAX = 32


class _Pod:
    """One pod. ended: its last status, once it has ended for good; stopping: when what runs is killed, None while it is wanted."""

    __slots__ = ("containers", "doc", "ended", "key", "reported", "since", "started_ms", "stopping")

    def __init__(self, key: str, doc: "Object", wall_ms: int) -> None:
        self.key = key
        self.doc = doc
        self.containers: "list[Container]" = []
        self.ended: "Object | None" = None
        self.started_ms = wall_ms
        self.stopping: "float | None" = None
        self.reported = b""
        self.since: "dict[str, list[str]]" = {}


class BoardPods:
    """See the module. wall_ms(): Unix milliseconds. modules: may ConfigMaps bring code? devices(namespace): the twins that a
    function sees. suspect: `<uid>/<container>` that ran when the watchdog reset the board, "" for none: it waits before it
    starts. mark(name) is called with that name before each step, for whoever keeps it over a reset."""

    def __init__(
        self,
        functions: "Functions",
        wall_ms: "Callable[[], int]",
        modules: bool = False,
        devices: "Callable[[str], Devices] | None" = None,
        files: "Any" = None,
        directory: str = "",
        suspect: str = "",
        mark: "Callable[[str], None] | None" = None,
    ) -> None:
        self.images = Images(functions, modules, files, directory)
        self._wall_ms = wall_ms
        self._devices = devices
        self._suspect = suspect
        self._mark = mark or _nothing
        self._pods: "dict[str, _Pod]" = {}
        self._saved: "dict[str, bytes]" = {}
        self._actions: "list[Action]" = []

    def load(self, records: "list[tuple[str, bytes]]") -> None:
        """What was saved, before documents are set."""
        self._saved = dict(records)
        self.images.load(records)

    # Documents

    def admit(self, key: str, body: bytes) -> "tuple[str, str] | None":
        """(reason, message) when the document cannot be taken, before it is journalled."""
        try:
            doc = json.loads(body)
        except ValueError as error:
            return "Invalid", "%s: not JSON: %s" % (key, error)
        if key.startswith("configmap/"):
            return None
        if not key.startswith("pod/"):
            return (
                "UnsupportedKind",
                "%s: this board knows pods and ConfigMaps, and devices where its firmware has twins" % key,
            )
        faults = self._faults(key, doc)
        if faults:
            return "Unsupported", "%s: %s" % (key, "; ".join(faults[:8]))
        if key not in self._pods and len(self._pods) >= PODS_MAX:
            return "TooManyPods", "%s: this board runs %d pods already" % (key, PODS_MAX)
        return None

    def _faults(self, key: str, doc: "Any") -> "list[str]":
        if not isinstance(doc, dict) or doc.get("kind") != "Pod" or not isinstance(doc.get("spec"), dict):
            return ["no pod"]
        if key != "pod/%s/%s/%s" % (doc.get("ns"), doc.get("name"), doc.get("uid")):
            return ["it is not the pod that its key names"]
        spec = doc["spec"]
        found = ["spec.%s: a board cannot do this" % f for f in sorted(spec) if f not in HONOURED and spec[f]]
        containers = spec.get("containers")
        if not isinstance(containers, list) or not 0 < len(containers) <= CONTAINERS_MAX:
            return found + ["spec.containers: 1 to %d are allowed" % CONTAINERS_MAX]
        names = []
        for at, container in enumerate(containers):
            path = "spec.containers[%d]" % at
            if not isinstance(container, dict) or not isinstance(container.get("name"), str):
                found.append("%s: no container" % path)
                continue
            names.append(container["name"])
            for field in sorted(container):
                if field not in HONOURED_OF_CONTAINER and container[field]:
                    found.append("%s.%s: a board cannot do this" % (path, field))
            found.extend(["%s.%s" % (path, fault) for fault in self.images.faults(container)])
        if len(set(names)) != len(names):
            found.append("spec.containers: two have the same name")
        return found

    def set(self, key: str, body: bytes, now: float) -> None:
        """A journalled document is in force from now on."""
        doc = json.loads(body)
        if key.startswith("configmap/"):
            self.images.put(key, doc)
            for held in self._pods.values():
                for container in held.containers:
                    container.poke(now)
            return
        pod = self._pods.get(key)
        if pod is None:
            self._create(key, doc, now)
            return
        pod.doc = doc
        if doc.get("del"):
            self._stop(pod, now, float(doc["del"].get("grace") or 0))
            return
        specs = {spec["name"]: spec for spec in doc["spec"]["containers"]}
        for container in pod.containers:
            # Of a running pod only the image may be another, as in Kubernetes.
            container.change(specs.get(container.name) or container.spec, now)

    def _create(self, key: str, doc: "Object", now: float) -> None:
        pod = self._pods[key] = _Pod(key, doc, self._wall_ms())
        stored = self._saved.get("pod/" + doc["uid"])
        if stored is not None:
            pod.ended = json.loads(stored)
        else:
            for spec in doc["spec"]["containers"]:
                container = Container(doc, spec, self.images, self._wall_ms, self._event, self._devices)
                if "%s/%s" % (doc["uid"], spec["name"]) == self._suspect:
                    container.reset_by_watchdog(now)
                pod.containers.append(container)
        if doc.get("del"):
            self._stop(pod, now, float(doc["del"].get("grace") or 0))

    def delete(self, key: str, now: float) -> None:
        """The document is no longer desired: what runs is asked to end, and then killed."""
        if key.startswith("configmap/"):
            self.images.drop(key)
            return
        pod = self._pods.get(key)
        if pod is not None:
            grace = pod.doc["spec"].get("terminationGracePeriodSeconds")
            self._stop(pod, now, GRACE_DEFAULT_S if grace is None else float(grace))
            pod.doc = dict(pod.doc, undesired=True)

    def _stop(self, pod: _Pod, now: float, grace_s: float) -> None:
        until = now + grace_s
        pod.stopping = until if pod.stopping is None else min(pod.stopping, until)
        for container in pod.containers:
            container.stop(now)

    # The loop's side

    def poll(self, now: float) -> "list[Action]":
        """Steps what is due; what is to be reported and saved."""
        for key, pod in list(self._pods.items()):
            for container in pod.containers:
                if pod.stopping is not None and now >= pod.stopping:
                    container.kill(now)
                if container.is_due(now):
                    self._mark("%s/%s" % (pod.doc["uid"], container.name))
                    container.step(now, _policy(pod))
                    self._mark("")
            self._conclude(key, pod)
        self._actions.extend([("save", name, value, None) for name, value in self.images.saves()])
        actions, self._actions = self._actions, []
        return actions

    def deadline(self) -> "float | None":
        """When `poll` has to be called at the latest; None: when something is set."""
        found = []
        for pod in self._pods.values():
            dues = [c.deadline() for c in pod.containers]
            if pod.stopping is not None and not all([c.is_still for c in pod.containers]):
                dues.append(pod.stopping)
            found.extend([due for due in dues if due is not None])
        return min(found) if found else None

    def _conclude(self, key: str, pod: _Pod) -> None:
        """Reports the pod where it is another, and lets go of one that is gone."""
        uid = pod.doc["uid"]
        if pod.stopping is not None and all([c.is_still for c in pod.containers]):
            del self._pods[key]
            if self._saved.pop("pod/" + uid, None) is not None:
                self._actions.append(("save", "pod/" + uid, None, None))
            if not pod.doc.get("undesired"):
                self._actions.append(("report", "gone", key, {}))
            return
        status = self._status(pod)
        if pod.ended is None and status["phase"] in ("Succeeded", "Failed"):
            pod.ended = status
            self._saved["pod/" + uid] = compact(status)
            self._actions.append(("save", "pod/" + uid, compact(status), None))
        data = compact(status)
        if data != pod.reported:
            pod.reported = data
            self._actions.append(("report", "pod", key, status))

    def anew(self) -> None:
        """The hub may know nothing of what it was told."""
        for pod in self._pods.values():
            pod.reported = b""

    def log(self, uid: str, container: str) -> "LogRing | None":
        """The log of a container; None where there is no such."""
        for pod in self._pods.values():
            for held in pod.containers:
                if pod.doc["uid"] == uid and held.name == container:
                    return held.log
        return None

    def _event(self, doc: "Object", kind: str, reason: str, message: str) -> None:
        if len(self._actions) >= EVENTS_MAX:
            return  # the status says the same; a loop that is not polled must not fill the memory
        at = self._wall_ms() / 1000
        body = {
            "type": kind,
            "reason": reason,
            "message": message[:512],
            "count": 1,
            "first": at,
            "last": at,
            "field": "",
        }
        self._actions.append(("report", "event", "pod/%s/%s/%s" % (doc["ns"], doc["name"], doc["uid"]), body))

    # Status

    def _status(self, pod: _Pod) -> "Object":
        if pod.ended is not None:
            return pod.ended
        shown = [container.status() for container in pod.containers]
        phase = _phase(pod)
        ready = all([status["ready"] for status in shown])
        now = rfc3339(self._wall_ms() // 1000)
        conditions = []
        for kind, holds in (("Initialized", True), ("ContainersReady", ready), ("Ready", ready)):
            text = "True" if holds else "False"
            if pod.since.get(kind, [""])[0] != text:
                pod.since[kind] = [text, now]
            condition = {"type": kind, "status": text, "lastTransitionTime": pod.since[kind][1]}
            if not holds:
                condition["reason"] = "ContainersNotReady"
            conditions.append(condition)
        return {
            "phase": phase,
            "startTime": rfc3339(pod.started_ms // 1000),
            "conditions": conditions,
            "containerStatuses": shown,
        }


def _policy(pod: _Pod) -> str:
    return str(pod.doc["spec"].get("restartPolicy") or "Always")


def _phase(pod: _Pod) -> str:
    codes = [c.final_code(_policy(pod)) for c in pod.containers]
    if all([code is not None for code in codes]):
        return "Failed" if any(codes) else "Succeeded"
    return "Running" if any([c.has_started for c in pod.containers]) else "Pending"


def _nothing(name: str) -> None:
    """Nobody keeps it."""
