from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hub.api import decode, defaults, own_types, schema, validation
from hub.api.schema import Resource
from hub.errors import BadRequest, Invalid
from security import join

META = {"name": "x", "namespace": "d"}


def kind(name: str) -> Resource:
    return next(r for r in schema.RESOURCES if r.kind == name)


def ready(name: str, text: str, **meta: Any) -> dict[str, Any]:
    """A decoded, defaulted object of YAML; metadata is filled in where the text has none."""
    r = kind(name)
    value = yaml.safe_load(text) or {}
    own = META if r.namespaced else {"name": "x"}
    value["metadata"] = {**own, **value.get("metadata", {}), **meta}
    decoded = decode.decode(r, value)
    assert decoded.problems == []
    defaults.apply(r, decoded.object)
    return decoded.object


def causes(name: str, text: str) -> list[str]:
    return [str(c) for c in validation.validate_create(kind(name), ready(name, text))]


def changes(name: str, old: str, new: str) -> list[str]:
    meta = {"uid": "u", "resourceVersion": "1"}
    return [
        str(c)
        for c in validation.validate_update(kind(name), ready(name, new, **meta), ready(name, old, **meta))
    ]


GOOD_POD = "spec: {containers: [{name: a, image: b}]}"


@pytest.mark.parametrize(
    ("spec", "cause"),
    [
        ("{}", "spec.containers: Required value"),
        ("{containers: [{image: b}]}", "spec.containers[0].name: Required value"),
        ("{containers: [{name: a}]}", "spec.containers[0].image: Required value"),
        (
            "{containers: [{name: a, image: b}, {name: a, image: c}]}",
            'spec.containers[1].name: Duplicate value: "a"',
        ),
        (
            "{restartPolicy: Sometimes, containers: [{name: a, image: b}]}",
            'spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure"',
        ),
        (
            "{containers: [{name: a, image: b, volumeMounts: [{name: v, mountPath: /v}]}]}",
            'spec.containers[0].volumeMounts[0].name: Not found: "v"',
        ),
        (
            "{volumes: [{name: v, emptyDir: {}, hostPath: {path: /}}], containers: [{name: a, image: b}]}",
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (
            "{volumes: [{name: v, configMap: {}}], containers: [{name: a, image: b}]}",
            "spec.volumes[0].configMap.name: Required value",
        ),
        (
            "{volumes: [{name: v, secret: {secretName: s, defaultMode: 1000}}], containers: [{name: a, image: b}]}",
            "spec.volumes[0].secret.defaultMode: Invalid value: 1000: must be a number between 0 and 0777 (octal), "
            "both inclusive",
        ),
        (
            "{containers: [{name: a, image: b, ports: [{containerPort: 70000}]}]}",
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            "{containers: [{name: a, image: b, resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}}]}",
            'spec.containers[0].resources.requests: Invalid value: "2Gi": must be less than or equal to memory '
            "limit of 1Gi",
        ),
        (
            "{containers: [{name: a, image: b, resources: {requests: {cpu: -1}}}]}",
            'spec.containers[0].resources.requests.cpu: Invalid value: "-1": must be greater than or equal to 0',
        ),
        (
            "{containers: [{name: a, image: b, livenessProbe: {periodSeconds: 3}}]}",
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            "{containers: [{name: a, image: b, livenessProbe: {successThreshold: 2, exec: {command: [x]}}}]}",
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            "{containers: [{name: a, image: b, env: [{name: 'A=B', value: x}]}]}",
            'spec.containers[0].env[0].name: Invalid value: "A=B": a valid environment variable name must consist '
            "only of printable ASCII characters other than '='",
        ),
        (
            "{containers: [{name: a, image: b, env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.x}}}]}]}",
            'spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: "spec.x": supported values: ',
        ),
        (
            "{tolerations: [{operator: Equal, value: x}], containers: [{name: a, image: b}]}",
            'spec.tolerations[0].operator: Invalid value: "Equal": operator must be Exists when `key` is empty',
        ),
        (
            "{initContainers: [{name: i, image: b, livenessProbe: {exec: {command: [x]}}}], "
            "containers: [{name: a, image: b}]}",
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers",
        ),
    ],
)
def test_a_pod_that_breaks_a_rule_is_told_in_kubernetes_words(spec: str, cause: str) -> None:
    found = causes("Pod", f"spec: {spec}")
    assert any(text.startswith(cause) for text in found), found
    assert len(found) == 1, found


def test_a_full_pod_is_valid() -> None:
    text = """
metadata: {labels: {app.kubernetes.io/name: x}, annotations: {a/B: "free text"}}
spec:
  nodeSelector: {kubernetes.io/os: linux}
  tolerations: [{operator: Exists}, {key: a, value: b, effect: NoExecute, tolerationSeconds: 3}]
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Gt, values: ["1"]}]}]
  securityContext: {runAsUser: 1000, fsGroup: 1, supplementalGroups: [1]}
  initContainers: [{name: i, image: b}, {name: s, image: b, restartPolicy: Always, startupProbe: {exec: {command: [x]}}}]
  volumes:
  - {name: c, configMap: {name: c, items: [{key: k, path: a/b, mode: 0400}], optional: true}}
  - {name: s, secret: {secretName: s}}
  - {name: e, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: h, hostPath: {path: /var}}
  - {name: d, downwardAPI: {items: [{path: l, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: p, projected: {sources: [{configMap: {name: c}}, {secret: {name: s}}]}}
  containers:
  - name: a
    image: b
    command: [sh]
    ports: [{name: http, containerPort: 80}]
    env:
    - {name: A, value: b}
    - {name: B, valueFrom: {configMapKeyRef: {name: c, key: k}}}
    - {name: C, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['a/b']"}}}
    - {name: D, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    envFrom: [{prefix: P_, configMapRef: {name: c}}, {secretRef: {name: s, optional: true}}]
    resources: {limits: {cpu: 1, memory: 1Gi, example.com/gpu: 1}}
    volumeMounts: [{name: c, mountPath: /c, subPath: x/y}, {name: e, mountPath: /e}]
    livenessProbe: {httpGet: {port: http, httpHeaders: [{name: X-A, value: b}]}}
    readinessProbe: {tcpSocket: {port: 80}, successThreshold: 3}
    lifecycle: {preStop: {exec: {command: [x]}}, postStart: {sleep: {seconds: 1}}}
"""
    assert causes("Pod", text) == []


def test_a_host_process_needs_no_image() -> None:
    text = "spec: {containers: [{name: a, command: [x]}]}"
    assert causes("Pod", "metadata: {labels: {cloudhub.dev/runtime: process}}\n" + text) == []


def test_metadata_is_checked() -> None:
    big = "x" * (256 * 1024)
    text = (
        f"metadata: {{name: A_, labels: {{'a b': c, d: '-'}}, annotations: {{'/x': y, z: {big}}}, finalizers: [mine],\n"
        "  ownerReferences: [{apiVersion: v1, kind: Pod, name: a, uid: b, controller: true},"
        " {kind: Pod, name: c, uid: d, apiVersion: v1, controller: true}]}\n"
    )
    found = [
        c.field + " " + c.reason
        for c in validation.validate_create(kind("Pod"), ready("Pod", text + GOOD_POD))
    ]
    assert found == [
        "metadata.name FieldValueInvalid",
        "metadata.labels FieldValueInvalid",
        "metadata.labels FieldValueInvalid",
        "metadata.annotations FieldValueInvalid",
        "metadata.annotations FieldValueTooLong",
        "metadata.ownerReferences FieldValueInvalid",
        "metadata.finalizers FieldValueInvalid",
    ]


def test_a_name_error_is_worded_like_kubernetes() -> None:
    with pytest.raises(Invalid) as e:
        validation.check_create(kind("ConfigMap"), ready("ConfigMap", "metadata: {name: A}"))
    assert e.value.message == (
        'ConfigMap "A" is invalid: metadata.name: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of '
        "lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. "
        "'example.com', regex used for validation is "
        r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
    )
    status = e.value.status()
    assert (status["code"], status["reason"]) == (422, "Invalid")
    assert status["details"]["causes"][0]["field"] == "metadata.name"


def test_namespaces_of_objects_and_of_cluster_kinds() -> None:
    node = ready("Node", "{}", namespace="d")
    assert [str(c) for c in validation.validate_create(kind("Node"), node)] == [
        "metadata.namespace: Forbidden: not allowed on this type"
    ]
    namespace = ready("Namespace", "metadata: {name: a.b}")
    assert "RFC 1123 label" in str(validation.validate_create(kind("Namespace"), namespace)[0])


@pytest.mark.parametrize("name", ["Deployment", "ReplicaSet", "DaemonSet"])
def test_a_workload_must_select_its_template_and_restart_always(name: str) -> None:
    template = "template: {metadata: {labels: {a: b}}, spec: {%scontainers: [{name: a, image: b}]}}"
    good = "spec: {selector: {matchLabels: {a: b}}, %s}" % (template % "")
    assert causes(name, good) == []
    assert causes(name, "spec: {%s}" % (template % "")) == ["spec.selector: Required value"]
    assert causes(name, good.replace("{matchLabels: {a: b}}", "{}")) == [
        f"spec.selector: Invalid value: {{}}: empty selector is invalid for {name.lower()}"
    ]
    assert causes(name, good.replace("labels: {a: b}", "labels: {a: c}")) == [
        'spec.template.metadata.labels: Invalid value: {"a":"c"}: `selector` does not match template `labels`'
    ]
    never = "spec: {selector: {matchLabels: {a: b}}, %s}" % (template % "restartPolicy: Never, ")
    assert causes(name, never) == [
        'spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"'
    ]
    assert changes(name, good, good) == []
    moved = good.replace("a: b", "a: c")
    assert changes(name, good, moved) == [
        'spec.selector: Invalid value: {"matchLabels":{"a":"c"}}: field is immutable'
    ]


def test_a_rolling_update_must_be_able_to_move() -> None:
    base = (
        "spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: "
        "[{name: a, image: b}]}}, strategy: %s}"
    )
    stuck = base % "{rollingUpdate: {maxSurge: 0, maxUnavailable: 0%}}"
    assert causes("Deployment", stuck) == [
        'spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "0%": may not be 0 when `maxSurge` is 0'
    ]
    assert "100%" in causes("Deployment", base % "{rollingUpdate: {maxUnavailable: 101%}}")[0]
    assert "Forbidden" in causes("Deployment", base % "{type: Recreate, rollingUpdate: {}}")[0]


def test_of_a_pod_only_images_tolerations_and_deadlines_change() -> None:
    pod = "spec: {nodeName: n, activeDeadlineSeconds: 5, tolerations: [{key: a, operator: Exists}], containers: [{name: a, image: b}]}"
    assert (
        changes("Pod", pod, pod.replace("image: b", "image: c").replace("[{key", "[{operator: Exists}, {key"))
        == []
    )
    assert changes("Pod", pod, pod.replace("nodeName: n", "nodeName: m"))[0].startswith(
        "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
    )
    assert (
        "spec.containers: Forbidden"
        in changes("Pod", pod, pod.replace("[{name", "[{name: z, image: z}, {name"))[0]
    )
    assert "existing toleration" in changes("Pod", pod, pod.replace("{key: a, operator: Exists}", ""))[0]
    assert "less than or equal" in changes("Pod", pod, pod.replace("Seconds: 5", "Seconds: 6"))[0]


def test_metadata_that_is_the_servers_cannot_change() -> None:
    r = kind("ConfigMap")
    old = ready("ConfigMap", "{}", uid="u", resourceVersion="1", creationTimestamp="2024-01-01T00:00:00Z")
    new = copy.deepcopy(old)
    new["metadata"] |= {"uid": "v", "creationTimestamp": "2025-01-01T00:00:00Z"}
    assert [c.field for c in validation.validate_update(r, new, old)] == [
        "metadata.uid",
        "metadata.creationTimestamp",
    ]
    old["metadata"]["deletionTimestamp"] = "2024-01-01T00:00:00Z"
    new = copy.deepcopy(old)
    new["metadata"]["finalizers"] = ["a/b"]
    assert "no new finalizers" in str(validation.validate_update(r, new, old)[0])


def test_config_maps_and_secrets() -> None:
    assert "data[a b]: Invalid value" in causes("ConfigMap", "data: {'a b': c}")[0]
    assert "duplicate of key" in causes("ConfigMap", "data: {a: c}\nbinaryData: {a: ''}")[0]
    assert causes("ConfigMap", "data: {a: %s}" % ("x" * (1 << 20))) == []
    assert causes("ConfigMap", "data: {a: %sy}" % ("x" * (1 << 20))) == [
        ": Too long: may not be more than 1048576 bytes"
    ]
    assert causes("Secret", "type: kubernetes.io/tls\ndata: {tls.crt: ''}") == [
        "data[tls.key]: Required value"
    ]
    redacted = causes(
        "Secret", "type: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: hidden}"
    )
    assert "redacted" in redacted[0]
    assert "hidden" not in redacted[0]
    frozen = "field is immutable when `immutable` is set"
    assert changes("ConfigMap", "immutable: true\ndata: {a: b}", "immutable: true\ndata: {a: c}") == [
        f"data: Forbidden: {frozen}"
    ]
    assert changes("Secret", "immutable: true", "{}") == [f"immutable: Forbidden: {frozen}"]
    assert changes("Secret", "type: a/b", "type: a/c") == ['type: Invalid value: "a/c": field is immutable']


def test_join_tokens_name_a_node_or_a_pool_and_never_change() -> None:
    assert causes("JoinToken", "spec: {node: a}") == []
    assert causes("JoinToken", "spec: {pool: a, count: 3, site: s, ttlSeconds: 60}") == []
    for text in ("{}", "{node: a, pool: b, count: 1}", "{pool: a}", "{pool: a, count: 0}", "{node: A}"):
        assert causes("JoinToken", f"spec: {text}"), text
    assert "2592000" in causes("JoinToken", "spec: {node: a, ttlSeconds: 2592001}")[0]
    most = join.POOL_COUNT_MAX
    assert causes("JoinToken", f"spec: {{pool: a, count: {most}}}") == []
    assert str(most) in causes("JoinToken", f"spec: {{pool: a, count: {most + 1}}}")[0]
    count = own_types.DEFINITIONS["dev.cloudhub.v1alpha1.JoinTokenSpec"]["properties"]["count"]
    assert f"1 to {most}." in count["description"]
    assert "field is immutable" in changes("JoinToken", "spec: {node: a}", "spec: {node: b}")[0]


def test_nodes_leases_and_events() -> None:
    taints = "spec: {taints: [{key: a, effect: NoSchedule}, {key: a, effect: NoSchedule}, {key: b}]}"
    assert [c.split(":")[0] for c in causes("Node", taints)] == ["spec.taints[1]", "spec.taints[2].effect"]
    assert "must be greater than 0" in causes("Lease", "spec: {leaseDurationSeconds: 0}")[0]
    assert causes("Event", "involvedObject: {namespace: d, name: a}") == []
    assert "does not match event.namespace" in causes("Event", "involvedObject: {namespace: e}")[0]


def test_delete_options_bindings_and_scales() -> None:
    assert validation.validate_delete_options({"gracePeriodSeconds": 0, "dryRun": ["All"]}) == []
    assert len(validation.validate_delete_options({"propagationPolicy": "X", "dryRun": ["Some"]})) == 2
    assert validation.validate_delete_options({"propagationPolicy": "Orphan", "orphanDependents": True})
    assert [str(c) for c in validation.validate_binding({"target": {}})] == ["target.name: Required value"]
    assert validation.validate_binding({"target": {"kind": "Node", "name": "n"}}) == []
    assert validation.validate_scale({"spec": {"replicas": -1}})


def test_generated_names_fit_a_label() -> None:
    name = validation.generated_name("web-" * 40, bytes(range(5)))
    assert len(name) == 63
    assert validation.generated_name("a-", b"\x00\x01\x02\x03\x04") == "a-bcdfg"
    with pytest.raises(ValueError, match="entropy"):
        validation.generated_name("a", b"")


FIELDS = [
    "name",
    "image",
    "containers",
    "volumes",
    "env",
    "resources",
    "limits",
    "selector",
    "template",
    "metadata",
]
FIELDS += [
    "spec",
    "httpGet",
    "livenessProbe",
    "valueFrom",
    "fieldRef",
    "strategy",
    "rollingUpdate",
    "taints",
    "data",
]
values = st.recursive(
    st.text(max_size=2) | st.integers(-2, 2) | st.booleans(),
    lambda t: st.lists(t, max_size=2) | st.dictionaries(st.sampled_from(FIELDS), t, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from(schema.RESOURCES), st.dictionaries(st.sampled_from(FIELDS), values, max_size=3))
def test_whatever_decodes_can_be_defaulted_twice_and_validated(r: Resource, value: dict[str, Any]) -> None:
    try:
        obj = decode.decode(r, value).object
    except BadRequest:
        return
    defaults.apply(r, obj)
    once = copy.deepcopy(obj)
    defaults.apply(r, obj)
    assert obj == once
    validation.validate_create(r, obj)
    validation.validate_update(r, obj, once)
    assert obj == once


def walk_minimal(node: schema.Node, depth: int) -> Any:
    """A value of the node's type in which every field is present and empty."""
    if node.kind == "struct":
        fields = schema.struct(node.ref).fields
        return {k: walk_minimal(n, depth - 1) for k, n in fields.items()} if depth else {}
    if node.kind == "list":
        return [walk_minimal(node.elem, depth)] if node.elem and depth else []
    if node.kind == "map":
        return {"k": walk_minimal(node.elem, depth)} if node.elem and depth else {}
    empty: dict[str, Any] = {
        "bool": False,
        "int32": 0,
        "int64": 0,
        "number": 0,
        "int-or-string": 0,
        "any": {},
    }
    return empty.get(node.kind, "0" if node.kind == "quantity" else "")


@pytest.mark.parametrize("r", schema.RESOURCES, ids=lambda r: r.qualified)
@pytest.mark.parametrize("depth", range(2, 9))
def test_an_object_with_every_field_empty_never_breaks_the_rules_themselves(r: Resource, depth: int) -> None:
    root = schema.Node("struct", r.definition, None, "", False, False)
    value = walk_minimal(root, depth)
    value |= {"apiVersion": r.api_version, "kind": r.kind}
    text = without_times(value)
    obj = decode.decode(r, text).object
    defaults.apply(r, obj)
    assert validation.validate_create(r, obj)
    validation.validate_update(r, obj, copy.deepcopy(obj))


def without_times(value: Any) -> Any:
    """Empty strings are no times: leaves those fields out."""
    if isinstance(value, dict):
        times = {
            "creationTimestamp",
            "deletionTimestamp",
            "time",
            "startTime",
            "startedAt",
            "finishedAt",
            "expires",
        }
        times |= {"acquireTime", "renewTime", "eventTime", "timeAdded", "lastObservedTime"}
        return {
            k: without_times(v)
            for k, v in value.items()
            if k not in times
            and not k.endswith(("Timestamp", "TransitionTime", "ProbeTime", "HeartbeatTime", "UpdateTime"))
        }
    return [without_times(v) for v in value] if isinstance(value, list) else value
