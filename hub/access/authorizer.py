"""May this user do that? Default deny.

The group system:masters passes, whatever the roles say; health paths are everybody's; else a rule that a role gives must
allow it. Nobody gives away what he does not have (`check_grant`): a role may only hold rules, and a binding only give a
role, that its author has himself, but for who has the verb `escalate` on the role, or `bind` on what is bound.

Source: the Kubernetes documentation, "Using RBAC Authorization": privilege escalation prevention and bootstrapping.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from hub import errors
from hub.access import signers
from hub.objects import (
    CERTIFICATESIGNINGREQUESTS,
    CLUSTERROLEBINDINGS,
    CLUSTERROLES,
    RBAC,
    ROLEBINDINGS,
    ROLES,
    Resource,
)
from security import rbac_defaults
from security.rbac import (
    AggregationRule,
    Binding,
    Policy,
    Request,
    Role,
    RoleRef,
    Rule,
    Subject,
    User,
    covers,
    singles,
)

ANONYMOUS: Final = "system:anonymous"
AUTHENTICATED: Final = "system:authenticated"
UNAUTHENTICATED: Final = "system:unauthenticated"
PUBLIC_PATHS: Final = frozenset(("/livez", "/readyz", "/healthz", "/version", "/version/"))
EVERYTHING: Final = (Rule(("*",), ("*",), ("*",)), Rule(("*",), nonResourceURLs=("*",)))
_THREAD_SINGLES_MIN: Final = 200
"""Of a role to be given away: more are compared beside the loop."""
_SHOWN_MAX: Final = 10
NOBODY: Final = User(ANONYMOUS, (UNAUTHENTICATED,))
_SIGN_IN: Final = "a client certificate or a token is required: use the kubeconfig that the hub wrote"
Object = dict[str, Any]


def is_public(path: str) -> bool:
    """Paths that say nothing of the fleet: probes have no credentials."""
    return path in PUBLIC_PATHS or (path.startswith(("/livez/", "/readyz/")) and path.count("/") == 2)


class Refused(errors.Forbidden):
    """A right is missing: `asked`."""

    def __init__(self, user: User, asked: Request) -> None:
        super().__init__(asked.resource, asked.name, f'User "{user.name}" cannot {asked}', group=asked.group)
        self.asked = asked


class Authorizer:
    """Decides from a policy that somebody else keeps up to date."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def reason(self, user: User, wanted: Request) -> str:
        """Why it is allowed; "" when it is not."""
        if user.is_master:
            return "the group system:masters may do everything"
        if not wanted.resource and wanted.verb in ("get", "head") and is_public(wanted.path):
            return "everybody may ask for health and version"
        by = self._policy.allowed(user, wanted)
        return f"RBAC: allowed by {by}" if by else ""

    def authorize(self, user: User, wanted: Request) -> str:
        """Why it is allowed. Raises Refused, or Unauthorized for who did not say who they are."""
        why = self.reason(user, wanted)
        if why:
            return why
        if user.name == ANONYMOUS:
            raise errors.Unauthorized(_SIGN_IN)
        raise Refused(user, wanted)

    def rules(self, user: User, namespace: str) -> list[Rule]:
        """All that the user may do in the namespace."""
        return list(EVERYTHING) if user.is_master else self._policy.rules(user, namespace)

    async def check_grant(self, user: User, res: Resource, obj: Object, old: Object | None) -> None:
        """For every write of an object that is about to be stored. Raises Forbidden, and NotFound for a binding of a role that
        does not exist. `old`: None at a create."""
        if user.is_master:
            return
        if res in (ROLES, CLUSTERROLES):
            await self._check_role(user, res, obj, old)
        elif res in (ROLEBINDINGS, CLUSTERROLEBINDINGS):
            await self._check_binding(user, obj, old)
        elif res == CERTIFICATESIGNINGREQUESTS:
            for one, domain in signers.asked(obj, old):
                if not self.reason(user, domain):
                    self.authorize(user, one)

    async def _check_role(self, user: User, res: Resource, obj: Object, old: Object | None) -> None:
        fields = ("rules", "aggregationRule")
        if old is not None and all(obj.get(field) == old.get(field) for field in fields):
            return
        meta = obj["metadata"]
        namespace = meta.get("namespace", "")
        asked = Request("escalate", RBAC, res.resource, namespace=namespace, name=meta["name"])
        if self.reason(user, asked):
            return
        rules = EVERYTHING if obj.get("aggregationRule") else _rules(obj)
        await self._check_covered(user, namespace, rules, res, meta["name"])

    async def _check_binding(self, user: User, obj: Object, old: Object | None) -> None:
        if old is not None and obj.get("subjects") == old.get("subjects"):
            return
        meta, ref = obj["metadata"], msgspec.convert(obj["roleRef"], RoleRef)
        namespace = meta.get("namespace", "")
        role = ROLES if ref.kind == "Role" else CLUSTERROLES
        if self.reason(user, Request("bind", RBAC, role.resource, namespace=namespace, name=ref.name)):
            return
        rules = self._policy.rules_of(ref, namespace)
        if rules is None:
            raise errors.NotFound(role.resource, ref.name, group=RBAC)
        res = ROLEBINDINGS if namespace else CLUSTERROLEBINDINGS
        await self._check_covered(user, namespace, rules, res, meta["name"])

    async def _check_covered(
        self, user: User, namespace: str, rules: Sequence[Rule], res: Resource, name: str
    ) -> None:
        held = self.rules(user, namespace)
        if sum(singles(rule) for rule in rules) < _THREAD_SINGLES_MIN:
            missing = uncovered(held, rules)
        else:
            missing = await asyncio.to_thread(uncovered, held, rules)
        if missing:
            shown = "\n".join(str(msgspec.to_builtins(rule)) for rule in missing[:_SHOWN_MAX])
            raise errors.Forbidden(
                res.resource,
                name,
                f'user "{user.name}" is attempting to grant RBAC permissions not currently held:\n{shown}',
                group=RBAC,
            )


def uncovered(held: Sequence[Rule], rules: Sequence[Rule]) -> list[Rule]:
    """Those of `rules` that say more than `held` does. [pure]"""
    return [rule for rule in rules if not covers(held, rule)]


def _rules(obj: Object) -> tuple[Rule, ...]:
    return tuple(msgspec.convert(rule, Rule) for rule in obj.get("rules") or ())


def default_policy() -> Policy:
    """The policy of the default roles and bindings alone: of a hub whose objects live elsewhere."""
    policy = Policy()
    for obj in rbac_defaults.cluster_roles():
        meta, aggregation = obj["metadata"], obj.get("aggregationRule")
        found = msgspec.convert(aggregation, AggregationRule) if aggregation else None
        policy.put_role(Role("", meta["name"], _rules(obj), tuple(meta["labels"].items()), found))
    for obj in rbac_defaults.cluster_role_bindings():
        subjects = tuple(msgspec.convert(subject, Subject) for subject in obj["subjects"])
        ref = msgspec.convert(obj["roleRef"], RoleRef)
        policy.put_binding(Binding("", obj["metadata"]["name"], ref, subjects))
    return policy
