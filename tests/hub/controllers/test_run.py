"""How the controllers of a role learn what is there: in portions, and each object's states in their order."""

import asyncio
import itertools
from typing import Any

import orjson
import pytest

from hub.controllers import run
from hub.controllers.run import CREWS, Controllers
from hub.informer import Delta, Informers
from hub.objects import PODS, Keys, Resource
from hub.registry import Registry
from hub.store.memory import MemoryStore
from shards.ownership import SCHEDULER
from tests.hub.controllers.kit import DEADLINE_S

COUNT = 9


class Recorder:
    """A part that changes an object while it is told of the first one."""

    kinds = (PODS,)
    drivers = ()

    def __init__(self, informers: Informers) -> None:
        self._pods = informers.of(PODS)
        self.told: list[Delta[Any]] = []
        self.turns = 0

    def on_delta(self, res: Resource, delta: Delta[Any]) -> None:
        assert res == PODS
        self.told.append(delta)
        if len(self.told) == 1:
            self._change("p0")
            self._change(f"p{COUNT - 1}")

    def _change(self, name: str) -> None:
        held = self._pods.cache.get("d", name)
        assert held is not None
        revision = self._pods.revision + 1
        meta = {"name": name, "namespace": "d", "uid": held.meta.uid}
        raw = orjson.dumps({"metadata": meta, "spec": {}})
        entry = self._pods.cache.entry(held.key, held.partition, revision, raw)
        self._pods.advance(self._pods.set_state(held.key, entry, revision), revision)


async def test_what_changes_while_a_part_is_told_what_is_there_comes_after_the_state_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "SEEDED_A_TURN", 2)
    store = MemoryStore()
    registry = Registry(store, Keys())
    for n in range(COUNT):
        await registry.create(PODS, {"metadata": {"name": f"p{n}", "namespace": "d"}, "spec": {}})
    crew = CREWS[SCHEDULER]
    informers = Informers(store, Keys(), crew.kinds, crew.thin)
    controllers = Controllers(SCHEDULER, registry, informers, None)  # type: ignore[arg-type]
    recorder = Recorder(informers)
    controllers.parts, controllers.drivers = (recorder,), ()  # type: ignore[assignment]
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(informers.run())
        async with asyncio.timeout(DEADLINE_S):
            await informers.synced()
            await controllers.run()
        following.cancel()
    by_name: dict[str, list[Delta[Any]]] = {}
    for delta in recorder.told:
        by_name.setdefault(delta.entry.key[1], []).append(delta)
    assert len(by_name) == COUNT
    for name, told in by_name.items():
        wanted = ["ADDED", "MODIFIED"] if name in ("p0", f"p{COUNT - 1}") else ["ADDED"]
        assert [delta.type for delta in told] == wanted
        assert all(after.old is before.entry for before, after in itertools.pairwise(told))
