"""Upstream entries and refusals of one node, turned into jobs for the store.

Every entry gets exactly one answer: stored, or refused for good with a reason, so that nothing blocks behind it at the
edge. What the store cannot take now has no answer yet. `obsolete`: the object is gone, or not this node's (I5).
"""

import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson

from hub import errors, reports
from hub.cache import Entry as CacheEntry
from hub.documents import split_pod_key
from hub.messages import Entry
from hub.objects import EVENTS, NODES, PODS, NodeView
from hub.registry import Object, now_rfc3339
from hub.upstream import Creation, Removal, Result, Single, Update
from security.policy import may_report

if TYPE_CHECKING:
    from hub.gateway import Gateway
    from hub.peers import Peer

OBSOLETE: Final = "obsolete"
REASON_CHARS_MAX: Final = 256
REFUSALS_KEPT: Final = 16


class Intake:
    """See the module."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway

    def take(self, peer: "Peer", entries: Sequence[Entry]) -> None:
        """Queues what is in a REPORT."""
        gateway = self._gateway
        assert peer.identity is not None
        bound = gateway.desired.of(peer.identity.node)
        for entry in entries:
            if may_report(entry.t, entry.k, bound) is not None:
                known = entry.t in ("pod", "gone", "event", "node")
                gateway.answered(peer, entry.n, 0, OBSOLETE if known else "unsupported")
                continue
            try:
                job = self._job(peer, entry)
            except (msgspec.MsgspecError, orjson.JSONDecodeError, UnicodeError, RecursionError) as malformed:
                gateway.answered(peer, entry.n, 0, f"malformed: {malformed}"[:REASON_CHARS_MAX])
                continue
            if not gateway.upstream.submit(peer.slot, job):
                # Nothing is lost: the node keeps what was not answered and sends it again.
                gateway.close_peer(peer, "overload", "the hub has too many reports to store; come back", 10.0)
                return

    def _job(self, peer: "Peer", entry: Entry) -> Update | Single:
        assert peer.identity is not None
        node = peer.identity.node
        done = functools.partial(self._done, peer, entry.n)
        if entry.t == "node":
            report = reports.decode_node(entry.b)
            return Update(
                NODES, "", node, None, lambda obj: reports.merge_node(obj, report), done, len(entry.b)
            )
        if entry.t == "event":
            return Creation(EVENTS, self._event(peer, entry), done)
        pod = split_pod_key(entry.k)
        assert pod is not None  # `may_report` has seen the key among the node's own
        if entry.t == "gone":
            return Removal(node, *pod, done)
        if reports.decode_pod(entry.b).phase not in reports.PHASES:
            raise msgspec.ValidationError("status.phase is none of Kubernetes' phases")
        apply = reports.merge_pod(node, orjson.loads(bytes(entry.b)))
        return Update(PODS, *pod, apply, done, 2048 + len(entry.b), whole=True)

    def _event(self, peer: "Peer", entry: Entry) -> Object:
        assert peer.identity is not None
        node = peer.identity.node
        held = self._gateway.node_entry(node)
        return reports.new_event(
            reports.decode_event(entry.b),
            node=node,
            pod=split_pod_key(entry.k),
            node_uid=held.meta.uid if held is not None else node,
            inc=peer.inc,
            n=entry.n,
            now=now_rfc3339(),
            rfc3339=_rfc3339,
        )

    def _done(self, peer: "Peer", n: int, result: Result) -> None:
        if isinstance(result, int):
            self._gateway.answered(peer, n, result)
        elif isinstance(result, errors.NotFound):
            self._gateway.answered(peer, n, 0, OBSOLETE)
        else:
            self._gateway.answered(peer, n, 0, f"{result.reason}: {result.message}"[:REASON_CHARS_MAX])

    # -- documents that a node refuses -----------------------------------------------------------------------------

    def refusals(self, peer: "Peer", key: str, reason: str, message: str) -> None:
        """The node's refused documents have changed; `key` is the one refused now, "" when one was taken back."""
        self._gateway.write_node(peer, functools.partial(self._note_refusals, peer))
        pod = split_pod_key(key)
        if pod is None:
            return
        assert peer.identity is not None
        node = peer.identity.node
        held = self._gateway.pod_entry(pod[0], pod[1])
        if held is not None and held.meta.uid == pod[2] and held.meta.deletionTimestamp:
            # The node will not act on it, so it will never report it gone; the DEL that follows stops what still runs.
            job: Update | Single = Removal(node, *pod, _ignore)
        else:
            job = Update(PODS, *pod, reports.refuse_pod(node, reason, message), _ignore)
        self._gateway.upstream.submit(peer.slot, job)

    def _note_refusals(self, peer: "Peer", node: Object, now: str) -> Object | None:
        refused = dict((peer.session.refused if peer.session is not None else None) or {})
        kept = {key: [r, m[:REASON_CHARS_MAX]] for key, (r, m) in list(refused.items())[:REFUSALS_KEPT]}
        annotations = dict(node["metadata"].get("annotations") or {})
        before = annotations.get(reports.REFUSED)
        if kept:
            annotations[reports.REFUSED] = orjson.dumps(kept).decode()
        else:
            annotations.pop(reports.REFUSED, None)
        changed = reports.documents_refused(node, refused, now) is not None
        if annotations.get(reports.REFUSED) != before:
            node["metadata"]["annotations"] = annotations
            changed = True
        return node if changed else None

    def refused_of(self, entry: CacheEntry[NodeView]) -> dict[str, tuple[str, str]] | None:
        """The refused documents that were noted in a Node earlier."""
        text = (entry.meta.annotations or {}).get(reports.REFUSED)
        if not text:
            return None
        try:
            return msgspec.json.decode(text, type=dict[str, tuple[str, str]])
        except msgspec.MsgspecError:
            return None  # somebody has edited it; the next refusal writes it anew


def _ignore(result: Any) -> None:
    """Nobody waits for it: the next refusal or connection says it again."""


def _rfc3339(unix_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_s))
