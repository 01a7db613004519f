"""Objects on store keys: unique names, optimistic concurrency, partitions, fences.

The one place that writes objects. It knows keys, the name index and transactions, not HTTP, defaulting or
validation: its callers hand it objects that are ready to be stored.

Invariants: an object and its entry in the name index change in one transaction; a write made as a slot's owner
carries the slot's fence; an object's resourceVersion is its key's mod revision and is never part of its bytes.
"""

import asyncio
import datetime
import uuid as uuids
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import orjson

from hub import errors
from hub.cache import with_revision
from hub.objects import NAMESPACES, NODES, PODS, SHARED, Keys, Resource, partition_of_slot, split_object_key
from hub.store.base import (
    Ambiguous,
    Compacted,
    Compare,
    Delete,
    FutureRevision,
    KeyValue,
    Put,
    Store,
    TxnResult,
    Unavailable,
    ValueTooLarge,
    prefix_end,
)
from shards.claims import Fence
from shards.ring import slot_of

MUTATE_ATTEMPTS = 16
BATCH_OBJECTS_MAX = 100
"""Objects of one status transaction: etcd allows 128 compares and the fence is one of them."""

Object = dict[str, Any]


class NameRecord(msgspec.Struct, frozen=True):
    """A value of the name index: partition and UID."""

    p: str
    u: str


@dataclass(frozen=True, slots=True)
class Stored:
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
    A different UID than `uid` (when given) counts as not found."""

    res: Resource
    namespace: str
    name: str
    uid: str | None
    apply: Callable[[Object], Object | None]


class Fences(Protocol):
    """Who knows the fence of each slot that this replica owns (`shards.member`)."""

    def fence(self, slot: int) -> Fence | None: ...


class FenceLost(Exception):
    """The slot has another owner now: this replica must stop acting for it."""


def now_rfc3339() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def node_affinity(node: Object) -> str:
    """What decides a Node's slot: its site where it has one, else its name. Fixed at enrolment."""
    labels = node["metadata"].get("labels") or {}
    return str(labels.get("cloudhub.dev/site") or node["metadata"]["name"])


class Registry:
    """Typed access to the objects of one store. Raises `hub.errors.ApiError`s; a fenced write that lost its slot raises
    FenceLost."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self.store = store
        self.keys = keys
        self._slots = store.identity.slots

    # -- reads ------------------------------------------------------------------------------------------------

    async def get(self, res: Resource, namespace: str, name: str) -> Stored:
        """Raises NotFound."""
        stored = await self.find(res, namespace, name)
        if stored is None:
            raise errors.NotFound(res.resource, name, group=res.group)
        return stored

    async def find(self, res: Resource, namespace: str, name: str) -> Stored | None:
        for _ in range(MUTATE_ATTEMPTS):
            index = await self._store_call(self.store.get(self.keys.name(res, namespace, name)))
            if index is None:
                return None
            partition = msgspec.json.decode(index.value, type=NameRecord).p
            kv = await self._store_call(self.store.get(self.keys.object(res, partition, namespace, name)))
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
                self.store.page(start_key or prefix, prefix_end(prefix), revision=revision, limit=limit)
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
        names = await self._store_call(
            self.store.page(start_key or prefix, prefix_end(prefix), revision=revision, limit=limit)
        )
        items: list[Stored] = []
        for index in names.items:
            partition = msgspec.json.decode(index.value, type=NameRecord).p
            key = self.keys.object(res, partition, namespace, index.key.rsplit("/", 1)[1])
            page = await self._store_call(self.store.page(key, key + "\0", revision=names.revision, limit=1))
            items.extend(_stored(kv) for kv in page.items)
        return Listing(items, names.revision, names.next_key)

    # -- writes -----------------------------------------------------------------------------------------------

    def partition(self, res: Resource, obj: Object) -> str:
        """Where `obj` lies: a Node in its slot, a bound Pod in its node's (through `bind`), the rest shared."""
        if res == NODES:
            return partition_of_slot(slot_of(node_affinity(obj), self._slots))
        return SHARED

    async def create(
        self, res: Resource, obj: Object, *, fence: Fence | None = None, within: Stored | None = None
    ) -> Stored:
        """Stores a new object; sets uid, creationTimestamp and generation where they are absent. A Pod that names a
        node is created in that node's partition. `within`: its namespace as it was read, which must not have changed
        since, so that nothing is created in one that is being deleted. Raises AlreadyExists, TooLarge, Conflict (the
        namespace changed)."""
        meta = obj["metadata"]
        meta.setdefault("uid", str(uuids.uuid4()))
        meta.setdefault("creationTimestamp", now_rfc3339())
        meta.pop("resourceVersion", None)
        namespace, name = meta.get("namespace", ""), meta["name"]
        partition = self.partition(res, obj)
        if res == PODS and obj["spec"].get("nodeName"):
            partition = await self.node_partition(obj["spec"]["nodeName"])
        raw = orjson.dumps(obj)
        index_key = self.keys.name(res, namespace, name)
        key = self.keys.object(res, partition, namespace, name)
        index = msgspec.json.encode(NameRecord(partition, meta["uid"]))
        compares = [Compare(index_key, 0)]
        if within is not None:
            compares.append(Compare(within.key, within.revision))
        result = await self._txn(res, name, compares, [Put(index_key, index), Put(key, raw)], fence)
        if not result.succeeded:
            if within is not None and result.current[-2] is None:
                raise errors.Conflict(NAMESPACES.resource, namespace)
            raise errors.AlreadyExists(res.resource, name, group=res.group)
        return Stored(key, partition, result.revision, raw)

    async def replace(
        self, res: Resource, stored: Stored, obj: Object, *, fence: Fence | None = None
    ) -> Stored:
        """Writes `obj` over the state that was read as `stored`. Unchanged bytes are not written: the same Stored comes
        back. Raises Conflict when the object changed since, NotFound when it is gone."""
        name = obj["metadata"]["name"]
        obj = {**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}}
        raw = orjson.dumps(obj)
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
        for i in indexes:
            change = changes[i]
            try:
                stored = await self.get(change.res, change.namespace, change.name)
                obj = stored.obj()
                if change.uid is not None and obj["metadata"]["uid"] != change.uid:
                    raise errors.NotFound(change.res.resource, change.name, group=change.res.group)
                new = change.apply(obj)
            except errors.ApiError as failure:
                results[i] = failure
                continue
            if new is not None:
                new["metadata"].pop("resourceVersion", None)
            raw = stored.raw if new is None else orjson.dumps(new)
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

    async def bind(self, namespace: str, name: str, uid: str, node: str) -> Stored:
        """Sets a Pod's node and moves it to the node's partition in one transaction. Raises NotFound, Conflict when it is
        bound already or being deleted."""
        partition = await self.node_partition(node)
        for _ in range(MUTATE_ATTEMPTS):
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
            raw = orjson.dumps(obj)
            index_key = self.keys.name(PODS, namespace, name)
            key = self.keys.object(PODS, partition, namespace, name)
            ops: list[Put | Delete] = [Delete(stored.key), Put(key, raw)]
            ops.append(Put(index_key, msgspec.json.encode(NameRecord(partition, uid))))
            result = await self._txn(PODS, name, [Compare(stored.key, stored.revision)], ops, None)
            if result.succeeded:
                return Stored(key, partition, result.revision, raw)
        raise errors.Conflict(PODS.resource, name)

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

    async def node_partition(self, node: str) -> str:
        """The partition of what is bound to `node`. A node that does not exist (yet) counts as one without a site."""
        index = await self._store_call(self.store.get(self.keys.name(NODES, "", node)))
        if index is None:
            return partition_of_slot(slot_of(node, self._slots))
        return msgspec.json.decode(index.value, type=NameRecord).p

    async def _txn(
        self,
        res: Resource,
        name: str,
        compares: list[Compare],
        ops: Sequence[Put | Delete],
        fence: Fence | None,
    ) -> TxnResult:
        if fence is not None:
            compares = [Compare(fence.key, fence.mod_revision), *compares]
        try:
            result = await self.store.txn(compares, ops)
        except ValueTooLarge as large:
            raise errors.TooLarge(f"{res.resource} {name}: {large}") from large
        except (Unavailable, Ambiguous) as failure:
            raise errors.ServiceUnavailable(str(failure)) from failure
        if not result.succeeded and fence is not None:
            held = result.current[0]
            if held is None or held.mod_revision != fence.mod_revision:
                raise FenceLost(fence.key)
        return result

    async def _store_call(self, call: Any) -> Any:
        try:
            return await call
        except Unavailable as failure:
            raise errors.ServiceUnavailable(str(failure)) from failure


def _stored(kv: KeyValue) -> Stored:
    return Stored(kv.key, split_object_key(kv.key)[0], kv.mod_revision, kv.value)


def _set_condition(pod: Object, kind: str) -> None:
    conditions = [c for c in pod.setdefault("status", {}).get("conditions") or [] if c["type"] != kind]
    conditions.append(
        {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": now_rfc3339()}
    )
    pod["status"]["conditions"] = conditions
