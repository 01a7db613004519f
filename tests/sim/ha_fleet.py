"""Many agents in one process, with everything of edgelite's channel but disks and workloads.

    python -m tests.sim.ha_fleet < commands        # `tests.sim.ha_client` starts it and speaks to it

The real `Link` and `Session` run on edgelite's own loop, over real TLS, so that redirects, several addresses, back-off,
numbering and claims are the product's. The journal is a dict. A pod's document "runs" at once and is reported Running,
again and again with a growing number in its status, and as gone once its document says so.

Each node keeps a diary of what was said to it and under which claim, and what must never happen is an anomaly:
an epoch below one that was accepted, a frame that goes back behind what another owner had said, a pod that is started
a second time.
"""

import collections
import hashlib
import json
import os
import random
import ssl
import sys
import time
from collections.abc import Generator
from typing import Any, TextIO

from edgelite import wire
from edgelite.actions import Apply, Bundle, Delivered, Renewed, Welcomed
from edgelite.console import Log
from edgelite.desired import DOCUMENT, Desired, digest_of
from edgelite.link import Link, Owner
from edgelite.loop import POLLIN, Loop, Wait
from edgelite.session import Identity, Session
from edgelite.upstream import Upstream
from tests.sim.enrolling import Kept, enrol

Document = dict[str, Any]
BOARD = "sim"
"""Label cloudhub.dev/board of these nodes, for node selectors."""
ANOMALIES_MAX = 1000
CHANGES_MAX = 5000
BEAT_S = 0.25


def report_body() -> Document:
    """The `node` entry: room for a hundred pods."""
    room = {"cpu": "64", "memory": "64Gi", "pods": "110"}
    return {
        "capacity": room,
        "allocatable": room,
        "nodeInfo": {"operatingSystem": "linux", "architecture": "amd64", "kubeletVersion": "sim"},
        "addresses": [],
        "labels": {"cloudhub.dev/board": BOARD, "kubernetes.io/os": "linux"},
        "conditions": [],
    }


class Diary:
    """What was said to one node. Everything is JSON. What must not happen is noted in `anomalies`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.welcomes: list[list[Any]] = []
        """[unix s, slot, epoch, claim id, sync, reason to hold]"""
        self.stored: list[list[Any]] = []
        """[number, type, key, growing number of the status, slot, epoch, revision, reason of a refusal]"""
        self.changes: collections.deque[list[Any]] = collections.deque(maxlen=CHANGES_MAX)
        """[unix s, "SET" or "DEL", key, slot, epoch, revision], the latest"""
        self.ending: dict[str, int] = {}
        """Pods whose document says that they are being deleted, and the revision that said it first."""
        self.sets = self.dels = 0
        self.anomalies: list[str] = []
        self.slot = self.epoch = 0
        self._ids: dict[tuple[int, int], str] = {}
        self._highest: dict[int, int] = {}
        self._floor = 0
        self._said = 0

    def welcomed(self, fields: Document, accepted: bool) -> None:
        """A WELCOME; `accepted`: the session goes live on it."""
        slot, epoch, claim = fields.get("slot"), fields.get("epoch"), fields.get("claim")
        self.welcomes.append([time.time(), slot, epoch, claim, fields["sync"], fields.get("reason", "")])
        if fields["sync"] == "hold" or not accepted:
            return
        known = self._ids.setdefault((slot, epoch), claim)
        if known != claim:
            self.anomaly(f"epoch {epoch} of slot {slot} was claimed as {known} and as {claim}")
        if epoch < self._highest.get(slot, 0):
            self.anomaly(f"epoch {epoch} of slot {slot} was accepted after epoch {self._highest[slot]}")
        if epoch > self._highest.get(slot, 0):
            # Whoever speaks in a later epoch has loaded all that was said in earlier ones.
            self._floor = self._said
        self._highest[slot] = max(self._highest.get(slot, 0), epoch)
        self.slot, self.epoch = slot, epoch

    def changed(self, what: str, fields: Document) -> None:
        """A SET or DEL."""
        key, revision = fields["k"], fields["r"]
        self.changes.append([time.time(), what, key, self.slot, self.epoch, revision])
        if revision < self._floor:
            self.anomaly(
                f"{what} of {key} at revision {revision} in epoch {self.epoch}: an earlier owner had said {self._floor}"
            )
        self._said = max(self._said, revision)

    def anomaly(self, text: str) -> None:
        if len(self.anomalies) < ANOMALIES_MAX:
            self.anomalies.append(f"{self.name}: {text}")


class DiarySession(Session):
    """The agent's session, with a diary beside it."""

    diary: Diary

    def receive(self, kind: int, stream: int, body: bytes, now: float) -> list[Any]:
        was = self.state
        actions = super().receive(kind, stream, body, now)
        diary = self.diary
        if kind == wire.WELCOME and was == "hello":
            diary.welcomed(json.loads(body), self.state == "live")
        elif self.state == "live":
            if kind == wire.SET:
                fields = json.loads(wire.split_set_body(body)[0])
                diary.sets += 1
                diary.changed("SET", fields)
            elif kind == wire.DEL:
                fields = json.loads(body)
                diary.dels += 1
                diary.changed("DEL", fields)
            elif kind == wire.STORED:
                revision = int(json.loads(body).get("r") or 0)
                for action in actions:
                    if isinstance(action, Delivered):
                        self._delivered(action, revision)
        return actions

    def _delivered(self, action: Delivered, revision: int) -> None:
        entry = json.loads(action.entry)
        count = entry["b"].get("message", "") if action.kind == "pod" else ""
        self.diary.stored.append(
            [entry["n"], action.kind, action.key, count, self.diary.slot, self.diary.epoch, revision, action.reason]
        )  # fmt: skip


class HaNode(Owner):
    """One agent."""

    def __init__(self, fleet: "HaFleet", name: str, kept: Kept, boot: int = 1) -> None:
        self.fleet = fleet
        self.name = name
        self.diary = Diary(name)
        self.desired = Desired("sim")
        self.upstream = Upstream()
        self.journal: dict[str, bytes] = {}
        self.running: dict[str, Document] = {}
        """The last status reported of each pod that runs."""
        self.link = Link(fleet.loop, fleet.log, self, fleet.edges_for(name), fleet.server_name)
        self.kept = kept
        self._inc = hashlib.sha256(f"{name} {os.urandom(8).hex()}".encode()).hexdigest()[:32]
        self._boot = boot
        self._conn = 0
        self._count = 0
        self._stopped: set[str] = set()
        self._reported_node = False

    # What the link needs

    def context(self) -> ssl.SSLContext:
        return self.kept.context

    def new_session(self, local_address: str) -> Session:
        self._conn += 1
        session = DiarySession(
            self.desired,
            self.upstream,
            Identity(self._inc, self._boot, self._conn, trust=self.kept.trust),
            lambda key, body: None,
            self.journal.get,
        )
        session.diary = self.diary
        return session

    def journal_session(self) -> None:
        session = self.link.session
        for key, value in [] if session is None else session.writes():
            if value is None:
                self.journal.pop(key, None)
            else:
                self.journal[key] = value

    def settle(self) -> None:
        self.journal_session()
        self.upstream.committed()
        if self.link.session is not None:
            self.link.perform(self.link.session.commit(self.fleet.loop.now()))

    def logs(self, uid: str, container: str, options: Document, out: Any) -> Any:
        raise NotImplementedError("simulated pods write no logs")

    def chance(self) -> float:
        return self.fleet.rng.random()

    def perform(self, action: Any) -> None:
        if isinstance(action, Apply):
            if action.key.startswith("pod/"):
                self._pod(action.key, action.body)
        elif isinstance(action, (Renewed, Bundle)):
            self._install(action)
        elif isinstance(action, Welcomed):
            if action.hold:
                return
            if not self._reported_node or action.resync:
                self._reported_node = True
                self.upstream.add("node", "node", report_body())
            if action.resync:
                for key in list(self.running):
                    self.report_status(key)

    def _install(self, action: Renewed | Bundle) -> None:
        session = self.link.session
        if isinstance(action, Renewed):
            self.kept.install(action.cert, action.bundle)
        else:
            self.kept.install("", action.roots)
        self.link.perform(session.installed(self.kept.trust, self.kept.mark))
        if isinstance(action, Bundle) and action.renew:
            self.link.perform(session.renew(self.kept.request()))

    # Pods

    def _pod(self, key: str, body: bytes | None) -> None:
        if body is None:
            if self.running.pop(key, None) is not None:
                self._stopped.add(key)
            return
        document = json.loads(body)
        if "del" in document:
            self.diary.ending.setdefault(key, self.desired.revision)
            self.running.pop(key, None)
            self._stopped.add(key)
            self.upstream.add("gone", key, {})
        elif key not in self.running:
            if key in self._stopped:
                self.diary.anomaly(f"{key} was started again after it had been stopped")
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self.running[key] = {
                "phase": "Running",
                "startTime": now,
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
                "containerStatuses": [
                    {"name": c["name"], "ready": True, "started": True, "restartCount": 0, "image": "none",
                     "imageID": "", "state": {"running": {"startedAt": now}}}
                    for c in document["spec"]["containers"]
                ],
            }  # fmt: skip
            self.report_status(key)

    def report_status(self, key: str) -> None:
        """The pod's status with the next growing number, as `message`."""
        self._count += 1
        self.running[key]["message"] = f"{self._count:08d}"
        self.upstream.add("pod", key, self.running[key])

    def push(self) -> None:
        """Sends what was reported since."""
        self.settle()

    # What a test asks

    def brief(self) -> Document:
        return {
            "state": self.link.state,
            "detail": self.link.detail,
            "digest": digest_of(self.desired.versions),
            "waiting": len(self.upstream),
            "slot": self.diary.slot,
            "epoch": self.diary.epoch,
            "trust": self.kept.trust,
            "issuer": self.kept.issuer,
        }

    def dump(self) -> Document:
        claim, diary = self.desired.claim, self.diary
        return {
            **self.brief(),
            "docs": self.desired.versions,
            "held": sorted(k.removeprefix(DOCUMENT) for k in self.journal if k.startswith(DOCUMENT)),
            "claim": None if claim is None else claim.as_json(),
            "revision": self.desired.revision,
            "running": {key: status["message"] for key, status in self.running.items()},
            "welcomes": diary.welcomes,
            "stored": diary.stored,
            "changes": list(diary.changes),
            "dels": diary.dels,
            "ending": diary.ending,
            "sets": diary.sets,
            "anomalies": diary.anomalies,
            "refused": {k: list(v) for k, v in self.desired.refusals.items()},
        }


class CountingLog(Log):
    """Counts why connections ended instead of writing it; errors are written."""

    def __init__(self) -> None:
        super().__init__("error")
        self.ended: collections.Counter[str] = collections.Counter()
        self.notes: collections.Counter[str] = collections.Counter()

    def warning(self, message: str, **fields: Any) -> None:
        if "code" in fields:
            self.ended[str(fields["code"])] += 1
        elif len(self.notes) < ANOMALIES_MAX:
            self.notes[message] += 1


class HaFleet:
    """The nodes of this process and the commands from its standard input."""

    def __init__(self, spec: Document) -> None:
        self.loop = Loop()
        self.log = CountingLog()
        self.rng = random.Random(spec["seed"])
        self.server_name: str = spec["server_name"]
        self.statuses_per_s = float(spec["statuses_per_s"])
        self._edges: list[str] = spec["edges"]
        self.nodes: dict[str, HaNode] = {}
        for name in spec["names"]:
            cert, key = enrol(spec["edges"], spec["token"], spec["root"], self.server_name, name)
            self.nodes[name] = HaNode(self, name, Kept(cert, key, [spec["root"]]))

    def edges_for(self, name: str) -> str:
        """The addresses of the hub's replicas, beginning with another one for each node."""
        first = self.rng.randrange(len(self._edges))
        return ",".join(self._edges[first:] + self._edges[:first])

    def run(self, commands: TextIO, answers: TextIO) -> None:
        for node in self.nodes.values():
            node.link.start()
        self.loop.spawn(self._beat(), "beat")
        self.loop.spawn(self._obey(commands, answers), "commands")
        print(json.dumps({"ready": len(self.nodes)}), file=answers, flush=True)
        self.loop.run()
        self.loop.close()

    def _beat(self) -> "Generator[Wait, bool, None]":
        """Statuses that change: `statuses_per_s` over all nodes."""
        owed = 0.0
        while True:
            yield Wait(-1, 0, self.loop.now() + BEAT_S)
            owed += self.statuses_per_s * BEAT_S
            busy = [node for node in self.nodes.values() if node.running]
            while owed >= 1 and busy:
                owed -= 1
                node = self.rng.choice(busy)
                node.report_status(self.rng.choice(list(node.running)))
                node.push()
            owed = min(owed, 1.0) if not busy else owed

    def _obey(self, commands: TextIO, answers: TextIO) -> "Generator[Wait, bool, None]":
        """One command per line, one line of JSON as answer; the end of input ends the fleet."""
        os.set_blocking(commands.fileno(), False)
        pending = b""
        while True:
            yield Wait(commands.fileno(), POLLIN, None)
            try:
                data = os.read(commands.fileno(), 65536)
            except BlockingIOError:
                continue
            if not data:
                self.loop.stop()
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                print(json.dumps(self._answer(line.decode())), file=answers, flush=True)

    def _answer(self, command: str) -> Document:
        word, _, rest = command.partition(" ")
        if word == "brief":
            return {name: node.brief() for name, node in self.nodes.items()}
        if word == "dump":
            nodes = {name: node.dump() for name, node in self.nodes.items()}
            return {"nodes": nodes, "ended": dict(self.log.ended), "notes": dict(self.log.notes)}
        if word == "statuses":
            self.statuses_per_s = float(rest)
        elif word == "again":
            for node in self.nodes.values():
                node.link.again()
        else:
            return {"error": f"unknown command {command!r}"}
        return {}


if __name__ == "__main__":
    HaFleet(json.loads(sys.stdin.buffer.raw.readline())).run(sys.stdin, sys.stdout)  # type: ignore[attr-defined]
