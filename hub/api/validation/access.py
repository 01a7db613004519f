"""Rules for Role, ClusterRole, their bindings and ServiceAccount. [pure]

Bounds beside Kubernetes' own: what one role or binding costs every request that meets it is limited.
"""

from __future__ import annotations

from typing import Final

from hub.api.validation import names
from hub.api.validation.meta import Causes, Object, each, labels, named
from hub.errors import Cause, forbidden, invalid, not_supported, required, too_many

GROUP: Final = "rbac.authorization.k8s.io"
SUBJECTS_MAX: Final = 1000
COMBINATIONS_MAX: Final = 10_000
"""Of verb, group, resource and name, over all rules of a role: each is looked at when somebody gives the role away."""
SELECTORS_MAX: Final = 100


def role(obj: Object) -> Causes:
    yield from _rules(obj.get("rules", []), namespaced=True)


def cluster_role(obj: Object) -> Causes:
    yield from _rules(obj.get("rules", []), namespaced=False)
    aggregation = obj.get("aggregationRule")
    if aggregation is None:
        return
    selectors = aggregation.get("clusterRoleSelectors", [])
    if not selectors:
        yield required(
            "aggregationRule.clusterRoleSelectors", "at least one clusterRoleSelector required if aggregationRule is non-nil"
        )  # fmt: skip
    if len(selectors) > SELECTORS_MAX:
        yield too_many("aggregationRule.clusterRoleSelectors", len(selectors), SELECTORS_MAX)
    for i, selector in enumerate(selectors[:SELECTORS_MAX]):
        path = f"aggregationRule.clusterRoleSelectors[{i}]"
        yield from labels(path + ".matchLabels", selector.get("matchLabels"))
        if selector.get("matchExpressions"):
            yield forbidden(path + ".matchExpressions", "this hub aggregates by matchLabels only")


def _rules(rules: list[Object], *, namespaced: bool) -> Causes:
    combinations = sum(_combinations(rule) for rule in rules)
    if combinations > COMBINATIONS_MAX:
        yield Cause(
            "FieldValueTooMany",
            f"Too many: the rules make {combinations} combinations of verb, group, resource and name, at most "
            f"{COMBINATIONS_MAX} are served: use `*`, or several roles",
            "rules",
        )
    for i, rule in enumerate(rules):
        path = f"rules[{i}]"
        if not rule.get("verbs"):
            yield required(path + ".verbs", "verbs must contain at least one value")
        if rule.get("nonResourceURLs"):
            if namespaced:
                yield invalid(
                    path + ".nonResourceURLs",
                    rule["nonResourceURLs"],
                    "namespaced rules cannot apply to non-resource URLs",
                )
            if any(rule.get(field) for field in ("apiGroups", "resources", "resourceNames")):
                yield invalid(
                    path + ".nonResourceURLs",
                    rule["nonResourceURLs"],
                    "rules cannot apply to both regular resources and non-resource URLs",
                )
            continue
        if not rule.get("apiGroups"):
            yield required(path + ".apiGroups", "resource rules must supply at least one api group")
        if not rule.get("resources"):
            yield required(path + ".resources", "resource rules must supply at least one resource")


def _combinations(rule: Object) -> int:
    objects = len(rule.get("apiGroups", [])) * len(rule.get("resources", []))
    objects *= max(1, len(rule.get("resourceNames", [])))
    return len(rule.get("verbs", [])) * (objects + len(rule.get("nonResourceURLs", [])))


def role_binding(obj: Object) -> Causes:
    yield from _binding(obj, ("ClusterRole", "Role"), namespaced=True)


def cluster_role_binding(obj: Object) -> Causes:
    yield from _binding(obj, ("ClusterRole",), namespaced=False)


def _binding(obj: Object, kinds: tuple[str, ...], *, namespaced: bool) -> Causes:
    ref = obj.get("roleRef", {})
    if ref.get("apiGroup") != GROUP:
        yield not_supported("roleRef.apiGroup", ref.get("apiGroup", ""), (GROUP,))
    if ref.get("kind") not in kinds:
        yield not_supported("roleRef.kind", ref.get("kind", ""), kinds)
    yield from named("roleRef.name", ref.get("name"), names.path_segment)
    subjects = obj.get("subjects", [])
    if len(subjects) > SUBJECTS_MAX:
        yield too_many("subjects", len(subjects), SUBJECTS_MAX)
    for i, subject in enumerate(subjects[:SUBJECTS_MAX]):
        yield from _subject(f"subjects[{i}]", subject, namespaced=namespaced)


def _subject(path: str, subject: Object, *, namespaced: bool) -> Causes:
    kind, name, group = subject.get("kind", ""), subject.get("name", ""), subject.get("apiGroup", "")
    if not name:
        yield required(path + ".name")
    if kind == "ServiceAccount":
        if name:
            yield from each(path + ".name", name, names.dns_subdomain)
        if group:
            yield not_supported(path + ".apiGroup", group, ("",))
        if not subject.get("namespace") and not namespaced:
            yield required(path + ".namespace")
    elif kind in ("User", "Group"):
        if group != GROUP:
            yield not_supported(path + ".apiGroup", group, (GROUP,))
    else:
        yield not_supported(path + ".kind", kind, ("ServiceAccount", "User", "Group"))


def binding_update(new: Object, old: Object) -> Causes:
    if new.get("roleRef") != old.get("roleRef"):
        yield invalid("roleRef", new.get("roleRef"), "cannot change roleRef")


def service_account(obj: Object) -> Causes:
    for field in ("secrets", "imagePullSecrets"):
        held = obj.get(field, [])
        if len(held) > SUBJECTS_MAX:
            yield too_many(field, len(held), SUBJECTS_MAX)
