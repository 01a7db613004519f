"""Devices between the store and their nodes: what comes down, what goes up, and what is refused. Over real TLS."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from edgelite import devices as rules
from hub import devices
from hub.errors import NotFound
from hub.objects import DEVICES, NODES, DeviceView
from hub.registry import Object
from hub.store.memory import MemoryStore
from hub.twins import DEVICE_BURST, NODE_BURST
from security.frames import decode_twin
from tests.hub.edge_pki import Pki
from tests.hub.hub_fixture import Hub, device, eventually, hub, until
from tests.sim.fleet import SimNode

KEY = "device/default/boiler/u1"
AT = 1_700_000_000_000


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pki]:
    yield Pki(str(tmp_path_factory.mktemp("ca")))


async def stored(h: Hub, name: str = "boiler") -> Object:
    return (await h.registry.get(DEVICES, "default", name)).obj()


async def change(h: Hub, **spec: Any) -> None:
    """As the API would: another spec is another generation."""

    def apply(obj: Object) -> Object:
        obj["spec"].update(spec)
        obj["metadata"]["generation"] += 1
        return obj

    await h.registry.mutate(DEVICES, "default", "boiler", apply)


async def answer(node: SimNode, body: Any, key: str = KEY) -> str:
    """Reports; the hub's reason to refuse it, "" when it was stored."""
    n = node.report("twin", key, body)
    await until(lambda: n in node.stored)
    return node.stored[n]


async def accepted(h: Hub, name: str = "boiler") -> Object:
    conditions = (await stored(h, name))["status"].get("conditions") or []
    return next((c for c in conditions if c["type"] == "Accepted"), {})


async def test_a_device_goes_to_its_node_alone_and_changes_with_what_is_desired(pki: Pki) -> None:
    async with hub(pki) as h:
        a, b = await h.enrol("edge-a"), await h.enrol("edge-b")
        await h.connect(a)
        await h.connect(b)
        await h.create(DEVICES, device("boiler", "edge-a", "u1", desired={"setpoint": 60}))
        await until(lambda: KEY in a.bodies)
        first = json.loads(a.bodies[KEY])
        assert first["desired"] == {"setpoint": 60} and first["gen"] == 1 and first["ns"] == "default"
        await change(h, desired={"setpoint": 70})
        await until(lambda: json.loads(a.bodies[KEY])["gen"] == 2)
        assert json.loads(a.bodies[KEY])["desired"] == {"setpoint": 70}
        await h.registry.remove(DEVICES, await h.registry.get(DEVICES, "default", "boiler"))
        await until(lambda: a.dels == 1)
        assert b.sets == 0 and b.docs == {}


async def test_a_report_becomes_the_devices_status_and_makes_no_other_document(pki: Pki) -> None:
    async with hub(pki) as h:
        a = await h.enrol("edge-a")
        await h.create(DEVICES, device("boiler", "edge-a", "u1"))
        await h.connect(a)
        await until(lambda: KEY in a.docs)
        body = {"gen": 1, "r": {"temperature": [[AT, 20.5]], "setpoint": [[AT + 1, 60]]}}
        assert await answer(a, body) == ""
        status = (await stored(h))["status"]
        assert status["reported"] == {
            "temperature": {"value": 20.5, "time": "2023-11-14T22:13:20.000000Z"},
            "setpoint": {"value": 60, "time": "2023-11-14T22:13:20.001000Z"},
        }
        assert status["observedGeneration"] == 1 and (await accepted(h))["status"] == "True"
        sets = a.sets
        a.ping()
        await until(lambda: a.pongs == 1)
        assert a.sets == sets == 1


async def test_a_property_keeps_as_many_reports_as_it_says_and_the_same_ones_change_nothing(pki: Pki) -> None:
    async with hub(pki) as h:
        a = await h.enrol("edge-a")
        prop = {"name": "t", "type": "number", "keep": 4}
        await h.create(DEVICES, device("boiler", "edge-a", "u1", properties=[prop]))
        await h.connect(a)
        await until(lambda: KEY in a.docs)
        assert await answer(a, {"gen": 1, "r": {"t": [[AT - 1000, 0], [AT, 1], [AT + 1000, 2]]}}) == ""
        body = {"gen": 1, "r": {"t": [[AT + 1000, 2], [AT + 2000, 3], [AT + 3000, 4]]}}
        assert await answer(a, body) == ""
        before = await h.registry.get(DEVICES, "default", "boiler")
        report = before.obj()["status"]["reported"]["t"]
        assert [r["value"] for r in report["history"]] == [1, 2, 3, 4] and report["value"] == 4
        assert await answer(a, body) == ""
        assert (await h.registry.get(DEVICES, "default", "boiler")).revision == before.revision


async def test_values_that_do_not_fit_are_refused_by_name_and_the_others_are_taken(pki: Pki) -> None:
    async with hub(pki) as h:
        a = await h.enrol("edge-a")
        bell = {"name": "bell", "type": "boolean", "access": "WriteOnly"}
        spec = device("boiler", "edge-a")["spec"]
        await h.create(DEVICES, device("boiler", "edge-a", "u1", properties=[*spec["properties"], bell]))
        await h.connect(a)
        await until(lambda: KEY in a.docs)
        for reported, wanted in (
            ({"temperature": [[AT, 121]]}, "temperature must be at most 120 Cel, is 121"),
            ({"temperature": [[AT, "hot"]], "setpoint": [[AT, 42]]}, "temperature must be a number"),
            ({"bell": [[AT, True]]}, "bell is write-only"),
            ({"pressure": [[AT, 1]]}, "pressure is no property of the device"),
            ({"temperature": [[AT, None]]}, "malformed"),
            ({"temperature": []}, "malformed"),
            ({"temperature": [[-1, 20]]}, "malformed"),
        ):
            reason = await answer(a, {"gen": 1, "r": reported})
            assert wanted in reason and reason.startswith(("invalid:", "malformed:")), (reported, reason)
        assert list((await stored(h))["status"]["reported"]) == ["setpoint"]
        assert h.gateway.intake.twins.invalid == 4


async def test_a_document_that_the_node_refuses_is_shown_at_the_device_until_it_is_taken(pki: Pki) -> None:
    async with hub(pki) as h:
        a = await h.enrol("edge-a")
        await h.connect(a)
        a.nacks[KEY] = ("TooManyDevices", "this node has 64 devices already")
        await h.create(DEVICES, device("boiler", "edge-a", "u1"))

        async def shown() -> bool:
            condition = await accepted(h)
            return condition.get("reason") == "TooManyDevices" and "64 devices" in condition["message"]

        await eventually(shown)
        refused = await h.condition("edge-a", "DocumentsRefused")
        assert refused is not None and KEY in refused["message"]
        assert await answer(a, {"gen": 0, "r": {"setpoint": [[AT, 42]]}}) == "", (
            "what it followed before goes on"
        )
        assert (await accepted(h))["status"] == "False"
        a.nacks.clear()
        await change(h, desired={"setpoint": 50})
        await until(lambda: json.loads(a.bodies[KEY])["gen"] == 2)
        assert await answer(a, {"gen": 2, "r": {}}) == ""
        condition = await accepted(h)
        assert condition["status"] == "True" and condition["observedGeneration"] == 2


async def test_a_report_about_an_older_spec_does_not_say_that_the_new_one_is_followed(pki: Pki) -> None:
    async with hub(pki) as h:
        a = await h.enrol("edge-a")
        await h.create(DEVICES, device("boiler", "edge-a", "u1"))
        await h.connect(a)
        await until(lambda: KEY in a.docs)
        assert await answer(a, {"gen": 3, "r": {}}) == ""
        assert await answer(a, {"gen": 2, "r": {"setpoint": [[AT, 42]]}}) == ""
        status = (await stored(h))["status"]
        assert status["observedGeneration"] == 3 and status["reported"]["setpoint"]["value"] == 42


async def test_a_device_that_reports_too_often_is_told_so_and_the_store_is_spared(pki: Pki) -> None:
    async with hub(pki) as h:
        a = await h.enrol("edge-a")
        await h.create(DEVICES, device("boiler", "edge-a", "u1"))
        await h.connect(a)
        await until(lambda: KEY in a.docs)
        first = await h.store.revision()
        numbers = [
            a.report("twin", KEY, {"gen": 1, "r": {"setpoint": [[AT + i, 5 + i % 80]]}}) for i in range(500)
        ]
        await until(lambda: all(n in a.stored for n in numbers))
        late = [a.stored[n] for n in numbers if a.stored[n]]
        # The test's own time lets some more pass than the burst.
        assert len(late) >= 450 and all(reason.startswith("rate:") for reason in late)
        assert await h.store.revision() - first <= 60
        assert h.gateway.intake.twins.limited == len(late)
        h.clock.ahead += 60.0
        assert await answer(a, {"gen": 1, "r": {"setpoint": [[AT + 1000, 50]]}}) == ""
        assert (await stored(h))["status"]["reported"]["setpoint"]["value"] == 50


async def test_all_devices_of_a_node_together_have_a_bound_too(pki: Pki) -> None:
    async with hub(pki) as h:
        a = await h.enrol("edge-a")
        prop = {"name": "t", "type": "integer", "minIntervalSeconds": 1}
        for i in range(40):
            await h.create(DEVICES, device(f"d{i}", "edge-a", f"u{i}", properties=[prop]))
        await h.connect(a)
        await until(lambda: len(a.docs) == 40)
        numbers = [
            a.report("twin", f"device/default/d{i % 40}/u{i % 40}", {"gen": 1, "r": {"t": [[AT + i, i]]}})
            for i in range(40 * int(DEVICE_BURST))
        ]
        await until(lambda: all(n in a.stored for n in numbers))
        late = [a.stored[n] for n in numbers if a.stored[n]]
        assert 0 < len(late) <= len(numbers) - NODE_BURST and all("this node's devices" in r for r in late)


async def test_a_device_that_was_made_before_its_node_lies_with_it_once_it_is_placed(pki: Pki) -> None:
    async with hub(pki, MemoryStore(slots=16)) as h:
        made = await h.create(DEVICES, device("boiler", "edge-a", "u1"))
        assert made.partition == "-"
        a = await h.enrol("edge-a", "site-1")
        moved = await h.registry.place("default", "boiler", "u1", res=DEVICES)
        node = await h.registry.get(NODES, "", "edge-a")
        assert moved.partition == node.partition
        await h.connect(a)
        await until(lambda: KEY in a.docs)
        a.drop()
        await h.gateway.upstream.settled()
        await h.registry.remove(NODES, await h.registry.get(NODES, "", "edge-a"))
        again = await h.enrol("edge-a", "site-3")
        assert (await h.registry.get(NODES, "", "edge-a")).partition != moved.partition
        await h.registry.place("default", "boiler", "u1", res=DEVICES)
        await h.connect(again)
        await until(lambda: KEY in again.docs)
        found = await h.registry.page(DEVICES, "default")
        assert [s.obj()["metadata"]["name"] for s in found.items] == ["boiler"]


def test_how_often_a_device_may_report_follows_from_its_intervals() -> None:
    def rate(*intervals: int) -> float:
        properties = [{"minIntervalSeconds": i} for i in intervals]
        view = {"metadata": {}, "spec": {"nodeName": "n", "properties": properties}}
        return devices.reports_a_second(msgspec.convert(view, DeviceView))

    assert rate(10) == pytest.approx(0.15)
    assert rate(1, 1, 1) == pytest.approx(1.5)
    assert rate(100, 50) == pytest.approx(0.045)


def test_the_document_is_the_same_for_the_same_spec_and_small_enough_for_a_board() -> None:
    made = device("boiler", "edge-a", "0f7c2b9e-5d3a-4a52-8d5e-0c1b2a3d4e5f", desired={"setpoint": 60})
    body = devices.render(made)
    made["spec"]["properties"][0].update(access="ReadOnly", minIntervalSeconds=10, keep=1)
    made["status"] = {"reported": {"temperature": {"value": 1}}}
    assert devices.render(made) == body and len(body) < 400
    assert rules.faults(json.loads(body)) == []


def test_a_stored_spec_that_makes_no_sense_takes_no_report() -> None:
    made = device("boiler", "edge-a", "u1")
    made["spec"]["properties"][0]["type"] = "nonsense"
    merge = devices.Merge("edge-a", decode_twin(b'{"gen":1,"r":{"setpoint":[[1,50]]}}'), lambda: "now")
    assert merge(made) is not None and merge.faults == [("setpoint", "is no property of the device")]


def test_a_report_about_another_nodes_device_finds_none() -> None:
    merge = devices.Merge("edge-b", decode_twin(b'{"gen":1,"r":{"setpoint":[[1,50]]}}'), lambda: "now")
    with pytest.raises(NotFound):
        merge(device("boiler", "edge-a", "u1"))
    with pytest.raises(NotFound):
        devices.refused("edge-b", "Why", "not", lambda: "now")(device("boiler", "edge-a", "u1"))
