"""A device from end to end: stock kubectl in the cloud, stock kubectl in a pod at the node, a real hub and agent."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster import Cluster, kubectl_binaries, wait_for
from tests.e2e.kube import Kube, config_map

PLACE = "/var/run/secrets/kubernetes.io/serviceaccount"
# What a driver of the device does: it sets what is desired, and reports what it has set.
DRIVER = """unset KUBECONFIG; export HOME=$PWD
while :; do
  want=$({kubectl} get device boiler -o jsonpath='{{.spec.desired.setpoint}}')
  {kubectl} patch device boiler --subresource=status --type=merge -p \
"{{\\"status\\":{{\\"reported\\":{{\\"setpoint\\":{{\\"value\\":$want}},\\"temperature\\":{{\\"value\\":$want.5}}}}}}}}"
  {kubectl} patch device boiler --subresource=status --type=merge -p \
'{{"status":{{"reported":{{"temperature":{{"value":500}}}}}}}}'
  sleep 0.3
done"""


@pytest.fixture
def client() -> Iterator[str]:
    """A kubectl that the user of the workloads may run: the tests' folders are closed to it."""
    with tempfile.TemporaryDirectory(prefix="devices-") as directory:
        os.chmod(directory, 0o755)
        path = os.path.join(directory, "kubectl")
        shutil.copyfile(kubectl_binaries()[0], path)
        os.chmod(path, 0o755)
        yield path


def boiler(node: str, setpoint: Any) -> Any:
    return {
        "apiVersion": "cloudhub.dev/v1alpha1",
        "kind": "Device",
        "metadata": {"name": "boiler"},
        "spec": {
            "nodeName": node,
            "properties": [
                {"name": "temperature", "type": "number", "unit": "Cel", "maximum": 120, "deadband": 0.2,
                 "minIntervalSeconds": 1, "keep": 5},
                {"name": "setpoint", "type": "integer", "access": "ReadWrite", "minimum": 5, "maximum": 90,
                 "minIntervalSeconds": 1},
            ],
            "desired": {"setpoint": setpoint},
        },
    }  # fmt: skip


def driver(node: str, client: str) -> Any:
    sources = [
        {"serviceAccountToken": {"path": "token"}},
        {"configMap": {"name": "ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]
    script = DRIVER.format(kubectl=client)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "driver", "labels": {"cloudhub.dev/runtime": "process"}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "access", "projected": {"sources": sources}}],
            "containers": [
                {
                    "name": "main",
                    "command": ["/bin/sh", "-c", script],
                    "volumeMounts": [{"name": "access", "mountPath": PLACE}],
                }
            ],
        },
    }


def test_what_is_desired_reaches_the_device_and_what_it_reports_comes_back(
    shared_cluster: Cluster, client: str
) -> None:
    kube = Kube(shared_cluster, kubectl_binaries()[0], f"t-{os.urandom(4).hex()}")
    refused = kube("apply", "-f", kube.file(boiler("n1", 91)), code=1)
    assert "spec.desired.setpoint" in refused and "must be at most 90, is 91" in refused
    kube.apply(boiler("n1", 60), config_map("ca", **{"ca.crt": "the node's own takes its place"}))
    wait_for(lambda: "default" in kube("get", "serviceaccounts"), "the namespace has its default account")
    kube.apply(driver("n1", client))

    def reported(name: str) -> Any:
        return kube.json("device/boiler").get("status", {}).get("reported", {}).get(name, {})

    def said() -> str:
        return kube("logs", "driver", "--tail=5", code=None) + kube("get", "events,pods", code=None)[-2000:]

    wait_for(lambda: reported("setpoint").get("value") == 60, "the driver has set what was desired", 60, said)
    patch = json.dumps({"spec": {"desired": {"setpoint": 70}}})
    kube("patch", "device", "boiler", "--type=merge", "-p", patch)
    wait_for(lambda: reported("temperature").get("value") == 70.5, "the driver follows", 60, said)
    status = kube.json("device/boiler")["status"]
    assert status["observedGeneration"] == 2
    assert [reading["value"] for reading in status["reported"]["temperature"]["history"]] == [60.5, 70.5]
    assert "must be at most 120 Cel, is 500" in kube("logs", "driver")
    shown = kube("get", "dev", "-o", "wide")
    assert "n1" in shown and "True" in shown and "setpoint=70, temperature=70.5" in shown
    assert "deadband" in kube("explain", "device.spec.properties")
    kube("delete", "pod", "driver", "--now")
    kube("delete", "device", "boiler")
