"""Devices at the node: rules, deadband, interval, what is kept. Runs on CPython and in the MicroPython VM."""

import json

from edgelite import devices
from edgelite.desired import compact
from edgelite.twins import DEVICES_MAX, RETRY_S, Refused, Twins, document_fault

KEY = "device/shop/boiler/u1"
TEMPERATURE = {"name": "temperature", "type": "number", "unit": "Cel", "minimum": -20, "maximum": 120}
SETPOINT = {"name": "setpoint", "type": "integer", "access": "ReadWrite", "minimum": 5, "maximum": 90}
MODE = {"name": "mode", "type": "string", "access": "ReadWrite", "values": ["eco", "boost"]}
BELL = {"name": "bell", "type": "boolean", "access": "WriteOnly"}


def device(*properties, desired=None, gen=1, name="boiler", uid="u1"):
    doc = {
        "kind": "Device",
        "ns": "shop",
        "name": name,
        "uid": uid,
        "gen": gen,
        "properties": list(properties),
    }
    if desired is not None:
        doc["desired"] = desired
    return compact(doc)


def having(prop, **more):
    return dict(list(prop.items()) + list(more.items()))


def twins_of(*properties, desired=None, records=()):
    """A node with one device whose first word to the hub was stored."""
    twins = Twins()
    twins.load(list(records))
    twins.set(KEY, device(*properties, desired=desired), 0.0)
    twins.recovered()
    for what, key, body in twins.poll(0.0):
        if what == "send":
            twins.delivered(key, body, "", 0.0)
    return twins


def sent(twins, now):
    """The reports that go at `now`, by property; None when nothing goes."""
    bodies = [body for what, _, body in twins.poll(now) if what == "send"]
    assert len(bodies) < 2
    return (
        {name: [value for _, value in reports] for name, reports in bodies[0]["r"].items()}
        if bodies
        else None
    )


def saved(twins, now):
    """The last record that is to be saved at `now`, for `twins_of`."""
    records = [(key, record) for what, key, record in twins.poll(now) if what == "save"]
    return records[-1:]


def report(twins, now, **values):
    twins.get("shop", "boiler").report(values, now, 1_700_000_000_000 + int(now * 1000))


def refusal(twins, **values):
    try:
        report(twins, 50.0, **values)
    except Refused as error:
        return error.faults
    raise AssertionError("it was taken")


def test_a_value_that_fits_goes_up_with_its_time_and_the_devices_generation():
    twins = twins_of(TEMPERATURE, SETPOINT)
    report(twins, 5.0, temperature=20.5, setpoint=60)
    actions = twins.poll(5.0)
    bodies = [(key, body) for what, key, body in actions if what == "send"]
    assert bodies == [
        (KEY, {"gen": 1, "r": {"temperature": [[1700000005000, 20.5]], "setpoint": [[1700000005000, 60]]}})
    ]
    assert twins.get("shop", "boiler").reported == {
        "temperature": [1700000005000, 20.5],
        "setpoint": [1700000005000, 60],
    }


def test_values_of_another_type_or_out_of_range_are_refused_by_name_and_nothing_is_taken():
    twins = twins_of(TEMPERATURE, SETPOINT, MODE, BELL)
    for values, wanted in (
        ({"temperature": "warm"}, "must be a number, is 'warm'"),
        ({"temperature": True}, "must be a number, is True"),
        ({"temperature": 120.5}, "must be at most 120 Cel, is 120.5"),
        ({"temperature": -21}, "must be at least -20 Cel, is -21"),
        ({"temperature": float("nan")}, "must be a number"),
        ({"temperature": float("inf")}, "must be a number"),
        ({"setpoint": 60.5}, "must be an integer, is 60.5"),
        ({"setpoint": 1 << 60}, "must lie within"),
        ({"mode": "turbo"}, "must be one of eco, boost, is 'turbo'"),
        ({"mode": 1}, "must be a string, is 1"),
        ({"mode": None}, "must be a string, is None"),
        ({"bell": True}, "is write-only"),
        ({"pressure": 1}, "is no property of the device"),
    ):
        faults = (
            refusal(twins, setpoint=60, **values) if "setpoint" not in values else refusal(twins, **values)
        )
        assert len(faults) == 1 and wanted in faults[0][1], (values, faults)
        assert faults[0][0] == next(iter(values))
    assert sent(twins, 60.0) is None and twins.get("shop", "boiler").reported == {}


def test_a_document_with_desired_values_that_do_not_fit_is_refused_before_it_is_journalled():
    twins = Twins()
    for desired, wanted in (
        ({"setpoint": 91}, "desired.setpoint: must be at most 90, is 91"),
        ({"setpoint": "60"}, "desired.setpoint: must be an integer"),
        ({"temperature": 20}, "desired.temperature: is read-only"),
        ({"nothing": 1}, "desired.nothing: is no property of the device"),
        ([1], "desired: must be an object"),
    ):
        reason, message = twins.admit(KEY, device(TEMPERATURE, SETPOINT, desired=desired))
        assert reason == "Invalid" and wanted in message and KEY in message
    assert twins.admit(KEY, device(TEMPERATURE, SETPOINT, desired={"setpoint": 60})) is None


def test_a_property_that_makes_no_sense_is_refused_with_its_path():
    for prop, wanted in (
        (
            {"name": "a", "type": "float"},
            "properties[0].type: must be one of boolean, integer, number, string",
        ),
        ({"name": "a b", "type": "number"}, "properties[0].name"),
        ({"name": "", "type": "number"}, "properties[0].name"),
        (having(TEMPERATURE, access="Secret"), "properties[0].access"),
        (having(TEMPERATURE, minimum=200), "properties[0].maximum: must not be below minimum, which is 200"),
        (having(TEMPERATURE, deadband=-1), "properties[0].deadband: must not be negative"),
        (having(TEMPERATURE, deadband="x"), "properties[0].deadband: must be a number"),
        (having(TEMPERATURE, keep=65), "properties[0].keep: must be an integer from 1 to 64"),
        (having(TEMPERATURE, keep=0), "properties[0].keep"),
        (having(TEMPERATURE, minIntervalSeconds=True), "properties[0].minIntervalSeconds"),
        (having(TEMPERATURE, values=["a"]), "properties[0].values: is for strings"),
        (having(MODE, minimum=1), "properties[0].minimum: is for integers and numbers"),
        (having(MODE, values=[]), "properties[0].values"),
        (having(TEMPERATURE, unit="x" * 33), "properties[0].unit"),
        (7, "properties[0]: must be an object"),
    ):
        fault = document_fault(KEY, device(prop))
        assert wanted in fault, (prop, fault)
    assert "at least one" in document_fault(KEY, device())
    assert "there twice" in document_fault(KEY, device(TEMPERATURE, TEMPERATURE))
    assert "at most 64" in document_fault(
        KEY, device(*[having(TEMPERATURE, name=f"t{i}") for i in range(65)])
    )
    texts = [{"name": f"s{i}", "type": "string", "keep": 64} for i in range(2)]
    assert "lower keep or maxLength" in document_fault(KEY, device(*texts))


def test_a_document_that_is_not_what_its_key_names_is_refused():
    good = json.loads(device(TEMPERATURE))
    assert document_fault(KEY, b"{") != "" and document_fault(KEY, b"[]") == "no device"
    for field, value in (("name", "other"), ("uid", ""), ("ns", 1), ("kind", "Pod"), ("gen", "1")):
        assert document_fault(KEY, compact(having(good, **{field: value}))) != ""


def test_changes_within_the_deadband_are_no_news_and_slow_drift_is():
    twins = twins_of(having(TEMPERATURE, deadband=0.5, minIntervalSeconds=1))
    report(twins, 10.0, temperature=20.0)
    assert sent(twins, 10.0) == {"temperature": [20.0]}
    twins.delivered(KEY, {"gen": 1, "r": {"temperature": [[1700000010000, 20.0]]}}, "", 10.0)
    for second in range(1, 5):
        report(twins, 10.0 + second, temperature=20.0 + second * 0.1)
        assert sent(twins, 10.0 + second) is None
    report(twins, 15.0, temperature=20.5)
    assert sent(twins, 15.0) == {"temperature": [20.5]}


def test_within_the_interval_only_the_last_value_waits_and_it_does_arrive():
    twins = twins_of(having(TEMPERATURE, minIntervalSeconds=10))
    report(twins, 100.0, temperature=1.0)
    assert sent(twins, 100.0) == {"temperature": [1.0]}
    twins.delivered(KEY, {"gen": 1, "r": {"temperature": [[1700000100000, 1.0]]}}, "", 100.0)
    for tenth in range(1, 100):
        report(twins, 100.0 + tenth / 10, temperature=float(tenth))
        assert sent(twins, 100.0 + tenth / 10) is None
    assert twins.deadline() == 110.0
    assert sent(twins, 110.0) == {"temperature": [99.0]}
    assert twins.deadline() is None


def test_a_value_that_comes_back_within_the_interval_costs_nothing():
    twins = twins_of(having(TEMPERATURE, minIntervalSeconds=10))
    report(twins, 100.0, temperature=1.0)
    assert sent(twins, 100.0) == {"temperature": [1.0]}
    twins.delivered(KEY, {"gen": 1, "r": {"temperature": [[1700000100000, 1.0]]}}, "", 100.0)
    report(twins, 101.0, temperature=2.0)
    report(twins, 102.0, temperature=1.0)
    assert twins.deadline() is None and sent(twins, 200.0) is None


def test_a_mad_sensor_costs_one_message_an_interval():
    twins = twins_of(having(TEMPERATURE, minIntervalSeconds=10))
    messages = 0
    for tick in range(6000):
        report(twins, 1000.0 + tick / 100, temperature=float(tick % 100))
        messages += sent(twins, 1000.0 + tick / 100) is not None
    assert messages == 6


def test_many_properties_that_change_together_go_up_together():
    twins = twins_of(*[having(TEMPERATURE, name=f"t{i}", minIntervalSeconds=1) for i in range(20)])
    for i in range(20):
        report(twins, 30.0 + i / 100, **{f"t{i}": float(i)})
    first, second = sent(twins, 30.0), sent(twins, 30.5)
    assert first is not None and len(first) == 20 and second is None


def test_one_device_sends_at_most_one_message_a_second():
    twins = twins_of(*[having(TEMPERATURE, name=f"t{i}", minIntervalSeconds=1) for i in range(20)])
    messages = 0
    for tick in range(1000):
        report(twins, 100.0 + tick / 100, **{f"t{tick % 20}": float(tick % 97)})
        messages += sent(twins, 100.0 + tick / 100) is not None
    assert 9 <= messages <= 11


def test_offline_the_latest_is_kept_or_as_many_as_the_policy_says():
    twins = twins_of(
        having(TEMPERATURE, minIntervalSeconds=1), having(SETPOINT, minIntervalSeconds=1, keep=3)
    )
    for i in range(5):
        report(twins, 100.0 + 2 * i, temperature=float(i), setpoint=10 + i)
        twins.poll(100.0 + 2 * i)
    twins.anew(200.0)
    assert sent(twins, 200.0) == {"temperature": [4.0], "setpoint": [12, 13, 14]}


def test_what_waits_survives_a_restart_and_what_was_stored_is_not_sent_again():
    prop = having(TEMPERATURE, minIntervalSeconds=1, keep=4)
    twins = twins_of(prop)
    for i in range(3):
        report(twins, 100.0 + 2 * i, temperature=float(i))
        records = saved(twins, 100.0 + 2 * i) or records  # noqa: F821 - set in the first turn
    again = Twins()
    again.load(records)
    again.set(KEY, device(prop), 7.0)
    again.recovered()
    actions = again.poll(7.0)
    bodies = [body for what, _, body in actions if what == "send"]
    assert [value for _, value in bodies[0]["r"]["temperature"]] == [0.0, 1.0, 2.0]
    again.delivered(KEY, bodies[0], "", 8.0)
    records = saved(again, 8.0)
    third = Twins()
    third.load(records)
    third.set(KEY, device(prop), 9.0)
    third.recovered()
    assert sent(third, 9.0) is None
    third.get("shop", "boiler").report({"temperature": 2.0}, 9.0, 5)
    assert third.deadline() is None, "what was reported last is remembered"


def test_a_restart_begins_the_interval_anew():
    prop = having(TEMPERATURE, minIntervalSeconds=10)
    twins = twins_of(prop)
    report(twins, 100.0, temperature=1.0)
    again = twins_of(prop, records=saved(twins, 100.0))
    again.get("shop", "boiler").report({"temperature": 2.0}, 0.5, 1)
    assert again.deadline() == 10.0


def test_reports_that_come_while_one_is_under_way_are_not_lost_with_its_answer():
    twins = twins_of(having(TEMPERATURE, minIntervalSeconds=1, keep=10))
    report(twins, 100.0, temperature=1.0)
    under_way = next(body for what, _, body in twins.poll(100.0) if what == "send")
    report(twins, 102.0, temperature=2.0)
    twins.delivered(KEY, under_way, "", 102.0)
    assert sent(twins, 103.0) == {"temperature": [2.0]}


def test_what_the_hub_had_no_room_for_is_offered_again_later_and_other_refusals_are_for_good():
    twins = twins_of(having(TEMPERATURE, minIntervalSeconds=1))
    report(twins, 100.0, temperature=1.0)
    body = next(body for what, _, body in twins.poll(100.0) if what == "send")
    twins.delivered(KEY, body, "rate: too many reports of this node", 101.0)
    assert sent(twins, 102.0) is None and twins.deadline() == 101.0 + RETRY_S
    assert sent(twins, 101.0 + RETRY_S) == {"temperature": [1.0]}
    twins.delivered(KEY, body, "denied: by a policy", 200.0)
    assert twins.deadline() is None and sent(twins, 300.0) is None


def test_a_hub_that_may_know_nothing_is_told_everything_again():
    twins = twins_of(TEMPERATURE)
    report(twins, 100.0, temperature=1.0)
    body = next(body for what, _, body in twins.poll(100.0) if what == "send")
    twins.delivered(KEY, body, "", 101.0)
    assert sent(twins, 102.0) is None
    twins.anew(200.0)
    assert sent(twins, 200.0) == {"temperature": [1.0]}


def test_another_generation_is_told_without_a_report_and_keeps_the_values_that_still_fit():
    twins = twins_of(having(TEMPERATURE, minIntervalSeconds=1), having(SETPOINT, minIntervalSeconds=1))
    report(twins, 100.0, temperature=100.0, setpoint=60)
    body = next(body for what, _, body in twins.poll(100.0) if what == "send")
    twins.delivered(KEY, body, "", 101.0)
    twins.set(KEY, device(having(TEMPERATURE, maximum=50), SETPOINT, desired={"setpoint": 70}, gen=2), 102.0)
    assert [body for what, _, body in twins.poll(102.0) if what == "send"] == [{"gen": 2, "r": {}}]
    twin = twins.get("shop", "boiler")
    assert twin.desired == {"setpoint": 70} and list(twin.reported) == ["setpoint"]


def test_a_device_that_goes_takes_its_record_along_and_so_do_records_without_a_device():
    twins = twins_of(TEMPERATURE, records=[("device/shop/old/u0", b"{}")])
    twins.delete(KEY)
    assert ("save", KEY, None) in twins.poll(1.0) and len(twins) == 0 and twins.deadline() is None
    fresh = Twins()
    fresh.load([("device/shop/old/u0", b"{}")])
    fresh.recovered()
    assert fresh.poll(0.0) == [("save", "device/shop/old/u0", None)]


def test_a_node_takes_a_bounded_number_of_devices():
    twins = Twins()
    for i in range(DEVICES_MAX):
        key = f"device/shop/d{i}/u{i}"
        body = device(TEMPERATURE, name=f"d{i}", uid=f"u{i}")
        assert twins.admit(key, body) is None
        twins.set(key, body, 0.0)
    reason, message = twins.admit(KEY, device(TEMPERATURE))
    assert reason == "TooManyDevices" and str(DEVICES_MAX) in message
    assert twins.admit("device/shop/d0/u0", device(TEMPERATURE, name="d0", uid="u0")) is None
    assert [t.doc["name"] for t in twins.of("shop")][:2] == ["d0", "d1"] and twins.of("other") == []


def test_the_bound_of_what_is_kept_holds_for_the_longest_values():
    prop = {"name": "s", "type": "string", "maxLength": 200, "keep": 8}
    twins = twins_of(having(prop, minIntervalSeconds=1))
    for i in range(20):
        report(twins, 100.0 + 2 * i, s="\x01" * 199 + chr(65 + i))
    body = next(body for what, _, body in twins.poll(200.0) if what == "send")
    assert len(compact(body)) <= devices.kept_bytes(prop) + 64
