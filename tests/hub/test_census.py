"""Counts that are kept as nodes come and go are those that counting everybody would give."""

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hub.cache import Entry
from hub.census import Census
from hub.mirror import Mirror
from hub.objects import NODES, NodeView, partition_of_slot
from hub.peers import Newest

NAMES = [f"n{i}" for i in range(6)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "again", "delete", "forget", "connect", "end", "trust"]),
        st.sampled_from(NAMES),
        st.integers(0, 3),
    ),
    max_size=60,
)


class Fleet:
    """As much of a gateway as is counted."""

    def __init__(self) -> None:
        self.nodes: Mirror[NodeView] = Mirror(NODES, {})
        self.peers = Newest()
        self.trusts: dict[str, str] = {}
        self.bundles = SimpleNamespace(changes=0, figures=lambda: dict(Counter(self.trusts.values())))
        self.revision = 0

    def act(self, what: str, name: str, slot: int) -> None:
        self.revision += 1
        if what in ("put", "again"):
            uid = name if what == "put" else f"{name}-{self.revision}"
            value = json.dumps({"metadata": {"name": name, "uid": uid}}).encode()
            entry: Entry[NodeView] = self.nodes.cache.entry(
                ("", name), partition_of_slot(slot), self.revision, value
            )
            self.nodes.advance(self.nodes.set_state(("", name), entry, self.revision), self.revision)
        elif what == "delete":
            self.nodes.advance(self.nodes.set_state(("", name), None, self.revision), self.revision)
        elif what == "forget":
            self.nodes.forget([partition_of_slot(slot)])
        elif what == "connect":
            peer: Any = SimpleNamespace(slot=slot)
            self.peers[name] = peer
        elif what == "end" and name in self.peers:
            del self.peers[name]
        elif what == "trust":
            self.trusts[name] = f"bundle-{slot}"
            self.bundles.changes += 1


@given(STEPS)
def test_counts_are_those_of_counting_everybody(steps: list[tuple[str, str, int]]) -> None:
    fleet = Fleet()
    fleet.act("put", "n0", 1)
    gateway: Any = fleet
    census = Census(gateway)
    for step in steps:
        fleet.act(*step)
        assert census.nodes() == Counter(int(entry.partition) for entry in fleet.nodes.cache)
        assert census.connected() == Counter(peer.slot for peer in fleet.peers.values())
        assert census.bundles() == fleet.bundles.figures()
        assert 0 not in census.nodes().values()
