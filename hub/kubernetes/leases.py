"""Node leases (kube-node-lease), renewed by the owner of a node's slot in place of a kubelet.

Only of nodes that are alive: connected, or within the patience that a lost connection has. So the node lifecycle
controller finds out about a dead link by itself, sets the conditions and taints of a node that is not heard of, and the
hub has nothing to decide. A heartbeat still is never a write: whatever a node sends, its lease is renewed once a period.

Invariants: a lease is renewed only under the slot's fence, with the lease's UID and resourceVersion; after a conflict the
fence is verified and the lease read anew. Bounds: `at_once` renewals are under way, fewer and with growing pauses while the
API server does not answer (`window`), none waits longer than PATIENCE_MAX_S of that; what the API server does not take is
tried when the node's turn comes again. They do not wait behind other requests of this hub: a backlog that drains after an
outage must not make nodes late.

Sources: the Lease API (coordination.k8s.io/v1), Kubernetes' "Leases" and "Nodes" pages (heartbeats).
"""

import asyncio
import datetime
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson

from hub import errors
from hub.kubernetes.patches import MERGE_PATCH, path_of
from hub.kubernetes.registry import Api
from hub.kubernetes.trickle import Trickle
from hub.kubernetes.window import Window
from hub.objects import LEASES, NODES
from hub.registry import FenceLost
from shards.claims import Fence

if TYPE_CHECKING:
    from hub.gateway import Gateway
from observability.logs import about

log = logging.getLogger(__name__)

NAMESPACE: Final = "kube-node-lease"
TICK_S: Final = 0.1
LOOK_S: Final = 1.0
"""How often is asked who is alive."""
GRACE_PERIODS: Final = 4
"""A node may miss so many renewals before it is late, as a kubelet's (10 s of 40 s)."""

UNANSWERED: Final = (
    errors.ServiceUnavailable,
    errors.Timeout,
    errors.TooManyRequests,
    errors.InternalError,
    TimeoutError,
)
"""What tells of the API server, and nothing of the lease."""

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LeaseOptions:
    """period_s: how often each lease is renewed. 10 s is a kubelet's, for which the node lifecycle controller is set up.
    In a large fleet a longer one takes its load off the API server; then kube-controller-manager needs
    --node-monitor-grace-period of at least `grace_s`, else it calls living nodes Unknown.
    at_once: renewals under way at a time.
    """

    period_s: float = 10.0
    at_once: int = 16

    def __post_init__(self) -> None:
        if not 1.0 <= self.period_s <= 3600.0:
            raise ValueError(f"a lease period of {self.period_s:g} s; 1 to 3600 seconds are supported")
        if self.at_once < 1:
            raise ValueError(f"at_once is {self.at_once}; at least one renewal has to be allowed")

    @property
    def grace_s(self) -> int:
        """The lease's duration: after it without a renewal the node is late."""
        return round(GRACE_PERIODS * self.period_s)


@dataclass(frozen=True, slots=True)
class Alive:
    """A node whose lease is to be renewed: its slot, and the UID of its Node."""

    slot: int
    uid: str


class Fences(Protocol):
    """As much of KubeRegistry as is used here."""

    def guard(self, fence: Fence | None) -> Callable[[], None]: ...

    async def verify(self, fence: Fence | None) -> None: ...


@dataclass(slots=True)
class _Lease:
    """What the next renewal is derived from."""

    uid: str
    revision: str
    owner: str
    """The UID of the Node that it belongs to."""


class Leases:
    """See the module. `alive`: asked every LOOK_S. `fence(slot)`: None while this hub may not act for the slot.
    `fence_lost(slot)` is told what a conflict has shown."""

    def __init__(
        self,
        api: Api,
        fences: Fences,
        alive: Callable[[], Mapping[str, Alive]],
        fence: Callable[[int], Fence | None],
        fence_lost: Callable[[int], None],
        options: LeaseOptions | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.options = options or LeaseOptions()
        self.renewed = 0
        self.failed = 0
        self._api = api
        self._fences = fences
        self._alive = alive
        self._fence = fence
        self._fence_lost = fence_lost
        self._now, self._wall = now, wall
        self._trickle = Trickle(self.options.period_s)
        self._window = Window(self.options.at_once)
        self._nodes: Mapping[str, Alive] = {}
        self._looked = float("-inf")
        self._held: dict[str, _Lease] = {}
        self._under_way: set[str] = set()

    async def run(self) -> None:
        """Renews for ever."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                for node in self.due():
                    tasks.create_task(self.renew(node), name=f"lease of {node}")
                await asyncio.sleep(TICK_S)

    def due(self) -> list[str]:
        """Whose turn it is at this moment; each has to be given to `renew`."""
        now = self._now()
        if now - self._looked >= LOOK_S:
            self._looked = now
            self._nodes = self._alive()
            self._trickle.set_nodes(self._nodes)
            for node in [node for node in self._held if node not in self._nodes]:
                del self._held[node]
        free = self._window.free(len(self._under_way), now)
        turn = [node for node in self._trickle.due(now, free) if node not in self._under_way]
        self._under_way.update(turn)
        return turn

    async def renew(self, node: str) -> None:
        """One renewal. What fails is counted, and waits for the next turn."""
        try:
            known = self._nodes.get(node)
            fence = self._fence(known.slot) if known is not None else None
            if known is None or fence is None:
                return
            began, began_at = self._window.begin(), self._now()
            try:
                async with asyncio.timeout(self._window.patience_s):
                    await self._renew(node, known, fence)
                self.renewed += 1
                self._window.answered(self._now() - began_at)
            except FenceLost:
                text = "slot %d has another owner, which renews the leases of its nodes"
                log.warning(text, known.slot, extra=about(slot=known.slot))
                self._held.pop(node, None)
                self._fence_lost(known.slot)
            except UNANSWERED as failure:
                self._window.failed(began, self._now())
                self._failed(node, failure)
            except errors.ApiError as refused:
                self._window.answered(self._now() - began_at)
                self._failed(node, refused)
        finally:
            self._under_way.discard(node)

    def _failed(self, node: str, failure: Exception) -> None:
        self.failed += 1
        if not isinstance(failure, errors.ServiceUnavailable | errors.TooManyRequests):
            # It may have taken effect; else what is known still holds, and a read would double what a server that
            # comes back is asked.
            self._held.pop(node, None)
        said = str(failure) or "no answer in time"
        log.info("the lease of node %s was not renewed: %s", node, said, extra=about(node=node))

    async def _renew(self, node: str, known: Alive, fence: Fence) -> None:
        guard = self._fences.guard(fence)
        held = self._held.get(node)
        if held is None:
            held = await self._read(node)
        if held is None:
            body = self._new(node, known)
            _, raw = await self._api.request(
                "POST", path_of(LEASES, NAMESPACE), body=body, before=guard, apart=True
            )
        else:
            body = self._renewal(node, known, held)
            path = path_of(LEASES, NAMESPACE, node)
            try:
                _, raw = await self._api.request(
                    "PATCH", path, body=body, content_type=MERGE_PATCH, before=guard, apart=True
                )
            except (errors.Conflict, errors.NotFound):
                # Somebody else renewed it, or took it away: who owns the slot?
                self._held.pop(node, None)
                await self._fences.verify(fence)
                self._trickle.again(node)
                return
        self._held[node] = _lease(raw)

    async def _read(self, node: str) -> _Lease | None:
        try:
            _, raw = await self._api.request("GET", path_of(LEASES, NAMESPACE, node), apart=True)
        except errors.NotFound:
            return None
        return _lease(raw)

    def _new(self, node: str, known: Alive) -> Object:
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": node, "namespace": NAMESPACE, "ownerReferences": [_owner(node, known.uid)]},
            "spec": self._spec(node),
        }

    def _renewal(self, node: str, known: Alive, held: _Lease) -> Object:
        meta: Object = {"uid": held.uid, "resourceVersion": held.revision}
        if held.owner != known.uid:
            meta["ownerReferences"] = [_owner(node, known.uid)]
        return {"metadata": meta, "spec": self._spec(node)}

    def _spec(self, node: str) -> Object:
        at = datetime.datetime.fromtimestamp(self._wall(), datetime.UTC)
        return {
            "holderIdentity": node,
            "leaseDurationSeconds": self.options.grace_s,
            "renewTime": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }

    def stats(self) -> dict[str, float]:
        """Figures, by name."""
        return {
            "leases": len(self._trickle),
            "leases_renewed": self.renewed,
            "leases_failed": self.failed,
            "leases_oldest_s": self._trickle.oldest_s(self._now()),
        }


def alive_nodes(gateway: "Gateway") -> dict[str, Alive]:
    """The nodes of the slots that a gateway serves which are connected, or were so recently that it may be the link."""
    serving, peers, liveness = gateway.slots.serving, gateway.peers, gateway.watch.liveness
    found: dict[str, Alive] = {}
    for entry in gateway.nodes.cache:
        name, slot = entry.key[1], int(entry.partition)
        if slot in serving and (name in peers or name in liveness):
            found[name] = Alive(slot, entry.meta.uid)
    return found


def _owner(node: str, uid: str) -> Object:
    return {"apiVersion": NODES.api_version, "kind": NODES.kind, "name": node, "uid": uid}


def _lease(raw: bytes) -> _Lease:
    meta = orjson.loads(raw)["metadata"]
    owners = meta.get("ownerReferences") or []
    return _Lease(meta["uid"], meta["resourceVersion"], owners[0]["uid"] if owners else "")
