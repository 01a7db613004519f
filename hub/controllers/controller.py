"""The one driver of all controllers: takes keys from a queue, has them brought in line, and deals with what fails.

A controller is a `sync(key, writer)`: it reads the caches, asks a pure core what to do and does it through the writer.

Invariants:
- Before a key is synced again, the informers have reached every revision that its last sync wrote, and after an
  outcome that is unknown, the store's present revision. So a cache that lags never makes a controller create or
  delete twice; this is what client-go's expectations approximate.
- Every write carries the fence of the role that the controller runs under. While this replica may not act for the role
  nothing is synced or written; a write that the store refuses for its fence ends the whole set.
- A key that fails is tried again with back-off and holds up no other. An error that is not the API's own is a bug: it
  is logged with its traceback and counted in `bugs`; the hub goes on.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from hub import deletion, errors
from hub.controllers.clock import Clock, WallClock
from hub.controllers.workqueue import WorkQueue
from hub.deletion import DeleteOptions
from hub.informer import Delta, Informers
from hub.objects import NAMESPACES, PODS, Meta, Resource
from hub.registry import FenceLost, Registry, Stored
from shards.claims import Fence
from shards.kv import StoreError

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
Object = dict[str, Any]
ObjectKey = tuple[str, str]
"""(namespace or "", name)"""


PLAIN = DeleteOptions()
CREATE_ATTEMPTS = 3
"""Of one object, while its namespace changes."""


class Recorder(Protocol):
    """Who takes events about objects."""

    def event(self, res: Resource, about: Meta, type_: str, reason: str, message: str) -> None: ...


class Acting(Protocol):
    """May this replica act for the role, right now?"""

    def fence(self) -> Fence | None:
        """What every write has to carry; None while nothing may be written."""
        ...

    async def allowed(self) -> None:
        """Returns when `fence` gives one."""
        ...


class NotActing(Exception):
    """Nothing may be written at present: the deadline of the lease has passed, or the role is another replica's."""


@dataclass(frozen=True)
class Context:
    """What every controller gets. `admit` completes a Pod as the API would (defaults), in place."""

    registry: Registry
    informers: Informers
    recorder: Recorder
    admit: Callable[[Resource, Object], None]
    acting: Acting
    clock: Clock = field(default_factory=WallClock)


class Writer:
    """The registry under the role's fence, remembering up to which revision each kind was written. Everything here
    raises NotActing and FenceLost."""

    def __init__(self, context: Context) -> None:
        self.reached: dict[Resource, int] = {}
        self._context = context
        self._registry = context.registry

    def _note(self, res: Resource, revision: int) -> None:
        self.reached[res] = max(revision, self.reached.get(res, 0))

    def _fence(self) -> Fence:
        fence = self._context.acting.fence()
        if fence is None:
            raise NotActing
        return fence

    async def create(self, res: Resource, obj: Object) -> Stored:
        """As `Registry.create`, in a namespace that takes objects. Raises NotFound and Forbidden when it does not."""
        for attempt in range(CREATE_ATTEMPTS):
            within = self._namespace(res, obj)
            try:
                stored = await self._registry.create(res, obj, fence=self._fence(), within=within)
            except errors.Conflict:
                if within is None or attempt + 1 == CREATE_ATTEMPTS:
                    raise
                # The namespace is not what the cache shows.
                revision = await self._registry.store.revision()
                await self._context.informers.of(NAMESPACES).at_least(revision)
                continue
            self._note(res, stored.revision)
            return stored
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _namespace(self, res: Resource, obj: Object) -> Stored | None:
        if not res.namespaced:
            return None
        name = obj["metadata"]["namespace"]
        entry = self._context.informers.of(NAMESPACES).cache.get("", name)
        if entry is None:
            raise errors.NotFound(NAMESPACES.resource, name)
        if entry.meta.deletionTimestamp is not None:
            why = f"unable to create new content in namespace {name} because it is being terminated"
            raise errors.Forbidden(res.resource, obj["metadata"]["name"], why, group=res.group)
        key = self._registry.keys.object(NAMESPACES, entry.partition, "", name)
        return Stored(key, entry.partition, entry.revision, b"")

    async def replace(self, res: Resource, stored: Stored, obj: Object) -> Stored:
        """As `Registry.replace`."""
        new = await self._registry.replace(res, stored, obj, fence=self._fence())
        self._note(res, new.revision)
        return new

    async def mutate(
        self,
        res: Resource,
        key: ObjectKey,
        change: Callable[[Object], Object | None],
        uid: str,
    ) -> Stored:
        """As `Registry.mutate`."""
        new = await self._registry.mutate(res, key[0], key[1], change, uid=uid, fence=self._fence())
        self._note(res, new.revision)
        return new

    async def bind(self, key: ObjectKey, uid: str, node: str) -> Stored:
        """As `Registry.bind`."""
        stored = await self._registry.bind(key[0], key[1], uid, node, fence=self._fence())
        self._note(PODS, stored.revision)
        return stored

    async def place(self, key: ObjectKey, uid: str, res: Resource = PODS) -> Stored:
        """As `Registry.place`."""
        stored = await self._registry.place(key[0], key[1], uid, res=res, fence=self._fence())
        self._note(res, stored.revision)
        return stored

    async def delete(self, res: Resource, key: ObjectKey, uid: str, options: DeleteOptions = PLAIN) -> bool:
        """Deletes the object with this UID as the API would; False when there is none any more."""
        stored = await self._registry.find(res, *key)
        if stored is None or stored.obj()["metadata"]["uid"] != uid:
            return False
        now = self._context.clock.now()
        try:
            left = await deletion.delete(
                self._registry, res, stored, replace(options, uid=uid), fence=self._fence(), now=now
            )
        except errors.NotFound:
            return False
        await self._note_left(res, left)
        return True

    async def finalize(self, res: Resource, key: ObjectKey, uid: str, finalizer: str) -> None:
        """Takes `finalizer` off, and the object out of the store when nothing else holds it."""

        def change(obj: Object) -> Object | None:
            held = obj["metadata"].get("finalizers") or []
            if finalizer not in held:
                return None
            obj["metadata"]["finalizers"] = [f for f in held if f != finalizer]
            return obj

        try:
            stored = await self.mutate(res, key, change, uid)
        except errors.NotFound:
            return
        await self.release(res, stored)

    async def release(self, res: Resource, stored: Stored) -> None:
        """As `deletion.release`."""
        left = await deletion.release(self._registry, res, stored, fence=self._fence())
        await self._note_left(res, left)

    async def remove(self, res: Resource, stored: Stored) -> None:
        """As `Registry.remove`: takes the object out of the store, whatever its finalizers."""
        self._note(res, await self._registry.remove(res, stored, fence=self._fence()))

    async def _note_left(self, res: Resource, left: Stored | None) -> None:
        # A removal's revision is not told; the store's present one is not older.
        revision = left.revision if left is not None else await self._registry.store.revision()
        self._note(res, revision)


Sync = Callable[[K, Writer], Awaitable[float | None]]
"""Brings one key in line; returns seconds after which it wants to be looked at again, or None."""


class Controller(Generic[K]):
    """A queue, its workers, and the counters `syncs`, `failures` (errors of the API) and `bugs` (all other errors)."""

    def __init__(
        self, name: str, context: Context, sync: Sync[K], *, kinds: Iterable[Resource], workers: int = 1
    ) -> None:
        self.name = name
        self.queue: WorkQueue[K] = WorkQueue(context.clock)
        self.syncs = 0
        self.failures = 0
        self.bugs = 0
        self._context = context
        self._sync = sync
        self._kinds = tuple(kinds)
        self._workers = workers
        self._unsettled: set[K] = set()

    async def run(self) -> None:
        """Works until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for n in range(self._workers):
                    tasks.create_task(self._work(), name=f"{self.name} {n}")
        finally:
            self.queue.close()

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            try:
                await self._context.acting.allowed()
                await self._sync_one(key)
            finally:
                self.queue.done(key)
            await asyncio.sleep(0)  # a store that answers at once must not starve the loop

    async def _sync_one(self, key: K) -> None:
        writer = Writer(self._context)
        self.syncs += 1
        try:
            if key in self._unsettled:
                await self._settle_unknown(key)
            again = await self._sync(key, writer)
        except FenceLost:
            raise  # another replica acts for the role: nothing here may go on
        except NotActing:
            self._unsettled.add(key)
            self.queue.add(key)  # looked at anew when we may act again
        except (errors.ApiError, StoreError) as refused:
            self._failed(key, refused)
        except Exception:
            self.bugs += 1
            self._unsettled.add(key)
            delay = self.queue.retry(key)
            log.exception("%s: bug while syncing %s; tried again in %.3f s", self.name, key, delay)
        else:
            self.queue.forget(key)
            if again is not None:
                self.queue.add_after(key, again)
        for res, revision in writer.reached.items():
            if res in self._context.informers:
                await self._context.informers.of(res).at_least(revision)

    def _failed(self, key: K, refused: Exception) -> None:
        self.failures += 1
        if not isinstance(refused, errors.NotFound | errors.Conflict | errors.AlreadyExists):
            self._unsettled.add(key)  # it may have been carried out all the same
        delay = self.queue.retry(key)
        level = logging.DEBUG if isinstance(refused, errors.NotFound | errors.Conflict) else logging.WARNING
        log.log(level, "%s: %s: %s; tried again in %.3f s", self.name, key, refused, delay)

    async def _settle_unknown(self, key: K) -> None:
        revision = await self._context.registry.store.revision()
        for res in self._kinds:
            await self._context.informers.of(res).at_least(revision)
        self._unsettled.discard(key)


class Part(Protocol):
    """A controller as the set runs it: its drivers, the kinds it listens to, and what it does with their deltas.

    `on_delta` runs on the event loop, reads caches, adds keys to queues, and does no I/O."""

    @property
    def drivers(self) -> Sequence[Controller[Any]]: ...

    @property
    def kinds(self) -> Sequence[Resource]: ...

    def on_delta(self, res: Resource, delta: Delta[Any]) -> None: ...
