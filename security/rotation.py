"""The phases of the fleet's roots while one takes the place of another. [pure]

    prepared   trusted everywhere and carried in bundles, signs nothing yet
    active     signs what nodes and users get; there is always exactly one
    retired    signs for nodes no more, is trusted as long as somebody may depend on it
    (removed)  is in the set no more

A set of roots is ordered, the oldest first. **The oldest one signs the hub's own certificates**, since whoever has been
away knows only that one: so a node that slept through a rotation still recognises its hub, and join tokens name it.

Invariants: a root becomes active only once every replica that is up trusts it; it is removed only when no node, as far
as the store knows, would be lost: each has shown a certificate of another root, or its last one ended longer ago than
the hub takes expired nodes back. Every step may be repeated: it is derived from the set and from what is seen.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from security.errors import SecurityError

PREPARED, ACTIVE, RETIRED = "prepared", "active", "retired"
PHASES: Final = (RETIRED, ACTIVE, PREPARED)
"""In the order of a set."""
ROOTS_MAX: Final = 4
BUNDLE_PATIENCE_S: Final = 60.0
"""How long nodes that are connected and have not taken the new bundle hold up a rotation. They get it with their renewal
at the latest; until then they depend on the old root, which stays."""


class RotationError(SecurityError):
    """The rotation cannot be begun, or a set of roots is not in order. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Root:
    """A root in a set. `id`: hex SHA-256 of its DER. `since`: when it got this phase, `ends`: its own end, `last`: when
    the last certificate of a node that it signed ends at the latest (0 while it signs); unix seconds."""

    id: str
    phase: str
    since: float
    ends: float
    last: float = 0.0


@dataclass(frozen=True, slots=True)
class Tokens:
    """Join tokens that name a root and still admit somebody: how many, and when the last of them ends (unix seconds)."""

    count: int = 0
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What the replica that drives a rotation sees.

    replicas: the roots (ids) that each replica that is up trusts. without_bundle: nodes that are connected, know bundles,
    and do not hold this set's. depending: by root, the nodes that would be lost without it. unknown: nodes of which no
    certificate has been seen. tokens: by root. return_s: for how long an expired node is taken back, seconds."""

    replicas: Mapping[str, Collection[str]]
    without_bundle: int = 0
    depending: Mapping[str, int] = field(default_factory=dict)
    unknown: int = 0
    tokens: Mapping[str, Tokens] = field(default_factory=dict)
    return_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Activate:
    """The prepared root signs from now on."""

    id: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Nobody depends on this root any more. `void`: so many join tokens end with it."""

    id: str
    void: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done now, and why; no reasons: there is nothing to do."""

    reasons: tuple[str, ...] = ()


Step = Activate | Remove | Wait


def check(roots: Sequence[Root]) -> None:
    """Raises RotationError when the set is not in order."""
    phases = [root.phase for root in roots]
    if phases.count(ACTIVE) != 1 or phases.count(PREPARED) > 1:
        raise RotationError(f"a set of roots has one that is active, this one has: {', '.join(phases)}")
    if any(phase not in PHASES for phase in phases):
        raise RotationError(f"a root has an unknown phase: {', '.join(phases)}; start a newer hub")
    if phases != sorted(phases, key=PHASES.index):
        raise RotationError(f"the roots are not in the order of their age: {', '.join(phases)}")
    if len({root.id for root in roots}) != len(roots) or len(roots) > ROOTS_MAX:
        raise RotationError(f"a set holds up to {ROOTS_MAX} different roots, this one {len(roots)}")


def under_way(roots: Sequence[Root]) -> bool:
    """Is one root taking another's place at this moment?"""
    return len(roots) > 1


def begin(roots: Sequence[Root], new: str, ends: float, now: float) -> tuple[Root, ...]:
    """The set with a prepared root. Raises RotationError while another rotation is under way."""
    if under_way(roots):
        raise RotationError("a rotation is under way already; `cloudhub ca status` shows what it waits for")
    made = (*roots, Root(new, PREPARED, now, ends))
    check(made)
    return made


def activate(roots: Sequence[Root], id: str, now: float, node_ttl_s: float) -> tuple[Root, ...]:
    """The prepared root becomes active, the active one retired. A step that was taken already changes nothing.
    `node_ttl_s`: how long the certificates last that nodes have got so far."""
    if not any(root.id == id and root.phase == PREPARED for root in roots):
        return tuple(roots)
    made: list[Root] = []
    for root in roots:
        if root.id == id:
            root = replace(root, phase=ACTIVE, since=now)
        elif root.phase == ACTIVE:
            root = replace(root, phase=RETIRED, since=now, last=min(now + node_ttl_s, root.ends))
        made.append(root)
    check(made)
    return tuple(made)


def remove(roots: Sequence[Root], id: str) -> tuple[Root, ...]:
    """The set without a retired root. A step that was taken already changes nothing."""
    made = tuple(root for root in roots if root.id != id or root.phase != RETIRED)
    check(made)
    return made


def plan(roots: Sequence[Root], seen: Seen, now: float, void_tokens: bool = False) -> Step:
    """What is to be done next. `void_tokens`: join tokens that name the old root need not be waited for."""
    ids = {root.id for root in roots}
    behind = sorted(name for name, trusted in seen.replicas.items() if not ids <= set(trusted))
    if under_way(roots) and behind:
        return Wait((f"replicas that do not trust all roots yet: {', '.join(behind[:8])}",))
    for root in roots:
        if root.phase == PREPARED:
            if seen.without_bundle and now < root.since + BUNDLE_PATIENCE_S:
                return Wait((f"{seen.without_bundle} connected nodes do not have the new bundle yet",))
            return Activate(root.id)
        if root.phase == RETIRED:
            return _retired(root, seen, now, void_tokens)
    return Wait()


def _retired(root: Root, seen: Seen, now: float, void_tokens: bool) -> Step:
    tokens = seen.tokens.get(root.id, Tokens())
    depending = seen.depending.get(root.id, 0)
    if now >= root.ends or (not depending and now >= root.last + seen.return_s):
        return Remove(root.id, tokens.count)  # whatever nobody has seen has ended
    reasons = []
    if depending:
        reasons.append(f"{depending} nodes have not shown a certificate of the new root yet")
    if seen.unknown:
        reasons.append(f"{seen.unknown} nodes have not shown any certificate to this release yet")
    if tokens.count and not void_tokens:
        reasons.append(f"{tokens.count} join tokens name the old root")
    return Wait(tuple(reasons)) if reasons else Remove(root.id, tokens.count)
