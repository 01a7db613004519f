"""Objects on store keys: unique names, optimistic concurrency, partitions, fences.

The one place that writes objects. It knows keys, the name index and transactions, not HTTP, defaulting or
validation: its callers hand it objects that are ready to be stored.

Invariants: an object and its entry in the name index change in one transaction; a write made as a slot's owner
carries the slot's fence; an object's resourceVersion is its key's mod revision and is never part of its bytes.
"""

import asyncio
import time
import uuid as uuids
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import msgspec
import orjson

from hub import errors
from hub.cache import with_revision
from hub.objects import (
    DEVICES,
    NAMESPACES,
    NODES,
    PODS,
    SHARED,
    Keys,
    Resource,
    partition_of_slot,
    split_object_key,
)
from shards.claims import Fence
from shards.kv import (
    Ambiguous,
    Compacted,
    Compare,
    Delete,
    FutureRevision,
    HistoryLost,
    KeyValue,
    Page,
    Put,
    Store,
    TxnResult,
    Unavailable,
    Unreadable,
    ValueTooLarge,
    prefix_end,
)
from shards.ring import slot_of

MUTATE_ATTEMPTS = 16
BOUND = (PODS, DEVICES)
"""Kinds whose `spec.nodeName` decides their partition."""
BATCH_OBJECTS_MAX = 100
"""Objects of one status transaction: etcd allows 128 compares and the fence is one of them."""

Object = dict[str, Any]
Took = Callable[[float, str], None]


class NameRecord(msgspec.Struct, frozen=True):
    """A value of the name index: partition and UID."""

    p: str
    u: str


class Stored(msgspec.Struct, frozen=True, gc=False):
    """An object as it is in the store. `raw` is its JSON without resourceVersion."""

    key: str
    partition: str
    revision: int
    raw: bytes

    def obj(self) -> Object:
        """A fresh dict with resourceVersion set."""
        return with_revision(orjson.loads(self.raw), self.revision)


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of a list, all at `revision`; `next_key` continues it (None: the end)."""

    items: list[Stored]
    revision: int
    next_key: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """One object of a batch: `apply` gets its present dict and returns the new one, or None to leave it alone.
    A different UID than `uid` (when given) counts as not found. `partition`: where it is likely to lie, so that it is
    read in one step with the others."""

    res: Resource
    namespace: str
    name: str
    uid: str | None
    apply: Callable[[Object], Object | None]
    partition: str | None = None


def exact(obj: Object) -> bytes:
    """Its JSON as it is stored. A copy: what orjson returns keeps its whole buffer alive, 4 KB for 1.3 KB, and what was written
    of late is kept at hand by the store, by feeds and caches."""
    return bytes(memoryview(orjson.dumps(obj)))


class FenceLost(Exception):
    """The slot has another owner now: this replica must stop acting for it."""


def now_rfc3339() -> str:
    return rfc3339(int(time.time()))


@lru_cache(maxsize=16)
def rfc3339(unix_s: int) -> str:
    """As Kubernetes writes times, to the second: thousands of objects are made in the same one."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_s))


def node_affinity(node: Object) -> str:
    """What decides a Node's slot: its site where it has one, else its name. Fixed at enrolment."""
    labels = node["metadata"].get("labels") or {}
    return str(labels.get("cloudhub.dev/site") or node["metadata"]["name"])


class Objects(Protocol):
    """What the edge's side of a hub asks of whoever keeps its objects: this module's Registry, or
    `hub.kubernetes.registry`. `store` is the hub's own, with its slots and claims."""

    store: Store
    live: Callable[[], bool]
    fences_lost: int

    async def get(self, res: Resource, namespace: str, name: str) -> Stored: ...

    async def find(self, res: Resource, namespace: str, name: str) -> Stored | None: ...

    async def create(
        self, res: Resource, obj: Object, *, fence: Fence | None = None, within: Stored | None = None
    ) -> Stored: ...

    async def replace(
        self, res: Resource, stored: Stored, obj: Object, *, fence: Fence | None = None
    ) -> Stored: ...

    async def mutate(
        self,
        res: Resource,
        namespace: str,
        name: str,
        change: Callable[[Object], Object | None],
        *,
        uid: str | None = None,
        fence: Fence | None = None,
    ) -> Stored: ...

    async def mutate_many(
        self, changes: Sequence[Change], *, fence: Fence | None = None
    ) -> list[Stored | errors.ApiError]: ...

    async def remove(self, res: Resource, stored: Stored, *, fence: Fence | None = None) -> int: ...


class Registry:
    """Typed access to the objects of one store. Raises `hub.errors.ApiError`s; a fenced write that lost its slot raises
    FenceLost."""

    def __init__(self, store: Store, keys: Keys, *, stale: bool = False) -> None:
        """`stale`: its reads are answered without a quorum of the store, and may be old."""
        self.store = store
        self._stale = stale
        self.keys = keys
        self._slots = store.identity.slots
        self.live: Callable[[], bool] = lambda: True
        """Asked right before every fenced write: is the lease's deadline still ahead? The process may have been frozen
        since the fence was taken."""
        self.fences_lost = 0
        """Writes that were refused since somebody else owns the slot."""
        self.took: Took | None = None
        """Told of each transaction: seconds, and committed, conflict or failed."""

    # -- reads ------------------------------------------------------------------------------------------------

    async def revision(self) -> int:
        """The store's revision."""
        if not self._stale:
            return int(await self._store_call(self.store.revision()))
        page: Page = await self._store_call(self._page(self.keys.root, self.keys.root + "\0", None, 1))
        return page.revision

    async def get(self, res: Resource, namespace: str, name: str) -> Stored:
        """Raises NotFound."""
        stored = await self.find(res, namespace, name)
        if stored is None:
            raise errors.NotFound(res.resource, name, group=res.group)
        return stored

    async def find(self, res: Resource, namespace: str, name: str) -> Stored | None:
        for _ in range(MUTATE_ATTEMPTS):
            index = await self._store_call(self._get(self.keys.name(res, namespace, name)))
            if index is None:
                return None
            partition = msgspec.json.decode(index.value, type=NameRecord).p
            kv = await self._store_call(self._get(self.keys.object(res, partition, namespace, name)))
            if kv is not None:
                return _stored(kv)
            # It moved or was made anew between the two reads.
        raise errors.InternalError(f"{res.resource} {namespace}/{name}: name index and object disagree")

    async def page(
        self,
        res: Resource,
        namespace: str | None = None,
        *,
        revision: int | None = None,
        limit: int = 500,
        start_key: str | None = None,
    ) -> Listing:
        """One page; `start_key` and `revision` come from the page before. Raises Expired when that is too old."""
        try:
            if namespace is not None and res.node_bound:
                return await self._page_by_name(res, namespace, revision, limit, start_key)
            prefix = self.list_prefix(res, namespace)
            page = await self._store_call(
                self._page(start_key or prefix, prefix_end(prefix), revision, limit)
            )
        except Compacted as gone:
            raise errors.Expired(str(gone)) from gone
        except FutureRevision as ahead:
            raise errors.Expired(str(ahead)) from ahead
        return Listing([_stored(kv) for kv in page.items], page.revision, page.next_key)

    def list_prefix(self, res: Resource, namespace: str | None) -> str:
        """The prefix of the keys that `page` walks through: its `start_key` and `next_key` begin with it."""
        if namespace is None:
            return self.keys.objects(res)
        if res.node_bound:
            return self.keys.names(res, namespace)
        return f"{self.keys.objects(res)}{SHARED}/{namespace}/"

    def page_key(self, res: Resource, namespace: str | None, stored: Stored) -> str:
        """The `start_key` of a page that begins with `stored`."""
        if namespace is not None and res.node_bound:
            return self.keys.name(res, namespace, split_object_key(stored.key)[2])
        return stored.key

    async def _page_by_name(
        self, res: Resource, namespace: str, revision: int | None, limit: int, start_key: str | None
    ) -> Listing:
        prefix = self.keys.names(res, namespace)
        names = await self._store_call(self._page(start_key or prefix, prefix_end(prefix), revision, limit))
        items: list[Stored] = []
        for index in names.items:
            partition = msgspec.json.decode(index.value, type=NameRecord).p
            key = self.keys.object(res, partition, namespace, index.key.rsplit("/", 1)[1])
            page = await self._store_call(self._page(key, key + "\0", names.revision, 1))
            items.extend(_stored(kv) for kv in page.items)
        return Listing(items, names.revision, names.next_key)

    # -- writes -----------------------------------------------------------------------------------------------

    def partition(self, res: Resource, obj: Object) -> str:
        """Where `obj` lies: a Node in its slot, a bound Pod or a Device in its node's (`create`, `bind`, `place`), the rest
        shared."""
        if res == NODES:
            return partition_of_slot(slot_of(node_affinity(obj), self._slots))
        return SHARED

    async def create(
        self, res: Resource, obj: Object, *, fence: Fence | None = None, within: Stored | None = None
    ) -> Stored:
        """Stores a new object; sets uid, creationTimestamp and generation where they are absent. A Pod or Device that names a
        node is created in that node's partition, or shared until there is such a Node (`place`). `within`: its namespace
        as it was read, which must not have changed since, so that nothing is created in one that is being deleted.
        Raises AlreadyExists, TooLarge, Conflict (the namespace changed)."""
        meta = obj["metadata"]
        meta.setdefault("uid", str(uuids.uuid4()))
        meta.setdefault("creationTimestamp", now_rfc3339())
        meta.pop("resourceVersion", None)
        namespace, name = meta.get("namespace", ""), meta["name"]
        raw = exact(obj)
        index_key = self.keys.name(res, namespace, name)
        for _ in range(MUTATE_ATTEMPTS):
            partition, compares = self.partition(res, obj), [Compare(index_key, 0)]
            if within is not None:
                compares.append(Compare(within.key, within.revision))
            if res in BOUND and obj["spec"].get("nodeName"):
                partition, node = await self._node_partition(obj["spec"]["nodeName"])
                compares.append(node)
            key = self.keys.object(res, partition, namespace, name)
            index = msgspec.json.encode(NameRecord(partition, meta["uid"]))
            result = await self._txn(res, name, compares, [Put(index_key, index), Put(key, raw)], fence)
            if result.succeeded:
                return Stored(key, partition, result.revision, raw)
            now = dict(zip([c.key for c in compares], result.current[-len(compares) :], strict=True))
            if now[index_key] is not None:
                raise errors.AlreadyExists(res.resource, name, group=res.group)
            if within is not None and _revision(now[within.key]) != within.revision:
                raise errors.Conflict(NAMESPACES.resource, namespace)
            # Its Node came or went between the two.
        raise errors.Conflict(res.resource, name, group=res.group)

    async def replace(
        self, res: Resource, stored: Stored, obj: Object, *, fence: Fence | None = None
    ) -> Stored:
        """Writes `obj` over the state that was read as `stored`. Unchanged bytes are not written: the same Stored comes
        back. Raises Conflict when the object changed since, NotFound when it is gone."""
        name = obj["metadata"]["name"]
        obj = {**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}}
        raw = exact(obj)
        if raw == stored.raw:
            return stored
        result = await self._txn(
            res, name, [Compare(stored.key, stored.revision)], [Put(stored.key, raw)], fence
        )
        if not result.succeeded:
            namespace = obj["metadata"].get("namespace", "")
            if await self.find(res, namespace, name) is None:
                raise errors.NotFound(res.resource, name, group=res.group)
            raise errors.Conflict(res.resource, name, group=res.group)
        return Stored(stored.key, stored.partition, result.revision, raw)

    async def mutate(
        self,
        res: Resource,
        namespace: str,
        name: str,
        change: Callable[[Object], Object | None],
        *,
        uid: str | None = None,
        fence: Fence | None = None,
    ) -> Stored:
        """Reads, lets `change` alter the dict (None: leave it), writes; again on a conflict. Raises NotFound (also when the
        UID differs), and Conflict after MUTATE_ATTEMPTS."""
        for attempt in range(MUTATE_ATTEMPTS):
            stored = await self.get(res, namespace, name)
            obj = stored.obj()
            if uid is not None and obj["metadata"]["uid"] != uid:
                raise errors.NotFound(res.resource, name, group=res.group)
            new = change(obj)
            if new is None:
                return stored
            try:
                return await self.replace(res, stored, new, fence=fence)
            except errors.Conflict:
                await asyncio.sleep(0.001 * attempt)
        raise errors.Conflict(res.resource, name, group=res.group)

    async def mutate_many(
        self, changes: Sequence[Change], *, fence: Fence | None = None
    ) -> list[Stored | errors.ApiError]:
        """Applies up to BATCH_OBJECTS_MAX changes of different objects in one transaction; what conflicts is read and
        derived again, what is not found or fails in `apply` with an ApiError fails alone. Results are in the order of
        `changes`. Raises FenceLost, ServiceUnavailable."""
        if len(changes) > BATCH_OBJECTS_MAX:
            raise ValueError(f"{len(changes)} changes, at most {BATCH_OBJECTS_MAX} in one batch")
        results: dict[int, Stored | errors.ApiError] = {}
        left = list(range(len(changes)))
        for attempt in range(MUTATE_ATTEMPTS):
            left = await self._try_batch(changes, left, results, fence)
            if not left:
                return [results[i] for i in range(len(changes))]
            await asyncio.sleep(0.001 * attempt)
        for i in left:
            results[i] = errors.Conflict(changes[i].res.resource, changes[i].name, group=changes[i].res.group)
        return [results[i] for i in range(len(changes))]

    async def _try_batch(
        self,
        changes: Sequence[Change],
        indexes: list[int],
        results: dict[int, "Stored | errors.ApiError"],
        fence: Fence | None,
    ) -> list[int]:
        compares: list[Compare] = []
        ops: list[Put | Delete] = []
        written: list[tuple[int, Stored, bytes]] = []
        known = await self._where_likely(changes, indexes)
        for i in indexes:
            change = changes[i]
            try:
                stored = known.get(i) or await self.get(change.res, change.namespace, change.name)
                obj = stored.obj()
                if change.uid is not None and obj["metadata"]["uid"] != change.uid:
                    raise errors.NotFound(change.res.resource, change.name, group=change.res.group)
                new = change.apply(obj)
            except errors.ApiError as failure:
                results[i] = failure
                continue
            if new is not None:
                new["metadata"].pop("resourceVersion", None)
            raw = stored.raw if new is None else exact(new)
            if raw == stored.raw:
                results[i] = stored
                continue
            compares.append(Compare(stored.key, stored.revision))
            ops.append(Put(stored.key, raw))
            written.append((i, stored, raw))
        if not ops:
            return []
        result = await self._txn(changes[indexes[0]].res, "", compares, ops, fence)
        if not result.succeeded:
            return [i for i, _, _ in written]
        for i, stored, raw in written:
            results[i] = Stored(stored.key, stored.partition, result.revision, raw)
        return []

    async def _where_likely(self, changes: Sequence[Change], indexes: list[int]) -> dict[int, Stored]:
        """Those that lie where they are likely to, in one read. What cannot be read so is read alone, and fails alone."""
        keys: dict[str, int] = {}
        for i in indexes:
            c = changes[i]
            if c.partition is not None:
                keys[self.keys.object(c.res, c.partition, c.namespace, c.name)] = i
        try:
            found = await self.store.get_many(list(keys)) if keys else []
        except (Unavailable, HistoryLost):
            return {}
        return {keys[kv.key]: _stored(kv) for kv in found if kv is not None}

    async def bind(
        self, namespace: str, name: str, uid: str, node: str, *, fence: Fence | None = None
    ) -> Stored:
        """Sets a Pod's node and moves it to the node's partition in one transaction. Raises NotFound, Conflict when it is
        bound already or being deleted."""
        for _ in range(MUTATE_ATTEMPTS):
            partition, there = await self._node_partition(node)
            stored = await self.get(PODS, namespace, name)
            obj = stored.obj()
            meta = obj["metadata"]
            if meta["uid"] != uid:
                raise errors.NotFound(PODS.resource, name, group=PODS.group)
            if obj["spec"].get("nodeName"):
                taken = f'pod {name} is already assigned to node "{obj["spec"]["nodeName"]}"'
                raise errors.Conflict(PODS.resource, name, taken)
            if meta.get("deletionTimestamp"):
                raise errors.Conflict(
                    PODS.resource, name, f"pod {name} is being deleted, cannot be assigned to a host"
                )
            obj["spec"]["nodeName"] = node
            _set_condition(obj, "PodScheduled")
            meta.pop("resourceVersion")
            moved = await self._move(stored, exact(obj), uid, partition, there, fence)
            if moved is not None:
                return moved
        raise errors.Conflict(PODS.resource, name)

    async def place(
        self, namespace: str, name: str, uid: str, *, res: Resource = PODS, fence: Fence | None = None
    ) -> Stored:
        """Moves a Pod or Device that names a node, and was created before the Node was, to the Node's partition, unchanged.
        A Device follows a Node that was made anew elsewhere; a Pod does not, for it goes with its Node. Where there is no Node
        (yet), or it lies there already, it stays. Raises NotFound, and Conflict after MUTATE_ATTEMPTS."""
        for _ in range(MUTATE_ATTEMPTS):
            stored = await self.get(res, namespace, name)
            obj = orjson.loads(stored.raw)
            if obj["metadata"]["uid"] != uid:
                raise errors.NotFound(res.resource, name, group=res.group)
            node = obj["spec"].get("nodeName")
            if not node or (stored.partition != SHARED and res == PODS):
                return stored
            partition, there = await self._node_partition(node)
            if partition in (SHARED, stored.partition):
                return stored
            moved = await self._move(stored, stored.raw, uid, partition, there, fence, res)
            if moved is not None:
                return moved
        raise errors.Conflict(res.resource, name, group=res.group)

    async def _move(
        self,
        stored: Stored,
        raw: bytes,
        uid: str,
        partition: str,
        there: Compare,
        fence: Fence | None,
        res: Resource = PODS,
    ) -> Stored | None:
        """Puts an object as `raw` into its node's partition; None when it, or its Node, has changed meanwhile."""
        _, namespace, name = split_object_key(stored.key)
        key = self.keys.object(res, partition, namespace, name)
        index = msgspec.json.encode(NameRecord(partition, uid))
        ops: list[Put | Delete] = [Put(key, raw), Put(self.keys.name(res, namespace, name), index)]
        if key != stored.key:
            ops.append(Delete(stored.key))
        result = await self._txn(res, name, [Compare(stored.key, stored.revision), there], ops, fence)
        return Stored(key, partition, result.revision, raw) if result.succeeded else None

    async def remove(self, res: Resource, stored: Stored, *, fence: Fence | None = None) -> int:
        """Takes the object out of the store; returns the revision. Raises Conflict when it changed since it was read."""
        _, namespace, name = split_object_key(stored.key)
        ops = [Delete(stored.key), Delete(self.keys.name(res, namespace, name))]
        result = await self._txn(res, name, [Compare(stored.key, stored.revision)], ops, fence)
        if not result.succeeded:
            if await self.find(res, namespace, name) is None:
                raise errors.NotFound(res.resource, name, group=res.group)
            raise errors.Conflict(res.resource, name, group=res.group)
        return result.revision

    # -- helpers ----------------------------------------------------------------------------------------------

    async def _node_partition(self, node: str) -> tuple[str, Compare]:
        """The partition of what is bound to `node`, and what holds as long as that is so. Shared while there is no such
        Node: its site, and so its slot, is not known."""
        key = self.keys.name(NODES, "", node)
        index = await self._store_call(self.store.get(key))
        if index is None:
            return SHARED, Compare(key, 0)
        return msgspec.json.decode(index.value, type=NameRecord).p, Compare(key, index.mod_revision)

    async def _txn(
        self,
        res: Resource,
        name: str,
        compares: list[Compare],
        ops: Sequence[Put | Delete],
        fence: Fence | None,
    ) -> TxnResult:
        if fence is not None:
            if not self.live():
                raise errors.ServiceUnavailable(
                    "this hub's lease has not been renewed; it may not write as an owner"
                )
            compares = [Compare(fence.key, fence.mod_revision), *compares]
        began, outcome = time.monotonic(), "failed"
        try:
            result = await self.store.txn(compares, ops)
            outcome = "committed" if result.succeeded else "conflict"
        except ValueTooLarge as large:
            raise errors.TooLarge(f"{res.resource} {name}: {large}") from large
        except Unreadable as sealed:
            raise errors.InternalError(str(sealed)) from sealed
        except (Unavailable, Ambiguous, HistoryLost) as failure:
            raise errors.ServiceUnavailable(str(failure)) from failure
        finally:
            if self.took is not None:
                self.took(time.monotonic() - began, outcome)
        if not result.succeeded and fence is not None:
            held = result.current[0]
            if held is None or held.mod_revision != fence.mod_revision:
                self.fences_lost += 1
                raise FenceLost(fence.key)
        return result

    async def _get(self, key: str) -> KeyValue | None:
        return await self.store.get(key, stale=self._stale)

    async def _page(self, start: str, end: str, revision: int | None, limit: int) -> Page:
        return await self.store.page(start, end, revision=revision, limit=limit, stale=self._stale)

    async def _store_call(self, call: Any) -> Any:
        try:
            return await call
        except Unreadable as sealed:
            raise errors.InternalError(str(sealed)) from sealed
        except (Unavailable, HistoryLost) as failure:
            raise errors.ServiceUnavailable(str(failure)) from failure


def _stored(kv: KeyValue) -> Stored:
    return Stored(kv.key, split_object_key(kv.key)[0], kv.mod_revision, kv.value)


def _revision(kv: KeyValue | None) -> int:
    return kv.mod_revision if kv is not None else 0


def _set_condition(pod: Object, kind: str) -> None:
    conditions = [c for c in pod.setdefault("status", {}).get("conditions") or [] if c["type"] != kind]
    conditions.append(
        {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": now_rfc3339()}
    )
    pod["status"]["conditions"] = conditions
