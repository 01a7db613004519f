"""What `cloudhub status` shows: members, slots, owners, epochs, nodes per slot, relayed connections.

Members, owners and epochs are what this replica sees in the store anyway. What only an owner knows (its nodes) each
replica writes beside its member record, under its lease, when it has changed, at most every EVERY_S: any replica can
then answer for all, also without NATS. Figures may be EVERY_S old; nothing is decided by them.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hub import errors
from hub.census import Census
from shards.kv import Put, Store, StoreError
from shards.ownership import ROLES

if TYPE_CHECKING:
    from hub.certificates import Certificates
    from hub.gateway import Gateway
    from hub.relaying import Relay
    from hub.trust import Trust
    from shards.member import Member

log = logging.getLogger(__name__)

EVERY_S: Final = 2.0


class Figures(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a replica says of itself. `nodes`: Nodes of its slots, `connected`: of them connected, here or relayed, by slot.
    `relayed_here`: connections that others relay to it, `relayed_away`: that it relays to others. `roots`: ids of the roots
    that it trusts (none: a release that knows one root alone), `bundles`: connected nodes by the bundle that they hold,
    `certificate_ends`: unix seconds. `held_untold`: connected nodes that are on hold and whose Nodes do not say so yet."""

    nodes: dict[int, int] = {}
    connected: dict[int, int] = {}
    relayed_here: int = 0
    relayed_away: int = 0
    suspended: bool = False
    roots: tuple[str, ...] = ()
    bundles: dict[str, int] = {}
    certificate_ends: float = 0.0
    held_untold: int = 0


def figures_key(root: str, member: str) -> str:
    return f"{root}status/{member}"


class Status:
    """See the module."""

    def __init__(
        self,
        store: Store,
        root: str,
        member: "Member",
        gateway: "Gateway",
        relay: "Relay | None",
        trust: "Trust",
        certificates: "Certificates",
    ) -> None:
        self._store = store
        self._root = root
        self._member = member
        self._gateway = gateway
        self._census = Census(gateway)
        self._relay = relay
        self._trust = trust
        self._certificates = certificates

    async def run(self) -> None:
        """Writes this replica's figures for ever."""
        said: tuple[int, Figures] | None = None
        key = figures_key(self._root, self._member.record.id)
        while True:
            now = (self._member.lease, self.figures())
            if now != said and self._member.live and now[0]:
                try:
                    await self._store.txn([], [Put(key, msgspec.json.encode(now[1]), now[0])])
                    said = now
                except StoreError as failure:
                    log.debug("this replica's figures are not stored now: %s", failure)
            await asyncio.sleep(EVERY_S)

    def figures(self) -> Figures:
        relayed = self._relay.stats() if self._relay is not None else {}
        return Figures(
            self._census.nodes(),
            self._census.connected(),
            int(relayed.get("relayed_here", 0)),
            int(relayed.get("relayed_away", 0)),
            not self._member.live,
            tuple(root.id for root in self._trust.authorities.roots),
            self._census.bundles(),
            self._certificates.ends,
            self._gateway.greeting.untold(),
        )

    @property
    def members(self) -> Collection[str]:
        """Names of the replicas that are up."""
        return self._member.members.keys()

    async def document(self) -> dict[str, Any]:
        """The whole, as JSON. Raises ServiceUnavailable when the store cannot be read."""
        member, identity = self._member, self._store.identity
        figures = await self.read()
        owned: Counter[str] = Counter()
        slots: list[dict[str, Any]] = []
        for slot in range(member.slots):
            route = member.route(slot)
            if route is None:
                slots.append({"slot": slot, "owner": None, "epoch": None, "nodes": None, "connected": None})
                continue
            owner = route.owner.member
            owned[owner] += 1
            said = figures.get(owner, Figures())
            slots.append(
                {
                    "slot": slot,
                    "owner": owner,
                    "epoch": route.owner.epoch,
                    "nodes": said.nodes.get(slot, 0),
                    "connected": said.connected.get(slot, 0),
                }
            )
        roles: list[dict[str, Any]] = []
        for role in ROLES:
            route = member.route(role)
            found = (route.owner.member, route.owner.epoch) if route is not None else (None, None)
            roles.append({"role": role, "owner": found[0], "epoch": found[1]})
        return {
            "kind": "Status",
            "store": {
                "uuid": identity.uuid,
                "generation": identity.generation,
                "slots": identity.slots,
                "unownedSlots": member.slots - sum(owned.values()),
            },
            "answeredBy": {"member": member.record.id, "stale": not member.live},
            "members": [
                {
                    "name": record.id,
                    "incarnation": record.incarnation,
                    "version": record.version,
                    "state": _state(record.draining, figures.get(record.id)),
                    "weight": record.weight,
                    "ring": list(record.ring),
                    "edge": record.edge,
                    "api": record.api,
                    "bus": record.bus,
                    "ageSeconds": max(0, int(time.time() - record.started)),
                    "slots": owned[record.id],
                    "roles": [role["role"] for role in roles if role["owner"] == record.id],
                    "nodes": sum(figures.get(record.id, Figures()).nodes.values()),
                    "connected": sum(figures.get(record.id, Figures()).connected.values()),
                    "heldUntold": figures.get(record.id, Figures()).held_untold,
                    "relayedHere": figures.get(record.id, Figures()).relayed_here,
                    "relayedAway": figures.get(record.id, Figures()).relayed_away,
                }
                for record in sorted(member.members.values(), key=lambda record: record.id)
            ],
            "roles": roles,
            "slots": slots,
        }

    async def read(self) -> dict[str, Figures]:
        """What each replica has said of itself last, by name. Raises ServiceUnavailable."""
        prefix = figures_key(self._root, "")
        found: dict[str, Figures] = {}
        at: str | None = prefix
        try:
            while at is not None:
                page = await self._store.page(at, prefix[:-1] + "0", stale=not self._member.live)
                for kv in page.items:
                    found[kv.key.removeprefix(prefix)] = msgspec.json.decode(kv.value, type=Figures)
                at = page.next_key
        except StoreError as failure:
            raise errors.ServiceUnavailable(f"the store cannot be read: {failure}") from failure
        # Our own are at hand, and newer.
        return found | {self._member.record.id: self.figures()}


def _state(draining: bool, figures: Figures | None) -> str:
    if draining:
        return "Draining"
    if figures is None:
        return "Starting"
    return "Suspended" if figures.suspended else "Ready"
