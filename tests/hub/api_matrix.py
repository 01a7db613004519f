"""The cases of the API's half of the matrix: every kind of identity x everything that can be asked x whose it is.

What must come out is said here once more, by hand and without roles, so that a default role that was widened, a check
that was left out and a credential that was taken for a good one each make a case fail.
"""

import itertools
from typing import Final, NamedTuple

VERBS: Final = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
NAMESPACED: Final = (
    ("", "pods"), ("", "secrets"), ("", "configmaps"), ("", "serviceaccounts"), ("", "events"), ("apps", "deployments"),
    ("coordination.k8s.io", "leases"), ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
)  # fmt: skip
CLUSTER: Final = (
    ("", "nodes"), ("", "namespaces"), ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"), ("cloudhub.dev", "jointokens"),
    ("cloudhub.dev", "revocations"),
)  # fmt: skip
SUBRESOURCES: Final = (
    ("", "pods", "log", "get"), ("", "pods", "exec", "create"), ("", "pods", "attach", "create"),
    ("", "pods", "portforward", "create"), ("", "pods", "binding", "create"), ("", "pods", "eviction", "create"),
    ("", "pods", "status", "update"), ("", "serviceaccounts", "token", "create"), ("apps", "deployments", "scale", "patch"),
    ("", "nodes", "status", "patch"), ("", "namespaces", "finalize", "update"), ("", "namespaces", "status", "patch"),
)  # fmt: skip
REVIEWS: Final = (
    ("authentication.k8s.io", "tokenreviews", ""), ("authentication.k8s.io", "selfsubjectreviews", ""),
    ("authorization.k8s.io", "subjectaccessreviews", ""), ("authorization.k8s.io", "selfsubjectaccessreviews", ""),
    ("authorization.k8s.io", "selfsubjectrulesreviews", ""), ("authorization.k8s.io", "localsubjectaccessreviews", "own"),
    ("authorization.k8s.io", "localsubjectaccessreviews", "other"),
)  # fmt: skip
PATHS: Final = (
    "/", "/api", "/api/v1", "/apis", "/apis/apps/v1", "/openapi/v2", "/openapi/v3", "/metrics", "/metrics/", "/debug/pprof",
    "/cloudhub/status",
)  # fmt: skip
DISCOVERY: Final = ("/api", "/api/v1", "/apis", "/apis/apps/v1", "/openapi/v2", "/openapi/v3")
VERSIONS: Final = {"cloudhub.dev": "v1alpha1"}
OWN, OTHER = "own", "other"
METHODS: Final = {
    "get": "GET", "list": "GET", "watch": "GET", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE",
    "deletecollection": "DELETE",
}  # fmt: skip


class Case(NamedTuple):
    """One request. `namespace`: OWN, OTHER, or "" for what is in none, or all of them. `resource` "": a path."""

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    @property
    def scope(self) -> str:
        """Whose it is. A namespace belongs to itself."""
        return self.name if self.resource == "namespaces" else self.namespace

    @property
    def method(self) -> str:
        return METHODS[self.verb]

    @property
    def url(self) -> str:
        if self.path:
            return self.path
        version = VERSIONS.get(self.group, "v1")
        parts = [f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"]
        parts += [f"namespaces/{self.namespace}"] if self.namespace else []
        url = "/".join([*parts, *filter(None, (self.resource, self.name, self.subresource))])
        return url + ("?watch=1" if self.verb == "watch" else "")


def cases() -> list[Case]:
    found = []
    for (group, resource), verb, namespace in itertools.product(NAMESPACED, VERBS, (OWN, OTHER)):
        name = "" if verb in ("list", "watch", "create", "deletecollection") else "x"
        found.append(Case(verb, group, resource, "", namespace, name))
    found += [
        Case(verb, group, resource)
        for (group, resource), verb in itertools.product(NAMESPACED, ("list", "watch"))
    ]
    for (group, resource), verb in itertools.product(CLUSTER, VERBS):
        name = "" if verb in ("list", "watch", "create", "deletecollection") else "x"
        found.append(Case(verb, group, resource, name=name))
    found += [
        Case(verb, "", "namespaces", name=name)
        for verb, name in itertools.product(("get", "update", "patch", "delete"), (OWN, OTHER))
    ]
    for group, resource, sub, verb in SUBRESOURCES:
        scopes = (OWN, OTHER) if (group, resource) in NAMESPACED else ("",)
        found += [Case(verb, group, resource, sub, namespace, "x") for namespace in scopes]
    found += [Case("create", group, resource, "", namespace) for group, resource, namespace in REVIEWS]
    found += [Case("get", path=path) for path in PATHS]
    return found


WRITES: Final = frozenset(("create", "update", "patch", "delete", "deletecollection"))
SELF: Final = frozenset(("selfsubjectreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews"))
VIEWED: Final = frozenset(("pods", "configmaps", "events", "serviceaccounts", "deployments", "namespaces"))


def may_anybody(case: Case) -> bool:
    """What everybody may whom the hub knows."""
    return case.resource in SELF or case.path in DISCOVERY


def may_tenant(case: Case) -> bool:
    """Bound to all there is in its namespace by a Role, and to nothing elsewhere."""
    return may_anybody(case) or (bool(case.resource) and case.scope == OWN)


def may_viewer(case: Case) -> bool:
    """Bound to the default role view in its namespace."""
    if may_anybody(case):
        return True
    reads = case.verb not in WRITES and case.subresource in ("", "log")
    return reads and case.scope == OWN and case.resource in VIEWED


def may_named(case: Case) -> bool:
    """May get the one Secret `mine` in its namespace: no case asks for that one."""
    return may_anybody(case)


def may_editor(case: Case) -> bool:
    """Bound to the default role edit in its namespace: all but the namespace, roles, reviews about others, and states that others report."""
    if may_viewer(case):
        return True
    if case.scope != OWN or case.group in ("rbac.authorization.k8s.io", "authorization.k8s.io"):
        return False
    return case.resource != "namespaces" and case.subresource not in ("status", "binding")
