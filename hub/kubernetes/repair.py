"""The owner's second look: is what the API server shows of a pod what its node reported last?

Others write pods too. The node lifecycle controller calls the pods of a silent node not ready, and only their kubelet
says otherwise once it is back; a write of an earlier owner of the slot may arrive late; an administrator may edit a
status. An agent reports only what has changed, so it is the owner that compares every state which it watches with the
status that it wrote last, and writes that again where they differ; of a pod that it has written nothing about yet, as
after a start, it derives Ready from ContainersReady as a kubelet does. Only while the node is connected: of a silent one
others know as much.

A difference is written under the slot's fence like a report, and only if the pod still is in the state that was judged:
a report that came meanwhile is younger than what is kept here. Bounds: the statuses of KEPT_MAX pods are kept (those
written longest ago make room, and are then judged like unknown ones); what the upstream cannot take now is judged again
with the pod's next change.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import orjson
import zstandard

from hub import errors
from hub.cache import Entry
from hub.kubernetes.patches import SERVER_STATUS
from hub.kubernetes.tolerations import DEFAULT_S, tolerate
from hub.mirror import Delta, Mirror
from hub.objects import PODS, NodeView, PodView, slot_of_partition
from hub.registry import Object, Stored, now_rfc3339
from hub.reports import AGENT_POD_CONDITIONS, merge_pod, ready_of
from hub.upstream import Update

KEPT_MAX: Final = 20_000
_pack = zstandard.ZstdCompressor(level=3).compress
_unpack = zstandard.ZstdDecompressor().decompress


class _Meta(msgspec.Struct, frozen=True):
    uid: str


class _Written(msgspec.Struct, frozen=True):
    metadata: _Meta
    status: msgspec.Raw = msgspec.Raw(b"{}")


class _Spec(msgspec.Struct, frozen=True):
    tolerations: list[dict[str, Any]] | None = None


class _Tolerating(msgspec.Struct, frozen=True):
    spec: _Spec = _Spec()


_tolerations = msgspec.json.Decoder(_Tolerating).decode
_written = msgspec.json.Decoder(_Written).decode


@dataclass(frozen=True, slots=True)
class _Kept:
    """A pod's status as the API server answered it, packed, and the revision that it had then."""

    revision: int
    packed: bytes


class Repair:
    """See the module. `wrote` is to be called with every pod that is as reported (`KubeRegistry.wrote`).

    connected(node): is its session live at this moment? submit(slot, update): `Upstream.submit`.
    default_s: the seconds that DefaultTolerationSeconds sets in this cluster, which pods lose here once they are bound
    (`tolerations`); None: they are left as they are."""

    def __init__(
        self,
        pods: Mirror[PodView],
        nodes: Mirror[NodeView],
        connected: Callable[[str], bool],
        submit: Callable[[int, Update], bool],
        *,
        default_s: int | None = DEFAULT_S,
        kept_max: int = KEPT_MAX,
    ) -> None:
        self.repairs = 0
        self.tolerations_set = 0
        self._pods, self._nodes = pods, nodes
        self._connected, self._submit = connected, submit
        self._default_s = default_s
        self._kept_max = kept_max
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._unsubscribe: list[Callable[[], None]] = []

    def __len__(self) -> int:
        """Pods whose last status is kept."""
        return len(self._kept)

    def start(self) -> None:
        self._unsubscribe = [
            self._pods.subscribe(self._on_pods, self._forgotten),
            self._nodes.subscribe(self._on_nodes),
        ]

    def stop(self) -> None:
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []

    def wrote(self, pod: Stored) -> None:
        """This is how its node reported the pod."""
        found = _written(pod.raw)
        self._kept[found.metadata.uid] = _Kept(pod.revision, _pack(found.status))
        self._kept.move_to_end(found.metadata.uid)
        if len(self._kept) > self._kept_max:
            self._kept.popitem(last=False)

    # -- what is seen ------------------------------------------------------------------------------------------------

    def _on_pods(self, deltas: Sequence[Delta[PodView]], revision: int) -> None:
        for delta in deltas:
            if delta.type == "DELETED":
                self._kept.pop(delta.entry.meta.uid, None)
            else:
                self._judge(delta.entry)

    def _on_nodes(self, deltas: Sequence[Delta[NodeView]], revision: int) -> None:
        for delta in deltas:
            back = delta.type != "DELETED" and ready_of(delta.entry) == "True"
            if back and (delta.old is None or ready_of(delta.old) != "True"):
                for entry in self._pods.cache.find("node", delta.entry.key[1]):
                    self._judge(entry)

    def _forgotten(self, entries: Sequence[Entry[PodView]]) -> None:
        for entry in entries:
            self._kept.pop(entry.meta.uid, None)

    def _judge(self, entry: Entry[PodView]) -> None:
        node, slot = entry.view.spec.nodeName, slot_of_partition(entry.partition)
        if not node or slot is None:
            return
        if self._default_s is not None and not entry.meta.deletionTimestamp:
            self._judge_tolerations(entry, slot, self._default_s)
        kept = self._kept.get(entry.meta.uid)
        if not self._connected(node) or (kept is not None and entry.revision <= kept.revision):
            return
        if kept is None and not _misses_ready(entry):
            return  # nearly all, without decoding them
        pod = entry.obj()
        judged = _mark(pod)
        if _repaired(pod, node, self._last(entry.meta.uid)) is None:
            return

        def apply(obj: Object) -> Object | None:
            if _mark(obj) != judged:
                return None  # a report has come meanwhile, or somebody else: that state is judged by itself
            new = _repaired(obj, node, self._last(entry.meta.uid))
            self.repairs += new is not None
            return new

        namespace, name = entry.key
        self._submit(slot, Update(PODS, namespace, name, entry.meta.uid, apply, _ignore))

    def _judge_tolerations(self, entry: Entry[PodView], slot: int, default_s: int) -> None:
        if tolerate(_tolerations(entry.raw()).spec.tolerations or [], default_s) is None:
            return

        def apply(obj: Object) -> Object | None:
            wanted = tolerate(obj["spec"].get("tolerations") or [], default_s)
            if wanted is None:
                return None
            obj["spec"]["tolerations"] = wanted
            self.tolerations_set += 1
            return obj

        namespace, name = entry.key
        self._submit(slot, Update(PODS, namespace, name, entry.meta.uid, apply, _ignore))

    def _last(self, uid: str) -> Object | None:
        kept = self._kept.get(uid)
        if kept is None:
            return None
        status: Object = orjson.loads(_unpack(kept.packed))
        return status


def _repaired(pod: Object, node: str, last: Object | None) -> Object | None:
    """The pod as its node reported it; None when it is so already."""
    if last is None:
        return _ready_again(pod)
    before = _mark(pod)
    held = pod.get("status") or {}
    reported = {k: v for k, v in last.items() if k not in SERVER_STATUS}
    # Of the rest others are the owners, and what they said then is not what they say now.
    reported["conditions"] = [c for c in last.get("conditions") or [] if c["type"] in AGENT_POD_CONDITIONS]
    new = merge_pod(node, reported)({**pod, "status": dict(held)})
    if new is None:
        return None
    new["status"] = {**{k: held[k] for k in SERVER_STATUS if k in held}, **new["status"]}
    return None if _mark(new) == before else new


def _misses_ready(entry: Entry[PodView]) -> bool:
    conditions = {c.type: c.status for c in entry.view.status.conditions or ()}
    return conditions.get("Ready") == "False" and conditions.get("ContainersReady") == "True"


def _ready_again(pod: Object) -> Object | None:
    """Ready follows from ContainersReady and the readiness gates."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    held = {c["type"]: c for c in conditions}
    gates = [g.get("conditionType") for g in pod["spec"].get("readinessGates") or []]
    wanted = ["ContainersReady", *gates]
    if held.get("Ready", {}).get("status") != "False":
        return None
    if any(held.get(kind, {}).get("status") != "True" for kind in wanted):
        return None
    ready = {k: v for k, v in held["Ready"].items() if k not in ("reason", "message")}
    ready.update(status="True", lastTransitionTime=now_rfc3339())
    pod["status"]["conditions"] = [ready if c["type"] == "Ready" else c for c in conditions]
    return pod


def _mark(pod: Object) -> bytes:
    """What tells one status from another, in whatever order its conditions are."""
    status = dict(pod.get("status") or {})
    status["conditions"] = sorted(status.get("conditions") or [], key=lambda c: str(c["type"]))
    return hashlib.sha256(orjson.dumps(status, option=orjson.OPT_SORT_KEYS)).digest()


def _ignore(result: "int | errors.ApiError") -> None:
    """Nobody waits for it: the pod's next change is judged again."""
