"""The phases of roots: examples, and every order of events that a fleet may see."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.rotation import (
    ACTIVE,
    BUNDLE_PATIENCE_S,
    PREPARED,
    RETIRED,
    Activate,
    Remove,
    Root,
    RotationError,
    Seen,
    Tokens,
    Wait,
    activate,
    begin,
    check,
    plan,
    remove,
)

TTL_S, RETURN_S = 1000.0, 300.0
A = Root("a", ACTIVE, 0.0, 1e9)


def seen(*trusted: str, **more: object) -> Seen:
    return Seen({"hub": set(trusted)}, return_s=RETURN_S, **more)  # type: ignore[arg-type]


def test_a_root_goes_from_prepared_to_active_and_its_predecessor_to_retired_and_away() -> None:
    roots = begin([A], "b", 2e9, 10.0)
    assert [r.phase for r in roots] == [ACTIVE, PREPARED]
    assert plan(roots, seen("a"), 11.0) == Wait(("replicas that do not trust all roots yet: hub",))
    assert isinstance(plan(roots, seen("a", "b", without_bundle=3), 11.0), Wait)
    assert plan(roots, seen("a", "b", without_bundle=3), 10.0 + BUNDLE_PATIENCE_S) == Activate("b")
    roots = activate(roots, "b", 20.0, TTL_S)
    assert [(r.id, r.phase) for r in roots] == [("a", RETIRED), ("b", ACTIVE)] and roots[0].last == 1020.0
    both = seen("a", "b", depending={"a": 2}, unknown=1, tokens={"a": Tokens(3, 99.0)})
    waits = plan(roots, both, 21.0)
    assert isinstance(waits, Wait) and len(waits.reasons) == 3
    assert plan(roots, seen("a", "b", tokens={"a": Tokens(3, 99.0)}), 21.0) == Wait(
        ("3 join tokens name the old root",)
    )
    assert plan(roots, seen("a", "b", tokens={"a": Tokens(3, 99.0)}), 21.0, void_tokens=True) == Remove(
        "a", 3
    )
    late = 1020.0 + RETURN_S
    ended = seen("a", "b", unknown=1, tokens={"a": Tokens(3, 99.0)})
    assert plan(roots, ended, late) == Remove("a", 3), "all that it signed has ended"
    assert isinstance(plan(roots, both, late), Wait), "but for what a replica that was behind signed later"
    assert remove(roots, "a") == roots[1:]
    assert plan(roots[1:], seen("b"), 22.0) == Wait()


def test_steps_that_were_taken_already_change_nothing() -> None:
    prepared = begin([A], "b", 2e9, 10.0)
    active = activate(prepared, "b", 20.0, TTL_S)
    assert activate(active, "b", 30.0, TTL_S) == active
    assert remove(active, "b") == active, "the active root is never removed"
    assert remove(remove(active, "a"), "a") == active[1:]
    with pytest.raises(RotationError, match="under way already"):
        begin(active, "c", 2e9, 40.0)


@pytest.mark.parametrize(
    "phases",
    [(), (PREPARED,), (ACTIVE, ACTIVE), (PREPARED, ACTIVE), (ACTIVE, RETIRED), (RETIRED, "tainted", ACTIVE)],
)
def test_sets_that_are_not_in_order_are_refused(phases: tuple[str, ...]) -> None:
    with pytest.raises(RotationError):
        check([Root(str(n), phase, 0.0, 1e9) for n, phase in enumerate(phases)])


@dataclass
class Node:
    """What an agent has: the root of its certificate and its end, the roots that it trusts; is it there?"""

    root: str
    ends: float
    trusts: frozenset[str]
    here: bool = True
    shown: str = ""


@dataclass
class World:
    """A fleet and replicas of which each knows the set as of some moment."""

    roots: tuple[Root, ...] = (A,)
    known: dict[str, tuple[Root, ...]] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    now: float = 0.0
    made: int = 0

    def renewed(self, node: Node, roots: tuple[Root, ...]) -> None:
        node.root = next(r.id for r in roots if r.phase == ACTIVE)
        node.ends = self.now + TTL_S
        node.trusts = frozenset(r.id for r in roots)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5)), max_size=120))
def test_no_node_is_lost_in_any_order_of_events(events: list[tuple[int, int]]) -> None:
    world = World(known={"hub-0": (A,), "hub-1": (A,)})
    world.nodes = [Node("a", TTL_S, frozenset("a"), shown="a") for _ in range(4)]
    for kind, which in events:
        world.now += 7.0
        node = world.nodes[which % 4]
        hub = f"hub-{which % 2}"
        known = world.known[hub]
        if kind == 0 and len(world.roots) == 1:
            world.made += 1
            world.roots = begin(world.roots, f"r{world.made}", 1e9, world.now)
        elif kind == 1:
            world.known[hub] = world.roots
        elif kind == 2:
            node.here = not node.here
        elif kind == 3:
            world.now += 200.0
        elif kind in (4, 5) and node.here:
            # It connects to a replica that may be behind: each recognises the other, or the node has really ended.
            if world.now < node.ends + RETURN_S:
                assert node.root in {r.id for r in known}, "the hub does not know the node's root any more"
                assert known[0].id in node.trusts, "the node does not know the hub's root"
                node.shown = node.root
                if kind == 5:
                    world.renewed(node, known)
                    node.shown = node.root
        elif kind == 6:
            depending = [
                n for n in world.nodes if n.shown != active_of(world.roots) and world.now < n.ends + RETURN_S
            ]
            count = {r.id: sum(n.shown == r.id for n in depending) for r in world.roots}
            trusted = {name: {r.id for r in roots} for name, roots in world.known.items()}
            step = plan(world.roots, Seen(trusted, depending=count, return_s=RETURN_S), world.now)
            if isinstance(step, Activate):
                world.roots = activate(world.roots, step.id, world.now, TTL_S)
            elif isinstance(step, Remove):
                # What every replica is told before it serves again; one that is cut off admits nobody.
                world.roots = remove(world.roots, step.id)
                world.known = dict.fromkeys(world.known, world.roots)
        check(world.roots)


def active_of(roots: tuple[Root, ...]) -> str:
    return next(r.id for r in roots if r.phase == ACTIVE)
