"""Which slots the gateway serves: gained, drained, lost, suspended, resumed (the slot half of `shards.ownership.Listener`).

A slot is loading (ours, its objects are not all here yet), serving, or draining (about to be another's). Nodes are
spoken to for serving slots only, and there only while the ownership gives a fence at that very moment (`may_act`).

Invariants: a slot answers nothing before everything is loaded at a revision not older than its claim (I9). What was
queued for a slot that is lost is never written under a later claim. Losing a slot sends nothing: no DEL.
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from shards.claims import Fence
from shards.ownership import Owned

if TYPE_CHECKING:
    from hub.gateway import Gateway
    from hub.peers import Peer

log = logging.getLogger(__name__)

FLUSH_S: Final = 0.5
"""How long a drain waits for reports to be stored; a node sends again what was not answered."""


class Phase(Enum):
    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"


class Loader(Protocol):
    """Where the objects of slots are cached (`hub.share`)."""

    async def load(self, slots: Collection[int], revision: int) -> None:
        """Returns once all objects of these slots, and what they refer to, are here at `revision` or later."""
        ...

    def drop(self, slots: Collection[int]) -> None:
        """Forgets these slots; nothing of it looks like a deletion."""
        ...


class Slots:
    """See the module. `serving` is read for every message, and changed here alone."""

    def __init__(self, gateway: "Gateway", loader: Loader) -> None:
        self._gateway = gateway
        self._loader = loader
        self._phases: dict[int, Phase] = {}
        self._loads: dict[int, object] = {}
        """The load of a slot that counts: one that was lost and taken up again under the same claim is loaded anew."""
        self.serving: set[int] = set()
        self._paused: set[Peer] = set()
        """Whose sessions were paused, and may have been resumed or ended since the last sweep."""

    # -- what is asked before every side effect ------------------------------------------------------------------

    def may_act(self, slot: int) -> bool:
        """The inline check: may this hub act for the slot at this moment?"""
        return slot in self.serving and self._gateway.ownership.fence(slot) is not None

    def fence(self, slot: int) -> Fence | None:
        """What a write for the slot has to carry; None: it must not be written now."""
        phase = self._phases.get(slot)
        if phase is None or phase is Phase.LOADING:
            return None
        return self._gateway.ownership.fence(slot)

    def held(self, slot: int) -> bool:
        """Is the slot ours, though perhaps suspended: what is queued for it may be written later."""
        return slot in self._phases

    # -- the listener --------------------------------------------------------------------------------------------

    async def gained(self, owned: Sequence[Owned]) -> None:
        """These are ours: loads them, then serves them. Nodes that wait here are welcomed."""
        mine = {o.unit: o for o in owned if isinstance(o.unit, int)}
        slots = list(mine)
        if not slots:
            return
        self._leave(slots)  # whatever was known under an earlier claim
        self._phases.update((slot, Phase.LOADING) for slot in slots)
        load = object()
        self._loads.update((slot, load) for slot in slots)
        try:
            await self._loader.load(slots, max(o.fence.mod_revision for o in mine.values()))
        except BaseException:
            self.lost([slot for slot in slots if self._loads.get(slot) is load])
            raise
        # Some may have been lost, or even gained anew, while others were loaded.
        now = [slot for slot in slots if self._loads.get(slot) is load and self._is_held(mine[slot])]
        for slot in now:
            del self._loads[slot]
        self._phases.update((slot, Phase.SERVING) for slot in now)
        self.serving.update(now)
        self._gateway.watch.gained(now)
        self._gateway.routing.slots_changed(now)

    def _is_held(self, owned: Owned) -> bool:
        held = self._gateway.ownership.of(owned.unit)
        return held is not None and held.claim == owned.claim

    async def drain(self, slots: Sequence[int]) -> None:
        """These go to another owner: nothing new is taken or sent, what was reported is stored and answered, within
        FLUSH_S. Then their nodes wait for the new owner."""
        slots = [slot for slot in slots if slot in self._phases]
        for slot in slots:
            self._phases[slot] = Phase.DRAINING
            self._loads.pop(slot, None)
            self.serving.discard(slot)
        for peer in self._peers_of(slots):
            if peer.session is not None:
                peer.session.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                await self._gateway.upstream.flushed(slots)
        self._gateway.answers.send()
        self._leave(slots)

    def lost(self, slots: Sequence[int]) -> None:
        """These are not ours any more, or are drained: forgets all about them, and sends nothing but PONGs."""
        self._leave(slots)
        self._loader.drop(slots)
        self._gateway.routing.slots_changed(slots)

    def suspended(self) -> None:
        """The lease's deadline has passed: connections are kept, heartbeats are answered."""
        log.warning(
            "this hub may not act for its %d slots: its lease has not been renewed", len(self._phases)
        )
        for peer in list(self._gateway.peers.values()):
            self.pause(peer)

    def resumed(self, slots: Sequence[int]) -> None:
        """These are ours still: everything goes on where it was."""
        wanted = set(slots)
        self._gateway.watch.restart()
        self._gateway.upstream.wake()
        for peer in self._peers_of(wanted):
            self.resume(peer)
        self._gateway.answers.send()
        self._gateway.routing.slots_changed(slots)

    def routes_changed(self, slots: Sequence[int]) -> None:
        """Others own these, or nobody does."""
        self._gateway.routing.slots_changed(slots)

    # -- connections -----------------------------------------------------------------------------------------------

    def pause(self, peer: "Peer") -> None:
        """Nothing that only an owner may send leaves any more. A connection with unsent bytes is ended: they were
        decided on before, and must not leave later."""
        session = peer.session
        if session is None or session.state != "live":
            return
        session.pause()
        self._paused.add(peer)
        if peer.conn.backlog_bytes:
            peer.conn.abort("fenced")

    def resume(self, peer: "Peer") -> None:
        session = peer.session
        if session is not None and session.state == "paused" and self.may_act(peer.slot):
            self._gateway.perform(peer, session.resume())
            self._gateway.streams.resumed(peer)

    def resume_stragglers(self) -> None:
        """Those that an inline check has paused when the lease was renewed at the last moment."""
        for peer in list(self._paused):
            self.resume(peer)
            if peer.session is None or peer.session.state != "paused":
                self._paused.discard(peer)

    def _peers_of(self, slots: Collection[int]) -> "list[Peer]":
        wanted = set(slots)
        return [peer for peer in self._gateway.peers.values() if peer.slot in wanted]

    def _leave(self, slots: Sequence[int]) -> None:
        """Ends everything that is done for these slots; idempotent."""
        for slot in slots:
            self._phases.pop(slot, None)
            self._loads.pop(slot, None)
            self.serving.discard(slot)
        self._gateway.upstream.drop(slots)
        self._gateway.watch.lost(slots)
        self._gateway.greeting.lost(slots)
        for peer in self._peers_of(slots):
            self._gateway.routing.displaced(peer)

    def stats(self) -> dict[str, int]:
        """Slots by phase; `suspended` of the serving ones."""
        phases = list(self._phases.values())
        live = self._gateway.ownership.live
        return {
            "slots_serving": len(self.serving),
            "slots_loading": phases.count(Phase.LOADING),
            "slots_draining": phases.count(Phase.DRAINING),
            "slots_suspended": 0 if live else len(self.serving),
        }
