"""Environment, expansion, quantities and payloads; runs on CPython and in the MicroPython VM."""

import json
from binascii import b2a_base64

from edgelite import payload as payloads
from edgelite.podenv import (
    BadReference,
    Environment,
    Library,
    MissingReference,
    NodeFacts,
    check_library_document,
    environment,
    expand,
    field_value,
    pull_secrets,
    qos_class,
    quantity,
    quoted,
    resource_value,
)
from edgelite.podreview import faults, port_of, review
from edgelite.podstatus import duration, rfc3339

NODE = NodeFacts(
    "edge-1",
    [{"type": "Hostname", "address": "edge"}, {"type": "InternalIP", "address": "10.0.0.7"}],
    allocatable={"cpu": "4", "memory": "8Gi"},
)


def b64(data):
    return b2a_base64(data).decode().strip()


def library():
    found = Library()
    config = {
        "kind": "ConfigMap",
        "ns": "n",
        "name": "cfg",
        "data": {"a": "1", "b": "x$(a)"},
        "binaryData": {"bin": b64(b"\xff\x00")},
    }
    secret = {
        "kind": "Secret",
        "ns": "n",
        "name": "sec",
        "data": {"pw": b64(b"hunter2"), "raw": b64(b"\xff\xfe")},
    }
    found.put("ConfigMap", "n", "cfg", json.dumps(config).encode())
    found.put("Secret", "n", "sec", json.dumps(secret).encode())
    return found


def pod(container=None, **spec):
    spec["containers"] = [container or {"name": "app"}]
    return {
        "kind": "Pod",
        "ns": "n",
        "name": "p",
        "uid": "u",
        "labels": {"k": "v", "a": 'q"uote'},
        "annotations": {},
        "spec": spec,
    }


def resolve(container):
    return dict(environment(pod(container), container, library(), NODE).pairs())


def raises(kind, call, *args):
    try:
        call(*args)
    except kind as error:
        return str(error)
    raise AssertionError("it did not raise")


def test_references_expand_as_in_kubernetes():
    table = {"A": "1", "E": ""}
    for text, wanted in (
        ("$(A)", "1"),
        ("x$(A)y$(A)", "x1y1"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(E)", ""),
        ("$(NOPE)", "$(NOPE)"),
        ("$(A", "$(A"),
        ("$A $", "$A $"),
        ("$$", "$"),
        ("", ""),
    ):
        assert expand(text, table.get) == wanted, text


def test_env_sees_what_was_defined_before_it():
    env = resolve(
        {
            "name": "app",
            "env": [
                {"name": "X", "value": "1"},
                {"name": "Y", "value": "$(X)$(Z)"},
                {"name": "Z", "value": "2"},
                {"name": "X", "value": "$(X)3"},
            ],
        }
    )
    assert env == {"X": "13", "Y": "1$(Z)", "Z": "2"}


def test_env_from_comes_first_and_env_wins():
    env = resolve(
        {
            "name": "app",
            "envFrom": [
                {"configMapRef": {"name": "none", "optional": True}},
                {"prefix": "S_", "secretRef": {"name": "pw", "optional": True}},
            ],
            "env": [
                {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "pw"}}},
                {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "b"}}},
                {
                    "name": "NO",
                    "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "no", "optional": True}},
                },
            ],
        }
    )
    assert env == {"PW": "hunter2", "B": "x$(a)"}


def test_missing_references_say_what_is_missing_as_the_kubelet_does():
    one = {
        "name": "app",
        "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "gone", "key": "k"}}}],
    }
    assert raises(MissingReference, resolve, one) == 'configmap "gone" not found'
    two = {"name": "app", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "k"}}}]}
    assert raises(MissingReference, resolve, two) == "couldn't find key k in Secret n/sec"


def test_a_binary_value_cannot_be_an_environment_variable_and_is_not_shown():
    text = raises(
        MissingReference,
        resolve,
        {"name": "app", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "raw"}}}]},
    )
    assert "not UTF-8" in text and "\\xff" not in text


def test_field_references_give_what_the_downward_api_gives():
    doc = pod(serviceAccountName="sa")
    assert field_value(doc, "metadata.labels['k']", NODE) == "v"
    assert field_value(doc, "metadata.labels", NODE) == 'a="q\\"uote"\nk="v"'
    assert field_value(doc, "status.podIP", NODE) == "10.0.0.7"
    assert field_value(doc, "spec.nodeName", NODE) == "edge-1"
    assert field_value(doc, "spec.serviceAccountName", NODE) == "sa"
    assert "status.phase" in raises(BadReference, field_value, doc, "status.phase", NODE)
    assert quoted("a\n\x01") == '"a\\n\\x01"'


def test_quantities_and_resource_references():
    assert quantity("1500m") == 1500000000 and quantity("1.5") == 1500000000
    assert quantity("1Ki") == 1024 * 10**9 and quantity("1e3") == quantity("1k") == quantity(1000)
    for bad in ("", "x", "1.2.3", "1Qi", "--1", "1e99"):
        raises(ValueError, quantity, bad)
    c = {"name": "app", "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "250m"}}}
    assert resource_value(c, {"resource": "limits.memory", "divisor": "1Mi"}, NODE) == "64"
    assert resource_value(c, {"resource": "requests.cpu"}, NODE) == "1"
    assert resource_value(c, {"resource": "requests.cpu", "divisor": "1m"}, NODE) == "250"
    assert resource_value(c, {"resource": "limits.cpu"}, NODE) == "4"


def test_qos_classes():
    both = {"limits": {"cpu": "1", "memory": "1Gi"}}
    assert qos_class({"containers": [{"resources": both}]}) == "Guaranteed"
    assert qos_class({"containers": [{"resources": both}, {}]}) == "Burstable"
    assert qos_class({"containers": [{"resources": {"requests": {"cpu": "1"}}}]}) == "Burstable"
    assert qos_class({"containers": [{}]}) == "BestEffort"


def test_times_are_written_as_kubernetes_writes_them():
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert rfc3339(1709210096.9) == "2024-02-29T12:34:56Z"
    assert rfc3339(4102444799) == "2099-12-31T23:59:59Z"
    assert [duration(s) for s in (10, 80, 300)] == ["10s", "1m20s", "5m0s"]


def test_payloads_follow_items_and_modes():
    volume = {
        "name": "v",
        "configMap": {
            "name": "cfg",
            "defaultMode": 0o400,
            "items": [{"key": "a", "path": "d/e", "mode": 0o600}, {"key": "b", "path": "f"}],
        },
    }
    assert payloads.payload(pod(), volume, library(), NODE) == {"d/e": (b"1", 0o600), "f": (b"x$(a)", 0o400)}
    whole = payloads.payload(pod(), {"name": "v", "configMap": {"name": "cfg"}}, library(), NODE)
    assert sorted(whole) == ["a", "b", "bin"] and whole["bin"] == (b"\xff\x00", 0o644)


def test_projected_volumes_join_their_sources():
    sources = [
        {"secret": {"name": "sec", "items": [{"key": "pw", "path": "s/pw"}]}},
        {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        {"configMap": {"name": "none", "optional": True}},
    ]
    volume = {"name": "v", "projected": {"defaultMode": 0o440, "sources": sources}}
    found = payloads.payload(pod(), volume, library(), NODE)
    assert found == {"s/pw": (b"hunter2", 0o440), "name": (b"p", 0o440)}
    assert payloads.is_secret(volume)


def test_a_payload_never_leaves_its_volume():
    for path in ("../x", "/x", "a/../../x", "..data", "..x/y", "a//b", "."):
        volume = {"name": "v", "configMap": {"name": "cfg", "items": [{"key": "a", "path": path}]}}
        raises(BadReference, payloads.payload, pod(), volume, library(), NODE)
    both = [{"key": "a", "path": "x"}, {"key": "b", "path": "x/y"}]
    volume = {"name": "v", "configMap": {"name": "cfg", "items": both}}
    raises(BadReference, payloads.payload, pod(), volume, library(), NODE)


def test_a_missing_volume_source_names_the_volume():
    volume = {"name": "v", "secret": {"secretName": "gone"}}
    try:
        payloads.payload(pod(), volume, library(), NODE)
    except MissingReference as error:
        assert error.volume == "v" and error.message == 'secret "gone" not found'
    else:
        raise AssertionError("it did not raise")


def test_every_reference_of_a_pod_is_found():
    doc = pod(
        {
            "name": "app",
            "envFrom": [{"configMapRef": {"name": "c1"}}, {"secretRef": {"name": "s1"}}],
            "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s2", "key": "k"}}}],
        },
        volumes=[
            {"name": "v", "secret": {"secretName": "s3"}},
            {"name": "w", "projected": {"sources": [{"configMap": {"name": "c2"}}]}},
        ],
        imagePullSecrets=[{"name": "s4"}],
    )
    wanted = ["configmap/n/c1", "configmap/n/c2", "secret/n/s1", "secret/n/s2", "secret/n/s3", "secret/n/s4"]
    assert sorted(payloads.references(doc)) == wanted


def test_bad_library_documents_are_named_without_their_contents():
    body = json.dumps({"kind": "Secret", "ns": "n", "name": "s", "data": {"k": "hunter2 !"}}).encode()
    text = check_library_document("secret/n/s", body)
    assert text is not None and "k" in text and "hunter2" not in text
    assert check_library_document("secret/n/other", body) is not None
    assert check_library_document("configmap/n/s", b"[]") is not None


def test_pull_secrets_give_logins_and_name_what_is_unusable():
    found = library()
    auths = {
        "auths": {"r.example": {"auth": b64(b"me:pass")}, "q.example": {"username": "u", "password": "p"}}
    }
    doc = {
        "kind": "Secret",
        "ns": "n",
        "name": "pull",
        "data": {".dockerconfigjson": b64(json.dumps(auths).encode())},
    }
    found.put("Secret", "n", "pull", json.dumps(doc).encode())
    logins, unusable = pull_secrets(
        pod(imagePullSecrets=[{"name": "pull"}, {"name": "sec"}, {"name": "gone"}]), found
    )
    assert logins["r.example"] == {"username": "me", "password": "pass"}
    assert logins["q.example"] == {"username": "u", "password": "p"}
    assert unusable == ["sec", "gone"]


def test_a_review_names_what_cannot_be_honoured_and_passes_defaults():
    plain = {
        "name": "app",
        "livenessProbe": {"httpGet": {"port": "web", "scheme": "HTTP"}},
        "ports": [{"name": "web", "containerPort": 80}],
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": [{"name": "v", "mountPath": "/x", "mountPropagation": "None"}],
    }
    assert review(pod(plain, volumes=[{"name": "v", "emptyDir": {}}])) == ([], [])
    odd = {
        "name": "app",
        "livenessProbe": {"grpc": {"port": 1}},
        "readinessProbe": {"httpGet": {"port": "nope", "host": "example.com"}},
    }
    refusals, _ = review(pod(odd, volumes=[{"name": "v", "csi": {"driver": "x"}}]))
    assert [r.split(":")[0] for r in refusals] == [
        "spec.volumes[0].csi",
        "spec.containers[0].livenessProbe.grpc",
        "spec.containers[0].readinessProbe.httpGet.host",
        "spec.containers[0].readinessProbe.httpGet.port",
    ]


def test_ports_may_be_numbers_or_names():
    c = {"ports": [{"name": "web", "containerPort": 8080}]}
    assert [port_of(p, c) for p in (80, "80", "web", "nope", 0, 70000, None, "")] == [
        80,
        80,
        8080,
        None,
        None,
        None,
        None,
        None,
    ]


def test_faulty_pod_documents_are_named():
    assert faults(pod(), "pod/n/p/u") is None
    assert faults([], "pod/n/p/u") is not None
    assert "key" in (faults(pod(), "pod/n/p/x") or "")
    twice = pod()
    twice["spec"]["initContainers"] = [{"name": "app"}]
    assert "name of its own" in (faults(twice, "pod/n/p/u") or "")
    assert faults(pod(restartPolicy="Sometimes"), "pod/n/p/u") is not None


def test_environment_keeps_order_and_the_last_value():
    env = Environment()
    for name, value in (("B", "1"), ("A", "2"), ("B", "3")):
        env.put(name, value)
    assert env.pairs() == [("B", "3"), ("A", "2")]
