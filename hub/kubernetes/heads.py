"""Objects of an API server as far as deciding about them needs, and as they are kept. [pure]

Most of what a replica hears of is another's: of that a head is decoded, which costs some microseconds and nothing lasts.
"""

from typing import Final

import msgspec

from hub.kubernetes.answers import revision_of
from hub.objects import PREFIX, Resource
from shards.ring import slot_of

EDGE_LABEL: Final = f"{PREFIX}/edge"
EDGE_SELECTOR: Final = f"{EDGE_LABEL}=true"
SITE_LABEL: Final = f"{PREFIX}/site"


class HeadMeta(msgspec.Struct, frozen=True, gc=False):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name

    @property
    def revision(self) -> int:
        return revision_of(self.resourceVersion)


class Head(msgspec.Struct, frozen=True):
    """Any object."""

    metadata: HeadMeta


class PodHeadSpec(msgspec.Struct, frozen=True, gc=False):
    nodeName: str = ""


class PodHead(msgspec.Struct, frozen=True):
    metadata: HeadMeta
    spec: PodHeadSpec = PodHeadSpec()


class NodeHeadMeta(HeadMeta, frozen=True):
    labels: dict[str, str] | None = None


class NodeHead(msgspec.Struct, frozen=True):
    metadata: NodeHeadMeta

    def slot(self, slots: int) -> int:
        """Of its affinity: its site where it has one, else its name."""
        return slot_of((self.metadata.labels or {}).get(SITE_LABEL) or self.metadata.name, slots)


head_of = msgspec.json.Decoder(Head).decode
pod_head_of = msgspec.json.Decoder(PodHead).decode
node_head_of = msgspec.json.Decoder(NodeHead).decode

_fields_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def slim(res: Resource, raw: bytes | msgspec.Raw) -> bytes:
    """An object as it is kept: without managed fields, often its largest part, and without its revision, which is kept
    beside it. Objects of a list come without kind and version; here all have them. A write from this leaves the
    server's managed fields as they are: it takes absent ones for unchanged."""
    fields = _fields_of(raw)
    meta = _fields_of(fields["metadata"])
    meta.pop("managedFields", None)
    meta.pop("resourceVersion", None)
    return _encode({**fields, "kind": res.kind, "apiVersion": res.api_version, "metadata": meta})


def collection(res: Resource, namespace: str = "") -> str:
    """The path of all objects of a kind, or of those in one namespace."""
    base = f"/apis/{res.group}/{res.version}" if res.group else f"/api/{res.version}"
    return f"{base}/namespaces/{namespace}/{res.resource}" if namespace else f"{base}/{res.resource}"
