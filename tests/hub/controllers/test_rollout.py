"""Rolling updates as arithmetic: whatever pods do, the bounds hold."""

import itertools
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hub.controllers import rollout
from hub.controllers.rollout import Limits, Replicas, limits_of, resolve, roll, scale
from tests.hub.controllers.kit import deployment


@pytest.mark.parametrize(
    ("surge", "unavailable", "replicas", "wanted"),
    [
        ("25%", "25%", 4, (1, 1)),
        ("25%", "25%", 3, (1, 0)),
        ("25%", "25%", 1, (1, 0)),
        (0, 0, 3, (0, 1)),
        ("0%", "10%", 5, (0, 1)),
        (2, 5, 3, (2, 3)),
    ],
)
def test_percentages_round_surge_up_and_unavailable_down(
    surge: Any, unavailable: Any, replicas: int, wanted: tuple[int, int]
) -> None:
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
    limits = limits_of(deployment(replicas=replicas, strategy=rolling))
    assert (limits.surge, limits.unavailable) == wanted


def test_resolve_takes_numbers_and_percentages() -> None:
    assert resolve(3, 10, up=True) == 3
    assert resolve("33%", 10, up=True) == 4
    assert resolve("33%", 10, up=False) == 3
    assert resolve(None, 10, up=True) == 0


class Fleet:
    """ReplicaSets with their pods: per set a list of available flags. Deletes unavailable pods first, as they do."""

    def __init__(self, sizes: list[int]) -> None:
        self.pods: list[list[bool]] = [[True] * n for n in sizes]
        self.wanted = list(sizes)

    def view(self) -> list[Replicas]:
        return [
            Replicas({"metadata": {}}, f"rs{n}", f"u{n}", float(n), self.wanted[n], len(p), sum(p), sum(p))
            for n, p in enumerate(self.pods)
        ]

    def apply(self, sizes: dict[str, int]) -> None:
        for name, size in sizes.items():
            self.wanted[int(name[2:])] = size

    def reconcile(self) -> None:
        for n, pods in enumerate(self.pods):
            pods.sort(reverse=True)
            del pods[self.wanted[n] :]
            pods.extend([False] * (self.wanted[n] - len(pods)))

    @property
    def available(self) -> int:
        return sum(sum(p) for p in self.pods)


limits = st.builds(
    lambda replicas, surge, unavailable: Limits(
        replicas, surge, min(replicas, unavailable if surge or unavailable else 1)
    ),
    st.integers(1, 12),
    st.integers(0, 6),
    st.integers(0, 6),
)


@settings(max_examples=300, deadline=None)
@given(limits, st.integers(1, 3), st.data())
def test_a_rolling_update_never_breaks_its_bounds_and_ends(
    bounds: Limits, old_sets: int, data: st.DataObject
) -> None:
    cut = sorted(data.draw(st.integers(0, bounds.replicas)) for _ in range(old_sets - 1))
    edges = [0, *cut, bounds.replicas]
    fleet = Fleet([b - a for a, b in itertools.pairwise(edges)] + [0])
    for step in range(200):
        *old, new = fleet.view()
        sizes = roll(bounds, new, old)
        before = fleet.available
        fleet.apply(sizes)
        assert sum(fleet.wanted) <= bounds.total_max
        fleet.reconcile()
        lost = before - fleet.available
        assert lost == 0 or fleet.available >= bounds.available_min, "scaling took pods that were needed"
        # The world: some pods become available, and in the first steps some that were are not.
        for pods in fleet.pods:
            for n in range(len(pods)):
                if step > 40:
                    pods[n] = True
                else:
                    pods[n] = data.draw(st.booleans()) if step < 6 else pods[n] or step % 3 == 0
        if not sizes and step > 42:
            break
    *old, new = fleet.view()
    assert (new.wanted, sum(r.wanted for r in old)) == (bounds.replicas, 0)


@given(limits, st.integers(0, 20), st.lists(st.integers(1, 8), min_size=2, max_size=4))
@example(Limits(1, 0, 1), 2, [1, 1, 1, 1])  # every share is rounded to nothing, and the largest has only one
def test_scaling_in_the_middle_of_a_rollout_is_proportional_and_fits_the_new_size(
    bounds: Limits, replicas: int, sizes: list[int]
) -> None:
    fleet = Fleet(sizes)
    total = sum(sizes)
    *old, new = [
        Replicas(
            {"metadata": {"annotations": {rollout.MAXIMUM: str(total)}}}, r.name, r.uid, r.created, r.wanted
        )
        for r in fleet.view()
    ]
    target = Limits(replicas, bounds.surge, bounds.unavailable)
    fleet.apply(scale(target, new, old, recreate=False))
    assert all(n >= 0 for n in fleet.wanted)
    assert sum(fleet.wanted) == (target.total_max if replicas else 0)


def test_unavailable_old_pods_go_first_and_at_once() -> None:
    broken = Replicas({"metadata": {}}, "rs0", "u0", 0.0, 4, 4, 0, 0)
    new = Replicas({"metadata": {}}, "rs1", "u1", 1.0, 1, 1, 0, 0)
    assert roll(Limits(4, 1, 1), new, [broken]) == {"rs0": 3}
