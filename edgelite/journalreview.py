"""Whether what the journal holds is what this agent writes: records whose checksum is right may have been tampered with. [pure]

Every reader of the journal trusts the shape of what it reads, and one that fails at start would fail at every start. So
entries of another shape are found here first, and dropped as damage is: the agent takes a new incarnation, says so, and gets
the documents again, since its digest differs. A document whose bytes are not those of its version is one of them. What is
sealed is passed over: whoever opens the seal finds out.

Not guaranteed: that nobody forged an entry that is right in itself. The hub's digest finds a forged document and replaces
it; claims and revisions that the hub does not know put the node on hold (I9).
"""

import json
from binascii import unhexlify

from edgelite.desired import CLAIM, DOCUMENT, REVISION, decode_document, valid_key, version_of
from edgelite.upstream import COUNTER, PREFIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SHOWN_MAX = 5
NUMBER_MAX = 1 << 53
NUMBER = (int, float)
TEXT_OR_NONE = (str, type(None))
OBJECT_OR_NONE = (dict, type(None))

CLAIM_FIELDS = {"store": str, "gen": int, "slot": int, "epoch": int, "id": str}
ENTRY_FIELDS = {"n": int, "t": str, "k": str, "b": dict}
INCARNATION_FIELDS = {"inc": str, "fingerprint": str, "boot": int}
CONDITION_FIELDS = {"status": str, "reason": str, "message": str, "since": NUMBER}
POD_FIELDS = {
    "boot": str, "start": NUMBER, "phase": list, "init": bool, "box": bool, "conds": dict, "sent": str, "gone": bool, "c": dict,
}  # fmt: skip
CONTAINER_FIELDS = {
    "a": int, "n": bool, "s": str, "i": TEXT_OR_NONE, "b": NUMBER, "r": NUMBER, "why": list, "t": NUMBER, "h": str, "ii": str,
    "e": OBJECT_OR_NONE, "l": OBJECT_OR_NONE, "st": bool, "rd": bool,
}  # fmt: skip
LAUNCH_FIELDS = {"launch": str, "dir": str, "boot": str, "shim": list, "started": NUMBER}


class _Fault(Exception):
    """What is wrong with an entry."""


def faults(items: "list[tuple[str, bytes]]") -> "list[tuple[str, str]]":
    """(name, what is wrong) of the journal's entries that no agent writes."""
    found = []
    for name, value in items:
        try:
            _check(name, value)
        except _Fault as fault:
            found.append((name, str(fault)))
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            OverflowError,
            RuntimeError,
        ) as error:
            # RuntimeError: JSON nested too deep, on either Python.
            found.append((name, "it makes no sense: %r" % (error,)))
    return found


def summary(found: "list[tuple[str, str]]") -> str:
    """What to tell people."""
    shown = "; ".join(["%s: %s" % pair for pair in found[:SHOWN_MAX]])
    more = "" if len(found) <= SHOWN_MAX else " and %d more" % (len(found) - SHOWN_MAX)
    return "%d entries of the journal were not written by this agent and are dropped: %s%s" % (
        len(found),
        shown[:800],
        more,
    )


def _check(name: str, value: bytes) -> None:
    if name.startswith(DOCUMENT):
        _document(name[len(DOCUMENT) :], value)
    elif name.startswith(PREFIX):
        entry = _object(value, ENTRY_FIELDS)
        if not 0 <= entry["n"] <= NUMBER_MAX:
            raise _Fault("the number is out of range")
    elif name == CLAIM:
        _object(value, CLAIM_FIELDS)
    elif name in (REVISION, COUNTER):
        if not 0 <= int(value) <= NUMBER_MAX:
            raise _Fault("the number is out of range")
    elif name == "meta/incarnation":
        if len(_object(value, INCARNATION_FIELDS)["inc"]) != 32:
            raise _Fault("no incarnation")
    elif name == "meta/conditions":
        for condition in _object(value, {}).values():
            _fields(condition, CONDITION_FIELDS)
    elif name == "meta/address":
        value.decode()
    elif name.startswith("run/workloads/pod/"):
        _pod(value)
    elif name.startswith("run/workloads/doc/"):
        doc = _object(value, {"kind": str, "ns": str, "name": str, "uid": str, "spec": dict})
        for container in doc["spec"]["containers"] + (doc["spec"].get("initContainers") or []):
            _fields(container, {"name": str})
    elif name.startswith("run/twins/"):
        _twin(value)
    elif name == "run/workloads/vault":
        for wrap in json.loads(value):
            unhexlify(wrap.encode())
    elif name.startswith("run/runtime/"):
        _launch(name[len("run/runtime/") :], value)


def _document(key: str, value: bytes) -> None:
    if key.startswith("secret/") and value[:1] != b"{":
        return  # sealed
    header, body = decode_document(value)
    if not valid_key(key) or not isinstance(header, dict) or not isinstance(header["v"], str):
        raise _Fault("its head is no document's")
    refusal = header.get("x")
    if refusal is not None:
        if not isinstance(refusal, list) or [type(part) for part in refusal[:2]] != [str, str]:
            raise _Fault("its head is no refusal's")
    elif version_of(body) != header["v"]:
        raise _Fault("its bytes are not those of its version")


def _pod(value: bytes) -> None:
    record = _object(value, POD_FIELDS)
    if len(record["phase"]) != 3 or not all(isinstance(part, str) for part in record["phase"]):
        raise _Fault("phase is none")
    for condition in record["conds"].values():
        if not isinstance(condition, list) or [type(part) for part in condition] != [str, str]:
            raise _Fault("a condition is none")
    for container in record["c"].values():
        _fields(container, CONTAINER_FIELDS)
        if len(container["why"]) != 2:
            raise _Fault("why is none")


def _twin(value: bytes) -> None:
    record = _object(value, {"told": int, "v": dict})
    for last, waiting in record["v"].values():
        for at, reading in [last] + waiting:
            if (
                isinstance(at, bool)
                or not isinstance(at, int)
                or not isinstance(reading, (bool, int, float, str))
            ):
                raise _Fault("a report is none")


def _launch(key: str, value: bytes) -> None:
    """A record of the process runtime."""
    _, _, attempt = key.split("/")
    record = _object(value, LAUNCH_FIELDS)
    pid, start = record["shim"]
    if int(attempt) < 0 or int(pid) < 0 or int(start) < 0:
        raise _Fault("a number is out of range")
    if "exit" in record:
        code, reason, message, finished_at = record["exit"]
        _fields(
            {"c": code, "r": reason, "m": message, "f": finished_at},
            {"c": int, "r": str, "m": str, "f": NUMBER},
        )


def _object(value: bytes, fields: "dict[str, Any]") -> "dict[str, Any]":
    found = json.loads(value)
    _fields(found, fields)
    return found  # type: ignore[no-any-return]


def _fields(found: "Any", fields: "dict[str, Any]") -> None:
    if not isinstance(found, dict):
        raise _Fault("an object is expected")
    for name in fields:
        wanted = fields[name]
        if name not in found or not isinstance(found[name], wanted):
            raise _Fault("%s is missing or of another type" % name)
        if isinstance(found[name], bool) and wanted is not bool:
            raise _Fault("%s is of another type" % name)
