"""What the member tells about units, passed on to those who act for them: slots to the gateway and the relay, roles to
the controllers.

Order: a slot's subjects are heard before its nodes are served, so that nothing that is sent to the new owner is missed;
ends of relays go before their nodes are looked at anew.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hub.gateway import Gateway
from hub.relaying import Relay
from shards.ownership import Owned, Unit

if TYPE_CHECKING:
    from hub.roles import Roles


class Units:
    """`shards.ownership.Listener` of a whole hub. The parts come after the member, which is made with this."""

    def __init__(self) -> None:
        self._gateway: Gateway | None = None
        self._roles: Roles | None = None
        self._relay: Relay | None = None

    def attach(self, gateway: Gateway, roles: "Roles | None", relay: Relay | None) -> None:
        """Once, before the member runs. `roles`: None where nothing is done under them here."""
        self._gateway, self._roles, self._relay = gateway, roles, relay

    @property
    def gateway(self) -> Gateway:
        assert self._gateway is not None
        return self._gateway

    async def gained(self, units: list[Owned]) -> None:
        slots = [owned for owned in units if isinstance(owned.unit, int)]
        roles = [owned for owned in units if isinstance(owned.unit, str)]
        async with asyncio.TaskGroup() as loading:
            if slots:
                loading.create_task(self._gained_slots(slots))
            if roles and self._roles is not None:
                loading.create_task(self._roles.gained(roles))

    async def _gained_slots(self, slots: list[Owned]) -> None:
        if self._relay is not None:
            await self._relay.gained(slots)
        await self.gateway.slots.gained(slots)

    async def drain(self, units: list[Unit]) -> None:
        async with asyncio.TaskGroup() as draining:
            draining.create_task(self.gateway.slots.drain(_slots(units)))
            if self._roles is not None:
                draining.create_task(self._roles.drain(_roles(units)))

    def lost(self, units: list[Unit]) -> None:
        self.gateway.slots.lost(_slots(units))
        if self._relay is not None:
            self._relay.lost(units)
        if self._roles is not None:
            self._roles.lost(_roles(units))

    def suspended(self) -> None:
        self.gateway.slots.suspended()  # a role's controllers find their fence gone by themselves

    def resumed(self, units: list[Unit]) -> None:
        self.gateway.slots.resumed(_slots(units))
        if self._roles is not None:
            self._roles.resumed(_roles(units))

    def routes_changed(self, units: list[Unit]) -> None:
        if self._relay is not None:
            self._relay.routes_changed(units)
        self.gateway.slots.routes_changed(_slots(units))


def _slots(units: Sequence[Unit]) -> list[int]:
    return [unit for unit in units if isinstance(unit, int)]


def _roles(units: Sequence[Unit]) -> list[Unit]:
    return [unit for unit in units if isinstance(unit, str)]
