"""Who is silent, in fake time."""

from hub.liveness import DUE_AT_ONCE, Liveness


def test_a_node_is_named_once_three_heartbeats_after_its_last_byte() -> None:
    live = Liveness()
    live.lost("a", heard=100.0, patience_s=90.0)
    assert live.due(189.9) == []
    assert live.due(190.0) == ["a"]
    assert live.due(1000.0) == []


def test_a_node_that_is_back_is_not_named() -> None:
    live = Liveness()
    live.lost("a", 100.0, 90.0)
    live.connected("a")
    assert live.due(1000.0) == []


def test_after_a_start_every_node_has_three_heartbeats() -> None:
    live = Liveness()
    live.watch("a", 0.0, 90.0)
    live.watch("a", 50.0, 90.0)
    assert live.due(89.0) == [] and live.due(90.0) == ["a"]


def test_a_suspension_does_not_count_against_anybody() -> None:
    live = Liveness()
    live.lost("a", 0.0, 90.0)
    live.restart(80.0, 90.0)
    assert live.due(169.0) == [] and live.due(170.0) == ["a"]


def test_what_could_not_be_stored_is_due_again() -> None:
    live = Liveness()
    live.lost("a", 0.0, 1.0)
    live.put_back(live.due(5.0), 10.0)
    assert live.due(9.0) == [] and live.due(10.0) == ["a"]
    live.lost("b", 0.0, 1.0)
    live.forget("b")
    assert live.due(10.0) == [] and len(live) == 0


def test_a_fleet_that_is_silent_at_once_is_told_in_portions() -> None:
    live = Liveness()
    names = [f"n{i}" for i in range(DUE_AT_ONCE + 10)]
    for name in names:
        live.lost(name, 0.0, 30.0)
    told = [live.due(31.0) for _ in range(3)]
    assert [len(some) for some in told] == [DUE_AT_ONCE, 10, 0]
    assert sorted(name for some in told for name in some) == sorted(names)
