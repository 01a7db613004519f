"""What a user may ask about itself: who am I, may I do this, what may I do. [pure]

Job: answer `kubectl auth whoami` and `kubectl auth can-i` from the authorizer that every request passes. Nothing is
stored; every authenticated user may ask, as in Kubernetes (system:basic-user).

Source: the Kubernetes API reference, SelfSubjectReview, SelfSubjectAccessReview, SelfSubjectRulesReview.
"""

import functools
from typing import Any, Final

from hub import errors
from hub.api import decode, schema
from hub.api.auth import NOBODY, PUBLIC_PATHS, Attributes, User, authorize
from hub.api.schema import Resource

Object = dict[str, Any]
VERBS: Final = ["create"]


@functools.cache
def _by_path() -> dict[str, Resource]:
    return {f"/apis/{r.group}/{r.version}/{r.plural}": r for r in schema.REVIEWS}


def review_at(path: str) -> Resource | None:
    """The review that is asked for by a POST to the path."""
    return _by_path().get(path.rstrip("/"))


def answer(review: Resource, value: Any, user: User, field_validation: str) -> tuple[Object, list[str]]:
    """(the review with its status, warnings). Raises BadRequest, Invalid, Unauthorized."""
    if user is NOBODY:
        raise errors.Unauthorized("a client certificate is required: use the kubeconfig that the hub wrote")
    decoded = decode.decode(review, value)
    warnings = decode.field_warnings(review, decoded, field_validation)
    spec = decoded.object.get("spec", {})
    if review.kind == "SelfSubjectReview":
        status: Object = {"userInfo": {"username": user.name, "groups": list(user.groups)}}
    elif review.kind == "SelfSubjectAccessReview":
        status = _access(review, spec, user)
    else:
        status = _rules(user)
    return {**decoded.object, "status": status}, warnings


def _access(review: Resource, spec: Object, user: User) -> Object:
    resource, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if (resource is None) == (path is None):
        cause = errors.invalid(
            "spec.resourceAttributes",
            resource,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )
        raise errors.Invalid(review.kind, "", [cause], group=review.group)
    if resource is not None:
        names = ("verb", "group", "resource", "subresource", "namespace", "name")
        given = {name: resource.get(name, "") for name in names}
        # An empty resource would be taken for a path; as in Kubernetes it means none.
        wanted = Attributes(path="", **{**given, "resource": given["resource"] or "*"})
    else:
        assert path is not None
        wanted = Attributes(path.get("verb", ""), path.get("path", ""))
    try:
        authorize(user, wanted)
    except errors.Forbidden as refusal:
        return {"allowed": False, "reason": refusal.message}
    return {"allowed": True}


def _rules(user: User) -> Object:
    """What the user may do, in the form of RBAC rules."""
    if user.is_master:
        everything: Object = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}
        paths: Object = {"verbs": ["*"], "nonResourceURLs": ["*"]}
        return {"resourceRules": [everything], "nonResourceRules": [paths], "incomplete": False}
    paths = {"verbs": ["get"], "nonResourceURLs": sorted({*PUBLIC_PATHS, "/livez/*", "/readyz/*"})}
    asking = [{"verbs": list(VERBS), "apiGroups": [r.group], "resources": [r.plural]} for r in schema.REVIEWS]
    return {"resourceRules": asking, "nonResourceRules": [paths], "incomplete": False}
