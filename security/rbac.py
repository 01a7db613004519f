"""Role-based access control: which rules a user has, and whether they allow a request. [pure]

Job: Kubernetes' RBAC over Roles, ClusterRoles and their bindings, as the API stores them. Rules only add up: nothing
denies, and what no rule allows is refused. Wildcards are `*` for verbs, groups and resources, `*/sub` for a
subresource of everything, and a trailing `*` in a path.

Invariants: a namespaced binding gives nothing outside its namespace, whatever role it names; a role that is bound and
does not exist gives nothing; a name that is listed in `resourceNames` never allows a request that names no object,
except `deletecollection`, `list` and `watch` that the caller restricted to that name (`metadata.name=`).

Source: the Kubernetes documentation, "Using RBAC Authorization".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

RBAC_GROUP = "rbac.authorization.k8s.io"
SERVICE_ACCOUNT_PREFIX = "system:serviceaccount:"
MASTERS = "system:masters"
ALL = "*"


class Rule(msgspec.Struct, frozen=True):
    """A PolicyRule: of resources, or of paths."""

    verbs: tuple[str, ...] = ()
    apiGroups: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    resourceNames: tuple[str, ...] = ()
    nonResourceURLs: tuple[str, ...] = ()


class Subject(msgspec.Struct, frozen=True):
    """Whom a binding names: a User, a Group or a ServiceAccount."""

    kind: str
    name: str
    namespace: str = ""
    apiGroup: str = ""


class RoleRef(msgspec.Struct, frozen=True):
    """What a binding gives: a Role of its own namespace or a ClusterRole."""

    kind: str
    name: str
    apiGroup: str = RBAC_GROUP


class LabelSelector(msgspec.Struct, frozen=True):
    """Of an aggregation rule; only matchLabels, as the built-in roles use."""

    matchLabels: dict[str, str] | None = None


class AggregationRule(msgspec.Struct, frozen=True):
    clusterRoleSelectors: tuple[LabelSelector, ...] = ()


@dataclass(frozen=True, slots=True)
class User:
    """Who asks. `extra`: what an authenticator knows beside, such as the pod that a token is bound to."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def is_master(self) -> bool:
        """May do everything, whatever the roles say, so that nobody can lock all administrators out."""
        return MASTERS in self.groups


@dataclass(frozen=True, slots=True)
class Request:
    """What is wanted. `resource` "" is a request for a path; `name` "" names no object."""

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    def __str__(self) -> str:
        """As Kubernetes words it: `get resource "pods" in API group "" in the namespace "shop"`."""
        if not self.resource:
            return f'{self.verb} path "{self.path}"'
        what = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        where = f'in the namespace "{self.namespace}"' if self.namespace else "at the cluster scope"
        return f'{self.verb} resource "{what}" in API group "{self.group}" {where}'


@dataclass(frozen=True, slots=True)
class Role:
    """`namespace` "" is a ClusterRole."""

    namespace: str
    name: str
    rules: tuple[Rule, ...]
    labels: tuple[tuple[str, str], ...] = ()
    aggregation: AggregationRule | None = None


@dataclass(frozen=True, slots=True)
class Binding:
    """`namespace` "" is a ClusterRoleBinding."""

    namespace: str
    name: str
    role: RoleRef
    subjects: tuple[Subject, ...]


def allows(rule: Rule, wanted: Request) -> bool:
    """Does this one rule allow the request, wherever it is bound?"""
    if not _has(rule.verbs, wanted.verb):
        return False
    if not wanted.resource:
        return any(_path_matches(pattern, wanted.path) for pattern in rule.nonResourceURLs)
    if not _has(rule.apiGroups, wanted.group) or not _resource_matches(rule.resources, wanted):
        return False
    return not rule.resourceNames or wanted.name in rule.resourceNames


def covers(held: Sequence[Rule], wanted: Rule) -> bool:
    """Is all that `wanted` allows allowed by `held` too? Who may not do something must not give it to others."""
    return all(any(_covers_one(rule, single) for rule in held) for single in _singles(wanted))


def singles(rule: Rule) -> int:
    """Of how many combinations of verb, group, resource and name the rule is made: what `covers` looks at."""
    objects = len(rule.apiGroups) * len(rule.resources) * max(1, len(rule.resourceNames))
    return len(rule.verbs) * (objects + len(rule.nonResourceURLs))


class Policy:
    """All roles and bindings of one fleet, by key; changed as their objects change.

    What a decision costs does not depend on the number of bindings: they are filed by whom they mean."""

    def __init__(self) -> None:
        self._roles: dict[tuple[str, str], Role] = {}
        self._bindings: dict[tuple[str, str], Binding] = {}
        self._meant: dict[tuple[str, str], dict[str, Binding]] = {}
        """(namespace or "", subject) -> the bindings that mean it, by name."""
        self._aggregated: dict[str, tuple[Rule, ...]] = {}

    def put_role(self, role: Role) -> None:
        self._roles[role.namespace, role.name] = role
        self._aggregated.clear()

    def drop_role(self, namespace: str, name: str) -> None:
        self._roles.pop((namespace, name), None)
        self._aggregated.clear()

    def put_binding(self, binding: Binding) -> None:
        self.drop_binding(binding.namespace, binding.name)
        self._bindings[binding.namespace, binding.name] = binding
        for key in _filed_under(binding):
            self._meant.setdefault((binding.namespace, key), {})[binding.name] = binding

    def drop_binding(self, namespace: str, name: str) -> None:
        binding = self._bindings.pop((namespace, name), None)
        if binding is None:
            return
        for key in _filed_under(binding):
            held = self._meant[namespace, key]
            del held[name]
            if not held:
                del self._meant[namespace, key]

    def role(self, namespace: str, name: str) -> Role | None:
        return self._roles.get((namespace, name))

    def allowed(self, user: User, wanted: Request) -> str:
        """By which binding the request is allowed, "" when it is not."""
        for binding, rules in self._given(user, wanted.namespace if wanted.resource else ""):
            if any(allows(rule, wanted) for rule in rules):
                kind = "RoleBinding" if binding.namespace else "ClusterRoleBinding"
                at = f"{binding.namespace}/" if binding.namespace else ""
                return f'{kind} "{at}{binding.name}" of {binding.role.kind} "{binding.role.name}"'
        return ""

    def rules(self, user: User, namespace: str) -> list[Rule]:
        """All that the user has in the namespace ("" only what holds everywhere)."""
        return [rule for _, rules in self._given(user, namespace) for rule in rules]

    def rules_of(self, ref: RoleRef, namespace: str) -> tuple[Rule, ...] | None:
        """The rules that a binding in `namespace` would give; None: there is no such role."""
        role = self._roles.get((namespace if ref.kind == "Role" else "", ref.name))
        if role is None or (ref.kind == "Role" and not namespace):
            return None
        return self._effective(role)

    def _given(self, user: User, namespace: str) -> Iterator[tuple[Binding, tuple[Rule, ...]]]:
        keys = (_USER + user.name, *(_GROUP + group for group in user.groups))
        for at in ("", namespace) if namespace else ("",):
            for key in keys:
                for binding in self._meant.get((at, key), {}).values():
                    rules = self.rules_of(binding.role, at)
                    if rules:
                        yield binding, rules

    def _effective(self, role: Role) -> tuple[Rule, ...]:
        if role.aggregation is None:
            return role.rules
        found = self._aggregated.get(role.name)
        if found is None:
            found = tuple(dict.fromkeys(rule for r in self._aggregates(role, set()) for rule in r.rules))
            self._aggregated[role.name] = found
        return found

    def _aggregates(self, role: Role, seen: set[str]) -> Iterator[Role]:
        """The cluster roles that make up an aggregating one, in the order of their names."""
        if role.aggregation is None:
            yield role
            return
        seen.add(role.name)
        for (namespace, name), other in sorted(self._roles.items(), key=lambda item: item[0]):
            if namespace or name in seen:
                continue
            labels = dict(other.labels)
            for selector in role.aggregation.clusterRoleSelectors:
                wanted = selector.matchLabels
                if wanted and all(labels.get(k) == v for k, v in wanted.items()):
                    yield from self._aggregates(other, seen)
                    break


_USER, _GROUP = "u ", "g "


def _filed_under(binding: Binding) -> set[str]:
    """The users and groups that the binding means. A ServiceAccount that names no namespace is of the binding's."""
    found = set()
    for subject in binding.subjects:
        at = subject.namespace or binding.namespace
        if subject.kind == "User":
            found.add(_USER + subject.name)
        elif subject.kind == "Group":
            found.add(_GROUP + subject.name)
        elif subject.kind == "ServiceAccount" and at:
            found.add(f"{_USER}{SERVICE_ACCOUNT_PREFIX}{at}:{subject.name}")
    return found


def _has(patterns: Sequence[str], word: str) -> bool:
    return ALL in patterns or word in patterns


def _resource_matches(patterns: Sequence[str], wanted: Request) -> bool:
    if ALL in patterns:
        return True
    full = f"{wanted.resource}/{wanted.subresource}" if wanted.subresource else wanted.resource
    return full in patterns or (bool(wanted.subresource) and f"*/{wanted.subresource}" in patterns)


def _path_matches(pattern: str, path: str) -> bool:
    if pattern in (ALL, path):
        return True
    return pattern.endswith("*") and path.startswith(pattern[:-1])


def _singles(rule: Rule) -> Iterator[Rule]:
    """The rule as rules of one verb and one object kind, name or path each."""
    for verb in rule.verbs:
        for url in rule.nonResourceURLs:
            yield Rule((verb,), nonResourceURLs=(url,))
        for group in rule.apiGroups:
            for resource in rule.resources:
                for name in rule.resourceNames or ("",):
                    yield Rule((verb,), (group,), (resource,), (name,) if name else ())


def _covers_one(held: Rule, single: Rule) -> bool:
    if not _has(held.verbs, single.verbs[0]):
        return False
    if single.nonResourceURLs:
        url = single.nonResourceURLs[0]
        return any(_path_covers(pattern, url) for pattern in held.nonResourceURLs)
    if not _has(held.apiGroups, single.apiGroups[0]) or not _resource_covers(
        held.resources, single.resources[0]
    ):
        return False
    return not held.resourceNames or (
        bool(single.resourceNames) and single.resourceNames[0] in held.resourceNames
    )


def _resource_covers(patterns: Sequence[str], resource: str) -> bool:
    if ALL in patterns or resource in patterns:
        return True
    _, slash, sub = resource.partition("/")
    return bool(slash) and f"*/{sub}" in patterns


def _path_covers(pattern: str, url: str) -> bool:
    if pattern in (ALL, url):
        return True
    return pattern.endswith("*") and url.removesuffix("*").startswith(pattern[:-1])
