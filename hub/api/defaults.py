"""Defaults: what Kubernetes fills in when a field is left out.

Job: `apply(resource, obj)` completes a decoded object in place. Invariant: idempotent, and a field that is present is
never changed (except Secret stringData, which is write-only and moves into data, and resource requests, which are
completed from limits). The tolerations for not-ready and unreachable nodes are not added: the hub never evicts
because a link is down.

Source: the API reference's "Defaults to" sentences.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any, Final

from edgelite import devices
from hub.api.schema import Resource

Object = dict[str, Any]
NAME_LABEL: Final = "kubernetes.io/metadata.name"
DEFAULT_TENANT: Final = "default"
NODE_TOKEN_TTL_S: Final = 3600
POOL_TOKEN_TTL_S: Final = 24 * 3600


def apply(resource: Resource, obj: Object) -> None:
    """Completes `obj` in place."""
    fill = _BY_KIND.get((resource.group, resource.kind))
    if fill is not None:
        fill(obj)


def containers(spec: Object) -> Iterator[Object]:
    """Every container of a pod spec, init containers first."""
    for field in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(field, ())


def pull_policy(image: str) -> str:
    """Always for the tag latest or none, else IfNotPresent; a digest pins."""
    name, at, _digest = image.partition("@")
    _, colon, tag = name.rpartition("/")[2].partition(":")
    if at and not colon:
        return "IfNotPresent"
    return "Always" if not colon or tag == "latest" else "IfNotPresent"


def pod_spec(spec: Object) -> None:
    """The defaults of a PodSpec, in a Pod and in a template."""
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("securityContext", {})
    if "serviceAccountName" in spec:
        spec.setdefault("serviceAccount", spec["serviceAccountName"])
    elif spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"]
    host_network = bool(spec.get("hostNetwork"))
    for container in containers(spec):
        _container(container, host_network)
    for volume in spec.get("volumes", ()):
        _volume(volume)
    for constraint in spec.get("topologySpreadConstraints", ()):
        constraint.setdefault("nodeAffinityPolicy", "Honor")
        constraint.setdefault("nodeTaintsPolicy", "Ignore")


def _container(container: Object, host_network: bool) -> None:
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    if not container.get("imagePullPolicy"):
        container["imagePullPolicy"] = pull_policy(container.get("image", ""))
    container.setdefault("resources", {})
    limits = container["resources"].get("limits", {})
    if limits:
        requests = container["resources"].setdefault("requests", {})
        for name, value in limits.items():
            requests.setdefault(name, value)
    for port in container.get("ports", ()):
        port.setdefault("protocol", "TCP")
        if host_network and not port.get("hostPort") and "containerPort" in port:
            port["hostPort"] = port["containerPort"]
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if name in container:
            _probe(container[name])
    for hook in container.get("lifecycle", {}).values():
        if isinstance(hook, dict) and "httpGet" in hook:
            _http_get(hook["httpGet"])
    for variable in container.get("env", ()):
        ref = variable.get("valueFrom", {}).get("fieldRef")
        if ref is not None:
            ref.setdefault("apiVersion", "v1")
        resource_ref = variable.get("valueFrom", {}).get("resourceFieldRef")
        if resource_ref is not None:
            resource_ref.setdefault("divisor", "0")


def _http_get(action: Object) -> None:
    action.setdefault("path", "/")
    action.setdefault("scheme", "HTTP")


def _probe(probe: Object) -> None:
    for field, value in (
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ):
        if not probe.get(field):  # zero means left out
            probe[field] = value
    if "httpGet" in probe:
        _http_get(probe["httpGet"])
    if "grpc" in probe:
        probe["grpc"].setdefault("service", "")


def _volume(volume: Object) -> None:
    if len(volume) == 1 and "name" in volume:
        volume["emptyDir"] = {}
    for source in ("configMap", "secret", "downwardAPI", "projected"):
        if source in volume:
            volume[source].setdefault("defaultMode", 0o644)
    if "hostPath" in volume:
        volume["hostPath"].setdefault("type", "")
    items = volume.get("downwardAPI", {}).get("items", [])
    for source in volume.get("projected", {}).get("sources", ()):
        items = items + source.get("downwardAPI", {}).get("items", [])
        if "serviceAccountToken" in source:
            source["serviceAccountToken"].setdefault("expirationSeconds", 3600)
    for item in items:
        if "fieldRef" in item:
            item["fieldRef"].setdefault("apiVersion", "v1")
        if "resourceFieldRef" in item:
            item["resourceFieldRef"].setdefault("divisor", "0")


def _pod(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    pod_spec(spec)
    spec.setdefault("enableServiceLinks", True)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    spec.setdefault("priority", 0)
    obj.setdefault("status", {}).setdefault("phase", "Pending")
    obj["status"].setdefault("qosClass", qos_class(spec))


def qos_class(spec: Object) -> str:
    """Guaranteed, Burstable or BestEffort, by cpu and memory of all containers."""
    guaranteed, any_set = True, False
    for container in (*spec.get("initContainers", ()), *spec.get("containers", ())):
        resources = container.get("resources", {})
        limits, requests = resources.get("limits", {}), resources.get("requests", {})
        for name in ("cpu", "memory"):
            limit, request = limits.get(name, "0"), requests.get(name, "0")
            any_set = any_set or limit != "0" or request != "0"
            guaranteed = guaranteed and limit != "0" and limit == request
    if not any_set:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"


def _template(spec: Object) -> None:
    template = spec.setdefault("template", {})
    template.setdefault("metadata", {})
    pod_spec(template.setdefault("spec", {}))


def _deployment(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _template(spec)
    spec.setdefault("replicas", 1)
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)
    strategy = spec.setdefault("strategy", {})
    strategy.setdefault("type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxUnavailable", "25%")
        rolling.setdefault("maxSurge", "25%")


def _replica_set(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _template(spec)
    spec.setdefault("replicas", 1)


def _daemon_set(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _template(spec)
    spec.setdefault("revisionHistoryLimit", 10)
    strategy = spec.setdefault("updateStrategy", {})
    strategy.setdefault("type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxUnavailable", 1)
        rolling.setdefault("maxSurge", 0)


def _secret(obj: Object) -> None:
    obj.setdefault("type", "Opaque")
    plain = obj.pop("stringData", None)
    if plain:
        data = obj.setdefault("data", {})
        for key, text in plain.items():
            data[key] = base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()


def _namespace(obj: Object) -> None:
    finalizers = obj.setdefault("spec", {}).setdefault("finalizers", [])
    if not obj["metadata"].get("deletionTimestamp") and "kubernetes" not in finalizers:
        finalizers.append("kubernetes")
    obj.setdefault("status", {}).setdefault("phase", "Active")
    name = obj["metadata"].get("name")
    if name:
        obj["metadata"].setdefault("labels", {}).setdefault(NAME_LABEL, name)


def _node(obj: Object) -> None:
    obj.setdefault("spec", {})
    status = obj.setdefault("status", {})
    if "capacity" in status:
        status.setdefault("allocatable", dict(status["capacity"]))


def _event(obj: Object) -> None:
    obj.setdefault("type", "Normal")


RBAC: Final = "rbac.authorization.k8s.io"


def _role_binding(obj: Object) -> None:
    ref = obj.setdefault("roleRef", {})
    if not ref.get("apiGroup"):
        ref["apiGroup"] = RBAC
    for subject in obj.get("subjects", ()):
        if subject.get("kind") in ("User", "Group") and not subject.get("apiGroup"):
            subject["apiGroup"] = RBAC


def _role(obj: Object) -> None:
    obj.setdefault("rules", [])


def _join_token(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("tenant", DEFAULT_TENANT)
    spec.setdefault("ttlSeconds", NODE_TOKEN_TTL_S if spec.get("node") else POOL_TOKEN_TTL_S)


def _device(obj: Object) -> None:
    for prop in obj.setdefault("spec", {}).get("properties", ()):
        prop.setdefault("access", devices.READ_ONLY)
        prop.setdefault("minIntervalSeconds", devices.INTERVAL_DEFAULT_S)
        prop.setdefault("keep", 1)


_BY_KIND: Final[dict[tuple[str, str], Callable[[Object], None]]] = {
    ("", "Pod"): _pod,
    ("", "Secret"): _secret,
    ("", "Namespace"): _namespace,
    ("", "Node"): _node,
    ("", "Event"): _event,
    ("apps", "Deployment"): _deployment,
    ("apps", "ReplicaSet"): _replica_set,
    ("apps", "DaemonSet"): _daemon_set,
    (RBAC, "Role"): _role,
    (RBAC, "ClusterRole"): _role,
    (RBAC, "RoleBinding"): _role_binding,
    (RBAC, "ClusterRoleBinding"): _role_binding,
    ("cloudhub.dev", "JoinToken"): _join_token,
    ("cloudhub.dev", "Device"): _device,
}
