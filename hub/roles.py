"""The roles of this replica: which sets of controllers run here, while it owns them.

A role is a unit like a slot: it has one owner in its store, and every write of its controllers carries its fence. Told
by the member (`shards.ownership.Listener`), in the role's own part: gained, drain, lost, resumed.

Invariants: a set's controllers start when its informers have reached its claim's revision (I9); they write under that
claim alone; they are cancelled when the role goes, and what was still under way then is refused by the store.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence

from hub.controllers.clock import Clock
from hub.controllers.controller import Object
from hub.controllers.podnote import keep_pod, keep_scheduled
from hub.controllers.run import CREWS, Controllers, admit
from hub.informer import Informers
from hub.kin import Kin
from hub.objects import NODES, PODS, Resource
from hub.registry import FenceLost, Registry
from hub.share import placed
from shards.claims import Fence
from shards.ownership import Owned, Ownership, Unit

log = logging.getLogger(__name__)

STOP_S = 5.0
"""For a set to end; after that the store's fence alone holds it back."""
RECHECK_S = 0.5
"""How often a set that may not act looks whether it may, beside being told."""


def fleet_kin() -> dict[Resource, Kin]:
    """For a replica's share and its roles: who shares the entries of Pods and of Nodes."""
    return {PODS: Kin(placed, keep_scheduled, keep_pod), NODES: Kin()}


class Role:
    """One claim of a role, and the set that runs under it. `hub.controllers.controller.Acting`."""

    def __init__(self, owned: Owned, ownership: Ownership) -> None:
        self.name = str(owned.unit)
        self.owned = owned
        self.ready = asyncio.Event()
        self.woken = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.controllers: Controllers | None = None
        self._ownership = ownership

    def fence(self) -> Fence | None:
        fence = self._ownership.fence(self.owned.unit)
        # Under a later claim of ours another set runs, which has read the store since.
        return fence if fence == self.owned.fence else None

    async def allowed(self) -> None:
        while self.fence() is None:
            self.woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_S):
                    await self.woken.wait()


class Roles:
    """See the module. `run` has to run, in a task of the caller, for roles to be taken up. `kin`: with whom the informers
    share entries."""

    def __init__(
        self,
        registry: Registry,
        ownership: Ownership,
        *,
        clock: Clock | None = None,
        admit: Callable[[Resource, Object], None] = admit,
        kin: Mapping[Resource, Kin] | None = None,
    ) -> None:
        self._registry = registry
        self._ownership = ownership
        self._clock = clock
        self._admit = admit
        self._kin = kin
        self._held: dict[Unit, Role] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Until cancelled. Raises what a bug raises."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for role in self._held.values():
                self._start(role)
            try:
                await asyncio.Event().wait()
            finally:
                self._group = None

    def controllers(self, role: Unit) -> Controllers | None:
        """The set that runs for the role; None where it does not run here."""
        held = self._held.get(role)
        return held.controllers if held is not None else None

    def figures(self) -> dict[str, dict[str, int]]:
        """Plain counters by controller, of the sets that run here."""
        sets = [role.controllers for role in self._held.values() if role.controllers is not None]
        return {name: figures for controllers in sets for name, figures in controllers.figures().items()}

    # -- what the member tells ----------------------------------------------------------------------------------

    async def gained(self, units: Sequence[Owned]) -> None:
        """Starts the sets; returns when their caches are loaded and they act."""
        roles = [Role(owned, self._ownership) for owned in units]
        for role in roles:
            self._cancel(role.owned.unit)
            self._held[role.owned.unit] = role
            self._start(role)
        for role in roles:
            await role.ready.wait()

    async def drain(self, units: Sequence[Unit]) -> None:
        """Ends the sets, waiting for it at most STOP_S."""
        ending = {task for unit in units if (task := self._cancel(unit)) is not None}
        if not ending:
            return
        _, late = await asyncio.wait(ending, timeout=STOP_S)
        for task in late:
            log.warning("%s does not end; what it still writes is refused once it has another owner", task)

    def lost(self, units: Sequence[Unit]) -> None:
        """Ends the sets without waiting."""
        for unit in units:
            self._cancel(unit)

    def resumed(self, units: Sequence[Unit]) -> None:
        """The sets act again at once. While suspended nobody had to tell them: their fence said so."""
        for unit in units:
            if (role := self._held.get(unit)) is not None:
                role.woken.set()

    # -- sets ---------------------------------------------------------------------------------------------------

    def _start(self, role: Role) -> None:
        if self._group is not None and role.task is None:
            role.task = self._group.create_task(self._serve(role), name=f"role {role.name}")

    def _cancel(self, unit: Unit) -> "asyncio.Task[None] | None":
        role = self._held.pop(unit, None)
        if role is None:
            return None
        role.ready.set()  # nobody waits for what does not come
        if role.task is not None:
            role.task.cancel()
        return role.task

    async def _serve(self, role: Role) -> None:
        crew, registry = CREWS[role.name], self._registry
        informers = Informers(registry.store, registry.keys, crew.kinds, crew.thin, self._kin, crew.owners)
        controllers = Controllers(role.name, registry, informers, role, clock=self._clock, admit=self._admit)
        log.info("%s: loading under epoch %d", role.name, role.owned.claim.epoch)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(informers.run(), name=f"informers of {role.name}")
                await informers.at_least(role.owned.fence.mod_revision)
                role.controllers = controllers
                tasks.create_task(controllers.run(), name=f"controllers of {role.name}")
                role.ready.set()
                log.info("%s: runs here", role.name)
        except* FenceLost:
            log.warning("%s: another replica has claimed it; nothing more is done here", role.name)
            role.controllers = None
            role.ready.set()
            if self._held.get(role.owned.unit) is role:
                self._ownership.fence_lost(role.owned.unit)
