"""Events: counted, combined, and bounded in number."""

import asyncio
from typing import Any

import pytest

from hub import errors
from hub.kubernetes.events import COMBINED, KEYS_MAX, EventLimits, Events
from hub.kubernetes.registry import KubeRegistry
from hub.objects import EVENTS, Keys
from hub.store.memory import MemoryStore
from tests.hub.kubernetes.fake_objects import FakeApi

Object = dict[str, Any]


def event(
    name: str, message: str = "Back-off", uid: str = "u1", host: str = "edge-1", count: int = 1
) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": "shop"},
        "involvedObject": {"kind": "Pod", "namespace": "shop", "name": "till", "uid": uid},
        "reason": "BackOff",
        "message": message,
        "type": "Warning",
        "source": {"component": "edgelite", "host": host},
        "count": count,
        "firstTimestamp": f"first-{name}",
        "lastTimestamp": f"last-{name}",
    }


class World:
    def __init__(self, **limits: Any) -> None:
        self.clock = 1000.0
        self.api = FakeApi()
        self.events = Events(self.api, EventLimits(**limits), now=lambda: self.clock, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.clock += seconds

    async def write(self, made: Object) -> int:
        return await self.events.write(made, lambda: None)

    def stored(self) -> dict[str, Object]:
        return {path.rsplit("/", 1)[1]: obj for path, obj in self.api.objects.items()}


async def test_the_same_again_raises_the_count_of_the_event_that_is_there() -> None:
    world = World()
    await world.write(event("e1"))
    await world.write(event("e2", count=4))
    stored = world.stored()
    assert list(stored) == ["e1"] and stored["e1"]["count"] == 5
    assert stored["e1"]["firstTimestamp"] == "first-e1" and stored["e1"]["lastTimestamp"] == "last-e2"


async def test_the_same_side_by_side_is_one_event() -> None:
    world = World()
    await asyncio.gather(*(world.write(event(f"e{i}")) for i in range(20)))
    (stored,) = world.stored().values()
    assert stored["count"] == 20


async def test_a_server_that_does_not_answer_is_asked_for_a_few_events_at_a_time() -> None:
    world, plain, answers = World(at_once=3), FakeApi().request, asyncio.Event()
    under_way, most = 0, 0

    async def request(*arguments: Any, **options: Any) -> tuple[int, bytes]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await answers.wait()
        under_way -= 1
        return await plain(*arguments, **options)

    world.api.request = request  # type: ignore[method-assign]
    writing = [asyncio.ensure_future(world.write(event(f"e{i}", uid=f"u{i}"))) for i in range(40)]
    for _ in range(200):
        await asyncio.sleep(0)
    assert under_way == 3
    answers.set()
    await asyncio.gather(*writing)
    assert most == 3 and world.events.created == 40


async def test_ever_other_messages_for_one_reason_are_combined() -> None:
    world = World()
    for i in range(20):
        await world.write(event(f"e{i}", message=f"try {i}"))
    stored = world.stored()
    assert len(stored) == 11
    combined = [e for e in stored.values() if e["message"].startswith(COMBINED)]
    assert [e["count"] for e in combined] == [10] and combined[0]["message"].endswith("try 19")


async def test_who_says_too_much_about_one_object_is_refused_and_others_are_not() -> None:
    world = World()
    for i in range(25):
        await world.write(event(f"e{i}"))
    with pytest.raises(errors.TooManyRequests):
        await world.write(event("one-more"))
    await world.write(event("other", uid="u2"))
    world.clock += 300
    await world.write(event("later"))
    assert world.events.refused == 1


async def test_all_events_together_leave_at_a_bounded_rate() -> None:
    world = World(per_second=20.0, burst=10)
    since = world.clock
    for i in range(210):
        await world.write(event(f"e{i}", uid=f"u{i}"))
    assert world.clock - since == pytest.approx(10.0, abs=0.01)


async def test_an_event_that_has_ended_is_made_anew() -> None:
    world = World()
    await world.write(event("e1"))
    world.api.objects.clear()
    await world.write(event("e2"))
    assert list(world.stored()) == ["e2"]
    world.clock += 601
    await world.write(event("e3"))
    assert list(world.stored()) == ["e2", "e3"]


async def test_a_lost_answer_stores_nothing_twice() -> None:
    world = World()
    world.api.lost = 1
    with pytest.raises(errors.Timeout):
        await world.write(event("e1"))
    with pytest.raises(errors.AlreadyExists):
        await world.write(event("e1"))
    assert list(world.stored()) == ["e1"]


async def test_an_api_server_that_is_away_costs_no_event() -> None:
    world = World(object_burst=2)
    for failure in (
        errors.ServiceUnavailable("away"),
        errors.TooManyRequests(),
        errors.ServiceUnavailable("away"),
    ):
        world.api.failures = [failure]
        with pytest.raises(errors.ServiceUnavailable):
            await world.write(event("e1"))
    await world.write(event("e1"))
    assert list(world.stored()) == ["e1"] and world.events.refused == 0


async def test_what_is_remembered_is_bounded() -> None:
    world = World(per_second=1e9)
    for i in range(KEYS_MAX + 50):
        await world.write(event(f"e{i}", uid=f"u{i}"))
    assert len(world.events._series) == len(world.events._spam) == len(world.events._similar) == KEYS_MAX


async def test_the_registry_writes_events_through_it_and_refuses_for_good_what_is_too_much() -> None:
    world = World(object_burst=1)
    registry = KubeRegistry(world.api, MemoryStore(), Keys())
    registry.events = world.events
    stored = await registry.create(EVENTS, event("e1"))
    assert stored.revision == world.api.revision
    with pytest.raises(errors.TooManyRequests):
        await registry.create(EVENTS, event("e2"))
