"""Drives a change of the fleet's root: `security.rotation` decides, this looks, takes the steps and tells.

The replica that owns the role `controllers` drives, whichever it is at the time: every step is one compare-and-swap of
the stored set under the role's fence, derived anew from what is seen. So it goes on after a crash of any replica, and of
all of them. Beginning a rotation is a compare-and-swap as well, which any replica can make.

What nodes have shown is read from all Nodes of the fleet, no more often than SCANS_SHARE of the time allows.
"""

import asyncio
import heapq
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from hub import errors
from hub.api.documents import Document
from hub.authority import AuthorityStore
from hub.certpaths import CA_PATH, CERTIFICATES_PATH, ROTATION_PATH
from hub.status import Figures, Status
from hub.trust import Trust
from security.authorities import Authorities
from security.errors import SecurityError
from security.rotation import Activate, Remove, Seen, Tokens, Wait, plan, under_way
from shards.claims import Fence
from shards.kv import HistoryLost, StoreError
from shards.ownership import CONTROLLERS, Unit

log = logging.getLogger(__name__)

TICK_S: Final = 1.0
SCANS_SHARE: Final = 0.1
SWAPS_MAX: Final = 16
NODES_SHOWN_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a Node says of its newest certificate: `root`: the first 16 hex digits of its root's id, "" where none has been
    seen; `serial`: hex; `ends`: unix seconds."""

    name: str
    root: str = ""
    serial: str = ""
    ends: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """A join token that still admits somebody: the root that it names (id), and when it ends (unix seconds)."""

    id: str
    root: str
    ends: float


class Fleet(Protocol):
    """What a source (`hub.source`) tells of the whole fleet. Both raise ApiError."""

    def node_facts(self) -> AsyncIterator[NodeFacts]: ...

    def token_facts(self, now: float) -> AsyncIterator[TokenFacts]: ...


class Role(Protocol):
    """As `shards.ownership.Ownership`."""

    def fence(self, unit: Unit) -> Fence | None: ...


@dataclass(frozen=True, slots=True)
class RotationConfig:
    """node_ttl_s: how long nodes' certificates last. return_s: for how long an expired node is taken back. tick_s: how often
    it is looked whether a step can be taken. Seconds."""

    node_ttl_s: float
    return_s: float = 0.0
    tick_s: float = TICK_S


@dataclass(frozen=True, slots=True)
class View:
    """What was seen, for plan and people. `nodes`: by root, those whose newest certificate is of it."""

    seen: Seen
    nodes: Mapping[str, int]
    total: int
    with_bundle: int
    connected: int


class Rotation:
    """See the module."""

    def __init__(
        self,
        authority: AuthorityStore,
        trust: Trust,
        role: Role,
        status: Status,
        fleet: Fleet,
        config: RotationConfig,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._authority = authority
        self._trust = trust
        self._role = role
        self._status = status
        self._fleet = fleet
        self._config = config
        self._wall = wall
        self.said: tuple[str, ...] = ()
        """What it waits for, as told last."""

    def documents(self) -> dict[tuple[str, str], Document]:
        """What the API server answers for this."""

        async def show(query: Mapping[str, str]) -> Mapping[str, Any]:
            return await self.document()

        async def rotate(query: Mapping[str, str]) -> Mapping[str, Any]:
            return await self.begin(query.get("voidTokens") == "true")

        return {
            ("GET", CA_PATH): show,
            ("POST", ROTATION_PATH): rotate,
            ("GET", CERTIFICATES_PATH): self.certificates,
        }

    # -- driving --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever."""
        while True:
            began = time.monotonic()
            try:
                await self.step()
            except HistoryLost:
                raise
            except (StoreError, errors.ApiError, SecurityError) as failure:
                log.warning("the rotation of the root is put off: %s", failure)
            took_s = time.monotonic() - began
            await asyncio.sleep(max(self._config.tick_s, took_s / SCANS_SHARE))

    async def step(self) -> None:
        """Takes the next step where there is one and this replica may. Raises what store and source raise."""
        if not under_way(self._trust.authorities.roots) or self._role.fence(CONTROLLERS) is None:
            return
        now = self._wall()
        authorities, revision = await self._authority.read(now)
        self._trust.take(authorities, revision)
        if not under_way(authorities.roots):
            return
        view = await self._look(authorities, now)
        step = plan(authorities.roots, view.seen, now, authorities.void_tokens)
        if isinstance(step, Wait):
            if step.reasons != self.said:
                self.said = step.reasons
                log.info("the rotation of the root waits: %s", "; ".join(step.reasons))
            return
        fence = self._role.fence(CONTROLLERS)
        if fence is None:
            return
        new = authorities.after(step, now, self._config.node_ttl_s)
        if await self._authority.swap(new, revision, fence):
            log.info("the rotation of the root: %s", _told(step))
            self._trust.take(*await self._authority.read(now))

    async def begin(self, void_tokens: bool) -> Mapping[str, Any]:
        """Begins a rotation where none is under way; the document. Raises ApiError."""
        try:
            for _ in range(SWAPS_MAX):
                now = self._wall()
                authorities, revision = await self._authority.read(now)
                new = authorities
                if not under_way(authorities.roots):
                    new = authorities.begin(now, void_tokens, self._authority.source)
                elif void_tokens and not authorities.void_tokens:
                    new = Authorities(authorities.held, True)
                if new is authorities or await self._authority.swap(new, revision, None):
                    self._trust.take(*await self._authority.read(now))
                    return await self.document()
        except StoreError as failure:
            raise errors.ServiceUnavailable(f"the rotation cannot be stored: {failure}") from failure
        raise errors.ServiceUnavailable("others change the authorities at this moment; try again")

    # -- looking --------------------------------------------------------------------------------------------------

    async def document(self) -> Mapping[str, Any]:
        """What `cloudhub ca status` shows. Raises ApiError."""
        now = self._wall()
        try:
            authorities, revision = await self._authority.read(now)
        except StoreError as failure:
            raise errors.ServiceUnavailable(f"the store cannot be read: {failure}") from failure
        self._trust.take(authorities, revision)
        view = await self._look(authorities, now)
        step = plan(authorities.roots, view.seen, now, authorities.void_tokens)
        waits = step.reasons if isinstance(step, Wait) else ()
        behind = sum(view.nodes.get(root.id, 0) for root in authorities.roots[:-1])
        return {
            "kind": "CertificateAuthorities",
            "trustDomain": authorities.trust_domain,
            "bundle": authorities.id,
            "rotating": under_way(authorities.roots),
            "voidTokens": authorities.void_tokens,
            "next": _told(step) if not isinstance(step, Wait) else "",
            "waitsFor": list(waits),
            "roots": [
                {
                    "id": root.id,
                    "phase": root.phase,
                    "since": root.since,
                    "ends": root.ends,
                    "lastNodeCertificateEnds": root.last or None,
                    "signsHubs": root is authorities.roots[0],
                    "nodes": view.nodes.get(root.id, 0),
                    "joinTokens": view.seen.tokens.get(root.id, Tokens()).count,
                }
                for root in authorities.roots
            ],
            "replicas": {
                name: {r.id: r.id in set(trusted) for r in authorities.roots}
                for name, trusted in view.seen.replicas.items()
            },
            "nodes": {
                "total": view.total,
                "connected": view.connected,
                "withBundle": view.with_bundle,
                "renewed": view.total - behind - view.seen.unknown,
                "unknown": view.seen.unknown,
            },
        }

    async def certificates(self, query: Mapping[str, str]) -> Mapping[str, Any]:
        """What expires when: roots, replicas, and of the nodes those that are first (`nodes`: how many). Raises ApiError."""
        wanted = query.get("nodes", "20")
        if not wanted.isdigit() or int(wanted) > NODES_SHOWN_MAX:
            raise errors.BadRequest(f"nodes: {wanted[:20]!r} is not between 0 and {NODES_SHOWN_MAX}")
        authorities = self._trust.authorities
        figures = await self._status.read()
        full = {root.id[:16]: root.id for root in authorities.roots}
        first: list[tuple[float, str, str]] = []
        total = unknown = 0
        async for node in self._fleet.node_facts():
            total += 1
            if not node.root:
                unknown += 1
                continue
            # The latest of those kept is on top, and makes room for an earlier one.
            item = (-node.ends, node.name, full.get(node.root, node.root))
            if len(first) < int(wanted):
                heapq.heappush(first, item)
            elif first and item > first[0]:
                heapq.heapreplace(first, item)
        rows = [row("root", r.id[:16], r.ends, r.id, r.phase) for r in authorities.roots]
        rows += [
            row("hub", name, said.certificate_ends, authorities.roots[0].id)
            for name, said in figures.items()
            if said.certificate_ends
        ]
        rows += [row("node", name, -ends, issuer) for ends, name, issuer in first]
        rows.sort(key=lambda row: row["ends"])
        return {
            "kind": "Certificates",
            "certificates": rows,
            "nodes": {"total": total, "shown": len(first), "unknown": unknown},
        }

    async def _look(self, authorities: Authorities, now: float) -> View:
        figures = await self._status.read()
        replicas = {name: said.roots for name, said in figures.items() if name in self._status.members}
        for name in self._status.members:
            replicas.setdefault(name, ())
        bundles: Counter[str] = Counter()
        for said in figures.values():
            bundles.update(said.bundles)
        full = {root.id[:16]: root.id for root in authorities.roots}
        active = authorities.active.root_sha256.hex()
        nodes: Counter[str] = Counter()
        depending: Counter[str] = Counter()
        unknown = total = 0
        async for node in self._fleet.node_facts():
            total += 1
            root = full.get(node.root)
            if root is None:
                unknown += 1
                continue
            nodes[root] += 1
            if root != active and now < node.ends + self._config.return_s:
                depending[root] += 1
        tokens: dict[str, Tokens] = {}
        if under_way(authorities.roots):
            async for token in self._fleet.token_facts(now):
                held = tokens.get(token.root, Tokens())
                tokens[token.root] = Tokens(held.count + 1, max(held.until, token.ends))
        with_bundle = bundles[authorities.id]
        seen = Seen(
            replicas,
            bundles.total() - with_bundle,
            depending,
            unknown,
            tokens,
            self._config.return_s,
        )
        return View(seen, nodes, total, with_bundle, sum(_connected(said) for said in figures.values()))


def row(kind: str, name: str, ends: float, issuer: str, phase: str = "") -> dict[str, Any]:
    """What `certificates` tells of one; `ends`: unix seconds, `issuer`: id of its root."""
    return {"kind": kind, "name": name, "phase": phase, "issuer": issuer, "ends": ends}


def _connected(figures: Figures) -> int:
    return sum(figures.connected.values())


def _told(step: Activate | Remove) -> str:
    if isinstance(step, Activate):
        return f"root {step.id[:16]} signs from now on"
    void = f"; {step.void} join tokens that name it are void" if step.void else ""
    return f"root {step.id[:16]} is removed{void}"
