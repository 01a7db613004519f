"""Where a hub's objects live: the gateway is given the parts of one source, and does not know which.

`own`: in the hub's own store, behind its own API, with its own scheduler and controllers. `kubernetes`: in a cluster's API
server (`hub.kubernetes.source`); the own store then keeps slots, roles and the authority alone.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec

from hub import errors, jointokens
from hub.background import Background
from hub.certificates import Certificates
from hub.fleet.following import Steps, stored
from hub.gateway import Gateway
from hub.history import History, StoreHistory
from hub.kin import Kin
from hub.objects import JOINTOKENS, NODES, ObjectView, Resource
from hub.registry import Objects, Registry
from hub.reports import certificate_of
from hub.rotation import NodeFacts, TokenFacts
from hub.share import Cached, Share
from shards.kv import StoreError, prefix_end
from shards.ownership import Ownership

if TYPE_CHECKING:
    from hub.relaying import Relay


@dataclass(frozen=True, slots=True)
class Attached:
    """The parts of a hub that a source works with. `relay`: None where there is no bus; `tasks`: run until the hub stops."""

    gateway: Gateway
    ownership: Ownership
    relay: "Relay | None"
    certificates: Certificates
    tasks: Background


class Source(Protocol):
    """See the module. `elsewhere`: the URL of the API server that serves the objects, "" where it is this hub."""

    elsewhere: str

    @property
    def objects(self) -> Objects: ...

    @property
    def share(self) -> Cached: ...

    @property
    def history(self) -> History: ...

    def node_facts(self) -> AsyncIterator[NodeFacts]:
        """All Nodes of the fleet, for `hub.rotation`. Raises ApiError."""
        ...

    def token_facts(self, now: float) -> AsyncIterator[TokenFacts]:
        """All join tokens that still admit somebody. Raises ApiError."""
        ...

    def fleet(self) -> Steps:
        """All Nodes of the fleet and their changes, for `hub.fleet`."""
        ...

    async def attach(self, hub: Attached) -> None:
        """Starts what the source itself does for the gateway's nodes; before slots are claimed."""
        ...


class OwnSource:
    """`Source` of the hub's own store."""

    elsewhere = ""

    def __init__(self, registry: Registry, kin: Mapping[Resource, Kin]) -> None:
        self._registry = registry
        self.objects = registry
        self.kin = kin
        """With whom the share's entries are shared: its replica's roles."""
        self.share = Share(registry.store, registry.keys, kin)
        self.history = StoreHistory(registry.store.identity)

    async def attach(self, hub: Attached) -> None:
        """Nothing: roles and API are the hub's own."""

    def fleet(self) -> Steps:
        return stored(self._registry)

    async def node_facts(self) -> AsyncIterator[NodeFacts]:
        async for raw in self._all(NODES):
            meta = decode_head(raw).metadata
            yield facts_of(meta.name, meta.annotations)

    async def token_facts(self, now: float) -> AsyncIterator[TokenFacts]:
        async for raw in self._all(JOINTOKENS):
            record = jointokens.record(msgspec.json.decode(raw))
            if record is not None and now < record["expires"] and len(record["used"]) < record["count"]:
                yield TokenFacts(record["id"], record["root"], record["expires"])

    async def _all(self, res: Resource) -> AsyncIterator[bytes]:
        """Every object of a kind, page by page: not one moment, which nobody here needs."""
        prefix = self._registry.keys.objects(res)
        at: str | None = prefix
        while at is not None:
            try:
                page = await self._registry.store.page(at, prefix_end(prefix))
            except StoreError as failure:
                raise errors.ServiceUnavailable(f"the store cannot be read: {failure}") from failure
            for kv in page.items:
                yield kv.value
            at = page.next_key


decode_head = msgspec.json.Decoder(ObjectView).decode


def facts_of(name: str, annotations: Mapping[str, str] | None) -> NodeFacts:
    """What a Node's annotations tell of its certificate."""
    held = certificate_of(annotations)
    return NodeFacts(name, held.root, held.serial, held.ends) if held is not None else NodeFacts(name)
