"""Questions about rights and identities: who am I, may I (or somebody) do this, what may I do, whose token is this.

Job: answer from the authorizer that every request passes, and from what verifies tokens. Nothing is stored. Who may ask what
is itself a matter of roles: everybody about himself (system:basic-user), and who checks others for them about anybody
(system:auth-delegator).

Source: the Kubernetes API reference, SelfSubjectReview, SelfSubjectAccessReview, SelfSubjectRulesReview,
SubjectAccessReview, LocalSubjectAccessReview, TokenReview.
"""

import functools
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from hub import errors
from hub.access.authorizer import Authorizer
from hub.access.tokens import Tokens
from hub.api import decode, schema
from hub.api.schema import Resource
from security.jwt import TokenError
from security.rbac import Request, User

Object = dict[str, Any]
VERBS: Final = ["create"]
_ATTRIBUTES: Final = ("verb", "group", "resource", "subresource", "namespace", "name")


@dataclass(frozen=True, slots=True)
class Asked:
    """Which review a path asks for, and in which namespace ("" for most)."""

    review: Resource
    namespace: str

    @property
    def request(self) -> Request:
        """What the right to ask is called."""
        return Request("create", self.review.group, self.review.plural, namespace=self.namespace)


@functools.cache
def _by_path() -> dict[tuple[str, str], Resource]:
    return {(f"/apis/{r.group}/{r.version}", r.plural): r for r in schema.REVIEWS}


def review_at(path: str) -> Asked | None:
    """The review that is asked for by a POST to the path."""
    if not path.startswith("/apis/auth"):
        return None
    base, _, plural = path.rstrip("/").rpartition("/")
    namespace = ""
    if "/namespaces/" in base:
        base, _, namespace = base.partition("/namespaces/")
    found = _by_path().get((base, plural))
    if found is None or found.namespaced != bool(namespace) or "/" in namespace:
        return None
    return Asked(found, namespace)


class Reviews:
    """Answers reviews. Without `tokens` every token is unknown."""

    def __init__(self, authorizer: Authorizer, tokens: Tokens | None) -> None:
        self._authorizer = authorizer
        self._tokens = tokens

    async def answer(
        self, asked: Asked, value: Any, user: User, field_validation: str, now: float
    ) -> tuple[Object, list[str]]:
        """(the review with its status, warnings). `now`: unix seconds. Raises BadRequest, Invalid."""
        review = asked.review
        decoded = decode.decode(review, value)
        warnings = decode.field_warnings(review, decoded, field_validation)
        spec = decoded.object.get("spec", {})
        if review.kind == "SelfSubjectReview":
            status: Object = {"userInfo": user_info(user)}
        elif review.kind == "SelfSubjectAccessReview":
            status = self._access(review, spec, user)
        elif review.kind == "SelfSubjectRulesReview":
            status = self._rules(spec.get("namespace", ""), user)
        elif review.kind == "TokenReview":
            # The token is not given back: what is answered may be logged.
            status = await self._token(spec, now)
            return {
                **decoded.object,
                "spec": {k: v for k, v in spec.items() if k != "token"},
                "status": status,
            }, warnings
        else:
            status = self._access(review, spec, _subject(review, spec), asked.namespace)
        return {**decoded.object, "status": status}, warnings

    def _access(self, review: Resource, spec: Object, user: User, namespace: str = "") -> Object:
        wanted = _wanted(review, spec)
        if namespace and wanted.namespace != namespace:
            cause = errors.invalid(
                "spec.resourceAttributes.namespace", wanted.namespace, f"must match metadata.namespace: {namespace}"
            )  # fmt: skip
            raise errors.Invalid(review.kind, "", [cause], group=review.group)
        reason = self._authorizer.reason(user, wanted)
        return {"allowed": True, "reason": reason} if reason else {
            "allowed": False, "reason": f'User "{user.name}" cannot {wanted}'
        }  # fmt: skip

    def _rules(self, namespace: str, user: User) -> Object:
        """What the user may do, in the form of RBAC rules."""
        paths: list[Object] = []
        resources: list[Object] = []
        for rule in dict.fromkeys(self._authorizer.rules(user, namespace)):
            shown = {k: v for k, v in msgspec.to_builtins(rule).items() if v}
            (paths if rule.nonResourceURLs else resources).append(shown)
        return {"resourceRules": resources, "nonResourceRules": paths, "incomplete": False}

    async def _token(self, spec: Object, now: float) -> Object:
        token, audiences = spec.get("token", ""), spec.get("audiences", [])
        if not token:
            raise errors.BadRequest("token is required for TokenReview in authentication")
        if self._tokens is None:
            return {"authenticated": False, "user": {}, "error": "this hub issues no tokens"}
        try:
            user, meant = await self._tokens.user(token, now, audiences)
        except TokenError as refused:
            return {"authenticated": False, "user": {}, "error": str(refused)}
        return {"authenticated": True, "user": user_info(user), "audiences": meant}


def user_info(user: User) -> Object:
    """A UserInfo: as reviews and the audit log show a user."""
    info: Object = {"username": user.name}
    if user.uid:
        info["uid"] = user.uid
    if user.groups:
        info["groups"] = list(user.groups)
    if user.extra:
        info["extra"] = {key: list(values) for key, values in user.extra}
    return info


def _wanted(review: Resource, spec: Object) -> Request:
    resource, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if (resource is None) == (path is None):
        cause = errors.invalid(
            "spec.resourceAttributes",
            resource,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )
        raise errors.Invalid(review.kind, "", [cause], group=review.group)
    if resource is not None:
        given = {name: resource.get(name, "") for name in _ATTRIBUTES}
        # An empty resource would be taken for a path; as in Kubernetes it means none.
        return Request(**{**given, "resource": given["resource"] or "*"})
    assert path is not None
    return Request(path.get("verb", ""), path=path.get("path", ""))


def _subject(review: Resource, spec: Object) -> User:
    """Whom a SubjectAccessReview is about."""
    name, groups = spec.get("user", ""), spec.get("groups", [])
    if not name and not groups:
        cause = errors.invalid("spec.user", name, "at least one of user or group must be specified")
        raise errors.Invalid(review.kind, "", [cause], group=review.group)
    extra = tuple((key, tuple(values)) for key, values in spec.get("extra", {}).items())
    return User(name, tuple(groups), spec.get("uid", ""), extra)
