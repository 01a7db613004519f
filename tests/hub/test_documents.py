"""Documents: what goes out, what stays, and that equal content has equal versions."""

import tracemalloc

import orjson

from hub.documents import (
    Document,
    config_key,
    pod_key,
    references,
    render_config,
    render_pod,
    split_config_key,
    split_pod_key,
    trim_spec,
)
from hub.objects import CONFIGMAPS, SECRETS
from tests.hub.hub_fixture import pod


def test_the_order_of_fields_does_not_change_a_version() -> None:
    obj = pod("p", "n", uid="u")
    turned = orjson.loads(orjson.dumps(obj))
    turned["spec"] = dict(reversed(list(turned["spec"].items())))
    assert render_pod(obj) == render_pod(turned)
    assert Document("k", render_pod(obj)).version == Document("k", render_pod(turned)).version


def test_status_and_what_is_the_clouds_own_do_not_change_a_version() -> None:
    obj = pod("p", "n", uid="u")
    before = render_pod(obj)
    obj["status"]["phase"] = "Running"
    obj["metadata"].update(
        resourceVersion="7", generation=3, managedFields=[{}], ownerReferences=[{"uid": "x"}]
    )
    obj["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    obj["spec"].update(
        tolerations=[{"operator": "Exists"}],
        affinity={"nodeAffinity": {}},
        nodeSelector={"a": "b"},
        schedulerName="default-scheduler",
        priority=0,
        dnsPolicy="ClusterFirst",
        enableServiceLinks=True,
        serviceAccountName="default",
        securityContext={},
        hostNetwork=False,
    )
    obj["spec"]["containers"][0].update(
        resources={}, terminationMessagePath="/dev/termination-log", terminationMessagePolicy="File"
    )
    assert render_pod(obj) == before


def test_fields_unknown_here_and_values_off_their_default_reach_the_agent() -> None:
    spec = trim_spec(
        {
            "containers": [{"name": "a", "volumeDevices": [{}], "terminationMessagePath": "/x"}],
            "runtimeClassName": "gvisor",
            "dnsPolicy": "None",
            "hostNetwork": True,
            "inventedTomorrow": {"x": 1},
            "overhead": None,
        }
    )
    assert spec == {
        "containers": [{"name": "a", "volumeDevices": [{}], "terminationMessagePath": "/x"}],
        "runtimeClassName": "gvisor",
        "dnsPolicy": "None",
        "hostNetwork": True,
        "inventedTomorrow": {"x": 1},
    }


def test_a_deletion_is_part_of_the_document() -> None:
    obj = pod("p", "n", uid="u")
    obj["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z", deletionGracePeriodSeconds=5)
    assert orjson.loads(render_pod(obj))["del"] == {"grace": 5}


def test_every_way_to_refer_to_a_configmap_or_secret_is_found() -> None:
    spec = {
        "initContainers": [{"envFrom": [{"configMapRef": {"name": "c1"}}, {"secretRef": {"name": "s1"}}]}],
        "containers": [
            {
                "env": [
                    {"name": "A", "value": "x"},
                    {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c2", "key": "k"}}},
                    {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s2", "key": "k"}}},
                    {"name": "D", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ]
            }
        ],
        "volumes": [
            {"name": "v", "configMap": {"name": "c3"}},
            {"name": "w", "secret": {"secretName": "s3"}},
            {"name": "x", "emptyDir": {}},
            {
                "name": "y",
                "projected": {"sources": [{"configMap": {"name": "c4"}}, {"secret": {"name": "s4"}}]},
            },
        ],
        "imagePullSecrets": [{"name": "s5"}],
    }
    found = references("ns", spec)
    assert found == {f"configmap/ns/c{i}" for i in range(1, 5)} | {f"secret/ns/s{i}" for i in range(1, 6)}


def test_keys_say_what_they_name() -> None:
    assert split_pod_key(pod_key("ns", "n", "u")) == ("ns", "n", "u")
    assert split_pod_key("configmap/ns/n") is None
    assert split_config_key(config_key(SECRETS, "ns", "n")) == (SECRETS, "ns", "n")
    assert split_config_key(config_key(CONFIGMAPS, "ns", "n")) == (CONFIGMAPS, "ns", "n")


def test_configs_carry_their_data_and_secrets_their_type() -> None:
    meta = {"namespace": "ns", "name": "n"}
    cm = orjson.loads(render_config(CONFIGMAPS, {"metadata": meta, "data": {"a": "b"}, "immutable": True}))
    assert cm == {"kind": "ConfigMap", "ns": "ns", "name": "n", "data": {"a": "b"}, "binaryData": {}}
    secret = orjson.loads(render_config(SECRETS, {"metadata": meta, "data": {"a": "Yg=="}, "type": "x/y"}))
    assert secret == {"kind": "Secret", "ns": "ns", "name": "n", "type": "x/y", "data": {"a": "Yg=="}}


def test_bodies_take_no_more_memory_than_their_bytes() -> None:
    """They are kept, and the serializer's buffers are several times as large."""
    obj = pod("p", "n", uid="u")
    obj["metadata"]["labels"] = {"pad": "x" * 1200}
    config = {"metadata": {"namespace": "d", "name": "c"}, "data": {"pad": "x" * 1200}}
    tracemalloc.start()
    try:
        bodies = [render_pod(obj) for _ in range(100)] + [
            render_config(CONFIGMAPS, config) for _ in range(100)
        ]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 1.2 * sum(map(len, bodies))
