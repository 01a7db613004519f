"""Rules for pods and pod templates, and what an update may change. [pure]"""

from __future__ import annotations

import re
from typing import Final

from hub.api.validation import names
from hub.api.validation.containers import ID_MAX, Surroundings, container, host_ports
from hub.api.validation.meta import (
    Causes,
    Object,
    each,
    in_range,
    label_selector,
    labels,
    named,
    nonnegative,
    one_of,
)
from hub.api.validation.volumes import volumes
from hub.errors import duplicate, forbidden, invalid, required

# A template whose label says so runs as host processes, which have no image.
RUNTIME_LABEL: Final = "cloudhub.dev/runtime"
CONTAINERS_MAX: Final = 100
_EFFECTS: Final = ("NoExecute", "NoSchedule", "PreferNoSchedule")
_NODE_OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")
_UPDATABLE: Final = (
    "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` "
    "(only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it "
    "was previously negative)"
)


def pod_spec(path: str, spec: Object, pod_labels: dict[str, str] | None = None) -> Causes:
    """A PodSpec. pod_labels: of the pod or template that holds it."""
    yield from volumes(path + ".volumes", spec.get("volumes", []))
    yield from _containers(path, spec, (pod_labels or {}).get(RUNTIME_LABEL) == "process")
    yield from one_of(path + ".restartPolicy", spec.get("restartPolicy"), ("Always", "Never", "OnFailure"))
    policies = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
    yield from one_of(path + ".dnsPolicy", spec.get("dnsPolicy"), policies)
    yield from nonnegative(path + ".terminationGracePeriodSeconds", spec.get("terminationGracePeriodSeconds"))
    yield from in_range(path + ".activeDeadlineSeconds", spec.get("activeDeadlineSeconds"), 1, ID_MAX)
    yield from labels(path + ".nodeSelector", spec.get("nodeSelector"))
    yield from node_name(path, spec)
    for field in ("serviceAccountName", "runtimeClassName", "priorityClassName"):
        if spec.get(field):
            yield from each(f"{path}.{field}", spec[field], names.dns_subdomain)
    for field in ("hostname", "subdomain"):
        if spec.get(field):
            yield from each(f"{path}.{field}", spec[field], names.dns_label)
    for i, ref in enumerate(spec.get("imagePullSecrets", [])):
        if not ref.get("name"):
            yield required(f"{path}.imagePullSecrets[{i}].name")
    yield from _security(path + ".securityContext", spec.get("securityContext", {}))
    yield from _tolerations(path + ".tolerations", spec.get("tolerations", []))
    yield from _affinity(path + ".affinity", spec.get("affinity", {}))
    yield from _spread(path + ".topologySpreadConstraints", spec.get("topologySpreadConstraints", []))
    if spec.get("dnsPolicy") == "None" and not spec.get("dnsConfig", {}).get("nameservers"):
        text = "must provide at least one DNS nameserver when `dnsPolicy` is None"
        yield required(path + ".dnsConfig.nameservers", text)
    if spec.get("hostPID") and spec.get("shareProcessNamespace"):
        text = "ShareProcessNamespace and HostPID cannot both be enabled"
        yield invalid(path + ".shareProcessNamespace", True, text)


def node_name(path: str, spec: Object) -> Causes:
    """The one field of a spec that differs between pods of one sort."""
    if spec.get("nodeName"):
        yield from each(f"{path}.nodeName", spec["nodeName"], names.dns_subdomain)


def _containers(path: str, spec: Object, image_optional: bool) -> Causes:
    around = Surroundings(
        frozenset(v.get("name", "") for v in spec.get("volumes", [])),
        bool(spec.get("hostNetwork")),
        image_optional,
    )
    if not spec.get("containers"):
        yield required(path + ".containers")
    seen: set[str] = set()
    for field in ("initContainers", "containers"):
        held = spec.get(field, [])
        if len(held) > CONTAINERS_MAX:
            yield invalid(f"{path}.{field}", len(held), f"must have at most {CONTAINERS_MAX} items")
            continue
        for i, value in enumerate(held):
            at = f"{path}.{field}[{i}]"
            yield from container(at, value, around, init=field == "initContainers")
            name = value.get("name", "")
            if name and name in seen:
                yield duplicate(at + ".name", name)
            seen.add(name)
    if spec.get("ephemeralContainers"):
        text = "cannot be set on create; ephemeral containers are not served"
        yield forbidden(path + ".ephemeralContainers", text)
    yield from host_ports([(f"{path}.containers[{i}]", c) for i, c in enumerate(spec.get("containers", []))])


def _security(path: str, value: Object) -> Causes:
    for field in ("runAsUser", "runAsGroup", "fsGroup"):
        yield from in_range(f"{path}.{field}", value.get(field), 0, ID_MAX)
    for i, group in enumerate(value.get("supplementalGroups", [])):
        yield from in_range(f"{path}.supplementalGroups[{i}]", group, 0, ID_MAX)
    policies = ("Always", "OnRootMismatch")
    yield from one_of(path + ".fsGroupChangePolicy", value.get("fsGroupChangePolicy"), policies)
    seen = set()
    for i, sysctl in enumerate(value.get("sysctls", [])):
        name = sysctl.get("name", "")
        if not name:
            yield required(f"{path}.sysctls[{i}].name")
        elif name in seen:
            yield duplicate(f"{path}.sysctls[{i}].name", name)
        elif not re.fullmatch(r"[a-z0-9]([-_a-z0-9]*[a-z0-9])?([./][a-z0-9]([-_a-z0-9]*[a-z0-9])?)*", name):
            yield invalid(f"{path}.sysctls[{i}].name", name, "must be a name of words joined by '.' or '/'")
        seen.add(name)


def _tolerations(path: str, values: list[Object]) -> Causes:
    for i, value in enumerate(values):
        at = f"{path}[{i}]"
        key, operator = value.get("key", ""), value.get("operator", "Equal") or "Equal"
        if key:
            yield from each(at + ".key", key, names.qualified_name)
        elif operator != "Exists":
            text = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
            yield invalid(at + ".operator", value.get("operator", ""), text)
        if operator == "Equal":
            yield from each(at + ".operator", value.get("value", ""), names.label_value)
        elif operator == "Exists":
            if value.get("value"):
                text = "value must be empty when `operator` is 'Exists'"
                yield invalid(at + ".operator", value["value"], text)
        else:
            yield from one_of(at + ".operator", operator, ("Equal", "Exists"))
        yield from one_of(at + ".effect", value.get("effect") or None, _EFFECTS)
        if "tolerationSeconds" in value and value.get("effect") != "NoExecute":
            text = "effect must be 'NoExecute' when `tolerationSeconds` is set"
            yield invalid(at + ".effect", value.get("effect", ""), text)


def _affinity(path: str, affinity: Object) -> Causes:
    node = affinity.get("nodeAffinity", {})
    hard = node.get("requiredDuringSchedulingIgnoredDuringExecution")
    at = path + ".nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
    if hard is not None:
        terms = hard.get("nodeSelectorTerms", [])
        if not terms:
            yield required(at + ".nodeSelectorTerms", "must have at least one node selector term")
        for i, term in enumerate(terms):
            yield from _node_term(f"{at}.nodeSelectorTerms[{i}]", term)
    for i, soft in enumerate(node.get("preferredDuringSchedulingIgnoredDuringExecution", [])):
        at = f"{path}.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[{i}]"
        yield from _weight(at, soft)
        yield from _node_term(at + ".preference", soft.get("preference", {}))
    for kind in ("podAffinity", "podAntiAffinity"):
        yield from _pod_affinity(f"{path}.{kind}", affinity.get(kind, {}))


def _weight(path: str, term: Object) -> Causes:
    if not 1 <= term.get("weight", 0) <= 100:
        yield invalid(path + ".weight", term.get("weight", 0), "must be in the range 1-100")


def _node_term(path: str, term: Object) -> Causes:
    for field in ("matchExpressions", "matchFields"):
        for i, rule in enumerate(term.get(field, [])):
            at = f"{path}.{field}[{i}]"
            operator, values = rule.get("operator", ""), rule.get("values", [])
            if operator in ("In", "NotIn") and not values:
                yield required(at + ".values", "must be specified when `operator` is 'In' or 'NotIn'")
            elif operator in ("Exists", "DoesNotExist") and values:
                text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                yield forbidden(at + ".values", text)
            elif operator in ("Gt", "Lt") and len(values) != 1:
                text = "must be specified single value when `operator` is 'Lt' or 'Gt'"
                yield required(at + ".values", text)
            elif operator not in _NODE_OPERATORS:
                yield invalid(at + ".operator", operator, "not a valid selector operator")
            if field == "matchExpressions":
                yield from each(at + ".key", rule.get("key", ""), names.qualified_name)
            elif rule.get("key") != "metadata.name":
                yield invalid(at + ".key", rule.get("key", ""), "not a valid field selector key")


def _pod_affinity(path: str, value: Object) -> Causes:
    hard = "requiredDuringSchedulingIgnoredDuringExecution"
    soft = "preferredDuringSchedulingIgnoredDuringExecution"
    terms = [(f"{path}.{hard}[{i}]", term) for i, term in enumerate(value.get(hard, []))]
    for i, weighted in enumerate(value.get(soft, [])):
        at = f"{path}.{soft}[{i}]"
        yield from _weight(at, weighted)
        terms.append((at + ".podAffinityTerm", weighted.get("podAffinityTerm", {})))
    for at, term in terms:
        if not term.get("topologyKey"):
            yield required(at + ".topologyKey", "can not be empty")
        else:
            yield from each(at + ".topologyKey", term["topologyKey"], names.qualified_name)
        yield from label_selector(at + ".labelSelector", term.get("labelSelector", {}))


def _spread(path: str, values: list[Object]) -> Causes:
    for i, value in enumerate(values):
        at = f"{path}[{i}]"
        if value.get("maxSkew", 0) <= 0:
            yield invalid(at + ".maxSkew", value.get("maxSkew", 0), "must be greater than zero")
        if not value.get("topologyKey"):
            yield required(at + ".topologyKey", "can not be empty")
        policies = ("DoNotSchedule", "ScheduleAnyway")
        yield from one_of(at + ".whenUnsatisfiable", value.get("whenUnsatisfiable", ""), policies)
        yield from label_selector(at + ".labelSelector", value.get("labelSelector", {}))


def pod(obj: Object) -> Causes:
    yield from pod_spec("spec", obj.get("spec", {}), obj.get("metadata", {}).get("labels"))


def is_unchanged(new: Object, old: Object) -> bool:
    """Does `pod` find in `new` what it has found in `old`?"""
    labels, were = ((o.get("metadata", {}).get("labels") or {}).get(RUNTIME_LABEL) for o in (new, old))
    return bool(labels == were and new.get("spec") == old.get("spec"))


_CHANGEABLE: Final = (
    "activeDeadlineSeconds",
    "tolerations",
    "terminationGracePeriodSeconds",
    "schedulingGates",
)


def _settled(spec: Object) -> Object:
    """The spec without what an update may change."""
    out = {field: value for field, value in spec.items() if field not in _CHANGEABLE}
    for field in ("containers", "initContainers"):
        if field in out:
            out[field] = [{k: v for k, v in c.items() if k != "image"} for c in out[field]]
    return out


def _names(spec: Object, field: str) -> set[str]:
    return {item.get("name", "") for item in spec.get(field, [])}


def _untimed(toleration: Object) -> tuple[str, ...]:
    """What must stay of a toleration; its tolerationSeconds may change."""
    return tuple(toleration.get(field, "") for field in ("key", "operator", "value", "effect"))


def pod_update(new: Object, old: Object) -> Causes:
    spec, was = new.get("spec", {}), old.get("spec", {})
    if spec == was:
        return
    for field in ("containers", "initContainers"):
        if len(spec.get(field, [])) != len(was.get(field, [])):
            yield forbidden(f"spec.{field}", "pod updates may not add or remove containers")
            return
    before, after = was.get("activeDeadlineSeconds"), spec.get("activeDeadlineSeconds")
    if after is None and before is not None:
        text = "must not update from a positive integer to nil value"
        yield invalid("spec.activeDeadlineSeconds", None, text)
    elif after is not None and before is not None and after > before:
        text = "must be less than or equal to previous value"
        yield invalid("spec.activeDeadlineSeconds", after, text)
    tolerated = {_untimed(t) for t in spec.get("tolerations", [])}
    if any(_untimed(t) not in tolerated for t in was.get("tolerations", [])):
        yield forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        )
    if _names(spec, "schedulingGates") - _names(was, "schedulingGates"):
        yield forbidden("spec.schedulingGates", "only deletion is allowed, but found new scheduling gate")
    now, then = _settled(spec), _settled(was)
    grace = spec.get("terminationGracePeriodSeconds")
    if grace != was.get("terminationGracePeriodSeconds") and grace != 1:
        now["terminationGracePeriodSeconds"] = grace
    if now != then:
        changed = sorted(k for k in now.keys() | then.keys() if now.get(k) != then.get(k))
        where = ", ".join(f"spec.{k}" for k in changed)
        yield forbidden(
            "spec", f"pod updates may not change fields other than {_UPDATABLE}\nchanged: {where}"
        )


def binding(obj: Object) -> Causes:
    target = obj.get("target", {})
    yield from one_of("target.kind", target.get("kind") or None, ("Node", "<empty>"))
    yield from named("target.name", target.get("name"), names.dns_subdomain)
