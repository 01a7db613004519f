"""Nodes and clients of streams that are at one replica while another one owns the slot: carried over the bus.

Job: subscribes what this replica has to hear (its slots' subjects, and its own as the near end), keeps both ends' clock,
and answers `Gateway.open_log` and `open_stream` for any node of the fleet. API writes never come this way: they reach the owner through
the store, so losing the bus costs relayed nodes and remote logs only, until it returns.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final

from hub import errors
from hub.duplex import CREDIT_BYTES, DuplexStream, check_body
from hub.farend import FarEnd, RelayedConnection
from hub.logstreams import open_body
from hub.nearend import End, NearEnd
from hub.objects import NODES, slot_of_partition
from hub.peers import Peer
from shards.bus import Bus
from shards.ownership import Owned, Route, Unit
from shards.relay import OpenDocument, OpenLog, OpenStream, RelayError, decode, down_subject, up_subject

if TYPE_CHECKING:
    from hub.gateway import Gateway

log = logging.getLogger(__name__)

BEAT_S: Final = 2.0
FROZEN_S: Final = 2.0
"""A beat that is later than this tells that the process stood still."""


class Relay:
    """See the module: `hub.routing.Relays`, the relay's half of `shards.ownership.Listener`, and the bus's listener.

    `store`: the store's uuid; `incarnation`: of this process, as its member record says."""

    def __init__(
        self,
        gateway: "Gateway",
        bus: Bus,
        store: str,
        incarnation: str,
        *,
        beat_s: float = BEAT_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gateway = gateway
        self._bus = bus
        self._store = store
        self._incarnation = incarnation
        self._beat_s = beat_s
        self._now = now
        self._group: asyncio.TaskGroup | None = None
        self._slots: dict[int, str] = {}
        """The subjects that are subscribed, by slot."""
        self.near = NearEnd(gateway, bus, store, incarnation, now)
        self.far = FarEnd(gateway, bus, store, now, gateway.open_log, self._spawn)
        bus.listen(self)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        mine = down_subject(self._store, self._incarnation, "*")
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await self._bus.subscribe(mine, self._from_owner)
                await self._beat_forever()
            finally:
                self.far.drop_all("shutdown")
                self.near.fail_all("this hub stops")
                self._group = None
                await self._bus.unsubscribe(mine)

    async def _beat_forever(self) -> None:
        at = self._now()
        while True:
            await asyncio.sleep(self._beat_s)
            late = self._now() - at > self._beat_s + FROZEN_S
            at = self._now()
            self.near.beat(late)
            self.far.sweep(late)

    def _spawn(self, job: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        if self._group is None:
            job.close()
            raise RelayError("the relay of this hub does not run")
        return self._group.create_task(job, name=name)

    def stats(self) -> dict[str, float]:
        """Figures, by name."""
        return {
            "relayed_away": self.near.nodes,
            "relayed_here": self.far.nodes,
            "relayed_logs": self.far.logs,
            "relays_broken": self.near.broken,
            "bus_connected": float(self._bus.connected),
        }

    # -- what the bus says --------------------------------------------------------------------------------------------

    def bus_lost(self) -> None:
        self.far.drop_all("bus-lost")
        self.near.fail_all("the bus between the hubs is lost")

    def bus_returned(self) -> None:
        """Nodes come back by themselves, and are routed then."""

    def _from_owner(self, subject: str, data: bytes) -> None:
        try:
            message, _ = decode(data)
        except RelayError as failure:
            log.warning("a message on %s was refused: %s", subject, failure)
            return
        self.near.received(message)

    def _from_near(self, slot: int, subject: str, data: bytes) -> None:
        try:
            message, incarnation = decode(data)
            if not incarnation:
                raise RelayError("no incarnation")
            self.far.received(slot, message, incarnation)
        except RelayError as failure:
            log.warning("a message on %s was refused: %s", subject, failure)

    # -- hub.routing.Relays -------------------------------------------------------------------------------------------

    def available(self, route: Route) -> bool:
        reachable = route.member is not None and route.member.bus
        return reachable and self._group is not None and self._bus.connected and not self.near.full

    def take(self, peer: Peer, first: bytes, route: Route) -> None:
        if isinstance(peer.conn, RelayedConnection):
            # One hop: the replica that has the connection sends it to the new owner when the node is back.
            message = "the node's slot has another owner now"
            self._gateway.close_peer(peer, "resync", message, self._gateway.jitter(0, 1))
            return
        self.near.take(peer, first, route)

    # -- shards.ownership.Listener ------------------------------------------------------------------------------------

    async def gained(self, units: list[Owned]) -> None:
        """Hears the slots' subjects from now on."""
        slots = [o for o in units if isinstance(o.unit, int)]
        await self._leave([o.unit for o in slots if isinstance(o.unit, int)])
        jobs = []
        for owned in slots:
            assert isinstance(owned.unit, int)
            slot, subject = owned.unit, up_subject(self._store, owned.unit, owned.claim.epoch)
            self._slots[slot] = subject
            jobs.append(self._bus.subscribe(subject, self._callback(slot)))
        await asyncio.gather(*jobs)
        self.near.moved({o.unit for o in slots if isinstance(o.unit, int)}, lambda end: True)

    def lost(self, units: list[Unit]) -> None:
        slots = {u for u in units if isinstance(u, int)}
        self.far.lost(slots)
        if self._group is not None:
            self._group.create_task(self._leave(slots), name="relay leaves slots")

    def routes_changed(self, units: list[Unit]) -> None:
        """Ends what goes to owners that are none any more."""

        def gone(end: End) -> bool:
            route = self._gateway.ownership.route(end.slot)
            return route is None or route.owner != end.route.owner

        self.near.moved({u for u in units if isinstance(u, int)}, gone)

    def _callback(self, slot: int) -> Callable[[str, bytes], None]:
        return lambda subject, data: self._from_near(slot, subject, data)

    async def _leave(self, slots: Collection[int]) -> None:
        subjects = [s for s in (self._slots.pop(slot, None) for slot in slots) if s is not None]
        for subject in subjects:
            await self._bus.unsubscribe(subject)

    # -- streams ------------------------------------------------------------------------------------------------------

    async def open_log(self, node: str, options: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """As Gateway.open_log, for every node of the fleet: from here when its slot is ours, else from the owner.
        Raises what that raises, and ServiceUnavailable where the owner cannot be reached."""
        body = open_body(options)
        far = None if node in self._gateway.peers else await self._elsewhere(node)
        if far is None:
            chunks = self._gateway.open_log(node, options)
        else:
            slot, route = far
            opening = OpenLog(node, slot, dict(options))
            chunks = self.near.open_log(node, slot, route, opening, bool(body["follow"])).read()
        async with contextlib.aclosing(chunks):  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk

    async def open_document(self, node: str, path: str) -> AsyncIterator[bytes]:
        """What the owner of a node's slot, another replica, tells of the node under a kubelet's path. Raises NotFound where
        that is this replica or there is no such node, and what the owner answers."""
        far = await self._elsewhere(node)
        if far is None:
            raise errors.NotFound("nodes", node)
        slot, route = far
        stream = self.near.open_log(node, slot, route, OpenDocument(node, slot, path), False)
        async with contextlib.aclosing(stream.read()) as chunks:
            async for chunk in chunks:
                yield chunk

    async def open_stream(self, node: str, body: Mapping[str, Any]) -> DuplexStream:
        """As Gateway.open_stream, for every node of the fleet."""
        checked = check_body(body)
        far = None if node in self._gateway.peers else await self._elsewhere(node)
        if far is None:
            return await self._gateway.open_stream(node, checked)
        slot, route = far
        return self.near.open_stream(node, slot, route, OpenStream(node, slot, checked, CREDIT_BYTES))

    async def _elsewhere(self, node: str) -> tuple[int, Route] | None:
        """The owner of the node's slot; None: it is this hub, or there is no such node."""
        stored = await self._gateway.registry.find(NODES, "", node)
        slot = slot_of_partition(stored.partition) if stored is not None else None
        if slot is None or self._gateway.ownership.of(slot) is not None:
            return None
        route = self._gateway.ownership.route(slot)
        if route is None or route.member is None:
            raise errors.ServiceUnavailable(f'no hub serves node "{node}" at this moment; try again')
        if not self.available(route):
            reach = "the bus between the hubs is lost" if not self._bus.connected else "it is not on the bus"
            raise errors.ServiceUnavailable(
                f'node "{node}" is served by hub "{route.owner.member}", which cannot be reached now: {reach}'
            )
        return slot, route
