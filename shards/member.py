"""A replica's lease, record, watch and claims in a store: carries out what `shards.membership` decides.

The store may fail in any way at any time: that never ends the member. It is suspended meanwhile, and tries again. What
ends it is `stop`, an error of the listener, or another process that is registered under the same id.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TypeVar, cast

import msgspec

from shards import actions as do
from shards.actions import Action, Failure
from shards.claims import Fence
from shards.kv import (
    Ambiguous,
    HistoryLost,
    KeyValue,
    LeaseGone,
    Store,
    StoreError,
    TxnResult,
    Unavailable,
    WatchBatch,
)
from shards.membership import Counters, Membership, Timing
from shards.ownership import Listener, MemberRecord, Owned, Route, Unit, UnitKeys
from shards.view import Snapshot, ranges

log = logging.getLogger(__name__)
T = TypeVar("T")

NO_DEADLINE_VARIABLE = "CLOUDHUB_TEST_NO_DEADLINE"


@dataclass(frozen=True, slots=True)
class MemberOptions:
    """ttl_s: of the lease; what is owned has no owner for about that long when its owner dies.
    holdoff_s: before a member that joins is given units, so that one that comes and goes moves nothing.
    drain_s: for one batch of units to be drained; then they are released all the same.
    stop_s: for handing everything over; then the lease is given up with whatever is left.
    check_deadline: False only in the test that shows that the store alone refuses a late write."""

    ttl_s: float = 5.0
    holdoff_s: float = 1.0
    drain_s: float = 10.0
    stop_s: float = 30.0
    check_deadline: bool = True

    def __post_init__(self) -> None:
        if not 1.0 <= self.ttl_s <= 300.0:
            raise ValueError(f"a lease of {self.ttl_s} s; 1 to 300 are possible")


class MemberTaken(StoreError):
    """Another live process is registered under the id of this one."""


def deadline_checked(environ: Mapping[str, str]) -> bool:
    """For `MemberOptions.check_deadline`: True, unless a test says otherwise."""
    if environ.get(NO_DEADLINE_VARIABLE) != "1":
        return True
    log.warning(
        "%s=1: THE DEADLINE OF THE LEASE IS NOT CHECKED. Only the store's fence is left. This is for tests alone.",
        NO_DEADLINE_VARIABLE,
    )
    return False


def boottime_clock() -> Callable[[], float]:
    """Seconds that go on while the machine sleeps, where there is such a clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    if clock is None:
        return time.monotonic
    number = int(clock)
    return lambda: time.clock_gettime(number)


class Member:
    """`shards.ownership.Ownership`, told to `listener`. `root` is the cell's, ending in `/`. First `start`, then `run`
    in a task of the caller."""

    def __init__(
        self,
        store: Store,
        root: str,
        record: MemberRecord,
        listener: Listener,
        options: MemberOptions | None = None,
        *,
        boottime: Callable[[], float] | None = None,
        wall: Callable[[], float] = time.time,
        random_id: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._store = store
        self._listener = listener
        self._options = options or MemberOptions()
        self._now = boottime or boottime_clock()
        self._timing = Timing(
            self._options.ttl_s, holdoff_s=self._options.holdoff_s, retry_s=self._options.ttl_s / 10
        )
        keys = UnitKeys(root)
        self._ranges = ranges(keys)
        self._core = Membership(
            keys, record, store.identity.slots, self._timing, random_id=random_id, wall=wall
        )
        self._fences = self._core.fences
        self._check = self._options.check_deadline
        self._pending: list[Action] = []
        self._loading: dict[asyncio.Task[None], set[Unit]] = {}
        self._wake = asyncio.Event()
        self._turn = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None

    # -- ownership -----------------------------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        return self._core.slots

    def of(self, unit: Unit) -> Owned | None:
        return self._core.of(unit)

    def fence(self, unit: Unit) -> Fence | None:
        fence = self._fences.get(unit)
        if fence is None or (self._check and self._now() >= self._core.acting_until):
            return None
        return fence

    @property
    def live(self) -> bool:
        return not self._check or self._now() < self._core.acting_until

    def route(self, unit: Unit) -> Route | None:
        owner = self._core.owner(unit)
        if owner is None:
            return None
        member = self._core.view.members.get(owner.member)
        return Route(owner, member if member and member.incarnation == owner.incarnation else None)

    @property
    def members(self) -> Mapping[str, MemberRecord]:
        return self._core.view.members

    def fence_lost(self, unit: Unit) -> None:
        """The store refused a write by the unit's fence. `fence` gives None from here on; the listener is told soon."""
        self._post(self._core.fence_lost(self._now(), unit))

    # -- status --------------------------------------------------------------------------------------------------

    @property
    def record(self) -> MemberRecord:
        return self._core.record

    @property
    def lease(self) -> int:
        """0 while there is none."""
        return self._core.lease

    @property
    def counters(self) -> Counters:
        return self._core.counters

    @property
    def problem(self) -> str:
        """Why units stay without an owner; "" when nothing is wrong."""
        return self._core.problem

    async def settled(self) -> None:
        """Returns when all that counts for this member is its own and loaded, and nothing is being handed over."""
        while not self._core.settled or self._loading or self._pending:
            await self._turn.wait()

    # -- life ----------------------------------------------------------------------------------------------------

    def advertise(self, edge: str, api: str) -> None:
        """Where edges and clients reach this replica; before `start`, for a free port is known only then."""
        self._core.record = msgspec.structs.replace(self._core.record, edge=edge, api=api)

    async def start(self) -> None:
        """Registers. Raises MemberTaken when another process of this id does not go away within two TTLs, and what the
        store last raised when it stays out of reach for that long."""
        until = self._now() + 2 * self._options.ttl_s + 2.0
        failure: StoreError | None = None
        while not self._core.view.revision:
            try:
                self._pending += self._core.snapshot(self._now(), await self._bounded(self._snapshot()))
            except StoreError as error:
                if self._now() >= until:
                    raise
                failure = error
                await asyncio.sleep(self._timing.retry_s)
        while not self._core.registered:
            if self._now() >= until:
                self._give_up_start(failure)
            work = self._pending
            self._pending = []
            for action in work:
                if isinstance(action, do.Grant | do.KeepAlive | do.Txn | do.Read):
                    self._pending += await self._ask(action)
                else:
                    self._pending.append(action)
            if not any(isinstance(a, do.Grant | do.KeepAlive | do.Txn | do.Read) for a in self._pending):
                pause = min(self._core.next_tick(self._now()) - self._now(), self._timing.retry_s)
                if not self._core.registered:
                    await asyncio.sleep(max(0.0, pause))
                self._pending += self._core.tick(self._now())

    def _give_up_start(self, failure: StoreError | None) -> None:
        if (other := self._core.taken_by) is not None:
            raise self._taken(other)
        raise failure or Unavailable(
            "this replica could not be registered: the store does not answer in time; see that it is up and has a quorum"
        )

    def _taken(self, other: MemberRecord) -> MemberTaken:
        return MemberTaken(
            f"a replica with the id {other.id!r} is running already (incarnation {other.incarnation}, API {other.api or '-'});"
            " give every replica an id of its own, or stop that one"
        )

    async def run(self) -> None:
        """Until `stop` is done. Raises what the listener raises, and MemberTaken."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            loops = [
                group.create_task(self._follow(), name="member watch"),
                group.create_task(self._ticks(), name="member ticks"),
            ]
            self._wake.set()
            await self._stopping.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._options.stop_s):
                    await self._stopped.wait()
            if not self._stopped.is_set():
                log.warning("not everything could be handed over in %g s", self._options.stop_s)
                self._perform(self._core.give_up(self._now()))
            for task in (*loops, *self._loading):
                task.cancel()

    def stop(self) -> None:
        """Hands everything over; `run` returns when that is done, or stop_s have passed."""
        self._post(self._core.stop(self._now()))
        self._stopping.set()

    # -- loops ---------------------------------------------------------------------------------------------------

    async def _ticks(self) -> None:
        taken_until = 0.0
        while True:
            now = self._now()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(self._core.next_tick(now) - now, 3600.0))):
                    await self._wake.wait()
            work, self._pending = self._pending, []
            self._perform(work)
            self._perform(self._core.tick(self._now()))
            self._wake.clear()  # only now: performing wakes this loop as well
            other = self._core.taken_by
            if other is None:
                taken_until = self._now() + 2 * self._options.ttl_s + 2.0
            elif self._now() >= taken_until:
                raise self._taken(other)

    async def _follow(self) -> None:
        """The watch. Whatever ends it, the state is read anew before it goes on, so a store that went back is seen."""
        first = True
        while True:
            try:
                if not first:
                    self._perform(self._core.snapshot(self._now(), await self._newer()))
                first = False
                # Every implementation is a generator; the contract only promises an iterator.
                batches = cast(
                    AsyncGenerator[WatchBatch, None],
                    self._store.watch(self._ranges, self._core.view.revision),
                )
                async with aclosing(batches):
                    async for batch in batches:
                        actions = self._core.watched(self._now(), batch.revision, batch.events)
                        # Every commit of the fleet brings progress, which is no reason to look at everything.
                        if actions or batch.events:
                            self._perform(actions)
            except HistoryLost:
                raise  # another store than the one that was claimed in: only a new start finds out what it is
            except StoreError as error:
                log.info("the watch of members and owners begins anew: %s", error)
            await asyncio.sleep(self._jitter())

    async def _newer(self) -> Snapshot:
        """The present state. A read of the core may be answered meanwhile and overtake it: that is not a store that went
        back, so it is asked again."""
        while True:
            known = self._core.view.revision
            snapshot = await self._bounded(self._snapshot())
            if snapshot.revision >= self._core.view.revision or self._core.view.revision == known:
                return snapshot

    async def _snapshot(self) -> Snapshot:
        items: list[KeyValue] = []
        revision: int | None = None
        for start, end in self._ranges:
            at: str | None = start
            while at is not None:
                page = await self._store.page(at, end, revision=revision)
                revision = page.revision
                items += page.items
                at = page.next_key
        return Snapshot(revision or 0, tuple(items))

    # -- actions -------------------------------------------------------------------------------------------------

    def _post(self, actions: list[Action]) -> None:
        """From outside of our tasks: carried out by one of them, so that what fails there ends `run`."""
        self._pending += actions
        self._wake.set()

    def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case do.Grant() | do.KeepAlive() | do.Txn() | do.Read():
                    self._spawn(self._work(action))
                case do.Revoke():
                    self._spawn(self._revoke(action.lease))
                case do.Gained():
                    task = self._spawn(self._gained(action.units))
                    self._loading[task] = {owned.unit for owned in action.units}
                    task.add_done_callback(self._loaded)
                case do.Drain():
                    self._spawn(self._drain(action.units))
                case do.Lost():
                    self._lost(action.units)
                case do.Suspended():
                    log.warning("suspended: the lease could not be renewed in time")
                    self._listener.suspended()
                case do.Resumed():
                    log.info("resumed %d units", len(action.units))
                    self._listener.resumed(list(action.units))
                case do.RoutesChanged():
                    self._listener.routes_changed(list(action.units))
                case do.Stopped():
                    self._stopped.set()
        self._wake.set()
        self._turn.set()
        self._turn.clear()

    def _spawn(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        assert self._group is not None, "run() carries out actions"
        return self._group.create_task(work)

    async def _work(self, action: do.Grant | do.KeepAlive | do.Txn | do.Read) -> None:
        self._perform(await self._ask(action))

    async def _ask(self, action: do.Grant | do.KeepAlive | do.Txn | do.Read) -> list[Action]:
        """Asks the store, and tells the core what came of it."""
        core, sent_at = self._core, self._now()
        match action:
            case do.Grant():
                try:
                    lease = await self._bounded(self._store.grant(action.ttl_s))
                except StoreError as error:
                    log.warning("no lease: %s", error)
                    await asyncio.sleep(self._jitter())
                    return core.grant_failed(self._now())
                return core.granted(self._now(), sent_at, lease, action.ttl_s)
            case do.KeepAlive():
                try:
                    ttl_s = await self._bounded(self._store.keepalive(action.lease))
                except StoreError as error:
                    log.info("the lease is not renewed: %s", error)
                    await asyncio.sleep(self._jitter())
                    return core.keepalive_failed(self._now(), action.lease)
                return core.kept(self._now(), action.lease, sent_at, ttl_s)
            case do.Txn():
                result = await self._txn(action)
                return core.txn_done(self._now(), action.number, result)
            case do.Read():
                try:
                    snapshot = await self._bounded(self._snapshot())
                except StoreError as error:
                    log.info("owners could not be read: %s", error)
                    return core.read_done(self._now(), action.number, None)
                return core.read_done(self._now(), action.number, snapshot)

    async def _txn(self, action: do.Txn) -> TxnResult | Failure:
        try:
            async with asyncio.timeout(self._options.ttl_s):
                return await self._store.txn(action.compares, action.ops)
        except LeaseGone:
            return Failure.LEASE_GONE
        except Unavailable:
            return Failure.UNAVAILABLE
        except (Ambiguous, TimeoutError):
            return Failure.AMBIGUOUS
        except StoreError as error:
            log.warning("a transaction of this member was refused: %s", error)
            return Failure.AMBIGUOUS

    async def _bounded(self, work: Awaitable[T]) -> T:
        """Within a third of the TTL: what is not answered by then does not help any more. Raises Unavailable."""
        try:
            async with asyncio.timeout(self._options.ttl_s / 3):
                return await work
        except TimeoutError as error:
            raise Unavailable(f"no answer from the store within {self._options.ttl_s / 3:.1f} s") from error

    async def _revoke(self, lease: int) -> None:
        try:
            await self._bounded(self._store.revoke(lease))
        except StoreError as error:
            log.warning("the lease could not be given up and ends by itself: %s", error)

    async def _gained(self, units: tuple[Owned, ...]) -> None:
        held = [owned for owned in units if self._core.of(owned.unit) == owned]
        if held:
            await self._listener.gained(held)

    def _loaded(self, task: "asyncio.Task[None]") -> None:
        self._loading.pop(task, None)
        self._turn.set()
        self._turn.clear()

    async def _drain(self, units: tuple[Unit, ...]) -> None:
        """Units that are still being loaded are waited for: the listener is told one thing at a time about each."""
        try:
            async with asyncio.timeout(self._options.drain_s):
                if loading := [t for t, some in self._loading.items() if not some.isdisjoint(units)]:
                    await asyncio.wait(loading)
                await self._listener.drain(list(units))
        except TimeoutError:
            log.warning(
                "%d units are not drained after %g s; they are released", len(units), self._options.drain_s
            )
        self._perform(self._core.drained(self._now(), units))

    def _lost(self, units: tuple[Unit, ...]) -> None:
        for task, loading in self._loading.items():
            loading.difference_update(units)
            if not loading:
                task.cancel()
        self._listener.lost(list(units))

    def _jitter(self) -> float:
        """Seconds before a retry, so that replicas do not come back at one moment."""
        return random.uniform(0.2, 1.0) * self._timing.retry_s  # noqa: S311
