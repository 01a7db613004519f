"""What the fleet page shows of a node, and the roster: a viewer who takes its lines knows what it holds."""

import json
import random
from typing import Any

import pytest

from hub.fleet import roster as rosters
from hub.fleet.roster import Roster, encode
from hub.fleet.states import STATES, Row, State, row_of, state_of
from hub.objects import Condition, Meta, NodeSpecView, NodeStatusView, NodeView
from hub.sessionlog import SessionLog


def node(unschedulable: bool = False, **conditions: str) -> NodeView:
    found = tuple(Condition(type=kind, status=status) for kind, status in conditions.items())
    labels = {"cloudhub.dev/site": "s1", "cloudhub.dev/pool": "p1"}
    return NodeView(
        Meta(name="n", labels=labels), NodeSpecView(unschedulable), NodeStatusView(conditions=found)
    )


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (node(Ready="True"), State.READY),
        (node(Ready="True", DiskPressure="False"), State.READY),
        (node(True, Ready="True"), State.CORDONED),
        (node(True, Ready="True", DiskPressure="True"), State.ATTENTION),
        (node(Ready="True", DocumentsRefused="True"), State.ATTENTION),
        (node(), State.NEW),
        (node(DiskPressure="True"), State.NEW),
        (node(Ready="Unknown", DiskPressure="True"), State.UNKNOWN),
        (node(Ready="False"), State.NOT_READY),
        (node(Ready="True", CloneDetected="True"), State.HELD),
        (node(Unconfirmed="True"), State.HELD),
        (node(Ready="Unknown", HistoryParted="True"), State.HELD),
        (node(Ready="True", HistoryParted="False"), State.READY),
    ],
)
def test_a_node_is_shown_by_what_most_needs_somebody(seen: NodeView, state: State) -> None:
    assert state_of(seen) is state
    assert len(STATES) == len(State)


def test_a_row_has_slot_site_and_pool() -> None:
    assert row_of(node(Ready="True"), "0042") == Row(0, 42, "s1", "p1")
    assert row_of(NodeView(Meta(name="n")), "-") == Row(State.NEW, -1)


class Viewer:
    """The browser's half, as simple as it can be."""

    def __init__(self, roster: Roster) -> None:
        whole = json.loads(encode(roster.picture(), 16))
        self.revision = whole["revision"]
        sites = whole["sites"] or [""]
        site = whole["site"] or [0] * len(whole["names"])
        self.rows: dict[str, tuple[int, int, str]] = {
            name: (int(whole["state"][at]), whole["slot"][at], sites[site[at]])
            for at, name in enumerate(whole["names"])
        }

    def take(self, line: bytes) -> None:
        found: dict[str, Any] = json.loads(line)
        self.revision = found["revision"]
        for name, state, slot, site, _ in found["set"]:
            self.rows[name] = state, slot, site
        for name in found["gone"]:
            self.rows.pop(name, None)

    def caught_up(self, roster: Roster, most: int = 1000) -> bool:
        """Takes what it has missed, `most` lines of it before its connection breaks; False: it has to begin anew."""
        serial = roster.after(self.revision)
        lines = roster.since(serial) if serial is not None else None
        if lines is None:
            return False
        for change in lines[:most]:
            self.take(change.line)
        return True


def held(roster: Roster) -> dict[str, tuple[int, int, str]]:
    return {name: (row.state, row.slot, row.site) for name, row in roster.picture().rows}


@pytest.mark.parametrize("seed", range(8))
def test_viewers_who_come_go_and_come_back_know_what_the_roster_holds(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rosters, "CHANGES_MAX", 3)  # many changes take several lines
    monkeypatch.setattr(rosters, "LOG_BYTES_MAX", 1500)
    chance = random.Random(seed)
    roster, revision = Roster(1), 1
    viewers: list[Viewer] = []
    began_anew = 0
    for _ in range(600):
        what = chance.random()
        if what < 0.75:
            revision += 1
            name = f"n{chance.randrange(30)}"
            if chance.random() < 0.2:
                roster.drop(name)
            else:
                roster.put(
                    name, Row(chance.randrange(7), chance.randrange(16), chance.choice(["", "a", "b"]))
                )
            roster.revision = revision
        elif what < 0.85:
            roster.tick()
        elif what < 0.9 or not viewers:
            viewers.append(Viewer(roster))
        else:
            viewer = chance.choice(viewers)
            is_whole = chance.random() < 0.3
            while is_whole and roster.tick():
                pass
            if not viewer.caught_up(roster, 1000 if is_whole else chance.randrange(4)):
                viewers.remove(viewer)
                began_anew += 1
            elif is_whole:
                assert viewer.rows == held(roster)
    assert began_anew, "the log was never too short"
    assert Viewer(roster).rows == held(roster)
    counted = [row.state for _, row in roster.picture().rows]
    assert roster.counts == [counted.count(state) for state in range(len(STATES))]


def test_a_viewer_of_another_past_begins_anew() -> None:
    roster = Roster(10)
    assert roster.after(9) is None
    assert roster.after(11) is None
    assert roster.after(10) == 0


def test_nodes_beyond_the_bound_are_counted_and_take_room_that_becomes_free() -> None:
    roster = Roster(1, nodes_max=2)
    for name in ("a", "b", "c", "d"):
        roster.put(name, Row(0, 0))
    assert (len(roster), roster.omitted) == (2, 2)
    roster.put("c", Row(4, 0))
    assert (len(roster), roster.omitted) == (2, 2)
    roster.drop("d")
    roster.drop("a")
    roster.put("c", Row(0, 0))
    assert [name for name, _ in roster.picture().rows] == ["b", "c"]
    assert roster.omitted == 0


def test_a_snapshot_is_compact_and_in_the_order_of_names() -> None:
    roster = Roster(7)
    roster.put("b", Row(4, 3, "", "x"))
    roster.put("a", Row(0, 2, "", ""))
    whole = json.loads(encode(roster.picture(), 16))
    assert whole == {
        "revision": 7, "omitted": 0, "slots": 16, "states": list(STATES), "sites": [], "site": [], "pools": ["", "x"],
        "pool": [0, 1], "names": ["a", "b"], "state": "04", "slot": [2, 3],
    }  # fmt: skip


def test_the_log_of_sessions_keeps_the_last_of_all_nodes() -> None:
    log = SessionLog(entries_max=4)
    for at in range(3):
        log.began("a", float(at))
        log.ended("b", "silent", at + 0.5)
    assert [(entry.at, entry.why) for entry in log.of("b")] == [(2.5, "silent"), (1.5, "silent")]
    assert [entry.at for entry in log.of("a")] == [2.0, 1.0]
    assert log.of("a", most=1)[0].at == 2.0
