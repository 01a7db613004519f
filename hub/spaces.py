"""What nodes get of the namespaces that their pods are in: Services and EndpointSlices, as documents.

A pod refers to none of them by name, so a node gets those of its pods' namespaces, at most NAMES_MAX of a kind and
namespace (the first by name; `left_out` counts the others), and `kubernetes` of `default`. A namespace's documents are
kept once, whatever the number of its nodes: `Layers` shows a node's own documents and those of its namespaces as one.

Invariant: what lies in a namespace that has not been read is unknown, and unknown is never taken for absent (I9).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from hub.cache import Cache
from hub.documents import Document, Layers, config_key, render_space, split_space_key
from hub.mirror import Delta, Forgotten, Handler
from hub.objects import SERVICES, ObjectView, Resource

log = logging.getLogger(__name__)

NAMES_MAX: Final = 256
"""Of a kind, in a namespace: what an agent can hold beside its pods, and no more than a process's environment takes."""
DEFAULT, MASTER = "default", "kubernetes"
"""Every pod is told of this Service (a kubelet's `masterServices`)."""
_MASTER_KEY: Final = config_key(SERVICES, DEFAULT, MASTER)
SETS_MAX: Final = 4096


class Namespaced(Protocol):
    """One kind of a source, by namespace: `hub.kubernetes.namespaced`, whose docstrings say what each does."""

    resource: Resource
    cache: Cache[ObjectView]
    revision: int

    def use(self, namespace: str) -> None: ...

    def release(self, namespace: str) -> None: ...

    def known(self, namespace: str) -> bool: ...

    def waits(self, namespace: str) -> bool: ...

    def on_read(self, handler: Callable[[str], None]) -> Callable[[], None]: ...

    def subscribe(self, handler: Handler, forgotten: Forgotten | None = None) -> Callable[[], None]: ...


class _Space:
    """A namespace that is used. `users`: how many pods of each node are in it; `held`, `withheld`: (node, key) of pods whose
    documents wait until it is known, and of deletions that do; `left_out`: how many objects of a kind nobody is told of."""

    __slots__ = ("documents", "held", "left_out", "users", "withheld")

    def __init__(self) -> None:
        self.users: dict[str, int] = {}
        self.documents: dict[str, Document] = {}
        self.held: set[tuple[str, str]] = set()
        self.withheld: set[tuple[str, str]] = set()
        self.left_out: dict[Resource, int] = {}


class Spaces:
    """See the module. `changed(node, key)` and `advanced(revision)`: as `hub.desired.Desired`; `keep(version, body)`: into
    the cache of bodies."""

    def __init__(
        self,
        kinds: Sequence[Namespaced],
        changed: Callable[[str, str], None],
        advanced: Callable[[int], None],
        keep: Callable[[str, bytes], None],
    ) -> None:
        self._kinds = {kind.resource: kind for kind in kinds}
        self._changed = changed
        self._advanced = advanced
        self._keep = keep
        self._spaces: dict[str, _Space] = {}
        self._of_node: dict[str, frozenset[str]] = {}
        self._sets: dict[frozenset[str], frozenset[str]] = {}
        """One object for all nodes whose pods are in the same namespaces; at most SETS_MAX are remembered."""
        self._master: dict[str, Document] = {}
        self._unsubscribe: list[Callable[[], None]] = []

    def start(self) -> None:
        for res, kind in self._kinds.items():
            self._unsubscribe.append(kind.subscribe(partial(self._on_deltas, res)))
            self._unsubscribe.append(kind.on_read(self._on_read))

    def stop(self) -> None:
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []

    # -- pods come and go ----------------------------------------------------------------------------------------------

    def use(self, namespace: str, node: str) -> None:
        """One more pod of this namespace is on the node."""
        if not self._kinds:
            return
        space = self._spaces.get(namespace)
        if space is None:
            space = self._open(namespace)
        count = space.users[node] = space.users.get(node, 0) + 1
        if count > 1:
            return
        before = self._of_node.get(node, frozenset())
        if not before and DEFAULT not in self._spaces:
            self._open(DEFAULT)
        self._lies(node, before | {namespace})
        told = space.documents if before or namespace == DEFAULT else [*space.documents, *self._master]
        for key in told:
            self._changed(node, key)

    def unuse(self, namespace: str, node: str, tell: bool) -> None:
        """One less. Not `tell`: the node is another replica's now."""
        space = self._spaces.get(namespace)
        if space is None:
            return
        space.users[node] -= 1
        if space.users[node]:
            return
        del space.users[node]
        self._lies(node, self._of_node[node] - {namespace})
        left = self._of_node.get(node)
        if tell:
            gone = list(space.documents) if left else [*space.documents, *self._master]
            for key in gone:
                if not left or key != _MASTER_KEY:
                    self._changed(node, key)
        if not space.users and (namespace != DEFAULT or not self._of_node):
            self._close(namespace)
        if not self._of_node and DEFAULT in self._spaces:
            self._close(DEFAULT)

    def _lies(self, node: str, namespaces: frozenset[str]) -> None:
        if not namespaces:
            del self._of_node[node]
            return
        if len(self._sets) >= SETS_MAX:
            self._sets.clear()
        self._of_node[node] = self._sets.setdefault(namespaces, namespaces)

    def _open(self, namespace: str) -> _Space:
        space = self._spaces[namespace] = _Space()
        for kind in self._kinds.values():
            kind.use(namespace)
        return space

    def _close(self, namespace: str) -> None:
        del self._spaces[namespace]
        if namespace == DEFAULT:
            self._master = {}
        for kind in self._kinds.values():
            kind.release(namespace)

    # -- what is known ---------------------------------------------------------------------------------------------------

    def of(self, node: str, own: Mapping[str, Document]) -> Mapping[str, Document]:
        """The node's `own` documents and those of its namespaces; the former alone where there are no others."""
        namespaces = self._of_node.get(node)
        if namespaces is None:
            return own
        shared = [self._spaces[namespace].documents for namespace in namespaces]
        if DEFAULT not in namespaces:
            shared.append(self._master)
        return Layers(own, shared)

    def ready(self, node: str) -> bool:
        """Need nothing be waited for that concerns the node?"""
        namespaces = self._of_node.get(node)
        return namespaces is None or not any(map(self.waits, {DEFAULT, *namespaces}))

    def waits(self, namespace: str) -> bool:
        """Will it soon be known what lies there, and is not yet?"""
        return any(kind.waits(namespace) for kind in self._kinds.values())

    def hold(self, namespace: str, node: str, key: str) -> bool:
        """Must a pod's document wait, for its containers would not be told of the namespace's Services? `changed` is
        called when they are known."""
        for wanted in (namespace, DEFAULT):
            space = self._spaces.get(wanted)
            if space is not None and self.waits(wanted):
                space.held.add((node, key))
                return True
        return False

    def withhold(self, node: str, key: str) -> bool:
        """Must nothing be said about a key that the node should not hold as far as is known?"""
        parts = split_space_key(key)
        if parts is None:
            return False
        res, namespace, _ = parts
        kind, space = self._kinds.get(res), self._spaces.get(namespace)
        used = namespace in self._of_node.get(node, ()) or (key == _MASTER_KEY and node in self._of_node)
        if kind is None or space is None or not used or kind.known(namespace):
            return False
        space.withheld.add((node, key))
        return True

    def render(self, key: str) -> bytes | None:
        """The bytes of a Service's or EndpointSlice's document; None when there is no such object."""
        parts = split_space_key(key)
        kind = self._kinds.get(parts[0]) if parts is not None else None
        if parts is None or kind is None:
            return None
        entry = kind.cache.get(parts[1], parts[2])
        return render_space(parts[0], entry.obj()) if entry is not None else None

    @property
    def left_out(self) -> int:
        """Objects that no node gets, for their namespace has more than NAMES_MAX."""
        return sum(sum(space.left_out.values()) for space in self._spaces.values())

    # -- from the source -------------------------------------------------------------------------------------------------

    def _on_deltas(self, res: Resource, deltas: Sequence[Delta[Any]], revision: int) -> None:
        touched: dict[str, set[str]] = {}
        for delta in deltas:
            namespace, name = delta.entry.key
            touched.setdefault(namespace, set()).add(name)
        for namespace, names in touched.items():
            space = self._spaces.get(namespace)
            if space is not None:
                self._arrange(res, namespace, space, names)
        self._advanced(revision)

    def _arrange(self, res: Resource, namespace: str, space: _Space, names: set[str]) -> None:
        """Brings the documents of one kind in line; `names`: of the objects that are others now."""
        there = sorted(
            (entry.key[1] for entry in self._kinds[res].cache.find("namespace", namespace)),
            key=lambda name: (namespace != DEFAULT or name != MASTER, name),
        )
        left_out = len(there) - NAMES_MAX
        if left_out > 0 and not space.left_out.get(res):
            log.warning(
                "namespace %s has %d %s, of which the first %d by name are told to edge nodes",
                namespace, len(there), res.resource, NAMES_MAX,
            )  # fmt: skip
        space.left_out[res] = max(0, left_out)
        keys = {config_key(res, namespace, name): name for name in there[:NAMES_MAX]}
        documents, first = space.documents, f"{res.singular}/"
        for key in [key for key in documents if key.startswith(first) and key not in keys]:
            del documents[key]
            self._tell(space, key)
        for key, name in keys.items():
            held = documents.get(key)
            if held is not None and name not in names:
                continue
            body = self.render(key)
            assert body is not None
            document = Document(key, body)
            if held is None or held.version != document.version:
                self._keep(document.version, body)
                documents[key] = document
                self._tell(space, key)

    def _tell(self, space: _Space, key: str) -> None:
        if key == _MASTER_KEY:
            document = space.documents.get(key)
            self._master = {} if document is None else {key: document}
        for node in self._of_node if key == _MASTER_KEY else space.users:
            self._changed(node, key)

    def _on_read(self, namespace: str) -> None:
        """A kind's part of it need not be waited for any more."""
        space = self._spaces.get(namespace)
        if space is None:
            return
        withheld, space.withheld = space.withheld, set()
        for node, key in withheld:
            self._changed(node, key)
        if not self.waits(namespace):
            held, space.held = space.held, set()
            for node, key in held:
                # Another namespace that it needs may be unknown yet.
                if not self.hold(key.split("/")[1], node, key):
                    self._changed(node, key)
        self._advanced(0)
