"""Mirror pods: what the API shows of the static pods that nodes run from files of their own.

A node reports a static pod whole; the hub keeps an object of that name, bound to the node and marked as a mirror, in step with it.
It is sent to nobody, and deleting it changes nothing at the node: it is made anew. A node may mirror only pods whose names
end with its own, that are bound to it, and that refer to nothing (I5), as Kubernetes' NodeRestriction has it.

Bounds: WAITING_MAX reports of this replica, carried out one after the other; a store that does not answer is asked again ATTEMPTS
times, then the node is not answered and says it again with its next connection.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from edgelite.staticpods import HASH, SOURCE
from hub import errors, reports, statusforms
from hub.api import decode, defaults, validation
from hub.api.kinds import kind_of
from hub.cache import Entry as CacheEntry
from hub.desired import MIRROR, mirror_uid
from hub.documents import references
from hub.edgewrites import EdgeWrites
from hub.mirror import Delta
from hub.objects import NAMESPACES, PODS, PodView
from hub.registry import FenceLost, Object, Stored
from security.frames import Entry

if TYPE_CHECKING:
    from collections.abc import Callable

    from hub.gateway import Gateway
    from hub.peers import Peer

log = logging.getLogger(__name__)

WAITING_MAX: Final = 1000
ATTEMPTS: Final = 5
PAUSE_S: Final = 1.0
REASON_CHARS_MAX: Final = 256
CLOUD_FIELDS: Final = ("serviceAccountName", "serviceAccount", "nodeName", "nodeSelector", "affinity")
TRANSIENT: Final = (errors.ServiceUnavailable, errors.Timeout, errors.TooManyRequests, errors.Conflict)

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]


class _Meta(msgspec.Struct, frozen=True):
    name: Name
    namespace: Name
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class _Pod(msgspec.Struct, frozen=True):
    metadata: _Meta
    spec: dict[str, Any]


class _Report(msgspec.Struct, frozen=True):
    """The body of a `static` entry: a pod with its status, or gone."""

    uid: Annotated[str, msgspec.Meta(max_length=64)] = ""
    pod: _Pod | None = None
    status: msgspec.Raw = msgspec.Raw(b'{"phase":"Pending"}')
    gone: bool = False


_decode = msgspec.json.Decoder(_Report).decode


def is_mirror(annotations: Mapping[str, str] | None) -> bool:
    return bool(annotations) and MIRROR in annotations  # type: ignore[operator]


def edge_uid(entry: CacheEntry[PodView]) -> str:
    """The UID that the pod's node knows it by."""
    return mirror_uid(entry.raw()) or entry.meta.uid


class MirrorPods:
    """See the module."""

    def __init__(self, gateway: "Gateway", writes: EdgeWrites) -> None:
        self._gateway = gateway
        self._writes = writes
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        self._unsubscribe = self._gateway.share.pods.subscribe(self._on_pods)

    def stop(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def take(self, peer: "Peer", entry: Entry) -> None:
        """A `static` entry. Raises MsgspecError for what is none."""
        assert peer.identity is not None
        node, report = peer.identity.node, _decode(entry.b)
        kind, _, path = entry.k.partition("/")
        namespace, _, name = path.partition("/")
        fault = ""
        if kind != "static" or not namespace or "/" in name or not name.endswith(f"-{node}"):
            fault = f"denied: a static pod of this node is called static/<namespace>/<name>-{node}"
        elif self._waiting >= WAITING_MAX:
            fault = f"TooManyRequests: {WAITING_MAX} reports of static pods are waiting here"
        elif not report.gone:
            fault = _fault(report, namespace, name)
        status = statusforms.pod_status(report.status) if report.pod is not None else {}
        if fault:
            self._gateway.answers.note(peer, entry.n, 0, fault[:REASON_CHARS_MAX])
            return
        self._waiting += 1
        job = self._serve(peer, entry, namespace, name, report, status)
        self._gateway.serve(peer, job, f"mirror of {path}")

    async def _serve(
        self, peer: "Peer", entry: Entry, namespace: str, name: str, report: _Report, status: Object
    ) -> None:
        try:
            for attempt in range(ATTEMPTS):
                if peer.session is None or self._gateway.slots.fence(peer.slot) is None:
                    return
                try:
                    async with self._turn:
                        revision = await self._keep(peer, namespace, name, report, status)
                    self._gateway.answers.note(peer, entry.n, revision)
                    return
                except TRANSIENT as failure:
                    log.warning("mirror pod %s/%s: %s", namespace, name, failure.message)
                    await asyncio.sleep(PAUSE_S * 2**attempt)
        except FenceLost:
            self._gateway.fence_lost(peer.slot)
        except errors.ApiError as error:
            reason = f"{error.reason}: {error.message}"[:REASON_CHARS_MAX]
            self._gateway.answers.note(peer, entry.n, 0, reason)
        finally:
            self._waiting -= 1

    async def _keep(self, peer: "Peer", namespace: str, name: str, report: _Report, status: Object) -> int:
        """Brings the mirror in step with the report; the revision. Raises ApiError, FenceLost."""
        assert peer.identity is not None
        registry, node = self._gateway.registry, peer.identity.node
        fence = self._gateway.slots.fence(peer.slot)
        found = await registry.find(PODS, namespace, name)
        if found is not None and not _is_ours(found.obj(), node):
            raise errors.BadRequest(f"pods {namespace}/{name} exists and mirrors nothing of this node")
        if report.pod is None:
            return await registry.remove(PODS, found, fence=fence) if found is not None else 0
        if found is not None and _outdated(found.obj(), report.uid):
            await registry.remove(PODS, found, fence=fence)
            found = None
        if found is None:
            held = self._gateway.node_entry(node)
            wanted = mirror_of(report.pod, report.uid, node, held.meta.uid if held is not None else "")
            self._writes.check_create(node, PODS, wanted)
            await registry.create(PODS, wanted, fence=fence, within=await self._namespace(namespace))
        apply = self._writes.checked(node, PODS, reports.merge_pod(node, status))
        return (await registry.mutate(PODS, namespace, name, apply, fence=fence)).revision

    async def _namespace(self, name: str) -> Stored:
        """Raises BadRequest where nothing may be made in it."""
        found = await self._gateway.registry.find(NAMESPACES, "", name)
        if found is None or found.obj()["metadata"].get("deletionTimestamp"):
            raise errors.BadRequest(f'namespace "{name}" does not exist, or is being deleted')
        return found

    # -- mirrors that somebody deletes ------------------------------------------------------------------------------

    def _on_pods(self, deltas: Sequence[Delta[PodView]], revision: int) -> None:
        for delta in deltas:
            entry = delta.entry
            if delta.type != "DELETED" and entry.meta.deletionTimestamp and mirror_uid(entry.raw()):
                peer = self._gateway.peers.get(entry.view.spec.nodeName or "")
                if peer is not None and self._waiting < WAITING_MAX:
                    self._waiting += 1
                    self._gateway.spawn(self._renew(peer, *entry.key), f"mirror {entry.key[1]} anew")

    async def _renew(self, peer: "Peer", namespace: str, name: str) -> None:
        """A mirror was deleted, and its pod runs: the object goes at once, and another takes its place."""
        assert peer.identity is not None
        registry, fence = self._gateway.registry, self._gateway.slots.fence(peer.slot)
        try:
            async with self._turn:
                found = await registry.find(PODS, namespace, name)
                if fence is None or found is None or not _is_ours(found.obj(), peer.identity.node):
                    return
                obj = found.obj()
                if not obj["metadata"].get("deletionTimestamp"):
                    return
                await registry.remove(PODS, found, fence=fence)
                for field in ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"):
                    obj["metadata"].pop(field, None)
                await registry.create(PODS, obj, fence=fence, within=await self._namespace(namespace))
        except FenceLost:
            self._gateway.fence_lost(peer.slot)
        except errors.ApiError as error:
            # The node's next report of the pod makes it anew.
            log.warning("mirror pod %s/%s was not made anew: %s", namespace, name, error.message)
        finally:
            self._waiting -= 1


def mirror_of(pod: _Pod, uid: str, node: str, node_uid: str) -> Object:
    """The object to create. Raises BadRequest, Invalid. [pure]"""
    meta: Object = {
        "name": pod.metadata.name,
        "namespace": pod.metadata.namespace,
        "labels": dict(pod.metadata.labels),
        "annotations": {**pod.metadata.annotations, SOURCE: "file", HASH: uid, MIRROR: uid},
    }
    if node_uid:
        owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid, "controller": True}
        meta["ownerReferences"] = [owner]
    spec = {field: value for field, value in pod.spec.items() if field not in CLOUD_FIELDS}
    # It runs whatever the node's taints are.
    spec["tolerations"] = [{"operator": "Exists"}]
    spec.update(nodeName=node, automountServiceAccountToken=False)
    schema = kind_of(PODS).schema
    obj = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": {"phase": "Pending"}}
    # A node's file has passed nobody yet: what it makes is checked as what a user sends.
    made = decode.decode(schema, obj).object
    defaults.apply(schema, made)
    validation.check_create(schema, made)
    return made


def _fault(report: _Report, namespace: str, name: str) -> str:
    """Why a report cannot be mirrored, or ""."""
    pod = report.pod
    if pod is None or not report.uid or (pod.metadata.namespace, pod.metadata.name) != (namespace, name):
        return "malformed: a static entry holds the pod that its key names, with its UID"
    try:
        if references(namespace, pod.spec):
            return "denied: a static pod may not refer to ConfigMaps or Secrets"
        for volume in pod.spec.get("volumes") or ():
            if any("serviceAccountToken" in s for s in (volume.get("projected") or {}).get("sources") or ()):
                return "denied: a static pod has no service account"
    except (AttributeError, TypeError, KeyError) as error:
        return f"malformed: spec makes no sense: {error!r}"
    return ""


def _is_ours(pod: Object, node: str) -> bool:
    return is_mirror(pod["metadata"].get("annotations")) and pod["spec"].get("nodeName") == node


def _outdated(pod: Object, uid: str) -> bool:
    meta = pod["metadata"]
    return meta["annotations"][MIRROR] != uid or bool(meta.get("deletionTimestamp"))
