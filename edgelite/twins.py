"""The devices of this node: what the cloud wants of them, and what the node reports. [pure]

A device comes down as the document `device/<namespace>/<name>/<uid>` and its reports go up as entries of type `twin`
under the same key (ARCHITECTURE.md, "Devices"). A value that is reported passes its property's deadband and interval
first: within the interval only the latest waits, and it goes when the interval is over, so the last value always
arrives. What passed waits until the hub has stored it, at most `keep` of a property, the oldest going first; that is
also what is saved, so a restart loses nothing that the policy keeps.

The driver calls `poll` at `deadline` and after every other call, and does what it returns: ("save", key, record or
None) and ("send", key, body). A body holds all that waits of its device, so a newer entry may take an older one's
place. Times: `now` is in seconds and counts on while the machine runs, `wall_ms` is Unix time in milliseconds, an
integer, for floats of boards are short.

Bounds: DEVICES_MAX devices, one entry a device and SEND_S. Runs on MicroPython.
"""

import json

from edgelite.desired import compact
from edgelite.devices import (
    INTEGER,
    NUMBER,
    READ_ONLY,
    access_of,
    faults,
    interval_of,
    keep_of,
    properties_of,
    reported_fault,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Object = dict[str, Any]
    Action = tuple[str, str, Any]

ENTRY = "twin"
PREFIX = "device/"
DEVICES_MAX = 64
SEND_S = 1.0
"""Values that come together go up together, and a device costs at most one message in this time."""
RETRY_S = 30.0
"""Reports that the hub had no room for are offered again after this."""
RATE = "rate"
"""With this word the hub refuses what comes too fast; any other refusal is for good."""


class Refused(Exception):
    """Values that do not fit. `faults`: (property, what is wrong with its value)."""

    def __init__(self, faults: "list[tuple[str, str]]") -> None:
        super().__init__("; ".join(["%s %s" % fault for fault in faults[:8]]))
        self.faults = faults


class _Value:
    """One property. last: [wall_ms, value] that passed last, None before; waiting: those that the hub has not stored; held:
    the latest that the interval holds back; passed_at: when one passed last."""

    __slots__ = ("held", "last", "passed_at", "waiting")

    def __init__(self) -> None:
        self.last: "list[Any] | None" = None
        self.waiting: "list[list[Any]]" = []
        self.held: "list[Any] | None" = None
        self.passed_at: "float | None" = None


class Twin:
    """One device. Made by `Twins`."""

    __slots__ = ("_told", "_values", "doc", "due", "key", "properties", "unsaved")

    def __init__(self, key: str, doc: "Object") -> None:
        self.key = key
        self.doc = doc
        self.properties = properties_of(doc)
        self._values: "dict[str, _Value]" = {}
        self._told = 0  # the generation that the hub knows to be here
        self.due: "float | None" = None  # when an entry may go; None: nothing is to be sent
        self.unsaved = False

    # What is wanted, what was reported

    @property
    def desired(self) -> "Object":
        """The values that the cloud wants, by property."""
        return dict(self.doc.get("desired") or {})

    @property
    def reported(self) -> "dict[str, list[Any]]":
        """The newest [wall_ms, value] of each property that has one."""
        found = {}
        for name, value in self._values.items():
            newest = value.held or value.last
            if newest is not None:
                found[name] = list(newest)
        return found

    @property
    def generation(self) -> int:
        return int(self.doc.get("gen") or 0)

    # Changes

    def update(self, doc: "Object") -> None:
        """Another version of its document. Values that do not fit it any more are forgotten."""
        self.doc = doc
        self.properties = properties_of(doc)
        for name in list(self._values):
            value = self._values[name]
            prop = self.properties.get(name)
            if value.held is not None and reported_fault(prop, value.held[1]):
                value.held = None
            value.waiting = [r for r in value.waiting if not reported_fault(prop, r[1])]
            if prop is None or (value.last is not None and reported_fault(prop, value.last[1])):
                del self._values[name]
            else:
                value.waiting = value.waiting[-keep_of(prop) :]
        self.unsaved = True

    def report(self, values: "Object", now: float, wall_ms: int) -> None:
        """Takes values by property, all or none. Raises Refused."""
        wrong = [(name, reported_fault(self.properties.get(name), values[name])) for name in values]
        wrong = [fault for fault in wrong if fault[1]]
        if wrong:
            raise Refused(wrong)
        for name in values:
            value = self._values.setdefault(name, _Value())
            if not _differs(self.properties[name], value.last, values[name]):
                value.held = None  # it is again what the cloud knows
                continue
            value.held = [wall_ms, values[name]]
        self.step(now)

    def step(self, now: float) -> None:
        """Lets pass what the intervals hold back no longer."""
        for name, value in self._values.items():
            if value.held is None or not self._is_free(name, value, now):
                continue
            value.last, value.held, value.passed_at = value.held, None, now
            value.waiting = (value.waiting + [value.last])[-keep_of(self.properties[name]) :]
            self.unsaved = True
            self.send(now)

    def send(self, now: float, after_s: float = 0.0) -> None:
        """Something is to be told."""
        if self.due is None:
            self.due = now + after_s

    def deadline(self) -> "float | None":
        """When an interval is over that holds something back."""
        found = [
            value.passed_at + interval_of(self.properties[name])
            for name, value in self._values.items()
            if value.held is not None and value.passed_at is not None
        ]
        return min(found) if found else None

    def _is_free(self, name: str, value: _Value, now: float) -> bool:
        return value.passed_at is None or now - value.passed_at >= interval_of(self.properties[name])

    # To and from the hub

    def body(self) -> "Object | None":
        """The entry that tells all that waits; None when the hub knows everything."""
        told = {name: [list(r) for r in v.waiting] for name, v in self._values.items() if v.waiting}
        if not told and self._told == self.generation:
            return None
        return {"gen": self.generation, "r": told}

    def stored(self, body: "Object") -> None:
        """The hub has stored this entry, or will never take it."""
        self._told = int(body["gen"])
        for name, reports in body["r"].items():
            value = self._values.get(name)
            times = [] if value is None else [report[0] for report in value.waiting]
            if value is not None and reports[-1][0] in times:
                value.waiting = value.waiting[times.index(reports[-1][0]) + 1 :]
        self.unsaved = True

    def anew(self, now: float) -> None:
        """The hub may know nothing of what it was told."""
        self._told = 0
        for value in self._values.values():
            if not value.waiting and value.last is not None:
                value.waiting = [value.last]
        self.send(now)

    # To and from the journal

    def record(self) -> bytes:
        values = {n: [v.last, v.waiting] for n, v in self._values.items() if v.last is not None}
        return compact({"told": self._told, "v": values})

    def restore(self, record: bytes, now: float) -> None:
        """Takes what `record` gave. An interval begins anew, so that an agent that starts again and again floods nobody."""
        fields = json.loads(record)
        self._told = int(fields["told"])
        for name, (last, waiting) in fields["v"].items():
            prop = self.properties.get(name)
            if prop is None or reported_fault(prop, last[1]):
                continue
            value = self._values[name] = _Value()
            value.last, value.passed_at = list(last), now
            value.waiting = [list(r) for r in waiting][-keep_of(prop) :]


def _differs(prop: "Object", last: "list[Any] | None", value: "Any") -> bool:
    """Is it news?"""
    if last is None:
        return True
    deadband = prop.get("deadband") or 0
    if prop["type"] in (INTEGER, NUMBER) and deadband > 0:
        return bool(abs(value - last[1]) >= deadband)
    return bool(value != last[1])


class Twins:
    """All devices of the node, by the key of their document."""

    def __init__(self) -> None:
        self._twins: "dict[str, Twin]" = {}
        self._records: "dict[str, bytes]" = {}
        self._sent_at: "dict[str, float]" = {}
        self._gone: "list[str]" = []

    def __len__(self) -> int:
        return len(self._twins)

    def load(self, records: "list[tuple[str, bytes]]") -> None:
        """The records of the journal, before documents are set; `recovered` once all are."""
        self._records = dict(records)

    def recovered(self) -> None:
        """All journalled documents were set: records without one are of devices that are gone."""
        self._gone.extend(list(self._records))
        self._records = {}

    def __iter__(self) -> "Any":
        return iter(list(self._twins.values()))

    def of(self, namespace: str) -> "list[Twin]":
        """Those of a namespace, by name."""
        found = [t for t in self._twins.values() if t.doc["ns"] == namespace]
        return sorted(found, key=lambda twin: str(twin.doc["name"]))

    def get(self, namespace: str, name: str) -> "Twin | None":
        for twin in self._twins.values():
            if twin.doc["ns"] == namespace and twin.doc["name"] == name:
                return twin
        return None

    # Documents

    def admit(self, key: str, body: bytes) -> "tuple[str, str] | None":
        """(reason, message) when the document cannot be taken, before it is journalled."""
        fault = document_fault(key, body)
        if fault:
            return "Invalid", "%s: %s" % (key, fault)
        if key not in self._twins and len(self._twins) >= DEVICES_MAX:
            return "TooManyDevices", "%s: this node has %d devices already" % (key, DEVICES_MAX)
        return None

    def set(self, key: str, body: bytes, now: float) -> None:
        """A journalled document is in force from now on."""
        doc = json.loads(body)
        twin = self._twins.get(key)
        if twin is not None:
            twin.update(doc)
        else:
            twin = self._twins[key] = Twin(key, doc)
            record = self._records.pop(key, None)
            if record is not None:
                twin.restore(record, now)
        if twin.body() is not None:
            twin.send(now)

    def delete(self, key: str) -> None:
        """The device is another node's, or gone."""
        if self._twins.pop(key, None) is not None:
            self._sent_at.pop(key, None)
            self._gone.append(key)

    # Reports

    def delivered(self, key: str, body: "Object", reason: str, now: float) -> None:
        """The hub has stored an entry; with a `reason` it has refused it."""
        twin = self._twins.get(key)
        if twin is None:
            return
        if reason.startswith(RATE):
            twin.send(now, RETRY_S)
            return
        twin.stored(body)
        if twin.body() is not None:
            twin.send(now)

    def anew(self, now: float) -> None:
        """The hub may know nothing of what it was told: everything is reported again."""
        for twin in self._twins.values():
            twin.anew(now)

    # The driver's side

    def poll(self, now: float) -> "list[Action]":
        """What is to be saved and sent now."""
        actions: "list[Action]" = [("save", key, None) for key in self._gone]
        self._gone = []
        for key, twin in self._twins.items():
            twin.step(now)
            due = self._due(key, twin)
            body = twin.body() if due is not None and due <= now else None
            if due is not None and due <= now:
                twin.due = None
            if twin.unsaved:
                twin.unsaved = False
                actions.append(("save", key, twin.record()))
            if body is not None:
                self._sent_at[key] = now
                actions.append(("send", key, body))
        return actions

    def deadline(self) -> "float | None":
        """When `poll` has to be called at the latest."""
        found = []
        for key, twin in self._twins.items():
            found.extend([t for t in (self._due(key, twin), twin.deadline()) if t is not None])
        return min(found) if found else None

    def _due(self, key: str, twin: Twin) -> "float | None":
        if twin.due is None:
            return None
        sent_at = self._sent_at.get(key)
        return twin.due if sent_at is None else max(twin.due, sent_at + SEND_S)


def document_fault(key: str, body: bytes) -> str:
    """What is wrong with a device's document, "" when nothing is."""
    try:
        doc = json.loads(body)
    except ValueError as error:
        return "not JSON: %s" % error
    if not isinstance(doc, dict) or doc.get("kind") != "Device":
        return "no device"
    names = [doc.get("ns"), doc.get("name"), doc.get("uid")]
    if not all([isinstance(name, str) and name for name in names]) or key != PREFIX + "/".join(names):  # type: ignore[arg-type]
        return "it is not the device that its key names"
    if not isinstance(doc.get("gen", 0), int):
        return "gen must be a number"
    wrong = faults(doc)
    return "; ".join(["%s: %s" % fault for fault in wrong[:8]])


def settable(doc: "Object") -> "list[str]":
    """The properties that the cloud may set."""
    return [prop["name"] for prop in doc["properties"] if access_of(prop) != READ_ONLY]
