"""What comes at once in a storm is done in portions: heartbeats and leases have their turn in between."""

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import AsyncIterator

import msgspec
import pytest

from hub import objects, transport
from hub.objects import PODS
from hub.registry import Object
from hub.store import watchers
from hub.store.watchers import Watchers
from hub.upstream import OBJECTS_A_TURN, Update
from shards.kv import Event, KeyValue, WatchBatch
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import pod
from tests.hub.test_transport import hang_up, serving, until
from tests.hub.test_upstream import upstream


@contextlib.asynccontextmanager
async def turns() -> AsyncIterator[list[int]]:
    """The number of the loop's turn, at index 0."""
    now = [0]

    async def count() -> None:
        while True:
            now[0] += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(count())
    try:
        yield now
    finally:
        task.cancel()


async def test_changes_of_many_slots_are_derived_over_many_turns() -> None:
    slots, each = 40, 8
    derived: list[int] = []
    async with upstream() as (f, up):
        for i in range(slots * each):
            await f.registry.create(PODS, pod(f"p{i}", "n1"))
        async with turns() as now:

            def apply(obj: Object) -> Object:
                derived.append(now[0])
                return {**obj, "status": {"phase": "Running"}}

            for i in range(slots * each):
                up.submit(
                    i % slots, Update(PODS, "default", f"p{i}", None, apply, f.done(str(i)), whole=True)
                )
            await up.settled()
    assert len(derived) == slots * each
    most = max(derived.count(turn) for turn in set(derived))
    assert most < OBJECTS_A_TURN + each, f"{most} in one turn of the loop"


async def test_the_events_of_a_commit_reach_a_watcher_over_many_turns() -> None:
    live = Watchers()

    async def replay(after: int) -> tuple[list[WatchBatch], int]:
        return [], after

    stream = live.stream([("/", "0")], 0, replay)
    await anext(stream)
    each = 10
    for revision in range(1, 51):
        kv = KeyValue("/k", b"v", 1, revision, 0)
        live.publish([WatchBatch(revision, (Event("/k", kv, None),) * each)])
    seen: dict[int, int] = {}
    async with turns() as now:
        for revision in range(1, 51):
            batch = await anext(stream)
            assert batch.revision == revision
            seen[now[0]] = seen.get(now[0], 0) + len(batch.events)
    await stream.aclose()  # type: ignore[attr-defined]
    assert sum(seen.values()) == 500 and max(seen.values()) < watchers.EVENTS_A_TURN + each


async def test_connections_that_are_all_dead_at_once_are_ended_over_many_turns(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "SWEPT_AT_ONCE", 2)
    pki = Pki(str(tmp_path))
    client: ssl.SSLContext = pki.client("edge-1")
    async with serving(pki) as on:
        writers = [(await on.dial(client))[1] for _ in range(7)]
        await until(lambda: len(on.echo.open) == 7)
        on.clock.now += 1000
        on.port.sweep()
        left = [len(on.echo.open)]
        spoken = on.echo.open[-1]
        spoken.heard = on.clock.now  # its bytes came between two portions
        while on.port._sweeping:
            await asyncio.sleep(0)
            left.append(len(on.echo.open))
        assert left[0] == 5 and max(a - b for a, b in itertools.pairwise(left)) <= 2
        assert on.echo.open == [spoken]
        for writer in writers:
            await hang_up(writer)


def test_the_collector_does_not_follow_the_views_of_objects() -> None:
    """10,000 nodes have 120,000 of them, in the caches and at the controllers."""
    views = [v for v in vars(objects).values() if isinstance(v, type) and issubclass(v, msgspec.Struct)]
    assert len(views) > 10
    assert [view.__name__ for view in views if view.__struct_config__.gc] == []
