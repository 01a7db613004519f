"""Documents: what an edge node is told about an object, as canonical bytes, and their versions. [pure]

Equal content gives equal bytes (sorted keys) and so the same version. A pod's spec goes out whole except for what is
the cloud's own business and what stands at its Kubernetes default: a field that this hub does not know reaches the
agent, which honours it or refuses it by name. Formats: ARCHITECTURE.md, "Documents".
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import orjson

from edgelite.desired import version_of
from hub.objects import CONFIGMAPS, ENDPOINTSLICES, SECRETS, SERVICES, Resource

Object = Mapping[str, Any]

CLOUD_SPEC_FIELDS: Final = frozenset(
    {
        "affinity",
        "automountServiceAccountToken",
        "nodeName",
        "nodeSelector",
        "preemptionPolicy",
        "priority",
        "priorityClassName",
        "schedulerName",
        "schedulingGates",
        "tolerations",
        "topologySpreadConstraints",
    }
)
"""Fields of a PodSpec that are done with once the pod is bound."""
SPEC_DEFAULTS: Final[Mapping[str, Any]] = {
    "dnsPolicy": "ClusterFirst",
    "enableServiceLinks": True,
    "hostIPC": False,
    "hostNetwork": False,
    "hostPID": False,
    "securityContext": {},
    "serviceAccount": "default",
    "serviceAccountName": "default",
    "setHostnameAsFQDN": False,
    "shareProcessNamespace": False,
}
CONTAINER_DEFAULTS: Final[Mapping[str, Any]] = {
    "resources": {},
    "securityContext": {},
    "stdin": False,
    "stdinOnce": False,
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
    "tty": False,
}
CONTAINER_LISTS: Final = ("initContainers", "containers", "ephemeralContainers")
TRACE_ANNOTATION: Final = "cloudhub.dev/trace"
"""Which trace an object's last change belongs to (`hub.tracecontext`)."""
CLOUD_ANNOTATIONS: Final = frozenset({"kubectl.kubernetes.io/last-applied-configuration", TRACE_ANNOTATION})
"""What kubectl keeps for itself: as long as the object, and of no use at the edge; and what a change is traced by, which is no
part of it."""

AGENT_CONFIG: Final = "agent/config"
SPACE_KINDS: Final[Mapping[str, Resource]] = {res.singular: res for res in (SERVICES, ENDPOINTSLICES)}
"""Kinds of which a node gets what lies in the namespaces of its pods, by the first part of their keys."""
SPACE_PREFIXES: Final = tuple(f"{kind}/" for kind in SPACE_KINDS)
SERVICES_FEATURE: Final = "services"
"""What an agent says in HELLO that knows these."""
SHARED_MAX: Final = 4096
SPACE_FIELDS: Final = ("spec", "status", "addressType", "ports", "endpoints")


class Document:
    """One version of one document; shared by all nodes that get it. `size`: of its body, bytes."""

    __slots__ = ("key", "size", "version")

    def __init__(self, key: str, body: bytes) -> None:
        self.key = key
        self.version = version_of(body)
        self.size = len(body)


class Layers(Mapping[str, Document]):
    """A node's documents by key: its own, and those that it shares with others. No key is in two of them."""

    __slots__ = ("_layers",)

    def __init__(self, own: Mapping[str, Document], shared: Sequence[Mapping[str, Document]]) -> None:
        self._layers = (own, *shared)

    @property
    def own(self) -> Mapping[str, Document]:
        return self._layers[0]

    def __getitem__(self, key: str) -> Document:
        for layer in self._layers:
            if key in layer:
                return layer[key]
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return any(key in layer for layer in self._layers)

    def __iter__(self) -> Iterator[str]:
        for layer in self._layers:
            yield from layer

    def __len__(self) -> int:
        return sum(map(len, self._layers))


def understood(documents: Mapping[str, Document], features: Iterable[str]) -> Mapping[str, Document]:
    """Those of a node's documents that an agent with these features knows."""
    if SERVICES_FEATURE in features or not isinstance(documents, Layers):
        return documents
    return documents.own


def pod_key(namespace: str, name: str, uid: str) -> str:
    return f"pod/{namespace}/{name}/{uid}"


def config_key(res: Resource, namespace: str, name: str) -> str:
    """Of a ConfigMap, Secret, Service or EndpointSlice."""
    return f"{res.singular}/{namespace}/{name}"


def split_config_key(key: str) -> tuple[Resource, str, str]:
    """(CONFIGMAPS or SECRETS, namespace, name)."""
    kind, namespace, name = key.split("/")
    return (CONFIGMAPS if kind == "configmap" else SECRETS), namespace, name


def split_space_key(key: str) -> tuple[Resource, str, str] | None:
    """(SERVICES or ENDPOINTSLICES, namespace, name), None when the key is of another kind."""
    kind, _, rest = key.partition("/")
    res = SPACE_KINDS.get(kind)
    if res is None:
        return None
    namespace, _, name = rest.partition("/")
    return res, namespace, name


def split_pod_key(key: str) -> tuple[str, str, str] | None:
    """(namespace, name, UID), None when the key is not a pod's."""
    parts = key.split("/")
    if len(parts) != 4 or parts[0] != "pod":
        return None
    return parts[1], parts[2], parts[3]


def render_pod(pod: Object) -> bytes:
    """The document of a bound Pod."""
    meta = pod["metadata"]
    annotations = {k: v for k, v in (meta.get("annotations") or {}).items() if k not in CLOUD_ANNOTATIONS}
    document: dict[str, Any] = {
        "kind": "Pod",
        "ns": meta["namespace"],
        "name": meta["name"],
        "uid": meta["uid"],
        "labels": meta.get("labels") or {},
        "annotations": annotations,
        "created": meta.get("creationTimestamp", ""),
        "spec": trim_spec(pod["spec"]),
    }
    if meta.get("deletionTimestamp"):
        document["del"] = {"grace": meta.get("deletionGracePeriodSeconds") or 0}
    return canonical(document)


def render_config(res: Resource, obj: Object) -> bytes:
    """The document of a ConfigMap or Secret."""
    meta = obj["metadata"]
    document: dict[str, Any] = {
        "kind": res.kind,
        "ns": meta["namespace"],
        "name": meta["name"],
        "data": obj.get("data") or {},
    }
    if res == SECRETS:
        document["type"] = obj.get("type", "Opaque")
    else:
        document["binaryData"] = obj.get("binaryData") or {}
    return canonical(document)


def render_space(res: Resource, obj: Object) -> bytes:
    """The document of a Service or EndpointSlice that was trimmed already (`hub.kubernetes.services`)."""
    meta = obj["metadata"]
    document: dict[str, Any] = {
        "kind": res.kind,
        "ns": meta["namespace"],
        "name": meta["name"],
        "labels": meta.get("labels") or {},
    }
    document.update((field, obj[field]) for field in SPACE_FIELDS if field in obj)
    return canonical(document)


def render_agent_config(heartbeat_s: float) -> bytes:
    """The document `agent/config`."""
    return canonical({"heartbeat": heartbeat_s})


def canonical(document: dict[str, Any]) -> bytes:
    """A document's bytes: the same for the same content."""
    # An exact copy, for bodies are kept: what orjson returns keeps its whole buffer alive, 8 KB for 1.5 KB.
    return bytes(memoryview(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)))


def trim_spec(spec: Object) -> dict[str, Any]:
    """A PodSpec without what an agent has no use for."""
    out = {k: v for k, v in _without(spec, SPEC_DEFAULTS).items() if k not in CLOUD_SPEC_FIELDS}
    for field in CONTAINER_LISTS:
        if field in out:
            out[field] = [_without(c, CONTAINER_DEFAULTS) for c in out[field] or ()]
    return out


def _without(fields: Object, defaults: Object) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if v is not None and not (k in defaults and v == defaults[k])}


def references(namespace: str, spec: Object) -> frozenset[str]:
    """Keys of the ConfigMaps and Secrets that a pod uses, whether they exist or not."""
    found = set()
    for res, name in _references(spec):
        if isinstance(name, str) and name:
            found.add(config_key(res, namespace, name))
    return _shared(frozenset(found))


@lru_cache(maxsize=SHARED_MAX)
def _shared(found: frozenset[str]) -> frozenset[str]:
    """One object for all pods that refer to the same: those of a Deployment, and in a namespace most."""
    return found


def _references(spec: Object) -> Iterator[tuple[Resource, Any]]:
    for field in CONTAINER_LISTS:
        for container in spec.get(field) or ():
            for source in container.get("envFrom") or ():
                yield from _of_source(source, "configMapRef", "secretRef")
            for env in container.get("env") or ():
                yield from _of_source(env.get("valueFrom") or {}, "configMapKeyRef", "secretKeyRef")
    for volume in spec.get("volumes") or ():
        yield from _of_source(volume, "configMap", "", "name")
        yield from _of_source(volume, "", "secret", "secretName")
        for source in (volume.get("projected") or {}).get("sources") or ():
            yield from _of_source(source, "configMap", "secret")
    for secret in spec.get("imagePullSecrets") or ():
        yield SECRETS, secret.get("name")


def _of_source(
    source: Object, configmap: str, secret: str, name: str = "name"
) -> Iterable[tuple[Resource, Any]]:
    if source.get(configmap):
        yield CONFIGMAPS, source[configmap].get(name)
    if source.get(secret):
        yield SECRETS, source[secret].get(name)
