"""Which Pod documents the agent takes, and what of them it cannot honour. [pure]

`faults` finds documents that are wrong in themselves: they are refused before they are journalled. `review` finds what is
right but cannot be honoured by this agent whatever the runtime is; the runtime and the volumes review the rest. A field at
its Kubernetes default is never refused.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CONTAINERS_MAX = 32
VOLUMES_MAX = 64
VOLUME_SOURCES = ("configMap", "secret", "emptyDir", "hostPath", "downwardAPI", "projected")
PROJECTED_SOURCES = ("configMap", "secret", "downwardAPI", "serviceAccountToken")
ORIGINS = ("configMapKeyRef", "secretKeyRef", "fieldRef", "resourceFieldRef")
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
NAME_CHARS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._"


def is_name(text: "Any") -> bool:
    """Whether it can be used as a file name and in keys."""
    plain = isinstance(text, str) and 0 < len(text) <= 253 and all(c in NAME_CHARS for c in text)
    return plain and not text.startswith(".")


def faults(doc: "Any", key: str) -> "str | None":
    """What is wrong with a Pod document as such, or None."""
    if not isinstance(doc, dict) or doc.get("kind") != "Pod":
        return "the document is not a Pod"
    if key != "pod/%s/%s/%s" % (doc.get("ns"), doc.get("name"), doc.get("uid")):
        return "the document's namespace, name and uid are not those of its key"
    if not all(is_name(doc.get(field)) for field in ("ns", "name", "uid")):
        return "ns, name and uid have to be plain names"
    spec = doc.get("spec")
    if not isinstance(spec, dict) or not isinstance(spec.get("containers"), list) or not spec["containers"]:
        return "spec.containers: at least one is required"
    entries = (spec.get("initContainers") or []) + spec["containers"]
    if len(entries) > CONTAINERS_MAX:
        return "%d containers; at most %d" % (len(entries), CONTAINERS_MAX)
    if not all(isinstance(e, dict) for e in entries):
        return "spec.containers: each has to be an object"
    names = [e.get("name") for e in entries]
    if not all(is_name(n) for n in names) or len(set(names)) != len(names):
        return "spec.containers: each needs a name of its own"
    volumes = spec.get("volumes") or []
    if len(volumes) > VOLUMES_MAX:
        return "%d volumes; at most %d" % (len(volumes), VOLUMES_MAX)
    if not all(isinstance(v, dict) and is_name(v.get("name")) for v in volumes):
        return "spec.volumes: each needs a name"
    if spec.get("restartPolicy") not in (None, "Always", "OnFailure", "Never"):
        return "spec.restartPolicy: %s is not one of Always, OnFailure, Never" % spec.get("restartPolicy")
    return None


def review(doc: "dict[str, Any]") -> "tuple[list[str], list[str]]":
    """(refusals, warnings), each "path: what and why"."""
    spec = doc["spec"]
    refusals: "list[str]" = []
    warnings: "list[str]" = []
    for n, volume in enumerate(spec.get("volumes") or []):
        _volume("spec.volumes[%d]" % n, volume, refusals, warnings)
    for field in ("initContainers", "containers"):
        for n, container in enumerate(spec.get(field) or []):
            _container("spec.%s[%d]" % (field, n), container, field == "initContainers", refusals, warnings)
    if spec.get("readinessGates"):
        warnings.append(
            "spec.readinessGates: nothing can set these conditions here, so the pod is never Ready"
        )
    if spec.get("ephemeralContainers"):
        warnings.append("spec.ephemeralContainers: not started by this agent")
    return refusals, warnings


def _volume(where: str, volume: "dict[str, Any]", refusals: "list[str]", warnings: "list[str]") -> None:
    sources = [k for k in volume if k != "name" and volume[k] is not None]
    for source in sources:
        if source not in VOLUME_SOURCES:
            refusals.append("%s.%s: this kind of volume does not exist at the edge" % (where, source))
    empty = volume.get("emptyDir") or {}
    if empty.get("medium") not in (None, "", "Memory"):
        refusals.append("%s.emptyDir.medium: %s is not supported" % (where, empty["medium"]))
    if empty.get("sizeLimit") not in (None, "0", 0):
        warnings.append("%s.emptyDir.sizeLimit: not enforced" % where)
    for n, source in enumerate((volume.get("projected") or {}).get("sources") or []):
        for kind in source:
            if source[kind] is not None and kind not in PROJECTED_SOURCES:
                refusals.append("%s.projected.sources[%d].%s: not supported at the edge" % (where, n, kind))


def _container(
    where: str, container: "dict[str, Any]", is_init: bool, refusals: "list[str]", warnings: "list[str]"
) -> None:
    policy = container.get("restartPolicy")
    if policy is not None and not (is_init and policy == "Always"):
        refusals.append("%s.restartPolicy: only Always, and only for init containers" % where)
    if container.get("restartPolicyRules"):
        refusals.append("%s.restartPolicyRules: not supported" % where)
    for n, entry in enumerate(container.get("env") or []):
        for origin in entry.get("valueFrom") or {}:
            if origin not in ORIGINS:
                refusals.append("%s.env[%d].valueFrom.%s: not supported" % (where, n, origin))
    for field in PROBES:
        if container.get(field):
            _handler("%s.%s" % (where, field), container[field], container, refusals)
    lifecycle = container.get("lifecycle") or {}
    for field in ("postStart", "preStop"):
        if lifecycle.get(field):
            _handler("%s.lifecycle.%s" % (where, field), lifecycle[field], container, refusals)
    if lifecycle.get("stopSignal"):
        refusals.append("%s.lifecycle.stopSignal: not supported; SIGTERM is sent" % where)
    for n, mount in enumerate(container.get("volumeMounts") or []):
        if mount.get("mountPropagation") not in (None, "", "None"):
            refusals.append("%s.volumeMounts[%d].mountPropagation: not supported" % (where, n))
    if container.get("terminationMessagePath") not in (None, "", "/dev/termination-log"):
        warnings.append("%s.terminationMessagePath: not read" % where)
    if container.get("terminationMessagePolicy") not in (None, "", "File"):
        warnings.append("%s.terminationMessagePolicy: not honoured" % where)


def _handler(
    where: str, handler: "dict[str, Any]", container: "dict[str, Any]", refusals: "list[str]"
) -> None:
    if handler.get("grpc") is not None:
        refusals.append("%s.grpc: not supported; use httpGet, tcpSocket or exec" % where)
    for kind in ("httpGet", "tcpSocket"):
        action = handler.get(kind)
        if action is None:
            continue
        if action.get("host") and not is_address(action["host"]):
            refusals.append("%s.%s.host: %s is a name; use an IP address" % (where, kind, action["host"]))
        if port_of(action.get("port"), container) is None:
            refusals.append(
                "%s.%s.port: %s is not a port of the container" % (where, kind, action.get("port"))
            )


def is_address(text: str) -> bool:
    """An IP address, or localhost: what can be connected to without asking a name server."""
    return text == "localhost" or ":" in text or all(c in "0123456789." for c in text)


def port_of(port: "Any", container: "dict[str, Any]") -> "int | None":
    """A probe's port, which may be the name of one of the container's ports."""
    if isinstance(port, str):
        for known in container.get("ports") or []:
            if known.get("name") == port:
                return int(known["containerPort"])
        if not port or not all(c in "0123456789" for c in port):
            return None
    if isinstance(port, (int, str)) and 0 < int(port) < 65536:
        return int(port)
    return None
