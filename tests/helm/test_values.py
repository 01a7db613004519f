"""values.yaml: every key has an effect, is documented and checked; what cannot work is refused and says why."""

import json
import re
from collections.abc import Iterator
from typing import Any

import helm_python
import pytest
import yaml

from tests.helm.chart import CHART, VALUE_SETS, Object, at, find, manifests, merged

DEFAULTS: Object = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: Object = json.loads((CHART / "values.schema.json").read_text())

EXTERNAL = VALUE_SETS["external"]
WHERE: dict[str, Object] = {
    "kubernetes.kubelet.clientCaKey": at("kubernetes.kubelet.clientCaConfigMap", "client-ca"),
    "kubernetes.webhook": at("kubernetes.tolerations", "webhook"),
    "hub.audit": at("hub.audit.policyConfigMap", "audit"),
    "edge.loadBalancer": VALUE_SETS["load-balancers"],
    "edge.nodePort": VALUE_SETS["node-ports"],
    "edge.service.nodePort": at("edge.service.type", "NodePort"),
    "etcd.external": EXTERNAL,
    "nats.external": EXTERNAL,
    "certificates.spire": VALUE_SETS["spire"],
    "kms.socket": VALUE_SETS["kms"],
    "kms.plugin": VALUE_SETS["kms"],
    "kms.hostPath": {"kms": {"socket": "kms.sock", "hostPath": "/run/kms"}},
    "certificates.federation": VALUE_SETS["spire"],
    "storage": VALUE_SETS["single"],
    "autoscaling": VALUE_SETS["scaled"],
    "metrics.serviceMonitor": VALUE_SETS["scaled"],
    "metrics.dashboards": VALUE_SETS["scaled"],
    "metrics.alerts": VALUE_SETS["scaled"],
}
"""Values under which keys mean something that mean nothing with the defaults, by the keys' beginning."""

OTHERS: dict[str, Any] = {
    "image.tag": "other",
    "telemetry.otlpEndpoint": "http://collector.example.com:4317",
    "telemetry.traceRatio": 0.5,
    "image.digest": "sha256:" + "0" * 64,
    "image.pullPolicy": "Always",
    "ipFamily": "IPv6",
    "kubernetes.tolerations": "policy",
    "kubernetes.nodeTaints": ["edge:NoSchedule"],
    "source": "own",
    "hub.joinApproval": "always",
    "hub.caKeyAlgorithm": "ecdsa-p384",
    "hub.hubKeyAlgorithm": "rsa-2048",
    "hub.nodeRate": "2/s 1MiB/s",
    "hub.poolRate": "2/s 1MiB/s",
    "hub.replicaRate": "2/s 1MiB/s",
    "hub.handshakeRate": "2/s",
    "hub.audit.policyConfigMap": "other",
    "hub.logLevel": "debug",
    "hub.logFormat": "text",
    "edge.mode": "hostPort",
    "kubernetes.kubelet.advertise": "192.0.2.1:10250",
    "edge.advertise": "edge.example.com:443",
    "edge.service.type": "NodePort",
    "edge.service.nodePort": 30000,
    "edge.service.externalTrafficPolicy": "Local",
    "edge.service.loadBalancerSourceRanges": ["203.0.113.0/24"],
    "edge.loadBalancer.host": "{ordinal}.example.com",
    "edge.loadBalancer.hosts": ["a", "b", "c"],
    "api.service.type": "NodePort",
    "etcd.mode": EXTERNAL["etcd"]["mode"],
    "etcd.external.endpoints": ["etcd.example.com:1"],
    "etcd.bundled.members": 5,
    "etcd.bundled.image": "etcd:2",
    "nats.mode": "none",
    "nats.external.urls": ["nats://nats.example.com"],
    "nats.bundled.image": "nats:2",
    "kms.hostPath": "/run/other",
    "kms.plugin": {"name": "other", "image": "other"},
    "certificates.provider": "spire",
    "certificates.spire.mountPath": "/run/spire",
    "certificates.spire.server": "spire.example.com:8081",
    "certificates.federation.nodes": ["partner.example=site:berlin"],
    "certificates.federation.bundles": ["partner.example=other.pem"],
    "topologySpread.hosts": "DoNotSchedule",
    "topologySpread.zones": "DoNotSchedule",
    "tolerations": [{"key": "hub", "operator": "Exists"}],
    "serviceAccount.create": False,
    "networkPolicy.edgeCidrs": ["203.0.113.0/24"],
    "networkPolicy.kubeletCidrs": ["203.0.113.0/24"],
    "networkPolicy.apiCidrs": ["203.0.113.0/24"],
}
"""Another value than the default where none follows from the default itself."""
ALONGSIDE: dict[str, Object] = {
    "etcd.mode": {"etcd": {"external": EXTERNAL["etcd"]["external"]}},
    "nats.mode": VALUE_SETS["host-ports"],
    "telemetry.traceRatio": at("telemetry.otlpEndpoint", "http://collector.example.com:4317"),
    "certificates.provider": at("certificates.spire.server", "spire.example.com:8081"),
}
"""What a changed key needs beside it, in both renderings."""
REFUSES = {"etcd.external.tlsSecret"}
"""Keys whose other value is refused: that is their effect."""


def leaves(values: Object, before: str = "") -> Iterator[str]:
    """Paths of all keys that hold no further keys."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"


def other(path: str, value: Any) -> Any:
    if path in OTHERS:
        return OTHERS[path]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, dict):
        return {"example.com/key": "other"}
    if isinstance(value, list):
        return [*value, 8443 if value and isinstance(value[0], int) else "other"]
    assert isinstance(value, str), path
    if re.fullmatch(r"[0-9]+([smhd]|Mi|Gi|m)", value):
        return "1" + value
    return (value + "-other") if value else "other"


def stable(text: str) -> str:
    """A rendering without what is random in it: keys and certificates, which are long and base64."""
    return re.sub(r"[A-Za-z0-9+/]{80,}=*", "RANDOM", text)


PATHS = sorted(leaves(DEFAULTS))


@pytest.mark.parametrize("path", PATHS)
def test_a_change_of_this_key_alone_changes_what_is_rendered(path: str) -> None:
    where = [values for start, values in WHERE.items() if path == start or path.startswith(start + ".")]
    before = merged(*where, ALONGSIDE.get(path, {}))
    held = find(merged(DEFAULTS, before), path)
    changed = other(path, held)
    after = merged(before, at(path, changed))
    assert changed != held
    if path in REFUSES:
        with pytest.raises(helm_python.HelmError, match=re.escape(path)):
            manifests(merged(before, at(path, type(held)())))
        return
    first, second = (
        {name: stable(text) for name, text in manifests(values).items()} for values in (before, after)
    )
    assert first != second


def test_what_is_random_is_no_change() -> None:
    again = {**DEFAULTS, "global": {"x": 1}}
    first, second = ({n: stable(t) for n, t in manifests(v).items()} for v in ({}, again))
    assert first == second


def test_every_key_is_in_the_schema_and_every_object_there_is_closed() -> None:
    def properties(schema: Object) -> Object:
        while "$ref" in schema:
            schema = find(SCHEMA, schema["$ref"].removeprefix("#/").replace("/", "."))
        found: Object = schema.get("properties", {})
        return found

    for path in PATHS:
        schema = SCHEMA
        for key in path.split("."):
            held = properties(schema)
            if not held:
                break  # a map of the user's own names
            assert key in held, path
            schema = held[key]

    def walk(node: Any) -> Iterator[Object]:
        if isinstance(node, dict):
            yield node
            for value in node.values():
                yield from walk(value)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value)

    for node in walk(SCHEMA):
        if "properties" in node and node.get("type") == "object":
            assert node["additionalProperties"] is False
    held = properties(SCHEMA)
    assert set(held) == {*DEFAULTS, "global"}


def test_every_key_is_explained_in_the_line_above_it() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        key = re.match(r"( *)(\w+):(.*)", line)
        if key is None or (not key[3].strip() and not lines[number + 1].strip().startswith("- ")):
            continue  # a heading; its keys are explained
        above = number - 1
        while re.match(rf"{key[1]}\w+:", lines[above]):
            above -= 1  # siblings under one explanation
        assert lines[above].strip().startswith("#"), f"{number + 1}: {line}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replica": 3}, "additional properties 'replica' not allowed"),
        ({"hub": {"hearbeat": "5s"}}, "additional properties 'hearbeat' not allowed"),
        ({"resources": {"requests": {"gpu": "1"}}}, "additional properties 'gpu' not allowed"),
        ({"replicas": "three"}, "/replicas.*got string, want integer"),
        ({"replicas": 0}, "/replicas.*minimum: got 0, want 1"),
        ({"source": "etcd"}, "/source.*must be one of 'kubernetes', 'own'"),
        ({"hub": {"heartbeat": "30"}}, "/hub/heartbeat.*does not match pattern"),
        ({"etcd": {"bundled": {"members": 2}}}, "/etcd/bundled/members.*must be one of 1, 3, 5"),
        ({"edge": {"port": 70000}}, "/edge/port.*maximum: got 70,000, want 65,535"),
        ({"edge": {"advertise": "edge.example.com"}}, "/edge/advertise"),
        (
            {"kubernetes": {"kubelet": {"advertise": "hub.example.com:10250"}}},
            "/kubernetes/kubelet/advertise",
        ),
        ({"etcd": {"external": {"endpoints": ["http://etcd:2379"]}}}, "/etcd/external/endpoints/0"),
        ({"nats": {"external": {"urls": ["nats.example.com"]}}}, "/nats/external/urls/0"),
        ({"image": {"repository": ""}}, "/image/repository"),
        ({"image": {"digest": "sha256:abc"}}, "/image/digest"),
        ({"networkPolicy": {"edgeCidrs": []}}, "/networkPolicy/edgeCidrs.*minItems"),
        ({"podAnnotations": {"a": 1}}, "/podAnnotations/a.*got number, want string"),
    ],
)
def test_values_that_cannot_be_used_are_refused_by_the_schema(values: Object, message: str) -> None:
    with pytest.raises(helm_python.HelmError) as refused:
        manifests(values)
    assert re.search(message, str(refused.value), re.DOTALL), str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"etcd": {"mode": "none"}}, "replicas: more than one replica need etcd"),
        ({"replicas": 1, "etcd": {"mode": "none"}}, "nats.mode: a hub without etcd is alone"),
        ({"etcd": {"mode": "external"}}, "etcd.external.endpoints: name at least one member"),
        (merged(EXTERNAL, at("etcd.external.tlsSecret", "")), "reached over TLS only"),
        ({"nats": {"mode": "external"}}, "nats.external.urls: name at least one server"),
        ({"nats": {"mode": "none"}}, "edge.mode: relay needs NATS"),
        ({"edge": {"mode": "loadBalancer"}}, "edge.loadBalancer.host: how edges reach"),
        (
            {"edge": {"mode": "loadBalancer", "loadBalancer": {"host": "a.example"}}},
            "is the same for all replicas",
        ),
        ({"edge": {"mode": "loadBalancer", "loadBalancer": {"hosts": ["a"]}}}, "only 1 have a name"),
        ({"edge": {"mode": "nodePort"}}, "edge.nodePort.host: a name or address"),
        (merged(VALUE_SETS["node-ports"], at("edge.nodePort.first", 32766)), "go beyond 32767"),
        ({"certificates": {"provider": "spire"}}, "certificates.spire.server: host:port"),
        ({"kms": {"socket": "s"}}, "kms: the plugin's socket comes from kms.hostPath"),
        (merged(VALUE_SETS["kms"], at("kms.hostPath", "/run/kms")), "set one of them"),
        ({"kms": {"hostPath": "/run/kms"}}, "kms.socket: the name of the plugin's socket"),
        ({"autoscaling": {"enabled": True, "minReplicas": 11}}, "more than autoscaling.maxReplicas"),
        ({"autoscaling": {"enabled": True}, "metrics": {"enabled": False}}, "metrics.enabled: autoscaling"),
        (
            {"metrics": {"port": 8443}},
            "metrics.port, kubernetes.kubelet.port and kubernetes.webhook.port: they have to differ",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused_with_a_remedy(values: Object, message: str) -> None:
    with pytest.raises(helm_python.HelmError) as refused:
        manifests(values)
    assert message in str(refused.value)
