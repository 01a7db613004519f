"""The documents `agent/update`, kept from the annotations of the Nodes of this replica's slots, for `hub.desired`.

All nodes that want the same have the same document, whose bytes are kept once for as long as anybody wants it.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from edgelite.updateplan import UpdateError
from hub.cache import Entry
from hub.documents import Document
from hub.mirror import Delta, Mirror
from hub.objects import NodeView
from hub.releases import ANNOTATION, KEY, wanted
from observability.logs import about

log = logging.getLogger(__name__)


class _Said:
    """What an annotation came to: `document` None where it says nothing that can be carried out. `nodes`: how many have it."""

    __slots__ = ("body", "document", "nodes", "text")

    def __init__(self, text: str, body: bytes | None) -> None:
        self.text = text
        self.body = body
        self.document = Document(KEY, body) if body is not None else None
        self.nodes = 0


class AgentDocuments:
    """`place(nodes, document)` and `remove(node, key, tell)` change what nodes should hold; `advanced(revision)` is called
    after the deltas of a revision that changed something."""

    def __init__(
        self,
        nodes: Mirror[NodeView] | None,
        place: Callable[[tuple[str], Document], None],
        remove: Callable[[str, str, bool], None],
        advanced: Callable[[int], None],
    ) -> None:
        self._nodes = nodes
        self._place = place
        self._remove = remove
        self._advanced = advanced
        self._of: dict[str, _Said] = {}
        """By node."""
        self._texts: dict[str, _Said] = {}
        self._unsubscribe: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Takes what the share holds, and follows it from here."""
        if self._nodes is None:
            return
        for entry in self._nodes.cache:
            self._put(entry)
        self._unsubscribe = self._nodes.subscribe(self._on_deltas, self._forget)

    def stop(self) -> None:
        self._unsubscribe()

    def body(self, version: str) -> bytes | None:
        """The bytes of the document of this version; None when nobody wants it any more."""
        for said in self._texts.values():
            if said.document is not None and said.document.version == version:
                return said.body
        return None

    def _on_deltas(self, deltas: Sequence[Delta[Any]], revision: int) -> None:
        changed = False
        for delta in deltas:
            if delta.type == "DELETED":
                changed |= self._drop(delta.entry.key[1], True)
            else:
                changed |= self._put(delta.entry)
        if changed:
            self._advanced(revision)

    def _put(self, entry: Entry[NodeView]) -> bool:
        """Whether anything was changed by it."""
        name = entry.key[1]
        text = (entry.meta.annotations or {}).get(ANNOTATION, "")
        held = self._of.get(name)
        if text == (held.text if held is not None else ""):
            return False
        if not text:
            return self._drop(name, True)
        said = self._texts.get(text)
        if said is None:
            said = self._texts[text] = _Said(text, _body(name, text))
        said.nodes += 1
        self._leave(name)
        self._of[name] = said
        if said.document is None:
            self._remove(name, KEY, True)
        else:
            self._place((name,), said.document)
        return True

    def _forget(self, entries: Sequence[Entry[NodeView]]) -> None:
        """These are another replica's: nobody is told."""
        for entry in entries:
            self._drop(entry.key[1], False)

    def _drop(self, node: str, tell: bool) -> bool:
        if node not in self._of:
            return False
        self._leave(node)
        self._remove(node, KEY, tell)
        return True

    def _leave(self, node: str) -> None:
        said = self._of.pop(node, None)
        if said is not None:
            said.nodes -= 1
            if not said.nodes:
                del self._texts[said.text]


def _body(node: str, text: str) -> bytes | None:
    try:
        found = wanted({ANNOTATION: text})
    except UpdateError as error:
        log.warning("node %s: %s", node, error.message, extra=about(node=node))
        return None
    return found.body if found is not None else None
