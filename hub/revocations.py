"""What this replica knows of revocations, how it is kept current, and what follows when there are new ones.

An informer follows all Revocations of the hub's own store (also where Pods and Nodes live in a Kubernetes cluster). Every
PROVE_S the store is asked for its revision, and once the informer has reached that, the view was current when it was
asked. A replica whose last proof is older than STALE_S cannot know who is revoked: it admits no connection; live ones
stay. Entries whose certificates have all ended are deleted by the owner of the role `controllers`.
"""

import asyncio
import datetime
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from hub import errors
from hub.api.ages import rfc3339_micro, unix
from hub.cache import Entry as Cached
from hub.informer import Informer
from hub.mirror import Delta
from hub.objects import REVOCATIONS, REVOKED_AT, RevocationView
from hub.peers import Peer
from hub.registry import Registry
from hub.reports import enrolment_of
from security.ca import USER_TTL_S
from security.identity import NodeId
from security.revocation import KINDS, NODE, SERIAL, TOKEN, Entry, Revoked, entry_of
from security.serials import serial_text
from shards.claims import Fence
from shards.kv import HistoryLost, StoreError
from shards.ownership import CONTROLLERS, Unit

if TYPE_CHECKING:
    from hub.gateway import Gateway

log = logging.getLogger(__name__)

PROVE_S: Final = 2.0
STALE_S: Final = 10.0
TIDY_S: Final = 600.0
MARGIN_S: Final = 86400.0
"""Clocks differ."""


def refusal(gateway: "Gateway", peer: Peer) -> Entry | None:
    """Why the session of a node is refused; None: it is not."""
    if peer.identity is None or not len(gateway.revoked):
        return None
    shown, name = peer.shown, peer.identity.node
    found = gateway.revoked.certificate(name, shown.serial, shown.begins)
    if found is None and gateway.revoked.tokens and (node := gateway.node_entry(name)) is not None:
        found = gateway.revoked.token(enrolment_of(node.meta.annotations).token)
    return found


def is_replaced(gateway: "Gateway", peer: Peer) -> bool:
    """Was the node's name given to another machine since the peer's certificate was issued? Nothing revokes what the first
    one has: its Node was deleted before. Known where the node is served."""
    node = gateway.node_entry(peer.identity.node) if peer.identity is not None else None
    return node is not None and enrolment_of(node.meta.annotations).is_foreign(peer.shown.begins)


def replaced_text(node: NodeId) -> str:
    """For whoever is refused for that."""
    return f"node {node.node!r} was enrolled anew after this certificate had been issued; join with a token for another name"


class Role(Protocol):
    """As `shards.ownership.Ownership`."""

    def fence(self, unit: Unit) -> Fence | None: ...


class Revocations:
    """See the module. `keep_s`: after this long every certificate and token of a node has ended, seconds."""

    def __init__(
        self,
        registry: Registry,
        revoked: Revoked,
        keep_s: float,
        role: Role,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.revoked = revoked
        self._registry = registry
        self._keep_s = keep_s
        self._role = role
        self._now, self._wall = now, wall
        self._informer: Informer[RevocationView] = Informer(registry.store, registry.keys, REVOCATIONS)
        self._informer.subscribe(self._told)
        self._proved = float("-inf")
        self._known = asyncio.Event()
        self._gateway: Gateway | None = None

    def attach(self, gateway: "Gateway") -> None:
        """Sessions of this gateway are closed when they are revoked; it refuses connections while the view is stale."""
        self._gateway = gateway
        gateway.revoked = gateway.joining.revoked = self.revoked
        gateway.fresh = self.fresh
        gateway.joining.replaced = self.replaced

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._informer.run(), name="informer of revocations")
            tasks.create_task(self._prove(), name="freshness of revocations")
            tasks.create_task(self._tidy(), name="ended revocations")

    async def known(self) -> None:
        """Returns once all that is revoked is known here."""
        await self._known.wait()

    def fresh(self) -> bool:
        """Is what is known here recent enough to admit somebody by it?"""
        return self._now() - self._proved <= STALE_S

    async def replaced(self, node: NodeId, before: float) -> None:
        """Another machine has taken the node's place at `before` (unix seconds): what had begun until then is revoked. Made
        once, however often it is asked for; known here when this returns. Raises ApiError."""
        name = f"replaced-{hashlib.sha256(f'{node.uri()} {before!r}'.encode()).hexdigest()[:16]}"
        made = datetime.datetime.fromtimestamp(int(before), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        obj = {
            "apiVersion": REVOCATIONS.api_version,
            "kind": REVOCATIONS.kind,
            "metadata": {
                "name": name,
                "creationTimestamp": made,
                "annotations": {REVOKED_AT: rfc3339_micro(before)},
            },
            "spec": {"node": node.node, "reason": "another machine has taken its place"},
        }
        try:
            revision = (await self._registry.create(REVOCATIONS, obj)).revision
        except errors.AlreadyExists:
            revision = await self._registry.revision()
        try:
            async with asyncio.timeout(STALE_S):
                await self._informer.at_least(revision)
        except TimeoutError:
            raise errors.ServiceUnavailable("this hub does not see its own revocation yet") from None

    def check_user(self, peercert: Mapping[str, Any] | None) -> None:
        """Raises Unauthorized for a client certificate of the API that is revoked."""
        serial = serial_text((peercert or {}).get("serialNumber", "")) if len(self.revoked) else ""
        entry = self.revoked.serial(serial)
        if entry is not None:
            raise errors.Unauthorized("the client certificate was revoked; get a new one")

    # -- currency -------------------------------------------------------------------------------------------------

    async def _prove(self) -> None:
        while True:
            asked = self._now()
            try:
                revision = await self._registry.store.revision()
                async with asyncio.timeout(STALE_S):
                    await self._informer.at_least(revision)
            except HistoryLost:
                raise
            except (StoreError, TimeoutError) as failure:
                log.info(
                    "whether anybody was revoked cannot be told now: %s",
                    str(failure) or "the watch is behind",
                )
            else:
                self._proved = asked
                self._known.set()
            await asyncio.sleep(PROVE_S)

    # -- changes --------------------------------------------------------------------------------------------------

    def _told(self, deltas: Sequence[Delta[RevocationView]], revision: int) -> None:
        new: list[Entry] = []
        for delta in deltas:
            name = delta.entry.key[1]
            entry = _entry(delta.entry)
            if delta.type == "DELETED" or entry is None:
                self.revoked.drop(name)
            else:
                self.revoked.put(name, entry)
                new.append(entry)
        if new and self._gateway is not None:
            self._close(self._gateway)

    def _close(self, gateway: "Gateway") -> None:
        """Ends the sessions of whoever is refused now."""
        for peer in gateway.everyone:
            entry = refusal(gateway, peer)
            if entry is not None:
                gateway.close_peer(peer, "revoked", entry.message(), None, "Revoked")

    # -- the end of entries ---------------------------------------------------------------------------------------

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDY_S)
            if self._role.fence(CONTROLLERS) is not None:
                await self.tidy()

    async def tidy(self) -> None:
        """Deletes the entries that have nothing to refuse any more."""
        for cached in list(self._informer.cache):
            entry = _entry(cached)
            if entry is None or self._wall() < entry.at + self.keep_s(entry):
                continue
            try:
                stored = await self._registry.get(REVOCATIONS, "", cached.key[1])
                await self._registry.remove(REVOCATIONS, stored)
            except errors.ApiError as failure:
                log.info("revocation %s, which has ended, is not deleted now: %s", cached.key[1], failure)

    def keep_s(self, entry: Entry) -> float:
        """How long an entry lasts, seconds."""
        return MARGIN_S + (max(self._keep_s, USER_TTL_S) if entry.kind == SERIAL else self._keep_s)


def _entry(cached: Cached[RevocationView]) -> Entry | None:
    """None where the object says nothing."""
    spec = cached.view.spec
    values = {NODE: spec.node, TOKEN: spec.token, SERIAL: spec.serial}
    kind = next((kind for kind in KINDS if values[kind]), None)
    if kind is None:
        return None
    at = unix(cached.meta.creationTimestamp) or 0.0
    made = unix((cached.meta.annotations or {}).get(REVOKED_AT, ""))
    return entry_of(kind, values[kind], at, spec.reason, made)
