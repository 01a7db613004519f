"""What the agent's local API answers: the Kubernetes API as far as a pod may see it on its node. [pure]

A pod that shows one of its tokens sees itself, its Node, its namespace, the ConfigMaps and Secrets that it refers to, and the
Services, EndpointSlices and Devices of its namespace; nothing else exists for it here. Reports about devices are all that it
can write (`edgelite.localdevices`). Objects are those of the journal, so they are there without the hub; they may be older than the
cloud's. `resourceVersion` is this agent's own and means nothing elsewhere.

Requests are (method, path, query); answers are (code, object), or a `Watch` for who wants to hear of changes.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Object = dict[str, Any]
    Answer = tuple[int, Object]

VERSION = {"major": "1", "minor": "34", "gitVersion": "v1.34.0-edgelite", "platform": "linux"}
# apiVersion -> plural -> (kind, namespaced)
KINDS = {
    "v1": {
        "pods": ("Pod", True),
        "configmaps": ("ConfigMap", True),
        "secrets": ("Secret", True),
        "services": ("Service", True),
        "nodes": ("Node", False),
        "namespaces": ("Namespace", False),
    },
    "discovery.k8s.io/v1": {"endpointslices": ("EndpointSlice", True)},
    "cloudhub.dev/v1alpha1": {"devices": ("Device", True)},
}
DEVICES = ["apis", "cloudhub.dev", "v1alpha1", "namespaces"]


class Watch:
    """A watch on a collection. `step(objects)` gives the events since the last step: (type, object)."""

    def __init__(self, plural: str, keep: "Callable[[Object], bool]", seen: "list[Object] | None") -> None:
        """seen: what the watcher knows already; None: it is told of everything."""
        self.plural = plural
        self._keep = keep
        self._seen = {_key(o): o for o in seen or []}

    def step(self, objects: "list[Object]") -> "list[tuple[str, Object]]":
        now = {_key(o): o for o in objects if self._keep(o)}
        events = [("DELETED", old) for key, old in self._seen.items() if key not in now]
        for key, new in now.items():
            old = self._seen.get(key)
            if old is None:
                events.append(("ADDED", new))
            elif old["metadata"]["resourceVersion"] != new["metadata"]["resourceVersion"]:
                events.append(("MODIFIED", new))
        self._seen = now
        return events


def _key(obj: "Object") -> "tuple[str, str]":
    return obj["metadata"].get("namespace") or "", obj["metadata"]["name"]


def answer(
    method: str,
    path: str,
    query: "dict[str, str]",
    objects: "Callable[[str], list[Object]] | None",
    revision: "Callable[[], int]",
    report: "Callable[[str, str], Answer] | None" = None,
) -> "Answer | Watch":
    """objects: gives those of a plural that the asker may see; None: nobody knows who asks. revision: the highest of any object
    that was given so far. report(namespace, name): takes the report about a device that the request brings."""
    parts = [part for part in path.split("/") if part]
    if path in ("/livez", "/readyz", "/healthz"):
        return 200, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    if method == "PATCH" and _is_device_status(parts):
        if objects is None or report is None:
            return failure(
                401, "Unauthorized", "show the token that is mounted with the pod's service account"
            )
        return report(parts[4], parts[6])
    if method not in ("GET", "HEAD"):
        text = "the node's own API is read-only, so that it can answer while the cloud is away"
        return failure(405, "MethodNotAllowed", text)
    if path == "/version":
        return 200, dict(VERSION)
    if objects is None:
        return failure(401, "Unauthorized", "show the token that is mounted with the pod's service account")
    if parts == ["api"]:
        return 200, {"kind": "APIVersions", "versions": ["v1"]}
    if parts == ["apis"]:
        groups = [_group(version) for version in KINDS if "/" in version]
        return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    for version in KINDS:
        base = ["apis" if "/" in version else "api"] + version.split("/")
        if parts == base:
            return 200, _resources(version)
        if parts[: len(base)] == base:
            return _object(version, parts[len(base) :], query, objects, revision)
    return failure(404, "NotFound", "the server could not find the requested resource")


def _is_device_status(parts: "list[str]") -> bool:
    """apis/cloudhub.dev/v1alpha1/namespaces/<namespace>/devices/<name>/status"""
    return len(parts) == 8 and parts[:4] == DEVICES and parts[5] == "devices" and parts[7] == "status"


def _group(version: str) -> "Object":
    shown = {"groupVersion": version, "version": version.split("/")[1]}
    return {"name": version.split("/")[0], "versions": [shown], "preferredVersion": shown}


def _resources(version: str) -> "Object":
    verbs = ["get", "list", "watch"]
    found = [
        {"name": plural, "singularName": "", "namespaced": spaced, "kind": kind, "verbs": verbs}
        for plural, (kind, spaced) in KINDS[version].items()
    ]
    if "devices" in KINDS[version]:
        found.append(
            {
                "name": "devices/status",
                "singularName": "",
                "namespaced": True,
                "kind": "Device",
                "verbs": ["get", "patch"],
            }
        )
    return {"kind": "APIResourceList", "groupVersion": version, "resources": found}


def _object(
    version: str,
    rest: "list[str]",
    query: "dict[str, str]",
    objects: "Callable[[str], list[Object]]",
    revision: "Callable[[], int]",
) -> "Answer | Watch":
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    if rest[:1] == ["devices"] and rest[2:] == ["status"]:
        rest = rest[:2]  # the same object, as of any subresource status
    plural, name = rest[0], rest[1] if len(rest) > 1 else ""
    known = KINDS[version].get(plural)
    if known is None or len(rest) > 2 or (namespace and not known[1]):
        return failure(404, "NotFound", "the server could not find the requested resource")
    try:
        keep = _selection(namespace, query)
    except ValueError as error:
        return failure(400, "BadRequest", str(error))
    if name:
        for obj in objects(plural):
            if keep(obj) and obj["metadata"]["name"] == name and (namespace or not known[1]):
                return 200, obj
        text = '%s "%s" not found: the node\'s own API shows a pod only itself and what it refers to'
        return failure(404, "NotFound", text % (plural, name), {"name": name, "kind": plural})
    found = [obj for obj in objects(plural) if keep(obj)]
    if query.get("watch") in ("1", "true"):
        since = query.get("resourceVersion") or "0"
        if since not in ("0", str(revision())):
            # What happened since then is not known: whoever lists again has it all.
            return failure(410, "Expired", "too old resource version: %s (%d)" % (since, revision()))
        return Watch(plural, keep, found if since != "0" else None)
    return 200, {
        "kind": known[0] + "List",
        "apiVersion": version,
        "metadata": {"resourceVersion": str(revision())},
        "items": found,
    }


def _selection(namespace: str, query: "dict[str, str]") -> "Callable[[Object], bool]":
    """Raises ValueError for a selector that cannot be answered."""
    fields = _equals(query.get("fieldSelector") or "", "fieldSelector")
    labels = _equals(query.get("labelSelector") or "", "labelSelector")
    for name in fields:
        if name not in ("metadata.name", "metadata.namespace"):
            raise ValueError("fieldSelector %s: the node's own API knows metadata.name and .namespace" % name)

    def keep(obj: "Object") -> bool:
        meta = obj["metadata"]
        if namespace and meta.get("namespace") != namespace:
            return False
        own = meta.get("labels") or {}
        return all(meta.get(f.split(".")[1]) == v for f, v in fields.items()) and all(
            own.get(k) == v for k, v in labels.items()
        )

    return keep


def _equals(text: str, what: str) -> "dict[str, str]":
    """a=b,c==d as a dict. Raises ValueError for any other selector."""
    found = {}
    for term in text.split(",") if text else []:
        name, equals, value = term.partition("=")
        if not equals or name.endswith("!") or not name or " " in term.strip():
            raise ValueError("%s %s: the node's own API knows a=b only" % (what, term))
        found[name.strip()] = value.lstrip("=").strip()
    return found


def failure(code: int, reason: str, message: str, details: "Object | None" = None) -> "Answer":
    """A metav1.Status."""
    status: "Object" = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    if details is not None:
        status["details"] = details
    return code, status
