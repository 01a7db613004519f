"""What of a Pod the container runtime honours, refuses and warns about, and how it asks the engine for it."""

import re
from typing import Any

import pytest

from edgelite.runtimes import process_fields
from edgelite.runtimes.base import Launch, Mount, RuntimeFailure
from edgelite.runtimes.container_fields import FIELDS
from edgelite.runtimes.container_plan import Site, create_body
from edgelite.runtimes.container_review import review

SITE = Site("owner", "boot", "host", 1000, 3, 100, [("nofile", 10)])
IMAGE = {"Id": "sha256:1", "Config": {"User": ""}}


def pod(spec: dict[str, Any] | None = None, **container: Any) -> dict[str, Any]:
    entry = {"name": "main", "image": "a", **container}
    return {"ns": "d", "name": "p", "uid": "u", "spec": {"containers": [entry], **(spec or {})}}


def plan(
    spec: dict[str, Any] | None = None,
    image: dict[str, Any] = IMAGE,
    mounts: list[Mount] | None = None,
    site: Site = SITE,
    command: list[str] | None = None,
    args: list[str] | None = None,
    **container: Any,
) -> dict[str, Any]:
    doc = pod(spec, **container)
    entry = doc["spec"]["containers"][0]
    launch = Launch(doc, entry, 3, command or [], args or [], [("A", "b=c")], mounts or [], "/pods/u", {})
    return create_body(launch, image, site)


def test_every_field_that_the_process_runtime_knows_is_known() -> None:
    missing = [p for p in process_fields.FIELDS if not any(p.startswith(known) for known in FIELDS)]
    assert missing == []


def test_a_plain_pod_is_neither_refused_nor_warned_about() -> None:
    spec = {
        "dnsPolicy": "ClusterFirst",
        "hostNetwork": False,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "securityContext": {},
        "volumes": [{"name": "v", "emptyDir": {}}],
    }
    container = {
        "ports": [{"containerPort": 80, "protocol": "TCP"}],
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        "securityContext": {
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
            "procMount": "Default",
        },
    }
    assert review(pod(spec, **container), False, "host") == ([], [])


PRIVILEGED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"hostNetwork": True}, {}, "spec.hostNetwork"),
    ({"hostPID": True}, {}, "spec.hostPID"),
    ({"hostIPC": True}, {}, "spec.hostIPC"),
    ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, {}, "spec.volumes[0].hostPath"),
    ({}, {"securityContext": {"privileged": True}}, "spec.containers[0].securityContext.privileged"),
    ({}, {"securityContext": {"capabilities": {"add": ["CAP_SYS_ADMIN"]}}}, "CAP_SYS_ADMIN"),
    ({}, {"securityContext": {"capabilities": {"add": ["all"]}}}, "all"),
    (
        {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
        {},
        "spec.securityContext.seccompProfile",
    ),
    ({}, {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}, "appArmorProfile"),
]


@pytest.mark.parametrize(("spec", "container", "name"), PRIVILEGED)
def test_what_reaches_beyond_the_container_needs_the_nodes_consent(
    spec: dict[str, Any], container: dict[str, Any], name: str
) -> None:
    refusals, _ = review(pod(spec, **container), False, "host")
    assert len(refusals) == 1 and name in refusals[0] and "allow_privileged" in refusals[0]
    assert review(pod(spec, **container), True, "host")[0] == []


@pytest.mark.parametrize(
    ("spec", "container", "path"),
    [
        ({"shareProcessNamespace": True}, {}, "spec.shareProcessNamespace"),
        ({"hostUsers": False}, {}, "spec.hostUsers"),
        ({"os": {"name": "windows"}}, {}, "spec.os.name"),
        ({"runtimeClassName": "x"}, {}, "spec.runtimeClassName"),
        ({"securityContext": {"sysctls": [{"name": "a", "value": "b"}]}}, {}, "spec.securityContext.sysctls"),
        ({"securityContext": {"supplementalGroupsPolicy": "Strict"}}, {}, "supplementalGroupsPolicy"),
        ({}, {"image": ""}, "spec.containers[0].image"),
        ({}, {"volumeDevices": [{"name": "x"}]}, "spec.containers[0].volumeDevices"),
        ({}, {"volumeMounts": [{"name": "v", "mountPath": "/"}]}, "volumeMounts[0].mountPath"),
        ({}, {"volumeMounts": [{"name": "v", "mountPath": "/a:b"}]}, "volumeMounts[0].mountPath"),
        (
            {},
            {"volumeMounts": [{"name": "v", "mountPath": "/a", "recursiveReadOnly": "Enabled"}]},
            "recursive",
        ),
        ({}, {"ports": [{"containerPort": 80, "hostPort": 81}]}, "spec.containers[0].ports[0].hostPort"),
        ({}, {"resources": {"limits": {"cpu": "many"}}}, "spec.containers[0].resources.limits.cpu"),
        ({}, {"securityContext": {"procMount": "Unmasked"}}, "spec.containers[0].securityContext.procMount"),
        ({}, {"securityContext": {"capabilities": {"drop": ["FLY"]}}}, "FLY"),
        ({}, {"securityContext": {"seLinuxOptions": {"level": "s0"}}}, "seLinuxOptions"),
        ({}, {"securityContext": {"seccompProfile": {"type": "Localhost"}}}, "seccompProfile"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    spec: dict[str, Any], container: dict[str, Any], path: str
) -> None:
    refusals, _ = review(pod(spec, **container), True, "host")
    assert len(refusals) == 1 and path in refusals[0]


@pytest.mark.parametrize(
    ("spec", "container", "path"),
    [
        ({"hostname": "x"}, {}, "spec.hostname"),
        ({"dnsPolicy": "None"}, {}, "spec.dnsPolicy"),
        ({"fieldOfTomorrow": 1}, {}, "spec.fieldOfTomorrow"),
        ({}, {"fieldOfTomorrow": 1}, "spec.containers[0].fieldOfTomorrow"),
        ({}, {"image": "Not Valid"}, "spec.containers[0].image"),
        ({}, {"resources": {"limits": {"example.com/gpu": "1"}}}, "example.com/gpu"),
        ({}, {"ports": [{"containerPort": 80, "hostIP": "127.0.0.1"}]}, "ports[0].hostIP"),
        (
            {},
            {"env": [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]},
            "containers[0].env:",
        ),
        ({}, {"envFrom": [{"secretRef": {"name": "s"}}]}, "containers[0].envFrom:"),
    ],
)
def test_what_has_no_effect_is_warned_about_by_name(
    spec: dict[str, Any], container: dict[str, Any], path: str
) -> None:
    refusals, warnings = review(pod(spec, **container), False, "host")
    assert refusals == [] and len(warnings) == 1 and path in warnings[0]


def test_init_containers_are_judged_as_containers() -> None:
    init = {"name": "i", "image": "a", "securityContext": {"privileged": True}, "volumeDevices": [{}]}
    refusals, _ = review(pod({"initContainers": [init]}), False, "host")
    assert [r.partition(":")[0] for r in refusals] == [
        "spec.initContainers[0].volumeDevices",
        "spec.initContainers[0].securityContext.privileged",
    ]


def test_outside_the_hosts_network_it_is_said_what_does_not_reach_what() -> None:
    spec = {
        "containers": [{"name": n, "image": "a", "livenessProbe": {"tcpSocket": {"port": 1}}} for n in "ab"]
    }
    _, warnings = review(pod(spec), False, "bridge")
    assert [re.sub(r":.*", "", w) for w in warnings] == [
        "spec.containers",
        "spec.containers[0].livenessProbe",
        "spec.containers[1].livenessProbe",
    ]


def test_the_body_says_whose_the_container_is_and_what_it_runs() -> None:
    body = plan(command=["a", "b"], args=["c"], workingDir="/w", tty=True, stdin=True)
    assert body["Labels"] == {
        "dev.cloudhub.agent": "owner",
        "dev.cloudhub.uid": "u",
        "dev.cloudhub.container": "main",
        "dev.cloudhub.attempt": "3",
        "dev.cloudhub.boot": "boot",
        "dev.cloudhub.image": "a",
        "dev.cloudhub.namespace": "d",
        "dev.cloudhub.pod": "p",
    }
    assert (body["Image"], body["Entrypoint"], body["Cmd"]) == ("sha256:1", ["a", "b"], ["c"])
    assert (body["Env"], body["WorkingDir"], body["Tty"], body["OpenStdin"]) == (["A=b=c"], "/w", True, True)
    host = body["HostConfig"]
    assert host["NetworkMode"] == "host" and host["RestartPolicy"] == {"Name": "no"}
    assert host["Ulimits"] == [{"Name": "nofile", "Soft": 10, "Hard": 10}]
    assert host["LogConfig"]["Config"] == {"max-size": "1000", "max-file": "3"}


def test_without_a_command_the_images_entry_point_is_kept_and_with_one_its_arguments_are_not() -> None:
    assert "Entrypoint" not in plan(args=["x"]) and plan(args=["x"])["Cmd"] == ["x"]
    assert "Cmd" not in plan() and "Entrypoint" not in plan()
    assert plan(command=["x"])["Cmd"] == []


def test_limits_become_the_engines() -> None:
    limits = {"limits": {"cpu": "500m", "memory": "64Mi"}}
    host = plan(resources=limits)["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (64 << 20, 64 << 20, 500_000_000)
    assert host["CpuShares"] == 512
    host = plan(resources={"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"cpu": "1m"}})[
        "HostConfig"
    ]
    assert (host["CpuShares"], host["NanoCpus"], "Memory" in host) == (256, 10_000_000, False)
    assert plan()["HostConfig"]["CpuShares"] == 2


def test_mounts_are_binds_and_only_the_agents_own_are_relabelled() -> None:
    mounts = [Mount("c", "/p/c", "/etc/c", True), Mount("h", "/srv", "data", False)]
    spec = {"volumes": [{"name": "c", "configMap": {}}, {"name": "h", "hostPath": {"path": "/srv"}}]}
    assert plan(spec, mounts=mounts)["HostConfig"]["Binds"] == ["/p/c:/etc/c:ro,z", "/srv:/data:rw"]
    with pytest.raises(RuntimeFailure, match="colon") as caught:
        plan(mounts=[Mount("c", "/p:q", "/etc/c", True)])
    assert caught.value.reason == "CreateContainerConfigError"


def test_ports_are_published_only_outside_the_hosts_network() -> None:
    ports = [
        {"containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1"},
        {"containerPort": 53, "protocol": "UDP"},
    ]
    assert "ExposedPorts" not in plan(ports=ports)
    bridge = Site("owner", "boot", "bridge", 1000, 3, 100, [])
    body = plan({"hostname": "h"}, site=bridge, ports=ports)
    assert body["ExposedPorts"] == {"80/tcp": {}, "53/udp": {}} and body["Hostname"] == "h"
    assert body["HostConfig"]["PortBindings"] == {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]}
    assert plan({"hostNetwork": True}, site=bridge)["HostConfig"]["NetworkMode"] == "host"


def test_security_contexts_reach_the_engine() -> None:
    context = {
        "runAsUser": 1000,
        "privileged": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
        "seccompProfile": {"type": "Unconfined"},
    }
    pods = {"runAsUser": 5, "runAsGroup": 7, "fsGroup": 9, "supplementalGroups": [3]}
    body = plan({"securityContext": pods, "hostPID": True, "hostIPC": True}, securityContext=context)
    host = body["HostConfig"]
    assert body["User"] == "1000:7" and host["GroupAdd"] == ["3", "9"]
    assert (host["Privileged"], host["ReadonlyRootfs"], host["PidMode"], host["IpcMode"]) == (
        True,
        True,
        "host",
        "host",
    )
    assert (host["CapAdd"], host["CapDrop"]) == (["NET_ADMIN"], ["ALL"])
    assert host["SecurityOpt"] == ["no-new-privileges", "seccomp=unconfined"]


@pytest.mark.parametrize(
    ("images", "context", "user"),
    [
        ("", {}, ""),
        ("app:app", {}, "app:app"),
        ("app:app", {"runAsUser": 3}, "3"),
        ("app:app", {"runAsGroup": 4}, "app:4"),
        ("", {"runAsGroup": 4}, "0:4"),
        ("12", {"runAsNonRoot": True}, "12"),
        ("", {"runAsNonRoot": True, "runAsUser": 3}, "3"),
        ("", {"runAsNonRoot": True}, None),
        ("root", {"runAsNonRoot": True}, None),
        ("00:5", {"runAsNonRoot": True}, None),
        ("app", {"runAsNonRoot": True}, None),
        ("12", {"runAsNonRoot": True, "runAsUser": 0}, None),
    ],
)
def test_the_user_is_the_pods_else_the_images_and_checked(
    images: str, context: dict[str, Any], user: str | None
) -> None:
    image = {"Id": "x", "Config": {"User": images}}
    if user is not None:
        assert plan(image=image, securityContext=context)["User"] == user
        return
    with pytest.raises(RuntimeFailure, match="runAsNonRoot") as caught:
        plan(image=image, securityContext=context)
    assert caught.value.reason == "CreateContainerConfigError"
