"""Caches that share entries: each has what it would have alone, and what several have is one object."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.cache import Entry, by_node, by_owner
from hub.controllers.podnote import keep_pod, keep_scheduled
from hub.controllers.run import CREWS
from hub.informer import Informers
from hub.kin import Kin
from hub.mirror import Mirror
from hub.objects import NODES, PODS, Keys, PodView, partition_of_slot
from hub.registry import Object, Registry
from hub.roles import fleet_kin
from hub.share import Share, placed
from hub.store.memory import MemoryStore
from shards.kv import Event, KeyValue
from shards.ownership import CONTROLLERS, SCHEDULER
from shards.ring import slot_of

DEADLINE_S = 20.0
SLOTS = 4
NODE_NAMES = tuple(
    next(f"n{i}" for i in range(99) if slot_of(f"n{i}", SLOTS) == slot) for slot in range(SLOTS)
)
KEY = ("d", "p")


def pod_json(
    revision: int, *, uid: str = "u", node: str = "n", owner: str = "o", phase: str = "Running"
) -> bytes:
    return orjson.dumps(
        {
            "metadata": {
                "name": "p",
                "namespace": "d",
                "uid": uid,
                "labels": {"app": "till"},
                "annotations": {"pad": "x" * 400},
                "creationTimestamp": "2026-11-21T18:00:00Z",
                "ownerReferences": [{"uid": owner, "kind": "ReplicaSet", "name": "rs", "controller": True}],
            },
            "spec": {
                "nodeName": node,
                "schedulerName": "default-scheduler",
                "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}],
            },
            "status": {"phase": phase, "startTime": "t", "observed": revision},
        }
    )


def mirrors(kin: Kin | None) -> list[Mirror[PodView]]:
    """As of a replica's share, its scheduler and its controllers."""
    both = {"owner": by_owner, "node": by_node}
    made: list[Mirror[PodView]] = [
        Mirror(PODS, {"node": by_node}, slim=placed, kin=kin),
        Mirror(PODS, both, keep_scheduled, kin=kin),
        Mirror(PODS, both, keep_pod, kin=kin),
    ]
    for mirror in made if kin is not None else ():
        assert mirror.kin is not None
        mirror.kin.join(mirror.cache)
    return made


def pods_kin() -> Kin:
    return fleet_kin()[PODS]


def event_of(name: str, partition: int, value: bytes | None, revision: int) -> Event:
    key = Keys().object(PODS, partition_of_slot(partition), "d", name)
    return Event(key, None if value is None else KeyValue(key, value, revision, revision), None)


def feed(mirror: Mirror[PodView], revision: int, value: bytes) -> None:
    mirror.advance(mirror.apply([event_of("p", 0, value, revision)], revision), revision)


def held(mirror: Mirror[PodView]) -> Entry[PodView]:
    entry = mirror.cache.get(*KEY)
    assert entry is not None
    return entry


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_whoever_hears_first_all_hold_one_entry_which_has_what_each_of_them_wants(
    order: tuple[int, ...],
) -> None:
    share, scheduler, controllers = made = mirrors(pods_kin())
    for revision in (1, 2):
        raw = pod_json(revision)
        for n in order:
            feed(made[n], revision, raw)
        entry = held(share)
        assert entry is held(scheduler) and entry is held(controllers)
        assert entry.raw() == raw and entry.revision == revision
        assert entry.view.status.phase == "Running" and entry.meta.labels == {"app": "till"}
        assert entry.note.was_there and entry.note.load.requests == {"cpu": 1000}
    assert [e.key for e in controllers.cache.find("owner", "o")] == [KEY]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_state_is_decoded_once_whoever_hears_of_it_first(
    monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]
) -> None:
    made = mirrors(pods_kin())
    decoded: list[bytes] = []
    for mirror in made:
        shape = mirror.cache.shape
        monkeypatch.setattr(
            mirror.cache, "shape", lambda raw, shape=shape: (decoded.append(raw), shape(raw))[1]
        )
    for revision in (1, 2, 3):
        for n in order:
            feed(made[n], revision, pod_json(revision))
    assert len(decoded) == 3


def test_lists_that_are_read_at_the_same_time_end_with_one_entry() -> None:
    made = mirrors(pods_kin())
    raw, key = pod_json(1), Keys().object(PODS, partition_of_slot(0), "d", "p")
    read = [mirror.entry_of(key, raw, 1) for mirror in made]
    for mirror, entry in zip(made, read, strict=True):
        mirror.advance(mirror.set_state(KEY, entry, 1), 1)
    entry = held(made[0])
    assert entry.raw() == raw and all(held(mirror) is entry for mirror in made)


@pytest.mark.parametrize("share_first", [True, False])
def test_a_share_that_reads_a_list_while_a_role_comes_and_the_role_end_with_what_both_want(
    share_first: bool,
) -> None:
    kin = pods_kin()
    share = Mirror(PODS, {"node": by_node}, slim=placed, kin=kin)
    role = Mirror(PODS, {"owner": by_owner}, keep_pod, kin=kin)
    kin.join(share.cache)
    raw, key = pod_json(1), Keys().object(PODS, partition_of_slot(0), "d", "p")
    of_share = share.entry_of(key, raw, 1)
    kin.join(role.cache)
    of_role = role.entry_of(key, raw, 1)
    assert of_share.note is None and of_role.size == 0
    order = [(share, of_share), (role, of_role)]
    for mirror, entry in order if share_first else reversed(order):
        mirror.advance(mirror.set_state(KEY, entry, 1), 1)
    assert held(share) is held(role) and held(role).raw() == raw and held(role).note.was_there
    assert [e.key for e in role.cache.find("owner", "o")] == [KEY]


def test_who_lags_holds_what_it_has_been_told_and_finds_its_own_state() -> None:
    share, scheduler, controllers = mirrors(pods_kin())
    for revision in (1, 2):
        feed(share, revision, pod_json(revision, node=f"n{revision}"))
    feed(scheduler, 1, pod_json(1, node="n1"))
    assert held(scheduler).view.spec.nodeName == "n1" and held(share).view.spec.nodeName == "n2"
    assert held(scheduler).size == 0, "the bytes of a state that the share is past are nobody's"
    feed(controllers, 1, pod_json(1, node="n1"))
    assert held(controllers) is held(scheduler)
    feed(scheduler, 2, pod_json(2, node="n2"))
    assert held(scheduler) is held(share)
    assert [e.revision for e in scheduler.cache.find("node", "n2")] == [2]
    assert scheduler.cache.find("node", "n1") == []


def test_a_role_that_comes_later_gives_the_share_what_it_has_made_and_takes_its_bytes() -> None:
    kin = pods_kin()
    share = Mirror(PODS, {"node": by_node}, slim=placed, kin=kin)
    kin.join(share.cache)
    feed(share, 1, pod_json(1))
    alone = held(share)
    assert alone.meta.labels is None and alone.note is None, "alone it keeps what it asks"
    role = Mirror(PODS, {"owner": by_owner}, keep_pod, kin=kin)
    kin.join(role.cache)
    feed(role, 1, pod_json(1))
    assert held(role) is held(share) and held(role).blob is alone.blob and held(role).note.was_there
    kin.leave(role.cache)
    feed(share, 2, pod_json(2))
    assert held(share).meta.labels is None and held(share).note is None
    assert held(role).revision == 1


def test_what_a_share_forgets_stays_with_the_roles_without_its_bytes() -> None:
    share, scheduler, controllers = made = mirrors(pods_kin())
    for mirror in made:
        feed(mirror, 1, pod_json(1))
    told = held(share)
    share.forget({partition_of_slot(0)})
    assert share.cache.get(*KEY) is None
    assert held(scheduler) is held(controllers) and held(scheduler).size == 0
    assert held(scheduler).note is told.note and [e.key for e in scheduler.cache.find("node", "n")] == [KEY]
    assert told.raw() == pod_json(1), "who was told of it may still read it"


def test_a_cache_whose_form_is_not_known_does_not_join() -> None:
    with pytest.raises(ValueError):
        pods_kin().join(Mirror(PODS, {}).cache)


# -- against caches that share nothing ------------------------------------------------------------------------------

NAMES = ("a", "b")
CHANGES = st.one_of(
    st.tuples(
        st.sampled_from(NAMES),
        st.integers(0, 1),
        st.sampled_from(("u", "v")),
        st.sampled_from(("", "n", "m")),
    ),
    st.sampled_from(NAMES),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), CHANGES),
        st.tuples(st.just("hear"), st.integers(0, 2)),
        st.tuples(st.just("list"), st.integers(0, 2)),
        st.tuples(st.just("forget"), st.integers(0, 1)),
        st.tuples(st.just("leave"), st.integers(1, 2)),
    ),
    max_size=40,
)


class Side:
    """Three mirrors of one store, each at its own place in the store's history; with `kin`, or each by itself."""

    def __init__(self, kin: Kin | None) -> None:
        self.kin = kin
        self.mirrors = mirrors(kin)
        self.told: list[list[tuple[Any, ...]]] = [[], [], []]
        for n, mirror in enumerate(self.mirrors):
            mirror.subscribe(lambda deltas, _, n=n: self.told[n].extend(map(told, deltas)))  # type: ignore[misc]

    def state(self) -> Any:
        return [
            (
                sorted((e.key, e.partition, e.revision, asked(n, e)) for e in mirror.cache),
                {i: sorted(e.key for e in mirror.cache.find("node", i)) for i in ("n", "m")},
                {i: sorted(e.key for e in mirror.cache.find("owner", i)) for i in ("", "o-n", "o-m", "o-")}
                if n == 2
                else None,
            )
            for n, mirror in enumerate(self.mirrors)
        ]


def told(delta: Any) -> tuple[Any, ...]:
    old = delta.old
    return delta.type, delta.entry.key, delta.entry.revision, old and old.revision, delta.revision


def asked(n: int, entry: Entry[PodView]) -> str:
    """What the n-th kind of cache asks of an entry."""
    if n == 0:
        return repr((placed(entry.view), entry.raw()))
    note = entry.note
    if n == 1:
        raw = (entry.meta.name, entry.meta.uid, entry.view.spec, entry.view.status.phase)
        return repr((raw, note.load, note.demand, note.gated))
    return repr((entry.view, note))


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_each_cache_is_told_and_holds_what_it_would_alone_whatever_happens(steps: list[Any]) -> None:
    sides = (Side(pods_kin()), Side(None))
    history: list[list[Event]] = []
    there: dict[str, tuple[int, bytes, int]] = {}
    at = [0, 0, 0]
    for what, how in steps:
        if what == "write":
            history.append(write(how, there, len(history) + 1))
        for side in sides:
            if what == "hear" and at[how] < len(history):
                revision = at[how] + 1
                mirror = side.mirrors[how]
                mirror.advance(mirror.apply(history[at[how]], revision), revision)
            elif what == "list":
                relist(side.mirrors[how], there, len(history))
            elif what == "forget":
                side.mirrors[0].forget({partition_of_slot(how)})
            elif what == "leave" and side.kin is not None:
                side.kin.leave(side.mirrors[how].cache)
                side.kin.join(side.mirrors[how].cache)
        if what == "hear":
            at[how] = min(at[how] + 1, len(history))
        elif what == "list":
            at[how] = len(history)
        assert sides[0].state() == sides[1].state()
        assert sides[0].told == sides[1].told
    one = sides[0].mirrors
    for key in [e.key for e in one[2].cache]:
        same = [e for m in one if (e := m.cache.get(*key)) is not None]
        assert len({id(e) for e in same}) == len({e.revision for e in same}), "one state, one entry"


def write(how: Any, there: dict[str, tuple[int, bytes, int]], revision: int) -> list[Event]:
    """A pod comes, changes, moves or is made anew in one transaction; or goes."""
    name = how if isinstance(how, str) else how[0]
    before = there.pop(name, None)
    gone = [event_of(name, before[0], None, revision)] if before is not None else []
    if isinstance(how, str):
        return gone
    _, partition, uid, node = how
    obj = orjson.loads(pod_json(revision, uid=uid, node=node, owner=f"o-{node}"))
    obj["metadata"]["name"] = name
    value = orjson.dumps(obj)
    there[name] = partition, value, revision
    moved = gone if before is not None and before[0] != partition else []
    return [*moved, event_of(name, partition, value, revision)]


def relist(mirror: Mirror[PodView], there: dict[str, tuple[int, bytes, int]], revision: int) -> None:
    """As an informer does whose past is compacted away."""
    found = {}
    for name, (partition, value, changed) in there.items():
        key = Keys().object(PODS, partition_of_slot(partition), "d", name)
        found["d", name] = mirror.entry_of(key, value, changed)
    gone = [entry.key for entry in mirror.cache if entry.key not in found]
    deltas = [d for key in gone for d in mirror.set_state(key, None, revision)]
    deltas += [d for key, entry in sorted(found.items()) for d in mirror.set_state(key, entry, revision)]
    mirror.advance(deltas, revision)


# -- on real parts ------------------------------------------------------------------------------------------------------


class Replica:
    """A share and the informers of both roles, over one store."""

    def __init__(self) -> None:
        self.store, keys = MemoryStore(slots=SLOTS), Keys()
        self.registry = Registry(self.store, keys)
        kin = fleet_kin()
        self.share = Share(self.store, keys, kin)
        self.roles = [
            Informers(self.store, keys, CREWS[role].kinds, CREWS[role].thin, kin, CREWS[role].owners)
            for role in (SCHEDULER, CONTROLLERS)
        ]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(DEADLINE_S):
            running = [tasks.create_task(part.run()) for part in (self.share, *self.roles)]
            for role in self.roles:
                await role.synced()
            yield
            for task in running:
                task.cancel()

    async def reached(self) -> None:
        revision = await self.store.revision()
        for role in self.roles:
            await role.at_least(revision)
        for mirror in (self.share.pods, self.share.nodes):
            await mirror.at_least(revision)

    def entries(self, res: Any, namespace: str, name: str) -> list[Entry[Any] | None]:
        mirrors = [
            self.share.pods if res == PODS else self.share.nodes,
            *(role.of(res) for role in self.roles),
        ]
        return [mirror.cache.get(namespace, name) for mirror in mirrors]


def bound(name: str, node: str) -> Object:
    spec = {"nodeName": node, "containers": [{"name": "c", "image": "till:1"}]}
    return {"metadata": {"name": name, "namespace": "d", "annotations": {"pad": "x" * 400}}, "spec": spec}


async def test_a_replica_holds_pods_and_nodes_of_its_slots_once_and_of_others_no_bytes() -> None:
    replica = Replica()
    for name in NODE_NAMES:
        await replica.registry.create(NODES, {"metadata": {"name": name}})
        await replica.registry.create(PODS, bound(f"early-{name}", name))
    async with replica.running():
        await replica.share.load([0, 1], await replica.store.revision())
        for name in NODE_NAMES:
            await replica.registry.create(PODS, bound(f"late-{name}", name))
        await replica.reached()
        for slot, node in enumerate(NODE_NAMES):
            for res, namespace, name in (
                (NODES, "", node),
                (PODS, "d", f"early-{node}"),
                (PODS, "d", f"late-{node}"),
            ):
                own, *of_roles = replica.entries(res, namespace, name)
                assert of_roles[0] is not None and of_roles[0] is of_roles[1]
                if slot in (0, 1):
                    assert own is of_roles[0] and b"metadata" in own.raw()
                else:
                    assert own is None and of_roles[0].size == 0
        replica.share.drop([0])
        own, *of_roles = replica.entries(PODS, "d", f"late-{NODE_NAMES[0]}")
        assert (
            own is None and of_roles[0] is of_roles[1] and of_roles[0] is not None and of_roles[0].size == 0
        )
        replica.share.drop([1])


async def test_a_role_that_has_ended_is_not_given_anything_any_more() -> None:
    replica = Replica()
    async with replica.running():
        pass
    kin = replica.share.pods.kin
    assert kin is not None and kin._members == (replica.share.pods.cache,)
