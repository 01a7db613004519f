"""The informer's cache of one kind: compact bytes beside a small typed view (invariant I7), with indexes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar, cast

import msgspec
import orjson

from hub.objects import Meta, PodView, Resource, view_type
from hub.packing import Packed, Packer, Unpack, pack


class HasMeta(Protocol):
    """Any view."""

    @property
    def metadata(self) -> Meta: ...


V = TypeVar("V", bound=HasMeta)
Key = tuple[str, str]
"""(namespace or "", name)"""


Keep = Callable[[Any, bytes], tuple[Any, object]]
"""From a view and the object's JSON to what a thin cache holds: the view, perhaps of fewer fields, and a note."""


NO_BYTES: Packed = (None, b"")
"""Of a thin entry."""
Slim = Callable[[Any], Any]
"""From a view to one of fewer fields, for a cache that is asked little beside the bytes."""


def keep_view(view: Any, raw: bytes) -> tuple[Any, None]:
    """The `Keep` of kinds of which the view is enough."""
    return view, None


class Entry(msgspec.Struct, Generic[V], frozen=True, eq=False, gc=False):
    """One cached object, immutable. `revision` is its resourceVersion; `note` is what was kept beside the view. A thin one is
    without its bytes: `blob` is empty. `unpack` makes the object's JSON of `blob`; None: it is that. `rank`: how much the
    view and the note have, among kin (`hub.kin`). Nothing of it leads back to it: the collector need not follow it."""

    key: Key
    partition: str
    revision: int
    view: V
    note: Any = None
    rank: int = 0
    unpack: Unpack | None = None
    blob: bytes = b""

    @property
    def meta(self) -> Meta:
        return self.view.metadata

    def bare(self) -> "Entry[V]":
        """The same without the bytes."""
        return Entry(self.key, self.partition, self.revision, self.view, self.note, self.rank)

    @property
    def size(self) -> int:
        """Bytes that the object's JSON takes in memory."""
        return len(self.blob)

    def raw(self) -> bytes:
        """The object's JSON as stored: without resourceVersion, see `obj`."""
        assert self.blob, "a thin cache holds no bytes: read the object from the store"
        return self.unpack(self.blob) if self.unpack is not None else self.blob

    def obj(self) -> dict[str, Any]:
        """A fresh dict of the whole object, with its resourceVersion; the caller may change it."""
        return with_revision(orjson.loads(self.raw()), self.revision)


def with_revision(obj: dict[str, Any], revision: int) -> dict[str, Any]:
    """`obj` with its resourceVersion set, changed in place."""
    obj["metadata"]["resourceVersion"] = str(revision)
    return obj


Indexer = Callable[[Any], tuple[str, ...]]
"""From an Entry to the values under which an index finds it."""


def by_namespace(entry: Entry[Any]) -> tuple[str, ...]:
    return (entry.key[0],)


def by_owner(entry: Entry[Any]) -> tuple[str, ...]:
    """UIDs of the owners."""
    refs = entry.meta.ownerReferences
    return tuple([ref.uid for ref in refs]) if refs else ()


def by_node(entry: Entry[PodView]) -> tuple[str, ...]:
    node = entry.view.spec.nodeName
    return (node,) if node else ()


class Cache(Generic[V]):
    """Objects of one kind by (namespace, name), with secondary indexes. Changed by its informer alone. With `keep` it is
    thin: of each object only the view and a note. With `slim`, of which there are many, it has less of the view, and the
    bytes packed against each other."""

    def __init__(
        self, res: Resource, indexers: dict[str, Indexer], keep: Keep | None = None, slim: Slim | None = None
    ) -> None:
        self.resource = res
        self.form = keep or slim
        """What is kept of a view; None: all of it."""
        self.thin = keep is not None
        self.rank = 0
        """Of `form`, among those of its kin."""
        self.pack: Callable[[bytes], Packed] = pack if slim is None else Packer().pack
        self._keep = keep
        self._slim = slim
        self._decoder = msgspec.json.Decoder(view_type(res))
        self.entries: dict[Key, Entry[V]] = {}
        """To be read alone; `put`, `swap` and `drop` change it."""
        self._indexers = indexers
        self._indexes: dict[str, dict[str, Key | set[Key]]] = {name: {} for name in indexers}
        """A key alone stands for itself: most nodes have few pods, most objects one owner, and a set takes 216 bytes."""

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry[V]]:
        return iter(list(self.entries.values()))

    def get(self, namespace: str, name: str) -> Entry[V] | None:
        return self.entries.get((namespace, name))

    def find(self, index: str, value: str) -> list[Entry[V]]:
        """All entries that `index` files under `value`, in no order."""
        filed = self._indexes[index].get(value)
        if filed is None:
            return []
        return [self.entries[k] for k in ((filed,) if isinstance(filed, tuple) else filed)]

    def values(self, index: str) -> list[str]:
        """The values that an index has entries for."""
        return list(self._indexes[index])

    def entry(self, key: Key, partition: str, revision: int, raw: bytes) -> Entry[V]:
        """Decodes stored bytes into an entry without filing it."""
        view, note = self.shape(raw)
        packed = NO_BYTES if self.thin else self.pack(raw)
        return Entry(self.same(key, view.metadata), partition, revision, view, note, self.rank, *packed)

    def shape(self, raw: bytes) -> tuple[V, Any]:
        """The view and the note that are kept of stored bytes."""
        view = cast(V, self._decoder.decode(raw))
        if self._keep is not None:
            return self._keep(view, raw)
        return (view if self._slim is None else self._slim(view)), None

    def same(self, key: Key, meta: Meta) -> Key:
        """`key` as it is filed already, or with the strings that the view has anyway; a store's keys may name more than its
        object does."""
        held = self.entries.get(key)
        if held is not None:
            return held.key
        own = meta.namespace, meta.name
        return own if own == key else key

    def put(self, entry: Entry[V]) -> Entry[V] | None:
        """Files `entry`; returns the one that it replaces."""
        old = self.entries.get(entry.key)
        self.entries[entry.key] = entry
        for name, indexer in self._indexers.items():
            new_values = indexer(entry)
            old_values = indexer(old) if old is not None else ()
            if new_values == old_values:
                continue
            self._unfile(name, entry.key, [v for v in old_values if v not in new_values])
            self._file(name, entry.key, [v for v in new_values if v not in old_values])
        return old

    def swap(self, entry: Entry[V]) -> None:
        """Files `entry` in place of one with the same view: no index changes."""
        self.entries[entry.key] = entry

    def drop(self, key: Key) -> Entry[V] | None:
        old = self.entries.pop(key, None)
        if old is not None:
            for name, indexer in self._indexers.items():
                self._unfile(name, key, indexer(old))
        return old

    def _file(self, index: str, key: Key, values: Iterable[str]) -> None:
        filed = self._indexes[index]
        for value in values:
            keys = filed.setdefault(value, key)
            if not isinstance(keys, tuple):
                keys.add(key)
            elif keys != key:
                filed[value] = {keys, key}

    def _unfile(self, index: str, key: Key, values: Iterable[str]) -> None:
        filed = self._indexes[index]
        for value in values:
            keys = filed.get(value)
            if isinstance(keys, set):
                keys.discard(key)
            if not keys or keys == key:
                filed.pop(value, None)
