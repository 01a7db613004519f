"""The roles and bindings that a fleet begins with: Kubernetes' own, for the kinds that this hub serves. [pure]

`reconciled` is what becomes of the stored object at a start: what is missing is added (rules, subjects, labels), what an
operator added stays, and an object whose annotation rbac.authorization.kubernetes.io/autoupdate is "false" is left alone.
`admin`, `edit` and `view` aggregate, so that a role with their label extends them.

Source: the Kubernetes documentation, "Using RBAC Authorization": default roles and role bindings, auto-reconciliation.
"""

from typing import Any, Final

import msgspec

from security.rbac import RBAC_GROUP, Rule, covers

Object = dict[str, Any]

AUTOUPDATE: Final = "rbac.authorization.kubernetes.io/autoupdate"
BOOTSTRAPPING: Final = {"kubernetes.io/bootstrapping": "rbac-defaults"}
READ: Final = ["get", "list", "watch"]
WRITE: Final = ["create", "delete", "deletecollection", "patch", "update"]
_AGGREGATE: Final = RBAC_GROUP + "/aggregate-to-"
_WORKLOADS: Final = ["daemonsets", "deployments", "deployments/scale", "replicasets", "replicasets/scale"]


def cluster_roles() -> list[Object]:
    """ClusterRole objects, without uid and times."""
    return [
        _role("cluster-admin", [_rule(["*"], ["*"], ["*"]), {"verbs": ["*"], "nonResourceURLs": ["*"]}]),
        _aggregating("admin"),
        _aggregating("edit", to="admin"),
        _aggregating("view", to="edit"),
        _role(
            "system:aggregate-to-admin",
            [
                _rule([*READ, *WRITE], [RBAC_GROUP], ["roles", "rolebindings"]),
                _rule(["create"], ["authorization.k8s.io"], ["localsubjectaccessreviews"]),
            ],
            to="admin",
        ),
        _role(
            "system:aggregate-to-edit",
            [
                _rule(READ, [""], ["secrets", "pods/attach", "pods/exec", "pods/portforward"]),
                _rule(
                    WRITE,
                    [""],
                    [
                        "pods",
                        "pods/attach",
                        "pods/exec",
                        "pods/portforward",
                        "configmaps",
                        "events",
                        "secrets",
                        "serviceaccounts",
                    ],
                ),
                _rule(["create"], [""], ["pods/eviction", "serviceaccounts/token"]),
                _rule(WRITE, ["apps"], _WORKLOADS),
                _rule([*READ, *WRITE], ["coordination.k8s.io"], ["leases"]),
                _rule(["impersonate"], [""], ["serviceaccounts"]),
                _rule(WRITE, ["cloudhub.dev"], ["devices"]),
            ],
            to="edit",
        ),
        _role(
            "system:aggregate-to-view",
            [
                _rule(
                    READ,
                    [""],
                    [
                        "configmaps",
                        "events",
                        "namespaces",
                        "namespaces/status",
                        "pods",
                        "pods/log",
                        "pods/status",
                        "serviceaccounts",
                    ],
                ),
                _rule(
                    READ,
                    ["apps"],
                    [*_WORKLOADS, "daemonsets/status", "deployments/status", "replicasets/status"],
                ),
                _rule(READ, ["cloudhub.dev"], ["devices", "devices/status"]),
            ],
            to="view",
        ),
        _role(
            "system:basic-user",
            [
                _rule(
                    ["create"],
                    ["authorization.k8s.io"],
                    ["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
                ),
                _rule(["create"], ["authentication.k8s.io"], ["selfsubjectreviews"]),
            ],
        ),
        _role(
            "system:discovery",
            [
                {
                    "verbs": ["get"],
                    "nonResourceURLs": [
                        "/api",
                        "/api/*",
                        "/apis",
                        "/apis/*",
                        "/openapi",
                        "/openapi/*",
                        *_PUBLIC,
                    ],
                }
            ],
        ),
        _role(
            "system:auth-delegator",
            [
                _rule(["create"], ["authentication.k8s.io"], ["tokenreviews"]),
                _rule(["create"], ["authorization.k8s.io"], ["subjectaccessreviews"]),
            ],
        ),
        _role(
            "system:public-info-viewer",
            [{"verbs": ["get"], "nonResourceURLs": [*_PUBLIC, "/fleet", "/fleet/*"]}],
        ),
        _role(
            "cloudhub:fleet-viewer",
            [
                _rule(READ, [""], ["nodes"]),
                _rule(["get", "list"], [""], ["events", "pods"]),
                _rule(["get", "list"], ["cloudhub.dev"], ["devices"]),
                {"verbs": ["get"], "nonResourceURLs": ["/cloudhub/status"]},
            ],
        ),
        _role(
            "system:monitoring",
            [{"verbs": ["get"], "nonResourceURLs": ["/metrics", "/cloudhub/status", *_PUBLIC]}],
        ),
    ]


def cluster_role_bindings() -> list[Object]:
    """ClusterRoleBinding objects, without uid and times."""
    return [
        _binding("cluster-admin", ["system:masters"]),
        _binding("system:basic-user", ["system:authenticated"]),
        _binding("system:discovery", ["system:authenticated"]),
        _binding("system:monitoring", ["system:monitoring"]),
        _binding("system:public-info-viewer", ["system:authenticated", "system:unauthenticated"]),
    ]


_PUBLIC: Final = (
    "/healthz",
    "/healthz/*",
    "/livez",
    "/livez/*",
    "/readyz",
    "/readyz/*",
    "/version",
    "/version/",
)


def reconciled(wanted: Object, held: Object) -> Object | None:
    """`held` with all that `wanted` has, or None when nothing is missing or it is not to be touched. `held` is not
    changed. A binding whose roleRef differs cannot be reconciled: it is left as somebody made it."""
    meta = held["metadata"]
    if (meta.get("annotations") or {}).get(AUTOUPDATE) == "false":
        return None
    if wanted.get("roleRef") != held.get("roleRef"):
        return None
    new = {**held, "metadata": dict(meta)}
    for field in ("labels", "annotations"):
        new["metadata"][field] = {**wanted["metadata"][field], **(meta.get(field) or {})}
    if "rules" in wanted and "aggregationRule" not in wanted:
        have = list(held.get("rules") or [])
        rules = [msgspec.convert(rule, Rule) for rule in have]
        new["rules"] = have + [r for r in wanted["rules"] if not covers(rules, msgspec.convert(r, Rule))]
    if "aggregationRule" in wanted:
        selectors = list((held.get("aggregationRule") or {}).get("clusterRoleSelectors") or [])
        missing = [s for s in wanted["aggregationRule"]["clusterRoleSelectors"] if s not in selectors]
        new["aggregationRule"] = {"clusterRoleSelectors": selectors + missing}
    if "subjects" in wanted:
        subjects = list(held.get("subjects") or [])
        new["subjects"] = subjects + [s for s in wanted["subjects"] if s not in subjects]
    return None if new == held else new


def _rule(verbs: list[str], groups: list[str], resources: list[str]) -> Object:
    return {"verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources)}


def _role(name: str, rules: list[Object], to: str = "") -> Object:
    labels = {**BOOTSTRAPPING, **({_AGGREGATE + to: "true"} if to else {})}
    return {**_head("ClusterRole", name, labels), "rules": rules}


def _aggregating(name: str, to: str = "") -> Object:
    labels = {**BOOTSTRAPPING, **({_AGGREGATE + to: "true"} if to else {})}
    selector = {"matchLabels": {_AGGREGATE + name: "true"}}
    return {
        **_head("ClusterRole", name, labels),
        "aggregationRule": {"clusterRoleSelectors": [selector]},
        "rules": [],
    }


def _binding(role: str, groups: list[str]) -> Object:
    return {
        **_head("ClusterRoleBinding", role, BOOTSTRAPPING),
        "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": RBAC_GROUP, "kind": "Group", "name": group} for group in groups],
    }


def _head(kind: str, name: str, labels: Object) -> Object:
    annotations = {AUTOUPDATE: "true"}
    return {
        "apiVersion": f"{RBAC_GROUP}/v1",
        "kind": kind,
        "metadata": {"name": name, "labels": dict(labels), "annotations": annotations},
    }
