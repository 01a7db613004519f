"""What is refused and warned about, on any machine; and that no field of a Pod is forgotten."""

import json
import os
from typing import Any

import kubernetes_validate
import pytest

from edgelite.runtimes.process_cgroups import Limits, quantity
from edgelite.runtimes.process_fields import CHECKED, FIELDS, REFUSED, WARNED, capability_numbers
from edgelite.runtimes.process_review import Abilities, Refused, identify, review

SCHEMAS = os.path.join(
    os.path.dirname(kubernetes_validate.__file__), "kubernetes-json-schema", "v1.37.0-local"
)


def can(**changes: Any) -> Abilities:
    base: dict[str, Any] = {
        "uid": 0,
        "gid": 0,
        "groups": [],
        "namespaces": "mount",
        "limits": {"cpu", "memory", "pids"},
        "allow_privileged": False,
        "default_uid": 65534,
        "default_gid": 65534,
    }
    return Abilities(**{**base, **changes})


def pod(spec: dict[str, Any] | None = None, **container: Any) -> dict[str, Any]:
    entry = {"name": "main", "image": "x", "command": ["run"], **container}
    return {
        "kind": "Pod",
        "ns": "n",
        "name": "p",
        "uid": "u",
        "spec": {"containers": [entry], **(spec or {})},
    }


def schema(kind: str) -> set[str]:
    with open(os.path.join(SCHEMAS, f"{kind}-v1.json")) as f:
        return set(json.load(f)["properties"])


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("podspec", "spec"),
        ("container", "spec.containers[]"),
        ("podsecuritycontext", "spec.securityContext"),
        ("securitycontext", "spec.containers[].securityContext"),
        ("capabilities", "spec.containers[].securityContext.capabilities"),
        ("volumemount", "spec.containers[].volumeMounts[]"),
        ("resourcerequirements", "spec.containers[].resources"),
    ],
)
def test_every_field_of_a_pod_has_a_verdict(kind: str, path: str) -> None:
    for field in schema(kind):
        full = f"{path}.{field}"
        assert any(k in (full, full + "[]") or k.startswith((full + ".", full + "[].")) for k in FIELDS), full


def test_no_verdict_is_for_a_field_that_does_not_exist() -> None:
    known = schema("podspec")
    assert {path.split(".")[1].removesuffix("[]") for path in FIELDS} <= known
    container = schema("container")
    of_containers = {p.split(".")[2].removesuffix("[]") for p in FIELDS if p.startswith("spec.containers[].")}
    assert of_containers <= container


def test_a_pod_with_the_defaults_of_kubernetes_passes() -> None:
    spec = {
        "dnsPolicy": "ClusterFirst",
        "enableServiceLinks": True,
        "hostNetwork": False,
        "hostPID": False,
        "preemptionPolicy": "PreemptLowerPriority",
        "priority": 0,
        "restartPolicy": "Always",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "serviceAccountName": "default",
        "terminationGracePeriodSeconds": 30,
        "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}],
        "volumes": [{"name": "v", "emptyDir": {}}],
    }
    document = pod(
        spec,
        imagePullPolicy="Always",
        ports=[{"containerPort": 80, "protocol": "TCP"}],
        resources={},
        stdin=False,
        terminationMessagePath="/dev/termination-log",
        terminationMessagePolicy="File",
        tty=False,
        volumeMounts=[{"name": "v", "mountPath": "/v"}],
    )
    assert review(document, can()) == ([], [])


def test_every_plain_refusal_and_warning_is_given_with_its_path() -> None:
    for path, (verdict, text) in FIELDS.items():
        if verdict not in (REFUSED, WARNED):
            continue
        document = pod()
        at: Any = document["spec"]
        parts = path.split(".")[1:]
        for part in parts[:-1]:
            if part.endswith("[]"):
                at = at.setdefault(part[:-2], [{}])[0]
            else:
                at = at.setdefault(part, {})
        last = parts[-1]
        at[last.removesuffix("[]")] = [{"name": "x"}] if last.endswith("[]") else {"some": "value"}
        refusals, warnings = review(document, can(allow_privileged=True))
        found = refusals if verdict == REFUSED else warnings
        assert any(line.startswith(path.replace("[]", "[0]")) and text in line for line in found), path


def test_unknown_fields_are_never_dropped_in_silence() -> None:
    _, warnings = review(pod({"inventedLater": 1}, alsoNew={"x": 1}), can())
    assert warnings == [
        "spec.containers[0].alsoNew: unknown to this agent, has no effect",
        "spec.inventedLater: unknown to this agent, has no effect",
    ]


@pytest.mark.parametrize(
    ("spec", "container", "path"),
    [
        ({"hostNetwork": True}, {}, "spec.hostNetwork"),
        ({"hostPID": True}, {}, "spec.hostPID"),
        ({"hostIPC": True}, {}, "spec.hostIPC"),
        ({"volumes": [{"name": "h", "hostPath": {"path": "/x"}}]}, {}, "spec.volumes[0].hostPath"),
        ({}, {"securityContext": {"privileged": True}}, "spec.containers[0].securityContext.privileged"),
        ({}, {"securityContext": {"runAsUser": 0}}, "spec.containers[0].securityContext.runAsUser"),
        ({"securityContext": {"runAsUser": 0}}, {}, "spec.securityContext.runAsUser"),
        ({"securityContext": {"runAsGroup": 0}}, {}, "spec.securityContext.runAsGroup"),
        ({}, {"securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}},
         "spec.containers[0].securityContext.capabilities.add"),
    ],
)  # fmt: skip
def test_what_needs_allow_privileged(spec: dict[str, Any], container: dict[str, Any], path: str) -> None:
    refusals, _ = review(pod(spec, **container), can())
    assert any(line.startswith(path) and "allow_privileged" in line for line in refusals)
    assert review(pod(spec, **container), can(allow_privileged=True))[0] == []


@pytest.mark.parametrize(
    ("spec", "container", "start"),
    [
        ({}, {"command": []}, "spec.containers[0].command: container main needs a command"),
        ({"hostUsers": False}, {}, "spec.hostUsers"),
        ({"os": {"name": "windows"}}, {}, "spec.os.name"),
        ({}, {"tty": True}, "spec.containers[0].tty"),
        ({}, {"ports": [{"containerPort": 80, "hostPort": 8080}]}, "spec.containers[0].ports[0].hostPort"),
        ({}, {"securityContext": {"capabilities": {"drop": ["NONSENSE"]}}},
         "spec.containers[0].securityContext.capabilities.drop: NONSENSE"),
        ({}, {"securityContext": {"seccompProfile": {"type": "Localhost"}}},
         "spec.containers[0].securityContext.seccompProfile"),
        ({"securityContext": {"runAsUser": -1}}, {}, "spec.securityContext.runAsUser: -1"),
        ({}, {"volumeMounts": [{"name": "v", "mountPath": "../x"}]}, "spec.containers[0].volumeMounts[0].mountPath"),
        ({}, {"volumeMounts": [{"name": "v", "mountPath": "/"}]}, "spec.containers[0].volumeMounts[0].mountPath"),
        ({}, {"resources": {"limits": {"memory": "much"}}}, "spec.containers[0].resources.limits.memory"),
        ({"initContainers": [{"name": "i"}]}, {}, "spec.initContainers[0].command"),
    ],
)  # fmt: skip
def test_what_is_refused_everywhere(spec: dict[str, Any], container: dict[str, Any], start: str) -> None:
    refusals, _ = review(pod(spec, **container), can(allow_privileged=True))
    assert [line for line in refusals if line.startswith(start)], refusals


def test_limits_without_cgroups_are_warned_about_and_not_refused() -> None:
    document = pod(resources={"limits": {"cpu": "1", "memory": "64Mi", "ephemeral-storage": "1Gi"}})
    refusals, warnings = review(document, can(limits=set()))
    assert refusals == [] and len(warnings) == 3
    assert all("not enforced" in line for line in warnings)


def test_an_ordinary_agent_runs_containers_as_itself_only() -> None:
    ordinary = can(uid=1000, gid=1000, groups=[27])
    spec = pod()["spec"]
    user = identify(spec, spec["containers"][0], "c", ordinary)
    assert (user.uid, user.gid) == (1000, 1000)
    for context in (
        {"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": True},
        {"supplementalGroups": [27]},
    ):
        assert review(pod({"securityContext": context}), ordinary)[0] == []
    for context in ({"runAsUser": 1001}, {"runAsGroup": 5}, {"fsGroup": 5}):
        (refusal,) = review(pod({"securityContext": context}), ordinary)[0]
        assert refusal.startswith("spec.securityContext") and "run it as root" in refusal
    (refusal,) = review(pod(securityContext={"privileged": True}), can(uid=1000, allow_privileged=True))[0]
    assert "needs an agent that runs as root" in refusal


def test_run_as_non_root_refuses_user_0_of_either_level() -> None:
    spec = {"securityContext": {"runAsUser": 0, "runAsNonRoot": True}}
    with pytest.raises(Refused, match="would run as user 0"):
        identify(spec, {}, "c", can(allow_privileged=True))
    own = {"securityContext": {"runAsNonRoot": False}}
    assert identify(spec, own, "c", can(allow_privileged=True)).uid == 0


def test_quantities() -> None:
    assert [quantity(q) for q in ("500m", "64Mi", "1e3", "2", 2, "1.5Gi", "3k")] == [
        0.5, 64 * 2**20, 1000, 2, 2, 1.5 * 2**30, 3000,
    ]  # fmt: skip
    for wrong in ("", "Mi", "1.2.3", "5 Mi", "1X"):
        with pytest.raises(ValueError, match=r".*"):
            quantity(wrong)


def test_limits_in_both_versions_of_cgroups() -> None:
    limits = Limits(memory=1 << 20, cpu=0.5, cpu_request=0.25, pids=10)
    assert limits.settings("memory", 2)[0] == ("memory.max", "1048576", True)
    assert limits.settings("memory", 1)[0] == ("memory.limit_in_bytes", "1048576", True)
    assert ("cpu.max", "50000 100000", True) in limits.settings("cpu", 2)
    assert ("cpu.cfs_quota_us", "50000", True) in limits.settings("cpu", 1)
    assert ("cpu.shares", "256", False) in limits.settings("cpu", 1)
    assert limits.settings("pids", 2) == [("pids.max", "10", True)]


def test_capabilities_are_the_kernels() -> None:
    assert capability_numbers(["NET_RAW", "CAP_CHOWN"]) == [0, 13]
    assert len(capability_numbers(["ALL"])) == 41
    assert CHECKED  # the verdict whose texts say what is looked at
