"""What really happened, from etcd's own history: every revision since the first, read when all is over.

`read` asks etcd's JSON gateway, so that none of the product's code stands between the history and who judges it; it
needs a store that nobody has compacted. `judge` is pure. Hubs are run by `tests.e2e.traced_hub`, which adds to every
transaction who made it and which fences it compared: that makes the writer of each revision known.

What `judge` holds against a history:

- an epoch is claimed once, by one process, and epochs of a unit grow by one;
- whoever writes under a unit's fence is the process that made the unit's last claim;
- the status of what is bound to a slot is written under a fence of that slot, or of a role;
- the growing number in a pod's status never falls, its containers never restart;
- a pod is marked deleted, and goes, only if the load deleted it.
"""

import base64
import dataclasses
import http.client
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

TRACE = "trace/"
VIOLATIONS_MAX = 200
_OBJECT = re.compile(
    r"obj/(?P<group>[^/]+)/(?P<resource>[^/]+)/(?P<part>[^/]+)/(?P<ns>[^/]+)/(?P<name>[^/]+)$"
)
_EPOCH = re.compile(r"(?:slot|role)/(?P<unit>[^/]+)/epoch$")
_OWNER = re.compile(r"(?:slot|role)/(?P<unit>[^/]+)/owner$")


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One revision: (key below the root, value or None for a delete) of each key that it changed."""

    revision: int
    events: tuple[tuple[str, bytes | None], ...]


def read(endpoint: str, root: str) -> Iterator[Change]:
    """All revisions of `root` (which ends in a slash) up to the present one, oldest first. `endpoint`: host:port. etcd counts the
    versions of each key: what left one out is no history to judge by, and says so."""
    end = root[:-1] + chr(ord(root[-1]) + 1)
    head = int(call(endpoint, "/v3/kv/range", {"key": b64(root)})["header"]["revision"])
    connection = http.client.HTTPConnection(endpoint, timeout=60)
    request = {"key": b64(root), "range_end": b64(end), "start_revision": 1, "fragment": True}
    connection.request("POST", "/v3/watch", json.dumps({"create_request": request}))
    response = connection.getresponse()
    revision, events = 0, list[tuple[str, bytes | None]]()
    versions: dict[str, int] = {}
    try:
        while line := response.readline():
            result = orjson.loads(line)["result"]
            if result.get("canceled"):
                raise AssertionError(f"etcd has compacted its history: {result}")
            for event in result.get("events", ()):
                kv = event["kv"]
                at = int(kv["mod_revision"])
                if at != revision and events:
                    yield Change(revision, tuple(events))
                    events = []
                revision = at
                deleted = event.get("type") == "DELETE"
                key = base64.b64decode(kv["key"]).decode().removeprefix(root)
                version = 0 if deleted else int(kv["version"])
                known = versions.get(key, 0)
                assert version == (0 if deleted else known + 1), (
                    f"etcd's watch has left something out: {key} at revision {at} has version {version} after {known}"
                )
                versions[key] = version
                events.append((key, None if deleted else base64.b64decode(kv.get("value", ""))))
            if revision >= head or (not events and int(result["header"]["revision"]) >= head == 1):
                break
    finally:
        connection.close()
    if events:
        yield Change(revision, tuple(events))


def call(endpoint: str, path: str, body: Any) -> Any:
    connection = http.client.HTTPConnection(endpoint, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        answer = orjson.loads(response.read())
        assert response.status == 200, f"{path}: {response.status} {answer}"
        return answer
    finally:
        connection.close()


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@dataclasses.dataclass(slots=True)
class Claimed:
    """One epoch of one unit. `writer`: who claimed it; `until`: the next claim's revision."""

    unit: str
    epoch: int
    writer: str
    revision: int
    until: int | None = None
    writes: int = 0


class Verdict:
    """What a history was. `violations` are sentences; `claims` by unit, oldest first."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.claims: dict[str, list[Claimed]] = {}
        self.revisions = 0
        self.fenced = 0
        self.moves = 0
        self.released = 0
        self.counters: dict[str, list[tuple[int, str]]] = {}
        """By pod UID: (revision, growing number) of each status stored."""
        self.gone: dict[str, int] = {}
        """By UID of each pod that is not there any more: the revision that took it away."""
        self.not_ready: list[tuple[int, str, str]] = []
        """(revision, node, status) of each Ready condition that left True."""
        self.gaps: list[tuple[str, int, int]] = []
        """(unit, revision at which the owner key went, revision of the claim that followed)."""

    def violation(self, text: str) -> None:
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(text)

    def epoch_at(self, unit: str, revision: int) -> int:
        """The unit's epoch when that revision was written."""
        return max((c.epoch for c in self.claims.get(unit, ()) if c.revision <= revision), default=0)

    def summary(self) -> dict[str, Any]:
        return {
            "revisions": self.revisions,
            "claims": sum(map(len, self.claims.values())),
            "units": len(self.claims),
            "highest epoch": max((c[-1].epoch for c in self.claims.values()), default=0),
            "fenced writes": self.fenced,
            "moves of pods": self.moves,
            "owner keys that went": self.released,
            "ready conditions lost": len(self.not_ready),
            "pods gone": len(self.gone),
        }


def judge(changes: Iterable[Change], deleted: Iterable[str] | None = None, *, leases: bool = True) -> Verdict:
    """See the module. `deleted`: UIDs of the pods that the load deleted or tried to; None: not judged. `leases`: owner
    keys go away with their owner, as they do in etcd."""
    return _Judge(None if deleted is None else frozenset(deleted), leases).run(changes)


class _Judge:
    def __init__(self, deleted: frozenset[str] | None, leases: bool) -> None:
        self.verdict = Verdict()
        self._leases = leases
        self._deleted = deleted
        self._mod: dict[str, int] = {}
        """Mod revision of each epoch key."""
        self._owner: dict[str, bytes] = {}
        self._ended: dict[str, int] = {}
        self._objects: dict[str, Any] = {}
        """The last value of each pod and node, by key."""

    def run(self, changes: Iterable[Change]) -> Verdict:
        for change in changes:
            self.verdict.revisions += 1
            self._change(change)
        return self.verdict

    def _change(self, change: Change) -> None:
        trace = next((orjson.loads(v) for k, v in change.events if k.startswith(TRACE) and v), None)
        writer = f"{trace['member']}/{trace['process']}" if trace else ""
        fences: dict[str, int] = trace["fences"] if trace else {}
        claimed = {k for k, v in change.events if _EPOCH.search(k) and v}
        for key, mod in fences.items():
            if key not in claimed:
                self._fenced(change.revision, key, mod, writer)
        units = {match["unit"] for key in fences if (match := _EPOCH.search(key))}
        for key, value in change.events:
            if match := _EPOCH.search(key):
                self._epoch(change.revision, key, match["unit"], value, writer)
        for key, value in change.events:
            if match := _OWNER.search(key):
                self._owned(change.revision, match["unit"], value)
        self._bound(change, units, writer)

    def _epoch(self, revision: int, key: str, unit: str, value: bytes | None, writer: str) -> None:
        if value is None:
            self.verdict.violation(f"revision {revision} deletes {key}")
            return
        epoch = int(orjson.loads(value)["epoch"])
        claims = self.verdict.claims.setdefault(unit, [])
        if claims and epoch != claims[-1].epoch + 1:
            self.verdict.violation(
                f"revision {revision}: {unit} goes from epoch {claims[-1].epoch} to {epoch}, by {writer}"
            )
        if claims:
            claims[-1].until = revision
        claims.append(Claimed(unit, epoch, writer, revision))
        self._mod[key] = revision

    def _owned(self, revision: int, unit: str, value: bytes | None) -> None:
        if value is None:
            self._owner.pop(unit, None)
            self._ended[unit] = revision
            self.verdict.released += 1
            return
        if unit in self._owner and self._leases:
            self.verdict.violation(f"revision {revision}: {unit} gets an owner while it has one")
        self._owner[unit] = value
        if unit in self._ended:
            self.verdict.gaps.append((unit, self._ended.pop(unit), revision))
        claims = self.verdict.claims.get(unit)
        record = orjson.loads(value)
        if not claims or claims[-1].revision != revision:
            self.verdict.violation(f"revision {revision}: {unit} gets an owner without a new epoch: {record}")
        elif record.get("epoch", claims[-1].epoch) != claims[-1].epoch:
            self.verdict.violation(
                f"revision {revision}: {unit} is owned in another epoch than claimed: {record}"
            )

    def _fenced(self, revision: int, key: str, mod: int, writer: str) -> None:
        self.verdict.fenced += 1
        if self._mod.get(key, 0) != mod:
            self.verdict.violation(
                f"revision {revision}: {writer} wrote under {key} of revision {mod}, claimed anew at {self._mod.get(key)}"
            )
            return
        match = _EPOCH.search(key)
        claims = self.verdict.claims.get(match["unit"]) if match else None
        if claims:
            claims[-1].writes += 1
            if claims[-1].writer != writer:
                self.verdict.violation(
                    f"revision {revision}: {writer} wrote in epoch {claims[-1].epoch} of {claims[-1].unit},"
                    f" which {claims[-1].writer} claimed"
                )

    def _bound(self, change: Change, units: set[str], writer: str) -> None:
        """Pods and Nodes. A pod that is bound moves: a delete and a put of one UID in one revision."""
        puts: dict[str, Any] = {}
        gone: dict[str, Any] = {}
        for key, value in change.events:
            match = _OBJECT.match(key)
            if match is None or match["resource"] not in ("pods", "nodes"):
                continue
            before = self._objects.get(key)
            if value is None:
                if before is not None:
                    gone[before["metadata"]["uid"]] = before
                    del self._objects[key]
                continue
            obj = self._objects[key] = orjson.loads(value)
            puts[obj["metadata"]["uid"]] = obj
            if before is not None and match["part"] != "-":
                self._status(change.revision, match, before, obj, units, writer)
            if match["resource"] == "pods":
                self._pod(change.revision, before, obj)
        for uid, obj in gone.items():
            if uid in puts:
                self.verdict.moves += 1
            elif obj["kind"] == "Pod":
                self.verdict.gone[uid] = change.revision
                self._not_asked(change.revision, obj, "removed", writer)

    def _status(
        self, revision: int, match: re.Match[str], before: Any, obj: Any, units: set[str], writer: str
    ) -> None:
        if _reported(before) == _reported(obj):
            return
        part = match["part"]
        roles = {u for u in units if not u.isdigit()}
        if part not in units and not roles:
            self.verdict.violation(
                f"revision {revision}: {writer} changed the status of {match['resource']}/{match['name']} in slot {part}"
                f" under {sorted(units) or 'no fence'}: {before.get('status')} -> {obj.get('status')}"
            )
        if match["resource"] == "nodes" and _ready(before) == "True" and _ready(obj) != "True":
            self.verdict.not_ready.append((revision, match["name"], _ready(obj)))

    def _pod(self, revision: int, before: Any, obj: Any) -> None:
        meta, status = obj["metadata"], obj.get("status", {})
        if meta.get("deletionTimestamp") and not (before or {}).get("metadata", {}).get("deletionTimestamp"):
            self._not_asked(revision, obj, "marked deleted", "")
        restarts = sum(c.get("restartCount", 0) for c in status.get("containerStatuses") or ())
        if restarts:
            self.verdict.violation(f"revision {revision}: pod {meta['name']} shows {restarts} restarts")
        if status.get("phase") == "Failed" and not meta.get("deletionTimestamp"):
            self.verdict.violation(
                f"revision {revision}: pod {meta['name']} is {status.get('phase')} {status.get('reason')}"
            )
        count = status.get("message", "")
        if count.isdigit():
            seen = self.verdict.counters.setdefault(meta["uid"], [])
            if seen and count < seen[-1][1]:
                self.verdict.violation(
                    f"revision {revision}: the status of pod {meta['name']} falls from {seen[-1][1]} to {count}"
                )
            if not seen or seen[-1][1] != count:
                seen.append((revision, count))

    def _not_asked(self, revision: int, obj: Any, what: str, writer: str) -> None:
        if self._deleted is not None and obj["metadata"]["uid"] not in self._deleted:
            self.verdict.violation(
                f"revision {revision}: pod {obj['metadata']['name']} was {what}, which nobody had asked for {writer}"
            )


def _reported(obj: Any) -> dict[str, Any]:
    """The status without what the API sets by itself, for whoever writes the object."""
    return {k: v for k, v in (obj.get("status") or {}).items() if k != "qosClass"}


def _ready(node: Any) -> str:
    held = node.get("status", {}).get("conditions") or ()
    return next((str(c["status"]) for c in held if c["type"] == "Ready"), "")


def judge_stored(verdict: Verdict, nodes: dict[str, Any]) -> list[str]:
    """Violations of I3 in what the hub acknowledged to simulated agents (`ha_fleet.HaNode.dump`): a status that was
    STORED at a revision is in the history up to it, itself or a newer one, and was not written in a later epoch than
    its connection's."""
    found: list[str] = []
    for name, node in nodes.items():
        for number, kind, key, count, slot, epoch, revision, reason in node["stored"]:
            uid = key.rsplit("/", 1)[-1]
            if reason:
                if kind == "pod" and uid not in verdict.gone:
                    found.append(
                        f"{name}: report {number} of {key} was refused ({reason}), and the pod is still there"
                    )
                continue
            if kind == "gone" and uid not in verdict.gone:
                found.append(f"{name}: {key} was acknowledged as gone and is still there")
            if kind != "pod" or not count:
                continue
            if verdict.gone.get(uid, revision + 1) <= revision:
                continue
            writes = [(r, c) for r, c in verdict.counters.get(uid, ()) if r <= revision and c >= count]
            if not writes:
                found.append(
                    f"{name}: status {count} of {key} was acknowledged at revision {revision} in epoch {epoch} and is"
                    f" not in the store, which has (revision, number) {verdict.counters.get(uid, [])[:5]}; the pod went"
                    f" at {verdict.gone.get(uid)}"
                )
            elif verdict.epoch_at(f"{slot:04d}", writes[0][0]) > epoch:
                found.append(
                    f"{name}: status {count} of {key} was acknowledged in epoch {epoch} of slot {slot} and written in"
                    f" epoch {verdict.epoch_at(f'{slot:04d}', writes[0][0])}"
                )
    return found
