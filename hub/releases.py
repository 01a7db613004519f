"""Releases of the agent, and which of them a Node wants: as objects that every store and every Kubernetes cluster has. [pure]

A release is ConfigMaps: `<name>` and, beyond CHUNK_BYTES, `<name>-1`, `<name>-2`, ..., each with the label `cloudhub.dev/agent-release` and
a part of the file in `binaryData.data`; the first says in `data.release` what was signed. A Node wants one by its annotation
`cloudhub.dev/agent-update`: {"from": "<namespace>/<name>", ..fields of the document `agent/update`..}.

Nothing here is trusted at the edge: the agent checks signature and hash itself (`edgelite.updater`).
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from edgelite import p256, updateplan
from hub.documents import canonical
from hub.objects import PREFIX

Object = dict[str, Any]

KEY: Final = "agent/update"
ANNOTATION: Final = f"{PREFIX}/agent-update"
ANNOTATION_CHARS_MAX: Final = 2048
LABEL: Final = f"{PREFIX}/agent-release"
DATA: Final = "data"
STATEMENT: Final = "release"
CHUNK_BYTES: Final = 512 << 10
PLATFORM: Final = "pyz"
CONDITION: Final = "AgentUpdate"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a Node's annotation asks for: the document's bytes, the release's hash and size, and where its bytes are."""

    body: bytes
    sha256: str
    size: int
    namespace: str
    name: str


def wanted(annotations: Mapping[str, str] | None) -> Wanted | None:
    """What the Node with these annotations wants; None for nothing. Raises UpdateError for an annotation that says nothing that
    could be carried out."""
    text = (annotations or {}).get(ANNOTATION)
    if not text:
        return None
    if len(text) > ANNOTATION_CHARS_MAX:
        long = f"{ANNOTATION} has {len(text)} characters, at most {ANNOTATION_CHARS_MAX} are allowed"
        raise updateplan.UpdateError("InvalidDocument", long)
    fields = updateplan.parse(text.encode())
    namespace, _, name = str(fields.pop("from", "")).partition("/")
    if not namespace or not name:
        raise updateplan.UpdateError("InvalidDocument", f'{ANNOTATION}: "from" is no <namespace>/<name>')
    body = canonical({**fields, "kind": "AgentUpdate"})
    return Wanted(body, fields["sha256"], fields["size"], namespace, name)


def annotation(namespace: str, name: str, release: Mapping[str, Any], **settings: Any) -> str:
    """The annotation's value for a release, as its ConfigMap tells of it."""
    return canonical({**release, **settings, "from": f"{namespace}/{name}"}).decode()


def chunk_name(name: str, index: int) -> str:
    return f"{name}-{index}" if index else name


def chunk_of(configmap: Mapping[str, Any]) -> bytes | None:
    """The part of a release that a ConfigMap holds; None when it holds none: no other ConfigMap is ever read out to a node."""
    if LABEL not in (configmap["metadata"].get("labels") or {}):
        return None
    try:
        return base64.b64decode((configmap.get("binaryData") or {})[DATA], validate=True)
    except (KeyError, ValueError, TypeError):
        return None


def release(
    data: bytes, version: str, key: int, *, downgrade: bool = False, platform: str = PLATFORM
) -> Object:
    """What is said of a file, signed with the private key of P-256. Raises UpdateError for what no agent would take."""
    said: Object = {
        "version": version,
        "platform": platform,
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
    }
    if downgrade:
        said["downgrade"] = True
    r, s = p256.sign(key, updateplan.statement(said))
    said["sig"] = (r.to_bytes(32, "big") + s.to_bytes(32, "big")).hex()
    return updateplan.parse(orjson.dumps(said))


def configmaps(namespace: str, name: str, said: Mapping[str, Any], data: bytes) -> Iterator[Object]:
    """The objects of a release, the first of them last: whoever sees that sees the others."""
    for index in reversed(range(max(1, -(-len(data) // CHUNK_BYTES)))):
        part = data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        made: Object = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": chunk_name(name, index),
                "namespace": namespace,
                "labels": {LABEL: str(said["version"])},
            },
            "immutable": True,
            "binaryData": {DATA: base64.b64encode(part).decode()},
        }
        if not index:
            made["data"] = {STATEMENT: orjson.dumps(dict(said)).decode()}
        yield made
