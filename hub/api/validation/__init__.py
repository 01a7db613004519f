"""Whether an object makes sense: Kubernetes' rules and words. [pure]

Job: `validate_create` and `validate_update` return everything that is wrong with a decoded, defaulted object as
causes; none means valid. Invariant: they read only and never raise, whatever a decoded object contains.
Not guaranteed: that names are free, that references exist, that the runtime honours every field.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, islice
from typing import Any, Final

from hub.api.schema import Resource
from hub.api.validation import access, certificates, meta, names, others, pods, workloads
from hub.api.validation.meta import Causes, Object
from hub.api.validation.names import generated_name
from hub.errors import Cause, Invalid, invalid, not_supported
from hub.policies import specs

__all__ = [
    "check_create",
    "check_update",
    "generated_name",
    "validate_binding",
    "validate_create",
    "validate_delete_options",
    "validate_scale",
    "validate_update",
]

FOUND_MAX: Final = 1000  # the search stops there: an object may hold millions of mistakes

_RULES: Final[dict[tuple[str, str], Callable[[Object], Causes]]] = {
    ("", "Pod"): pods.pod,
    ("", "ConfigMap"): others.config_map,
    ("", "Secret"): others.secret,
    ("", "Namespace"): others.namespace,
    ("", "Node"): others.node,
    ("", "Event"): others.core_event,
    ("events.k8s.io", "Event"): others.new_event,
    ("coordination.k8s.io", "Lease"): others.lease,
    ("apps", "Deployment"): workloads.deployment,
    ("apps", "ReplicaSet"): workloads.replica_set,
    ("apps", "DaemonSet"): workloads.daemon_set,
    (specs.GROUP, "ValidatingAdmissionPolicy"): specs.policy_causes,
    (specs.GROUP, "ValidatingAdmissionPolicyBinding"): specs.binding_causes,
    ("certificates.k8s.io", "CertificateSigningRequest"): certificates.signing_request,
    ("cloudhub.dev", "JoinToken"): others.join_token,
    ("", "ServiceAccount"): access.service_account,
    (access.GROUP, "Role"): access.role,
    (access.GROUP, "ClusterRole"): access.cluster_role,
    (access.GROUP, "RoleBinding"): access.role_binding,
    (access.GROUP, "ClusterRoleBinding"): access.cluster_role_binding,
    ("cloudhub.dev", "Revocation"): others.revocation,
    ("cloudhub.dev", "Device"): others.device,
}
_UPDATE_RULES: Final[dict[tuple[str, str], Callable[[Object, Object], Causes]]] = {
    ("", "Pod"): pods.pod_update,
    ("", "ConfigMap"): others.config_map_update,
    ("", "Secret"): others.secret_update,
    ("", "Node"): others.node_update,
    ("apps", "Deployment"): workloads.selector_update,
    ("apps", "ReplicaSet"): workloads.selector_update,
    ("apps", "DaemonSet"): workloads.selector_update,
    ("certificates.k8s.io", "CertificateSigningRequest"): certificates.signing_request_update,
    ("cloudhub.dev", "JoinToken"): others.join_token_update,
    (access.GROUP, "RoleBinding"): access.binding_update,
    (access.GROUP, "ClusterRoleBinding"): access.binding_update,
    ("cloudhub.dev", "Revocation"): others.revocation_update,
    ("cloudhub.dev", "Device"): others.device_update,
}
_UNCHANGED: Final[dict[tuple[str, str], Callable[[Object, Object], bool]]] = {
    ("", "Pod"): pods.is_unchanged,
}
"""Where the rules of a kind need not be asked again for an update: they would find what they found in the old object."""


def _meta(resource: Resource, obj: Object) -> Causes:
    check = names.dns_label if resource.kind == "Namespace" else names.dns_subdomain
    if resource.group == access.GROUP:
        check = names.path_segment
    return meta.object_meta(obj.get("metadata", {}), namespaced=resource.namespaced, name_check=check)


def _rules(resource: Resource, obj: Object) -> Causes:
    rules = _RULES.get((resource.group, resource.kind))
    if rules is not None:
        yield from rules(obj)


def validate_create(resource: Resource, obj: dict[str, Any], *, spec_known: bool = False) -> list[Cause]:
    """What is wrong with a new object (name already generated, namespace set): at most FOUND_MAX causes. `spec_known`: of a Pod
    whose spec, but for its node's name, was found valid before."""
    rules = pods.node_name("spec", obj.get("spec", {})) if spec_known else _rules(resource, obj)
    return list(islice(chain(_meta(resource, obj), rules), FOUND_MAX))


def validate_update(resource: Resource, new: dict[str, Any], old: dict[str, Any]) -> list[Cause]:
    """What is wrong with replacing `old` by `new`; both carry their system metadata. At most FOUND_MAX causes. What `old` was
    stored with, and `new` has unchanged, is not judged again."""
    kind = (resource.group, resource.kind)
    update_rules = _UPDATE_RULES.get(kind, _no_rules)
    is_unchanged = _UNCHANGED.get(kind)
    same = is_unchanged is not None and is_unchanged(new, old)
    causes = chain(
        meta.object_meta_update(new.get("metadata", {}), old.get("metadata", {})),
        _meta(resource, new),
        () if same else _rules(resource, new),
        update_rules(new, old),
    )
    return list(islice(causes, FOUND_MAX))


def _no_rules(new: Object, old: Object) -> Causes:
    return iter(())


def check_create(resource: Resource, obj: dict[str, Any], *, spec_known: bool = False) -> None:
    """As `validate_create`. Raises Invalid (422)."""
    _raise(resource, obj, validate_create(resource, obj, spec_known=spec_known))


def check_update(resource: Resource, new: dict[str, Any], old: dict[str, Any]) -> None:
    """As `validate_update`. Raises Invalid (422)."""
    _raise(resource, new, validate_update(resource, new, old))


def _raise(resource: Resource, obj: dict[str, Any], causes: list[Cause]) -> None:
    if causes:
        name = obj.get("metadata", {}).get("name", "") or obj.get("metadata", {}).get("generateName", "")
        raise Invalid(resource.kind, name, causes, group=resource.group)


def validate_binding(obj: dict[str, Any]) -> list[Cause]:
    """A Binding (pods/binding)."""
    return list(pods.binding(obj))


def validate_scale(obj: dict[str, Any]) -> list[Cause]:
    """A Scale (deployments/scale, replicasets/scale)."""
    return list(workloads.scale(obj))


def validate_delete_options(options: dict[str, Any]) -> list[Cause]:
    """DeleteOptions, from the body or the query."""
    causes = []
    policy = options.get("propagationPolicy")
    policies = ("Background", "Foreground", "Orphan")
    if policy is not None and options.get("orphanDependents") is not None:
        text = "orphanDependents and deletionPropagation cannot be both set"
        causes.append(invalid("propagationPolicy", policy, text))
    elif policy is not None and policy not in policies:
        causes.append(not_supported("propagationPolicy", policy, (*policies, "nil")))
    dry_run = options.get("dryRun", [])
    if any(value != "All" for value in dry_run):
        causes.append(not_supported("dryRun", dry_run, ("All",)))
    return causes
