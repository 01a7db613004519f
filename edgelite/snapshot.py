"""What a data directory tells about its agent, read without changing anything: with the agent running, and without.

The journal is appended to and replaced as a whole, so reading it beside a running agent shows it as it was at some moment.
"""

import json
import os

from edgelite import credentials, statusfile
from edgelite.config import PidFile, load_config, load_membership
from edgelite.containers import RUNNING, STOPPING
from edgelite.desired import DOCUMENT, decode_document
from edgelite.files import Files
from edgelite.journal import BYTES_MAX, Journal, JournalFormat
from edgelite.staticpods import manifests
from edgelite.upstream import PREFIX as UPSTREAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ENDING = "run/workloads/doc/"
STATES = "run/workloads/pod/"


class ReadOnly(OSError):
    """Somebody else's journal is not written to."""


class ReadOnlyFiles(Files):
    """Reads one journal as it would be opened after a crash, and refuses to write, which leaves the map as it was read."""

    def exists(self, path: str) -> bool:
        return Files.exists(self, path) or Files.exists(self, path + ".new")

    def read(self, path: str) -> bytes:
        # Between FAT's removal of the old file and the rename of the new one there is only the latter.
        return Files.read(self, path if Files.exists(self, path) else path + ".new")

    def create(self, path: str) -> "Any":
        raise ReadOnly("%s is only read" % path)

    append = create

    def replace(self, source: str, target: str) -> None:
        raise ReadOnly("%s is only read" % target)

    def remove(self, path: str) -> None:
        raise ReadOnly("%s is only read" % path)


class Snapshot:
    """pid: of the running agent, None when none runs; status: what it last said (see `Agent.write_status`), {} when it never
    did; journal: None where there is none, or `journal_trouble` says why it cannot be read."""

    def __init__(self, data_dir: str) -> None:
        """Raises ConfigError (node.json, config.json), OSError (the directory)."""
        self.data_dir = data_dir
        os.listdir(
            data_dir
        )  # says who may not read it, before a missing file is taken for one that is not there
        self.membership = load_membership(data_dir)
        self.config = load_config(data_dir)
        self.pid = PidFile(data_dir).holder()
        self.status: "dict[str, Any]" = {}
        self.status_trouble = ""
        try:
            self.status = statusfile.read(data_dir)
        except (OSError, ValueError) as error:
            self.status_trouble = str(error)
        self.journal: "Journal | None" = None
        self.journal_trouble = ""
        path = os.path.join(data_dir, "journal")
        if ReadOnlyFiles().exists(path):
            try:
                self.journal = Journal(ReadOnlyFiles(), path)
            except (OSError, JournalFormat) as error:
                self.journal_trouble = str(error)

    def certificate(self) -> "Any":
        """Of this node: `not_before`, `not_after`, `uris`. Raises EnrollError."""
        return credentials.certificate(self.data_dir)

    def pods(self) -> "list[dict[str, Any]]":
        """[{"namespace", "name", "uid", "phase", "reason", "message", "containers": [{"name", "state", "ready", "restarts",
        "reason"}]}], sorted by namespace and name. Entries that make no sense are left out: the agent drops them too."""
        found = {}
        for doc in self._documents():
            try:
                state = self.journal.get(STATES + doc["uid"]) if self.journal is not None else None
                found[doc["uid"]] = _pod(doc, json.loads(state or b"{}"))
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                continue
        return sorted(found.values(), key=lambda pod: (pod["namespace"], pod["name"]))

    def _documents(self) -> "list[dict[str, Any]]":
        """Of the pods that are desired, of those that are ending, and of static ones; whatever the bytes say."""
        found = []
        if self.journal is not None:
            texts = [decode_document(value)[1] for _, value in self.journal.items(DOCUMENT + "pod/")]
            texts += [value for _, value in self.journal.items(ENDING)]
            for text in texts:
                try:
                    found.append(json.loads(text))
                except ValueError:
                    continue  # refused at once: no bytes of it run
        directory = self.config.static_pods or os.path.join(self.data_dir, "manifests")
        node = self.membership.node if self.membership is not None else ""
        return found + manifests(directory, node)

    def journal_facts(self) -> "dict[str, Any]":
        """{"bytes", "bytes_max", "documents", "unsent"}, or {"trouble"}."""
        if self.journal is None:
            return {"trouble": self.journal_trouble} if self.journal_trouble else {"bytes": 0}
        facts: "dict[str, Any]" = {
            "bytes": self.journal.file_bytes,
            "bytes_max": BYTES_MAX,
            "documents": len(self.journal.keys(DOCUMENT)),
            "unsent": len(self.journal.keys(UPSTREAM)),
        }
        if self.journal.salvaged:
            facts["trouble"] = self.journal.salvaged
        return facts

    def conditions(self) -> "list[dict[str, str]]":
        """[{"type", "reason", "message"}] of what the node has to complain of."""
        stored = self.journal.get("meta/conditions") if self.journal is not None else None
        try:
            known = json.loads(stored or b"{}")
            return [
                {"type": kind, "reason": known[kind]["reason"], "message": known[kind]["message"]}
                for kind in sorted(known)
                if known[kind]["status"] == "True"
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            return []


def _pod(doc: "dict[str, Any]", state: "dict[str, Any]") -> "dict[str, Any]":
    phase, reason, message = state.get("phase") or ["", "", ""]
    spec = doc["spec"]
    containers = []
    for one in (spec.get("initContainers") or []) + spec["containers"]:
        known = (state.get("c") or {}).get(one["name"]) or {}
        attempt = int(known.get("a", -1))
        ended = known.get("e") or {}
        containers.append(
            {
                "name": one["name"],
                "state": known.get("s", "waiting"),
                "ready": known.get("rd") is True,
                "restarts": max(0, attempt - 1 if known.get("n") else attempt),
                "attempt": attempt,
                "tty": one.get("tty") is True,
                "reason": (known.get("why") or [""])[0] or ended.get("reason") or "",
                "exit_code": ended.get("exitCode"),
            }
        )
    if not phase:  # only a final one is written down
        phase = "Running" if any(one["state"] in (RUNNING, STOPPING) for one in containers) else "Pending"
    return {
        "namespace": doc["ns"],
        "name": doc["name"],
        "uid": doc["uid"],
        "phase": phase,
        "reason": reason,
        "message": message,
        "containers": containers,
    }
