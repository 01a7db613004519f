"""What nodes report, on its way into the store: merged per object, batched per slot, fenced.

One transaction holds one slot, at most BATCH_OBJECTS_MAX objects and BATCH_BYTES_MAX, and compares the slot's fence. A
slot has one worker while it has work, so its transactions follow each other and what comes meanwhile is one batch;
slots go side by side, and the store groups their commits.

Invariants: `done` is called once for every job, and with a result only when that is durable (I3). A store that cannot
write now delays jobs, it never loses or refuses them; so does a suspended owner. A slot that is lost takes its jobs with
it, without an answer: its next owner gets them from the nodes again, and an old status must not follow a newer one.
Bounds: JOBS_MAX jobs wait; `submit` then says no, and the gateway closes whoever sent more. Of a state that a later one has
replaced nothing is kept but who waits for its answer, so that an outage costs memory per object and not per report.
REMOVALS_AT_ONCE pods are read to be taken away.
"""

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from hub import errors
from hub.objects import PODS, Resource, partition_of_slot
from hub.registry import BATCH_OBJECTS_MAX, Change, FenceLost, Object, Objects, Stored
from hub.reports import release_pod
from hub.turns import Turns
from observability.logs import about
from shards.claims import Fence

log = logging.getLogger(__name__)

BATCH_BYTES_MAX: Final = 1 << 20
JOBS_MAX: Final = 50_000
SINGLES_MAX: Final = 32
SLOTS_AT_ONCE: Final = 64
REMOVALS_AT_ONCE: Final = 32
OBJECTS_A_TURN: Final = 32
"""Derived in one turn of the loop, at 0.2 ms each."""
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
    partition: str
    updates: dict[_Target, list[Update]] = field(default_factory=dict)
    singles: deque[Single] = field(default_factory=deque)
    running: bool = False
    dropped: bool = False
    """Lost: its worker ends, and nothing of it is tried again."""
    reached: int = 0
    """The highest revision at which an update of it was stored."""


class Upstream:
    """See the module. `fence(slot)`: what a write carries, None while it must not be made; `held(slot)`: is the slot ours,
    though perhaps suspended. `spawn` runs a coroutine under the gateway's task group."""

    def __init__(
        self,
        registry: Objects,
        fence: Callable[[int], Fence | None],
        held: Callable[[int], bool],
        fence_lost: Callable[[int], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], Any],
    ) -> None:
        self._registry = registry
        self._fence = fence
        self._held = held
        self._fence_lost = fence_lost
        self._spawn = spawn
        self._slots: dict[int, _Slot] = {}
        self._gate = asyncio.Semaphore(SLOTS_AT_ONCE)
        self._removals = asyncio.Semaphore(REMOVALS_AT_ONCE)
        self._turns = Turns(OBJECTS_A_TURN)
        self._idle = asyncio.Event()
        self._idle.set()
        self._reached: dict[int, int] = {}
        """By slot, the highest revision at which an update was stored here."""
        self._closing = asyncio.Event()
        self._woken = asyncio.Event()
        self._ended = asyncio.Event()
        self.jobs = 0
        self.transactions = 0
        self.retries = 0

    def submit(self, slot: int, job: Update | Single) -> bool:
        """Takes a job; False when JOBS_MAX wait already or the slot is not ours."""
        if self.jobs >= JOBS_MAX or not self._held(slot):
            return False
        queue = self._slots.get(slot)
        if queue is None:
            queue = self._slots[slot] = _Slot(partition_of_slot(slot))
        if isinstance(job, Update):
            waiting = queue.updates.setdefault(_target(job), [])
            if job.whole:
                _replaced(waiting)
            waiting.append(job)
        else:
            queue.singles.append(job)
        self.jobs += 1
        self._idle.clear()
        if not queue.running:
            queue.running = True
            self._spawn(self._drain(slot, queue), f"upstream of slot {slot}")
        return True

    def reached(self, slot: int) -> int | None:
        """The revision by which all updates that were submitted for the slot are stored, 0 where there was none; None while
        something of it waits."""
        return None if slot in self._slots else self._reached.get(slot, 0)

    async def settled(self) -> None:
        """Returns once nothing waits."""
        await self._idle.wait()

    async def flushed(self, slots: Collection[int]) -> None:
        """Returns once nothing of these slots waits."""
        while not self._slots.keys().isdisjoint(slots):
            self._ended.clear()
            await self._ended.wait()

    def drop(self, slots: Iterable[int]) -> None:
        """These slots are lost: what waits for them is forgotten."""
        for slot in slots:
            queue = self._slots.pop(slot, None)
            if queue is not None:
                queue.dropped = True
                self._clear(queue)
        self.wake()

    def wake(self) -> None:
        """Suspended slots may act again, or are lost."""
        woken, self._woken = self._woken, asyncio.Event()
        woken.set()

    def close(self) -> None:
        """What the store does not take at once is no longer tried again."""
        self._closing.set()
        self.wake()

    async def _drain(self, slot: int, queue: _Slot) -> None:
        retry_s = 0.0
        try:
            while queue.updates or queue.singles:
                if retry_s:
                    await self._pause(retry_s)
                if queue.dropped or (retry_s and self._closing.is_set()):
                    return
                if self._fence(slot) is None:
                    if self._closing.is_set():
                        return
                    await self._suspended()
                    continue
                async with self._gate:
                    failed = await self._write_all(slot, queue)
                self.retries += failed
                retry_s = min(max(retry_s * 2, RETRY_FIRST_S), RETRY_MAX_S) if failed else 0.0
        except FenceLost as lost:
            if not queue.dropped:
                text = "slot %d has another owner: %s changed; this hub stops acting for it"
                log.warning(text, slot, lost, extra=about(slot=slot))
                self._fence_lost(slot)
        finally:
            queue.running = False
            self._clear(queue)
            self._reached[slot] = max(self._reached.get(slot, 0), queue.reached)
            if self._slots.get(slot) is queue:
                del self._slots[slot]
            self._ended.set()

    async def _write_all(self, slot: int, queue: _Slot) -> int:
        """One batch of each sort, each under a fence that is asked for at that moment; returns how many have to be tried
        again."""
        failed = 0
        await self._turns.turn(min(len(queue.updates) + 1, BATCH_OBJECTS_MAX))
        for write in (self._write_updates, self._write_singles):
            fence = self._fence(slot)
            if fence is not None and not queue.dropped:
                failed += await write(queue, fence)
        return failed

    async def _suspended(self) -> None:
        """Waits for `wake`, and looks again every RETRY_MAX_S all the same."""
        try:
            async with asyncio.timeout(RETRY_MAX_S):
                await self._woken.wait()
        except TimeoutError:
            pass

    def _clear(self, queue: _Slot) -> None:
        dropped = sum(map(len, queue.updates.values())) + len(queue.singles)
        queue.updates.clear()
        queue.singles.clear()
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
        changes = [Change(*_target(jobs[0]), _compose(jobs), queue.partition) for jobs in batch]
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
            if isinstance(result, RETRYABLE) and queue.dropped:
                self._finish(len(jobs))
                continue
            if isinstance(result, RETRYABLE):
                failed += 1
                key = _target(jobs[0])
                later = queue.updates.get(key, [])
                if any(job.whole for job in later):
                    _replaced(jobs)
                queue.updates[key] = jobs + later
                continue
            if isinstance(result, errors.ApiError):
                outcome: Result = result
            else:
                outcome = result.revision
                queue.reached = max(queue.reached, outcome)
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
        if queue.dropped:
            failed = []
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
        async with self._removals:
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


def _replaced(jobs: list[Update]) -> None:
    """A later state of the whole object comes behind these: lets go of the last one before it, in place. Those before that
    one were let go of when it came."""
    for at in reversed(range(len(jobs))):
        if jobs[at].whole:
            jobs[at] = dataclasses.replace(jobs[at], apply=_nothing)
            return


def _nothing(obj: Object) -> Object | None:
    return None


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
