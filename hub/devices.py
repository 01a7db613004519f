"""Devices (kind `Device`, group cloudhub.dev): their documents, and what reports and refusals make of them. [pure]

Functions that change an object take a fresh dict and return it, or None to leave it alone, as `Registry.mutate` wants it.
Invariant I5: what does not belong to the reporting node raises NotFound, which is answered as `obsolete`.
"""

import datetime
from collections.abc import Callable, Mapping
from typing import Any, Final

from edgelite.devices import (
    INTERVAL_DEFAULT_S,
    READ_ONLY,
    TEXT_CHARS_MAX,
    faults,
    keep_of,
    properties_of,
    reported_fault,
)
from hub import errors
from hub.documents import canonical
from hub.objects import DEVICES, DeviceView
from security.frames import TwinReport

Object = dict[str, Any]

PREFIX: Final = "device/"
ACCEPTED: Final = "Accepted"
PROPERTY_DEFAULTS: Final[Mapping[str, Any]] = {
    "access": READ_ONLY,
    "minIntervalSeconds": INTERVAL_DEFAULT_S,
    "keep": 1,
    "maxLength": TEXT_CHARS_MAX,
    "deadband": 0,
}
RATE_MARGIN: Final = 1.5
"""Above what a sound agent sends, whose clock and ours differ."""


def device_key(namespace: str, name: str, uid: str) -> str:
    return f"{PREFIX}{namespace}/{name}/{uid}"


def split_device_key(key: str) -> tuple[str, str, str] | None:
    """(namespace, name, UID), None when the key is not a device's."""
    parts = key.split("/")
    if len(parts) != 4 or parts[0] != "device":
        return None
    return parts[1], parts[2], parts[3]


def render(device: Mapping[str, Any]) -> bytes:
    """The document of a Device: equal content gives equal bytes. What stands at its default is left out, for boards."""
    meta, spec = device["metadata"], device["spec"]
    document: Object = {
        "kind": DEVICES.kind,
        "ns": meta["namespace"],
        "name": meta["name"],
        "uid": meta["uid"],
        "gen": meta.get("generation", 0),
        "properties": [_trimmed(prop) for prop in spec.get("properties") or ()],
    }
    if spec.get("desired"):
        document["desired"] = spec["desired"]
    return canonical(document)


def _trimmed(prop: Any) -> Any:
    """What is no object goes out as it is, and the node refuses it by name."""
    if not isinstance(prop, dict):
        return prop
    return {k: v for k, v in prop.items() if v is not None and PROPERTY_DEFAULTS.get(k) != v}


def reports_a_second(view: DeviceView) -> float:
    """How often a sound agent reports on it at most: once in every property's interval, and once a second."""
    each = sum(1.0 / max(1, prop.minIntervalSeconds) for prop in view.spec.properties)
    return min(1.0, each) * RATE_MARGIN


class Merge:
    """Puts a node's report into its Device. `faults`, after it was applied: (property, what is wrong with its value); the
    values that fit are taken all the same. Applied twice, it changes nothing the second time."""

    def __init__(self, node: str, report: TwinReport, now: Callable[[], str]) -> None:
        self._node = node
        self._report = report
        self._now = now
        self.faults: list[tuple[str, str]] = []

    def __call__(self, device: Object) -> Object | None:
        _check_owned(device, self._node)
        self.faults = []
        spec = device["spec"]
        properties = {} if faults(spec) else properties_of(spec)
        status = device.setdefault("status", {})
        before = status.get("reported") or {}
        reported = {name: held for name, held in before.items() if name in properties}
        for name, readings in self._report.r.items():
            prop = properties.get(name)
            good = []
            for at, value in readings:
                fault = reported_fault(prop, value)
                if fault:
                    self.faults.append((name, fault))
                else:
                    good.append(_reading(at, value))
            if good and prop is not None:
                reported[name] = _merged(reported.get(name) or {}, good, keep_of(prop))
        status["reported"] = reported
        # A report that was under way while the spec changed speaks of an older one.
        generation = max(self._report.gen, int(status.get("observedGeneration") or 0))
        status["observedGeneration"] = generation
        refusal: Object = next((c for c in status.get("conditions") or [] if c.get("type") == ACCEPTED), {})
        if refusal.get("status") != "False" or generation >= int(refusal.get("observedGeneration") or 0):
            text = f"node {self._node} follows generation {generation}"
            set_condition(device, "True", "NodeAccepted", text, self._now(), generation)
        return device


def refused(
    node: str, reason: str, message: str, now: Callable[[], str]
) -> Callable[[Object], Object | None]:
    """The node does not take the device's document."""

    def apply(device: Object) -> Object | None:
        _check_owned(device, node)
        generation = int(device["metadata"].get("generation") or 0)
        changed = set_condition(device, "False", reason or "Refused", message, now(), generation)
        return device if changed else None

    return apply


def set_condition(device: Object, status: str, reason: str, message: str, now: str, generation: int) -> bool:
    """Sets Accepted, about this generation of the spec; the transition time only moves with the status. False when nothing changed."""
    conditions: list[Object] = device.setdefault("status", {}).setdefault("conditions", [])
    held = next((c for c in conditions if c.get("type") == ACCEPTED), None)
    wanted = {
        "type": ACCEPTED,
        "status": status,
        "observedGeneration": generation,
        "reason": reason,
        "message": message[:1024],
    }
    if held is not None and all(held.get(k) == v for k, v in wanted.items()):
        return False
    if held is None:
        held = {}
        conditions.append(held)
    if held.get("status") != status:
        held["lastTransitionTime"] = now
    held.update(wanted)
    return True


def _reading(at_ms: int, value: Any) -> Object:
    time = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
    return {"value": value, "time": time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at_ms % 1000:03d}000Z"}


def _merged(held: Object, new: list[Object], keep: int) -> Object:
    """What was held of a property, and readings that followed, of which some may be known already."""
    known = list(held.get("history") or ())
    if not known and "time" in held:
        known = [{"value": held["value"], "time": held["time"]}]
    times = {reading["time"] for reading in known}
    history = [*known, *(reading for reading in new if reading["time"] not in times)][-keep:]
    return {**history[-1], "history": history} if keep > 1 else dict(history[-1])


def _check_owned(device: Object, node: str) -> None:
    if device["spec"].get("nodeName") != node:
        raise errors.NotFound(DEVICES.resource, device["metadata"]["name"], group=DEVICES.group)
