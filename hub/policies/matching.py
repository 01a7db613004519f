"""Whom a policy concerns: rules and selectors of matchConstraints and matchResources. [pure]

Source: admissionregistration.k8s.io/v1, MatchResources. There is one version of each kind here, so `Exact` and `Equivalent`
are the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hub.api.selectors import LabelSelector, from_object
from hub.objects import NAMESPACES, Resource
from hub.policies.specs import Match, Rule

Object = dict[str, Any]
CREATE, UPDATE, DELETE, CONNECT = "CREATE", "UPDATE", "DELETE", "CONNECT"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A write that somebody tries. `obj`: as it would be, None for DELETE; `old`: as it is, None for CREATE. `user`, `groups`:
    who tries."""

    operation: str
    res: Resource
    namespace: str
    name: str
    obj: Object | None
    old: Object | None
    user: str
    groups: tuple[str, ...] = ()
    subresource: str = ""
    dry_run: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


class Matcher:
    """One `Match`, with its selectors parsed."""

    def __init__(self, match: Match) -> None:
        self._rules = match.resourceRules
        self._without = match.excludeResourceRules
        self._namespaces: LabelSelector = from_object(match.namespaceSelector)
        self._objects: LabelSelector = from_object(match.objectSelector)

    def concerns(self, operation: str, res: Resource, subresource: str) -> bool:
        """Can it match any object of this kind? For who would otherwise prepare an attempt in vain."""
        return not self._rules or any(_kind_fits(rule, operation, res, subresource) for rule in self._rules)

    def matches(self, attempt: Attempt, namespace: Object | None) -> bool:
        """`namespace`: the object's, None for what has none or where it is unknown."""
        if self._rules and not any(_fits(rule, attempt) for rule in self._rules):
            return False
        if any(_fits(rule, attempt) for rule in self._without):
            return False
        return self._in_namespace(attempt, namespace) and self._is_object(attempt)

    def _in_namespace(self, attempt: Attempt, namespace: Object | None) -> bool:
        if self._namespaces.everything:
            return True
        if attempt.res == NAMESPACES:
            # A namespace is judged by its own labels.
            return any(self._namespaces.matches(_labels(o)) for o in (attempt.obj, attempt.old) if o)
        if not attempt.res.namespaced:
            return True
        return self._namespaces.matches(_labels(namespace or {}))

    def _is_object(self, attempt: Attempt) -> bool:
        if self._objects.everything:
            return True
        return any(self._objects.matches(_labels(o)) for o in (attempt.obj, attempt.old) if o is not None)


def _labels(obj: Object) -> Mapping[str, str]:
    return (obj.get("metadata") or {}).get("labels") or {}


def _kind_fits(rule: Rule, operation: str, res: Resource, subresource: str) -> bool:
    if not ("*" in rule.operations or operation in rule.operations):
        return False
    if not ("*" in rule.apiGroups or res.group in rule.apiGroups):
        return False
    if not ("*" in rule.apiVersions or res.version in rule.apiVersions):
        return False
    if rule.scope != "*" and (rule.scope == "Namespaced") != res.namespaced:
        return False
    return any(_names(pattern, res.resource, subresource) for pattern in rule.resources)


def _names(pattern: str, resource: str, subresource: str) -> bool:
    """`pods`, `pods/status`, `*/status`, `*` (no subresources), `*/*`; `pods/*` is pods themselves too, as the API server
    reads it."""
    kind, _, sub = pattern.partition("/")
    return kind in ("*", resource) and (sub == subresource or sub == "*")


def _fits(rule: Rule, attempt: Attempt) -> bool:
    if not _kind_fits(rule, attempt.operation, attempt.res, attempt.subresource):
        return False
    return not rule.resourceNames or attempt.name in rule.resourceNames
