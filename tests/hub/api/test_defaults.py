from __future__ import annotations

import copy
from typing import Any

from hub.api import defaults, schema


def applied(api_version: str, kind: str, **obj: Any) -> dict[str, Any]:
    r = schema.resource_of(api_version, kind)
    assert r
    full = {"metadata": {"name": "x"}, **copy.deepcopy(obj)}
    defaults.apply(r, full)
    return full


def test_a_pod_gets_what_kubernetes_gives_it() -> None:
    spec = applied("v1", "Pod", spec={"containers": [{"name": "a", "image": "b"}]})["spec"]
    assert spec == {
        "containers": [
            {
                "name": "a",
                "image": "b",
                "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "resources": {},
            }
        ],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "enableServiceLinks": True,
        "preemptionPolicy": "PreemptLowerPriority",
        "priority": 0,
    }


def test_the_hub_adds_no_tolerations() -> None:
    assert "tolerations" not in applied("v1", "Pod", spec={"containers": []})["spec"]


def test_present_values_stay() -> None:
    given = {
        "containers": [
            {
                "name": "a",
                "image": "b",
                "imagePullPolicy": "Never",
                "resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}},
                "livenessProbe": {"exec": {"command": ["x"]}, "periodSeconds": 3, "timeoutSeconds": 0},
                "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 80}],
            }
        ],
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
    }
    pod = applied("v1", "Pod", spec=given)
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    assert (spec["restartPolicy"], spec["terminationGracePeriodSeconds"]) == ("Never", 0)
    assert container["imagePullPolicy"] == "Never"
    assert container["resources"]["requests"] == {"cpu": "1", "memory": "1Gi"}
    assert container["livenessProbe"] == {
        "exec": {"command": ["x"]},
        "periodSeconds": 3,
        "timeoutSeconds": 1,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
    assert [p["protocol"] for p in container["ports"]] == ["UDP", "TCP"]
    assert pod["status"]["qosClass"] == "Burstable"


def test_host_network_takes_the_container_ports() -> None:
    spec = {
        "hostNetwork": True,
        "containers": [{"name": "a", "image": "b", "ports": [{"containerPort": 80}]}],
    }
    assert applied("v1", "Pod", spec=spec)["spec"]["containers"][0]["ports"][0]["hostPort"] == 80


def test_volumes_get_their_modes_and_an_empty_one_is_an_empty_dir() -> None:
    volumes = [
        {"name": "a"},
        {"name": "c", "configMap": {"name": "c"}},
        {"name": "s", "secret": {"secretName": "s", "defaultMode": 256}},
        {"name": "h", "hostPath": {"path": "/"}},
        {
            "name": "d",
            "downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]},
        },
    ]
    got = applied("v1", "Pod", spec={"containers": [], "volumes": volumes})["spec"]["volumes"]
    assert got[0] == {"name": "a", "emptyDir": {}}
    assert got[1]["configMap"]["defaultMode"] == 0o644
    assert got[2]["secret"]["defaultMode"] == 256
    assert got[3]["hostPath"]["type"] == ""
    assert got[4]["downwardAPI"]["items"][0]["fieldRef"]["apiVersion"] == "v1"


def test_qos_classes() -> None:
    both = {"cpu": "1", "memory": "1Gi"}
    assert (
        defaults.qos_class({"containers": [{"resources": {"limits": both, "requests": both}}]})
        == "Guaranteed"
    )
    assert defaults.qos_class({"containers": [{}]}) == "BestEffort"
    mixed = [{"resources": {"limits": both, "requests": both}}, {}]
    assert defaults.qos_class({"containers": mixed}) == "Burstable"


def test_workloads() -> None:
    deployment = applied("apps/v1", "Deployment")["spec"]
    assert {k: deployment[k] for k in ("replicas", "revisionHistoryLimit", "progressDeadlineSeconds")} == {
        "replicas": 1,
        "revisionHistoryLimit": 10,
        "progressDeadlineSeconds": 600,
    }
    assert deployment["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"},
    }
    assert deployment["template"]["spec"]["restartPolicy"] == "Always"
    recreate = applied("apps/v1", "Deployment", spec={"replicas": 0, "strategy": {"type": "Recreate"}})[
        "spec"
    ]
    assert (recreate["strategy"], recreate["replicas"]) == ({"type": "Recreate"}, 0)
    daemon = applied("apps/v1", "DaemonSet")["spec"]
    assert daemon["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    assert applied("apps/v1", "ReplicaSet")["spec"]["replicas"] == 1


def test_string_data_moves_into_data_and_wins() -> None:
    secret = applied("v1", "Secret", data={"a": "eA=="}, stringData={"a": "y", "b": "ü"})
    assert secret["data"] == {"a": "eQ==", "b": "w7w="}
    assert "stringData" not in secret
    assert secret["type"] == "Opaque"


def test_namespaces_nodes_and_tokens() -> None:
    namespace = applied("v1", "Namespace")
    assert namespace["spec"]["finalizers"] == ["kubernetes"]
    assert namespace["metadata"]["labels"] == {"kubernetes.io/metadata.name": "x"}
    assert namespace["status"]["phase"] == "Active"
    node = applied("v1", "Node", status={"capacity": {"cpu": "2"}})
    assert node["status"]["allocatable"] == {"cpu": "2"}
    tokens = ({"node": "a"}, 3600), ({"pool": "p", "count": 2}, 86_400)
    for spec, ttl in tokens:
        token = applied("cloudhub.dev/v1alpha1", "JoinToken", spec=spec)
        assert (token["spec"]["ttlSeconds"], token["spec"]["tenant"]) == (ttl, "default")
