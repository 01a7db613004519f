"""What lies in a pod's configMap, secret, downwardAPI and projected volumes, and which documents a pod refers to. [pure]

A payload is {relative path: (bytes, mode)}. Paths come from documents, so every one of them is checked to stay inside
its volume. Errors name keys and paths, never contents.
"""

from edgelite.localview import CA, usual_volumes
from edgelite.podenv import BadReference, MissingReference, field_value, resource_value
from edgelite.tokens import Need, needs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edgelite.podenv import Library, NodeFacts

    Payload = dict[str, tuple[bytes, int]]

MODE_DEFAULT = 0o644
PAYLOAD_KINDS = ("configMap", "secret", "downwardAPI", "projected")
FILES_MAX = 1024


def is_payload(volume: "dict[str, Any]") -> bool:
    return any(volume.get(kind) is not None for kind in PAYLOAD_KINDS)


def is_secret(volume: "dict[str, Any]") -> bool:
    """Whether it holds a Secret's bytes or a token, so that it must not lie on a disk."""
    sources = (volume.get("projected") or {}).get("sources") or []
    return volume.get("secret") is not None or any(
        s.get(kind) is not None for s in sources for kind in ("secret", "serviceAccountToken")
    )


def payload(
    pod: "dict[str, Any]", volume: "dict[str, Any]", library: "Library", node: "NodeFacts"
) -> "Payload":
    """The files of one volume. Raises MissingReference (with the volume's name) or BadReference."""
    files: "Payload" = {}
    try:
        if volume.get("projected") is not None:
            projected = volume["projected"]
            mode = _mode(projected.get("defaultMode"), MODE_DEFAULT)
            for n, source in enumerate(projected.get("sources") or []):
                _add_source(files, source, mode, pod, library, node)
                wanted = source.get("serviceAccountToken")
                if wanted is not None:
                    token = library.token(Need(pod["uid"], volume["name"], n, wanted).key)
                    files[_path(wanted["path"])] = (token.encode(), mode)
        else:
            _add_source(files, volume, MODE_DEFAULT, pod, library, node)
    except MissingReference as error:
        raise MissingReference(error.message, volume["name"])
    if library.local_api is not None and CA in files and volume["name"] in usual_volumes(pod):
        files[CA] = (library.local_api()[1].encode(), files[CA][1])
    if len(files) > FILES_MAX:
        raise BadReference("volume %s: %d files; at most %d" % (volume["name"], len(files), FILES_MAX))
    _check_tree(files, volume["name"])
    return files


def _add_source(
    files: "Payload",
    source: "dict[str, Any]",
    mode: int,
    pod: "dict[str, Any]",
    library: "Library",
    node: "NodeFacts",
) -> None:
    if source.get("configMap") is not None:
        _add_keys(files, "ConfigMap", source["configMap"], mode, pod["ns"], library)
    if source.get("secret") is not None:
        _add_keys(files, "Secret", source["secret"], mode, pod["ns"], library)
    if source.get("downwardAPI") is not None:
        _add_downward(files, source["downwardAPI"], mode, pod, node)


def _add_keys(
    files: "Payload", kind: str, ref: "dict[str, Any]", mode: int, namespace: str, library: "Library"
) -> None:
    name = ref.get("name") or ref.get("secretName") or ""
    optional = bool(ref.get("optional"))
    data = library.contents(kind, namespace, name, optional)
    if data is None:
        return
    mode = _mode(ref.get("defaultMode"), mode)
    items = ref.get("items")
    if not items:
        for key, value in data.items():
            files[_path(key)] = (value, mode)
        return
    for item in items:
        if item["key"] in data:
            files[_path(item["path"])] = (data[item["key"]], _mode(item.get("mode"), mode))
        elif not optional:
            raise MissingReference(
                "%s references non-existent %s key: %s" % (name, kind.lower(), item["key"])
            )


def _add_downward(
    files: "Payload", source: "dict[str, Any]", mode: int, pod: "dict[str, Any]", node: "NodeFacts"
) -> None:
    mode = _mode(source.get("defaultMode"), mode)
    for item in source.get("items") or []:
        if item.get("fieldRef") is not None:
            text = field_value(pod, item["fieldRef"].get("fieldPath", ""), node)
        else:
            ref = item.get("resourceFieldRef") or {}
            owner = [
                c for c in (pod["spec"].get("containers") or []) if c["name"] == ref.get("containerName")
            ]
            if not owner:
                raise BadReference(
                    "downwardAPI %s: no container %s" % (item["path"], ref.get("containerName"))
                )
            text = resource_value(owner[0], ref, node)
        files[_path(item["path"])] = (text.encode(), _mode(item.get("mode"), mode))


def _mode(value: "int | None", default: int) -> int:
    return default if value is None else int(value) & 0o777


def _path(path: str) -> str:
    """The path, if it stays inside its volume and clear of the names that the atomic writer uses."""
    parts = path.split("/")
    if (
        path.startswith("/")
        or "\x00" in path
        or any(p in ("", ".", "..") for p in parts)
        or parts[0].startswith("..")
    ):
        raise BadReference("path %s: want a relative path inside the volume, without '..'" % path)
    return path


def _check_tree(files: "Payload", volume: str) -> None:
    """No path may be a file and a folder at once."""
    for path in files:
        parts = path.split("/")
        for n in range(1, len(parts)):
            if "/".join(parts[:n]) in files:
                raise BadReference(
                    "volume %s: %s is both a file and a folder" % (volume, "/".join(parts[:n]))
                )


def references(pod: "dict[str, Any]") -> "set[str]":
    """Keys of the ConfigMap, Secret and token documents that the pod refers to anywhere."""
    spec = pod.get("spec") or {}
    found = {need.key for need in needs(pod)}

    def note(kind: str, ref: "dict[str, Any] | None") -> None:
        if ref is not None:
            name = ref.get("name") or ref.get("secretName")
            if name:
                found.add("%s/%s/%s" % (kind, pod["ns"], name))

    for container in (spec.get("initContainers") or []) + (spec.get("containers") or []):
        for source in container.get("envFrom") or []:
            note("configmap", source.get("configMapRef"))
            note("secret", source.get("secretRef"))
        for entry in container.get("env") or []:
            origin = entry.get("valueFrom") or {}
            note("configmap", origin.get("configMapKeyRef"))
            note("secret", origin.get("secretKeyRef"))
    for volume in spec.get("volumes") or []:
        for source in [volume] + ((volume.get("projected") or {}).get("sources") or []):
            note("configmap", source.get("configMap"))
            note("secret", source.get("secret"))
    for pull in spec.get("imagePullSecrets") or []:
        note("secret", pull)
    return found
