"""The objects that the node's own API shows to a pod, made from the documents that it runs by. [pure]

And what a pod is told of that API: only where it mounts its service account's token at the usual place and does not name
another API server itself. Its `ca.crt` is then the local API's, for the cloud's cannot be reached from here.
"""

from edgelite.desired import compact, hexhash

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Object = dict[str, Any]

PLACE = "/var/run/secrets/kubernetes.io/serviceaccount"
CA = "ca.crt"
HOST_VARIABLE, PORT_VARIABLE = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"


def usual_volumes(pod: "dict[str, Any]") -> "set[str]":
    """Names of the pod's volumes that are mounted as a service account's, with a token for the API server."""
    spec = pod.get("spec") or {}
    containers = (spec.get("initContainers") or []) + (spec.get("containers") or [])
    if any(e.get("name") == HOST_VARIABLE for c in containers for e in c.get("env") or []):
        return set()
    mounted = {
        m.get("name")
        for c in containers
        for m in c.get("volumeMounts") or []
        if (m.get("mountPath") or "").rstrip("/") == PLACE and not m.get("subPath")
    }
    return {
        v["name"]
        for v in spec.get("volumes") or []
        if v["name"] in mounted
        and any(
            s.get("serviceAccountToken") is not None and not s["serviceAccountToken"].get("audience")
            for s in (v.get("projected") or {}).get("sources") or []
        )
    }


def variables(pod: "dict[str, Any]", container: "dict[str, Any]", port: int) -> "list[tuple[str, str]]":
    """What a container is told of the API, as Kubernetes names it."""
    usual = usual_volumes(pod)
    if not any(m.get("name") in usual for m in container.get("volumeMounts") or []):
        return []
    return [
        (HOST_VARIABLE, "127.0.0.1"),
        (PORT_VARIABLE, str(port)),
        ("KUBERNETES_SERVICE_PORT_HTTPS", str(port)),
        ("KUBERNETES_PORT", "tcp://127.0.0.1:%d" % port),
    ]


KNOWN_MAX = 4096


class Revisions:
    """Numbers the states of objects, upwards from `first`: the same state keeps its number. Beyond KNOWN_MAX objects all are
    numbered anew, which watchers take for changes."""

    def __init__(self, first: int) -> None:
        self.highest = first
        self._known: "dict[tuple[str, str, str], tuple[str, int]]" = {}

    def mark(self, obj: "Object") -> "Object":
        """Sets its resourceVersion."""
        meta = obj["metadata"]
        key = (obj["kind"], meta.get("namespace") or "", meta["name"])
        state = hexhash(compact(obj))
        known = self._known.get(key)
        if known is None or known[0] != state:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self.highest += 1
            known = self._known[key] = (state, self.highest)
        meta["resourceVersion"] = str(known[1])
        return obj


def pod_object(doc: "dict[str, Any]", status: "dict[str, Any]", node: str) -> "Object":
    meta = {"name": doc["name"], "namespace": doc["ns"], "uid": doc["uid"]}
    for field, name in (
        ("labels", "labels"),
        ("annotations", "annotations"),
        ("created", "creationTimestamp"),
    ):
        if doc.get(field):
            meta[name] = doc[field]
    spec = dict(doc["spec"])
    spec["nodeName"] = node
    return {"kind": "Pod", "apiVersion": "v1", "metadata": meta, "spec": spec, "status": status}


def config_object(doc: "dict[str, Any]") -> "Object":
    """Of a ConfigMap's or Secret's document."""
    obj = {
        "kind": doc["kind"],
        "apiVersion": "v1",
        "metadata": {"name": doc["name"], "namespace": doc["ns"]},
    }
    for field in ("data", "binaryData", "type"):
        if doc.get(field):
            obj[field] = doc[field]
    return obj


def node_object(name: str, report: "dict[str, Any]") -> "Object":
    """report: the body of a `node` entry."""
    status = {k: v for k, v in report.items() if k != "labels"}
    meta = {"name": name, "labels": report.get("labels") or {}}
    return {"kind": "Node", "apiVersion": "v1", "metadata": meta, "spec": {}, "status": status}


def namespace_object(name: str) -> "Object":
    meta = {"name": name, "labels": {"kubernetes.io/metadata.name": name}}
    return {
        "kind": "Namespace",
        "apiVersion": "v1",
        "metadata": meta,
        "spec": {},
        "status": {"phase": "Active"},
    }
