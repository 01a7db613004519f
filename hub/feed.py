"""Fleet-wide changes of one kind, streamed from the store while somebody wants them: nothing of the fleet is cached.

While a feed has users, and for LINGER_S after the last, one watch of the store runs over the kind's whole range; all
users share it, and a bounded recent past for those who come back. What is older is replayed from the store.

Invariant: from the revision at which a user joined it is given every later delta once, in revision order, or it is told
that it was not (`failed`). An object that moves between partitions in one transaction is one MODIFIED.
Does not guarantee: that it is current. While the store cannot be reached a feed waits; its users are told after
OUTAGE_MAX_S.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, cast

from hub import errors
from hub.cache import Cache, Entry
from hub.mirror import Delta, Handler
from hub.objects import Resource, split_object_key
from hub.outage import Outage
from shards.kv import Compacted, Event, FutureRevision, HistoryLost, Store, StoreError, WatchBatch, prefix_end

log = logging.getLogger(__name__)

HISTORY_MAX = 10_000
"""Deltas kept for users that come back; older ones are replayed from the store."""
HISTORY_BYTES_MAX = 8 << 20
"""The same in bytes, since an object may have any size up to the store's bound."""
VIEW_BYTES = 1000
"""What a delta keeps beside the objects' bytes, about."""
LINGER_S = 30.0
OUTAGE_MAX_S = 60.0
"""How long the store may be out of reach before users are told to come back."""
PULSE_S = 10.0
"""A store that says nothing for so long is asked whether it is there."""
REPLAYS_MAX = 8
"""Watches of the store's past that one kind reads at once."""

Failed = Callable[[errors.ApiError], None]
"""Called when all users have to start anew (Expired), or to come back later (ServiceUnavailable)."""


class Feed:
    """One kind. `handler` gets the deltas of each revision and progress, `failed` what ended the present users' feed;
    both are called on the event loop and must not block."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        res: Resource,
        outage: Outage,
        handler: Handler,
        failed: Failed,
        *,
        linger_s: float = LINGER_S,
        pulse_s: float = PULSE_S,
        outage_max_s: float = OUTAGE_MAX_S,
    ) -> None:
        self.resource = res
        self.revision = 0
        self._store = store
        self._range = (prefix, prefix_end(prefix))
        self._decoder: Cache[Any] = Cache(res, {})
        self._outage = outage
        self._handler = handler
        self._failed = failed
        self._linger_s = linger_s
        self._pulse_s = pulse_s
        self._outage_max_s = outage_max_s
        self._heard = 0.0
        self._users = 0
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._history: deque[Delta[Any]] = deque()
        self._history_bytes = 0
        self._history_after = 0
        self._replays = asyncio.Semaphore(REPLAYS_MAX)
        self._advanced = asyncio.Event()

    # -- users ------------------------------------------------------------------------------------------------

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keeps the feed running inside the block, and for a while after it."""
        self._users += 1
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        try:
            yield
        finally:
            self._users -= 1
            if not self._users and self._task is not None:
                self._ending = asyncio.get_running_loop().call_later(self._linger_s, self._end)

    async def ready(self) -> None:
        """Returns once deltas flow; to be awaited inside `used`. Raises ServiceUnavailable."""
        if self._task is not None:
            return
        revision = await self.head()
        if self._task is None:  # nobody was faster
            self._reset(revision)
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name=f"feed of {self.resource.resource}"
            )
            self._task.add_done_callback(self._ended)

    async def head(self) -> int:
        """The store's revision. Raises ServiceUnavailable."""
        try:
            return await self._store.revision()
        except StoreError as failure:
            raise errors.ServiceUnavailable(str(failure)) from failure

    async def at_least(self, revision: int) -> None:
        """Returns once the feed has progressed through `revision`."""
        while self.revision < revision:
            self._advanced.clear()
            await self._advanced.wait()

    def since(self, revision: int) -> list[Delta[Any]] | None:
        """The deltas after `revision`, None when they are not all kept."""
        if revision < self._history_after:
            return None
        return [d for d in self._history if d.revision > revision]

    async def replay(self, after: int, through: int) -> AsyncGenerator[Delta[Any]]:
        """What is not kept any more, from the store: the deltas of (after, through]. Raises Expired,
        ServiceUnavailable."""
        if after >= through:
            return
        async with self._replays:
            try:
                async with aclosing(_batches(self._store, self._range, after)) as batches:
                    async for batch in batches:
                        if batch.revision <= through:
                            for delta in self._deltas(batch):
                                yield delta
                        if batch.revision >= through:
                            return
            except Compacted as gone:
                raise errors.Expired.watch(gone.wanted, gone.oldest) from gone
            except (FutureRevision, HistoryLost) as ahead:
                raise errors.Expired(str(ahead)) from ahead
            except StoreError as failure:
                raise errors.ServiceUnavailable(str(failure)) from failure

    def entry_of(self, key: str, value: bytes, revision: int) -> Entry[Any]:
        """What a key of the store holds."""
        partition, namespace, name = split_object_key(key)
        return self._decoder.entry((namespace, name), partition, revision, value)

    @property
    def running(self) -> bool:
        return self._task is not None

    async def stop(self) -> None:
        """Ends the feed at once."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        if (task := self._task) is not None:
            self._end()
            await asyncio.gather(task, return_exceptions=True)

    # -- the watch --------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name=f"feed of {self.resource.resource}, watch")
            tasks.create_task(self._listen_for_silence(), name=f"feed of {self.resource.resource}, pulse")

    async def _follow(self) -> None:
        try:
            while True:
                try:
                    async with aclosing(_batches(self._store, self._range, self.revision)) as batches:
                        async for batch in batches:
                            self._outage.over(self)
                            self._advance(self._deltas(batch), batch.revision)
                except (Compacted, FutureRevision, HistoryLost) as gone:
                    log.warning("the watches of %s begin anew: %s", self.resource.resource, gone)
                    failure = await self._begin_anew(gone)
                except StoreError as unavailable:
                    failure = unavailable
                else:
                    failure = None
                if failure is not None:
                    await self._outage.failed(self, failure)
        finally:
            self._outage.over(self)

    async def _listen_for_silence(self) -> None:
        """A store may go silent without a word: then it is asked, and users are told when that fails for too long."""
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        while True:
            await asyncio.sleep(self._pulse_s)
            if loop.time() - self._heard < self._pulse_s:
                continue
            try:
                await self._store.revision()
                if not self._outage.present:
                    self._heard = loop.time()
            except StoreError as failure:
                if loop.time() - self._heard >= self._outage_max_s:
                    self._failed(errors.ServiceUnavailable(f"the store cannot be reached: {failure}"))

    async def _begin_anew(self, gone: StoreError) -> StoreError | None:
        """The watch cannot go on where it was: users have to list again, the feed begins at the present."""
        try:
            revision = await self._store.revision()
        except StoreError as failure:
            return failure
        self._reset(revision)
        if isinstance(gone, Compacted):
            self._failed(errors.Expired.watch(gone.wanted, gone.oldest))
        else:
            self._failed(errors.Expired(str(gone)))
        return None

    def _reset(self, revision: int) -> None:
        self._history.clear()
        self._history_bytes = 0
        self.revision = self._history_after = revision

    def _end(self) -> None:
        """Nobody has used it for a while."""
        self._ending = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._reset(0)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A bug of ours must not leave watches that hang."""
        if task.cancelled() or (failure := task.exception()) is None:
            return
        log.error("bug: the feed of %s ended", self.resource.resource, exc_info=failure)
        if self._task is task:
            self._task = None
            self._reset(0)
        self._failed(errors.InternalError("the watch failed; see the hub's log"))

    def _advance(self, deltas: Sequence[Delta[Any]], revision: int) -> None:
        self.revision = revision
        self._heard = asyncio.get_running_loop().time()
        self._history.extend(deltas)
        self._history_bytes += sum(map(_kept_bytes, deltas))
        while len(self._history) > HISTORY_MAX or self._history_bytes > HISTORY_BYTES_MAX:
            gone = self._history.popleft()
            self._history_bytes -= _kept_bytes(gone)
            self._history_after = max(self._history_after, gone.revision)
        self._handler(deltas, revision)
        self._advanced.set()

    def _deltas(self, batch: WatchBatch) -> list[Delta[Any]]:
        """Where the state before is compacted away a change looks like ADDED."""
        before: dict[tuple[str, str], Entry[Any]] = {}
        after: dict[tuple[str, str], Entry[Any]] = {}
        for event in batch.events:
            self._sort(event, batch.revision, before, after)
        deltas: list[Delta[Any]] = []
        for key, old in before.items():
            new = after.get(key)
            if new is None or new.meta.uid != old.meta.uid:
                deltas.append(Delta("DELETED", old, old, batch.revision))
                if new is not None:
                    deltas.append(Delta("ADDED", new, None, batch.revision))
            else:
                deltas.append(Delta("MODIFIED", new, old, batch.revision))
        deltas.extend(
            Delta("ADDED", new, None, batch.revision) for key, new in after.items() if key not in before
        )
        return deltas

    def _sort(
        self,
        event: Event,
        revision: int,
        before: dict[tuple[str, str], Entry[Any]],
        after: dict[tuple[str, str], Entry[Any]],
    ) -> None:
        if event.prev is not None:
            entry = self.entry_of(event.key, event.prev.value, event.prev.mod_revision)
            before[entry.key] = entry
        if event.kv is not None:
            entry = self.entry_of(event.key, event.kv.value, revision)
            after[entry.key] = entry


def _batches(store: Store, range_: tuple[str, str], after: int) -> AsyncGenerator[WatchBatch]:
    # Every implementation is a generator; the contract only promises an iterator.
    return cast(AsyncGenerator[WatchBatch], store.watch([range_], after))


def _kept_bytes(delta: Delta[Any]) -> int:
    """What the history keeps alive for one delta."""
    old = delta.old
    return VIEW_BYTES + delta.entry.size + (old.size if old is not None and old is not delta.entry else 0)
