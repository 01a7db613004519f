"""What the runtimes of Windows and macOS refuse and warn about, on any machine."""

from typing import Any

import pytest

from edgelite.runtimes import macos_fields, process_fields, process_review, windows_fields
from edgelite.runtimes.windows_review import review
from tests.edgelite.runtimes.test_process_review import can, pod

LIMITS = {"memory", "pids", "cpu"}


@pytest.mark.parametrize("fields", [windows_fields.FIELDS, macos_fields.FIELDS], ids=["windows", "macos"])
def test_they_know_every_field_that_linux_knows(fields: dict[str, tuple[str, str]]) -> None:
    assert set(fields) == set(process_fields.FIELDS)


def test_a_pod_with_the_defaults_of_kubernetes_passes_on_windows() -> None:
    spec: dict[str, Any] = {
        "dnsPolicy": "ClusterFirst",
        "hostNetwork": False,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "securityContext": {},
        "os": {"name": "windows"},
        "volumes": [{"name": "v", "configMap": {"name": "c", "items": [{"key": "k", "path": "a/b"}]}}],
    }
    container = {
        "ports": [{"containerPort": 80, "hostPort": 80}],
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1"}},
        "volumeMounts": [{"name": "v", "mountPath": "conf\\v"}],
        "workingDir": "C:\\app",
        "stdin": False,
    }
    assert review(pod(spec, **container), LIMITS, False) == ([], [])


@pytest.mark.parametrize(
    ("spec", "container", "path"),
    [
        ({}, {"name": "con"}, "spec.containers[0].name: con is a device"),
        ({}, {"workingDir": "a/aux"}, "spec.containers[0].workingDir: aux is a device"),
        ({}, {"command": []}, "spec.containers[0].command: "),
        ({}, {"command": ["run.bat"]}, "spec.containers[0].command[0]: run.bat is a batch file"),
        ({}, {"command": ["a|b"]}, "spec.containers[0].command[0]: 'a|b' has a character"),
        ({}, {"volumeMounts": [{"name": "v", "mountPath": "/etc/x"}]}, "spec.containers[0].volumeMounts[0].mountPath: /etc/x is absolute"),
        ({}, {"volumeMounts": [{"name": "v", "mountPath": "C:\\x"}]}, "spec.containers[0].volumeMounts[0].mountPath: "),
        ({}, {"volumeMounts": [{"name": "v", "mountPath": "a\\..\\..\\b"}]}, "spec.containers[0].volumeMounts[0].mountPath: "),
        ({}, {"volumeMounts": [{"name": "v", "mountPath": "x/nul"}]}, "spec.containers[0].volumeMounts[0].mountPath: nul"),
        ({}, {"securityContext": {"runAsUser": 1000}}, "spec.containers[0].securityContext.runAsUser: "),
        ({}, {"securityContext": {"privileged": True}}, "spec.containers[0].securityContext.privileged: "),
        ({"os": {"name": "linux"}}, {}, "spec.os.name: this node runs windows"),
        ({"hostNetwork": True}, {}, "spec.hostNetwork: needs allow_privileged"),
        ({"securityContext": {"fsGroup": 5}}, {}, "spec.securityContext.fsGroup: "),
        ({"volumes": [{"name": "prn", "emptyDir": {}}]}, {}, "spec.volumes[0].name: prn is a device"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "C:\\x"}}]}, {}, "spec.volumes[0].hostPath: needs allow_privileged"),
        ({"volumes": [{"name": "v", "configMap": {"name": "c", "items": [{"key": "k", "path": "a/com1"}]}}]}, {},
         "spec.volumes[0].configMap.items[0].path: com1"),
        ({"volumes": [{"name": "v", "projected": {"sources": [{"secret": {"items": [{"path": "x."}]}}]}}]}, {},
         "spec.volumes[0].projected.sources[0].secret.items[0].path: 'x.' ends in a dot"),
        ({}, {"ports": [{"containerPort": 80, "hostPort": 81}]}, "spec.containers[0].ports[0].hostPort: "),
        ({}, {"resources": {"limits": {"memory": "much"}}}, "spec.containers[0].resources.limits.memory: much is no quantity"),
    ],
)  # fmt: skip
def test_windows_refuses_by_the_name_of_the_field(
    spec: dict[str, Any], container: dict[str, Any], path: str
) -> None:
    refusals, _ = review(pod(spec, **container), LIMITS, False)
    assert len(refusals) == 1 and refusals[0].startswith(path), refusals


def test_what_windows_does_not_enforce_is_said() -> None:
    container = {
        "resources": {"limits": {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": 1}},
        "volumeMounts": [{"name": "v", "mountPath": "v", "readOnly": True}],
        "securityContext": {"readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
    }
    refusals, warnings = review(pod({}, **container), {"memory"}, False)
    assert refusals == []
    said = {warning.partition(": ")[0].rpartition("].")[2] for warning in warnings}
    assert said == {
        "resources.limits.cpu", "resources.limits.nvidia.com/gpu", "readOnly", "securityContext.readOnlyRootFilesystem",
        "securityContext.capabilities.drop",
    }  # fmt: skip


def test_macos_says_what_it_has_not() -> None:
    mac = can(uid=501, gid=20, namespaces="none", limits=set())
    container = {
        "resources": {"limits": {"memory": "1Gi"}},
        "securityContext": {"capabilities": {"add": ["NET_RAW"]}},
    }
    refusals, warnings = process_review.review(
        pod({"os": {"name": "linux"}}, **container), mac, macos_fields.FIELDS, "darwin"
    )
    assert any(one.startswith("spec.os.name: this node runs darwin") for one in refusals)
    assert any("securityContext.capabilities.add: macOS has no capabilities" in one for one in refusals)
    assert any("limits.memory: not enforced: this system has no limits" in one for one in warnings)
