"""Static pods: manifests in a directory of this machine, which run without the hub and whatever it says.

A manifest is a Pod as JSON (`kubectl create --dry-run=client -o json` writes one) in a file `*.json`. As on a kubelet the pod is called
`<name>-<node>`, its UID is a hash of node, file and content (so a changed file is another pod: the old one is stopped, the new one
started), and it may refer to no ConfigMap, Secret or service account. The hub is told, so that it shows a mirror pod; deleting that
changes nothing here: removing the file does.

Reports: type `static`, key `static/<namespace>/<name>`, body {"uid","pod":{metadata, spec},"status"}, or {"gone": true}. Which keys the
hub was told of is kept in the store, so that a manifest removed while no agent ran is told, too.

Bounds: FILES_MAX manifests of FILE_BYTES_MAX each; the agent looks at the directory every 10 s.
"""

import json
import os

from edgelite.dates import rfc3339
from edgelite.desired import compact, hexhash
from edgelite.payload import references
from edgelite.podreview import faults, is_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from edgelite.console import Log
    from edgelite.runtimes.base import State

FILES_MAX = 64
FILE_BYTES_MAX = 128 << 10  # the whole manifest travels in a report
SOURCE, HASH = "kubernetes.io/config.source", "kubernetes.io/config.hash"


class BadManifest(Exception):
    """A file that is no static pod; the message says why."""


def document(text: bytes, file: str, node: str, created: str) -> "dict[str, Any]":
    """The Pod document of a manifest. file: its name; created: RFC 3339. Raises BadManifest."""
    try:
        manifest = json.loads(text)
        meta, spec = manifest["metadata"], manifest["spec"]
        name, namespace = meta["name"], meta.get("namespace") or "default"
        labels, annotations = dict(meta.get("labels") or {}), dict(meta.get("annotations") or {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadManifest("not a Pod as JSON: %r" % error)
    if manifest.get("kind") != "Pod" or not is_name(name) or not is_name(namespace):
        raise BadManifest("kind has to be Pod, metadata.name and .namespace plain names")
    uid = hexhash(compact([node, file]) + text)[:32]
    annotations[SOURCE], annotations[HASH] = "file", uid
    doc = {
        "kind": "Pod",
        "ns": namespace,
        "name": "%s-%s" % (name, node),
        "uid": uid,
        "labels": labels,
        "annotations": annotations,
        "created": created,
        "spec": spec,
    }
    fault = faults(doc, key_of(doc))
    if fault is not None:
        raise BadManifest(fault)
    try:
        refs = sorted(references(doc))
    except (KeyError, TypeError, AttributeError) as error:
        raise BadManifest("spec makes no sense: %r" % error)
    if refs:
        raise BadManifest("a static pod may not refer to %s" % ", ".join(r.rpartition("/")[0] for r in refs))
    return doc


def key_of(doc: "dict[str, Any]") -> str:
    return "pod/%s/%s/%s" % (doc["ns"], doc["name"], doc["uid"])


def _told_key(key: str) -> str:
    """Under which the hub is told of a pod with this document key."""
    return "static/" + "/".join(key.split("/")[1:3])


def manifests(directory: str, node: str) -> "list[dict[str, Any]]":
    """The Pod documents of the manifests there, for who only looks: without those that are none."""
    try:
        names = sorted(n for n in os.listdir(directory) if n.endswith(".json") and n[0] != ".")
    except OSError:
        return []
    found = []
    for name in names[:FILES_MAX]:
        try:
            found.append(_read_document(directory, name, node))
        except (BadManifest, OSError):
            continue  # the agent's log says why it does not run
    return found


def _read_document(directory: str, name: str, node: str) -> "dict[str, Any]":
    with open(os.path.join(directory, name), "rb") as f:
        text = f.read(FILE_BYTES_MAX + 1)
        modified = os.fstat(f.fileno()).st_mtime
    if len(text) > FILE_BYTES_MAX:
        raise BadManifest("more than %d bytes" % FILE_BYTES_MAX)
    return document(text, name, node, rfc3339(modified))


class StaticPods:
    """See the module. admit, set, delete: as `Workloads` has them; report(type, key, body) queues an upstream entry."""

    def __init__(
        self,
        directory: str,
        node: str,
        store: "State",
        workloads: "Any",
        report: "Callable[[str, str, dict[str, Any]], None]",
        log: "Log",
    ) -> None:
        self._directory = directory
        self._node = node
        self._store = store
        self._workloads = workloads
        self._report = report
        self._log = log
        self._docs: "dict[str, dict[str, Any]]" = {}  # by document key
        self._refused: "dict[str, str]" = {}  # file -> what was said of it
        self._files: "dict[str, str]" = {}  # document key -> file
        self._told = {key for key, _ in store.items()}

    def __contains__(self, key: str) -> bool:
        """Whether this document key is, or was until just now, a static pod's."""
        return key.startswith("pod/") and (key in self._docs or _told_key(key) in self._told)

    def look(self) -> None:
        """Brings what runs in line with the directory. Raises RuntimeFailure when the store cannot be written: tried again."""
        found = self._read()
        if found is None:
            return
        for key in [key for key in self._docs if key not in found]:
            del self._docs[key]
            self._files.pop(key, None)
            self._workloads.delete(key)
        for key, doc in found.items():
            if key in self._docs:
                continue
            refusal = self._workloads.admit(key, compact(doc))
            if refusal is not None:
                self._refuse(doc["name"], "%s: %s" % refusal)
                continue
            told = _told_key(key)
            if told not in self._told:
                # Before it runs: what was told once has to be taken back.
                self._store.put(told, b"")
                self._told.add(told)
            self._docs[key] = doc
            self._workloads.set(key, compact(doc))
        there = {_told_key(key) for key in self._docs}
        for told in sorted(self._told - there):
            self._report("static", told, {"gone": True})
            self._store.delete(told)
            self._told.discard(told)

    def status(self, key: str, status: "dict[str, Any]") -> None:
        """The pod's status has changed. Of one whose file has gone there is nothing to tell: `look` has told it."""
        doc = self._docs.get(key)
        if doc is None:
            return
        meta = {
            "name": doc["name"],
            "namespace": doc["ns"],
            "labels": doc["labels"],
            "annotations": doc["annotations"],
        }
        body = {"uid": doc["uid"], "pod": {"metadata": meta, "spec": doc["spec"]}, "status": status}
        self._report("static", _told_key(key), body)

    def _read(self) -> "dict[str, dict[str, Any]] | None":
        """Documents by key; None when the directory cannot be read: then nothing is stopped."""
        try:
            names = sorted(n for n in os.listdir(self._directory) if n.endswith(".json") and n[0] != ".")
        except FileNotFoundError:
            names = []
        except OSError as error:
            self._refuse(self._directory, str(error))
            return None
        if len(names) > FILES_MAX:
            self._refuse(self._directory, "%d manifests, the first %d are read" % (len(names), FILES_MAX))
        found: "dict[str, dict[str, Any]]" = {}
        taken: "set[str]" = set()
        for name in names[:FILES_MAX]:
            try:
                doc = self._document(name)
            except (BadManifest, OSError) as error:
                self._refuse(name, str(error))
                # A file that is being written is no reason to stop what it said before.
                kept = {k: d for k, d in self._docs.items() if self._files.get(k) == name}
                found.update(kept)
                continue
            key = key_of(doc)
            if _told_key(key) in taken:
                self._refuse(name, "another manifest has a pod %s in %s" % (doc["name"], doc["ns"]))
                continue
            taken.add(_told_key(key))
            self._files[key] = name
            found[key] = doc
            self._refused.pop(name, None)
        return found

    def _document(self, name: str) -> "dict[str, Any]":
        """Raises BadManifest, OSError."""
        return _read_document(self._directory, name, self._node)

    def _refuse(self, what: str, why: str) -> None:
        """Said once, not at every look."""
        if self._refused.get(what) != why:
            self._refused[what] = why
            self._log.error("static pod %s: %s" % (what, why))
