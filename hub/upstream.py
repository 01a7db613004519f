"""What nodes report, on its way into the store: merged per object, batched per slot, fenced.

One transaction holds one slot, at most BATCH_OBJECTS_MAX objects and BATCH_BYTES_MAX, and compares the slot's fence. A
slot has one worker while it has work, so its transactions follow each other and what comes meanwhile is one batch;
slots go side by side, and the store groups their commits.

Invariants: `done` is called once for every job, and with a result only when that is durable (I3). A store that cannot
write now delays jobs, it never loses or refuses them. FenceLost ends a slot: its jobs are dropped without an answer.
Bound: JOBS_MAX jobs wait; `submit` then says no, and the gateway closes whoever sent more.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from hub import errors
from hub.objects import PODS, Resource
from hub.registry import BATCH_OBJECTS_MAX, Change, FenceLost, Object, Registry, Stored
from hub.reports import release_pod
from shards.claims import Fence

log = logging.getLogger(__name__)

BATCH_BYTES_MAX: Final = 1 << 20
JOBS_MAX: Final = 50_000
SINGLES_MAX: Final = 32
SLOTS_AT_ONCE: Final = 64
RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 5.0

Result = int | errors.ApiError
"""The revision at which a job is durable, or why it never will be."""
Done = Callable[[Result], None]
RETRYABLE: Final = (errors.ServiceUnavailable, errors.Conflict, errors.Timeout, errors.InternalError)


@dataclass(frozen=True, slots=True)
class Update:
    """Changes one object. `size`: of what it writes, bytes, about. `whole`: it does not depend on what was there, so an
    earlier `whole` one that still waits for the same object needs no write of its own."""

    res: Resource
    namespace: str
    name: str
    uid: str | None
    apply: Callable[[Object], Object | None]
    done: Done
    size: int = 2048
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Removal:
    """Takes a pod away that its node reports gone."""

    node: str
    namespace: str
    name: str
    uid: str
    done: Done


@dataclass(frozen=True, slots=True)
class Creation:
    """Makes an object unless it exists."""

    res: Resource
    obj: Object
    done: Done


Single = Removal | Creation


_Target = tuple[Resource, str, str, str | None]
"""Kind, namespace, name, UID."""


@dataclass(slots=True)
class _Slot:
    updates: dict[_Target, list[Update]] = field(default_factory=dict)
    singles: deque[Single] = field(default_factory=deque)
    running: bool = False


class Upstream:
    """See the module. `spawn` runs a coroutine under the gateway's task group."""

    def __init__(
        self,
        registry: Registry,
        fence: Callable[[int], Fence | None],
        fence_lost: Callable[[int], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], Any],
    ) -> None:
        self._registry = registry
        self._fence = fence
        self._fence_lost = fence_lost
        self._spawn = spawn
        self._slots: dict[int, _Slot] = {}
        self._gate = asyncio.Semaphore(SLOTS_AT_ONCE)
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = asyncio.Event()
        self.jobs = 0
        self.transactions = 0
        self.retries = 0

    def submit(self, slot: int, job: Update | Single) -> bool:
        """Takes a job; False when JOBS_MAX wait already or the slot is not ours."""
        if self.jobs >= JOBS_MAX or self._fence(slot) is None:
            return False
        queue = self._slots.setdefault(slot, _Slot())
        if isinstance(job, Update):
            queue.updates.setdefault(_target(job), []).append(job)
        else:
            queue.singles.append(job)
        self.jobs += 1
        self._idle.clear()
        if not queue.running:
            queue.running = True
            self._spawn(self._drain(slot, queue), f"upstream of slot {slot}")
        return True

    async def settled(self) -> None:
        """Returns once nothing waits."""
        await self._idle.wait()

    def close(self) -> None:
        """What the store does not take at once is no longer tried again."""
        self._closing.set()

    async def _drain(self, slot: int, queue: _Slot) -> None:
        retry_s = 0.0
        try:
            while queue.updates or queue.singles:
                if retry_s:
                    await self._pause(retry_s)
                fence = self._fence(slot)
                if fence is None or (retry_s and self._closing.is_set()):
                    return
                async with self._gate:
                    failed = await self._write_updates(queue, fence)
                    failed += await self._write_singles(queue, fence)
                self.retries += failed
                retry_s = min(max(retry_s * 2, RETRY_FIRST_S), RETRY_MAX_S) if failed else 0.0
        except FenceLost as lost:
            log.error("slot %d has another owner: %s changed; this hub stops acting for it", slot, lost)
            self._fence_lost(slot)
        finally:
            dropped = sum(map(len, queue.updates.values())) + len(queue.singles)
            self._slots.pop(slot, None)
            queue.running = False
            self._finish(dropped)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass

    def _finish(self, jobs: int) -> None:
        self.jobs -= jobs
        if self.jobs == 0:
            self._idle.set()

    async def _write_updates(self, queue: _Slot, fence: Fence) -> int:
        """One batch; returns how many of its objects have to be tried again."""
        batch: list[list[Update]] = []
        size = 0
        for key in list(queue.updates):
            size += queue.updates[key][-1].size
            if batch and (len(batch) >= BATCH_OBJECTS_MAX or size > BATCH_BYTES_MAX):
                break
            batch.append(queue.updates.pop(key))
        if not batch:
            return 0
        changes = [Change(*_target(jobs[0]), _compose(jobs)) for jobs in batch]
        self.transactions += 1
        try:
            results = await self._mutate(changes, fence)
        except FenceLost:
            queue.updates.update((_target(jobs[0]), jobs) for jobs in batch)  # counted as dropped
            raise
        return self._settle(queue, batch, results)

    async def _mutate(self, changes: list[Change], fence: Fence) -> list[Stored | errors.ApiError]:
        try:
            return await self._registry.mutate_many(changes, fence=fence)
        except errors.ApiError as failure:
            # The whole transaction was not carried out. Alone, each finds out whether it is the one to blame.
            if isinstance(failure, RETRYABLE) or len(changes) == 1:
                return [failure] * len(changes)
        return await self._one_by_one(changes, fence)

    async def _one_by_one(self, changes: list[Change], fence: Fence) -> list[Stored | errors.ApiError]:
        results: list[Stored | errors.ApiError] = []
        for change in changes:
            try:
                results.extend(await self._registry.mutate_many([change], fence=fence))
            except errors.ApiError as failure:
                results.append(failure)
        return results

    def _settle(
        self, queue: _Slot, batch: list[list[Update]], results: list[Stored | errors.ApiError]
    ) -> int:
        failed = 0
        for jobs, result in zip(batch, results, strict=True):
            if isinstance(result, RETRYABLE):
                failed += 1
                key = _target(jobs[0])
                queue.updates[key] = jobs + queue.updates.get(key, [])
                continue
            outcome: Result = result if isinstance(result, errors.ApiError) else result.revision
            for job in jobs:
                job.done(outcome)
            self._finish(len(jobs))
        return failed

    async def _write_singles(self, queue: _Slot, fence: Fence) -> int:
        some = [queue.singles.popleft() for _ in range(min(len(queue.singles), SINGLES_MAX))]
        if not some:
            return 0
        results = await asyncio.gather(*(self._single(job, fence) for job in some), return_exceptions=True)
        failed: list[Single] = []
        lost: BaseException | None = None
        for job, result in zip(some, results, strict=True):
            if isinstance(result, RETRYABLE):
                failed.append(job)
            elif isinstance(result, errors.ApiError):
                job.done(result)
            elif isinstance(result, BaseException):
                lost = result
                failed.append(job)
            else:
                job.done(result)
        queue.singles.extendleft(reversed(failed))
        self._finish(len(some) - len(failed))
        if lost is not None:
            raise lost
        return len(failed)

    def _single(self, job: Single, fence: Fence) -> Awaitable[int]:
        return self._remove(job, fence) if isinstance(job, Removal) else self._create(job, fence)

    async def _create(self, job: Creation, fence: Fence) -> int:
        try:
            return (await self._registry.create(job.res, job.obj, fence=fence)).revision
        except errors.AlreadyExists:
            return 0  # stored by an earlier try whose answer was lost

    async def _remove(self, job: Removal, fence: Fence) -> int:
        stored = await self._registry.find(PODS, job.namespace, job.name)
        if stored is None:
            raise errors.NotFound(PODS.resource, job.name)
        pod = stored.obj()
        if pod["metadata"]["uid"] != job.uid:
            raise errors.NotFound(PODS.resource, job.name)
        if release_pod(pod, job.node):
            return await self._registry.remove(PODS, stored, fence=fence)
        return (await self._registry.replace(PODS, stored, pod, fence=fence)).revision


def _target(job: Update) -> _Target:
    return (job.res, job.namespace, job.name, job.uid)


def _compose(jobs: list[Update]) -> Callable[[Object], Object | None]:
    """All updates of one object as one, in order; of those that overwrite each other only the last."""
    last_whole = max((i for i, job in enumerate(jobs) if job.whole), default=-1)
    todo = [job for i, job in enumerate(jobs) if not job.whole or i == last_whole]

    def apply(obj: Object) -> Object | None:
        changed = False
        for job in todo:
            try:
                new = job.apply(obj)
            except (KeyError, TypeError, ValueError, AttributeError) as bug:
                # One odd object must not stop all reports; it is refused, and the log has the rest.
                log.exception("a report about %s %s cannot be applied", job.res.resource, job.name)
                raise errors.BadRequest(f"the report does not fit the object: {bug!r}") from bug
            if new is not None:
                obj, changed = new, True
        return obj if changed else None

    return apply
