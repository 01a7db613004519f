"""Which documents every node has to hold, kept from the informers' deltas.

Desired of a node = its bound pods (ended ones too, until they are deleted) and the ConfigMaps and Secrets that those
refer to. Kept per node: key -> Document (version and size); bodies are rendered once, lie in a bounded cache shared
by all nodes, and are rendered again from the informer's cache when they fell out of it.

Invariant: `of(node)` is what the informers have delivered, at `revision`. Does not guarantee that a pod and what it
refers to appear together: `settled` tells when the informers have reached the same revision.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import orjson

from hub.cache import Entry
from hub.documents import (
    Document,
    config_key,
    pod_key,
    references,
    render_config,
    render_pod,
    split_config_key,
    split_pod_key,
)
from hub.informer import Delta, Informer
from hub.objects import CONFIGMAPS, PODS, SECRETS, PodView, Resource

BODIES_BYTES_MAX: Final = 64 << 20
NOTHING: Final[Mapping[str, Document]] = {}


class _Source(msgspec.Struct, frozen=True):
    """A Pod as far as its document depends on it; the spec's bytes are compared, not parsed."""

    metadata: "_SourceMeta"
    spec: msgspec.Raw = msgspec.Raw(b"{}")


class _SourceMeta(msgspec.Struct, frozen=True):
    labels: msgspec.Raw = msgspec.Raw(b"")
    annotations: msgspec.Raw = msgspec.Raw(b"")
    deletionGracePeriodSeconds: int | None = None
    deletionTimestamp: str | None = None


_source = msgspec.json.Decoder(_Source)


class _Pod:
    """What is kept of a bound pod."""

    __slots__ = ("document", "node", "refs", "source")

    def __init__(self, node: str, source: int, refs: frozenset[str], document: Document) -> None:
        self.node = node
        self.source = source
        self.refs = refs
        self.document = document


class Bodies:
    """Rendered bytes by version, at most `bytes_max` of them; those unused longest go first."""

    def __init__(self, bytes_max: int = BODIES_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bodies: OrderedDict[str, bytes] = OrderedDict()
        self.bytes = 0

    def get(self, version: str) -> bytes | None:
        body = self._bodies.get(version)
        if body is not None:
            self._bodies.move_to_end(version)
        return body

    def put(self, version: str, body: bytes) -> None:
        if version in self._bodies:
            return
        self._bodies[version] = body
        self.bytes += len(body)
        while self.bytes > self._bytes_max and len(self._bodies) > 1:
            _, old = self._bodies.popitem(last=False)
            self.bytes -= len(old)


class Desired:
    """See the module. `changed(node, key)` is called for every document that appears, changes or goes; `advanced()`
    after the deltas of a revision."""

    def __init__(
        self,
        pods: Informer[PodView],
        configmaps: Informer[Any],
        secrets: Informer[Any],
        changed: Callable[[str, str], None],
        advanced: Callable[[], None],
        bodies_bytes_max: int = BODIES_BYTES_MAX,
    ) -> None:
        self._informers: dict[Resource, Informer[Any]] = {
            PODS: pods,
            CONFIGMAPS: configmaps,
            SECRETS: secrets,
        }
        self.revision = 0
        """The highest that any part of this has reached; read for every message that leaves."""
        self._changed = changed
        self._advanced = advanced
        self._bodies = Bodies(bodies_bytes_max)
        self._nodes: dict[str, dict[str, Document]] = {}
        self._pods: dict[str, _Pod] = {}
        self._users: dict[str, dict[str, int]] = {}
        """Config key -> node -> how many of its pods refer to it."""
        self._configs: dict[str, Document] = {}
        """Those that somebody refers to and that exist."""
        self._unsubscribe: list[Callable[[], None]] = []

    @property
    def settled(self) -> bool:
        """Have ConfigMaps and Secrets reached the revision of the pods?"""
        pods = self._informers[PODS].revision
        return self._informers[CONFIGMAPS].revision >= pods and self._informers[SECRETS].revision >= pods

    def start(self) -> None:
        """Takes what the informers hold, and follows them from here."""
        self.revision = max(informer.revision for informer in self._informers.values())
        for entry in self._informers[PODS].cache:
            self._put_pod(entry)
        self._unsubscribe = [
            self._informers[PODS].subscribe(self._on_pods),
            self._informers[CONFIGMAPS].subscribe(partial(self._on_configs, CONFIGMAPS)),
            self._informers[SECRETS].subscribe(partial(self._on_configs, SECRETS)),
        ]

    def stop(self) -> None:
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []

    def of(self, node: str) -> Mapping[str, Document]:
        """The documents of a node by key; not to be changed."""
        return self._nodes.get(node, NOTHING)

    def body(self, document: Document) -> bytes | None:
        """A document's bytes. None when the object has changed meanwhile: its next version is on the way."""
        body = self._bodies.get(document.version)
        if body is None:
            body = self._render(document.key)
            if body is None:
                return None
            if Document(document.key, body).version != document.version:
                return None
            self._bodies.put(document.version, body)
        return body

    # -- pods -----------------------------------------------------------------------------------------------------

    def _on_pods(self, deltas: Sequence[Delta[PodView]], revision: int) -> None:
        self.revision = max(self.revision, revision)
        for delta in deltas:
            if delta.type == "DELETED":
                self._drop_pod(_key_of(delta.entry))
            else:
                self._put_pod(delta.entry)
        self._advanced()

    def _put_pod(self, entry: Entry[PodView]) -> None:
        node = entry.view.spec.nodeName
        if not node:
            return
        key = _key_of(entry)
        raw = entry.raw()
        source = _fingerprint(raw)
        held = self._pods.get(key)
        if held is not None and held.source == source and held.node == node:
            return  # only its status has changed
        obj = orjson.loads(raw)
        body = render_pod(obj)
        document = Document(key, body)
        refs = references(entry.key[0], obj["spec"])
        if held is not None and held.node != node:
            self._drop_pod(key)
            held = None
        pod = self._pods[key] = _Pod(node, source, refs, document)
        before = held.refs if held is not None else frozenset()
        # What it refers to comes first, so that it is also sent first.
        for ref in pod.refs - before:
            self._use(ref, node)
        if held is None or held.document.version != document.version:
            self._bodies.put(document.version, body)
            self._nodes.setdefault(node, {})[key] = document
            self._changed(node, key)
        for ref in before - pod.refs:
            self._unuse(ref, node)

    def _drop_pod(self, key: str) -> None:
        pod = self._pods.pop(key, None)
        if pod is None:
            return
        self._remove(pod.node, key)
        for ref in pod.refs:
            self._unuse(ref, pod.node)

    # -- what pods refer to -----------------------------------------------------------------------------------------

    def _on_configs(self, res: Resource, deltas: Sequence[Delta[Any]], revision: int) -> None:
        self.revision = max(self.revision, revision)
        for delta in deltas:
            key = config_key(res, *delta.entry.key)
            users = self._users.get(key)
            if not users:
                continue
            if delta.type == "DELETED":
                if self._configs.pop(key, None) is not None:
                    for node in users:
                        self._remove(node, key)
                continue
            document = self._load_config(key)
            if document is not None:
                self._place(users, document)
        self._advanced()

    def _use(self, key: str, node: str) -> None:
        users = self._users.setdefault(key, {})
        users[node] = users.get(node, 0) + 1
        if users[node] > 1:
            return
        document = self._configs.get(key) or self._load_config(key)
        if document is not None:
            self._place((node,), document)

    def _unuse(self, key: str, node: str) -> None:
        users = self._users[key]
        users[node] -= 1
        if users[node]:
            return
        del users[node]
        if not users:
            del self._users[key]
            self._configs.pop(key, None)
        self._remove(node, key)

    def _load_config(self, key: str) -> Document | None:
        """Renders it and keeps it in `_configs`; None when there is no such object."""
        body = self._render(key)
        if body is None:
            return None
        document = Document(key, body)
        held = self._configs.get(key)
        if held is not None and held.version == document.version:
            return held
        self._bodies.put(document.version, body)
        self._configs[key] = document
        return document

    # -- common ---------------------------------------------------------------------------------------------------

    def _render(self, key: str) -> bytes | None:
        pod = split_pod_key(key)
        if pod is not None:
            entry = self._informers[PODS].cache.get(pod[0], pod[1])
            return render_pod(entry.obj()) if entry is not None else None
        res, namespace, name = split_config_key(key)
        entry = self._informers[res].cache.get(namespace, name)
        return render_config(res, entry.obj()) if entry is not None else None

    def _place(self, users: Iterable[str], document: Document) -> None:
        """These nodes should have `document` from now on."""
        key, version = document.key, document.version
        nodes, changed = self._nodes, self._changed
        for node in users:
            documents = nodes.get(node)
            if documents is None:
                documents = nodes[node] = {}
            held = documents.get(key)
            documents[key] = document
            if held is None or held.version != version:
                changed(node, key)

    def _remove(self, node: str, key: str) -> None:
        documents = self._nodes.get(node)
        if documents is None or documents.pop(key, None) is None:
            return
        if not documents:
            del self._nodes[node]
        self._changed(node, key)


def _key_of(entry: Entry[PodView]) -> str:
    return pod_key(*entry.key, entry.meta.uid)


def _fingerprint(raw: bytes) -> int:
    """Equal for two states of a Pod whose documents are equal (the converse need not hold)."""
    source = _source.decode(raw)
    meta = source.metadata
    return hash(
        (
            bytes(source.spec),
            bytes(meta.labels),
            bytes(meta.annotations),
            meta.deletionTimestamp,
            meta.deletionGracePeriodSeconds,
        )
    )
