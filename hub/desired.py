"""Which documents every node has to hold, kept from the deltas of this replica's share of the fleet.

Desired of a node = its bound pods (ended ones too, until they are deleted), the ConfigMaps and Secrets that those
refer to, what `hub.spaces` tells of their namespaces, its Devices, and the release that its agent should be. Kept per node: key -> Document (version and size); bodies are rendered once, lie in a bounded cache shared
by all nodes, and are rendered again from the object's cache when they fell out of it.

Invariants: `of(node)` is what the share has delivered, at `revision`. A ConfigMap or Secret that has not been read yet is
never taken for one that does not exist (I9): `ready` and `withhold`. Does not guarantee that a pod and what it refers to
appear together: `settled` tells when both have reached the same revision.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import orjson

from hub.agentdocs import AgentDocuments
from hub.cache import Entry, Key
from hub.deliveries import Deliveries
from hub.devicedocs import DeviceDocuments, DeviceMirror
from hub.devices import PREFIX as DEVICE
from hub.documents import (
    Document,
    config_key,
    pod_key,
    references,
    render_config,
    render_pod,
    split_config_key,
    split_pod_key,
    split_space_key,
)
from hub.mirror import Delta, Mirror
from hub.objects import CONFIGMAPS, SECRETS, NodeView, PodView, Resource
from hub.references import References
from hub.releases import KEY as AGENT_UPDATE
from hub.spaces import Namespaced, Spaces

BODIES_BYTES_MAX: Final = 2 << 20
"""A body is used while it is being sent, mostly: to render one again costs some 20 µs, to keep all as much as the share."""
MIRROR: Final = "kubernetes.io/config.mirror"
"""The annotation of a mirror pod; its value is the UID that the node knows the static pod by."""
_MIRROR_BYTES: Final = MIRROR.encode()
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


class _Pod(Document):
    """The document of a bound pod, with what is kept of the pod beside it."""

    __slots__ = ("node", "refs", "source")

    def __init__(self, key: str, body: bytes, node: str, source: int, refs: frozenset[str]) -> None:
        super().__init__(key, body)
        self.node = node
        self.source = source
        self.refs = refs


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
        pods: Mirror[PodView],
        configmaps: References,
        secrets: References,
        changed: Callable[[str, str], None],
        advanced: Callable[[], None],
        bodies_bytes_max: int = BODIES_BYTES_MAX,
        namespaced: Sequence[Namespaced] = (),
        devices: DeviceMirror | None = None,
        nodes: Mirror[NodeView] | None = None,
    ) -> None:
        self._pod_objects = pods
        self._objects: dict[Resource, References] = {CONFIGMAPS: configmaps, SECRETS: secrets}
        self.revision = 0
        """The highest that any part of this has reached; read for every message that leaves."""
        self._changed = changed
        self._advanced = advanced
        self._bodies = Bodies(bodies_bytes_max)
        self.traces: Deliveries | None = None
        """Told of documents that a traced change has made."""
        self.spaces = Spaces(namespaced, changed, self._others_advanced, self._bodies.put)
        self._devices = DeviceDocuments(
            devices if devices is not None else DeviceMirror(),
            self._place_device,
            self._remove,
            self._others_advanced,
            changed,
        )
        self._agents = AgentDocuments(nodes, self._place, self._remove, self._others_advanced)
        self._nodes: dict[str, dict[str, Document]] = {}
        self._pods: dict[str, _Pod] = {}
        self._users: dict[str, dict[str, int]] = {}
        """Config key -> node -> how many of its pods refer to it."""
        self._configs: dict[str, Document] = {}
        """Those that somebody refers to and that exist."""
        self._withheld: dict[str, set[str]] = {}
        """Config key -> the nodes whose sessions want to take it away, and have to wait until it is known."""
        self._unsubscribe: list[Callable[[], None]] = []

    @property
    def settled(self) -> bool:
        """Are all references known, as of the revision of the pods?"""
        pods = self._pod_objects.revision
        return all(objects.settled and objects.watched >= pods for objects in self._objects.values())

    def start(self) -> None:
        """Takes what the share holds, and follows it from here. Call it before slots are loaded: they count as loaded
        once all is known that this refers to."""
        for entry in self._pod_objects.cache:
            self._put_pod(entry)
        mirrors: tuple[Mirror[Any], ...] = (self._pod_objects, *self._objects.values())
        self._devices.start()
        self._agents.start()
        self.revision = max(self._devices.revision, *(mirror.revision for mirror in mirrors))
        self.spaces.start()
        self._unsubscribe = [
            self._pod_objects.subscribe(self._on_pods, self._forget_pods),
            *(objects.subscribe(partial(self._on_configs, res)) for res, objects in self._objects.items()),
            *(objects.on_absent(partial(self._on_absent, res)) for res, objects in self._objects.items()),
        ]

    def stop(self) -> None:
        self.spaces.stop()
        self._devices.stop()
        self._agents.stop()
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []

    def of(self, node: str) -> Mapping[str, Document]:
        """The documents of a node by key; not to be changed."""
        return self.spaces.of(node, self._nodes.get(node, NOTHING))

    def ready(self, node: str) -> bool:
        """Is all known that the node's pods refer to? Until then nobody may say what the node should hold."""
        pods = self._pod_objects.cache.find("node", node)
        return self.spaces.ready(node) and all(self._known(ref) for pod in pods for ref in self._refs_of(pod))

    def withhold(self, node: str, key: str) -> bool:
        """Must nothing be said about `key`, which the node should not hold as far as is known? True while the node
        refers to it and it has not been read; `changed` is called when it has been."""
        if key.startswith(DEVICE):
            return self._devices.withhold(node, key)
        if node not in self._users.get(key, ()) or self._known(key):
            return self.spaces.withhold(node, key)
        self._withheld.setdefault(key, set()).add(node)
        return True

    def body(self, document: Document) -> bytes | None:
        """A document's bytes. None when the object has changed meanwhile: its next version is on the way."""
        if document.key == AGENT_UPDATE:  # one key, and another document for every node
            return self._agents.body(document.version)
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
                self._put_pod(delta.entry, delta.raw)
        self._advanced()

    def _put_pod(self, entry: Entry[PodView], raw: bytes | None = None) -> None:
        node = entry.view.spec.nodeName
        if not node:
            return
        key = _key_of(entry)
        if raw is None:
            raw = entry.raw()
        if mirror_uid(raw):
            return  # it is made from what its node runs by itself
        source = _fingerprint(raw)
        held = self._pods.get(key)
        if held is not None and held.source == source and held.node == node:
            return  # only its status has changed
        obj = orjson.loads(raw)
        body = render_pod(obj)
        refs = references(entry.key[0], obj["spec"])
        if held is not None and held.node != node:
            self._drop_pod(key)
            held = None
        before = held.refs if held is not None else frozenset()
        pod = _Pod(key, body, node, source, refs)
        changed = held is None or held.version != pod.version
        if held is not None and not changed:
            held.source, held.refs = source, refs
            pod = held  # the node's documents hold it
        self._pods[key] = pod
        # What it refers to comes first, so that it is also sent first.
        for ref in pod.refs - before:
            self._use(ref, node)
        if held is None:
            self.spaces.use(entry.key[0], node)
        if changed:
            self._bodies.put(pod.version, body)
            if self.traces is not None:
                self.traces.learned(pod, obj["metadata"].get("annotations"))
            self._nodes.setdefault(node, {})[key] = pod
            if not self.spaces.hold(entry.key[0], node, key):
                self._changed(node, key)
        for ref in before - pod.refs:
            self._unuse(ref, node)

    def _drop_pod(self, key: str, tell: bool = True) -> None:
        pod = self._pods.pop(key, None)
        if pod is None:
            return
        self._remove(pod.node, key, tell)
        for ref in pod.refs:
            self._unuse(ref, pod.node, tell)
        self.spaces.unuse(key.split("/")[1], pod.node, tell)

    def _forget_pods(self, entries: Sequence[Entry[PodView]]) -> None:
        """These are another replica's: nobody is told."""
        for entry in entries:
            self._drop_pod(_key_of(entry), tell=False)

    def _refs_of(self, entry: Entry[PodView]) -> frozenset[str]:
        pod = self._pods.get(_key_of(entry))
        return pod.refs if pod is not None else frozenset()

    # -- what pods refer to -----------------------------------------------------------------------------------------

    def _on_configs(self, res: Resource, deltas: Sequence[Delta[Any]], revision: int) -> None:
        self.revision = max(self.revision, revision)
        for delta in deltas:
            key = config_key(res, *delta.entry.key)
            users = self._users.get(key)
            if not users:
                continue
            self._withheld.pop(key, None)  # `_place` and `_remove` tell all users
            if delta.type == "DELETED":
                if self._configs.pop(key, None) is not None:
                    for node in users:
                        self._remove(node, key)
                continue
            document = self._load_config(key)
            if document is not None:
                self._place(users, document)
        self._advanced()

    def _others_advanced(self, revision: int) -> None:
        self.revision = max(self.revision, revision)
        self._advanced()

    def _on_absent(self, res: Resource, name: Key) -> None:
        """It is known not to exist: what was withheld may be said."""
        key = config_key(res, *name)
        for node in self._withheld.pop(key, ()):
            self._changed(node, key)

    def _known(self, key: str) -> bool:
        res, namespace, name = split_config_key(key)
        return self._objects[res].known((namespace, name))

    def _use(self, key: str, node: str) -> None:
        users = self._users.setdefault(key, {})
        users[node] = users.get(node, 0) + 1
        if users[node] > 1:
            return
        res, namespace, name = split_config_key(key)
        self._objects[res].use((namespace, name))
        document = self._configs.get(key) or self._load_config(key)
        if document is not None:
            self._place((node,), document)

    def _unuse(self, key: str, node: str, tell: bool = True) -> None:
        users = self._users[key]
        users[node] -= 1
        if users[node]:
            return
        del users[node]
        self._withheld.get(key, set()).discard(node)
        if not users:
            del self._users[key]
            self._configs.pop(key, None)
            self._withheld.pop(key, None)
            res, namespace, name = split_config_key(key)
            self._objects[res].release((namespace, name))
        self._remove(node, key, tell)

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
        if self.traces is not None:
            res, namespace, name = split_config_key(key)
            config = self._objects[res].cache.get(namespace, name)
            self.traces.learned(document, config.meta.annotations if config is not None else None)
        return document

    # -- common ---------------------------------------------------------------------------------------------------

    def _render(self, key: str) -> bytes | None:
        pod = split_pod_key(key)
        if pod is not None:
            bound = self._pod_objects.cache.get(pod[0], pod[1])
            return render_pod(bound.obj()) if bound is not None else None
        if split_space_key(key) is not None:
            return self.spaces.render(key)
        if key.startswith(DEVICE):
            return self._devices.render(key)
        res, namespace, name = split_config_key(key)
        config = self._objects[res].cache.get(namespace, name)
        return render_config(res, config.obj()) if config is not None else None

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

    def _place_device(self, node: str, document: Document, body: bytes) -> None:
        self._bodies.put(document.version, body)
        self._place((node,), document)

    def _remove(self, node: str, key: str, tell: bool = True) -> None:
        documents = self._nodes.get(node)
        if documents is None or documents.pop(key, None) is None:
            return
        if not documents:
            del self._nodes[node]
        if tell:
            self._changed(node, key)


def mirror_uid(raw: bytes) -> str:
    """Of a mirror pod's JSON, the UID that its node knows the static pod by; "" for any other pod."""
    if _MIRROR_BYTES not in raw:
        return ""
    annotations = orjson.loads(raw)["metadata"].get("annotations") or {}
    return str(annotations.get(MIRROR) or "")


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
