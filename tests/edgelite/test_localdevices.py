"""Devices in the node's own API, as a workload uses them: over TLS, with its pod's token."""

import json

import pytest

from edgelite.localdevices import BODY_BYTES_MAX, MERGE_PATCH
from tests.edgelite.test_localapi import Client, LocalNode
from tests.edgelite.test_twins import BELL, KEY, SETPOINT, TEMPERATURE, device

PLACE = "/apis/cloudhub.dev/v1alpha1/namespaces/shop/devices"
STATUS = PLACE + "/boiler/status"


@pytest.fixture
def node(tmp_path):
    made = LocalNode(tmp_path)
    made.keeper.set(KEY, device(TEMPERATURE, SETPOINT, BELL, desired={"setpoint": 60, "bell": True}))
    made.keeper.start()
    made.elsewhere_key = "device/other/lamp/u2"
    lamp = json.loads(device(TEMPERATURE, name="lamp", uid="u2"))
    made.keeper.set(made.elsewhere_key, json.dumps({**lamp, "ns": "other"}).encode())
    yield made
    made.loop.close()


def reported(**values):
    return json.dumps({"status": {"reported": {name: {"value": value} for name, value in values.items()}}})


class Reporter(Client):
    def patch(self, body, path=STATUS, content_type=MERGE_PATCH, **more):
        return self.get(path, method="PATCH", body=body, content_type=content_type, **more)


def test_a_workload_reads_what_is_desired_and_reports_what_is(node):
    client = Reporter(node.run_pod())

    def work():
        return client.get(PLACE), client.patch(reported(temperature=20.5, setpoint=60)), client.get(STATUS)

    (listed, devices), (patched, answered), (got, read) = node.elsewhere(work)
    assert (listed, patched, got) == (200, 200, 200)
    assert [d["metadata"]["name"] for d in devices["items"]] == ["boiler"]
    assert devices["items"][0]["spec"]["desired"] == {"setpoint": 60, "bell": True}
    assert answered["status"]["reported"]["temperature"]["value"] == 20.5
    assert read["status"] == answered["status"] and read["metadata"]["generation"] == 1
    node.until(lambda: any(body["r"] for _, _, body in node.twin_reports))
    kind, key, body = node.twin_reports[-1]
    assert (kind, key) == ("twin", KEY)
    assert {name: [v for _, v in r] for name, r in body["r"].items()} == {
        "temperature": [20.5],
        "setpoint": [60],
    }


def test_a_report_that_does_not_fit_is_answered_as_kubernetes_would_and_not_taken(node):
    client = Reporter(node.run_pod())
    cases = (
        (reported(temperature=121, setpoint=60), 422, "temperature must be at most 120 Cel, is 121"),
        (reported(bell=True), 422, "bell is write-only"),
        (reported(pressure=1), 422, "pressure is no property of the device"),
        (reported(), 400, "send"),
        ('{"status":{"reported":{"temperature":20}}}', 400, "status.reported.temperature has to be"),
        ("[]", 400, "send"),
        ("{", 400, "not a report"),
        ("[" * 30000, 400, "not a report"),
        (" " * (BODY_BYTES_MAX + 1), 413, "at most"),
    )
    answers = node.elsewhere(lambda: [client.patch(body) for body, _, _ in cases])
    for (body, code, text), (got, status) in zip(cases, answers, strict=True):
        assert got == code and status["code"] == code and text in status["message"], (body[:80], status)
    causes = answers[0][1]["details"]["causes"]
    assert [cause["field"] for cause in causes] == ["status.reported.temperature"]
    assert node.keeper.twins.get("shop", "boiler").reported == {}


def test_a_workload_reaches_no_device_of_another_namespace_and_nobody_without_a_token_any(node):
    client = Reporter(node.run_pod())
    other = "/apis/cloudhub.dev/v1alpha1/namespaces/other/devices"

    def work():
        return [
            client.get(other)[1].get("items"),
            client.get(other + "/lamp")[0],
            client.patch(reported(temperature=1), other + "/lamp/status")[0],
            client.patch(reported(temperature=1), PLACE + "/lamp/status")[0],
            client.patch(reported(temperature=1), token="wrong")[0],
            client.patch(reported(temperature=1), content_type="application/json")[0],
            client.patch(reported(temperature=1), PLACE + "/boiler")[0],
            client.get(STATUS, method="PUT", body=reported(temperature=1))[0],
        ]

    assert node.elsewhere(work) == [[], 404, 404, 404, 401, 415, 405, 405]
    assert node.keeper.twins.get("other", "lamp").reported == {}


def test_a_workload_that_watches_hears_of_another_desired_value(node):
    client = Reporter(node.run_pod())

    def work():
        with client.ask(PLACE + "?watch=1&timeoutSeconds=60") as response:
            first = json.loads(response.readline())
            node.keeper.set(KEY, device(TEMPERATURE, SETPOINT, BELL, desired={"setpoint": 70}, gen=2))
            return first, json.loads(response.readline())

    first, second = node.elsewhere(work)
    assert (first["type"], second["type"]) == ("ADDED", "MODIFIED")
    assert second["object"]["spec"]["desired"] == {"setpoint": 70}


def test_the_group_is_found_by_discovery(node):
    client = Reporter(node.run_pod())
    groups, resources = node.elsewhere(
        lambda: (client.get("/apis")[1], client.get("/apis/cloudhub.dev/v1alpha1")[1])
    )
    assert "cloudhub.dev" in [group["name"] for group in groups["groups"]]
    assert {r["name"]: r["verbs"] for r in resources["resources"]} == {
        "devices": ["get", "list", "watch"],
        "devices/status": ["get", "patch"],
    }
