"""A small storm: counts, never times, for the machine is shared."""

from tests.bench.storm import enrolments, storm
from tests.e2e.hostile import figures, nodes

COUNT = 100
JOINS = 10


def test_all_agents_are_back_after_an_outage_and_after_a_cut() -> None:
    with storm(COUNT) as fleet:
        first = fleet.run("storm full")
        assert (first.back, first.lost, first.reused) == (COUNT, [], 0)
        fleet.hub.kill9()
        fleet.hub.start()
        again = fleet.run("storm full")
        assert (again.back, again.lost, again.reused) == (COUNT, [], 0)
        assert len(again.stalls_s) > 0 and again.cpu_s > 0 and again.loop["longest_s"] > 0
        resumed = fleet.run("storm resumed")
        assert (resumed.back, resumed.lost) == (COUNT, [])
        assert resumed.reused >= COUNT, "a session that the hub does not take up costs a full handshake"
        told = figures(fleet.hub)
        assert told["handshakes"] >= 2 * COUNT and told.get("closed.clone", 0) == 0, told
        assert sum(said["ended"] for said in fleet.all("watch")) == 0, "nobody is sent away afterwards"
        rate, cpu_s = enrolments(fleet.hub, JOINS)
        assert rate > 0 and cpu_s > 0
        assert {f"joined-{n}" for n in range(JOINS)} <= nodes(fleet.hub)
