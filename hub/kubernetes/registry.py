"""Objects of a Kubernetes API server behind the surface of `hub.registry.Registry`: fencing without transactions.

The API server knows nothing of slots, so no write can compare an epoch. What holds instead: a write made as an owner is
sent only while the fence still is ours, looked at in the turn of the loop that sends it; it carries the UID and the
resourceVersion of the state that it was derived from. When it meets a conflict the fence is read again from the hub's
own store, and the change is derived anew from a fresh read; nothing is sent a second time as it was. So a write of an
owner that was, which comes late, meets either an object that its successor has changed, and is refused, or one that the
successor has still to write, which then derives its own from what it finds; what slips through, `repair` puts right.

Not guaranteed: that several objects change together; `mutate_many` are single writes side by side.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
import orjson

from hub import errors
from hub.kubernetes import nodes, tokens
from hub.kubernetes.copies import Copies
from hub.kubernetes.nodes import NodeForm
from hub.kubernetes.pacing import Bucket
from hub.kubernetes.patches import MERGE_PATCH, Patch, patches, path_of
from hub.mirror import Mirror
from hub.objects import EVENTS, JOINTOKENS, NODES, PODS, SHARED, Keys, Resource, partition_of_slot
from hub.registry import BOUND, MUTATE_ATTEMPTS, Change, FenceLost, Object, Stored, node_affinity
from shards.claims import Fence
from shards.kv import HistoryLost, Store, Unavailable
from shards.ownership import Ownership
from shards.ring import slot_of

log = logging.getLogger(__name__)

CONFLICT_PAUSE_S: Final = 0.01
"""After the first conflict; twice as long after each further one, up to CONFLICT_PAUSE_MAX_S."""
CONFLICT_PAUSE_MAX_S: Final = 1.0


class Api(Protocol):
    """As much of `hub.kubernetes.client.KubeClient` as is used here. `before` is called right before a request is sent,
    also before each further try; what it raises is raised, and nothing is sent. `apart`: it waits behind no others."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        before: Callable[[], None] | None = None,
        apart: bool = False,
    ) -> tuple[int, bytes]: ...


class EventSink(Protocol):
    """Who writes Events (`hub.kubernetes.events`)."""

    async def write(self, event: Object, before: Callable[[], None]) -> int: ...


@dataclass(frozen=True, slots=True)
class WriteLimits:
    """Bounds of the writes that are made for nodes. After an outage all that waited leaves at `per_second`.

    at_once: writes under way together, each with the reads that it needs.
    per_second: requests of these writes, `burst` of them at once.
    """

    at_once: int = 16
    per_second: float = 50.0
    burst: int = 100

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise ValueError(f"at_once is {self.at_once}; at least one write has to be allowed")


class _Meta(msgspec.Struct, frozen=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""
    labels: dict[str, str] | None = None


class _Spec(msgspec.Struct, frozen=True):
    nodeName: str = ""


class _View(msgspec.Struct, frozen=True):
    kind: str = ""
    metadata: _Meta = _Meta()
    spec: _Spec = _Spec()


_view = msgspec.json.Decoder(_View).decode


def owned_by(ownership: Ownership, keys: Keys) -> Callable[[Fence], bool]:
    """Whether a fence is that of a slot which is ours at this moment: for `KubeRegistry.owns`."""
    prefix, suffix = keys.root + "slot/", "/epoch"

    def owns(fence: Fence) -> bool:
        slot = fence.key.removeprefix(prefix).removesuffix(suffix)
        return slot.isdigit() and ownership.fence(int(slot)) == fence

    return owns


class KubeRegistry:
    """See the module. `store`: the hub's own, where the fences lie. Raises as `hub.registry.Registry` does; what is no
    fault of the object (credentials, rights, throttling) is ServiceUnavailable, so that it is tried again."""

    def __init__(
        self,
        api: Api,
        store: Store,
        keys: Keys,
        form: NodeForm | None = None,
        limits: WriteLimits = WriteLimits(),
        *,
        now: Callable[[], float] | None = None,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self.store = store
        self.keys = keys
        self.live: Callable[[], bool] = lambda: True
        """As `Registry.live`: is the lease's deadline still ahead?"""
        self.owns: Callable[[Fence], bool] = lambda fence: True
        """Is this fence ours at this moment? Asked right before every fenced request."""
        self._copies = Copies(keys)
        self.events: EventSink | None = None
        """Who writes Events in place of this; None: they are created as they come."""
        self.wrote: Callable[[Stored], None] = lambda pod: None
        """Told of every Pod that is as its node reported it."""
        self.conflicts = 0
        self.fences_lost = 0
        self.written = 0
        self._api = api
        self.form = form or NodeForm()
        self._slots = store.identity.slots
        self._bucket = Bucket(limits.per_second, limits.burst)
        self._gate = asyncio.Semaphore(limits.at_once)
        self._now = now
        self._sleep = sleep

    @property
    def mirrors(self) -> dict[Resource, Mirror[Any]]:
        """What is followed anyway: an object is taken from there first, and read only after a conflict."""
        return self._copies.mirrors

    @mirrors.setter
    def mirrors(self, mirrors: dict[Resource, Mirror[Any]]) -> None:
        self._copies.mirrors = mirrors

    # -- reads ------------------------------------------------------------------------------------------------

    async def get(self, res: Resource, namespace: str, name: str) -> Stored:
        """Raises NotFound."""
        _, raw = await self._asked(self._api.request("GET", path_of(res, namespace, name)))
        return self._stored(res, raw)

    async def find(self, res: Resource, namespace: str, name: str) -> Stored | None:
        try:
            return await self.get(res, namespace, name)
        except errors.NotFound:
            return None

    def partition(self, res: Resource, obj: Object) -> str:
        """Where `obj` lies: a Node in its slot, a Pod or Device where its Node is, as far as that is known here; the rest is
        shared."""
        if res == NODES:
            return partition_of_slot(slot_of(node_affinity(obj), self._slots))
        return self._partition_of(obj["spec"].get("nodeName") or "") if res in BOUND else SHARED

    def _partition_of(self, node: str) -> str:
        mirror = self.mirrors.get(NODES)
        entry = mirror.cache.get("", node) if mirror is not None and node else None
        return entry.partition if entry is not None else SHARED

    # -- writes -----------------------------------------------------------------------------------------------

    async def create(
        self, res: Resource, obj: Object, *, fence: Fence | None = None, within: Stored | None = None
    ) -> Stored:
        """Makes an object; a Node gets what all Nodes of ours carry. `within` says nothing here: the API server itself
        takes nothing into a namespace that is going. Raises AlreadyExists, Invalid and what else the server says."""
        meta = {
            k: v
            for k, v in obj["metadata"].items()
            if k not in ("uid", "resourceVersion", "creationTimestamp")
        }
        obj = {**obj, "metadata": meta}
        namespace = meta.get("namespace", "")
        before = self.guard(fence)
        if res == EVENTS and self.events is not None:
            revision = await self._asked(self.events.write(obj, before), final_forbidden=True)
            return Stored(
                self.keys.object(res, SHARED, namespace, meta["name"]), SHARED, revision, orjson.dumps(obj)
            )
        if res == NODES:
            nodes.register(obj, self.form)
        sent = tokens.to_api(obj) if res == JOINTOKENS else obj
        try:
            raw = await self._write(
                "POST", path_of(res, namespace), sent, fence, before, final_forbidden=res == EVENTS
            )
        except errors.AlreadyExists:
            if res == NODES:
                await self._show(meta["name"], fence)
            raise
        return self._noted(res, raw)

    async def replace(
        self, res: Resource, stored: Stored, obj: Object, *, fence: Fence | None = None
    ) -> Stored:
        """Writes the difference between the state that was read as `stored` and `obj`; where there is none nothing is
        written, and the same Stored comes back. A Pod whose grace is set to 0 is deleted so, which is how a kubelet
        says that nothing is left of one that still has finalizers. Raises Conflict when the object changed since,
        NotFound when it is gone."""
        old = stored.obj()
        if res == NODES:
            if not nodes.is_ours(old):
                why = f"it is a node of the cluster that is not at the edge; choose another name, or label it {nodes.EDGE}=true"
                raise errors.Forbidden(res.resource, old["metadata"]["name"], why)
            nodes.furnish(obj, self.form)
        if (
            res == PODS
            and obj["metadata"].get("deletionGracePeriodSeconds") == 0
            and old["metadata"].get("deletionGracePeriodSeconds") != 0
        ):
            raw = await self._delete(res, stored, old, fence)
            return self._noted(res, raw) if _view(raw).kind == res.kind else stored
        if res == JOINTOKENS:
            wanted: list[Patch] = patches(res, tokens.to_api(old), tokens.to_api(obj))
        else:
            wanted = patches(res, old, obj)
        for patch in wanted:
            stored = await self._patch(res, stored, patch, fence)
        if res == PODS:
            self.wrote(stored)
        return stored

    async def _patch(self, res: Resource, stored: Stored, patch: Patch, fence: Fence | None) -> Stored:
        view = _view(stored.raw).metadata
        path = path_of(res, view.namespace, view.name, patch.subresource)
        body = patch.guarded(view.uid, stored.revision)
        raw = await self._write("PATCH", path, body, fence, self.guard(fence), MERGE_PATCH)
        self.written += 1
        return self._noted(res, raw)

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
        """Takes what a mirror knows, else reads; lets `change` alter the dict (None: leave it) and writes; after a conflict
        the fence is verified and all begins with a fresh read. Raises NotFound (also when the UID differs), Conflict
        after MUTATE_ATTEMPTS, FenceLost."""
        for attempt in range(MUTATE_ATTEMPTS):
            copy = self._copies.get(res, namespace, name) if attempt == 0 else None
            try:
                return await self._try(res, namespace, name, change, uid, fence, copy)
            except errors.Conflict:
                self.conflicts += 1
                await self.verify(fence)
                if copy is None:
                    await self._sleep(min(CONFLICT_PAUSE_S * 2**attempt, CONFLICT_PAUSE_MAX_S))
            except errors.NotFound:
                if copy is None:
                    raise  # else the mirror is behind, or the object was made anew under its name
        raise errors.Conflict(res.resource, name, group=res.group)

    async def _try(
        self,
        res: Resource,
        namespace: str,
        name: str,
        change: Callable[[Object], Object | None],
        uid: str | None,
        fence: Fence | None,
        copy: Stored | None,
    ) -> Stored:
        stored = copy or await self._read(res, namespace, name, fence)
        obj = stored.obj()
        if uid is not None and obj["metadata"]["uid"] != uid:
            raise errors.NotFound(res.resource, name, group=res.group)
        new = change(obj)
        return stored if new is None else await self.replace(res, stored, new, fence=fence)

    async def mutate_many(
        self, changes: Sequence[Change], *, fence: Fence | None = None
    ) -> list[Stored | errors.ApiError]:
        """Single writes, side by side within the bound. What fails with an ApiError fails alone. Results are in the order
        of `changes`. Raises FenceLost, when all that were under way have ended."""
        results = await asyncio.gather(
            *(self._change(change, fence) for change in changes), return_exceptions=True
        )
        done: list[Stored | errors.ApiError] = []
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, errors.ApiError):
                raise result
            done.append(result)
        return done

    async def _change(self, change: Change, fence: Fence | None) -> Stored:
        async with self._gate:
            return await self.mutate(
                change.res, change.namespace, change.name, change.apply, uid=change.uid, fence=fence
            )

    async def remove(self, res: Resource, stored: Stored, *, fence: Fence | None = None) -> int:
        """Deletes the object, a Pod at once and for good as its kubelet would; returns the revision. Raises Conflict when
        it changed since it was read, NotFound when it is gone."""
        raw = await self._delete(res, stored, stored.obj(), fence)
        view = _view(raw)
        return max(stored.revision, _revision(view.metadata) if view.kind == res.kind else 0)

    async def _delete(self, res: Resource, stored: Stored, old: Object, fence: Fence | None) -> bytes:
        meta = old["metadata"]
        body: Object = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": meta["uid"], "resourceVersion": str(stored.revision)},
        }
        if res == PODS:
            body["gracePeriodSeconds"] = 0
        path = path_of(res, meta.get("namespace", ""), meta["name"])
        try:
            return await self._write("DELETE", path, body, fence, self.guard(fence))
        except errors.Conflict:
            self.conflicts += 1
            await self.verify(fence)
            raise

    async def _show(self, name: str, fence: Fence | None) -> None:
        """Gives a Node of ours its label back: without it informers do not see it, and its agent is not served."""

        def furnished(node: Object) -> Object | None:
            seen = (node["metadata"].get("labels") or {}).get(nodes.EDGE) == "true"
            return node if nodes.is_ours(node) and not seen else None

        with contextlib.suppress(errors.NotFound):
            await self.mutate(NODES, "", name, furnished, fence=fence)

    # -- fences -----------------------------------------------------------------------------------------------

    def guard(self, fence: Fence | None) -> Callable[[], None]:
        """What is called in the very turn in which a request leaves."""

        def check() -> None:
            if fence is None:
                return
            if not self.live():
                raise errors.ServiceUnavailable(
                    "this hub's lease has not been renewed; it may not write as an owner"
                )
            if not self.owns(fence):
                self.fences_lost += 1
                raise FenceLost(fence.key)

        return check

    async def verify(self, fence: Fence | None) -> None:
        """Reads the fence from the hub's own store. Raises FenceLost, ServiceUnavailable."""
        if fence is None:
            return
        try:
            held = await self.store.get(fence.key)
        except (Unavailable, HistoryLost) as failure:
            raise errors.ServiceUnavailable(str(failure)) from failure
        if held is None or held.mod_revision != fence.mod_revision:
            self.fences_lost += 1
            raise FenceLost(fence.key)

    # -- requests ---------------------------------------------------------------------------------------------

    def _stored(self, res: Resource, raw: bytes) -> Stored:
        view = _view(raw)
        meta = view.metadata
        if res == NODES:
            named: Object = {"metadata": {"name": meta.name, "labels": meta.labels}}
            partition = self.partition(res, named)
        else:
            partition = self._partition_of(view.spec.nodeName) if res in BOUND else SHARED
        if res == JOINTOKENS:
            raw = orjson.dumps(tokens.from_api(orjson.loads(raw)))
        key = self.keys.object(res, partition, meta.namespace, meta.name)
        return Stored(key, partition, _revision(meta), raw)

    def _noted(self, res: Resource, raw: bytes) -> Stored:
        """What a write was answered with: a mirror may be behind it."""
        stored = self._stored(res, raw)
        view = _view(raw).metadata
        self._copies.wrote(res, view.namespace, view.name, stored.revision)
        return stored

    async def _read(self, res: Resource, namespace: str, name: str, fence: Fence | None) -> Stored:
        await self._paced(fence)
        return await self.get(res, namespace, name)

    async def _write(
        self,
        method: str,
        path: str,
        body: Object,
        fence: Fence | None,
        before: Callable[[], None],
        content_type: str = "application/json",
        final_forbidden: bool = False,
    ) -> bytes:
        before()
        await self._paced(fence)
        call = self._api.request(
            method, path, body=orjson.dumps(body), content_type=content_type, before=before
        )
        answer: tuple[int, bytes] = await self._asked(call, final_forbidden)
        return answer[1]

    async def _paced(self, fence: Fence | None) -> None:
        """Waits for its turn, where it is made for a node."""
        if fence is None:
            return
        now = self._now or asyncio.get_running_loop().time
        wait_s = self._bucket.take(now())
        if wait_s:
            await self._sleep(wait_s)

    async def _asked(self, call: Any, final_forbidden: bool = False) -> Any:
        """The answer. What tells of the hub or the server, and not of the object, becomes ServiceUnavailable."""
        try:
            return await call
        except (errors.Unauthorized, errors.TooManyRequests) as failure:
            if isinstance(failure, errors.TooManyRequests) and final_forbidden:
                raise
            raise errors.ServiceUnavailable(f"the API server refuses the hub: {failure.message}") from failure
        except errors.Forbidden as failure:
            if final_forbidden:
                raise
            log.warning("the API server refuses the hub; see its roles: %s", failure.message)
            raise errors.ServiceUnavailable(f"the hub may not: {failure.message}") from failure


def _revision(meta: _Meta) -> int:
    return int(meta.resourceVersion or 0)
