"""Rules for containers: images, ports, environment, resources, mounts, probes, hooks. [pure]"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hub.api import quantity
from hub.api.validation import names
from hub.api.validation.meta import (
    NEGATIVE,
    Causes,
    Object,
    each,
    in_range,
    named,
    nonnegative,
    one_of,
)
from hub.errors import duplicate, forbidden, invalid, not_found, not_supported, required

ID_MAX: Final = 2**31 - 1
FIELD_PATHS: Final = (
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)
VOLUME_FIELD_PATHS: Final = (
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
)
RESOURCE_FIELDS: Final = (
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
)
_HANDLERS: Final = ("exec", "httpGet", "tcpSocket", "grpc")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What of the pod the rules of a container depend on."""

    volumes: frozenset[str]
    host_network: bool
    image_optional: bool  # workloads of the process runtime have none


def container(path: str, value: Object, around: Surroundings, *, init: bool) -> Causes:
    yield from named(path + ".name", value.get("name"), names.dns_label)
    image = value.get("image", "")
    if not image and not around.image_optional:
        yield required(path + ".image")
    elif image != image.strip():
        yield invalid(path + ".image", image, "must not have leading or trailing whitespace")
    policies = ("Always", "IfNotPresent", "Never")
    yield from one_of(path + ".imagePullPolicy", value.get("imagePullPolicy"), policies)
    message_policies = ("FallbackToLogsOnError", "File")
    message_policy = value.get("terminationMessagePolicy")
    yield from one_of(path + ".terminationMessagePolicy", message_policy, message_policies)
    yield from _ports(path + ".ports", value.get("ports", []), around)
    yield from _env(path + ".env", value.get("env", []))
    yield from _env_from(path + ".envFrom", value.get("envFrom", []))
    yield from resources(path + ".resources", value.get("resources", {}))
    yield from _mounts(path + ".volumeMounts", value.get("volumeMounts", []), around)
    yield from _security(path + ".securityContext", value.get("securityContext", {}))
    yield from _restarts(path, value, init=init)


def _restarts(path: str, value: Object, *, init: bool) -> Causes:
    policy = value.get("restartPolicy")
    sidecar = init and policy == "Always"
    if policy is not None and not init:
        yield forbidden(path + ".restartPolicy", "may not be set for non-init containers")
    elif policy is not None and not sidecar:
        yield not_supported(path + ".restartPolicy", policy, ("Always",))
    for name in ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe"):
        if name not in value:
            continue
        if init and not sidecar:
            yield forbidden(
                f"{path}.{name}", "may not be set for init containers without restartPolicy=Always"
            )
        elif name == "lifecycle":
            yield from _lifecycle(f"{path}.{name}", value[name])
        else:
            yield from _probe(f"{path}.{name}", value[name], once=name != "readinessProbe")


def _ports(path: str, ports: list[Object], around: Surroundings) -> Causes:
    seen: set[str] = set()
    for i, port in enumerate(ports):
        at = f"{path}[{i}]"
        name, number = port.get("name", ""), port.get("containerPort", 0)
        if name:
            yield from each(at + ".name", name, names.port_name)
            if name in seen:
                yield duplicate(at + ".name", name)
            seen.add(name)
        if not number:
            yield required(at + ".containerPort")
        else:
            yield from in_range(at + ".containerPort", number, 1, 65535)
        host = port.get("hostPort", 0)
        if host:
            yield from in_range(at + ".hostPort", host, 1, 65535)
            if around.host_network and host != number:
                text = "must match `containerPort` when `hostNetwork` is true"
                yield invalid(at + ".hostPort", host, text)
        yield from one_of(at + ".protocol", port.get("protocol"), ("SCTP", "TCP", "UDP"))


def host_ports(containers: list[tuple[str, Object]]) -> Causes:
    """One host port serves one container of a pod."""
    seen = set()
    for path, value in containers:
        for i, port in enumerate(value.get("ports", [])):
            if not port.get("hostPort"):
                continue
            key = f"{port.get('protocol', 'TCP')}/{port.get('hostIP', '')}/{port['hostPort']}"
            if key in seen:
                yield duplicate(f"{path}.ports[{i}].hostPort", key)
            seen.add(key)


def _env(path: str, variables: list[Object]) -> Causes:
    for i, variable in enumerate(variables):
        at = f"{path}[{i}]"
        yield from named(at + ".name", variable.get("name"), names.env_name)
        if "valueFrom" in variable:
            if variable.get("value"):
                yield invalid(at + ".valueFrom", "", "may not be specified when `value` is not empty")
            yield from _env_source(at + ".valueFrom", variable["valueFrom"])


def _env_source(path: str, source: Object) -> Causes:
    if not source:
        text = (
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or "
            "`fileKeyRef`"
        )
        yield invalid(path, "", text)
    elif len(source) > 1:
        yield invalid(path, "", "may not have more than one field specified at a time")
    if "fieldRef" in source:
        yield from field_ref(path + ".fieldRef", source["fieldRef"], FIELD_PATHS)
    if "resourceFieldRef" in source:
        yield from resource_field_ref(path + ".resourceFieldRef", source["resourceFieldRef"])
    for kind in ("configMapKeyRef", "secretKeyRef"):
        if kind in source:
            ref = source[kind]
            yield from named(f"{path}.{kind}.name", ref.get("name"), names.dns_subdomain)
            yield from named(f"{path}.{kind}.key", ref.get("key"), names.config_key)


def field_ref(path: str, ref: Object, allowed: tuple[str, ...]) -> Causes:
    if not ref.get("apiVersion", "v1"):
        yield required(path + ".apiVersion")
    field = ref.get("fieldPath", "")
    if not field:
        yield required(path + ".fieldPath")
        return
    head, bracket, rest = field.partition("['")
    if bracket and head in ("metadata.labels", "metadata.annotations") and rest.endswith("']"):
        key = rest[:-2]
        yield from each(path + ".fieldPath", key, names.qualified_name)
    elif field not in allowed:
        yield not_supported(path + ".fieldPath", field, allowed)


def resource_field_ref(path: str, ref: Object) -> Causes:
    name = ref.get("resource", "")
    if not name:
        yield required(path + ".resource")
    elif name not in RESOURCE_FIELDS and ".hugepages-" not in name:
        yield not_supported(path + ".resource", name, RESOURCE_FIELDS)


def _env_from(path: str, sources: list[Object]) -> Causes:
    for i, source in enumerate(sources):
        at = f"{path}[{i}]"
        if source.get("prefix"):
            yield from each(at + ".prefix", source["prefix"], names.env_name)
        kinds = [k for k in ("configMapRef", "secretRef") if k in source]
        if not kinds:
            yield invalid(at, "", "must specify one of: `configMapRef` or `secretRef`")
        elif len(kinds) > 1:
            yield invalid(at, "", "may not have more than one field specified at a time")
        for kind in kinds:
            yield from named(f"{at}.{kind}.name", source[kind].get("name"), names.dns_subdomain)


def resources(path: str, value: Object) -> Causes:
    """Quantities are canonical by now (decode made them so)."""
    limits, requests = value.get("limits", {}), value.get("requests", {})
    for field, held in (("limits", limits), ("requests", requests)):
        for name, amount in held.items():
            at = f"{path}.{field}[{name}]" if "/" in name else f"{path}.{field}.{name}"
            yield from each(at, name, names.qualified_name)
            if "/" not in name and not _standard(name):
                yield invalid(at, name, "must be a standard resource for containers")
            if quantity.parse(amount) < 0:
                yield invalid(at, amount, NEGATIVE)
    for name, amount in requests.items():
        limit = limits.get(name)
        if limit is not None and quantity.parse(amount) > quantity.parse(limit):
            yield invalid(
                path + ".requests", amount, f"must be less than or equal to {name} limit of {limit}"
            )
    if value.get("claims"):
        yield forbidden(path + ".claims", "dynamic resource allocation is not served")


def _standard(name: str) -> bool:
    return name in ("cpu", "memory", "ephemeral-storage") or name.startswith("hugepages-")


def _mounts(path: str, mounts: list[Object], around: Surroundings) -> Causes:
    seen = set()
    for i, mount in enumerate(mounts):
        at = f"{path}[{i}]"
        name, target = mount.get("name", ""), mount.get("mountPath", "")
        if not name:
            yield required(at + ".name")
        elif name not in around.volumes:
            yield not_found(at + ".name", name)
        if not target:
            yield required(at + ".mountPath")
        elif target in seen:
            yield invalid(at + ".mountPath", target, "must be unique")
        seen.add(target)
        if ":" in target and not target[1:3].startswith(":\\"):
            yield invalid(at + ".mountPath", target, "must not contain ':'")
        for field in ("subPath", "subPathExpr"):
            if mount.get(field):
                yield from each(f"{at}.{field}", mount[field], names.relative_path)
        if mount.get("subPath") and mount.get("subPathExpr"):
            text = "subPathExpr and subPath are mutually exclusive"
            yield invalid(at + ".subPathExpr", mount["subPathExpr"], text)


def _security(path: str, value: Object) -> Causes:
    for field in ("runAsUser", "runAsGroup"):
        yield from in_range(f"{path}.{field}", value.get(field), 0, ID_MAX)
    yield from one_of(path + ".procMount", value.get("procMount"), ("Default", "Unmasked"))
    if value.get("allowPrivilegeEscalation") is False:
        if value.get("privileged"):
            text = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"
            yield invalid(path, value, text)
        if "CAP_SYS_ADMIN" in value.get("capabilities", {}).get("add", []):
            text = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"
            yield invalid(path, value, text)


def _lifecycle(path: str, value: Object) -> Causes:
    for hook in ("postStart", "preStop"):
        if hook in value:
            yield from _handler(f"{path}.{hook}", value[hook], (*_HANDLERS[:3], "sleep"))


def _probe(path: str, probe: Object, *, once: bool) -> Causes:
    yield from _handler(path, probe, _HANDLERS)
    fields = (
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    )
    for field in fields:
        yield from nonnegative(f"{path}.{field}", probe.get(field))
    grace = probe.get("terminationGracePeriodSeconds")
    if once:
        if grace is not None and grace <= 0:
            yield invalid(path + ".terminationGracePeriodSeconds", grace, "must be greater than 0")
        if probe.get("successThreshold", 1) != 1:
            yield invalid(path + ".successThreshold", probe["successThreshold"], "must be 1")
    elif grace is not None:
        text = "must not be set for readinessProbes"
        yield invalid(path + ".terminationGracePeriodSeconds", grace, text)


def _handler(path: str, value: Object, allowed: tuple[str, ...]) -> Causes:
    given = [name for name in allowed if name in value]
    if not given:
        yield required(path, "must specify a handler type")
    for name in given[1:]:
        yield forbidden(f"{path}.{name}", "may not specify more than 1 handler type")
    if not given:
        return
    kind, action = given[0], value[given[0]]
    at = f"{path}.{kind}"
    if kind == "exec" and not action.get("command"):
        yield required(at + ".command")
    elif kind == "httpGet":
        if not action.get("path"):
            yield required(at + ".path")
        yield from one_of(at + ".scheme", action.get("scheme"), ("HTTP", "HTTPS"))
        for i, header in enumerate(action.get("httpHeaders", [])):
            yield from each(f"{at}.httpHeaders[{i}].name", header.get("name", ""), names.http_header)
    elif kind == "sleep":
        yield from nonnegative(at + ".seconds", action.get("seconds"))
    if kind in ("httpGet", "tcpSocket", "grpc"):
        yield from _port(at + ".port", action.get("port"))


def _port(path: str, value: int | str | None) -> Causes:
    if isinstance(value, str):
        yield from each(path, value, names.port_name)
    else:
        yield from in_range(path, value or 0, 1, 65535)
