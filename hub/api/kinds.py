"""One served kind: its name in the store (`hub.objects`) joined with its schema (`hub.api.schema`). [pure]"""

import functools
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from hub import objects
from hub.api import schema
from hub.cache import with_revision

Object = dict[str, Any]

SUBRESOURCES: Final[dict[objects.Resource, tuple[str, ...]]] = {
    objects.NAMESPACES: ("status", "finalize"),
    objects.NODES: ("status",),
    objects.PODS: ("status", "log", "binding", "eviction", "exec", "attach", "portforward"),
    objects.DEPLOYMENTS: ("status", "scale"),
    objects.REPLICASETS: ("status", "scale"),
    objects.DAEMONSETS: ("status",),
    objects.SERVICEACCOUNTS: ("token",),
    objects.CERTIFICATESIGNINGREQUESTS: ("status", "approval"),
    objects.DEVICES: ("status",),
}
_WITH_GENERATION: Final = frozenset(
    (
        objects.PODS,
        objects.DEPLOYMENTS,
        objects.REPLICASETS,
        objects.DAEMONSETS,
        objects.POLICIES,
        objects.JOINTOKENS,
        objects.DEVICES,
    )
)
_CREATED_BY_UPDATE: Final = frozenset((objects.LEASES, objects.EVENTS))


@dataclass(frozen=True, slots=True)
class Kind:
    """`head` is how the stored JSON of every object of the kind begins when the API wrote it."""

    res: objects.Resource
    schema: schema.Resource
    subresources: tuple[str, ...]
    head: bytes = field(default=b"", repr=False)

    @property
    def has_generation(self) -> bool:
        return self.res in _WITH_GENERATION

    @property
    def created_by_update(self) -> bool:
        """Does a PUT of a name that does not exist create it, as in Kubernetes?"""
        return self.res in _CREATED_BY_UPDATE

    @property
    def is_made_by_the_hub(self) -> bool:
        """Do clients read, decide and delete its objects, and never create them?"""
        return self.res == objects.CERTIFICATESIGNINGREQUESTS

    @property
    def has_status(self) -> bool:
        return self.res.status

    def encode(self, raw: bytes, revision: int) -> bytes:
        """The object's JSON for a client: as stored, with its resourceVersion.

        Bytes are spliced, for a parse of a Pod costs forty times as much."""
        if raw.startswith(self.head):
            at = len(self.head)
            return b'%b"resourceVersion":"%d",%b' % (self.head, revision, raw[at:])
        return orjson.dumps(self.decode(raw, revision))

    def decode(self, raw: bytes, revision: int) -> Object:
        """A fresh dict, with resourceVersion, apiVersion and kind."""
        obj = with_revision(orjson.loads(raw), revision)
        if "kind" in obj and "apiVersion" in obj:
            return obj
        return {**obj, "apiVersion": self.res.api_version, "kind": self.res.kind}


def _kind(res: objects.Resource) -> Kind:
    found = schema.resource(res.group, res.version, res.resource)
    if found is None:
        raise LookupError(f"hub.api.schema has no {res.group_resource}")
    head = orjson.dumps({"apiVersion": res.api_version, "kind": res.kind, "metadata": {}})[:-2]
    return Kind(res, found, SUBRESOURCES.get(res, ()), head)


@functools.cache
def kinds() -> dict[tuple[str, str, str], Kind]:
    """Everything that is served, by (group, version, plural)."""
    return {(r.group, r.version, r.resource): _kind(r) for r in objects.RESOURCES}


def kind_of(res: objects.Resource) -> Kind:
    return kinds()[res.group, res.version, res.resource]
