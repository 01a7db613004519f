"""Discovery: which groups, versions, resources and verbs are served, as plain and as aggregated documents. [pure]

The documents are made once, from the table of kinds.

Source: the Kubernetes API concepts, "API discovery".
"""

import platform
import sys
from collections.abc import Iterable
from typing import Any, Final

import orjson

from hub import errors, objects
from hub.api import reviews, schema
from hub.api.kinds import Kind, kinds
from hub.api.negotiation import DISCOVERY_GROUP
from hub.api.schema import KUBERNETES_MINOR, KUBERNETES_VERSION

Object = dict[str, Any]
VERBS: Final = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_SUB_VERBS: Final = {
    "log": ["get"],
    "approval": ["get", "patch", "update"],
    "attach": ["create", "get"],
    "exec": ["create", "get"],
    "portforward": ["create", "get"],
    "binding": ["create"],
    "eviction": ["create"],
    "token": ["create"],
    "finalize": ["update"],
    "scale": ["get", "patch", "update"],
    "status": ["get", "patch", "update"],
}
_SUB_KINDS: Final = {
    "scale": ("autoscaling", "v1", "Scale"),
    "eviction": ("policy", "v1", "Eviction"),
    "binding": ("", "v1", "Binding"),
    "token": ("authentication.k8s.io", "v1", "TokenRequest"),
    "attach": ("", "v1", "PodAttachOptions"),
    "exec": ("", "v1", "PodExecOptions"),
    "portforward": ("", "v1", "PodPortForwardOptions"),
}


# Kinds that are asked, not stored.
_REVIEWS: Final = tuple(
    Kind(objects.Resource(r.group, r.version, r.plural, r.kind, r.namespaced, r.singular), r, ())
    for r in schema.REVIEWS
)


def _verbs(kind: Kind) -> list[str]:
    if kind in _REVIEWS:
        return reviews.VERBS
    return [verb for verb in VERBS if verb != "create"] if kind.is_made_by_the_hub else VERBS


def version_info(build: str) -> Object:
    """The document /version. `build`: the version of this program."""
    major, minor = KUBERNETES_MINOR.split(".")
    return {
        "major": major,
        "minor": minor,
        "gitVersion": f"{KUBERNETES_VERSION}+cloudhub-{build}",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": f"python{platform.python_version()}",
        "compiler": sys.implementation.name,
        "platform": f"linux/{'amd64' if platform.machine() == 'x86_64' else platform.machine()}",
    }


class Discovery:
    """All discovery documents, as bytes."""

    def __init__(self) -> None:
        by_version: dict[tuple[str, str], list[Kind]] = {}
        for kind in (*(kind for _, kind in sorted(kinds().items())), *_REVIEWS):
            by_version.setdefault((kind.res.group, kind.res.version), []).append(kind)
        groups: dict[str, list[str]] = {}
        for group, version in by_version:
            if group:
                groups.setdefault(group, []).append(version)
        self._documents: dict[str, bytes] = {
            "/api": orjson.dumps(
                {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
            ),
            "/apis": orjson.dumps(
                {
                    "kind": "APIGroupList",
                    "apiVersion": "v1",
                    "groups": [_group(g, v) for g, v in groups.items()],
                }
            ),
        }
        for group, versions in groups.items():
            self._documents[f"/apis/{group}"] = orjson.dumps(
                {"kind": "APIGroup", "apiVersion": "v1", **_group(group, versions)}
            )
        for (group, version), served in by_version.items():
            path = f"/apis/{group}/{version}" if group else f"/api/{version}"
            self._documents[path] = _resource_list(group, version, served)
        self._aggregated: dict[tuple[str, str], bytes] = {}
        for asked in ("v2", "v2beta1"):
            core = {key: value for key, value in by_version.items() if not key[0]}
            named = {key: value for key, value in by_version.items() if key[0]}
            self._aggregated["/api", asked] = _aggregated(asked, core)
            self._aggregated["/apis", asked] = _aggregated(asked, named)

    @property
    def paths(self) -> list[str]:
        return sorted(self._documents)

    def document(self, path: str, aggregated: str) -> bytes | None:
        """The document at a path without a slash at its end. `aggregated`: "" or the version that was asked for. None: the
        path is no discovery document. Raises NotFound for a group or version that is not served."""
        if aggregated and (found := self._aggregated.get((path, aggregated))):
            return found
        if found := self._documents.get(path):
            return found
        if path.startswith(("/api/", "/apis/")) and path.count("/") <= 3:
            raise errors.NotFound.no_such_path()
        return None


def _group(group: str, versions: Iterable[str]) -> Object:
    found = [{"groupVersion": f"{group}/{v}", "version": v} for v in versions]
    return {"name": group, "versions": found, "preferredVersion": found[0]}


def _resource_list(group: str, version: str, served: list[Kind]) -> bytes:
    resources: list[Object] = []
    for kind in served:
        res = kind.res
        entry: Object = {
            "name": res.resource,
            "singularName": res.singular,
            "namespaced": res.namespaced,
            "kind": res.kind,
            "verbs": _verbs(kind),
        }
        if res.short_names:
            entry["shortNames"] = list(res.short_names)
        if res.categories:
            entry["categories"] = list(res.categories)
        resources.append(entry)
        for sub in kind.subresources:
            below: Object = {
                "name": f"{res.resource}/{sub}",
                "singularName": "",
                "namespaced": res.namespaced,
            }
            if sub in _SUB_KINDS:
                sub_group, sub_version, sub_kind = _SUB_KINDS[sub]
                if sub_group:
                    below |= {"group": sub_group, "version": sub_version}
                below["kind"] = sub_kind
            else:
                below["kind"] = res.kind
            resources.append(below | {"verbs": _SUB_VERBS[sub]})
    return orjson.dumps(
        {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": f"{group}/{version}" if group else version,
            "resources": resources,
        }
    )


def _aggregated(asked: str, by_version: dict[tuple[str, str], list[Kind]]) -> bytes:
    items: dict[str, Object] = {}
    for (group, version), served in by_version.items():
        item = items.setdefault(
            group, {"metadata": {"name": group, "creationTimestamp": None}, "versions": []}
        )
        resources = [_discovered(kind) for kind in served]
        item["versions"].append({"version": version, "resources": resources, "freshness": "Current"})
    return orjson.dumps(
        {
            "kind": "APIGroupDiscoveryList",
            "apiVersion": f"{DISCOVERY_GROUP}/{asked}",
            "metadata": {},
            "items": list(items.values()),
        }
    )


def _discovered(kind: Kind) -> Object:
    res = kind.res
    entry: Object = {
        "resource": res.resource,
        "responseKind": {"group": res.group, "version": res.version, "kind": res.kind},
        "scope": "Namespaced" if res.namespaced else "Cluster",
        "singularResource": res.singular,
        "verbs": _verbs(kind),
    }
    if res.short_names:
        entry["shortNames"] = list(res.short_names)
    if res.categories:
        entry["categories"] = list(res.categories)
    below = []
    for sub in kind.subresources:
        group, version, name = _SUB_KINDS.get(sub, (res.group, res.version, res.kind))
        below.append(
            {
                "subresource": sub,
                "responseKind": {"group": group, "version": version, "kind": name},
                "verbs": _SUB_VERBS[sub],
            }
        )
    if below:
        entry["subresources"] = below
    return entry
