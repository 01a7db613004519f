"""The informer's cache of one kind: compact bytes beside a small typed view (invariant I7), with indexes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar, cast

import msgspec
import orjson
import zstandard

from hub.objects import Meta, PodView, Resource, view_type

_COMPRESS_MIN_BYTES = 256
_compress = zstandard.ZstdCompressor(level=3).compress
_decompress = zstandard.ZstdDecompressor().decompress


class HasMeta(Protocol):
    """Any view."""

    @property
    def metadata(self) -> Meta: ...


V = TypeVar("V", bound=HasMeta)
Key = tuple[str, str]
"""(namespace or "", name)"""


class Entry(Generic[V]):
    """One cached object, immutable. `revision` is its resourceVersion."""

    __slots__ = ("_blob", "_packed", "key", "partition", "revision", "view")

    def __init__(self, key: Key, partition: str, revision: int, raw: bytes, view: V) -> None:
        self.key = key
        self.partition = partition
        self.revision = revision
        self.view = view
        self._packed = len(raw) >= _COMPRESS_MIN_BYTES
        # An exact copy: what the compressor returns keeps the slack of its worst case alive.
        self._blob = bytes(memoryview(_compress(raw))) if self._packed else raw

    @property
    def meta(self) -> Meta:
        return self.view.metadata

    @property
    def size(self) -> int:
        """Bytes that the object's JSON takes in memory."""
        return len(self._blob)

    def raw(self) -> bytes:
        """The object's JSON as stored: without resourceVersion, see `obj`."""
        return _decompress(self._blob) if self._packed else self._blob

    def obj(self) -> dict[str, Any]:
        """A fresh dict of the whole object, with its resourceVersion; the caller may change it."""
        return with_revision(orjson.loads(self.raw()), self.revision)


def with_revision(obj: dict[str, Any], revision: int) -> dict[str, Any]:
    """`obj` with its resourceVersion set, changed in place."""
    obj["metadata"]["resourceVersion"] = str(revision)
    return obj


Indexer = Callable[[Any], Iterable[str]]
"""From an Entry to the values under which an index finds it."""


def by_namespace(entry: Entry[Any]) -> Iterable[str]:
    return (entry.key[0],)


def by_owner(entry: Entry[Any]) -> Iterable[str]:
    """UIDs of the owners."""
    return tuple(ref.uid for ref in entry.meta.ownerReferences or ())


def by_node(entry: Entry[PodView]) -> Iterable[str]:
    node = entry.view.spec.nodeName
    return (node,) if node else ()


class Cache(Generic[V]):
    """Objects of one kind by (namespace, name), with secondary indexes. Changed by its informer alone."""

    def __init__(self, res: Resource, indexers: dict[str, Indexer]) -> None:
        self.resource = res
        self._decoder = msgspec.json.Decoder(view_type(res))
        self._entries: dict[Key, Entry[V]] = {}
        self._indexers = indexers
        self._indexes: dict[str, dict[str, set[Key]]] = {name: {} for name in indexers}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry[V]]:
        return iter(list(self._entries.values()))

    def get(self, namespace: str, name: str) -> Entry[V] | None:
        return self._entries.get((namespace, name))

    def find(self, index: str, value: str) -> list[Entry[V]]:
        """All entries that `index` files under `value`, in no order."""
        return [self._entries[k] for k in self._indexes[index].get(value, ())]

    def values(self, index: str) -> list[str]:
        """The values that an index has entries for."""
        return list(self._indexes[index])

    def entry(self, key: Key, partition: str, revision: int, raw: bytes) -> Entry[V]:
        """Decodes stored bytes into an entry without filing it."""
        return Entry(key, partition, revision, raw, cast(V, self._decoder.decode(raw)))

    def put(self, entry: Entry[V]) -> Entry[V] | None:
        """Files `entry`; returns the one that it replaces."""
        old = self._entries.get(entry.key)
        self._entries[entry.key] = entry
        for name, indexer in self._indexers.items():
            new_values = set(indexer(entry))
            old_values = set(indexer(old)) if old is not None else set()
            self._unfile(name, entry.key, old_values - new_values)
            for value in new_values - old_values:
                self._indexes[name].setdefault(value, set()).add(entry.key)
        return old

    def drop(self, key: Key) -> Entry[V] | None:
        old = self._entries.pop(key, None)
        if old is not None:
            for name, indexer in self._indexers.items():
                self._unfile(name, key, set(indexer(old)))
        return old

    def _unfile(self, index: str, key: Key, values: set[str]) -> None:
        filed = self._indexes[index]
        for value in values:
            keys = filed[value]
            keys.discard(key)
            if not keys:
                del filed[value]
