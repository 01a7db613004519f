"""The long benches at a hundredth of their size and time, every assertion kept; and what they are made of."""

import json
import struct
import zlib
from pathlib import Path

import orjson
import pytest

from hub.objects import split_object_key
from hub.reports import merge_node, merge_pod
from hub.simulate.node import node_report, running_status
from security.frames import decode_node
from shards.ring import slot_of
from tests.scale import fleet, linear, share
from tests.scale.made import MADE_AT, MadeFleet, node_bytes, pod_bytes
from tests.scale.png import BLACK, Picture
from tests.scale.steps import Steps


def test_1_000_nodes_with_10_000_pods_connect_and_no_change_is_lost(tmp_path: Path) -> None:
    size = "--nodes 1000 --pods 10000 --seconds 6 --heartbeat 4 --p99 60"
    options = fleet.options_of([*size.split(), "--directory", str(tmp_path)])
    run = fleet.Run(options)
    assert fleet.execute(run) == 0, json.dumps(run.report, indent=1)
    wanted = {one["what"]: one["reached"] for one in run.wanted}
    assert wanted["nodes connected and synchronised"] == wanted["nodes synchronised afterwards"] == 1000
    assert wanted["pods at their nodes"] == 10_000 and wanted["reports stored"] >= 11_000
    assert wanted["of these, acknowledged by the edge"] == 600
    assert run.report["phases"]["connect"]["cpu seconds"]["hubs"] > 0
    again = Steps(tmp_path)
    assert again.earlier == {"certificates", "backup", "load"}, "a second run begins with what is done"


def test_a_replicas_share_of_10_000_nodes_lives_in_memory_and_takes_over_anothers(tmp_path: Path) -> None:
    size = "--nodes 10000 --pods 100000 --shares 1 --seconds 1"
    options = share.options_of([*size.split(), "--directory", str(tmp_path)])
    report = share.execute(options)
    assert report["ended"] == "completed", report
    figures, phases = report["figures"], report["replicas measured"][0]["phases"]
    assert figures["nodes"] == phases["load"]["nodes"] > 1000
    assert phases["take over"]["nodes"] > 100 and phases["run"]["changes"] == phases["run"]["statuses"] > 0
    assert 0 < figures["bytes per node, in all"] < 200_000
    assert share.execute(options)["replicas measured"] == report["replicas measured"], "measured once"


def test_what_a_simulated_node_reports_is_what_lies_in_the_store() -> None:
    pod = orjson.loads(pod_bytes())
    status = running_status(("main",), MADE_AT)
    assert orjson.dumps(merge_pod(pod["spec"]["nodeName"], status)(pod)) == pod_bytes()
    node = orjson.loads(node_bytes())
    assert orjson.dumps(merge_node(node, decode_node(orjson.dumps(node_report())))) == node_bytes()


async def test_a_made_fleet_is_the_same_each_time_in_the_order_of_its_keys() -> None:
    made = MadeFleet(50, 3, slots=16)
    items = [item async for item in made.items()]
    assert items == sorted(items) and len(items) == 2 * 50 * 4
    assert [item async for item in MadeFleet(50, 3, slots=16).items(items[70][0])] == items[71:]
    for key, value in items:
        if key.startswith("obj/"):
            partition, _, _ = split_object_key(key)
            obj = orjson.loads(value)
            node = obj["spec"].get("nodeName") or obj["metadata"]["name"]
            assert int(partition) == slot_of(node, 16)
    part = [k async for k, _ in MadeFleet(50, 3, slots=16, wanted=lambda slot: slot < 4).items()]
    assert part and set(part) < {key for key, _ in items}


def test_a_step_that_was_cut_off_is_done_again_and_one_that_is_done_is_not(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    with steps.step("first") as figures:
        assert figures is not None
        figures["keys"] = 5
    with pytest.raises(KeyboardInterrupt), steps.step("second"):
        raise KeyboardInterrupt
    later = Steps(tmp_path)
    assert later.earlier == {"first"} and later.done["first"]["keys"] == 5
    with later.step("first") as figures:
        assert figures is None
    with later.step("second") as figures:
        assert figures is not None


def test_a_line_is_told_from_a_square() -> None:
    sizes = (1000, 3000, 10_000, 30_000, 100_000)
    line = linear.fit([(n, 2 + 0.001 * n) for n in sizes])
    assert line.slope == pytest.approx(0.001) and line.intercept == pytest.approx(2)
    assert line.worst < 1e-9
    square = linear.fit([(n, 1e-6 * n * n) for n in sizes])
    assert square.exponent == pytest.approx(2) and square.worst > 0.5


def test_a_picture_is_a_png_with_what_was_drawn(tmp_path: Path) -> None:
    picture = Picture(9, 7)
    picture.line(1, 2, 7, 2, BLACK)
    picture.dot(100, 100, BLACK)  # outside
    picture.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and struct.unpack(">II", data[16:24]) == (9, 7)
    at, size = data.index(b"IDAT"), struct.unpack(">I", data[33:37])[0]
    rows = zlib.decompress(data[at + 4 : at + 4 + size])
    assert len(rows) == 7 * (1 + 3 * 9)
    dark = [(n % 28 - 1) // 3 for n in range(2 * 28 + 1, 3 * 28, 3) if rows[n] == 0]
    assert dark == [1, 2, 3, 4, 5, 6, 7]
