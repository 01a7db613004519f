"""Which requests the audit log tells of, and how much: a policy file in Kubernetes' form. [pure]

The first rule that matches a request decides; what no rule matches is not told of. Whatever the file says, the bodies of what
holds secrets (Secrets, tokens of service accounts, reviews of tokens, join tokens) are never part of an event.

Source: the Kubernetes documentation, "Auditing", and the reference of audit.k8s.io/v1 Policy.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from security.rbac import Request, User

LEVELS: Final = ("None", "Metadata", "Request", "RequestResponse")
RECEIVED, STARTED, COMPLETE, PANIC = "RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"
STAGES: Final = (RECEIVED, STARTED, COMPLETE, PANIC)
RULES_MAX: Final = 1000
_METADATA: Final = LEVELS.index("Metadata")
_SECRET: Final = frozenset(
    (
        ("", "secrets", ""),
        ("", "serviceaccounts", "token"),
        ("authentication.k8s.io", "tokenreviews", ""),
        ("cloudhub.dev", "jointokens", ""),
    )
)
"""(group, resource, subresource) of which no body is told; any subresource of them neither."""
_SECRET_PATHS: Final = ("/cloudhub/users",)


class PolicyError(Exception):
    """The policy cannot be used. The message says where and why."""


class Resources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """GroupResources: without `resources` all of the group."""

    group: str = ""
    resources: tuple[str, ...] = ()
    resourceNames: tuple[str, ...] = ()


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    level: str
    users: tuple[str, ...] = ()
    userGroups: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    resources: tuple[Resources, ...] = ()
    namespaces: tuple[str, ...] = ()
    nonResourceURLs: tuple[str, ...] = ()
    omitStages: tuple[str, ...] = ()
    omitManagedFields: bool | None = None


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    apiVersion: str
    kind: str
    rules: tuple[Rule, ...]
    metadata: dict[str, Any] | None = None
    omitStages: tuple[str, ...] = ()
    omitManagedFields: bool = False

    def decide(self, user: User, wanted: Request) -> tuple[str, frozenset[str]]:
        """(level, stages that are not told of)."""
        for rule in self.rules:
            if _matches(rule, user, wanted):
                level = rule.level
                if LEVELS.index(level) > _METADATA and _is_secret(wanted):
                    level = "Metadata"
                return level, frozenset((*self.omitStages, *rule.omitStages))
        return "None", frozenset()


def parse(value: Any) -> Policy:
    """From the decoded file. Raises PolicyError."""
    try:
        policy = msgspec.convert(value, Policy)
    except msgspec.ValidationError as wrong:
        raise PolicyError(str(wrong)) from wrong
    if (policy.apiVersion, policy.kind) != ("audit.k8s.io/v1", "Policy"):
        raise PolicyError(f"is {policy.apiVersion} {policy.kind}; audit.k8s.io/v1 Policy is expected")
    if not 1 <= len(policy.rules) <= RULES_MAX:
        raise PolicyError(f"has {len(policy.rules)} rules; 1 to {RULES_MAX} are served")
    for i, rule in enumerate(policy.rules):
        if rule.level not in LEVELS:
            raise PolicyError(f"rules[{i}].level: {rule.level!r} is none of {', '.join(LEVELS)}")
        if rule.nonResourceURLs and (rule.resources or rule.namespaces):
            raise PolicyError(f"rules[{i}]: nonResourceURLs do not go with resources or namespaces")
        _check_stages(f"rules[{i}].omitStages", rule.omitStages)
    _check_stages("omitStages", policy.omitStages)
    return policy


def _check_stages(where: str, stages: Sequence[str]) -> None:
    for stage in stages:
        if stage not in STAGES:
            raise PolicyError(f"{where}: {stage!r} is none of {', '.join(STAGES)}")


def _is_secret(wanted: Request) -> bool:
    return wanted.path in _SECRET_PATHS or any(
        (wanted.group, wanted.resource) == (group, resource) and subresource in ("", wanted.subresource)
        for group, resource, subresource in _SECRET
    )


def _matches(rule: Rule, user: User, wanted: Request) -> bool:
    if rule.users and user.name not in rule.users:
        return False
    if rule.userGroups and not any(group in rule.userGroups for group in user.groups):
        return False
    if rule.verbs and "*" not in rule.verbs and wanted.verb not in rule.verbs:
        return False
    if rule.namespaces or rule.resources:
        return _matches_resource(rule, wanted)
    if rule.nonResourceURLs:
        return not wanted.resource and any(_path(url, wanted.path) for url in rule.nonResourceURLs)
    return True


def _matches_resource(rule: Rule, wanted: Request) -> bool:
    if not wanted.resource or (rule.namespaces and wanted.namespace not in rule.namespaces):
        return False
    full = f"{wanted.resource}/{wanted.subresource}" if wanted.subresource else wanted.resource
    for chosen in rule.resources:
        if chosen.group != wanted.group:
            continue
        if not chosen.resources:
            return True
        if chosen.resourceNames and wanted.name not in chosen.resourceNames:
            continue
        for pattern in chosen.resources:
            head, _, tail = pattern.partition("/")
            if pattern in ("*", full) or (tail == "*" and head == wanted.resource):
                return True
            if head == "*" and tail and tail == wanted.subresource:
                return True
    return not rule.resources


def _path(pattern: str, path: str) -> bool:
    return pattern in ("*", path) or (pattern.endswith("*") and path.startswith(pattern[:-1]))
