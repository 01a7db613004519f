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

from hub import devices, errors, reports, statusforms
from hub.cache import Entry as CacheEntry
from hub.devices import split_device_key
from hub.documents import split_pod_key
from hub.edgewrites import EdgeWrites
from hub.objects import DEVICES, EVENTS, NODES, PODS, NodeView
from hub.peers import Peer, about, name_of
from hub.registry import Object, now_rfc3339
from hub.twins import TwinIntake
from hub.upstream import Creation, Removal, Result, Single, Update
from security.frames import Entry, decode_event, decode_node
from security.policy import NODE, TABLE, Refusal

if TYPE_CHECKING:
    from hub.gateway import Gateway

OBSOLETE: Final = "obsolete"
REASON_CHARS_MAX: Final = 256
REFUSALS_KEPT: Final = 16


class Intake:
    """See the module."""

    def __init__(self, gateway: "Gateway", writes: EdgeWrites) -> None:
        self._gateway = gateway
        self._writes = writes
        self.twins = TwinIntake(gateway)

    def take(self, peer: Peer, entries: Sequence[Entry]) -> None:
        """Queues what is in a REPORT."""
        gateway = self._gateway
        assert peer.identity is not None
        for entry in entries:
            relation = gateway.relations.of_entry(peer.identity, entry.t, entry.k)
            refusal = TABLE.judge(NODE, entry.t, relation, len(entry.b))
            if refusal is not None:
                text = f"{refusal.message}: {entry.k!r}"
                gateway.refusals.note(NODE, entry.t, refusal.reason, name_of(peer), text, about(peer))
                gateway.answers.note(peer, entry.n, 0, _answer_to(entry.t, refusal))
                continue
            try:
                if entry.t == "piece":
                    gateway.pieces.take(peer, entry)
                    continue
                if entry.t in ("token", "static"):
                    (gateway.tokens if entry.t == "token" else gateway.mirrors).take(peer, entry)
                    continue
                job = self._judged(peer, entry)
                if job is None:
                    continue
            except errors.ApiError as denied:
                gateway.answers.note(peer, entry.n, 0, _words(denied))
                continue
            except (msgspec.MsgspecError, orjson.JSONDecodeError, UnicodeError, RecursionError) as malformed:
                gateway.answers.note(peer, entry.n, 0, f"malformed: {malformed}"[:REASON_CHARS_MAX])
                continue
            if not gateway.upstream.submit(peer.slot, job):
                # Nothing is lost: the node keeps what was not answered and sends it again.
                gateway.close_peer(peer, "overload", "the hub has too many reports to store; come back", 10.0)
                return

    def _judged(self, peer: Peer, entry: Entry) -> Update | Single | None:
        """What the store has to do, as policies have it; None when the entry is answered already."""
        assert peer.identity is not None
        job = self._job(peer, entry) if entry.t != "twin" else self.twins.job(peer, entry)
        if job is None:
            return None
        judged = self._writes.judged(peer.identity.node, job, functools.partial(self._pod_of, entry.k))
        # Where it is another job, a policy has its say each time.
        if entry.t == "node" and isinstance(job, Update) and judged is job:
            revision = self._said_before(peer, job)
            if revision is not None:
                self._gateway.answers.note(peer, entry.n, revision)
                return None
        return judged

    def _said_before(self, peer: Peer, job: Update) -> int | None:
        """The revision of a Node that has all that its report says, which is so for nearly every node that comes back: then
        the store is neither asked nor written. None where something has to be written, or where what is cached may be older
        than what the slot's nodes have reported last."""
        gateway = self._gateway
        stored, held = gateway.upstream.reached(peer.slot), gateway.node_entry(job.name)
        if stored is None or held is None or not held.size or not gateway.share.reached(peer.slot, stored):
            return None
        raw = held.raw()
        try:
            new = job.apply(orjson.loads(raw))
        except (KeyError, TypeError, ValueError, AttributeError):
            return None  # an odd object: whoever writes it says what is wrong
        return held.revision if new is not None and orjson.dumps(new) == raw else None

    def _pod_of(self, key: str) -> Object | None:
        pod = split_pod_key(key)
        held = self._gateway.pod_entry(pod[0], pod[1]) if pod is not None else None
        return held.obj() if held is not None else None

    def _job(self, peer: Peer, entry: Entry) -> Update | Single:
        assert peer.identity is not None
        node = peer.identity.node
        done = functools.partial(self.done, peer, entry.n)
        if entry.t == "node":
            report = decode_node(entry.b)
            statusforms.check_node(entry.b)
            return Update(
                NODES, "", node, None, lambda obj: reports.merge_node(obj, report), done, len(entry.b)
            )
        if entry.t == "event":
            return Creation(EVENTS, self._event(peer, entry), done)
        pod = split_pod_key(entry.k)
        assert pod is not None  # the key is among the node's own
        if entry.t == "gone":
            return Removal(node, *pod, done)
        apply = reports.merge_pod(node, statusforms.pod_status(entry.b))
        return Update(PODS, *pod, apply, done, 2048 + len(entry.b), whole=True)

    def _event(self, peer: Peer, entry: Entry) -> Object:
        assert peer.identity is not None
        node = peer.identity.node
        held = self._gateway.node_entry(node)
        return reports.new_event(
            decode_event(entry.b),
            node=node,
            pod=split_pod_key(entry.k),
            node_uid=held.meta.uid if held is not None else node,
            inc=peer.inc,
            n=entry.n,
            now=now_rfc3339(),
            rfc3339=_rfc3339,
        )

    def done(self, peer: Peer, n: int, result: Result) -> None:
        """The store has taken an entry, or never will."""
        if isinstance(result, int):
            self._gateway.answers.note(peer, n, result)
        elif isinstance(result, errors.NotFound):
            self._gateway.answers.note(peer, n, 0, OBSOLETE)
        else:
            self._gateway.answers.note(peer, n, 0, _words(result))

    # -- documents that a node refuses -----------------------------------------------------------------------------

    def refusals(self, peer: Peer, key: str, reason: str, message: str) -> None:
        """The node's refused documents have changed; `key` is the one refused now, "" when one was taken back."""
        self._gateway.write_node(peer, functools.partial(self._note_refusals, peer))
        assert peer.identity is not None
        node = peer.identity.node
        if (device := split_device_key(key)) is not None:
            change = devices.refused(node, reason, message, now_rfc3339)
            self._gateway.upstream.submit(peer.slot, Update(DEVICES, *device, change, _ignore))
        pod = split_pod_key(key)
        if pod is None:
            return
        held = self._gateway.pod_entry(pod[0], pod[1])
        if held is not None and held.meta.uid == pod[2] and held.meta.deletionTimestamp:
            # The node will not act on it, so it will never report it gone; the DEL that follows stops what still runs.
            job: Update | Single = Removal(node, *pod, _ignore)
        else:
            job = Update(PODS, *pod, reports.refuse_pod(node, reason, message), _ignore)
        self._gateway.upstream.submit(peer.slot, job)

    def _note_refusals(self, peer: Peer, node: Object, now: str) -> Object | None:
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
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return None  # somebody has edited it; the next refusal writes it anew


def _answer_to(entry_type: str, refusal: Refusal) -> str:
    """What the node is told. A document's key that is another's is to it as one that is gone (I5)."""
    if refusal.reason in ("unknown", "type"):
        return "unsupported"
    if refusal.reason == "size":
        return f"denied: {refusal.message}"[:REASON_CHARS_MAX]
    if entry_type == "static":
        return "denied: a static pod of this node is called static/<namespace>/<name>-<the node's name>"
    return OBSOLETE


def _words(refused: errors.ApiError) -> str:
    return f"{refused.reason}: {refused.message}"[:REASON_CHARS_MAX]


def _ignore(result: Any) -> None:
    """Nobody waits for it: the next refusal or connection says it again."""


def _rfc3339(unix_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_s))
