"""Reports on their way into the store: merged, fenced, never acknowledged before they are durable."""

import asyncio
import contextlib
import itertools
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from hub import errors
from hub.objects import EVENTS, PODS, Keys
from hub.registry import Object, Registry
from hub.reports import merge_pod
from hub.store.memory import MemoryStore
from hub.upstream import Creation, Removal, Result, Update, Upstream
from shards.claims import Fence
from shards.kv import Compare, Put, TxnResult, Unavailable
from tests.hub.hub_fixture import pod


class Shaky(MemoryStore):
    """Fails when told to."""

    def __init__(self) -> None:
        super().__init__(slots=4)
        self.down = False
        self.meanwhile: Callable[[], None] = lambda: None
        """Called while it fails."""
        self.transactions = 0

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Any]) -> TxnResult:
        if self.down:
            self.meanwhile()
            raise Unavailable("the disk is full")
        self.transactions += 1
        return await super().txn(compares, ops)


class Fixture:
    def __init__(self) -> None:
        self.store = Shaky()
        self.registry = Registry(self.store, Keys())
        self.results: dict[str, Result] = {}
        self.lost: list[int] = []
        self.fence: Fence | None = None

    def done(self, name: str) -> Callable[[Result], None]:
        def note(result: Result) -> None:
            assert name not in self.results, "answered twice"
            self.results[name] = result

        return note

    def status(self, name: str, phase: str, label: str = "", uid: str | None = None) -> Update:
        apply = merge_pod("n1", {"phase": phase})
        return Update(PODS, "default", name, uid, apply, self.done(label or name), whole=True)


@contextlib.asynccontextmanager
async def upstream() -> AsyncIterator[tuple[Fixture, Upstream]]:
    f = Fixture()
    result = await f.store.txn([], [Put("/fence", b"1")])
    f.fence = Fence("/fence", result.revision)
    async with asyncio.TaskGroup() as group:
        yield (
            f,
            Upstream(
                f.registry,
                lambda slot: f.fence if slot not in f.lost else None,
                lambda slot: slot not in f.lost,
                f.lost.append,
                lambda job, name: group.create_task(job, name=name),
            ),
        )


async def test_what_comes_at_once_is_one_transaction_and_later_states_replace_earlier_ones() -> None:
    async with upstream() as (f, up):
        for i in range(50):
            await f.registry.create(PODS, pod(f"p{i}", "n1"))
        before = f.store.transactions
        for i in range(50):
            assert up.submit(0, f.status(f"p{i}", "Pending", f"first {i}"))
            assert up.submit(0, f.status(f"p{i}", "Running", f"second {i}"))
        await up.settled()
        assert f.store.transactions == before + 1 and len(f.results) == 100
        assert (await f.registry.get(PODS, "default", "p7")).obj()["status"]["phase"] == "Running"


async def test_of_states_that_wait_only_the_last_one_is_kept_and_all_are_answered() -> None:
    class State(dict[str, Any]):
        """A status that can be referred to weakly."""

    states: list[weakref.ref[State]] = []

    def status(f: Fixture, phase: str, label: str) -> Update:
        state = State(phase=phase, message=label)
        states.append(weakref.ref(state))
        return Update(PODS, "default", "p", None, merge_pod("n1", state), f.done(label), whole=True)

    async with upstream() as (f, up):
        await f.registry.create(PODS, pod("p", "n1"))
        f.store.down = True
        tries = itertools.count()
        f.store.meanwhile = lambda: submit_all(f"try {next(tries)}")

        def submit_all(label: str) -> None:
            for i in range(10):
                assert up.submit(0, status(f, "Running", f"{label}.{i}"))

        for more in range(2):
            submit_all(f"between {more}")
            before = up.retries
            while up.retries == before:
                await asyncio.sleep(0.01)
        f.store.meanwhile = lambda: None
        assert [state() is not None for state in states] == [False] * (len(states) - 1) + [True]
        assert up.jobs == len(states)
        newest = (states[-1]() or {})["message"]
        f.store.down = False
        await up.settled()
        assert len(f.results) == len(states) >= 40 and len(set(f.results.values())) == 1
        assert (await f.registry.get(PODS, "default", "p")).obj()["status"]["message"] == newest


async def test_nothing_is_answered_while_the_store_cannot_write_and_all_of_it_afterwards() -> None:
    async with upstream() as (f, up):
        await f.registry.create(PODS, pod("p", "n1"))
        f.store.down = True
        up.submit(0, f.status("p", "Running"))
        up.submit(0, Creation(EVENTS, event("e"), f.done("event")))
        while up.retries < 2:
            await asyncio.sleep(0.01)
        assert f.results == {}
        f.store.down = False
        await up.settled()
        assert all(isinstance(r, int) for r in f.results.values()) and len(f.results) == 2


async def test_one_report_that_is_refused_does_not_hold_up_the_others() -> None:
    async with upstream() as (f, up):
        await f.registry.create(PODS, pod("mine", "n1"))
        await f.registry.create(PODS, pod("foreign", "n2"))
        await f.registry.create(PODS, pod("large", "n1"))
        up.submit(0, f.status("mine", "Running"))
        up.submit(0, f.status("foreign", "Running"))
        up.submit(0, f.status("absent", "Running"))
        up.submit(0, f.status("mine", "Running", "old self", uid="another"))
        huge = merge_pod("n1", {"phase": "Running", "message": "x" * 1_500_000})
        up.submit(0, Update(PODS, "default", "large", None, huge, f.done("large")))
        await up.settled()
        assert isinstance(f.results["mine"], int)
        for name in ("foreign", "absent", "old self"):
            assert isinstance(f.results[name], errors.NotFound)
        assert isinstance(f.results["large"], errors.TooLarge)


async def test_a_lost_fence_ends_the_slot_and_answers_nothing() -> None:
    async with upstream() as (f, up):
        await f.registry.create(PODS, pod("p", "n1"))
        await f.store.txn([], [Put("/fence", b"another owner")])
        up.submit(0, f.status("p", "Running"))
        up.submit(0, Creation(EVENTS, event("e"), f.done("event")))
        await up.settled()
        assert f.results == {} and f.lost == [0] and up.jobs == 0
        assert not up.submit(0, f.status("p", "Running"))
        assert (await f.registry.get(PODS, "default", "p")).obj()["status"]["phase"] == "Pending"


async def test_gone_removes_a_marked_pod_and_marks_one_with_finalizers() -> None:
    async with upstream() as (f, up):
        for name in ("free", "held"):
            obj = pod(name, "n1", uid=f"uid-{name}")
            obj["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z", deletionGracePeriodSeconds=30)
            if name == "held":
                obj["metadata"]["finalizers"] = ["example.com/hold"]
            await f.registry.create(PODS, obj)
            up.submit(0, Removal("n1", "default", name, f"uid-{name}", f.done(name)))
        await f.registry.create(PODS, pod("wanted", "n1", uid="uid-wanted"))
        up.submit(0, Removal("n1", "default", "wanted", "uid-wanted", f.done("wanted")))
        up.submit(0, Removal("n2", "default", "held", "uid-held", f.done("foreign")))
        await up.settled()
        assert await f.registry.find(PODS, "default", "free") is None
        held = (await f.registry.get(PODS, "default", "held")).obj()
        assert held["metadata"]["deletionGracePeriodSeconds"] == 0
        assert isinstance(f.results["wanted"], errors.NotFound)
        assert isinstance(f.results["foreign"], errors.NotFound)
        assert await f.registry.find(PODS, "default", "wanted") is not None


async def test_an_event_that_exists_already_counts_as_stored() -> None:
    async with upstream() as (f, up):
        for label in ("first", "again"):
            up.submit(0, Creation(EVENTS, event("e"), f.done(label)))
            await up.settled()
        assert all(isinstance(r, int) for r in f.results.values())
        assert len((await f.registry.page(EVENTS)).items) == 1


async def test_there_is_a_bound_on_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hub.upstream.JOBS_MAX", 2)
    async with upstream() as (f, up):
        assert up.submit(0, f.status("a", "Running")) and up.submit(1, f.status("b", "Running"))
        assert not up.submit(2, f.status("c", "Running"))
        await up.settled()
        assert up.submit(2, f.status("c", "Running"))
        await up.settled()


async def test_a_report_that_does_not_fit_the_object_is_refused_with_a_reason() -> None:
    def odd(obj: Object) -> Object | None:
        raise KeyError("status")

    async with upstream() as (f, up):
        await f.registry.create(PODS, pod("p", "n1"))
        up.submit(0, Update(PODS, "default", "p", None, odd, f.done("p")))
        await up.settled()
        assert isinstance(f.results["p"], errors.BadRequest)


def event(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": "default"}}


async def test_a_suspended_slot_keeps_its_jobs_and_a_lost_one_forgets_them_for_good() -> None:
    async with upstream() as (f, up):
        await f.registry.create(PODS, pod("p", "n1"))
        fence, f.fence = f.fence, None
        assert up.submit(0, f.status("p", "Running"))
        await asyncio.sleep(0)
        assert up.jobs == 1 and f.results == {}
        up.drop([0])
        assert up.jobs == 0
        f.fence = fence  # claimed again
        assert up.submit(0, f.status("p", "Failed", "later"))
        await up.flushed([0])
        assert (await f.registry.get(PODS, "default", "p")).obj()["status"]["phase"] == "Failed"
        assert list(f.results) == ["later"]
        f.fence = None
        assert up.submit(0, f.status("p", "Running", "kept"))
        await asyncio.sleep(0)
        f.fence = fence
        up.wake()
        await up.flushed([0])
        assert (await f.registry.get(PODS, "default", "p")).obj()["status"]["phase"] == "Running"
