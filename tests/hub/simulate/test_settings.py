import resource

import pytest

from hub.simulate.settings import Faults, Settings, loopback_sources
from hub.usage import UsageError


@pytest.mark.parametrize(
    ("option", "change"),
    [
        ("--nodes", {"nodes": 0}),
        ("--processes", {"processes": 0}),
        ("--processes", {"nodes": 2, "processes": 3}),
        ("--pods", {"pods": 251}),
        ("--at-once", {"at_once": 0}),
        ("--connect-rate", {"connect_per_s": -1}),
        ("--churn", {"churn_per_s": -1}),
        ("--updates", {"updates_per_s": 1e6}),
        ("--prefix", {"prefix": "A_"}),
        ("--prefix", {"prefix": "x" * 60}),
        ("--hub", {"hub": " , "}),
        ("--source", {"sources": ("nowhere",)}),
        ("--latency", {"faults": Faults(latency_s=31)}),
        ("--link-loss", {"faults": Faults(loss_per_min=1.5)}),
        ("--outage", {"faults": Faults(outage_s=0)}),
        ("--slow", {"faults": Faults(slow_share=2)}),
        ("--slow-rate", {"faults": Faults(slow_bytes_s=1)}),
        ("--storm", {"faults": Faults(storm_every_s=1e6)}),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_the_name_of_its_option(
    option: str, change: dict[str, object]
) -> None:
    with pytest.raises(UsageError, match=f"^{option} "):
        Settings(**{"hub": "localhost:1", "nodes": 10, **change})  # type: ignore[arg-type]


def test_more_nodes_than_a_process_has_descriptors_for_are_refused_with_the_number_of_processes() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = 19_000 if hard == resource.RLIM_INFINITY else min(19_000, hard - 200)
    assert Settings(hub="localhost:1", nodes=room).nodes == room
    with pytest.raises(UsageError, match=r"use --processes 2$"):
        Settings(hub="localhost:1", nodes=room + 1)
    assert Settings(hub="localhost:1", nodes=room + 1, processes=2).nodes == room + 1


def test_a_hub_on_this_machine_has_an_address_for_each_process_and_ten_thousand_nodes() -> None:
    assert loopback_sources("127.0.0.1:8444", 100, 1) == ("127.0.1.1",)
    assert loopback_sources("localhost:8444,127.0.0.1:9", 100, 2) == ("127.0.1.1", "127.0.1.2")
    assert len(loopback_sources("127.0.0.1:8444", 100_000, 6)) == 10
    assert loopback_sources("edge.example.com:8444", 100_000, 6) == ()
