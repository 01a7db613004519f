"""Traced changes on their way to nodes: from the document that changed to the node's acknowledgement.

A document that bears a trace's context (`hub.tracecontext`) is remembered by its version. For the first NODES_MAX nodes
that get it two spans are made when the node has answered: `owner`, from when this replica learned of the change until it
was sent, and `channel`, from then until the acknowledgement. The frame carries the context, and the agent echoes it.

Bounds: DOCUMENTS_MAX versions, WAITING_MAX answers, each for WAIT_S; what is over them is not followed, or ends as
unacknowledged. Where nothing is traced a session asks one empty dict.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple

from hub import tracecontext
from hub.documents import Document
from observability.metrics import Histogram
from observability.tracing import CLIENT, INTERNAL, Context, Tracer

DOCUMENTS_MAX: Final = 1024
NODES_MAX: Final = 16
WAITING_MAX: Final = 4096
WAIT_S: Final = 300
_NS: Final = 1_000_000_000


class _Traced:
    """A version of a document that a traced change made. `left`: nodes that may still be followed."""

    __slots__ = ("context", "learned_ns", "left")

    def __init__(self, context: Context, learned_ns: int) -> None:
        self.context = context
        self.learned_ns = learned_ns
        self.left = NODES_MAX


class _Sent(NamedTuple):
    document: Document
    traced: _Traced
    sent_ns: int


class Deliveries:
    """See the module. `place`: attributes of a node's place, such as slot and epoch."""

    def __init__(
        self, tracer: Tracer, place: Callable[[str], Mapping[str, Any]], seconds: Histogram | None = None
    ) -> None:
        self._tracer = tracer
        self._place = place
        self._seconds = seconds
        self._documents: OrderedDict[str, _Traced] = OrderedDict()
        self._waiting: OrderedDict[tuple[str, str], _Sent] = OrderedDict()
        self.unacknowledged = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def learned(self, document: Document, annotations: Mapping[str, str] | None) -> None:
        """An object's new version has become this document."""
        now_ns = self._tracer.now_ns()
        context = tracecontext.context_of(annotations, now_ns / _NS)
        if context is None:
            return
        self._documents[document.version] = _Traced(context, now_ns)
        while len(self._documents) > DOCUMENTS_MAX:
            self._documents.popitem(last=False)

    def context(self, document: Document) -> str:
        """What its frame carries; "" for nothing."""
        traced = self._documents.get(document.version)
        return traced.context.traceparent if traced is not None else ""

    def sent(self, node: str, document: Document) -> None:
        """It leaves for a node, perhaps again."""
        traced = self._documents.get(document.version)
        if traced is None:
            return
        key = (node, document.key)
        before = self._waiting.pop(key, None)
        if before is not None and before.document is document:
            self._waiting[key] = before  # the connection was lost: the time counts from the first
            return
        if before is not None:
            self._end(node, before, "a later version was sent")
        if traced.left <= 0 or len(self._waiting) >= WAITING_MAX:
            return
        traced.left -= 1
        self._waiting[key] = _Sent(document, traced, self._tracer.now_ns())

    def landed(self, node: str, key: str, version: str, echoes: Collection[str], refused: str = "") -> None:
        """A node has answered for a version of a document. `echoes`: the contexts that came back with it; `refused`: why it
        was not taken."""
        found = self._waiting.get((node, key))
        if found is None or found.document.version != version:
            return
        del self._waiting[(node, key)]
        echoed = found.traced.context.traceparent in echoes
        self._end(node, found, refused, echoed=echoed)

    def sweep(self) -> None:
        """Now and then: ends what was not answered in WAIT_S."""
        if not self._waiting and not self._documents:
            return
        oldest_ns = self._tracer.now_ns() - WAIT_S * _NS
        for (node, _), sent in list(self._waiting.items()):
            if sent.sent_ns <= oldest_ns:
                del self._waiting[(node, sent.document.key)]
                self.unacknowledged += 1
                self._end(node, sent, f"not acknowledged within {WAIT_S} s")
        for version, traced in list(self._documents.items()):
            if traced.learned_ns <= oldest_ns:
                del self._documents[version]

    def _end(self, node: str, sent: _Sent, error: str, *, echoed: bool = False) -> None:
        tracer, traced, document = self._tracer, sent.traced, sent.document
        end_ns = tracer.now_ns()
        attributes = {"k8s.node.name": node, "cloudhub.document.key": document.key, **self._place(node)}
        owner = tracer.child("owner", INTERNAL, traced.context, traced.learned_ns, attributes)
        tracer.end(owner, end_ns=sent.sent_ns)
        about = {
            **attributes,
            "cloudhub.document.version": document.version,
            "cloudhub.document.bytes": document.size,
            "cloudhub.echoed": echoed,
            "network.protocol.name": "cloudhub",
        }
        tracer.end(tracer.child("channel", CLIENT, owner.context, sent.sent_ns, about), error, end_ns)
        if self._seconds is not None and not error:
            self._seconds.observe((end_ns - sent.sent_ns) / _NS)
