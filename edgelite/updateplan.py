"""How an agent is replaced by another release of itself: what is fetched, tried, kept and given up. [pure]

Two slots, `a` and `b`, beside what was installed, which nobody changes (the base). A release is fetched into the slot that is not
in use, runs there on trial, and is kept once it has shown that it works; whatever else happens, the node goes back to what ran
before. The record of it (a dict, stored as JSON by `edgelite.updatestore`) is written before what it says is done, so that a power
cut between any two steps leaves one of the two states.

    good   the slot that runs: {"slot","sha256","version"}, None: the base
    base   the base's version when `good` was found to work: where another one was installed since, that one runs
    next   what is being fetched: {"slot","sha256","version","id","deadline","hold"}
    trial  what is on trial: the same, with "starts", how often it was started, and "base" as of its last start
    last   the last update's result: {"id","version","ok","reason","message"}

An update is named by the `id` of its document: one that has failed is not tried again until its document is another one.
Runs on MicroPython.
"""

import hashlib
import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Record = dict[str, Any]

STARTS_MAX = 3
"""Of a trial that ends before it has shown that it works; a power cut counts as one."""
SIZE_MAX = 4 << 20
DEADLINE_MAX_S = 3600
MESSAGE_CHARS_MAX = 500
NO_FIELDS: "Record" = {"good": None, "base": "", "next": None, "trial": None, "last": None}


class UpdateError(Exception):
    """An update is not carried out: `reason` is one CamelCase word, the message says why and what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def parse(body: bytes) -> "Record":
    """The document `agent/update`: {"kind":"AgentUpdate","version","platform","sha256","size","sig", and optionally "downgrade",
    "deadline","hold","attempt"}. Raises UpdateError."""
    try:
        doc = json.loads(body)
        good = (
            _is_version(doc["version"])
            and _is_word(doc["platform"])
            and _is_hex(doc["sha256"], 64)
            and _is_hex(doc["sig"], 128)
            and _is_int(doc["size"], 1, SIZE_MAX)
            and doc.get("downgrade", False) in (True, False)
            and _is_int(doc.get("deadline", 300), 1, DEADLINE_MAX_S)
            and _is_int(doc.get("hold", 10), 0, DEADLINE_MAX_S)
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UpdateError("InvalidDocument", "agent/update is malformed: %r" % (error,))
    if not good:
        raise UpdateError("InvalidDocument", "agent/update: a field has a wrong form or is out of its range")
    found: "Record" = doc
    return found


def identity(body: bytes) -> str:
    """What names an update: the first 16 hex digits of its document's SHA-256."""
    return "".join(["%02x" % byte for byte in hashlib.sha256(body).digest()[:8]])


def statement(doc: "Record") -> bytes:
    """What a release is signed by: nothing that is not in it is believed without the bytes being so."""
    return "\n".join(
        [
            "cloudhub agent release 1",
            doc["version"],
            doc["platform"],
            doc["sha256"],
            str(doc["size"]),
            "downgrade" if doc.get("downgrade") else "",
            "",
        ]
    ).encode()


def key_fault(keys: "list[Any]") -> str:
    """What is wrong with the keys that releases are checked by; "" for nothing."""
    for key in keys:
        if not _is_hex(key, 130) or not key.startswith("04"):
            return "%r is no public key of P-256: 130 hex digits that begin with 04" % (key,)
    return ""


def older(one: str, other: str) -> bool:
    """Is release `one` older than `other`? Numbers between dots are compared; what follows a `-` comes before the release."""
    return _order(one) < _order(other)


def refusal(doc: "Record", running: str, minimum: str) -> "UpdateError | None":
    """Why a release may not replace the running one, whoever has signed it."""
    version = doc["version"]
    if minimum and older(version, minimum):
        text = "release %s is older than %s, the least that this node's config.json allows" % (
            version,
            minimum,
        )
        return UpdateError("TooOld", text)
    if older(version, running) and not doc.get("downgrade"):
        text = "release %s is older than the running %s; publish it with --downgrade where that is wanted" % (
            version,
            running,
        )
        return UpdateError("Downgrade", text)
    return None


def settled(record: "Record", id: str) -> bool:
    """Is nothing to be done about this document, since it was carried out, or given up?"""
    last = record["last"]
    return last is not None and last["id"] == id


def already(record: "Record", id: str, version: str) -> "Record":
    """The wanted release is what runs."""
    return _done(record, id, version, True, "Updated", "release %s runs" % version)


def begun(record: "Record", doc: "Record", id: str) -> "Record":
    """The release is being fetched, into the slot that is not in use."""
    held = record["next"]
    if held is not None and held["id"] == id:
        return record
    good = record["good"]
    wanted = {
        "slot": "b" if good is not None and good["slot"] == "a" else "a",
        "sha256": doc["sha256"],
        "version": doc["version"],
        "id": id,
        "deadline": doc.get("deadline", 300),
        "hold": doc.get("hold", 10),
    }
    return _with(record, next=wanted, trial=None)


def fetched(record: "Record") -> "Record":
    """What was fetched is whole, and lies in its slot: it is on trial from the next start."""
    trial = dict(record["next"])
    trial["starts"], trial["base"] = 0, ""
    return _with(record, next=None, trial=trial)


def failed(record: "Record", reason: str, message: str) -> "Record":
    """What is on trial, or being fetched, is given up."""
    wanted = record["trial"] or record["next"]
    return _done(record, wanted["id"], wanted["version"], False, reason, message)


def late(record: "Record") -> "Record":
    """What is on trial has not shown in time that it works."""
    text = "it was not connected and in step within %d s of its start" % record["trial"]["deadline"]
    return failed(record, "NotConfirmed", text)


def refused(record: "Record", doc: "Record", id: str, error: UpdateError) -> "Record":
    """The document is not carried out."""
    return _done(record, id, doc["version"], False, error.reason, error.message)


def withdrawn(record: "Record") -> "Record":
    """There is no document any more: what was begun is forgotten, what runs stays."""
    return _with(record, next=None, trial=None)


def launch(record: "Record", base: str) -> "tuple[Record, Record | None, bool]":
    """Before anything else of a start: (the record to write first, the slot to run or None for the base, is it on trial).
    base: the installed version."""
    if record["good"] is not None and record["base"] != base:
        record = _with(record, good=None, trial=None, next=None)
    trial = record["trial"]
    if trial is not None and trial["starts"] >= STARTS_MAX:
        text = "it ended %d times before it had shown that it works" % STARTS_MAX
        record = failed(record, "Crashed", text)
    elif trial is not None:
        trial = dict(trial)
        trial["starts"] += 1
        trial["base"] = base
        return _with(record, trial=trial), trial, True
    return record, record["good"], False


def stopped(record: "Record") -> "Record":
    """Somebody has stopped the trial: that start does not count."""
    trial = dict(record["trial"])
    trial["starts"] = max(0, trial["starts"] - 1)
    return _with(record, trial=trial)


def confirmed(record: "Record") -> "Record":
    """What is on trial works: it was connected and in step for as long as it had to be."""
    trial = record["trial"]
    good = {"slot": trial["slot"], "sha256": trial["sha256"], "version": trial["version"]}
    text = "release %s runs from slot %s" % (trial["version"], trial["slot"])
    return _done(
        _with(record, good=good, base=trial["base"]), trial["id"], trial["version"], True, "Updated", text
    )


def damaged(record: "Record") -> "Record":
    """The slot that should run does not hold what was put there. A trial has failed; what was good is fetched again."""
    if record["trial"] is not None:
        return failed(record, "SlotDamaged", "the slot does not hold what was fetched")
    return _with(record, good=None, last=None)


def dump(record: "Record") -> bytes:
    return json.dumps(record).encode()


def load(data: bytes) -> "Record":
    """What `dump` made; of anything else the record of a node that was never updated."""
    try:
        found = json.loads(data)
        for name in ("good", "next", "trial"):
            if found[name] is not None:
                right = found[name]["slot"] in ("a", "b") and _is_hex(found[name]["sha256"], 64)
                if not right or not _is_version(found[name]["version"]):
                    return dict(NO_FIELDS)
        for name in ("next", "trial"):
            one = found[name]
            if one is not None and not (
                _is_hex(one["id"], 16)
                and _is_int(one["deadline"], 1, DEADLINE_MAX_S)
                and _is_int(one["hold"], 0, DEADLINE_MAX_S)
                and (
                    name == "next" or (_is_int(one["starts"], 0, STARTS_MAX) and isinstance(one["base"], str))
                )
            ):
                return dict(NO_FIELDS)
        last = found["last"]
        if last is not None and [
            type(last[name]) for name in ("id", "version", "ok", "reason", "message")
        ] != [
            str,
            str,
            bool,
            str,
            str,
        ]:
            return dict(NO_FIELDS)
        if not isinstance(found["base"], str):
            return dict(NO_FIELDS)
        return dict([(name, found[name]) for name in NO_FIELDS])
    except (ValueError, KeyError, TypeError, AttributeError):
        return dict(NO_FIELDS)


def _done(record: "Record", id: str, version: str, ok: bool, reason: str, message: str) -> "Record":
    last = {
        "id": id,
        "version": version,
        "ok": ok,
        "reason": reason,
        "message": message[:MESSAGE_CHARS_MAX],
    }
    return _with(record, next=None, trial=None, last=last)


def _with(record: "Record", **fields: "Any") -> "Record":
    new = dict(record)
    new.update(fields)
    return new


def _order(version: str) -> "tuple[list[int], int, str]":
    numbers, dash, rest = version.partition("-")
    return ([int(part) if part.isdigit() else 0 for part in numbers.split(".")], 0 if dash else 1, rest)


def _is_version(value: object) -> bool:
    return _is_word(value) and "0" <= str(value)[0] <= "9"


def _is_word(value: object) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= 64:
        return False
    return all([c.isdigit() or c.isalpha() or c in ".-_+" for c in value])


def _is_hex(value: object, digits: int) -> bool:
    return isinstance(value, str) and len(value) == digits and all([c in "0123456789abcdef" for c in value])


def _is_int(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
