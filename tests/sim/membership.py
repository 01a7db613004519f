"""Replicas of the real membership core over a model store, in virtual time: any interleaving of claims, expiries,
pauses, clock jumps, crashes, restores and lost, late or refused requests. A schedule is its seed.

    python -m tests.sim.membership --schedules 1000000 --seed 1     many, in parallel
    python -m tests.sim.membership --replay 4711                    one, with its story
"""

import argparse
import heapq
import math
import multiprocessing
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from shards import actions as do
from shards.actions import Action, Failure
from shards.claims import EdgeClaim, judge
from shards.kv import Compare, Event, KeyValue, Put, TxnResult
from shards.membership import Membership, Timing
from shards.ownership import MemberRecord, Owned, Unit, UnitKeys
from shards.ring import assign
from shards.view import Snapshot
from tests.sim.modelstore import DATA, LeaseEnded, ModelStore, Violation

ROOT = "c/"
SLOTS = 3
ROLE = ("scheduler",)
UUID = "store"
TIMING = Timing(ttl_s=3.0, holdoff_s=0.5)
TIMEOUT_S = 1.5
"""After which a replica takes a request for lost."""
FAULTS_S = 12.0
CALM_S = 20.0
"""Within which everything has to be owned as wanted once faults have ended."""
EVERY_S = 0.7
"""Between the writes, and between the synchronisations, of one owner."""


@dataclass(slots=True)
class Edge:
    """One node per slot: what its journal keeps, and (branch, revision) of the highest state that it has seen."""

    claim: EdgeClaim | None = None
    revision: int = 0
    point: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Loaded:
    """A slot that its owner serves: its state is that of (branch, revision)."""

    owned: Owned
    revision: int
    branch: int


class World:
    def __init__(self, seed: int, *, fenced: bool = True, deadline: bool = True, story: bool = False) -> None:
        self.rng = random.Random(seed)
        self.t = 0.0
        self.story = story
        self.deadline = deadline
        self.store = ModelStore(ROOT, lambda: self.t, fenced)
        self.store.committed = self._committed
        self.keys = UnitKeys(ROOT)
        self.edges = [Edge() for _ in range(SLOTS)]
        self.replicas: dict[str, Replica] = {}
        self.faults = True
        self.restored = False
        self.store_down_until = 0.0
        self.saved: tuple[int, dict[str, KeyValue]] | None = None
        self.accepted = self.refused = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def at(self, t: float, what: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (t if t > self.t else self.t, self._number, what))

    def later(self, s: float, what: Callable[[], None]) -> None:
        self.at(self.t + s, what)

    def tell(self, *words: object) -> None:
        if self.story:
            print(f"{self.t:8.3f}", *words)

    def delay(self) -> float:
        """Of one message: mostly short, now and then longer than a lease."""
        draw = self.rng.random()
        if not self.faults or draw < 0.93:
            return 0.002 + 0.03 * draw
        return self.rng.uniform(0.05, 1.0) if draw < 0.985 else self.rng.uniform(1.0, 6.0)

    def run(self, until: float) -> None:
        events, pop = self._events, heapq.heappop
        while events and events[0][0] <= until:
            self.t, _, what = pop(events)
            what()
        self.t = until

    def _committed(self, revision: int, events: list[Event]) -> None:
        mine = [e for e in events if e.key.startswith(ROOT)]
        if self.story and mine:
            self.tell(f"store r{revision}", *((e.key, e.kv.value[:60] if e.kv else "gone") for e in mine))
        for replica in self.replicas.values():
            replica.offer(revision, mine)


class Replica:
    """The driver of one core: what `shards.member` and a hub do, in virtual time."""

    def __init__(self, world: World, id: str, incarnation: int) -> None:
        self.world, self.id = world, id
        self.incarnation = f"{id}.{incarnation}"
        rng = world.rng
        self.rate = rng.uniform(0.96, 1.04)
        self.boot0 = rng.uniform(0, 1e6)
        self.wall_jump = 0.0
        self.alive, self.leaving = True, False
        self.paused: list[Callable[[], None]] | None = None
        self.loaded: dict[Unit, Loaded] = {}
        self.loads: dict[Unit, object] = {}
        self.backlog: list[tuple[int, list[Event]]] = []
        """The load of a unit that counts, as in `hub.slots`."""
        self.acting: set[Unit] = set()
        self.watching = False
        self._watch = 0
        self._arrives = 0.0
        self._tick, self._ticks_at = 0, math.inf
        self.core = Membership(
            world.keys,
            MemberRecord(id, self.incarnation, weight=rng.choice([1.0, 1.0, 2.0])),
            SLOTS,
            TIMING,
            random_id=lambda: f"{rng.getrandbits(64):016x}",
            wall=lambda: 1.8e9 + world.t + self.wall_jump,
            roles=ROLE,
        )
        self.relist()

    # -- time

    def boot(self) -> float:
        return self.boot0 + self.world.t * self.rate

    def wake(self, what: Callable[[], None]) -> None:
        """Runs `what` in this process: not at all once it is dead, after the pause while it is paused."""
        if not self.alive:
            return
        if self.paused is not None:
            self.paused.append(what)
        else:
            what()

    def pause(self) -> None:
        if self.paused is None:
            self.world.tell(self.incarnation, "paused")
            self.paused = []

    def go_on(self) -> None:
        waiting, self.paused = self.paused, None
        self.world.tell(self.incarnation, "goes on")
        for what in waiting or []:
            self.wake(what)

    def kill(self) -> None:
        self.world.tell(self.incarnation, "killed")
        self.alive = False

    # -- the store

    def request(
        self,
        execute: Callable[[], object],
        answered: Callable[[object], None],
        failed: Callable[[bool], None],
    ) -> None:
        """`failed(sent)`: no answer in time; with `sent` it may have been carried out, or will be."""
        world = self.world
        open_, draw = [True], world.rng.random() if world.faults else 1.0

        def expired() -> None:
            if open_[0]:
                open_[0] = False
                failed(draw >= 0.01)

        def answer(result: object) -> None:
            if open_[0]:
                open_[0] = False
                answered(result)

        def arrives() -> None:
            if world.t < world.store_down_until:
                if world.rng.random() < 0.5:
                    world.at(world.store_down_until + world.delay(), arrives)
                return
            result = execute()
            if draw >= 0.03:
                world.later(world.delay(), lambda: self.wake(lambda: answer(result)))

        if draw >= 0.01:
            world.later(world.delay(), arrives)
        world.later(TIMEOUT_S, lambda: self.wake(expired))

    def relist(self) -> None:
        """Starts, or starts anew: a snapshot, then the watch after it."""
        self._watch += 1
        self.watching = False
        number, waiting = self._watch, self.world.store
        asked_at = self.core.view.revision

        def answered(snapshot: object) -> None:
            assert isinstance(snapshot, tuple)
            known = self.core.view.revision
            if number == self._watch and known != asked_at and snapshot[0] < known:
                self.relist()  # overtaken by a read: not a store that went back
            elif number == self._watch:
                backlog, self.backlog = self.backlog, []
                self.watching = True
                self.carry_out(self.core.snapshot(self.boot(), Snapshot(*snapshot)))
                for revision, events in backlog:
                    if revision > snapshot[0]:
                        self.carry_out(self.core.watched(self.boot(), revision, events))

        def failed(sent: bool) -> None:
            if number == self._watch:
                self.relist()

        self.backlog = []
        self.request(lambda: (waiting.revision, waiting.items()), answered, failed)

    def offer(self, revision: int, events: list[Event]) -> None:
        """A batch of the watch: in order, each after its own delay."""
        world, number = self.world, self._watch
        self._arrives = max(self._arrives, world.t + world.delay())
        if world.faults and world.rng.random() < 0.003:
            world.at(self._arrives, lambda: self.wake(self.relist))

        def arrives() -> None:
            if number != self._watch:
                return
            if self.watching:
                self.carry_out(self.core.watched(self.boot(), revision, events))
            else:
                self.backlog.append((revision, events))

        if events:
            world.at(self._arrives, lambda: self.wake(arrives))

    # -- actions

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            self.world.tell(self.incarnation, action) if self.world.story else None
            self._one(action)
        at = self.core.next_tick(self.boot())
        if at == self._ticks_at:
            return
        self._ticks_at = at
        self._tick += 1
        if at < math.inf and self.alive and not self.core.stopped:
            number = self._tick
            # A little late, as timers are; never at the same moment for ever.
            self.world.at(
                (at - self.boot0) / self.rate + 0.001, lambda: self.wake(lambda: self._ticked(number))
            )

    def _ticked(self, number: int) -> None:
        if number == self._tick:
            self._ticks_at = math.inf
            self.carry_out(self.core.tick(self.boot()))

    def _one(self, action: Action) -> None:
        core, store, sent = self.core, self.world.store, self.boot()
        act, boot = self.carry_out, self.boot
        match action:
            case do.Grant(ttl_s):
                self.request(
                    lambda: store.grant(ttl_s),
                    lambda lease: act(core.granted(boot(), sent, lease, ttl_s)),  # type: ignore[arg-type]
                    lambda _: act(core.grant_failed(boot())),
                )
            case do.KeepAlive(lease):
                self.request(
                    lambda: store.keepalive(lease),
                    lambda ttl: act(core.kept(boot(), lease, sent, ttl)),  # type: ignore[arg-type]
                    lambda _: act(core.keepalive_failed(boot(), lease)),
                )
            case do.Txn(number, compares, ops):
                self.request(
                    lambda: self._txn(compares, ops),
                    lambda result: act(core.txn_done(boot(), number, result)),  # type: ignore[arg-type]
                    lambda sent_: act(
                        core.txn_done(boot(), number, Failure.AMBIGUOUS if sent_ else Failure.UNAVAILABLE)
                    ),
                )
            case do.Read(number):
                self.request(
                    lambda: Snapshot(store.revision, store.items()),
                    lambda shot: act(core.read_done(boot(), number, shot)),  # type: ignore[arg-type]
                    lambda _: act(core.read_done(boot(), number, None)),
                )
            case do.Revoke(lease):
                self.request(lambda: store.revoke(lease), lambda _: None, lambda _: None)
            case do.Gained(units):
                for owned in units:
                    self.acting.add(owned.unit)
                    self._load(owned)
            case do.Drain(leaving):
                self.acting.difference_update(leaving)
                flushed = self.world.rng.uniform(0, 0.2)
                self.world.later(flushed, lambda: self.wake(lambda: act(core.drained(boot(), leaving))))
            case do.Lost(units):
                for unit in units:
                    self.acting.discard(unit)
                    self.loads.pop(unit, None)
                    self.loaded.pop(unit, None)
            case do.Stopped():
                self.alive = False
            case _:
                pass

    def _txn(self, compares: tuple, ops: tuple) -> TxnResult | Failure:  # type: ignore[type-arg]
        try:
            return self.world.store.txn(compares, ops)
        except LeaseEnded:
            return Failure.LEASE_GONE

    # -- acting for slots

    def may(self, owned: Owned) -> bool:
        """The inline check before a side effect."""
        core = self.core
        fence = core.fences.get(owned.unit)
        return (
            fence == owned.fence
            and owned.unit in self.acting
            and (self.boot() < core.acting_until or not self.world.deadline)
        )

    def _load(self, owned: Owned) -> None:
        if not isinstance(owned.unit, int):
            return
        store, branch = self.world.store, self.world.store.branch
        load = self.loads[owned.unit] = object()

        def answered(revision: object) -> None:
            assert isinstance(revision, int)
            if self.loads.get(owned.unit) is load and self.core.fences.get(owned.unit) == owned.fence:
                self.loaded[owned.unit] = Loaded(owned, revision, branch)
                self._serve(owned)

        def failed(sent: bool) -> None:
            if self.loads.get(owned.unit) is load and self.core.fences.get(owned.unit) == owned.fence:
                self._load(owned)

        self.request(lambda: store.revision, answered, failed)

    def _serve(self, owned: Owned) -> None:
        loaded = self.loaded.get(owned.unit)
        if loaded is None or loaded.owned != owned or not self.alive:
            return
        if self.may(owned):
            self._proved(owned)
            self._synchronise(loaded)
            self._write(loaded)
        self.world.later(EVERY_S, lambda: self.wake(lambda: self._serve(owned)))

    def _proved(self, owned: Owned) -> None:
        """At the moment of the check nobody else has claimed."""
        epoch = self.world.store.epoch(f"{ROOT}slot/{owned.unit:04d}")
        if self.world.deadline and not self.world.restored and epoch != owned.claim.epoch:
            raise Violation(
                f"{self.incarnation} acts for slot {owned.unit} in epoch {owned.claim.epoch}, claimed is {epoch}"
            )

    def _synchronise(self, loaded: Loaded) -> None:
        """HELLO and WELCOME: the edge's journal is judged, then told this owner's state."""
        world, owned = self.world, loaded.owned
        assert isinstance(owned.unit, int)
        edge = world.edges[owned.unit]
        parted = judge(
            edge.claim,
            edge.revision,
            store=UUID,
            generation=1,
            record=owned.record,
            head=max(loaded.revision, self.core.view.revision),
        )
        if parted is not None:
            # Without the deadline an owner that has ended may judge by claims that have gone on.
            if not world.restored and world.deadline:
                raise Violation(f"slot {owned.unit}: parted without a restore: {parted.reason}")
            return
        hello = edge.point
        claim = EdgeClaim(UUID, 1, owned.unit, owned.claim.epoch, owned.claim.id)
        world.later(world.delay(), lambda: self._arrive(edge, claim, (loaded.branch, loaded.revision), hello))

    def _arrive(self, edge: Edge, claim: EdgeClaim, state: tuple[int, int], hello: tuple[int, int]) -> None:
        """At the edge, perhaps long after the check."""
        world = self.world
        if edge.claim is not None and claim.epoch < edge.claim.epoch:
            world.refused += 1
            return
        if (
            edge.claim is not None
            and claim.epoch == edge.claim.epoch
            and claim.id != edge.claim.id
            and not world.restored
        ):
            raise Violation(f"slot {claim.slot}: two claims in epoch {claim.epoch} reached the edge")
        if not world.store.contains(hello, state):
            raise Violation(f"slot {claim.slot}: state {state} was sent to an edge that knew {hello}")
        world.accepted += 1
        edge.claim = claim
        if state[1] > edge.revision or state[0] > edge.point[0]:
            edge.revision, edge.point = max(edge.revision, state[1]), state

    def _write(self, loaded: Loaded) -> None:
        """A fenced write, and STORED to the edge for it."""
        world, owned = self.world, loaded.owned
        value = f"{owned.claim.epoch} {self.incarnation}".encode()
        put = Put(f"{DATA}{owned.unit:04d}", value)
        compare = Compare(owned.fence.key, owned.fence.mod_revision)

        def answered(result: object) -> None:
            assert isinstance(result, TxnResult)
            if not result.succeeded:
                self.carry_out(self.core.fence_lost(self.boot(), owned.unit))
            elif self.may(owned) and self.loaded.get(owned.unit) is loaded:
                loaded.revision = max(loaded.revision, result.revision)
                self._synchronise(loaded)

        self.request(lambda: world.store.txn((compare,), (put,)), answered, lambda _: None)


# -- schedules


@dataclass(slots=True)
class Outcome:
    seed: int
    problem: str = ""
    accepted: int = 0
    refused: int = 0
    settled_s: float = 0.0
    restored: bool = False
    faults: list[str] = field(default_factory=list)


def simulate(seed: int, *, fenced: bool = True, deadline: bool = True, story: bool = False) -> Outcome:
    """One schedule. `deadline` False leaves out the inline check, as the fence alone has to hold then."""
    world = World(seed, fenced=fenced, deadline=deadline, story=story)
    outcome = Outcome(seed)
    try:
        _disturb(world, outcome)
        outcome.settled_s = _calm(world)
    except Violation as problem:
        outcome.problem = str(problem)
    outcome.accepted, outcome.refused, outcome.restored = world.accepted, world.refused, world.restored
    return outcome


def _disturb(world: World, outcome: Outcome) -> None:
    rng = world.rng
    count = rng.randint(2, 4)
    started = 0

    def start(id: str) -> None:
        nonlocal started
        started += 1
        world.replicas[id] = Replica(world, id, started)

    for i in range(count):
        world.at(rng.choice([0.0, rng.uniform(0, 4)]), lambda i=i: start(f"r{i}"))  # type: ignore[misc]
    while world.t < FAULTS_S:
        world.run(min(FAULTS_S, world.t + rng.expovariate(0.8)))
        if not world.replicas:
            continue
        id = rng.choice(sorted(world.replicas))
        replica = world.replicas[id]
        kind = rng.choice(["pause", "pause", "kill", "stop", "wall", "down", "relist", "join", "restore"])
        outcome.faults.append(f"{world.t:.3f} {kind} {replica.incarnation}")
        world.tell("FAULT", kind, id)
        if kind == "pause" and replica.alive:
            replica.pause()
            world.later(rng.choice([0.5, 2.0, 3.2, 5.0]) * rng.uniform(0.8, 1.2), replica.go_on)
        elif kind == "kill":
            replica.kill()
        elif kind == "stop" and replica.alive and not replica.leaving:
            replica.leaving = True
            replica.wake(lambda r=replica: r.carry_out(r.core.stop(r.boot())))  # type: ignore[misc]
        elif kind == "wall":
            replica.wall_jump += rng.choice([-86400.0, 3600.0, 86400.0])
        elif kind == "down":
            world.store_down_until = world.t + rng.choice([0.3, 2.0, 4.0])
        elif kind == "relist" and replica.alive:
            replica.wake(replica.relist)
        elif kind == "join" and not replica.alive:
            start(id)
        elif kind == "restore":
            _restore(world)


def _restore(world: World) -> None:
    """The first time a copy is taken; later, with every replica down, it is put back.

    Much is written elsewhere right after the copy. Where the restored store reaches the revision that a node has seen
    before the node's slot is claimed anew, `judge` cannot tell the two histories apart: that needs a higher generation
    (`cloudhub restore`), and is not simulated."""
    if world.restored:
        return
    if world.saved is None:
        world.saved = (world.store.revision, dict(world.store.keys))
        world.store.revision += 100_000
    elif world.rng.random() < 0.4:
        for replica in world.replicas.values():
            replica.kill()
        world.restored = True
        world.store.restore(*world.saved)


def _calm(world: World) -> float:
    """Faults end; returns the seconds until all units are owned as wanted. Raises Violation when they are not."""
    world.faults = False
    world.store_down_until = world.t
    for id, replica in sorted(world.replicas.items()):
        if replica.paused is not None:
            replica.go_on()
        if not replica.alive:
            world.replicas[id] = Replica(world, id, 1000 + len(world.replicas))
    begun = world.t
    problem = ""
    while world.t < begun + CALM_S:
        world.run(world.t + 1.0)
        problem = _unsettled(world)
        if not problem:
            return world.t - begun
    raise Violation(f"{CALM_S:.0f} s after the last fault: {problem}")


def _unsettled(world: World) -> str:
    alive = {id: r for id, r in world.replicas.items() if r.alive and not r.leaving}
    if not alive:
        return ""
    wanted = assign([r.core.record for r in alive.values()], SLOTS, ROLE)
    for unit in (*range(SLOTS), *ROLE):
        owner = wanted.owner(unit)
        holders = [id for id, r in world.replicas.items() if r.alive and r.core.of(unit) is not None]
        if holders != [owner]:
            return f"{unit} is held by {holders}, wanted is {owner}"
        owned = alive[holders[0]].core.of(unit)
        assert owned is not None
        key = world.store.keys.get(world.keys.owner(unit))
        epoch = world.store.epoch(world.keys.owner(unit).removesuffix("/owner"))
        if key is None or epoch != owned.claim.epoch:
            return f"{unit}: {owner} holds epoch {owned.claim.epoch}, the store says {epoch}"
        if alive[holders[0]].core.suspended:
            return f"{owner} is suspended"
        if isinstance(unit, int) and not world.restored and world.deadline:
            edge = world.edges[unit].claim
            if edge is None or edge.id != owned.claim.id:
                return f"the node of slot {unit} does not follow {owner}"
    return ""


# -- the command


def _batch(job: tuple[int, int, bool, bool]) -> tuple[int, list[Outcome], int, int, float]:
    first, count, fenced, deadline = job
    bad: list[Outcome] = []
    refused = restored = 0
    slowest = 0.0
    for seed in range(first, first + count):
        outcome = simulate(seed, fenced=fenced, deadline=deadline)
        refused += outcome.refused
        restored += outcome.restored
        slowest = max(slowest, outcome.settled_s)
        if outcome.problem:
            bad.append(outcome)
    return count, bad, refused, restored, slowest


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.membership")
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first schedule; the others count up from it"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--no-fence", action="store_true", help="the store ignores the epoch of owners' writes"
    )
    parser.add_argument("--no-deadline", action="store_true", help="owners do not check their deadline")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one schedule and tell what happens")
    args = parser.parse_args()
    if args.replay is not None:
        one = simulate(args.replay, fenced=not args.no_fence, deadline=not args.no_deadline, story=True)
        print(f"seed {one.seed}: {one.problem or 'holds'}")
        return bool(one.problem)
    jobs = [
        (args.seed + first, min(100, args.schedules - first), not args.no_fence, not args.no_deadline)
        for first in range(0, args.schedules, 100)
    ]
    done = failed = refused = restored = 0
    slowest = 0.0
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for count, bad, late, old, settled in pool.imap_unordered(_batch, jobs):
            done, refused, restored, slowest = (
                done + count,
                refused + late,
                restored + old,
                max(slowest, settled),
            )
            for outcome in bad:
                failed += 1
                print(f"seed {outcome.seed}: {outcome.problem}", flush=True)
            if done % 10_000 < count:
                print(f"{done} schedules, {failed} failed", file=sys.stderr, flush=True)
            if failed >= 20:
                pool.terminate()
                break
    print(
        f"{done} schedules: {failed} failed; {restored} with a restore, {refused} late messages refused at the edge,"
        f" all settled within {slowest:.0f} s of the last fault"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
