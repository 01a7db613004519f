"""Members in one process over one store, each with a listener that remembers what it was told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from shards.kv import Store
from shards.member import Member, MemberOptions
from shards.ownership import MemberRecord, Owned, Unit

ROOT = "/cloudhub/default/"
DEADLINE_S = 45.0


class Recorder:
    """A listener: `held` is what it would act for."""

    def __init__(self) -> None:
        self.held: set[Unit] = set()
        self.calls: list[str] = []
        self.routes: set[Unit] = set()
        self.lost_units: set[Unit] = set()

    async def gained(self, units: list[Owned]) -> None:
        self.calls.append("gained")
        self.held.update(o.unit for o in units)

    async def drain(self, units: list[Unit]) -> None:
        self.calls.append("drain")
        self.held.difference_update(units)

    def lost(self, units: list[Unit]) -> None:
        self.calls.append("lost")
        self.lost_units.update(units)
        self.held.difference_update(units)

    def suspended(self) -> None:
        self.calls.append("suspended")

    def resumed(self, units: list[Unit]) -> None:
        self.calls.append("resumed")

    def routes_changed(self, units: list[Unit]) -> None:
        self.routes.update(units)


class Replica:
    """A running member. `kill` ends it as SIGKILL would: nothing is released, nothing revoked."""

    def __init__(self, store: Store, id: str, incarnation: str = "", **options: float) -> None:
        self.listener = Recorder()
        self.store = store
        self.member = Member(
            store,
            ROOT,
            MemberRecord(id, incarnation or f"{id}-1", edge=f"{id}:1"),
            self.listener,
            MemberOptions(**{"ttl_s": 2.0, "holdoff_s": 0.2, **options}),  # type: ignore[arg-type]
        )
        self.running: asyncio.Task[None] | None = None

    async def start(self) -> "Replica":
        await self.member.start()
        self.running = asyncio.create_task(self.member.run())
        return self

    async def stop(self) -> None:
        assert self.running is not None
        self.member.stop()
        await asyncio.wait_for(self.running, DEADLINE_S)

    async def kill(self) -> None:
        assert self.running is not None
        self.running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.running

    @property
    def slots(self) -> set[Unit]:
        return {u for u in self.listener.held if isinstance(u, int)}


async def until(condition: Callable[[], bool], what: str = "") -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def replicas(store: Store, *ids: str, **options: float) -> AsyncIterator[list[Replica]]:
    """Replicas that have settled, the first before the second; what is left of them is killed at the end."""
    made: list[Replica] = []
    try:
        for id in ids:
            made.append(await Replica(store, id, **options).start())
            await asyncio.wait_for(made[-1].member.settled(), DEADLINE_S)
        yield made
    finally:
        for replica in made:
            if replica.running is not None and not replica.running.done():
                await replica.kill()


def all_owned(store: Store, *some: Replica) -> Callable[[], bool]:
    """Is every slot and role held by exactly one of these?"""
    wanted = store.identity.slots + 2

    def check() -> bool:
        return (
            sum(len(r.listener.held) for r in some)
            == wanted
            == len(set().union(*(r.listener.held for r in some)))
        )

    return check
